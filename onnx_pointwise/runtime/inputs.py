"""Example inputs of a model: what it declares, random ones, and a check of given ones."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import runtime_inputs

Array = NDArray[Any]

#: The name of an array that was given without one: it goes to the only input.
UNNAMED = ""

# Indices into whatever the network looks up must stay small; every table has at least two rows.
_INTEGER_LIMIT = 2


@dataclass(frozen=True)
class InputSpec:
    """What a model declares of one input.

    Attributes:
        name: Its name.
        dtype: Element type.
        shape: One entry a dimension: its size, the name of an open one, or None for an open one without a name. None
            where not even the rank is declared.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        """Give the declaration as a person writes it: ``x: float32[batch, 3, 224, 224]``."""
        sizes = "..." if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{sizes}]"


def input_specs(model: ir.Model) -> list[InputSpec]:
    """List what a model declares of the inputs that a caller must feed.

    Raises:
        InputError: An input is no tensor of numbers or booleans.
    """
    return [_spec(value) for value in runtime_inputs(model)]


def _spec(value: ir.Value) -> InputSpec:
    if value.dtype is None or value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise InputError(
            f"Input '{value.name}' is no tensor of numbers; such a model can be rewritten, but not run here."
        )
    shape: tuple[int | str | None, ...] | None = None
    if value.shape is not None:
        shape = tuple(size if isinstance(size, int) else size.value for size in value.shape)
    return InputSpec(str(value.name), np.dtype(value.dtype.numpy()), shape)


def random_inputs(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], *, seed: int = 0
) -> dict[str, Array]:
    """Draw inputs that depend on the seed, the input's name and its shape alone.

    Args:
        specs: The model's inputs.
        shapes: A concrete shape for each.
        seed: Seed of the generator.

    Returns:
        Floating-point inputs: standard normal. Integers: 0 or 1, which are valid indices everywhere. Booleans: even.

    Raises:
        InputError: The shape of an input is missing.
    """
    drawn: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in shapes:
            raise InputError(f"Input '{spec.name}' declares no shape; give one with --input-shape {spec.name}:1,...")
        generator = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
        shape = tuple(shapes[spec.name])
        if spec.dtype.kind in "iub":
            drawn[spec.name] = generator.integers(0, _INTEGER_LIMIT, shape).astype(spec.dtype)
        else:
            drawn[spec.name] = generator.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    return drawn


def require_inputs(specs: Sequence[InputSpec], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Check given inputs against what the model declares.

    Args:
        specs: The model's inputs.
        inputs: Input name to array.

    Returns:
        The arrays in the model's order, contiguous.

    Raises:
        InputError: A name is unknown or missing, or an array has another rank, size or element type than declared.
    """
    inputs = _named(specs, inputs)
    names = {spec.name for spec in specs}
    declared = "; ".join(map(str, specs)) or "none"
    for name in inputs:
        if name not in names:
            hint = f"; to take one array of a file for it, write FILE.npz:{name}" if len(specs) == 1 else ""
            raise InputError(f"The model has no input '{name}'; its inputs are {declared}{hint}.")
    for spec in specs:
        if spec.name not in inputs:
            raise InputError(f"Input '{spec.name}' is missing; the model's inputs are {declared}.")
    arrays = {spec.name: np.asarray(inputs[spec.name], order="C") for spec in specs}
    for spec in specs:
        _require_fit(spec, arrays[spec.name])
    return arrays


def _named(specs: Sequence[InputSpec], inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Give an array without a name to the only input.

    Raises:
        InputError: The model has several inputs.
    """
    if set(inputs) != {UNNAMED}:
        return inputs
    if len(specs) != 1:
        declared = "; ".join(map(str, specs)) or "none"
        raise InputError(f"One array was given, but the model's inputs are {declared}; give one for each, by name.")
    return {specs[0].name: inputs[UNNAMED]}


def split_inputs(specs: Sequence[InputSpec], inputs: Mapping[str, Array], *, limit: int) -> list[dict[str, Array]]:
    """Check given inputs as `require_inputs` does, and cut them along their first dimension into runs.

    Args:
        specs: The model's inputs.
        inputs: Input name to array, [N, ...]. Where the model fixes its batch size, N may be a multiple of it.
        limit: Largest batch of a run where the model leaves the batch size open.

    Raises:
        InputError: As for `require_inputs`, or the inputs hold different numbers of batches.
    """
    inputs = _named(specs, inputs)
    fixed = {spec.name: spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)}
    counts = {
        name: len(inputs[name]) // size
        for name, size in fixed.items()
        if name in inputs and inputs[name].ndim and len(inputs[name]) and len(inputs[name]) % size == 0
    }
    relaxed = [replace(spec, shape=(None, *(spec.shape or ())[1:])) if spec.name in counts else spec for spec in specs]
    arrays = require_inputs(relaxed, inputs)
    batched = {name: array for name, array in arrays.items() if array.ndim}
    lengths = {len(array) for array in batched.values()}
    pieces = next(iter(counts.values()), 1)
    if not counts and len(lengths) == 1:
        pieces = -(-max(lengths) // limit)
    if any(count != pieces for count in counts.values()) or (counts and any(length % pieces for length in lengths)):
        given = ", ".join(f"'{name}' {len(array)}" for name, array in batched.items())
        raise InputError(f"The inputs hold different numbers of items: {given}; give each as many.")
    parts = {name: np.array_split(array, pieces) for name, array in batched.items()}
    return [{name: parts[name][k] if name in parts else arrays[name] for name in arrays} for k in range(pieces)]


def _require_fit(spec: InputSpec, array: Array) -> None:
    given = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    if array.dtype != spec.dtype:
        raise InputError(
            f"Input '{spec.name}' is declared as {spec}, but {given} was given: convert it with "
            f".astype('{spec.dtype}')."
        )
    if spec.shape is None:
        return
    if len(spec.shape) != array.ndim:
        missing_batch = array.ndim + 1 == len(spec.shape)
        hint = "; the batch dimension is missing" if missing_batch else ""
        raise InputError(
            f"Input '{spec.name}' is declared as {spec}, but {given} was given: it needs {len(spec.shape)} "
            f"dimensions, not {array.ndim}{hint}."
        )
    for axis, (want, got) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if (isinstance(want, int) and want != got) or got < 1:
            raise InputError(
                f"Input '{spec.name}' is declared as {spec}, but {given} was given: dimension {axis} must be "
                f"{want if isinstance(want, int) else 'at least 1'}, not {got}."
            )


def feedable(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Check that ONNX Runtime's Python interface can take these arrays.

    Raises:
        InputError: An array is of a type it cannot take.
    """
    for name, array in inputs.items():
        if array.dtype == ml_dtypes.bfloat16:
            raise InputError(
                f"Input '{name}' is bfloat16, which ONNX Runtime takes from no NumPy array; cast it inside the model."
            )
    return dict(inputs)
