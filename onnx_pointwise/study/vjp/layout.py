"""Gradients of operators that move numbers without changing them, resizing included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import runtime_source
from onnx_pointwise.runtime import open_waiting, run_session
from onnx_pointwise.study.vjp.draft import Call, RefusedError, Rule, size_of

Array = NDArray[Any]

# Times that one position may be read before a matrix does it: each costs a Gather of the whole.
_READS = 6


def _reshape(call: Call) -> dict[int, ir.Value]:
    return {0: call.draft.reshape(call.g, call.shape())}


def _transpose(call: Call) -> dict[int, ir.Value]:
    order = call.integers("perm", list(range(len(call.shape())))[::-1])
    return {0: call.draft.op("Transpose", call.g, perm=[order.index(axis) for axis in range(len(order))])}


def _expand(call: Call) -> dict[int, ir.Value]:
    return call.reduced(0, call.g)


def _tile(call: Call) -> dict[int, ir.Value]:
    shape = call.shape()
    repeats = [size // inside for size, inside in zip(call.out_shape, shape, strict=True)]
    split = call.draft.reshape(call.g, tuple(size for pair in zip(repeats, shape, strict=True) for size in pair))
    axes = call.draft.ints([2 * axis for axis in range(len(shape))])
    return {0: call.draft.op("ReduceSum", split, axes, keepdims=0)}


def _concat(call: Call) -> dict[int, ir.Value]:
    axis = call.axis(1)
    sizes = [call.shape(index)[axis] for index in range(len(call.node.inputs))]
    parts = call.draft.ops("Split", call.g, call.draft.ints(sizes), count=len(sizes), axis=axis)
    return {index: part for index, part in enumerate(parts) if call.wanted[index]}


def _split(call: Call) -> dict[int, ir.Value]:
    parts = []
    for value, gradient in zip(call.node.outputs, call.gradients, strict=True):
        if gradient is None:
            shape = call.draft.ints(call.draft.facts.shape(value))
            gradient = call.draft.op("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, call.dtype)))
        parts.append(gradient)
    return {0: call.draft.op("Concat", *parts, axis=call.axis(0))}


def _slice(call: Call) -> dict[int, ir.Value]:
    shape, g = call.shape(), call.g
    starts, ends = call.known(1, "starts"), call.known(2, "ends")
    if starts is None or ends is None:
        raise RefusedError("its bounds are missing")
    axes, steps = call.known(3, "axes"), call.known(4)
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    begins, behind = [0] * len(shape), [0] * len(shape)
    for axis, start, end, step in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        size = shape[axis]
        first, last, step = slice(start, _stop(end, size, step), step).indices(size)
        if step == 1:
            begins[axis], behind[axis] = first, size - max(first, last)
        else:
            g = _spread_along(call, g, np.arange(first, last, step), axis % len(shape), size)
    return {0: call.draft.pad(g, begins, behind)}


def _stop(end: int, size: int, step: int) -> int | None:
    """The end as Python has it: going back, what lies below -size means through to the first."""
    return None if step < 0 and end < -size else end


def _gather(call: Call) -> dict[int, ir.Value]:
    indices, shape = call.known(1), call.shape()
    if indices is None:
        raise RefusedError("its indices are missing")
    axis = call.axis(0)
    flat = call.draft.reshape(call.g, (*shape[:axis], indices.size, *shape[axis + 1 :]))
    return {0: _spread_along(call, flat, indices.ravel() % shape[axis], axis, shape[axis])}


def _pad(call: Call) -> dict[int, ir.Value]:
    shape, g, mode = call.shape(), call.g, call.text("mode", "constant")
    pads = call.known(1, "pads")
    if pads is None:
        raise RefusedError("its pads are missing")
    axes = call.known(3)
    chosen = list(range(len(shape))) if axes is None else (axes % len(shape)).tolist()
    half = len(chosen)
    begins, ends = [0] * len(shape), [0] * len(shape)
    for place, axis in enumerate(chosen):
        begins[axis], ends[axis] = int(pads[place]), int(pads[half + place])
    if mode == "constant":
        return {0: call.draft.pad(g, [-p for p in begins], [-p for p in ends])}
    how: Any = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    for axis, (front, back) in enumerate(zip(begins, ends, strict=True)):
        if front < 0 or back < 0:
            raise RefusedError(f"it takes away in mode {mode}")
        if front or back:
            g = _spread_along(call, g, np.pad(np.arange(shape[axis]), (front, back), how), axis, shape[axis])
    return {0: g}


def _spread_along(call: Call, g: ir.Value, sources: Array, axis: int, size: int) -> ir.Value:
    """Add what stands at each place along an axis to the place that it was read from.

    Args:
        call: The node.
        g: A gradient.
        sources: Where each place along the axis was read from.
        axis: The axis.
        size: Places that could be read.
    """
    counts = np.bincount(sources, minlength=size)
    if counts.max(initial=0) > _READS:
        return _times(call, g, np.eye(size)[sources], axis)
    # Another place, which holds zeros, stands for "never read".
    rank = len(call.shape())
    behind = [0] * rank
    behind[axis] = 1
    padded = call.draft.pad(g, [0] * rank, behind)
    order = np.argsort(sources, kind="stable")
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rounds = []
    for turn in range(max(1, int(counts.max(initial=0)))):
        places = np.full(size, len(sources))
        there = counts > turn
        places[there] = order[firsts[there] + turn]
        rounds.append(call.draft.op("Gather", padded, call.draft.ints(places.tolist()), axis=axis))
    return call.draft.total(rounds)


def _times(call: Call, g: ir.Value, matrix: Array, axis: int) -> ir.Value:
    """Multiply a gradient by a matrix [out, in] along an axis."""
    draft, rank = call.draft, len(call.shape())
    if axis == rank - 1:
        return call.op("MatMul", g, matrix)
    if axis == rank - 2:
        return call.op("MatMul", matrix.T, g)
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    turned = draft.op("Transpose", g, perm=order)
    return draft.op("Transpose", call.op("MatMul", turned, matrix), perm=order)


def _depth_to_space(call: Call) -> dict[int, ir.Value]:
    block = call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "DCR":
        return {0: call.draft.op("SpaceToDepth", call.g, blocksize=block)}
    batch, channels, height, width = call.shape()
    split = call.draft.reshape(call.g, (batch, channels // block**2, height, block, width, block))
    return {0: call.draft.reshape(call.draft.op("Transpose", split, perm=[0, 1, 3, 5, 2, 4]), call.shape())}


def _space_to_depth(call: Call) -> dict[int, ir.Value]:
    return {0: call.draft.op("DepthToSpace", call.g, blocksize=call.integer("blocksize", 1), mode="DCR")}


def _resize(call: Call) -> dict[int, ir.Value]:
    """The transpose of an interpolation, axis by axis."""
    g, inside = call.g, call.shape()
    if call.text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise RefusedError("it crops")
    scales = _scales(call)
    blocks = [1] * len(inside)
    matrices = {}
    for axis, (size, wanted) in enumerate(zip(inside, call.out_shape, strict=True)):
        if size == wanted and (scales is None or scales[axis] == 1.0):
            continue
        matrix = _interpolation(call, axis, scales)
        if axis > 1 and wanted % size == 0 and np.array_equal(matrix, np.repeat(np.eye(size), wanted // size, 0)):
            blocks[axis] = wanted // size
        else:
            matrices[axis] = matrix
    if max(blocks) > 1:
        window = blocks[2:]
        mean = call.draft.op("AveragePool", g, kernel_shape=window, strides=window)
        g = call.mul(mean, float(size_of(window)))
    for axis, matrix in matrices.items():
        g = _times(call, g, matrix, axis)
    return {0: g}


def _scales(call: Call) -> Array | None:
    """The scale of every axis; None where the node is told sizes."""
    rank = len(call.shape())
    if "scales" in call.node.attributes:  # Upsample before opset 9
        raise RefusedError("its scales are an attribute")
    if call.given(3):
        if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise RefusedError("it keeps the aspect ratio")
        return None
    given = call.known(1 if call.op_type == "Upsample" or call.opset < 11 else 2)
    if given is None:
        raise RefusedError("its scales are missing")
    scales = np.ones(rank, np.float32)
    scales[call.integers("axes", range(rank))] = given
    return scales


def _interpolation(call: Call, axis: int, scales: Array | None) -> Array:
    """The matrix [out, in] of a resize along one axis, as the runtime has it: the resize of an identity."""
    node, size, rank = call.node, call.shape()[axis], len(call.shape())
    across = 1 if axis == 0 else 0
    shape = [1] * rank
    shape[axis] = shape[across] = size
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    nothing = np.zeros(0, np.float32)
    further: list[ir.Value]
    if scales is None:
        sizes = np.array(shape, np.int64)
        sizes[axis] = call.out_shape[axis]
        further = [_stored("roi", nothing), _stored("scales", nothing), _stored("sizes", sizes)]
    else:
        own = np.ones(rank, np.float32)
        own[axis] = scales[axis]
        further = [_stored("scales", own)]
        if call.op_type == "Resize" and call.opset >= 11:
            further.insert(0, _stored("roi", nothing))
    # From opset 13 on, empty inputs must not be there at all.
    inputs = [value if call.opset < 13 or value.shape != ir.Shape([0]) else None for value in further]
    attributes = [attribute for attribute in node.attributes.values() if attribute.name != "axes"]
    copy = ir.Node("", node.op_type, [x, *inputs], attributes, outputs=[ir.Value(name="y", type=x.type)])
    graph = ir.Graph([x], copy.outputs, nodes=[copy], opset_imports={"": call.opset}, name="axis")
    for value in inputs:
        if value is not None:
            graph.register_initializer(value)
    with runtime_source(ir.Model(graph, ir_version=call.draft.facts.model.ir_version)) as source:
        session = open_waiting(source, 1)
    (result,) = run_session(session, ["y"], {"x": np.eye(size, dtype=np.float32).reshape(shape)})
    matrix: Array = result.reshape(size, -1).T if across < axis else result.reshape(-1, size)
    return matrix


def _stored(name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    "Upsample": _resize,
}
