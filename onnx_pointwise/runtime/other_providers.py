"""What a network takes on another provider beside the CPU, timed in turns in a process of its own.

A driver that is opened stays in its process, and may end it; a provider may take minutes to compile a network. Neither
shall happen to who only wants a hint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import ModelSource
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime.aside import feeds_of, in_fresh_process, laid_out
from onnx_pointwise.runtime.providers import open_session, provider_info, require
from onnx_pointwise.runtime.runner import Runner
from onnx_pointwise.runtime.running import Timing
from onnx_pointwise.runtime.timing import interleave
from onnx_pointwise.schema import job

# Seconds that a process may take to open a provider, to compile the network and to time it.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Elsewhere:
    """A network on another provider.

    Attributes:
        provider: Short name of the provider.
        seconds: Median seconds of a run on it.
        ratio: Median over the rounds of its latency by that on the CPU.
        device: What it runs on, where that is known.
    """

    provider: str
    seconds: float
    ratio: float
    device: str | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return asdict(self)


@job(Timing)
def elsewhere(model: ModelSource | bytes, settings: Timing) -> Elsewhere:
    """Time a network on a provider in turns with the CPU, in a fresh process.

    Args:
        model: The network.
        settings: How it is run, and on what, in place of the keywords that follow.

    Raises:
        ModelError: The provider does not load, cannot run the network, or takes too long, or its device is emulated on
            the CPU.
    """
    asked = {name: getattr(settings, name) for name in ("provider", "threads", "optimization", "runs", "warmup")}
    with laid_out(model, settings.feeds(model)) as files:
        work: Mapping[str, Any] = files | asked | {"max_seconds": settings.max_seconds}
        found = in_fresh_process(
            "onnx_pointwise.runtime.other_providers:timing_job", work, seconds=_PATIENCE + settings.max_seconds
        )
    return Elsewhere(**found)


def timing_job(work: Mapping[str, Any]) -> dict[str, Any]:
    """Do the work of `elsewhere` in the fresh process."""
    feeds = feeds_of(work)
    require(work["provider"])
    info = provider_info(work["provider"])
    if info.software:
        raise ModelError(f"{info.device} is emulated on the CPU; its timings mean nothing.")
    runners = []
    for provider in ("cpu", work["provider"]):
        session = open_session(work["model"], provider, threads=work["threads"], optimization=work["optimization"])
        runners.append(Runner(session, feeds, provider, work["model"]))
    here, there = interleave(runners, work["runs"], work["warmup"], work["max_seconds"])
    best = [np.array([min(turn) for turn in turns]) for turns in (here, there)]
    return Elsewhere(
        provider=info.name,
        seconds=float(np.median([seconds for turn in there for seconds in turn])),
        ratio=float(np.median(best[1] / best[0])),
        device=info.device,
    ).to_dict()
