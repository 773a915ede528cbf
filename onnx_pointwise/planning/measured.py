"""Plans that are held to what they promise: the network is timed as planned, and planned again where it falls short.

A prediction from the sites is seldom off by much, but it is off. For a target latency the plan is corrected by what
was measured, until it is met. For every other budget the network has to be faster than the untouched one beyond the
noise floor; while it is not, the sites that save least go back to dense.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from onnx_pointwise.errors import PlanError, TargetError
from onnx_pointwise.graph import Plan, Refusal
from onnx_pointwise.latency import NetworkLatency, Timing
from onnx_pointwise.runtime import NOISY

#: A target latency counts as met within this share of it.
CLOSE = 0.05
# The search is over as soon as it is met this closely.
_CLOSE_ENOUGH = 0.02
_ATTEMPTS = 8
# Share of the cheapest plan so far to ask for where the plans on offer are far apart.
_NEXT = 0.95
_LEAST = 1e-6


@dataclass(frozen=True)
class _Attempt:
    """A plan, what its sites promise (``NetworkLatency.sum_of_sites``), and what was measured."""

    plan: Plan
    promised: float
    timing: Timing


def meeting(target: float, make: Callable[[float], Plan], timed: NetworkLatency) -> Plan:
    """Find the plan whose network has a target latency when it is run.

    Args:
        target: Share of the untouched network's latency.
        make: Makes a plan whose sites promise at most a share; raises `TargetError` where that is out of reach.
        timed: What the network takes.

    Returns:
        The plan that came closest from below, or within 5 % from above, with what was measured.

    Raises:
        PlanError: No plan came that far; the sentence says how far the best one came.
    """
    tried: list[_Attempt] = []
    ask = timed.promised(target)
    for _ in range(_ATTEMPTS):
        lowest = False
        try:
            plan = make(max(ask, _LEAST))
        except TargetError as error:
            if error.resource != "latency":
                raise
            lowest = True
            plan = make(min(1.0, error.least * (1.0 + 1e-9)))
        if any(plan.choices == attempt.plan.choices for attempt in tried):
            if lowest or any(attempt.timing.ratio <= (1.0 + CLOSE) * target for attempt in tried):
                break
            # Few sites make few plans: on to the next cheaper one.
            ask = _NEXT * min(attempt.promised for attempt in tried)
            continue
        tried.append(_Attempt(plan, timed.sum_of_sites(plan.choices), timed.time(plan)))
        ratio = tried[-1].timing.ratio
        if abs(ratio - target) <= _CLOSE_ENOUGH * target or (lowest and ratio > target):
            break
        ask = _correct(tried, target)
    met = [attempt for attempt in tried if attempt.timing.ratio <= (1.0 + CLOSE) * target]
    if not met:
        best = min(tried, key=lambda attempt: attempt.timing.ratio)
        noise = best.timing.noise
        sure = f", as far as a machine tells on which that varies by {noise:.2f}" if noise > NOISY else ""
        raise PlanError(
            f"The target {target:.3g} of the latency on {timed.provider} cannot be reached: the best network took "
            f"{best.timing.ratio:.3f} of the untouched one's{sure}; ask for that or more, or let more forms and "
            "convolutions compete."
        )
    best = max(met, key=lambda attempt: attempt.timing.ratio)
    return replace(best.plan, latency=_record(timed, best.plan, best.timing))


def _correct(tried: list[_Attempt], target: float) -> float:
    """What to let the sites promise next: as much more or less to save as the last network fell short or went over."""
    last = tried[-1]
    below = [attempt for attempt in tried if attempt.timing.ratio <= target]
    above = [attempt for attempt in tried if attempt.timing.ratio > target]
    if below and above:  # between the nearest two
        low = max(below, key=lambda attempt: attempt.timing.ratio)
        high = min(above, key=lambda attempt: attempt.timing.ratio)
        way = (target - low.timing.ratio) / (high.timing.ratio - low.timing.ratio)
        return low.promised + way * (high.promised - low.promised)
    promised, kept = 1.0 - last.promised, 1.0 - last.timing.ratio
    if kept <= 0.0 or promised <= 0.0:
        return last.promised / 2.0
    return min(1.0, 1.0 - (1.0 - target) * promised / kept)


def faster(plan: Plan, timed: NetworkLatency, *, fixed: Collection[str] = ()) -> Plan:
    """Take sites back until the network is faster than the untouched one, beyond the noise floor.

    Args:
        plan: A plan of measured sites.
        timed: What the network takes.
        fixed: Sites that were decided by hand and stay as they are.

    Returns:
        The plan with what was measured, and a refusal for every site that went back; without any choice where nothing
        made the network faster.
    """
    while plan.choices:
        timing = timed.time(plan)
        saved = {
            name: timed.seconds(name, None) - timed.seconds(name, choice)
            for name, choice in plan.choices.items()
            if name not in fixed
        }
        if timing.verdict == "faster" or not saved:
            return replace(plan, latency=_record(timed, plan, timing))
        order = sorted(saved, key=lambda name: (saved[name], name))
        back = order[: (len(order) + 1) // 2]
        reason = Refusal(
            "network_not_faster",
            f"With it the network was not faster on {timed.provider}, beyond the noise floor.",
            {"latency": timing.ratio, "noise": timing.noise},
        )
        plan = plan.without(dict.fromkeys(back, reason))
    return replace(plan, latency=_record(timed, plan, None))


def timed_once(plan: Plan, timed: NetworkLatency) -> tuple[Plan, Timing]:
    """Time a plan as it is, whatever comes out; gives it with what was measured, and the timing."""
    timing = timed.time(plan)
    return replace(plan, latency=_record(timed, plan, timing)), timing


def _record(timed: NetworkLatency, plan: Plan, timing: Timing | None) -> dict[str, Any]:
    """Write down what a plan was made from."""
    rewritten = {
        name: {"dense": timed.seconds(name, None), "rewritten": timed.seconds(name, choice)}
        for name, choice in plan.choices.items()
    }
    return {
        "provider": timed.provider,
        "threads": timed.threads,
        **({"precision": timed.deployment.precision} if timed.deployment.changes else {}),
        "dense_seconds": timed.dense,
        "sites_alone_seconds": sum(site.dense for site in timed.sites.values()),
        "sites_inside_seconds": sum(timed.inside.values()),
        "sum_of_sites": timed.sum_of_sites(plan.choices),
        "predicted": timed.predict(plan.choices),
        "measured": None if timing is None else timing.ratio,
        "noise": None if timing is None else timing.noise,
        "sites": rewritten,
    }
