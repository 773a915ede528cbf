"""What does not depend on a network's inputs: stored tensors, and what nodes make of nothing but stored tensors.

Kernels stored in half precision behind a Cast, weight-normalised ones, and weights quantised by themselves are made by
a few nodes from what is stored. Such a part of a graph is a constant like any other. It is computed here node by node,
by the reference implementation that comes with ONNX, and only where every value on the way stays within a bound.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]

# Numbers in one value, and nodes on the way to one, at most: no kernel of a convolution comes near either.
_LARGEST = 2**26
_MOST_NODES = 128
# Where the value that a node computes is kept, with the stored tensors it was computed from. It is not saved.
_KEPT = "onnx_pointwise.constant"


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Find the constant tensor behind a value: stored, or computed from stored tensors alone.

    Returns:
        The tensor; None where the value depends on the network's inputs, or takes more than is computed here.
    """
    stored = _stored(value)
    if stored is not None or value is None:
        return stored
    nodes = _made_by(value)
    if not nodes:
        return None
    stems = _leaves(nodes)
    kept = value.meta.get(_KEPT)
    if kept is None or len(kept[0]) != len(stems) or any(a is not b for a, b in zip(kept[0], stems, strict=True)):
        kept = value.meta[_KEPT] = (stems, _computed(value, nodes))
    computed: ir.TensorProtocol | None = kept[1]
    return computed


def leaves(value: ir.Value | None) -> list[ir.TensorProtocol]:
    """List the stored tensors that a constant is made of; itself where it is stored."""
    stored = _stored(value)
    if stored is not None or value is None:
        return [] if stored is None else [stored]
    return _leaves(_made_by(value) or [])


def operators(value: ir.Value | None) -> set[str]:
    """Name the operators that make a constant; none where it is stored."""
    return set() if value is None else {node.op_type for node in _made_by(value) or []}


def root_of(value: ir.Value | None) -> ir.Value | None:
    """Give the value that a chain of Identity passes on."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            return value
        value = node.inputs[0]
    return None


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """An initializer or a Constant node, through any Identity."""
    root = root_of(value)
    if root is None:
        return None
    if root.const_value is not None:
        return root.const_value
    node = root.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        match name:
            case "value":
                return attribute.as_tensor()
            case "value_float":
                return ir.tensor(np.array(attribute.as_float(), np.float32))
            case "value_floats":
                return ir.tensor(np.array(attribute.as_floats(), np.float32))
            case "value_int":
                return ir.tensor(np.array(attribute.as_int(), np.int64))
            case "value_ints":
                return ir.tensor(np.array(attribute.as_ints(), np.int64))
    return None


def _made_by(value: ir.Value) -> list[ir.Node] | None:
    """List the nodes that make a value of stored tensors alone, in their order; None where there is more to it."""
    found: list[ir.Node] = []
    opened: set[ir.Node] = set()
    stack: list[tuple[ir.Value, bool]] = [(value, False)]
    while stack:
        item, closed = stack.pop()
        if _stored(item) is not None:
            continue
        node = item.producer()
        if node is None or node.op_type not in _SIZES or node.domain not in ("", "ai.onnx"):
            return None
        if closed:
            if node not in found:
                found.append(node)
            continue
        if node in opened:
            continue
        opened.add(node)
        if len(opened) > _MOST_NODES or any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        stack.append((item, True))
        stack.extend((source, False) for source in node.inputs if source is not None)
    return found


def _leaves(nodes: Sequence[ir.Node]) -> list[ir.TensorProtocol]:
    """List the stored tensors that nodes take, each once, but for sizes and axes."""
    found: dict[ir.Value | None, ir.TensorProtocol] = {}
    for value in (item for node in nodes for item in node.inputs):
        root = root_of(value)
        tensor = _stored(root)
        if tensor is not None and tensor.dtype != ir.DataType.INT64:
            found[root] = tensor
    return list(found.values())


def _computed(value: ir.Value, nodes: Sequence[ir.Node]) -> ir.TensorProtocol | None:
    """Compute a value; None where a node cannot be computed, or leads to more than the bound."""
    made: dict[ir.Value, Array] = {}
    try:
        for node in nodes:
            given = {str(item.name): _array(item, made) for item in node.inputs if item is not None}
            arrays = [None if item is None else given[str(item.name)] for item in node.inputs]
            if _SIZES[node.op_type](node, arrays) > _LARGEST:
                return None
            made.update(zip(node.outputs, _run(node, given), strict=False))
        array = made[value]
        return ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
    except Exception:  # whatever a node that makes no sense raises; the value is no constant then
        return None


def _array(value: ir.Value, made: Mapping[ir.Value, Array]) -> Array:
    if value in made:
        return made[value]
    tensor = _stored(value)
    assert tensor is not None, "see _made_by"
    if tensor.size > _LARGEST:
        raise ValueError("more than is computed here")
    return tensor.numpy()


def _run(node: ir.Node, given: Mapping[str, Array]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator  # few models need it, and it makes the import longer

    proto = ir.serde.serialize_node(node)
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # what is not finite is found where it is used
        warnings.simplefilter("ignore")
        results = ReferenceEvaluator(proto, opsets=_opsets(node)).run(None, dict(given))
    return [np.asarray(result) for result in results]


def _opsets(node: ir.Node) -> dict[str, int]:
    """Operator sets of the graph that a node lies in."""
    if node.graph is not None and node.graph.opset_imports:
        return dict(node.graph.opset_imports)
    # Subgraphs name none, and know nothing of the graph around them. What became an input later tells old from new.
    return {"": 9 if {"axes", "max", "min", "starts"} & set(node.attributes) else 20}


# --- how large a node's result is -------------------------------------------------------------------------------------

_Arrays = Sequence[Array | None]


def _largest_input(node: ir.Node, arrays: _Arrays) -> int:
    return max((array.size for array in arrays if array is not None), default=1)


def _cast(node: ir.Node, arrays: _Arrays) -> int:
    if node.attributes["to"].as_int() == ir.DataType.STRING.value:
        raise ValueError("text takes many times the room")
    return _largest_input(node, arrays)


def _broadcast(node: ir.Node, arrays: _Arrays) -> int:
    return math.prod(np.broadcast_shapes(*(array.shape for array in arrays if array is not None)))


def _sum(node: ir.Node, arrays: _Arrays) -> int:
    return sum(array.size for array in arrays if array is not None)


def _filled(node: ir.Node, arrays: _Arrays) -> int:
    return math.prod(_sizes(arrays[0]))


def _expanded(node: ir.Node, arrays: _Arrays) -> int:
    assert arrays[0] is not None
    return math.prod(np.broadcast_shapes(arrays[0].shape, _sizes(arrays[1])))


def _gathered(node: ir.Node, arrays: _Arrays) -> int:
    data, indices = arrays[:2]
    assert data is not None
    assert indices is not None
    return data.size * max(1, indices.size)


def _product(node: ir.Node, arrays: _Arrays) -> int:
    first, second = arrays[:2]
    assert first is not None
    assert second is not None
    return int(first.size * second.size // max(1, first.shape[-1]))


def _sizes(array: Array | None) -> list[int]:
    assert array is not None
    return [int(size) for size in array.ravel()]


_NO_LARGER = {
    "Abs",
    "CastLike",
    "Ceil",
    "Clip",
    "DequantizeLinear",
    "Exp",
    "Flatten",
    "Floor",
    "Identity",
    "Log",
    "Neg",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Reshape",
    "Round",
    "Shape",
    "Sigmoid",
    "Sign",
    "Size",
    "Slice",
    "Softplus",
    "Sqrt",
    "Squeeze",
    "Tanh",
    "Transpose",
    "Unsqueeze",
}
#: The operators that constants are computed through, and a bound of how many numbers each puts out.
_SIZES: dict[str, Callable[[ir.Node, _Arrays], int]] = {
    **dict.fromkeys(_NO_LARGER, _largest_input),
    **dict.fromkeys(["Add", "Div", "Equal", "Max", "Min", "Mul", "Pow", "Sub", "Where"], _broadcast),
    "Cast": _cast,
    "Concat": _sum,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Gather": _gathered,
    "MatMul": _product,
}
