"""The basis between two factors: what makes it the one that rounding hurts least."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.numerics.basis import cosines, even_rotation, quiet_basis

CHECKED = settings(derandomize=True, deadline=None, max_examples=60)
SEED = st.integers(0, 2**32 - 1)
SIZE = st.sampled_from([1, 2, 3, 5, 8, 12, 17, 24, 33])


def moment(seed: int, size: int, decay: float) -> np.ndarray:
    mix = np.random.default_rng(seed).standard_normal((size, 2 * size)) * decay ** np.arange(size)[:, None]
    return mix @ mix.T


def noise(turn: np.ndarray, crossing: np.ndarray, gram: np.ndarray) -> float:
    """One range for all feature maps, that of the widest, times what reads them."""
    back = np.linalg.inv(turn)
    return float(np.diagonal(turn @ crossing @ turn.T).max() * np.trace(back.T @ gram @ back))


@CHECKED
@given(SEED, SIZE, st.floats(0.7, 1.0))
def test_both_matrices_become_one_with_an_even_diagonal(seed, size, decay):
    crossing, gram = moment(seed, size, decay), moment(seed + 1, size, decay)
    turn, back = quiet_basis(crossing, gram)
    np.testing.assert_allclose(turn @ back, np.eye(size), atol=1e-9)
    one, other = turn @ crossing @ turn.T, back.T @ gram @ back
    np.testing.assert_allclose(one, other, atol=2e-3 * np.trace(one))
    np.testing.assert_allclose(np.diagonal(one), np.trace(one) / size, rtol=3e-3)


@CHECKED
@given(SEED, SIZE, st.floats(0.7, 1.0))
def test_no_other_basis_is_quieter(seed, size, decay):
    crossing, gram = moment(seed, size, decay), moment(seed + 1, size, decay)
    best = noise(quiet_basis(crossing, gram)[0], crossing, gram)
    rng = np.random.default_rng(seed)
    axes = np.linalg.eigh(crossing)[1].T
    tried = [np.eye(size), axes, *(rng.standard_normal((size, size)) for _ in range(5))]
    near = [quiet_basis(crossing, gram)[0] @ (np.eye(size) + 0.1 * rng.standard_normal((size, size))) for _ in "12345"]
    assert best <= min(noise(turn, crossing, gram) for turn in [*tried, *near]) * 1.002


@CHECKED
@given(SEED, SIZE, st.floats(0.5, 1.0))
def test_a_rotation_evens_any_spectrum(seed, size, decay):
    spread = decay ** np.arange(size) * np.random.default_rng(seed).uniform(0.5, 1.0, size)
    turn = even_rotation(spread)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(np.diagonal((turn * spread) @ turn.T), spread.mean(), rtol=1e-8)


@pytest.mark.parametrize("dead", [0, 3, 7, 8])
def test_directions_that_nothing_reaches_or_reads_leave_it_well_conditioned(dead):
    crossing, gram = moment(0, 8, 0.9), moment(1, 8, 0.9)
    crossing[:dead] = crossing[:, :dead] = 0.0
    gram[8 - dead :] = gram[:, 8 - dead :] = 0.0
    turn, back = quiet_basis(crossing, gram)
    np.testing.assert_allclose(turn @ back, np.eye(8), atol=1e-6)
    assert np.linalg.cond(turn) < 1e5


def test_same_input_same_bytes():
    first, second = (quiet_basis(moment(2, 12, 0.8), moment(3, 12, 0.8)) for _ in range(2))
    assert [part.tobytes() for part in first] == [part.tobytes() for part in second]


def test_cosines_are_orthonormal():
    matrix = cosines(7, 4)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-12)
