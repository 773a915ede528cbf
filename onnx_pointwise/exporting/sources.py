"""Where a Keras model comes from: a file, a SavedModel folder or a function; and a clear sentence for what is neither.

Keras says "File not found" for a missing and for a corrupt ``.keras`` alike, and loads neither a SavedModel folder nor
a Keras 2 file with its training state. So every source is looked at before Keras sees it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_pointwise.exporting.runtime import ExportError, Runtime, first_line, quiet

#: What the exporter takes, for messages.
SOURCES = ".keras, .h5, .hdf5, a SavedModel folder, or module:function"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_KERAS_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
_COMPILED = "_XlaMustCompile"
_FUNCTION = re.compile(r"(?P<module>[\w.]*):(?P<function>[\w.]*)")


@dataclass(frozen=True)
class KerasSource:
    """A Keras model and how to call it in messages."""

    model: Any
    name: str


@dataclass(frozen=True)
class SavedModelSource:
    """One signature of a SavedModel.

    Attributes:
        loaded: what TensorFlow loaded; holds the variables that `signature` uses.
        signature: the concrete function; takes and returns tensors by name.
        name: how to call it in messages.
    """

    loaded: Any
    signature: Any
    name: str


def open_source(
    rt: Runtime, source: str | Path, *, unsafe: bool = False, signature: str | None = None
) -> KerasSource | SavedModelSource:
    """Load a model.

    Args:
        rt: the imported modules.
        source: path of a `.keras`, `.h5` or `.hdf5` file or a SavedModel folder, or `module:function`.
        unsafe: load Lambda layers, which run code that comes out of the file.
        signature: which signature of a SavedModel; not needed where there is only one, or `serving_default`.

    Raises:
        ExportError: there is no such source, it is damaged, or it is of another kind.
    """
    path = Path(source)
    if path.is_dir():
        return _saved_model(rt, path, signature)
    if signature is not None:
        raise ExportError(f"{source}: only SavedModel folders have signatures; leave --signature out.")
    if path.exists():
        return KerasSource(_keras_file(rt, path, unsafe), str(source))
    match = _FUNCTION.fullmatch(str(source))
    if match:
        return KerasSource(_from_function(rt, match["module"], match["function"]), str(source))
    raise _missing(str(source), path)


def _missing(source: str, path: Path) -> ExportError:
    if path.suffix.lower() not in (".keras", ".h5", ".hdf5") and path.parent == Path() and _is_module(source):
        return ExportError(
            f"{source}: is a module; name the function in it that returns the model, as in {source}:build_model."
        )
    return ExportError(f"{source}: no such file or folder; the exporter takes {SOURCES}.")


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# Files


def _keras_file(rt: Runtime, path: Path, unsafe: bool) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".keras":
        config = _keras_archive(path)
    elif suffix in (".h5", ".hdf5"):
        config = _hdf5(path)
    elif suffix == ".onnx":
        raise ExportError(f"{path}: is an ONNX file already; it needs no export.")
    else:
        raise ExportError(f"{path}: unknown kind of file {suffix or '(no extension)'!r}; the exporter takes {SOURCES}.")
    if not unsafe and (layer := next(_lambdas(config), None)) is not None:
        raise ExportError(
            f"{path}: layer {layer!r} is a Lambda, whose code lies in the file and would be run by loading it; "
            "pass --unsafe if you trust where the file comes from."
        )
    for name, folder in _saved_models(config):
        if not unsafe:
            raise ExportError(
                f"{path}: layer {name!r} is a SavedModel (TFSMLayer) in the folder {folder!r}, whose code would be "
                "run by loading it; pass --unsafe if you trust where both come from."
            )
        if not Path(folder).is_dir():
            raise ExportError(
                f"{path}: layer {name!r} is the SavedModel in the folder {folder!r}, which is not there; run the "
                "export where that path leads to it."
            )
    try:
        with quiet():
            # Without compiling: training state of Keras 2 names optimizers and losses that no longer exist.
            return rt.keras.models.load_model(str(path), compile=False, safe_mode=not unsafe)
    except Exception as error:  # Keras raises whatever its layers raise
        raise ExportError(_unloadable(path, error)) from error


def _unloadable(path: Path, error: Exception) -> str:
    text = first_line(error)
    unknown = re.search(r"Could not locate class '(\w+)'|Unknown (?:layer|object): '?(\w+)'?", str(error))
    if unknown:
        return (
            f"{path}: uses the class {unknown[1] or unknown[2]}, which Keras does not know; write a function that "
            "builds the model and loads its weights, and export module:function."
        )
    return f"{path}: Keras cannot load it, it may be truncated or damaged ({text})."


def _keras_archive(path: Path) -> Any:
    """The configuration inside a `.keras` file, after checking that the archive is whole."""
    damaged = f"{path}: is damaged or truncated, no whole .keras archive; copy or save it again"
    if not zipfile.is_zipfile(path):
        raise ExportError(f"{damaged}.")
    try:
        with zipfile.ZipFile(path) as archive:
            missing = sorted(_KERAS_MEMBERS - set(archive.namelist()))
            if missing:
                raise ExportError(f"{path}: is a zip archive but no Keras model, it lacks {', '.join(missing)}.")
            broken = archive.testzip()
            if broken is not None:
                raise ExportError(f"{damaged} ({broken} fails its checksum).")
            return json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise ExportError(f"{damaged} ({first_line(error)}).") from error


def _hdf5(path: Path) -> Any:
    """The configuration inside an HDF5 file, after checking that it holds a model."""
    h5py: Any = importlib.import_module("h5py")  # comes with Keras
    try:
        with path.open("rb") as stream:
            signature = stream.read(len(_HDF5_SIGNATURE))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}).") from error
    if signature != _HDF5_SIGNATURE:
        raise ExportError(f"{path}: is damaged or no HDF5 file at all; copy or save it again.")
    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
    except OSError as error:
        raise ExportError(f"{path}: is damaged or truncated; copy or save it again ({first_line(error)}).") from error
    if config is None:
        raise ExportError(
            f"{path}: holds weights only, no model; write a function that builds the model and calls "
            "load_weights on it, and export module:function."
        )
    try:
        return json.loads(config)
    except ValueError as error:
        raise ExportError(f"{path}: its model configuration is damaged ({first_line(error)}).") from error


def _lambdas(config: Any) -> Iterator[str]:
    """Names of the Lambda layers, and of lambdas anywhere else, in a model configuration."""
    if isinstance(config, dict):
        if config.get("class_name") in ("Lambda", "__lambda__"):
            inner = config.get("config")
            yield str(inner.get("name", "lambda")) if isinstance(inner, dict) else "lambda"
        for value in config.values():
            yield from _lambdas(value)
    elif isinstance(config, list):
        for value in config:
            yield from _lambdas(value)


def _saved_models(config: Any) -> Iterator[tuple[str, str]]:
    """Names and folders of the layers that are SavedModels, in a model configuration."""
    if isinstance(config, dict):
        inner = config.get("config")
        if config.get("class_name") == "TFSMLayer" and isinstance(inner, dict):
            yield str(inner.get("name", "layer")), str(inner.get("filepath", ""))
        for value in config.values():
            yield from _saved_models(value)
    elif isinstance(config, list):
        for value in config:
            yield from _saved_models(value)


# Folders


def _saved_model(rt: Runtime, path: Path, wanted: str | None) -> SavedModelSource:
    if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise ExportError(f"{path}: is a folder but no SavedModel, it holds no saved_model.pb; name {SOURCES}.")
    try:
        with quiet(), _without_compilation(path) as folder:
            loaded = rt.tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises many kinds
        raise ExportError(
            f"{path}: TensorFlow cannot load this SavedModel, it may be incomplete or damaged ({first_line(error)})."
        ) from error
    signatures = dict(loaded.signatures)
    if not signatures:
        raise ExportError(f"{path}: this SavedModel has no signature to export; save it with model.export(folder).")
    if wanted is None:
        wanted = "serving_default" if "serving_default" in signatures or len(signatures) > 1 else next(iter(signatures))
    if wanted not in signatures:
        raise ExportError(
            f"{path}: has no signature {wanted!r}; choose one with --signature: {', '.join(sorted(signatures))}."
        )
    return SavedModelSource(loaded, signatures[wanted], str(path))


@contextlib.contextmanager
def _without_compilation(path: Path) -> Iterator[Path]:
    """The folder of a SavedModel whose functions may be inlined.

    Keras marks grouped convolutions as functions to be compiled as a whole. No converter can look into those, so the
    mark is taken off a copy of the graph; the weights are not copied.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    file = path / "saved_model.pb"
    model = saved_model_pb2.SavedModel()
    if not file.is_file():
        yield path
        return
    model.ParseFromString(file.read_bytes())
    functions = [function for graph in model.meta_graphs for function in graph.graph_def.library.function]
    marked = [owner for function in functions for owner in (function, *function.node_def) if _COMPILED in owner.attr]
    if not marked:
        yield path
        return
    for owner in marked:
        del owner.attr[_COMPILED]
    with tempfile.TemporaryDirectory() as folder:
        for item in path.resolve().iterdir():
            if item.name not in ("saved_model.pb", "fingerprint.pb"):
                (Path(folder) / item.name).symlink_to(item, target_is_directory=item.is_dir())
        (Path(folder) / "saved_model.pb").write_bytes(model.SerializeToString(deterministic=True))
        yield Path(folder)


# Functions


def _from_function(rt: Runtime, module_name: str, function_name: str) -> Any:
    name = f"{module_name}:{function_name}"
    if not module_name or not function_name:
        raise ExportError(f"{name}: name both the module and the function, as in package.module:build_model.")
    build = _find_function(name, module_name, function_name)
    try:
        with quiet():
            model = build if isinstance(build, rt.keras.Model) else build()
    except Exception as error:  # the user's own code
        raise ExportError(f"{name}: calling it failed with {type(error).__name__}: {first_line(error)}.") from error
    if not isinstance(model, rt.keras.Model):
        raise ExportError(f"{name}: returned a {type(model).__name__}, not a keras.Model.")
    return model


def _find_function(name: str, module_name: str, function_name: str) -> Callable[[], Any]:
    if not _is_module(module_name):
        raise ExportError(f"{name}: there is no module {module_name!r} on the Python path.")
    try:
        target: Any = importlib.import_module(module_name)
    except Exception as error:  # the user's own code
        raise ExportError(
            f"{name}: importing {module_name} failed with {type(error).__name__}: {first_line(error)}."
        ) from error
    for part in function_name.split("."):
        if not hasattr(target, part):
            raise ExportError(f"{name}: the module {module_name} has no function {function_name!r}.")
        target = getattr(target, part)
    if not callable(target):
        raise ExportError(f"{name}: is a {type(target).__name__}, not a function that returns a keras.Model.")
    required = _required_arguments(target)
    if required:
        raise ExportError(
            f"{name}: must be callable without arguments, but needs {', '.join(required)}; "
            "wrap it in a function of your own."
        )
    found: Callable[[], Any] = target
    return found


def _required_arguments(target: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
