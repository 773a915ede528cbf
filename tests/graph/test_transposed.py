"""Transposed convolutions: read, costed, cut into pieces and put back, by ONNX Runtime's own account of them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph.cost import competing, dense_cost, model_cost, rewritten_cost
from onnx_pointwise.graph.model_io import load, serialize
from onnx_pointwise.graph.pieces import pieces, takes
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.sites import Refusal, Site, find_sites
from onnx_pointwise.graph.surgery import BottleneckPass, Replacement
from onnx_pointwise.numerics.factorize import compose, factorize, relative_error
from onnx_pointwise.numerics.forms import FORMS, SPATIAL, Form, Rank, full_rank
from onnx_pointwise.numerics.moments import patches
from onnx_pointwise.runtime.shape_inference import resolve
from tests.graphs import BEHIND, conv_model, make_model, normal, relative, run, value


def rewritten(
    model: onnx.ModelProto, choices: dict[str, Choice], replacements: dict[str, Replacement] | None = None
) -> onnx.ModelProto:
    """Apply a plan to a copy of a model and check the result."""
    copy = load(model).clone()
    BottleneckPass(Plan(choices), replacements)(copy)
    proto = serialize(copy)
    onnx.checker.check_model(proto)
    return proto


def only(model: onnx.ModelProto, *, sized: bool = False) -> Site:
    loaded = load(model)
    (site,) = find_sites(loaded, resolve(loaded) if sized else None)
    return site


def refusal(model: onnx.ModelProto) -> Refusal:
    found = only(model, sized=True).refusal
    assert found is not None
    return found


def as_rank(ranks: tuple[int, ...]) -> Rank:
    return (ranks[0], ranks[1]) if len(ranks) == 2 else ranks[0]


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments for `conv_model`, with everything that ONNX Runtime takes of a transposed convolution."""
    spatial = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 5 if spatial < 3 else 3)) for _ in range(spatial)]
    strides = [draw(st.integers(1, 3)) for _ in range(spatial)]
    dilations = [draw(st.integers(1, 2)) for _ in range(spatial)]
    size = [draw(st.integers(2, 5)) for _ in range(spatial)]
    spans = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations}
    how = draw(st.sampled_from(["pads", "pads", "VALID", "SAME_UPPER", "SAME_LOWER", "output_shape"]))
    if how == "pads":
        attributes["pads"] = [draw(st.integers(0, min(3, span))) for span in spans + spans]
        # Something has to be left of the output.
        for axis in range(spatial):
            left = (size[axis] - 1) * strides[axis] + 1 + spans[axis]
            if attributes["pads"][axis] + attributes["pads"][axis + spatial] >= left:
                attributes["pads"][axis] = attributes["pads"][axis + spatial] = 0
    if how in ("VALID", "SAME_UPPER", "SAME_LOWER"):
        attributes["auto_pad"] = how
    if how == "output_shape":
        attributes["output_shape"] = [
            (n - 1) * s + 1 + draw(st.integers(0, span)) for n, s, span in zip(size, strides, spans, strict=True)
        ]
        attributes |= draw(st.sampled_from([{}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}]))
    elif draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    if draw(st.booleans()):  # Frameworks leave out what is the default.
        plain = {"strides": [1] * spatial, "dilations": [1] * spatial, "pads": [0] * 2 * spatial}
        attributes = {key: entry for key, entry in attributes.items() if entry != plain.get(key)}
    seed, inputs, outputs = draw(st.integers(0, 99)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    return {
        "kernel": normal(inputs, outputs, *kernel, seed=seed),
        "size": size,
        "bias": normal(outputs, seed=seed + 1) if draw(st.booleans()) else None,
        "behind": draw(st.sampled_from(BEHIND)),
        "source": draw(st.sampled_from(["initializer", "constant", "identity"])),
        "opset": draw(st.sampled_from([11, 17, 21])),
        **attributes,
    }


@given(case=transposed_convolutions(), seed=st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
def test_every_form_of_any_transposed_convolution(case: dict[str, Any], seed: int) -> None:
    model = conv_model(transposed=True, **case)
    site, size = only(model), case["size"]
    assert site.rewritable or site.in_channels < 1
    assert (site.in_channels, site.out_channels) == case["kernel"].shape[:2]
    x = normal(2, site.in_channels, *size, seed=seed)
    (expected,) = run(model, x=x)
    weights, bias = site.weights()

    # It is a convolution over inputs with zeros in between: patches, their order and the padding say so.
    window = site.window(size)
    assert window.out_size(size) == expected.shape[2:]
    seen = patches(x, window)
    flat = weights.reshape(len(weights), -1)
    by_patches = flat @ seen + (0.0 if bias is None else bias[:, None])
    got = by_patches.reshape(len(weights), 2, *expected.shape[2:]).swapaxes(0, 1)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())

    moment = seen.astype(np.float64) @ seen.T.astype(np.float64)
    rng = np.random.default_rng(seed)
    for form in FORMS:
        if not takes(site, form):
            continue
        ranks = full_rank(form, site.in_channels, site.out_channels, site.kernel_shape)
        exact = Choice(form, as_rank(tuple(rank + int(rng.integers(0, 2)) for rank in ranks)))
        full = rewritten(model, {"conv": exact})
        (same,) = run(full, x=x)
        assert same.shape == expected.shape
        assert relative(expected, same) < 1e-5
        kinds = [node.op_type for node in full.graph.node if "Conv" in node.op_type]
        wanted = [piece.op_type for piece in pieces(site, form, exact.rank)]
        assert kinds == wanted
        assert kinds.count("ConvTranspose") == (2 if form in SPATIAL else 1)
        if not seen.any():
            continue
        # At a low rank it does what the factors say: their error is measured in the moment of these very patches.
        low = as_rank(tuple(int(rng.integers(1, rank + 1)) for rank in ranks))
        factors = factorize(weights, form, low, second_moment=moment)
        cheap = rewritten(model, {"conv": Choice(form, factors.rank)}, {"conv": Replacement(factors, bias)})
        (near,) = run(cheap, x=x)
        assert near.shape == expected.shape
        still = 0.0 if bias is None else bias.reshape(-1, *[1] * len(size))
        lost = np.linalg.norm(near - expected) / np.linalg.norm(expected - still)
        assert lost == pytest.approx(relative_error(weights, compose(factors), moment), rel=1e-2, abs=2e-5)
        plain = factorize(weights, form, low, method="svd")
        slack = 1e-3 if form == "depthwise" else 1e-6  # descent ends where little is left
        assert factors.error <= relative_error(weights, compose(plain), moment) * (1.0 + slack) + slack


# --- costs and pieces -------------------------------------------------------------------------------------------------


def upsampling(**attributes: Any) -> onnx.ModelProto:
    """16 feature maps of 9x7 to 24 of 18x14, by a 4x4 kernel."""
    given = {"strides": [2, 2], "pads": [1] * 4} | attributes
    return conv_model(normal(16, 24, 4, 4), [9, 7], batch=2, bias=normal(24), transposed=True, **given)


def test_costs_by_hand() -> None:
    model = upsampling()
    site = only(model, sized=True)
    assert (site.in_size, site.out_size) == ((9, 7), (18, 14))
    low, high = 2 * 9 * 7, 2 * 18 * 14
    assert dense_cost(site).macs == low * 16 * 24 * 16
    assert rewritten_cost(site, "reduce", 5).macs == low * (16 * 5 + 5 * 24 * 16)
    assert rewritten_cost(site, "expand", 5).macs == low * 16 * 5 * 16 + high * 5 * 24
    assert rewritten_cost(site, "reduce_expand", (5, 6)).macs == low * (16 * 5 + 5 * 6 * 16) + high * 6 * 24
    assert rewritten_cost(site, "vertical", 5).macs == low * 16 * 5 * 4 + 2 * 18 * 7 * 5 * 24 * 4
    assert rewritten_cost(site, "horizontal", 5).macs == low * 16 * 5 * 4 + 2 * 9 * 14 * 5 * 24 * 4
    assert rewritten_cost(site, "vertical", 5).params == 5 * 4 * (16 + 24) + 24


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_costs_what_the_rewritten_model_costs(form: Form) -> None:
    model = upsampling(output_padding=[1, 0])
    site = only(model, sized=True)
    choice = Choice(form, (5, 6) if form == "reduce_expand" else 5)
    made = load(rewritten(model, {"conv": choice}))
    cost = model_cost(made, resolve(made))
    assert (cost.macs, cost.params) == (choice.cost(site).macs, choice.cost(site).params)
    assert cost.unknown == 0


def test_one_tap_is_two_1x1_with_the_cheap_one_in_front() -> None:
    site = only(conv_model(normal(8, 6, 1, 1), [5, 5], transposed=True, strides=[2, 2]), sized=True)
    assert competing(site, FORMS) == ("reduce",)
    assert competing(site, ["expand"]) == ("expand",)


def test_a_given_output_shape_leaves_no_spatial_form() -> None:
    model = upsampling(pads=[0] * 4, output_shape=[17, 15])
    site = only(model, sized=True)
    assert site.out_size == (17, 15)
    assert set(competing(site, FORMS)) == set(FORMS) - set(SPATIAL)
    with pytest.raises(PlanError, match="its output_shape does not say what comes between"):
        rewritten(model, {"conv": Choice("vertical", 8)})


def test_a_plan_is_read_as_it_was_written() -> None:
    model = upsampling()
    plan = Plan({"conv": Choice("reduce_expand", (7, 9))})
    again = Plan.from_json(plan.to_json())
    assert json.loads(plan.to_json())["sites"] == {"conv": {"form": "reduce_expand", "rank": [7, 9]}}
    first, second = (load(model).clone() for _ in range(2))
    BottleneckPass(plan)(first)
    BottleneckPass(again)(second)
    assert serialize(first) == serialize(second)


# --- surgery ----------------------------------------------------------------------------------------------------------


def test_the_kernel_keeps_its_name_and_attributes() -> None:
    model = upsampling(output_padding=[1, 0])
    made = rewritten(model, {"conv": Choice("reduce", 5)})
    front, kept = made.graph.node
    assert (front.op_type, kept.op_type, kept.name) == ("Conv", "ConvTranspose", "conv")
    assert kept.attribute == model.graph.node[0].attribute
    shapes = {item.name: tuple(item.dims) for item in made.graph.initializer}
    assert (shapes[front.input[1]], shapes[kept.input[1]]) == ((5, 16, 1, 1), (5, 24, 4, 4))


@pytest.mark.parametrize("form", FORMS)
def test_float16_stays_float16(form: Form) -> None:
    kernel = normal(16, 24, 4, 4).astype(np.float16) / np.float16(16.0)
    model = conv_model(kernel, [9, 7], transposed=True, behind="batchnorm", strides=[2, 2], pads=[1] * 4)
    ranks = full_rank(form, 16, 24, (4, 4))
    made = rewritten(model, {"conv": Choice(form, as_rank(ranks))})
    assert {tensor.data_type for tensor in made.graph.initializer} == {onnx.TensorProto.FLOAT16}
    x = normal(2, 16, 9, 7).astype(np.float16)
    assert relative(run(model, x=x)[0], run(made, x=x)[0]) < 5e-3


def test_1x1_convolutions_that_meet_become_one() -> None:
    """Behind one site and in front of the next: a transposed one on either side."""
    nodes = [
        helper.make_node("ConvTranspose", ["x", "W"], ["a"], name="up", strides=[2, 2], pads=[0, 0, 0, 0]),
        helper.make_node("Conv", ["a", "V"], ["b"], name="conv", pads=[1] * 4),
        helper.make_node("ConvTranspose", ["b", "U"], ["y"], name="again", strides=[2, 2]),
    ]
    weights = {"W": normal(8, 10, 4, 4), "V": normal(9, 10, 3, 3), "U": normal(9, 7, 2, 2)}
    model = make_model(nodes, [value("x", [1, 8, 6, 6])], [value("y", [1, 7, 28, 28])], weights)
    choices = {"up": Choice("expand", 4), "conv": Choice("reduce_expand", (5, 4)), "again": Choice("reduce", 5)}
    made = rewritten(model, choices)
    assert [node.name for node in made.graph.node] == ["up", "conv_reduce", "conv", "again_reduce", "again"]
    apart = load(model).clone()
    for name, choice in choices.items():  # one pass a site merges nothing
        BottleneckPass(Plan({name: choice}))(apart)
    x = normal(1, 8, 6, 6)
    assert relative(run(serialize(apart), x=x)[0], run(made, x=x)[0]) < 1e-5


def test_what_cannot_be_rewritten_says_why() -> None:
    grouped = conv_model(normal(8, 3, 3, 3), [5, 5], transposed=True, group=4)
    assert refusal(grouped).code == "grouped"
    assert refusal(grouped).numbers == {"group": 4.0, "in_channels": 2.0, "out_channels": 12.0}
    assert refusal(conv_model(normal(8, 1, 3, 3), [5, 5], transposed=True, group=8)).code == "depthwise"
    assert refusal(conv_model(normal(3, 8, 3, 3), [5, 5], transposed=True)).code == "few_channels"
    nodes = [helper.make_node("ConvTranspose", ["x", "W"], ["y"], name="up")]
    free = make_model(nodes, [value("x", [1, 4, 5, 5]), value("W", [4, 6, 3, 3])], [value("y", None)])
    assert refusal(free).code == "dynamic_kernel"
    elsewhere = [helper.make_node("ConvTranspose", ["x", "W"], ["y"], name="up", domain="other")]
    strange = make_model(
        elsewhere, [value("x", [1, 4, 5, 5])], [value("y", None)], {"W": normal(4, 6, 3, 3)}, domains=["other"]
    )
    (site,) = find_sites(load(strange))
    assert site.refusal is not None
    assert site.refusal.code == "other_convolution"


def test_groups_that_are_none_break_nothing() -> None:
    """The runtime refuses such a node; reading the model has to come as far as that."""
    model = conv_model(normal(8, 3, 3, 3), [5, 5], transposed=True)
    model.graph.node[0].attribute.append(helper.make_attribute("group", 0))
    (site,) = find_sites(load(model))
    assert site.op_type == "ConvTranspose"


def test_an_output_shape_of_all_axes_is_refused() -> None:
    model = upsampling(pads=[0] * 4, output_shape=[2, 24, 17, 15])
    (site,) = find_sites(load(model))
    assert site.refusal is not None
    assert site.refusal.code == "output_shape"
    assert math.prod(site.kernel_shape) == 16
