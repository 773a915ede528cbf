"""Gradients at all sites at once: a residual network with concat, pooling and resizing, and what cuts sites off."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import find_sites
from onnx_pointwise.runtime import resolve, without_shapes
from onnx_pointwise.study.gradients import Backward, Unsupported, site_outputs
from onnx_pointwise.study.heads import find_heads
from tests import graphs
from tests.graphs import Array, normal, value
from tests.networks import examples, prepared, residual

HEADS = ["scores", "picture"]


def network(opset: int = 17, dtype: Any = np.float32, batch: int | str = "N") -> onnx.ModelProto:
    """Two residual blocks, a concat, pooling, a resize, and two heads: scores and a picture."""
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def conv(source: str, name: str, outputs: int, inputs: int, k: int = 3, **attributes: Any) -> str:
        weights[f"{name}_w"] = normal(outputs, inputs, k, k, seed=len(weights)) / np.sqrt(inputs * k * k)
        weights[f"{name}_b"] = normal(outputs, seed=len(weights)) * 0.1
        attributes.setdefault("pads", [k // 2] * 4)
        return add("Conv", [source, f"{name}_w", f"{name}_b"], name, **attributes)

    stem = add("Tanh", [conv("x", "stem", 8, 3)], "stem_act")
    first = add("Sigmoid", [conv(stem, "first", 8, 8)], "first_act")
    weights |= {name: np.abs(normal(8, seed=index)) + 0.5 for index, name in enumerate("smtv")}
    second = add("BatchNormalization", [conv(first, "second", 8, 8), *"smtv"], "second_bn")
    block = add("Tanh", [add("Add", [second, stem], "joined")], "block")
    pooled = add("AveragePool", [block], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    low = conv(pooled, "low", 12, 8, strides=[1, 1])
    low = add("Mul", [low, add("Sigmoid", [low], "low_gate")], "low_act")
    strided = add("Tanh", [conv(block, "strided", 4, 8, strides=[2, 2])], "strided_act")
    wide = add("Concat", [low, strided], "wide", axis=1)
    lowest = add("Softplus", [conv(wide, "grouped", 16, 8, group=2)], "grouped_act")
    means = add("Flatten", [add("GlobalAveragePool", [lowest], "means")], "flat")
    weights["w"] = normal(16, 5, seed=77)
    add("MatMul", [means, "w"], "scores")
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    if opset < 10:
        up = add("Upsample", [lowest, "scales"], "up", mode="nearest")
    elif opset < 11:
        up = add("Resize", [lowest, "scales"], "up", mode="linear")
    else:
        weights["roi"] = np.zeros(0, np.float32)
        up = add("Resize", [lowest, "roi", "scales"], "up", mode="linear")
    conv(add("Concat", [up, block], "both", axis=1), "picture", 3, 24)
    cast = {name: array if name in ("scales", "roi") else array.astype(dtype) for name, array in weights.items()}
    return graphs.make_model(
        nodes,
        [value("x", [batch, 3, 8, 12], dtype)],
        [value("scores", None, dtype), value("picture", None, dtype)],
        cast,
        opset=opset,
        ir_version=8,
    )


def resolved(model: onnx.ModelProto, count: int = 2) -> tuple[ir.Model, dict[str, str]]:
    shapes = resolve(ir.serde.deserialize_model(model), {"x": (count, 3, 8, 12)})
    return shapes.model, site_outputs(find_sites(shapes.model, shapes))


def pushed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same model with a further input `push` that is added to a value."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index = next(index for index, item in enumerate(copy.graph.node) if name in item.output)
    for item in copy.graph.node:
        for place, source in enumerate(item.input):
            if source == name:
                item.input[place] = f"{name}_pushed"
    inner = f"{name}_raw" if name in HEADS else name
    copy.graph.node[index].output[0] = inner
    target = name if name in HEADS else f"{name}_pushed"
    copy.graph.node.insert(index + 1, helper.make_node("Add", [inner, "push"], [target], name="pushing"))
    kind = copy.graph.input[0].type.tensor_type.elem_type
    copy.graph.input.append(helper.make_tensor_value_info("push", kind, None))
    return copy


def cotangents(values: dict[str, Array], seed: int = 3) -> dict[str, Array]:
    return {name: normal(*values[name].shape, seed=seed) for name in HEADS}


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 17, 18, 22])
def test_gradients_at_all_sites_are_the_response_to_a_push_there(opset: int) -> None:
    proto = network(opset)
    model, points = resolved(proto)
    x = normal(2, 3, 8, 12, seed=1)
    backward = Backward(model, HEADS, points, {"x": x}, threads=1)
    assert (backward.unsupported, backward.unreached) == ({}, [])
    values, gradients = backward.run({"x": x}, cotangents)
    probes = cotangents(values)
    assert set(gradients) == set(points) and len(points) == 7
    for key, name in points.items():
        session = graphs.session(pushed(proto, name))
        direction = normal(*gradients[key].shape, seed=9)

        def slope(step: float, session: Any = session, direction: Array = direction) -> float:
            sides = [session.run(HEADS, {"x": x, "push": sign * step * direction}) for sign in (np.float32(1), -1)]
            return sum(
                float(((up.astype(np.float64) - down) * probes[head]).sum()) / (2 * step)
                for head, up, down in zip(HEADS, *sides, strict=True)
            )

        expected = (4 * slope(0.05) - slope(0.1)) / 3
        assert float((gradients[key] * direction).sum()) == pytest.approx(expected, rel=1e-3, abs=1e-3), key


def test_a_site_ends_behind_what_folds_into_it() -> None:
    _, points = resolved(network())
    assert points["second_node"] == "second_bn"


def test_a_small_push_moves_heads_by_what_the_gradients_say() -> None:
    proto = network()
    model, points = resolved(proto)
    x = normal(2, 3, 8, 12, seed=1)
    before = graphs.run(proto, x=x)
    backward = Backward(model, HEADS, points, {"x": x})
    push = 1e-3 * normal(2, 8, 8, 12, seed=4)
    after = graphs.run(pushed(proto, "first"), x=x, push=push)
    # Each number of the scores by itself.
    forward = backward.forward({"x": x})
    for index in range(5):
        probe = np.zeros((2, 5), np.float32)
        probe[:, index] = 1.0
        (moved,) = [(forward.gradients({"scores": probe})["first_node"] * push).sum()]
        assert moved == pytest.approx(float((after[0] - before[0])[:, index].sum()), rel=2e-2, abs=2e-6)


def test_examples_do_not_touch_each_other_and_batches_may_differ() -> None:
    model, points = resolved(network())
    x = normal(5, 3, 8, 12, seed=1)
    backward = Backward(model, HEADS, points, {"x": x[:2]}, threads=1)
    values, whole = backward.run({"x": x}, cotangents)
    probes = cotangents(values)
    for start, stop in ((0, 2), (2, 4), (4, 5)):
        part = {head: probe[start:stop] for head, probe in probes.items()}
        _, found = backward.run({"x": x[start:stop]}, part)
        for key, gradient in found.items():
            np.testing.assert_allclose(gradient, whole[key][start:stop], rtol=1e-3, atol=1e-5)


def test_other_sizes_of_pictures_may_follow() -> None:
    proto = network()
    for axis, name in ((2, "H"), (3, "W")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    model, points = resolved(proto)
    backward = Backward(model, HEADS, points, {"x": normal(1, 3, 8, 12)})
    values, gradients = backward.run({"x": normal(1, 3, 16, 10)}, cotangents)
    assert values["picture"].shape == (1, 3, 16, 10)
    assert gradients["low_node"].shape == (1, 12, 8, 5)


def test_probes_left_out_count_as_zero_and_sum_up() -> None:
    model, points = resolved(network())
    x = normal(2, 3, 8, 12, seed=1)
    forward = Backward(model, HEADS, points, {"x": x}, threads=1).forward({"x": x})
    probes = cotangents(forward.values)
    both = forward.gradients(probes)
    first, second = (forward.gradients({head: probes[head]}) for head in HEADS)
    for key in points:
        np.testing.assert_allclose(first[key] + second[key], both[key], rtol=1e-4, atol=1e-5)
    assert not first["picture_node"].any()


def test_a_head_that_is_a_site_gives_its_probe_back() -> None:
    model, points = resolved(network())
    x = normal(2, 3, 8, 12, seed=1)
    values, gradients = Backward(model, HEADS, points, {"x": x}).run({"x": x}, cotangents)
    np.testing.assert_array_equal(gradients["picture_node"], cotangents(values)["picture"])


def test_one_head_may_lie_behind_another() -> None:
    model, points = resolved(network())
    x = normal(2, 3, 8, 12, seed=1)
    heads = ["means", "scores"]
    backward = Backward(model, heads, points, {"x": x})
    ones = {name: np.ones_like(array) for name, array in backward.forward({"x": x}).values.items()}
    _, gradients = backward.run({"x": x}, ones)
    parts = [backward.run({"x": x}, {head: ones[head]})[1]["low_node"] for head in heads]
    np.testing.assert_allclose(gradients["low_node"], parts[0] + parts[1], rtol=1e-4, atol=1e-6)
    assert backward.unreached == ["picture_node"]


def test_values_to_keep_come_along() -> None:
    proto = network()
    model, points = resolved(proto)
    x = normal(2, 3, 8, 12, seed=1)
    kept = ["x", "stem_act", "second"]
    values, _ = Backward(model, HEADS, points, {"x": x}, keep=kept).run({"x": x}, cotangents)
    assert set(values) == {*HEADS, *kept}
    np.testing.assert_array_equal(values["x"], x)
    np.testing.assert_allclose(values["scores"], graphs.run(proto, x=x)[0], rtol=1e-4, atol=1e-5)


def test_what_was_fed_is_kept_as_long_as_it_is_looked_at() -> None:
    model, points = resolved(network())
    backward = Backward(model, HEADS, points, {"x": (x := normal(2, 3, 8, 8))}, keep=["x"])
    kept = backward.forward({"x": x.transpose(0, 1, 3, 2)}).values["x"]  # has to be laid out anew
    assert kept.base is None or isinstance(kept.base, np.ndarray)  # nobody else's memory
    np.testing.assert_array_equal(kept, x.transpose(0, 1, 3, 2))


def test_what_a_batch_holds_grows_with_the_batch_and_the_points() -> None:
    model, points = resolved(network())
    x = normal(4, 3, 8, 12, seed=1)
    small, large = (Backward(model, HEADS, points, {"x": x[:count]}).held for count in (2, 4))
    gradients = 4 * sum(array.size for array in Backward(model, HEADS, points, {"x": x}).run({"x": x}, {})[1].values())
    assert large == pytest.approx(2 * small, rel=0.01)
    assert gradients < large < 4 * gradients
    assert Backward(model, HEADS, {"low": "low"}, {"x": x}).held < large / 2


def test_half_precision_is_differentiated_in_single() -> None:
    single, half = network(), network(dtype=np.float16)
    x = normal(2, 3, 8, 12, seed=1)
    model, points = resolved(single)
    _, expected = Backward(model, HEADS, points, {"x": x}).run({"x": x}, cotangents)
    model, points = resolved(half)
    _, found = Backward(model, HEADS, points, {"x": x.astype(np.float16)}).run({"x": x.astype(np.float16)}, cotangents)
    for key, gradient in found.items():
        assert gradient.dtype == np.float32
        assert graphs.relative(expected[key], gradient) < 0.02


def tail_model(*tail: onnx.NodeProto, opset: int = 17, **weights: Array) -> ir.Model:
    """Two convolutions; the first one's output goes through some nodes to y, the second's to z."""
    stored = {"W": normal(4, 3, 3, 3), "V": normal(4, 4, 3, 3), **weights}
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["first"], name="one", pads=[1] * 4),
        *tail,
        helper.make_node("Conv", ["first", "V"], ["z"], name="two", pads=[1] * 4),
    ]
    outputs = [value("y", None), value("z", None)]
    model = graphs.make_model(nodes, [value("x", ["N", 3, 6, 6])], outputs, stored, opset=opset)
    return resolve(ir.serde.deserialize_model(model), {"x": (2, 3, 6, 6)}).model


POINTS = {"one": "first", "two": "z"}
X = normal(2, 3, 6, 6, seed=2)


def test_an_operator_without_a_rule_cuts_off_what_leads_to_it() -> None:
    model = tail_model(
        helper.make_node("CumSum", ["first", "axis"], ["sums"], name="sums"),
        helper.make_node("Relu", ["sums"], ["y"]),
        axis=np.array(1, np.int64),
    )
    backward = Backward(model, ["y", "z"], POINTS, {"x": X})
    assert backward.unsupported == {"one": (Unsupported("CumSum", "sums"),)}
    _, gradients = backward.run({"x": X}, {"z": np.ones((2, 4, 6, 6))})
    assert list(gradients) == ["two"]
    # Towards the other head alone there is nothing in the way.
    assert Backward(model, ["z"], POINTS, {"x": X}).unsupported == {}
    assert Backward(model, ["y"], POINTS, {"x": X}).unreached == ["two"]


def test_a_rule_may_refuse() -> None:
    model = tail_model(
        helper.make_node("Relu", ["first"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["y"], name="pool", kernel_shape=[2, 2], storage_order=1),
    )
    ((fault,),) = Backward(model, ["y", "z"], POINTS, {"x": X}).unsupported.values()
    assert (fault.op_type, fault.node) == ("MaxPool", "pool")
    assert "columns" in fault.reason


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "reason"),
    [
        ("Resize", ["first", "", "", "sizes"], {"keep_aspect_ratio_policy": "not_larger"}, "aspect ratio"),
        ("Resize", ["first", "box", "scales"], {"coordinate_transformation_mode": "tf_crop_and_resize"}, "crops"),
        ("Pad", ["first", "pads"], {"mode": "reflect"}, "takes away"),
    ],
)
def test_what_rules_refuse(op_type: str, inputs: list[str], attributes: dict[str, Any], reason: str) -> None:
    model = tail_model(
        helper.make_node(op_type, inputs, ["y"], name="tail", **attributes),
        opset=18,
        sizes=np.array([2, 4, 3, 3], np.int64),
        box=np.array([0, 0, 0, 0, 1, 1, 0.5, 0.5], np.float32),
        scales=np.ones(4, np.float32),
        pads=np.array([0, 0, 1, 0, 0, 0, -1, 0], np.int64),
    )
    ((fault,),) = Backward(model, ["y", "z"], POINTS, {"x": X}).unsupported.values()
    assert (fault.op_type, fault.node) == (op_type, "tail")
    assert reason in fault.reason


def test_a_kernel_that_depends_on_a_site_is_refused() -> None:
    model = tail_model(
        helper.make_node("Slice", ["first", "starts", "ends"], ["some"]),
        helper.make_node("Conv", ["x", "some"], ["y"], name="made"),
        starts=np.array([0, 0, 0, 0], np.int64),
        ends=np.array([2, 3, 3, 3], np.int64),
    )
    assert Backward(model, ["y"], POINTS, {"x": X}).unsupported == {
        "one": (Unsupported("Conv", "made", "no rule for input 1"),)
    }


def test_other_domains_have_no_rules() -> None:
    model = tail_model(helper.make_node("Gelu", ["first"], ["y"], name="other", domain="com.microsoft"))
    model.graph.opset_imports["com.microsoft"] = 1
    ((fault,),) = Backward(model, ["y", "z"], POINTS, {"x": X}).unsupported.values()
    assert fault.op_type == "Gelu"


def test_subgraphs_are_not_entered() -> None:
    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node("Relu", ["first"], [name])], name, [], [value(name, None)])

    model = tail_model(
        helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=branch("a"), else_branch=branch("b")),
        flag=np.array(True),
    )
    backward = Backward(model, ["y", "z"], POINTS, {"x": X})
    assert backward.unsupported == {"one": (Unsupported("If", "choice"),)}


def test_integers_and_shapes_are_not_followed() -> None:
    model = tail_model(
        helper.make_node("Shape", ["first"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["count"]),
        helper.make_node("Concat", ["count", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["first", "wanted"], ["rows"]),
        helper.make_node("ArgMax", ["rows"], ["best"], axis=1),
        helper.make_node("Cast", ["best"], ["float"], to=1),
        helper.make_node("ReduceSum", ["rows", "one"], ["sums"]),
        helper.make_node("Add", ["sums", "float"], ["y"]),
        zero=np.array([0], np.int64),
        one=np.array([1], np.int64),
        rest=np.array([-1], np.int64),
    )
    backward = Backward(model, ["y"], {"one": "first"}, {"x": X})
    for count in (2, 1):
        _, gradients = backward.run({"x": X[:count]}, {"y": np.ones((count, 1))})
        np.testing.assert_array_equal(gradients["one"], np.ones((count, 4, 6, 6), np.float32))


def test_indices_that_depend_on_examples_are_refused() -> None:
    model = tail_model(
        helper.make_node("ArgMax", ["first"], ["best"], axis=0, keepdims=0),
        helper.make_node("Gather", ["first", "best"], ["y"], name="pick", axis=0),
    )
    ((fault,),) = Backward(model, ["y", "z"], POINTS, {"x": X}).unsupported.values()
    assert (fault.op_type, fault.node) == ("Gather", "pick")


def test_a_site_nowhere_near_a_head_is_reported() -> None:
    backward = Backward(tail_model(helper.make_node("Relu", ["first"], ["y"])), ["y"], {"two": "z"}, {"x": X})
    assert (backward.unreached, backward.run({"x": X}, {})[1]) == (["two"], {})


def test_a_head_must_exist() -> None:
    with pytest.raises(ModelError, match="no value 'nothing'"):
        Backward(tail_model(helper.make_node("Relu", ["first"], ["y"])), ["nothing"], POINTS, {"x": X})


def test_a_probe_of_another_shape_is_an_error() -> None:
    backward = Backward(tail_model(helper.make_node("Relu", ["first"], ["y"])), ["y"], POINTS, {"x": X})
    with pytest.raises(ValueError, match="the probe of y"):
        backward.run({"x": X}, {"y": np.ones(3)})


def test_memory_of_a_batch_before_is_written_over():
    """Values and gradients are those of the new batch, in the place of the old one's."""
    shapes, sites = prepared(residual())
    heads = find_heads(shapes)
    first, second = examples(4, seed=1), examples(4, seed=2)
    keep = [str(site.output.name) for site in sites]
    backward = Backward(without_shapes(shapes.model), heads.names, site_outputs(sites), first, keep=keep, threads=1)
    probes = {
        name: np.ones_like(array) for name, array in backward.forward(first).values.items() if name in heads.names
    }
    fresh = backward.forward(second)
    wanted = fresh.values, fresh.gradients(probes)
    old = backward.forward(first)
    before = old.gradients(probes)
    new = backward.forward(second, after=old)
    again = new.gradients(probes)
    for name, array in wanted[0].items():
        np.testing.assert_array_equal(new.values[name], array)
    for name, array in wanted[1].items():
        np.testing.assert_array_equal(again[name], array)
        assert np.shares_memory(again[name], before[name])
