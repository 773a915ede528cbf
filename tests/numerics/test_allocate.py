"""Sharing a budget out: exact, within its limits, and repaired by measurement."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import milp

from onnx_pointwise.errors import PlanError
from onnx_pointwise.numerics.allocate import Response, _Knapsack, exchange, fit_response, knapsack

CHECKED = settings(derandomize=True, deadline=None, max_examples=60)


def problem(seed: int, sites: int, resources: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sites whose candidates get dearer and better; the last one is the dense site."""
    rng = np.random.default_rng(seed)
    costs, losses = [], []
    for _ in range(sites):
        count = int(rng.integers(1, 6))
        costs.append(np.cumsum(rng.integers(1, 1000, (count, resources)), axis=0).astype(float))
        losses.append(np.append(np.sort(rng.random(count - 1))[::-1] * 10.0 ** rng.uniform(-6, 0), 0.0))
    return costs, losses


def every_plan(costs: list[np.ndarray]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(cost)) for cost in costs)))


def total(rows: list[np.ndarray], plan) -> np.ndarray:
    return sum(row[index] for row, index in zip(rows, plan, strict=True))


@CHECKED
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 2), st.floats(0.0, 1.0))
def test_knapsack_is_exact(seed, sites, resources, part):
    costs, losses = problem(seed, sites, resources)
    least, most = (sum(cost[index] for cost in costs) for index in (0, -1))
    limits = least + part * (most - least)
    plan = knapsack(costs, losses, limits)
    assert (total(costs, plan) <= limits * (1 + 1e-6)).all()
    best = min(total(losses, p) for p in every_plan(costs) if (total(costs, p) <= limits * (1 + 1e-9)).all())
    assert total(losses, plan) <= best * (1 + 1e-3) + 1e-9 * max(loss.max() for loss in losses)


@pytest.mark.parametrize("resources", [1, 2])
def test_of_many_candidates_few_are_left_to_the_solver_and_the_best_among_them(resources):
    rng = np.random.default_rng(3)
    losses, costs = [], []
    for _ in range(25):
        ranks = np.arange(1.0, 301.0)
        steep, size = rng.uniform(2.0, 9.0), 10.0 ** rng.uniform(-3, 0)
        losses.append(np.append(size * np.exp(-steep * ranks[:-1] / 300), 0.0))
        costs.append(np.outer(ranks, rng.uniform(1.0, 9.0, resources)))
    limits = 0.5 * sum(cost[-1] for cost in costs)
    owner = np.repeat(np.arange(25), 300)
    problem = _Knapsack(np.concatenate(losses), np.concatenate(costs) / limits, owner, np.ones(resources))
    left = problem.promising()
    assert len(left) < (0.02 if resources == 1 else 0.25) * len(owner)
    assert set(owner[left]) == set(range(25))
    best, of_these = problem.solved(60.0), left[problem.of(left).solved(60.0)]
    assert problem.costs[of_these].sum(axis=0).max() <= 1.0 + 1e-6
    assert problem.losses[of_these].sum() <= problem.losses[best].sum() * (1.0 + 1e-5) + 1e-6


def test_what_cannot_be_met_is_said():
    costs, losses = problem(0, 3, 1)
    with pytest.raises(PlanError, match="budget"):
        knapsack(costs, losses, [sum(cost[0, 0] for cost in costs) * 0.9])
    assert knapsack([], [], [1.0]) == []


def test_the_same_problem_gets_the_same_plan():
    costs, losses = problem(11, 12, 2)
    limits = [0.6 * sum(cost[-1, r] for cost in costs) for r in range(2)]
    assert knapsack(costs, losses, limits) == knapsack(costs, losses, limits)


@CHECKED
@given(st.floats(1e-6, 10.0), st.floats(0.0, 50.0), st.integers(0, 2**31))
def test_response_is_recovered(gain, bend, seed):
    truth = Response(gain, bend)
    errors = np.sort(np.random.default_rng(seed).uniform(0.005, 0.4, 6))
    found = fit_response(list(errors), list(truth(errors)))
    np.testing.assert_allclose(found(errors), truth(errors), rtol=0.15)
    between = np.linspace(0.0, 1.0, 50)
    assert (np.diff(found(between)) > 0.0).all(), "more error must never promise less drift"
    assert found(np.zeros(1))[0] == 0.0


def test_a_site_that_reaches_no_output_costs_nothing():
    assert fit_response([], []) == Response(0.0)
    assert fit_response([0.1, 0.2], [0.0, 0.0]) == Response(0.0)
    assert fit_response([0.0], [0.3]) == Response(0.0)
    assert fit_response([0.1, 0.2], [0.01, float("nan")]).gain == pytest.approx(0.1)


@CHECKED
@given(st.integers(0, 2**31), st.integers(2, 5), st.floats(0.2, 0.9))
def test_exchange_never_leaves_the_budget_and_never_gets_worse(seed, sites, part):
    costs, believed = problem(seed, sites, 1)
    rng = np.random.default_rng(seed + 1)
    true = [loss * rng.uniform(0.1, 10.0) for loss in believed]
    least, most = (sum(cost[index] for cost in costs) for index in (0, -1))
    limits = least + part * (most - least)
    start = knapsack(costs, believed, limits)
    seen = []

    def measure(plan) -> float:
        seen.append(tuple(plan))
        assert (total(costs, plan) <= limits * (1 + 1e-6)).all()
        return float(total(true, plan))

    plan, drift = exchange(costs, believed, limits, start, measure, runs=50)
    assert drift == pytest.approx(total(true, plan))
    assert drift <= total(true, start) + 1e-15
    assert len(seen) == len(set(seen)) <= 50


def test_exchange_moves_rank_to_where_it_is_missed():
    costs = [np.array([[1.0], [2.0], [3.0]])] * 2
    believed = [np.array([0.4, 0.1, 0.0]), np.array([0.4, 0.1, 0.0])]
    true = [np.array([0.4, 0.1, 0.0]), np.array([9.0, 3.0, 0.0])]
    plan, drift = exchange(costs, believed, [4.0], [1, 1], lambda p: float(total(true, p)))
    assert plan == [0, 2]
    assert drift == pytest.approx(0.4)


def test_exchange_stops_when_told():
    costs, losses = problem(5, 6, 1)
    limits = [0.6 * sum(cost[-1, 0] for cost in costs)]
    start = knapsack(costs, losses, limits)
    runs = []
    plan, _ = exchange(costs, losses, limits, start, lambda p: float(len(runs.append(p) or runs)), stop=lambda: True)
    assert plan == start
    assert len(runs) == 1


def test_the_solver_does_not_write_to_standard_output(capfd):
    libc = ctypes.CDLL(None)

    def noisy(*args: object, **kwargs: object):
        libc.printf(b"debugging of the solver\n")
        return milp(*args, **kwargs)

    costs, losses = problem(1, 4, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scipy.optimize.milp", noisy)
        knapsack(costs, losses, [0.7 * sum(cost[-1, 0] for cost in costs)])
    print("kept")
    libc.fflush(None)
    assert capfd.readouterr().out == "kept\n"
