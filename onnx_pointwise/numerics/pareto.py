"""Which of several trades are worth considering, and where one gives way to another fastest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> NDArray[np.bool_]:
    """Which points no other one equals or beats in both cost and loss; of equal ones the first.

    Args:
        costs: [n], less is better.
        losses: [n], less is better; NaN is never on the front.

    Returns:
        bool [n].
    """
    cost, loss = np.asarray(costs, np.float64), np.asarray(losses, np.float64)
    order = np.lexsort((loss, cost))
    kept = np.zeros(len(cost), np.bool_)
    best = np.inf
    for index in order:
        if loss[index] < best:
            kept[index] = True
            best = loss[index]
    return kept


def knee(costs: Sequence[float], losses: Sequence[float]) -> int | None:
    """The point of a front that lies farthest below the line between its ends, both axes from 0 to 1.

    Args:
        costs: [n] of points on a front.
        losses: [n].

    Returns:
        Its index; None where there is none: fewer than three points, or all on the line or above it.

    The knee of a convex front as V. Satopaa et al. put it, Finding a "Kneedle" in a Haystack, 2011, for few points,
    without smoothing.
    """
    cost, loss = np.asarray(costs, np.float64), np.asarray(losses, np.float64)
    if len(cost) < 3 or not np.ptp(cost) or not np.ptp(loss):
        return None
    below = 1.0 - (cost - cost.min()) / np.ptp(cost) - (loss - loss.min()) / np.ptp(loss)
    best = int(np.argmax(below))
    return best if below[best] > 1e-9 else None
