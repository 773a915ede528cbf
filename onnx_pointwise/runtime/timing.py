"""Latency, measured so that a difference can be trusted.

Two networks are never timed one after the other: the machine drifts more than they differ. They run in turns, round by
round, in an order that rotates, together with a second session of the first network. Each round gives one ratio of the
two latencies; their median is the answer, and a bootstrap over the rounds gives its interval. The ratio of the first
network to its own second session, which a perfect measurement would find to be one, gives the noise floor: inside it
the verdict is "no change", or, where the floor is high, that this machine is too noisy to tell.

Within its turn a network runs a few times in a row, the first time untimed when runs are short, so that its weights
are back in the caches as they are in a process that runs this network alone. The fastest run of a turn stands for the
turn: what else runs on a machine only ever makes a run slower. On a busy machine with two threads this had a tenth of
the spread that medians of turns had.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from onnx_pointwise.graph import ModelSource
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime.inputs import Array
from onnx_pointwise.runtime.providers import provider_info, session_source
from onnx_pointwise.runtime.runner import Runner
from onnx_pointwise.runtime.running import Timing
from onnx_pointwise.schema import job, pair

Verdict = Literal["faster", "slower", "no change", "too noisy to tell"]
#: A noise floor above this hides differences that matter.
NOISY = 0.03

_CONFIDENCE = 0.95
_RESAMPLES = 2000
# A difference below this is never called one: two sessions of one network differ by as much through memory layout.
_LEAST_NOISE = 0.01
_MIN_ROUNDS = 5
_MIN_WARMUP = 2
# Threads of a session that has had its turn must not spin on, on the processors that the next session needs.
_CONFIG = {"session.force_spinning_stop": "1"}
# A turn takes about this long, and at most so many runs; runs that take longer stand alone.
_TURN_SECONDS = 0.03
_TURN_RUNS = 10


@dataclass(frozen=True)
class Latency:
    """Wall time of one run of a network, fixed shapes, inputs in place.

    Attributes:
        median: Seconds.
        p90: Seconds that nine runs in ten stay below.
        throughput: Items a second: the batch size by the median.
        runs: Timed runs behind these numbers.
        times: Seconds of each of them, in their order.
    """

    median: float
    p90: float
    throughput: float
    runs: int
    times: tuple[float, ...]

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return asdict(self) | {"times": list(self.times)}


@dataclass(frozen=True)
class LatencyComparison:
    """Two networks timed in turns.

    Attributes:
        before: Latency of the first network.
        after: Latency of the second network.
        ratio: Median over the rounds of the second network's latency by the first one's, each the fastest of its turn.
        interval: Bootstrap interval of ``ratio`` that holds it with 95 % confidence.
        noise: Noise floor: how far from 1 the same interval of the first network against itself reaches.
        verdict: ``faster`` or ``slower`` where the whole interval lies beyond the noise floor, else ``no change``, or
            ``too noisy to tell`` where that floor is above `NOISY`.
        rounds: Rounds that were run.
        provider: Short name and options of the execution provider, as given.
        device: The device's name, where it is known.
        threads: Threads inside one operator; None if left to the runtime.
        optimization: Graph optimisation level.
        bound: Where inputs and outputs lay: ``host`` or the device's memory type.
        input_shapes: Shape of each input.
    """

    before: Latency
    after: Latency
    ratio: float
    interval: tuple[float, float]
    noise: float
    verdict: Verdict
    rounds: int
    provider: str
    device: str | None
    threads: int | None
    optimization: str
    bound: str
    input_shapes: Mapping[str, tuple[int, ...]]

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        shapes = {name: list(shape) for name, shape in self.input_shapes.items()}
        return asdict(self) | {"interval": list(self.interval), "input_shapes": shapes}


@pair(Timing)
def compare(before: ModelSource | bytes, after: ModelSource | bytes, settings: Timing) -> LatencyComparison:
    """Time two networks against each other.

    Args:
        before: The reference: path, serialised model, ``ModelProto`` or ``onnx_ir.Model``.
        after: The network compared with it; it takes the same inputs.
        settings: How they are run, in place of the keywords that follow.

    Returns:
        Latencies, their ratio and the verdict.

    Raises:
        ProviderError: The provider does not load, or cannot run one of the models.
        ModelError: A model cannot be loaded or run.
        InputError: The inputs do not fit the model.
        ValueError: A count or a time is not positive.
    """
    feeds = settings.feeds(before)
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(session_source(source, settings.provider)) for source in (before, after)]
        runners = [
            settings.runner(path, feeds, source, config=_CONFIG)
            for path, source in ((paths[0], before), (paths[1], after), (paths[0], before))
        ]
        samples = interleave(runners, settings.runs, settings.warmup, settings.max_seconds)
        bound = runners[0].bound
    first, second, again = (np.array([min(turn) for turn in turns]) for turns in samples)
    generator = np.random.default_rng(settings.seed)
    ratio, interval = _ratio(second / first, generator)
    _, self_interval = _ratio(again / first, generator)
    noise = max(_LEAST_NOISE, *(abs(end - 1) for end in self_interval))
    batch = _batch(feeds)
    return LatencyComparison(
        before=_latency(samples[0], batch),
        after=_latency(samples[1], batch),
        ratio=ratio,
        interval=interval,
        noise=noise,
        verdict=_verdict(interval, noise),
        rounds=len(first),
        provider=settings.provider,
        device=provider_info(settings.provider).device,
        threads=settings.threads,
        optimization=settings.optimization,
        bound=bound,
        input_shapes={name: tuple(array.shape) for name, array in feeds.items()},
    )


def _verdict(interval: tuple[float, float], noise: float) -> Verdict:
    """What to call a ratio by its interval and the noise floor."""
    if interval[1] < 1 - noise:
        return "faster"
    if interval[0] > 1 + noise:
        return "slower"
    return "no change" if noise <= NOISY else "too noisy to tell"


@job(Timing)
def measure(model: ModelSource | bytes, settings: Timing) -> Latency:
    """Time one network; errors as for `compare`, which is for the difference of two networks.

    Args:
        model: The network.
        settings: How it is run, in place of the keywords that follow.
    """
    feeds = settings.feeds(model)
    with session_source(model, settings.provider) as source:
        runner = settings.runner(source, feeds, model)
        (turns,) = interleave([runner], settings.runs, settings.warmup, settings.max_seconds)
    return _latency(turns, _batch(feeds))


def _latency(turns: Sequence[Sequence[float]], batch: int) -> Latency:
    times = [seconds for turn in turns for seconds in turn]
    median = statistics.median(times)
    return Latency(
        median=median,
        p90=float(np.quantile(times, 0.9)),
        throughput=batch / median,
        runs=len(times),
        times=tuple(times),
    )


def _ratio(ratios: Array, generator: np.random.Generator) -> tuple[float, tuple[float, float]]:
    """Give the median of the rounds' ratios, and its percentile bootstrap interval."""
    picks = generator.integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    low, high = np.quantile(medians, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(np.median(ratios)), (float(low), float(high))


def interleave(runners: Sequence[Runner], runs: int, warmup: int, max_seconds: float) -> list[list[list[float]]]:
    """Run all in turns; give for each runner its turns, and for each turn the seconds of its timed runs."""
    start = time.perf_counter()
    paces = [_warm(runner, warmup, max_seconds / (4 * len(runners))) for runner in runners]
    if any(runner.plain for runner in runners):  # both sides of a comparison run in the same way
        for runner in runners:
            runner.unbind()
    # All take the same number of runs a turn, so that each is disturbed as often.
    length = max(1, min(_TURN_RUNS, runs, round(_TURN_SECONDS / max(*paces, 1e-9))))
    untimed = 1 if length > 1 else 0
    samples: list[list[list[float]]] = [[] for _ in runners]
    rounds = max(_MIN_ROUNDS, -(-runs // length))
    for index in range(rounds):
        if index >= _MIN_ROUNDS and time.perf_counter() - start > max_seconds:
            break
        order = _rotation(len(runners), index)
        for position in order:
            runner = runners[position]
            for _ in range(untimed):
                runner.run()
            samples[position].append([runner.run() for _ in range(length)])
    return samples


def _rotation(count: int, index: int) -> list[int]:
    """Give the order of a round: each network comes first equally often, and after each other one equally often."""
    order = [(index + offset) % count for offset in range(count)]
    return order if index // count % 2 == 0 else order[::-1]


def _warm(runner: Runner, warmup: int, seconds: float) -> float:
    """Run untimed until the count or the time is reached; give the fastest run's seconds."""
    start = time.perf_counter()
    fastest = runner.run()
    for done in range(1, warmup):
        if done >= _MIN_WARMUP and time.perf_counter() - start > seconds:
            break
        fastest = min(fastest, runner.run())
    return fastest


def _batch(feeds: Mapping[str, Array]) -> int:
    return max((array.shape[0] for array in feeds.values() if array.ndim), default=1)
