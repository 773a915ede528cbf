"""Lay a model out as protobuf bytes, and stream them: its weights are never held a second time.

Serialising a ``ModelProto`` takes a copy of all weights in the message, and two more on the way to bytes. Here only the
graph without its initializers is serialised. Each initializer is a header, then its raw data, copied one at a time. The
result is an ordinary ``.onnx`` file: protobuf lets the fields of a message stand in any order.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
# Tensors from this size on start where every system can map them: memory is mapped in steps of up to 64 KiB.
_MAPPED = 2**20
_STEP = 2**16


@dataclass(frozen=True)
class _Entry:
    """One initializer: its TensorProto up to the raw data, and the tensor that gives them, if any."""

    header: bytes
    tensor: ir.TensorProtocol | None = None

    @property
    def size(self) -> int:
        """Bytes of the TensorProto."""
        return len(self.header) + (0 if self.tensor is None else self.tensor.nbytes)


@dataclass
class _DataFile:
    """What lies in one file of external data: tensors and where each starts."""

    parts: list[tuple[int, ir.TensorProtocol]] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True)
class Layout:
    """A model, ready to be written.

    Attributes:
        size: Bytes of the model file.
        data_sizes: Bytes of each file of external data; empty where all is in one file.
    """

    size: int
    data_sizes: tuple[int, ...]
    _head: bytes
    _entries: tuple[_Entry, ...]
    _data: tuple[_DataFile, ...]

    def data_digest(self) -> str:
        """Eight hexadecimal digits that stand for the bytes of the external data."""
        digest = hashlib.sha256()
        for file in self._data:
            for _, tensor in file.parts:
                _hand_out(tensor, digest.update)
        return digest.hexdigest()[:8]

    def write(self, stream: IO[bytes]) -> None:
        """Write the model file."""
        stream.write(self._head)
        for entry in self._entries:
            stream.write(_tag(_GRAPH_INITIALIZER, entry.size) + entry.header)
            if entry.tensor is not None:
                _write_data(entry.tensor, stream)

    def write_data(self, stream: IO[bytes], number: int = 0) -> None:
        """Write a file of external data.

        Args:
            stream: Where it goes, from its start.
            number: Which one it is.
        """
        written = 0
        for start, tensor in self._data[number].parts:
            stream.write(bytes(start - written))
            _write_data(tensor, stream)
            written = start + tensor.nbytes


def lay_out(model: ir.Model, *, names: Callable[[int], str] | None = None, in_place: bool = False) -> Layout:
    """Lay a model out for writing.

    Where weights go outside the file, there are as many files of them as the model was read from, and each tensor
    starts at a multiple of what all of them started at there. What is stored once for several tensors stays so.

    Args:
        model: The model; it is left as it is, and must stay so until it is written.
        names: Name of each file of external data, by its number from 0; ``None`` for a single file.
        in_place: Leave weights that lie in other files where they are.

    Raises:
        ModelError: What is not an initializer of the main graph fills more than the 2 GiB of one message.
    """
    entries: list[_Entry] = []
    data = _Data(model)
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
        if in_place and isinstance(tensor, ir.ExternalTensor):
            _point(header, str(tensor.location), tensor.offset or 0, tensor.nbytes)
        elif names is None or tensor.nbytes <= _SMALL:
            raw = _tag(_TENSOR_RAW_DATA, tensor.nbytes)
            entries.append(_Entry(header.SerializeToString(deterministic=True) + raw, tensor))
            continue
        else:
            number, offset = data.place(tensor)
            _point(header, names(number), offset, tensor.nbytes)
        entries.append(_Entry(header.SerializeToString(deterministic=True)))

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
    sizes = tuple(file.size for file in data.files)
    return Layout(len(head) - len(graph) + inside, sizes, head, tuple(entries), tuple(data.files))


class _Data:
    """Where the tensors of a model lie in files of external data."""

    def __init__(self, model: ir.Model) -> None:
        self.files: list[_DataFile] = []
        held = [value.const_value for value in model.graph.initializers.values()]
        outside = [tensor for tensor in held if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > _SMALL]
        # Zeros say nothing; of the others, the largest power of two that divides them all.
        common = math.gcd(*(tensor.offset or 0 for tensor in outside))
        self._step = min(common & -common, _STEP) or 1
        self._known: dict[str, int] = {}
        self._placed: dict[tuple[str, int, int], tuple[int, int]] = {}
        self._last = 0

    def place(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        """Find room for a tensor: the number of its file, and where it starts there.

        Those that lie in one file stay together, and what is new goes to what stands before it.
        """
        key = None
        if isinstance(tensor, ir.ExternalTensor):
            origin = os.path.normpath(str(tensor.path))
            self._last = self._known.setdefault(origin, len(self._known))
            key = origin, tensor.offset or 0, tensor.nbytes
            if key in self._placed:
                return self._placed[key]
        while len(self.files) <= self._last:
            self.files.append(_DataFile())
        file = self.files[self._last]
        step = _STEP if tensor.nbytes >= _MAPPED else self._step
        start = -(-file.size // step) * step
        file.parts.append((start, tensor))
        file.size = start + tensor.nbytes
        if key is not None:
            self._placed[key] = self._last, start
        return self._last, start


def _point(header: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Say in which file the data of a tensor lie, and where."""
    header.data_location = onnx.TensorProto.EXTERNAL
    for key, entry in (("location", location), ("offset", offset), ("length", length)):
        header.external_data.add(key=key, value=str(entry))


def _header(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    header = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    if tensor.doc_string:
        header.doc_string = tensor.doc_string
    for key, text in sorted(tensor.metadata_props.items()):
        header.metadata_props.add(key=key, value=text)
    return header


def _write_data(tensor: ir.TensorProtocol, stream: IO[bytes]) -> None:
    _hand_out(tensor, stream.write)


def _hand_out(tensor: ir.TensorProtocol, take: Callable[[bytes], object]) -> None:
    """Give the bytes of a tensor away, those that lie in a file a piece at a time: they may be more than the memory."""
    if isinstance(tensor, ir.ExternalTensor):
        sink = _Sink(take)
        tensor.tofile(sink)
        count = sink.count
    else:
        data = tensor.tobytes()
        count = len(data)
        if count == tensor.nbytes:
            take(data)
    if count != tensor.nbytes:
        raise ModelError(
            f"The tensor '{tensor.name}' holds {count} bytes where its shape needs {tensor.nbytes}; "
            "export the model again."
        )


class _Sink:
    """A file of which nothing but ``write`` is used."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take
        self.count = 0

    def write(self, data: bytes) -> None:
        self.count += len(data)
        self._take(data)


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
