"""What a check found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from onnx_pointwise.check.answers import HeadCheck, worst_of
from onnx_pointwise.check.limits import Likeness, Limits, limit_of
from onnx_pointwise.check.sites import SiteCheck
from onnx_pointwise.check.trials import Shapes
from onnx_pointwise.graph import ModelCost
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import Drift
from onnx_pointwise.runtime import AssignedNode, LatencyComparison, Origin

#: Where inputs came from: given by the user, held back from the example inputs, those that the weights were made from,
#: synthetic images, or random numbers.
Inputs = Literal["given", "held_back", "examples", "drawn", "random"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: ``declared_inputs``, ``declared_outputs``, ``output_shape``, ``output_dtype``, ``does_not_run``,
            ``non_finite``, ``nothing_compared``, ``broken``, ``not_alike``, ``drift``, ``provider_differs`` or, after
            a rewrite, ``slower``.
        sentence: The same for a person.
        numbers: What it was decided on.
    """

    code: str
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {"code": self.code, "sentence": self.sentence, "numbers": dict(self.numbers)}


@dataclass(frozen=True)
class Trial:
    """One set of input shapes that both networks were given.

    Attributes:
        input_shapes: Shape by input name.
        shapes_equal: Whether all outputs agreed in shape and element type; None where the trial was skipped.
        skipped: Why the first network itself does not run at these shapes; None where it does.
    """

    input_shapes: Shapes
    shapes_equal: bool | None
    skipped: str | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        shapes = {name: list(shape) for name, shape in self.input_shapes.items()}
        return {"input_shapes": shapes, "shapes_equal": self.shapes_equal, "skipped": self.skipped}


@dataclass(frozen=True)
class ProviderCheck:
    """What the check found on one execution provider.

    Attributes:
        provider: Short name and options, as given.
        device: The device's name, where it is known.
        software: Whether the device is emulated on the CPU; such a device is not timed.
        shapes_equal: Whether all outputs agreed in name, shape and element type in every trial that ran.
        heads: How each head of the second network compares with the first on the same provider.
        drift: Drift of each output from the first network on the same provider; items of a sequence by number.
        drift_from_cpu: Drift of each output from the first network on the CPU; None on the CPU itself.
        dense_from_cpu: Drift of the first network on this provider from itself on the CPU.
        rewritten_from_cpu: Drift of the second network on this provider from itself on the CPU: the provider's own
            error, which a kernel that is wrong for some number of channels makes large.
        trials: The input shapes that were tried.
        nodes_off: Nodes of the second network that run on another provider.
        nodes_off_before: The same of the first network.
        latency: Both networks timed in turns; None where that was not asked for or means nothing.
    """

    provider: str
    device: str | None
    software: bool
    shapes_equal: bool
    heads: tuple[HeadCheck, ...]
    drift: Mapping[str, Drift]
    drift_from_cpu: Mapping[str, Drift] | None
    dense_from_cpu: Mapping[str, Drift] | None
    rewritten_from_cpu: Mapping[str, Drift] | None
    trials: tuple[Trial, ...]
    nodes_off: tuple[AssignedNode, ...]
    nodes_off_before: tuple[AssignedNode, ...]
    latency: LatencyComparison | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "provider": self.provider,
            "device": self.device,
            "software": self.software,
            "shapes_equal": self.shapes_equal,
            "heads": [head.to_dict() for head in self.heads],
            "drift": _drift_dict(self.drift),
            "drift_from_cpu": _drift_dict(self.drift_from_cpu),
            "dense_from_cpu": _drift_dict(self.dense_from_cpu),
            "rewritten_from_cpu": _drift_dict(self.rewritten_from_cpu),
            "trials": [trial.to_dict() for trial in self.trials],
            "nodes_off": [node.to_dict() for node in self.nodes_off],
            "nodes_off_before": [node.to_dict() for node in self.nodes_off_before],
            "latency": None if self.latency is None else self.latency.to_dict(),
        }


@dataclass(frozen=True)
class CheckResult:
    """The verdict on a pair of networks, and what it rests on.

    Attributes:
        passed: Whether there is no finding.
        findings: What is not as it should be.
        warnings: What makes the result worth less, in sentences.
        before: Cost of the first network, at the input shapes of the first trial.
        after: Cost of the second network.
        providers: One result for each execution provider.
        origin: What was asked for, of which models, where.
        max_drift: The limit on the drift, for every output or by the name of an output or head; None where nothing
            limited it.
        limits: Up to where a head of each kind is the same, close, and only changed.
        inputs: What both networks ran on.
        not_compared: Why an output was not compared, by its name.
        sites: What each convolution that is computed otherwise did; None where that was not asked for.
    """

    passed: bool
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    before: ModelCost
    after: ModelCost
    providers: tuple[ProviderCheck, ...]
    origin: Origin
    max_drift: float | Mapping[str, float] | None
    limits: Limits
    inputs: Inputs
    not_compared: Mapping[str, str]
    sites: tuple[SiteCheck, ...] | None = None

    @property
    def heads(self) -> tuple[HeadCheck, ...]:
        """How each head compares on the first provider."""
        return self.providers[0].heads if self.providers else ()

    @property
    def worst(self) -> HeadCheck | None:
        """The head that is off most, on any provider; None where none was compared."""
        return worst_of([head for result in self.providers for head in result.heads])

    @property
    def verdict(self) -> Likeness | None:
        """What the answers are called: the verdict on the head that is off most; None where none was compared."""
        worst = self.worst
        return None if worst is None else worst.verdict

    @property
    def shapes_equal(self) -> bool:
        """Whether declared and actual names, shapes and element types agree, on every provider."""
        declared = all(not finding.code.startswith("declared") for finding in self.findings)
        return declared and all(result.shapes_equal for result in self.providers)

    @property
    def drift(self) -> Mapping[str, Drift]:
        """Drift of each output on the first provider."""
        return self.providers[0].drift if self.providers else {}

    @property
    def latency(self) -> LatencyComparison | None:
        """Latency of both networks on the first provider."""
        return self.providers[0].latency if self.providers else None

    @property
    def unlimited(self) -> list[str]:
        """Outputs that were compared, but whose drift nothing limited."""
        return [name for name in self.drift if limit_of(name, self.max_drift) is None]

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "worst": None if self.worst is None else {"place": self.worst.place, "figure": self.worst.figure},
            "inputs": self.inputs,
            "heads": [head.to_dict() for head in self.heads],
            "limits": {kind: list(numbers) for kind, numbers in self.limits.items()},
            "not_compared": dict(self.not_compared),
            "sites": None if self.sites is None else [site.to_dict() for site in self.sites],
            "shapes_equal": self.shapes_equal,
            "drift": _drift_dict(self.drift),
            "max_drift": dict(self.max_drift) if isinstance(self.max_drift, Mapping) else self.max_drift,
            "findings": [finding.to_dict() for finding in self.findings],
            "warnings": list(self.warnings),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "providers": [result.to_dict() for result in self.providers],
            "origin": self.origin.to_dict(),
        }


def _drift_dict(drift: Mapping[str, Drift] | None) -> dict[str, Any] | None:
    return None if drift is None else {name: value.to_dict() for name, value in drift.items()}
