"""What a chain of convolutions looks like when it is deployed, found once and written at any size.

A quantizer asks for a scale for each feature map of each kernel and for a range of all that passes between two of
them, which for hundreds of probes takes minutes, and says the same each time: where QuantizeLinear and
DequantizeLinear stand, and which of their numbers there are one for each feature map. So it is asked once for every
sequence of operators, on kernels of a few feature maps whose numbers all differ, and what it gives is read as a
pattern: a tensor as wide as one of these numbers is as wide as the kernel that is to stand there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_pointwise.deploying import Deployment
from onnx_pointwise.graph import load, serialize

# Feature maps between the convolutions of a pattern: all different, none of them 1, which a scalar might have.
_WIDTHS = (2, 3, 5, 7, 11, 13)
_SIZE = 4
_FEED = "x"
# Name of a convolution of a pattern, whatever a converter puts around it.
_PIECE = re.compile(r"piece(\d+)")


#: Operator of a convolution, and whether it is depthwise.
Kind = tuple[str, bool]


class Conv(Protocol):
    """A convolution as it is to be written."""

    @property
    def in_channels(self) -> int:
        """Feature maps in."""

    @property
    def out_channels(self) -> int:
        """Feature maps out."""

    @property
    def kernel(self) -> tuple[int, ...]:
        """Size of the kernel."""

    @property
    def attributes(self) -> tuple[tuple[str, Any], ...]:
        """Attributes of the node, without the size of its kernel."""

    @property
    def group(self) -> int:
        """Groups of feature maps; as many as there are in a depthwise one."""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its kernel as the operator takes it."""


@dataclass(frozen=True)
class Stamped:
    """A chain as it is deployed.

    Attributes:
        nodes: Its nodes, in an order in which they can run.
        weights: Their constants.
        output: What it puts out.
    """

    nodes: list[onnx.NodeProto]
    weights: list[onnx.TensorProto]
    output: onnx.ValueInfoProto


class Patterns:
    """The patterns of one deployment, each made when it is first asked for.

    Args:
        deployment: What is made of a network before it runs.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._known: dict[tuple[tuple[Kind, ...], int, str], Pattern] = {}

    def of(self, kinds: tuple[Kind, ...], axes: int, dtype: str) -> Pattern:
        """Give the pattern of a chain.

        Args:
            kinds: Its operators, and which of them are depthwise.
            axes: Spatial axes.
            dtype: Number format of the network that it is a part of.

        Raises:
            ModelError: It cannot be deployed so.
        """
        key = kinds, axes, dtype
        if key not in self._known:
            small = _small_chain(kinds, axes, dtype)
            drawn = np.random.default_rng(0).standard_normal((2, _WIDTHS[0], *(axes * [_SIZE])), np.float32)
            made = self._deployment.made(load(small), {_FEED: drawn.astype(dtype)})
            self._known[key] = Pattern(serialize(made))
        return self._known[key]


class Pattern:
    """A chain of convolutions as it is deployed.

    Attributes:
        element: ONNX's number of the format that it is fed.
        imports: Versions of operators by domain.

    Args:
        small: The chain with the widths of this module.
    """

    def __init__(self, small: onnx.ModelProto) -> None:
        graph = small.graph
        self.element = graph.input[0].type.tensor_type.elem_type
        self.imports = {one.domain: one.version for one in small.opset_import}
        self._output = graph.output[0]
        self._weights = {one.name: one for one in graph.initializer}
        # What only prepares the input is there once for all chains that are fed the same.
        shared = {_FEED}
        self._head: list[onnx.NodeProto] = []
        self._nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            moving = [name for name in node.input if name and name not in self._weights]
            if moving and set(moving) <= shared and not is_conv(node.op_type):
                self._head.append(node)
                shared |= set(node.output)
            else:
                self._nodes.append(node)
        self._shared = shared

    def head(self, feed: str) -> list[onnx.NodeProto]:
        """Write what prepares an input of this name."""
        return [_renamed(node, lambda name: self._of_head(name, feed)) for node in self._head]

    def head_weights(self, feed: str) -> list[onnx.TensorProto]:
        """Write the constants of that."""
        return [
            _tensor(self._weights[name], self._of_head(name, feed))
            for name in dict.fromkeys(name for node in self._head for name in node.input)
            if name in self._weights
        ]

    def stamped(self, name: str, feed: str, chain: Sequence[Conv], rng: np.random.Generator) -> Stamped:
        """Write a chain of this pattern.

        Args:
            name: What all in it is called after.
            feed: Name of its input.
            chain: The convolutions.
            rng: What kernels of floats are drawn from.
        """

        def rename(old: str) -> str:
            return self._of_head(old, feed) if old in self._shared else f"{name}/{old}" if old else ""

        def kernel_or_scales(old: onnx.TensorProto) -> onnx.TensorProto:
            return _widened(old, rename(old.name), chain, rng)

        nodes = [_renamed(node, rename) for node in self._nodes]
        convs = {node.output[0]: node for node in nodes if is_conv(node.op_type)}
        new = {output: f"{name}.{_piece(node)}.z" for output, node in convs.items()}
        for node in nodes:
            if is_conv(node.op_type):
                _sized(node, chain[_piece(node)])
                node.name = f"{name}.{_piece(node)}"
            for side in (node.input, node.output):
                side[:] = [new.get(value, value) for value in side]
        used = dict.fromkeys(value for node in self._nodes for value in node.input if value in self._weights)
        end = rename(self._output.name)
        element = self._output.type.tensor_type.elem_type
        return Stamped(
            nodes,
            [kernel_or_scales(self._weights[value]) for value in used],
            helper.make_tensor_value_info(new.get(end, end), element, None),
        )

    def _of_head(self, name: str, feed: str) -> str:
        return feed if name == _FEED else f"{feed}/{name}" if name else ""


def _widths(depthwise: Sequence[bool]) -> list[int]:
    """Feature maps before and behind each convolution of a pattern; a depthwise one puts out as many as it reads."""
    widths, fresh = [_WIDTHS[0]], iter(_WIDTHS[1:])
    for same in depthwise:
        widths.append(widths[-1] if same else next(fresh))
    return widths


def _small_chain(kinds: Sequence[Kind], axes: int, dtype: str) -> onnx.ModelProto:
    """A chain of 1x1 convolutions with the widths of this module; node ``piece<index>`` is one of them."""
    rng = np.random.default_rng(0)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, weights, value = [], [], _FEED
    widths = _widths([depthwise for _, depthwise in kinds])
    for index, (op_type, depthwise) in enumerate(kinds):
        inside, outside = widths[index : index + 2]
        shape = (inside, outside) if op_type == "ConvTranspose" else (outside, inside)
        shape = (inside, 1) if depthwise else shape
        kernel = rng.standard_normal((*shape, *(axes * [1])), np.float32).astype(dtype)
        weights.append(numpy_helper.from_array(kernel, f"piece{index}.weight"))
        ends = [value, weights[-1].name], [f"piece{index}.y"]
        nodes.append(helper.make_node(op_type, *ends, f"piece{index}", group=inside if depthwise else 1))
        value = f"piece{index}.y"
    fed = [
        helper.make_tensor_value_info(name, element, ["N", width, *(axes * [_SIZE])])
        for name, width in ((_FEED, widths[0]), (value, widths[-1]))
    ]
    graph = helper.make_graph(nodes, "pattern", fed[:1], fed[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def is_conv(op_type: str) -> bool:
    """Whether an operator is a convolution, in whatever precision or fusion it runs."""
    return op_type.endswith(("Conv", "ConvTranspose"))


def _piece(node: onnx.NodeProto) -> int:
    found = _PIECE.search(node.name)
    assert found is not None, "converters keep the name of a convolution"
    return int(found[1])


def _renamed(node: onnx.NodeProto, rename: Any) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = rename(node.name)
    copy.input[:] = [rename(name) for name in node.input]
    copy.output[:] = [rename(name) for name in node.output]
    return copy


def _sized(node: onnx.NodeProto, conv: Conv) -> None:
    """Give a convolution of a pattern the attributes of the one that it stands for."""
    given = {"kernel_shape": conv.kernel, **dict(conv.attributes)}
    kept = [one for one in node.attribute if one.name not in given]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in given.items())])


def _tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _widened(tensor: onnx.TensorProto, name: str, chain: Sequence[Conv], rng: np.random.Generator) -> onnx.TensorProto:
    """A constant of a pattern as wide as the chain asks for; what its numbers are does not matter to a latency."""
    shape = _shape(tuple(tensor.dims), chain)
    if shape == tuple(tensor.dims):
        return _tensor(tensor, name)
    numbers = numpy_helper.to_array(tensor)
    if len(shape) > 1 and np.issubdtype(numbers.dtype, np.floating):
        drawn = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
        return numpy_helper.from_array(drawn.astype(numbers.dtype), name)
    size = math.prod(shape)
    repeated = np.tile(numbers.ravel(), -(-size // numbers.size))
    return numpy_helper.from_array(repeated[:size].reshape(shape), name)


def _shape(small: tuple[int, ...], chain: Sequence[Conv]) -> tuple[int, ...]:
    """What a shape in a pattern stands for: a kernel, one number for each of some feature maps, or itself."""
    for old, new in _correspondences(chain):
        if small == old:
            return new
    return small


def _correspondences(chain: Sequence[Conv]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    yield (_WIDTHS[0],), (chain[0].in_channels,)
    widths = _widths([conv.group > 1 for conv in chain])
    for inside, outside, conv in zip(widths, widths[1:], chain, strict=False):
        yield (outside,), (conv.out_channels,)
        ones = len(conv.kernel) * (1,)
        if conv.group > 1:
            yield (inside, 1, *ones), conv.weight_shape
            yield (1, inside, *ones), conv.weight_shape
        else:
            yield (outside, inside, *ones), conv.weight_shape
            yield (inside, outside, *ones), conv.weight_shape
