"""The whole network with other kernels at its sites: how plans are tried out.

A plan's factors are put in multiplied out, each site still one convolution, so that all values keep their names. What
the plan would save is not saved here, but its drift is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import BottleneckPass, Plan, Replacement
from onnx_pointwise.numerics import compose, whole
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study.heads import Heads

Array = NDArray[Any]


def composed(replacements: Mapping[str, Replacement]) -> dict[str, Replacement]:
    """Weights by site name with their factors multiplied out."""
    return {name: Replacement(whole(compose(one.factors)), one.bias) for name, one in replacements.items()}


def with_kernels(model: ir.Model, kernels: Mapping[str, Replacement]) -> ir.Model:
    """A model without shapes that has other kernels at some sites.

    Args:
        model: The untouched model with its types inferred; it is left as it is.
        kernels: As `composed` gives them.
    """
    copy = without_shapes(model)
    BottleneckPass(Plan({}, corrected=tuple(kernels)), kernels)(copy)
    return copy


def answers(
    model: ir.Model, heads: Heads, inputs: Mapping[str, Array], *, batch: int, threads: int | None = None
) -> list[Array]:
    """What a network gives at the heads, over all examples.

    Args:
        model: A network that has these heads.
        heads: Where it answers.
        inputs: Example inputs by name, [N, ...].
        batch: Examples in one run.
        threads: Threads of the runtime; its own choice if None.

    Returns:
        The values of the heads, [N, ...] each.

    Raises:
        ModelError: The model does not run on the inputs.
    """
    if not heads.names:
        return []
    return _run(without_shapes(model), heads, inputs, batch, threads)


class WholeNetwork:
    """Measures the drift of many plans on the same examples.

    Args:
        model: The untouched model with its types inferred; it is left as it is.
        inputs: Example inputs by name, [N, ...].
        heads: Where the network answers.
        reference: What the untouched network gives at the gauges, as of `answers`.
        batch: Examples in one run.
        threads: Threads of the runtime; its own choice if None.
    """

    def __init__(
        self,
        model: ir.Model,
        inputs: Mapping[str, Array],
        heads: Heads,
        reference: Sequence[Array],
        *,
        batch: int,
        threads: int | None = None,
    ) -> None:
        self._model, self._inputs, self._batch, self._threads = model, dict(inputs), batch, threads
        self._heads, self._reference = heads, reference

    @cached_property
    def _untouched(self) -> Piece:
        return Piece(without_shapes(self._model), list(self._inputs), self._heads.names, threads=self._threads)

    def drift(self, replacements: Mapping[str, Replacement]) -> float:
        """Relative squared drift at the heads, with weights in place; 0 for a network without any.

        Args:
            replacements: Weights by site name; the other sites stay as they are.
        """
        return self._heads.whole(self.drifts(replacements))

    def drifts(self, replacements: Mapping[str, Replacement]) -> list[float | None]:
        """The same at each gauge of the heads; None for one that does not vary over the examples."""
        if not self._heads.names:
            return []
        moved = with_kernels(self._model, composed(replacements))
        found = _run(moved, self._heads, self._inputs, self._batch, self._threads)
        return self._heads.drifts(self._reference, found)

    def values(self, inputs: Mapping[str, Array]) -> list[Array]:
        """What the untouched network gives at the gauges for one batch of other inputs by name."""
        return self._untouched.run(inputs) if self._heads.names else []


def _run(model: ir.Model, heads: Heads, inputs: Mapping[str, Array], batch: int, threads: int | None) -> list[Array]:
    """As `answers`, of a model without shapes that has heads."""
    return _over_batches(Piece(model, list(inputs), heads.names, threads=threads), inputs, batch)


def _over_batches(piece: Piece, inputs: Mapping[str, Array], batch: int) -> list[Array]:
    count = len(next(iter(inputs.values())))
    parts = [
        piece.run({name: array[start : start + batch] for name, array in inputs.items()})
        for start in range(0, count, batch)
    ]
    return [np.concatenate(column) if column[0].ndim else column[0] for column in zip(*parts, strict=True)]
