"""Small networks of the kinds that people deploy, whose answers a check has to judge."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.graphs import Array, make_model, normal, value

CHANNELS, SIZE = 6, 16


def _trunk() -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Two convolutions that all of them begin with, x -> b."""
    nodes = [
        helper.make_node("Conv", ["x", "W1"], ["a0"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a0"], ["a"], name="relu1"),
        helper.make_node("Conv", ["a", "W2"], ["b0"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b0"], ["b"], name="relu2"),
    ]
    weights = {"W1": normal(16, CHANNELS, 3, 3) / 7, "W2": normal(16, 16, 3, 3, seed=1) / 9}
    return nodes, weights


def _input() -> onnx.ValueInfoProto:
    return value("x", ["N", CHANNELS, SIZE, SIZE])


def _pooled(columns: int, *, seed: int) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """The trunk, pooled and mixed: x -> m0, [N, columns]."""
    nodes, weights = _trunk()
    nodes += [
        helper.make_node("AveragePool", ["b"], ["p"], name="pool", kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Sub", ["f", "mean"], ["c"], name="centre"),
        helper.make_node("MatMul", ["c", "M"], ["m0"], name="last"),
    ]
    weights |= {"M": 4 * normal(64, columns, seed=seed), "mean": np.full(64, 0.32, np.float32)}
    return nodes, weights


def classifier() -> onnx.ModelProto:
    """Ten classes behind a Softmax."""
    nodes, weights = _pooled(10, seed=2)
    nodes.append(helper.make_node("Softmax", ["m0"], ["y"], name="softmax"))
    return make_model(nodes, [_input()], [value("y", ["N", 10])], weights)


def descriptor() -> onnx.ModelProto:
    """Sixteen plain numbers."""
    nodes, weights = _pooled(16, seed=3)
    nodes.append(helper.make_node("Identity", ["m0"], ["y"], name="same"))
    return make_model(nodes, [_input()], [value("y", ["N", 16])], weights)


def detector() -> onnx.ModelProto:
    """Boxes in pixels and the scores of three classes in one tensor, as YOLO writes them."""
    nodes, weights = _trunk()
    nodes += [
        helper.make_node("Conv", ["b", "WB"], ["box"], name="boxes"),
        helper.make_node("Mul", ["box", "pixels"], ["scaled"], name="to_pixels"),
        helper.make_node("Conv", ["b", "WS", "BS"], ["score"], name="scores"),
        helper.make_node("Sigmoid", ["score"], ["sure"], name="sigmoid"),
        helper.make_node("Concat", ["scaled", "sure"], ["all"], name="both", axis=1),
        helper.make_node("Reshape", ["all", "shape"], ["y"], name="flat"),
    ]
    weights |= {
        "WB": normal(4, 16, 1, 1, seed=4) / 4,
        "pixels": np.array(320.0, np.float32),
        "WS": normal(3, 16, 1, 1, seed=5) / 2,
        "BS": np.full(3, -0.8, np.float32),
        "shape": np.array([0, 7, -1], np.int64),
    }
    return make_model(nodes, [_input()], [value("y", ["N", 7, SIZE * SIZE])], weights)


def painter() -> onnx.ModelProto:
    """A picture between 0 and 1."""
    nodes, weights = _trunk()
    nodes += [
        helper.make_node("Conv", ["b", "WP"], ["paint"], name="paint", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["paint"], ["y"], name="sigmoid"),
    ]
    weights["WP"] = normal(3, 16, 3, 3, seed=6) / 3
    return make_model(nodes, [_input()], [value("y", ["N", 3, SIZE, SIZE])], weights)


def finder() -> onnx.ModelProto:
    """Classes of two anchors at each place, which a Reshape alone sets side by side, as SSD has them."""
    nodes, weights = _trunk()
    nodes += [
        helper.make_node("Conv", ["b", "WA"], ["anchors"], name="anchors"),
        helper.make_node("Transpose", ["anchors"], ["last"], name="turn", perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "shape"], ["rows"], name="rows"),
        helper.make_node("Softmax", ["rows"], ["y"], name="softmax", axis=2),
    ]
    weights |= {"WA": normal(10, 16, 1, 1, seed=7), "shape": np.array([0, -1, 5], np.int64)}
    return make_model(nodes, [_input()], [value("y", ["N", 2 * SIZE * SIZE, 5])], weights)


#: Each by name, with the kind of its heads.
NETWORKS: dict[str, tuple[Callable[[], onnx.ModelProto], set[str]]] = {
    "classifier": (classifier, {"classes"}),
    "descriptor": (descriptor, {"numbers"}),
    "detector": (detector, {"numbers", "presence"}),
    "painter": (painter, {"picture"}),
    "finder": (finder, {"classes"}),
}


def images(count: int = 40) -> dict[str, Array]:
    """Inputs for any of them."""
    return {"x": normal(count, CHANNELS, SIZE, SIZE, seed=9)}


def moved(model: onnx.ModelProto, share: float, names: tuple[str, ...] = ("W1", "W2")) -> onnx.ModelProto:
    """The same with kernels off by a share of their size; at 1 nothing of them is left."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in copy.graph.initializer:
        if item.name in names:
            kernel = numpy_helper.to_array(item)
            noise = normal(*kernel.shape, seed=77) * kernel.std()
            changed = np.sqrt(1 - share**2) * kernel + share * noise
            item.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), item.name))
    return copy
