"""Triangular and Cholesky solves of SciPy, which is imported with the first of them, not with the package."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cho_factor(matrix: Array) -> Any:
    """Lower Cholesky factor of a positive definite matrix, as `cho_solve` takes it.

    Raises:
        LinAlgError: It is not positive definite.
    """
    import scipy.linalg

    return scipy.linalg.cho_factor(matrix, lower=True, check_finite=False)


def cho_solve(factor: Any, right: Array) -> Array:
    """Solve for what `cho_factor` gave, or for a lower triangle and True."""
    import scipy.linalg

    return cast(Array, scipy.linalg.cho_solve(factor, right, check_finite=False))


def solve_lower(triangle: Array, right: NDArray[Any]) -> Array:
    """Solve for a lower triangle."""
    import scipy.linalg

    return cast(Array, scipy.linalg.solve_triangular(triangle, right, lower=True, check_finite=False))


def hadamard(size: int) -> Array:
    """Hadamard matrix of a power of two."""
    import scipy.linalg

    return cast(Array, scipy.linalg.hadamard(size).astype(np.float64))
