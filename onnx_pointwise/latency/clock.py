"""How long probes take, each measured once, in as few sessions as memory allows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnx_pointwise.deploying import AS_IS, Deployment
from onnx_pointwise.graph import ModelSource, runtime_source
from onnx_pointwise.latency.cache import LatencyCache, is_duration
from onnx_pointwise.latency.patterns import Patterns
from onnx_pointwise.latency.probes import Probe, feeds, network
from onnx_pointwise.progress import Within
from onnx_pointwise.runtime import (
    Kernel,
    Runner,
    is_cpu,
    machine,
    open_session,
    profile_cost,
    provider_info,
    read_profile,
)
from onnx_pointwise.scratch import ScratchFolder

# Timed and untimed runs of a probe; long ones are disturbed less, and would take too long.
_RUNS, _WARMUP = 12, 3
_LONG_RUNS, _LONG_WARMUP = 5, 1
# Part of every key of the cache: to be raised when the way to measure changes.
_WAY = 4
_PROBE_BYTES = 2**28
_PROBES = 400


class Clock:
    """Measures probes.

    Args:
        provider: Execution provider, as for ``open_session``.
        threads: Threads inside one operator; the runtime's own choice if ``None``.
        cache: Where measurements are kept; ``None`` measures everything anew.
        progress: Called with what is measured next, and how many probes are.
        deployment: What is made of a network before it runs, and so of a probe.
    """

    def __init__(
        self,
        provider: str,
        threads: int | None,
        cache: LatencyCache | None,
        progress: Within,
        deployment: Deployment = AS_IS,
    ) -> None:
        self._provider, self._threads = provider, threads
        self._cache, self._progress = cache, progress
        deployment = deployment.nameless()
        self._patterns = Patterns(deployment)
        self._place = place(provider, threads, deployment)
        self._known: dict[Probe, float] = {}

    def seconds(self, probe: Probe) -> float:
        """Give what a probe takes that was measured."""
        return self._known[probe]

    def measure(self, probes: Iterable[Probe]) -> None:
        """Measure those that are not known yet.

        Raises:
            ProviderError: The provider does not load.
            ModelError: A probe cannot be deployed so.
        """
        wanted = {f"{self._place} {probe}": probe for probe in probes if probe not in self._known}
        if self._cache is not None and wanted:
            stored = self._cache.get(wanted)
            self._known |= {wanted.pop(key): float(seconds) for key, seconds in stored.items() if is_duration(seconds)}
        done = 0
        for group in _groups(list(wanted.values())):
            self._progress("convolutions in other forms", done, len(wanted))
            done += len(group)
            self._known |= self._time(group)
        if self._cache is not None:
            self._cache.put({key: self._known[probe] for key, probe in wanted.items()})

    def _time(self, probes: Sequence[Probe]) -> dict[Probe, float]:
        if is_cpu(self._provider):
            return self._profile(probes)
        return {probe: self._run(probe) for probe in probes}

    def _profile(self, probes: Sequence[Probe]) -> dict[Probe, float]:
        """Time all probes in one session by its profile, which leaves out what only their ends cost."""
        runs, warmup = _counts(probes)
        with ScratchFolder() as folder:
            session, fed = self._open(probes, folder / "profile")
            runner = Runner(session, fed, self._provider, "latency probe")
            for _ in range(warmup + runs):
                runner.run()
            written = read_profile(session.end_profiling(), profile_cost(self._provider, self._threads))
        samples = chain_seconds(written[warmup:], len(probes))
        # Disturbances only ever add time, and the profile counts whole microseconds.
        quiet = np.sort(samples, axis=0)[: max(1, runs // 2)].mean(axis=0)
        return {probe: float(seconds) for probe, seconds in zip(probes, quiet, strict=True)}

    def _run(self, probe: Probe) -> float:
        """Time one probe in a session of its own: a profile would only see kernels being launched."""
        runs, warmup = _counts([probe])
        session, fed = self._open([probe])
        runner = Runner(session, fed, self._provider, "latency probe")
        samples = sorted(runner.run() for _ in range(warmup + 2 * runs))
        return float(np.mean(samples[:runs]))

    def _open(
        self, probes: Sequence[Probe], profile: Path | None = None
    ) -> tuple[ort.InferenceSession, dict[str, Any]]:
        """Open a session of probes as they are deployed, with what they are fed."""
        made = network(probes, self._patterns)
        few = sum(probe.bytes for probe in probes) <= _PROBE_BYTES
        source: ModelSource | bytes = (
            made.SerializeToString() if few else made
        )  # else in a file, and its weights beside it
        with runtime_source(source) as readable:
            session = open_session(readable, self._provider, threads=self._threads, profile=profile)
        return session, feeds(probes)


def _counts(probes: Sequence[Probe]) -> tuple[int, int]:
    """Timed and untimed runs of probes that run together."""
    return (_LONG_RUNS, _LONG_WARMUP) if probes[0].long else (_RUNS, _WARMUP)


def place(provider: str, threads: int | None, deployment: Deployment = AS_IS) -> str:
    """Describe all that a latency depends on beside what is run: part of the keys of the cache."""
    info, here = provider_info(provider), machine()
    runtime = {name: version for name, version in here.versions.items() if name.startswith("onnxruntime")}
    return (
        f"way {_WAY}, {provider}, {info.device}, {info.driver}, {here.cpu}, {'/'.join(here.instruction_sets)}, "
        f"{here.cores} cores, {runtime}, {threads} threads:" + (f" {deployment.key}" if deployment.changes else "")
    )


def _groups(probes: Sequence[Probe]) -> list[list[Probe]]:
    groups: list[list[Probe]] = []
    held = 0
    for probe in sorted(probes, key=lambda probe: probe.long):
        last = groups[-1] if groups else [probe]
        full = held + probe.bytes > _PROBE_BYTES or len(last) >= _PROBES or last[0].long != probe.long
        if not groups or full:
            groups.append([])
            held = 0
        groups[-1].append(probe)
        held += probe.bytes
    return groups


# Name of a piece of a probe, see ``probes.network``.
_PIECE = re.compile(r"(\d+)\.(\d+)")


def chain_seconds(runs: Sequence[Sequence[Kernel]], count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Add up the kernels of each probe in each run.

    Layout changes between two pieces belong to the probe; those at its ends would not happen inside a network.

    Args:
        runs: For each run the kernels in the order in which they ran.
        count: How many probes there are.

    Returns:
        Seconds [runs, probes].
    """
    found = np.zeros((len(runs), count))
    for seconds, kernels in zip(found, runs, strict=True):
        waiting: dict[int, float] = {}
        current = -1
        for kernel in kernels:
            if kernel.op_type.endswith(("Conv", "ConvTranspose")):
                named = _PIECE.search(kernel.name)
                assert named is not None, "every convolution of a probe is named so, whatever is put around it"
                current = int(named[1])
                if named[2] != "0":
                    seconds[current] += waiting.pop(current, 0.0)
                seconds[current] += kernel.seconds
                waiting[current] = 0.0
            elif current in waiting:
                waiting[current] += kernel.seconds
    return found
