"""Which convolutions may be rewritten, why the others may not, and what folds into them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph.model_io import load
from onnx_pointwise.graph.sites import Refusal, Site, find_sites
from onnx_pointwise.runtime.shape_inference import resolve
from tests.graphs import (
    BEHIND,
    constant_node,
    conv_model,
    function_model,
    if_model,
    if_model_of_two_sizes,
    loop_model,
    make_model,
    normal,
    relative,
    run,
    value,
)


def sites(model: onnx.ModelProto, **options: Any) -> list[Site]:
    loaded = load(model)
    return find_sites(loaded, resolve(loaded), **options)


def only(model: onnx.ModelProto, **options: Any) -> Site:
    (site,) = sites(model, **options)
    return site


def refusal(model: onnx.ModelProto, **options: Any) -> Refusal:
    found = only(model, **options).refusal
    assert found is not None
    return found


def one_conv(
    weights: dict[str, np.ndarray], *before: onnx.NodeProto, kernel: str = "W", **attributes: Any
) -> onnx.ModelProto:
    """x [1, 4, 8, 8] -> Conv -> y, with any nodes in front that make the kernel."""
    nodes = [*before, helper.make_node("Conv", ["x", kernel], ["y"], name="conv", **attributes)]
    return make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", None)], weights)


# --- description ------------------------------------------------------------------------------------------------------


def test_a_site_is_described_as_the_graph_has_it() -> None:
    model = conv_model(
        normal(6, 4, 3, 5),
        [16, 20],
        batch=2,
        bias=normal(6),
        strides=[2, 1],
        dilations=[1, 2],
        pads=[1, 2, 0, 3],
        name="block/conv",
    )
    site = only(model)
    assert (site.name, site.op_type, site.group) == ("block/conv", "Conv", 1)
    assert (site.in_channels, site.out_channels, site.kernel_shape, site.taps) == (4, 6, (3, 5), 15)
    assert (site.strides, site.dilations, site.pads) == ((2, 1), (1, 2), (1, 2, 0, 3))
    assert (site.batch, site.in_size, site.out_size) == (2, (16, 20), (8, 17))
    assert (site.refusal, site.rewritable, site.has_bias, site.dtype) == (None, True, True, np.float32)
    assert site.stored_params == 6 * 4 * 15 + 6
    assert site.output.name == "y"


def test_defaults_and_auto_pad() -> None:
    site = only(conv_model(normal(6, 4, 3), [16], auto_pad="SAME_LOWER"))
    assert (site.strides, site.dilations, site.pads, site.out_size) == ((1,), (1,), "SAME_LOWER", (16,))
    site = only(conv_model(normal(6, 4, 3), [16], auto_pad="NOTSET", pads=[1, 0]))
    assert (site.pads, site.out_size) == ((1, 0), (15,))
    assert only(conv_model(normal(6, 4, 3, 3, 3), [4, 5, 6])).pads == (0,) * 6


@pytest.mark.parametrize("behind", BEHIND)
def test_stored_numbers_are_counted_with_what_folds(behind: str) -> None:
    model = conv_model(normal(6, 4, 3, 3), [9, 9], bias=normal(6), behind=behind)
    assert only(model).stored_params == sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


@pytest.mark.parametrize("source", ["initializer", "constant", "identity"])
def test_constant_kernels_are_found_wherever_they_lie(source: str) -> None:
    kernel = normal(6, 4, 3, 3)
    site = only(conv_model(kernel, [9, 9], source=source))
    assert site.refusal is None
    np.testing.assert_array_equal(site.weights()[0], kernel)
    assert site.weights()[1] is None


def test_subgraphs_are_looked_into() -> None:
    assert {site.name for site in sites(if_model(normal(5, 4, 3, 3)))} == {"then_conv", "else_conv"}
    (site,) = sites(loop_model(normal(4, 4, 3, 3)))
    assert (site.name, site.refusal, site.in_size) == ("loop_conv", None, (8, 8))


def test_names_are_unique_even_where_branches_repeat_them() -> None:
    model = if_model(normal(5, 4, 3, 3))
    for attribute in model.graph.node[0].attribute:
        for node in attribute.g.node:
            node.name = ""
    assert [site.name for site in sites(model)] == ["inside", "inside_2"]


def test_a_name_used_twice_in_branches_has_no_size_unless_both_agree() -> None:
    model = if_model(normal(5, 4, 3, 3))
    assert all(site.out_size == (8, 8) for site in sites(model))
    model = if_model_of_two_sizes(normal(5, 4, 3, 3))
    assert all(site.out_size == () and site.refusal.code == "unknown_shape" for site in sites(model) if site.refusal)
    assert all(site.refusal for site in sites(model))


# --- folding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_folded_weights_compute_what_the_graph_computes(behind: str, with_bias: bool, spatial: int) -> None:
    kernel = normal(6, 4, *[3] * spatial)
    model = conv_model(kernel, [7] * spatial, bias=normal(6) if with_bias else None, behind=behind)
    site = only(model)
    weights, bias = site.weights()
    assert weights.dtype == kernel.dtype
    assert (bias is not None) == site.has_bias == (with_bias or behind != "none")
    plain = conv_model(weights, [7] * spatial, bias=bias)
    x = normal(2, 4, *[7] * spatial)
    assert relative(run(model, x=x)[0], run(plain, x=x)[0]) < 1e-6


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_folded_weights_keep_the_model_s_type(dtype: Any) -> None:
    site = only(conv_model(normal(6, 4, 3, 3).astype(dtype), [7, 7], behind="batchnorm", opset=22))
    assert site.weights()[0].dtype == site.dtype == dtype
    assert site.weights()[1].dtype == np.float64


def arithmetic(
    op_type: str, constant: np.ndarray, *, constant_first: bool = False, **attributes: Any
) -> onnx.ModelProto:
    """x -> Conv -> op with a constant -> y."""
    operands = ["constant", "c"] if constant_first else ["c", "constant"]
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node(op_type, operands, ["y"], name="op", **attributes),
    ]
    weights = {"W": normal(6, 4, 3, 3), "constant": constant}
    return make_model(nodes, [value("x", [2, 4, 8, 8])], [value("y", None)], weights)


COLUMN = normal(6, 1, 1)


@pytest.mark.parametrize(
    ("op_type", "constant", "first", "folds"),
    [
        ("Add", COLUMN, False, True),
        ("Add", COLUMN, True, True),
        ("Add", COLUMN[None], True, True),
        ("Add", np.float32(2), False, True),
        ("Add", normal(1, 1, 1, 1), False, True),
        ("Mul", COLUMN, True, True),
        ("Sub", COLUMN, False, True),
        ("Sub", COLUMN, True, False),  # c - y
        ("Div", COLUMN, False, True),
        ("Div", COLUMN, True, False),  # c / y
        ("Div", np.zeros((6, 1, 1), np.float32), False, False),
        ("Add", normal(6), False, False),  # along the width
        ("Add", normal(6, 6), False, False),  # over the image
        ("Add", normal(6, 6, 1), False, False),
        ("Add", normal(2, 6, 1, 1), False, False),  # one for each example
        ("Add", normal(1, 2, 6, 1, 1), False, False),  # another rank
        ("Mul", normal(6, 1, 6), False, False),
        ("Max", COLUMN, False, False),
        ("Pow", np.float32(2), False, False),
    ],
)
def test_only_what_is_affine_in_each_feature_map_folds(
    op_type: str, constant: np.ndarray, first: bool, folds: bool
) -> None:
    model = arithmetic(op_type, np.asarray(constant, np.float32), constant_first=first)
    site = only(model)
    assert [node.op_type for node in site.folds] == ([op_type] if folds else [])
    if folds:
        weights, bias = site.weights()
        x = normal(2, 4, 8, 8)
        assert relative(run(model, x=x)[0], run(conv_model(weights, [8, 8], bias=bias), x=x)[0]) < 1e-6


def test_arithmetic_with_something_computed_or_with_itself_stays() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node("Add", ["c", "c"], ["y"], name="twice"),
    ]
    shapes = [value("x", [1, 4, 8, 8])], [value("y", None)]
    assert only(make_model(nodes, *shapes, {"W": normal(6, 4, 3, 3)})).folds == ()
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node("ReduceMax", ["x"], ["m"], name="max"),
        helper.make_node("Mul", ["c", "m"], ["y"], name="scaled"),
    ]
    assert only(make_model(nodes, *shapes, {"W": normal(6, 4, 3, 3)})).folds == ()


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes"),
    [
        (9, ["y"], {}),
        (14, ["y"], {}),
        (14, ["y", "", ""], {"training_mode": 0}),
        (13, ["y", "mean", "variance", "saved_mean", "saved_variance"], {}),
        (14, ["y", "mean", "variance"], {"training_mode": 1}),
        (14, ["y"], {"training_mode": 1}),
    ],
)
def test_batch_normalization_in_training_does_not_fold(
    opset: int, outputs: list[str], attributes: dict[str, int]
) -> None:
    training = "mean" in outputs or attributes.get("training_mode") == 1
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], outputs, name="bn", **attributes),
    ]
    weights = {"W": normal(6, 4, 3, 3), **{name: np.ones(6, np.float32) for name in "sbmv"}}
    model = make_model(nodes, [value("x", [2, 4, 8, 8])], [value("y", None)], weights, opset=opset)
    assert len(only(model).folds) == (0 if training else 1)


@pytest.mark.parametrize(("inputs", "size"), [("sbm", 6), ("sb", 6), ("sbmvv", 6), ("sbmv", 5), ("sbmv", 1)])
def test_a_damaged_batch_normalization_does_not_fold(inputs: str, size: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", *inputs], ["y"], name="bn"),
    ]
    weights = {"W": normal(6, 4, 3, 3), **{name: np.ones(size, np.float32) for name in set(inputs)}}
    model = ir.from_proto(make_model(nodes, [value("x", [2, 4, 8, 8])], [value("y", None)], weights))
    (site,) = find_sites(model)
    assert site.folds == () and site.weights()[0].shape == (6, 4, 3, 3)


def test_folding_does_not_cross_a_second_consumer_or_a_subgraph() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node("Mul", ["c", "two"], ["m"], name="mul"),
        helper.make_node("Add", ["m", "two"], ["y"], name="add"),
        helper.make_node("Relu", ["m"], ["z"], name="relu"),
    ]
    weights = {"W": normal(6, 4, 3, 3), "two": np.array(2, np.float32)}
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", None), value("z", None)], weights)
    assert [node.op_type for node in only(model).folds] == ["Mul"]
    then = helper.make_graph([helper.make_node("Add", ["c", "two"], ["o"])], "then", [], [value("o", None)])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "else", [], [value("o", None)])
    nodes = [nodes[0], helper.make_node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other)]
    inputs = [value("x", [1, 4, 8, 8]), value("flag", [], np.bool_)]
    assert only(make_model(nodes, inputs, [value("y", None)], weights)).folds == ()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_grouped_and_depthwise() -> None:
    found = refusal(conv_model(normal(8, 2, 3, 3), [9, 9], group=4))
    assert (found.code, found.reason) == ("grouped", "A grouped convolution is already sparse across channels.")
    assert found.numbers == {"group": 4.0, "in_channels": 2.0, "out_channels": 8.0}
    found = refusal(conv_model(normal(8, 1, 3, 3), [9, 9], group=8))
    assert found.code == "depthwise"
    assert found.reason == "A depthwise convolution mixes no channels; there is nothing to project."


def test_a_1x1_kernel_may_be_rewritten_too() -> None:
    assert only(conv_model(normal(8, 6, 1, 1), [9, 9])).refusal is None


def test_few_channels_only_advise() -> None:
    model = conv_model(normal(8, 3, 3, 3), [9, 9])
    site = only(model)
    assert site.refusal is not None
    assert (site.refusal.code, site.rewritable) == ("few_channels", True)
    assert site.refusal.reason == "Only 3 feature maps come in; there is nothing to reduce below 4."
    assert only(model, min_channels=3).refusal is None


def test_one_channel_is_told_of_as_one() -> None:
    refusal = only(conv_model(normal(8, 1, 3, 3), [9, 9])).refusal
    assert refusal is not None and refusal.reason == "Only 1 feature map comes in; there is nothing to reduce below 4."


def test_without_shapes_there_is_no_cost() -> None:
    (site,) = find_sites(load(conv_model(normal(8, 6, 3, 3), [9, 9])))
    assert site.refusal is not None
    assert (site.refusal.code, site.rewritable, site.in_size) == ("unknown_shape", True, ())
    assert "--input-shape" in site.refusal.reason


@pytest.mark.parametrize("where", ["kernel", "bias", "batchnorm", "variance", "overflow"])
def test_weights_that_are_no_numbers(where: str) -> None:
    kernel, bias = normal(6, 4, 3, 3), normal(6)
    if where == "kernel":
        kernel[0, 0, 0, 0] = np.nan
    if where == "bias":
        bias[2] = np.inf
    if where == "overflow":
        kernel = (kernel * 1e4).astype(np.float16)
    behind = "batchnorm" if where in ("batchnorm", "variance", "overflow") else "none"
    model = conv_model(kernel, [9, 9], bias=bias, behind=behind)
    for tensor in model.graph.initializer:
        if where == "overflow" and tensor.name == "scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(6, 100, np.float16), "scale"))
        if where == "batchnorm" and tensor.name == "mean":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(6, np.nan, np.float32), "mean"))
        if where == "variance" and tensor.name == "variance":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(6, -1, np.float32), "variance"))
    with np.errstate(all="raise"):  # Refusing is no reason for a warning.
        site = only(model)
    assert site.refusal is not None
    assert (site.refusal.code, site.rewritable) == ("not_finite", False)
    assert site.refusal.reason == f"Its weights hold NaN, infinity or more than {kernel.dtype} can."


def test_large_float64_weights_are_numbers() -> None:
    assert only(conv_model(normal(6, 4, 3, 3, dtype=np.float64) * 1e200, [9, 9])).refusal is None


def test_a_kernel_of_zeros() -> None:
    found = refusal(conv_model(np.zeros((6, 4, 3, 3), np.float32), [9, 9]))
    assert (found.code, found.reason) == ("zero_kernel", "Its kernel is all zeros.")


def test_kernels_that_others_use() -> None:
    identity = helper.make_node("Identity", ["W"], ["V"])
    nodes = [
        identity,
        helper.make_node("Conv", ["x", "W"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Conv", ["a", "V"], ["y"], name="second", pads=[1] * 4),
    ]
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", None)], {"W": normal(4, 4, 3, 3)})
    for site in sites(model):
        assert site.refusal is not None
        assert (site.refusal.code, site.refusal.numbers) == ("shared_kernel", {"uses": 2.0})
    shown = one_conv({"W": normal(4, 4, 3, 3)})
    shown.graph.output.append(value("W", [4, 4, 3, 3]))
    assert refusal(shown).code == "shared_kernel"
    through = one_conv({"W": normal(4, 4, 3, 3)}, identity, kernel="V")
    assert only(through).refusal is None
    through.graph.output.append(value("V", [4, 4, 3, 3]))
    assert refusal(through).code == "shared_kernel"


def test_kernels_that_are_computed_or_fed() -> None:
    computed = one_conv({"W0": normal(4, 4, 3, 3)}, helper.make_node("Erf", ["W0"], ["W"]))
    fed = one_conv({})
    fed.graph.input.append(value("W", [4, 4, 3, 3]))
    for model in (computed, fed):
        found = refusal(model)
        assert found.code == "dynamic_kernel"
        assert found.reason == "The kernel is computed in the graph or fed into it; fold constants first."


def test_a_bias_that_is_computed_or_fed() -> None:
    model = conv_model(normal(6, 4, 3, 3), [9, 9], bias=normal(6))
    tensors = [tensor for tensor in model.graph.initializer if tensor.name != "B"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    model.graph.input.append(value("B", [6]))
    site = only(model)
    assert site.refusal is not None
    assert (site.refusal.code, site.rewritable) == ("dynamic_bias", False)


def test_quantised_kernels() -> None:
    rng = np.random.default_rng(0)
    quantised = rng.integers(-127, 127, (6, 4, 3, 3)).astype(np.int8)
    scale, zero = np.array(0.02, np.float32), np.array(0, np.int8)
    weights = {"Q": quantised, "s": scale, "z": zero, "zx": np.array(0, np.uint8)}
    kernel = helper.make_node("DequantizeLinear", ["Q", "s", "z"], ["W"])
    assert only(one_conv(weights, kernel)).refusal is None  # stored small, computed with as it ever was
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "zx"], ["xf"]),
        kernel,
        helper.make_node("Conv", ["xf", "W"], ["y"], name="conv"),
    ]
    found = refusal(make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", None)], weights))
    assert found.code == "quantized"
    assert found.reason == "The kernel is quantised, as its input is; rewrite the model before it is quantised."
    nodes = [nodes[2], helper.make_node("Conv", ["x", "W"], ["y"], name="conv")]
    del weights["Q"]
    fed = make_model(nodes, [value("x", [1, 4, 8, 8]), value("Q", [6, 4, 3, 3], np.int8)], [value("y", None)], weights)
    assert refusal(fed).reason == "The kernel is quantised; rewrite the model before it is quantised."
    inputs = [value("x", [1, 4, 8, 8], np.uint8)]
    nodes = [helper.make_node("ConvInteger", ["x", "Q"], ["y"], name="conv")]
    assert refusal(make_model(nodes, inputs, [value("y", None, np.int32)], {"Q": quantised})).code == "quantized"
    operands = ["x", "s", "zx", "Q", "s", "z", "s", "zx"]
    nodes = [helper.make_node("QLinearConv", operands, ["y"], name="conv")]
    weights = {"Q": quantised, "s": scale, "z": zero, "zx": np.array(0, np.uint8)}
    assert refusal(make_model(nodes, inputs, [value("y", None, np.uint8)], weights)).code == "quantized"


def test_fused_convolutions() -> None:
    nodes = [helper.make_node("FusedConv", ["x", "W"], ["y"], name="f", domain="com.microsoft", activation="Relu")]
    model = make_model(
        nodes, [value("x", [1, 4, 8, 8])], [value("y", None)], {"W": normal(6, 4, 3, 3)}, domains=["com.microsoft"]
    )
    found = refusal(model)
    assert found.code == "other_convolution"
    assert found.reason.startswith("FusedConv is not a plain convolution")


def test_operators_of_other_domains_do_not_fold_whatever_they_are_called() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
        helper.make_node("Mul", ["c", "s"], ["y"], domain="somebody.else"),
    ]
    weights = {"W": normal(6, 4, 3, 3), "s": np.array(2.0, np.float32)}
    model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", None)], weights, domains=["somebody.else"])
    assert only(model).folds == ()
    model.graph.node[1].domain = ""
    assert [node.op_type for node in only(model).folds] == ["Mul"]


def test_functions() -> None:
    found = sites(function_model(normal(5, 5, 3, 3)))
    assert [site.refusal.code for site in found if site.refusal] == ["in_function", "in_function"]
    assert all("inline functions first" in site.refusal.reason for site in found if site.refusal)
    assert not any(site.rewritable for site in found)


def test_a_function_s_values_are_not_those_of_the_graph() -> None:
    """The function's second convolution puts out `c`; so does a pooling outside, of another size."""
    model = function_model(normal(5, 5, 3, 3))
    model.graph.node.append(helper.make_node("MaxPool", ["x"], ["c"], kernel_shape=[2, 2], strides=[2, 2]))
    model.graph.output.append(value("c", [1, 5, 4, 4]))
    assert resolve(load(model)).shapes["c"] == (1, 5, 4, 4)
    assert all(site.out_size == () for site in sites(model))


def test_kernels_of_no_known_rank() -> None:
    nodes = [helper.make_node("Conv", ["x", "W"], ["y"], name="conv")]
    for shape in ((4, 4), (4, 4, 3, 3, 3, 3)):
        model = make_model(nodes, [value("x", None)], [value("y", None)], {"W": normal(*shape)})
        (site,) = find_sites(load(model))
        assert site.refusal is not None
        assert (site.refusal.code, site.rewritable) == ("kernel_rank", False)
        assert f"{len(shape)} dimensions" in site.refusal.reason


def test_integer_kernels() -> None:
    nodes = [helper.make_node("Conv", ["x", "W"], ["y"], name="conv")]
    model = make_model(
        nodes, [value("x", [1, 4, 8, 8], np.int32)], [value("y", None)], {"W": np.ones((4, 4, 3, 3), np.int32)}
    )
    (site,) = find_sites(load(model))
    assert site.refusal is not None
    assert (site.refusal.code, site.refusal.reason) == ("dtype", "Kernels of type INT32 are not rewritten.")


def test_a_tensor_shorter_than_its_shape_is_an_error_with_its_name() -> None:
    model = conv_model(normal(6, 4, 3, 3), [9, 9])
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError, match=r"'W' do not fit its shape \[6,4,3,3\]"):
        find_sites(load(model))


def test_a_refusal_is_data() -> None:
    found = refusal(conv_model(normal(8, 2, 3, 3), [9, 9], group=4))
    assert found.to_dict() == {
        "code": "grouped",
        "reason": "A grouped convolution is already sparse across channels.",
        "numbers": {"group": 4.0, "in_channels": 2.0, "out_channels": 8.0},
    }


def test_constants_of_every_kind() -> None:
    """Scalars of Constant nodes fold too, whichever attribute holds them."""
    for attribute in ({"value_float": 2.0}, {"value_floats": [2.0]}, {"value": None}):
        if "value" in attribute:
            node = constant_node(np.array(2.0, np.float32), "two")
        else:
            node = helper.make_node("Constant", [], ["two"], **attribute)
        nodes = [
            node,
            helper.make_node("Conv", ["x", "W"], ["c"], name="conv"),
            helper.make_node("Mul", ["c", "two"], ["y"], name="mul"),
        ]
        model = make_model(nodes, [value("x", [1, 4, 8, 8])], [value("y", None)], {"W": normal(6, 4, 3, 3)})
        site = only(model)
        np.testing.assert_allclose(site.weights()[0], 2 * normal(6, 4, 3, 3), rtol=1e-6)


def test_sites_refer_to_the_model_s_own_nodes() -> None:
    model = load(conv_model(normal(6, 4, 3, 3), [9, 9], behind="batchnorm"))
    (site,) = find_sites(model, resolve(model))
    assert isinstance(site.node, ir.Node)
    assert {site.node, *site.folds} <= set(model.graph)
