"""Peak main memory of a network, measured in a process of its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx_pointwise.graph import ModelSource, runtime_source
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime import providers
from onnx_pointwise.runtime.aside import feeds_of, in_fresh_process, laid_out
from onnx_pointwise.runtime.runner import Runner
from onnx_pointwise.runtime.running import Watching
from onnx_pointwise.schema import job


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
    with runtime_source(model) as source:
        settings.runner(source, feeds, model).run()
    with laid_out(model, feeds) as files:
        work = files | {
            "provider": settings.provider,
            "threads": settings.threads,
            "optimization": settings.optimization,
            "runs": settings.runs,
        }
        numbers = in_fresh_process("onnx_pointwise.runtime.memory:memory_job", work)
    return PeakMemory(loading=numbers[1] - numbers[0], running=numbers[2] - numbers[0], process=numbers[0])


def memory_job(work: Mapping[str, Any]) -> list[int]:
    """Do the work of `peak_memory` in the fresh process: three byte counts."""
    feeds = feeds_of(work)
    # Loading the provider's own libraries counts to the process, not to the model.
    providers.provider_info(work["provider"])
    _reset_peak()
    idle = _resident()
    session = providers.open_session(
        work["model"], work["provider"], threads=work["threads"], optimization=work["optimization"]
    )
    loading = _peak()
    _reset_peak()
    runner = Runner(session, feeds, work["provider"], work["model"])
    for _ in range(work["runs"]):
        runner.run()
    return [idle, max(idle, loading), max(idle, _peak())]


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
