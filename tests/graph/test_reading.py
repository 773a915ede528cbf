"""Files that ONNX Runtime takes though they are out of order, and files with two of what there can be but one of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import BottleneckPass, Plan, find_sites, load, make_choice
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.runtime import resolve
from tests.graphs import function_model, if_model, loop_model, make_model, normal, run, value

node = helper.make_node


def chain() -> onnx.ModelProto:
    """Two convolutions with others between them, in order."""
    nodes = [
        node("Conv", ["x", "W1"], ["a"], name="c1", pads=[1] * 4),
        node("Relu", ["a"], ["r"], name="relu"),
        node("Constant", [], ["two"], value_float=2.0),
        node("Mul", ["r", "two"], ["m"]),
        node("Conv", ["m", "W2"], ["y"], name="c2", pads=[1] * 4),
    ]
    weights = {"W1": normal(8, 6, 3, 3), "W2": normal(8, 8, 3, 3, seed=1)}
    return make_model(nodes, [value("x", ["n", 6, 8, 8])], [value("y", ["n", 8, 8, 8])], weights)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [1, 0, 4, 2, 3], [0, 1, 4, 3, 2]])
def test_nodes_out_of_order_are_sorted(order: list[int]) -> None:
    proto = chain()
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(proto)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(proto.graph.node[index] for index in order)
    model = load(shuffled)
    sites = find_sites(model, resolve(model))
    assert [site.name for site in sites] == ["c1", "c2"]
    copy = model.clone()
    BottleneckPass(Plan({"c2": make_choice("c2", "reduce", 8)}))(copy)
    written = serialize(copy)
    onnx.checker.check_model(written, full_check=True)
    x = normal(2, 6, 8, 8)
    np.testing.assert_allclose(run(written, x=x)[0], run(shuffled, x=x)[0], atol=1e-3)


def test_nodes_in_order_stay_where_they_are() -> None:
    kernel = normal(4, 4, 3, 3)
    for proto in (chain(), if_model(kernel), loop_model(kernel), function_model(kernel)):
        assert [item.output[0] for item in serialize(load(proto)).graph.node] == [i.output[0] for i in proto.graph.node]


def test_a_body_that_reads_what_comes_later_is_sorted() -> None:
    then = helper.make_graph(
        [node("Conv", ["late", "W"], ["t"], name="inner")], "then", [], [value("t", ["n", 8, 6, 6])]
    )
    other = helper.make_graph([node("Identity", ["late"], ["e"])], "else", [], [value("e", None)])
    nodes = [
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        node("Relu", ["x"], ["late"]),
    ]
    inputs = [value("c", [], np.bool_), value("x", ["n", 6, 8, 8])]
    model = load(make_model(nodes, inputs, [value("y", None)], {"W": normal(8, 6, 3, 3)}))
    assert [item.op_type for item in model.graph] == ["Relu", "If"]


def test_nodes_in_a_circle_are_refused() -> None:
    proto = chain()
    proto.graph.node[0].input[0] = "m"
    with pytest.raises(ModelError, match="the given ModelProto: its nodes feed one another in a circle"):
        load(proto)


def duplicate_initializer(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(normal(8, 8, 3, 3, seed=9), "W2"))


def duplicate_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[3].output[0] = "a"


def initializer_and_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = "W2"


def input_and_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = "x"


def duplicate_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(value("x", [1]))


def in_a_body(proto: onnx.ModelProto) -> None:
    stored = [numpy_helper.from_array(normal(1), "s")] * 2
    body = helper.make_graph([node("Identity", ["s"], ["t"])], "body", [], [value("t", None)], stored)
    proto.graph.node.append(node("If", ["x"], ["z"], then_branch=body, else_branch=body))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (duplicate_initializer, "two stored tensors of it are called 'W2'"),
        (duplicate_output, "two values of it are called 'a'"),
        (initializer_and_output, "two values of it are called 'W2'"),
        (input_and_output, "two values of it are called 'x'"),
        (duplicate_input, "two inputs of it are called 'x'"),
        (in_a_body, "two stored tensors of it are called 's'"),
    ],
)
def test_two_of_one_name_are_refused(change: Callable[[onnx.ModelProto], None], match: str) -> None:
    proto = chain()
    change(proto)
    with pytest.raises(ModelError, match=f"the given ModelProto: {match}; name them apart"):
        load(proto)


def test_a_default_of_an_input_is_no_second_value() -> None:
    proto = chain()
    proto.graph.input.append(value("W1", [8, 6, 3, 3]))
    assert len(find_sites(load(proto))) == 2


def test_an_input_that_is_an_output_stays_as_it_is_declared() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    outputs = [value("y", ["a", "b"]), value("x", ["c", "d"])]
    read = load(make_model([node], [value("x", ["n", 4])], outputs))
    assert list(map(str, read.graph.inputs[0].shape)) == ["n", "4"]
    assert serialize(read).graph.input[0] == value("x", ["n", 4])
