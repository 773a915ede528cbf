"""What two networks answer at their heads: how often the same, how far off, and what that is called."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnx_pointwise.check.limits import Likeness, Limits, likeness, raised, severity
from onnx_pointwise.graph import ResolvedShapes
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import (
    Agreement,
    ClassMeter,
    PictureMeter,
    PresenceMeter,
    ValueMeter,
    energy,
    joined,
    plain_errors,
)
from onnx_pointwise.runtime import Array
from onnx_pointwise.study import Head, Heads, Kind

# Fewer answers than this say nothing of how often two networks agree: one more or less would be another verdict.
_ENOUGH = 10
# A name in a sentence is shortened beyond this.
_NAME = 40
_SCORERS = {"Sigmoid", "HardSigmoid", "Softmax"}
_CHOOSERS = {"Softmax", "LogSoftmax", "ArgMax"}
_SOFTMAX_OF_LAST = 13


@dataclass(frozen=True)
class HeadCheck:
    """How one head of the second network compares.

    Attributes:
        value: Name of the value where the answer is given.
        kind: How it is read.
        outputs: The network's outputs that it goes into.
        agreement: How often both say the same, or decibels; None where that cannot be told.
        measure: What the agreement is: ``top-1``, ``F1`` or ``PSNR``.
        counted: Answers that the agreement rests on.
        drift: Relative L2, channel means taken out; None where no finite number was compared.
        worst_drift: The same of the example that is off most.
        drift_bound: What examples like these stay below on average, nine times out of ten; None where that is unknown.
        agreement_bound: Decibels of a picture that they stay above; None for other kinds, and where that is unknown.
        judged_by: Which of both decided: too few answers leave the drift.
        severity: How far along the limits it is: below 1 the same, below 2 close, below 3 changed, below 4 broken.
        alone: Whether no other head goes into its outputs.
        together: F1 of all heads of its kind that go into the same outputs: they give one answer, as the grids of a
            detector do, and the agreement that decides is that of the answer. None where there is no other.
        plain: Decibels that the best linear filter of the input has, for a picture that is made of an image: what the
            network is there for lies beyond. None for other heads.
        limits: What it was judged by: up to where it is the same, close, and only changed.
    """

    value: str
    kind: Kind
    outputs: tuple[str, ...]
    agreement: float | None
    measure: str | None
    counted: int
    drift: float | None
    worst_drift: float | None
    judged_by: Literal["agreement", "drift"]
    severity: float | None
    drift_bound: float | None = None
    agreement_bound: float | None = None
    alone: bool = True
    together: float | None = None
    plain: float | None = None
    limits: tuple[float, float, float] | None = None

    @property
    def whole(self) -> bool:
        """Whether what it is judged by is all that its outputs say."""
        return self.alone or (self.together is not None and self.judged_by == "agreement")

    @property
    def decisive(self) -> float | None:
        """The agreement that it is judged by, where it is not the drift: that of the answer it is a part of."""
        return self.agreement if self.together is None else self.together

    @property
    def verdict(self) -> Likeness | None:
        """What that is called; None where nothing was compared."""
        return None if self.severity is None else likeness(self.severity)

    @property
    def figure(self) -> str:
        """What it was judged by, with its number: F1 0.962."""
        if self.judged_by == "drift" or self.decisive is None:
            return "nothing compared" if self.drift is None else f"drift {self.drift:.3g}"
        if self.measure == "PSNR":
            return f"PSNR {self.decisive:.1f} dB"
        return f"{self.measure} {self.decisive:.3f}"

    @property
    def place(self) -> str:
        """Where it is, for a person: by its output, and by its own name where others go into that, too."""
        value = shortened(self.value, _NAME)
        outputs = " and ".join(shortened(name, _NAME) for name in self.outputs) or value
        return f"{outputs} ({self.kind})" if self.whole else f"{outputs} ({self.kind}, {value})"

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "value": self.value,
            "kind": self.kind,
            "outputs": list(self.outputs),
            "agreement": self.agreement,
            "together": self.together,
            "measure": self.measure,
            "counted": self.counted,
            "drift": self.drift,
            "worst_drift": self.worst_drift,
            "drift_bound": self.drift_bound,
            "agreement_bound": self.agreement_bound,
            "plain_filter": self.plain,
            "limits": None if self.limits is None else list(self.limits),
            "judged_by": self.judged_by,
            "figure": self.figure,
            "severity": self.severity,
            "verdict": self.verdict,
        }


def shortened(name: str, width: int) -> str:
    """Leave out the middle of a long name: its end says what it is, its beginning where."""
    if len(name) <= width:
        return name
    first = (width - 1) // 3
    return f"{name[:first]}…{name[len(name) - (width - 1 - first) :]}"


def worst_of(heads: Sequence[HeadCheck]) -> HeadCheck | None:
    """The head that is off most; None where none was compared."""
    return max((head for head in heads if head.severity is not None), key=_severity, default=None)


def _severity(head: HeadCheck) -> float:
    return head.severity or 0.0


# --- where and how heads are read -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How the agreement of a head is read.

    Attributes:
        head: The head; drift is measured at its value.
        value: Name of the value that says which class or whether something is there.
        axis: Axis of the classes.
        threshold: What lies above it is there.
    """

    head: Head
    value: str
    axis: int
    threshold: float = 0.0

    @property
    def names(self) -> tuple[str, str]:
        """The values that it takes."""
        return self.head.value, self.value


def readings_of(shapes: ResolvedShapes, heads: Heads) -> list[Reading]:
    """Say how each head of a network is read; heads without weight do not count."""
    shared = Counter(head.behind for head in heads.heads)
    return [
        _behind_alone(shapes, head) if _alone(head, shared) else _reading(shapes, head)
        for head in heads.heads
        if head.weight > 0.0
    ]


def _alone(head: Head, shared: Mapping[str | None, int]) -> bool:
    """Whether a head's scores have a Sigmoid of their own, or none."""
    return head.kind == "presence" and (head.behind is None or shared[head.behind] == 1)


def _behind_alone(shapes: ResolvedShapes, head: Head) -> Reading:
    """Read scores behind their Sigmoid where they have one of their own: no arithmetic before it matters then."""
    if head.behind is None:
        node = next((node for node in shapes.model.graph if any(one.name == head.value for one in node.outputs)), None)
        scores = node is not None and node.op_type in _SCORERS  # a value that was named may lie behind it itself
        return Reading(head, head.value, head.axis, 0.5 if scores else 0.0)
    return Reading(head, head.behind, head.behind_axis, 0.5)


def _reading(shapes: ResolvedShapes, head: Head) -> Reading:
    at = Reading(head, head.value, head.axis)
    if head.kind != "classes":
        return at
    found = _chooser(shapes, head)
    if found is None:
        return at
    value, axis = found
    told, here = shapes.shapes.get(value), shapes.shapes.get(head.value)
    if told and here and told[axis % len(told)] == here[head.axis % len(here)]:
        return at
    return Reading(head, value, axis)  # its channels become classes by a Reshape only, or may do so


def _chooser(shapes: ResolvedShapes, head: Head) -> tuple[str, int] | None:
    """The value that a Softmax or ArgMax behind a head compares classes in, and the axis of the classes."""
    if head.behind is not None:
        return head.behind, head.behind_axis
    last = shapes.model.graph.opset_imports.get("", 1) >= _SOFTMAX_OF_LAST
    values = ir.convenience.create_value_mapping(shapes.model.graph, include_subgraphs=False)
    waiting, seen = [values[head.value]], set[ir.Value]()
    while waiting:
        value = waiting.pop(0)
        if value in seen:
            continue
        seen.add(value)
        for node, _ in value.uses():
            if node.op_type in _CHOOSERS:
                usual = 0 if node.op_type == "ArgMax" else -1 if last else 1
                return str(value.name), node.attributes.get_int("axis", usual)
            waiting.extend(node.outputs)
    return None


def without(readings: Sequence[Reading], missing: set[str], outputs: Mapping[str, ir.DataType | None]) -> list[Reading]:
    """Take the outputs for heads where one network lacks a value that the other answers at.

    Args:
        readings: The heads of the first network.
        missing: Values that the second network lacks.
        outputs: Element types of the outputs that can be compared, by name.
    """
    lost = {name for one in readings if missing & set(one.names) for name in one.head.outputs}
    kept = [one for one in readings if not lost & set(one.head.outputs)]
    for name in [name for name in outputs if name in lost]:
        kinds = {one.head.kind for one in readings if name in one.head.outputs}
        kept.append(output_reading(name, kinds.pop() if len(kinds) == 1 else "numbers", outputs[name]))
    return kept


def output_reading(name: str, kind: Kind, dtype: ir.DataType | None) -> Reading:
    """Read an output as a head of its own."""
    if dtype is None or not dtype.is_floating_point():
        kind = kind if kind == "picture" else "numbers"  # classes are chosen already
    axis = -1 if kind == "classes" else 1
    return Reading(Head(name, kind, (name,), axis), name, axis, 0.5)


# --- and measured -----------------------------------------------------------------------------------------------------


class AnswerMeter:
    """Adds up over runs what two networks answer at their heads.

    Args:
        readings: How each head is read.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._rows = [
            (one, _meter(one), ValueMeter(one.head.axis, mixed=one.head.kind == "numbers")) for one in readings
        ]

    def add(self, feeds: Mapping[str, Array], first: Mapping[str, Array], second: Mapping[str, Array]) -> None:
        """Add what one run was given and its values, by name.

        Values that one side lacks, or whose shapes differ, are left out.
        """
        for one, meter, drift in self._rows:
            for name, measure in ((one.value, meter), (one.head.value, drift)):
                reference, moved = first.get(name), second.get(name)
                if measure is None or reference is None or moved is None or reference.shape != moved.shape:
                    continue
                if reference.size and reference.dtype.kind in "fiubV":
                    reference, moved = _countable(reference), _countable(moved)
                    if isinstance(measure, PictureMeter):
                        measure.add(reference, moved, _filtered(feeds, reference, one.axis))
                    else:
                        measure.add(reference, moved)

    def result(self, limits: Limits) -> tuple[HeadCheck, ...]:
        """Give what was found at each head."""
        beside = Counter(name for one, _, _ in self._rows for name in one.head.outputs)
        agreements = [None if meter is None else meter.result() for _, meter, _ in self._rows]
        answers: dict[tuple[Kind, tuple[str, ...]], list[Agreement]] = {}
        for (one, _, _), agreement in zip(self._rows, agreements, strict=True):
            if agreement is not None:
                answers.setdefault((one.head.kind, one.head.outputs), []).append(agreement)
        found = []
        for (one, _, drift), agreement in zip(self._rows, agreements, strict=True):
            parts = answers.get((one.head.kind, one.head.outputs), [])
            whole = joined(parts) if len(parts) > 1 else None
            head = _judged(one.head, agreement, whole, drift, limits)
            found.append(replace(head, alone=all(beside[name] == 1 for name in one.head.outputs)))
        return tuple(found)


def picture_drifts(
    heads: Heads, feeds: Mapping[str, Array], values: Mapping[str, Array], limits: Limits
) -> dict[str, float]:
    """Foretell how far the pictures that a network makes may drift before they are no longer the same.

    Args:
        heads: Where the network answers.
        feeds: Example inputs by name, [N, ...].
        values: What it answers to them, by the names of heads.
        limits: What is the same, by kind of head.

    Returns:
        Relative L2 drift by the name of each head that gives pictures, where all of them are off alike.
    """
    found = {}
    for head in heads.heads:
        reference = values.get(head.value)
        if head.kind != "picture" or reference is None:
            continue
        reference = _countable(reference)
        meter = PictureMeter()
        meter.add(reference, reference, _filtered(feeds, reference, head.axis))
        own, told = energy(reference, head.axis), meter.result()
        if told is not None and own > 0.0:
            _, peak = meter.peak()
            error = peak * 10.0 ** (-raised(limits, told.plain)[0] / 20.0)
            found[head.value] = error / math.sqrt(own * len(reference) / reference.size)
    return found


def _filtered(feeds: Mapping[str, Array], pictures: Array, axis: int) -> Array | None:
    """What a linear filter makes of the image among the inputs that comes nearest; None where there is none."""
    errors = [plain_errors(_countable(values), pictures, axis) for values in feeds.values()]
    found = [one for one in errors if one is not None]
    return np.min(found, axis=0) if found else None


def _countable(values: Array) -> Array:
    """What NumPy itself calculates with: bfloat16 is a type of another library."""
    return values.astype("float32") if values.dtype.kind == "V" else values


def _meter(reading: Reading) -> ClassMeter | PresenceMeter | PictureMeter | None:
    kind = reading.head.kind
    if kind == "classes":
        return ClassMeter(reading.axis)
    if kind == "presence":
        return PresenceMeter(reading.threshold)
    return PictureMeter() if kind == "picture" else None


def _judged(
    head: Head, agreement: Agreement | None, whole: Agreement | None, meter: ValueMeter, limits: Limits
) -> HeadCheck:
    """Judge a head by its agreement, or that of the whole answer it is a part of; by its drift where that is few."""
    moved = meter.result()
    by = agreement if whole is None or agreement is None else whole
    enough = by is not None and (head.kind == "picture" or by.counted >= _ENOUGH)
    bad: float | None = None
    marks = limits["numbers"]
    if moved is not None:
        if enough and by is not None and math.isfinite(moved.relative):
            marks = raised(limits, by.plain) if head.kind == "picture" else limits[head.kind]
            bad = severity(head.kind, by.value, marks)
        else:
            enough, bad = False, severity("numbers", moved.relative, marks)
    return HeadCheck(
        value=head.value,
        kind=head.kind,
        outputs=head.outputs,
        agreement=None if agreement is None else agreement.value,
        measure=None if agreement is None else agreement.measure,
        counted=0 if agreement is None else agreement.counted,
        drift=None if moved is None else moved.relative,
        worst_drift=None if moved is None else moved.worst,
        judged_by="agreement" if enough and moved is not None else "drift",
        severity=bad,
        drift_bound=None if moved is None else moved.bound,
        agreement_bound=None if agreement is None else agreement.bound,
        together=None if whole is None or agreement is None else whole.value,
        plain=None if agreement is None else agreement.plain,
        limits=None if bad is None else marks,
    )
