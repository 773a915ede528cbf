"""Shapes of every value by ONNX shape inference, else by one run in ONNX Runtime."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import (
    ASSUMED_SIZES,
    ResolvedShapes,
    Shape,
    concrete_inputs,
    holds_map,
    inlined,
    named_after,
    origin,
    other_sizes,
    quiet,
    runtime_inputs,
    runtime_source,
    subgraphs_of,
)
from onnx_pointwise.runtime.machine import machine
from onnx_pointwise.runtime.providers import open_session
from onnx_pointwise.runtime.runtime_errors import sentence

# More numbers in one value than any machine holds; where it is known what this one holds, that counts.
_MOST_NUMBERS = 2**44
# What follows from no input is computed again by every session that is opened. Activations of large images take as many
# bytes and more, so those are let pass; but no exporter leaves so much to be made of so little, as of archives.
_MOST_MADE_BYTES, _MOST_MADE_RATIO = 2**31, 200
_USUAL_BYTES = 4


class _NotAtTheseError(Exception):
    """The model does not run at the chosen input shapes; the text is the runtime's reason alone."""


def resolve(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> ResolvedShapes:
    """Find the shape of every value, by ONNX shape inference, else by one run in ONNX Runtime.

    Args:
        model: The model; it is left as it is.
        input_shapes: Shapes by input name; see ``concrete_inputs``.

    Returns:
        The shapes. Values that even a run does not reach (inside control flow) stay unknown. Where a size has to be
        assumed, it is the first of ``ASSUMED_SIZES`` at which the model runs.

    Raises:
        InputError: ``input_shapes`` does not fit the model.
        ModelError: The shapes need a run, and the model does not run at the chosen input shapes.
    """
    inputs, assumed = concrete_inputs(model, input_shapes)
    try:
        return _resolve_at(model, inputs, assumed)
    except (ModelError, _NotAtTheseError) as error:
        for size in ASSUMED_SIZES[1:] if assumed else ():
            with contextlib.suppress(ModelError, _NotAtTheseError):
                return _resolve_at(model, concrete_inputs(model, input_shapes, size=size)[0], assumed)
        if isinstance(error, _NotAtTheseError):
            raise ModelError(
                f"{origin(model) or 'the model in memory'}: the model does not run with input shapes "
                f"{_written(inputs)} ({error}){_way_out(model, inputs)}."
            ) from error.__cause__
        raise


def input_sizes(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Shape]:
    """Choose a concrete shape for every input, one at which the model runs where a size has to be assumed.

    Args:
        model: The model.
        input_shapes: Shapes by input name; see ``concrete_inputs``.

    Raises:
        InputError: ``input_shapes`` does not fit the model.
        ModelError: It runs at no size that is assumed.
    """
    shapes, assumed = concrete_inputs(model, input_shapes)
    return dict(resolve(model, input_shapes).inputs) if assumed else shapes


def _resolve_at(model: ir.Model, inputs: Mapping[str, Shape], assumed: tuple[str, ...]) -> ResolvedShapes:
    copy = named_after(inlined(model.clone(), where=origin(model) or "the model in memory"), model)
    _forget_shapes(copy, inputs)
    # What inference cannot do is left to the run, so its warnings would only alarm.
    with quiet("onnx_ir.passes.common.shape_inference"):
        _infer(copy)
    shapes = _known(copy)
    _require_bounded(model, shapes, inputs)
    _require_little_made(copy, shapes, origin(model) or "the model in memory")
    missing = [value for value in _convolution_ends(copy.graph) if value.name not in shapes]
    if missing:
        shapes.update(_run_for_shapes(copy, missing, inputs, origin(model) or "the model in memory"))
    return ResolvedShapes(copy, shapes, inputs, assumed)


def _infer(model: ir.Model) -> None:
    """Infer shapes and types, in place, as far as that goes."""
    infer = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
    if not any(holds_map(value) for value in model.graph.outputs):
        infer(model)
        return
    # onnx_ir cannot take back what is inferred of maps: the rest is inferred without them.
    rest = model.clone()
    kept = [value for value in rest.graph.outputs if not holds_map(value)]
    made = [value.producer() for value in rest.graph.outputs if holds_map(value)]
    kept += [value for node in made if node is not None for value in node.inputs if value is not None]
    rest.graph.outputs[:] = [value for value in dict.fromkeys(kept) if value.producer() is not None]
    RemoveUnusedNodesPass()(rest)
    infer(rest)
    values = ir.convenience.create_value_mapping(rest.graph)
    for graph in model.graphs():
        for value in (output for node in graph for output in node.outputs):
            if (found := values.get(str(value.name))) is not None:
                value.shape, value.type = found.shape, found.type


def _forget_shapes(model: ir.Model, inputs: Mapping[str, Shape]) -> None:
    """Fix the input shapes; stored shapes of other values may hold for another size, so inference starts afresh."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None
    for value in runtime_inputs(model):
        if str(value.name) in inputs:
            value.shape = ir.Shape(inputs[str(value.name)])


def _require_bounded(model: ir.Model, shapes: Mapping[str, Shape], inputs: Mapping[str, Shape]) -> None:
    """Refuse sizes that this machine does not hold: more numbers than it has bytes."""
    most = min(_MOST_NUMBERS, machine().memory or _MOST_NUMBERS)
    for name, shape in {**inputs, **shapes}.items():
        if math.prod(shape) > most:
            way_out = (
                "name smaller ones with --input-shape"
                if other_sizes(model, inputs)
                else "export the model for smaller ones"
            )
            raise ModelError(
                f"{origin(model) or 'the model in memory'}: '{name}' would hold {'x'.join(map(str, shape))} numbers "
                f"with input shapes {_written(inputs)}; {way_out}."
            )


def _require_little_made(model: ir.Model, shapes: Mapping[str, Shape], model_name: str) -> None:
    """Refuse values of gigabytes that a few stored numbers are blown up to, whatever the inputs are."""
    for value, stored in _from_no_input(model):
        shape = shapes.get(str(value.name), ())
        known = value.dtype not in (None, ir.DataType.UNDEFINED, ir.DataType.STRING)
        size = math.prod(shape) * (value.dtype.itemsize if known and value.dtype else _USUAL_BYTES)
        if size > _MOST_MADE_BYTES and math.prod(shape) > _MOST_MADE_RATIO * stored:
            raise ModelError(
                f"{model_name}: '{value.name}' would hold {'x'.join(map(str, shape))} numbers ({size / 2**30:.3g} GiB) "
                f"whatever the inputs are, made of {stored} stored ones; store what is made of it in its place."
            )


def _from_no_input(model: ir.Model) -> Iterator[tuple[ir.Value, int]]:
    """Yield what nodes make of stored tensors alone, or of nothing, and how many stored numbers are behind it."""
    behind: dict[ir.Value, int] = {}
    for graph in model.graphs():
        behind.update(
            {value: value.const_value.size for value in graph.initializers.values() if value.const_value is not None}
        )
        for node in graph:
            given = [value for value in node.inputs if value is not None]
            if any(value not in behind for value in given) or list(subgraphs_of(node)):
                continue
            held = [item for item in node.attributes.values() if item.type == ir.AttributeType.TENSOR]
            stored = sum(behind[value] for value in given)
            stored += sum(item.as_tensor().size for item in held if not item.is_ref())
            # What is taken twice counts twice, which may double it from node to node.
            behind.update(dict.fromkeys(node.outputs, min(stored, _MOST_NUMBERS)))
            yield from ((value, stored) for value in node.outputs)


def _known(model: ir.Model) -> dict[str, Shape]:
    known: dict[str, Shape] = {}
    ambiguous: set[str] = set()
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
        for value in values:
            if value.name and value.shape is not None and value.shape.is_static():
                shape = tuple(value.shape.numpy())
                if known.setdefault(value.name, shape) != shape:
                    ambiguous.add(value.name)  # branches of one If may use a name twice
    return {name: shape for name, shape in known.items() if name not in ambiguous}


def _convolution_ends(graph: ir.Graph) -> list[ir.Value]:
    ends: dict[str, ir.Value] = {}
    for node in graph:
        if "Conv" in node.op_type:
            for value in (node.inputs[0], node.outputs[0]):
                if value is not None and value.name:
                    ends[value.name] = value
    return list(ends.values())


def _written(inputs: Mapping[str, Shape]) -> str:
    """Write shapes as ``--input-shape`` takes them."""
    return " ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in inputs.items())


def _way_out(model: ir.Model, inputs: Mapping[str, Shape]) -> str:
    """Name other sizes, where the model leaves them open and they may be why it does not run."""
    others = other_sizes(model, inputs)
    if not others:
        return ""
    try:
        with runtime_source(model.clone(), in_place=True) as source:
            open_session(source)
    except Exception:  # whatever the runtime raises: what it does not even load runs at no size
        return ""
    return f"; name others with --input-shape {_written(others)}"


def _run_for_shapes(
    model: ir.Model, values: Sequence[ir.Value], inputs: Mapping[str, Shape], model_name: str
) -> dict[str, Shape]:
    probe = model.clone()
    by_name = ir.convenience.create_value_mapping(probe.graph)
    wanted = [str(value.name) for value in values]
    probe.graph.outputs.extend(by_name[name] for name in wanted if not by_name[name].is_graph_output())
    feeds = {}
    for value in runtime_inputs(probe):
        name = str(value.name)
        if value.dtype in (None, ir.DataType.UNDEFINED):
            raise ModelError(f"{model_name}: input '{name}' declares no element type; the file is damaged.")
        if name not in inputs:
            raise ModelError(f"Input '{name}' declares no shape; give one with --input-shape {name}:1,...")
        feeds[name] = np.zeros(inputs[name], value.dtype.numpy())
    with runtime_source(probe, in_place=True) as source:
        try:
            results = open_session(source).run(wanted, feeds)
        except Exception as error:  # the runtime's own exception types derive from Exception only
            reason = str(error).partition("cannot load the model: ")[2].rstrip(".") or sentence(error)
            raise _NotAtTheseError(reason) from error
    return {name: tuple(result.shape) for name, result in zip(wanted, results, strict=True)}
