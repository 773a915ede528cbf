"""What is known of a forward graph at one size of its inputs: shapes, types, and numbers that no example changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import Shape, constant
from onnx_pointwise.runtime import Piece, reads, resolve, without_shapes

Array = NDArray[Any]

FLOATS = frozenset(
    kind.numpy() for kind in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
)
# What these give depends on the size of what they read only.
_SIZES = {"Shape", "Size"}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


class Facts:
    """What is known of a forward graph at one size of its inputs.

    Args:
        model: The model; it is left as it is.
        inputs: One batch of example inputs by name.

    Attributes:
        model: A copy of it with shapes inferred, to which outputs may be added.
        opset: Version of the ONNX operators.
    """

    def __init__(self, model: ir.Model, inputs: Mapping[str, Array]) -> None:
        # The inputs' shapes may have been fixed for other examples.
        self.model = resolve(without_shapes(model), {name: array.shape for name, array in inputs.items()}).model
        self.opset = self.model.graph.opset_imports.get("", self.model.graph.opset_imports.get("ai.onnx", 1))
        self.values = ir.convenience.create_value_mapping(self.model.graph, include_subgraphs=False)
        self._fixed = _fixed(self.model.graph)
        self._shapes: dict[str, Shape] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._known: dict[str, Array] = {}
        doubtful = _doubtful(self.model.graph)
        for name, value in self.values.items():
            if name not in doubtful and value.shape is not None and value.shape.is_static():
                self._shapes[name] = tuple(value.shape.numpy())
            if value.dtype is not None:
                self._dtypes[name] = value.dtype.numpy()

    def may_carry(self, value: ir.Value) -> bool:
        """Whether a value can have a gradient, as far as its type is known."""
        dtype = self._dtypes.get(str(value.name))
        return dtype is None or dtype in FLOATS

    def shape(self, value: ir.Value) -> Shape:
        """The shape of a value."""
        return self._shapes[str(value.name)]

    def dtype(self, value: ir.Value) -> np.dtype[Any]:
        """The type of a value."""
        return self._dtypes[str(value.name)]

    def gradient_dtype(self, value: ir.Value) -> np.dtype[Any]:
        """The type of a value's gradient: half precision is too coarse for one."""
        return np.dtype(np.float64 if self.dtype(value) == np.float64 else np.float32)

    def constant(self, value: ir.Value) -> Array | None:
        """The array that the model stores for a value, if any."""
        tensor = constant(value)
        return None if tensor is None else tensor.numpy()

    def known(self, value: ir.Value) -> Array | None:
        """The numbers of a value if no example changes them; None if they do."""
        stored = self.constant(value)
        return self._known.get(str(value.name)) if stored is None else stored

    def second_output(self, node: ir.Node, kind: ir.DataType, shape: Shape) -> ir.Value:
        """Have a node give its second output, too."""
        node.resize_outputs(max(2, len(node.outputs)))
        value = node.outputs[1]
        if not value.name:
            value.name = f"{node.outputs[0].name}/second"
            self.values[value.name] = value
        value.type, value.shape = ir.TensorType(kind), ir.Shape(shape)
        self._shapes[value.name], self._dtypes[value.name] = shape, kind.numpy()
        return value

    def positive(self, value: ir.Value) -> ir.Value:
        """Have the forward graph say where a value is above zero: a byte an element instead of the value."""
        name = f"{value.name}/positive"
        if name not in self.values:
            dtype = self.dtype(value)
            tensor = ir.tensor(np.zeros((), dtype), name=f"{name}/zero")
            zero = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(()), const_value=tensor)
            self.model.graph.register_initializer(zero)
            node = ir.node("Greater", [value, zero], name=name)
            result = node.outputs[0]
            result.name, result.type = name, ir.TensorType(ir.DataType.BOOL)
            self.model.graph.append(node)
            self.values[name], self._shapes[name], self._dtypes[name] = result, self.shape(value), np.dtype(np.bool_)
        return self.values[name]

    def learn(self, values: Iterable[ir.Value], inputs: Mapping[str, Array]) -> None:
        """Find by one run what inference does not know.

        Args:
            values: Values whose shape and type are needed, and whose numbers if no example changes them.
            inputs: The example inputs.

        Raises:
            ModelError: The model does not run on the inputs.
        """
        names: set[str] = set()
        shapes: set[str] = set()
        for value in values:
            name = str(value.name)
            if name not in self.values or name in inputs:
                continue
            number = name in self._fixed and self.constant(value) is None and name not in self._known
            if number or name not in self._dtypes:
                names.add(name)
            elif name not in self._shapes:
                shapes.add(name)
        if not names | shapes:
            return
        model = without_shapes(self.model)
        by_name = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
        measured = {f"{name}/shape": name for name in shapes - names}
        for size, name in measured.items():
            node = ir.node("Shape", [by_name[name]])
            node.outputs[0].name = size
            model.graph.append(node)
        asked = [*sorted(names), *measured]
        results = Piece(model, sorted(inputs), asked).run(inputs)
        for name, array in zip(asked, results, strict=True):
            if name in measured:
                self._shapes[measured[name]] = tuple(array.tolist())
                continue
            self._shapes[name], self._dtypes[name] = array.shape, array.dtype
            if name in self._fixed:
                self._known[name] = array


def between(
    facts: Facts, starts: Iterable[str], ends: Iterable[str], stops: Collection[str]
) -> tuple[list[ir.Node], set[str]]:
    """Find what lies between values: nodes on a path of floats, and names of the floats on one.

    Args:
        facts: What is known of the graph.
        starts: Names of the values to start from.
        ends: Names of the values to end at.
        stops: Operators that no path leads through.
    """
    below, above = set(starts), set(ends)
    nodes = []
    for node in facts.model.graph:
        if node.op_type not in stops and below.intersection(reads(node)):
            nodes.append(node)
            below.update(str(value.name) for value in node.outputs if value.name and facts.may_carry(value))
    found = []
    for node in reversed(nodes):
        if above.intersection(str(value.name) for value in node.outputs):
            found.append(node)
            above.update(below.intersection(reads(node)))
    return found[::-1], below & above


def ends(nodes: Sequence[ir.Node]) -> Iterable[ir.Value]:
    """Yield what nodes read and write."""
    for node in nodes:
        yield from (value for value in node.inputs if value is not None and value.name)
        yield from (value for value in node.outputs if value.name)


def _doubtful(graph: ir.Graph) -> set[str]:
    """Names of values whose inferred shape may be wrong.

    Where a pool rounds its size up, inference and the runtime differ about windows that begin in the padding; where
    a resize has a broken scale, about its last digit.
    """
    found: set[str] = set()
    for node in graph:
        if _rounds(node) or found.intersection(reads(node)):
            found.update(str(value.name) for value in node.outputs)
    return found


def _rounds(node: ir.Node) -> bool:
    if node.op_type in ("Resize", "Upsample"):
        scales = [constant(value) for value in node.inputs[1:3] if value is not None]
        return any(tensor is None or (tensor.numpy() % 1.0).any() for tensor in scales)
    return "ceil_mode" in node.attributes and node.attributes["ceil_mode"].as_int() != 0


def _fixed(graph: ir.Graph) -> set[str]:
    """Names of computed values that depend on the sizes of the inputs only."""
    fixed = {str(name) for name in graph.initializers}
    made = set()
    for node in graph:
        if node.op_type in _RANDOM:
            continue
        if node.op_type in _SIZES or all(name in fixed for name in reads(node)):
            names = {str(value.name) for value in node.outputs if value.name}
            fixed |= names
            made |= names
    return made
