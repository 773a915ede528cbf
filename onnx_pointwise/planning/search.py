"""The cheapest plan within a limit on what the answers may do, found by rehearsals.

Nothing is fitted here. Along one budget, latency where it is measured and MACs where it is not, plans are made for
limits that close in on it, and each is run once (`study.Rehearsal`). How far a plan goes is its strain: what its
answers do as a share of what they may, at the head that is off most. A rehearsal knows the strain only about: the
weights that are made in the end are better, or promised too much. So what a plan was rehearsed at is compared with what
was measured of it once its weights were made, and the next plan is asked for accordingly (`next_strain`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph import Choice
from onnx_pointwise.planning.candidates import COLUMNS, Resource
from onnx_pointwise.planning.correction import Corrected
from onnx_pointwise.planning.options import Options, share_out

# Plans to rehearse for one strain, at most, and the share of what can be saved at which a limit is known.
_STEPS = 8
_FINE = 0.005
# A rehearsed strain is near enough to the one that is asked for from this share of it on.
_NEAR = 0.95
# What the next plan is aimed at, a little inside the limit.
_AIM = 0.95
# How much further, or how much less far, the next plan may go at once.
_FURTHER, _BACK = (1.1, 2.5), (0.2, 0.9)
# The search is over where plans that keep the limit and those that do not are this close.
_CLOSE = 1.1


@dataclass(frozen=True)
class Rehearsed:
    """A plan that was run once.

    Attributes:
        limit: What its sites were allowed to cost together.
        cost: What they do.
        strain: What the answers did in the rehearsal, as a share of what they may.
        choices: Choices by site name.
    """

    limit: float
    cost: float
    strain: float
    choices: Mapping[str, Choice]


@dataclass
class Ladder:
    """Plans from the untouched network down to the cheapest one, each rehearsed when it is first asked for.

    Attributes:
        listed: What could be done to each site.
        resource: What must fall.
        learned: Where plans are rehearsed, and what that taught.
        strain: Gives the strain of relative squared drifts at the gauges, None for one that does not vary.
        tell: Called with each limit that is tried, as a share of what the sites cost.
        tried: The plans so far.
    """

    listed: Sequence[Options]
    resource: Resource
    learned: Corrected
    strain: Callable[[Sequence[float | None]], float]
    tell: Callable[[float], None] = lambda share: None
    tried: list[Rehearsed] = field(default_factory=list)

    def __post_init__(self) -> None:
        column = COLUMNS[self.resource]
        self._dense = sum(float(option.costs[-1, column]) for option in self.listed)
        self._least = sum(float(option.costs[:, column].min()) for option in self.listed)
        self.tried.append(Rehearsed(self._dense, self._dense, 0.0, {}))

    def within(self, most: float) -> Rehearsed:
        """The cheapest plan that was found to strain the answers no further than this; maybe the untouched network."""
        kept = [plan for plan in self.tried if plan.strain <= most]
        high = min(kept, key=lambda plan: plan.limit)
        beyond = [plan for plan in self.tried if plan.strain > most and plan.limit < high.limit]
        low = max(beyond, key=lambda plan: plan.limit, default=Rehearsed(self._least, self._least, math.inf, {}))
        for _ in range(_STEPS):
            wide = high.limit - low.limit > _FINE * (self._dense - self._least)
            if not wide or any(plan.strain >= _NEAR * most for plan in kept):
                break
            plan = self._rehearse(_between(low, high, most))
            if plan.strain <= most:
                kept.append(plan)
                high = plan
            else:
                low = plan
        return min(kept, key=lambda plan: (plan.cost, plan.strain))

    def _rehearse(self, limit: float) -> Rehearsed:
        self.tell(limit / self._dense)
        try:
            chosen = share_out([self.learned.correction.of(one) for one in self.listed], {self.resource: limit})
        except PlanError:  # below the floor, by rounding
            return Rehearsed(limit, limit, math.inf, {})
        known = next((plan for plan in self.tried if plan.choices == chosen), None)
        strain = known.strain if known is not None else self.strain(self.learned.rehearse(self.listed, chosen))
        plan = Rehearsed(limit, _cost(self.listed, chosen, COLUMNS[self.resource]), strain, chosen)
        self.tried.append(plan)
        return plan


def _between(low: Rehearsed, high: Rehearsed, most: float) -> float:
    """A limit between that of a plan that goes too far and that of one that does not: strains grow by factors."""
    way = 0.5
    if 0.0 < high.strain < low.strain < math.inf:
        way = _clipped(math.log(most / high.strain) / math.log(low.strain / high.strain), (0.2, 0.8))
    return high.limit + way * (low.limit - high.limit)


def _cost(listed: Sequence[Options], chosen: Mapping[str, Choice], column: int) -> float:
    return sum(float(one.costs[one.choices.index(chosen.get(one.site.name)), column]) for one in listed)


@dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    Attributes:
        rehearsed: Its strain in the rehearsal.
        measured: Its strain with its weights made, on examples that they were not made from.
        passed: Whether it keeps every limit.
    """

    rehearsed: float
    measured: float
    passed: bool


def next_strain(outcomes: Sequence[Outcome]) -> float | None:
    """What the next plan may be rehearsed at, so that it goes just as far as it may once its weights are made.

    Args:
        outcomes: What became of the plans so far, at least one.

    Returns:
        The strain; None where the last plans came close enough.
    """
    kept = max((one for one in outcomes if one.passed), key=lambda one: one.rehearsed, default=None)
    failed = min((one for one in outcomes if not one.passed), key=lambda one: one.rehearsed, default=None)
    if kept is None:
        assert failed is not None, "there is an outcome"
        way = _AIM / failed.measured if failed.measured > 0.0 else 0.0
        return failed.rehearsed * _clipped(way ** (1.0 / _slope(outcomes)), _BACK)
    if failed is None:
        room = _AIM / kept.measured if kept.measured > 0.0 else math.inf
        return None if room <= _CLOSE else kept.rehearsed * _clipped(room ** (1.0 / _slope(outcomes)), _FURTHER)
    if failed.rehearsed <= _CLOSE * kept.rehearsed:
        return None
    # Between both, where a power law through them would put the limit; not at either end.
    way = 0.5
    if failed.measured > kept.measured > 0.0:
        way = math.log(max(_AIM / kept.measured, 1.0)) / math.log(failed.measured / kept.measured)
    return float(kept.rehearsed * (failed.rehearsed / kept.rehearsed) ** _clipped(way, (0.2, 0.8)))


def _slope(outcomes: Sequence[Outcome]) -> float:
    """How fast what is measured grows with what was rehearsed, by the last two plans; alike where that is unknown."""
    if len(outcomes) < 2:
        return 1.0
    one, two = outcomes[-2:]
    told = all(0.0 < value < math.inf for plan in (one, two) for value in (plan.rehearsed, plan.measured))
    if not told or one.rehearsed == two.rehearsed:
        return 1.0
    return _clipped(math.log(one.measured / two.measured) / math.log(one.rehearsed / two.rehearsed), (0.5, 2.0))


def _clipped(value: float, ends: tuple[float, float]) -> float:
    return min(max(value, ends[0]), ends[1])
