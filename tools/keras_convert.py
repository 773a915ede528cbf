"""TensorFlow function -> ONNX through tf2onnx, with what it needs to get there.

The workarounds, each kept to the duration of the conversion:

* functions run eagerly while tracing, so that a grouped convolution is not hidden in a compiled call;
* ``Erfc`` (exact gelu) becomes ``1 - Erf``, which ONNX has;
* tf2onnx copies the graph once per optimizer to survive their failures; a variable in the environment turns that off,
  and what the optimizers leave behind is collected after each, or large models do not fit in memory;
* layers are renamed to unmistakable tokens, so that every node can be traced back to the layer it came from.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tools.keras_names import rename_boundary
from tools.keras_runtime import ExportError, Runtime, first_line, quiet

MIN_OPSET = 9  # the first that has Erf
MAX_OPSET = 18
DEFAULT_OPSET = 17

_CATCH_ERRORS = "TF2ONNX_CATCH_ERRORS"
_TOKEN = re.compile(r"Lx(\d+)x")
# Freezing, TensorFlow's own optimisation and each of tf2onnx's leave copies: ResNet50, 102 MB, peaked at 4.0 GB.
_BYTES_PER_WEIGHT_BYTE = 34
_BASE_BYTES = 700 * 2**20


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
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        limits.append(int(most) - int(used))
    return min(limits) if limits else None


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
def _frugal_optimizers(rt: Runtime) -> Iterator[None]:
    """Let tf2onnx optimize in place, and collect garbage after each of its optimizers."""
    registry = rt.tf2onnx.optimizer._optimizers
    originals, variable = dict(registry), os.environ.get(_CATCH_ERRORS)

    def collecting(factory: Callable[[], Any]) -> Callable[[], Any]:
        def make() -> Any:
            optimizer = factory()
            optimize = optimizer.optimize

            def optimize_and_collect(*args: Any, **kwargs: Any) -> Any:
                graph = optimize(*args, **kwargs)
                gc.collect()
                return graph

            optimizer.optimize = optimize_and_collect
            return optimizer

        return make

    registry.update({name: collecting(factory) for name, factory in originals.items()})
    os.environ[_CATCH_ERRORS] = "FALSE"
    gc.collect()
    gc.freeze()  # so that collecting need not look at all of TensorFlow each time
    try:
        yield
    finally:
        gc.unfreeze()
        registry.update(originals)
        if variable is None:
            del os.environ[_CATCH_ERRORS]
        else:
            os.environ[_CATCH_ERRORS] = variable


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """Erfc(x) = 1 - Erf(x), as a tf2onnx custom op handler."""
    import numpy as np
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

    with quiet(), _frugal_optimizers(rt):
        try:
            with _eager_functions(rt):
                function = rt.tf.function(
                    lambda *args: {name: rt.tf.identity(out) for name, out in zip(outputs, call(*args), strict=True)},
                    input_signature=plain,
                    autograph=False,
                )
                ranks = [out.shape.rank for out in function.get_concrete_function().outputs]
            model, _ = rt.tf2onnx.convert.from_function(
                function,
                input_signature=plain,
                opset=opset,
                custom_op_handlers={"Erfc": (_erfc, [])},
                inputs_as_nchw=[n for n, spec in zip(inputs, plain, strict=True) if nchw and spec.shape.rank == 4]
                or None,
                outputs_as_nchw=[n for n, rank in zip(outputs, ranks, strict=True) if nchw and rank == 4] or None,
            )
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"{what}: the converter gave up: {first_line(error)}.") from error
    if not isinstance(model, onnx.ModelProto):
        raise ExportError(f"{what}: the converter returned a {type(model).__name__} instead of an ONNX model.")
    renamed = dict(zip(inputs, (spec.name for spec in specs), strict=True)) | dict(
        zip(outputs, output_names, strict=True)
    )
    rename_boundary(model.graph, renamed)
    return model
