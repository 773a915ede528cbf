from __future__ import annotations

import json
import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from onnx_pointwise.numerics.drift import (
    Drift,
    DriftMeter,
    centred,
    energy,
    in_one_unit,
    relative_drift,
    units,
    weighted_drift,
)
from tests.graphs import normal


def drift(reference: ArrayLike, output: ArrayLike) -> Drift:
    meter = DriftMeter()
    meter.add({"y": np.asarray(reference)}, {"y": np.asarray(output)})
    return meter.result()["y"]


def test_equal_outputs_do_not_drift() -> None:
    y = normal(4, 10)
    found = drift(y, y)
    assert (found.relative_l2, found.decibel, found.max_abs, found.top1) == (0.0, None, 0.0, 1.0)
    assert found.cosine == pytest.approx(1.0)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(scale=st.floats(-0.5, 0.5).filter(lambda number: abs(number) > 1e-3))
def test_a_scaled_output_drifts_by_its_scale(scale: float) -> None:
    y = normal(5, 7).astype(np.float64)
    found = drift(y, y * (1 + scale))
    assert found.relative_l2 == pytest.approx(abs(scale))
    assert found.decibel == pytest.approx(20 * math.log10(abs(scale)))
    assert found.max_abs == pytest.approx(abs(scale) * np.abs(y).max())
    assert found.cosine == pytest.approx(1.0)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 19), max_size=3, unique=True))
def test_runs_add_up(cuts: list[int]) -> None:
    first, second = normal(20, 6), normal(20, 6, seed=1)
    meter = DriftMeter()
    for a, b in zip(np.split(first, sorted(cuts)), np.split(second, sorted(cuts)), strict=True):
        meter.add({"y": a}, {"y": b})
    found, whole = meter.result()["y"], drift(first, second)
    assert found.relative_l2 == pytest.approx(whole.relative_l2, rel=1e-12)
    assert found.cosine == pytest.approx(whole.cosine)
    assert (found.max_abs, found.top1, found.values) == (whole.max_abs, whole.top1, whole.values)


@pytest.mark.parametrize(
    ("shape", "scored"),
    [((4, 3), True), ((4, 3, 1, 1), True), ((4, 1), False), ((4, 3, 2, 2), False), ((4,), False), ((), False)],
)
def test_class_scores_are_known_by_their_shape(shape: tuple[int, ...], scored: bool) -> None:
    y = np.ones(shape, np.float32)
    assert (drift(y, y).top1 is not None) == scored


def test_agreement_of_top_classes() -> None:
    reference = np.eye(4, dtype=np.float32)
    moved = reference.copy()
    moved[3] = [1, 0, 0, 0.5]
    assert drift(reference, moved).top1 == 0.75


def test_values_that_are_not_finite_in_the_same_way_do_not_count() -> None:
    reference = np.array([1.0, np.nan, np.inf, -np.inf, 3.0])
    found = drift(reference, reference * 1)
    assert (found.relative_l2, found.non_finite_before, found.non_finite_after) == (0.0, 3, 3)
    assert found.non_finite_differs == 0


@pytest.mark.parametrize("other", [[1.0, np.nan], [np.inf, 2.0], [-np.inf, np.nan]])
def test_values_that_stop_being_finite_are_counted(other: list[float]) -> None:
    found = drift([1.0, 2.0], other)
    assert found.non_finite_differs == found.non_finite_after == sum(not math.isfinite(number) for number in other)
    assert math.isfinite(found.max_abs)


def test_infinity_of_the_other_sign_differs() -> None:
    assert drift([np.inf], [-np.inf]).non_finite_differs == 1


def test_a_reference_of_zeros() -> None:
    assert drift([0.0, 0.0], [0.0, 0.0]).relative_l2 == 0.0
    found = drift([0.0, 0.0], [0.0, 1.0])
    assert found.relative_l2 == math.inf and found.decibel is None and found.cosine is None
    assert json.loads(json.dumps(found.to_dict()))["relative_l2"] is None


def test_integers_and_booleans_are_compared_as_numbers() -> None:
    assert drift(np.array([3, 4]), np.array([3, 4])).relative_l2 == 0.0
    assert drift(np.array([3, 4]), np.array([0, 0])).relative_l2 == 1.0
    assert drift(np.array([True, False]), np.array([True, True])).max_abs == 1.0
    assert drift(np.array([200], np.uint8), np.array([100], np.uint8)).max_abs == 100.0


def test_outputs_without_a_partner_are_left_out() -> None:
    meter = DriftMeter()
    meter.add(
        {"y": np.ones(2), "z": np.ones(3), "s": np.array(["a"]), "only": np.ones(1)},
        {"y": np.ones(2), "z": np.ones(4), "s": np.array(["a"])},
    )
    assert list(meter.result()) == ["y"]


def test_no_values_at_all() -> None:
    found = drift(np.zeros((0, 4)), np.zeros((0, 4)))
    assert (found.relative_l2, found.max_abs, found.top1, found.values) == (0.0, 0.0, None, 0)


# --- where a network answers ------------------------------------------------------------------------------------------

CHECKED = settings(derandomize=True, deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**31)
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@CHECKED
@given(shape=SHAPES, axis=st.integers(-4, 3), seed=SEEDS)
def test_means_of_channels_are_taken_out(shape: tuple[int, ...], axis: int, seed: int) -> None:
    axis = axis % len(shape)
    values = np.random.default_rng(seed).standard_normal(shape) + 3.0
    spread = centred(values, axis)
    assert spread.shape == shape and spread.dtype == np.float64
    others = tuple(index for index in range(len(shape)) if index != axis)
    if math.prod(shape[index] for index in others) > 1:
        np.testing.assert_allclose(spread.mean(axis=others), 0.0, atol=1e-9)
    else:
        np.testing.assert_allclose(spread, values - values.mean(), atol=1e-9)
    np.testing.assert_array_equal(centred(values, axis - len(shape)), spread)


def test_few_examples_tell_the_same_as_many() -> None:
    """Of a classifier: what is common to all examples of a class says nothing, however few they are."""
    rng = np.random.default_rng(0)
    common = 10.0 * rng.standard_normal(50)
    energy, drifts = [], []
    for count in (2, 4, 7, 8, 100):
        values = common + rng.standard_normal((400, count, 50))
        energy.append(np.mean([np.vdot(spread := centred(one, 1), spread) / one.size for one in values]))
        moved = values + 0.1 * rng.standard_normal(values.shape)
        drifts.append(np.mean([relative_drift(*pair) for pair in zip(values, moved, strict=True)]))
    np.testing.assert_allclose(energy, 1.0, rtol=0.05)
    np.testing.assert_allclose(drifts, 0.01, rtol=0.1)


def test_nothing_is_taken_out_of_nothing() -> None:
    assert centred(np.zeros((0, 3)), 1).shape == (0, 3)
    assert centred(np.array(2.0), 0) == 2.0


@CHECKED
@given(seed=SEEDS, offset=st.floats(-100, 100), scale=st.floats(0.01, 100))
def test_relative_drift_does_not_depend_on_offset_or_scale(seed: int, offset: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    before = rng.standard_normal((10, 4, 3))
    after = before + 0.1 * rng.standard_normal(before.shape)
    plain = relative_drift(before, after)
    assert plain is not None and plain < 0.03
    assert relative_drift(scale * before + offset, scale * after + offset) == pytest.approx(plain, rel=1e-6)
    assert relative_drift(before, before) == 0.0


def test_channels_lie_on_the_axis_that_is_named() -> None:
    """A channel that is always large says nothing; with another axis it counts."""
    before = normal(20, 3, 5).astype(np.float64)
    before[:, 1] += 100.0
    after = before + 0.1 * normal(20, 3, 5, seed=1)
    told = relative_drift(before, after)
    assert told == pytest.approx(0.01, rel=0.2)
    last = np.moveaxis(before, 1, -1), np.moveaxis(after, 1, -1)
    assert relative_drift(*last, axis=-1) == pytest.approx(told)
    other = relative_drift(before, after, axis=2)
    assert other is not None and told is not None and other < 0.01 * told


@pytest.mark.parametrize(
    "value", [np.zeros((9, 3)), np.full((9, 3), 7.0), np.ones((9, 1)) * [1.0, 2.0, 3.0], np.zeros((0, 3))]
)
def test_of_a_value_that_does_not_vary_nothing_can_be_said(value: ArrayLike) -> None:
    """Not even that it moved."""
    assert relative_drift(np.asarray(value), np.asarray(value) + 1.0) is None
    assert relative_drift(np.asarray(value, np.float32), np.asarray(value, np.float32)) is None


def test_one_number_without_axes_is_compared_as_it_is() -> None:
    assert relative_drift(np.array(3.0), np.array(1.0)) == pytest.approx(4.0 / 9.0)


@CHECKED
@given(seed=SEEDS, worst=st.floats(6.0, 1e30))
def test_one_number_counts_no_more_than_a_few_deviations(seed: int, worst: float) -> None:
    before = np.random.default_rng(seed).standard_normal((50, 4))
    after = before.copy()
    after[0, 0] += worst
    spread = centred(before, 1)
    most = max(5.0 * float(spread.std()), float(np.abs(spread).max()))
    found = relative_drift(before, after)
    assert found == pytest.approx(min(worst, most) ** 2 / float((spread**2).sum()), rel=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_as_wrong_as_can_be(bad: float) -> None:
    before = normal(40, 5).astype(np.float64)
    after = before.copy()
    after[3, 2] = bad
    most = before.copy()
    most[3, 2] += 1e9
    assert relative_drift(before, after) == relative_drift(before, most)
    unknown = np.full((9, 3), np.nan)
    assert relative_drift(unknown, before[:9, :3]) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "uint8", "int8"])
def test_narrow_types_are_compared_in_wide_ones(dtype: str) -> None:
    """Squares of a float16 overflow beyond 65,504, which made a head of half precision count as constant."""
    kind = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(ml_dtypes.bfloat16)
    before = (30.0 * normal(64, 10, 10)).clip(-100, 100)
    before, after = before.astype(kind), (before + 3.0 * normal(64, 10, 10, seed=1)).clip(-100, 100).astype(kind)
    expected = relative_drift(before.astype(np.float64), after.astype(np.float64))
    assert expected is not None and relative_drift(before, after) == pytest.approx(expected)


@CHECKED
@given(
    parts=st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 5)), st.floats(0, 10)), max_size=6),
)
def test_weights_of_values_that_do_not_vary_are_left_out(parts: list[tuple[float | None, float]]) -> None:
    found = weighted_drift([share for share, _ in parts], [weight for _, weight in parts])
    told = [(share, weight) for share, weight in parts if share is not None]
    if sum(weight for _, weight in told) == 0.0:
        assert found is None
    else:
        shares, weights = zip(*told, strict=True)
        assert found == pytest.approx(np.average(shares, weights=weights))
        assert min(shares) - 1e-9 <= found <= max(shares) + 1e-9


# --- channels of different units --------------------------------------------------------------------------------------


def mixed(seed: int, scales: Sequence[float], examples: int = 12) -> NDArray[np.float64]:
    """Channels [N, C, 6] of these deviations."""
    drawn = np.random.default_rng(seed).standard_normal((examples, len(scales), 6))
    return drawn * np.asarray(scales)[:, None]


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 10.0, 1e4])
def test_of_channels_in_other_units_each_counts(scale: float) -> None:
    """Whatever the unit, an error of one kind is seen as that of the other."""
    before = mixed(0, [1.0, 1.0, 1.0, scale, scale, scale])
    factors = units(before)
    assert factors is not None and factors.shape == (1, 6, 1)
    for half in (slice(0, 3), slice(3, 6)):
        after = before.copy()
        after[:, half] *= 1.3
        assert relative_drift(before, after, factors=factors) == pytest.approx(0.3**2 / 2, rel=0.05)
    assert energy(before, factors=factors) == pytest.approx(energy(mixed(0, [max(scale, 1.0)] * 6)), rel=0.2)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=20), st.integers(0, 20))
def test_the_largest_unit_stays_and_the_others_come_to_it(decades: list[float], seed: int) -> None:
    deviations = 10.0 ** np.asarray(decades)
    factors = in_one_unit(deviations)
    assert (factors >= 1.0).all() and factors[deviations.argmax()] == 1.0
    order = np.argsort(deviations)
    apart = deviations[order][1:] > 5.0 * deviations[order][:-1]
    # Two that follow one another have one factor, or are a step apart.
    np.testing.assert_array_equal(factors[order][1:] != factors[order][:-1], apart)
    turn = np.random.default_rng(seed).permutation(len(deviations))
    np.testing.assert_allclose(in_one_unit(deviations[turn]), factors[turn])


def test_channels_of_one_unit_are_left_alone() -> None:
    assert units(mixed(1, [1.0, 2.0, 8.0, 0.3])) is None
    assert units(mixed(1, [1.0, 100.0], examples=2)) is None  # too few numbers to tell
    assert units(np.zeros((8, 3, 6))) is None and units(np.ones(4)) is None
    constant = mixed(1, [1.0, 100.0, 0.0]) + np.array([0.0, 0.0, 7.0])[:, None]
    factors = units(constant)
    assert factors is not None and factors.ravel()[2] == 1.0
    rounding = constant + 1e-7 * mixed(2, [0.0, 0.0, 1.0])
    factors = units(rounding)
    assert factors is not None and factors.ravel()[2] == 1.0
