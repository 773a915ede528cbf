"""Losses corrected by plans that were run.

Responses are measured at one site at a time and for small errors. In a plan all sites err at once, and some err much:
the drift of the whole is seldom the sum. So a plan is rehearsed (`study.Rehearsal`), and the losses follow

    D = a sum_s m_s L_s (1 + c e_s),                                                                             (1)

with L_s the loss of site s alone and e_s the relative squared error of its output. What every site added to the drift
of the plan gives m_s, for the form that it had there and, with less faith, for the others; c makes large errors dear,
which moves rank to where they are, and a makes the prediction true. Both come from all plans rehearsed so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_pointwise.graph import Choice
from onnx_pointwise.planning.candidates import Resource
from onnx_pointwise.planning.options import Options, share_out
from onnx_pointwise.study import Rehearsal

#: A prediction holds where the rehearsed drift lies within this factor of it, in relative L2.
CLOSE = 1.2
# Plans to make and rehearse for one budget, at most; no more where one gained less than this share of the drift.
_ROUNDS = 5
_GAIN = 0.1
# How much of what a plan says of a site is believed, of its form and of the others, and the most by which it changes.
_FAITH, _FAITH_OF_OTHERS = 0.7, 0.35
_MOST = 4.0
# A sum of losses, or a drift, below this tells nothing.
_NOTHING = 1e-30


@dataclass(frozen=True)
class Known:
    """How far the loss of a site is off, as logarithms.

    Attributes:
        others: For forms that no plan gave it.
        forms: For those that one did.
    """

    others: float = 0.0
    forms: Mapping[str, float] = field(default_factory=dict)

    def of(self, choice: Choice | None) -> float:
        """m_s of (1)."""
        return 1.0 if choice is None else math.exp(self.forms.get(choice.form, self.others))

    def told(self, choice: Choice, ratio: float) -> Known:
        """The same after a plan in which the site added so many times what it was to add."""
        step = math.log(min(max(ratio, 1.0 / _MOST), _MOST))
        now = self.forms.get(choice.form, self.others) + _FAITH * step
        return Known(self.others + _FAITH_OF_OTHERS * step, {**self.forms, choice.form: now})


@dataclass(frozen=True)
class Correction:
    """The numbers of (1).

    Attributes:
        scale: a.
        bend: c.
        sites: What gives m_s, by site name; 1 for those that are not in it.
    """

    scale: float = 1.0
    bend: float = 0.0
    sites: Mapping[str, Known] = field(default_factory=dict)

    def of(self, option: Options) -> Options:
        """The options of a site with their losses corrected."""
        known = self.sites.get(option.site.name, Known())
        ways = np.array([known.of(choice) for choice in option.choices])
        return option.with_losses(self.scale * ways * option.losses * (1.0 + self.bend * option.errors))


def fitted(observed: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Fit a and c of (1).

    Args:
        observed: For every plan rehearsed, the sums of m_s L_s and of m_s L_s e_s, and the relative squared drift.

    Returns:
        Least squares in relative terms. One plan alone, or several that are all alike, tells how far off the sum is;
        where it is too low, large errors are held to account.
    """
    told = [(one, two, drift) for one, two, drift in observed if min(one, drift) > _NOTHING]
    if not told:
        return 1.0, 0.0
    one, two, drift = np.array(told).T
    ratio = drift / one
    mean = two / one  # mean error, by loss
    if len(told) > 1 and np.ptp(np.log(np.maximum(mean, 1e-12))) > 0.1:
        from scipy.optimize import nnls  # half a second to import, and few jobs get here

        (scale, bent), _ = nnls(np.stack([one / drift, two / drift], 1), np.ones(len(told)))
        if scale > 0.0:
            return float(scale), float(bent / scale)
    whole = float(np.exp(np.log(ratio).mean()))
    if whole <= 1.0:
        return whole, 0.0
    return 1.0, (whole - 1.0) / max(float(mean.mean()), 1e-12)


@dataclass(frozen=True)
class _Observed:
    """A plan that was run: choice, L_s and e_s by site name, and the relative squared drift."""

    sites: Mapping[str, tuple[Choice, float, float]]
    drift: float

    def sums(self, known: Mapping[str, Known]) -> tuple[float, float, float]:
        """What `fitted` wants to know."""
        one = two = 0.0
        for name, (choice, loss, error) in self.sites.items():
            added = loss * known.get(name, Known()).of(choice)
            one += added
            two += added * error
        return one, two, self.drift


@dataclass
class Corrected:
    """Options whose losses learn from what is rehearsed.

    Attributes:
        rehearsal: Where plans are tried out.
        predicted: Relative squared drift that the last plan promised, as corrected before it was rehearsed.
        rehearsed: What it had; None where none was rehearsed.
    """

    rehearsal: Rehearsal
    predicted: float = 0.0
    rehearsed: float | None = None
    _correction: Correction = field(default_factory=Correction)
    _observed: list[_Observed] = field(default_factory=list)
    _unlearned: Callable[[], None] | None = None

    @property
    def correction(self) -> Correction:
        """What was learned so far; parting the drift of a plan among its sites, which takes runs back, waits for it."""
        if self._unlearned is not None:
            learn, self._unlearned = self._unlearned, None
            learn()
        return self._correction

    def share_out(
        self, listed: Sequence[Options], limits: Mapping[Resource, float], fixed: Mapping[str, Choice]
    ) -> dict[str, Choice]:
        """Pick a candidate for every site, rehearse that, and pick again while that gains something.

        Args:
            listed: The options of each site, as measured.
            limits: The most that all these sites together may cost.
            fixed: Choices at other sites.

        Returns:
            Of the plans that were rehearsed, the one that drifts least; choices by site name.

        Raises:
            PlanError: The limits cannot be met.
        """
        tried: list[tuple[float, float, dict[str, Choice]]] = []
        for _ in range(_ROUNDS):
            chosen = share_out([self.correction.of(option) for option in listed], limits)
            if any(chosen == plan for _, _, plan in tried):
                break
            promised = self.promised(listed, chosen)
            before = min((plan[0] for plan in tried), default=math.inf)
            drift = self.rehearsal.heads.whole(self.rehearse(listed, chosen, fixed))
            tried.append((drift, promised, chosen))
            held = promised > 0.0 and CLOSE**-2 <= drift / promised <= CLOSE**2
            if held and drift > (1.0 - _GAIN) * before:
                break
        self.rehearsed, self.predicted, best = min(tried, key=lambda plan: plan[0])
        return best

    def promised(self, listed: Sequence[Options], chosen: Mapping[str, Choice]) -> float:
        """Relative squared drift of a plan by what is known now."""
        of_sites = _chosen([self.correction.of(option) for option in listed], chosen)
        return sum(loss for _, loss, _ in of_sites.values())

    def rehearse(
        self, listed: Sequence[Options], chosen: Mapping[str, Choice], fixed: Mapping[str, Choice] | None = None
    ) -> list[float | None]:
        """Run a plan once, to learn from it; gives the relative squared drift at each gauge."""
        known = self.correction  # of all plans before
        whole = {**(fixed or {}), **chosen}
        drifts = self.rehearsal.drifts(whole)
        self.rehearsed = drift = self.rehearsal.heads.whole(drifts)

        def learn() -> None:
            sites = _told(known, listed, chosen, self.rehearsal.shares(whole))
            self._observed.append(_Observed(_chosen(listed, chosen), drift))
            scale, bend = fitted([one.sums(sites) for one in self._observed])
            self._correction = Correction(scale, bend, sites)

        self._unlearned = learn
        return drifts


def _told(
    before: Correction, listed: Sequence[Options], chosen: Mapping[str, Choice], shares: Mapping[str, float]
) -> dict[str, Known]:
    """What is known of sites after a plan in which they added so much to the drift."""
    now = _chosen([before.of(option) for option in listed], chosen)
    told = {name: site for name, site in now.items() if name in shares and site[1] > 0.0}
    expected, added = sum(loss for _, loss, _ in told.values()), sum(max(shares[name], 0.0) for name in told)
    sites = dict(before.sites)
    if added > 0.0:
        for name, (choice, loss, _) in told.items():
            ratio = max(shares[name], 0.0) / added * expected / loss
            sites[name] = sites.get(name, Known()).told(choice, ratio)
    return sites


def _chosen(listed: Sequence[Options], chosen: Mapping[str, Choice]) -> dict[str, tuple[Choice, float, float]]:
    """Choice, loss and error of the sites that a plan rewrites, by name."""
    found = {}
    for option in listed:
        choice = chosen.get(option.site.name)
        if choice is not None:
            index = option.choices.index(choice)
            found[option.site.name] = choice, float(option.losses[index]), float(option.errors[index])
    return found
