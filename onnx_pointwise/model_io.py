"""Read and write ONNX models: one reader, one atomic writer, and one way to hand a model to the runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from onnx_pointwise.errors import ModelError, OutputError

#: What every public function takes for a model.
ModelSource = str | Path | onnx.ModelProto | ir.Model

# Older operator sets have another BatchNormalization and other broadcasting rules.
_OLDEST_OPSET = 9
# A serialised protobuf message must stay below 2 GiB; the rest is head room for nodes and names.
_PROTOBUF_LIMIT = 2**31 - 2**24
# Larger models reach the runtime as a file with external data: it maps those, instead of holding copies.
_IN_MEMORY_LIMIT = 64 * 2**20


def load(source: ModelSource) -> ir.Model:
    """Read a model.

    Args:
        source: A path to an ``.onnx`` file (external data is memory-mapped, not read), a ``ModelProto``, or an
            ``onnx_ir.Model``, which is returned as it is.

    Raises:
        ModelError: No such file, a directory, not ONNX, truncated, or external data that is missing, too short or
            outside the model's folder.
    """
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, onnx.ModelProto):
        _require_model(source, "the given ModelProto")
        return ir.serde.deserialize_model(source)
    path = Path(source)
    proto = _parse(path)
    _require_model(proto, str(path))
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # onnx_ir raises whatever its readers raise
        raise ModelError(f"{path}: the model cannot be read: {_first_line(error)}.") from error
    # An absolute folder, because onnx_ir checks containment only when the folder is not empty.
    folder = path.resolve().parent
    ir.external_data.set_base_dir(model.graph, folder)
    for tensor in external_tensors(model):
        _require_external(tensor, path, folder)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"{path}: no such file.")
    if path.is_dir():
        raise ModelError(f"{path}: is a directory; name the .onnx file in it.")
    try:
        if path.stat().st_size == 0:
            raise ModelError(f"{path}: the file is empty.")
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated; export or copy it again.") from error
    except onnx.parser.ParseError as error:
        raise ModelError(f"{path}: not an ONNX model in text form: {_first_line(error)}.") from error


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


def _require_external(tensor: ir.ExternalTensor, path: Path, folder: Path) -> None:
    target = Path(os.path.realpath(folder / str(tensor.location)))
    if not target.is_relative_to(os.path.realpath(folder)):
        raise ModelError(
            f"{path}: the data of '{tensor.name}' lies outside the model's folder ({tensor.location}); "
            "move the data beside the model."
        )
    if not target.is_file():
        raise ModelError(f"{path}: the external data file {tensor.location} of '{tensor.name}' is missing.")
    end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
    if end > target.stat().st_size:
        raise ModelError(f"{path}: the external data file {tensor.location} is truncated; copy it again.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every stored tensor of a model: initializers and attribute tensors, subgraphs and functions included."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        yield from _attribute_tensors(graph)
    for function in model.functions.values():
        yield from _attribute_tensors(function)


def _attribute_tensors(graph: ir.Graph | ir.Function) -> Iterator[ir.TensorProtocol]:
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield attribute.as_tensor()


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """List the tensors of a model whose data lies in another file."""
    return [tensor for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor)]


def stored_bytes(model: ir.Model) -> int:
    """Count the bytes of all tensors that a model stores."""
    return sum(tensor.nbytes for tensor in tensors(model))


def file_bytes(path: str | Path) -> int:
    """Count the bytes of a model file and of its external data, if it has any."""
    path = Path(path)
    model = load(path)
    data = {str(tensor.path) for tensor in external_tensors(model)}
    return path.stat().st_size + sum(Path(name).stat().st_size for name in sorted(data))


def require_writable(path: str | Path) -> Path:
    """Check that a file can be written at ``path`` before any work is done.

    Raises:
        OutputError: The folder is missing or not writable, or ``path`` is a directory.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; name a file to write.")
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist; create it first.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{path}: the folder {folder} cannot be written to ({error.strerror}); name another place."
        ) from error
    return path


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a scratch folder beside ``path``; what lies in it is renamed into place when the block ends well.

    Raises:
        OutputError: The file system refuses.
    """
    path = require_writable(path)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error
    try:
        yield scratch
        # The named file comes last: whoever sees it sees all that it needs.
        for item in sorted(scratch.iterdir(), key=lambda item: item.name == path.name):
            item.replace(path.parent / item.name)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one step: beside the target, then renamed."""
    with atomic_folder(path) as scratch:
        (scratch / Path(path).name).write_text(text, encoding="utf-8")


def save(model: ir.Model, path: str | Path, *, use_external_data_format: bool | None = None) -> None:
    """Write a model in one step: beside the target, then renamed.

    Args:
        model: The model; it is left as it is.
        path: The ``.onnx`` file to write. External data goes into ``<name>.data`` beside it.
        use_external_data_format: Store large tensors outside the file. ``None`` keeps the model's own way, and turns
            to external data above the 2 GiB that one file can hold.

    Raises:
        OutputError: The target cannot be written, or would hold more than 2 GiB in one file.
    """
    path = Path(path)
    too_large = stored_bytes(model) > _PROTOBUF_LIMIT
    external = use_external_data_format
    if external is None:
        external = too_large or bool(external_tensors(model))
    if too_large and not external:
        raise OutputError(f"{path}: the model holds more than 2 GiB; it must be saved with external data.")
    with atomic_folder(path) as scratch:
        _write(model, scratch / path.name, external=external)


def _write(model: ir.Model, path: Path, *, external: bool) -> None:
    if external:
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    proto = serialize(model)
    try:
        data = proto.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise OutputError(f"{path.name}: the model is too large for one file; save it with external data.") from error
    del proto
    path.write_bytes(data)


def serialize(model: ir.Model) -> onnx.ModelProto:
    """Turn a model into a ``ModelProto`` that holds all its data, external data included."""
    if external_tensors(model):
        model = model.clone()
        ir.external_data.load_to_model(model)
    proto = ir.serde.serialize_model(model)
    # onnx_ir states the shape of every initializer once more; files should not grow by that.
    stated = [info for info in proto.graph.value_info if info.name not in model.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(stated)
    return proto


@contextlib.contextmanager
def runtime_source(source: ModelSource | bytes) -> Iterator[str | bytes]:
    """Give a model in the shape an ONNX Runtime session takes: a path, or bytes.

    A path is handed on as it is. Models in memory become bytes while small, else a temporary file whose weights lie
    in external data, which the runtime maps instead of copying; the file lives until the block ends.
    """
    if isinstance(source, bytes):
        yield source
    elif isinstance(source, str | Path):
        yield str(source)
    else:
        model = load(source)
        if stored_bytes(model) < _IN_MEMORY_LIMIT:
            yield serialize(model).SerializeToString(deterministic=True)
            return
        with tempfile.TemporaryDirectory(prefix="onnx_pointwise.") as folder:
            path = Path(folder) / "model.onnx"
            _write(model, path, external=True)
            yield str(path)
