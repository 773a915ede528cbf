"""Measurements: what they consist of and how a verdict follows from them. Never how long something takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_pointwise.errors import InputError, ModelError, ProviderError, RangeError
from onnx_pointwise.jobs.benchmark import bench
from onnx_pointwise.runtime import timing as benchmark
from onnx_pointwise.runtime.timing import compare, measure
from tests.graphs import conv_model, normal, opened

QUICK: dict[str, Any] = {"threads": 1, "runs": 5, "warmup": 2, "max_seconds": 0.2}


def dense(**options: Any) -> onnx.ModelProto:
    return conv_model(normal(6, 8, 3, 3), (8, 8), **options)


def test_a_comparison_describes_itself() -> None:
    result = compare(dense(), dense(), input_shapes={"x": (4, 8, 8, 8)}, **QUICK)
    assert result.rounds >= 5
    assert result.before.runs == result.after.runs >= 5
    assert 0 < result.before.median <= result.before.p90
    assert result.before.throughput == pytest.approx(4 / result.before.median)
    assert result.interval[0] <= result.ratio <= result.interval[1]
    assert result.noise >= 0.01
    assert (result.provider, result.threads, result.bound) == ("cpu", 1, "host")
    assert result.device
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["input_shapes"] == {"x": [4, 8, 8, 8]} and data["verdict"] == result.verdict


def pretend(
    monkeypatch: pytest.MonkeyPatch, after: float, again: float = 1.0, spread: float = 0.0, rounds: int = 21
) -> None:
    """Let the networks take given times: the first 1 s, the second and the first one's second session as told."""
    noise = np.random.default_rng(0).normal(1.0, spread, (3, rounds)) if spread else np.ones((3, rounds))

    def samples(*_: object) -> list[list[list[float]]]:
        # Each turn holds one disturbed run, which must not count.
        return [[[t * d, t * d * 9] for d in row] for t, row in zip((1.0, after, again), noise, strict=True)]

    monkeypatch.setattr(benchmark, "interleave", samples)


@pytest.mark.parametrize(
    ("after", "again", "spread", "verdict"),
    [
        (0.8, 1.0, 0.0, "faster"),
        (1.25, 1.0, 0.0, "slower"),
        (1.0, 1.0, 0.0, "no change"),
        (0.995, 1.0, 0.0, "no change"),  # below what is ever called a difference
        (0.9, 1.12, 0.0, "too noisy to tell"),  # the first network differs more from itself
        (0.8, 1.12, 0.0, "faster"),
        (1.1, 0.8, 0.0, "too noisy to tell"),
        (0.97, 1.0, 0.1, "too noisy to tell"),
        (0.98, 1.025, 0.0, "no change"),
        (0.5, 1.0, 0.1, "faster"),
    ],
)
def test_verdicts(monkeypatch: pytest.MonkeyPatch, after: float, again: float, spread: float, verdict: str) -> None:
    pretend(monkeypatch, after, again, spread)
    result = compare(dense(), dense(), **QUICK)
    assert result.verdict == verdict
    if not spread:
        assert result.ratio == pytest.approx(after)
        assert result.interval == pytest.approx((after, after))
        assert result.noise == pytest.approx(max(0.01, abs(again - 1)))


def test_the_bootstrap_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0.7, spread=0.2)
    first, second, other = (compare(dense(), dense(), seed=seed, **QUICK).interval for seed in (0, 0, 1))
    assert first == second != other


def test_every_order_of_two_networks_is_as_frequent() -> None:
    orders = [benchmark._rotation(3, index) for index in range(6)]
    assert sorted(map(sorted, orders)) == [[0, 1, 2]] * 6
    pairs = [pair for order in orders for pair in itertools.pairwise(order)]
    assert {pairs.count(pair) for pair in itertools.permutations(range(3), 2)} == {2}
    assert {[order[0] for order in orders].count(first) for first in range(3)} == {2}


class Clockwork:
    """A runner whose runs take a given time on a clock of its own."""

    now = 0.0
    plain = False

    def __init__(self, log: list[str], name: str, seconds: float) -> None:
        self.log, self.name, self.seconds = log, name, seconds

    def run(self) -> float:
        self.log.append(self.name)
        Clockwork.now += self.seconds
        return self.seconds


def interleave(monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float], **options: Any) -> tuple[Any, list[str]]:
    log: list[str] = []
    monkeypatch.setattr(Clockwork, "now", 0.0)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: Clockwork.now)
    runners = [Clockwork(log, name, t) for name, t in zip("abc", seconds, strict=True)]
    arguments = {"runs": 100, "warmup": 10, "max_seconds": 10.0} | options
    return benchmark.interleave(runners, *arguments.values()), log  # type: ignore[arg-type]


def test_short_runs_come_in_turns_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, log = interleave(monkeypatch, (0.001, 0.0005, 0.001))
    assert [len(turns) for turns in samples] == [10, 10, 10]
    assert all(len(turn) == 10 for turns in samples for turn in turns)
    # Ten warm-up runs each, then turns of one untimed and ten timed runs.
    assert log[:30] == ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    assert log[30:63] == ["a"] * 11 + ["b"] * 11 + ["c"] * 11


def test_long_runs_stand_alone_and_stop_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, log = interleave(monkeypatch, (1.0, 0.5, 1.0), max_seconds=30.0)
    assert all(len(turn) == 1 for turns in samples for turn in turns)
    assert 5 <= len(samples[0]) < 100
    assert Clockwork.now <= 30.0 + 2.5
    assert len(log) < 60


def test_five_rounds_are_run_however_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, log = interleave(monkeypatch, (9.0, 9.0, 9.0), max_seconds=1.0)
    assert [len(turns) for turns in samples] == [5, 5, 5]
    assert log[:6] == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("option", ["runs", "warmup", "max_seconds"])
def test_counts_must_be_positive(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be above 0"):
        compare(dense(), dense(), **(QUICK | {option: 0}))


def test_faults_of_models_and_inputs_are_named() -> None:
    with pytest.raises(InputError, match="Input 'x' is missing"):
        compare(dense(), dense(), inputs={}, **QUICK)
    with pytest.raises(InputError, match="either inputs or input shapes"):
        compare(dense(), dense(), inputs={"x": normal(1, 8, 8, 8)}, input_shapes={"x": (1, 8, 8, 8)}, **QUICK)
    with pytest.raises(ProviderError, match="Unknown execution provider"):
        measure(dense(), provider="gpu")
    other = conv_model(normal(6, 4, 3, 3), (8, 8))
    with pytest.raises(ModelError, match="the model in memory: the model does not run: "):
        compare(dense(), other, **QUICK)


def test_one_network_alone() -> None:
    latency = measure(dense(), inputs={"x": normal(3, 8, 8, 8)}, **QUICK)
    assert latency.runs >= 5 and latency.throughput == pytest.approx(3 / latency.median)


def test_batch_sizes_and_thread_counts_make_rows() -> None:
    options = QUICK | {"threads": 1}
    del options["threads"]
    result = bench(dense(), dense(), batch_sizes=(1, 4), thread_counts=(1, 2), **options)
    assert [(row.batch, row.threads) for row in result.rows] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    for row in result.rows:
        assert row.comparison is not None and row.latency == row.comparison.before
        assert row.comparison.input_shapes["x"] == (row.batch, 8, 8, 8)
        assert row.comparison.threads == row.threads
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["machine"]["cpu"] and data["other"] and data["memory"] == {} and data["warnings"] == []


def test_one_network_makes_rows_without_a_comparison() -> None:
    options = {key: option for key, option in QUICK.items() if key != "threads"}
    result = bench(dense(batch=2), thread_counts=(1,), **options)
    assert [(row.batch, row.comparison) for row in result.rows] == [(None, None)]
    assert result.other is None


def test_a_batch_size_that_the_model_fixes_cannot_be_chosen() -> None:
    with pytest.raises(InputError, match="the model fixes its batch size"):
        bench(dense(batch=2), batch_sizes=(4,))
    with pytest.raises(RangeError, match="1 is the least"):
        bench(dense(), batch_sizes=(0,))


def test_open_initializers_are_warned_of() -> None:
    options = {key: option for key, option in QUICK.items() if key != "threads"} | {"thread_counts": (1,)}
    (warning,) = bench(dense(), opened(dense()), **options).warnings
    assert "graph inputs too ('W'...)" in warning
    assert not bench(dense(), opened(dense()), freeze_initializers=True, **options).warnings
