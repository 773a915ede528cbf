"""How long probes take, each measured once, in as few sessions as their memory allows.

A processor does not run at one speed: what runs beside, on the same core of the machine that this one is a part of,
slows it down for seconds, evenly, so that nothing is seen of it in how far runs vary. After every run of a session
therefore runs a reference, a convolution that is always the same. What it takes more than it did at its best is the
noise of all that was measured beside it: above `NOISY` that is measured again, in another run, too, and the rest is
scaled by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnx_pointwise.deploying import AS_IS, Deployment
from onnx_pointwise.graph import ModelSource, runtime_source
from onnx_pointwise.latency.cache import LatencyCache, is_duration
from onnx_pointwise.latency.patterns import Patterns, is_conv
from onnx_pointwise.latency.probes import Conv, Probe, feeds, network
from onnx_pointwise.progress import Within
from onnx_pointwise.runtime import (
    NOISY,
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
_WAY = 5
# Probes of a session come out of the caches as those of a network do.
_PROBE_BYTES = 2**24
_FILE_BYTES = 2**28
_PROBES = 400
# How often probes are measured at most, for want of quiet.
_TRIES = 2
# A convolution that the caches hold, and how often it runs in a row.
_REFERENCE = Probe(1, (28, 28), "float32", (Conv("Conv", 32, 32, (3, 3), (("pads", (1, 1, 1, 1)),)),))
_REFERENCES = 3
# Feature maps before and behind what whole runs are timed of, and the least share of a run that is its own: what
# stands around it has noise, too.
_MARGIN = 16
_LEAST = 0.05


@dataclass(frozen=True)
class Reading:
    """What was measured of a probe.

    Attributes:
        seconds: What the probe took.
        reference: What the reference took beside it.
    """

    seconds: float
    reference: float


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
        self._bytes = 1 if deployment.precision == "int8" else 4
        self._patterns = Patterns(deployment)
        self._place = place(provider, threads, deployment)
        self._known: dict[Probe, Reading] = {}
        self._best = math.inf
        self._beside: Runner | None = None
        self._margins: dict[Probe, Reading] = {}

    def seconds(self, probe: Probe) -> float:
        """Give what a probe takes that was measured, at the best speed that was seen."""
        reading = self._known[probe]
        return reading.seconds * self._best / reading.reference

    def measure(self, probes: Iterable[Probe]) -> None:
        """Measure those that are not known yet.

        Raises:
            ProviderError: The provider does not load.
            ModelError: A probe cannot be deployed so.
        """
        wanted = {f"{self._place} {probe}": probe for probe in probes if probe not in self._known}
        if not wanted:
            return
        noisy = self._remembered(wanted)
        missing = [probe for probe in wanted.values() if probe not in self._known]
        done = 0
        for group in _groups(missing, self._bytes):
            self._progress("convolutions in other forms", done, len(missing))
            done += len(group)
            self._known |= self._quietest(group)
        self._known |= {probe: old for probe, old in noisy.items() if old.reference < self._known[probe].reference}
        if self._cache is not None:
            keys = {probe: key for key, probe in wanted.items()}
            found = {keys[probe]: self._known[probe] for probe in missing}
            kept = {key: [reading.seconds, reading.reference] for key, reading in found.items()}
            self._cache.put(kept | {self._reference_key: self._best})

    @property
    def _reference_key(self) -> str:
        return f"{self._place} reference {_REFERENCE}"

    def _remembered(self, wanted: Mapping[str, Probe]) -> dict[Probe, Reading]:
        """Take what the cache holds of probes; gives those that were measured under noise and had better be again."""
        if self._cache is None:
            return {}
        stored = self._cache.get([self._reference_key, *wanted])
        best = stored.pop(self._reference_key, None)
        if is_duration(best):
            self._best = min(self._best, float(best))
        read = {wanted[key]: Reading(*value) for key, value in stored.items() if _is_reading(value)}
        self._best = min([self._best, *(reading.reference for reading in read.values())])
        noisy = {probe: reading for probe, reading in read.items() if self._noise(reading.reference) > NOISY}
        self._known |= {probe: reading for probe, reading in read.items() if probe not in noisy}
        return noisy

    def _noise(self, reference: float) -> float:
        return reference / self._best - 1.0

    def _quietest(self, probes: Sequence[Probe]) -> dict[Probe, Reading]:
        """Measure probes, and again where the reference says that something disturbs."""
        quietest: dict[Probe, Reading] = {}
        for _ in range(_TRIES):
            found = self._time(probes)
            references = [reading.reference for reading in found.values()]
            self._best = min(self._best, *references)
            for probe, reading in found.items():
                if probe not in quietest or reading.reference < quietest[probe].reference:
                    quietest[probe] = reading
            if self._noise(max(references)) <= NOISY:
                break
        return quietest

    def _time(self, probes: Sequence[Probe]) -> dict[Probe, Reading]:
        if is_cpu(self._provider):
            return self._profile(probes)
        return {probe: self._inside(probe) for probe in probes}

    def _profile(self, probes: Sequence[Probe]) -> dict[Probe, Reading]:
        """Time all probes in one session by its profile, which leaves out what only their ends cost."""
        runs, warmup = _counts(probes)
        with ScratchFolder() as folder:
            session, fed = self._open(probes, folder / "profile")
            runner = Runner(session, fed, self._provider, "latency probe")
            beside = []
            for _ in range(warmup + runs):
                runner.run()
                beside.append(self._reference())
            written = read_profile(session.end_profiling(), profile_cost(self._provider, self._threads))
        samples = chain_seconds(written[warmup:], len(probes))
        quiet = _quiet(samples, runs)
        reference = float(_quiet(np.array(beside[warmup:]), runs))
        return {probe: Reading(float(seconds), reference) for probe, seconds in zip(probes, quiet, strict=True)}

    def _inside(self, probe: Probe) -> Reading:
        """Time one probe by whole runs: a profile would only see kernels being launched.

        Inside a network neither a run is begun for it nor are its numbers brought into the provider's layout and back,
        which for a small one is most of the time. So it stands between two 1x1 convolutions of few maps, and what these
        take alone, at either end, is taken off.
        """
        whole = probe.between(_MARGIN)
        runner = self._runner(whole)
        told = self._timed(runner, whole)
        around = sum(self._margin(end, told) for end in probe.margins(_MARGIN, runner.session.get_outputs()[0].shape))
        return replace(told, seconds=max(told.seconds - around, _LEAST * told.seconds))

    def _margin(self, end: Probe, beside: Reading) -> float:
        """Seconds of half of what stands around a probe, at the speed at which that ran."""
        if end not in self._margins:
            self._margins[end] = self._timed(self._runner(end), end)
        known = self._margins[end]
        return known.seconds * beside.reference / known.reference / 2

    def _timed(self, runner: Runner, probe: Probe) -> Reading:
        runs, warmup = _counts([probe])
        both = np.array([(runner.run(), self._reference()) for _ in range(warmup + 2 * runs)])
        seconds, reference = _quiet(both, 2 * runs)
        return Reading(float(seconds), float(reference))

    def _reference(self) -> float:
        """Seconds of the reference now, its numbers in the caches whatever ran before."""
        if self._beside is None:
            self._beside = self._runner(_REFERENCE)
        return min(self._beside.run() for _ in range(_REFERENCES))

    def _runner(self, probe: Probe) -> Runner:
        session, fed = self._open([probe])
        return Runner(session, fed, self._provider, "latency probe")

    def _open(
        self, probes: Sequence[Probe], profile: Path | None = None
    ) -> tuple[ort.InferenceSession, dict[str, Any]]:
        """Open a session of probes as they are deployed, with what they are fed."""
        made = network(probes, self._patterns)
        # A large one goes through a file, its weights beside it.
        fits = self._bytes * sum(probe.numbers for probe in probes) <= _FILE_BYTES
        source: ModelSource | bytes = made.SerializeToString() if fits else made
        with runtime_source(source) as readable:
            session = open_session(readable, self._provider, threads=self._threads, profile=profile)
        return session, feeds(probes)


def _quiet(samples: np.ndarray[Any, np.dtype[np.float64]], runs: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean of the faster half of runs [runs, ...]: disturbances only add time, and profiles count microseconds."""
    quiet: np.ndarray[Any, np.dtype[np.float64]] = np.sort(samples, axis=0)[: max(1, runs // 2)].mean(axis=0)
    return quiet


def _is_reading(value: Any) -> bool:
    """Whether what a cache holds is what was kept."""
    return isinstance(value, list) and len(value) == 2 and all(is_duration(seconds) for seconds in value)


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


def _groups(probes: Sequence[Probe], number: int) -> list[list[Probe]]:
    """Share probes out to sessions; a number takes so many bytes."""
    groups: list[list[Probe]] = []
    held = 0
    for probe in sorted(probes, key=lambda probe: probe.long):
        last = groups[-1] if groups else [probe]
        full = held + number * probe.numbers > _PROBE_BYTES or len(last) >= _PROBES or last[0].long != probe.long
        if not groups or full:
            groups.append([])
            held = 0
        groups[-1].append(probe)
        held += number * probe.numbers
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
            if is_conv(kernel.op_type):
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
