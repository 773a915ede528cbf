"""What a sweep finds: networks from dear to cheap, which of them are worth considering, and how to pick one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnx_pointwise.check import LIKENESSES, CheckResult, Likeness
from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph import ModelCost, Plan
from onnx_pointwise.jobs.results import RewriteResult, Score
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import knee, pareto_front
from onnx_pointwise.runtime import Origin
from onnx_pointwise.settings import Answers, Cost

#: A share of the latency counts as met within this share of it: it is measured.
CLOSE = 0.05
KNEE = "knee"
#: Verdicts that a network can be picked by.
_VERDICTS = LIKENESSES[:-1]
_RULES = f"{KNEE}, a share as 0.7, or {', '.join(_VERDICTS[:-1])} or {_VERDICTS[-1]}"


@dataclass(frozen=True)
class SweepPoint:
    """A network that was made.

    Attributes:
        asked: The share of the cost that it was made for.
        plan: Its plan; replaying it makes the network, fitted to all examples.
        before: Cost of the untouched network.
        after: Its own cost.
        latency: Its latency as a share of before; ``None`` where it was not measured.
        noise: The noise floor of that.
        check: How its answers compare, without latency.
        score: The user's own score of both; ``None`` without one.
        on_front: Whether no other network is both cheaper and better.
    """

    asked: float
    plan: Plan
    before: ModelCost
    after: ModelCost
    latency: float | None
    noise: float | None
    check: CheckResult
    score: Score | None
    on_front: bool = False

    @property
    def passed(self) -> bool:
        """Whether it keeps every limit that was named."""
        return self.check.passed and (self.score is None or self.score.passed)

    @property
    def verdict(self) -> Likeness | None:
        """What its answers are called."""
        return self.check.verdict

    @property
    def drift(self) -> float | None:
        """Relative L2 drift of the head that drifts most; ``None`` where none was compared."""
        return max((head.drift for head in self.check.heads if head.drift is not None), default=None)

    def share(self, cost: Cost) -> float:
        """What is left of a cost; not a number where that was not measured."""
        if cost == "latency":
            return math.nan if self.latency is None else self.latency
        old, new = {
            "macs": (self.before.macs, self.after.macs),
            "params": (self.before.params, self.after.params),
            "size": (self.before.bytes, self.after.bytes),
        }[cost]
        return new / max(1, old)

    def loss(self, answers: Answers) -> float:
        """How far its answers are off, the less the better; not a number where nothing was compared."""
        if answers == "score":
            return math.nan if self.score is None else self.score.before - self.score.after
        if answers == "agreement":
            worst = self.check.worst
            return math.nan if worst is None or worst.severity is None else worst.severity
        return math.nan if self.drift is None else self.drift

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        worst = self.check.worst
        return {
            "asked": self.asked,
            "macs": self.after.macs,
            "params": self.after.params,
            "bytes": self.after.bytes,
            "shares": {cost: self.share(cost) for cost in ("macs", "params", "size", "latency")},
            "noise": self.noise,
            "verdict": self.verdict,
            "drift": self.drift,
            "worst_head": None if worst is None else worst.to_dict(),
            "heads": [head.to_dict() for head in self.check.heads],
            "findings": [finding.to_dict() for finding in self.check.findings],
            "warnings": list(self.check.warnings),
            "inputs": self.check.inputs,
            "score": None if self.score is None else self.score.to_dict(),
            "passed": self.passed,
            "on_front": self.on_front,
            "plan": self.plan.to_dict(),
        }


@dataclass(frozen=True)
class Unmade:
    """A share that no network was made for.

    Attributes:
        asked: The share.
        reason: Why, in a sentence.
    """

    asked: float
    reason: str

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {"asked": self.asked, "reason": self.reason}


@dataclass(frozen=True)
class Front:
    """Networks for one execution provider, from dear to cheap.

    Attributes:
        provider: Short name and options, as given.
        cost: What must fall.
        answers: What the answers are judged by.
        points: The networks.
        unmade: Shares that no network was made for.
        unmeasured: Why latency was not measured; ``None`` where it was.
        precision: What latency and answers are those of; ``None`` where networks run as they are.
    """

    provider: str
    cost: Cost
    answers: Answers
    points: tuple[SweepPoint, ...]
    unmade: tuple[Unmade, ...] = ()
    unmeasured: str | None = None
    precision: str | None = None

    @property
    def worthwhile(self) -> list[SweepPoint]:
        """The networks that none is both cheaper and better than, in the order of the points."""
        return [point for point in self.points if point.on_front]

    @property
    def knee(self) -> SweepPoint | None:
        """Where the front gives way: up to here a lot is saved for little, beyond it little for a lot."""
        # The untouched network is an end of every front: it costs all and loses nothing.
        found = [point for point in self.worthwhile if point.passed]
        at = knee([1.0, *(point.share(self.cost) for point in found)], [0.0, *(p.loss(self.answers) for p in found)])
        return None if at is None else found[at - 1]

    def pick(self, rule: str) -> SweepPoint:
        """Pick a network of the front that keeps all limits.

        Args:
            rule: ``knee``; a share, for the best answers that cost no more; or a verdict, for the cheapest network
                whose answers are no worse.

        Raises:
            PlanError: There is no such network, or no such rule.
        """
        kept = [point for point in self.worthwhile if point.passed]
        if rule == KNEE:
            if self.knee is None:
                raise self._none("the front has no knee: its networks lie on a line or are too few; name more shares")
            return self.knee
        if rule in _VERDICTS:
            alike = LIKENESSES[: LIKENESSES.index(rule) + 1]
            found = [point for point in kept if point.verdict in alike]
            if not found:
                raise self._none(f"the answers of none are {rule}; name larger shares")
            return min(found, key=lambda point: point.share(self.cost))
        most = share_of(rule) * (1.0 + (CLOSE if self.cost == "latency" else 0.0))
        found = [point for point in kept if point.share(self.cost) <= most + 1e-9]
        if not found:
            raise self._none(f"none that keeps its limits costs {rule} or less")
        return min(found, key=lambda point: point.loss(self.answers))

    @property
    def picks(self) -> dict[str, float | None]:
        """What each rule that is no share picks: the share that the network was made for; ``None`` for none."""
        found: dict[str, float | None] = {}
        for rule in (KNEE, *_VERDICTS):
            try:
                found[rule] = self.pick(rule).asked
            except PlanError:
                found[rule] = None
        return found

    def _none(self, why: str) -> PlanError:
        return PlanError(f"No network for {self.provider} can be picked: {why}.")

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "provider": self.provider,
            "cost": self.cost,
            "answers": self.answers,
            "points": [point.to_dict() for point in self.points],
            "unmade": [one.to_dict() for one in self.unmade],
            "picks": self.picks,
            "unmeasured": self.unmeasured,
            "precision": self.precision,
        }


def front_of(provider: str, cost: Cost, answers: Answers, points: Sequence[SweepPoint], **more: Any) -> Front:
    """Put networks into the order of their cost, and mark those that are worth considering."""
    ordered = sorted(points, key=lambda point: (-point.share(cost), -point.asked))
    # The untouched network is one of them: what costs as much as it, or more, is seldom worth anything.
    shares, losses = [point.share(cost) for point in ordered], [point.loss(answers) for point in ordered]
    kept = pareto_front([1.0, *shares], [0.0, *losses])[1:]
    marked = [replace(point, on_front=bool(good)) for point, good in zip(ordered, kept, strict=True)]
    return Front(provider, cost, answers, tuple(marked), **more)


def share_of(rule: str) -> float:
    """Read a rule that is a share.

    Raises:
        PlanError: It is none, nor any other rule.
    """
    try:
        share = float(rule)
    except ValueError:
        share = math.nan
    if not 0.0 < share <= 1.0:
        raise PlanError(f"There is no rule {rule!r} to pick a network by; use {_RULES}.")
    return share


def is_share(rule: str) -> bool:
    """Whether a rule is a share; raises `PlanError` where it is no rule at all."""
    return rule != KNEE and rule not in _VERDICTS and share_of(rule) > 0.0


@dataclass(frozen=True)
class Sweep:
    """Networks from dear to cheap, for each execution provider.

    Attributes:
        before: Cost of the untouched network.
        fronts: The networks, by provider.
        calibration: What weights were computed from, in words and numbers.
        origin: What was asked for, of which model, where.
        rule: What a network was picked by; ``None`` where none was.
        picked: That network, fitted to all examples and checked; its provider is that of the first front.
        seconds: Wall time of each stage, in seconds.
    """

    before: ModelCost
    fronts: tuple[Front, ...]
    calibration: Mapping[str, Any]
    origin: Origin
    rule: str | None = None
    picked: RewriteResult | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def points_table(self) -> list[dict[str, Any]]:
        """Give a row for each network, provider by provider, for a table or a data frame.

        Returns:
            Rows with the same keys: ``provider``, ``asked``, ``macs``, ``params``, ``bytes``, ``macs_left``,
            ``params_left``, ``size_left`` and ``latency_left`` (shares), ``drift``, ``verdict``, ``score``, ``passed``
            and ``on_front``. What is not known is None.
        """
        return [
            {
                "provider": front.provider,
                "asked": point.asked,
                "macs": point.after.macs,
                "params": point.after.params,
                "bytes": point.after.bytes,
                "macs_left": point.share("macs"),
                "params_left": point.share("params"),
                "size_left": point.share("size"),
                "latency_left": point.latency,
                "drift": point.drift,
                "verdict": point.verdict,
                "score": None if point.score is None else point.score.after,
                "passed": point.passed,
                "on_front": point.on_front,
            }
            for front in self.fronts
            for point in front.points
        ]

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "origin": self.origin.to_dict(),
            "before": self.before.to_dict(),
            "fronts": [front.to_dict() for front in self.fronts],
            "calibration": dict(self.calibration),
            "rule": self.rule,
            "picked": None if self.picked is None else self.picked.to_dict(),
            "seconds": dict(self.seconds),
        }
