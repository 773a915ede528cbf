from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from onnx_pointwise.numerics.drift import Drift, DriftMeter
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
