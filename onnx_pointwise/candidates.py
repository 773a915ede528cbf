"""What could be done to a site: forms and ranks that pay, with their cost and predicted error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.cost import dense_cost, rewritten_cost
from onnx_pointwise.factorize import FORMS, Form, error_curve
from onnx_pointwise.plan import Choice
from onnx_pointwise.sites import Site

Resource = Literal["macs", "params"]

#: Relative squared error below which a candidate is exact: the rounding of float32 weights.
NEGLIGIBLE = 1e-14


@dataclass(frozen=True)
class Candidates:
    """The choices worth considering at one site, from the cheapest to the dearest.

    No candidate is beaten by another one in both cost and error, and each one costs less than the dense site.

    Attributes:
        site: The site.
        choices: Form and rank of each candidate, with its predicted relative L2 error.
        macs: int64 [n], multiply-accumulates of one run.
        params: int64 [n], numbers stored.
        error: float64 [n], predicted relative squared error of the site's output.
        dense_macs: The same of the untouched site, whose error is 0.
        dense_params: The same of the untouched site.
    """

    site: Site
    choices: tuple[Choice, ...]
    macs: NDArray[np.int64]
    params: NDArray[np.int64]
    error: NDArray[np.float64]
    dense_macs: int
    dense_params: int

    def cost(self, resource: Resource) -> NDArray[np.int64]:
        """Cost of each candidate in what is budgeted."""
        return self.macs if resource == "macs" else self.params

    def dense_cost(self, resource: Resource) -> int:
        """Cost of the dense site in what is budgeted."""
        return self.dense_macs if resource == "macs" else self.dense_params


def candidates(
    site: Site,
    *,
    forms: Sequence[Form] = FORMS,
    resource: Resource = "macs",
    second_moment: NDArray[Any] | None = None,
) -> Candidates:
    """List what could be done to a site.

    Args:
        site: A site without refusal.
        forms: The forms that compete.
        resource: What must fall: MACs or parameters.
        second_moment: Second moment of the site's input patches, as in ``factorize``; ``None`` is the identity.

    Returns:
        The candidates on the Pareto front of cost and error, cheapest first; none where nothing pays.
    """
    kernel, _ = site.weights()
    dense = dense_cost(site)
    rows, errors = [np.zeros((0, 5), np.int64)], [np.zeros(0)]
    for index, form in enumerate(forms):
        curve = error_curve(kernel, form, second_moment)
        ranks = np.stack(np.meshgrid(*(np.arange(1, size) for size in curve.shape), indexing="ij"), -1)
        ranks = ranks.reshape(-1, curve.ndim)
        macs, params = _costs(site, form, ranks)
        rows.append(np.stack([macs, params, np.full(len(ranks), index), ranks[:, 0], ranks[:, -1]], 1))
        errors.append(curve[tuple(ranks.T)])
    table, error = np.concatenate(rows), np.concatenate(errors)
    error[error < NEGLIGIBLE] = 0.0
    cost, limit = (table[:, 0], dense.macs) if resource == "macs" else (table[:, 1], dense.params)
    order = np.lexsort((error, cost))
    order = order[cost[order] < limit]
    front = order[np.diff(np.minimum.accumulate(error[order]), prepend=np.inf) < 0.0]
    table, error = table[front], error[front]
    choices = tuple(
        Choice(forms[form], (first, last) if forms[form] == "reduce_expand" else first, error=math.sqrt(lost))
        for (_, _, form, first, last), lost in zip(table.tolist(), error.tolist(), strict=True)
    )
    return Candidates(site, choices, table[:, 0], table[:, 1], error, dense.macs, dense.params)


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
