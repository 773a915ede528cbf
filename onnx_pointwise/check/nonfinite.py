"""Where a network first gives NaN or infinity, for sentences about inputs on which nothing can be compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnx_pointwise.check.running import exposed
from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import ModelSource, as_model, runtime_source
from onnx_pointwise.runtime import Array, open_session, run_session


def first_non_finite(source: ModelSource | bytes, feeds: Mapping[str, Array]) -> str:
    """Name the first node that gives NaN or infinity, as a sentence; empty where none does or it cannot be found.

    Args:
        source: The network.
        feeds: One example of its inputs: all its values lie in memory at once.
    """
    makers = {str(value.name): node for node in as_model(source).graph for value in node.outputs if value.name}
    try:
        with runtime_source(exposed(source, makers)) as path:
            session = open_session(path, "cpu")
            names = [output.name for output in session.get_outputs() if output.type.startswith("tensor(")]
            values = dict(zip(names, run_session(session, names, feeds), strict=True))
    except ModelError:
        return ""
    found = next((node for name, node in makers.items() if name in values and _non_finite(values[name])), None)
    return "" if found is None else f"The first node of the first network to give NaN or infinity is {_named(found)}."


def _non_finite(values: Array) -> bool:
    return values.dtype.kind == "f" and not bool(np.isfinite(values).all())


def _named(node: ir.Node) -> str:
    return f"'{node.name or node.outputs[0].name}' ({node.op_type})"
