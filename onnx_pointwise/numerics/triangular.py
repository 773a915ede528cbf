"""Cholesky factors and triangular solves, block by block.

Those of SciPy keep the interpreter's lock, so that all other threads wait; products of NumPy do not, and most of the
work is in them. NumPy's own factor copies across rows, and takes as long in float32 as in float64. SciPy is imported
with the first Hadamard matrix, not with the package.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.numerics.forms import AnyArray

Array = NDArray[np.float64]

# Rows that are solved for at once.
_BLOCK = 64


def cholesky(symmetric: AnyArray) -> AnyArray:
    """Lower factor of a positive definite matrix, in its type.

    Raises:
        LinAlgError: It is not positive definite, as far as rounding shows.
    """
    lower = np.zeros_like(symmetric)
    for start in range(0, len(symmetric), _BLOCK):
        stop = min(start + _BLOCK, len(symmetric))
        panel = symmetric[start:, start:stop] - lower[start:, :start] @ lower[start:stop, :start].T
        corner = np.linalg.cholesky(panel[: stop - start])
        lower[start:stop, start:stop] = corner
        lower[stop:, start:stop] = panel[stop - start :] @ np.linalg.inv(corner).T
    return lower


def sturdy_cholesky(symmetric: AnyArray) -> AnyArray:
    """Lower factor of a positive semidefinite matrix as rounding has left it, in its type.

    Moments summed from float32 products have eigenvalues that are zero but for rounding; what is below the rounding
    is lifted to it.
    """
    identity = np.eye(len(symmetric), dtype=symmetric.dtype)
    level = max(float(np.trace(symmetric)) / len(symmetric), np.finfo(np.float64).tiny)
    coarse = symmetric.dtype == np.float32
    for jitter in (0.0, 1e-5, 1e-4) if coarse else (0.0, 1e-12, 1e-9):
        try:
            shifted = symmetric if jitter == 0.0 else symmetric + (jitter * level) * identity
            return cholesky(shifted)
        except np.linalg.LinAlgError:
            continue
    values, vectors = np.linalg.eigh(symmetric)
    root = vectors * np.sqrt(np.maximum(values, (1e-4 if coarse else 1e-7) * level))
    return np.asarray(np.linalg.qr(root.T, mode="r")).T


def cho_solve(lower: AnyArray, right: AnyArray) -> AnyArray:
    """Solve L L^T x = right for a lower triangle L[n, n] and right [n, m], in their type."""
    return _solve_upper(lower, solve_lower(lower, right))


def solve_lower_transposed(lower: AnyArray, right: AnyArray) -> AnyArray:
    """Solve x L = right for a lower triangle L[n, n] and right [m, n], in their type."""
    return _solve_upper(lower, np.array(right.T, dtype=np.result_type(lower, right), order="C")).T


def _solve_upper(lower: AnyArray, solved: AnyArray) -> AnyArray:
    """Solve L^T x = solved in place."""
    for start in range((len(lower) - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
        stop = min(start + _BLOCK, len(lower))
        if stop < len(lower):
            solved[start:stop] -= lower[stop:, start:stop].T @ solved[stop:]
        solved[start:stop] = np.linalg.inv(lower[start:stop, start:stop]).T @ solved[start:stop]
    return solved


def solve_lower(triangle: AnyArray, right: AnyArray) -> AnyArray:
    """Solve L x = right for a lower triangle L[n, n] and right [n, m], in their type."""
    solved = np.array(right, dtype=np.result_type(triangle, right), order="C")
    for start in range(0, len(triangle), _BLOCK):
        stop = min(start + _BLOCK, len(triangle))
        if start:
            solved[start:stop] -= triangle[start:stop, :start] @ solved[:start]
        solved[start:stop] = np.linalg.inv(triangle[start:stop, start:stop]) @ solved[start:stop]
    return solved


def hadamard(size: int) -> Array:
    """Hadamard matrix of a power of two."""
    import scipy.linalg

    return cast(Array, scipy.linalg.hadamard(size).astype(np.float64))
