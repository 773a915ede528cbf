"""Outputs whose channels are of different units: each says the same afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import onnx_pointwise
from onnx_pointwise.graph.model_io import to_bytes
from tests.graphs import Array, make_model, normal, run, value

SIZE, HALF = 12, 4


def answers(scale: float) -> bytes:
    """Two convolutions, behind which half of the channels are multiplied."""
    nodes = [
        helper.make_node("Conv", ["x", "V"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "W"], ["c"], name="second", pads=[1] * 4),
        helper.make_node("Mul", ["c", "unit"], ["y"], name="units"),
    ]
    few = np.tensordot(normal(2 * HALF, 5, seed=2), normal(5, 24, 3, 3, seed=3), 1)  # the rest is small
    weights = {
        "V": normal(24, 12, 3, 3) / 10,
        "W": (few + 0.1 * normal(2 * HALF, 24, 3, 3, seed=4)) / 30,
        "unit": np.repeat([scale, 1.0], HALF).astype(np.float32).reshape(-1, 1, 1),
    }
    shape = ["N", 12, SIZE, SIZE]
    model = make_model(nodes, [value("x", shape)], [value("y", ["N", 2 * HALF, SIZE, SIZE])], weights)
    return model.SerializeToString()


def drifts(before: Array, after: Array) -> list[float]:
    """Relative L2 drift of each half."""
    found = []
    for half in (slice(0, HALF), slice(HALF, None)):
        error = np.linalg.norm(after[:, half] - before[:, half])
        found.append(float(error / np.linalg.norm(before[:, half] - before[:, half].mean((0, 2, 3), keepdims=True))))
    return found


def rewritten(scale: float) -> tuple[list[float], float | None]:
    """Drift of each half after a rewrite, on other inputs, and what the check says of the whole."""
    seen, other = normal(48, 12, SIZE, SIZE, seed=5), normal(16, 12, SIZE, SIZE, seed=6)
    result = onnx_pointwise.rewrite(
        answers(scale), calibration={"x": seen}, target_macs=0.7, provider="none", latency=False
    )
    assert result.check is not None and all(site.form is not None for site in result.sites)
    found = drifts(run(answers(scale), x=other)[0], run(to_bytes(result.model), x=other)[0])
    return found, result.check.heads[0].drift


@pytest.mark.parametrize("scale", [1e-4, 100.0, 1e4])
def test_what_is_kept_of_an_output_does_not_depend_on_units(scale: float) -> None:
    """In one norm over all of it, the smaller unit would be given away."""
    found, said = rewritten(scale)
    expected, _ = rewritten(1.0)
    assert found == pytest.approx(expected, rel=0.1)
    assert said == pytest.approx(np.sqrt(np.mean(np.square(found))), rel=0.1)


def test_a_unit_that_is_lost_is_seen() -> None:
    """Half of the channels say nothing of what they said, and they are a millionth of the norm."""
    inputs = {"x": normal(32, 12, SIZE, SIZE, seed=7)}
    dense = answers(1e4)
    lost = onnx_pointwise.rewrite(
        dense, ranks={"second": 4}, forms=["expand"], calibration="none", provider="none", latency=False
    )
    found = drifts(run(dense, **inputs)[0], run(to_bytes(lost.model), **inputs)[0])
    assert found[0] < 0.2 < 0.5 < found[1]
    check = onnx_pointwise.check(dense, to_bytes(lost.model), inputs=inputs, latency=False)
    assert check.heads[0].verdict == "broken" and not check.passed
