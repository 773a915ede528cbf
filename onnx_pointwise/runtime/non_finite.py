"""Where NaN or infinity comes from: the first node of a network that makes it out of finite numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import ModelSource, as_model
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime.inputs import Array, feedable
from onnx_pointwise.runtime.providers import open_session, session_source
from onnx_pointwise.runtime.runner import model_name
from onnx_pointwise.runtime.runtime_errors import sentence
from onnx_pointwise.runtime.segments import without_shapes

# Values that are looked at in one run: they are in memory together.
_AT_ONCE = 32
_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)"}


@dataclass(frozen=True)
class NonFinite:
    """The first value of a network that is not finite.

    Attributes:
        value: Its name.
        node: Name of the node that makes it, or of its output where it has none; None for an input of the network.
        op_type: That node's operator; None for an input.
        nan: How many of its numbers are NaN.
        infinite: How many are infinite.
        size: How many there are.
    """

    value: str
    node: str | None
    op_type: str | None
    nan: int
    infinite: int
    size: int

    def __str__(self) -> str:
        """Say it in half a sentence: the node 'log' (Log) makes 12 NaN and 3 infinite values of 100."""
        kinds = [f"{self.nan} NaN"] * bool(self.nan) + [f"{self.infinite} infinite"] * bool(self.infinite)
        who = (
            f"the input '{self.value}' holds" if self.node is None else f"the node '{self.node}' ({self.op_type}) makes"
        )
        return f"{who} {' and '.join(kinds)} values of {self.size}"

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return asdict(self)


def first_non_finite(
    model: ModelSource | bytes, feeds: Mapping[str, Array], *, provider: str = "cpu"
) -> NonFinite | None:
    """Run a network once more and find the first value that is not finite, in the order of its nodes.

    Args:
        model: The network.
        feeds: Input name to array.
        provider: Execution provider, as for `providers.open_session`.

    Returns:
        What was found; None where all values are finite that can be looked at: what bodies of Loop and If do is seen
        at their outputs.

    Raises:
        ModelError: The network does not run.
    """
    for name, array in feeds.items():
        if array.dtype.kind == "f" and (found := _seen(name, None, None, array)) is not None:
            return found
    copy = without_shapes(as_model(model))
    makers = {str(value.name): node for node in copy.graph for value in node.outputs if value.name}
    declared = {str(value.name) for value in copy.graph.outputs}
    values = [value for node in copy.graph for value in node.outputs if value.name]
    copy.graph.outputs.extend(value for value in values if value.name not in declared)
    arrays = feedable(feeds)
    with session_source(copy, provider) as source:
        # Without optimisations nodes are what the file says, and infinities made where it says.
        session = open_session(source, provider, optimization="none")
        kinds = {output.name: output.type for output in session.get_outputs()}
        names = [str(value.name) for value in values if kinds.get(str(value.name)) in _FLOATS]
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            try:
                results = session.run(part, arrays)
            except Exception as error:  # the runtime's exceptions share no base class
                raise ModelError(f"{model_name(model)}: the model does not run: {sentence(error)}.") from error
            for name, array in zip(part, results, strict=True):
                node = makers[name]
                if (found := _seen(name, node.name or name, node.op_type, array)) is not None:
                    return found
    return None


def _seen(value: str, node: str | None, op_type: str | None, array: Array | None) -> NonFinite | None:
    if array is None or np.isfinite(array).all():
        return None
    nan, infinite = int(np.count_nonzero(np.isnan(array))), int(np.count_nonzero(np.isinf(array)))
    return NonFinite(value, node, op_type, nan, infinite, int(array.size))
