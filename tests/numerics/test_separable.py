"""Properties of kernels as sums of products: a 1x1, a depthwise kxk and a 1x1."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.errors import PlanError
from onnx_pointwise.numerics.factorize import (
    METHODS,
    TRIAL_SWEEPS,
    compose,
    depthwise_fits,
    error_curve,
    factorize,
    fitted_factors,
    relative_error,
)
from onnx_pointwise.numerics.forms import most_terms
from onnx_pointwise.numerics.heldout import held_curves
from onnx_pointwise.numerics.norm import Norm
from onnx_pointwise.numerics.outputs import OutputNorm
from onnx_pointwise.numerics.separable import Terms, _Measure, _Problem, even_terms, separated, term_curves, term_fits

CHECKED = settings(derandomize=True, deadline=None, max_examples=40)
SEED = st.integers(0, 2**32 - 1)
SHAPES = st.sampled_from(
    [(1, 1, 3), (5, 4, 3), (8, 6, 3, 3), (6, 9, 1, 5), (4, 16, 2, 2), (12, 2, 3, 3), (5, 6, 2, 3, 2)]
)
MOMENT = st.sampled_from(["none", "channels", "patches"])
DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32), np.dtype(np.float64)]


def make_kernel(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def make_moment(kind: str, seed: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """Of correlated, rectified patches."""
    if kind == "none":
        return None
    rng, size = np.random.default_rng(seed + 1), math.prod(shape[1:])
    mix = rng.standard_normal((size, size)) * np.exp(-np.arange(size) / (0.4 * size))[:, None]
    drawn = np.maximum(rng.standard_normal((4 * size, size)) @ mix + 0.1, 0.0)
    if kind == "channels":
        drawn = drawn.reshape(-1, shape[1], math.prod(shape[2:])).transpose(0, 2, 1).reshape(-1, shape[1])
    return drawn.T @ drawn / len(drawn)


def full(shape: tuple[int, ...]) -> int:
    return most_terms(shape[1], shape[0], math.prod(shape[2:]))


@CHECKED
@given(SEED, SHAPES, MOMENT, st.sampled_from(METHODS), st.integers(0, 4))
def test_exact_at_full_rank_and_above(seed, shape, kind, method, more):
    """And no feature map is dead."""
    kernel, rank = make_kernel(seed, shape), full(shape) + more
    factors = factorize(kernel, "depthwise", rank, method=method, second_moment=make_moment(kind, seed, shape))
    np.testing.assert_allclose(compose(factors), kernel, atol=1e-9 * np.abs(kernel).max())
    assert factors.error < 1e-9
    for side in (factors.before, factors.kernel.reshape(rank, -1), factors.after.T):
        sizes = np.linalg.norm(side, axis=1)
        assert (sizes > 1e-3 * sizes.max()).all()


@CHECKED
@given(SEED, SHAPES, MOMENT, st.sampled_from(METHODS), st.floats(0.1, 0.9), st.sampled_from(DTYPES))
def test_pieces_and_their_scale(seed, shape, kind, method, part, dtype):
    """All feature maps have one mean square, in front of the taps and behind them."""
    rank = max(1, round(part * full(shape)))
    moment = make_moment(kind, seed, shape)
    kernel = make_kernel(seed, shape).astype(dtype)
    factors = factorize(kernel, "depthwise", rank, method=method, second_moment=moment)
    assert (factors.form, factors.rank) == ("depthwise", rank)
    before, taps, after = factors.pieces
    ones = (1,) * (len(shape) - 2)
    assert before.shape == (rank, shape[1], *ones)
    assert taps.shape == (rank, 1, *shape[2:])
    assert after.shape == (shape[0], rank, *ones)
    assert {piece.dtype for piece in factors.pieces} == {dtype}
    rough = 60 * float(ml_dtypes.finfo(dtype).eps)
    rows = factors.before.astype(np.float64)
    assert np.sum(rows**2) == pytest.approx(rank, rel=rough)
    norm = Norm.of(moment, shape[1], math.prod(shape[2:])).known_to(method)
    channels = np.eye(shape[1]) if norm.channels is None else norm.channels
    in_front = np.einsum("ri,ij,rj->r", rows, channels, rows)
    np.testing.assert_allclose(in_front, in_front.mean(), rtol=rough)
    products = rows[:, :, None] * factors.kernel.astype(np.float64).reshape(rank, 1, -1)
    behind = np.einsum("rik,rik->r", norm.apply(products), products)
    np.testing.assert_allclose(behind, behind.mean(), rtol=max(rough, 1e-3))
    assert factors.error == pytest.approx(relative_error(kernel, compose(factors), moment), rel=1e-4, abs=1e-6)


@CHECKED
@given(SEED, SHAPES, st.sampled_from(["channels", "patches"]), st.floats(0.1, 0.9))
def test_the_norm_of_the_examples_is_worth_having(seed, shape, kind, part):
    kernel, moment = make_kernel(seed, shape), make_moment(kind, seed, shape)
    rank = max(1, round(part * full(shape)))
    errors = {m: factorize(kernel, "depthwise", rank, method=m, second_moment=moment).error for m in METHODS}
    assert errors["als"] <= min(errors.values()) * 1.02 + 1e-3


@CHECKED
@given(SEED, SHAPES, MOMENT)
def test_error_falls_with_the_rank_about_as_the_curve_says(seed, shape, kind):
    kernel, moment = make_kernel(seed, shape), make_moment(kind, seed, shape)
    curve = error_curve(kernel, "depthwise", moment)
    assert curve.shape == (full(shape) + 1,)
    assert (curve[0], curve[-1]) == (1.0, 0.0)
    assert (np.diff(curve) <= 0.0).all()
    previous = 1.0
    for rank in np.unique(np.linspace(1, full(shape), 6).round().astype(int)):
        error = factorize(kernel, "depthwise", int(rank), second_moment=moment).error
        assert error <= previous * 1.02 + 1e-3
        assert error <= 1.15 * math.sqrt(curve[rank]) + 0.02
        previous = error


@CHECKED
@given(SEED, st.sampled_from([(6, 5, 3, 3), (4, 7, 5)]), MOMENT)
def test_the_gradient_is_that_of_the_error(seed, shape, kind):
    kernel, taps = make_kernel(seed, shape), math.prod(shape[2:])
    moment = make_moment(kind, seed, shape)
    problem = _Problem.of(kernel.reshape(*shape[:2], taps), Norm.of(moment, shape[1], taps))
    rows, filters = problem.start(6)
    place = problem._place(rows, filters)
    rng = np.random.default_rng(seed)
    ways = rng.standard_normal(rows.shape), rng.standard_normal(filters.shape)

    def at(step: float) -> float:
        return problem._place(rows + step * ways[0], filters + step * ways[1]).lost

    assert 0.0 < place.lost < 1.0
    slope = float(np.vdot(place.by_rows, ways[0]) + np.vdot(place.by_taps, ways[1]))
    assert (at(1e-5) - at(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-3, abs=1e-6)


@CHECKED
@given(SEED, st.sampled_from([(6, 5, 3, 3), (4, 7, 5)]), MOMENT)
def test_steps_are_measured_by_the_curvature(seed, shape, kind):
    """The way there and back is none, the gradient is that by what is measured, and the first step is one."""
    kernel, taps = make_kernel(seed, shape), math.prod(shape[2:])
    problem = _Problem.of(kernel.reshape(*shape[:2], taps), Norm.of(make_moment(kind, seed, shape), shape[1], taps))
    place = problem._place(*problem.start(6))
    measure = _Measure.at(place, problem.tap_moment, problem.total)
    point, slope = measure.point(place), measure.gradient(place)
    for back, there in zip(measure.parted(point), (place.rows, place.taps), strict=True):
        np.testing.assert_allclose(back, there, rtol=1e-6, atol=1e-8)
    way = np.random.default_rng(seed).standard_normal(len(point))
    way /= np.linalg.norm(way)

    def at(step: float) -> float:
        return problem._place(*measure.parted(point + step * way)).lost

    assert (at(1e-4) - at(-1e-4)) / 2e-4 == pytest.approx(float(slope @ way), rel=1e-3, abs=1e-6)
    down = problem._place(*measure.parted(point - slope / np.linalg.norm(slope)))
    assert down.lost < place.lost


@CHECKED
@given(SEED, st.sampled_from([(6, 5, 3, 3), (4, 7, 5)]), MOMENT, st.integers(1, 6))
def test_more_terms_lose_less_from_the_first_step_on(seed, shape, kind, added):
    kernel, taps = make_kernel(seed, shape), math.prod(shape[2:])
    problem = _Problem.of(kernel.reshape(*shape[:2], taps), Norm.of(make_moment(kind, seed, shape), shape[1], taps))
    few = problem.descended(*problem.start(4), 20)
    rows, filters = problem.more(problem.terms(few), 4 + added)
    assert (len(rows), len(filters)) == (4 + added, 4 + added)
    assert problem._place(rows, filters).lost < few.lost * 1.001


@CHECKED
@given(SEED, st.integers(1, 5))
def test_a_kernel_that_is_a_sum_of_few_products_is_found(seed, rank):
    rng = np.random.default_rng(seed)
    true = Terms(rng.standard_normal((rank, 9)), rng.standard_normal((rank, 9)), rng.standard_normal((12, rank)))
    norm = Norm.of(make_moment("patches", seed, (12, 9, 9)), 9, 9)
    found = separated(true.sum, norm, rank + 1, steps=200)
    assert np.linalg.norm(found.sum - true.sum) < 0.02 * np.linalg.norm(true.sum)


def test_more_steps_and_a_start_get_further():
    kernel, moment = make_kernel(0, (16, 16, 3, 3)), make_moment("patches", 0, (16, 16, 3, 3))
    few = factorize(kernel, "depthwise", 24, second_moment=moment, sweeps=1)
    many = factorize(kernel, "depthwise", 24, second_moment=moment, sweeps=8)
    assert many.error < few.error
    again = factorize(kernel, "depthwise", 24, second_moment=moment, sweeps=1, start=many)
    assert again.error <= many.error * 1.001
    near = factorize(kernel * 1.01, "depthwise", 24, second_moment=moment, sweeps=1, start=many)
    assert near.error < few.error


def test_outputs_that_count_are_kept_better():
    kernel, moment = make_kernel(1, (8, 6, 3, 3)), make_moment("patches", 1, (8, 6, 3, 3))
    gradients = np.diag([100.0, *[1e-3] * 7])
    norm = OutputNorm.of(gradients, 10**6)
    plain = factorize(kernel, "depthwise", 8, second_moment=moment)
    turned = factorize(kernel, "depthwise", 8, second_moment=moment, outputs=norm)
    lost = [np.linalg.norm((compose(one) - kernel)[0]) for one in (plain, turned)]
    assert lost[1] < 0.5 * lost[0]


@CHECKED
@given(SEED, st.sampled_from([(6, 5, 3, 3), (4, 7, 5)]))
def test_what_holds_on_other_patches_is_told_of_the_same_terms(seed, shape):
    kernel, taps = make_kernel(seed, shape), math.prod(shape[2:])
    norms = [Norm.of(make_moment("patches", seed + one, shape), shape[1], taps) for one in (0, 7)]
    promised, judged = held_curves(kernel, *norms, ["depthwise"])
    assert judged["depthwise"][1:-1].sum() > promised["depthwise"][1:-1].sum()
    flat = kernel.reshape(*shape[:2], taps)
    same, also = term_curves(flat, norms[0], norms[0], term_fits(flat, norms[0]))
    np.testing.assert_allclose(same, also)
    np.testing.assert_allclose(promised["depthwise"], same, atol=1e-3)


def test_a_kernel_that_is_zero_is_made_of_nothing():
    factors = factorize(np.zeros((4, 5, 3, 3), np.float32), "depthwise", 3)
    assert not compose(factors).any()
    assert all(np.isfinite(piece).all() for piece in factors.pieces)


def test_a_kernel_without_taps_is_no_sum_of_filtered_maps():
    with pytest.raises(
        PlanError, match="depthwise filters every feature map on its own, and a kernel of 1x1 filters none"
    ):
        factorize(make_kernel(0, (4, 5, 1, 1)), "depthwise", 3)


def test_where_nothing_comes_out_any_terms_do():
    """The kernel reads one channel, and no example has anything there."""
    kernel, moment = np.zeros((4, 5, 3, 3)), make_moment("patches", 0, (4, 5, 3, 3))
    kernel[:, 0] = 1.0
    moment[:9], moment[:, :9] = 0.0, 0.0
    factors = factorize(kernel, "depthwise", 3, second_moment=moment)
    assert all(np.isfinite(piece).all() for piece in factors.pieces)


def test_factors_to_start_from_are_told_by_what_they_make():
    kernel = make_kernel(0, (6, 5, 3, 3))
    both = factorize(kernel, "reduce_expand", 3)
    assert factorize(kernel, "reduce_expand", 3, start=both).rank == (3, 3)
    with pytest.raises(PlanError, match=r"the factors to start from are reduce_expand at rank \(3, 3\)"):
        factorize(kernel, "depthwise", 3, start=both)
    with pytest.raises(PlanError, match=r"of a kernel \(6, 5, 3, 3\), not depthwise at rank 4 of one \(6, 4, 3, 3\)"):
        factorize(kernel[:, :4], "depthwise", 4, start=factorize(kernel, "depthwise", 4))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.64])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (24, 20, 3, 3)])
def test_fits_of_a_curve_are_good_to_start_from(shape, share):
    """The next larger one: in fewer steps about where more of them lead from singular values."""
    rank, ratios = max(1, round(share * even_terms(shape[1], shape[0], 9))), []
    for seed in range(6):
        kernel, norm = make_kernel(seed, shape), Norm.of(make_moment("patches", seed, shape), shape[1], 9)
        fits = depthwise_fits(kernel, norm)
        start = next(one for one in fits if len(one.rows) >= rank)
        alone, begun = (
            factorize(kernel, "depthwise", rank, second_moment=norm, sweeps=TRIAL_SWEEPS, start=one)
            for one in (None, start)
        )
        assert (begun.rank, compose(begun).shape) == (rank, shape)
        ratios.append(math.log(begun.error / alone.error))
    assert np.mean(ratios) < math.log(1.07)


def test_a_fit_is_what_its_factors_compute():
    """With outputs that count differently, and terms of another kernel are refused."""
    shape = (6, 5, 3, 3)
    kernel = make_kernel(3, shape).astype(np.float32)
    outputs = OutputNorm.of(np.diag(np.arange(1.0, 7.0)), 10**6)
    norm = Norm.of(make_moment("patches", 3, shape), 5, 9)
    fit = depthwise_fits(outputs.turn(kernel.astype(np.float64)), norm)[-1]
    factors = fitted_factors(fit, kernel, outputs, 0.1)
    assert (factors.form, factors.rank, factors.error) == ("depthwise", len(fit.rows), 0.1)
    np.testing.assert_allclose(
        outputs.turn(compose(factors).astype(np.float64)).reshape(6, 5, 9), fit.sum, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(PlanError, match="nothing to start depthwise of"):
        factorize(make_kernel(3, (6, 4, 3, 3)), "depthwise", 3, start=fit)
    with pytest.raises(PlanError, match="nothing to start reduce of"):
        factorize(kernel, "reduce", 3, start=fit)
