"""What each site adds to the drift of a plan: against networks in which that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_pointwise.graph import Choice, Replacement
from onnx_pointwise.numerics import compose, whole
from onnx_pointwise.study import Rehearsal
from tests.networks import branching, examples, look, prepared, residual


def looked_at(network: Any, count: int = 24) -> Any:
    model = network()
    shapes, sites = prepared(model)
    return look(model, shapes, sites, examples(count))


def planned(found: Any, rank: int) -> dict[str, Choice]:
    return {
        site.name: Choice("reduce", min(rank, site.in_channels - 1)) for site in found.sites if site.in_channels > 1
    }


@pytest.mark.parametrize("network", [residual, branching])
def test_they_add_up_to_the_drift_where_errors_are_small(network: Any) -> None:
    found = looked_at(network)
    choices = planned(found, 10**6)
    shares = found.rehearsal.shares(choices)
    assert set(shares) == set(choices)
    assert sum(shares.values()) == pytest.approx(found.rehearsal.drift(choices), rel=0.3)


def test_a_site_alone_adds_what_it_does_alone() -> None:
    found = looked_at(residual)
    (name, choice), *_ = planned(found, 10**6).items()
    (told,) = found.rehearsal.shares({name: choice}).items()
    assert told == (name, pytest.approx(found.rehearsal.drift({name: choice}), rel=0.2))


def test_they_are_what_the_drift_gains_where_an_error_grows() -> None:
    """By finite differences, at a plan whose errors are large: each is half of the relative slope of the drift."""
    found = looked_at(residual)
    choices = planned(found, 3)
    rehearsal = Rehearsal(found)
    shares = rehearsal.shares(choices)
    made = dict(rehearsal.replacements(choices))
    drift = found.rehearsal.heads.whole(rehearsal._network.drifts(made))

    step = 0.02
    for site in found.sites:
        if site.name not in made:
            continue
        kernel, bias = site.weights()
        trained = np.zeros(len(kernel)) if bias is None else bias
        ends = []
        for sign in (-1.0, 1.0):
            one = made[site.name]
            longer = 1.0 + sign * step
            grown = kernel + longer * (compose(one.factors) - kernel)
            moved = trained if one.bias is None else one.bias
            replaced = Replacement(whole(grown), trained + longer * (moved - trained))
            ends.append(found.rehearsal.heads.whole(rehearsal._network.drifts({**made, site.name: replaced})))
        slope = (ends[1] - ends[0]) / (2.0 * step)
        assert 2.0 * shares[site.name] == pytest.approx(slope, rel=0.35, abs=0.05 * drift), site.name


def test_no_choice_adds_nothing() -> None:
    assert looked_at(residual).rehearsal.shares({}) == {}
