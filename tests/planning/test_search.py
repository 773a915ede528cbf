"""The search for the cheapest plan within a strain, on networks whose law is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.graph import Choice
from onnx_pointwise.planning.correction import Corrected
from onnx_pointwise.planning.options import Options, share_out
from onnx_pointwise.planning.search import _STEPS, Ladder, Outcome, next_strain
from tests.planning.test_correction import SEEDS, Network, made_options, spent

CHECKED = settings(derandomize=True, deadline=None, max_examples=12)


class Heads(Network):
    """A network with one head, as a rehearsal."""

    def drifts(self, choices: Mapping[str, Choice]) -> list[float | None]:
        return [self.drift(choices), None]


def ladder(network: Heads, limit: float = 0.05) -> Ladder:
    def strain(drifts: Any) -> float:
        return max(math.sqrt(drift) / limit for drift in drifts if drift is not None)

    return Ladder(network.listed, "macs", Corrected(network), strain)  # type: ignore[arg-type]


@CHECKED
@given(SEEDS, st.floats(0.3, 3.0), st.floats(0.05, 4.0))
def test_the_cheapest_plan_within_a_strain(seed: int, scale: float, most: float) -> None:
    listed = made_options(seed)
    network = Heads(listed, scale, 0.0)
    found = ladder(network).within(most)
    assert found.strain <= most
    assert found.cost == pytest.approx(spent(listed, found.choices))
    assert len(network.plans) <= _STEPS
    # No plan on a fine grid of limits is much cheaper, but for the last few hundredths of the strain.
    least, dense = sum(float(one.costs[0, 0]) for one in listed), float(len(listed))
    best = dense
    for limit in np.linspace(least * 1.0001, dense, 20):
        if math.sqrt(network.law(share_out(listed, {"macs": limit}))) / 0.05 <= most:
            best = min(best, float(limit))
    assert found.cost <= best + 0.03 * (dense - least) or found.strain >= 0.95 * most


@CHECKED
@given(SEEDS, st.floats(0.3, 3.0), st.floats(0.0, 20.0), st.lists(st.floats(0.01, 20.0), min_size=2, max_size=5))
def test_what_was_rehearsed_serves_every_further_strain(
    seed: int, scale: float, bend: float, strains: list[float]
) -> None:
    network = Heads(made_options(seed), scale, bend, noise=0.1)
    steps = ladder(network)
    for most in strains:
        found = steps.within(most)
        assert found.strain <= most
        assert found.cost == min(plan.cost for plan in steps.tried if plan.strain <= most)
        assert len(network.plans) <= _STEPS * len(strains)
    assert len({str(sorted(plan.items())) for plan in network.plans}) == len(network.plans), "none is run twice"


def test_where_nothing_is_small_enough_the_network_stays() -> None:
    assert ladder(Heads(made_options(1), 1e9, 0.0)).within(0.01).choices == {}


def law(factor: float, power: float, start: float = 1.0, fits: int = 4) -> list[Outcome]:
    """Search a network whose strain is a power of what was rehearsed."""
    made: list[Outcome] = []
    strain: float | None = start
    while strain is not None and len(made) < fits:
        measured = factor * strain**power
        made.append(Outcome(strain, measured, measured <= 1.0))
        strain = next_strain(made)
    return made


@settings(CHECKED, max_examples=200)
@given(st.floats(0.15, 8.0), st.floats(0.7, 1.5))
def test_four_networks_are_enough(factor: float, power: float) -> None:
    made = law(factor, power)
    best = max((one.measured for one in made if one.passed), default=0.0)
    assert best > 0.7, made


def test_a_search_ends_where_it_came_close() -> None:
    assert next_strain([Outcome(1.0, 0.93, True)]) is None
    assert next_strain([Outcome(0.95, 0.9, True), Outcome(1.0, 1.3, False)]) is None


def test_a_network_that_fails_or_shows_nothing_moves_the_search_by_no_more_than_a_step() -> None:
    assert next_strain([Outcome(1.0, math.inf, False)]) == pytest.approx(0.2)
    assert next_strain([Outcome(1.0, 0.0, True)]) == pytest.approx(2.5)
    between = next_strain([Outcome(1.0, 0.0, True), Outcome(2.5, math.inf, False)])
    assert between is not None and 1.0 < between < 2.5


def test_losses_far_below_the_largest_are_told_apart() -> None:
    """The solver's gaps are absolute: what a few large losses drown has to be asked for again."""
    listed: list[Options] = []
    for option in made_options(3):
        losses = 1e-10 * (len(option.losses) - 1 - np.arange(len(option.losses), dtype=float))
        losses[0] = 1.0
        listed.append(option.with_losses(losses))
    for limit in (3.0, 4.0, 5.0):
        chosen = share_out(listed, {"macs": limit})
        assert limit - 1 / 12 - 1e-9 <= spent(listed, chosen) <= limit + 1e-9, "every step counts alike: all is spent"
