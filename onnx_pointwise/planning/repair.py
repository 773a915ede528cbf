"""Verify a plan by running it, and repair it: move rank from where it is missed least to where it is missed most."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from onnx_pointwise.graph import Choice
from onnx_pointwise.numerics import exchange
from onnx_pointwise.planning.options import Options
from onnx_pointwise.progress import Progress, silent
from onnx_pointwise.study import Rehearsal


def repaired(
    rehearsal: Rehearsal,
    listed: Sequence[Options],
    limits: Sequence[float],
    columns: Sequence[int],
    chosen: Mapping[str, Choice],
    *,
    seconds: float,
    progress: Progress = silent,
) -> dict[str, Choice]:
    """Exchange rank between sites while that lowers the measured drift of the network, for a limited time.

    Args:
        rehearsal: Where plans are tried out.
        listed: The options of each site.
        limits: The most that all these sites may cost, for each column.
        columns: Columns of ``Options.costs`` that are limited.
        chosen: The plan to start from; choices of other sites stay in place.
        seconds: Time to spend.
        progress: Called with a stage and what is taken up in it.

    Returns:
        Choices by site name: the best plan that was run.
    """
    if not listed:
        return dict(chosen)
    names = {option.site.name for option in listed}
    now = time.monotonic()
    end = now + seconds
    runs = 0
    fixed = {name: choice for name, choice in chosen.items() if name not in names}

    def over() -> bool:
        nonlocal now
        now = time.monotonic()
        return now > end

    def measure(picked: Sequence[int]) -> float:
        nonlocal runs
        runs += 1
        spent = int(100 * (1.0 - max(0.0, end - now) / seconds)) if seconds > 0 else 100
        progress("repair", f"plan {runs}", spent, 100)
        pairs = ((option.site.name, option.choices[index]) for option, index in zip(listed, picked, strict=True))
        return rehearsal.drift(fixed | {name: choice for name, choice in pairs if choice is not None})

    start = [option.choices.index(chosen.get(option.site.name)) for option in listed]
    picked, _ = exchange(
        [option.costs[:, columns] for option in listed],
        [option.losses for option in listed],
        list(limits),
        start,
        measure,
        stop=over,
    )
    changed = {option.site.name: option.choices[index] for option, index in zip(listed, picked, strict=True)}
    kept = {name: choice for name, choice in chosen.items() if name not in names}
    return kept | {name: choice for name, choice in changed.items() if choice is not None}
