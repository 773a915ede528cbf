"""Share a budget out among sites: which candidate each site gets, so that the network's outputs move least.

What error at one site does to the outputs is measured, at a few error levels, and follows

    D(e) = g e (1 + c e)                                                                                          (1)

closely, with e the relative squared error of the site's output and D the relative squared drift of the network's.
Drifts of different sites add up while they are small, so the plan is a multiple-choice knapsack: one candidate for
every site, least sum of D, cost within the limits. It is solved exactly. Sums of the errors themselves mislead by far:
sites differ in g by orders of magnitude.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.errors import PlanError

Array = NDArray[np.float64]

# Bends tried for (1); beyond the largest the drift has saturated and the fit means nothing.
_BENDS = np.concatenate([[0.0], np.geomspace(0.1, 100.0, 31)])
# Drifts below this are the rounding of float32 runs, not of the site.
_FLOOR = 1e-10


@dataclass(frozen=True)
class Response:
    """What a site's error does to the network's outputs, equation (1).

    Attributes:
        gain: g, relative squared drift for each unit of relative squared error, for small errors.
        bend: c, how much steeper it gets.
    """

    gain: float
    bend: float = 0.0

    def __call__(self, error: NDArray[np.float64]) -> Array:
        """Relative squared drift for relative squared errors."""
        return self.gain * error * (1.0 + self.bend * error)


def fit_response(errors: Sequence[float], drifts: Sequence[float]) -> Response:
    """Fit (1) to measured points, in relative error.

    Args:
        errors: Relative squared errors of the site's output, above 0.
        drifts: Relative squared drifts that they led to.

    Returns:
        The response; a flat one of gain 0 where nothing was measured above rounding.
    """
    points = [(e, max(d, _FLOOR)) for e, d in zip(errors, drifts, strict=True) if e > 0.0 and math.isfinite(d)]
    if not points or all(d <= _FLOOR for _, d in points):
        return Response(0.0)
    e, d = (np.array(column) for column in zip(*points, strict=True))
    best = (math.inf, 0.0, 0.0)
    for bend in _BENDS:
        ratio = np.log(d / (e * (1.0 + bend * e)))
        misfit = float(ratio.var())
        if misfit < best[0] - 1e-12:
            best = (misfit, math.exp(float(ratio.mean())), float(bend))
    return Response(best[1], best[2])


def knapsack(
    costs: Sequence[NDArray[Any]], losses: Sequence[Array], limits: Sequence[float], *, seconds: float = 60.0
) -> list[int]:
    """Pick one candidate for every site: least total loss within the limits.

    Args:
        costs: For every site, the cost of its candidates: [n, resources].
        losses: For every site, the loss of its candidates: [n].
        limits: The most that may be spent of each resource.
        seconds: Time for the solver; what it has by then is taken. An exact plan takes a fraction of a second.

    Returns:
        The index of the candidate of each site.

    Raises:
        PlanError: No choice stays within the limits.
    """
    if not costs:
        return []
    scale = max(max(float(np.max(loss)) for loss in losses), np.finfo(np.float64).tiny)
    return _solve([np.asarray(loss) / scale for loss in losses], costs, limits, seconds)


def _solve(
    losses: Sequence[Array], costs: Sequence[NDArray[Any]], limits: Sequence[float], seconds: float
) -> list[int]:
    # Half of what importing the package took was the solver, which many a job never asks.
    import scipy.sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    counts = [len(loss) for loss in losses]
    starts = np.concatenate([[0], np.cumsum(counts)])
    owner = np.repeat(np.arange(len(counts)), counts)
    one_each = scipy.sparse.csr_matrix((np.ones(starts[-1]), (owner, np.arange(starts[-1]))))
    spent = np.concatenate([np.asarray(cost, dtype=np.float64) for cost in costs]).T
    # The solver's tolerances are absolute: budgets are scaled to 1, and what breaks one alone is ruled out.
    alone = (spent <= np.asarray(limits)[:, None]).all(axis=0)
    wide = np.maximum(spent.max(axis=1), 1.0)
    size = np.where(np.abs(limits) > 1e-12 * wide, np.abs(limits), wide)
    with _silence():
        result = milp(
            np.concatenate(list(losses)),
            integrality=np.ones(starts[-1]),
            bounds=Bounds(0.0, alone.astype(np.float64)),
            constraints=[
                LinearConstraint(one_each, 1.0, 1.0),
                LinearConstraint(spent / size[:, None], -np.inf, np.asarray(limits) / size),
            ],
            options={"time_limit": seconds, "mip_rel_gap": 1e-6},
        )
    if result.x is None:
        raise PlanError("No plan stays within the budget; raise it, or allow more forms or sites.")
    return [int(np.argmax(result.x[a:b])) for a, b in itertools.pairwise(starts)]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what the solver's C++ writes to standard output: now and then a line of its own debugging, unasked."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):
        yield  # there is no standard output to keep clean
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)  # what C still holds back would come out later
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def exchange(
    costs: Sequence[NDArray[Any]],
    losses: Sequence[Array],
    limits: Sequence[float],
    start: Sequence[int],
    measure: Callable[[Sequence[int]], float],
    *,
    runs: int = 200,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[int], float]:
    """Repair a plan by running it: move rank from where it is missed least to where it is missed most.

    A move makes one site cheaper by a step and spends what that frees on another. Moves are tried in the order of what
    the losses promise; one that measures better is kept and the search starts over, until no single move helps.

    Args:
        costs: As in `knapsack`; candidates of a site in order of rising first cost.
        losses: As in `knapsack`.
        limits: As in `knapsack`.
        start: The plan to repair.
        measure: Gives the measured drift of a plan.
        runs: The most plans to measure.
        stop: Asked before every run whether time is up.

    Returns:
        The best plan measured, and its drift.
    """
    current, drift = list(start), measure(start)
    tried = {tuple(start)}
    left = runs - 1
    while True:
        found = False
        for plan in _moves(costs, losses, limits, current):
            if tuple(plan) in tried:
                continue
            if left <= 0 or stop():
                return current, drift
            left -= 1
            tried.add(tuple(plan))
            measured = measure(plan)
            if measured < drift:
                current, drift, found = plan, measured, True
                break
        if not found:
            return current, drift


def _moves(
    costs: Sequence[NDArray[Any]], losses: Sequence[Array], limits: Sequence[float], plan: Sequence[int]
) -> list[list[int]]:
    """Single exchanges from a plan that stay within the limits, most promising first."""
    spent = sum(np.asarray(cost[index], dtype=np.float64) for cost, index in zip(costs, plan, strict=True))
    room = np.asarray(limits, dtype=np.float64) - spent
    found: list[tuple[float, list[int]]] = []
    for giver, down in enumerate(plan):
        for lower in range(max(0, down - 2), down):
            freed = np.asarray(costs[giver][down] - costs[giver][lower], dtype=np.float64)
            for taker, up in enumerate(plan):
                if taker == giver:
                    continue
                fits = [
                    index
                    for index in range(up + 1, len(losses[taker]))
                    if np.all(costs[taker][index] - costs[taker][up] <= room + freed)
                    and losses[taker][index] < losses[taker][up]
                ]
                if not fits:
                    continue
                higher = min(fits, key=lambda index: losses[taker][index])
                change = (losses[giver][lower] - losses[giver][down]) + (losses[taker][higher] - losses[taker][up])
                moved = list(plan)
                moved[giver], moved[taker] = lower, higher
                found.append((float(change), moved))
    found.sort(key=lambda item: item[0])
    return [plan for _, plan in found]
