"""Sites whose error no example shows are planned from their kernels: what nobody saw is not small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnx_pointwise.planning.candidates import candidates
from onnx_pointwise.planning.options import options, share_out
from onnx_pointwise.study import Study
from tests.networks import examples, look, prepared, residual


@pytest.fixture(scope="module")
def found() -> Study:
    shapes, sites = prepared(residual(1))
    return look(shapes.model, shapes, sites, examples(16))


@pytest.mark.parametrize("how", ["no drift", "no error"])
def test_an_error_that_nothing_shows(found: Study, how: str) -> None:
    blind = found.sites[1]
    known = found.sensitivities[blind.name]
    if how == "no drift":
        unseen = replace(known, response=replace(known.response, gain=0.0))
    else:
        unseen = replace(known, curves={form: np.zeros_like(curve) for form, curve in known.curves.items()})
    seen = options(found)
    listed = options(replace(found, sensitivities={**found.sensitivities, blind.name: unseen}))
    one = next(option for option in listed if option.site.name == blind.name)
    plain = candidates(blind)
    np.testing.assert_array_equal(one.errors[:-1], plain.error)
    gains = [
        known.response.gain
        for name, known in found.sensitivities.items()
        if known.response.gain > 0.0 and (name != blind.name or how == "no error")
    ]
    np.testing.assert_allclose(one.losses, np.median(gains) * one.errors)
    for other, was in zip(listed, seen, strict=True):
        if other is not one:
            np.testing.assert_array_equal(other.losses, was.losses)
    macs = sum(float(option.costs[-1, 0]) for option in listed)
    chosen = share_out(listed, {"macs": 0.6 * macs}).get(blind.name)
    assert chosen is None or chosen != plain.choices[0], "it is not taken down to the lowest rank"


def test_where_no_site_shows_anything_kernels_decide_alone(found: Study) -> None:
    blind = {
        name: replace(known, response=replace(known.response, gain=0.0)) for name, known in found.sensitivities.items()
    }
    for option in options(replace(found, sensitivities=blind)):
        np.testing.assert_array_equal(option.losses, option.errors)
