"""Gradients of matrix products."""

from __future__ import annotations

import onnx_ir as ir

from onnx_pointwise.graph import Shape
from onnx_pointwise.study.vjp.draft import Call, Rule


def _gemm(call: Call) -> dict[int, ir.Value]:
    """From y = alpha A' B' + beta C, where A' and B' may be transposed."""
    found: dict[int, ir.Value] = {}
    alpha, across, along = call.real("alpha", 1.0), call.integer("transA", 0), call.integer("transB", 0)
    if call.wanted[0]:
        first, second = (call.x(1), call.g) if across else (call.g, call.x(1))
        turns = {"transA": along, "transB": 1} if across else {"transB": 1 - along}
        found[0] = call.draft.op("Gemm", first, second, alpha=alpha, **turns)
    if call.wanted[1]:
        first, second = (call.g, call.x(0)) if along else (call.x(0), call.g)
        turns = {"transA": 1, "transB": across} if along else {"transA": 1 - across}
        found[1] = call.draft.op("Gemm", first, second, alpha=alpha, **turns)
    if len(call.wanted) > 2 and call.wanted[2]:
        found |= call.reduced(2, call.mul(call.g, call.real("beta", 1.0)))
    return found


def _matmul(call: Call) -> dict[int, ir.Value]:
    """From y = A B over the last two axes; vectors count as a row in front and a column behind."""
    found: dict[int, ir.Value] = {}
    draft, first, second = call.draft, call.shape(0), call.shape(1)
    left = first if len(first) > 1 else (1, *first)
    right = second if len(second) > 1 else (*second, 1)
    rows = call.out_shape if len(second) > 1 else (*call.out_shape, 1)
    whole = rows if len(first) > 1 else (*rows[:-1], 1, rows[-1])
    g = call.g if whole == call.out_shape else draft.reshape(call.g, whole)
    if call.wanted[0]:
        other = call.x(1) if right == second else draft.reshape(call.x(1), right)
        product = draft.op("MatMul", g, _transposed(call, other, right))
        found[0] = _back(call, product, (*whole[:-1], right[-2]), left, first)
    if call.wanted[1]:
        other = call.x(0) if left == first else draft.reshape(call.x(0), left)
        product = draft.op("MatMul", _transposed(call, other, left), g)
        found[1] = _back(call, product, (*whole[:-2], left[-1], whole[-1]), right, second)
    return found


def _transposed(call: Call, value: ir.Value, shape: Shape) -> ir.Value:
    rank = len(shape)
    return call.draft.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _back(call: Call, value: ir.Value, shape: Shape, matrix: Shape, wanted: Shape) -> ir.Value:
    value = call.draft.sum_to(value, shape, matrix)
    return value if matrix == wanted else call.draft.reshape(value, wanted)


RULES: dict[str, Rule] = {"Gemm": _gemm, "MatMul": _matmul}
