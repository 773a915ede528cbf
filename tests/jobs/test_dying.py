"""What a job stands on breaks away in the middle: a sentence, and nothing half written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import InputError, ModelError, OnnxPointwiseError
from onnx_pointwise.examples.calibration import calibrate
from onnx_pointwise.graph import load
from onnx_pointwise.runtime import compare, resolve
from tests import small
from tests.commands import invoke

Array = np.ndarray[Any, Any]


class Dying:
    """Sessions that run a number of times and then no more."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int) -> None:
        self.count, self.after = 0, after
        for name in ("run", "run_with_iobinding"):
            patch.setattr(ort.InferenceSession, name, self._dying(getattr(ort.InferenceSession, name)))

    def _dying(self, run: Any) -> Any:
        def dying(session: Any, *given: Any, **named: Any) -> Any:
            self.count += 1
            if self.count > self.after:
                raise RuntimeError("the device was lost")
            return run(session, *given, **named)

        return dying


def rewriting(folder: Path, target: Path, *more: str) -> Any:
    examples = f"{folder / 'small.npz'}:examples"
    plan = ("--save-plan", target.with_suffix(".plan"), "--json", target.with_suffix(".json"))
    asked = ("--target-macs", "0.6", "--calibration", examples, "--calibration-limit", "16", *plan)
    return invoke(app, "rewrite", folder / "small.onnx", target, *asked, *more)


QUICK = ("--provider", "none", "--no-latency")


def test_a_provider_that_dies_anywhere_ends_in_a_sentence(small_folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        runs = Dying(patch, 10**9)
        assert rewriting(small_folder, tmp_path / "whole.onnx", *QUICK).exit_code in (0, 1)
    total = runs.count
    assert total > 20
    kept = sorted(item.name for item in tmp_path.iterdir())
    for after in sorted({0, 1, 2, *range(3, total, max(1, total // 12)), total - 1}):
        with pytest.MonkeyPatch.context() as patch:
            Dying(patch, after)
            result = rewriting(small_folder, tmp_path / "dead.onnx", *QUICK)
        written = sorted(item.name for item in tmp_path.iterdir() if item.name not in kept)
        if result.exit_code == 2:
            assert "the device was lost" in " ".join(result.output.split()), after
            assert written == []
        else:  # a part of the look that a rewrite can do without, or the check, whose word is that it does not run
            assert "dead.onnx" not in written or result.exit_code == 0, after
            assert not any(".partial" in name or name.startswith(".") for name in written)
        for name in written:
            (tmp_path / name).unlink()


def test_a_provider_that_dies_while_it_is_timed_ends_in_a_sentence(small_folder: Path) -> None:
    source = str(small_folder / "small.onnx")
    given = {"image": small.examples(1)}
    for after in (0, 1, 5, 12):
        with pytest.MonkeyPatch.context() as patch:
            Dying(patch, after)
            with pytest.raises(ModelError, match=r"small\.onnx: the model does not run: .*the device was lost"):
                compare(source, source, inputs=given, runs=20, warmup=2, threads=1)


# --- readers ----------------------------------------------------------------------------------------------------------


class Reader:
    """Batches by name; raises where it is told to."""

    def __init__(self, fails: str) -> None:
        self.fails, self.given = fails, 0

    def get_next(self) -> Mapping[str, Array] | None:
        if self.fails == "first" or (self.fails == "middle" and self.given == 2):
            raise ConnectionError("the store went away")
        self.given += 1
        return None if self.given > 3 else {"image": small.examples(8)}

    def rewind(self) -> None:
        if self.fails == "rewind" or (self.fails == "rewind at the end" and self.given):
            raise ConnectionError("the store went away")


def batches(fails: str) -> Iterator[Array]:
    reader = Reader(fails)
    while (batch := reader.get_next()) is not None:
        yield batch["image"]


class Loader:
    """What looks like a loader of data: an iterable without a length."""

    def __init__(self, fails: str, *extra: Array) -> None:
        self.fails, self.extra = fails, extra

    def __iter__(self) -> Iterator[Any]:
        for batch in batches(self.fails):
            yield [batch, *self.extra]


def read(source: Any, limit: int | None = None) -> Mapping[str, Array]:
    model = load(small.network())
    return calibrate(model, source, resolve(model), macs=10**6, limit=limit).inputs


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (Reader("first"), 0),
        (Reader("middle"), 2),
        (Reader("rewind"), 0),
        (Reader("rewind at the end"), 3),
        (batches("first"), 0),
        (batches("middle"), 2),
        (Loader("first"), 0),
        (Loader("middle"), 2),
    ],
)
def test_a_reader_that_raises_is_told_of_in_a_sentence(source: Any, count: int) -> None:
    words = rf"what gives them failed after {count} batches with ConnectionError: the store went away; correct it"
    with pytest.raises(InputError, match=words) as caught:
        read(source)
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_reader_that_cannot_be_rewound_once_enough_was_read() -> None:
    with pytest.raises(InputError, match="failed after 0 batches with ConnectionError"):
        read(Reader("rewind at the end"), limit=8)


def test_loaders_give_one_array_for_each_input_and_no_labels() -> None:
    np.testing.assert_array_equal(read(Loader(""))["image"], np.concatenate([small.examples(8)] * 3))
    with pytest.raises(InputError, match=r"holds 2 arrays, but the model has 1 inputs .*without labels, or by name"):
        read(Loader("", np.arange(8)))


def test_refusals_of_the_package_go_through_a_reader_as_they_are() -> None:
    def refusing() -> Iterator[Array]:
        raise ModelError("as it is")
        yield small.examples(1)

    with pytest.raises(OnnxPointwiseError, match=r"^as it is$"):
        read(refusing())


# --- places that go away ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["removed", "a file now"])
def test_a_folder_that_goes_away_while_a_network_is_rewritten(
    what: str, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    rewrite = onnx_pointwise.rewrite

    def gone(*given: Any, **named: Any) -> Any:
        made = rewrite(*given, **named)
        folder.rmdir()
        if what == "a file now":
            folder.write_text("in the way")
        return made

    monkeypatch.setattr(onnx_pointwise, "rewrite", gone)
    result = rewriting(small_folder, folder / "new.onnx", *QUICK, "--force")
    assert result.exit_code == 2
    assert "the folder" in result.output and "does not exist" in " ".join(result.output.split())
    assert sorted(tmp_path.rglob("*")) == ([] if what == "removed" else [folder])


def test_permission_that_is_lost_while_a_network_is_rewritten(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions bind no administrator, who may run this test: the call that asks for a folder says no."""
    rewrite, mkdir = onnx_pointwise.rewrite, Path.mkdir

    def refused(self: Path, *given: Any, **named: Any) -> None:
        if self.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        mkdir(self, *given, **named)

    def lost(*given: Any, **named: Any) -> Any:
        made = rewrite(*given, **named)
        monkeypatch.setattr(Path, "mkdir", refused)
        return made

    monkeypatch.setattr(onnx_pointwise, "rewrite", lost)
    result = rewriting(small_folder, tmp_path / "new.onnx", *QUICK, "--force")
    assert result.exit_code == 2
    assert "cannot be written (Permission denied)" in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
