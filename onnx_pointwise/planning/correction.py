"""Losses corrected by plans that were run.

Responses are measured at one site at a time and for small errors. In a plan all sites err at once, and some err much:
the drift of the whole is seldom the sum. So a plan is rehearsed (`study.Rehearsal`), and the losses follow

    D = a sum_s L_s (1 + c e_s),                                                                                 (1)

with L_s the loss of site s alone and e_s the relative squared error of its output: c makes large errors dear, which
moves rank to where they are, and a makes the prediction true. Both come from all plans rehearsed so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_pointwise.graph import Choice
from onnx_pointwise.planning.candidates import Resource
from onnx_pointwise.planning.options import Options, share_out
from onnx_pointwise.study import Rehearsal

#: A prediction holds where the rehearsed drift lies within this factor of it, in relative L2.
CLOSE = 1.2
# Plans to make and rehearse for one budget, at most.
_ROUNDS = 4


@dataclass(frozen=True)
class Correction:
    """The two numbers of (1).

    Attributes:
        scale: a.
        bend: c.
    """

    scale: float = 1.0
    bend: float = 0.0

    def of(self, option: Options) -> Options:
        """The options of a site with their losses corrected."""
        return option.with_losses(self.scale * option.losses * (1.0 + self.bend * option.errors))


def fitted(observed: Sequence[tuple[float, float, float]]) -> Correction:
    """Fit (1).

    Args:
        observed: For every plan rehearsed, the sums of L_s and of L_s e_s, and the relative squared drift.

    Returns:
        Least squares in relative terms. One plan alone, or several that are all alike, tells how far off the sum is;
        where it is too low, large errors are held to account.
    """
    told = [(one, two, drift) for one, two, drift in observed if one > 0.0 and drift > 0.0]
    if not told:
        return Correction()
    one, two, drift = np.array(told).T
    ratio = drift / one
    mean = two / one  # mean error, by loss
    if len(told) > 1 and np.ptp(np.log(np.maximum(mean, 1e-12))) > 0.1:
        from scipy.optimize import nnls  # half a second to import, and few jobs get here

        (scale, bent), _ = nnls(np.stack([one / drift, two / drift], 1), np.ones(len(told)))
        if scale > 0.0:
            return Correction(float(scale), float(bent / scale))
    whole = float(np.exp(np.log(ratio).mean()))
    if whole <= 1.0:
        return Correction(whole)
    return Correction(1.0, (whole - 1.0) / max(float(mean.mean()), 1e-12))


@dataclass
class Corrected:
    """Options whose losses learn from what is rehearsed.

    Attributes:
        rehearsal: Where plans are tried out.
        correction: What was learned so far.
        observed: What it was learned from, see `fitted`.
        predicted: Relative squared drift that the last plan promised, as corrected before it was rehearsed.
        rehearsed: What it had; None where none was rehearsed.
    """

    rehearsal: Rehearsal
    correction: Correction = field(default_factory=Correction)
    observed: list[tuple[float, float, float]] = field(default_factory=list)
    predicted: float = 0.0
    rehearsed: float | None = None

    def share_out(
        self, listed: Sequence[Options], limits: Mapping[Resource, float], fixed: Mapping[str, Choice]
    ) -> dict[str, Choice]:
        """Pick a candidate for every site, rehearse that, and pick again while the prediction does not hold.

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
            one, two = _sums(listed, chosen)
            promised = self.correction.scale * (one + self.correction.bend * two)
            drift = self.rehearsal.drift({**fixed, **chosen})
            tried.append((drift, promised, chosen))
            self.observed.append((one, two, drift))
            self.correction = fitted(self.observed)
            if promised > 0.0 and CLOSE**-2 <= drift / promised <= CLOSE**2:
                break
        self.rehearsed, self.predicted, best = min(tried, key=lambda plan: plan[0])
        return best

    def rehearse(self, listed: Sequence[Options], chosen: Mapping[str, Choice]) -> list[float | None]:
        """Run a plan once and learn from it; gives the relative squared drift at each gauge."""
        drifts = self.rehearsal.drifts(chosen)
        self.rehearsed = self.rehearsal.heads.whole(drifts)
        self.observed.append((*_sums(listed, chosen), self.rehearsed))
        self.correction = fitted(self.observed)
        return drifts


def _sums(listed: Sequence[Options], chosen: Mapping[str, Choice]) -> tuple[float, float]:
    """Sums of L_s and of L_s e_s over a plan."""
    one = two = 0.0
    for option in listed:
        choice = chosen.get(option.site.name)
        if choice is not None:
            index = option.choices.index(choice)
            one += float(option.losses[index])
            two += float(option.losses[index] * option.errors[index])
    return one, two
