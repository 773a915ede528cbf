"""Gradients of reductions and of everything that normalises by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnx_pointwise.graph import Shape
from onnx_pointwise.study.vjp.draft import Call, RefusedError, Rule, size_of


def _axes(call: Call) -> list[int]:
    """Axes of a reduction, from the attribute or, in later opsets, the input."""
    rank = len(call.shape())
    given = call.known(1, "axes")
    if given is None or not given.size:
        return [] if call.integer("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(axis) % rank for axis in given)


def _kept(shape: Shape, axes: Sequence[int]) -> Shape:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _unreduced(call: Call, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Give a reduced value its axes back, with size 1."""
    kept = _kept(call.shape(), axes)
    return value if kept == call.out_shape else call.draft.reshape(value, kept)


def _reduce_sum(call: Call) -> dict[int, ir.Value]:
    return {0: call.draft.op("Expand", _unreduced(call, call.g, _axes(call)), call.draft.ints(call.shape()))}


def _reduce_mean(call: Call) -> dict[int, ir.Value]:
    axes = _axes(call)
    share = call.mul(_unreduced(call, call.g, axes), 1.0 / size_of([call.shape()[axis] for axis in axes]))
    return {0: call.draft.op("Expand", share, call.draft.ints(call.shape()))}


def _reduce_extreme(call: Call) -> dict[int, ir.Value]:
    """To where the extreme value was, in equal parts where it was more than once."""
    axes = _axes(call)
    mask = call.mask("Equal", call.x(), _unreduced(call, call.y, axes))
    return {0: call.mul(call.div(_unreduced(call, call.g, axes), call.sum(mask, axes)), mask)}


def _reduce_l1(call: Call) -> dict[int, ir.Value]:
    return {0: call.mul(_unreduced(call, call.g, _axes(call)), call.op("Sign", call.x()))}


def _reduce_l2(call: Call) -> dict[int, ir.Value]:
    return {0: call.mul(_unreduced(call, call.div(call.g, call.y), _axes(call)), call.x())}


def _reduce_sum_square(call: Call) -> dict[int, ir.Value]:
    return {0: call.mul(_unreduced(call, call.mul(call.g, 2.0), _axes(call)), call.x())}


def _reduce_log_sum(call: Call) -> dict[int, ir.Value]:
    share = _unreduced(call, call.div(call.g, call.op("Exp", call.y)), _axes(call))
    return {0: call.draft.op("Expand", share, call.draft.ints(call.shape()))}


def _reduce_log_sum_exp(call: Call) -> dict[int, ir.Value]:
    axes = _axes(call)
    softmax = call.op("Exp", call.sub(call.x(), _unreduced(call, call.y, axes)))
    return {0: call.mul(_unreduced(call, call.g, axes), softmax)}


def _softmax(call: Call) -> dict[int, ir.Value]:
    """The product is dx = y (g - sum of g y)."""
    y, g, axis = _rows(call, call.y), _rows(call, call.g), _row_axis(call)
    found = call.mul(y, call.sub(g, call.sum(call.mul(g, y), [axis])))
    return {0: found if call.opset >= 13 else call.draft.reshape(found, call.shape())}


def _log_softmax(call: Call) -> dict[int, ir.Value]:
    """The product is dx = g - exp(y) (sum of g)."""
    y, g, axis = _rows(call, call.y), _rows(call, call.g), _row_axis(call)
    found = call.sub(g, call.mul(call.op("Exp", y), call.sum(g, [axis])))
    return {0: found if call.opset >= 13 else call.draft.reshape(found, call.shape())}


def _rows(call: Call, value: ir.Value) -> ir.Value:
    """Before opset 13 a Softmax took the axes from its own on as one."""
    if call.opset >= 13:
        return value
    axis, shape = call.axis(1), call.shape()
    return call.draft.reshape(value, (size_of(shape[:axis]), size_of(shape[axis:])))


def _row_axis(call: Call) -> int:
    return call.axis(-1) if call.opset >= 13 else 1


def _batch_normalization(call: Call) -> dict[int, ir.Value]:
    """From y = scale (x - mean) / sqrt(variance + epsilon) + bias, all by channel and none of them computed from x."""
    if call.integer("training_mode", 0) or any(value.name for value in call.node.outputs[1:]):
        raise RefusedError("it is in training mode")
    deviation = call.op("Sqrt", call.add(call.x(4), call.real("epsilon", 1e-5)))
    factor = call.div(call.x(1), deviation)
    return {0: call.mul(call.g, _column(call, factor))}


def _column(call: Call, value: ir.Value) -> ir.Value:
    """Turn [C] into [C, 1, ...], as wide as the input."""
    return call.draft.reshape(value, (-1, *[1] * (len(call.shape()) - 2)))


def _standardised(call: Call, x: ir.Value, g: ir.Value, axes: Sequence[int], epsilon: float) -> ir.Value:
    """Gradient of (x - mean) / sqrt(variance + epsilon) over axes.

    With z the result and r the factor: dx = r (g - mean(g) - z mean(g z)).
    """
    centred = call.sub(x, call.mean(x, axes))
    variance = call.mean(call.mul(centred, centred), axes)
    factor = call.div(1.0, call.op("Sqrt", call.add(variance, epsilon)))
    z = call.mul(centred, factor)
    moved = call.sub(call.sub(g, call.mean(g, axes)), call.mul(z, call.mean(call.mul(g, z), axes)))
    return call.mul(moved, factor)


def _instance_normalization(call: Call) -> dict[int, ir.Value]:
    g = call.mul(call.g, _column(call, call.x(1)))
    axes = range(2, len(call.shape()))
    return {0: _standardised(call, call.x(), g, axes, call.real("epsilon", 1e-5))}


def _group_normalization(call: Call) -> dict[int, ir.Value]:
    """The scale is by group in opset 18 to 20, by channel from 21 on."""
    draft, shape, groups = call.draft, call.shape(), call.integer("num_groups", 1)
    grouped = (shape[0], groups, size_of(shape[1:]) // groups)
    scale = call.x(1)
    if call.shape(1) == (groups,) and groups != shape[1]:
        spread = draft.op("Expand", draft.reshape(scale, (groups, 1)), draft.ints([groups, shape[1] // groups]))
        scale = draft.reshape(spread, (shape[1],))
    g = draft.reshape(call.mul(call.g, _column(call, scale)), grouped)
    back = _standardised(call, draft.reshape(call.x(), grouped), g, [2], call.real("epsilon", 1e-5))
    return {0: draft.reshape(back, shape)}


def _layer_normalization(call: Call) -> dict[int, ir.Value]:
    axes = range(call.axis(-1), len(call.shape()))
    g = call.mul(call.g, call.x(1))
    return {0: _standardised(call, call.x(), g, axes, call.real("epsilon", 1e-5))}


def _mean_variance_normalization(call: Call) -> dict[int, ir.Value]:
    axes = [axis % len(call.shape()) for axis in call.integers("axes", [0, 2, 3])]
    return {0: _standardised(call, call.x(), call.g, axes, 1e-9)}


def _lp_normalization(call: Call) -> dict[int, ir.Value]:
    """From y = x / n: dx = (g - (sum of g y) n') / n, with n' = sign(x) for p = 1 and y for p = 2."""
    axes, x = [call.axis(-1)], call.x()
    if call.integer("p", 2) == 1:
        norm, slope = call.sum(call.op("Abs", x), axes), call.op("Sign", x)
    else:
        norm, slope = call.op("Sqrt", call.sum(call.mul(x, x), axes)), call.y
    moved = call.sub(call.g, call.mul(call.sum(call.mul(call.g, call.y), axes), slope))
    # Where all is zero the runtime gives zeros, and so do we.
    safe = call.op("Max", norm, float(np.finfo(call.dtype).tiny))
    return {0: call.div(moved, safe)}


RULES: dict[str, Rule] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "ReduceL1": _reduce_l1,
    "ReduceL2": _reduce_l2,
    "ReduceLogSum": _reduce_log_sum,
    "ReduceLogSumExp": _reduce_log_sum_exp,
    "ReduceMax": _reduce_extreme,
    "ReduceMean": _reduce_mean,
    "ReduceMin": _reduce_extreme,
    "ReduceSum": _reduce_sum,
    "ReduceSumSquare": _reduce_sum_square,
    "Softmax": _softmax,
}
