"""What a rewrite says of its drift beforehand holds on examples that nothing was made from, however few there were."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnx_pointwise.fitting.weights import _answers, drift_of, make_weights
from onnx_pointwise.numerics import centred
from onnx_pointwise.planning.correction import Corrected
from onnx_pointwise.planning.options import options
from onnx_pointwise.study import Study
from tests.networks import branching, detector, examples, look, prepared, residual


def energies(found: Study, which: str) -> float:
    """How much the only head varies over some of the examples, for each of them."""
    sets = {"held": [found.held], "trial": [found.trial], "both": [found.trial, found.held]}[which]
    (gauge,) = found.heads.gauges
    values = np.concatenate([_answers(found, found.shapes.model, some)[0] for some in sets])
    return float((centred(values, gauge.axis) ** 2).sum()) / len(values)


@pytest.mark.parametrize("network", [residual, branching, detector])
@pytest.mark.parametrize(("count", "share"), [(16, 0.5), (48, 0.35), (160, 0.6)])
def test_drift_is_what_was_predicted(network, count, share):
    """On fresh examples in every case; on the few held back, which vary among themselves, in the mean."""
    held = []
    for seed in range(2):
        model = network(seed)
        shapes, sites = prepared(model)
        found = look(model, shapes, sites, examples(count, seed))
        listed = options(found)
        limit = share * sum(float(option.costs[-1, 0]) for option in listed)
        learned = Corrected(found.rehearsal)
        chosen = learned.share_out(listed, {"macs": limit}, {})
        weights = make_weights(found, chosen)
        assert weights.predicted is not None and weights.drift is not None
        own = drift_of(found, chosen, weights.replacements, found.held)  # what is held back varies otherwise by chance
        if len(found.heads.gauges) == 1:
            assert weights.drift / own == pytest.approx(math.sqrt(energies(found, "held") / energies(found, "both")))
        fresh = drift_of(found, chosen, weights.replacements, examples(128, seed + 77))
        assert 0.67 < fresh / weights.predicted < 1.5
        held.append(weights.drift / weights.predicted)
    assert 0.6 < np.exp(np.log(held).mean()) < 1.6


def test_a_rehearsal_is_what_the_plan_does_to_the_network():
    """Its sessions take the kernels as inputs; run as they are handed over, the factors give the same drift."""
    model = branching(1)
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(24))
    chosen = {one.site.name: one.choices[len(one.choices) // 2] for one in options(found)}
    made = {site.name: found.factors(site, chosen[site.name], part=True) for site in sites}
    assert found.rehearsal.drift(chosen) == pytest.approx(drift_of(found, chosen, made, found.trial) ** 2, rel=1e-3)
    assert found.rehearsal.drift({}) == 0.0
    whole = {site.name: found.factors(site, chosen[site.name]) for site in sites}
    assert all(whole[name].factors.kernel.tobytes() != made[name].factors.kernel.tobytes() for name in whole)


def test_without_a_refit_the_prediction_is_the_rehearsal():
    model = residual(1)
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(32))
    chosen = {one.site.name: one.choices[0] for one in options(found)}
    weights = make_weights(found, chosen, refit=False)
    both = energies(found, "trial") / energies(found, "both")
    assert weights.predicted == pytest.approx((found.rehearsal.drift(chosen) * both) ** 0.5)
    assert weights.refits == {} and weights.drift == weights.unrefitted
    few = look(model, shapes, sites, examples(4))  # none of them is held back: whatever they promise is no promise
    assert make_weights(few, chosen, refit=False).predicted is None
    nothing = make_weights(found, {})
    assert (nothing.replacements, nothing.predicted, nothing.drift) == ({}, 0.0, None)
