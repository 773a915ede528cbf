"""Inserted 1x1 convolutions that follow one another become one, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.surgery import BottleneckPass


def pair(
    *, between: str | None = None, bias: bool = True, branch: bool = False, ir_version: int = 8
) -> onnx.ModelProto:
    """Two padded 3x3 convolutions, 12 -> 16 -> 10, with or without a node between them."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((16, 12, 3, 3)) / 10,
        "b1": rng.standard_normal(16),
        "w2": rng.standard_normal((10, 16, 3, 3)) / 12,
    }
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"] if bias else ["x", "w1"], ["u"], name="first", pads=[1] * 4)]
    value = "u"
    if between is not None:
        nodes.append(helper.make_node(between, ["u"], ["v"], name="between"))
        value = "v"
    nodes.append(helper.make_node("Conv", [value, "w2"], ["y"], name="second", pads=[1] * 4))
    outputs = ["y", "u"] if branch else ["y"]
    if not bias:
        del weights["b1"]
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("x", 1, ["N", 12, 9, 8])]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(item.name, 1, list(item.dims)) for item in stored]
    declared = [helper.make_tensor_value_info(name, 1, ["N", {"y": 10, "u": 16}[name], 9, 8]) for name in outputs]
    graph = helper.make_graph(nodes, "pair", inputs, declared, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir_version)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 12, 9, 8)).astype(np.float32)
    return session.run(None, {"x": x, **feeds})  # type: ignore[no-any-return]


def rewritten(model: onnx.ModelProto, first: Choice, second: Choice) -> onnx.ModelProto:
    loaded = ir.serde.deserialize_model(model)
    BottleneckPass(Plan({"first": first, "second": second}))(loaded)
    proto = serialize(loaded)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ir_version", [3, 8])
def test_expand_then_reduce_become_one(bias: bool, ir_version: int) -> None:
    model = pair(bias=bias, ir_version=ir_version)
    merged = rewritten(model, Choice("expand", 16), Choice("reduce", 16))
    assert [node.name for node in merged.graph.node] == ["first", "second_reduce", "second"]
    for ours, theirs in zip(run(merged), run(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    names = {item.name for item in merged.graph.initializer}
    used = {name for node in merged.graph.node for name in node.input}
    assert names <= used


def test_merging_changes_no_number_at_low_rank() -> None:
    model = pair()
    merged = rewritten(model, Choice("expand", 5), Choice("reduce", 6))
    kept = rewritten(pair(between="Identity"), Choice("expand", 5), Choice("reduce", 6))
    assert len(merged.graph.node) == 3
    np.testing.assert_allclose(run(merged)[0], run(kept)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "first", "second"),
    [
        (pair(between="Relu"), Choice("expand", 5), Choice("reduce", 6)),
        (pair(branch=True), Choice("expand", 5), Choice("reduce", 6)),
        (pair(), Choice("reduce", 5), Choice("reduce", 6)),
        (pair(), Choice("expand", 5), Choice("expand", 6)),
        (pair(), Choice("expand", 40), Choice("reduce", 40)),
    ],
    ids=["activation", "second reader", "no expand", "no reduce", "dearer as one"],
)
def test_what_has_something_between_stays(model: onnx.ModelProto, first: Choice, second: Choice) -> None:
    count = len(model.graph.node) + 2
    assert len(rewritten(model, first, second).graph.node) == count


def test_a_bias_that_others_read_stays_theirs() -> None:
    model = pair()
    model.graph.node.append(helper.make_node("Neg", ["b1"], ["n"]))
    model.graph.output.append(helper.make_tensor_value_info("n", 1, [16]))
    made = rewritten(model, Choice("expand", 16), Choice("reduce", 16))
    assert len(made.graph.node) == 5
    for ours, theirs in zip(run(made), run(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_across_the_border_of_a_branch_nothing_is_merged() -> None:
    """The branch may not run at all; what it reads is computed outside."""
    model = pair()
    second = model.graph.node.pop()
    branch = helper.make_graph([second], "then", [], [helper.make_tensor_value_info("y", 1, None)])
    other = helper.make_graph(
        [helper.make_node("Identity", ["zero"], ["z"])], "else", [], [helper.make_tensor_value_info("z", 1, None)]
    )
    model.graph.node.append(helper.make_node("If", ["c"], ["out"], then_branch=branch, else_branch=other))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 10, 9, 8), np.float32), "zero"))
    # Known beforehand, it would let ONNX Runtime 1.24 fail on such a branch (model_path must not be empty).
    model.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    model.graph.output[0].name = "out"
    made = rewritten(model, Choice("expand", 16), Choice("reduce", 16))
    assert [node.name for node in made.graph.node][:2] == ["first", "first_expand"]
    np.testing.assert_allclose(run(made, c=np.array(True))[0], run(model, c=np.array(True))[0], rtol=1e-4, atol=1e-5)
