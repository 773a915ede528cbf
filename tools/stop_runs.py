"""Stop a rewrite at random moments, or let its disk be full, and see what it leaves behind.

    python -m tools.stop_runs --kill 50 --interrupt 50 --full 12

Each run replaces a model with external data, its plan and its JSON. Killed, each of these must be the old file or the
whole new one, and the model must load. Interrupted (Ctrl-C), the process must end with exit code 130 within two seconds
and leave nothing that was not there. With a disk that is full (a small tmpfs, which takes root), it must end with exit
code 2 and leave all as it was. Exit code 1 where a run did not.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer

ROOT = Path(__file__).resolve().parents[1]
MODEL, EXAMPLES = ROOT / "models" / "digits.onnx", f"{ROOT / 'models' / 'digits.npz'}:calibration"
#: Seconds from the signal to the end that a run may take.
SECONDS = 2.0

Files = dict[str, bytes]


@dataclass(frozen=True)
class Source:
    """What every run reads, where it may leave temporary files, and whether it begins with all libraries imported."""

    model: Path
    examples: str
    temporary: Path
    forked: bool = False


class Forked:
    """A run in a fork of a process that has imported the libraries; otherwise like one of `subprocess`."""

    def __init__(self, line: Sequence[str], temporary: Path) -> None:
        handle, self._said = tempfile.mkstemp()
        os.close(handle)
        ready, tell = _SERVER.Pipe(duplex=False)
        self._process = _SERVER.Process(target=_run, args=(list(line), temporary, self._said, tell))
        self._process.start()
        ready.recv()  # before that, a signal would meet the fork and not the command
        ready.close()
        tell.close()

    @property
    def returncode(self) -> int | None:
        """The exit code, or the number of the signal with a minus; None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, which a run that has ended no longer hears."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def communicate(self) -> tuple[None, bytes]:
        """Wait for the end; gives what went to the error stream."""
        self._process.join()
        said = Path(self._said)
        text = said.read_bytes()
        said.unlink()
        return None, text


def _run(line: Sequence[str], temporary: Path, said: str, tell: Connection) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, _leave)  # as the command does while it is loaded
    for number, place in ((1, os.devnull), (2, said)):
        os.dup2(os.open(place, os.O_WRONLY), number)
    os.environ["TMPDIR"] = str(temporary)
    tempfile.tempdir = None
    sys.argv = ["onnx-pointwise", *line[3:]]
    tell.send(None)
    try:
        importlib.import_module("onnx_pointwise.cli").main()
    finally:
        sys.stderr.flush()


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["onnx_pointwise.cli", "onnxruntime", "scipy.linalg", "scipy.optimize"])


def line(folder: Path, share: float, source: Source) -> list[str]:
    """The command: everything that it can write, from examples."""
    given = [sys.executable, "-m", "onnx_pointwise", "rewrite", str(source.model), str(folder / "out.onnx")]
    given += ["--target-macs", str(share), "--provider", "none", "--calibration", source.examples]
    given += ["--external-data", "--json", str(folder / "out.json"), "--save-plan", str(folder / "plan.json")]
    return [*given, "--no-latency", "--jobs", "1"]


def start(folder: Path, share: float, source: Source) -> subprocess.Popen[bytes] | Forked:
    """Begin a run."""
    if source.forked:
        return Forked(line(folder, share, source), source.temporary)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(source.temporary), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(line(folder, share, source), env=environment, start_new_session=True, **pipes)


def contents(folder: Path) -> Files:
    """Every file in a folder; of JSON only what does not tell the time."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def faults(found: Files, old: Files, new: Files, folder: Path, *, whole: bool) -> list[str]:
    """What is wrong with the files that a run left.

    Args:
        found: The files.
        old: As they were before it.
        new: As a run leaves them that is not stopped.
        folder: Where they are.
        whole: Whether nothing may have changed.
    """
    wrong = []
    for name in ("out.onnx", "plan.json"):
        if found.get(name) not in ((old[name],) if whole else (old[name], new[name])):
            wrong.append(f"{name} is neither the old one nor the new one")
    text = found.get("out.json", b"")
    if not (text == old["out.json"] or (not whole and text.rstrip().endswith(b"}"))):
        wrong.append("out.json is not whole")
    if whole and set(found) != set(old):
        wrong.append(f"there are {', '.join(sorted(set(found) ^ set(old)))}")
    try:
        session = onnxruntime.InferenceSession(str(folder / "out.onnx"), providers=["CPUExecutionProvider"])
        shape = [size if isinstance(size, int) else 1 for size in session.get_inputs()[0].shape]
        session.run(None, {session.get_inputs()[0].name: np.zeros(shape, np.float32)})
    except Exception as error:  # the runtime's exceptions share no base class
        wrong.append(f"out.onnx does not run: {error}")
    return wrong


def restore(folder: Path, files: Files) -> None:
    """Put files back as they were."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def reference(base: Path, share: float, source: Source) -> tuple[Files, float]:
    """What a whole run leaves, and how long it takes."""
    base.mkdir()
    begun = time.monotonic()
    process = start(base, share, source)
    _, error = process.communicate()
    if process.returncode:
        raise RuntimeError(error.decode())
    return contents(base), time.monotonic() - begun


def stopped(
    folder: Path, source: Source, old: Files, new: Files, number: signal.Signals, wait: float
) -> tuple[list[str], float, int]:
    """Stop a run after a while; gives what is wrong, the seconds it took to end, and its exit code."""
    restore(folder, old)
    process = start(folder, 0.35, source)
    time.sleep(wait)
    sent = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate()
    seconds = time.monotonic() - sent
    interrupted = number is signal.SIGINT
    wrong = faults(contents(folder), old, new, folder, whole=interrupted and process.returncode != 0)
    if interrupted:
        if process.returncode not in (0, 130):
            wrong.append(f"exit code {process.returncode}: {error.decode()[-300:]}")
        if process.returncode == 130 and seconds > SECONDS:
            wrong.append(f"it took {seconds:.1f} s to end")
        left = [item.name for place in (folder, source.temporary) for item in place.iterdir() if item.is_dir()]
        if left:
            wrong.append(f"it left {', '.join(left)}")
    for item in source.temporary.iterdir():
        shutil.rmtree(item, ignore_errors=True)
    return wrong, seconds, process.returncode or 0


def on_full_disk(base: Path, source: Source, old: Files, room: int) -> list[str]:
    """Run on a disk that has a little room beside the old files."""
    folder = base / "small"
    folder.mkdir()
    size = sum(-(-len(data) // 4096) * 4096 for data in old.values()) + room
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        for name, data in old.items():
            (folder / name).write_bytes(data)
        process = start(folder, 0.35, source)
        _, error = process.communicate()
        wrong = faults(contents(folder), old, old, folder, whole=True)
        if process.returncode != 2 or not error.startswith(b"error: ") or b"Traceback" in error:
            wrong.append(f"exit code {process.returncode}: {error.decode()[-300:]}")
        wrong += [f"it left {item.name}" for item in folder.iterdir() if item.is_dir()]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
    return wrong


def command(
    kill: Annotated[int, typer.Option(help="Runs to kill.")] = 50,
    interrupt: Annotated[int, typer.Option(help="Runs to interrupt.")] = 50,
    full: Annotated[int, typer.Option(help="Runs on a full disk; takes root.")] = 12,
    seed: Annotated[int, typer.Option(help="What the moments are drawn from.")] = 0,
    model: Annotated[Path, typer.Option(help="What is rewritten.")] = MODEL,
    calibration: Annotated[str, typer.Option(help="Its example inputs.")] = EXAMPLES,
    forked: Annotated[
        bool, typer.Option("--forked", help="Leave the imports out of what is stopped; a fraction of the time.")
    ] = False,
) -> None:
    """Stop a rewrite at random moments, or let its disk be full, and see what it leaves behind."""
    drawn = random.Random(seed)
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        source = Source(model.absolute(), calibration, base / "temporary", forked)
        if forked:
            os.environ["OMP_NUM_THREADS"] = "1"  # of the process that all runs are forks of
        source.temporary.mkdir()
        old, _ = reference(base / "old", 0.6, source)
        new, seconds = reference(base / "new", 0.35, source)
        if any(old[name] == new[name] for name in ("out.onnx", "plan.json")):
            raise typer.BadParameter("both budgets give the same files, by which nothing can be told")
        print(f"a run takes {seconds:.1f} s", flush=True)
        for number, count in ((signal.SIGKILL, kill), (signal.SIGINT, interrupt)):
            slowest, codes = 0.0, []
            for turn in range(count):
                # Half of them near the end, where files are written.
                wait = drawn.uniform(0, seconds) if turn % 2 else drawn.uniform(0.8, 1.1) * seconds
                wrong, took, code = stopped(base / "run", source, old, new, number, wait)
                slowest = max(slowest, took if code else 0.0)
                codes.append(code)
                bad += bool(wrong)
                for sentence in wrong:
                    print(f"{number.name} after {wait:.2f} s: {sentence}", flush=True)
            if count:
                ended = {code: codes.count(code) for code in sorted(set(codes))}
                print(f"{number.name}: {count} runs, exit codes {ended}, at most {slowest:.2f} s to end", flush=True)
        for turn in range(full):
            # The page of the last one is just too small for what is written: between nothing and nearly all of it.
            needed = sum(-(-len(data) // 4096) * 4096 for data in new.values())
            for sentence in (wrong := on_full_disk(base, source, old, needed * turn // full // 4096 * 4096)):
                print(f"{turn}/{full} of the room needed: {sentence}", flush=True)
            bad += bool(wrong)
        if full:
            print(f"full disk: {full} runs", flush=True)
    print(f"{bad} of {kill + interrupt + full} runs went wrong.")
    raise typer.Exit(1 if bad else 0)


if __name__ == "__main__":
    typer.run(command)
