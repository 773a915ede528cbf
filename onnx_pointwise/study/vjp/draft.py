"""The backward graph while it is written, and one forward node as the rule of its operator sees it.

A rule is a function of a `Call`. It reads the gradient of the node's outputs, writes nodes with the draft, and gives
the gradients of the inputs that it has any for. Shapes are those of one batch of examples, so rules work with plain
numbers; what they need of forward values comes into the backward graph as an input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import Shape
from onnx_pointwise.study.vjp.facts import Facts

Array = NDArray[Any]

#: Operators are written as of this opset, whatever the model's own is: the two graphs are separate.
OPSET = 18
_IR_VERSION = 8
# Constants up to this size are stored once however often they are used.
_SMALL = 4096
# What costs less to compute again than to keep, if only its input is kept anyway.
_CHEAP = {"Erf", "HardSigmoid", "Sigmoid", "Softplus", "Tanh"}


class RefusedError(Exception):
    """A rule has no gradient for a node as it stands; the message says why."""


class Draft:
    """The backward graph while it is written.

    Args:
        facts: What is known of the forward graph.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        #: Inputs of the backward graph, by the name of the forward value that they take.
        self.saved_values: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._initializers: list[ir.Value] = []
        self._shared: dict[tuple[str, Shape, bytes], ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._cast: dict[str, ir.Value] = {}
        self._count = 0

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Write a node with one output."""
        return self.ops(op_type, *inputs, count=1, **attributes)[0]

    def ops(self, op_type: str, *inputs: ir.Value | None, count: int, **attributes: Any) -> Sequence[ir.Value]:
        """Write a node with any number of outputs."""
        node = ir.node(op_type, inputs, attributes, num_outputs=count)
        for value in node.outputs:
            value.name = self._fresh("t")
        self._nodes.append(node)
        return node.outputs

    def constant(self, array: Array) -> ir.Value:
        """Store an array."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= _SMALL else None
        if key is not None and key in self._shared:
            return self._shared[key]
        name = self._fresh("c")
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self._initializers.append(value)
        if key is not None:
            self._shared[key] = value
        return value

    def ints(self, numbers: Sequence[int]) -> ir.Value:
        """Store a vector of integers."""
        return self.constant(np.array(numbers, np.int64))

    def input(self, name: str, dtype: np.dtype[Any], shape: Shape) -> ir.Value:
        """Declare an input."""
        kind = ir.TensorType(ir.DataType.from_numpy(dtype))
        value = ir.Value(name=name, type=kind, shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def saved(self, value: ir.Value) -> ir.Value:
        """Take a forward value over, floats in the type that gradients have."""
        name = str(value.name)
        if name in self._cast:
            return self._cast[name]
        again = self._again(value)
        if again is not None:
            self._cast[name] = again
            return again
        stored = self.facts.constant(value)
        wanted = self.facts.gradient_dtype(value) if self.facts.may_carry(value) else None
        if stored is not None:
            taken = self.constant(stored if wanted is None else stored.astype(wanted))
        else:
            dtype = self.facts.dtype(value)
            taken = self.input(self._fresh("saved"), dtype, self.facts.shape(value))
            self.saved_values[name] = taken
            if wanted is not None and dtype != wanted:
                taken = self.op("Cast", taken, to=ir.DataType.from_numpy(wanted).value)
        self._cast[name] = taken
        return taken

    def _again(self, value: ir.Value) -> ir.Value | None:
        """Compute a forward value again where it is a gate: half of what SiLU and Mish would keep."""
        node, chain = value.producer(), []
        while node is not None and node.op_type in _CHEAP and node.domain in ("", "ai.onnx"):
            chain.append(node)
            source = node.inputs[0]
            assert source is not None
            if len(source.uses()) > 1:
                result = self.saved(source)
                for item in reversed(chain):
                    attributes = {attribute.name: attribute.as_float() for attribute in item.attributes.values()}
                    result = self.op(item.op_type, result, **attributes)
                return result
            node = source.producer()
        return None

    def reshape(self, value: ir.Value, shape: Shape) -> ir.Value:
        """Give a value another shape."""
        return self.op("Reshape", value, self.ints(shape), allowzero=1)

    def pad(self, value: ir.Value, begins: Sequence[int], ends: Sequence[int]) -> ir.Value:
        """Add zeros around a value, or take away where the numbers are negative."""
        rank = len(begins)
        if any(number < 0 for number in (*begins, *ends)):
            starts = [max(0, -begin) for begin in begins]
            stops = [min(end, 0) or np.iinfo(np.int64).max for end in ends]
            value = self.op("Slice", value, self.ints(starts), self.ints(stops), self.ints(range(rank)))
            begins, ends = [max(0, begin) for begin in begins], [max(0, end) for end in ends]
        return self.op("Pad", value, self.ints([*begins, *ends])) if any((*begins, *ends)) else value

    def sum_to(self, value: ir.Value, shape: Shape, wanted: Shape) -> ir.Value:
        """Sum a gradient over the axes along which its operand was broadcast."""
        if shape == wanted:
            return value
        lead = len(shape) - len(wanted)
        axes = [axis for axis in range(len(shape)) if axis < lead or (wanted[axis - lead] == 1 and shape[axis] != 1)]
        if axes:
            value = self.op("ReduceSum", value, self.ints(axes), keepdims=1)
        return self.reshape(value, wanted) if lead else value

    def total(self, values: Sequence[ir.Value]) -> ir.Value:
        """Add values of one shape."""
        return values[0] if len(values) == 1 else self.op("Sum", *values)

    def model(self, outputs: Mapping[str, tuple[ir.Value, np.dtype[Any]]]) -> ir.Model:
        """Make the model that computes values of known types under the given names, of the nodes that they need."""
        ends = []
        for name, (value, dtype) in outputs.items():
            end = self.op("Identity", value)
            end.name = name
            end.type = ir.TensorType(ir.DataType.from_numpy(dtype))
            ends.append(end)
        used: set[ir.Value | None] = set(ends)
        nodes: list[ir.Node] = []
        for node in reversed(self._nodes):
            if used.intersection(node.outputs):
                nodes.append(node)
                used.update(node.inputs)
        inputs = [value for value in self._inputs if value in used]
        initializers = [value for value in self._initializers if value in used]
        graph = ir.Graph(
            inputs,
            ends,
            nodes=nodes[::-1],
            initializers=initializers,
            opset_imports={"": OPSET},
            name="backward",
        )
        return ir.Model(graph, ir_version=_IR_VERSION)

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"


@dataclass(frozen=True)
class Call:
    """A forward node as its rule sees it.

    Attributes:
        node: The node.
        draft: Where to write.
        gradients: Gradients of its outputs; None where no head depends on one.
        wanted: Whether each input's gradient is asked for.
    """

    node: ir.Node
    draft: Draft
    gradients: Sequence[ir.Value | None]
    wanted: Sequence[bool]

    @property
    def g(self) -> ir.Value:
        """The gradient of the first output."""
        gradient = self.gradients[0]
        if gradient is None:
            raise RefusedError("only a further output is used")
        return gradient

    @property
    def op_type(self) -> str:
        """The operator."""
        return self.node.op_type

    @property
    def opset(self) -> int:
        """The forward graph's opset."""
        return self.draft.facts.opset

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the gradients."""
        return self.draft.facts.gradient_dtype(self.node.outputs[0])

    def given(self, index: int) -> bool:
        """Whether an input is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def input(self, index: int) -> ir.Value:
        """An input, which must be there."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise RefusedError(f"input {index} is missing")
        return value

    def x(self, index: int = 0) -> ir.Value:
        """The forward value of an input."""
        return self.draft.saved(self.input(index))

    @property
    def y(self) -> ir.Value:
        """The forward value of the first output."""
        return self.draft.saved(self.node.outputs[0])

    def shape(self, index: int = 0) -> Shape:
        """The shape of an input."""
        return self.draft.facts.shape(self.input(index))

    @property
    def out_shape(self) -> Shape:
        """The shape of the first output."""
        return self.draft.facts.shape(self.node.outputs[0])

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, not negative."""
        axis = self.integer("axis", default)
        return axis + (len(self.shape()) if rank is None else rank) if axis < 0 else axis

    def known(self, index: int, attribute: str | None = None) -> Array | None:
        """An input whose numbers no example changes, or the attribute that older opsets have in its place.

        Returns:
            The array; None where neither is there.

        Raises:
            RefusedError: The input depends on the examples.
        """
        if attribute is not None and attribute in self.node.attributes:
            held = self.node.attributes[attribute]
            return np.array(held.as_floats() if held.type == ir.AttributeType.FLOATS else held.as_ints())
        if not self.given(index):
            return None
        array = self.draft.facts.known(self.input(index))
        if array is None:
            raise RefusedError(f"input {index} depends on the examples")
        return array

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute of integers."""
        attribute = self.node.attributes.get(name)
        return list(default if attribute is None else attribute.as_ints())

    def real(self, name: str, default: float) -> float:
        """A float attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def value(self, operand: Operand) -> ir.Value:
        """A number or an array as a value of the gradients' type; a value as it is."""
        return operand if isinstance(operand, ir.Value) else self.draft.constant(np.asarray(operand, self.dtype))

    def op(self, op_type: str, *operands: Operand, **attributes: Any) -> ir.Value:
        """Write a node whose operands are values, numbers or arrays."""
        return self.draft.op(op_type, *[self.value(operand) for operand in operands], **attributes)

    def mul(self, first: Operand, *others: Operand) -> ir.Value:
        """Multiply."""
        result = self.value(first)
        for other in others:
            result = self.op("Mul", result, other)
        return result

    def add(self, first: Operand, second: Operand) -> ir.Value:
        """Add."""
        return self.op("Add", first, second)

    def sub(self, first: Operand, second: Operand) -> ir.Value:
        """Subtract."""
        return self.op("Sub", first, second)

    def div(self, first: Operand, second: Operand) -> ir.Value:
        """Divide."""
        return self.op("Div", first, second)

    def positive(self, value: ir.Value) -> ir.Value:
        """1 where a forward value is above zero, else 0."""
        mask = self.draft.saved(self.draft.facts.positive(value))
        return self.draft.op("Cast", mask, to=ir.DataType.from_numpy(self.dtype).value)

    def mask(self, comparison: str, first: Operand, second: Operand) -> ir.Value:
        """Compare; 1 where it holds, else 0."""
        return self.draft.op("Cast", self.op(comparison, first, second), to=ir.DataType.from_numpy(self.dtype).value)

    def sum(self, value: Operand, axes: Sequence[int]) -> ir.Value:
        """Sum over axes, which stay with size 1."""
        return self.draft.op("ReduceSum", self.value(value), self.draft.ints(axes), keepdims=1)

    def mean(self, value: Operand, axes: Sequence[int]) -> ir.Value:
        """Mean over axes, which stay with size 1."""
        return self.draft.op("ReduceMean", self.value(value), self.draft.ints(axes), keepdims=1)

    def reduced(self, index: int, gradient: ir.Value) -> dict[int, ir.Value]:
        """Sum the gradient of an operand that was broadcast."""
        return {index: self.draft.sum_to(gradient, self.out_shape, self.shape(index))}


Operand: TypeAlias = ir.Value | float | Array
Rule: TypeAlias = Callable[[Call], Mapping[int, ir.Value]]


def size_of(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    return math.prod(shape)
