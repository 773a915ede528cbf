"""A Keras model or a SavedModel signature as something to convert: its inputs, its computation, its layers."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.exporting.convert import NamedLayer, layer_of, layer_tokens, named_layers
from onnx_pointwise.exporting.names import Kernel, LayerOf, onnx_layout
from onnx_pointwise.exporting.runtime import ExportError, Runtime, first_line, quiet
from onnx_pointwise.exporting.sources import SavedModelSource

Arrays = Sequence[NDArray[Any]]
InputShape = Sequence[int] | Mapping[str, Sequence[int]]

_KERNEL_ROLES = ("kernel", "depthwise_kernel", "pointwise_kernel")
_NUMBERED = re.compile(r"(?:args|output)(?:_\d+)+")


@dataclass(frozen=True)
class Traceable:
    """What the converter needs, and what its result is compared with.

    Attributes:
        specs: a `tf.TensorSpec` for each input, its name the input's name.
        output_names: names of the outputs.
        call: tensors -> tensors, in the order of `specs` and `output_names`; converted.
        reference: arrays -> arrays, in the same order; what the result must agree with.
        tracing: a context in which `call` has to be traced.
        layers: the model's layers; none for a SavedModel.
        kernels: the trained kernels.
        layer_of: the layer that a node or tensor name of the converter speaks of.
        weight_bytes: size of all weights.
        notes: sentences for the user.
        owner: what has to live as long as `call` is used: a signature refers to its variables only weakly.
    """

    specs: tuple[Any, ...]
    output_names: tuple[str, ...]
    call: Callable[..., Sequence[Any]]
    reference: Callable[[Arrays], list[NDArray[Any]]]
    tracing: Callable[[], contextlib.AbstractContextManager[None]]
    layers: tuple[NamedLayer, ...]
    kernels: tuple[Kernel, ...]
    layer_of: LayerOf
    weight_bytes: int
    notes: tuple[str, ...] = ()
    owner: Any = None


def trace_model(rt: Runtime, model: Any, name: str, input_shape: InputShape | None = None) -> Traceable:
    """Prepare a Keras model of any kind.

    Args:
        rt: the imported modules.
        model: the model.
        name: how to call it in messages.
        input_shape: static sizes without the batch, for one input or by input name.

    Raises:
        ExportError: the model has no input shape and none is given, or the given one does not fit.
    """
    if isinstance(model, rt.keras.Sequential) and not model.built:
        model.build((None, *_only_shape(input_shape, name, "the Sequential model declares no input shape")))
    if getattr(model, "inputs", None):
        return _trace_functional(rt, model, name, input_shape)
    return _trace_subclassed(rt, model, name, input_shape)


def trace_saved_model(rt: Runtime, source: SavedModelSource, input_shape: InputShape | None = None) -> Traceable:
    """Prepare a signature of a SavedModel; it is both what is converted and what the result is compared with.

    Raises:
        ExportError: the given shape does not fit.
    """
    signature = source.signature
    declared = signature.structured_input_signature[1]
    inputs, outputs = _in_call_order(declared), _in_call_order(signature.structured_outputs)
    specs = [rt.tf.TensorSpec(declared[key].shape, declared[key].dtype, name=key) for key in inputs]

    def call(*tensors: Any) -> list[Any]:
        result = signature(**dict(zip(inputs, tensors, strict=True)))
        return [result[key] for key in outputs]

    variables = list(signature.variables)
    layer = _ScopeNamer(_scopes(signature), {name for name in map(_variable_layer, variables) if name})
    return Traceable(
        specs=tuple(_with_shapes(rt, specs, input_shape, source.name)),
        output_names=tuple(unique(outputs, taken=inputs)),
        call=call,
        reference=_reference(rt, call),
        tracing=contextlib.nullcontext,
        layers=(),
        kernels=tuple(_variable_kernels(variables, layer.layers)),
        layer_of=layer,
        weight_bytes=_bytes(rt, variables),
        owner=source.loaded,
    )


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The same names, numbered where they repeat or are taken."""
    used, out = set(taken), []
    for name in names:
        wanted, count = name, 1
        while wanted in used:
            count += 1
            wanted = f"{name}_{count}"
        used.add(wanted)
        out.append(wanted)
    return out


# Models with layers


def _trace_functional(rt: Runtime, model: Any, name: str, input_shape: InputShape | None) -> Traceable:
    # A plain functional model takes and gives flat lists, whatever the original's structure; Sequential needs it too.
    flat = rt.keras.Model(model.inputs, model.outputs)
    names = unique(tensor._keras_history.operation.name for tensor in model.inputs)
    specs = [rt.tf.TensorSpec(t.shape, t.dtype, name=name) for t, name in zip(model.inputs, names, strict=True)]

    def call(*tensors: Any) -> list[Any]:
        return list(rt.tf.nest.flatten(flat(list(tensors), training=False)))

    structure = getattr(model, "_outputs_struct", None)
    output_names = _structure_names(rt, structure, "output") if isinstance(structure, dict) else flat.output_names
    return _of_layers(rt, model, call, _with_shapes(rt, specs, input_shape, name), output_names)


def _trace_subclassed(rt: Runtime, model: Any, name: str, input_shape: InputShape | None) -> Traceable:
    """A model that is only code: traced with the shape it was called with, or with the one given."""
    recorded = getattr(model, "_build_shapes_dict", None)
    if input_shape is not None or not recorded:
        arguments: list[Any] = [
            (None, *_only_shape(input_shape, name, "the model is a subclass that was never called"))
        ]
    else:
        arguments = list(recorded.values())
    if len(arguments) > 1 or not _is_shape(arguments[0]):
        return _trace_exported(rt, model, name, arguments)
    sizes = tuple(arguments[0][1:])
    if None in sizes:
        raise ExportError(f"{name}: the sizes of its input are not known; pass --input-shape HEIGHT,WIDTH,CHANNELS.")
    result = _call_once(model, name, [np.zeros((1, *sizes), model.input_dtype)])

    def call(tensor: Any) -> list[Any]:
        return list(rt.tf.nest.flatten(model(tensor, training=False)))

    spec = rt.tf.TensorSpec((None, *sizes), model.input_dtype, name="input")
    return _of_layers(rt, model, call, [spec], _structure_names(rt, result, "output"))


def _trace_exported(rt: Runtime, model: Any, name: str, arguments: list[Any]) -> Traceable:
    """A subclassed model that takes structures of tensors: Keras' own export flattens them."""
    if not all(_is_known(shape) for shape in arguments):
        raise ExportError(f"{name}: the shapes of its inputs are not known; call the model once before it is exported.")
    examples = [
        rt.keras.tree.map_shape_structure(lambda shape: np.zeros((1, *shape[1:]), model.input_dtype), argument)
        for argument in arguments
    ]
    result = _call_once(model, name, examples)
    try:
        with tempfile.TemporaryDirectory() as folder, quiet(), layer_tokens(named_layers(model)):
            model.export(folder, format="tf_saved_model", verbose=False)
            loaded = rt.tf.saved_model.load(folder)
    except Exception as error:  # the model's own code
        raise ExportError(f"{name}: model.export, which its inputs need, failed: {first_line(error)}.") from error
    exported = trace_saved_model(rt, SavedModelSource(loaded, loaded.signatures["serving_default"], name))
    names = unique(_structure_names(rt, examples[0] if len(examples) == 1 else examples, "input"))
    specs = [
        rt.tf.TensorSpec(spec.shape, spec.dtype, name=name) for spec, name in zip(exported.specs, names, strict=True)
    ]

    def call(*tensors: Any) -> list[Any]:
        return list(rt.tf.nest.flatten(model(*rt.tf.nest.pack_sequence_as(examples, tensors), training=False)))

    return replace(
        _of_layers(rt, model, call, specs, _structure_names(rt, result, "output")),
        call=exported.call,
        tracing=contextlib.nullcontext,
        notes=("The model takes a structure of inputs, so it was converted by way of model.export.",),
        owner=loaded,
    )


def _of_layers(
    rt: Runtime, model: Any, call: Callable[..., Sequence[Any]], specs: Sequence[Any], output_names: Sequence[str]
) -> Traceable:
    """What all models with layers have in common."""
    layers = named_layers(model)

    def layer(name: str) -> str | None:
        index = layer_of(name)
        return None if index is None else layers[index].name

    return Traceable(
        specs=tuple(specs),
        output_names=tuple(unique(output_names, taken=[spec.name for spec in specs])),
        call=call,
        reference=_reference(rt, call),
        tracing=lambda: layer_tokens(layers),
        layers=tuple(layers),
        kernels=tuple(_layer_kernels(layers)),
        layer_of=layer,
        weight_bytes=_bytes(rt, model.weights),
    )


def _call_once(model: Any, name: str, arguments: Sequence[Any]) -> Any:
    """Call a subclassed model, which creates its weights and tells what it returns."""
    try:
        with quiet():
            return model(*arguments, training=False)
    except Exception as error:  # the model's own code
        raise ExportError(
            f"{name}: calling the model failed with {type(error).__name__}: {first_line(error)}; if it takes several "
            "arguments, wrap it in a functional keras.Model(inputs, outputs)."
        ) from error


def _layer_kernels(layers: Iterable[NamedLayer]) -> list[Kernel]:
    kernels = []
    for entry in layers:
        for role in _KERNEL_ROLES:
            weight = getattr(entry.layer, role, None)
            if weight is None or not 2 <= len(weight.shape) <= 5:
                continue
            kind = type(entry.layer).__name__
            value = np.asarray(weight)
            if value.ndim > 2 and kind.startswith("Depthwise"):
                kernels.append(Kernel(entry.name, role, onnx_layout(value, "depthwise_kernel"), "Conv"))
            else:
                kernels.append(_kernel(entry.name, role, value, transposed="Transpose" in kind))
    return kernels


def _kernel(layer: str | None, role: str, value: NDArray[Any], *, transposed: bool = False) -> Kernel:
    if value.ndim == 2:
        return Kernel(layer, role, value, "MatMul")
    return Kernel(layer, role, onnx_layout(value, role), "ConvTranspose" if transposed else "Conv")


# SavedModels


def _in_call_order(names: Iterable[str]) -> list[str]:
    """Names by the alphabet, as TensorFlow orders them; those that Keras numbered by their numbers."""
    names = sorted(names)
    if all(_NUMBERED.fullmatch(name) for name in names):
        names.sort(key=lambda name: [int(part) for part in name.split("_")[1:]])
    return names


def _variable_layer(variable: Any) -> str | None:
    """The layer that a variable called `block/conv1/kernel:0` belongs to."""
    parts = variable.name.split(":")[0].split("/")
    return parts[-2] if len(parts) > 1 else None


def _variable_kernels(variables: Sequence[Any], layers: Set[str]) -> list[Kernel]:
    kernels = []
    for variable in variables:
        role, value = variable.name.split(":")[0].split("/")[-1], variable.numpy()
        if role not in _KERNEL_ROLES or not 2 <= value.ndim <= 5:
            continue
        name = _variable_layer(variable)
        layer = name if name in layers else None
        kernels.append(_kernel(layer, role, value))
        if role == "kernel" and value.ndim > 2:  # what kind of layer it is, only the graph knows
            kernels.append(_kernel(layer, role, value, transposed=True))
            kernels.append(Kernel(layer, role, onnx_layout(value, "depthwise_kernel"), "Conv"))
    return kernels


def _scopes(signature: Any) -> list[str]:
    """Names of all nodes in a signature's graph and in the functions that it calls."""
    graph = signature.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return [node.name for node in nodes]


class _ScopeNamer:
    """Reads the layer off a TensorFlow scope such as `StatefulPartitionedCall/model_1/conv1_1/convolution`.

    Exporting may add `_1` to every scope; it did if the layers of the variables are not there without it.

    Attributes:
        layers: those of the given layers that occur in scopes; other variables are not named after their layer.
    """

    def __init__(self, scopes: Sequence[str], layers: Set[str]) -> None:
        inside = {part for scope in scopes for part in _inner_scopes(scope)}
        self._numbered = not layers <= inside
        self.layers = layers & {self._plain(part) for part in inside}

    def _plain(self, part: str) -> str:
        return re.sub(r"_\d+$", "", part) if self._numbered else part

    def __call__(self, name: str) -> str | None:
        inside = [self._plain(part) for part in _inner_scopes(name)]
        known = [part for part in inside if part in self.layers]
        return known[-1] if known else next(iter(inside), None)


def _inner_scopes(name: str) -> list[str]:
    """The scopes of a name without those of calls and of the model, and without the operation."""
    parts = name.split(":")[0].split("/")
    return [part for part in parts if not part.startswith("StatefulPartitionedCall")][1:-1]


# Shapes and names


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list | tuple) and all(size is None or isinstance(size, int) for size in shape)


def _is_known(structure: Any) -> bool:
    if _is_shape(structure):
        return None not in structure[1:]
    return all(_is_known(part) for part in (structure.values() if isinstance(structure, dict) else structure))


def _only_shape(input_shape: InputShape | None, name: str, why: str) -> tuple[int, ...]:
    if input_shape is None:
        raise ExportError(f"{name}: {why}; pass it with --input-shape HEIGHT,WIDTH,CHANNELS.")
    if isinstance(input_shape, Mapping):
        if len(input_shape) != 1:
            raise ExportError(f"{name}: {why}; pass the shape of its one input with --input-shape.")
        return tuple(next(iter(input_shape.values())))
    return tuple(input_shape)


def _with_shapes(rt: Runtime, specs: Sequence[Any], input_shape: InputShape | None, name: str) -> list[Any]:
    """Put static sizes into the specs; the batch stays as it is."""
    if input_shape is None:
        return list(specs)
    names = [spec.name for spec in specs]
    if isinstance(input_shape, Mapping):
        given = dict(input_shape)
    elif len(specs) == 1:
        given = {names[0]: input_shape}
    else:
        raise ExportError(f"{name}: has several inputs ({', '.join(names)}); say which: --input-shape NAME=H,W,C.")
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ExportError(f"{name}: has no input {unknown[0]!r}; its inputs are {', '.join(names)}.")
    out = []
    for spec in specs:
        if spec.name in given:
            shape = (spec.shape[0], *given[spec.name])
            if not spec.shape.is_compatible_with(shape):
                wanted = ",".join(map(str, given[spec.name]))
                raise ExportError(f"{name}: input {spec.name!r} is {spec.shape} with the batch; {wanted} does not fit.")
            spec = rt.tf.TensorSpec(shape, spec.dtype, name=spec.name)
        out.append(spec)
    return out


def _structure_names(rt: Runtime, structure: Any, default: str) -> list[str]:
    """A name for each tensor of a structure: its key, or the default and its number."""
    names = []
    for path, _ in rt.keras.tree.flatten_with_path(structure):
        keys = [str(part) for part in path]
        names.append("_".join(keys if keys and not keys[0].isdigit() else [default, *keys]))
    return names


def _bytes(rt: Runtime, variables: Iterable[Any]) -> int:
    return sum(int(np.prod(v.shape, dtype=np.int64)) * int(rt.tf.as_dtype(v.dtype).size) for v in variables)


def _reference(rt: Runtime, call: Callable[..., Sequence[Any]]) -> Callable[[Arrays], list[NDArray[Any]]]:
    def reference(arrays: Arrays) -> list[NDArray[Any]]:
        with quiet():
            return [np.asarray(out) for out in call(*(rt.tf.constant(array) for array in arrays))]

    return reference
