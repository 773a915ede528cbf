"""Plans that are run and changed while that lowers the drift."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_pointwise.graph import Choice
from onnx_pointwise.planning import repair as repairing
from onnx_pointwise.planning.options import options, share_out
from onnx_pointwise.planning.repair import repaired
from tests.networks import examples, look, prepared, residual
from tests.planning.test_correction import Network, as_rehearsal, made_options, spent


class Clock:
    """A second passes each time that somebody looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "time", Clock())


@pytest.mark.parametrize("seed", range(4))
def test_a_repaired_plan_costs_no_more_and_drifts_no_more(seed: int) -> None:
    """Of a network that weighs sites otherwise than their losses say."""
    listed = made_options(seed)
    limit = 0.5 * len(listed)
    gains = np.random.default_rng(seed).uniform(0.3, 3.0, len(listed))
    network = Network([one.with_losses(gain * one.losses) for one, gain in zip(listed, gains, strict=True)], 1.0, 5.0)
    start = share_out(listed, {"macs": limit})
    changed = repaired(as_rehearsal(network), listed, [limit], [0], start, seconds=200.0)
    assert spent(listed, changed) <= limit * (1 + 1e-9)
    assert network.plans[0] == start
    drifts = [network.drift(plan) for plan in list(network.plans)]
    assert network.drift(changed) == pytest.approx(min(drifts))
    assert min(drifts) < drifts[0]


def test_other_sites_stay_as_they_are() -> None:
    listed = made_options(0)
    network = Network(listed[1:], 1.0, 0.0)
    first = listed[0].site.name
    start = {first: Choice("expand", 2), **share_out(listed[1:], {"macs": 2.0})}
    changed = repaired(as_rehearsal(network), listed[1:], [2.0], [0], start, seconds=50.0)
    assert changed[first] == Choice("expand", 2)
    assert all(plan[first] == Choice("expand", 2) for plan in network.plans)
    assert repaired(as_rehearsal(network), [], [], [], start, seconds=5.0) == start


def test_without_time_a_plan_stays_as_it_is() -> None:
    listed = made_options(1)
    start = share_out(listed, {"macs": 3.0})
    assert repaired(as_rehearsal(Network(listed, 1.0, 9.0)), listed, [3.0], [0], start, seconds=0.0) == start


def test_a_rehearsal_of_a_real_network_repairs() -> None:
    shapes, sites = prepared(residual(2))
    found = look(shapes.model, shapes, sites, examples(24))
    listed = options(found)
    limit = 0.4 * sum(float(one.costs[-1, 0]) for one in listed)
    start = share_out(listed, {"macs": limit})
    changed = repaired(found.rehearsal, listed, [limit], [0], start, seconds=30.0)
    assert spent(listed, changed) <= limit
    assert found.rehearsal.drift(changed) <= found.rehearsal.drift(start)
