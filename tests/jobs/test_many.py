"""Many models with the same settings: each for itself, a line for each, and what fails is said and counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import InputError, OutputError, PlanError
from tests.commands import invoke
from tests.small import examples, network

ASKED = ("--target-macs", "0.6", "--provider", "none", "--no-latency")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    onnx.save(network(), tmp_path / "in" / "first.onnx")
    onnx.save(network(), tmp_path / "in" / "deep" / "second.onnx")
    np.savez(tmp_path / "images.npz", image=examples(24))
    return tmp_path


def run(folder: Path, source: Path | str, *arguments: str | Path) -> tuple[int, str, str]:
    result = invoke(app, "rewrite", source, folder / "out", "--calibration", folder / "images.npz", *ASKED, *arguments)
    return result.exit_code, result.stdout, result.stderr


def test_a_folder(folder: Path) -> None:
    code, said, errors = run(folder, folder / "in", "--json", folder / "out.json")
    assert code == 0, said + errors
    assert "2 of 2 models passed, 2 written." in said
    for name in ("first.onnx", "deep/second.onnx"):
        onnx.checker.check_model(onnx.load(folder / "out" / name), full_check=True)
    document = json.loads((folder / "out.json").read_text())
    assert [Path(one["source"]).name for one in document["models"]] == ["second.onnx", "first.onnx"]
    assert all(one["result"]["after"]["macs"] < one["result"]["before"]["macs"] for one in document["models"])


def test_a_folder_has_one_page(folder: Path) -> None:
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    code, said, errors = run(folder, folder / "in", "--report", folder / "out.html")
    assert code == 0, said + errors
    page = (folder / "out.html").read_text(encoding="utf-8")
    assert "second.onnx" in page and "first.onnx" in page and "onnx-pointwise rewrite" in page
    result = onnx_pointwise.rewrite_all(folder / "in", folder / "again", ratio=0.8, provider="none", calibration=None)
    onnx_pointwise.save_report(result, folder / "again.html")
    assert "ratio=0.8" in (folder / "again.html").read_text(encoding="utf-8")


def test_the_same_as_one_by_one(folder: Path) -> None:
    assert run(folder, folder / "in" / "*.onnx")[0] == 0
    alone = ("rewrite", folder / "in" / "first.onnx", folder / "alone.onnx", "--calibration", folder / "images.npz")
    assert invoke(app, *alone, *ASKED).exit_code == 0
    assert (folder / "out" / "first.onnx").read_bytes() == (folder / "alone.onnx").read_bytes()
    assert not (folder / "out" / "second.onnx").exists()


def test_one_that_fails_leaves_the_others_alone(folder: Path) -> None:
    (folder / "in" / "broken.onnx").write_text("no model")
    code, said, _ = run(folder, folder / "in", "--json", folder / "out.json")
    assert code == 1
    assert "2 of 3 models passed, 2 written." in said and "broken.onnx: " in said and "refused" in said
    document = json.loads((folder / "out.json").read_text())
    assert [one["passed"] for one in document["models"]] == [False, True, True]
    assert not (folder / "out" / "broken.onnx").exists()
    code, said, errors = run(folder, folder / "in", "--quiet")
    assert code == 1 and said == "" and errors.startswith("failed: ") and "broken.onnx" in errors


def test_those_whose_check_fails_are_not_written(folder: Path) -> None:
    code, said, _ = run(folder, folder / "in", "--max-drift", "1e-9")
    assert code == 1 and "0 of 2 models passed, 0 written." in said
    assert not list((folder / "out").rglob("*.onnx"))
    assert run(folder, folder / "in", "--max-drift", "1e-9", "--force")[0] == 1
    assert len(list((folder / "out").rglob("*.onnx"))) == 2


def test_what_makes_no_sense(folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    for source, word in ((folder / "empty", "no .onnx file"), (folder / "*.none", "no .onnx file")):
        code, _, errors = run(folder, source)
        assert code == 2 and word in errors
    assert run(folder, folder / "in", "--save-plan", folder / "plan.json")[0] == 2
    assert run(folder, folder / "in" / "first.onnx", "--scheduler", "tcp://127.0.0.1:1")[0] == 2
    same = [folder / "in" / "first.onnx", folder / "in" / "first.onnx"]
    with pytest.raises(OutputError, match="both be written"):
        onnx_pointwise.rewrite_all([*same[:1], folder / "in" / "deep" / ".." / "first.onnx"], folder / "out", ratio=0.5)
    with pytest.raises(OutputError, match="is the input itself"):
        onnx_pointwise.rewrite_all(same[:1], folder / "in", ratio=0.5)
    with pytest.raises(PlanError, match="for one model"):
        onnx_pointwise.rewrite_all(same[:1], folder / "out", plan="plan.json")
    with pytest.raises(InputError, match="no model to rewrite"):
        onnx_pointwise.rewrite_all([], folder / "out", ratio=0.5)
