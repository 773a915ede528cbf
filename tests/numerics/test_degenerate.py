"""Kernels and moments at the edge of what numbers can hold: finite factors, and never worse than the plain SVD."""

from __future__ import annotations

import math
import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnx_pointwise.errors import PlanError
from onnx_pointwise.numerics.factorize import METHODS, compose, error_curve, factorize, relative_error
from onnx_pointwise.numerics.forms import FORMS, full_rank, has_form
from onnx_pointwise.numerics.outputs import OutputNorm

CHECKED = settings(derandomize=True, deadline=None, max_examples=80)
SHAPES = st.sampled_from([(6, 5, 3, 3), (4, 8, 1, 5), (7, 3, 3), (1, 4, 3, 3), (5, 1, 3, 3), (3, 4, 2, 3, 2)])
DTYPES = st.sampled_from([np.dtype(ml_dtypes.bfloat16), *map(np.dtype, (np.float16, np.float32, np.float64))])
# Forms without a closed form end in a valley, from whichever side.
_SLACK = {"reduce_expand": 1e-2, "depthwise": 2e-2}
KERNELS = ("zero", "one number", "rank one", "duplicated inputs", "duplicated outputs", "steep", "enormous", "tiny")
MOMENTS = (
    "none",
    "steep",
    "one direction",
    "one example",
    "duplicated",
    "dead inputs",
    "one live input",
    "enormous",
    "tiny",
    "rounded",
)


def make_kernel(kind: str, shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    kernel = rng.standard_normal(shape)
    limits = ml_dtypes.finfo(dtype)
    match kind:
        case "zero":
            kernel[:] = 0.0
        case "one number":
            kernel[:] = 0.0
            kernel.flat[rng.integers(kernel.size)] = 1.0
        case "rank one":
            parts = [rng.standard_normal(size) for size in shape]
            kernel = parts[0]
            for part in parts[1:]:
                kernel = np.multiply.outer(kernel, part)
        case "duplicated inputs":
            kernel = np.repeat(kernel[:, :1], shape[1], axis=1)
        case "duplicated outputs":
            kernel = np.repeat(kernel[:1], shape[0], axis=0)
        case "steep":
            kernel *= np.logspace(0, -6, shape[0]).reshape(-1, *[1] * (kernel.ndim - 1))
        case "enormous":
            kernel *= float(limits.max) / 64.0 / math.sqrt(kernel.size) / np.abs(kernel).max()
        case "tiny":
            kernel *= float(limits.smallest_normal) * 64.0
    return kernel.astype(dtype)


def make_moment(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray | None:
    inputs, taps = shape[1], math.prod(shape[2:])
    size = inputs * taps
    patches = rng.standard_normal((4 * size, size))
    match kind:
        case "none":
            return None
        case "steep":
            turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
            return (turn * np.logspace(6, -12, size)) @ turn.T
        case "one direction":
            patches = np.outer(rng.standard_normal(4 * size), rng.standard_normal(size))
        case "one example":
            patches = patches[:1]
        case "duplicated":
            patches = np.tile(patches[:, :taps], inputs)
        case "dead inputs":
            patches[:, : taps * (inputs // 2)] = 0.0
        case "one live input":
            patches[:, taps:] = 0.0
        case "enormous":
            patches *= 1e100
        case "tiny":
            patches *= 1e-100
        case "rounded":  # sums in float32: symmetric and positive to rounding only
            patches = (patches[:, :1] + 1e-4 * patches).astype(np.float32)
            return (patches.T @ patches / len(patches)).astype(np.float64)
    return patches.T @ patches / len(patches)


@CHECKED
@given(
    st.integers(0, 2**32 - 1),
    SHAPES,
    DTYPES,
    st.sampled_from(KERNELS),
    st.sampled_from(MOMENTS),
    st.sampled_from(FORMS),
    st.floats(0.0, 1.0),
)
def test_factors_are_finite_and_no_worse_than_the_plain_svd(seed, shape, dtype, kind, moments, form, part):
    assume(has_form(form, shape[2:]))
    rng = np.random.default_rng(seed)
    kernel, moment = make_kernel(kind, shape, dtype, rng), make_moment(moments, shape, rng)
    full = full_rank(form, shape[1], shape[0], shape[2:])
    ranks = tuple(max(1, round(part * size)) for size in full)
    rank = ranks[0] if len(ranks) == 1 else ranks
    errors = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither overflow nor division by nothing on the way
        for method in METHODS:
            factors = factorize(kernel, form, rank, method=method, second_moment=moment)
            assert all(np.isfinite(piece.astype(np.float64)).all() for piece in factors.pieces)
            assert math.isfinite(factors.error) and factors.error >= 0.0
            errors[method] = factors.error
            assert factors.kernel.dtype == dtype
            assert np.isfinite(compose(factors)).all()
        curve = error_curve(kernel, form, moment)
    assert np.isfinite(curve).all()
    # What the type's own rounding costs is nobody's merit, and alternation ends where the rest is negligible.
    rounding = max(1e-6, 8.0 * float(ml_dtypes.finfo(dtype).eps))
    slack = _SLACK.get(form, 1e-6)
    assert errors["als"] <= errors["svd"] * (1 + slack) + max(rounding, 1e-3 if form == "depthwise" else 0.0)


@CHECKED
@given(
    st.integers(0, 2**32 - 1),
    SHAPES,
    st.sampled_from(MOMENTS),
    st.sampled_from(FORMS),
    st.sampled_from(["steep", "one direction", "dead"]),
)
def test_gradients_at_the_edge_give_finite_factors_too(seed, shape, moments, form, outputs):
    assume(has_form(form, shape[2:]))
    rng = np.random.default_rng(seed)
    kernel, moment = rng.standard_normal(shape).astype(np.float32), make_moment(moments, shape, rng)
    gradients = rng.standard_normal((64, shape[0]))
    if outputs == "steep":
        gradients *= np.logspace(3, -9, shape[0])
    elif outputs == "one direction":
        gradients = np.outer(gradients[:, 0], rng.standard_normal(shape[0]))
    else:
        gradients[:, : shape[0] // 2] = 0.0
    norm = OutputNorm.of(gradients.T @ gradients, 64)
    assume(norm is not None)
    full = full_rank(form, shape[1], shape[0], shape[2:])
    ranks = tuple(max(1, size // 2) for size in full)
    rank = ranks[0] if len(ranks) == 1 else ranks
    made = {
        method: factorize(kernel, form, rank, method=method, second_moment=moment, outputs=norm)
        for method in ("svd", "als")
    }
    for factors in made.values():
        assert all(np.isfinite(piece).all() for piece in factors.pieces) and math.isfinite(factors.error)

    def whole(factors):
        gap = (kernel - compose(factors)).astype(np.float64).reshape(shape[0], -1)
        return relative_error(
            (norm.root @ kernel.reshape(shape[0], -1)).reshape(shape),
            (norm.root @ (kernel.reshape(shape[0], -1) - gap)).reshape(shape),
            moment,
        )

    slack = _SLACK.get(form, 1e-6)
    assert whole(made["als"]) <= whole(made["svd"]) * (1 + slack) + (1e-3 if form == "depthwise" else 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_factors_that_no_number_can_hold_are_an_error_and_no_infinity(form, method):
    kernel = np.full((8, 8, 3, 3), float(np.finfo(np.float16).max), np.float16)
    try:
        factors = factorize(kernel, form, 1 if form != "reduce_expand" else (1, 1), method=method)
    except PlanError as error:
        assert "overflow float16; convert the model to float32 first" in str(error)
    else:
        assert all(np.isfinite(piece).all() for piece in factors.pieces)
