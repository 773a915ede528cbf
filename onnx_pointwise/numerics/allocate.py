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
    # The solver's tolerances are absolute: losses and budgets are scaled to 1.
    spent = np.concatenate([np.asarray(cost, dtype=np.float64) for cost in costs])
    wide = np.maximum(spent.max(axis=0), 1.0)
    size = np.where(np.abs(limits) > 1e-12 * wide, np.abs(limits), wide)
    counts = [len(loss) for loss in losses]
    problem = _Knapsack(
        np.concatenate([np.asarray(loss) for loss in losses]) / scale,
        spent / size,
        np.repeat(np.arange(len(counts)), counts),
        np.asarray(limits) / size,
    )
    at = np.flatnonzero((spent <= np.asarray(limits)).all(axis=1))  # what breaks a limit alone is in no plan
    if len(np.unique(problem.owner[at])) < len(counts):
        raise PlanError(_NO_PLAN)
    at = at[problem.of(at).promising()]
    picked = at[problem.of(at).solved(seconds)]
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [int(index) for index in picked - starts[:-1]]


_NO_PLAN = "No plan stays within the budget; raise it, or allow more forms or sites."


@dataclass(frozen=True)
class _Knapsack:
    """Candidates of all sites, one after the other: losses [n], costs [n, resources], their sites [n]; and limits."""

    losses: Array
    costs: Array
    owner: NDArray[np.int64]
    limits: Array

    def of(self, kept: NDArray[np.int64]) -> _Knapsack:
        """The same with some candidates alone, at least one of every site."""
        return _Knapsack(self.losses[kept], self.costs[kept], self.owner[kept], self.limits)

    @property
    def _one_each(self) -> Any:
        import scipy.sparse

        places = np.arange(len(self.owner))
        return scipy.sparse.csr_matrix((np.ones(len(places)), (self.owner, places)))

    def promising(self) -> NDArray[np.int64]:
        """Which candidates may be in a best plan: mostly a few of each site, which the solver gets done at once.

        With prices for what is spent (the duals of the linear relaxation; any would do) no plan is better than the
        sum, over sites, of the least priced loss, less the price of the limits. A candidate that is dearer than the
        least of its site by more than what lies between this bound and a plan that is known is in no better plan
        (Dyer, Kayal and Walker 1984).
        """
        # Half of what importing the package took was the solver, which many a job never asks.
        from scipy.optimize import linprog

        with _silence():
            relaxed = linprog(
                self.losses,
                self.costs.T,
                self.limits,
                self._one_each,
                np.ones(self.owner[-1] + 1),
                bounds=(0.0, None),
                method="highs",
            )
        if relaxed.x is None:
            raise PlanError(_NO_PLAN)
        # Of the candidates that share a site, the one that comes nearest to keeping all limits.
        plan = self._first(np.where(relaxed.x > 1e-9, self.costs.max(axis=1), np.inf))
        if (self.costs[plan].sum(axis=0) > self.limits).any():
            return np.arange(len(self.losses))
        plan = self._spent_up(plan)
        prices = np.maximum(-np.asarray(relaxed.ineqlin.marginals), 0.0)
        priced = self.losses + self.costs @ prices
        least = np.full(self.owner[-1] + 1, np.inf)
        np.minimum.at(least, self.owner, priced)
        between = float(self.losses[plan].sum() - least.sum() + prices @ self.limits)
        return np.flatnonzero(priced - least[self.owner] <= between * (1.0 + 1e-6) + 1e-9)

    def _first(self, key: Array) -> NDArray[np.int64]:
        """The candidate of every site that has the least of something."""
        order = np.lexsort((key, self.owner))
        return np.asarray(order[np.unique(self.owner[order], return_index=True)[1]])

    def _spent_up(self, plan: NDArray[np.int64]) -> NDArray[np.int64]:
        """A plan that has what it leaves of the limits spent, where most is gained first."""
        while True:
            room = self.limits - self.costs[plan].sum(axis=0)
            gained = self.losses[plan][self.owner] - self.losses
            fits = (self.costs - self.costs[plan][self.owner] <= room).all(axis=1)
            best = int(np.argmax(np.where(fits, gained, 0.0)))
            if not (fits[best] and gained[best] > 0.0):
                return plan
            plan = plan.copy()
            plan[self.owner[best]] = best

    def solved(self, seconds: float) -> NDArray[np.int64]:
        """The candidate of every site."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        with _silence():
            result = milp(
                self.losses,
                integrality=np.ones(len(self.losses)),
                bounds=Bounds(0.0, 1.0),
                constraints=[
                    LinearConstraint(self._one_each, 1.0, 1.0),
                    LinearConstraint(self.costs.T, -np.inf, self.limits),
                ],
                options={"time_limit": seconds, "mip_rel_gap": 1e-6},
            )
        if result.x is None:
            raise PlanError(_NO_PLAN)
        return self._first(-result.x)


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
