"""Files that make no sense: each ends in a sentence, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import find_sites, load
from onnx_pointwise.runtime import resolve
from tests.graphs import make_model, normal, value

Change = Callable[[onnx.ModelProto], None]


def network() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name="conv"),
        helper.make_node("MatMul", ["a", "V"], ["y"], name="product"),
    ]
    weights = {"W": normal(6, 4, 3, 3), "V": normal(6, 5)}
    return make_model(nodes, [value("x", ["n", 4, 8, 8])], [value("y", None)], weights)


def size(*dims: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = dims

    return change


def kind(number: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_type = number

    return change


def attribute(name: str, entry: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.append(helper.make_attribute(name, entry))

    return change


def without(side: str, index: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del getattr(model.graph.node[index], side)[:]

    return change


def image(*dims: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(value("x", dims))

    return change


def blown_up(operator: str, *given: str, **attributes: Any) -> Change:
    """Have a value of 4 GiB that does not depend on the input, of which a single number is taken."""

    def change(model: onnx.ModelProto) -> None:
        sizes = numpy_helper.from_array(np.array([2**15, 2**15]), "sizes")
        model.graph.initializer.extend([sizes, numpy_helper.from_array(np.ones(1, np.float32), "one")])
        names = [] if attributes else [*given, "sizes"]
        model.graph.node.append(helper.make_node(operator, names, ["big"], name="blow_up", **attributes))
        model.graph.node.append(helper.make_node("ReduceSum", ["big"], ["one_number"], name="sum"))
        model.graph.output.append(value("one_number", None))

    return change


def recursive(model: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for name, other in (("F", "G"), ("G", "F")):
        body = [helper.make_node(other, ["a"], ["b"], domain="local")]
        model.functions.append(helper.make_function("local", name, ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (size(-1, 4, 3, 3), "the tensor 'W' is of type FLOAT and shape .-1,4,3,3., which nothing has"),
        (size(2**40, 2**40, 3, 3), "'W' would hold 1099511627776x1099511627776x3x3 numbers"),
        (size(6, 4, 3, 2), "in memory: the model cannot be read: the data of the tensor 'W' do not fit its shape"),
        (size(0, 4, 3, 3), "the data of the tensor 'W' do not fit its shape"),
        (kind(0), "the tensor 'W' is of type UNDEFINED"),
        (kind(999), "the model cannot be read: 999 is not a valid DataType"),
        (attribute("group", 1.5), "the attribute 'group' of the node 'conv' is of type FLOAT, which it cannot be"),
        (attribute("strides", "much"), "'strides'|conv : strides"),
        (attribute("auto_pad", 3), "'auto_pad'|conv : auto_pad"),
        (attribute("pads", [2**40] * 4), "'a' would hold 1x6x2199023255558x2199023255558 .* export the model"),
        (attribute("strides", [0, 0]), "the strides of the node 'conv' .Conv. are .0, 0., which must be above 0"),
        (attribute("dilations", [-1, 1]), "the dilations of the node 'conv' .Conv. are .-1, 1., which must be above 0"),
        (without("input", 0), "the node 'conv' .Conv. lacks inputs or outputs"),
        (without("input", 1), "the node 'product' .MatMul. lacks inputs or outputs"),
        (without("output", 0), "the node 'conv' .Conv. lacks inputs or outputs|which nothing puts out"),
        (image(1, 4, 2**31, 2**31), "'x' would hold 1x4x2147483648x2147483648 .* export the model for smaller"),
        (blown_up("ConstantOfShape"), "'big' would hold 32768x32768 .*4 GiB. whatever .*, made of 2 stored ones"),
        (blown_up("Expand", "one"), "'big' would hold 32768x32768 .*4 GiB. whatever .*, made of 3 stored ones"),
        (blown_up("RandomNormal", shape=[2**15, 2**15]), "'big' would hold 32768x32768 .* made of 0 stored ones"),
        (recursive, "the local function '[FG]' calls itself"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(change: Change, words: str) -> None:
    model = network()
    change(model)
    with pytest.raises(ModelError, match=words):
        loaded = load(model)
        find_sites(loaded, resolve(loaded))


@pytest.mark.parametrize(
    ("operator", "inputs", "sizes"),
    [
        ("Expand", ["x", "sizes"], (1, 64, 2160, 3840)),  # what depends on the input: activations of large images
        ("Expand", ["one", "sizes"], (1, 8, 2160, 3840)),  # what does not, of a size that is nothing unusual
        ("Expand", ["many", "sizes"], (150, 2**22)),  # what is made of as much
    ],
)
def test_large_values_that_make_sense_are_not_refused(operator: str, inputs: list[str], sizes: tuple[int, ...]) -> None:
    nodes = [helper.make_node(operator, inputs, ["big"]), helper.make_node("ReduceSum", ["big"], ["y"], keepdims=0)]
    weights = {"sizes": np.array(sizes), "one": np.ones(1, np.float32), "many": np.zeros((1, 2**22), np.float32)}
    model = make_model(nodes, [value("x", [1, 1, 1, 1])], [value("y", None)], weights)
    assert resolve(load(model)).shapes["big"] == sizes


def test_external_data_at_no_place(tmp_path: Path) -> None:
    model = network()
    tensor = model.graph.initializer[0]
    data = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "linked").symlink_to("/etc/hostname")
    for entries, words in (
        ({"location": "\x00"}, "lies at no place that a file can have"),
        ({"location": ""}, "is missing"),
        ({"location": "/etc/hostname"}, "lies outside the model's folder"),
        ({"location": "../data"}, "lies outside the model's folder"),
        ({"location": "linked"}, "lies outside the model's folder"),
        ({"location": "data", "offset": "-5"}, "offset must be non-negative|begin at byte -5; export the model again"),
        (
            {"location": "data", "offset": "much"},
            "m.onnx: the offset of the external data of 'W' is 'much', which is no",
        ),
        ({"location": "data", "length": "1e3"}, "m.onnx: the length of the external data of 'W' is '1e3', which is no"),
        ({"location": "data", "offset": "9" * 30}, "is too short"),
        ({"location": "data", "length": "12"}, "are 12 bytes where its shape needs 864"),
    ):
        del tensor.external_data[:]
        for key, entry in entries.items():
            tensor.external_data.add(key=key, value=entry)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=words):
            load(tmp_path / "m.onnx")


def test_external_data_of_a_node_in_a_body_at_no_place() -> None:
    tensor = numpy_helper.from_array(normal(6), "inside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="")
    bodies = [
        helper.make_graph([helper.make_node("Constant", [], [name], value=tensor)], name, [], [value(name, [6])])
        for name in ("then", "else")
    ]
    model = network()
    branches = {"then_branch": bodies[0], "else_branch": bodies[1]}
    model.graph.node.append(helper.make_node("If", ["whether"], ["z"], name="if", **branches))
    with pytest.raises(ModelError, match="the offset of the external data of 'inside' is '', which is no number"):
        load(model)


def test_functions_that_call_one_another_in_turn_are_no_circle() -> None:
    model = network()
    recursive(model)
    model.functions[1].node[0].op_type = "Relu"
    model.functions[1].node[0].domain = ""
    assert len(load(model).functions) == 2
