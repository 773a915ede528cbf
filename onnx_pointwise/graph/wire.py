"""Lay a model out as protobuf bytes, and stream them: its weights are never held a second time.

Serialising a ``ModelProto`` takes a copy of all weights in the message, and two more on the way to bytes. Here only the
graph without its initializers is serialised. Each initializer is a header, then its raw data, copied one at a time. The
result is an ordinary ``.onnx`` file: protobuf lets the fields of a message stand in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import map_types

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_LENGTH_DELIMITED = 2

# Tensors up to this size stay inside the file even where the others go outside, as in onnx.save.
_SMALL = 1024


@dataclass(frozen=True)
class _Entry:
    """One initializer: its TensorProto up to the raw data, and the tensor that gives them, if any."""

    header: bytes
    tensor: ir.TensorProtocol | None = None

    @property
    def size(self) -> int:
        """Bytes of the TensorProto."""
        return len(self.header) + (0 if self.tensor is None else self.tensor.nbytes)


@dataclass(frozen=True)
class Layout:
    """A model, ready to be written.

    Attributes:
        size: Bytes of the model file.
        data: Tensors of the external data file in their order, one behind the other; empty where all is in one file.
    """

    size: int
    data: tuple[ir.TensorProtocol, ...]
    _head: bytes
    _entries: tuple[_Entry, ...]

    @property
    def data_size(self) -> int:
        """Bytes of the external data file."""
        return sum(tensor.nbytes for tensor in self.data)

    def data_digest(self) -> str:
        """Eight hexadecimal digits that stand for the bytes of the external data file."""
        digest = hashlib.sha256()
        for tensor in self.data:
            digest.update(tensor.tobytes())
        return digest.hexdigest()[:8]

    def write(self, stream: IO[bytes]) -> None:
        """Write the model file."""
        stream.write(self._head)
        for entry in self._entries:
            stream.write(_tag(_GRAPH_INITIALIZER, entry.size) + entry.header)
            if entry.tensor is not None:
                _write_data(entry.tensor, stream)

    def write_data(self, stream: IO[bytes]) -> None:
        """Write the external data file."""
        for tensor in self.data:
            _write_data(tensor, stream)


def lay_out(model: ir.Model, *, data_file: str | None = None) -> Layout:
    """Lay a model out for writing.

    Args:
        model: The model; it is left as it is, and must stay so until it is written.
        data_file: Name of the external data file that takes the large initializers; ``None`` for a single file.

    Raises:
        ModelError: What is not an initializer of the main graph fills more than the 2 GiB of one message.
    """
    entries: list[_Entry] = []
    data: list[ir.TensorProtocol] = []
    offset = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.dtype == ir.DataType.STRING:
            proto = ir.serde.serialize_tensor(tensor)
            proto.name = name
            entries.append(_Entry(proto.SerializeToString(deterministic=True)))
            continue
        header = _header(name, tensor)
        if data_file is None or tensor.nbytes <= _SMALL:
            raw = _tag(_TENSOR_RAW_DATA, tensor.nbytes)
            entries.append(_Entry(header.SerializeToString(deterministic=True) + raw, tensor))
            continue
        header.data_location = onnx.TensorProto.EXTERNAL
        for key, entry in (("location", data_file), ("offset", offset), ("length", tensor.nbytes)):
            header.external_data.add(key=key, value=str(entry))
        entries.append(_Entry(header.SerializeToString(deterministic=True)))
        data.append(tensor)
        offset += tensor.nbytes

    proto = without_initializers(model)
    try:
        graph = proto.graph.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise ModelError(
            "The model's constants and subgraphs fill more than 2 GiB; make initializers of the constants first."
        ) from error
    proto.ClearField("graph")
    inside = len(graph) + sum(len(_tag(_GRAPH_INITIALIZER, entry.size)) + entry.size for entry in entries)
    head = proto.SerializeToString(deterministic=True) + _tag(_MODEL_GRAPH, inside) + graph
    return Layout(len(head) - len(graph) + inside, tuple(data), head, tuple(entries))


def _header(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    header = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    if tensor.doc_string:
        header.doc_string = tensor.doc_string
    for key, text in sorted(tensor.metadata_props.items()):
        header.metadata_props.add(key=key, value=text)
    return header


def _write_data(tensor: ir.TensorProtocol, stream: IO[bytes]) -> None:
    data = tensor.tobytes()
    if len(data) != tensor.nbytes:
        raise ModelError(
            f"The tensor '{tensor.name}' holds {len(data)} bytes where its shape needs {tensor.nbytes}; "
            "export the model again."
        )
    stream.write(data)


def without_initializers(model: ir.Model) -> onnx.ModelProto:
    """Turn a model into a ``ModelProto`` without the initializers of its main graph.

    Tensors elsewhere (attributes, subgraphs) are in it; those that lie in other files are read.

    Raises:
        ModelError: Something in the model cannot be written.
    """
    try:
        copy = model.clone()
        placeholder = ir.tensor([0.0])
        for value in copy.graph.initializers.values():
            value.const_value = placeholder  # Only the names matter: quantisation annotations hang on them.
        for graph in all_graphs(copy):
            _read_external(graph)
        proto = ir.serde.serialize_model(copy)
        map_types.put_back(copy, proto)
    except Exception as error:  # onnx_ir raises whatever its writers raise
        raise ModelError(f"The model cannot be written: {innermost(error)}; export it again.") from error
    del proto.graph.initializer[:]
    # onnx_ir states the shape of every initializer once more; files should not grow by that.
    stated = [info for info in proto.graph.value_info if info.name not in copy.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(stated)
    return proto


def innermost(error: BaseException) -> str:
    """First sentence of the innermost cause of an error: onnx_ir wraps it in a quotation of the whole message."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")


def all_graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the main graph, the local functions, and all subgraphs of either."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that are attributes of a node."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every stored tensor of a model: initializers and attribute tensors, subgraphs and functions included."""
    for graph in all_graphs(model):
        if isinstance(graph, ir.Graph):
            yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()


def _read_external(graph: ir.Graph | ir.Function) -> None:
    """Take the tensors of a graph that lie in other files into memory."""
    if isinstance(graph, ir.Graph):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
    for node in graph:
        for name, attribute in node.attributes.items():
            if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                continue
            tensor = attribute.as_tensor()
            if isinstance(tensor, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, _in_memory(tensor), doc_string=attribute.doc_string)


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _tag(number: int, length: int) -> bytes:
    """What stands in front of a length-delimited field."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
