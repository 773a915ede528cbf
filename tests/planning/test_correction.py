"""Losses that learn from plans that are rehearsed: against networks whose law is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph import Choice, find_sites
from onnx_pointwise.planning import correction as correcting
from onnx_pointwise.planning.correction import Corrected, Correction, Known, fitted
from onnx_pointwise.planning.options import Options, options, share_out
from onnx_pointwise.runtime import resolve
from onnx_pointwise.study import Rehearsal
from tests.networks import branching, examples, look, prepared, residual
from tests.planning.test_budget import chain

CHECKED = settings(derandomize=True, deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**31)


def made_options(seed: int, sites: int = 6, ranks: int = 12) -> list[Options]:
    """Sites whose errors fall with the rank, at gains of their own."""
    model = chain([16] * (sites + 1))
    rng = np.random.default_rng(seed)
    made = []
    for site in find_sites(model, resolve(model)):
        choices = (*(Choice("reduce", rank) for rank in range(1, ranks)), None)
        errors = np.sort(rng.random(ranks - 1) ** 2)[::-1]
        errors = np.append(errors, 0.0)
        losses = float(np.exp(rng.standard_normal())) * 0.05 * errors
        costs = np.tile(np.arange(1.0, ranks + 1)[:, None] / ranks, (1, 3))
        made.append(Options(site, choices, costs, losses, errors))
    return made


class Network:
    """Drifts by a law of the sums of losses, and counts how often it is run.

    Args:
        listed: What can be done to its sites.
        scale: What the sum of losses is off by.
        bend: How much more large errors cost.
        noise: Deviation of the logarithm of what is measured.
        ways: What the loss of each site is off by, for `reduce`; nothing if None.
    """

    def __init__(
        self, listed: list[Options], scale: float, bend: float, noise: float = 0.0, ways: list[float] | None = None
    ) -> None:
        self.listed, self.scale, self.bend, self.noise = listed, scale, bend, noise
        self.ways = ways or [1.0] * len(listed)
        self.plans: list[dict[str, Choice]] = []
        self.heads = SimpleNamespace(whole=lambda drifts: drifts[0])

    def shares(self, choices: Mapping[str, Choice]) -> dict[str, float]:
        found = {}
        for option, way in zip(self.listed, self.ways, strict=True):
            choice = choices.get(option.site.name)
            if choice is not None:
                index = option.choices.index(choice)
                loss = float(option.losses[index] * (1.0 + self.bend * option.errors[index]))
                found[option.site.name] = self.scale * way * loss
        return found

    def law(self, choices: Mapping[str, Choice]) -> float:
        return sum(self.shares(choices).values())

    def drift(self, choices: Mapping[str, Choice]) -> float:
        self.plans.append(dict(choices))
        wobble = np.random.default_rng(len(self.plans)).standard_normal()
        return self.law(choices) * float(np.exp(self.noise * wobble))

    def drifts(self, choices: Mapping[str, Choice]) -> list[float | None]:
        return [self.drift(choices)]


def as_rehearsal(network: Network) -> Rehearsal:
    return network  # type: ignore[return-value]


def spent(listed: list[Options], choices: Mapping[str, Choice]) -> float:
    return sum(float(one.costs[one.choices.index(choices.get(one.site.name)), 0]) for one in listed)


# --- what is learned --------------------------------------------------------------------------------------------------


@CHECKED
@given(scale=st.floats(0.1, 10.0), bend=st.floats(0.0, 20.0), seed=SEEDS, count=st.integers(2, 6))
def test_a_planted_law_is_found_again(scale: float, bend: float, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    one = rng.uniform(0.01, 1.0, count)
    two = one * np.geomspace(0.02, 0.5, count)
    found = fitted([(a, b, scale * (a + bend * b)) for a, b in zip(one, two, strict=True)])
    assert found == (pytest.approx(scale, rel=1e-6), pytest.approx(bend, rel=1e-5, abs=1e-6))


@CHECKED
@given(ratio=st.floats(0.05, 50.0), seed=SEEDS, count=st.integers(1, 4))
def test_plans_that_are_all_alike_tell_one_number(ratio: float, seed: int, count: int) -> None:
    """A sum that is too high is scaled; where it is too low, large errors are held to account."""
    one = np.random.default_rng(seed).uniform(0.1, 1.0, count)
    scale, bend = fitted([(a, 0.2 * a, ratio * a) for a in one])
    if ratio <= 1.0:
        assert (scale, bend) == (pytest.approx(ratio), 0.0)
    else:
        assert scale == 1.0 and bend >= 0.0
    for a in one:
        assert scale * (a + bend * 0.2 * a) == pytest.approx(ratio * a)


@CHECKED
@given(st.lists(st.tuples(*[st.floats(0.0, 10.0)] * 3), max_size=6))
def test_what_is_learned_makes_sense_whatever_is_seen(observed: list[tuple[float, float, float]]) -> None:
    scale, bend = fitted(observed)
    assert np.isfinite([scale, bend]).all()
    assert scale > 0.0 and bend >= 0.0


def test_nothing_seen_is_nothing_learned() -> None:
    assert fitted([]) == fitted([(0.0, 0.0, 1.0), (1.0, 0.5, 0.0)]) == (1.0, 0.0)
    (option, *_) = made_options(0)
    np.testing.assert_array_equal(Correction().of(option).losses, option.losses)


@CHECKED
@given(SEEDS, st.floats(0.1, 10.0), st.floats(0.0, 20.0))
def test_corrected_losses_are_those_of_the_law(seed: int, scale: float, bend: float) -> None:
    (option, *_) = made_options(seed)
    changed = Correction(scale, bend).of(option)
    np.testing.assert_allclose(changed.losses, scale * (option.losses + bend * option.losses * option.errors))
    assert (changed.site, changed.choices) == (option.site, option.choices)
    assert changed.costs is option.costs and changed.errors is option.errors
    assert (np.diff(changed.losses) <= 0.0).all()


@CHECKED
@given(st.lists(st.tuples(st.sampled_from(["reduce", "expand"]), st.floats(0.0, 1e6)), min_size=1, max_size=5))
def test_what_a_plan_says_of_a_form_is_believed_more_of_it_than_of_others(said: list[tuple[Any, float]]) -> None:
    known = Known()
    for form, ratio in said:
        before, known = known, known.told(Choice(form, 3), ratio)
        own, others = (
            math.log(known.of(Choice(other, 3)) / before.of(Choice(other, 3))) for other in (form, "vertical")
        )
        step = np.clip(np.log(max(ratio, 1e-9)), -math.log(4.0), math.log(4.0))
        assert own == pytest.approx(correcting._FAITH * step, abs=1e-9)
        assert others == pytest.approx(0.5 * own, abs=1e-9)
    assert known.of(None) == 1.0


# --- and what becomes of plans ----------------------------------------------------------------------------------------


@CHECKED
@given(SEEDS, st.floats(0.2, 5.0), st.floats(0.0, 30.0), st.floats(0.2, 0.9), st.booleans())
def test_plans_are_made_while_that_gains_something(
    seed: int, scale: float, bend: float, share: float, off: bool
) -> None:
    listed = made_options(seed)
    ways = list(np.exp(np.random.default_rng(seed).normal(0.0, 1.0, len(listed)))) if off else None
    network = Network(listed, scale, bend, ways=ways)
    learned = Corrected(as_rehearsal(network))
    limit = share * len(listed)
    chosen = learned.share_out(listed, {"macs": limit}, {})
    assert spent(listed, chosen) <= limit * (1 + 1e-9)
    assert chosen in network.plans
    # Of all that were run, none drifts less.
    drifts = [network.law(plan) for plan in network.plans]
    assert learned.rehearsed == pytest.approx(min(drifts)) == pytest.approx(network.law(chosen))
    assert 1 <= len(network.plans) <= correcting._ROUNDS
    if len(network.plans) < correcting._ROUNDS and drifts[-1] > 0.0:
        # Either the last one gained next to nothing, or what was learned of it led back to a plan that was run.
        again = share_out([learned.correction.of(option) for option in listed], {"macs": limit})
        assert again in network.plans or drifts[-1] > (1.0 - correcting._GAIN) * min(drifts[:-1])


@pytest.mark.parametrize("seed", range(5))
def test_sites_that_matter_more_than_they_did_alone_get_more_rank(seed: int) -> None:
    """Losses that are off by a factor of four either way cost much; plans that were run tell which are."""
    listed, limits = made_options(seed), {"macs": 3.0}
    ways = list(4.0 ** np.random.default_rng(seed).choice([-1.0, 1.0], len(listed)))
    network = Network(listed, 1.0, 0.0, ways=ways)
    true = [option.with_losses(way * option.losses) for option, way in zip(listed, ways, strict=True)]
    best, plain = (network.law(share_out(options, limits)) for options in (true, listed))
    learned = network.law(Corrected(as_rehearsal(network)).share_out(listed, limits, {}))
    assert learned <= plain
    assert learned - best <= 0.2 * (plain - best) + 0.02 * best


@CHECKED
@given(SEEDS, st.floats(0.3, 3.0), st.floats(5.0, 40.0), st.floats(0.3, 0.7))
def test_learning_loses_no_more_than_not_learning(seed: int, scale: float, bend: float, share: float) -> None:
    listed = made_options(seed)
    limits = {"macs": share * len(listed)}
    network = Network(listed, scale, bend)
    chosen = Corrected(as_rehearsal(network)).share_out(listed, limits, {})
    assert network.law(chosen) <= network.law(share_out(listed, limits))


def test_large_errors_become_dear() -> None:
    """Where they cost more than single sites tell, rank moves to where errors are largest."""
    moved = []
    for seed in range(10):
        listed = made_options(seed)
        limits = {"macs": 0.5 * len(listed)}

        def worst(choices: Mapping[str, Choice], listed: list[Options] = listed) -> float:
            return max(float(one.errors[one.choices.index(choices.get(one.site.name))]) for one in listed)

        plain = worst(share_out(listed, limits))
        learned = Corrected(as_rehearsal(Network(listed, 1.0, 30.0)))
        moved.append((plain, worst(learned.share_out(listed, limits, {}))))
    before, after = np.mean(moved, axis=0)
    assert after < 0.9 * before


def test_what_was_learned_for_one_budget_serves_the_next() -> None:
    listed = made_options(3)
    network = Network(listed, 0.5, 12.0)
    learned = Corrected(as_rehearsal(network))
    for share in (0.6, 0.45, 0.3):
        learned.share_out(listed, {"macs": share * len(listed)}, {})
    runs = len(network.plans)
    learned.share_out(listed, {"macs": 0.5 * len(listed)}, {})
    assert len(network.plans) <= runs + 2
    assert learned.rehearsed == pytest.approx(learned.predicted, rel=0.05)


def test_other_sites_stay_in_place_while_plans_are_rehearsed() -> None:
    listed = made_options(1)
    network = Network(listed[1:], 1.0, 0.0)
    fixed = {listed[0].site.name: Choice("expand", 3)}
    chosen = Corrected(as_rehearsal(network)).share_out(listed[1:], {"macs": 3.0}, fixed)
    assert listed[0].site.name not in chosen
    assert all(plan[listed[0].site.name] == Choice("expand", 3) for plan in network.plans)


def test_a_plan_that_changes_nothing_is_no_trouble() -> None:
    listed = made_options(2)
    learned = Corrected(as_rehearsal(Network(listed, 1.0, 0.0)))
    assert learned.share_out(listed, {"macs": float(len(listed))}, {}) == {}
    assert (learned.predicted, learned.rehearsed, learned.correction) == (0.0, 0.0, Correction())


def test_limits_that_cannot_be_met_are_refused_before_anything_is_run() -> None:
    listed = made_options(2)
    network = Network(listed, 1.0, 0.0)
    with pytest.raises(PlanError):
        Corrected(as_rehearsal(network)).share_out(listed, {"macs": 0.01}, {})
    assert network.plans == []


@pytest.mark.parametrize(("network", "share"), [(residual, 0.35), (residual, 0.6), (branching, 0.4)])
def test_promises_hold_on_networks(network: Any, share: float) -> None:
    """The plan that is kept drifts, where it is rehearsed, about as it was promised; and it is found again."""
    model = network()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(64))
    listed = options(found)
    limits = {"macs": share * sum(float(option.costs[-1, 0]) for option in listed)}
    kept = []
    for _ in range(2):
        learned = Corrected(Rehearsal(found))
        chosen = learned.share_out(listed, limits, {})
        assert spent(listed, chosen) <= limits["macs"] * (1 + 1e-9)
        assert learned.rehearsed == found.rehearsal.drift(chosen)
        assert 1.6**-2 < learned.rehearsed / learned.predicted < 1.6**2
        kept.append((chosen, learned.rehearsed, learned.predicted, learned.correction))
    assert kept[0] == kept[1]
    assert found.rehearsal.drift(share_out(listed, limits)) >= kept[0][1]
