"""Values that hold maps, as scikit-learn's converters put out class probabilities: onnx_ir has no type for them.

Their types are taken out of a model before it is read, kept with its values, and put back where it is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

# Where a value keeps its type, serialised. It is not saved by onnx_ir.
_KEPT = "onnx_pointwise.map_type"


@contextlib.contextmanager
def taken_out(proto: onnx.ModelProto) -> Iterator[dict[str, bytes]]:
    """Clear the types that hold maps from the inputs, outputs and values of a main graph, for the time of a block.

    Gives the types by value name.
    """
    infos = [info for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info) if _has_map(info.type)]
    types = {info.name: info.type.SerializeToString(deterministic=True) for info in infos}
    for info in infos:
        info.ClearField("type")
    try:
        yield types
    finally:
        for info in infos:
            info.type.ParseFromString(types[info.name])


def keep(model: ir.Model, types: dict[str, bytes]) -> None:
    """Keep types with the inputs and outputs of a model that has been read without them."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in types:
            value.meta[_KEPT] = types[value.name]


def put_back(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Put the types back into what a model was serialised to."""
    values = (*model.graph.inputs, *model.graph.outputs)
    for value, info in zip(values, (*proto.graph.input, *proto.graph.output), strict=True):
        if _KEPT in value.meta:
            info.type.ParseFromString(value.meta[_KEPT])


def holds_map(value: ir.Value) -> bool:
    """Tell whether a value holds maps."""
    return _KEPT in value.meta


def _has_map(kind: onnx.TypeProto) -> bool:
    while True:
        match kind.WhichOneof("value"):
            case "map_type":
                return True
            case "sequence_type":
                kind = kind.sequence_type.elem_type
            case "optional_type":
                kind = kind.optional_type.elem_type
            case _:
                return False
