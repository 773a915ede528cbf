"""A disk without room: exit code 2, a sentence, and every file as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onnx_pointwise.cli.app import app


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 kB, half of which the test's model takes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in sorted(folder.iterdir())}


@pytest.mark.parametrize("external", ["--external-data", "--no-external-data"])
def test_a_full_disk_loses_nothing(external: str, disk: Path, small_folder: Path) -> None:
    line = ["rewrite", small_folder / "small.onnx", disk / "out.onnx", "--calibration", "none", "--no-check"]
    line += ["--provider", "none", "--json", disk / "out.json", "--save-plan", disk / "plan.json", external]
    words = [str(word) for word in line]
    assert CliRunner().invoke(app, [*words, "--ratio", "0.5"]).exit_code == 0
    before = contents(disk)
    assert len(before) == 3 + (external == "--external-data")
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    for left in range(0, room, 12 * 1024):
        (disk / "ballast").write_bytes(bytes(room - left))
        full = contents(disk)
        result = CliRunner().invoke(app, [*words, "--ratio", "0.7"])
        if result.exit_code == 0:  # there was room enough
            return
        assert result.exit_code == 2 and "No space left on device" in result.output, result.output
        assert contents(disk) == full
        (disk / "ballast").unlink()
    raise AssertionError("the whole disk does not suffice")
