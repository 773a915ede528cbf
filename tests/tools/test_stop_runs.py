"""What the tool that stops runs calls wrong; the runs themselves take minutes, and are left to it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests import small
from tools.stop_runs import contents, faults, restore


@pytest.fixture
def states(tmp_path: Path) -> tuple[Path, dict[str, bytes], dict[str, bytes]]:
    """A folder that holds the new files, and both states."""
    model = small.network().SerializeToString()
    other = onnx.load_from_string(model)
    other.producer_name = "other"
    old = {"out.onnx": model, "out.json": b"{}", "plan.json": b"{ }"}
    new = {"out.onnx": other.SerializeToString(), "out.json": b'{"a": 1}', "plan.json": b'{"b": 1}'}
    restore(tmp_path / "run", new)
    return tmp_path / "run", old, new


def test_old_and_new_files_are_good_and_others_are_not(states: tuple[Path, dict[str, bytes], dict[str, bytes]]) -> None:
    folder, old, new = states
    assert faults(contents(folder), old, new, folder, whole=False) == []
    assert len(faults(contents(folder), old, new, folder, whole=True)) == 3
    (folder / "plan.json").unlink()
    (folder / "out.json").write_bytes(b'{"a"')
    (folder / "out.onnx").write_bytes(new["out.onnx"][:-100])
    found = " ".join(faults(contents(folder), old, new, folder, whole=False))
    for words in ("plan.json is neither", "out.json is not whole", "out.onnx is neither", "out.onnx does not run"):
        assert words in found
