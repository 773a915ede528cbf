"""Drawn images that are moved until normalisations see what they saw in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnx_pointwise.graph import running_statistics
from onnx_pointwise.graph.model_io import load
from onnx_pointwise.runtime import resolve
from onnx_pointwise.runtime.segments import Piece, without_shapes
from onnx_pointwise.study.distilled import Distilled, distilled
from tests.graphs import make_model, value
from tests.remembering import SIZE, drawn, network, photographs

Array = np.ndarray[Any, Any]


def moved(model: Any, images: Array, **options: Any) -> Distilled | None:
    return distilled(resolve(model), {"x": images}, **{"macs": 10**4, "memory": 2**28, "threads": 1} | options)


def off(model: Any, images: Array) -> float:
    """How far means and deviations at the normalisations are off, by a run."""
    layers = [node for node in model.graph if running_statistics(node) is not None]
    names = [str(node.inputs[0].name) for node in layers]
    told = []
    for node, seen in zip(layers, Piece(without_shapes(model), ["x"], names).run({"x": images}), strict=True):
        mean, variance = running_statistics(node) or (np.zeros(0), np.zeros(0))
        deviation = np.sqrt(variance)
        told.append(((seen.mean((0, 2, 3)) - mean) / deviation, seen.std((0, 2, 3)) / deviation - 1.0))
    return float(np.sqrt(np.mean([np.mean(one**2) for pair in told for one in pair])))


def test_normalisations_see_in_moved_images_what_they_saw_in_training() -> None:
    model, images = network(photographs(64)), drawn(40)
    found = moved(model, images)
    assert found is not None
    assert found.layers == 2
    assert found.before == pytest.approx(off(model, images), rel=1e-3)
    assert found.after == pytest.approx(off(model, found.inputs["x"]), rel=1e-3)
    assert found.after < 0.3 * found.before
    assert found.inputs["x"].shape == images.shape
    assert found.inputs["x"].min() >= images.min()
    assert found.inputs["x"].max() <= images.max(), "pixels stay within their range"


def test_images_are_moved_to_the_same_place_each_time_and_well_one_by_one() -> None:
    model, images = network(photographs(64)), drawn(24)
    one, again = moved(model, images), moved(model, images)
    assert one is not None and again is not None
    np.testing.assert_array_equal(one.inputs["x"], again.inputs["x"])
    alone = moved(network(photographs(64), batch=1), images, batch=1)
    assert alone is not None
    assert alone.after < 0.4 * alone.before, "no image by itself has the statistics of all"


def test_a_last_batch_that_is_not_full_is_left_out() -> None:
    found = moved(network(photographs(64), batch=16), drawn(40), batch=16)
    assert found is not None
    assert len(found.inputs["x"]) == 32
    assert found.after < 0.4 * found.before


def test_images_that_overflow_are_left_as_they_are_without_a_warning() -> None:
    assert moved(network(photographs(64)), 1e30 * drawn(32)) is None


def test_a_map_that_is_dead_does_not_drown_the_others() -> None:
    model = network(photographs(64), dead=True)
    found, without = moved(model, drawn(32)), moved(network(photographs(64)), drawn(32))
    assert found is not None and without is not None
    assert found.after < 0.5 * found.before
    assert found.after < 1.5 * without.after, "it is as dead as it was"


def test_few_of_a_large_network_are_moved() -> None:
    images = drawn(80)
    found = moved(network(photographs(64)), images, macs=10**12)
    assert found is not None
    assert len(found.inputs["x"]) == 24


@pytest.mark.parametrize("name", ["no normalisation", "statistics that are inputs", "bytes", "nothing to gain"])
def test_where_nothing_is_to_be_had_images_stay_as_they_are(name: str) -> None:
    model, images = network(photographs(64)), drawn(32)
    if name == "no normalisation":
        weight = np.ones((4, 3, 3, 3), np.float32)
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
        model = load(
            make_model([node], [value("x", ["N", 3, SIZE, SIZE])], [value("y", ["N", 4, SIZE, SIZE])], {"w": weight})
        )
    elif name == "statistics that are inputs":
        model = network(loose=True)
    elif name == "bytes":
        images = images.astype(np.uint8)
    else:
        images = photographs(64)
    assert moved(model, images) is None


def test_statistics_of_training_are_told_from_those_of_a_batch() -> None:
    known = next(node for node in network(photographs(8)).graph if node.op_type == "BatchNormalization")
    assert running_statistics(known) is not None
    assert all(running_statistics(node) is None for node in network(loose=True).graph)
