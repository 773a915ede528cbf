"""Vector-Jacobian products of ONNX operators, written as ONNX nodes: one small function an operator, by its name."""

from onnx_pointwise.study.vjp import elementwise, layout, matrices, reductions, windows
from onnx_pointwise.study.vjp.draft import Call, Draft, RefusedError, Rule, size_of
from onnx_pointwise.study.vjp.facts import Facts, between, ends

#: The rule of every operator that has one.
RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **layout.RULES,
    **matrices.RULES,
    **reductions.RULES,
    **windows.RULES,
}

#: Operators whose derivative is zero wherever there is one: no gradient passes through.
FLAT = frozenset({"ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Floor", "Hardmax", "Round", "Shape", "Sign", "Size"})

__all__ = ["FLAT", "RULES", "Call", "Draft", "Facts", "RefusedError", "Rule", "between", "ends", "size_of"]
