"""Which errors of outputs count: the output side of the norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.numerics.factorize import compose, factorize
from onnx_pointwise.numerics.outputs import OutputNorm

CHECKED = settings(derandomize=True, deadline=None, max_examples=30)
SEEDS = st.integers(0, 2**31)


def gradients(seed: int, outputs: int, count: int) -> np.ndarray:
    """Sum of g g^T, some directions far stronger than others."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, outputs)) * np.exp(-np.arange(outputs) / 2.0)
    turn = np.linalg.qr(rng.standard_normal((outputs, outputs)))[0]
    return turn @ drawn.T @ drawn @ turn.T


@CHECKED
@given(SEEDS, st.integers(1, 8), st.integers(1, 200), st.floats(1e-6, 1e6))
def test_a_norm_and_its_inverse_go_together(seed: int, outputs: int, count: int, scale: float) -> None:
    summed = gradients(seed, outputs, count)
    norm, same = OutputNorm.of(summed, count), OutputNorm.of(scale * summed, count)
    assert norm is not None and same is not None
    np.testing.assert_allclose(norm.root, norm.root.T, atol=1e-9)
    np.testing.assert_allclose(norm.root @ norm.inverse, np.eye(outputs), atol=1e-8)
    np.testing.assert_allclose(norm.root, same.root, rtol=1e-6, atol=1e-9)
    assert np.linalg.eigvalsh(norm.root).min() >= 0.0999
    kernel = np.random.default_rng(seed).standard_normal((outputs, 3, 2))
    np.testing.assert_allclose(norm.back(norm.turn(kernel)), kernel, atol=1e-8)


def test_of_many_samples_it_is_what_they_say_and_of_one_it_is_near_nothing() -> None:
    summed = gradients(0, 5, 100_000)
    many, one = OutputNorm.of(summed, 100_000), OutputNorm.of(summed, 1)
    assert many is not None and one is not None
    measured = summed * 5 / np.trace(summed)
    values, vectors = np.linalg.eigh(measured)
    lifted = (vectors * np.maximum(values, 1e-2)) @ vectors.T
    np.testing.assert_allclose(many.root @ many.root, lifted, atol=1e-2)
    assert np.abs(one.root - np.eye(5)).max() < np.abs(many.root - np.eye(5)).max()


@CHECKED
@given(SEEDS, st.integers(2, 8), st.floats(-6, 6))
def test_outputs_of_other_units_are_measured_in_their_own(seed: int, outputs: int, decades: float) -> None:
    """What is measured in millimetres counts as it does in kilometres."""
    rng = np.random.default_rng(seed)
    summed = gradients(seed, outputs, 40)
    factors = np.where(rng.random(outputs) < 0.5, 1.0, 10.0**decades)
    norm, other = OutputNorm.of(summed, 40), OutputNorm.of(summed * np.outer(factors, factors), 40, factors)
    assert norm is not None and other is not None
    kernel = rng.standard_normal((outputs, 3, 2))
    smaller = kernel / factors[:, None, None]
    np.testing.assert_allclose(other.turn(smaller), norm.turn(kernel), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(other.back(other.turn(smaller)), smaller, rtol=1e-6, atol=1e-9 / factors.min())


@pytest.mark.parametrize("summed", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.diag([1.0, np.inf, 1.0])])
def test_without_gradients_there_is_none(summed: np.ndarray) -> None:
    assert OutputNorm.of(summed, 10) is None


@pytest.mark.parametrize(("form", "rank"), [("reduce", 3), ("expand", 3), ("reduce_expand", (4, 4))])
def test_factors_lose_less_where_it_counts(form, rank) -> None:
    """In tr(G D S D^T) they beat those of the plain norm, and at full rank nothing is lost."""
    ratios = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        kernel = rng.standard_normal((6, 5, 2, 2))
        moment = np.cov(rng.standard_normal((60, 20)) @ rng.standard_normal((20, 20)), rowvar=False)
        norm = OutputNorm.of(gradients(seed, 6, 500), 500)
        assert norm is not None
        lost = []
        for outputs in (None, norm):
            made = factorize(kernel, form, rank, second_moment=moment, outputs=outputs)
            gap = norm.turn(compose(made) - kernel).reshape(6, -1)
            lost.append(math.sqrt(np.vdot(gap @ moment, gap)))
        ratios.append(lost[1] / lost[0])
    assert np.mean(ratios) < 0.97
    full = {"reduce": 5, "expand": 6, "reduce_expand": (5, 6)}[form]
    np.testing.assert_allclose(compose(factorize(kernel, form, full, outputs=norm)), kernel, atol=1e-9)
