"""What a network that is searched for must keep, and how far one went: its strain, 1 at the limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_pointwise.check import CheckResult, HeadCheck, Limits, limits_of
from onnx_pointwise.jobs.results import Score
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.settings import Settings
from onnx_pointwise.study import Heads


@dataclass(frozen=True)
class Promise:
    """What the answers may do.

    Attributes:
        same: Whether they must stay the same: each head within the first limit of its kind, its drift within that of
            numbers.
        limits: The limits by kind of head.
        max_drift: The largest drift, of all outputs or by name; None for no limit.
        max_loss: How far the user's own score may fall; None for no limit.
    """

    same: bool
    limits: Limits
    max_drift: float | Mapping[str, float] | None
    max_loss: float | None

    @classmethod
    def of(cls, settings: Settings) -> Promise:
        """What was asked for: limits on drift or loss, or else that the answers stay the same."""
        named = settings.max_drift is not None or settings.max_loss is not None
        return cls(not named, limits_of(settings.limits), settings.max_drift, settings.max_loss)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """What a plan says of its budget."""
        if self.same:
            return {"answers": "same", "limits": {kind: numbers[0] for kind, numbers in self.limits.items()}}
        named = {"max_drift": self.max_drift, "max_loss": self.max_loss}
        return {name: limit for name, limit in named.items() if limit is not None}

    def rehearsed(self, heads: Heads, pictures: Mapping[str, float]) -> Callable[[Sequence[float | None]], float]:
        """How to tell the strain of a rehearsal from the relative squared drifts at its gauges.

        Of agreement, outputs and scores a rehearsal knows nothing; there the drift stands in, which is corrected once a
        network is fitted.

        Args:
            heads: Where the network answers.
            pictures: How far those that give pictures may drift, see `picture_drifts`.
        """
        usual = self.limits["numbers"][0]
        given = {gauge.value: self._limit_of(gauge.value, heads) for gauge in heads.gauges}
        if all(limit is None for limit in given.values()):
            given = {value: min(usual, pictures.get(value, usual)) for value in given}

        def strain(drifts: Sequence[float | None]) -> float:
            shares = [
                _share(math.sqrt(drift), limit)
                for drift, limit in zip(drifts, given.values(), strict=True)
                if drift is not None and limit is not None
            ]
            return max(shares, default=0.0)

        return strain

    def _limit_of(self, value: str, heads: Heads) -> float | None:
        """The limit on the drift at a gauge: its own, or that of an output that it goes into."""
        if not isinstance(self.max_drift, Mapping):
            return self.max_drift
        names = {value}
        for head in heads.heads:
            if value in (head.value, head.behind):
                names |= {head.value, *head.outputs}
        return min((limit for name, limit in self.max_drift.items() if name in names), default=None)

    def measured(self, found: CheckResult, score: Score | None) -> float:
        """The strain of a network that was compared, and scored where there is a score."""
        shares = [_share(score.before - score.after, self.max_loss)] if score is not None and self.max_loss else []
        if self.same:
            shares += [share for head in found.heads for share in self._shares(head)]
        else:
            shares += [
                _share(drift.relative_l2, limit)
                for name, drift in found.drift.items()
                if (limit := self._of_output(name)) is not None
            ]
        return max(shares, default=0.0)

    def _of_output(self, name: str) -> float | None:
        return self.max_drift.get(name) if isinstance(self.max_drift, Mapping) else self.max_drift

    def _shares(self, head: HeadCheck) -> list[float]:
        """Drift, and what does not agree, as shares of what may be.

        Of few examples the average of others may lie well beyond theirs: what is promised has to hold there.
        """
        drift = head.drift if head.drift_bound is None else head.drift_bound
        shares = [] if drift is None else [_share(drift, self.limits["numbers"][0])]
        if head.judged_by == "agreement" and head.decisive is not None:
            assert head.limits is not None, "it was judged"
            limit = head.limits[0]
            if head.kind == "picture":
                decibels = head.decisive if head.agreement_bound is None else head.agreement_bound
                shares.append(10.0 ** ((limit - decibels) / 20.0))
            else:
                shares.append(_share(1.0 - head.decisive, 1.0 - limit))
        return shares


def _share(value: float, limit: float) -> float:
    if value <= 0.0:
        return 0.0
    return value / limit if limit > 0.0 else math.inf
