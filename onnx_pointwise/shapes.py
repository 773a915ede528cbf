"""Static shapes of every value of a model, for one concrete choice of input shapes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.model_io import runtime_source
from onnx_pointwise.providers import open_session

Shape = tuple[int, ...]

#: Height, width or length where a model leaves it open and the caller names none.
ASSUMED_SIZE = 224


@dataclass(frozen=True)
class ResolvedShapes:
    """Shapes of a model's values at one concrete input shape.

    Attributes:
        model: A copy of the model with its local functions inlined; weights are shared with the original.
        shapes: Value name to shape, for every value whose shape is known.
        inputs: Input name to the concrete shape used.
        assumed: The names of the inputs whose height, width or length had to be assumed.
    """

    model: ir.Model
    shapes: Mapping[str, Shape]
    inputs: Mapping[str, Shape]
    assumed: tuple[str, ...]


def runtime_inputs(model: ir.Model) -> list[ir.Value]:
    """List the inputs a caller must feed: graph inputs that are not initializers."""
    return [value for value in model.graph.inputs if value.const_value is None]


def concrete_inputs(
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, Shape], tuple[str, ...]]:
    """Choose a concrete shape for every input.

    Args:
        model: The model.
        input_shapes: Shapes by input name, dynamic dimensions filled in.

    Returns:
        Shapes by input name: those given, else the declared ones with 1 for an open batch dimension and
        ``ASSUMED_SIZE`` for other open dimensions; and the names of the inputs where the latter was assumed.

    Raises:
        InputError: A given name is no input, or a given shape contradicts the declared one.
    """
    given = dict(input_shapes or {})
    inputs = runtime_inputs(model)
    unknown = sorted(set(given) - {str(value.name) for value in inputs})
    if unknown:
        names = ", ".join(f"'{value.name}'" for value in inputs)
        raise InputError(f"The model has no input '{unknown[0]}'; its inputs are {names}.")
    chosen: dict[str, Shape] = {}
    assumed: list[str] = []
    for value in inputs:
        name, declared = str(value.name), _declared(value)
        if name in given:
            chosen[name] = _require_fit(name, tuple(given[name]), declared)
            continue
        if declared is None:
            continue
        if any(size is None for size in declared[1:]):
            assumed.append(name)
        filled = [1 if axis == 0 else ASSUMED_SIZE for axis in range(len(declared))]
        chosen[name] = tuple(fill if size is None else size for size, fill in zip(declared, filled, strict=True))
    return chosen, tuple(assumed)


def _declared(value: ir.Value) -> tuple[int | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _require_fit(name: str, shape: Shape, declared: tuple[int | None, ...] | None) -> Shape:
    fits = declared is None or (
        len(shape) == len(declared)
        and all(want is None or got == want for got, want in zip(shape, declared, strict=True))
    )
    if not fits or any(size < 1 for size in shape):
        want = "any shape" if declared is None else "x".join("?" if size is None else str(size) for size in declared)
        raise InputError(f"Input '{name}' is declared as {want}, but {'x'.join(map(str, shape))} was given.")
    return shape


def resolve(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None) -> ResolvedShapes:
    """Find the shape of every value, by ONNX shape inference, else by one run in ONNX Runtime.

    Args:
        model: The model; it is left as it is.
        input_shapes: Shapes by input name; see ``concrete_inputs``.

    Returns:
        The shapes. Values that even a run does not reach (inside control flow) stay unknown.

    Raises:
        InputError: ``input_shapes`` does not fit the model.
        ModelError: The shapes need a run, and the model does not run at the chosen input shapes.
    """
    inputs, assumed = concrete_inputs(model, input_shapes)
    copy = model.clone()
    if copy.functions:
        copy = InlinePass()(copy).model
    _forget_shapes(copy, inputs)
    _infer_quietly(copy)
    shapes = dict(_known(copy))
    missing = [value for value in _convolution_ends(copy.graph) if value.name not in shapes]
    if missing:
        shapes.update(_run_for_shapes(copy, missing, inputs))
    return ResolvedShapes(copy, shapes, inputs, assumed)


def _forget_shapes(model: ir.Model, inputs: Mapping[str, Shape]) -> None:
    """Fix the input shapes; stored shapes of other values may hold for another size, so inference starts afresh."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None
    for value in runtime_inputs(model):
        if str(value.name) in inputs:
            value.shape = ir.Shape(inputs[str(value.name)])


def _infer_quietly(model: ir.Model) -> None:
    """Run ONNX shape inference; what it cannot do is left to the run, so its warnings would only alarm."""
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        logger.setLevel(level)


def _known(model: ir.Model) -> Iterable[tuple[str, Shape]]:
    for graph in model.graphs():
        values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
        for value in values:
            if value.name and value.shape is not None and value.shape.is_static():
                yield value.name, value.shape.numpy()


def _convolution_ends(graph: ir.Graph) -> list[ir.Value]:
    ends: dict[str, ir.Value] = {}
    for node in graph:
        if "Conv" in node.op_type:
            for value in (node.inputs[0], node.outputs[0]):
                if value is not None and value.name:
                    ends[value.name] = value
    return list(ends.values())


def _run_for_shapes(model: ir.Model, values: Sequence[ir.Value], inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    probe = model.clone()
    by_name = ir.convenience.create_value_mapping(probe.graph)
    wanted = [str(value.name) for value in values]
    probe.graph.outputs.extend(by_name[name] for name in wanted if not by_name[name].is_graph_output())
    feeds = {}
    for value in runtime_inputs(probe):
        name = str(value.name)
        if name not in inputs or value.dtype is None:
            raise ModelError(f"Input '{name}' declares no shape; give one with --input-shape {name}:1,...")
        feeds[name] = np.zeros(inputs[name], value.dtype.numpy())
    # Declared output shapes would contradict the chosen sizes.
    for value in probe.graph.outputs:
        value.shape = None
    with runtime_source(probe) as source:
        session = open_session(source)
        try:
            results = session.run(wanted, feeds)
        except Exception as error:  # the runtime's own exception types derive from Exception only
            sizes = ", ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in inputs.items())
            raise ModelError(
                f"The model does not run with input shapes {sizes}; name others with --input-shape."
            ) from error
    return {name: tuple(result.shape) for name, result in zip(wanted, results, strict=True)}
