"""The same command gives the same bytes in another process, whatever seeds its hashes and on however many threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

COMMAND = """
import sys
from onnx_pointwise.cli import main
for line in {lines!r}:
    sys.argv = ["onnx-pointwise", *line]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


def in_a_process(lines: list[list[str]], *, seed: str, folder: Path) -> None:
    """Run commands one after the other in a process of their own."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, "COLUMNS": "120"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path.cwd()), environment.get("PYTHONPATH"))))
    script = COMMAND.format(lines=lines)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_write_the_same_bytes(small_folder: Path, tmp_path: Path) -> None:
    network, examples = str(small_folder / "small.onnx"), f"{small_folder / 'small.npz'}:examples"
    common = ["--calibration", examples, "--provider", "none", "--no-latency", "--min-channels", "2"]

    def line(name: str, *more: str) -> list[str]:
        return ["rewrite", network, str(tmp_path / f"{name}.onnx"), *common, *more]

    def planned(name: str, *more: str) -> list[str]:
        return line(name, "--target-macs", "0.4", "--save-plan", str(tmp_path / f"{name}.json"), *more)

    in_a_process([planned("first")], seed="1", folder=tmp_path)
    in_a_process(
        [planned("second", "--jobs", "1"), line("replayed", "--plan", str(tmp_path / "first.json"))],
        seed="4321",
        folder=tmp_path,
    )
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert digests["first.onnx"] == digests["second.onnx"] == digests["replayed.onnx"]
    assert digests["first.json"] == digests["second.json"]
