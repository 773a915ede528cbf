"""Peak main memory of a network, measured in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import ModelSource, runtime_source
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime import providers
from onnx_pointwise.runtime.runner import Runner
from onnx_pointwise.runtime.running import Watching
from onnx_pointwise.schema import job
from onnx_pointwise.scratch import ScratchFolder


@dataclass(frozen=True)
class PeakMemory:
    """Main memory that a network takes in a process of its own; memory on a GPU is not in it.

    Attributes:
        loading: Bytes added, at the peak of loading the model.
        running: Bytes added, at the peak of a few runs.
        process: Bytes of the process before it loaded the model.
    """

    loading: int
    running: int
    process: int

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return asdict(self)


@job(Watching)
def peak_memory(model: ModelSource | bytes, settings: Watching) -> PeakMemory:
    """Measure the peak of main memory while a fresh process loads and runs a model.

    Args:
        model: The network.
        settings: How it is run, in place of the keywords that follow.

    Raises:
        ProviderError: The provider does not load, or cannot run the model.
        ModelError: The model cannot be loaded or run.
        InputError: The input shapes do not fit the model.
        ValueError: ``runs`` is not positive.
    """
    feeds = settings.feeds(model)
    # The session here finds faults that a message from a dead process could not name.
    with runtime_source(model) as source, ScratchFolder() as folder:
        settings.runner(source, feeds, model).first_run()
        path = Path(source) if isinstance(source, str) else folder / "model.onnx"
        if isinstance(source, bytes):
            path.write_bytes(source)
        np.savez(folder / "inputs.npz", allow_pickle=False, **feeds)
        work = {
            "model": str(path.resolve()),
            "inputs": str(folder / "inputs.npz"),
            "provider": settings.provider,
            "threads": settings.threads,
            "optimization": settings.optimization,
            "runs": settings.runs,
        }
        numbers = _in_fresh_process(work)
    return PeakMemory(loading=numbers[1] - numbers[0], running=numbers[2] - numbers[0], process=numbers[0])


def _in_fresh_process(job: Mapping[str, Any]) -> list[int]:
    search_path = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search_path))}
    code = "from onnx_pointwise.runtime.memory import memory_job; memory_job()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"{job['model']}: the model does not run in a process of its own: {last}.")
    numbers: list[int] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def memory_job() -> None:
    """Do the work of `peak_memory` in the fresh process: a job as JSON in, three byte counts as JSON out."""
    job = json.loads(sys.stdin.read())
    with np.load(job["inputs"]) as archive:
        feeds = {name: archive[name] for name in archive.files}
    # Loading the provider's own libraries counts to the process, not to the model.
    providers.provider_info(job["provider"])
    _reset_peak()
    idle = _resident()
    session = providers.open_session(
        job["model"], job["provider"], threads=job["threads"], optimization=job["optimization"]
    )
    loading = _peak()
    _reset_peak()
    runner = Runner(session, feeds, job["provider"], job["model"])
    for _ in range(job["runs"]):
        runner.run()
    sys.stdout.write(json.dumps([idle, max(idle, loading), max(idle, _peak())]) + "\n")


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key + ":"))


def _resident() -> int:
    """Bytes of memory the process holds now; elsewhere than on Linux, the most it ever held."""
    return _status("VmRSS") if sys.platform == "linux" else _peak()


def _peak() -> int:
    """Bytes of memory the process held at most since `_reset_peak`; elsewhere than on Linux, ever."""
    if sys.platform == "linux":
        return _status("VmHWM")
    import resource  # not on Windows, where the ImportError says so

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
