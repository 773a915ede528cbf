"""Examples that lead to numbers nothing can be learned from are named, with the value, and nothing else is printed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import find_sites, load
from onnx_pointwise.study import collect
from onnx_pointwise.study.overflow import overflowing
from onnx_pointwise.study.survey import study
from tests.graphs import make_model, normal, value
from tests.networks import EFFORT, examples, prepared, residual

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (np.nan, r"Calibration input 'x' holds NaN, first in example 9; check its range\."),
        (np.inf, r"Calibration input 'x' holds infinity, first in example 9; check its range\."),
        (3e38, r"Calibration input 'x' holds numbers up to 3e\+38, whose squares overflow, first in example 9; check"),
        (
            1.5e19,
            r"The calibration inputs lead to numbers up to .*e\+.., whose squares overflow at '.+', which '.+' reads, "
            r"first in example 9; check their range\.",
        ),
    ],
)
def test_the_first_example_and_value_are_named(
    number: float, said: str, stationary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every eighth example is held back; they are counted as they were given."""
    if stationary:
        monkeypatch.setattr(collect, "EXACT", 1)
    model = residual()
    shapes, sites = prepared(model)
    if "lead to" not in said:  # with the one that reads the input
        sites = find_sites(model, shapes, min_channels=1)
    inputs = examples(24)
    inputs["x"][[9, 13]] = number
    with pytest.raises(InputError, match=said):
        study(model, shapes, sites, inputs, effort=EFFORT)


def test_where_no_number_is_to_blame_none_is_named() -> None:
    shapes, sites = prepared(residual())
    assert overflowing(shapes, sites, examples(6), batch=4, threads=1) is None


def test_trials_that_overflow_are_left_out_in_silence() -> None:
    """Sums of squares still hold such an example, but not what factors that it dominates make of the others."""
    nodes = [helper.make_node("Conv", ["x", "W"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["y"])]
    model = load(make_model(nodes, [value("x", ["n", 32, 16, 16])], [value("y", None)], {"W": normal(64, 32, 3, 3)}))
    shapes, sites = prepared(model)
    inputs = normal(32, 32, 16, 16)
    inputs[4] *= 1e15
    study(model, shapes, sites, {"x": inputs}, effort=EFFORT)
