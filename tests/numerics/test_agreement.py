from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.numerics.agreement import (
    Agreement,
    ClassMeter,
    PictureMeter,
    PresenceMeter,
    ValueDrift,
    ValueMeter,
    joined,
    margin,
)
from onnx_pointwise.numerics.drift import relative_drift, units
from tests.graphs import normal

Array = np.ndarray[Any, Any]
METERS: dict[str, Callable[[], Any]] = {
    "classes": lambda: ClassMeter(1),
    "presence": lambda: PresenceMeter(0.0),
    "picture": PictureMeter,
    "numbers": lambda: ValueMeter(1),
}


def found(meter: Any, reference: Array, output: Array) -> Any:
    meter.add(reference, output)
    return meter.result()


@pytest.mark.parametrize("kind", METERS)
@settings(derandomize=True, deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(1, 11), max_size=3, unique=True), seed=st.integers(0, 5))
def test_runs_add_up(kind: str, cuts: list[int], seed: int) -> None:
    first = normal(12, 3, 16, 16, seed=seed)
    second = first + 0.3 * normal(12, 3, 16, 16, seed=seed + 100)
    meter = METERS[kind]()
    for a, b in zip(np.split(first, sorted(cuts)), np.split(second, sorted(cuts)), strict=True):
        meter.add(a, b)
    parts, whole = meter.result(), found(METERS[kind](), first, second)
    if isinstance(whole, ValueDrift):
        assert parts.relative == pytest.approx(whole.relative) and parts.worst == pytest.approx(whole.worst)
    else:
        assert parts.value == pytest.approx(whole.value)
        assert (parts.measure, parts.counted) == (whole.measure, whole.counted)


@pytest.mark.parametrize("kind", METERS)
def test_nothing_at_all_says_nothing(kind: str) -> None:
    assert METERS[kind]().result() is None
    nothing = np.full((4, 3, 16, 16), np.nan, np.float32)
    assert found(METERS[kind](), nothing, nothing) is None


@pytest.mark.parametrize("kind", METERS)
def test_the_same_agrees_wholly(kind: str) -> None:
    values = normal(4, 3, 16, 16)
    result = found(METERS[kind](), values, values)
    best = {"classes": 1.0, "presence": 1.0, "picture": 120.0, "numbers": 0.0}[kind]
    assert (result.relative if isinstance(result, ValueDrift) else result.value) == best


# --- classes ----------------------------------------------------------------------------------------------------------


def one_hot(labels: list[int], classes: int = 4) -> Array:
    return np.eye(classes, dtype=np.float32)[labels]


def test_top_1_of_examples() -> None:
    result = found(ClassMeter(-1), one_hot([0, 1, 2, 3, 0]), one_hot([0, 1, 2, 1, 0]))
    assert result == Agreement(0.8, "top-1", 4)


def test_what_only_says_the_commonest_class_counts_for_nothing() -> None:
    result = found(ClassMeter(1), one_hot([0] * 50), one_hot([0] * 49 + [1]))
    assert result == Agreement(0.98, "top-1", 1)


def places(labels: list[int]) -> Array:
    """One example, [1, 4, places]."""
    return one_hot(labels).T[None]


def test_many_places_that_say_background_do_not_hide_the_others() -> None:
    reference = places([0] * 90 + [1] * 6 + [2] * 4)
    lost = found(ClassMeter(1), reference, places([0] * 100))
    assert lost.measure == "F1" and lost.value == 0.0
    swapped = found(ClassMeter(1), reference, places([0] * 90 + [1] * 6 + [3] * 4))
    assert swapped == Agreement(2 * 6 / 20, "F1", 14)
    moved = found(ClassMeter(1), reference, places([0] * 89 + [1] * 7 + [2] * 4))
    assert moved.value == pytest.approx(2 * 10 / 21)


def test_places_of_one_class_alone_are_counted_plainly() -> None:
    assert found(ClassMeter(1), places([2] * 30), places([2] * 30)) == Agreement(1.0, "top-1", 0)


def test_the_axis_of_the_classes() -> None:
    reference, output = places([0, 1, 2, 3]), places([0, 1, 2, 1])
    turned = found(ClassMeter(-1), reference.transpose(0, 2, 1), output.transpose(0, 2, 1))
    assert turned == found(ClassMeter(1), reference, output)


def test_an_answer_that_is_not_finite_agrees_with_none() -> None:
    output = one_hot([0, 1, 2, 3])
    output[2, 2] = np.nan
    assert found(ClassMeter(1), one_hot([0, 1, 2, 3]), output).value == 0.75


# --- presence ---------------------------------------------------------------------------------------------------------


def test_f1_of_what_is_found() -> None:
    reference = np.array([[3.0, 2.0, -1.0, -4.0, 1.0]])
    assert found(PresenceMeter(0.0), reference, np.array([[1.0, -2.0, 1.0, -4.0, 9.0]])) == Agreement(4 / 6, "F1", 4)
    assert found(PresenceMeter(0.5), reference, reference / 2) == Agreement(4 / 5, "F1", 3)


def test_where_nothing_is_found_nothing_can_be_told() -> None:
    assert found(PresenceMeter(0.0), np.full((2, 5), -1.0), np.full((2, 5), -2.0)) is None
    assert found(PresenceMeter(0.0), np.full((2, 5), -1.0), np.full((2, 5), 2.0)) == Agreement(0.0, "F1", 10)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 50), threshold=st.floats(-1, 1))
def test_f1_does_not_know_which_came_first(seed: int, threshold: float) -> None:
    one, other = normal(3, 40, seed=seed), normal(3, 40, seed=seed + 1)
    assert found(PresenceMeter(threshold), one, other) == found(PresenceMeter(threshold), other, one)


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(low: float, high: float) -> Array:
    return low + (high - low) * np.random.default_rng(1).random((2, 3, 32, 32))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_psnr_in_the_range_of_the_reference(low: float, high: float) -> None:
    reference = picture(low, high)
    noise = (high - low) * 0.01 * np.where(normal(2, 3, 32, 32) > 0, 1.0, -1.0)
    result = found(PictureMeter(), reference, np.clip(reference + noise, low, high))
    assert result.value == pytest.approx(40.0, abs=0.1) and result.counted == 2
    assert found(PictureMeter(), reference.astype(np.float16), reference + noise).value == pytest.approx(40.0, abs=0.2)


def test_integers_are_pictures_from_0_to_255() -> None:
    reference = (picture(0.0, 1.0) * 200).astype(np.uint8)
    assert found(PictureMeter(), reference, reference + 1).value == pytest.approx(20 * math.log10(255))
    dark = (picture(0.0, 1.0) * 3).astype(np.uint8)
    assert found(PictureMeter(), dark, dark + 1).value == pytest.approx(20 * math.log10(255))


def test_what_lies_beyond_the_range_is_cut() -> None:
    reference = picture(0.0, 1.0)
    reference[:, :, 0] = 1.0
    output = reference.copy()
    output[:, :, 0] = 7.0
    assert found(PictureMeter(), reference, output).value == 120.0


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_what_has_no_range_of_pictures_is_measured_by_its_own(scale: float) -> None:
    reference = scale * (0.1 * picture(0.0, 1.0) + (1.0 if scale > 1 else 0.0))
    far = found(PictureMeter(), reference, np.full_like(reference, reference.mean()))
    assert far.value == pytest.approx(20 * math.log10(4), abs=0.1), "a picture without content is nobody's"


def test_examples_count_alike_and_what_is_not_finite_is_lost() -> None:
    reference = picture(0.0, 1.0)
    output = reference.copy()
    output[1] = np.nan
    assert found(PictureMeter(), reference, output).value == pytest.approx(
        (120.0 + 20 * math.log10(1 / 0.577)) / 2, abs=1
    )


# --- drift ------------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 20), size=st.floats(1e-3, 0.5), offset=st.floats(-1e3, 1e3), axis=st.sampled_from([1, 2, -1])
)
def test_drift_is_that_of_the_values_in_one_piece(seed: int, size: float, offset: float, axis: int) -> None:
    reference = normal(6, 4, 9, seed=seed) + offset
    output = reference + size * normal(6, 4, 9, seed=seed + 50)
    whole = relative_drift(reference, output, axis)
    assert whole is not None
    assert found(ValueMeter(axis), reference, output).relative == pytest.approx(math.sqrt(whole), rel=1e-3)


@pytest.mark.parametrize("axis", [1, 2])
def test_channels_of_other_units_count_as_they_do_in_one_piece(axis: int) -> None:
    scales = np.array([1.0, 1.0, 1e3, 1e3]).reshape((4, 1) if axis == 1 else (1, 4))
    reference = scales * normal(6, *((4, 9) if axis == 1 else (9, 4)), seed=1)
    output = reference + np.minimum(scales, 1.0) * 0.3 * np.ones_like(reference)
    whole = relative_drift(reference, output, axis, units(reference, axis))
    assert whole is not None
    assert found(ValueMeter(axis, mixed=True), reference, output).relative == pytest.approx(math.sqrt(whole), rel=1e-3)
    assert found(ValueMeter(axis), reference, output).relative < 0.01 < 0.1 < math.sqrt(whole)


def test_the_means_of_channels_say_nothing() -> None:
    reference = normal(8, 2, 10).astype(np.float64)
    shifted = reference + np.array([0.0, 1000.0])[:, None]
    error = 0.1 * normal(8, 2, 10, seed=3)
    assert found(ValueMeter(1), shifted, shifted + error).relative == pytest.approx(
        found(ValueMeter(1), reference, reference + error).relative
    )


def test_the_worst_example() -> None:
    reference = normal(10, 4, 20)
    output = reference.copy()
    output[7] = 0.0
    result = found(ValueMeter(1), reference, output)
    assert result.examples == 10
    assert result.worst == pytest.approx(result.relative * math.sqrt(10))
    assert 0.7 < result.worst < 1.3


def test_a_value_that_does_not_vary_is_held_to_its_size() -> None:
    assert found(ValueMeter(1), np.full((4, 20), 2.0), np.full((4, 20), 3.0)).relative == pytest.approx(0.5)
    assert found(ValueMeter(1), np.zeros((4, 20)), np.zeros((4, 20))).relative == 0.0
    assert found(ValueMeter(1), np.zeros((4, 20)), np.ones((4, 20))).relative == math.inf


def test_what_turns_nan_is_off_without_bounds() -> None:
    reference = normal(4, 20)
    output = reference.copy()
    output[0, 0] = np.nan
    assert found(ValueMeter(1), reference, output).relative == math.inf
    assert found(ValueMeter(1), output, output).relative == 0.0
    assert found(ValueMeter(1), output, reference).relative == 0.0, "the reference says nothing there"


@pytest.mark.parametrize("shape", [(), (5,), (5, 1), (1, 7), (2, 3, 4, 5, 6)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    reference = normal(*shape) + 1
    assert found(ValueMeter(1), reference, reference).relative == 0.0
    assert found(ValueMeter(1), reference, reference * 2).relative > 0.3


def test_runs_may_have_another_number_of_channels() -> None:
    meter = ValueMeter(-1)
    for width in (20, 30, 10):
        meter.add(normal(2, 3, width), normal(2, 3, width) + 0.1)
    result = meter.result()
    assert result is not None and result.examples == 6 and 0.05 < result.relative < 0.2


# --- what few examples tell of others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 8, 50])
def test_nine_of_ten_averages_lie_within_the_margin(count: int) -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(3.0, 0.7, (3000, count))
    told = [margin(list(row)) for row in draws]
    assert all(one is not None for one in told)
    within = np.mean([row.mean() + one >= 3.0 for row, one in zip(draws, told, strict=True) if one is not None])
    assert 0.88 < within < 0.92


def test_of_one_example_no_margin_is_known() -> None:
    assert margin([1.0]) is None
    meter = ValueMeter(1)
    meter.add(normal(1, 4, 9), normal(1, 4, 9, seed=1))
    result = meter.result()
    assert result is not None and result.bound is None
    meter.add(normal(1, 4, 9, seed=2), normal(1, 4, 9, seed=3))
    result = meter.result()
    assert result is not None and result.bound is not None and result.bound > result.relative


def test_the_bound_of_pictures_lies_below_their_mean_and_nears_it() -> None:
    def bound(count: int) -> float:
        rng = np.random.default_rng(3)
        meter = PictureMeter()
        pictures = rng.random((count, 1, 16, 16))
        meter.add(pictures, pictures + 0.02 * (1 + rng.random((count, 1, 1, 1))) * rng.standard_normal(pictures.shape))
        result = meter.result()
        assert result is not None and result.bound is not None
        return result.value - result.bound

    assert bound(3) > bound(60) > 0.0


@pytest.mark.parametrize("kind", ["classes", "presence"])
def test_parts_of_one_answer_are_joined_as_if_they_were_one(kind: str) -> None:
    parts = [(normal(2, 3, 40, seed=seed) - 1.0, 0.5 * normal(2, 3, 40, seed=seed + 9)) for seed in (1, 2, 3)]
    for reference, _ in parts:
        reference[:, 0] += 2.0  # the commonest class is the same one in all of them
    pairs = [(reference, reference + noise) for reference, noise in parts]
    one = joined([found(METERS[kind](), *pair) for pair in pairs])
    whole = found(METERS[kind](), *(np.concatenate(side, axis=2) for side in zip(*pairs, strict=True)))
    assert one is not None
    assert (one.measure, one.counted) == (whole.measure, whole.counted)
    assert one.value == pytest.approx(whole.value, abs=1e-12)


def test_what_is_no_f1_is_not_joined() -> None:
    assert joined([]) is None
    assert joined([Agreement(0.9, "F1", 10), Agreement(40.0, "PSNR", 3)]) is None
    assert joined([Agreement(0.0, "F1", 10), Agreement(1.0, "F1", 30)]) == Agreement(30 / 35, "F1", 40)
