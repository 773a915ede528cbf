"""Where example inputs lead to numbers that nothing can be learned from: NaN, infinity, squares that overflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import ResolvedShapes, Site
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study.collect import reachable

Array = NDArray[Any]

# What sites see is squared and summed in float32. Where that overflowed, an example is to blame whose own squares come
# near it: others add up to the rest.
_LARGEST = float(np.finfo(np.float32).max) / 1000.0


def overflowing(
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    inputs: Mapping[str, Array],
    *,
    batch: int,
    threads: int | None = None,
) -> InputError | None:
    """Run the network once more and find the first example that leads to numbers not finite, or too large to square.

    Nobody pays for it while all is well: it is asked when moments came out not finite, which say neither where nor why.

    Args:
        shapes: The model's shapes.
        sites: The sites that were looked at, in graph order.
        inputs: Example inputs by name, [N, ...].
        batch: Examples in one run.
        threads: Threads of the runtime; its own choice if None.

    Returns:
        What to raise; None where no number alone is to blame.
    """
    sites = reachable(shapes.model, sites)
    readers = {site.source: site.name for site in reversed(sites)}
    names = list(dict.fromkeys(site.source for site in sites))
    made = [name for name in names if name not in inputs]
    piece = Piece(without_shapes(shapes.model), list(inputs), made, threads=threads) if made else None
    for start in range(0, len(next(iter(inputs.values()))), batch):
        values = {name: array[start : start + batch] for name, array in inputs.items()}
        count = len(next(iter(values.values())))
        if piece is not None:
            values.update(zip(made, piece.run(values), strict=True))
        found = {name: index for name in names if (index := _first(values[name], count)) is not None}
        if found:
            name = min(found, key=found.__getitem__)  # of what one example leads to, the first in the graph
            rows = values[name]
            kind = _kind(rows[found[name]] if len(rows) == count else rows)
            return InputError(_said(name, kind, start + found[name], None if name in inputs else readers[name]))
    return None


def _said(name: str, kind: str, example: int, reader: str | None) -> str:
    if reader is None:
        return f"Calibration input '{name}' holds {kind}, first in example {example}; check its range."
    return (
        f"The calibration inputs lead to {kind} at '{name}', which '{reader}' reads, first in example {example}; check "
        "their range."
    )


def _first(values: Array, count: int) -> int | None:
    """The first example that holds such a number; None where none does."""
    rows = values.reshape(count, -1) if len(values) == count else values.reshape(1, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.einsum("ni,ni->n", rows, rows, dtype=np.float64) <= _LARGEST  # nothing holds of NaN
    return None if good.all() else int(np.flatnonzero(~good)[0])


def _kind(values: Array) -> str:
    if np.isnan(values).any():
        return "NaN"
    largest = float(np.abs(values).max())
    return f"numbers up to {largest:.3g}, whose squares overflow" if np.isfinite(largest) else "infinity"
