"""What a network is made into before it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnx_pointwise.deploying import AS_IS, Deployment
from onnx_pointwise.deploying.quantizer import quantizer_settings, setting_names
from onnx_pointwise.errors import ModelError, PlanError
from onnx_pointwise.graph import find_sites, load, runtime_source
from onnx_pointwise.runtime import node_times, open_session
from tests import small
from tests.graphs import Array, conv_model, make_model, normal, value


def outputs(model: Any, x: Array, name: str = "image") -> Array:
    with runtime_source(model) as source:
        (result,) = open_session(source, "cpu").run(None, {name: x})
    return np.asarray(result)


def types_of(model: Any) -> set[str]:
    return {node.op_type for node in load(model).graph.all_nodes()}


def test_a_network_that_is_left_as_it_is_is_the_very_same() -> None:
    model = load(small.network())
    assert AS_IS.made(model) is model and Deployment("float32").made(model) is model
    assert not AS_IS.changes and AS_IS.key == ""


def test_int8_answers_almost_the_same_with_u8_activations_and_a_scale_for_every_map() -> None:
    model, x = load(small.network()), small.examples(32)
    made = Deployment("int8").made(model, {"image": x})
    assert {"QuantizeLinear", "DequantizeLinear"} <= types_of(made)
    before, after = outputs(model, x), outputs(made, x)
    assert 1e-4 < np.linalg.norm(after - before) / np.linalg.norm(before) < 0.1
    weights = {name: item for name, item in made.graph.initializers.items() if name.startswith("conv2.w")}
    scale = next(item for name, item in weights.items() if name.endswith("scale"))
    assert scale.shape is not None and tuple(scale.shape.numpy()) == (16,)
    zero = made.graph.initializers["image_zero_point"].const_value
    assert zero is not None and zero.numpy().dtype == np.uint8
    assert not {"QuantizeLinear"} & types_of(model), "the network given is left as it is"


def test_the_same_examples_give_the_same_network() -> None:
    one, two = (Deployment("int8").made(load(small.network()), {"image": small.examples(8)}) for _ in range(2))
    assert all(
        np.array_equal(value.const_value.numpy(), two.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]
        for name, value in one.graph.initializers.items()
    )


def test_ranges_come_from_all_examples() -> None:
    x = small.examples(5)
    x[4] *= 3.0
    few, all_of_them = (Deployment("int8").made(load(small.network()), {"image": some}) for some in (x[:4], x))
    steps = [model.graph.initializers["image_scale"].const_value.numpy() for model in (few, all_of_them)]  # type: ignore[union-attr]
    assert steps[1] == pytest.approx((x.max() - min(x.min(), 0.0)) / 255.0, rel=1e-5)
    assert steps[1] > 1.5 * steps[0]


def test_float16_keeps_float32_at_both_ends() -> None:
    model, x = load(small.network()), small.examples(8)
    made = Deployment("float16").made(model)
    assert [str(one.dtype) for one in (*made.graph.inputs, *made.graph.outputs)] == ["FLOAT", "FLOAT"]
    assert str(made.graph.initializers["conv2.w"].dtype) == "FLOAT16"
    before, after = outputs(model, x), outputs(made, x)
    assert 0.0 < np.linalg.norm(after - before) / np.linalg.norm(before) < 0.01


@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("named", [True, False])
def test_kernels_are_told_by_the_names_of_the_convolutions_they_were_made_from(precision: Any, named: bool) -> None:
    proto = conv_model(normal(16, 8, 3, 3), (8, 8), relu=True)
    if not named:
        for node in proto.graph.node:
            node.name = ""
    model = load(proto)
    (site,) = find_sites(model)
    feeds = {str(model.graph.inputs[0].name): normal(2, 8, 8, 8)}
    made = Deployment(precision).made(model, feeds)
    shapes = dict.fromkeys(feeds, (1, 8, 8, 8))
    times = node_times(made, threads=1, runs=1, warmup=1, input_shapes=shapes)
    assert [time.site for time in times if time.op_type.endswith("Conv")] == [site.name]


def test_a_batch_that_the_network_fixes_is_what_the_quantizer_runs() -> None:
    proto = small.network()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    made = Deployment("int8").made(load(proto), {"image": small.examples(9)})
    assert "QuantizeLinear" in types_of(made)


def test_int8_without_examples_is_refused() -> None:
    with pytest.raises(PlanError, match="int8 takes the ranges of activations from example inputs, and there are none"):
        Deployment("int8").made(load(small.network()))


def test_what_is_quantised_already_is_refused() -> None:
    quantised = Deployment("int8").made(load(small.network()), {"image": small.examples(4)})
    for precision in ("int8", "float16"):
        with pytest.raises(ModelError, match=r"\(\w+Linear\) is quantised already; give the float network"):
            Deployment(precision).require(quantised)  # type: ignore[arg-type]
    AS_IS.require(quantised)


def test_what_is_kept_in_half_precision_is_refused_where_that_would_be_left() -> None:
    half = load(conv_model(normal(8, 8, 3, 3).astype(np.float16), (8, 8)))
    for precision in ("int8", "float32"):
        with pytest.raises(ModelError, match=f"is kept in half precision, and --deploy {precision} takes a float32"):
            Deployment(precision).require(half)  # type: ignore[arg-type]
    Deployment("float16").require(half)


def test_what_the_tools_cannot_do_is_a_fault_of_the_network() -> None:
    node = helper.make_node("Unheard", ["x"], ["y"], domain="nowhere")
    model = make_model([node], [value("x", [1, 4])], [value("y", [1, 4])], domains=["nowhere"])
    with pytest.raises(ModelError, match=r"cannot be converted to int8: .*; leave out --deploy int8\."):
        Deployment("int8").made(load(model), {"x": normal(1, 4)})


# --- settings of the quantizer ----------------------------------------------------------------------------------------


def test_settings_go_through_to_the_quantizer() -> None:
    model, feeds = load(small.network()), {"image": small.examples(8)}
    kept = Deployment("int8", {"nodes_to_exclude": "conv1,conv2", "ActivationSymmetric": "true"}).made(model, feeds)
    assert "conv2.w_scale" not in kept.graph.initializers and "conv3.w_scale" in kept.graph.initializers
    zero = kept.graph.initializers["conv3.z_zero_point"].const_value
    assert zero is not None and int(zero.numpy()) in (127, 128)
    for_each_tensor = Deployment("int8", {"per_channel": "False"}).made(model, feeds)
    scale = for_each_tensor.graph.initializers["conv2.w_scale"]
    assert scale.shape is not None and scale.shape.numpy() == ()


def test_what_names_nodes_does_not_reach_what_stands_for_a_part() -> None:
    given = {"nodes_to_quantize": "conv2", "nodes_to_exclude": "conv1", "reduce_range": "true"}
    whole = Deployment("int8", given)
    assert whole.nameless().settings == {"reduce_range": True}
    other = conv_model(normal(16, 8, 3, 3), (8, 8))
    feeds = {other.graph.input[0].name: normal(2, 8, 8, 8)}
    assert "QuantizeLinear" in types_of(whole.nameless().made(load(other), feeds))
    assert "QuantizeLinear" not in types_of(whole.made(load(other), feeds))


def test_settings_are_part_of_what_a_latency_is_kept_by() -> None:
    keys = {Deployment("int8").key, Deployment("float16").key, Deployment("int8", {"per_channel": False}).key}
    assert len(keys) == 3


def test_settings_are_read_from_text() -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantType

    read = quantizer_settings(
        {
            "activation_type": "qint8",
            "calibrate_method": "Entropy",
            "reduce_range": "true",
            "CalibMovingAverageConstant": "0.1",
            "op_types_to_quantize": "Conv,MatMul",
            "MinimumRealRange": "none",
            "weight_type": QuantType.QInt8,
        }
    )
    assert read == {
        "activation_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod.Entropy,
        "reduce_range": True,
        "CalibMovingAverageConstant": 0.1,
        "op_types_to_quantize": ["Conv", "MatMul"],
        "MinimumRealRange": None,
        "weight_type": QuantType.QInt8,
    }


def test_names_are_those_of_the_installed_quantizer() -> None:
    parameters, extra = setting_names()
    assert {"per_channel", "reduce_range", "calibrate_method"} <= set(parameters)
    assert {"ActivationSymmetric", "SmoothQuant", "QDQKeepRemovableActivations"} <= set(extra)
    assert not {"model_input", "extra_options"} & set(parameters)


def test_unknown_settings_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(PlanError, match=r"has no setting 'per_chanel'; did you mean per_channel\? It takes "):
        Deployment("int8", {"per_chanel": True})
    with pytest.raises(PlanError, match=r"has no setting 'model_output'; "):
        Deployment("int8", {"model_output": "x.onnx"})


def test_values_that_a_setting_does_not_take_are_refused() -> None:
    with pytest.raises(PlanError, match=r"The quantizer's weight_type is one of .*QInt8.*, not 'int7'"):
        Deployment("int8", {"weight_type": "int7"})
    with pytest.raises(PlanError, match="The quantizer's per_channel is true or false, not 'often'"):
        Deployment("int8", {"per_channel": "often"})


def test_settings_of_the_quantizer_are_for_int8() -> None:
    for precision in (None, "float16", "float32"):
        with pytest.raises(PlanError, match="Settings of the quantizer are for int8 alone"):
            Deployment(precision, {"per_channel": True})  # type: ignore[arg-type]
