"""How often two networks say the same: same classes, the same things found, PSNR of pictures, drift of one value.

Each meter adds up over runs, so that no outputs need to be kept. What is not finite never agrees; where the reference
itself is not finite there is nothing to agree with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.numerics.drift import CONSTANT, TOLD, in_one_unit, varying

Array = NDArray[Any]

#: Pictures that are equal, or nearly, count as this many decibels.
MOST_DECIBELS = 120.0


#: How sure a bound on an average is, one-sided.
SURE = 0.9


def margin(values: Sequence[float]) -> float | None:
    """How far the average of all examples may lie beyond that of these, as sure as `SURE` (Student 1908).

    Args:
        values: One figure for each example; they are taken to be independent.

    Returns:
        The margin; None for fewer than two, of which nothing is known.
    """
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(stdtrit(len(values) - 1, SURE)) * spread


@dataclass(frozen=True)
class Agreement:
    """How often two networks say the same.

    Attributes:
        value: Share that agrees, or decibels of a picture.
        measure: ``top-1``, ``F1`` or ``PSNR``.
        counted: What it is taken from: things found by either network, answers that are not the commonest class in
            both, pictures. Few of them say little.
        bound: Decibels that pictures like these have more of on average, as sure as `SURE`; None where that is unknown.
        plain: Decibels that the best linear filter of the input has, on average; None where that is unknown.
    """

    value: float
    measure: str
    counted: int
    bound: float | None = None
    plain: float | None = None


def joined(parts: Sequence[Agreement]) -> Agreement | None:
    """F1 of several parts as one: what both found and what either found are added up.

    Args:
        parts: The parts' agreements, each an F1.

    Returns:
        Their F1; None where something else is among them, or nothing.
    """
    if not parts or any(part.measure != "F1" for part in parts):
        return None
    either = sum(part.counted for part in parts)
    # F1 = 2 both / (both + either), where `either` counts what at least one of two networks found.
    both = sum(part.counted * part.value / (2.0 - part.value) for part in parts)
    return Agreement(2.0 * both / (both + either), "F1", either) if either else None


class ClassMeter:
    """Agreement on the largest of several classes.

    Where an example is answered at many places, most of them say "background", and agreement there is worth nothing:
    then it is F1 over the places that do not hold the commonest class, every other class counted alike by place.

    Args:
        axis: Axis of the classes.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._places = self._examples = self._agreed = 0
        self._first = self._second = self._both = np.zeros(0, np.int64)

    def add(self, reference: Array, output: Array) -> None:
        """Add one run's values, [N, ...] each."""
        axis = self._axis % reference.ndim
        classes = reference.shape[axis]
        first, second = (np.moveaxis(values, axis, -1).reshape(-1, classes) for values in (reference, output))
        told, said = (np.asarray(np.isfinite(values).all(axis=1)) for values in (first, second))
        said = said[told]
        one, other = first[told].argmax(1), second[told].argmax(1)
        agreed = said & (one == other)
        self._places += len(one)
        self._examples += len(reference)
        self._agreed += int(np.count_nonzero(agreed))
        self._first = _plus(self._first, np.bincount(one, minlength=classes))
        self._second = _plus(self._second, np.bincount(other[said], minlength=classes))
        self._both = _plus(self._both, np.bincount(one[agreed], minlength=classes))

    def result(self) -> Agreement | None:
        """Give the agreement over all runs; None where nothing was compared."""
        if not self._places:
            return None
        rest = np.arange(len(self._first)) != int(self._first.argmax())
        told, both = int(self._first[rest].sum() + self._second[rest].sum()), int(self._both[rest].sum())
        if self._places <= self._examples or not told:
            return Agreement(self._agreed / self._places, "top-1", told - both)
        return Agreement(2.0 * both / told, "F1", told - both)


def _plus(one: Array, other: Array) -> Array:
    """Add counts of which one may know fewer classes."""
    if len(one) < len(other):
        one, other = other, one
    return np.asarray(one + np.pad(other, (0, len(one) - len(other))))


class PresenceMeter:
    """F1 of what lies above a threshold: how often both networks find the same.

    Args:
        threshold: What is found lies above it: one half behind a Sigmoid, 0 before it.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._found = self._both = 0

    def add(self, reference: Array, output: Array) -> None:
        """Add one run's values, of one shape."""
        told = ~np.isnan(reference)
        one, other = (reference > self._threshold) & told, (output > self._threshold) & told
        self._found += int(np.count_nonzero(one)) + int(np.count_nonzero(other))
        self._both += int(np.count_nonzero(one & other))

    def result(self) -> Agreement | None:
        """Give the agreement over all runs; None where neither network found anything."""
        if not self._found:
            return None
        return Agreement(2.0 * self._both / self._found, "F1", self._found - self._both)


#: Ranges of pictures: least and largest value.
_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
# Networks overshoot: a picture may leave its range by this share of it, and go further at one of a hundred places.
_OVERSHOOT, _SHARE = 0.25, 0.01
# A picture varies by this share of its range at least; what does not is none, and is measured by its own deviation.
_CONTRAST = 0.1
# Deviations in the range of what has no range of its own.
_SPAN = 4.0


class PictureMeter:
    """PSNR of pictures, the mean over examples: the range is that of the reference, 0 to 1, -1 to 1 or 0 to 255."""

    def __init__(self) -> None:
        self._errors: list[list[float]] = []
        self._plain: list[float] = []
        self._whole = _Spread()
        self._outside = np.zeros(len(_RANGES), np.int64)
        self._integer = False

    def add(self, reference: Array, output: Array, plain: Array | None = None) -> None:
        """Add one run's pictures, [N, ...] each.

        Args:
            reference: What they should be.
            output: What they are.
            plain: The mean squared error of the best linear filter of each one's input, [N], see `plain_errors`.
        """
        self._integer |= reference.dtype.kind in "iu"
        missing = np.full(len(reference), np.nan)
        for one, other, error in zip(reference, output, missing if plain is None else plain, strict=True):
            first, second = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
            told = np.isfinite(first)
            first, second = first[told], second[told]
            if not first.size:
                continue
            second = np.nan_to_num(second, nan=np.inf, posinf=np.inf, neginf=-np.inf)
            self._whole.add(first)
            self._outside += [_beyond(first, *bounds) for bounds in _RANGES]
            cut = [float(np.mean((np.clip(second, *bounds) - np.clip(first, *bounds)) ** 2)) for bounds in _RANGES]
            self._errors.append([*cut, float(np.mean((second - first) ** 2))])
            self._plain.append(float(error))

    def peak(self) -> tuple[int, float]:
        """Which range the reference has, and how wide it is; behind the last one that of its own deviation."""
        if self._integer:
            return len(_RANGES) - 1, _RANGES[-1][1]
        spread = math.sqrt(self._whole.squares / self._whole.count) if self._whole.count else 0.0
        for index, (low, high) in enumerate(_RANGES):
            if self._outside[index] <= _SHARE * self._whole.count and spread >= _CONTRAST * (high - low):
                return index, high - low
        return len(_RANGES), _SPAN * spread

    def result(self) -> Agreement | None:
        """Give the agreement over all runs; None where nothing was compared, or nothing varies."""
        index, peak = self.peak()
        if not self._errors or not peak:
            return None
        decibels = _decibels([row[index] for row in self._errors], peak)
        mean, more = float(np.mean(decibels)), margin(decibels)
        plain = None if np.isnan(self._plain).any() else float(np.mean(_decibels(self._plain, peak)))
        return Agreement(mean, "PSNR", len(decibels), None if more is None else mean - more, plain)


def _decibels(errors: Sequence[float], peak: float) -> list[float]:
    """PSNR of mean squared errors; one without bounds is as bad as none of the picture left."""
    least = peak**2 * 10.0 ** (-MOST_DECIBELS / 10.0)
    return [max(0.0, 10.0 * math.log10(peak**2 / max(error, least))) for error in errors]


def _beyond(numbers: Array, low: float, high: float) -> int:
    more = _OVERSHOOT * (high - low)
    return int(np.count_nonzero((numbers < low - more) | (numbers > high + more)))


@dataclass
class _Spread:
    """Count, mean and squares around the mean of numbers that come in parts."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, numbers: Array) -> None:
        count, mean = numbers.size, float(numbers.mean())
        squares = float(((numbers - mean) ** 2).sum())
        total = self.count + count
        self.squares += squares + (mean - self.mean) ** 2 * self.count * count / total
        self.mean += (mean - self.mean) * count / total
        self.count = total


@dataclass(frozen=True)
class ValueDrift:
    """How far one value moved, channel means taken out.

    Attributes:
        relative: ||y - r|| / ||r - mean||, the mean that of each channel; by ||r|| where r does not vary. Infinite
            where something is not finite any more.
        worst: The same of the example that moved most, relative to what an example has on average.
        examples: How many examples there were.
        bound: What examples like these stay below on average, as sure as `SURE`; None where that is unknown.
    """

    relative: float
    worst: float
    examples: int
    bound: float | None = None


@dataclass
class ValueMeter:
    """Drift of one value over runs, as `relative_drift` measures it in one piece, but for its cut of large errors.

    Args:
        axis: Axis of the channels.
        mixed: Whether these may be of different units, see `drift.units`.
    """

    axis: int
    mixed: bool = False
    _errors: list[Array] = field(default_factory=list)  # of each example, by channel where these are mixed
    _counts: Array = field(default_factory=lambda: np.zeros(0))
    _means: Array = field(default_factory=lambda: np.zeros(0))
    _squares: Array = field(default_factory=lambda: np.zeros(0))

    def add(self, reference: Array, output: Array) -> None:
        """Add one run's values, [N, ...] each."""
        if not reference.ndim:
            reference, output = reference.reshape(1, 1), output.reshape(1, 1)
        axis = self.axis % reference.ndim
        if reference.ndim == 1 or axis == 0:  # no channels beside the examples
            reference, output, axis = reference[..., None], output[..., None], reference.ndim
        first, second = (
            np.moveaxis(values, axis, 1).reshape(len(values), values.shape[axis], -1).astype(np.float64)
            for values in (reference, output)
        )
        told = np.isfinite(first)
        first = np.where(told, first, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.where(told, np.nan_to_num(second, nan=np.inf) - first, 0.0)
            squares = (error**2).sum(2)
        if not self.mixed:  # there are many of these, and they stay
            squares = squares.sum(1, keepdims=True)
        self._errors += [row for row, any_there in zip(squares, told, strict=True) if any_there.any()]
        self._spread(first, told)

    def _spread(self, first: Array, told: Array) -> None:
        """Add to mean and squares of each channel (Chan, Golub and LeVeque 1983)."""
        counts = told.sum((0, 2)).astype(np.float64)
        if len(self._counts) < len(counts):
            self._counts, self._means, self._squares = (
                np.pad(one, (0, len(counts) - len(one))) for one in (self._counts, self._means, self._squares)
            )
        counts = np.pad(counts, (0, len(self._counts) - len(counts)))
        means = np.zeros(len(self._counts))
        squares = np.zeros(len(self._counts))
        channels = first.shape[1]
        means[:channels] = first.sum((0, 2)) / np.maximum(counts[:channels], 1.0)
        squares[:channels] = (np.where(told, first - means[:channels, None], 0.0) ** 2).sum((0, 2))
        total = np.maximum(self._counts + counts, 1.0)
        self._squares += squares + (means - self._means) ** 2 * self._counts * counts / total
        self._means += (means - self._means) * counts / total
        self._counts += counts

    def result(self) -> ValueDrift | None:
        """Give the drift over all runs; None where no finite number was compared."""
        total = float(self._counts.sum())
        if not total:
            return None
        factors = self._factors()
        squares, means = self._squares * factors**2, self._means * factors
        if self._counts[self._counts > 0].min() > 1:  # as `drift.centred` does it
            whole = float((squares * self._counts / np.maximum(self._counts - 1.0, 1.0)).sum())
        else:
            grand = float((self._counts * means).sum() / total)
            whole = float((squares + self._counts * (means - grand) ** 2).sum())
        energy = float((squares + self._counts * means**2).sum())
        if not whole > CONSTANT * energy:
            whole = energy
        errors = [float((channels * factors[: len(channels)] ** 2).sum()) for channels in self._errors]
        count, error = len(errors), sum(errors)
        more = margin(errors) if math.isfinite(error) else None
        bound = None if more is None else _ratio(error + count * more, whole)
        return ValueDrift(_ratio(error, whole), _ratio(max(errors) * count, whole), count, bound)

    def _factors(self) -> Array:
        """What brings the channels to one unit."""
        counts = np.maximum(self._counts, 1.0)
        if not self.mixed or counts.min() < TOLD:
            return np.ones(len(counts))
        spread = self._squares / counts
        return in_one_unit(varying(np.sqrt(spread), np.sqrt(spread + self._means**2)))


def _ratio(error: float, whole: float) -> float:
    return math.sqrt(error / whole) if whole else math.inf if error else 0.0
