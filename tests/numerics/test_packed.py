import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnx_pointwise.numerics import Packed
from tests.graphs import normal


@given(st.integers(1, 40))
def test_a_symmetric_matrix_comes_back_as_it_was(size: int) -> None:
    matrix = normal(size, size)
    matrix = (matrix + matrix.T).astype(np.float32)
    packed = Packed.of(matrix)
    assert packed.numbers.size == size * (size + 1) // 2
    assert np.array_equal(packed.full(), matrix)
