from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from onnx_pointwise.errors import ModelError, OutputError
from onnx_pointwise.graph import files_of, load, require_apart, require_writable, save, write_text
from onnx_pointwise.graph.files import atomic_folder, written_through
from tests.graphs import conv_model, normal


def model(seed: int = 0) -> onnx.ModelProto:
    return conv_model(normal(8, 6, 3, 3, seed=seed), [9, 9])


def weights(path: Path) -> bytes:
    return onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).tobytes()


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real = tmp_path / "store" / "real.onnx"
    real.write_bytes(b"old")
    (tmp_path / "second").symlink_to(real)
    link = tmp_path / "link.onnx"
    link.symlink_to("second")
    before = real.stat().st_ino
    save(load(model()), link)
    assert link.is_symlink() and link.readlink() == Path("second")
    assert weights(real) == weights(link)
    assert real.stat().st_ino != before  # renamed into place, not written into
    write_text(link, "text")
    assert real.read_text() == "text" and link.is_symlink()
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["link.onnx", "real.onnx", "second", "store"]


def test_a_link_to_nothing_makes_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "new").read_text() == "text"


def test_external_data_goes_where_the_runtime_looks_for_it(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "far.onnx").symlink_to(tmp_path / "store" / "real.onnx")
    with pytest.raises(OutputError, match=r"is a link into another folder, .* name .*real.onnx itself"):
        save(load(model()), tmp_path / "far.onnx", use_external_data_format=True)
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "near.onnx").symlink_to("real.onnx")
    save(load(model()), tmp_path / "near.onnx", use_external_data_format=True)
    assert weights(tmp_path / "near.onnx") == weights(tmp_path / "real.onnx")
    assert len(files_of(tmp_path / "near.onnx")) == 2


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/new_device"])
def test_devices_are_refused(name: str, tmp_path: Path) -> None:
    """Standard output may well be a regular file, which the shell that opened it would lose."""
    (tmp_path / "link").symlink_to(name)
    for path in (Path(name), tmp_path / "link"):
        with pytest.raises(OutputError, match="is no regular file; name another file"):
            require_writable(path)
        with pytest.raises(OutputError, match="is no regular file"):
            write_text(path, "text")


def test_links_to_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, match in (("folder", "is a directory"), ("pipe", "no regular file"), ("none/x", "folder .*none does")):
        link = tmp_path / f"to_{name[:4]}"
        link.symlink_to(tmp_path / name)
        with pytest.raises(OutputError, match=match):
            require_writable(link)
    (tmp_path / "round").symlink_to(tmp_path / "circle")
    (tmp_path / "circle").symlink_to(tmp_path / "round")
    with pytest.raises(OutputError, match="round: is a link that leads round in a circle"):
        require_writable(tmp_path / "round")
    with pytest.raises(OutputError, match="name another place"):
        require_writable(tmp_path / ("n" * 300))
    assert written_through(tmp_path / "plain") == tmp_path / "plain"


def test_an_interruption_behind_a_link_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "link") as scratch:
        (scratch / "link").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "real").read_text() == "old"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["link", "real"]


def test_text_that_no_encoding_has(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "half \ud800 a character")
    assert (tmp_path / "a").read_text() == r"half \ud800 a character"


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """A model with external data, examples, and other names for each."""
    save(load(model()), tmp_path / "in.onnx", use_external_data_format=True)
    (tmp_path / "examples.npz").write_bytes(b"examples")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "soft").symlink_to("in.onnx")
    os.link(tmp_path / "examples.npz", tmp_path / "hard")
    (tmp_path / "away").symlink_to(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ({"OUT": "in.onnx"}, "is the input itself; name another file for OUT"),
        ({"OUT": "soft"}, "is the input itself"),
        ({"OUT": "images/../in.onnx"}, "is the input itself"),
        ({"OUT": "away/in.onnx"}, "is the input itself"),
        ({"OUT": "out", "--json": "in.onnx"}, "is the input itself; name another file for --json"),
        ({"OUT": "out", "--json": "DATA"}, r"is the input itself"),
        ({"OUT": "out", "--save-plan": "hard"}, r"is an input, too \(--calibration\); name another file for --save"),
        ({"OUT": "out", "--json": "images/a.png"}, r"lies among the inputs in .*images \(--images\)"),
        ({"OUT": "out", "--json": "out"}, "both OUT and --json would be written there"),
        ({"OUT": "out", "--json": "away/out"}, "both OUT and --json would be written there"),
        ({"OUT": "out", "--json": "j", "--save-plan": "j"}, "both --json and --save-plan would be written there"),
        ({"OUT": "out", "--json": "out.0123abcd.data"}, r"named like external data of out, .* for OUT"),
    ],
)
def test_files_that_are_one(outputs: dict[str, str], match: str, crowd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(crowd)
    (data,) = crowd.glob("in.onnx.*.data")
    named = {role: data.name if name == "DATA" else name for role, name in outputs.items()}
    with pytest.raises(OutputError, match=match):
        require_apart({"IN": files_of("in.onnx"), "--calibration": "examples.npz", "--images": "images"}, named)


def test_files_that_are_apart(crowd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(crowd)
    require_apart(
        {"IN": files_of("soft"), "--calibration": "examples.npz", "--inputs": None, "--images": "images"},
        {"OUT": "out.onnx", "--json": "images/new.json", "--save-plan": None, "--html": "missing/out.onnx"},
    )


def test_a_renamed_model_keeps_its_data(crowd: Path) -> None:
    """Its data are named after what it was called when it was written, and somebody else has that name now."""
    (crowd / "in.onnx").rename(crowd / "renamed.onnx")
    with pytest.raises(OutputError, match=r"named like external data of in\.onnx"):
        require_apart({"IN": files_of(crowd / "renamed.onnx")}, {"OUT": crowd / "in.onnx"})
    kept = weights(crowd / "renamed.onnx")
    save(load(model(1)), crowd / "in.onnx")
    assert weights(crowd / "renamed.onnx") == kept
    # Nor are data lost that the model itself reads which takes the place.
    save(load(crowd / "renamed.onnx"), crowd / "in.onnx", use_external_data_format=False)
    assert weights(crowd / "renamed.onnx") == weights(crowd / "in.onnx")


def test_files_of_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        files_of(tmp_path / "none.onnx")
