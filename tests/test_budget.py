"""Budgets: what they promise holds for every model, and what cannot be met is refused."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.budget import Budget, by_energy, by_ratio, by_target, choose, hand_made
from onnx_pointwise.candidates import Candidates, candidates
from onnx_pointwise.cost import dense_cost, model_cost
from onnx_pointwise.errors import PlanError
from onnx_pointwise.plan import Choice
from onnx_pointwise.shapes import resolve
from onnx_pointwise.sites import Site, find_sites


def chain(widths: list[int], kernel: int = 3, size: int = 8, seed: int = 0) -> ir.Model:
    """A chain of convolutions whose kernels have a falling spectrum over their input channels."""
    rng = np.random.default_rng(seed)
    values = [ir.Value(name="x", shape=ir.Shape(["N", widths[0], size, size]), type=ir.TensorType(ir.DataType.FLOAT))]
    nodes, initializers = [], []
    for index, (i, o) in enumerate(itertools.pairwise(widths)):
        weight = rng.standard_normal((o, i, kernel, kernel)) * (1.0 + np.arange(i)).reshape(1, i, 1, 1) ** -0.5
        tensor = ir.tensor(weight.astype(np.float32), name=f"w{index}")
        value = ir.Value(name=f"w{index}", shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        initializers.append(value)
        pads = ir.AttrInt64s("pads", [kernel // 2] * 4)
        node = ir.Node("", "Conv", [values[-1], value], [pads], name=f"conv{index}")
        node.outputs[0].name = f"y{index}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        values.append(node.outputs[0])
    values[-1].shape = ir.Shape(["N", widths[-1], size, size])
    graph = ir.Graph(
        [values[0]], [values[-1]], nodes=nodes, initializers=initializers, opset_imports={"": 17}, name="chain"
    )
    return ir.Model(graph, ir_version=8)


def sites_of(model: ir.Model) -> list[Site]:
    return find_sites(model, resolve(model))


def total_after(sites: list[Site], chosen: dict[str, Choice], resource: str) -> int:
    return sum(
        getattr(chosen[site.name].cost(site) if site.name in chosen else dense_cost(site), resource) for site in sites
    )


WIDTHS = st.lists(st.integers(4, 24), min_size=2, max_size=5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(WIDTHS, st.floats(0.3, 1.0), st.sampled_from(["macs", "params"]))
def test_target_is_met_or_refused(widths: list[int], target: float, resource: str) -> None:
    model = chain(widths)
    sites = sites_of(model)
    cost = model_cost(model, resolve(model))
    total = getattr(cost, resource)
    options = [candidates(site, resource=resource) for site in sites]
    try:
        chosen = by_target(options, target, total, resource)
    except PlanError:
        cheapest = sum(int(o.cost(resource)[0]) if o.choices else o.dense_cost(resource) for o in options)
        assert cheapest > target * total
        return
    assert total_after(sites, chosen, resource) <= target * total


@settings(max_examples=30, deadline=None, derandomize=True)
@given(WIDTHS, st.floats(0.2, 1.0))
def test_ratio_holds_at_every_site(widths: list[int], ratio: float) -> None:
    sites = sites_of(chain(widths))
    chosen = by_ratio([candidates(site) for site in sites], ratio)
    for site in sites:
        if site.name in chosen:
            assert chosen[site.name].cost(site).macs <= ratio * dense_cost(site).macs


@settings(max_examples=30, deadline=None, derandomize=True)
@given(WIDTHS, st.floats(0.3, 1.0))
def test_energy_is_kept_at_every_rewritten_site(widths: list[int], energy: float) -> None:
    options = [candidates(site) for site in sites_of(chain(widths))]
    for choice in by_energy(options, energy).values():
        assert choice.error is not None
        assert 1.0 - choice.error**2 >= energy - 1e-9


def test_a_lower_target_never_loses_less() -> None:
    model = chain([16, 24, 24, 16])
    options = [candidates(site) for site in sites_of(model)]
    total = model_cost(model, resolve(model)).macs

    def lost(target: float) -> float:
        return sum((choice.error or 0.0) ** 2 for choice in by_target(options, target, total).values())

    losses = [lost(target) for target in (0.9, 0.7, 0.5, 0.3)]
    assert losses == sorted(losses)
    assert losses[0] > 0


def test_nothing_is_rewritten_where_nothing_is_asked_to_go() -> None:
    model = chain([16, 16, 16])
    options = [candidates(site) for site in sites_of(model)]
    assert by_target(options, 1.0, model_cost(model, resolve(model)).macs) == {}


def test_every_dense_site_has_a_reason() -> None:
    model = chain([3, 16, 16, 16])
    sites = sites_of(model)
    cost = model_cost(model, resolve(model))
    plan = choose(sites, Budget(target_macs=0.9), cost, nodes_to_exclude=["conv2"])
    assert set(plan.choices) | set(plan.refusals) == {"conv0", "conv1", "conv2"}
    assert plan.refusals["conv0"].code == "few_channels"
    assert plan.refusals["conv2"].code == "excluded"


def test_ranks_by_hand_stand_beside_a_target() -> None:
    model = chain([16, 16, 16, 16])
    cost = model_cost(model, resolve(model))
    sites = sites_of(model)
    plan = choose(sites, Budget({"conv1": Choice("expand", 5)}, target_macs=0.6), cost)
    assert plan.choices["conv1"] == Choice("expand", 5)
    assert total_after(sites, dict(plan.choices), "macs") <= 0.6 * cost.macs


def test_a_rank_that_saves_nothing_is_refused_with_its_numbers() -> None:
    model = chain([16, 16])
    plan = choose(sites_of(model), Budget({"conv0": Choice("reduce", 16)}), model_cost(model, resolve(model)))
    refusal = plan.refusals["conv0"]
    assert refusal.code == "no_gain"
    assert refusal.numbers["macs_after"] > refusal.numbers["macs"]


@pytest.mark.parametrize("name", ["ratio", "energy", "target_macs", "target_params"])
@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_shares_outside_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(PlanError, match="above 0 and at most 1"):
        Budget(**{name: value})


def test_budgets_exclude_each_other_and_one_is_needed() -> None:
    with pytest.raises(PlanError, match="Name one budget"):
        Budget(ratio=0.5, target_macs=0.5)
    with pytest.raises(PlanError, match="Name a budget"):
        Budget()


def test_unknown_sites_are_refused_by_name() -> None:
    model = chain([16, 16])
    cost = model_cost(model, resolve(model))
    with pytest.raises(PlanError, match=r"no convolution 'nope'.*conv0"):
        choose(sites_of(model), Budget({"nope": Choice("reduce", 2)}), cost)
    with pytest.raises(PlanError, match="no convolution 'nope'"):
        choose(sites_of(model), Budget(ratio=0.5), cost, nodes_to_exclude=["nope"])


def test_ranks_by_hand_are_read_by_form() -> None:
    made = hand_made({"a": 4, "b": (2, 3), "c": Choice("expand", 7)}, ["reduce_expand", "expand"])
    assert made == {"a": Choice("expand", 4), "b": Choice("reduce_expand", (2, 3)), "c": Choice("expand", 7)}
    with pytest.raises(PlanError, match="two ranks"):
        hand_made({"a": 4}, ["reduce_expand"])
    with pytest.raises(PlanError, match="rank of at least 1"):
        hand_made({"a": 0}, ["reduce"])


def test_candidates_without_any_choice_are_called_no_gain() -> None:
    model = chain([16, 16])
    (site,) = sites_of(model)
    none = Candidates(site, (), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 10, 10)
    assert by_ratio([none], 0.5) == {}
    assert by_energy([none], 0.5) == {}
    assert by_target([none], 1.0, 10) == {}
