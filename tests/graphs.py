"""Small ONNX models for the tests, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Shape = Sequence[int | str | None]
Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Standard normal numbers that depend on shape and seed alone."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def ir_version_for(opset: int) -> int:
    """The IR version that came with an opset."""
    return helper.OP_SET_ID_VERSION_MAP["ai.onnx", opset]


def element_type(dtype: Any) -> int:
    """ONNX element type of a NumPy dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def value(name: str, shape: Shape | None, dtype: Any = np.float32) -> onnx.ValueInfoProto:
    """Declare a tensor value; strings in the shape are open dimensions, None as shape declares no rank."""
    return helper.make_tensor_value_info(name, element_type(dtype), shape)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir_version: int | None = None,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """Make a model; before IR version 4 the weights are graph inputs too, as they had to be."""
    ir_version = ir_version_for(opset) if ir_version is None else ir_version
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    inputs = list(inputs)
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in tensors]
    graph = helper.make_graph(list(nodes), "graph", inputs, list(outputs), tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions)


def opened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its initializers declared as graph inputs too, so that a caller may override them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    declared = [helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in copy.graph.initializer]
    copy.graph.input.extend(declared)
    return copy


def constant_node(array: Array, output: str) -> onnx.NodeProto:
    """A Constant node."""
    return helper.make_node("Constant", [], [output], value=numpy_helper.from_array(array, output))


#: What may stand behind the convolution of `conv_model`.
BEHIND = ("none", "batchnorm", "add", "mul_add", "sub", "div")


def conv_model(
    kernel: Array,
    size: Sequence[int | str | None],
    *,
    batch: int | str = "batch",
    bias: Array | None = None,
    behind: str = "none",
    source: str = "initializer",
    relu: bool = False,
    name: str = "conv",
    transposed: bool = False,
    opset: int = 17,
    ir_version: int | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """Make a model of one convolution x -> y.

    Args:
        kernel: [O, I / group, *k]; of a transposed one [I, O / group, *k].
        size: Spatial size of the input.
        batch: Batch dimension.
        bias: [O].
        behind: What follows, one of `BEHIND`.
        source: Where the kernel comes from: `initializer`, `constant` or `identity`.
        relu: Whether a Relu ends the model.
        name: Name of the convolution.
        transposed: Whether it is a transposed one.
        opset: Operator set.
        ir_version: IR version; the opset's own by default.
        attributes: Attributes of the convolution.
    """
    group = attributes.get("group", 1)
    channels, outputs = kernel.shape[1] * group, len(kernel)
    if transposed:
        channels, outputs = outputs, channels
    spatial, dtype = kernel.ndim - 2, kernel.dtype
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, *inputs: str, label: str | None = None, **attributes: Any) -> str:
        output = f"t{len(nodes)}"
        label = label or f"{op_type.lower()}{len(nodes)}"
        nodes.append(helper.make_node(op_type, list(inputs), [output], name=label, **attributes))
        return output

    def store(array: Array, label: str) -> str:
        weights[label] = np.asarray(array).astype(dtype)
        return label

    weight = "W"
    if source == "constant":
        nodes.append(constant_node(kernel, "W"))
    else:
        store(kernel, "W")
        if source == "identity":
            weight = add("Identity", add("Identity", "W"))
    operands = ["x", weight] + ([] if bias is None else [store(bias, "B")])
    result = add("ConvTranspose" if transposed else "Conv", *operands, label=name, **attributes)
    column = (outputs, *[1] * spatial)
    positive = np.abs(normal(outputs, seed=7)) + 0.5
    if behind == "batchnorm":
        for index, label in enumerate(("scale", "shift", "mean")):
            store(normal(outputs, seed=index), label)
        store(positive, "variance")
        result = add("BatchNormalization", result, "scale", "shift", "mean", "variance", epsilon=1e-3)
    elif behind == "add":
        result = add("Add", store(normal(*column, seed=8), "other"), result)
    elif behind == "mul_add":
        result = add("Mul", result, store(positive.reshape(1, *column), "factor"))
        result = add("Add", result, store(np.array(0.25), "other"))
    elif behind == "sub":
        result = add("Sub", result, store(normal(*column, seed=9), "other"))
    elif behind == "div":
        result = add("Div", result, store(positive.reshape(column), "other"))
    if relu:
        result = add("Relu", result)
    nodes[-1].output[0] = "y"
    return make_model(
        nodes,
        [value("x", [batch, channels, *size], dtype)],
        [value("y", [batch, outputs, *[f"d{axis}" for axis in range(spatial)]], dtype)],
        weights,
        opset=opset,
        ir_version=ir_version,
    )


def function_model(kernel: Array) -> onnx.ModelProto:
    """A model that calls a local function twice: a convolution whose kernel is an argument, and one of its own."""
    own = normal(len(kernel), len(kernel), 3, 3, seed=5)
    body = [
        helper.make_node("Conv", ["a", "w"], ["b"], name="inner", pads=[1, 1, 1, 1]),
        constant_node(own, "own"),
        helper.make_node("Conv", ["b", "own"], ["c"], name="deeper", pads=[1, 1, 1, 1]),
    ]
    function = helper.make_function("local", "Block", ["a", "w"], ["c"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Block", ["x", "W"], ["middle"], name="first", domain="local"),
        helper.make_node("Block", ["middle", "V"], ["y"], name="second", domain="local"),
    ]
    return make_model(
        nodes,
        [value("x", [1, kernel.shape[1], 8, 8])],
        [value("y", [1, len(kernel), 8, 8])],
        {"W": kernel, "V": normal(len(kernel), len(kernel), 3, 3, seed=6)},
        domains=["local"],
        functions=[function],
    )


def if_model(kernel: Array, *, ir_version: int | None = None) -> onnx.ModelProto:
    """A model with a convolution in each branch of an If: one kernel from outside, one of the branch's own."""
    own = normal(*kernel.shape, seed=5)
    channels = kernel.shape[1]
    then = helper.make_graph(
        [helper.make_node("Conv", ["x", "W"], ["inside"], name="then_conv", pads=[1, 1, 1, 1])],
        "then",
        [],
        [value("inside", [1, len(kernel), 8, 8])],
    )
    otherwise = helper.make_graph(
        [
            constant_node(own, "E"),
            helper.make_node("Conv", ["x", "E"], ["inside"], name="else_conv", pads=[1, 1, 1, 1]),
        ],
        "else",
        [],
        [value("inside", [1, len(kernel), 8, 8])],
    )
    node = helper.make_node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=otherwise)
    return make_model(
        [node],
        [value("x", [1, channels, 8, 8]), value("flag", [], np.bool_)],
        [value("y", [1, len(kernel), 8, 8])],
        {"W": kernel},
        ir_version=ir_version,
    )


def if_model_of_two_sizes(kernel: Array) -> onnx.ModelProto:
    """The same, with a stride in the second branch: a name used in both has another size in each."""
    model = if_model(kernel)
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "else_branch":
            node = next(node for node in attribute.g.node if node.op_type == "Conv")
            node.attribute.append(helper.make_attribute("strides", [2, 2]))
            attribute.g.output[0].CopyFrom(value("inside", [1, len(kernel), 4, 4]))
    model.graph.output[0].CopyFrom(value("y", [1, len(kernel), "h", "w"]))
    return model


def loop_model(kernel: Array, *, times: int = 3) -> onnx.ModelProto:
    """A model that runs a square convolution several times in a Loop, its kernel in the outer graph."""
    channels = len(kernel)
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["before", "W"], ["inside"], name="loop_conv", pads=[1, 1, 1, 1]),
            helper.make_node("Tanh", ["inside"], ["after"], name="tanh"),
            helper.make_node("Identity", ["go"], ["on"], name="on"),
        ],
        "body",
        [value("index", [], np.int64), value("go", [], np.bool_), value("before", [1, channels, 8, 8])],
        [value("on", [], np.bool_), value("after", [1, channels, 8, 8])],
    )
    node = helper.make_node("Loop", ["times", "yes", "x"], ["y"], name="loop", body=body)
    return make_model(
        [node],
        [value("x", [1, channels, 8, 8])],
        [value("y", [1, channels, 8, 8])],
        {"W": kernel, "times": np.array(times, np.int64), "yes": np.array(True)},
    )


def session(model: onnx.ModelProto | bytes | str) -> ort.InferenceSession:
    """Open a plain CPU session on one thread, without the fusions that change rounding."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | bytes | str, **feeds: Array) -> list[Array]:
    """Run a model once."""
    return list(session(model).run(None, feeds))


def relative(before: Array, after: Array) -> float:
    """Relative L2 distance."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))
