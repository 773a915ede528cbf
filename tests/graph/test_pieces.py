"""Spatial forms in the graph: strides, dilations and pads shared out between the pieces, exact, and counted right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph.cost import competing, dense_cost, model_cost, rewritten_cost
from onnx_pointwise.graph.model_io import load, serialize
from onnx_pointwise.graph.pieces import pieces
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.sites import Site, find_sites
from onnx_pointwise.graph.surgery import BottleneckPass
from onnx_pointwise.numerics.forms import FORMS, SPATIAL, Form, full_rank
from onnx_pointwise.runtime.shape_inference import resolve
from tests.graphs import conv_model, make_model, normal, relative, run, value


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[np.ndarray, list[int], dict[str, Any]]:
    """A kernel with at least two long axes, the size of its input, and attributes that differ from axis to axis."""
    spatial = draw(st.sampled_from([2, 2, 2, 3]))
    kernel = [draw(st.integers(1, 5 if spatial == 2 else 3)) for _ in range(spatial)]
    assume(sum(length > 1 for length in kernel) > 1)
    padding = draw(st.sampled_from(["pads", "pads", "pads", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    dilations = [1 if padding.startswith("SAME") else draw(st.integers(1, 3)) for _ in range(spatial)]
    pads = [draw(st.integers(0, 3)) if padding == "pads" else 0 for _ in range(2 * spatial)]
    size = [
        max(1, dilation * (length - 1) + 1 - begin - end) + draw(st.integers(0, 4))
        for length, dilation, begin, end in zip(kernel, dilations, pads[:spatial], pads[spatial:], strict=True)
    ]
    attributes = {"strides": [draw(st.integers(1, 3)) for _ in range(spatial)], "dilations": dilations}
    attributes |= {"pads": pads} if padding == "pads" else {"auto_pad": padding}
    inputs, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return normal(outputs, inputs, *kernel, seed=draw(st.integers(0, 99))), size, attributes


@given(case=convolutions(), form=st.sampled_from(SPATIAL), bias=st.booleans(), more=st.integers(0, 2))
@settings(derandomize=True, deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
def test_at_full_rank_the_network_stays_and_costs_what_was_counted(
    case: tuple[np.ndarray, list[int], dict[str, Any]], form: Form, bias: bool, more: int
) -> None:
    kernel, size, attributes = case
    outputs, inputs = kernel.shape[:2]
    model = conv_model(kernel, size, batch=2, bias=normal(outputs) if bias else None, **attributes)
    loaded = load(model)
    (site,) = find_sites(loaded, resolve(loaded))
    choice = Choice(form, full_rank(form, inputs, outputs, kernel.shape[2:])[0] + more)
    BottleneckPass(Plan({"conv": choice}))(loaded)
    after, wanted = model_cost(loaded, resolve(loaded)), choice.cost(site)
    assert (after.macs, after.params, after.activation_bytes) == (wanted.macs, wanted.params, wanted.activation_bytes)
    full = serialize(loaded)
    onnx.checker.check_model(full, full_check=True)
    x = normal(2, inputs, *size, seed=7)
    assert relative(run(model, x=x)[0], run(full, x=x)[0]) < 1e-5


def test_each_piece_has_the_attributes_of_its_own_axes() -> None:
    model = conv_model(
        normal(6, 5, 3, 5), [17, 19], batch=1, bias=normal(6), strides=[2, 3], dilations=[2, 1], pads=[1, 2, 3, 4]
    )
    loaded = load(model)
    BottleneckPass(Plan({"conv": Choice("vertical", 7)}))(loaded)
    first, second = serialize(loaded).graph.node
    assert (first.name, second.name) == ("conv_vertical", "conv")
    assert (len(first.input), len(second.input)) == (2, 3)
    assert attributes_of(first) == {
        "kernel_shape": [3, 1],
        "strides": [2, 1],
        "dilations": [2, 1],
        "pads": [1, 0, 3, 0],
    }
    assert attributes_of(second) == {
        "kernel_shape": [1, 5],
        "strides": [1, 3],
        "dilations": [1, 1],
        "pads": [0, 2, 0, 4],
    }
    loaded = load(model)
    BottleneckPass(Plan({"conv": Choice("horizontal", 7)}))(loaded)
    first, second = serialize(loaded).graph.node
    assert (first.name, second.name) == ("conv_horizontal", "conv")
    assert attributes_of(first) == {
        "kernel_shape": [1, 5],
        "strides": [1, 3],
        "dilations": [1, 1],
        "pads": [0, 2, 0, 4],
    }
    assert attributes_of(second) == {
        "kernel_shape": [3, 1],
        "strides": [2, 1],
        "dilations": [2, 1],
        "pads": [1, 0, 3, 0],
    }


def test_an_automatic_padding_is_kept_for_each_axis() -> None:
    loaded = load(conv_model(normal(6, 5, 3, 5), [17, 19], batch=1, strides=[2, 3], auto_pad="SAME_LOWER"))
    BottleneckPass(Plan({"conv": Choice("vertical", 7)}))(loaded)
    first, second = serialize(loaded).graph.node
    assert attributes_of(first)["auto_pad"] == attributes_of(second)["auto_pad"] == b"SAME_LOWER"
    assert "pads" not in attributes_of(first) and "pads" not in attributes_of(second)


def test_what_is_known_of_shapes_is_known_of_the_piece_in_front() -> None:
    """Open dimensions stay open; along the axis that it does not cover the piece keeps the input's."""
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["y"], name="conv", strides=[2, 2]),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    model = make_model(
        nodes, [value("x", ["n", 4, "h", "w"])], [value("z", ["n", 5, "a", "b"])], {"W": normal(5, 4, 3, 3)}
    )
    model.graph.value_info.append(value("y", ["n", 5, "a", "b"]))
    loaded = load(model)
    BottleneckPass(Plan({"conv": Choice("vertical", 3)}))(loaded)
    first = next(node for node in loaded.graph if node.name == "conv_vertical")
    assert str(first.outputs[0].shape) == "[n,3,a,w]"


def only(model: onnx.ModelProto) -> Site:
    loaded = load(model)
    (site,) = find_sites(loaded, resolve(loaded))
    return site


def test_rows_are_strided_before_the_columns_are_read() -> None:
    """[2, 16, 32, 24] -> [2, 24, 16, 12] through [2, 5, 16, 24]."""
    site = only(conv_model(normal(24, 16, 3, 5), [32, 24], batch=2, strides=[2, 2], pads=[1, 2, 1, 2]))
    assert [piece.out_size for piece in pieces(site, "vertical", 5)] == [(16, 24), (16, 12)]
    cost = rewritten_cost(site, "vertical", 5)
    assert cost.macs == 2 * 16 * 24 * 16 * 5 * 3 + 2 * 16 * 12 * 5 * 24 * 5
    assert cost.params == 16 * 5 * 3 + 5 * 24 * 5
    assert cost.activation_bytes == 4 * 2 * (16 * 24 * 5 + 16 * 12 * 24)
    other = rewritten_cost(site, "horizontal", 5)
    assert other.macs == 2 * 32 * 12 * 16 * 5 * 5 + 2 * 16 * 12 * 5 * 24 * 3
    assert dense_cost(site).macs > max(cost.macs, other.macs)


@pytest.mark.parametrize("size", [[3], [5, 1], [1, 5], [1, 3, 1]])
def test_kernels_with_one_axis_are_not_offered_it(size: list[int]) -> None:
    site = only(conv_model(normal(6, 5, *size), [9] * len(size), batch=1))
    assert competing(site, FORMS) == ("reduce", "expand", "reduce_expand", "depthwise")
    assert competing(site, SPATIAL) == ()
    written = "x".join(map(str, size))
    with pytest.raises(PlanError, match=rf"'conv' cannot be rewritten as vertical, .*: it is {written}\. Use reduce"):
        BottleneckPass(Plan({"conv": Choice("vertical", 2)}))(load(conv_model(normal(6, 5, *size), [9] * len(size))))


def test_a_1x1_kernel_keeps_its_one_form() -> None:
    site = only(conv_model(normal(6, 5, 1, 1), [9, 9], batch=1))
    assert competing(site, FORMS) == ("expand",)
    assert competing(site, (*SPATIAL, "reduce")) == ("reduce",)
    assert competing(site, (*SPATIAL, "depthwise")) == ()
    with pytest.raises(PlanError, match=r"'conv' cannot be rewritten as depthwise.*a kernel of 1x1"):
        BottleneckPass(Plan({"conv": Choice("depthwise", 2)}))(load(conv_model(normal(6, 5, 1, 1), [9, 9])))


def test_a_depthwise_piece_does_what_the_site_does_and_counts_as_what_it_is() -> None:
    model = conv_model(normal(24, 16, 3, 5), [32, 24], batch=2, strides=[2, 2], pads=[1, 2, 1, 2], dilations=[1, 1])
    site = only(model)
    first, middle, last = pieces(site, "depthwise", 7)
    assert (first.group, middle.group, last.group) == (1, 7, 1)
    assert (first.attributes, last.attributes) == ({}, {})
    assert middle.attributes == {"strides": (2, 2), "dilations": (1, 1), "pads": (1, 2, 1, 2), "group": 7}
    assert [piece.out_size for piece in (first, middle, last)] == [(32, 24), (16, 12), (16, 12)]
    cost = rewritten_cost(site, "depthwise", 7)
    assert cost.macs == 2 * (32 * 24 * 16 * 7 + 16 * 12 * 7 * 15 + 16 * 12 * 7 * 24)
    assert cost.params == 16 * 7 + 7 * 15 + 7 * 24
    assert cost.activation_bytes == 4 * 2 * (32 * 24 * 7 + 16 * 12 * 7 + 16 * 12 * 24)


def test_a_1x1_before_a_spatial_piece_is_not_merged_with_it() -> None:
    """The piece in front is no 1x1; after it, or before, a 1x1 of a neighbour stays what it is."""
    weights = {"w1": normal(8, 6, 3, 3), "w2": normal(7, 8, 3, 3), "w3": normal(6, 7, 3, 3)}
    names = ["x", "u", "v", "y"]
    nodes = [
        helper.make_node("Conv", [names[at], f"w{at + 1}"], [names[at + 1]], name=f"n{at + 1}", pads=[1] * 4)
        for at in range(3)
    ]
    model = make_model(nodes, [value("x", [1, 6, 9, 9])], [value("y", [1, 6, 9, 9])], weights)
    loaded = load(model)
    plan = Plan({"n1": Choice("expand", 8), "n2": Choice("horizontal", 24), "n3": Choice("reduce", 7)})
    BottleneckPass(plan)(loaded)
    full = serialize(loaded)
    wanted = ["n1", "n1_expand", "n2_horizontal", "n2", "n3_reduce", "n3"]
    assert [node.name for node in full.graph.node] == wanted
    x = normal(1, 6, 9, 9)
    assert relative(run(model, x=x)[0], run(full, x=x)[0]) < 1e-5


@pytest.mark.parametrize(
    ("form", "channels"),
    [
        ("reduce", [(2, 7), (5, 2)]),
        ("expand", [(2, 7), (5, 2)]),
        ("reduce_expand", [(2, 7), (3, 2), (5, 3)]),
        ("vertical", [(2, 7), (5, 2)]),
        ("horizontal", [(2, 7), (5, 2)]),
    ],
)
def test_what_each_piece_reads_and_puts_out(form: Form, channels: list[tuple[int, int]]) -> None:
    (site,) = find_sites(load(conv_model(normal(5, 7, 3, 3), [8, 8])))
    rank = (2, 3) if form == "reduce_expand" else 2
    assert [(piece.out_channels, piece.in_channels) for piece in pieces(site, form, rank)] == channels
