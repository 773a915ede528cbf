"""What could be done to a site: forms and ranks that pay, with their cost and predicted error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import Choice, Site, competing, dense_cost, rewritten_cost
from onnx_pointwise.latency import Measured
from onnx_pointwise.numerics import FORMS, Form, error_curves

Resource = Literal["macs", "params", "latency"]

#: Columns of cost tables.
COLUMNS: dict[Resource, int] = {"macs": 0, "params": 1, "latency": 2}

#: Relative squared error below which a candidate is exact: the rounding of float32 weights.
NEGLIGIBLE = 1e-14


@dataclass(frozen=True)
class Candidates:
    """The choices worth considering at one site, from the cheapest to the dearest.

    No candidate is beaten by another one in every cost and error, and each one costs less than the dense site.

    Attributes:
        site: The site.
        choices: Form and rank of each candidate, with its predicted relative L2 error.
        costs: float64 [n, 3], multiply-accumulates of one run, numbers stored, and seconds of one run, 0 where that
            was not measured; see ``COLUMNS``.
        error: float64 [n], predicted relative squared error of the site's output.
        dense: float64 [3], costs of the untouched site, whose error is 0.
    """

    site: Site
    choices: tuple[Choice, ...]
    costs: NDArray[np.float64]
    error: NDArray[np.float64]
    dense: NDArray[np.float64]


def candidates(
    site: Site,
    *,
    forms: Sequence[Form] = FORMS,
    resource: Resource = "macs",
    curves: Mapping[Form, NDArray[np.float64]] | None = None,
    measured: Measured | None = None,
) -> Candidates:
    """List what could be done to a site.

    Args:
        site: A site without refusal.
        forms: The forms that compete.
        resource: What must fall: MACs, parameters or latency.
        curves: Relative squared error by form and rank, as ``error_curves`` gives it; that of the kernel alone if
            ``None``. Forms that are not in it have no hope.
        measured: Its latency; only what is faster is then a candidate.

    Returns:
        The candidates, none of which is beaten by another in cost and error, cheapest first; none where nothing pays.
    """
    whole = dense_cost(site)
    dense = np.array([whole.macs, whole.params, 0.0 if measured is None else measured.dense])
    tables, errors = [np.zeros((0, 3))], [np.zeros(0)]
    named = [np.zeros((0, 3), np.int64)]
    forms = competing(site, forms)
    curves = error_curves(site.weights()[0], forms) if curves is None else curves
    forms = [form for form in forms if form in curves]
    for index, form in enumerate(forms):
        curve = curves[form]
        ranks, seconds = _ranks(form, curve.shape, measured)
        if form == "reduce_expand":
            useful = _cutting(ranks, curve.shape, forms)
            ranks, seconds = ranks[useful], seconds[useful]
        macs, params = _costs(site, form, ranks)
        tables.append(np.stack([macs, params, seconds], 1))
        errors.append(curve[tuple(ranks.T)])
        named.append(np.stack([np.full(len(ranks), index), ranks[:, 0], ranks[:, -1]], 1))
    table, error = np.concatenate(tables), np.concatenate(errors)
    error[error < NEGLIGIBLE] = 0.0
    column = COLUMNS[resource]
    order = np.lexsort((error, table[:, column]))
    order = order[table[order, column] < dense[column]]
    kept = _front(table[order], error[order]) if measured is not None else _falls(error[order])
    chosen = order[kept]
    choices = tuple(
        Choice(forms[form], (first, last) if forms[form] == "reduce_expand" else first, error=math.sqrt(lost))
        for (form, first, last), lost in zip(
            np.concatenate(named)[chosen].tolist(), error[chosen].tolist(), strict=True
        )
    )
    return Candidates(site, choices, table[chosen], error[chosen], dense)


def _ranks(
    form: Form, size: tuple[int, ...], measured: Measured | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ranks of a form, [n, 1] or [n, 2], and their seconds: those measured, or all without a measurement."""
    if measured is not None:
        pairs = zip(measured.choices, measured.seconds, strict=True)
        timed = [
            (rank if isinstance(rank, tuple) else (rank,), seconds) for (kind, rank), seconds in pairs if kind == form
        ]
        table = np.array([rank for rank, _ in timed], dtype=np.int64).reshape(-1, len(size))
        return table, np.array([seconds for _, seconds in timed], dtype=np.float64)
    ranks = np.stack(np.meshgrid(*(np.arange(1, most) for most in size), indexing="ij"), -1).reshape(-1, len(size))
    return ranks, np.zeros(len(ranks))


def _cutting(ranks: NDArray[np.int64], size: tuple[int, ...], forms: Sequence[Form]) -> NDArray[np.bool_]:
    """Which pairs of ranks are not, at full rank on one side, another form with a 1x1 that does nothing."""
    useful = np.ones(len(ranks), np.bool_)
    for side, other in enumerate(("expand", "reduce")):
        if other in forms:
            useful &= ranks[:, side] < size[side] - 1
    return useful


def _falls(error: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which candidates, in the order of their cost, lose less than all before them."""
    return np.asarray(np.diff(np.minimum.accumulate(error), prepend=np.inf) < 0.0)


def _front(table: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which candidates no other one equals or beats in everything, the first of equals kept."""
    whole = np.column_stack([table, error])
    kept = np.ones(len(whole), dtype=np.bool_)
    for index, row in enumerate(whole):
        beaten = (whole <= row).all(axis=1) & kept
        beaten[index] = False
        kept[index] = not beaten.any()
    return kept


def _costs(site: Site, form: Form, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cost of many ranks at once: cost is a polynomial in the ranks, read off at the corners."""
    if form != "reduce_expand":
        base, step = (rewritten_cost(site, form, rank) for rank in (1, 2))
        rank = ranks[:, 0] - 1
        return base.macs + (step.macs - base.macs) * rank, base.params + (step.params - base.params) * rank
    r, s = ranks[:, 0] - 1, ranks[:, 1] - 1
    corner = {(i, j): rewritten_cost(site, form, (i, j)) for i in (1, 2) for j in (1, 2)}
    macs, params = ({key: getattr(value, name) for key, value in corner.items()} for name in ("macs", "params"))

    def bilinear(at: dict[tuple[int, int], int]) -> NDArray[np.int64]:
        mixed = at[2, 2] - at[2, 1] - at[1, 2] + at[1, 1]
        return at[1, 1] + (at[2, 1] - at[1, 1]) * r + (at[1, 2] - at[1, 1]) * s + mixed * r * s

    return bilinear(macs), bilinear(params)
