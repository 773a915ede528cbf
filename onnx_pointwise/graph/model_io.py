"""Read and write ONNX models: one reader, one atomic writer, and one way to hand a model to the runtime."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnx_pointwise.errors import ModelError, OutputError
from onnx_pointwise.graph import map_types
from onnx_pointwise.graph.files import atomic_folder as atomic_folder
from onnx_pointwise.graph.files import data_name, is_data_name, written_through
from onnx_pointwise.graph.files import require_writable as require_writable
from onnx_pointwise.graph.files import write_text as write_text
from onnx_pointwise.graph.wire import Layout, all_graphs, innermost, lay_out, subgraphs_of, tensors
from onnx_pointwise.scratch import ScratchFolder

#: What every public function takes for a model.
ModelSource = str | Path | onnx.ModelProto | ir.Model | bytes | io.BufferedIOBase

# Older operator sets have another BatchNormalization and other broadcasting rules.
_OLDEST_OPSET = 9
# How many inputs the operators have at least whose costs are counted.
_OPERANDS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "FusedConv", "NhwcConv"), 2),
    **dict.fromkeys(("NhwcFusedConv", "MatMul", "Gemm", "FusedGemm", "FusedMatMul", "MatMulInteger"), 2),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearConvTranspose"), 8),
}
# The most that one protobuf message can hold.
_PROTOBUF_LIMIT = 2**31 - 1
# Larger models reach the runtime as a file with external data: it maps those, instead of holding copies.
_IN_MEMORY_LIMIT = 64 * 2**20
# Nodes and stored tensors at most: in memory each takes up to 10 kB, in all the copies that a job makes. Networks that
# people export have thousands, and tens of thousands where loops were unrolled.
_MOST_PARTS = 200_000
# Where a model keeps the path it was read from, for sentences about it; it is not saved with the model.
_ORIGIN = "onnx_pointwise.origin"


def load(source: ModelSource) -> ir.Model:
    """Read a model.

    Args:
        source: A path to an ``.onnx`` file (external data is memory-mapped, not read), a ``ModelProto``, an
            ``onnx_ir.Model``, which is returned as it is, or the bytes of a file, given as they are or as an open
            file. Training information in it is left out.

    Raises:
        ModelError: No such file, a directory, not ONNX, truncated, or external data that is missing, too short or
            outside the model's folder.
    """
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, onnx.ModelProto):
        return _deserialize(source, "the given ModelProto", Path())
    if (data := _serialised(source)) is not None:
        return _from_bytes(data)
    try:
        path = Path(source)  # type: ignore[arg-type]
    except TypeError as error:
        raise ModelError(
            f"An object of type {type(source).__name__} is no model; give a path, a ModelProto, an onnx_ir.Model, or "
            "bytes."
        ) from error
    # The folder by which ONNX Runtime, too, looks for external data. Absolute, because onnx_ir checks containment only
    # when the folder is not empty.
    model = _deserialize(_parse(path), str(path), path.absolute().parent)
    model.meta[_ORIGIN] = str(path)
    return model


def _serialised(source: object) -> bytes | None:
    """The bytes of a model that is given as such, or as an open file, which is left where it stood."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if not isinstance(source, io.IOBase):
        return None
    try:
        place = source.tell()
        data = source.read()
        source.seek(place)
    except (OSError, ValueError) as error:
        raise ModelError(f"The open file given cannot be read as a model: {error}.") from error
    if not isinstance(data, bytes):
        raise ModelError("The open file given is one of text; open it in binary mode.")
    return data


def _from_bytes(data: bytes) -> ir.Model:
    try:
        return load(onnx.load_from_string(data))
    except (DecodeError, ValueError) as error:
        raise ModelError("The bytes given are not an ONNX model, or truncated; export it again.") from error


def origin(model: ir.Model) -> str | None:
    """Give the path that a model, or what it is a copy of, was read from; None where it was made in memory."""
    path: str | None = model.meta.get(_ORIGIN)
    return path


def named_after(copy: ir.Model, source: ModelSource | bytes) -> ir.Model:
    """Let a copy of a model be called in sentences what its source is called."""
    if isinstance(source, str | Path):
        copy.meta[_ORIGIN] = str(source)
    elif isinstance(source, ir.Model) and _ORIGIN in source.meta:
        copy.meta[_ORIGIN] = source.meta[_ORIGIN]
    return copy


def named_no_more(model: ir.Model) -> None:
    """Let a model that has been changed no longer be called what it was read from."""
    model.meta[_ORIGIN] = "the rewritten model"


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if path.is_dir():
            raise ModelError(f"{path}: is a directory; name the .onnx file in it.")
        if path.stat().st_size == 0:
            raise ModelError(f"{path}: the file is empty.")
        # The format is named because onnx would else guess it from the file's ending.
        return onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file.") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated; export or copy it again.") from error


def _deserialize(proto: onnx.ModelProto, where: str, folder: Path) -> ir.Model:
    _require_model(proto, where)
    try:
        with quiet("onnx_ir.serde"), map_types.taken_out(proto) as types:
            model = ir.serde.deserialize_model(proto)
        map_types.keep(model, types)
        _keep_inputs_as_declared(model, proto)
        _require_sense(model, where, folder)
    except ModelError:
        raise
    except Exception as error:  # onnx_ir raises whatever its readers raise, some of it late
        raise ModelError(f"{where}: the model cannot be read: {innermost(error)}.") from error
    return model


def _keep_inputs_as_declared(model: ir.Model, proto: onnx.ModelProto) -> None:
    """An input that is an output, too, is one value to onnx_ir, which takes its shape from the output."""
    declared = {info.name: info for info in proto.graph.input}
    for value in model.graph.inputs:
        if value.is_graph_output():
            ir.serde.deserialize_value_info_proto(declared[str(value.name)], value)


def _require_sense(model: ir.Model, where: str, folder: Path) -> None:
    """Refuse what cannot be worked with, and bring its nodes in order."""
    _require_whole(model, where)
    _require_no_recursion(model, where)
    _require_sizes(model, where)
    _sort(model, where)
    for tensor in external_tensors(model):
        tensor.base_dir = folder.absolute()
        _require_external(tensor, where)


def _require_model(proto: onnx.ModelProto, where: str) -> None:
    """Random bytes can parse as an empty message; a model has a version, operator sets and a graph."""
    if not (proto.ir_version > 0 and proto.opset_import and proto.HasField("graph") and proto.graph.output):
        raise ModelError(f"{where}: not an ONNX model: no IR version, operator set or graph outputs in it.")
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < _OLDEST_OPSET:
            raise ModelError(
                f"{where}: opset {opset.version} is older than {_OLDEST_OPSET}; "
                "raise it with onnx.version_converter.convert_version first."
            )
    if proto.graph.sparse_initializer:  # onnx_ir would leave them out without a word
        name = proto.graph.sparse_initializer[0].values.name
        raise ModelError(f"{where}: the initializer '{name}' is sparse; export the model with dense weights.")
    _require_places(_stored_in(proto), where)
    bodies = [(function.node, function.input) for function in proto.functions]
    count = _parts(proto.graph) + sum(_parts_of(nodes) for nodes, _ in bodies)
    if count > _MOST_PARTS:
        raise ModelError(
            f"{where}: holds {count} nodes and stored tensors; networks of more than {_MOST_PARTS} are not worked on, "
            "export it without unrolling its loops."
        )
    _require_one_of_each(proto.graph.node, [item.name for item in proto.graph.input], proto.graph.initializer, where)
    for nodes, inputs in bodies:
        _require_one_of_each(nodes, inputs, (), where)


def _stored_in(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the stored tensors of a file, those in bodies of nodes and functions included."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            graphs.extend(body for body in (attribute.g, *attribute.graphs) if body.node)


def _require_places(stored: Iterable[onnx.TensorProto], where: str) -> None:
    """Where data lie in another file is said in text, which onnx_ir takes for numbers."""
    for tensor in stored:
        for entry in tensor.external_data:
            if entry.key in ("offset", "length") and not re.fullmatch(r"-?[0-9]+", entry.value):
                raise ModelError(
                    f"{where}: the {entry.key} of the external data of '{tensor.name}' is '{entry.value}', which is no "
                    "number; export the model again."
                )


def _parts(graph: onnx.GraphProto) -> int:
    """Count the nodes and stored tensors of a graph, those in its bodies included."""
    return len(graph.initializer) + _parts_of(graph.node)


def _parts_of(nodes: Sequence[onnx.NodeProto]) -> int:
    bodies = (graph for node in nodes for attribute in node.attribute for graph in (attribute.g, *attribute.graphs))
    return len(nodes) + sum(map(_parts, bodies))


def _require_one_of_each(
    nodes: Iterable[onnx.NodeProto], inputs: Sequence[str], initializers: Iterable[onnx.TensorProto], where: str
) -> None:
    """Of two tensors of one name onnx_ir keeps one, and ONNX Runtime perhaps the other; a graph has but one of each."""
    _require_different(inputs, "inputs", where)
    stored = [tensor.name for tensor in initializers]
    _require_different(stored, "stored tensors", where)
    # An initializer may stand for the default of an input; nothing else may have a name twice.
    made = [name for node in nodes for name in node.output if name]
    _require_different([*dict.fromkeys([*inputs, *stored]), *made], "values", where)
    for node in nodes:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _require_one_of_each(graph.node, [item.name for item in graph.input], graph.initializer, where)


def _require_different(names: Sequence[str], what: str, where: str) -> None:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        name = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ModelError(f"{where}: two {what} of it are called '{name}'; name them apart, or export the model again.")


def _sort(model: ir.Model, where: str) -> None:
    """Bring nodes that read what a later one makes behind it: ONNX Runtime takes such files."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        if _is_sorted(graph, set()):
            continue
        try:
            graph.sort()
        except ValueError as error:
            raise ModelError(f"{where}: its nodes feed one another in a circle; export the model again.") from error


def _is_sorted(graph: ir.Graph | ir.Function, before: set[ir.Node]) -> bool:
    for node in graph:
        makers = (value.producer() for value in node.inputs if value is not None)
        if any(maker is not None and maker not in before for maker in makers):
            return False
        if not all(_is_sorted(inner, before) for inner in subgraphs_of(node)):
            return False
        before.add(node)
    return True


def _require_whole(model: ir.Model, where: str) -> None:
    """onnx_ir only warns of values that come from nowhere, and gives names that are no UTF-8 as bytes."""
    for graph in all_graphs(model):
        for node in graph:
            taken = [value for value in node.inputs if value is not None]
            names = [node.name, node.op_type, node.domain, *(value.name for value in (*taken, *node.outputs))]
            if any(isinstance(name, bytes) for name in names):
                raise ModelError(f"{where}: a name in it is no text; copy or export the model again.")
            if node.op_type in _OPERANDS and (len(node.inputs) < _OPERANDS[node.op_type] or not node.outputs):
                raise ModelError(
                    f"{where}: the node '{node.name}' ({node.op_type}) lacks inputs or outputs; export the model again."
                )
            _require_positive(node, where)
            for value in taken:
                if _comes_from_nowhere(value):
                    raise ModelError(
                        f"{where}: the node '{node.name}' takes '{value.name}', which nothing puts out; "
                        "export the model again."
                    )
        for value in graph.outputs:
            if _comes_from_nowhere(value):
                raise ModelError(f"{where}: the output '{value.name}' comes from no node; export the model again.")


def _require_positive(node: ir.Node, where: str) -> None:
    """A window of no size, or that does not move: older versions of onnx divide by it, and the process dies of that."""
    for name in ("dilations", "kernel_shape", "strides"):
        attribute = node.attributes.get(name)
        if attribute is None or attribute.type != ir.AttributeType.INTS or attribute.is_ref():
            continue
        given = list(attribute.as_ints())
        if min(given, default=1) < 1:
            raise ModelError(
                f"{where}: the {name} of the node '{node.name}' ({node.op_type}) are {given}, which must be above 0; "
                "export the model again."
            )


def _require_no_recursion(model: ir.Model, where: str) -> None:
    """Local functions are put in place of their calls before anything is learned of them, which must come to an end."""
    done: set[ir.OperatorIdentifier] = set()

    def visit(name: ir.OperatorIdentifier, around: tuple[ir.OperatorIdentifier, ...]) -> None:
        if name in around:
            raise ModelError(f"{where}: the local function '{name[1]}' calls itself; export the model again.")
        if name in done or name not in model.functions:
            return
        for node in model.functions[name].all_nodes():
            visit(node.op_identifier(), (*around, name))
        done.add(name)

    for name in model.functions:
        visit(name, ())


def _require_sizes(model: ir.Model, where: str) -> None:
    """A stored tensor has a type, and no size below 0."""
    for tensor in tensors(model):
        if tensor.dtype == ir.DataType.UNDEFINED or any(size < 0 for size in tensor.shape.numpy()):
            raise ModelError(
                f"{where}: the tensor '{tensor.name}' is of type {tensor.dtype.name} and shape {tensor.shape}, which "
                "nothing has; export the model again."
            )


def _comes_from_nowhere(value: ir.Value) -> bool:
    return value.producer() is None and not value.is_graph_input() and not value.is_initializer()


def _require_external(tensor: ir.ExternalTensor, where: str) -> None:
    folder, location = os.path.realpath(tensor.base_dir), tensor.location
    if "\0" in str(location):
        raise ModelError(f"{where}: the external data of '{tensor.name}' lies at no place that a file can have.")
    target = Path(os.path.realpath(tensor.path))
    if not target.is_relative_to(folder):
        raise ModelError(
            f"{where}: the data of '{tensor.name}' lies outside the model's folder ({location}); "
            "copy the data beside the model."
        )
    if not target.is_file():
        raise ModelError(f"{where}: the external data file {location} of '{tensor.name}' is missing in {folder}.")
    if target.stat().st_nlink > 1:  # what a link into the folder could hide; onnx_ir does not read such files
        raise ModelError(f"{where}: the external data file {location} has several hard links; make it a copy.")
    offset, length = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0:  # what onnx_ir refuses itself only since 1.1
        raise ModelError(
            f"{where}: the external data of '{tensor.name}' begin at byte {offset}; export the model again."
        )
    if length != tensor.nbytes:
        raise ModelError(
            f"{where}: the external data of '{tensor.name}' are {length} bytes where its shape needs {tensor.nbytes}; "
            "export the model again."
        )
    if offset + length > target.stat().st_size:
        raise ModelError(
            f"{where}: the external data file {location} is too short for '{tensor.name}'; export or copy it again."
        )


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a logger to errors: what it would warn of is handled here."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """List the tensors of a model whose data lies in another file."""
    return [tensor for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor)]


def files_of(path: str | Path) -> list[Path]:
    """List the files that make up a model: its own, and those that hold its external data.

    Raises:
        ModelError: The model cannot be read.
    """
    data = {str(tensor.path) for tensor in external_tensors(load(path))}
    return [Path(path), *(Path(name) for name in sorted(data))]


def file_bytes(path: str | Path, model: ir.Model | None = None) -> int:
    """Count the bytes of a model file and of its external data, if it has any.

    Args:
        path: The file.
        model: What ``load`` made of it, where that is at hand; else it is loaded.
    """
    data = {str(tensor.path) for tensor in external_tensors(load(path) if model is None else model)}
    return sum(Path(name).stat().st_size for name in (path, *sorted(data)))


def model_bytes(source: ModelSource) -> int:
    """Bytes that a model takes on disk, external data included: of its file, or of the one it would be saved to."""
    return file_bytes(source) if isinstance(source, str | Path) else saved_bytes(load(source))


@contextlib.contextmanager
def staged(model: ir.Model, path: str | Path, *, use_external_data_format: bool | None = None) -> Iterator[None]:
    """Write a model beside its target, and rename it when the block ends well; see `save`."""
    with atomic_folder(path) as scratch:
        save(model, scratch / written_through(path).name, use_external_data_format=use_external_data_format)
        yield


def saved_bytes(model: ir.Model) -> int:
    """Count the bytes that ``save(model, "model.onnx")`` would write, external data included."""
    layout = _lay_out(model, "model.onnx", external=None)
    return layout.size + sum(layout.data_sizes)


def save(model: ir.Model, path: str | Path, *, use_external_data_format: bool | None = None) -> None:
    """Write a model in one step: beside the target, then renamed.

    Args:
        model: The model; it is left as it is.
        path: The ``.onnx`` file to write. External data goes into ``<name>.<digest>.data`` beside it, named after its
            content: old and new data lie side by side until the model is replaced, so that an interruption leaves the
            old pair whole. Where the model was read from several files of data, there are as many of them
            (``<name>.<digest>.2.data``...). Data of the model that is replaced is removed. Where the file is a symbolic
            link, what it leads to is written.
        use_external_data_format: Store large tensors outside the file. ``None`` keeps the model's own way, and turns
            to external data above the 2 GiB that one file can hold.

    Raises:
        ModelError: A tensor of the model holds less data than its shape needs.
        OutputError: The target cannot be written, or would hold more than 2 GiB in one file.
    """
    path = Path(path)
    require_writable(path)
    place = written_through(path)
    layout = _lay_out(model, place.name, external=use_external_data_format)
    if layout.size > _PROTOBUF_LIMIT:
        raise OutputError(f"{path}: the model holds more than 2 GiB; it must be saved with external data.")
    if layout.data_sizes and place.parent.resolve() != path.parent.resolve():
        raise OutputError(
            f"{path}: is a link into another folder, by which ONNX Runtime would not find the external data; "
            f"name {place} itself."
        )
    # Where no model was, data of that name belong to one that was renamed, as those do that this model reads.
    replaced, read = place.exists(), [tensor.path for tensor in external_tensors(model)]
    data_files: list[str] = []
    with atomic_folder(path) as scratch:
        if layout.data_sizes:
            names = functools.partial(data_name, place.name, layout.data_digest())
            data_files = [names(number) for number in range(len(layout.data_sizes))]
            layout = lay_out(model, names=names)
        _write(layout, scratch / path.name, data_files)
    if replaced:
        _remove_older_data(place, data_files, read)


def _remove_older_data(place: Path, data_files: Sequence[str], kept: Iterable[str | os.PathLike[str]]) -> None:
    """Remove external data that earlier models of this name, or interrupted attempts at one, have left."""
    needed = {os.path.realpath(path) for path in kept}
    with contextlib.suppress(OSError):  # the model is written all the same
        for item in place.parent.iterdir():
            ours = is_data_name(item.name, place.name) and item.name not in data_files and not item.is_symlink()
            if ours and os.path.realpath(item) not in needed:
                item.unlink()


def _lay_out(model: ir.Model, name: str, *, external: bool | None) -> Layout:
    names = functools.partial(data_name, name, "0" * 8)  # as long as the names that they get when they are written
    if external is None and not external_tensors(model):
        layout = lay_out(model)
        return layout if layout.size <= _PROTOBUF_LIMIT else lay_out(model, names=names)
    return lay_out(model, names=None if external is False else names)


def _write(layout: Layout, path: Path, data_files: Sequence[str]) -> None:
    with path.open("wb") as stream:
        layout.write(stream)
    for number, name in enumerate(data_files):
        with path.with_name(name).open("wb") as stream:
            layout.write_data(stream, number)


def to_bytes(model: ir.Model) -> bytes:
    """Serialise a model with all its data, external data included.

    Raises:
        ModelError: The model holds more than the 2 GiB that one protobuf message can.
    """
    layout = lay_out(model)
    if layout.size > _PROTOBUF_LIMIT:
        raise ModelError("The model holds more than 2 GiB; it fits no single message, save it with external data.")
    stream = io.BytesIO()
    layout.write(stream)
    return stream.getvalue()


def serialize(model: ir.Model) -> onnx.ModelProto:
    """Turn a model into a ``ModelProto`` that holds all its data, external data included.

    Raises:
        ModelError: The model holds more than the 2 GiB that one protobuf message can.
    """
    return onnx.load_from_string(to_bytes(model))


class Detached(bytes):
    """A serialised model without those of its weights that lie in files, for a session on the CPU.

    Attributes:
        folder: The folder that these files are named in.
    """

    folder: str


@contextlib.contextmanager
def runtime_source(source: ModelSource | bytes, *, in_place: bool = False) -> Iterator[str | bytes]:
    """Give a model in the shape an ONNX Runtime session takes: a path, or bytes.

    A path is handed on as it is. Models in memory become bytes while small, else a temporary file whose weights lie
    in external data, which the runtime maps instead of copying; the file lives until the block ends.

    Args:
        source: The model.
        in_place: The session is one on the CPU, which finds weights where they lie: those in files are neither copied
            nor read here, and the bytes are `Detached`.
    """
    if isinstance(source, bytes):
        yield source
    elif isinstance(source, str | Path):
        yield str(source)
    else:
        model = load(source)
        detached = _detached(model) if in_place else None
        if detached is not None:
            yield detached
            return
        layout = lay_out(model, names=_scratch_name)
        if layout.size + sum(layout.data_sizes) < _IN_MEMORY_LIMIT:
            yield to_bytes(model)
            return
        with ScratchFolder() as folder:
            path = folder / "model.onnx"
            try:
                _write(layout, path, [_scratch_name(number) for number in range(len(layout.data_sizes))])
            except OSError as error:
                raise OutputError(
                    f"{folder}: the model cannot be put there for ONNX Runtime ({error.strerror}); "
                    "set TMPDIR to a folder with more room."
                ) from error
            yield str(path)


def _scratch_name(number: int) -> str:
    return "model.onnx.data" if number == 0 else f"model.onnx.{number + 1}.data"


def _detached(model: ir.Model) -> Detached | None:
    """Serialise a model without the weights that lie in files of one folder; None where that leaves too much."""
    held = [value.const_value for value in model.graph.initializers.values()]
    outside = [tensor for tensor in held if isinstance(tensor, ir.ExternalTensor)]
    folders = {os.path.abspath(tensor.base_dir) for tensor in outside}  # noqa: PTH100
    if len(folders) != 1:
        return None
    layout = lay_out(model, in_place=True)
    if layout.size >= _IN_MEMORY_LIMIT:
        return None
    stream = io.BytesIO()
    layout.write(stream)
    detached = Detached(stream.getvalue())
    detached.folder = folders.pop()
    return detached


def as_model(source: ModelSource | bytes) -> ir.Model:
    """Read a model that may also be given as its serialised bytes.

    Raises:
        ModelError: It cannot be read.
    """
    return _from_bytes(source) if isinstance(source, bytes) else load(source)
