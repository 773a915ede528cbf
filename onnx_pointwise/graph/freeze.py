"""Make constants of initializers that a caller may override.

An initializer that is a graph input too is only the default of that input: ONNX Runtime cannot fold, fuse or prepack
it, so the network runs slower than one whose weights are constants. Freezing takes these inputs out of the graph;
values, names and the IR version stay. Before IR version 4 every initializer had to be an input, and the runtime takes
them for constants all the same: there the inputs stay, and nothing needs freezing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from onnx_pointwise.graph.model_io import ModelSource, as_model

_Source = TypeVar("_Source", bound=ModelSource | bytes)

# The first IR version in which an initializer need not be a graph input.
_OPTIONAL_SINCE = 4
# Where a frozen copy keeps the path it was read from, for sentences about it; it is not saved with the model.
_ORIGIN = "onnx_pointwise.origin"


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


def named_after(copy: ir.Model, source: ModelSource | bytes) -> ir.Model:
    """Let a copy of a model be called in sentences what its source is called."""
    if isinstance(source, str | Path):
        copy.meta[_ORIGIN] = str(source)
    elif isinstance(source, ir.Model) and _ORIGIN in source.meta:
        copy.meta[_ORIGIN] = source.meta[_ORIGIN]
    return copy


def origin(model: ir.Model) -> str | None:
    """Give the path that a frozen copy was read from; None where it was made from a model in memory."""
    path: str | None = model.meta.get(_ORIGIN)
    return path
