"""Graph surgery: what the rewritten graph computes, and what of the model stays as it was."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx_ir.passes.common import IdentityEliminationPass, InlinePass, RemoveUnusedNodesPass, ShapeInferencePass

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph import surgery
from onnx_pointwise.graph.model_io import load, serialize
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.sites import find_sites
from onnx_pointwise.graph.surgery import BottleneckPass, Replacement, corrected
from onnx_pointwise.numerics import forms
from onnx_pointwise.numerics.factorize import compose, factorize, whole
from onnx_pointwise.numerics.forms import FORMS, Form, Rank, has_form
from tests.graphs import (
    BEHIND,
    constant_node,
    conv_model,
    function_model,
    if_model,
    ir_version_for,
    loop_model,
    make_model,
    normal,
    opened,
    relative,
    run,
    session,
    value,
)


def rewritten(
    model: onnx.ModelProto,
    choices: dict[str, Choice],
    replacements: dict[str, Replacement] | None = None,
) -> onnx.ModelProto:
    """Apply a plan to a copy of a model and check the result."""
    loaded = load(model).clone()
    result = BottleneckPass(Plan(choices), replacements)(loaded)
    assert result.modified
    proto = serialize(result.model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def in_place(model: onnx.ModelProto, weights: Replacement) -> onnx.ModelProto:
    """Give the only site of a model other weights."""
    loaded = load(model).clone()
    assert BottleneckPass(Plan({}, corrected=("conv",)), {"conv": weights})(loaded).modified
    proto = serialize(loaded)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def only_site(model: onnx.ModelProto) -> Any:
    (site,) = find_sites(load(model))
    return site


def full_rank(form: Form, kernel: np.ndarray) -> Rank:
    full = forms.full_rank(form, kernel.shape[1], kernel.shape[0], kernel.shape[2:])
    return full if len(full) == 2 else full[0]


def graph_names(model: onnx.ModelProto) -> list[str]:
    """Every name that the runtime or ONNX wants to be unique: nodes and values, subgraphs included."""
    names: list[str] = []

    def visit(graph: onnx.GraphProto) -> None:
        names.extend(f"node {node.name}" for node in graph.node if node.name)
        names.extend(f"value {output}" for node in graph.node for output in node.output if output)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    visit(attribute.g)

    visit(model.graph)
    return names


# --- generated single-convolution graphs ------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments for `conv_model`, with everything that ONNX allows of a plain convolution."""
    spatial = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 5 if spatial < 3 else 3)) for _ in range(spatial)]
    inputs, outputs = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    strides = [draw(st.integers(1, 3)) for _ in range(spatial)]
    auto_pad = draw(st.sampled_from([None, None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    # ONNX Runtime takes dilations beside SAME from no model.
    same = auto_pad is not None and auto_pad.startswith("SAME")
    dilations = [1 if same else draw(st.integers(1, 2)) for _ in range(spatial)]
    pads = [draw(st.integers(0, 2)) for _ in range(2 * spatial)] if auto_pad in (None, "NOTSET") else [0] * 2 * spatial
    extent = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    padding = [pads[axis] + pads[axis + spatial] for axis in range(spatial)]
    size = [max(1, extent[axis] - padding[axis]) + draw(st.integers(0, 2)) for axis in range(spatial)]
    opset = draw(st.integers(9, 21))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations}
    if auto_pad is not None:
        attributes["auto_pad"] = auto_pad
    if auto_pad in (None, "NOTSET"):
        attributes["pads"] = pads
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    if draw(st.booleans()):  # Frameworks leave out what is the default.
        defaults = {"strides": [1] * spatial, "dilations": [1] * spatial, "pads": [0] * 2 * spatial}
        attributes = {key: entry for key, entry in attributes.items() if entry != defaults.get(key)}
    seed = draw(st.integers(0, 99))
    return {
        "kernel": normal(outputs, inputs, *kernel, seed=seed),
        "size": size if draw(st.booleans()) else [f"s{axis}" for axis in range(spatial)],
        "concrete": size,
        "batch": draw(st.sampled_from(["batch", 1, 3])),
        "bias": normal(outputs, seed=seed + 1) if draw(st.booleans()) else None,
        "behind": draw(st.sampled_from(BEHIND)),
        "source": draw(st.sampled_from(["initializer", "constant", "identity"])),
        "opset": opset,
        "ir_version": draw(st.sampled_from([ir_version_for(opset), 3 if opset == 9 else 4, 10])),
        "dtype": draw(st.sampled_from([np.float32, np.float32, np.float32, np.float16])),
        **attributes,
    }


def impulses(inputs: int, size: list[int]) -> np.ndarray:
    """Every unit vector of the input space, [n, I, *size]: sums over them are expectations over white noise."""
    count = inputs * math.prod(size)
    return np.eye(count, dtype=np.float32).reshape(count, inputs, *size)


class Responses:
    """A model, run over any number of inputs in batches of the size it is made for."""

    def __init__(self, model: onnx.ModelProto, batch: int | str) -> None:
        self._session = session(model)
        self._batch = batch

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        step = len(inputs) if isinstance(self._batch, str) else self._batch
        filled = np.concatenate([inputs, np.zeros((-len(inputs) % step, *inputs.shape[1:]), inputs.dtype)])
        outputs = [self._session.run(None, {"x": part})[0] for part in np.split(filled, len(filled) // step)]
        return np.concatenate(outputs)[: len(inputs)].astype(np.float64)


def occupancy(kernel: np.ndarray, size: list[int], attributes: dict[str, Any]) -> np.ndarray:
    """[*k]: how often each tap lies on the input, not on the padding, as the runtime counts it."""
    taps = math.prod(kernel.shape[2:])
    probes = np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel.shape[2:])
    model = conv_model(probes, size, batch=1, **attributes)
    (counted,) = run(model, x=np.ones((1, 1, *size), np.float32))
    return counted.reshape(taps, -1).mean(axis=1)


@given(case=convolutions(), seed=st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=240, suppress_health_check=list(HealthCheck))
def test_every_form_of_any_convolution_does_what_was_predicted(case: dict[str, Any], seed: int) -> None:
    case = dict(case)
    size, dtype, batch = case.pop("concrete"), case.pop("dtype"), case["batch"]
    kernel = case.pop("kernel").astype(dtype)
    declared = case.pop("size")
    attributes = {key: case[key] for key in ("strides", "dilations", "pads", "auto_pad", "kernel_shape") if key in case}
    model = conv_model(kernel, declared, **case)
    site = only_site(model)
    assert site.rewritable
    assert len(site.folds) == {"none": 0, "mul_add": 2}.get(case["behind"], 1)
    outputs, inputs = kernel.shape[:2]
    weights, bias = site.weights()
    seen = occupancy(kernel.astype(np.float32), size, attributes)
    assume(seen.any())  # Else the stride leads from padding to padding.
    moment = np.diag(np.tile(seen, inputs))
    basis = impulses(inputs, size).astype(dtype)
    still = np.zeros((1, *basis.shape[1:]), dtype)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((3, *basis.shape[1:])).astype(dtype)
    dense = Responses(model, batch)
    expected, offset = dense(basis), dense(still)
    half = dtype == np.float16
    close = 1e-2 if half else 1e-5
    for form in (form for form in FORMS if has_form(form, kernel.shape[2:])):
        ranks = forms.full_rank(form, inputs, outputs, kernel.shape[2:])
        drawn = tuple(int(rng.integers(1, size + 1)) for size in ranks)
        factors = factorize(weights, form, drawn if len(drawn) == 2 else drawn[0], second_moment=moment)
        replacement = Replacement(factors, bias if site.folds else None)
        cheap = Responses(rewritten(model, {"conv": Choice(form, factors.rank)}, {"conv": replacement}), batch)
        got = cheap(basis)
        assert got.shape == expected.shape
        # With every unit vector as input, sums are expectations over white noise: no sampling error at all.
        measured = np.linalg.norm(got - expected) / np.linalg.norm(expected - offset)
        assert measured == pytest.approx(factors.error, rel=0.05 if half else 1e-3, abs=6e-3 if half else 2e-5)
        np.testing.assert_allclose(cheap(still), offset, rtol=close, atol=close)

        more = int(rng.integers(0, 4))
        exact = tuple(size + more for size in ranks)
        full = rewritten(model, {"conv": Choice(form, exact if len(exact) == 2 else exact[0])})
        assert relative(dense(noise), Responses(full, batch)(noise)) < close
        convolutions = [node for node in full.graph.node if node.op_type == "Conv"]
        assert len(convolutions) == (3 if form == "depthwise" else 1 + len(ranks))
        assert (full.ir_version, full.opset_import[0].version) == (model.ir_version, case["opset"])
        assert full.graph.output == model.graph.output
        assert full.graph.input[0] == model.graph.input[0]
        stored = helper.np_dtype_to_tensor_dtype(kernel.dtype)
        assert {tensor.data_type for tensor in full.graph.initializer} <= {stored}
    same = in_place(model, Replacement(whole(weights), bias if site.folds else None))
    assert relative(dense(noise), Responses(same, batch)(noise)) < close
    assert sum(node.op_type == "Conv" for node in same.graph.node) == 1


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("behind", ["none", "batchnorm"])
def test_float64_and_bfloat16_keep_their_type(dtype: Any, form: Form, behind: str) -> None:
    kernel = normal(6, 5, 3, 3).astype(dtype)
    model = conv_model(kernel, [7, 7], batch=1, bias=normal(6), behind=behind, opset=22, pads=[1, 1, 1, 1])
    full = rewritten(model, {"conv": Choice(form, full_rank(form, kernel))})
    wanted = helper.np_dtype_to_tensor_dtype(kernel.dtype)
    assert {tensor.data_type for tensor in full.graph.initializer} == {wanted}
    assert all(info.type.tensor_type.elem_type == wanted for info in full.graph.value_info)
    # ONNX Runtime's CPU provider runs neither: run what the factors make of it in float32.
    tolerance = 1e-6 if dtype == np.float64 else 3e-2
    x = normal(2, 5, 7, 7)[:1]
    (before,), (after,) = (run(in_float32(proto), x=x) for proto in (model, full))
    assert relative(before, after) < tolerance


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with all floating-point tensors and declarations in float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for info in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return copy


# --- the pass as a citizen of onnx_ir ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_two_rewrites_give_the_same_bytes(form: Form) -> None:
    model = conv_model(normal(8, 6, 3, 3), [9, 9], behind="batchnorm")
    choice = Choice(form, (3, 4) if form == "reduce_expand" else 3)
    first, second = (rewritten(model, {"conv": choice}).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_plan_without_choices_changes_nothing() -> None:
    model = load(conv_model(normal(8, 6, 3, 3), [9, 9]))
    before = serialize(model).SerializeToString(deterministic=True)
    result = BottleneckPass(Plan({}))(model)
    assert not result.modified
    assert serialize(model).SerializeToString(deterministic=True) == before


def test_an_error_leaves_the_model_as_it_was() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "V"], ["y"], name="second"),
    ]
    shapes = [value("x", [1, 4, 9, 9])], [value("y", [1, 4, 5, 5])]
    model = load(make_model(nodes, *shapes, {"W": normal(4, 4, 3, 3), "V": normal(4, 4, 3, 3, seed=1)}))
    before = serialize(model).SerializeToString(deterministic=True)
    with pytest.raises(PlanError, match="rank"):
        BottleneckPass(Plan({"first": Choice("reduce", 2), "second": Choice("reduce", 0)}))(model)
    with pytest.raises(PlanError, match="no convolution 'third'"):
        BottleneckPass(Plan({"first": Choice("reduce", 2), "third": Choice("reduce", 1)}))(model)
    assert serialize(model).SerializeToString(deterministic=True) == before


def test_factors_that_overflow_the_model_s_type_are_refused_with_the_node_s_name() -> None:
    model = conv_model(np.full((4, 4, 3, 3), 6e4, np.float16), [9, 9], name="hot")
    with pytest.raises(PlanError, match=r"'hot'.*float16"):
        rewritten(model, {"hot": Choice("reduce", 1)})


def test_the_pass_works_next_to_stock_passes() -> None:
    model = conv_model(normal(8, 6, 3, 3), [9, 9], source="identity", behind="batchnorm", relu=True)
    passes = ir.passes.PassManager(
        [
            IdentityEliminationPass(),
            ShapeInferencePass(),
            BottleneckPass(Plan({"conv": Choice("reduce_expand", (6, 8))})),
            RemoveUnusedNodesPass(),
            ShapeInferencePass(),
        ]
    )
    result = passes(load(model).clone())
    assert result.modified
    proto = serialize(result.model)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node] == ["Conv", "Conv", "Conv", "Relu"]
    x = normal(2, 6, 9, 9)
    assert relative(run(model, x=x)[0], run(proto, x=x)[0]) < 1e-5


def test_what_identifies_the_model_stays() -> None:
    model = conv_model(normal(8, 6, 3, 3), ["height", "width"], behind="batchnorm", relu=True, opset=13, ir_version=7)
    model.producer_name, model.producer_version, model.domain = "maker", "1.2", "example.org"
    model.model_version, model.doc_string = 5, "what it is"
    model.graph.doc_string, model.graph.name = "what the graph is", "net"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    helper.set_model_props(model, {"classes": "a,b", "author": "somebody"})
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.doc_string = "stem"
    node.metadata_props.add(key="layer", value="block.0")
    model.graph.input[0].doc_string = "an image"
    model.graph.output[0].doc_string = "a map"
    cheap = rewritten(model, {"conv": Choice("reduce_expand", (3, 4))})
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(cheap, field) == getattr(model, field), field
    assert {(item.domain, item.version) for item in cheap.opset_import} == {("", 13), ("com.microsoft", 1)}
    assert {item.key: item.value for item in cheap.metadata_props} == {"classes": "a,b", "author": "somebody"}
    assert (cheap.graph.name, cheap.graph.doc_string) == ("net", "what the graph is")
    assert list(cheap.graph.input) == list(model.graph.input)
    assert list(cheap.graph.output) == list(model.graph.output)
    kept = next(node for node in cheap.graph.node if node.name == "conv")
    assert (kept.doc_string, [(item.key, item.value) for item in kept.metadata_props]) == (
        "stem",
        [("layer", "block.0")],
    )


def test_the_kernel_keeps_its_attributes_and_the_1x1_take_none_of_them() -> None:
    attributes = {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 2, 1]}
    model = conv_model(normal(8, 6, 3, 3), [9, 9], **attributes)
    cheap = rewritten(model, {"conv": Choice("reduce_expand", (3, 4))})
    first, middle, last = cheap.graph.node
    assert {item.name: list(item.ints) for item in middle.attribute} == attributes
    for node in (first, last):
        assert {item.name: list(item.ints) for item in node.attribute} == {"kernel_shape": [1, 1]}


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_derive_from_the_node() -> None:
    cheap = rewritten(
        conv_model(normal(8, 6, 3, 3), [9, 9], bias=normal(8), name="block/conv"),
        {"block/conv": Choice("reduce_expand", (3, 4))},
    )
    assert [node.name for node in cheap.graph.node] == ["block/conv_reduce", "block/conv", "block/conv_expand"]
    assert [list(node.output) for node in cheap.graph.node] == [
        ["block/conv_reduce_output"],
        ["block/conv_output"],
        ["y"],
    ]
    # The bias is what it was, so it keeps its name.
    assert [tensor.name for tensor in cheap.graph.initializer] == [
        "B",
        "block/conv_reduce_weight",
        "block/conv_weight",
        "block/conv_expand_weight",
    ]


def test_names_that_are_taken_get_a_number() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["conv_reduce_output"], name="conv_reduce"),
        helper.make_node("Conv", ["conv_reduce_output", "conv_weight", "conv_bias"], ["conv_output"], name="conv"),
        helper.make_node("Add", ["conv_output", "conv_reduce_weight"], ["y"], name="conv_expand"),
    ]
    weights = {
        "conv_weight": normal(5, 4, 3, 3),
        "conv_bias": normal(5),
        "conv_reduce_weight": normal(1, 5, 1, 1),
    }
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", [1, 5, 6, 6])], weights)
    x = normal(1, 4, 8, 8)
    for form in FORMS:
        cheap = rewritten(model, {"conv": Choice(form, full_rank(form, weights["conv_weight"]))})
        names = graph_names(cheap)
        assert len(names) == len(set(names))
        initializers = [tensor.name for tensor in cheap.graph.initializer]
        assert len(initializers) == len(set(initializers))
        assert relative(run(model, x=x)[0], run(cheap, x=x)[0]) < 1e-5
        if form == "reduce":
            assert [node.name for node in cheap.graph.node] == ["conv_reduce", "conv_reduce_2", "conv"]
            assert cheap.graph.node[1].output[0] == "conv_reduce_output_2"
            assert set(initializers) == {"conv_bias_2", "conv_reduce_weight_2", "conv_weight_2"}


def test_a_second_number_is_taken_where_the_first_is_too() -> None:
    """Names of inputs count."""
    nodes = [helper.make_node("Conv", ["conv_reduce_output", "W"], ["y"], name="conv")]
    inputs = [value(name, [1, 4, 8, 8]) for name in ("conv_reduce_output", "conv_reduce_output_2")]
    model = make_model(nodes, inputs, [value("y", [1, 5, 6, 6])], {"W": normal(5, 4, 3, 3)})
    cheap = rewritten(model, {"conv": Choice("reduce", 4)})
    assert [list(node.output) for node in cheap.graph.node] == [["conv_reduce_output_3"], ["y"]]


@pytest.mark.parametrize("name", ["", "same"])
def test_nodes_without_a_name_of_their_own_go_by_their_output(name: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name=name),
        helper.make_node("Conv", ["a", "V"], ["y"], name=name),
    ]
    weights = {"W": normal(5, 4, 3, 3), "V": normal(6, 5, 3, 3)}
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", [1, 6, 4, 4])], weights)
    assert [site.name for site in find_sites(load(model))] == ["a", "y"]
    loaded = load(model)
    BottleneckPass(Plan({"a": Choice("reduce", 4), "y": Choice("expand", 6)}))(loaded)
    proto = serialize(loaded)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.name for node in proto.graph.node] == ["a_reduce", name, name, "y_expand"]
    for index, node in enumerate(proto.graph.node):  # The runtime takes no two nodes of one name.
        node.name = node.name if name == "" else f"{node.name}{index}"
    for index, node in enumerate(model.graph.node):
        node.name = node.name if name == "" else f"{node.name}{index}"
    x = normal(1, 4, 8, 8)
    assert relative(run(model, x=x)[0], run(proto, x=x)[0]) < 1e-5


def test_a_name_that_is_another_one_s_output_stays_unambiguous() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["second"], name=""),
        helper.make_node("Conv", ["second", "V"], ["y"], name="second"),
    ]
    weights = {"W": normal(5, 4, 3, 3), "V": normal(6, 5, 3, 3)}
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", [1, 6, 4, 4])], weights)
    names = [site.name for site in find_sites(load(model))]
    assert len(set(names)) == 2
    x = normal(1, 4, 8, 8)
    cheap = rewritten(model, {names[0]: Choice("reduce", 4), names[1]: Choice("reduce", 5)})
    assert relative(run(model, x=x)[0], run(cheap, x=x)[0]) < 1e-5


# --- outputs and neighbours -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_that_is_an_output_keeps_what_follows_it(form: Form) -> None:
    kernel = normal(5, 4, 3, 3)
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["middle"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["middle", "s", "b", "m", "v"], ["y"], name="bn"),
        helper.make_node("Relu", ["middle"], ["z"], name="relu"),
    ]
    weights = {"W": kernel, "s": normal(5), "b": normal(5, seed=1), "m": normal(5, seed=2), "v": np.ones(5, np.float32)}
    outputs = [value(name, [1, 5, 8, 8]) for name in ("z", "middle", "y")]
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], outputs, weights)
    assert only_site(model).folds == ()
    cheap = rewritten(model, {"conv": Choice(form, full_rank(form, kernel))})
    assert [output.name for output in cheap.graph.output] == ["z", "middle", "y"]
    x = normal(1, 4, 8, 8)
    for before, after in zip(run(model, x=x), run(cheap, x=x), strict=True):
        assert relative(before, after) < 1e-5


def test_an_output_with_one_consumer_does_not_fold() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node("Mul", ["c", "half"], ["y"], name="mul"),
    ]
    weights = {"W": normal(5, 4, 3, 3), "half": np.array(0.5, np.float32)}
    outputs = [value(name, [1, 5, 6, 6]) for name in ("y", "c")]
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], outputs, weights)
    x = normal(1, 4, 8, 8)
    for form in FORMS:
        cheap = rewritten(model, {"conv": Choice(form, full_rank(form, weights["W"]))})
        for before, after in zip(run(model, x=x), run(cheap, x=x), strict=True):
            assert relative(before, after) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("behind", ["none", "batchnorm"])
def test_what_is_known_of_the_output_stays(form: Form, behind: str) -> None:
    model = conv_model(normal(5, 4, 3, 3), [8, 8], behind=behind, relu=True)
    result = "t0" if behind == "none" else "t1"
    info = value(result, ["batch", 5, 6, 6])
    info.doc_string = "the map before the Relu"
    info.metadata_props.add(key="scale", value="0.5")
    model.graph.value_info.append(info)
    cheap = rewritten(model, {"conv": Choice(form, full_rank(form, normal(5, 4, 3, 3)))})
    assert [item for item in cheap.graph.value_info if item.name == result] == [info]
    kept = next(node for node in cheap.graph.node if node.output[0] == result)
    assert kept.op_type == "Conv"


@pytest.mark.parametrize("form", FORMS)
def test_only_what_has_one_consumer_folds(form: Form) -> None:
    """conv -> BN -> (Relu, output): BN folds, its output stays an output and keeps its consumers."""
    kernel = normal(5, 4, 3, 3)
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["z"], name="relu"),
        helper.make_node("Mul", ["n", "half"], ["y"], name="mul"),
    ]
    weights = {
        "W": kernel,
        "s": normal(5),
        "b": normal(5, seed=1),
        "m": normal(5, seed=2),
        "v": np.ones(5, np.float32),
        "half": np.array(0.5, np.float32),
    }
    outputs = [value(name, [1, 5, 8, 8]) for name in ("n", "y", "z")]
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], outputs, weights)
    assert [node.op_type for node in only_site(model).folds] == ["BatchNormalization"]
    cheap = rewritten(model, {"conv": Choice(form, full_rank(form, kernel))})
    assert [output.name for output in cheap.graph.output] == ["n", "y", "z"]
    assert not any(node.op_type == "BatchNormalization" for node in cheap.graph.node)
    x = normal(1, 4, 8, 8)
    for before, after in zip(run(model, x=x), run(cheap, x=x), strict=True):
        assert relative(before, after) < 1e-5


def test_several_consumers_and_an_output_at_once_stay() -> None:
    kernel = normal(4, 4, 3, 3)
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "x"], ["sum"], name="residual"),
        helper.make_node("Mul", ["c", "c"], ["square"], name="square"),
    ]
    outputs = [value(name, [1, 4, 8, 8]) for name in ("sum", "square", "c")]
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], outputs, {"W": kernel})
    x = normal(1, 4, 8, 8)
    for form in FORMS:
        cheap = rewritten(model, {"conv": Choice(form, full_rank(form, kernel))})
        for before, after in zip(run(model, x=x), run(cheap, x=x), strict=True):
            assert relative(before, after) < 1e-5


def test_constants_that_others_use_stay_and_the_rest_goes() -> None:
    nodes = [
        constant_node(normal(5), "shared"),
        helper.make_node("Conv", ["x", "W", "shared"], ["c"], name="conv"),
        helper.make_node("Mul", ["c", "factor"], ["m"], name="mul"),
        helper.make_node("Conv", ["m", "V", "shared"], ["d"], name="other"),
        helper.make_node("Mul", ["d", "factor"], ["y"], name="mul2"),
    ]
    weights = {"W": normal(5, 4, 3, 3), "V": normal(5, 5, 3, 3), "factor": np.array(0.5, np.float32)}
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", [1, 5, 4, 4])], weights)
    x = normal(1, 4, 8, 8)
    one = rewritten(model, {"conv": Choice("reduce", 4)})
    assert {tensor.name for tensor in one.graph.initializer} >= {"V", "factor"}
    assert "W" not in {tensor.name for tensor in one.graph.initializer}
    assert any(node.op_type == "Constant" for node in one.graph.node)
    both = rewritten(model, {"conv": Choice("reduce", 4), "other": Choice("expand", 5)})
    assert not {"W", "V", "factor"} & {tensor.name for tensor in both.graph.initializer}
    assert not any(node.op_type in ("Constant", "Mul") for node in both.graph.node)
    for cheap in (one, both):
        assert relative(run(model, x=x)[0], run(cheap, x=x)[0]) < 1e-5


def test_initializers_that_are_graph_inputs_too() -> None:
    model = opened(conv_model(normal(5, 4, 3, 3), [8, 8], bias=normal(5), behind="batchnorm", ir_version=8))
    cheap = rewritten(model, {"conv": Choice("reduce", 4)})
    # What the factors replace is no input any more, and what replaces it need not be one.
    assert [item.name for item in cheap.graph.input] == ["x"]
    x = normal(2, 4, 8, 8)
    assert relative(run(model, x=x)[0], run(cheap, x=x)[0]) < 1e-5


@pytest.mark.parametrize("ir_version", [3, 4])
def test_before_ir_version_4_new_initializers_are_graph_inputs(ir_version: int) -> None:
    model = conv_model(normal(5, 4, 3, 3), [8, 8], bias=normal(5), behind="batchnorm", opset=9, ir_version=ir_version)
    cheap = rewritten(model, {"conv": Choice("reduce_expand", (2, 3))})
    initializers = {tensor.name for tensor in cheap.graph.initializer}
    assert {item.name for item in cheap.graph.input} == {"x"} | (initializers if ir_version == 3 else set())
    assert run(cheap, x=normal(2, 4, 8, 8))[0].shape == (2, 5, 6, 6)


# --- refusals, subgraphs, functions -----------------------------------------------------------------------------------


def test_a_shared_kernel_is_refused_by_name() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "W"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", [1, 4, 8, 8])], {"W": normal(4, 4, 3, 3)})
    with pytest.raises(PlanError, match=r"'second' cannot be rewritten: Other nodes use the same kernel"):
        rewritten(model, {"second": Choice("reduce", 2)})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_convolutions_in_branches_are_rewritten_where_they_are(form: Form, ir_version: int) -> None:
    kernel = normal(5, 4, 3, 3)
    model = if_model(kernel, ir_version=ir_version)
    choice = Choice(form, full_rank(form, kernel))
    cheap = rewritten(model, {"then_conv": choice, "else_conv": choice})
    assert [node.op_type for node in cheap.graph.node] == ["If"]
    names = graph_names(cheap)
    assert len([name for name in names if name.startswith("node ")]) == len(
        {name for name in names if name.startswith("node ")}
    )
    assert "W" not in {tensor.name for tensor in cheap.graph.initializer}
    for attribute in cheap.graph.node[0].attribute:
        assert not attribute.g.input, "a branch takes no inputs, so before IR version 4 it has no initializers"
        assert bool(attribute.g.initializer) == (ir_version >= 4)
    x = normal(1, 4, 8, 8)
    for flag in (True, False):
        before, after = (run(proto, x=x, flag=np.array(flag))[0] for proto in (model, cheap))
        assert relative(before, after) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_in_a_loop_is_rewritten_where_it_is(form: Form) -> None:
    kernel = normal(4, 4, 3, 3) / 6
    model = loop_model(kernel)
    cheap = rewritten(model, {"loop_conv": Choice(form, full_rank(form, kernel))})
    x = normal(1, 4, 8, 8)
    assert relative(run(model, x=x)[0], run(cheap, x=x)[0]) < 1e-5


def test_functions_are_rewritten_after_inlining_only() -> None:
    kernel = normal(5, 5, 3, 3)
    model = function_model(kernel)
    sites = find_sites(load(model))
    assert [site.refusal.code for site in sites if site.refusal] == ["in_function"] * 2
    with pytest.raises(PlanError, match=r"local function.*inline functions first"):
        rewritten(model, {sites[1].name: Choice("reduce", 2)})
    inlined = InlinePass()(load(model).clone()).model
    names = [site.name for site in find_sites(inlined) if site.rewritable]
    assert len(names) == len(set(names)) == 4
    BottleneckPass(Plan(dict.fromkeys(names, Choice("reduce", 5))))(inlined)
    proto = serialize(inlined)
    onnx.checker.check_model(proto, full_check=True)
    x = normal(1, 5, 8, 8)
    assert relative(run(model, x=x)[0], run(proto, x=x)[0]) < 1e-5


def test_all_sites_of_a_network_at_once() -> None:
    """A residual network in small: every form at once, batch normalisation, branches and a concatenation."""
    weights: dict[str, np.ndarray] = {}
    nodes = []

    def conv(source: str, result: str, outputs: int, inputs: int, size: int, **attributes: Any) -> str:
        weights[f"{result}_w"] = normal(outputs, inputs, size, size) / size
        nodes.append(helper.make_node("Conv", [source, f"{result}_w"], [result], name=f"n_{result}", **attributes))
        return result

    def norm(source: str, result: str, channels: int) -> str:
        for index, (label, array) in enumerate(
            {"s": normal(channels), "b": normal(channels), "m": normal(channels), "v": np.ones(channels)}.items()
        ):
            weights[f"{result}_{label}"] = (array + 0.1 * index).astype(np.float32)
        nodes.append(helper.make_node("BatchNormalization", [source, *(f"{result}_{key}" for key in "sbmv")], [result]))
        return result

    a = norm(conv("x", "a", 8, 4, 3, pads=[1] * 4), "an", 8)
    nodes.append(helper.make_node("Relu", [a], ["ar"]))
    b = norm(conv("ar", "b", 8, 8, 5, pads=[2] * 4), "bn", 8)
    nodes.append(helper.make_node("Add", [b, "ar"], ["sum"]))
    c = conv("sum", "c", 6, 8, 3, pads=[1] * 4, strides=[2, 2])
    d = conv("sum", "d", 6, 8, 1, strides=[2, 2])
    nodes.append(helper.make_node("Concat", [c, d], ["y"], axis=1))
    model = make_model(nodes, [value("x", ["n", 4, 8, 8])], [value("y", ["n", 12, 4, 4])], weights)
    x = normal(3, 4, 8, 8)
    reference = run(model, x=x)[0]
    for order in itertools.permutations(FORMS, 3):
        choices = {
            f"n_{key}": Choice(form, full_rank(form, weights[f"{key}_w"]))
            for key, form in zip("abc", order, strict=True)
        }
        cheap = rewritten(model, choices)
        assert relative(reference, run(cheap, x=x)[0]) < 1e-5
        assert not any(node.op_type == "BatchNormalization" for node in cheap.graph.node)


def test_the_bias_takes_up_what_factors_do_to_the_mean() -> None:
    kernel, bias, mean = normal(5, 4, 3, 3), normal(5, seed=1), normal(36, seed=2).astype(np.float64)
    site = only_site(conv_model(kernel, [8, 8], bias=bias))
    made = Replacement(factorize(kernel, "reduce", 2), None)
    better = corrected(site, made, mean)
    assert better.factors is made.factors and better.bias is not None
    flat = [array.astype(np.float64).reshape(5, -1) for array in (kernel, compose(made.factors))]
    np.testing.assert_allclose(flat[1] @ mean + better.bias, flat[0] @ mean + bias, rtol=1e-6, atol=1e-6)
    bare = corrected(only_site(conv_model(kernel, [8, 8])), made, mean)
    assert bare.bias is not None
    np.testing.assert_allclose(flat[1] @ mean + bare.bias, flat[0] @ mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("behind", ["none", "batchnorm"])
@pytest.mark.parametrize("bias", [None, normal(6)])
def test_a_convolution_that_stays_whole_gets_other_weights_where_it_is(behind: str, bias: np.ndarray | None) -> None:
    model = conv_model(normal(6, 5, 3, 3), [7, 7], batch=1, bias=bias, behind=behind, pads=[1, 2, 0, 1], strides=[2, 1])
    other, offset = normal(6, 5, 3, 3, seed=8), normal(6, seed=9)
    made = in_place(model, Replacement(whole(other), offset.astype(np.float64)))
    wanted = conv_model(other, [7, 7], batch=1, bias=offset, pads=[1, 2, 0, 1], strides=[2, 1])
    x = normal(1, 5, 7, 7)
    np.testing.assert_allclose(run(made, x=x)[0], run(wanted, x=x)[0], rtol=1e-5, atol=1e-5)
    (node,) = made.graph.node
    assert (node.name, node.attribute) == (model.graph.node[0].name, model.graph.node[0].attribute)
    assert made.graph.output == model.graph.output
    assert len(made.graph.initializer) == 2


def test_a_convolution_that_stays_whole_stays_as_it_is_without_weights() -> None:
    model = load(conv_model(normal(6, 5, 3, 3), [7, 7]))
    before = serialize(model).SerializeToString(deterministic=True)
    assert not BottleneckPass(Plan({}, corrected=("conv",)))(model).modified
    assert serialize(model).SerializeToString(deterministic=True) == before


def test_what_made_a_kernel_goes_with_it_to_the_last_constant() -> None:
    nodes = [
        helper.make_node("Mul", ["V", "g"], ["scaled"], name="scale"),
        helper.make_node("Transpose", ["scaled"], ["W"], name="turn", perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "W"], ["y"], name="conv", pads=[1] * 4),
    ]
    weights = {"V": normal(4, 6, 3, 3), "g": normal(1, 6, 1, 1)}
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", [1, 6, 8, 8])], weights)
    after = rewritten(model, {"conv": Choice("reduce", 4)})
    assert {node.op_type for node in after.graph.node} == {"Conv"}
    assert not {"V", "g"} & {tensor.name for tensor in after.graph.initializer}
    x = normal(1, 4, 8, 8)
    assert relative(run(model, x=x)[0], run(after, x=x)[0]) < 1e-5


@pytest.mark.parametrize("other", ["used", "an output"])
def test_what_made_a_kernel_stays_as_far_as_others_read_it(other: str) -> None:
    nodes = [
        helper.make_node("Mul", ["V", "g"], ["scaled"], name="scale"),
        helper.make_node("Transpose", ["scaled"], ["W"], name="turn", perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "W"], ["y"], name="conv"),
    ]
    outputs = [value("y", [1, 6, 6, 6]), value("scaled", [4, 6, 3, 3])]
    if other == "used":
        nodes.append(helper.make_node("Relu", ["scaled"], ["z"], name="second"))
        outputs[1] = value("z", [4, 6, 3, 3])
    weights = {"V": normal(4, 6, 3, 3), "g": normal(1, 6, 1, 1)}
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], outputs, weights)
    after = rewritten(model, {"conv": Choice("reduce", 4)})
    kinds = {node.op_type for node in after.graph.node}
    assert "Mul" in kinds and "Transpose" not in kinds
    x = normal(1, 4, 8, 8)
    for wanted, got in zip(run(model, x=x), run(after, x=x), strict=True):
        assert relative(wanted, got) < 1e-5


@pytest.mark.parametrize("source", ["initializer", "node"])
def test_a_constant_that_is_read_twice_is_dropped_once(source: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "p", "p", "p", "p"], ["y"], name="bn"),
    ]
    weights = {"W": normal(5, 4, 3, 3)}
    half = np.full(5, 0.5, np.float32)
    if source == "node":
        nodes.insert(0, constant_node(half, "p"))
    else:
        weights["p"] = half
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", [1, 5, 6, 6])], weights)
    after = rewritten(model, {"conv": Choice("reduce", 4)})
    assert [node.op_type for node in after.graph.node] == ["Conv", "Conv"]
    assert "p" not in {tensor.name for tensor in after.graph.initializer}
    x = normal(1, 4, 8, 8)
    assert relative(run(model, x=x)[0], run(after, x=x)[0]) < 1e-5


@pytest.mark.parametrize("declared", [[1, 5], [1, 5, 6, 6, 1]])
def test_a_shape_of_another_rank_is_not_taken_over(declared: list[int]) -> None:
    """What is declared of the output may be wrong; of the piece in front, nothing is said then."""
    model = load(conv_model(normal(5, 4, 3, 3), [8, 8], batch=1)).clone()
    next(iter(model.graph)).outputs[0].shape = ir.Shape(declared)
    BottleneckPass(Plan({"conv": Choice("vertical", 3)}))(model)
    assert next(iter(model.graph)).outputs[0].shape is None


def test_shapes_with_other_channels_are_known_from_rank_two() -> None:
    assert surgery._with_channels(None, 3) is None
    for shape, wanted in ((None, None), ([7], None), ([7, 2], "[7,3]"), (["n", 2, "h"], "[n,3,h]")):
        made = surgery._with_channels(ir.Value(name="v", shape=None if shape is None else ir.Shape(shape)), 3)
        assert (None if made is None else str(made)) == wanted


def test_a_value_that_takes_over_keeps_a_type_of_its_own_only_where_the_old_one_has_none() -> None:
    real, half = (ir.TensorType(kind) for kind in (ir.DataType.FLOAT, ir.DataType.FLOAT16))
    for old_type, new_type, wanted in ((real, None, real), (None, half, half), (real, half, real)):
        old, new = ir.Value(name="old", type=old_type), ir.Value(name="new", type=new_type)
        surgery._hand_over(old, new)
        assert (new.name, old.name, new.type) == ("old", None, wanted)
