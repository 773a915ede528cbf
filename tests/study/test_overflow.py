"""Examples that lead to numbers nothing can be learned from are named, with the value, and nothing else is printed."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import find_sites
from onnx_pointwise.study import collect
from onnx_pointwise.study.overflow import overflowing
from onnx_pointwise.study.survey import study
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
    shapes, _ = prepared(model)
    sites = find_sites(model, shapes, min_channels=1)
    inputs = examples(24)
    inputs["x"][[9, 13]] = number
    with pytest.raises(InputError, match=said):
        study(model, shapes, sites, inputs, effort=EFFORT)


def test_where_no_number_is_to_blame_none_is_named() -> None:
    shapes, sites = prepared(residual())
    assert overflowing(shapes, sites, examples(6), batch=4, threads=1) is None
