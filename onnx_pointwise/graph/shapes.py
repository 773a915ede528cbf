"""Static shapes of every value of a model, for one concrete choice of input shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_pointwise.errors import InputError

Shape = tuple[int, ...]

#: Height, width or length where a model leaves it open and the caller names none.
ASSUMED_SIZE = 224
#: What is tried in its place where the network does not run at it: multiples of 64, the sizes of other networks.
ASSUMED_SIZES = (ASSUMED_SIZE, 256, 320, 192, 128, 64, 512)

# Channels of images and the like are left alone; networks that halve their input six times take multiples of this.
_FEW, _STEP = 4, 64


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
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None, *, size: int = ASSUMED_SIZE
) -> tuple[dict[str, Shape], tuple[str, ...]]:
    """Choose a concrete shape for every input.

    Args:
        model: The model.
        input_shapes: Shapes by input name, dynamic dimensions filled in.
        size: What to assume for open dimensions.

    Returns:
        Shapes by input name: those given, else the declared ones with 1 for an open batch dimension and ``size`` for
        other open dimensions, unless a given shape says how large a dimension of that name is; and the names of the
        inputs where ``size`` was assumed.

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
    named: dict[str, set[int]] = {}
    for value in inputs:
        if (name := str(value.name)) in given:
            chosen[name] = _require_fit(value, tuple(given[name]))
            for dim, known in zip(_declared(value) or (), chosen[name], strict=False):
                named.setdefault(str(dim), set()).add(known)
    # Names bind no one: some exporters call every open dimension the same.
    sizes = {dim: found.pop() for dim, found in named.items() if len(found) == 1}
    assumed: list[str] = []
    for value in inputs:
        name, declared = str(value.name), _declared(value)
        if name in given or declared is None:
            continue
        chosen[name] = tuple(
            dim if isinstance(dim, int) else sizes.get(str(dim), size if axis else 1)
            for axis, dim in enumerate(declared)
        )
        if any(not isinstance(dim, int) and str(dim) not in sizes for dim in declared[1:]):
            assumed.append(name)
    return chosen, tuple(assumed)


def other_sizes(model: ir.Model, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Give shapes with other sizes, as an example of what a caller may name in place of those chosen.

    Args:
        model: The model.
        inputs: The shapes chosen, by input name.

    Returns:
        Shapes by input name, of the inputs that leave a dimension beside the batch open; what is declared stays.
    """
    others: dict[str, Shape] = {}
    for value in runtime_inputs(model):
        name = str(value.name)
        shape = inputs.get(name, ())
        declared = _declared(value) or (None,) * len(shape)
        others[name] = another_size(shape, [axis for axis, dim in enumerate(declared) if axis and type(dim) is not int])
    return {name: shape for name, shape in others.items() if shape != inputs.get(name, ())}


def another_size(shape: Shape, axes: Collection[int] | None = None) -> Shape:
    """Give a shape with another size, as an example of what a caller may name instead.

    A size that may have been assumed gives way to the next one that may be; others are raised to multiples of 64.

    Args:
        shape: The shape.
        axes: Which dimensions may change; all but the first if None.
    """
    may = range(1, len(shape)) if axes is None else axes
    for index, size in enumerate(ASSUMED_SIZES):
        if any(shape[axis] == size for axis in may):
            other = ASSUMED_SIZES[(index + 1) % len(ASSUMED_SIZES)]
            return tuple(other if dim == size and axis in may else dim for axis, dim in enumerate(shape))
    return tuple((dim // _STEP + 1) * _STEP if dim > _FEW and axis in may else dim for axis, dim in enumerate(shape))


def _declared(value: ir.Value) -> tuple[int | str | None, ...] | None:
    """Declared dimensions: a size, or the name of an open one, if it has any; some exporters write -1 or 0 for open."""
    if value.shape is None:
        return None
    return tuple((dim if dim > 0 else None) if isinstance(dim, int) else dim.value for dim in value.shape)


def _require_fit(value: ir.Value, shape: Shape) -> Shape:
    declared = _declared(value)
    fits = all(size >= 1 for size in shape) and (
        declared is None
        or (
            len(shape) == len(declared)
            and all(not isinstance(dim, int) or dim == size for dim, size in zip(declared, shape, strict=True))
        )
    )
    if not fits:
        wanted = "any shape" if declared is None else "x".join("?" if dim is None else str(dim) for dim in declared)
        raise InputError(f"Input '{value.name}' is declared as {wanted}, but {'x'.join(map(str, shape))} was given.")
    return shape
