"""Make constants of initializers that a caller may override.

An initializer that is a graph input too is only the default of that input: ONNX Runtime cannot fold, fuse or prepack
it, so the network runs slower than one whose weights are constants. Freezing takes these inputs out of the graph;
values, names and the IR version stay. Before IR version 4 every initializer had to be an input, and the runtime takes
them for constants all the same: there the inputs stay, and nothing needs freezing.
"""

from __future__ import annotations

from typing import TypeVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from onnx_pointwise.graph.model_io import ModelSource, as_model, named_after

_Source = TypeVar("_Source", bound=ModelSource | bytes)

# The first IR version in which an initializer need not be a graph input.
_OPTIONAL_SINCE = 4


def overridable(model: ir.Model) -> list[str]:
    """Name the initializers that a caller may override, in the order of the graph inputs."""
    if model.ir_version < _OPTIONAL_SINCE:
        return []
    return [str(value.name) for value in model.graph.inputs if value.name in model.graph.initializers]


def frozen(source: _Source) -> _Source | ir.Model:
    """Give a model whose initializers are constants to the runtime.

    Args:
        source: The model; it is left as it is.

    Returns:
        The source itself where nothing can be overridden, else a copy that shares its weights.

    Raises:
        ModelError: The model cannot be read.
    """
    model = as_model(source)
    if not overridable(model):
        return source
    copy = model.clone()
    RemoveInitializersFromInputsPass()(copy)
    return named_after(copy, source)
