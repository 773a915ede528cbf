"""Random nodes, made to draw the same in every run, so that two networks can be told apart by anything but their noise.

A seed alone would not do: the runtime goes on drawing from run to run, and a network is run many times here. In a copy
that is only run, never written, each random node is replaced by nodes that compute noise of the same distribution from
the node's name and the position of each number.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnx_pointwise.graph.constants import constant
from onnx_pointwise.graph.model_io import ModelSource, as_model, named_after
from onnx_pointwise.graph.wire import all_graphs

_Source = TypeVar("_Source", bound=ModelSource | bytes)

_RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
_FLOAT, _DOUBLE, _INT64 = ir.DataType.FLOAT.value, ir.DataType.DOUBLE.value, ir.DataType.INT64.value
_INT32 = ir.DataType.INT32.value


def random_nodes(model: ir.Model) -> list[str]:
    """Name the nodes of a model that draw random numbers, by their outputs where they have no name."""
    return [_name(node) for node in _random(model)]


def still(model: ir.Model) -> list[str]:
    """Replace the random nodes of a model, in place, by nodes that compute the same noise in every run.

    Args:
        model: A model that is only run, not written.

    Returns:
        Names of the nodes that were replaced.
    """
    nodes = list(_random(model))
    names = [_name(node) for node in nodes]
    for node, name in zip(nodes, names, strict=True):
        _replace(node, name)
    return names


def stilled(source: _Source) -> _Source | ir.Model:
    """Give a model whose random nodes draw the same in every run, to compare it with another one.

    Args:
        source: The model; it is left as it is.

    Returns:
        The source itself where nothing is random, else a copy that shares its weights.

    Raises:
        ModelError: The model cannot be read.
    """
    model = as_model(source)
    if not random_nodes(model):
        return source
    copy = model.clone()
    still(copy)
    return named_after(copy, source)


def _random(model: ir.Model) -> Iterator[ir.Node]:
    for graph in all_graphs(model):
        for node in graph:
            if node.op_type in _RANDOM and node.domain in ("", "ai.onnx") and not _rests(node):
                yield node


def _rests(node: ir.Node) -> bool:
    """Whether a Dropout passes on what it gets, as it does unless it is told to train."""
    if node.op_type != "Dropout":
        return False
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = constant(node.inputs[2])
    return training is not None and not training.numpy().any()


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


class _Writer:
    """Puts nodes in front of one, and names what they make after it."""

    def __init__(self, node: ir.Node, name: str) -> None:
        self._node, self._name, self._count = node, name, 0

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Compute something."""
        self._count += 1
        made = [ir.Attr(key, *_attribute(value)) for key, value in attributes.items()]
        label = f"{self._name}/noise_{self._count}"
        added = ir.Node("", op_type, inputs, made, outputs=[ir.Value(name=label)], name=label)
        graph = self._node.graph
        assert graph is not None
        graph.insert_before(self._node, added)
        return added.outputs[0]

    def number(self, value: Any, dtype: Any = np.float64) -> ir.Value:
        """Store a constant."""
        return self("Constant", value=ir.tensor(np.asarray(value, dtype)))

    def uniform(self, shape: ir.Value, salt: int) -> ir.Value:
        """Draw numbers from 0 to 1, both left out, as float64 in a given shape."""
        # The position of each number, by operators that every operator set here has.
        ones = self("ConstantOfShape", shape, value=ir.tensor(np.ones(1, np.int64)))
        flat = self("Reshape", ones, self.number([-1], np.int64))
        positions = self("Reshape", self("NonZero", flat), self.number([-1], np.int64))
        phase = (zlib.crc32(f"{self._name} {salt}".encode()) % 100_003) / 7.0
        turned = self("Add", self("Mul", self("Cast", positions, to=_DOUBLE), self.number(12.9898)), self.number(phase))
        large = self("Mul", self("Sin", turned), self.number(43758.5453))
        fraction = self("Sub", large, self("Floor", large))
        inner = self("Add", self("Mul", fraction, self.number(1.0 - 2e-9)), self.number(1e-9))
        return self("Reshape", inner, shape)

    def normal(self, shape: ir.Value) -> ir.Value:
        """Draw standard normal numbers (Box and Muller)."""
        radius = self("Sqrt", self("Mul", self("Log", self.uniform(shape, 0)), self.number(-2.0)))
        angle = self("Mul", self.uniform(shape, 1), self.number(2.0 * math.pi))
        return self("Mul", radius, self("Sin", angle))


def _attribute(value: Any) -> tuple[ir.AttributeType, Any]:
    if isinstance(value, int):
        return ir.AttributeType.INT, value
    return ir.AttributeType.TENSOR, value


def _replace(node: ir.Node, name: str) -> None:
    write = _Writer(node, name)
    source = node.inputs[0] if node.inputs else None
    made: list[ir.Value]
    if node.op_type == "Multinomial":
        made = [_multinomial(node, write)]
    elif node.op_type == "Bernoulli":
        drawn = write("Less", write.uniform(write("Shape", source), 0), write("Cast", source, to=_DOUBLE))
        made = [_typed(write, drawn, node, source)]
    elif node.op_type == "Dropout":
        made = _dropout(node, write)
    else:
        wanted = node.attributes.get("shape")
        shape = write("Shape", source) if wanted is None else write.number(list(wanted.as_ints()), np.int64)
        if "Normal" in node.op_type:
            drawn = _scaled(write, write.normal(shape), _real(node, "scale", 1.0), _real(node, "mean", 0.0))
        else:
            low, high = _real(node, "low", 0.0), _real(node, "high", 1.0)
            drawn = _scaled(write, write.uniform(shape, 0), high - low, low)
        made = [_typed(write, drawn, node, source)]
    graph = node.graph
    assert graph is not None
    for old, new in zip(node.outputs, made, strict=False):
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.shape, new.type = old.shape, old.type
        old.name, new.name = None, old.name
    graph.remove(node, safe=True)


def _scaled(write: _Writer, value: ir.Value, factor: float, offset: float) -> ir.Value:
    return write("Add", write("Mul", value, write.number(factor)), write.number(offset))


def _typed(write: _Writer, value: ir.Value, node: ir.Node, source: ir.Value | None) -> ir.Value:
    """Bring what was drawn to the type that the node gives: stated, else its input's, else float32."""
    stated = node.attributes.get("dtype")
    if stated is not None:
        return write("Cast", value, to=stated.as_int())
    if source is None:
        return write("Cast", value, to=_FLOAT)
    if source.dtype is not None:
        return write("Cast", value, to=source.dtype.value)
    return write("CastLike", value, source)


def _multinomial(node: ir.Node, write: _Writer) -> ir.Value:
    """Draw classes: the largest of the log-probabilities with Gumbel noise on them."""
    source = node.inputs[0]
    size = write("Shape", source)
    batch = write("Gather", size, write.number([0], np.int64))
    classes = write("Gather", size, write.number([1], np.int64))
    attribute = node.attributes.get("sample_size")
    count = write.number([1 if attribute is None else attribute.as_int()], np.int64)
    drawn = write.uniform(write("Concat", batch, count, classes, axis=0), 0)
    noise = write("Neg", write("Log", write("Neg", write("Log", drawn))))
    one = write.number([1], np.int64)
    scores = write("Reshape", write("Cast", source, to=_DOUBLE), write("Concat", batch, one, classes, axis=0))
    chosen = write("ArgMax", write("Add", scores, noise), axis=2, keepdims=0)
    dtype = node.attributes.get("dtype")
    return write("Cast", chosen, to=_INT32 if dtype is None else dtype.as_int())


def _dropout(node: ir.Node, write: _Writer) -> list[ir.Value]:
    """Drop a share of the numbers and scale the others up, where the node is told to train."""
    source, training = node.inputs[0], node.inputs[2]
    ratio = node.inputs[1]
    share = write.number(0.5) if ratio is None else write("Cast", ratio, to=_DOUBLE)
    dropped = write("And", write("Less", write.uniform(write("Shape", source), 0), share), training)
    left = write("Sub", write.number(1.0), write("Mul", share, write("Cast", training, to=_DOUBLE)))
    factor = write("Div", write("Cast", write("Not", dropped), to=_DOUBLE), left)
    scaled = write("Mul", write("Cast", source, to=_DOUBLE), factor)
    return [_typed(write, scaled, node, source), write("Not", dropped)]


def _real(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()
