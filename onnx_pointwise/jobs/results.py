"""What a rewrite hands over: the model, its plan and the evidence about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnx_pointwise.check import CheckResult, Likeness
from onnx_pointwise.fitting import Weights
from onnx_pointwise.graph import ModelCost, Plan, Refusal, Shape, SiteCost, save
from onnx_pointwise.jobs.curves import Curve
from onnx_pointwise.jobs.shapes import SitePiece, SiteShape
from onnx_pointwise.jobs.versions import Deployed
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import Form
from onnx_pointwise.runtime import Origin

# Why no drift is predicted.
_TOO_FEW = "There were too few examples to hold any back, so what they promise of other inputs cannot be trusted."


@dataclass(frozen=True)
class SiteResult:
    """What a rewrite did to one convolution.

    Attributes:
        name: The site's name.
        form: The form chosen, or ``None`` where it stays dense.
        rank: The rank chosen, or ``None``.
        error: Predicted relative L2 error of the site's output.
        before: Cost before; ``None`` where it is not known.
        after: Cost after; the same as before where the site stays dense.
        refusal: Why it stays dense.
        moment: How closely its inputs were looked at: ``exact``, ``stationary`` or ``channels``, see
            ``collect.SiteMoments``; ``None`` where only the kernel was.
        latency: Latency after as a share of before, by measurement of the site; ``None`` where it was not measured.
        corrected: Whether it stays whole, with weights that make up for what those before it have changed.
        shape: What the convolution is.
        pieces: The convolutions in its place, in the order in which they run; none where it stays dense.
        curves: What each rank would lose, by form; none where nothing had to be decided.
    """

    name: str
    form: Form | None
    rank: int | tuple[int, int] | None
    error: float | None
    before: SiteCost | None
    after: SiteCost | None
    refusal: Refusal | None
    moment: str | None = None
    latency: float | None = None
    corrected: bool = False
    shape: SiteShape | None = None
    pieces: tuple[SitePiece, ...] = ()
    curves: tuple[Curve, ...] = ()

    def row(self) -> dict[str, Any]:
        """Give the same as one flat row, see `RewriteResult.sites_table`."""
        before, after, shape = self.before, self.after, self.shape
        known = before is not None and after is not None and before.macs > 0
        return {
            "name": self.name,
            "kernel": None if shape is None else shape.kernel,
            "in_channels": None if shape is None else shape.in_channels,
            "out_channels": None if shape is None else shape.out_channels,
            "form": self.form,
            "rank": self.rank,
            "macs_before": None if before is None else before.macs,
            "macs_after": None if after is None else after.macs,
            "macs_left": after.macs / before.macs if known and before and after else None,
            "params_before": None if before is None else before.params,
            "params_after": None if after is None else after.params,
            "error": self.error,
            "latency_left": self.latency,
            "refusal": None if self.refusal is None else self.refusal.code,
            "reason": None if self.refusal is None else self.refusal.reason,
        }

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "name": self.name,
            "shape": None if self.shape is None else self.shape.to_dict(),
            "form": self.form,
            "rank": list(self.rank) if isinstance(self.rank, tuple) else self.rank,
            "error": self.error,
            "macs_before": None if self.before is None else self.before.macs,
            "macs_after": None if self.after is None else self.after.macs,
            "params_before": None if self.before is None else self.before.params,
            "params_after": None if self.after is None else self.after.params,
            "refusal": None if self.refusal is None else self.refusal.to_dict(),
            "moment": self.moment,
            "corrected": self.corrected,
            "latency": self.latency,
            "pieces": [piece.to_dict() for piece in self.pieces],
            "curves": [curve.to_dict() for curve in self.curves],
        }


@dataclass(frozen=True)
class Score:
    """The user's own score of both models.

    Attributes:
        before: Of the source.
        after: Of the rewritten model.
        max_loss: How much it may fall; ``None`` for no limit.
    """

    before: float
    after: float
    max_loss: float | None

    @property
    def passed(self) -> bool:
        """Whether it fell no further than it may."""
        return self.max_loss is None or self.before - self.after <= self.max_loss

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {"before": self.before, "after": self.after, "max_loss": self.max_loss, "passed": self.passed}


@dataclass(frozen=True)
class SearchStep:
    """A network that was made on the way to the cheapest one.

    Attributes:
        share: What it leaves of the whole network's latency or MACs, by what its sites promise.
        latency: Its latency as a share of before, as measured; ``None`` where it was not.
        rehearsed: How far its answers went before its weights were made, as a share of how far they may, at the head
            that is off most; ``None`` where nothing was rehearsed.
        measured: The same of the network itself; a network that failed for another reason is put above 1, too.
        passed: Whether it keeps the limits.
        verdict: What its answers are called.
    """

    share: float
    latency: float | None
    rehearsed: float | None
    measured: float
    passed: bool
    verdict: Likeness | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "share": self.share,
            "latency": self.latency,
            "rehearsed": self.rehearsed,
            "measured": self.measured,
            "passed": self.passed,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Search:
    """How the cheapest network within limits was found.

    Attributes:
        limits: What was asked for.
        resource: What had to fall: ``latency`` or ``macs``.
        steps: The networks that were made.
        reason: Why the network stays as it was; ``None`` where it does not.
    """

    limits: Mapping[str, Any]
    resource: str
    steps: tuple[SearchStep, ...]
    reason: str | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "limits": dict(self.limits),
            "resource": self.resource,
            "steps": [step.to_dict() for step in self.steps],
            "reason": self.reason,
        }


@dataclass(frozen=True)
class RewriteResult:
    """A rewritten model and the evidence about it.

    Attributes:
        model: The rewritten model; the source is left as it was.
        plan: The plan that made it; replaying it gives the same bytes.
        sites: Every convolution of the model, in graph order.
        before: Cost of the source.
        after: Cost of the rewritten model.
        check: Both models compared in ONNX Runtime; ``None`` where ``check=False`` was asked for.
        score: The user's own score of both; ``None`` without one.
        calibration: What the weights were computed from, in words and numbers.
        calibrated: What the refit did; ``None`` without example inputs.
        input_shapes: The concrete input shapes behind all costs.
        assumed_inputs: Inputs whose open dimensions had to be assumed.
        origin: What was asked for, of which model, where.
        unmeasured: Why the plan was made by arithmetic alone; ``None`` where latency was measured, or where there was
            nothing to plan.
        search: How it was searched for; ``None`` where a budget or a plan said how far to go.
        deployed: What is deployed, and what else could be; ``None`` where networks run as they are.
        seconds: Wall time of each stage, in seconds.
    """

    model: ir.Model
    plan: Plan
    sites: tuple[SiteResult, ...]
    before: ModelCost
    after: ModelCost
    check: CheckResult | None
    score: Score | None
    calibration: Mapping[str, Any]
    calibrated: Weights | None
    input_shapes: Mapping[str, Shape]
    assumed_inputs: tuple[str, ...]
    origin: Origin
    unmeasured: str | None = None
    search: Search | None = None
    deployed: Deployed | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether check and score found nothing wrong, or were not asked for."""
        return (self.check is None or self.check.passed) and (self.score is None or self.score.passed)

    @property
    def verdict(self) -> Likeness | None:
        """How alike the answers of both models are; ``None`` where they were not compared."""
        return None if self.check is None else self.check.verdict

    def sites_table(self) -> list[dict[str, Any]]:
        """Give a row for each convolution, in graph order, for a table or a data frame.

        Returns:
            Rows with the same keys: ``name``, ``kernel``, ``in_channels``, ``out_channels``, ``form``, ``rank``,
            ``macs_before``, ``macs_after``, ``macs_left`` (a share), ``params_before``, ``params_after``, ``error``
            (relative L2), ``latency_left`` (a share), ``refusal`` (its code) and ``reason``. What is not known is None.
        """
        return [site.row() for site in self.sites]

    def save(self, path: str | Path, *, use_external_data_format: bool | None = None) -> None:
        """Write the rewritten model; see ``model_io.save``."""
        save(self.model, path, use_external_data_format=use_external_data_format)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "origin": self.origin.to_dict(),
            "verdict": self.verdict,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "sites": [site.to_dict() for site in self.sites],
            "check": None if self.check is None else self.check.to_dict(),
            "score": None if self.score is None else self.score.to_dict(),
            "calibration": dict(self.calibration) | self._calibrated(),
            "plan": self.plan.to_dict(),
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "assumed_inputs": list(self.assumed_inputs),
            "unmeasured": self.unmeasured,
            "search": None if self.search is None else self.search.to_dict(),
            "deployed": None if self.deployed is None else self.deployed.to_dict(),
            "seconds": dict(self.seconds),
        }

    def _calibrated(self) -> dict[str, Any]:
        if self.calibrated is None:
            return {}
        return {
            "predicted_drift": self.calibrated.predicted,
            **({"predicted_drift_missing": _TOO_FEW} if self.calibrated.predicted is None else {}),
            "held_back_drift": self.calibrated.drift,
            "held_back_drift_unrefitted": self.calibrated.unrefitted,
            "held_back_drift_of_dropped_refit": self.calibrated.dropped,
            "refitted": bool(self.calibrated.refits),
        }
