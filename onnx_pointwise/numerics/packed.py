"""Symmetric matrices in half the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Packed:
    """The upper triangle of a symmetric matrix, row by row.

    Attributes:
        numbers: float32 [d (d + 1) / 2].
        size: d.
    """

    numbers: Array32
    size: int

    @staticmethod
    def of(matrix: NDArray[Any]) -> Packed:
        """Pack a matrix [d, d]; what lies below its diagonal is not looked at."""
        size = len(matrix)
        numbers = np.empty(size * (size + 1) // 2, np.float32)
        start = 0
        for row in range(size):
            numbers[start : start + size - row] = matrix[row, row:]
            start += size - row
        return Packed(numbers, size)

    def full(self) -> Array32:
        """The matrix, float32 [d, d], made anew."""
        size, start = self.size, 0
        matrix = np.empty((size, size), np.float32)
        for row in range(size):
            half = self.numbers[start : start + size - row]
            matrix[row, row:] = half
            matrix[row:, row] = half
            start += size - row
        return matrix
