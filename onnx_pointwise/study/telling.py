"""What example inputs can tell at all: how many of them differ, and where the network answers alike to all of them.

An error that no example shows is not small: where the answers do not vary, nothing can be learned of what errors do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import ResolvedShapes
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study.collect import declared_batch
from onnx_pointwise.study.heads import Gauge, Heads

Array = NDArray[Any]

#: Examples that would do for most networks: fewer make what errors do to the answers uncertain.
ENOUGH = 24
#: Of fewer examples than this, none are held back; copies do not count then.
FEW = 8
#: The same of batches whose size is built into a network.
FEW_BATCHES = 3
# Examples that are run, and how many at most where the first do not vary; shares of their energy from which on values
# vary: from example to example beyond the rounding of float32, and from place to place.
_FIRST, _RUN = 4, 16
_AMONG, _WITHIN = 1e-10, 1e-6
# Examples are the same where they differ by no more than this share of their size, told from so many products.
_ALIKE, _VECTORS = 1e-5, 3
# Places that one example must answer at to tell something alone.
_PLACES = 16
# Channels of an input whose first axis behind the examples, or whose last one, is that of the channels, at most.
_CHANNELS = 4


@dataclass(frozen=True)
class Telling:
    """What examples can tell.

    Attributes:
        count: How many there are.
        distinct: How many of them differ, by more than rounding.
        different: Which of them to look at: each once, or all where the model fixes how many it takes at a time.
        blank: Whether each of them is one number throughout, or one for each channel.
        silent: Values at which the network answers alike to all of them, or gives NaN.
        answers: How many values it answers at.
        batch: How many of them the model takes at a time; 1 where it leaves that open.
    """

    count: int
    distinct: int
    different: tuple[int, ...]
    blank: bool
    silent: tuple[str, ...]
    answers: int
    batch: int = 1

    @property
    def few(self) -> bool:
        """Whether they are too few to hold any back."""
        return self.distinct < FEW or (self.batch > 1 and self.count // self.batch < FEW_BATCHES)

    @property
    def useless(self) -> bool:
        """Whether nothing can be learned from them."""
        return self.blank or len(self.silent) == self.answers

    def warnings(self) -> list[str]:
        """What a person should know of them, in sentences."""
        would = f"{ENOUGH} different ones would do."
        alone = "plan and weights come from the kernels alone"
        if self.count == 1:
            which, verb = "The only example input", "gives answers that do not vary"
        elif self.distinct == 1:
            which, verb = f"All {self.count} example inputs are the same, and one", "gives answers that do not vary"
        else:
            which, verb = f"Each of the {self.count} example inputs", "gives the same answers, or none that are numbers"
        if self.blank:
            return [f"{which} is blank, which tells nothing: {alone}. {would}"]
        if self.useless:
            return [f"{which} {verb}, so nothing shows what errors do: {alone}. {would}"]
        said = []
        if self.few and self.distinct >= FEW:
            batches = "one batch" if self.count // self.batch == 1 else f"{self.count // self.batch} batches"
            said.append(
                f"The {self.count} example inputs are {batches} of the {self.batch} that the model takes at a time: "
                f"too few to hold one back, to refit with or to predict drift from. {FEW_BATCHES} would do."
            )
        elif self.few:
            differ = "" if self.distinct == self.count else f"; the other {self.count - self.distinct} are copies"
            said.append(
                f"Only {self.distinct} different example input{'s' if self.distinct > 1 else ''}{differ}: too few to "
                f"hold any back, to refit with or to predict drift from. {ENOUGH} would do."
            )
        if self.silent:
            said.append(
                f"The examples show nothing of what errors do at {', '.join(self.silent)}, which does not vary over "
                "them: convolutions that matter only there are planned from their kernels."
            )
        return said


def telling(
    model: ir.Model, shapes: ResolvedShapes, heads: Heads, inputs: Mapping[str, Array], *, threads: int | None = None
) -> Telling:
    """Find out what example inputs can tell of a network.

    Args:
        model: The model as it was read.
        shapes: Its shapes.
        heads: Where it answers.
        inputs: Example inputs by name, [N, ...].
        threads: Threads of the runtime; its own choice if None.

    Raises:
        ModelError: The model does not run on them.
    """
    count = len(next(iter(inputs.values())))
    different = _different(inputs)
    batch = declared_batch(model) or 1
    piece = Piece(without_shapes(shapes.model), list(inputs), heads.names, threads=threads)
    if batch > 1:  # they go in as they came; one group alone may hold different ones
        starts = [batch * (index // batch) for index in different if batch * (index // batch + 1) <= count]
        groups = [list(range(start, start + batch)) for start in dict.fromkeys(starts)]
    else:
        groups = [[index] for index in different]
    runs: dict[int, list[Array]] = {}
    silent: list[str] = []
    for most in (_FIRST, _RUN):
        for at in np.unique(np.linspace(0, len(groups) - 1, most).round().astype(int)):
            if at not in runs:
                runs[at] = piece.run({name: array[groups[at]] for name, array in inputs.items()})
        found = [runs[at] for at in sorted(runs)]
        silent = [g.value for index, g in enumerate(heads.gauges) if not _varies([run[index] for run in found], g)]
        if not silent:
            break
    kept = tuple(different) if batch == 1 else tuple(range(count))
    return Telling(count, len(different), kept, _blank(inputs), tuple(dict.fromkeys(silent)), len(heads.gauges), batch)


def _different(inputs: Mapping[str, Array]) -> list[int]:
    """The first of all examples that are the same but for rounding, of each lot of them.

    Those that are have the same products with a few random vectors, and others have not.
    """
    seen = [_products(array) for array in inputs.values()]
    products, sizes = (np.concatenate(column, axis=1) for column in zip(*seen, strict=True))
    different: list[int] = []
    for index in range(len(products)):
        near = _ALIKE * np.maximum(sizes[different], sizes[index])
        if not (np.abs(products[different] - products[index]) <= near).all(axis=1).any():
            different.append(index)
    return different


def _products(array: Array) -> tuple[Array, Array]:
    """Products of each example with random vectors, and their size, [N, n] each."""
    count = len(array) if array.ndim else 1
    rows = array.reshape(count, -1)
    drawn = np.random.default_rng(0).standard_normal((rows.shape[1], _VECTORS), dtype=np.float32)
    exact = (row.astype(np.float64) for row in rows)
    products, sizes = zip(*((row @ drawn, np.linalg.norm(row)) for row in exact), strict=True)
    return np.stack(products), np.repeat(np.array(sizes)[:, None], _VECTORS, axis=1)


def _blank(inputs: Mapping[str, Array]) -> bool:
    """Whether all maps among the inputs are one number for each channel."""
    maps = [array for array in inputs.values() if array.ndim > 2]
    return bool(maps) and all(_flat(array) for array in maps)


def _flat(array: Array) -> bool:
    """Whether each example is one number throughout, or one for each of a few channels, first or last."""
    if array.shape[1] <= _CHANNELS:
        maps = array.reshape(*array.shape[:2], -1)
    elif array.shape[-1] <= _CHANNELS:
        maps = np.moveaxis(array, -1, 1).reshape(len(array), array.shape[-1], -1)
    else:
        maps = array.reshape(len(array), 1, -1)
    return maps.shape[-1] >= _PLACES and bool((maps == maps[..., :1]).all())


def _varies(runs: Sequence[Array], gauge: Gauge) -> bool:
    """Whether a value is another one for other examples, or at other places of one."""
    if len({run.shape for run in runs}) > 1:
        return True
    values = np.concatenate(runs).astype(np.float64) if runs[0].ndim else np.array(runs, np.float64)
    whole = float((values**2).sum())
    if not math.isfinite(whole) or whole == 0.0:
        return False
    if len(values) > 1 and float(((values - values.mean(axis=0)) ** 2).sum()) > _AMONG * whole:
        return True
    channel = gauge.axis % max(values.ndim, 1)
    places = tuple(axis for axis in range(1, values.ndim) if axis != channel)
    if math.prod(values.shape[axis] for axis in places) < _PLACES:
        return False
    return float(((values - values.mean(axis=places, keepdims=True)) ** 2).sum()) > _WITHIN * whole
