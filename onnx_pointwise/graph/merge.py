"""Two 1x1 convolutions with nothing between them are one.

U . x + b followed by P . y is (P U) . x + P b. This happens where a site with a 1x1 behind its kernel is read by
nothing but a site with one in front, with no activation between them. The merged one puts out what P did, so zeros that
the next kernel pads with stay where they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph.constants import constant


def merge_pointwise(nodes: Iterable[ir.Node]) -> list[tuple[str, str]]:
    """Merge neighbouring 1x1 convolutions among nodes that are 1x1 convolutions with constant weights, in place.

    The second one of a pair stays, with the first one's input. A pair is merged only where that saves arithmetic.

    Args:
        nodes: 1x1 convolutions of stride 1 without padding or groups, as ``BottleneckPass`` inserts them.

    Returns:
        Names of the two nodes of each pair merged, the removed one first.
    """
    inserted = list(nodes)
    merged = []
    for second in inserted:
        source = second.inputs[0]
        first = None if source is None else source.producer()
        if source is None or first not in inserted or source.is_graph_output() or len(source.uses()) != 1:
            continue
        assert first is not None
        outer, inner = _matrix(second), _matrix(first)
        if outer.shape[0] * inner.shape[1] > inner.size + outer.size or first.graph is not second.graph:
            continue
        if len(second.inputs) > 2 or not _own_bias(first):
            continue
        _merge(first, second, outer, inner)
        inserted.remove(first)
        merged.append((str(first.name), str(second.name)))
    return merged


def _own_bias(node: ir.Node) -> bool:
    """Whether a node has no bias, or one that is an initializer for it alone, which may be changed."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return bias is None or (bias.const_value is not None and len(bias.uses()) == 1 and not bias.is_graph_output())


def _matrix(node: ir.Node) -> NDArray[np.float64]:
    weight = constant(node.inputs[1])
    assert weight is not None, "inserted convolutions have constant weights"
    array = weight.numpy()
    return array.reshape(array.shape[:2]).astype(np.float64)


def _merge(first: ir.Node, second: ir.Node, outer: NDArray[np.float64], inner: NDArray[np.float64]) -> None:
    weight = second.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    old = weight.const_value.numpy()
    product = (outer @ inner).astype(old.dtype)
    _store(weight, product.reshape(*product.shape, *old.shape[2:]))
    offset = first.inputs[2] if len(first.inputs) > 2 else None
    if offset is not None:
        assert offset.const_value is not None, "see _own_bias"
        # The first one's bias moves to the second one, under its own name.
        _store(offset, (outer @ offset.const_value.numpy().astype(np.float64)).astype(old.dtype))
        second.resize_inputs(3)
        second.replace_input_with(2, offset)
    removed = first.inputs[1]
    second.replace_input_with(0, first.inputs[0])
    graph = first.graph
    assert graph is not None
    graph.remove(first, safe=True)
    home = None if removed is None else removed.graph
    if removed is not None and isinstance(home, ir.Graph) and not removed.uses():
        home.initializers.pop(str(removed.name))
        if removed in home.inputs:
            home.inputs.remove(removed)


def _store(value: ir.Value, array: NDArray[Any]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)
