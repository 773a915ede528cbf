"""Whole jobs on a small U-Net: its transposed convolutions are rewritten like the others, and that is worth it."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

import onnx_pointwise
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.numerics import relative_drift
from onnx_pointwise.reports import terminal
from tests.networks import examples, run, unet

UP = ["n6", "n9"]
QUICK: dict[str, Any] = {"provider": "none", "latency": False, "threads": 1}


def drift(model: ir.Model, after: ir.Model) -> float:
    """Relative L2 on examples that nobody has seen."""
    fresh = examples(64, seed=9)
    ((before,), (now,)) = run(model, fresh), run(after, fresh)
    assert before.shape == now.shape
    found = relative_drift(before, now)
    assert found is not None
    return float(np.sqrt(found))


def test_a_network_gains_from_them() -> None:
    """At the same share of the arithmetic it keeps its answers, where without them it loses twice as much."""
    model, images = unet(), examples(96)["x"]
    result = onnx_pointwise.rewrite(model, target_macs=0.7, calibration=images, **QUICK)
    assert {site.name for site in result.sites if site.form} >= set(UP)
    assert result.check is not None
    assert result.check.shapes_equal
    without = onnx_pointwise.rewrite(model, target_macs=0.7, calibration=images, nodes_to_exclude=UP, **QUICK)
    assert result.after.macs <= 0.7 * result.before.macs
    assert drift(model, result.model) < 0.6 * drift(model, without.model)

    # What was promised is what came, and what was planned gives the same bytes again.
    assert result.calibrated is not None
    assert result.calibrated.predicted == pytest.approx(drift(model, result.model), rel=0.5)
    again = onnx_pointwise.rewrite(model, plan=result.plan, calibration=images, **QUICK)
    assert serialize(again.model) == serialize(result.model)
    told = json.loads(json.dumps(result.to_dict()))
    assert {site["name"] for site in told["sites"] if site["form"]} >= set(UP)


def test_the_sites_are_looked_at_as_the_network_reads_them() -> None:
    """Moments, gradients and refit agree on what they are: a refit that knows them beats the kernels alone."""
    model, images = unet(3), examples(96)["x"]
    plan = onnx_pointwise.rewrite(model, ranks={"n6": 7, "n9": 6}, calibration=None, **QUICK)
    fitted = onnx_pointwise.rewrite(model, ranks={"n6": 7, "n9": 6}, calibration=images, **QUICK)
    assert set(plan.plan.choices) == set(fitted.plan.choices) == set(UP)
    assert drift(model, fitted.model) < 0.7 * drift(model, plan.model)


@pytest.mark.parametrize("maps", [7, 20, 24])
def test_a_1x1_goes_in_front_of_one(maps: int) -> None:
    model = unet()
    result = onnx_pointwise.insert_pointwise(model, "n6", maps, calibration=None, latency=False)
    graph = serialize(result.model).graph
    weights = {item.name: tuple(item.dims) for item in graph.initializer}
    (front,) = [node for node in graph.node if node.name == "n6_reduce"]
    (kept,) = [node for node in graph.node if node.name == "n6"]
    assert (front.op_type, kept.op_type) == ("Conv", "ConvTranspose")
    assert (weights[front.input[1]], weights[kept.input[1]]) == ((maps, 20, 1, 1), (maps, 16, 4, 4))
    assert (drift(model, result.model) < 1e-5) == (maps >= 20)


def test_inspect_shows_them() -> None:
    found = onnx_pointwise.inspect(unet())
    told = {site["name"]: site for site in found.to_dict()["sites"]}
    up = told["n6"]
    assert (up["op_type"], up["strides"], up["refusal"]) == ("ConvTranspose", [2, 2], None)
    assert up["macs"] == 3 * 3 * 20 * 16 * 16
    assert len(up["singular_values"]) == 20
    console = Console(file=StringIO(), width=120)
    console.print(terminal.inspection(found))
    assert isinstance(console.file, StringIO)
    assert "4x4↑2" in console.file.getvalue()
    assert "3x3/2" in console.file.getvalue()
