"""Which inputs a check gives to both networks: given or random ones, at several batch sizes and spatial sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_pointwise.examples import calibrate
from onnx_pointwise.graph import another_size, model_cost
from onnx_pointwise.runtime import Array, InputSpec, feedable, input_sizes, random_inputs, resolve, split_inputs

# Given inputs run in slices of this many items: activations of a whole data set would not fit into memory.
_SLICE = 16

# Synthetic images that are drawn where no inputs are given: at most, at least, and as many as take this many MACs.
_MOST_DRAWN, _FEWEST_DRAWN = 16, 4
_MACS_DRAWN = 5e10

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """One run's inputs; ``counts`` tells whether its outputs count towards the drift."""

    feeds: dict[str, Array]
    counts: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by input name."""
        return {name: tuple(array.shape) for name, array in self.feeds.items()}

    def lists(self) -> dict[str, list[int]]:
        """Give the shapes as JSON-ready values."""
        return {name: list(shape) for name, shape in self.shapes.items()}

    def __str__(self) -> str:
        """Give the shapes as ``--input-shape`` takes them."""
        return ", ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in self.shapes.items())


def batches_of(
    model: ir.Model,
    specs: Sequence[InputSpec],
    inputs: Mapping[str, Array] | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    batch_sizes: Sequence[int],
    seed: int,
) -> list[Batch]:
    """List the runs: given inputs first, else random ones; then other batch sizes and spatial sizes."""
    if inputs is not None:
        runs = [Batch(feedable(part), True) for part in split_inputs(specs, inputs, limit=_SLICE)]
        base = _single(specs, runs[0].feeds)
    else:
        base = input_sizes(model, input_shapes)
        runs = [Batch(feedable(random_inputs(specs, base, seed=seed)), True)]
    seen = [run.shapes for run in runs]
    for size in batch_sizes:
        _add(runs, seen, specs, _with_batch(specs, base, size), seed, counts=inputs is None)
    for shapes in _other_sizes(specs, base):
        _add(runs, seen, specs, shapes, seed, counts=False)
    return runs


def images_for(model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None, seed: int) -> dict[str, Array] | None:
    """Draw synthetic images, in the value range that the network expects; None for a network that takes none.

    Answers to random numbers say little of a network that was trained on images: what it sees nowhere else decides.
    """
    shapes = resolve(model, input_shapes)
    fixed = [shape[0] for shape in shapes.inputs.values() if shape]
    count = int(np.clip(_MACS_DRAWN / max(1, model_cost(model, shapes).macs), _FEWEST_DRAWN, _MOST_DRAWN))
    whole = max(fixed, default=1)  # the batch that the model fixes, or 1
    return dict(calibrate(model, "auto", shapes, limit=-(-count // whole) * whole, seed=seed).inputs) or None


def _add(
    runs: list[Batch],
    seen: list[dict[str, tuple[int, ...]]],
    specs: Sequence[InputSpec],
    shapes: Shapes,
    seed: int,
    *,
    counts: bool,
) -> None:
    if dict(shapes) not in seen:
        seen.append(dict(shapes))
        runs.append(Batch(feedable(random_inputs(specs, shapes, seed=seed)), counts))


def is_open(spec: InputSpec, axis: int) -> bool:
    """Tell whether a model leaves a dimension of an input open."""
    return spec.shape is None or not isinstance(spec.shape[axis], int)


def other_inputs(specs: Sequence[InputSpec], batch: Batch, *, given: bool) -> str:
    """Name other inputs that may run where these do not, as the end of a sentence; empty where none can be had.

    Args:
        specs: What the network declares.
        batch: The inputs that it does not run on.
        given: Whether the caller gave them; else they were drawn.
    """
    others = {spec.name: _another(spec, batch.shapes[spec.name]) for spec in specs}
    sizes = {name: shape for name, shape in others.items() if shape != batch.shapes[name]}
    if given:
        return "; give some of other sizes with --inputs" if sizes else ""
    written = " ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in sizes.items())
    ways = [f"name others with --input-shape {written}"] if sizes else []
    # Sizes below 1 are none that anybody could give.
    if not any(isinstance(size, int) and size < 1 for spec in specs for size in spec.shape or ()):
        ways.append("give inputs that it was made for with --inputs")
    return f"; {', or '.join(ways)}" if ways else ""


def _another(spec: InputSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Another size in the dimensions beside the batch that a network leaves open."""
    return another_size(shape, [axis for axis in range(1, len(shape)) if is_open(spec, axis)])


def _single(specs: Sequence[InputSpec], given: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes of one item of given inputs, or of the batch that the model fixes."""
    shapes = {}
    for spec in specs:
        shape = given[spec.name].shape
        if shape:
            first = spec.shape[0] if spec.shape else None
            shape = (first if isinstance(first, int) else 1, *shape[1:])
        shapes[spec.name] = tuple(shape)
    return shapes


def _with_batch(specs: Sequence[InputSpec], base: Shapes, size: int) -> dict[str, tuple[int, ...]]:
    """Set the first dimension of every input that leaves it open."""
    return {
        spec.name: (size, *base[spec.name][1:]) if base[spec.name] and is_open(spec, 0) else base[spec.name]
        for spec in specs
    }


def _other_sizes(specs: Sequence[InputSpec], base: Shapes) -> list[dict[str, tuple[int, ...]]]:
    """Vary open dimensions other than the batch: an uneven pair of round sizes, and odd sizes.

    Dimensions of the same name get the same size. Round sizes are multiples of 32, which networks that halve their
    input five times accept; all are below the base, so that they cost less.
    """
    trials = []
    for pick in (_round_size, _odd_size):
        names: dict[str, int] = {}
        shapes = {}
        for spec in specs:
            shape = list(base[spec.name])
            for axis in range(1, len(shape)):
                if spec.shape is not None and is_open(spec, axis):
                    key = str(spec.shape[axis] or f"{spec.name} {axis}")
                    shape[axis] = names.setdefault(key, pick(shape[axis], len(names)))
            shapes[spec.name] = tuple(shape)
        if names:
            trials.append(_with_batch(specs, shapes, 1))
    return trials


def _round_size(size: int, index: int) -> int:
    share = (1 / 2, 3 / 4)[index % 2]
    return max(32, round(size * share / 32) * 32) if size >= 64 else max(1, round(size * share))


def _odd_size(size: int, index: int) -> int:
    return max(1, round(size * (3 / 5, 2 / 5)[index % 2]) | 1)


def first_item(specs: Sequence[InputSpec], batch: Batch) -> dict[str, Array]:
    """Take the first item of a batch, or all of it where the model fixes the batch size."""
    return {
        spec.name: np.ascontiguousarray(array[:1]) if array.ndim and is_open(spec, 0) else array
        for spec, array in ((spec, batch.feeds[spec.name]) for spec in specs)
    }
