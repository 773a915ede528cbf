"""What could be done to a site: against a search through everything."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.graph.cost import competing, dense_cost, rewritten_cost
from onnx_pointwise.graph.model_io import load
from onnx_pointwise.graph.sites import Site, find_sites
from onnx_pointwise.numerics.factorize import error_curve, error_curves, factorize
from onnx_pointwise.numerics.forms import FORMS, Form
from onnx_pointwise.planning.candidates import COLUMNS, Candidates, candidates
from onnx_pointwise.runtime.shape_inference import resolve
from tests.graphs import conv_model, normal


def make_site(
    outputs: int, inputs: int, *kernel: int, stride: int = 1, size: int = 9, correlated: bool = False, **options: Any
) -> Site:
    weights = normal(outputs, inputs, *kernel)
    if correlated:  # as trained kernels are: energy falls off along both sides
        weights *= 0.6 ** np.arange(outputs).reshape(-1, *[1] * (weights.ndim - 1))
        weights *= 0.7 ** np.arange(inputs).reshape(-1, *[1] * (weights.ndim - 2))
    model = load(conv_model(weights, [size] * len(kernel), batch=1, strides=[stride] * len(kernel), **options))
    (site,) = find_sites(model, resolve(model), min_channels=1)
    return site


SITES = st.builds(
    make_site,
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(1, 4),
    stride=st.integers(1, 2),
    correlated=st.booleans(),
)
CHOSEN = st.lists(st.sampled_from(FORMS), min_size=1, max_size=3, unique=True)


def everything(site: Site, forms: list[Form], moment: np.ndarray | None = None) -> list[tuple[Form, Any, Any, float]]:
    """Form, rank, cost and squared error of every form at every rank up to the full one."""
    kernel, _ = site.weights()
    found = []
    for form in forms:
        curve = error_curve(kernel, form, moment)
        curve = np.where(curve > 1e-14, curve, 0.0)  # what is lost in rounding is not lost
        for rank in itertools.product(*(range(1, size) for size in curve.shape)):
            if len(rank) == 2 and any(
                other in forms and part == size - 1
                for other, part, size in zip(("expand", "reduce"), rank, curve.shape, strict=True)
            ):
                continue  # the other form, with a 1x1 that does nothing
            key = rank if len(rank) == 2 else rank[0]
            found.append((form, key, rewritten_cost(site, form, key), float(curve[rank])))
    return found


def costs(option: Candidates, resource: Any) -> list[int]:
    return [int(item) for item in option.costs[:, COLUMNS[resource]]]


@given(site=SITES, forms=CHOSEN, resource=st.sampled_from(["macs", "params"]), data=st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=120)
def test_they_are_the_pareto_front_of_everything(site: Site, forms: list[Form], resource: Any, data: int) -> None:
    size = site.in_channels * site.taps
    mix = np.random.default_rng(data).standard_normal((size + 2, size))
    moment = None if data % 2 else mix.T @ mix
    option = candidates(site, forms=forms, resource=resource, curves=error_curves(site.weights()[0], FORMS, moment))
    dense = getattr(dense_cost(site), resource)
    assert option.dense[COLUMNS[resource]] == dense
    points = [
        (getattr(cost, resource), error)
        for _, _, cost, error in everything(site, list(competing(site, forms)), moment)
        if getattr(cost, resource) < dense
    ]
    front: list[tuple[int, float]] = []
    for cost, error in sorted(points):
        if not front or error < front[-1][1]:
            front.append((cost, error))
    assert list(zip(costs(option, resource), option.error.tolist(), strict=True)) == front


@given(site=SITES, forms=CHOSEN, resource=st.sampled_from(["macs", "params"]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_costs_and_errors_are_those_of_their_choices(site: Site, forms: list[Form], resource: Any) -> None:
    option = candidates(site, forms=forms, resource=resource)
    kernel, _ = site.weights()
    assert len(option.choices) == len(option.costs) == len(option.error)
    for index, choice in enumerate(option.choices):
        assert choice.form in forms
        cost = choice.cost(site)
        assert tuple(option.costs[index]) == (cost.macs, cost.params, 0.0)
        assert choice.error is not None
        assert choice.error**2 == pytest.approx(option.error[index], abs=1e-15)
        at = choice.rank if isinstance(choice.rank, tuple) else (choice.rank,)
        assert option.error[index] == pytest.approx(error_curve(kernel, choice.form)[at], abs=1e-14)
    assert np.all(np.diff(option.costs[:, COLUMNS[resource]]) > 0)
    assert np.all(np.diff(option.error) < 0)


def test_predicted_errors_hold_for_the_factors() -> None:
    """The curve of the form with two ranks is an upper bound, that of sums goes through fits, the others are met."""
    site = make_site(8, 7, 3, 3, correlated=True)
    kernel, _ = site.weights()
    for choice in candidates(site).choices:
        error = factorize(kernel, choice.form, choice.rank).error
        assert choice.error is not None
        if choice.form == "depthwise":
            assert error == pytest.approx(choice.error, rel=0.2, abs=0.02)
            continue
        assert error <= choice.error + 1e-6
        if choice.form != "reduce_expand":
            assert error == pytest.approx(choice.error, rel=1e-3, abs=1e-6)


def test_forms_compete() -> None:
    """At stride 2 the 1x1 in front runs four times as often as the one behind."""
    flat, strided = make_site(8, 8, 3, 3, size=16), make_site(8, 8, 3, 3, size=16, stride=2)
    assert (
        costs(candidates(strided, forms=["expand"]), "macs")[0]
        < costs(candidates(strided, forms=["reduce"]), "macs")[0]
    )
    assert costs(candidates(flat, forms=["expand"]), "macs")[0] < costs(candidates(flat, forms=["reduce"]), "macs")[0]
    all_forms = candidates(make_site(8, 8, 3, 3, size=16, correlated=True))
    assert len({choice.form for choice in all_forms.choices}) > 1


def test_where_nothing_pays_there_is_none() -> None:
    for forms in (FORMS, ["reduce"], ["expand"], ["reduce_expand"]):
        option = candidates(make_site(1, 1, 1, 1), forms=forms)
        assert option.choices == ()
        assert option.costs.shape == (0, 3)
        assert option.error.shape == (0,)
    assert candidates(make_site(6, 6, 3, 3), forms=[]).choices == ()


def test_an_exact_candidate_may_be_cheaper_than_the_dense_site() -> None:
    """A kernel of rank 2 is kept whole at rank 2."""
    weights = np.einsum("or,rik->oik", normal(8, 2), normal(2, 8, 9)).reshape(8, 8, 3, 3)
    model = load(conv_model(weights, [9, 9], batch=1))
    (site,) = find_sites(model, resolve(model))
    option = candidates(site, forms=["expand"])
    assert [choice.rank for choice in option.choices] == [1, 2]
    assert option.error[-1] < 1e-12


def test_what_folds_counts() -> None:
    """Batch normalisation scales the outputs, so it decides which of them matter."""
    plain, folded = (make_site(6, 6, 3, 3, behind=behind) for behind in ("none", "batchnorm"))
    np.testing.assert_allclose(
        candidates(folded).error, np.sort(candidates(folded).error)[::-1], err_msg="cheapest first"
    )
    assert not np.allclose(
        error_curve(plain.weights()[0], "expand"), error_curve(folded.weights()[0], "expand"), rtol=1e-3
    )
    expected = error_curve(folded.weights()[0], "expand")
    option = candidates(folded, forms=["expand"])
    assert [expected[choice.rank] for choice in option.choices] == option.error.tolist()
    assert option.dense[COLUMNS["params"]] == 6 * 6 * 9 + 4 * 6


def test_large_sites_do_not_overflow() -> None:
    """Costs are counted in 64 bits."""
    huge = replace(make_site(40, 40, 3, 3), batch=64, in_size=(4096, 4096), out_size=(4096, 4096))
    option = candidates(huge)
    assert option.costs[:, 0].min() > 0
    assert option.costs[:, 0].max() < option.dense[0]
    assert option.dense[0] == 64 * 4096 * 4096 * 40 * 40 * 9


@pytest.mark.parametrize("stride", [1, 2])
def test_a_1x1_kernel_has_one_form(stride: int) -> None:
    """Two 1x1 convolutions are the same in every form, but that one of them runs behind the stride."""
    site = make_site(24, 24, 1, 1, stride=stride, correlated=True)
    assert {choice.form for choice in candidates(site).choices} == {"expand"}
    assert {choice.form for choice in candidates(site, forms=["reduce", "reduce_expand"]).choices} == {"reduce"}
    assert candidates(site, forms=[]).choices == ()
