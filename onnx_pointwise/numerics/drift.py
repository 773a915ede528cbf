"""How far outputs moved: relative L2 error, its decibels, largest difference, cosine, agreement of top classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.jsonable import json_ready

Array = NDArray[Any]

_NUMBERS = {"f", "i", "u", "b", "V"}  # NumPy's kinds; V is what ml_dtypes calls bfloat16


@dataclass(frozen=True)
class Drift:
    """Distance of one output from its reference, over all runs.

    Attributes:
        relative_l2: ||y - r|| / ||r|| over the values that are finite in both; infinite where only r is all zero.
        decibel: 20 log10(relative_l2); None where that is not finite.
        max_abs: Largest |y - r|.
        cosine: <y, r> / (||y|| ||r||); None where one of them is all zero.
        top1: Share of items whose largest class score is at the same class; None where the output holds no scores.
        values: Numbers compared.
        non_finite_before: NaN and infinite values in the reference.
        non_finite_after: The same in the output.
        non_finite_differs: Places where one is not finite and the other is finite, or not finite in another way.
    """

    relative_l2: float
    decibel: float | None
    max_abs: float
    cosine: float | None
    top1: float | None
    values: int
    non_finite_before: int
    non_finite_after: int
    non_finite_differs: int

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values; what is infinite is None, since JSON knows no infinity."""
        return asdict(self) | {"relative_l2": self.relative_l2 if math.isfinite(self.relative_l2) else None}


class DriftMeter:
    """Adds up drift over runs, so that no outputs need to be kept."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, reference: Mapping[str, NDArray[Any]], output: Mapping[str, NDArray[Any]]) -> None:
        """Add one run's outputs by name; those that one side lacks, or whose shapes differ, are left out."""
        for name, first in reference.items():
            second = output.get(name)
            if second is not None and first.shape == second.shape and {first.dtype.kind, second.dtype.kind} <= _NUMBERS:
                self._sums.setdefault(name, _Sums()).add(first, second)

    def result(self) -> dict[str, Drift]:
        """Give the drift of each output that was compared at least once."""
        return {name: sums.result() for name, sums in self._sums.items()}


class _Sums:
    def __init__(self) -> None:
        self.values = self.before = self.after = self.differs = 0
        self.error = self.reference = self.output = self.product = self.largest = 0.0
        self.items = self.agreed = 0

    def add(self, first: NDArray[Any], second: NDArray[Any]) -> None:
        r, y = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
        finite_r, finite_y = np.isfinite(r), np.isfinite(y)
        both = finite_r & finite_y
        same = np.isnan(r) & np.isnan(y) | (r == y)
        self.values += r.size
        self.before += int(r.size - np.count_nonzero(finite_r))
        self.after += int(y.size - np.count_nonzero(finite_y))
        self.differs += int(np.count_nonzero(~both & ~same))
        r, y = r[both], y[both]
        error = y - r
        self.error += float(error @ error)
        self.reference += float(r @ r)
        self.output += float(y @ y)
        self.product += float(r @ y)
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))
        if _holds_scores(first):
            scores = first.reshape(first.shape[:2]), second.reshape(first.shape[:2])
            self.items += len(first)
            self.agreed += int(np.count_nonzero(scores[0].argmax(1) == scores[1].argmax(1)))

    def result(self) -> Drift:
        # Without a reference to compare with, no error at all is the only small one.
        relative = math.sqrt(self.error / self.reference) if self.reference else (math.inf if self.error else 0.0)
        norms = math.sqrt(self.reference) * math.sqrt(self.output)
        return Drift(
            relative_l2=relative,
            decibel=20 * math.log10(relative) if 0 < relative < math.inf else None,
            max_abs=self.largest,
            cosine=min(1.0, max(-1.0, self.product / norms)) if norms else None,
            top1=self.agreed / self.items if self.items else None,
            values=self.values,
            non_finite_before=self.before,
            non_finite_after=self.after,
            non_finite_differs=self.differs,
        )


def _holds_scores(output: NDArray[Any]) -> bool:
    """Tell whether an output looks like class scores: [N, C] or [N, C, 1, 1] of floating-point numbers, C above 1."""
    rest = output.shape[2:]
    return (
        output.ndim >= 2
        and len(output) > 0
        and output.shape[1] > 1
        and math.prod(rest) == 1
        and output.dtype.kind == "f"
    )


# Deviations of a value at which errors are cut, unless the value itself goes further.
_SATURATION = 5.0
# Channels in the order of their deviations are of one unit up to a step by more than this factor.
_APART = 5.0
#: Numbers of each channel that its unit is told from, at least.
TOLD = 16
# What of a channel's size is rounding.
_ROUNDING = 1e-5
#: Share of its energy below which a value does not vary.
CONSTANT = 1e-12


def centred(values: Array, axis: int) -> Array:
    """Take out what the numbers of a channel have in common, which says nothing of an answer.

    Args:
        values: [N, ...].
        axis: Axis of the channels.

    Returns:
        float64, the same shape; less the mean of each channel, and stretched by what a mean of few numbers takes with
        it, so that the energy does not depend on how many there are. Where a channel holds one number, less the mean of
        all.
    """
    truth = values.astype(np.float64)
    if truth.size == 0 or not truth.ndim:
        return truth
    others = tuple(index for index in range(truth.ndim) if index != axis % truth.ndim)
    count = math.prod(truth.shape[index] for index in others)
    if count == 1:
        return cast(Array, truth - truth.mean())
    return cast(Array, (truth - truth.mean(axis=others, keepdims=True)) * math.sqrt(count / (count - 1)))


def in_one_unit(deviations: Array) -> Array:
    """What channels are to be multiplied by where some are measured in other units than the rest.

    One value may hold pixels beside shares, or metres beside degrees; in one norm over all of it, the smaller ones
    could say anything. Sorted by deviation, a step by more than a factor of five is one between units: the largest
    such step in the heads of thirteen trained networks is 1.5.

    Args:
        deviations: Standard deviation of each channel, [C].

    Returns:
        Factors [C] that bring each unit to the deviation of the largest one, which channels have in the root mean
        square; 1 for that one and for channels that do not vary.
    """
    factors = np.ones(len(deviations))
    order = np.argsort(-deviations, kind="stable")[: np.count_nonzero(deviations > 0.0)]
    falling = deviations[order]
    units = np.split(order, np.flatnonzero(falling[:-1] > _APART * falling[1:]) + 1)
    sizes = [math.sqrt(float((deviations[unit] ** 2).mean())) for unit in units if len(unit)]
    for unit, size in zip(units[1:], sizes[1:], strict=True):
        factors[unit] = sizes[0] / size
    return factors


def units(values: Array, axis: int = 1) -> Array | None:
    """The factors of `in_one_unit` for a value, to be multiplied with it.

    Args:
        values: [N, ...].
        axis: Axis of the channels.

    Returns:
        float64 that broadcasts along the channels; None where all are of one unit, and where there are too few numbers
        of each to tell.
    """
    if values.ndim < 2 or axis % values.ndim == 0 or values.size < TOLD * values.shape[axis]:
        return None
    others = tuple(index for index in range(values.ndim) if index != axis % values.ndim)
    truth = values.astype(np.float64)
    factors = in_one_unit(varying(truth.std(axis=others), np.sqrt((truth**2).mean(axis=others))))
    if np.all(factors == 1.0):
        return None
    return factors.reshape([-1 if index == axis % values.ndim else 1 for index in range(values.ndim)])


def varying(deviations: Array, sizes: Array) -> Array:
    """Deviations of channels, those of rounding taken for none."""
    return np.where(deviations > _ROUNDING * sizes, deviations, 0.0)


def energy(values: Array, axis: int = 1, factors: Array | None = None) -> float:
    """Squared deviation of a value, channel means taken out, for each example; 0 for one that does not vary.

    Args:
        values: [N, ...].
        axis: Axis of the channels.
        factors: What to multiply it by, see `units`; nothing if None.
    """
    values = values if factors is None else values * factors
    spread = centred(values, axis)
    whole = float(np.vdot(spread, spread))
    truth = values.astype(np.float64)
    return whole / max(len(values), 1) if whole > CONSTANT * float(np.vdot(truth, truth)) else 0.0


def relative_drift(reference: Array, moved: Array, axis: int = 1, factors: Array | None = None) -> float | None:
    """Relative squared drift of one value, channel means taken out.

    A number that is off by many times the value's deviation is as wrong as it can be: larger errors, as an exponential
    at the end of a network makes of small ones, count no more.

    Args:
        reference: The value in the untouched network, [N, ...].
        moved: The value to compare, the same shape.
        axis: Axis of the channels.
        factors: What to multiply both by, see `units`; nothing if None.

    Returns:
        ||moved - reference||^2 / ||reference - mean||^2, errors cut at a few deviations or the largest one; None for a
        value that does not vary, of which nothing can be said.
    """
    truth, moved = reference.astype(np.float64), moved.astype(np.float64)  # squares of narrow types overflow
    if factors is not None:
        truth, moved = truth * factors, moved * factors
    spread = centred(truth, axis)
    whole = float(np.vdot(spread, spread))
    if not whole > CONSTANT * float(np.vdot(truth, truth)):
        return None
    error = np.nan_to_num(np.abs(moved - truth), nan=np.inf)
    most = max(_SATURATION * math.sqrt(whole / spread.size), float(np.abs(spread).max()))
    return float((np.minimum(error, most) ** 2).sum()) / whole


def weighted_drift(shares: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Mean of the relative squared drifts of several values.

    Args:
        shares: What `relative_drift` gave for each.
        weights: How much each counts.

    Returns:
        The mean over those that vary; None where none does.
    """
    told = [(share, weight) for share, weight in zip(shares, weights, strict=True) if share is not None]
    total = sum(weight for _, weight in told)
    return sum(share * weight for share, weight in told) / total if total > 0.0 else None
