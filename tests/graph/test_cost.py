"""Costs against counts by hand."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnx_pointwise.graph.cost import ModelCost, dense_cost, model_cost, model_params, rewritten_cost
from onnx_pointwise.graph.model_io import load, save, serialize
from onnx_pointwise.graph.plan import Choice, Plan, saving
from onnx_pointwise.graph.sites import Site, find_sites
from onnx_pointwise.graph.surgery import BottleneckPass
from onnx_pointwise.numerics.forms import FORMS, Form, Rank, has_form
from onnx_pointwise.runtime.shape_inference import resolve
from tests.graphs import BEHIND, conv_model, if_model, make_model, normal, value


def cost_of(model: onnx.ModelProto, **input_shapes: list[int]) -> ModelCost:
    loaded = load(model)
    return model_cost(loaded, resolve(loaded, input_shapes or None))


def only(model: onnx.ModelProto) -> Site:
    loaded = load(model)
    (site,) = find_sites(loaded, resolve(loaded))
    return site


# --- one site ---------------------------------------------------------------------------------------------------------


def test_a_3x3_of_stride_2_in_every_form() -> None:
    """[2, 16, 32, 24] -> [2, 24, 16, 12], with a bias."""
    site = only(conv_model(normal(24, 16, 3, 3), [32, 24], batch=2, bias=normal(24), strides=[2, 2], pads=[1] * 4))
    dense = dense_cost(site)
    assert dense.macs == 2 * 16 * 12 * 24 * 16 * 9
    assert dense.params == 24 * 16 * 9 + 24
    assert dense.activation_bytes == 2 * 24 * 16 * 12 * 4
    reduce = rewritten_cost(site, "reduce", 5)
    assert reduce.macs == 2 * 32 * 24 * 16 * 5 + 2 * 16 * 12 * 5 * 24 * 9  # the 1x1 runs at input resolution
    assert reduce.params == 16 * 5 + 5 * 24 * 9 + 24
    assert reduce.activation_bytes == (2 * 5 * 32 * 24 + 2 * 24 * 16 * 12) * 4
    expand = rewritten_cost(site, "expand", 7)
    assert expand.macs == 2 * 16 * 12 * (16 * 7 * 9 + 7 * 24)
    assert expand.params == 16 * 7 * 9 + 7 * 24 + 24
    assert expand.activation_bytes == 2 * 16 * 12 * (7 + 24) * 4
    both = rewritten_cost(site, "reduce_expand", (5, 7))
    assert both.macs == 2 * 32 * 24 * 16 * 5 + 2 * 16 * 12 * (5 * 7 * 9 + 7 * 24)
    assert both.params == 16 * 5 + 5 * 7 * 9 + 7 * 24 + 24
    assert both.activation_bytes == (2 * 5 * 32 * 24 + 2 * 16 * 12 * (7 + 24)) * 4
    assert rewritten_cost(site, "reduce_expand", 5) == rewritten_cost(site, "reduce_expand", (5, 5))
    assert saving(site, Choice("reduce", 5)) == (dense.macs - reduce.macs, dense.params - reduce.params)


def test_1_d_and_3_d() -> None:
    site = only(conv_model(normal(6, 4, 5), [20], batch=1))
    assert dense_cost(site).macs == 16 * 6 * 4 * 5
    assert rewritten_cost(site, "reduce", 2).macs == 20 * 4 * 2 + 16 * 2 * 6 * 5
    site = only(conv_model(normal(6, 4, 3, 1, 2), [5, 6, 7], batch=1))
    assert dense_cost(site).macs == (3 * 6 * 6) * 6 * 4 * 6
    assert rewritten_cost(site, "expand", 2).params == 4 * 2 * 6 + 2 * 6


def test_groups_divide_the_work() -> None:
    site = only(conv_model(normal(8, 2, 3, 3), [10, 10], batch=1, group=4))
    assert dense_cost(site).macs == 64 * 8 * 2 * 9


@pytest.mark.parametrize(("dtype", "size"), [(np.float16, 2), (ml_dtypes.bfloat16, 2), (np.float64, 8)])
def test_activations_take_the_model_s_type(dtype: type, size: int) -> None:
    site = only(conv_model(normal(6, 4, 3, 3).astype(dtype), [8, 8], batch=1, opset=22))
    assert dense_cost(site).activation_bytes == 6 * 6 * 6 * size
    assert rewritten_cost(site, "expand", 2).activation_bytes == 6 * 6 * (2 + 6) * size


@given(
    form=st.sampled_from(FORMS),
    behind=st.sampled_from(BEHIND),
    with_bias=st.booleans(),
    stride=st.integers(1, 3),
    spatial=st.integers(1, 3),
    rank=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    dtype=st.sampled_from([np.float32, np.float16]),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_predicted_costs_are_those_of_the_rewritten_model(
    form: Form, behind: str, with_bias: bool, stride: int, spatial: int, rank: tuple[int, int], dtype: type
) -> None:
    """What the plan counts on is what the graph then holds: MACs and activations by inference, parameters by file."""
    chosen: Rank = rank if form == "reduce_expand" else rank[0]
    assume(has_form(form, [3] * spatial))
    model = load(
        conv_model(
            normal(6, 5, *[3] * spatial).astype(dtype),
            [7] * spatial,
            batch=2,
            bias=normal(6) if with_bias else None,
            behind=behind,
            strides=[stride] * spatial,
        )
    )
    (site,) = find_sites(model, resolve(model))
    before = model_cost(model, resolve(model))
    assert before.macs == before.conv_macs == dense_cost(site).macs
    assert before.params == dense_cost(site).params
    if behind == "none":
        assert before.activation_bytes == dense_cost(site).activation_bytes
    wanted = rewritten_cost(site, form, chosen)
    BottleneckPass(Plan({"conv": Choice(form, chosen)}))(model)
    after = model_cost(model, resolve(model))
    assert (after.macs, after.params, after.activation_bytes) == (wanted.macs, wanted.params, wanted.activation_bytes)


# --- a whole model ----------------------------------------------------------------------------------------------------


def network() -> onnx.ModelProto:
    """Conv -> Relu -> Flatten -> Gemm -> MatMul with a constant, a transposed convolution on the side."""
    nodes = [
        helper.make_node("Conv", ["x", "W", "b"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "G", "g"], ["h"], name="gemm", transB=1),
        helper.make_node("MatMul", ["h", "M"], ["y"], name="matmul"),
        helper.make_node("ConvTranspose", ["r", "T"], ["z"], name="up", strides=[2, 2]),
    ]
    weights = {
        "W": normal(6, 4, 3, 3),
        "b": normal(6),
        "G": normal(10, 6 * 64),
        "g": normal(10),
        "M": normal(10, 3),
        "T": normal(6, 2, 2, 2),
    }
    return make_model(nodes, [value("x", ["n", 4, 8, 8])], [value("y", ["n", 3]), value("z", None)], weights)


def test_a_network_by_hand(tmp_path: Path) -> None:
    model = network()
    cost = cost_of(model, x=[2, 4, 8, 8])
    conv, up = 2 * 64 * 6 * 4 * 9, 2 * 64 * 6 * 2 * 4
    assert cost.macs == conv + 2 * 384 * 10 + 2 * 10 * 3 + up
    assert cost.conv_macs == conv + up
    assert cost.params == sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert cost.activation_bytes == 4 * 2 * (6 * 64 * 3 + 10 + 3 + 2 * 256)
    assert cost.unknown == 0
    save(load(model), tmp_path / "model.onnx")
    assert cost.bytes == (tmp_path / "model.onnx").stat().st_size
    assert cost_of(model).macs * 2 == cost.macs
    loaded = load(model)
    assert model_cost(loaded, resolve(loaded), file_bytes=7).bytes == 7
    assert set(cost.to_dict()) == {"macs", "conv_macs", "params", "bytes", "activation_bytes", "unknown"}


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_s_inner_dimension(transposed: bool) -> None:
    node = helper.make_node("Gemm", ["x", "G"], ["y"], transA=int(transposed))
    model = make_model([node], [value("x", [5, 7])], [value("y", None)], {"G": normal(5 if transposed else 7, 3)})
    assert cost_of(model).macs == 7 * 5 * 3


def test_batched_products() -> None:
    node = helper.make_node("MatMul", ["x", "z"], ["y"])
    model = make_model([node], [value("x", [2, 4, 5, 6]), value("z", [4, 6, 3])], [value("y", None)])
    assert cost_of(model).macs == 2 * 4 * 5 * 6 * 3


def test_quantised_operators_count() -> None:
    rng = np.random.default_rng(0)
    scale, zero = np.array(0.02, np.float32), np.array(0, np.int8)
    operands = ["x", "s", "zx", "Q", "s", "z", "s", "zx"]
    nodes = [helper.make_node("QLinearConv", operands, ["y"], name="conv")]
    weights = {
        "Q": rng.integers(-127, 127, (6, 4, 3, 3)).astype(np.int8),
        "s": scale,
        "z": zero,
        "zx": np.array(0, np.uint8),
    }
    model = make_model(nodes, [value("x", [1, 4, 8, 8], np.uint8)], [value("y", None, np.uint8)], weights)
    cost = cost_of(model)
    assert cost.macs == cost.conv_macs == 36 * 6 * 4 * 9
    assert cost.activation_bytes == 36 * 6
    assert cost.params == 6 * 4 * 9 + 3  # scale and zero points are stored, too


def test_constants_are_parameters_and_no_activations() -> None:
    from_node = cost_of(conv_model(normal(6, 4, 3, 3), [8, 8], source="constant"))
    from_initializer = cost_of(conv_model(normal(6, 4, 3, 3), [8, 8]))
    assert from_node.params == from_initializer.params == 216
    assert from_node.activation_bytes == from_initializer.activation_bytes
    assert from_node.macs == from_initializer.macs


def test_indices_shapes_and_flags_are_no_parameters() -> None:
    model = network()
    model.graph.initializer.extend(
        numpy_helper.from_array(array, f"extra{index}")
        for index, array in enumerate([np.zeros(9, np.int64), np.zeros(9, np.int32), np.zeros(9, bool)])
    )
    assert model_params(load(model)) == model_params(load(network()))


def test_both_branches_count_once() -> None:
    cost = cost_of(if_model(normal(5, 4, 3, 3)))
    assert cost.macs == 2 * 64 * 5 * 4 * 9
    assert cost.params == 2 * 5 * 4 * 9


def test_texts_take_no_bytes() -> None:
    """Classifiers put out labels."""
    model = network()
    model.graph.node.append(helper.make_node("Cast", ["y"], ["label"], to=onnx.TensorProto.STRING))
    model.graph.output.append(value("label", None, np.object_))
    assert cost_of(model).activation_bytes == cost_of(network()).activation_bytes


def test_products_of_unknown_shape_are_counted_as_unknown() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["M", "f"], ["y"]),
    ]
    model = make_model(nodes, [value("x", [3, 4])], [value("y", None)], {"M": normal(5, 2)})
    cost = cost_of(model)
    assert (cost.macs, cost.unknown) == (0, 1)


def test_parameters_agree_with_the_file_after_a_rewrite() -> None:
    model = load(conv_model(normal(12, 10, 3, 3), [9, 9], bias=normal(12), behind="batchnorm", relu=True))
    BottleneckPass(Plan({"conv": Choice("reduce_expand", (4, 5))}))(model)
    stored = sum(int(np.prod(tensor.dims)) for tensor in serialize(model).graph.initializer)
    cost = model_cost(model, resolve(model))
    assert cost.params == stored == 10 * 4 + 4 * 5 * 9 + 5 * 12 + 12
    assert cost.bytes == serialize(model).ByteSize()
