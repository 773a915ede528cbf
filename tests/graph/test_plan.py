"""Plans as documents: written, edited by hand, read again, and held against a model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph.model_io import load, to_bytes
from onnx_pointwise.graph.plan import Choice, Plan, make_choice, require_sites
from onnx_pointwise.graph.sites import Refusal, find_sites
from onnx_pointwise.graph.surgery import BottleneckPass
from onnx_pointwise.numerics.factorize import METHODS
from onnx_pointwise.numerics.forms import FORMS
from tests.graphs import conv_model, make_model, normal, value

PLAN = Plan(
    {"a/conv": Choice("reduce", 8, error=0.25), "b": Choice("expand", 4), "c": Choice("reduce_expand", (3, 5))},
    {"stem": Refusal("few_channels", "Only 3 feature maps come in.", {"in_channels": 3.0})},
    "whitened",
    {"target_macs": 0.5},
)


def two_convs() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="block1/conv", pads=[1] * 4),
        helper.make_node("Conv", ["c", "V"], ["y"], name="block2/conv", pads=[1] * 4),
    ]
    weights = {"W": normal(8, 6, 3, 3), "V": normal(8, 8, 3, 3)}
    return make_model(nodes, [value("x", [1, 6, 8, 8])], [value("y", [1, 8, 8, 8])], weights)


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_document_is_what_a_person_reads() -> None:
    document = json.loads(PLAN.to_json())
    assert document == document | {
        "format": "onnx_pointwise plan",
        "version": 1,
        "method": "whitened",
        "budget": {"target_macs": 0.5},
        "sites": {
            "a/conv": {"form": "reduce", "rank": 8, "error": 0.25},
            "b": {"form": "expand", "rank": 4},
            "c": {"form": "reduce_expand", "rank": [3, 5]},
        },
        "refusals": {
            "stem": {
                "code": "few_channels",
                "reason": "Only 3 feature maps come in.",
                "numbers": {"in_channels": 3.0},
            }
        },
    }
    assert list(document["sites"]) == ["a/conv", "b", "c"], "graph order is kept"
    assert PLAN.to_json().endswith("}\n")


def without_errors(plan: Plan) -> dict[str, Choice]:
    return {name: Choice(choice.form, choice.rank) for name, choice in plan.choices.items()}


RANK = st.integers(1, 10**6)
CHOICE = st.one_of(
    st.builds(Choice, st.sampled_from(["reduce", "expand"]), RANK, st.none() | st.floats(0, 1)),
    st.builds(Choice, st.just("reduce_expand"), st.tuples(RANK, RANK), st.none() | st.floats(0, 1)),
)


@given(choices=st.dictionaries(st.text(min_size=1), CHOICE, max_size=5), method=st.sampled_from(METHODS))
@settings(derandomize=True, deadline=None, max_examples=80)
def test_round_trip(choices: dict[str, Choice], method: Any) -> None:
    plan = Plan(choices, method=method, budget={"ratio": 0.5})
    again = Plan.from_json(plan.to_json())
    assert list(again.choices) == list(choices)
    assert (again.choices, again.method, again.budget) == (without_errors(plan), method, {"ratio": 0.5})


def test_what_is_corrected_goes_with_the_plan() -> None:
    plan = Plan({"a": Choice("reduce", 2), "b": Choice("reduce", 3)}, corrected=("c", "d"))
    assert Plan.from_json(plan.to_json()).corrected == ("c", "d")
    refusal = Refusal("slower", "It is slower.")
    # What leaves the plan stays whole, too; where nothing is left, nothing is to be made up for.
    assert plan.without({"b": refusal}).corrected == ("c", "d", "b")
    assert plan.without({"a": refusal, "b": refusal}).corrected == ()


def test_what_is_corrected_must_be_there() -> None:
    sites = {site.name: site for site in find_sites(load(two_convs()))}
    require_sites(Plan({}, corrected=("block1/conv",)), sites)
    with pytest.raises(PlanError, match="The model has no convolution 'block3/conv'"):
        require_sites(Plan({}, corrected=("block3/conv",)), sites)


def test_ranks_of_numpy_are_written_as_numbers() -> None:
    ranks: Any = (np.int64(3), np.int32(5))
    plan = Plan({"a": Choice("reduce", ranks[0]), "b": Choice("reduce_expand", ranks)})
    assert without_errors(Plan.from_json(plan.to_json())) == {
        "a": Choice("reduce", 3),
        "b": Choice("reduce_expand", (3, 5)),
    }


def test_a_plan_by_hand_needs_nothing_but_sites() -> None:
    plan = Plan.from_json('{"sites": {"conv": {"rank": 4}, "other": {"form": "reduce_expand", "rank": 6}}}')
    assert plan == Plan({"conv": Choice("reduce", 4), "other": Choice("reduce_expand", (6, 6))})
    assert plan.method == "als"
    assert Plan.from_json('{"sites": {}}') == Plan({})
    assert Plan.from_json('{"sites": {"a": {"rank": [3]}}}').choices == {"a": Choice("reduce", 3)}


def test_an_edited_plan_replays_as_edited() -> None:
    document = json.loads(Plan({"block1/conv": Choice("reduce", 2), "block2/conv": Choice("reduce", 2)}).to_json())
    del document["sites"]["block1/conv"]
    document["sites"]["block2/conv"].update(form="expand", rank=3)
    model = load(two_convs())
    BottleneckPass(Plan.from_json(json.dumps(document)))(model)
    assert [node.name for node in model.graph] == ["block1/conv", "block2/conv", "block2/conv_expand"]
    assert model.graph.initializers["block2/conv_weight"].shape.numpy() == (3, 8, 3, 3)
    again = load(two_convs())
    BottleneckPass(Plan.from_json(json.dumps(document)))(again)
    assert to_bytes(again) == to_bytes(model)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not JSON: Expecting value in line 1"),
        ('{"sites": {\n"a": }\n}', "not JSON: Expecting value in line 2"),
        ("[1, 2]", "not a plan: it needs an object 'sites' with a form and a rank for each site"),
        ('{"site": {}}', "not a plan: it needs an object 'sites'"),
        ('{"sites": ["a"]}', "not a plan: it needs an object 'sites'"),
        ('{"sites": {}, "format": "shopping list"}', "not a plan: its format is 'shopping list'"),
        ('{"sites": {}, "version": 2}', "version 2 of the plan format is not known here"),
        ('{"sites": {}, "version": "1"}', "version '1' of the plan format is not known here"),
        ('{"sites": {}, "budget": 0.5}', "'budget' must be an object"),
        ('{"sites": {}, "corrected": "a"}', "'corrected' must be a list of names of convolutions"),
        ('{"sites": {}, "corrected": [3]}', "'corrected' must be a list of names of convolutions"),
        (
            '{"sites": {"a": {"rank": 3}}, "corrected": ["b", "a"]}',
            "'a' is rewritten, so it cannot stand among those corrected as they are",
        ),
        ('{"sites": {}, "method": "magic"}', "unknown method 'magic'; use one of svd, whitened, als"),
        ('{"sites": {}, "method": ["als"]}', r"unknown method \['als'\]"),
        ('{"sites": {"a": {"rank": 1}, "a": {"rank": 2}}}', "'a' stands in it twice; keep one of them"),
        ('{"sites": {"a": 4}}', "site 'a' needs an object with 'form' and 'rank'"),
        ('{"sites": {"a": {"rang": 4}}}', "site 'a' has an unknown entry 'rang'; it takes form and rank"),
        ('{"sites": {"a": {}}}', "site 'a' needs a rank of at least 1 for reduce, whole numbers only, not None"),
        ('{"sites": {"a": {"rank": 0}}}', "site 'a' needs a rank of at least 1 for reduce, whole numbers only, not 0"),
        ('{"sites": {"a": {"rank": -3}}}', "not -3"),
        ('{"sites": {"a": {"rank": 4.0}}}', "not 4.0"),
        ('{"sites": {"a": {"rank": "4"}}}', "not '4'"),
        ('{"sites": {"a": {"rank": true}}}', "not True"),
        ('{"sites": {"a": {"rank": NaN}}}', "not nan"),
        ('{"sites": {"a": {"rank": []}}}', r"not \[\]"),
        (
            '{"sites": {"a": {"rank": [3, 4]}}}',
            r"needs a rank of at least 1 for reduce, whole numbers only, not \[3, 4\]",
        ),
        ('{"sites": {"a": {"form": "shrink", "rank": 4}}}', "unknown form 'shrink'; use reduce, expand, reduce_expand"),
        ('{"sites": {"a": {"form": null, "rank": 4}}}', "unknown form None"),
        (
            '{"sites": {"a": {"form": "reduce_expand", "rank": [3, 0]}}}',
            r"site 'a' needs two ranks of at least 1 for reduce_expand, whole numbers only, not \[3, 0\]",
        ),
        ('{"sites": {"a": {"form": "reduce_expand", "rank": [3, 4, 5]}}}', r"not \[3, 4, 5\]"),
        ('{"sites": {"a": {"form": "reduce_expand", "rank": [3, "4"]}}}', r"not \[3, '4'\]"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_every_malformed_plan_is_told_what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence) as caught:
        Plan.from_json(text, where="plan.json")
    assert str(caught.value).startswith("plan.json: ")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_choices_of_a_person(form: Any) -> None:
    both = form == "reduce_expand"
    assert make_choice("a", form, 7) == Choice(form, (7, 7) if both else 7)
    assert make_choice("a", form, np.int64(7)) == Choice(form, (7, 7) if both else 7)
    assert isinstance(make_choice("a", "reduce", np.int64(7)).rank, int)
    with pytest.raises(PlanError, match="ranks: site 'a' needs"):
        make_choice("a", form, 0, where="ranks")


# --- against a model --------------------------------------------------------------------------------------------------


def test_a_plan_that_fits_is_let_through() -> None:
    sites = {site.name: site for site in find_sites(load(two_convs()))}
    require_sites(Plan({"block1/conv": Choice("reduce", 2)}), sites)


def test_unknown_sites_are_told_the_names_that_are_like_them() -> None:
    sites = {site.name: site for site in find_sites(load(two_convs()))}
    with pytest.raises(PlanError, match=r"no convolution 'block2'; its convolutions are named like 'block2/conv'"):
        require_sites(Plan({"block2": Choice("reduce", 2)}), sites)
    with pytest.raises(PlanError, match=r"no convolution 'zzz'; .*'block1/conv', 'block2/conv'\."):
        require_sites(Plan({"zzz": Choice("reduce", 2)}), sites)
    with pytest.raises(PlanError, match=r"no convolution 'zzz'; it has no convolution at all\."):
        require_sites(Plan({"zzz": Choice("reduce", 2)}), {})


def test_sites_that_cannot_be_rewritten_are_told_why() -> None:
    sites = {site.name: site for site in find_sites(load(conv_model(normal(8, 2, 3, 3), [9, 9], group=4)))}
    with pytest.raises(PlanError, match=r"'conv' cannot be rewritten: A grouped convolution is already sparse"):
        require_sites(Plan({"conv": Choice("reduce", 2)}), sites)
    # What only would not pay is done when it is asked for.
    stem = {site.name: site for site in find_sites(load(conv_model(normal(8, 3, 3, 3), [9, 9])))}
    require_sites(Plan({"conv": Choice("reduce", 2)}), stem)


def test_a_record_of_latency_that_is_not_whole_is_refused() -> None:
    """Reports tell it again, after the model has been written."""
    whole = {
        "provider": "cpu",
        "threads": None,
        "dense_seconds": 1.0,
        "sites_alone_seconds": 0.5,
        "sites_inside_seconds": 0.5,
        "sum_of_sites": 0.7,
        "predicted": 0.7,
        "measured": None,
        "noise": 0.01,
        "sites": {"a": {"dense": 0.5, "rewritten": 0.2}},
    }
    entry = {"sites": {"a": {"form": "reduce", "rank": 4}}}
    assert Plan.from_json(json.dumps(entry | {"latency": whole})).latency == whole
    assert Plan.from_json(json.dumps(entry | {"latency": {}})).latency == {}
    wrong: list[dict[str, object]] = [
        {name: value for name, value in whole.items() if name != "sites_alone_seconds"},
        whole | {"dense_seconds": "1.0"},
        whole | {"measured": True},
        whole | {"provider": None},
        whole | {"threads": "2"},
        whole | {"predicted": float("inf")},
        whole | {"sites": ["a"]},
        whole | {"sites": {"a": {"dense": 0, "rewritten": 0.2}}},
        whole | {"sites": {"a": {"dense": 0.5}}},
    ]
    for latency in wrong:
        with pytest.raises(PlanError, match="'latency' is what was measured when the plan was made, and is not whole"):
            Plan.from_json(json.dumps(entry | {"latency": latency}))
