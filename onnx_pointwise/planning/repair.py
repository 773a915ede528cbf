"""Verify a plan by running it, and repair it: move rank from where it is missed least to where it is missed most."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from onnx_pointwise.graph import Choice, Replacement
from onnx_pointwise.numerics import exchange
from onnx_pointwise.planning.options import Options
from onnx_pointwise.study import Progress, Study, WholeNetwork, few_examples, unrefitted


def repaired(
    found: Study,
    listed: Sequence[Options],
    limits: Sequence[float],
    columns: Sequence[int],
    chosen: Mapping[str, Choice],
    *,
    seconds: float,
    progress: Progress = lambda stage, what: None,
) -> dict[str, Choice]:
    """Exchange rank between sites while that lowers the measured drift of the network, for a limited time.

    Args:
        found: What the example inputs told.
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
    whole = WholeNetwork(
        found.shapes.model,
        found.sites,
        few_examples(found),
        found.heads,
        batch=found.batch,
        threads=found.settings["threads"],
    )
    sites = {site.name: site for site in found.sites}
    names = {option.site.name for option in listed}
    made: dict[tuple[str, Choice], Replacement] = {}
    end = time.monotonic() + seconds
    runs = 0

    def weights(name: str, choice: Choice) -> Replacement:
        if (name, choice) not in made:
            made[name, choice] = unrefitted(sites[name], choice, found)
        return made[name, choice]

    fixed = {name: weights(name, choice) for name, choice in chosen.items() if name not in names and name in sites}

    def measure(picked: Sequence[int]) -> float:
        nonlocal runs
        runs += 1
        progress("repair", f"plan {runs}")
        pairs = ((option.site.name, option.choices[index]) for option, index in zip(listed, picked, strict=True))
        return whole.drift(fixed | {name: weights(name, choice) for name, choice in pairs if choice is not None})

    start = [option.choices.index(chosen.get(option.site.name)) for option in listed]
    picked, _ = exchange(
        [option.costs[:, columns] for option in listed],
        [option.losses for option in listed],
        list(limits),
        start,
        measure,
        stop=lambda: time.monotonic() > end,
    )
    changed = {option.site.name: option.choices[index] for option, index in zip(listed, picked, strict=True)}
    kept = {name: choice for name, choice in chosen.items() if name not in names}
    return kept | {name: choice for name, choice in changed.items() if choice is not None}
