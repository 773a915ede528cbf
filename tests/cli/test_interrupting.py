"""Ctrl-C and a reader that goes: exit codes as they should be, and nothing left behind."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnx_pointwise import early, scratch
from onnx_pointwise.cli.app import app
from onnx_pointwise.cli.interrupting import Interrupted
from onnx_pointwise.settings import Settings
from tests import small

LOADING = """
import os, signal, sys
sys.argv = ["/usr/bin/onnx-pointwise", "inspect"]
class Meddler:
    def find_spec(self, name, path=None, target=None):
        if name == asked:
            os.kill(os.getpid(), signal.SIGINT)
asked = sys.stdin.readline().strip()
sys.meta_path.insert(0, Meddler())
import onnx_pointwise
"""
STUCK = """
import os, signal, sys, time
from onnx_pointwise.cli.interrupting import interruptible
from onnx_pointwise.scratch import ScratchFolder
with interruptible():
    folder = ScratchFolder()
    said = False
    while True:  # what never returns to the interpreter looks like this from outside
        try:
            said or print(folder.path, flush=True)
            said = True
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
WRITING = """
import sys
from onnx_pointwise.cli.streams import make_patient
make_patient()
sys.stdin.readline()
for _ in range(3):
    print("x" * 100_000)
    sys.stdout.flush()
sys.exit(7)
"""


def python(code: str, **streams: Any) -> subprocess.Popen[str]:
    given = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    given["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored in the background
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen([sys.executable, "-c", code], text=True, env=environment, **given)


@pytest.mark.parametrize("module", ["onnx_pointwise.check", "onnxruntime"])
def test_ctrl_c_while_the_command_is_loaded(module: str) -> None:
    process = python(LOADING)
    out, error = process.communicate(f"{module}\n", timeout=900)
    assert (process.returncode, out, error) == (130, "", "")


def test_a_library_leaves_signals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for orig, argv, wanted in (
        (["python", "-m", "onnx_pointwise", "inspect"], ["-m", "inspect"], True),
        (["python", "-X", "dev", "-m", "onnx_pointwise"], ["/x/onnx_pointwise/__main__.py"], True),
        (["python", "/usr/bin/onnx-pointwise"], ["/usr/bin/onnx-pointwise"], True),
        (["python", "onnx-pointwise.exe"], [r"C:\bin\onnx-pointwise.exe"], True),
        (["python", "-m", "pytest"], ["/x/pytest/__main__.py"], False),
        (["python", "-m", "pytest", "-m", "onnx_pointwise"], ["/x/pytest.py"], False),
        (["python"], [""], False),
        (["python"], [], False),
    ):
        monkeypatch.setattr(sys, "orig_argv", orig)
        monkeypatch.setattr(sys, "argv", argv)
        assert early.is_command() is wanted, orig
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_does_not_listen_is_ended_and_leaves_nothing(number: signal.Signals, code: int) -> None:
    process = python(STUCK)
    assert process.stdout is not None
    try:
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.send_signal(number)
        process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == code
    assert not folder.exists()


def test_a_reader_that_goes_changes_no_exit_code() -> None:
    process = python(WRITING)
    assert process.stdout is not None and process.stdin is not None and process.stderr is not None
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=900) == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_standard_output_without_room_is_an_error(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "onnx_pointwise", "cache"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=900)
    assert done.returncode == 2
    assert done.stderr == "error: Standard output cannot be written (No space left on device); send it elsewhere.\n"


@pytest.fixture
def job(tmp_path: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A rewrite with all that it writes; takes more of the command line and gives its exit code."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "out").mkdir()
    np.savez(tmp_path / "examples.npz", image=small.examples(24))
    line = ["rewrite", small_folder / "small.onnx", tmp_path / "out" / "out.onnx", "--ratio", 0.5, "--no-latency"]
    line += ["--provider", "none", "--external-data"]
    line += ["--json", tmp_path / "out" / "out.json", "--save-plan", tmp_path / "out" / "plan.json"]
    return lambda *more: CliRunner().invoke(app, [str(word) for word in (*line, *more)]).exit_code


def left(tmp_path: Path) -> set[str]:
    """What a job has written; nothing else is left of it."""
    assert list((tmp_path / "temporary").iterdir()) == [] and not scratch._standing
    return {item.name for item in (tmp_path / "out").iterdir()}


class Counter:
    """Interrupts a job when something happens for the n-th time."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.last = 10**9

    def __call__(self, what: str) -> None:
        self.seen.append(what)
        if len(self.seen) > self.last:
            raise Interrupted(signal.SIGTERM)

    def before(self, number: int) -> None:
        self.seen, self.last = [], number


def test_ctrl_c_in_every_stage(job: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell, counter = Settings.tell, Counter()
    line = ("--calibration", tmp_path / "examples.npz", "--memory", "1M")  # arrays lie in files then

    def counted(self: Settings, stage: str, *more: Any) -> None:
        counter(stage)
        tell(self, stage, *more)

    monkeypatch.setattr(Settings, "tell", counted)
    assert job(*line) == 0
    stages = {stage: counter.seen.index(stage) for stage in counter.seen}
    assert len(stages) >= 3
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    for number in stages.values():
        counter.before(number)
        assert job(*line) == 143
        assert left(tmp_path) == set()


@pytest.mark.parametrize("name", ["replace", "mkdir", "open"])
def test_ctrl_c_while_files_are_written(
    name: str, job: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is there whole, or not at all; external data only beside their model."""
    method, counter = getattr(Path, name), Counter()

    def counted(self: Path, *arguments: Any, **named: Any) -> Any:
        if scratch._PREFIX in str(self):
            counter(name)
        return method(self, *arguments, **named)

    monkeypatch.setattr(Path, name, counted)
    line = ("--calibration", "none", "--no-check")
    assert job(*line) == 0
    count, whole = len(counter.seen), left(tmp_path)
    assert count >= 3 and len(whole) == 4
    for number in range(count):
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()
        counter.before(number)
        assert job(*line) == 143
        found = left(tmp_path)
        assert found < whole
        assert ("out.onnx" in found) == any(item.endswith(".data") for item in found)
        if "out.onnx" in found:
            onnx.checker.check_model(str(tmp_path / "out" / "out.onnx"), full_check=True)
        for item in found & {"out.json", "plan.json"}:
            json.loads((tmp_path / "out" / item).read_text(encoding="utf-8"))
