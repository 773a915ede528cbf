from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_pointwise.errors import ModelError
from onnx_pointwise.runtime import first_non_finite, non_finite
from tests.graphs import make_model, normal, value

node = helper.make_node


def log_front(*, names: bool = True, behind: int = 0) -> onnx.ModelProto:
    """A logarithm that few random inputs suit, behind as many other nodes as asked for."""
    nodes, last = [], "x"
    for index in range(behind):
        nodes.append(node("Abs" if index == 0 else "Identity", [last], [f"i{index}"]))
        last = f"i{index}"
    nodes += [
        node("Add", [last, "one"], ["s"], name="shift" if names else ""),
        node("Log", ["s"], ["l"], name="log" if names else ""),
        node("Conv", ["l", "W"], ["c"], name="conv"),
        node("Relu", ["c"], ["r"]),
        node("Shape", ["r"], ["n"]),
        node("Clip", ["r", "zero", "one"], ["y"]),
    ]
    weights = {"W": normal(4, 3, 3, 3), "one": np.array(1, np.float32), "zero": np.array(0, np.float32)}
    return make_model(nodes, [value("x", ["b", 3, 8, 8])], [value("y", None), value("n", None, np.int64)], weights)


def test_the_first_node_is_named() -> None:
    x = np.zeros((1, 3, 8, 8), np.float32)
    x[0, 0, 0, :3] = -2, -1, -1
    found = first_non_finite(log_front(), {"x": x})
    assert found is not None
    assert str(found) == "the node 'log' (Log) makes 1 NaN and 2 infinite values of 192"
    assert json.loads(json.dumps(found.to_dict()))["value"] == "l"
    unnamed = first_non_finite(log_front(names=False), {"x": x})
    assert unnamed is not None and unnamed.node == "l"
    assert first_non_finite(log_front(), {"x": np.abs(x)}) is None


def test_many_nodes_take_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(non_finite, "_AT_ONCE", 4)
    x = np.full((1, 3, 8, 8), np.float32(-2))
    assert first_non_finite(log_front(behind=10), {"x": x}) is None  # its Abs comes first
    x[0, 0, 0, 0] = np.inf
    found = first_non_finite(log_front(behind=10), {"x": x})
    assert str(found) == "the input 'x' holds 1 infinite values of 192"


def test_weights_and_bodies() -> None:
    model = log_front()
    kernel = normal(4, 3, 3, 3)
    kernel[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(kernel, "W"))
    found = first_non_finite(model, {"x": np.ones((1, 3, 8, 8), np.float32)})
    assert found is not None and (found.node, found.op_type) == ("conv", "Conv")
    body = helper.make_graph([node("Log", ["x"], ["t"])], "body", [], [value("t", None)])
    nodes = [node("If", ["c"], ["y"], name="branch", then_branch=body, else_branch=body)]
    model = make_model(nodes, [value("c", [], np.bool_), value("x", ["n"])], [value("y", None)])
    found = first_non_finite(model, {"c": np.array(True), "x": np.array([-1], np.float32)})
    assert found is not None and (found.node, found.nan) == ("branch", 1)


def test_a_network_that_does_not_run() -> None:
    with pytest.raises(ModelError, match="the model in memory: the model does not run: "):
        first_non_finite(log_front(), {"x": np.ones((1, 5, 8, 8), np.float32)})
