"""Views of a kernel, and that the spatial forms are what the field calls a separable kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.errors import PlanError
from onnx_pointwise.numerics.factorize import METHODS, compose, error_curve, error_curves, factorize, is_exact
from onnx_pointwise.numerics.forms import FORMS, SPATIAL, Form, View, full_rank, has_form, view_of
from onnx_pointwise.numerics.norm import Norm

CHECKED = settings(derandomize=True, deadline=None, max_examples=60)
FORM = st.sampled_from(SPATIAL)
SEED = st.integers(0, 2**32 - 1)
#: Kernels with two axes to give: square, wide, tall, few and many feature maps, one axis of length 1, three dimensions.
SHAPES = st.sampled_from(
    [
        (6, 5, 3, 3),
        (5, 4, 3, 11),
        (4, 3, 7, 2),
        (2, 9, 3, 3),
        (9, 2, 3, 3),
        (4, 5, 1, 3, 3),
        (5, 4, 2, 1, 3),
        (3, 4, 2, 3, 2),
    ]
)


def make_kernel(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def make_moment(seed: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed + 1)
    samples = np.maximum(rng.standard_normal((3 * size, size)) @ rng.standard_normal((size, size)), 0.0)
    return samples.T @ samples / len(samples)


@CHECKED
@given(SEED, SHAPES, st.sampled_from(FORMS))
def test_a_view_and_back_is_the_kernel(seed: int, shape: tuple[int, ...], form: Form) -> None:
    kernel, view = make_kernel(seed, shape), view_of(form, shape[2:])
    seen = view.of_kernel(kernel)
    assert seen.shape == (shape[0], shape[1] * view.channels, view.taps)
    np.testing.assert_array_equal(view.to_kernel(seen), kernel)
    assert math.prod(view.first_size) == view.channels
    assert math.prod(view.second_size) == view.taps
    assert np.all(np.maximum(view.first_size, view.second_size) == shape[2:])


@CHECKED
@given(SEED, SHAPES, st.sampled_from(FORMS), st.sampled_from(["none", "channels", "patches"]))
def test_the_norm_is_the_same_in_every_view(seed: int, shape: tuple[int, ...], form: Form, kind: str) -> None:
    kernel, inputs, taps = make_kernel(seed, shape), shape[1], math.prod(shape[2:])
    size = inputs if kind == "channels" else inputs * taps
    norm = Norm.of(None if kind == "none" else make_moment(seed, size), inputs, taps)
    view = view_of(form, shape[2:])
    flat, seen = kernel.reshape(len(kernel), inputs, taps), view.of_kernel(kernel)
    assert np.vdot(norm.seen(view).apply(seen), seen) == pytest.approx(np.vdot(norm.apply(flat), flat))
    assert norm.seen(view) is norm.seen(view)


@CHECKED
@given(SEED, SHAPES, FORM)
def test_without_examples_a_spatial_form_is_the_svd_between_the_axes(
    seed: int, shape: tuple[int, ...], form: Form
) -> None:
    """The squared error at each rank is the tail of the singular values of W[(o, second axes), (i, first axes)]."""
    kernel, view = make_kernel(seed, shape), view_of(form, shape[2:])
    unfolded = view.of_kernel(kernel).transpose(0, 2, 1).reshape(-1, shape[1] * view.channels)
    values = np.linalg.svd(unfolded, compute_uv=False) ** 2
    tail = 1.0 - np.concatenate([[0.0], np.cumsum(values)]) / values.sum()
    np.testing.assert_allclose(error_curve(kernel, form), tail, atol=1e-12)
    for rank in {1, len(values) // 2, len(values)}:
        for method in METHODS:
            assert factorize(kernel, form, rank, method=method).error ** 2 == pytest.approx(tail[rank], abs=1e-12)


@CHECKED
@given(SEED, SHAPES, FORM, st.floats(0.05, 0.9))
def test_with_examples_it_beats_that_svd_and_its_own_curve(
    seed: int, shape: tuple[int, ...], form: Form, part: float
) -> None:
    kernel, moment = make_kernel(seed, shape), make_moment(seed, math.prod(shape[1:]))
    (full,) = full_rank(form, shape[1], shape[0], shape[2:])
    rank = max(1, round(part * full))
    errors = {method: factorize(kernel, form, rank, method=method, second_moment=moment).error for method in METHODS}
    assert errors["als"] <= min(errors.values()) * (1 + 1e-6) + 1e-6
    assert errors["als"] ** 2 <= error_curve(kernel, form, moment)[rank] * (1 + 1e-6) + 1e-9
    more = factorize(kernel, form, rank + 1, second_moment=moment).error
    assert more <= errors["als"] * 1.03 + 1e-6


@CHECKED
@given(SEED, SHAPES, FORM, st.integers(0, 40), st.sampled_from(["none", "channels", "patches"]))
def test_above_full_rank_no_feature_map_is_dead(
    seed: int, shape: tuple[int, ...], form: Form, more: int, kind: str
) -> None:
    kernel = make_kernel(seed, shape).astype(np.float32)
    size = shape[1] if kind == "channels" else math.prod(shape[1:])
    (full,) = full_rank(form, shape[1], shape[0], shape[2:])
    assert not is_exact(form, full - 1, shape[1], shape[0], shape[2:])
    assert is_exact(form, full + more, shape[1], shape[0], shape[2:])
    factors = factorize(kernel, form, full + more, second_moment=None if kind == "none" else make_moment(seed, size))
    assert factors.error < 1e-5
    np.testing.assert_allclose(compose(factors), kernel, atol=1e-5 * np.abs(kernel).max())
    first, second = factors.pieces
    assert first.shape[:2] == (full + more, shape[1])
    assert second.shape[:2] == (shape[0], full + more)
    assert (np.abs(first).reshape(len(first), -1).max(axis=1) > 1e-3).all()
    assert (np.abs(second).max(axis=0).reshape(full + more, -1).max(axis=1) > 1e-3 * np.abs(second).max()).all()


def test_a_start_is_taken_as_factors_give_it() -> None:
    kernel, moment = make_kernel(0, (6, 5, 3, 3)), make_moment(0, 45)
    for form in SPATIAL:
        factors = factorize(kernel, form, 6, second_moment=moment)
        again = factorize(kernel, form, 6, second_moment=moment, start=factors)
        assert again.error <= factors.error * (1 + 1e-6)
        with pytest.raises(PlanError, match=rf"{form} at rank 6 of a kernel \(6, 5, 3, 3\), not {form} at rank 5"):
            factorize(kernel, form, 5, second_moment=moment, start=factors)


@pytest.mark.parametrize("size", [(3,), (5, 1), (1, 5), (1, 1), (1, 7, 1)])
@pytest.mark.parametrize("form", SPATIAL)
def test_a_kernel_with_one_axis_has_no_spatial_form(size: tuple[int, ...], form: Form) -> None:
    """There the kernel in front would be the kernel itself."""
    kernel = make_kernel(0, (4, 4, *size))
    assert not has_form(form, size)
    for call in (lambda: factorize(kernel, form, 2), lambda: error_curve(kernel, form)):
        with pytest.raises(PlanError, match=f"{'x'.join(map(str, size))} has only one to give"):
            call()
    assert set(error_curves(kernel)) == {one for one in FORMS if has_form(one, size)}


def test_where_kernels_of_one_and_three_dimensions_are_split() -> None:
    """At the first axis that is longer than 1; those that are not go with what runs first."""
    assert view_of("vertical", (3, 39)) == View((3, 39), (0,))
    assert view_of("horizontal", (3, 39)) == View((3, 39), (1,))
    assert view_of("vertical", (3, 5, 7)) == View((3, 5, 7), (0,))
    assert view_of("horizontal", (3, 5, 7)) == View((3, 5, 7), (1, 2))
    assert view_of("vertical", (1, 3, 3)) == View((1, 3, 3), (0, 1))
    assert view_of("horizontal", (3, 1, 3)) == View((3, 1, 3), (1, 2))
    assert view_of("reduce", (3, 3)) == View((3, 3))
