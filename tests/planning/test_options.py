"""What could be done at every site: losses of choices from what examples told."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_pointwise.graph import dense_cost
from onnx_pointwise.numerics.factorize import compose, relative_error
from onnx_pointwise.numerics.norm import Norm
from onnx_pointwise.planning.candidates import COLUMNS
from onnx_pointwise.planning.options import Options, options, share_out
from onnx_pointwise.study import Study
from onnx_pointwise.study.collect import site_moments
from tests.networks import branching, examples, look, prepared, residual


def studied(count: int = 32, network=residual) -> tuple[Study, list[Options]]:
    shapes, sites = prepared(network(1))
    found = look(shapes.model, shapes, sites, examples(count))
    return found, options(found)


@pytest.mark.parametrize("network", [residual, branching])
def test_options_go_from_the_cheapest_to_the_dense_site(network) -> None:
    found, listed = studied(network=network)
    assert [one.site for one in listed] == list(found.sites)
    for one in listed:
        assert len(one.choices) == len(one.costs) == len(one.losses) == len(one.errors)
        assert one.choices[-1] is None and None not in one.choices[:-1]
        dense = dense_cost(one.site)
        assert tuple(one.costs[-1, :2]) == (dense.macs, dense.params)
        assert (np.diff(one.costs[:, COLUMNS["macs"]]) > 0.0).all()
        assert (np.diff(one.errors) < 0.0).all() and (np.diff(one.losses) <= 0.0).all()
        assert one.errors[-1] == one.losses[-1] == 0.0
        response = found.sensitivities[one.site.name].response
        np.testing.assert_allclose(one.losses, response(one.errors), rtol=1e-12)
        for choice, error in zip(one.choices[:-1], one.errors[:-1], strict=True):
            assert choice is not None and choice.error == pytest.approx(np.sqrt(error))


def test_other_losses_change_nothing_else() -> None:
    _, (one, *_) = studied(8)
    changed = one.with_losses(2.0 * one.losses)
    np.testing.assert_array_equal(changed.losses, 2.0 * one.losses)
    assert (changed.site, changed.choices, changed.costs, changed.errors) == (
        one.site,
        one.choices,
        one.costs,
        one.errors,
    )


@pytest.mark.parametrize("count", [6, 48])
def test_errors_are_about_those_of_factors_on_examples_they_do_not_know(count: int) -> None:
    """Made from half of the examples, judged on the other half; in the mean over sites and ranks."""
    found, listed = studied(count)
    ratios = []
    moments = site_moments(found.shapes, found.sites, found.fit, batch=found.batch, tried=found.tried, threads=1)
    for one in listed:
        rest = moments[one.site.name].rest
        assert rest is not None and found.moments[one.site.name].rest is None
        held = Norm.of(rest.full(), one.site.in_channels, one.site.taps)
        for choice, error in list(zip(one.choices[:-1], one.errors[:-1], strict=True))[::3]:
            assert choice is not None
            made = found.factors(one.site, choice, part=True).factors
            reached = relative_error(one.site.weights()[0], compose(made), held) ** 2
            if error > 1e-3:
                ratios.append(reached / error)
    assert len(ratios) > 10
    # Factors of all examples, which these errors are those of, lose somewhat less.
    assert 0.85 < np.median(ratios) < 1.35


def test_shares_are_the_best_within_limits() -> None:
    """No other pair of choices at two sites that costs no more loses less."""
    _, listed = studied(24)
    for share in (0.4, 0.7):
        limit = share * sum(float(one.costs[-1, 0]) for one in listed)
        chosen = share_out(listed, {"macs": limit})
        picked = [one.choices.index(chosen.get(one.site.name)) for one in listed]
        cost = sum(float(one.costs[index, 0]) for one, index in zip(listed, picked, strict=True))
        assert cost <= limit
        for first, one in enumerate(listed):
            for second, other in enumerate(listed[:first]):
                room = limit - cost + float(one.costs[picked[first], 0] + other.costs[picked[second], 0])
                lost = float(one.losses[picked[first]] + other.losses[picked[second]])
                fits = one.costs[:, 0][:, None] + other.costs[:, 0][None, :] <= room
                best = np.where(fits, one.losses[:, None] + other.losses[None, :], np.inf).min()
                assert lost <= best * (1 + 1e-6) + 1e-9
