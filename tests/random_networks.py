"""Whole networks, drawn: what ONNX allows around a convolution, put together at random.

``networks()`` is a hypothesis strategy; `tests/jobs/test_random_networks.py` says what holds of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.graphs import Array, element_type, ir_version_for

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32, FLOAT16, FLOAT64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)

#: Names that somebody somewhere gives to nodes and values, and those that a rewrite would like to give.
STRANGE = (
    "conv",
    "conv_reduce",
    "conv_reduce_weight",
    "conv_reduce_output",
    "conv_output",
    "conv_expand",
    "conv_vertical",
    "model/layers.0/conv[0]/Conv",
    "[red]conv[/red]",
    "conv/Conv;conv/BiasAdd__12",
    "a b\tc",
    "größe, 卷积",
    "%s{0}$HOME",
    "../../conv",
    "conv:0",
    "0",
    "None",
    "W" * 300,
)


@dataclass(frozen=True)
class Value:
    """A value of the network that is being made: its name, channels and spatial size."""

    name: str
    channels: int
    size: tuple[int, ...]


@dataclass
class Network:
    """A drawn network.

    Attributes:
        model: The model.
        feeds: Inputs to run it with.
        dtype: Type of its activations.
        convolutions: How many convolutions of any kind were put into it, each in one place.
        parts: What it is made of, for the record.
    """

    model: onnx.ModelProto
    feeds: dict[str, Array]
    dtype: np.dtype[Any]
    convolutions: int
    parts: list[str]

    @property
    def runs(self) -> bool:
        """Whether ONNX Runtime runs it on a CPU as it is."""
        return self.dtype not in (FLOAT64, BFLOAT16)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its inputs."""
        return {name: array.shape for name, array in self.feeds.items()}

    @property
    def rounding(self) -> float:
        """Relative distance of its outputs that rounding alone may make."""
        if "qdq" in self.parts:
            return 0.1  # a value on the border between two levels may fall on either side
        return {FLOAT16: 3e-2, BFLOAT16: 6e-2}.get(self.dtype, 2e-4)

    def __repr__(self) -> str:
        ops = " ".join(node.op_type for node in self.model.graph.node)
        opset = self.model.opset_import[0].version
        return f"<{self.dtype} opset {opset} ir {self.model.ir_version} {'+'.join(self.parts)}: {ops}>"


@dataclass
class _Maker:
    """A network in the making; every choice is drawn."""

    draw: st.DrawFn
    opset: int
    ir_version: int
    dtype: np.dtype[Any]
    axes: int
    batch: int
    rng: np.random.Generator
    open: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    fed: dict[str, Array] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    overridable: set[str] = field(default_factory=set)
    kernels: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    extra: list[tuple[str, int]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    convolutions: int = 0
    taken: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    inside: int = 0

    # -- drawing

    def chance(self, percent: int) -> bool:
        return self.draw(st.integers(0, 99)) < percent

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def whole(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def name(self, wish: str, taken: set[str]) -> str:
        """A name that is free; now and then a strange one."""
        if self.chance(12):
            wish = self.pick(*STRANGE)
        name, count = wish, 1
        while name in taken:
            count += 1
            name = f"{wish}_{count}"
        taken.add(name)
        return name

    def label(self, wish: str) -> str:
        """Name of a node: nodes may have none, but no two the same one."""
        return "" if self.chance(10) else self.name(wish, self.labels)

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return (scale * self.rng.standard_normal(shape)).astype(self.dtype)

    # -- building

    def add(self, op_type: str, inputs: Sequence[str], *, outputs: int = 1, **attributes: Any) -> str:
        names = [self.name(f"t{len(self.taken)}", self.taken) for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(op_type, list(inputs), names, name=self.label(op_type.lower()), **attributes)
        )
        return names[0]

    def store(self, array: Array, wish: str = "c") -> str:
        """A constant: an initializer, a Constant node, or either behind Identity."""
        name = self.name(wish, self.taken)
        # Before IR version 4 an initializer is an input as well, which a subgraph cannot have.
        if self.chance(25):
            tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            self.nodes.append(helper.make_node("Constant", [], [name], name=self.label("constant"), value=tensor))
        else:
            self.weights[name] = array
            if self.ir_version >= 4 and not self.inside and self.chance(8):
                self.overridable.add(name)
        return self.add("Identity", [name]) if self.chance(6) else name

    def vector(self, array: Array | Sequence[int]) -> str:
        name = self.name("sizes", self.taken)
        self.weights[name] = np.asarray(array, np.int64)
        return name

    def kernel(self, shape: tuple[int, ...]) -> str:
        """A kernel, stored or computed of what is stored; sometimes one that has been used, or one that is fed."""
        fan_in = math.prod(shape[1:])
        array = self.normal(*shape, scale=1.0 / math.sqrt(fan_in))
        ways = ["plain"] * 6 + ["cast", "mul", "transpose", "reshape", "dequantize", "shared", "fed", "zero", "low"]
        way = self.pick(*ways)
        if way == "cast" and self.dtype != BFLOAT16:
            other = FLOAT64 if self.dtype != FLOAT64 else FLOAT32
            stored = self.store(array.astype(other), "W")
            return self.add("Cast", [stored], to=element_type(self.dtype))
        if way == "mul":
            factor = self.normal(shape[0], *[1] * (len(shape) - 1)) + np.asarray(2.0, self.dtype)
            return self.add("Mul", [self.store(array, "v"), self.store(factor.astype(self.dtype), "g")])
        if way == "transpose":
            order = [1, 0, *range(2, len(shape))]
            return self.add("Transpose", [self.store(array.transpose(order), "W")], perm=order)
        if way == "reshape":
            return self.add("Reshape", [self.store(array.reshape(shape[0], -1), "W"), self.vector(shape)])
        if way == "dequantize" and self.opset >= 13 and self.dtype == FLOAT32:
            scale = (np.abs(array).reshape(len(array), -1).max(1) / 127 + 1e-6).astype(np.float32)
            column = scale.reshape(-1, *[1] * (array.ndim - 1))
            rounded = self.store(np.clip(np.round(array / column), -127, 127).astype(np.int8), "Wq")
            zeros = self.store(np.zeros(len(array), np.int8), "zero")
            self.parts.append("stored int8")
            return self.add("DequantizeLinear", [rounded, self.store(scale, "scale"), zeros], axis=0)
        if way == "shared":
            fitting = [name for name, other in self.kernels if other == shape]
            if fitting:
                self.parts.append("shared")
                return self.pick(*fitting)
        if way == "fed" and not self.inside:
            name = self.name("W", self.taken)
            self.fed[name] = array
            self.parts.append("fed")
            return name
        if way == "zero" and self.chance(50):
            array = np.zeros_like(array)
        if way == "low":
            array = np.broadcast_to(array[:, :1], shape).copy()
        stored = self.store(array, "W")
        if not self.inside:
            self.kernels.append((stored, shape))
        return stored

    def convolution(self, x: Value, outputs: int | None = None, *, keep: bool = False) -> Value:
        """A convolution, or a transposed one; with ``keep`` the size stays."""
        self.convolutions += 1
        transposed = not keep and self.chance(15)
        size = tuple(self.pick(1, 3, 3, 2, 5) if length >= 5 else self.pick(1, 3) for length in x.size)
        if keep:
            size = tuple(self.pick(1, 3) for _ in x.size)
        group = 1
        if self.chance(12):
            group = self.pick(*[number for number in (2, 3, x.channels) if x.channels % number == 0] or [1])
        outputs = self.whole(1, 7) if outputs is None else outputs
        if not keep:
            outputs = max(group, outputs - outputs % group)
        elif outputs % group:
            group = 1
        strides, dilations, pads, attributes = [], [], [], {}
        for length, taps in zip(x.size, size, strict=True):
            fits = not keep and not transposed
            strides.append(self.pick(1, 1, 2) if fits else 1)
            dilations.append(self.pick(1, 1, 2) if fits and length >= 2 * taps else 1)
            pads.append(taps // 2 if keep or length < taps or self.chance(60) else 0)
        after = tuple(
            (length + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            for length, pad, dilation, taps, stride in zip(x.size, pads, dilations, size, strides, strict=True)
        )
        attributes = {"strides": strides, "dilations": dilations, "pads": pads + pads}
        if transposed:
            after, attributes = self._transposed(x, size)
        if not keep and not transposed and set(dilations) == {1} and self.chance(12):
            del attributes["pads"]
            attributes["auto_pad"] = self.pick("SAME_UPPER", "SAME_LOWER")
            after = tuple(-(-length // stride) for length, stride in zip(x.size, strides, strict=True))
        if self.chance(40):
            attributes["kernel_shape"] = list(size)
        if group > 1:
            attributes["group"] = group
        shape = (x.channels, outputs // group, *size) if transposed else (outputs, x.channels // group, *size)
        operands = [x.name, self.kernel(shape)]
        if self.chance(55):
            operands.append(self.store(self.normal(outputs, scale=0.3), "b"))
        elif self.chance(20):
            operands.append("")
        made = self.add("ConvTranspose" if transposed else "Conv", operands, **attributes)
        return Value(made, outputs, after)

    def _transposed(self, x: Value, size: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Size of the output and attributes of a transposed convolution, whose size is stated in one way or another."""
        strides = [self.pick(1, 2) for _ in size]
        begins, ends = ([self.whole(0, taps // 2) for taps in size] for _ in range(2))
        more = [self.whole(0, stride - 1) for stride in strides]
        after = tuple(
            max(1, (n - 1) * s + k - b - e) + o
            for n, s, k, b, e, o in zip(x.size, strides, size, begins, ends, more, strict=True)
        )
        way = self.pick("pads", "pads", "plain", "shape", "same")
        sizes = zip(x.size, strides, size, begins, ends, strict=True)
        if way == "pads" and all((n - 1) * s + k > b + e for n, s, k, b, e in sizes):
            return after, {"strides": strides, "pads": begins + ends, "output_padding": more}
        if way == "shape" and self.opset >= 11:
            after = tuple((n - 1) * s + max(1, k - 1) for n, s, k in zip(x.size, strides, size, strict=True))
            return after, {"strides": strides, "output_shape": list(after)}
        if way == "same" and self.opset >= 11 and all(k >= s for k, s in zip(size, strides, strict=True)):
            after = tuple(n * s for n, s in zip(x.size, strides, strict=True))
            return after, {"strides": strides, "auto_pad": self.pick("SAME_UPPER", "SAME_LOWER")}
        after = tuple((n - 1) * s + k for n, s, k in zip(x.size, strides, size, strict=True))
        return after, {"strides": strides}

    def behind(self, x: Value) -> Value:
        """What usually follows a convolution: a BatchNormalization, constants, an activation."""
        column = (x.channels, *[1] * len(x.size))
        name = x.name
        if self.chance(25):
            numbers = [self.normal(x.channels, scale=0.3) + np.asarray(1.0, self.dtype)]
            numbers += [self.normal(x.channels, scale=0.3) for _ in range(2)]
            numbers.append(np.abs(self.normal(x.channels)) + np.asarray(0.5, self.dtype))
            stored = [self.store(array.astype(self.dtype), "bn") for array in numbers]
            name = self.add("BatchNormalization", [name, *stored], epsilon=1e-3)
        for _ in range(self.pick(0, 0, 0, 1, 2)):
            op_type = self.pick("Add", "Sub", "Mul", "Div")
            shape = self.pick(column, (1, *column), (1,), ())
            other = self.store(np.asarray(np.abs(self.normal(*shape)) + 0.5).astype(self.dtype), "k")
            turned = op_type in ("Add", "Mul") and self.chance(40)
            name = self.add(op_type, [other, name] if turned else [name, other])
        return self.activation(Value(name, x.channels, x.size))

    def activation(self, x: Value) -> Value:
        kind = self.pick("none", "Relu", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "silu", "Clip", "PRelu", "Dropout")
        name = x.name
        if kind in ("Relu", "Sigmoid", "Tanh", "LeakyRelu"):
            name = self.add(kind, [name])
        elif kind == "silu":
            name = self.add("Mul", [name, self.add("Sigmoid", [name])])
        elif kind == "Clip" and self.opset < 11 and self.dtype == FLOAT32:
            name = self.add("Clip", [name], min=-1.0, max=6.0)
        elif kind == "Clip" and self.opset >= 13:
            name = self.add("Clip", [name, "", self.store(np.array(6.0, self.dtype), "most")])
        elif kind == "PRelu" and self.dtype == FLOAT32:
            slope = self.store(self.normal(x.channels, *[1] * len(x.size), scale=0.2), "slope")
            name = self.add("PRelu", [name, slope])
        elif kind == "Dropout" and self.opset >= 12 and self.dtype == FLOAT32 and not self.inside:
            name = self.add("Dropout", [name], outputs=2)  # its mask is an output that nothing takes
        return Value(name, x.channels, x.size)

    # -- parts of a network

    def chain(self, x: Value) -> Value:
        return self.behind(self.convolution(x))

    def residual(self, x: Value) -> Value:
        branch = self.behind(self.convolution(x, keep=True, outputs=x.channels))
        if self.chance(40):
            branch = self.convolution(branch, keep=True, outputs=x.channels)
        pair = [x.name, branch.name] if self.chance(50) else [branch.name, x.name]
        return self.activation(Value(self.add("Add", pair), x.channels, x.size))

    def concatenation(self, x: Value) -> Value:
        branches = [self.behind(self.convolution(x, keep=True, outputs=self.whole(1, 4))) for _ in range(2)]
        if self.chance(50):
            branches.append(x)
        joined = self.add("Concat", [branch.name for branch in branches], axis=1)
        return Value(joined, sum(branch.channels for branch in branches), x.size)

    def pooling(self, x: Value) -> Value:
        if any(length < 4 for length in x.size):
            return x
        kind = self.pick("MaxPool", "AveragePool")
        if self.dtype != FLOAT32:
            return x
        count = len(x.size)
        outputs = 2 if kind == "MaxPool" and self.chance(30) else 1
        name = self.add(kind, [x.name], outputs=outputs, kernel_shape=[2] * count, strides=[2] * count)
        return Value(name, x.channels, tuple((length - 2) // 2 + 1 for length in x.size))

    def resizing(self, x: Value) -> Value:
        if self.opset < 13 or self.dtype != FLOAT32 or len(x.size) != 2 or max(x.size) > 8:
            return x
        scales = self.name("scales", self.taken)
        self.weights[scales] = np.array([1, 1, 2, 2], np.float32)
        name = self.add("Resize", [x.name, "", scales], mode="nearest")
        return Value(name, x.channels, tuple(2 * length for length in x.size))

    def fake_quantised(self, x: Value) -> Value:
        if self.opset < 13 or self.dtype != FLOAT32:
            return self.chain(x)
        scale, zero = self.store(np.array(0.05, np.float32), "qs"), self.store(np.array(128, np.uint8), "qz")
        levels = self.add("QuantizeLinear", [x.name, scale, zero])
        made = Value(self.add("DequantizeLinear", [levels, scale, zero]), x.channels, x.size)
        return self.activation(self.convolution(made))

    def _within(self, x: Value, wish: str) -> tuple[list[onnx.NodeProto], Value]:
        """Nodes of a subgraph that keeps the shape of a value; what it stores lies in the graph around it."""
        outer, self.nodes = self.nodes, []
        self.inside += 1
        try:
            inner = self.behind(self.convolution(x, keep=True, outputs=x.channels))
            last = self.name(wish, self.taken)
            self.nodes.append(helper.make_node("Identity", [inner.name], [last], name=self.label("last")))
            return self.nodes, Value(last, x.channels, x.size)
        finally:
            self.nodes = outer
            self.inside -= 1

    def _declared(self, x: Value, *, shape: bool = True) -> onnx.ValueInfoProto:
        # What a subgraph states of sizes holds for whatever sizes come in.
        sizes = [None] * len(x.size) if self.open else list(x.size)
        dims: list[Any] | None = [None if self.open else self.batch, x.channels, *sizes] if shape else None
        return helper.make_tensor_value_info(x.name, element_type(self.dtype), dims)

    def branches(self, x: Value) -> Value:
        flag = self.name("flag", self.taken)
        if self.chance(50):
            self.fed[flag] = np.array(self.chance(50))
        else:
            self.weights[flag] = np.array(self.chance(50))
        graphs = []
        for part in ("then", "else"):
            nodes, last = self._within(x, part)
            graphs.append(helper.make_graph(nodes, part, [], [self._declared(last, shape=self.chance(60))]))
        name = self.add("If", [flag], then_branch=graphs[0], else_branch=graphs[1])
        return Value(name, x.channels, x.size)

    def loop(self, x: Value) -> Value:
        times, go = self.name("times", self.taken), self.name("go", self.taken)
        self.weights[times], self.weights[go] = np.array(self.whole(1, 3), np.int64), np.array(True)
        before = Value(self.name("state", self.taken), x.channels, x.size)
        index, again, on = (self.name(wish, self.taken) for wish in ("index", "again", "on"))
        nodes, last = self._within(before, "after")
        nodes.append(helper.make_node("Identity", [again], [on], name=self.label("again")))
        body = helper.make_graph(
            nodes,
            "body",
            [
                helper.make_tensor_value_info(index, onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info(again, onnx.TensorProto.BOOL, []),
                self._declared(before),
            ],
            [helper.make_tensor_value_info(on, onnx.TensorProto.BOOL, []), self._declared(last)],
        )
        return Value(self.add("Loop", [times, go, x.name], body=body), x.channels, x.size)

    def scan(self, x: Value) -> Value:
        steps = self.store(self.normal(self.whole(1, 3), 1), "steps")
        before = Value(self.name("state", self.taken), x.channels, x.size)
        step, told = self.name("step", self.taken), self.name("told", self.taken)
        nodes, last = self._within(before, "after")
        nodes.append(helper.make_node("Identity", [step], [told], name=self.label("told")))
        body = helper.make_graph(
            nodes,
            "body",
            [self._declared(before), helper.make_tensor_value_info(step, element_type(self.dtype), [1])],
            [self._declared(last), helper.make_tensor_value_info(told, element_type(self.dtype), [1])],
        )
        name = self.add("Scan", [x.name, steps], outputs=2, body=body, num_scan_inputs=1)
        return Value(name, x.channels, x.size)

    def call(self, x: Value) -> Value:
        """A local function with a convolution in it, called once or twice; its kernel is an argument or its own."""
        if self.ir_version < 8 or self.opset < 15:
            return self.chain(x)
        own = self.chance(50)
        size = [self.pick(1, 3) for _ in x.size]
        shape = (x.channels, x.channels, *size)
        array = self.normal(*shape, scale=1.0 / math.sqrt(math.prod(shape[1:])))
        body = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array, "w"))] if own else []
        attributes = {"pads": [k // 2 for k in size] * 2}
        body.append(helper.make_node("Conv", ["a", "w"], ["b"], name="inner", **attributes))
        body.append(helper.make_node("Relu", ["b"], ["c"]))
        title = f"Block{len(self.functions)}"
        arguments = ["a"] if own else ["a", "w"]
        imports = [helper.make_opsetid("", self.opset)]
        self.functions.append(helper.make_function("local", title, arguments, ["c"], body, imports))
        self.convolutions += 1
        for _ in range(self.pick(1, 2)):
            operands = [x.name] if own else [x.name, self.store(array, "W")]
            x = Value(self.add(title, operands, domain="local"), x.channels, x.size)
        return x

    def dead(self, x: Value) -> Value:
        """A branch that leads nowhere."""
        self.convolution(x, keep=True, outputs=2)
        return x

    def body(self, x: Value) -> Value:
        parts: dict[str, tuple[int, Callable[[Value], Value]]] = {
            "chain": (6, self.chain),
            "residual": (3, self.residual),
            "concat": (2, self.concatenation),
            "pool": (1, self.pooling),
            "resize": (1, self.resizing),
            "qdq": (1, self.fake_quantised),
            "if": (1, self.branches),
            "loop": (1, self.loop),
            "scan": (1, self.scan),
            "call": (1, self.call),
            "dead": (1, self.dead),
        }
        weighted = [name for name, (weight, _) in parts.items() for _ in range(weight)]
        for _ in range(self.whole(1, 4)):
            part = self.pick(*weighted)
            self.parts.append(part)
            x = parts[part][1](x)
            if self.chance(12):
                self.extra.append((x.name, len(x.size) + 2))
        if self.chance(20) and self.dtype == FLOAT32:
            self.parts.append("classes")
            flat = self.add("Flatten", [self.add("GlobalAveragePool", [x.name])])
            scores = self.add("MatMul", [flat, self.store(self.normal(x.channels, 3), "fc")])
            name = self.add("Softmax", [scores], axis=1) if self.chance(50) else scores
            self.extra.append((name, 2))
            return Value(name, 3, ())
        return x


def with_one_input(network: Network) -> Network:
    """The same network with constants in the place of all its inputs but the first."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    first, *others = network.feeds
    for name in others:
        model.graph.initializer.append(numpy_helper.from_array(network.feeds[name], name))
        if model.ir_version >= 4:
            model.graph.input.remove(next(item for item in model.graph.input if item.name == name))
    return replace(network, model=model, feeds={first: network.feeds[first]})


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with all floating-point tensors, declarations and casts in float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    others = {onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16}

    def tensor(item: onnx.TensorProto) -> None:
        if item.data_type in others:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float32), item.name))

    def graph(item: onnx.GraphProto) -> None:
        for stored in item.initializer:
            tensor(stored)
        for info in (*item.input, *item.output, *item.value_info):
            if info.type.tensor_type.elem_type in others:
                info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        nodes(item.node)

    def nodes(items: Any) -> None:
        for node in items:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    tensor(attribute.t)
                elif attribute.type == onnx.AttributeProto.GRAPH:
                    graph(attribute.g)
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in others:
                    attribute.i = onnx.TensorProto.FLOAT

    graph(copy.graph)
    for function in copy.functions:
        nodes(function.node)
    return copy


@st.composite
def networks(draw: st.DrawFn, *, runs: bool = False) -> Network:
    """Draw a network.

    Args:
        draw: Of hypothesis.
        runs: Only networks that ONNX Runtime runs on a CPU as they are, which those in float64 and bfloat16 are not.
    """
    opset = draw(st.sampled_from([9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22]))
    dtypes = [FLOAT32] * 6 + [FLOAT16] + ([] if runs else [FLOAT64, BFLOAT16])
    dtype = draw(st.sampled_from(dtypes))
    if dtype == BFLOAT16:
        opset = 22
    own = ir_version_for(opset)
    ir_version = draw(st.sampled_from([own, own, 10] + ([3] if opset <= 13 else [])))
    axes = draw(st.sampled_from([2, 2, 2, 2, 1, 3]))
    batch = draw(st.sampled_from([1, 2]))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    made = _Maker(draw, opset, ir_version, dtype, axes, batch, rng, draw(st.booleans()))
    size = tuple(draw(st.integers(4, 9 if axes < 3 else 5)) for _ in range(axes))
    channels = draw(st.sampled_from([1, 3, 4, 6]))
    source = Value(made.name("x", made.taken), channels, size)
    made.fed[source.name] = made.normal(batch, channels, *size)
    last = made.body(source)
    if not made.convolutions or last.name == source.name:
        last = made.convolution(source)
    return _closed(made, source, last)


def _closed(made: _Maker, source: Value, last: Value) -> Network:
    """Declare inputs and outputs, with open dimensions here and there, and put the nodes in some order."""
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), n) for n, a in made.weights.items()
    ]
    inputs = []
    for name, array in made.fed.items():
        dims: list[Any] = list(array.shape)
        if name == source.name and made.open:
            dims[0] = made.pick(dims[0], dims[0], "N", None)
            dims[2:] = [made.pick(size, size, f"s{axis}", None) for axis, size in enumerate(dims[2:])]
        inputs.append(helper.make_tensor_value_info(name, element_type(array.dtype), dims))
    declared = set(made.weights) if made.ir_version < 4 else made.overridable
    inputs += [
        helper.make_tensor_value_info(item.name, item.data_type, item.dims)
        for item in initializers
        if item.name in declared
    ]
    names = dict.fromkeys([last.name, *(name for name, _ in made.extra)])
    ranks = {last.name: len(last.size) + 2, **dict(made.extra)}
    outputs = []
    for number, name in enumerate(names):
        dims = [f"o{number}_{axis}" for axis in range(ranks[name])]
        outputs.append(helper.make_tensor_value_info(name, element_type(made.dtype), dims))
    nodes = made.draw(st.permutations(made.nodes)) if made.chance(15) else made.nodes
    graph = helper.make_graph(list(nodes), "graph", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", made.opset)]
    if made.functions:
        opsets.append(helper.make_opsetid("local", 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=made.ir_version, functions=made.functions)
    if nodes is made.nodes and made.chance(25):  # what an exporter states of the values in between
        model = onnx.shape_inference.infer_shapes(model)
    return Network(model, made.fed, made.dtype, made.convolutions, made.parts)
