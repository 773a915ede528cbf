"""What an export did to each layer: kernel, stride, output shape, and parameters before and after, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_pointwise.exporting.convert import NamedLayer
from onnx_pointwise.exporting.names import CONVOLUTIONS, PRODUCTS, Naming

#: Some of the reasons, for whoever wants to count them.
ZERO_BIAS = "zero bias dropped"
FOLDED = "folded into"
MUL_AND_ADD = "became Mul and Add"


@dataclass(frozen=True)
class SummaryRow:
    """One layer.

    Attributes:
        layer: its name.
        kind: its Keras class, or the ONNX operator where only the graph is known.
        kernel: spatial size of its kernel or window; None where it has none.
        stride: step of the kernel; None where it has none.
        output_shape: in Keras' order, the batch first; None stands for a dynamic size; empty where not known.
        keras_parameters: weights that Keras counts, trained or not; None where only the graph is known.
        onnx_parameters: weights that the graph holds for it.
        reason: why the two numbers differ; empty where they do not.
    """

    layer: str
    kind: str
    kernel: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    output_shape: tuple[int | None, ...]
    keras_parameters: int | None
    onnx_parameters: int
    reason: str


def summarize(model: onnx.ModelProto, layers: Sequence[NamedLayer], naming: Naming) -> tuple[SummaryRow, ...]:
    """The layers that hold weights or slide a window, in the model's order.

    Args:
        model: the exported model.
        layers: the Keras layers; empty for a SavedModel, whose rows are read off the graph instead.
        naming: what belongs to which layer.
    """
    if not layers:
        return _graph_rows(model, naming)
    rows, folded, shapes = [], _folded(layers, naming), _graph_shapes(model)
    for entry in layers:
        if _holds_layers(entry.layer):
            continue
        keras_parameters = int(entry.layer.count_params()) if entry.layer.built else 0
        kernel = _sizes(entry.layer, "kernel_size", "pool_size")
        held = naming.parameters.get(entry.name, 0)
        if not (keras_parameters or held or kernel):
            continue
        rows.append(
            SummaryRow(
                layer=entry.name,
                kind=type(entry.layer).__name__,
                kernel=kernel,
                stride=_sizes(entry.layer, "strides") if kernel else None,
                output_shape=_output_shape(entry.layer) or shapes.get(entry.name, ()),
                keras_parameters=keras_parameters,
                onnx_parameters=held,
                reason=_reason(entry, keras_parameters, held, naming, folded),
            )
        )
    return tuple(rows)


def _folded(layers: Sequence[NamedLayer], naming: Naming) -> dict[str, str]:
    """BatchNormalization layers that left nothing in the graph -> the layer whose kernel took them in."""
    names = {id(entry.layer): entry.name for entry in layers}
    into: dict[str, str] = {}
    for entry in layers:
        if type(entry.layer).__name__ == "BatchNormalization" and not naming.parameters.get(entry.name):
            source = naming.folded.get(entry.name) or names.get(id(_producer(entry.layer)))
            into[entry.name] = source or "the layer before it"
    return into


def _producer(layer: Any) -> Any:
    """The layer that computes a layer's one input; None where Keras does not know."""
    try:
        return layer.input._keras_history.operation
    except (AttributeError, ValueError):
        return None


def _reason(entry: NamedLayer, before: int, after: int, naming: Naming, folded: Mapping[str, str]) -> str:
    """Why a layer holds another number of weights than in Keras."""
    if before == after:
        return ""
    if entry.name in folded:
        return f"{FOLDED} {folded[entry.name]}"
    if type(entry.layer).__name__ == "BatchNormalization":
        return MUL_AND_ADD
    taken = next((name for name, into in folded.items() if into == entry.name), None)
    if taken is not None and after > before:
        return f"bias from {taken}"
    bias = getattr(entry.layer, "bias", None)
    if bias is not None and entry.name in naming.without_bias and not np.any(np.asarray(bias)):
        return ZERO_BIAS
    if after == 0:
        return "held by other nodes" if entry.layer.trainable_weights else "not part of inference"
    return "constants folded"


def _holds_layers(layer: Any) -> bool:
    return any(True for _ in layer._flatten_layers(include_self=False, recursive=False))


def _sizes(layer: Any, *attributes: str) -> tuple[int, ...] | None:
    for attribute in attributes:
        value = getattr(layer, attribute, None)
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list | tuple):
            return tuple(int(size) for size in value)
    return None


def _output_shape(layer: Any) -> tuple[int | None, ...]:
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):  # part of a subclassed model, or called more than once
        return ()
    return tuple(shape)


def _graph_rows(model: onnx.ModelProto, naming: Naming) -> tuple[SummaryRow, ...]:
    """Rows for the layers of a SavedModel: its Keras layers are gone, but the graph still names them."""
    shapes = _graph_shapes(model)
    rows: dict[str, SummaryRow] = {}
    for holders in ((*CONVOLUTIONS, *PRODUCTS), ("Mul", "Add")):
        for node in model.graph.node:
            layer = naming.layer.get(node.name)
            if layer is None or layer in rows or node.op_type not in holders or not naming.parameters.get(layer):
                continue
            attributes = {attribute.name: tuple(attribute.ints) for attribute in node.attribute}
            rows[layer] = SummaryRow(
                layer=layer,
                kind=node.op_type,
                kernel=attributes.get("kernel_shape"),
                stride=attributes.get("strides"),
                output_shape=shapes.get(node.name, ()),
                keras_parameters=None,
                onnx_parameters=naming.parameters[layer],
                reason="",
            )
    order = list(dict.fromkeys(naming.layer.values()))
    return tuple(rows[layer] for layer in sorted(rows, key=order.index))


def _graph_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Output shapes of convolutions, the channels moved to the end, and of products, by node name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    inferred = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    shapes: dict[str, tuple[int | None, ...]] = {}
    for node in graph.node:
        if node.op_type in (*CONVOLUTIONS, *PRODUCTS) and node.output[0] in inferred:
            dims = [dim.dim_value or None for dim in inferred[node.output[0]]]
            channels_first = node.op_type in CONVOLUTIONS
            shapes[node.name] = (dims[0], *dims[2:], dims[1]) if channels_first else tuple(dims)
    return shapes
