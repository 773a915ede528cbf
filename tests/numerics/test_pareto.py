"""Which trades are worth considering, against their definition."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnx_pointwise.numerics import knee, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(POINTS)
def test_a_point_is_on_the_front_where_no_other_one_equals_or_beats_it(points: list[tuple[int, int]]) -> None:
    kept = pareto_front([cost for cost, _ in points], [loss for _, loss in points])
    for index, (cost, loss) in enumerate(points):
        better = any(
            other[0] <= cost and other[1] <= loss and (other != (cost, loss) or place < index)
            for place, other in enumerate(points)
            if place != index
        )
        assert bool(kept[index]) == (not better)


def test_what_is_no_number_is_not_on_the_front() -> None:
    assert pareto_front([1.0, 0.5, math.nan], [0.0, math.nan, 0.0]).tolist() == [True, False, False]
    assert pareto_front([], []).tolist() == []


@given(st.integers(1, 8), st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_knee_of_a_bent_line_is_where_it_bends_in_any_unit(at: int, wide: float, high: float) -> None:
    x = np.arange(10.0)
    y = np.where(x < at, 10.0 - 9.0 * x / at, 1.0 - (x - at) / (9.0 - at))
    assert knee(wide * x, high * y) == at


def test_a_line_has_no_knee_nor_has_what_bulges_out() -> None:
    assert knee([0.0, 1.0, 2.0], [2.0, 1.0, 0.0]) is None
    assert knee([0.0, 1.0, 2.0], [2.0, 1.9, 0.0]) is None
    assert knee([0.0, 1.0], [1.0, 0.0]) is None
    assert knee([1.0, 1.0, 1.0], [2.0, 1.0, 0.0]) is None
