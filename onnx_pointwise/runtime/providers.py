"""Execution providers: which there are, whether they load, and sessions on exactly the one that was asked for.

ONNX Runtime drops a provider that fails to load and runs the network on the CPU instead, with a line on a log at
best. Nothing here does: `open_session` either gives a session on the provider named or raises `ProviderError` with the
reason and the way out. What a loaded provider cannot run still goes to the CPU, node by node; `nodes_off_provider`
names those nodes.

Providers come in two kinds. Built-in ones are part of the installed onnxruntime package. Plug-in ones are packages of
their own (import name ``onnxruntime_ep_*``) that offer ``get_library_path()`` and ``get_ep_names()``; their library is
registered with the runtime once in a process and then offers devices.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import io
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx
import onnxruntime as ort

from onnx_pointwise.errors import ModelError, ProviderError
from onnx_pointwise.graph import Detached, ModelSource, runtime_source
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime import openvino
from onnx_pointwise.runtime.devices import Device, DriverError, cuda_devices, vulkan_devices
from onnx_pointwise.runtime.machine import machine, package_versions
from onnx_pointwise.runtime.runtime_errors import sentence

#: Names of the graph optimisation levels, least first.
OPTIMIZATION_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
#: The environment variable by which the WebGPU provider accepts a device emulated on the CPU.
SOFTWARE_VARIABLE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"

_CPU = "CPUExecutionProvider"
# Names the folder of a serialised model's external data, which the runtime else looks for where the process is.
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_QUIET = 4  # only what ends the process is logged; everything else arrives as an exception
_DEFAULT_SEVERITY = 2


@dataclass(frozen=True)
class _Entry:
    """One provider of the registry: its names, and the package that brings it."""

    name: str
    runtime_name: str
    package: str
    module: str | None = None  # of a plug-in

    @property
    def plugin(self) -> bool:
        return self.module is not None


_BUILT_IN = (
    _Entry("cpu", _CPU, "onnxruntime"),
    _Entry("cuda", "CUDAExecutionProvider", "onnxruntime-gpu"),
    _Entry("tensorrt", "TensorrtExecutionProvider", "onnxruntime-gpu"),
    _Entry("directml", "DmlExecutionProvider", "onnxruntime-directml"),
    _Entry("coreml", "CoreMLExecutionProvider", "onnxruntime"),
    _Entry("openvino", "OpenVINOExecutionProvider", "onnxruntime-ep-openvino"),
    _Entry("webgpu", "WebGpuExecutionProvider", "onnxruntime-ep-webgpu"),
    _Entry("migraphx", "MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    _Entry("qnn", "QNNExecutionProvider", "onnxruntime-qnn"),
    _Entry("nvtensorrtrtx", "NvTensorRTRTXExecutionProvider", "onnxruntime-trt-rtx"),
    _Entry("dnnl", "DnnlExecutionProvider", "onnxruntime"),
    _Entry("xnnpack", "XnnpackExecutionProvider", "onnxruntime"),
)
# Sends whole models to a web service: not a way to run a graph on this machine.
_IGNORED = {"AzureExecutionProvider"}


@dataclass(frozen=True)
class ProviderInfo:
    """What is known of one execution provider on this machine.

    Attributes:
        name: Short name, as `open_session` and the command line take it.
        runtime_name: ONNX Runtime's name for it.
        available: Whether a session can be opened on it.
        reason: Why not, and the way out; None where it is available.
        device: Name of the device it runs on, where that is known.
        software: Whether that device is emulated on the CPU.
        driver: Driver or API version of the device, where that is known.
        version: Version of the package that brings the provider; None where it is not installed.
        package: That package.
    """

    name: str
    runtime_name: str
    available: bool
    reason: str | None
    device: str | None
    software: bool
    driver: str | None
    version: str | None
    package: str

    @json_ready
    def to_dict(self) -> dict[str, object]:
        """Give the same as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class AssignedNode:
    """A node that runs on another provider than the one asked for.

    Attributes:
        name: The node's name in the model, or the runtime's own where the runtime made the node.
        op_type: Its operator.
        provider: Short name of the provider that runs it.
    """

    name: str
    op_type: str
    provider: str

    @json_ready
    def to_dict(self) -> dict[str, object]:
        """Give the same as JSON-ready values."""
        return asdict(self)


def discover() -> list[ProviderInfo]:
    """List every known provider, the available ones first, each with its device or with the reason why it is missing.

    Finding out whether a provider loads takes loading it: a session on a model of one node is opened on each.
    """
    infos = [_info(entry) for entry in _entries()]
    return sorted(infos, key=lambda info: not info.available)


def installed_providers() -> list[str]:
    """Name the providers whose packages are installed, without opening any: some of them may not load."""
    return [entry.name for entry in _entries() if _missing(entry) is None]


def require(provider: str) -> None:
    """Check that a provider loads and takes its options, named as for `open_session`.

    Raises:
        ProviderError: It is unknown, does not load, or refuses its options.
    """
    _require(*_parse(provider))


def provider_name(provider: str) -> str:
    """Give the short name of a provider, named as for `open_session`.

    Raises:
        ProviderError: No provider has this name.
    """
    return _parse(provider)[0].name


def is_cpu(provider: str) -> bool:
    """Whether a provider, named as for `open_session`, is the CPU, that the others are measured by."""
    return provider_name(provider) == "cpu"


def session_source(model: ModelSource | bytes, provider: str) -> AbstractContextManager[str | bytes]:
    """Give a model in the shape that `open_session` takes for a provider, see `runtime_source`."""
    return runtime_source(model, in_place=is_cpu(provider))


def provider_info(provider: str) -> ProviderInfo:
    """Describe one provider, named as for `open_session`.

    Raises:
        ProviderError: No provider has this name.
    """
    return _info(_parse(provider)[0])


def _info(entry: _Entry) -> ProviderInfo:
    reason = _missing(entry)
    if reason is None:
        try:
            _probe(entry, (), _environment())
        except ProviderError as error:
            reason = str(error)
    device = _device(entry) if reason is None else None
    return ProviderInfo(
        name=entry.name,
        runtime_name=entry.runtime_name,
        available=reason is None,
        reason=reason,
        device=device.name if device else None,
        software=bool(device and device.software),
        driver=device.driver if device else None,
        version=_package_version(entry) if _missing(entry) is None else None,
        package=entry.package,
    )


def open_session(
    source: str | Path | bytes,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    optimization: str = "all",
    profile: Path | None = None,
    config: Mapping[str, str] | None = None,
    arena: bool = True,
) -> ort.InferenceSession:
    """Open a session on one provider, and on no other.

    Args:
        source: Path of a model, or a serialised model below 2 GiB; a `Detached` one only on the CPU.
        provider: Short name (``cpu``, ``cuda``, ``webgpu``...) or ONNX Runtime's own, with the provider's options after
            a colon: ``cuda:use_tf32=0,device_id=1``; a value may be JSON in braces.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimization: Graph optimisation level, a key of `OPTIMIZATION_LEVELS`.
        profile: Prefix of a profile that the session writes; ``session.end_profiling()`` gives the file's whole name.
        config: Further session configuration entries of ONNX Runtime, key to value.
        arena: Whether the runtime keeps the memory of the CPU that a run took for the next one.

    Raises:
        ProviderError: The provider is unknown, does not load, or refuses its options or this model.
        ModelError: ONNX Runtime cannot load the model.
        ValueError: ``threads`` or ``optimization`` is out of range.
    """
    entry, options = _parse(provider)
    _require(entry, options)
    where = "the model in memory" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ModelError(
            f"{where}: {'is a directory; name the .onnx file in it' if Path(source).is_dir() else 'no such file'}."
        )
    settings = _settings(threads, optimization, profile)
    if isinstance(source, Detached):
        settings.add_session_config_entry(_DATA_FOLDER, source.folder)
    settings.enable_cpu_mem_arena = arena
    for key, value in (config or {}).items():
        settings.add_session_config_entry(key, value)
    try:
        session = _create(source, entry, _with_threads(entry, options, threads), settings)
    except Exception as error:  # the runtime's exceptions share no base class
        reason = sentence(error)
        if entry.runtime_name == _CPU or type(error).__name__ in _MODEL_FAULTS:
            raise ModelError(f"{where}: ONNX Runtime cannot load the model: {reason}.") from error
        raise ProviderError(
            f"Provider {entry.name} cannot run {where}: {reason}; try another provider, or its options after a colon."
        ) from error
    if entry.runtime_name not in session.get_providers():
        raise ProviderError(_failure(entry, "ONNX Runtime dropped it without a reason"))
    return session


def nodes_off_provider(session: ort.InferenceSession) -> list[AssignedNode]:
    """Name the nodes that the runtime gave to another provider than the one the session was opened on.

    The runtime assigns nodes after its basic optimisations, so what they folded or fused away is not in the list.

    Args:
        session: A session from `open_session`.

    Raises:
        ProviderError: The installed ONNX Runtime is too old to tell.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} does not tell which provider runs a node; install 1.24 or newer."
        )
    wanted = session.get_providers()[0]
    return [
        AssignedNode(
            # Layout changes give the nodes they touch a running number.
            name=re.sub(r"_token_\d+$", "", node.name),
            op_type=node.op_type,
            provider=short_name(subgraph.ep_name),
        )
        for subgraph in session.get_provider_graph_assignment_info()
        if subgraph.ep_name != wanted
        for node in subgraph.get_nodes()
    ]


def device_memory(provider: str) -> tuple[str, int] | None:
    """Give the device type and number that tensors of a provider can be bound to; None where that is host memory."""
    entry, options = _parse(provider)
    if entry.name in ("cuda", "tensorrt", "nvtensorrtrtx"):
        return "cuda", int(options.get("device_id", "0"))
    if entry.name == "directml":
        return "dml", int(options.get("device_id", "0"))
    if entry.name == "webgpu":
        return "webgpu", 0
    return None


# --- names and options ------------------------------------------------------------------------------------------------


# Between options: no comma inside JSON, which may be two braces deep.
_COMMA = re.compile(r",(?![^{}]*\})(?![^{}]*\{[^{}]*\}[^{}]*\})")


def _parse(provider: str) -> tuple[_Entry, dict[str, str]]:
    """Split ``name:key=value,...`` into a registry entry and options."""
    if not isinstance(provider, str):
        raise ProviderError(
            f"An execution provider is named by text, such as 'cpu' or 'cuda:device_id=1', not by {provider!r}; "
            "'none' plans a rewrite without any."
        )
    name, _, rest = provider.partition(":")
    entry = next((entry for entry in _entries() if name.lower() in (entry.name, entry.runtime_name.lower())), None)
    if entry is None:
        known = ", ".join(entry.name for entry in _entries())
        raise ProviderError(f"Unknown execution provider '{name}'; known are {known}.")
    options: dict[str, str] = {}
    for item in filter(None, _COMMA.split(rest)):
        key, equals, value = item.partition("=")
        if not (key.strip() and equals):
            raise ProviderError(f"Provider option '{item}' is not of the form key=value, as in 'cuda:use_tf32=0'.")
        options[key.strip()] = value.strip()
    return entry, options


def short_name(runtime_name: str) -> str:
    """Give the short name of a provider from ONNX Runtime's own."""
    entry = next((entry for entry in _entries() if entry.runtime_name == runtime_name), None)
    return entry.name if entry else runtime_name.removesuffix("ExecutionProvider").lower()


def _entries() -> tuple[_Entry, ...]:
    """Give the registry: the known providers, those that installed plug-ins add, those this onnxruntime adds."""
    plugins = _plugins()
    entries = {entry.runtime_name: entry for entry in _BUILT_IN}
    for runtime_name, module in plugins.items():
        # A provider compiled into the runtime wins over a plug-in of the same name.
        if runtime_name not in _built_in_names():
            known = entries.get(runtime_name)
            name = known.name if known else runtime_name.removesuffix("ExecutionProvider").lower()
            entries[runtime_name] = _Entry(name, runtime_name, module.replace("_", "-"), module)
    if "OpenVINOExecutionProvider" in _built_in_names():
        known = entries["OpenVINOExecutionProvider"]
        entries[known.runtime_name] = replace(known, package=openvino.BUILT_IN_PACKAGE)
    for runtime_name in _built_in_names():
        if runtime_name not in entries and runtime_name not in _IGNORED:
            name = runtime_name.removesuffix("ExecutionProvider").lower()
            entries[runtime_name] = _Entry(name, runtime_name, "onnxruntime")
    return tuple(entries.values())


@functools.cache
def _built_in_names() -> tuple[str, ...]:
    """What the runtime offers before any plug-in is registered by this module."""
    plugged = {device.ep_name for device in _ep_devices() if "library_path" in device.ep_metadata}
    return tuple(name for name in ort.get_available_providers() if name not in plugged)


@functools.cache
def _plugins() -> dict[str, str]:
    """Give runtime name -> import name of the plug-in packages that are installed."""
    return dict(_scan(tuple(sys.path)))


@functools.cache
def _scan(_: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Look for plug-in packages once for an import path; that takes longer than opening a session."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules():
        if module.name.startswith("onnxruntime_ep_"):
            with contextlib.suppress(Exception):  # a broken package is as good as none
                package = importlib.import_module(module.name)
                names = package.get_ep_names() if hasattr(package, "get_ep_names") else [package.get_ep_name()]
                found.update(dict.fromkeys(names, module.name))
    return tuple(sorted(found.items()))


def _package_version(entry: _Entry) -> str | None:
    """Give the version of the package that brings an installed provider."""
    return package_versions((entry.package,)).get(entry.package) if entry.plugin else str(ort.__version__)


# --- why a provider does not load -------------------------------------------------------------------------------------


def _missing(entry: _Entry) -> str | None:
    """Say why a provider is not installed; None where it is."""
    if entry.plugin or entry.runtime_name in _built_in_names():
        return None
    if entry.name == "coreml" and sys.platform != "darwin":
        return _sentence(entry, "CoreML exists on Apple systems only", "choose another provider")
    if entry.name == "directml" and sys.platform != "win32":
        return _sentence(entry, "DirectML exists on Windows only", "choose another provider")
    if entry.package == "onnxruntime":
        return _sentence(
            entry, "the installed onnxruntime was built without it", "use a build of ONNX Runtime that has it"
        )
    return _sentence(
        entry, f"the package {entry.package} is not installed", f"install it with: pip install {entry.package}"
    )


def _sentence(entry: _Entry, reason: str, way_out: str) -> str:
    return f"Provider {entry.name} does not load: {reason}; {way_out}."


def _failure(entry: _Entry, reason: str) -> str:
    """Say why an installed provider did not load, by asking the driver of its device."""
    if entry.name in ("cuda", "tensorrt"):
        return _cuda_failure(entry, reason)
    if entry.name == "webgpu" and sys.platform == "linux":
        return _vulkan_failure(entry) or _sentence(
            entry, reason, "update the Vulkan driver (tools/install_webgpu.sh brings a software device that works)"
        )
    return _sentence(entry, reason, f"see the requirements of {entry.package}")


def _vulkan_failure(entry: _Entry) -> str | None:
    """Say what Vulkan lacks for WebGPU; None where it lacks nothing."""
    install = "install a GPU driver with Vulkan, or Mesa's software device (tools/install_webgpu.sh)"
    try:
        devices = vulkan_devices()
    except DriverError as error:
        if "loader" in str(error):
            return _sentence(entry, str(error), "install it (Debian: libvulkan1) and a Vulkan driver")
        return _sentence(entry, str(error), install)
    if not devices:
        return _sentence(entry, "Vulkan lists no device", install)
    if devices[0].software and not _software_allowed():
        return _sentence(
            entry,
            f"the only Vulkan device is emulated on the CPU ({devices[0].name})",
            f"set {SOFTWARE_VARIABLE}=1 to test on it, its timings mean nothing",
        )
    return None


def _software_allowed() -> bool:
    return os.environ.get(SOFTWARE_VARIABLE) == "1"


def _cuda_failure(entry: _Entry, reason: str) -> str:
    try:
        cuda_devices()
    except DriverError as error:
        return _sentence(entry, str(error), "install NVIDIA's driver, or run where there is a GPU")
    missing = _missing_library(entry.name)
    if missing:
        extra = "tensorrt" if "nvinfer" in missing else "onnxruntime-gpu[cuda,cudnn]"
        return _sentence(entry, f"a library is missing ({missing})", f"pip install '{extra}' brings it")
    return _sentence(entry, reason, "compare the CUDA and cuDNN versions with what this onnxruntime-gpu requires")


def _missing_library(name: str) -> str | None:
    """Load a provider's library as the runtime does; give what the loader says is missing."""
    folder = Path(ort.__file__).parent / "capi"
    prefix, suffix = ("", ".dll") if sys.platform == "win32" else ("lib", ".so")
    try:
        for part in ("shared", name):
            library = folder / f"{prefix}onnxruntime_providers_{part}{suffix}"
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error).split(":", 1)[0]
    return None


def _device(entry: _Entry) -> Device | None:
    """Describe the device that an available provider runs on."""
    if entry.runtime_name == _CPU:
        return Device(name=machine().cpu, software=False, driver=", ".join(machine().instruction_sets[:1]))
    with contextlib.suppress(DriverError):
        if entry.name in ("cuda", "tensorrt", "nvtensorrtrtx"):
            return cuda_devices()[0]
        if entry.name == "webgpu" and sys.platform == "linux":
            return next(iter(vulkan_devices()), None)
    found = [device for device in _ep_devices() if device.ep_name == entry.runtime_name]
    for device in found[:1]:
        metadata = device.device.metadata
        name = metadata.get("Description") or f"{device.device.vendor} {device.device.type.name}"
        return Device(name=name, software=False, driver=device.ep_metadata.get("version", ""))
    if entry.name == openvino.NAME:  # built in, it says nothing of devices, and takes the processor unless told
        return Device(name=machine().cpu, software=False, driver="")
    return None


# --- sessions ---------------------------------------------------------------------------------------------------------

# The runtime's exception classes for faults of the model, not of the provider.
_MODEL_FAULTS = {"InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel", "NotImplemented"}


def _require(entry: _Entry, options: dict[str, str]) -> None:
    """Check that a provider loads and knows its options, on a model of one node."""
    reason = _missing(entry)
    if reason:
        raise ProviderError(reason)
    if entry.runtime_name == _CPU:
        if options:
            raise ProviderError(
                f"Provider cpu has no options, but '{next(iter(options))}' was given; threads have their own."
            )
        return
    _probe(entry, tuple(options.items()), _environment())


def _environment() -> tuple[tuple[str, str], ...]:
    """Give the environment variables that decide whether a provider loads."""
    prefixes = ("VK_", "ORT_", "CUDA_", "NVIDIA_", "LD_LIBRARY_PATH", "XDG_")
    return tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith(prefixes)))


@functools.lru_cache(maxsize=64)
def _probe(entry: _Entry, options: tuple[tuple[str, str], ...], environment: tuple[tuple[str, str], ...]) -> None:
    """Open the probe once for a set of options in an environment; failures are not remembered."""
    if options:
        _probe(entry, (), environment)
    _open_probe(entry, dict(options))


def _open_probe(entry: _Entry, options: dict[str, str]) -> None:
    if entry.name == "webgpu" and sys.platform == "linux":
        # Asked before the provider is: it takes whatever Vulkan gives, an emulated device included.
        lacking = _vulkan_failure(entry)
        if lacking:
            raise ProviderError(lacking)
    try:
        session = _create(_probe_model(), entry, options, _settings(1, "none", None))
    except ProviderError:
        raise
    except Exception as error:  # the runtime's exceptions share no base class
        if options:
            given = ",".join(f"{key}={value}" for key, value in options.items())
            raise ProviderError(
                f"Provider {entry.name} refuses the options '{given}': {sentence(error)}; correct or leave them out."
            ) from error
        raise ProviderError(_failure(entry, sentence(error))) from error
    if entry.runtime_name not in session.get_providers():
        if options:
            given = ",".join(f"{key}={value}" for key, value in options.items())
            raise ProviderError(
                f"Provider {entry.name} does not load with the options '{given}', though it does without; a device "
                "that they name may not be there: correct or leave them out."
            )
        raise ProviderError(_failure(entry, "ONNX Runtime dropped it without a reason"))


@functools.cache
def _probe_model() -> bytes:
    value = functools.partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT, shape=[1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", [value("x")], [value("y")])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 13)])
    return bytes(model.SerializeToString())


def _settings(threads: int | None, optimization: str, profile: Path | None) -> ort.SessionOptions:
    if optimization not in OPTIMIZATION_LEVELS:
        raise ValueError(f"Unknown optimisation level '{optimization}'; known are {', '.join(OPTIMIZATION_LEVELS)}.")
    settings = ort.SessionOptions()
    settings.log_severity_level = _QUIET
    settings.graph_optimization_level = OPTIMIZATION_LEVELS[optimization]
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}.")
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    return settings


def _create(
    source: str | Path | bytes, entry: _Entry, options: dict[str, str], settings: ort.SessionOptions
) -> ort.InferenceSession:
    """Open a session with the runtime's own fall-back turned off; the runtime's exceptions go through."""
    model = source if isinstance(source, bytes) else str(source)
    if entry.plugin:
        settings.add_provider_for_devices(_plugin_devices(entry, options), options)
        with _without_notes():
            return ort.InferenceSession(model, settings, enable_fallback=0)
    providers: list[str | tuple[str, dict[str, str]]] = [(entry.runtime_name, options)]
    if entry.name == "tensorrt" and "CUDAExecutionProvider" in _built_in_names():
        # What TensorRT leaves over runs on the same GPU, as in deployments; nodes_off_provider still counts it.
        providers.append("CUDAExecutionProvider")
    if entry.runtime_name == _CPU:
        return ort.InferenceSession(model, settings, providers=providers, enable_fallback=0)
    providers.append(_CPU)
    with _quiet_environment():
        _preload()
        return ort.InferenceSession(model, settings, providers=providers, enable_fallback=0)


def _preload() -> None:
    """Let the runtime find CUDA libraries that were installed as Python packages."""
    if hasattr(ort, "preload_dlls") and "CUDAExecutionProvider" in _built_in_names():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()


def _ep_devices() -> list[ort.OrtEpDevice]:
    return list(ort.get_ep_devices()) if hasattr(ort, "get_ep_devices") else []


def _plugin_devices(entry: _Entry, options: dict[str, str]) -> list[ort.OrtEpDevice]:
    """Register a plug-in and give the devices to run on: of the best kind that it offers, GPU before NPU before CPU."""
    if not hasattr(ort, "register_execution_provider_library"):
        raise ProviderError(
            _sentence(entry, f"ONNX Runtime {ort.__version__} takes no plug-ins", "install onnxruntime 1.24 or newer")
        )
    with _quiet_environment():
        _register(str(entry.module))
        offered = [device for device in _ep_devices() if device.ep_name == entry.runtime_name]
    if not offered:
        raise ProviderError(_no_device(entry))
    _require_known(entry, options)
    order = {"GPU": 0, "NPU": 1, "CPU": 2}
    offered.sort(key=lambda device: order.get(device.device.type.name, 3))
    return offered[:1]


def _no_device(entry: _Entry) -> str:
    if entry.name == "webgpu" and sys.platform == "linux" and not _software_allowed():
        # In containers Vulkan may reach a GPU whose entries in /sys, which the runtime reads, are hidden.
        return _sentence(
            entry,
            "Vulkan has a GPU but ONNX Runtime sees none on this machine",
            f"set {SOFTWARE_VARIABLE}=1, which lets the provider ask Vulkan itself",
        )
    if entry.name == openvino.NAME:
        return _sentence(
            entry,
            "the plug-in offers no device on this machine, whose processor may be another maker's",
            f"try the package {openvino.BUILT_IN_PACKAGE} in the place of onnxruntime, in an environment of its own",
        )
    return _sentence(entry, "it offers no device on this machine", f"see the requirements of {entry.package}")


@functools.cache
def _register(module: str) -> None:
    """Register a plug-in's library, once: the WebGPU provider crashes when it is registered a second time."""
    package = importlib.import_module(module)
    path = str(package.get_library_path())
    if any(device.ep_metadata.get("library_path") == path for device in _ep_devices()):
        return  # the program registered it itself
    try:
        ort.register_execution_provider_library(module, path)
    except Exception as error:  # the runtime's exceptions share no base class
        name = module.removeprefix("onnxruntime_ep_")
        raise ProviderError(
            f"Provider {name} does not load: {sentence(error)}; reinstall {module.replace('_', '-')} and check the "
            "onnxruntime version it needs."
        ) from error


@contextlib.contextmanager
def _quiet_environment() -> Iterator[None]:
    """Keep the runtime's process-wide log quiet; sessions have a level of their own."""
    ort.set_default_logger_severity(_QUIET)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_DEFAULT_SEVERITY)


# What WebGPU's implementation writes past every log level where a device has more bindings than it can use.
_NOTES = re.compile(rb"Warning: max\w+ artificially reduced from ")


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Keep notes of a plug-in off standard error; all else that is written meanwhile still arrives there."""
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, AttributeError):  # no standard error at all
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            os.write(2, b"".join(line for line in caught if not _NOTES.match(line)))


def _with_threads(entry: _Entry, options: dict[str, str], threads: int | None) -> dict[str, str]:
    """Hand the number of threads on to a provider that leaves that of the session aside."""
    if entry.name != openvino.NAME:
        return options
    known = _known_options(str(entry.module), entry.runtime_name) if entry.plugin else None
    return openvino.with_threads(options, threads, known)


def ignores_threads(provider: str) -> bool:
    """Whether a provider has no way to be told how many threads to take, though it runs on processors."""
    entry, options = _parse(provider)
    return entry.name == openvino.NAME and openvino.ignores_threads(_with_threads(entry, options, 1))


def _require_known(entry: _Entry, options: dict[str, str]) -> None:
    """Refuse options that a plug-in would ignore: its library spells out each key it knows, as ``ep.<name>.<key>``."""
    known = _known_options(str(entry.module), entry.runtime_name)
    unknown = [key for key in options if known and key not in known]
    if unknown:
        raise ProviderError(f"Provider {entry.name} has no option '{unknown[0]}'; it has {', '.join(sorted(known))}.")


@functools.cache
def _known_options(module: str, runtime_name: str) -> frozenset[str]:
    path = Path(importlib.import_module(module).get_library_path())
    if runtime_name == "OpenVINOExecutionProvider":
        return openvino.plugin_options(path.read_bytes())
    pattern = rb"ep\." + re.escape(runtime_name.lower().encode()) + rb"\.([A-Za-z0-9_]+)\0"
    return frozenset(key.decode() for key in re.findall(pattern, path.read_bytes()))
