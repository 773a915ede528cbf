"""Budgets: what they promise holds for every model, and what cannot be met is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph.cost import ModelCost, dense_cost, model_cost
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.sites import Site, find_sites
from onnx_pointwise.planning import budget as budget_module
from onnx_pointwise.planning.budget import Budget, choose, hand_made, options_of, settle
from onnx_pointwise.runtime.shape_inference import resolve


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


def plan_of(model: ir.Model, wanted: Budget, exclude: Sequence[str] = ()) -> tuple[list[Site], ModelCost, Plan]:
    shapes = resolve(model)
    sites, cost = find_sites(model, shapes), model_cost(model, shapes)
    split = settle(sites, wanted, exclude)
    return sites, cost, choose(sites, split, wanted, options_of(split, wanted), cost)


WIDTHS = st.lists(st.integers(4, 24), min_size=2, max_size=5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(WIDTHS, st.floats(0.3, 1.0), st.sampled_from(["macs", "params"]))
def test_target_is_met_or_refused(widths: list[int], target: float, resource: str) -> None:
    model = chain(widths)
    wanted = Budget(**{f"target_{resource}": target})
    try:
        sites, cost, plan = plan_of(model, wanted)
    except PlanError as error:
        assert "cannot be reached" in str(error)
        sites = sites_of(model)
        listed = options_of(settle(sites, wanted), wanted)
        column = 0 if resource == "macs" else 1
        cheapest = sum(float(option.costs[:, column].min()) for option in listed)
        assert cheapest > target * getattr(model_cost(model, resolve(model)), resource)
        return
    assert total_after(sites, dict(plan.choices), resource) <= target * getattr(cost, resource) * (1 + 1e-9)


def test_two_targets_hold_at_once() -> None:
    model = chain([16, 24, 24, 16])
    sites, cost, plan = plan_of(model, Budget(target_macs=0.7, target_params=0.5))
    assert total_after(sites, dict(plan.choices), "macs") <= 0.7 * cost.macs
    assert total_after(sites, dict(plan.choices), "params") <= 0.5 * cost.params


@settings(max_examples=30, deadline=None, derandomize=True)
@given(WIDTHS, st.floats(0.2, 1.0))
def test_ratio_holds_at_every_site(widths: list[int], ratio: float) -> None:
    sites, _, plan = plan_of(chain(widths), Budget(ratio=ratio))
    for site in sites:
        if site.name in plan.choices:
            assert plan.choices[site.name].cost(site).macs <= ratio * dense_cost(site).macs


@settings(max_examples=30, deadline=None, derandomize=True)
@given(WIDTHS, st.floats(0.3, 1.0))
def test_energy_is_kept_at_every_rewritten_site(widths: list[int], energy: float) -> None:
    _, _, plan = plan_of(chain(widths), Budget(energy=energy))
    for choice in plan.choices.values():
        assert choice.error is not None
        assert 1.0 - choice.error**2 >= energy - 1e-9


def test_a_lower_target_never_loses_less() -> None:
    model = chain([16, 24, 24, 16])

    def lost(target: float) -> float:
        choices = plan_of(model, Budget(target_macs=target))[2].choices
        return sum((choice.error or 0.0) ** 2 for choice in choices.values())

    losses = [lost(target) for target in (0.9, 0.7, 0.5, 0.3)]
    assert losses == sorted(losses)
    assert losses[0] > 0


def test_nothing_is_rewritten_where_nothing_is_asked_to_go() -> None:
    assert plan_of(chain([16, 16, 16]), Budget(target_macs=1.0))[2].choices == {}


def test_every_dense_site_has_a_reason() -> None:
    _, _, plan = plan_of(chain([3, 16, 16, 16]), Budget(target_macs=0.9), ["conv2"])
    assert set(plan.choices) | set(plan.refusals) == {"conv0", "conv1", "conv2"}
    assert plan.refusals["conv0"].code == "few_channels"
    assert plan.refusals["conv2"].code == "excluded"
    generous = plan_of(chain([16, 16, 16, 16]), Budget(target_macs=0.95))[2]
    assert {refusal.code for refusal in generous.refusals.values()} == {"budget_met"}


def test_a_site_that_no_form_makes_cheaper_is_called_no_gain() -> None:
    wide = chain([4, 2], kernel=2)
    _, _, plan = plan_of(wide, Budget(ratio=1.0))
    for choice in plan.choices.values():
        assert choice.cost(sites_of(wide)[0]).macs < dense_cost(sites_of(wide)[0]).macs
    (site,) = sites_of(chain([4, 1], kernel=2))
    _, _, tiny = plan_of(chain([4, 1], kernel=2), Budget(target_macs=1.0))
    assert tiny.refusals[site.name].code in ("no_gain", "budget_met")


def test_ranks_by_hand_stand_beside_a_target() -> None:
    sites, cost, plan = plan_of(chain([16, 16, 16, 16]), Budget({"conv1": Choice("expand", 5)}, target_macs=0.6))
    assert plan.choices["conv1"] == Choice("expand", 5)
    assert total_after(sites, dict(plan.choices), "macs") <= 0.6 * cost.macs


def test_a_rank_that_saves_nothing_is_refused_with_its_numbers() -> None:
    _, _, plan = plan_of(chain([16, 16]), Budget({"conv0": Choice("reduce", 16)}))
    refusal = plan.refusals["conv0"]
    assert refusal.code == "no_gain"
    assert refusal.numbers["macs_after"] > refusal.numbers["macs"]


def test_sites_without_a_rank_are_called_not_asked() -> None:
    _, _, plan = plan_of(chain([16, 16, 16]), Budget({"conv0": Choice("reduce", 4)}))
    assert plan.refusals["conv1"].code == "not_asked"


@pytest.mark.parametrize("name", ["ratio", "energy", "target_macs", "target_params"])
@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_shares_outside_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(PlanError, match="above 0 and at most 1"):
        Budget(**{name: value})


def test_budgets_exclude_each_other_and_one_is_needed() -> None:
    with pytest.raises(PlanError, match="Name one budget"):
        Budget(ratio=0.5, target_macs=0.5)
    with pytest.raises(PlanError, match="Name one budget"):
        Budget(ratio=0.5, energy=0.5)
    with pytest.raises(PlanError, match="Name a budget"):
        Budget()


def test_unknown_sites_are_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"no convolution 'nope'.*conv0"):
        plan_of(chain([16, 16]), Budget({"nope": Choice("reduce", 2)}))
    with pytest.raises(PlanError, match="no convolution 'nope'"):
        plan_of(chain([16, 16]), Budget(ratio=0.5), ["nope"])


def test_ranks_by_hand_are_read_by_form() -> None:
    made = hand_made({"a": 4, "b": (2, 3), "c": Choice("expand", 7)}, ["reduce_expand", "expand"])
    assert made == {"a": Choice("expand", 4), "b": Choice("reduce_expand", (2, 3)), "c": Choice("expand", 7)}
    with pytest.raises(PlanError, match="two ranks"):
        hand_made({"a": 4}, ["reduce_expand"])
    with pytest.raises(PlanError, match="rank of at least 1"):
        hand_made({"a": 0}, ["reduce"])


def test_whole_convolutions_get_no_bias_where_it_costs_a_kernel() -> None:
    sites, _, plan = plan_of(chain([16, 16, 16, 16]), Budget({"conv1": Choice("expand", 5)}))
    bare = [site.name for site in sites if not site.has_bias]
    assert bare and set(bare) - {"conv1"} <= set(plan.corrected)
    left = budget_module._corrected(sites, plan.choices, plan.refusals, free_bias=False)
    assert left == tuple(name for name in plan.corrected if name not in bare)
