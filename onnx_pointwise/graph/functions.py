"""Local functions, put in place of their calls."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph.wire import innermost


def inlined(model: ir.Model, *, where: str = "the model in memory") -> ir.Model:
    """Put local functions in place of their calls.

    Args:
        model: The model, which is changed where it has any.
        where: What to call it in error messages.

    Raises:
        ModelError: A call does not fit its function.
    """
    if not model.functions:
        return model
    try:
        return InlinePass()(model).model
    except Exception as error:  # onnx_ir raises whatever its parts raise
        raise ModelError(
            f"{where}: its local functions cannot be put in place of their calls: {innermost(error)}; "
            "export the model again."
        ) from error
