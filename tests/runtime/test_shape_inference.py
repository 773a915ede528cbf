"""Static shapes: what is declared, what is assumed, what inference finds and what takes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph.model_io import load, to_bytes
from onnx_pointwise.graph.shapes import ASSUMED_SIZE, another_size, concrete_inputs, other_sizes, runtime_inputs
from onnx_pointwise.graph.sites import find_sites
from onnx_pointwise.runtime import shape_inference as shapes_module
from onnx_pointwise.runtime.shape_inference import input_sizes, resolve
from onnx_pointwise.runtime.timing import measure
from tests.graphs import (
    Array,
    conv_model,
    function_model,
    if_model,
    if_model_of_two_sizes,
    loop_model,
    make_model,
    normal,
    run,
    value,
)


def declared(**inputs: Any) -> Any:
    """A model with the inputs given, each behind an Identity."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    return load(
        make_model(
            nodes,
            [value(name, shape) for name, shape in inputs.items()],
            [value(f"{name}_out", shape) for name, shape in inputs.items()],
        )
    )


# --- choosing input shapes --------------------------------------------------------------------------------------------


def test_what_is_declared_is_used() -> None:
    assert concrete_inputs(declared(x=[2, 3, 16, 20])) == ({"x": (2, 3, 16, 20)}, ())


def test_open_dimensions_are_filled_in() -> None:
    model = declared(x=["batch", 3, "height", None], y=["batch", 10], z=[None, "time", 8])
    size = ASSUMED_SIZE
    assert concrete_inputs(model) == ({"x": (1, 3, size, size), "y": (1, 10), "z": (1, size, 8)}, ("x", "z"))


def test_given_shapes_are_used_and_say_what_names_mean() -> None:
    model = declared(x=["batch", 3, "height", "width"], y=["batch", "height", 7], z=["batch", "other"])
    chosen, assumed = concrete_inputs(model, {"x": [4, 3, 32, 48]})
    assert chosen == {"x": (4, 3, 32, 48), "y": (4, 32, 7), "z": (4, ASSUMED_SIZE)}
    assert assumed == ("z",)


def test_a_name_that_means_several_sizes_means_none() -> None:
    model = declared(x=["?", 3, "?", "?"], y=["?", "?"])
    chosen, assumed = concrete_inputs(model, {"x": [2, 3, 8, 12]})
    assert chosen == {"x": (2, 3, 8, 12), "y": (1, ASSUMED_SIZE)}
    assert assumed == ("y",)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_1_are_open(size: int) -> None:
    assert concrete_inputs(declared(x=[size, 3, 8, size])) == ({"x": (1, 3, 8, ASSUMED_SIZE)}, ("x",))


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"a": [1]}, r"The model has no input 'a'; its inputs are 'x', 'y'\."),
        ({"x": [1, 3, 8]}, r"Input 'x' is declared as batchx3xhx\?, but 1x3x8 was given\."),
        ({"x": [1, 4, 8, 8]}, r"Input 'x' is declared as batchx3xhx\?, but 1x4x8x8 was given\."),
        ({"x": [0, 3, 8, 8]}, r"but 0x3x8x8 was given\."),
        ({"x": [1, 3, -8, 8]}, r"but 1x3x-8x8 was given\."),
        ({"y": [0]}, r"Input 'y' is declared as any shape, but 0 was given\."),
    ],
)
def test_shapes_that_contradict_the_declaration(shapes: dict[str, list[int]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        concrete_inputs(declared(x=["batch", 3, "h", None], y=None), shapes)


def test_an_input_without_a_declared_shape_is_left_to_the_caller() -> None:
    model = declared(x=None)
    assert concrete_inputs(model) == ({}, ())
    assert concrete_inputs(model, {"x": [1, 2]}) == ({"x": (1, 2)}, ())


def test_initializers_are_no_inputs_to_feed() -> None:
    model = load(conv_model(normal(4, 4, 3, 3), [8, 8], opset=9, ir_version=3))
    assert [item.name for item in runtime_inputs(model)] == ["x"]
    with pytest.raises(InputError, match="its inputs are 'x'"):
        concrete_inputs(model, {"W": [4, 4, 3, 3]})


# --- resolving --------------------------------------------------------------------------------------------------------


@given(
    size=st.lists(st.integers(6, 11), min_size=1, max_size=3),
    batch=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 2),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_sizes_are_those_of_the_runtime(size: list[int], batch: int, stride: int, dilation: int, pad: int) -> None:
    spatial = len(size)
    model = conv_model(
        normal(5, 4, *[3] * spatial),
        [f"s{axis}" for axis in range(spatial)],
        strides=[stride] * spatial,
        dilations=[dilation] * spatial,
        pads=[pad] * spatial + [0] * spatial,
    )
    shapes = resolve(load(model), {"x": [batch, 4, *size]})
    got = run(model, x=normal(batch, 4, *size))[0]
    assert shapes.shapes["y"] == got.shape
    assert shapes.inputs == {"x": (batch, 4, *size)}
    assert shapes.assumed == ()


def test_the_model_stays_as_it_was_and_shares_its_weights() -> None:
    model = load(conv_model(normal(5, 4, 3, 3), ["h", "w"], behind="batchnorm"))
    before = to_bytes(model)
    resolved = resolve(model)
    assert to_bytes(model) == before
    assert resolved.assumed == ("x",)
    assert resolved.shapes["y"] == (1, 5, ASSUMED_SIZE - 2, ASSUMED_SIZE - 2)
    assert resolved.model.graph.initializers["W"].const_value is model.graph.initializers["W"].const_value


def test_stored_shapes_of_another_size_are_forgotten() -> None:
    model = conv_model(normal(5, 4, 3, 3), ["h", "w"], behind="batchnorm")
    model.graph.value_info.append(value("t0", [1, 5, 6, 6]))  # as at 8x8, when somebody ran inference
    model.graph.output[0].CopyFrom(value("y", [1, 5, 6, 6]))
    shapes = resolve(load(model), {"x": [1, 4, 12, 12]}).shapes
    assert (shapes["t0"], shapes["y"]) == ((1, 5, 10, 10), (1, 5, 10, 10))


def reshaped_by_value(x: str) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """A convolution x -> c behind a Reshape to a shape that depends on the values of x, and its weights."""
    nodes = [
        helper.make_node("ReduceMin", [x], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["count"], to=onnx.TensorProto.INT64),
        helper.make_node("Mul", ["count", "zero"], ["nothing"]),
        helper.make_node("Add", ["wanted", "nothing"], ["shape"]),
        helper.make_node("Reshape", [x, "shape"], ["image"]),
        helper.make_node("Conv", ["image", "W"], ["c"], name="conv"),
    ]
    weights = {
        "W": normal(6, 4, 3, 3),
        "zero": np.array(0, np.int64),
        "wanted": np.array([-1, 4, 8, 8], np.int64),
    }
    return nodes, weights


def computed_size(**inputs: Any) -> onnx.ModelProto:
    """A network whose sizes inference cannot follow."""
    nodes, weights = reshaped_by_value("x")
    nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    return make_model(nodes, [value("x", inputs.get("x", ["n", 256]))], [value("y", None)], weights)


def test_what_inference_cannot_follow_takes_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = resolve(load(computed_size()), {"x": [3, 256]}).shapes
    assert (shapes["image"], shapes["c"]) == ((3, 4, 8, 8), (3, 6, 6, 6))
    (site,) = find_sites(load(computed_size()), resolve(load(computed_size())))
    assert (site.in_size, site.out_size, site.batch, site.refusal) == ((8, 8), (6, 6), 1, None)

    def none(*_: object) -> None:
        raise AssertionError("no run is needed")

    monkeypatch.setattr(shapes_module, "_run_for_shapes", none)
    resolve(load(conv_model(normal(5, 4, 3, 3), [8, 8])))
    with pytest.raises(AssertionError):
        resolve(load(computed_size()))


def test_a_shape_computed_from_shapes_takes_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "two", "four"], ["hw"]),
        helper.make_node("Mul", ["hw", "factor"], ["larger"]),
        helper.make_node("Slice", ["s", "nought", "two"], ["nc"]),
        helper.make_node("Concat", ["nc", "larger"], ["sizes"], axis=0),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["image"], mode="nearest"),
        helper.make_node("Conv", ["image", "W"], ["y"], name="conv", pads=[1] * 4),
    ]
    weights = {
        "W": normal(6, 4, 3, 3),
        "nought": np.array([0], np.int64),
        "two": np.array([2], np.int64),
        "four": np.array([4], np.int64),
        "factor": np.array(2, np.int64),
    }
    model = make_model(nodes, [value("x", ["n", 4, "h", "w"])], [value("y", None)], weights)
    monkeypatch.setattr(shapes_module, "_run_for_shapes", None)
    assert resolve(load(model), {"x": [1, 4, 6, 8]}).shapes["y"] == (1, 6, 12, 16)


def test_a_run_that_fails_names_the_shapes_and_the_way_out() -> None:
    model = computed_size(x=["n", "m"])
    with pytest.raises(
        ModelError, match=r"does not run with input shapes x:1,224 \(.*\); name others with --input-shape x:1,256\."
    ):
        resolve(load(model), {"x": [1, 224]})
    assert resolve(load(model)).inputs == {"x": (1, 256)}
    assert resolve(load(model), {"x": [1, 512]}).shapes["image"] == (2, 4, 8, 8)


def test_an_input_without_a_shape_is_asked_for_only_where_it_counts() -> None:
    model = conv_model(normal(5, 4, 3, 3), [8, 8])
    model.graph.input[0].CopyFrom(value("x", None))
    model.graph.output[0].CopyFrom(value("y", None))
    with pytest.raises(ModelError, match=r"Input 'x' declares no shape; give one with --input-shape x:1,\.\.\."):
        resolve(load(model))
    assert resolve(load(model), {"x": [1, 4, 8, 8]}).shapes["y"] == (1, 5, 6, 6)
    assert resolve(declared(x=None)).shapes == {}


def test_functions_are_inlined_for_it() -> None:
    model = load(function_model(normal(5, 5, 3, 3)))
    resolved = resolve(model)
    assert len(model.functions) == 1
    assert not resolved.model.functions
    assert {node.op_type for node in resolved.model.graph} == {"Conv", "Constant"}
    assert resolved.shapes["y"] == (1, 5, 8, 8)


def test_control_flow_is_looked_into() -> None:
    shapes = resolve(load(if_model(normal(5, 4, 3, 3)))).shapes
    assert shapes["inside"] == shapes["y"] == (1, 5, 8, 8)
    shapes = resolve(load(loop_model(normal(4, 4, 3, 3)))).shapes
    assert shapes["before"] == shapes["inside"] == (1, 4, 8, 8)


def test_a_name_used_in_both_branches_has_the_shape_both_agree_on() -> None:
    assert "inside" not in resolve(load(if_model_of_two_sizes(normal(5, 4, 3, 3)))).shapes


def test_element_types_other_than_float_can_be_run() -> None:
    """The run feeds zeros of whatever type an input has."""
    behind, weights = reshaped_by_value("sum")
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Cast", ["half"], ["h"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["m", "h"], ["sum"]),
        *behind,
    ]
    inputs = [value("mask", ["n", 256], np.bool_), value("half", ["n", 256], np.float16)]
    assert resolve(load(make_model(nodes, inputs, [value("c", None)], weights))).shapes["c"] == (1, 6, 6, 6)


# --- sizes that have to be assumed ------------------------------------------------------------------------------------


def halving(times: int) -> onnx.ModelProto:
    """A network that takes only multiples of 2^times: what was halved is doubled and put beside what it was."""
    nodes, last = [], "x"
    for index in range(times):
        nodes.append(helper.make_node("MaxPool", [last], [f"p{index}"], kernel_shape=[2, 2], strides=[2, 2]))
        last = f"p{index}"
    for index in range(times - 1, -1, -1):
        before = f"p{index - 1}" if index else "x"
        nodes.append(helper.make_node("Resize", [last, "", "twice"], [f"u{index}"], mode="nearest"))
        nodes.append(helper.make_node("Add", [f"u{index}", before], [f"s{index}"]))
        last = f"s{index}"
    nodes.append(helper.make_node("Conv", [last, "W"], ["y"], name="conv"))
    weights = {"W": normal(4, 3, 3, 3), "twice": np.array([1, 1, 2, 2], np.float32)}
    return make_model(nodes, [value("x", [1, 3, "h", "w"])], [value("y", [1, 4, "h2", "w2"])], weights)


@pytest.mark.parametrize(("times", "size"), [(5, 224), (6, 256), (7, 256), (9, 512)])
def test_the_first_size_at_which_it_runs_is_assumed(times: int, size: int) -> None:
    found = resolve(load(halving(times)))
    assert found.inputs == {"x": (1, 3, size, size)} and found.assumed == ("x",)
    assert found.shapes["y"] == (1, 4, size - 2, size - 2)
    assert input_sizes(load(halving(times))) == {"x": (1, 3, size, size)}
    assert measure(halving(times), runs=1, warmup=1, max_seconds=0.1).runs >= 1


def test_sizes_at_which_it_does_not_run_are_named_with_the_file_and_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "halving.onnx"
    onnx.save(halving(6), path)
    start, end = f"{path}: the model does not run with input shapes", "; name others with --input-shape"
    with pytest.raises(ModelError, match=rf"{start} x:1,3,100,100 \(.*\){end} x:1,3,128,128\."):
        resolve(load(path), {"x": (1, 3, 100, 100)})
    onnx.save(halving(10), path)
    with pytest.raises(ModelError, match=rf"{start} x:1,3,224,224 \(.*\){end} x:1,3,256,256\."):
        resolve(load(path))


def test_examples_of_other_sizes_are_others() -> None:
    assert another_size((1, 3, 224, 224)) == (1, 3, 256, 256)
    assert another_size((1, 64, 256, 256)) == (1, 64, 320, 320)
    assert another_size((1, 512, 512, 3)) == (1, 224, 224, 3)
    assert another_size((1, 224)) == (1, 256)
    assert another_size((1, 1, 33, 100)) == (1, 1, 64, 128)
    assert another_size((1, 384, 384)) == (1, 448, 448)
    assert another_size((1, 224, 224), [2]) == (1, 224, 256)
    assert another_size((1, 33, 100), [1]) == (1, 64, 100)


def test_examples_of_other_sizes_leave_what_is_declared() -> None:
    model = declared(x=["n", 224, "length"], y=["n", 32, 16, 16], z=[2, 224], w=None)
    chosen = {"x": (1, 224, 224), "y": (1, 32, 16, 16), "z": (2, 224), "w": (1, 8)}
    assert other_sizes(model, chosen) == {"x": (1, 224, 256), "w": (1, 64)}
    assert other_sizes(model, {"x": (1, 224, 3)}) == {}


def never_loads(x: Any) -> onnx.ModelProto:
    """A network that the runtime cannot load at any size."""
    nodes = [helper.make_node("Unheard", ["x"], ["a"], domain="nobody"), helper.make_node("Conv", ["a", "W"], ["y"])]
    model = make_model(nodes, [value("x", x)], [value("y", None)], {"W": normal(4, 4, 3, 3)})
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    return model


@pytest.mark.parametrize(
    "model",
    [
        computed_size(x=[1, 224]),
        computed_size(x=["n", 224]),
        never_loads([1, 4, 8, 8]),
        never_loads(["n", 4, "h", "w"]),
    ],
    ids=["all fixed", "batch open", "no shape is to blame", "nor an open one"],
)
def test_other_sizes_are_named_only_where_they_may_help(model: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match=r"the model in memory: the model does not run with input shapes x:.*\)\.$"):
        resolve(load(model))


def test_an_input_without_an_element_type_is_named() -> None:
    model = load(conv_model(normal(5, 4, 3, 3), [8, 8]))
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.UNDEFINED)
    with pytest.raises(ModelError, match="input 'x' declares no element type; the file is damaged"):
        shapes_module._run_for_shapes(model, model.graph.outputs, {"x": (1, 4, 8, 8)}, "the model")
