"""TensorFlow function -> ONNX through tf2onnx, with what it needs to get there.

The workarounds, each kept to the duration of the conversion:

* functions run eagerly while tracing, so that a grouped convolution is not hidden in a compiled call;
* ``Erfc`` (exact gelu) becomes ``1 - Erf``, which ONNX has;
* a single number added to a convolution (hard swish) is kept from being taken for its bias;
* tf2onnx copies the graph once per optimizer to survive their failures, and keeps a copy of all weights from each of
  them; a variable in the environment turns the former off, the latter are shed, and garbage is collected after each;
* layers are renamed to unmistakable tokens, so that every node can be traced back to the layer it came from.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_pointwise.exporting.names import rename_boundary
from onnx_pointwise.exporting.runtime import ExportError, Runtime, first_line, quiet

MIN_OPSET = 9  # the first that has Erf
MAX_OPSET = 18
DEFAULT_OPSET = 17

_CATCH_ERRORS = "TF2ONNX_CATCH_ERRORS"
_TOKEN = re.compile(r"Lx(\d+)x")
# Freezing and TensorFlow's own optimisation hold many copies: ResNet50 (102 MB) peaked at 3.0 GB.
_BYTES_PER_WEIGHT_BYTE = 24
_BASE_BYTES = 700 * 2**20
_MOST_BYTES = 2**31 - 2**24  # the rest is for nodes and names


@dataclass(frozen=True)
class NamedLayer:
    """A layer of the model and the name it goes by in the exported graph."""

    name: str
    layer: Any


def named_layers(model: Any) -> list[NamedLayer]:
    """Every layer of a Keras model, nested ones after the layer that holds them, under names that differ.

    A layer goes by its own name; where two nested models use the same one, by its path (``encoder/conv``).
    """
    found: list[tuple[str, Any]] = []
    seen: set[int] = {id(model)}

    def walk(layer: Any, path: str) -> None:
        for child in layer._flatten_layers(include_self=False, recursive=False):
            if id(child) in seen:
                continue
            seen.add(id(child))
            found.append((f"{path}{child.name}", child))
            walk(child, f"{path}{child.name}/")

    walk(model, "")
    short = [layer.name for _, layer in found]
    names: list[str] = []
    for path, layer in found:
        wanted = base = layer.name if short.count(layer.name) == 1 else path
        count = 1
        while wanted in names:
            count += 1
            wanted = f"{base}_{count}"
        names.append(wanted)
    return [NamedLayer(name, layer) for name, (_, layer) in zip(names, found, strict=True)]


@contextlib.contextmanager
def layer_tokens(layers: Sequence[NamedLayer]) -> Iterator[None]:
    """Give every layer a token for a name while the block runs, for `layer_of` to recognise in node names."""
    originals = [entry.layer.name for entry in layers]
    try:
        for index, entry in enumerate(layers):
            entry.layer.name = f"Lx{index}x"
        yield
    finally:
        for entry, original in zip(layers, originals, strict=True):
            entry.layer.name = original


def layer_of(name: str) -> int | None:
    """The index of the innermost layer whose token is in a node or tensor name; None where there is none."""
    tokens = _TOKEN.findall(name)
    return int(tokens[-1]) if tokens else None


def check_opset(opset: int) -> None:
    """Refuse opsets that the converter cannot write.

    Raises:
        ExportError: `opset` is outside 9 to 18.
    """
    if opset > MAX_OPSET:
        raise ExportError(
            f"opset {opset} is not supported: the Keras converter writes opsets {MIN_OPSET} to {MAX_OPSET}; "
            f"use {DEFAULT_OPSET} (at {MAX_OPSET} global pooling becomes Transpose + ReduceMean)."
        )
    if opset < MIN_OPSET:
        raise ExportError(
            f"opset {opset} is not supported: the Keras converter writes opsets {MIN_OPSET} to {MAX_OPSET}; "
            f"use {DEFAULT_OPSET}."
        )


def conversion_bytes(weight_bytes: int) -> int:
    """Memory that a conversion is expected to need at its peak, TensorFlow itself included, in bytes."""
    return _BASE_BYTES + _BYTES_PER_WEIGHT_BYTE * weight_bytes


def available_bytes() -> int | None:
    """Memory that this process could still take, in bytes; None where the system does not say."""
    limits: list[int] = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        limits.append(most - used + int(cache.get("inactive_file", 0)))
    return min(limits) if limits else None


def check_size(weight_bytes: int, what: str) -> None:
    """Refuse a model that one file cannot hold; neither TensorFlow's graphs nor ONNX messages exceed 2 GiB.

    Raises:
        ExportError: the weights are too large.
    """
    if weight_bytes > _MOST_BYTES:
        raise ExportError(
            f"{what}: its {weight_bytes / 1e9:.1f} GB of weights exceed the 2 GiB that the converter can handle; "
            "export it in parts."
        )


def check_memory(weight_bytes: int, what: str, available: int | None = None) -> None:
    """Refuse a conversion that would run the machine out of memory.

    Args:
        weight_bytes: size of the model's weights.
        what: how to call the model in the message.
        available: memory that may be used, in bytes; measured when not given.

    Raises:
        ExportError: the estimate exceeds what is available.
    """
    available = available_bytes() if available is None else available
    needed = conversion_bytes(weight_bytes)
    if available is not None and needed > available:
        raise ExportError(
            f"{what}: converting {weight_bytes / 1e6:,.0f} MB of weights takes about {needed / 2**30:.1f} GiB of "
            f"memory, but {available / 2**30:.1f} GiB are available; use a machine with more, export a narrower model "
            "or only its convolutional part (include_top=False), or pass --ignore-memory to try all the same."
        )


@contextlib.contextmanager
def _eager_functions(rt: Runtime) -> Iterator[None]:
    """Trace through nested functions instead of leaving calls to them in the graph."""
    before = rt.tf.config.functions_run_eagerly()
    rt.tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        rt.tf.config.run_functions_eagerly(before)


@contextlib.contextmanager
def _frugal() -> Iterator[None]:
    """Let tf2onnx optimize in place, and keep garbage collection cheap enough to run after each of its optimizers."""
    before, frozen = os.environ.get(_CATCH_ERRORS), gc.get_freeze_count()
    os.environ[_CATCH_ERRORS] = "FALSE"
    gc.collect()
    if not frozen:
        gc.freeze()  # so that collecting need not look at all of TensorFlow each time
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if before is None:
            del os.environ[_CATCH_ERRORS]
        else:
            os.environ[_CATCH_ERRORS] = before


def _optimizers(rt: Runtime) -> OrderedDict[str, Callable[[], Any]]:
    """tf2onnx's own optimizers, each collecting garbage when it is done."""

    def collecting(factory: Callable[[], Any]) -> Callable[[], Any]:
        def make() -> Any:
            optimizer = factory()
            optimize = optimizer.optimize

            def optimize_and_collect(*args: Any, **kwargs: Any) -> Any:
                graph = optimize(*args, **kwargs)
                _shed_copies(graph)
                gc.collect()
                return graph

            optimizer.optimize = optimize_and_collect
            if hasattr(optimizer, "_handler_map"):
                _guard_add(optimizer)
            return optimizer

        return make

    registry = rt.tf2onnx.optimizer._get_optimizers()
    return OrderedDict((name, collecting(factory)) for name, factory in registry.items())


def _shed_copies(graph: Any) -> None:
    """Free the memory of constants that were written anew.

    Every optimizer ends by writing each node's attributes into its protobuf message once more, and a message keeps the
    memory of what was in it before: one copy of all weights each time.
    """
    for node in graph.get_nodes():
        if node.is_const():
            node._attr = {name: onnx.AttributeProto.FromString(a.SerializeToString()) for name, a in node._attr.items()}
            node._op = onnx.NodeProto(name=node.name, op_type=node.type, domain=node.domain)
            node._op.output.extend(node.output)


def _guard_add(optimizer: Any) -> None:
    """Keep the optimizer of transpositions from taking a single number behind a convolution for its bias; it fails."""
    handle = optimizer._handler_map["Add"]

    def add(transpose: Any, node: Any) -> Any:
        if any(source.is_const() and source.get_tensor_value(as_list=False).ndim == 0 for source in node.inputs):
            return optimizer._handle_node_having_branches(transpose, node)
        return handle(transpose, node)

    optimizer._handler_map["Add"] = add


class _Callable:
    """What tf2onnx takes for a Keras model: something with names that is called with a tensor, or a list of them."""

    def __init__(self, rt: Runtime, call: Callable[..., dict[str, Any]], output_names: list[str]) -> None:
        self.name = "model"
        self.output_names = output_names
        self._rt = rt
        self._call = call

    def __call__(self, *inputs: Any, training: bool = False) -> dict[str, Any]:
        return self._call(*self._rt.tf.nest.flatten(inputs))


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """Erfc(x) = 1 - Erf(x), as a tf2onnx custom op handler."""
    from tf2onnx import utils

    (output,) = node.output
    dtype, shape = context.get_dtype(output), context.get_shape(output)
    one = context.make_const(utils.make_name(name), np.array(1, utils.map_onnx_to_numpy_type(dtype)))
    erf = context.make_node("Erf", [node.input[0]], name=utils.make_name(name), shapes=[shape], dtypes=[dtype])
    context.remove_node(name)
    context.make_node(
        "Sub", [one.output[0], erf.output[0]], name=name, outputs=[output], shapes=[shape], dtypes=[dtype]
    )


def to_onnx(
    rt: Runtime,
    call: Callable[..., Sequence[Any]],
    specs: Sequence[Any],
    output_names: Sequence[str],
    what: str,
    *,
    opset: int = DEFAULT_OPSET,
    nchw: bool = False,
) -> onnx.ModelProto:
    """Convert a TensorFlow computation.

    Args:
        rt: the imported modules.
        call: takes one tensor per spec, returns one tensor per output name.
        specs: `tf.TensorSpec` of each input; its name becomes the graph input's name.
        output_names: names of the graph outputs, in order.
        what: how to call the model in messages.
        opset: ONNX operator set to write, 9 to 18.
        nchw: give rank-4 inputs and outputs as [N, C, H, W] instead of [N, H, W, C].

    Returns:
        The model as the converter left it; nothing about it is checked yet.

    Raises:
        ExportError: the opset is out of range or the converter gave up.
    """
    check_opset(opset)
    # tf2onnx sorts and renames by TensorFlow's names, so go through plain ones and put the real names in at the end.
    inputs = [f"input_{i:03d}" for i in range(len(specs))]
    outputs = [f"output_{i:03d}" for i in range(len(output_names))]
    plain = [rt.tf.TensorSpec(spec.shape, spec.dtype, name=name) for spec, name in zip(specs, inputs, strict=True)]

    @rt.tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator, unused-ignore]
    def named(*tensors: Any) -> dict[str, Any]:
        # An output that is an input, or another output, needs a name of its own.
        return {name: rt.tf.identity(tensor) for name, tensor in zip(outputs, call(*tensors), strict=True)}

    with quiet(), _frugal(), _eager_functions(rt):
        try:
            model, _ = rt.tf2onnx.convert.from_keras(
                _Callable(rt, named, outputs),
                input_signature=plain,
                opset=opset,
                custom_op_handlers={"Erfc": (_erfc, [])},
                optimizers=_optimizers(rt),
                inputs_as_nchw=_images({name: spec.shape for name, spec in zip(inputs, plain, strict=True)}, nchw),
                outputs_as_nchw=_images(_shapes(rt, named, plain), nchw) if nchw else None,
            )
        except ExportError:
            raise
        except Exception as error:  # TensorFlow, tf2onnx and the model's own code raise many kinds
            raise ExportError(f"{what}: the converter gave up: {first_line(error)}{_way_out(specs)}.") from error
    if not isinstance(model, onnx.ModelProto):
        raise ExportError(f"{what}: the converter returned a {type(model).__name__} instead of an ONNX model.")
    plainly, wanted = [*inputs, *outputs], [*(spec.name for spec in specs), *output_names]
    rename_boundary(model.graph, dict(zip(plainly, wanted, strict=True)))
    return model


def _way_out(specs: Sequence[Any]) -> str:
    """What to try where the converter gave up on open sizes."""
    unknown = [spec for spec in specs if spec.shape.rank and None in spec.shape[1:]]
    if not unknown:
        return ""
    sizes = ",".join(str(size or 64) for size in unknown[0].shape[1:])
    given = sizes if len(specs) == 1 else f"{unknown[0].name}={sizes}"
    return f"; some layers need sizes that are known: name them, as in --input-shape {given}"


def _shapes(rt: Runtime, named: Callable[..., dict[str, Any]], specs: Sequence[Any]) -> dict[str, Any]:
    """Shapes of the outputs, from a trace."""
    structure = rt.tf.function(named, input_signature=specs, autograph=False).get_concrete_function().structured_outputs
    return {name: spec.shape for name, spec in structure.items()}


def _images(shapes: dict[str, Any], nchw: bool) -> list[str] | None:
    """Names of the rank-4 tensors, to be given channels first; None for none, as tf2onnx wants it."""
    return [name for name, shape in shapes.items() if nchw and shape.rank == 4] or None
