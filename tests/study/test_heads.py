"""Where networks answer: the walk from their outputs back to what was learned, and how each answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import find_sites, load
from onnx_pointwise.runtime import resolve
from onnx_pointwise.study import heads as walking
from onnx_pointwise.study.heads import Gauge, Head, Heads, Said, find_heads
from tests.graphs import if_model, make_model, normal, value
from tests.networks import CHANNELS, Builder, branching, detector, residual

CHECKED = settings(derandomize=True, deadline=None, max_examples=25)
PLACES = 36


def heads_of(model: ir.Model, *, named: Mapping[str, Said] | None = None, ignored: Sequence[str] = ()) -> Heads:
    return find_heads(resolve(model), named=named, ignored=ignored)


def by_value(model: ir.Model) -> dict[str, Head]:
    return {head.value: head for head in heads_of(model).heads}


def stem(b: Builder, channels: int = 16, stride: int = 2) -> str:
    """A Relu in front of the heads, 6 by 6 places."""
    return b.add("Relu", b.conv("x", 3, channels, strides=[stride, stride]))


def test_a_classifier_answers_before_its_softmax() -> None:
    model = residual()
    (head,) = heads_of(model).heads
    softmax = model.graph.outputs[0].producer()
    assert softmax is not None
    assert head.value == softmax.inputs[0].name  # type: ignore[union-attr]
    assert (head.kind, head.axis, head.weight, head.behind) == ("classes", -1, 1.0, None)
    assert head.outputs == (model.graph.outputs[0].name,)


def test_logits_are_numbers() -> None:
    b = Builder()
    flat = b.add("Flatten", b.add("GlobalAveragePool", b.conv(stem(b), 16, 16)))
    logits = b.add("MatMul", flat, b.const(normal(16, 10)))
    found = heads_of(b.model(logits))
    assert found.heads == (Head(logits, "numbers", (logits,), -1),)
    assert found.gauges == (Gauge(logits, -1, 1.0, mixed=True),)
    assert found.silent == {}


def test_every_answer_of_a_network_is_found() -> None:
    model = branching()
    found = heads_of(model)
    first, second = (str(value.name) for value in model.graph.outputs)
    assert [(head.kind, head.outputs) for head in found.heads] == [("numbers", (first,)), ("presence", (second,))]
    assert [(gauge.weight, gauge.axis) for gauge in found.gauges] == [(0.5, 1), (0.5, 1)]


def test_channels_are_known_by_the_node_that_made_them() -> None:
    """Late in a network they are more than places."""
    b = Builder()
    features = b.add("LeakyRelu", b.conv(stem(b), 16, 24))
    pooled = b.add("HardSigmoid", b.add("MaxPool", features, kernel_shape=[3, 3]))
    gated = b.add("Mul", features, b.add("Sigmoid", b.conv(features, 24, 24)))
    found = heads_of(b.model(features, pooled, gated), named={features: 1.0, gated: 1.0, pooled: 1.0})
    assert {head.axis for head in found.heads} == {1}
    last = b.add("Transpose", features, perm=[0, 3, 2, 1])
    (other,) = heads_of(b.model(last), named={last: 1.0}).heads
    assert other.axis == 3


def test_boxes_and_scores_in_one_tensor_are_two_answers() -> None:
    model = detector()
    boxes, scores = sorted(heads_of(model).heads, key=lambda head: head.kind)
    assert (boxes.kind, boxes.behind) == ("numbers", None)
    assert scores.kind == "presence"
    producer = next(node for node in model.graph if node.op_type == "Sigmoid")
    assert scores.behind == producer.outputs[0].name
    weights = {gauge.value: gauge.weight for gauge in heads_of(model).gauges}
    assert weights == {boxes.value: 0.5, scores.value: 0.375, scores.behind: 0.125}


def test_false_ways_are_dropped_where_boxes_and_scores_part_again() -> None:
    """Both go through one Concat, so that the graph says of the boxes, too, that a Sigmoid lies behind them."""
    b = Builder()
    x = stem(b)
    boxes, scores = b.conv(x, 16, 4, 1), b.conv(x, 16, 5, 1)
    both = b.add("Reshape", b.add("Concat", boxes, scores, axis=1), b.ints(0, 9, -1))
    first, second = b.several("Split", 2, both, b.ints(4, 5), axis=1)
    sure = b.add("Sigmoid", second)
    end = b.add("Concat", b.add("Mul", first, b.const(np.array(8.0))), sure, axis=1)
    found = by_value(b.model(end))
    assert (found[boxes].kind, found[boxes].behind) == ("numbers", None)
    assert (found[scores].kind, found[scores].behind) == ("presence", sure)


def test_what_cannot_be_tried_out_stays_as_the_graph_says() -> None:
    """Two Sigmoids of one Split, and a head of a size that is not known."""
    b = Builder()
    x = stem(b)
    boxes, scores = b.conv(x, 16, 4, 1), b.conv(x, 16, 5, 1)
    both = b.add("Concat", boxes, scores, axis=1)
    where = b.add("NonZero", b.add("Greater", b.add("ReduceMax", both, axes=[0, 1]), b.const(np.array(0.0))))
    picked = b.add("GatherND", b.add("Transpose", both, perm=[2, 3, 0, 1]), b.add("Transpose", where, perm=[1, 0]))
    found = by_value(b.model(b.add("Sigmoid", picked)))
    assert set(found) == {boxes, scores}
    assert {head.kind for head in found.values()} == {"presence"}


def test_distances_read_off_bins_are_numbers() -> None:
    """The Softmax over bins and the convolution that counts them are no answers; what was learned lies before them."""
    b = Builder()
    x = stem(b)
    bins, scores = b.conv(x, 16, 64, 1), b.conv(x, 16, 6, 1)
    split = b.add("Transpose", b.add("Reshape", bins, b.ints(0, 4, 16, PLACES)), perm=[0, 2, 1, 3])
    counted = b.add("Conv", b.add("Softmax", split, axis=1), b.const(np.arange(16.0).reshape(1, 16, 1, 1)))
    boxes = b.add("Reshape", counted, b.ints(0, 4, PLACES))
    sure = b.add("Sigmoid", b.add("Reshape", scores, b.ints(0, 6, PLACES)))
    found = by_value(b.model(b.add("Concat", boxes, sure, axis=1)))
    assert set(found) == {bins, scores}
    assert (found[bins].kind, found[bins].behind) == ("numbers", None)
    assert found[scores].kind == "presence"


def test_scales_of_a_detector_that_are_put_together_are_heads_of_their_own() -> None:
    b = Builder()
    x = stem(b)
    y = b.add("Relu", b.conv(x, 16, 16, strides=[2, 2]))
    made: dict[str, list[str]] = {"classes": [], "boxes": []}
    flat: dict[str, list[str]] = {"classes": [], "boxes": []}
    for source in (x, y):
        for what, channels in (("classes", 2 * 7), ("boxes", 2 * 4)):
            made[what].append(b.conv(source, 16, channels))
            last = b.add("Transpose", made[what][-1], perm=[0, 2, 3, 1])
            flat[what].append(b.add("Reshape", last, b.ints(0, -1, channels // 2)))
    scores = b.add("Softmax", b.add("Concat", *flat["classes"], axis=1), axis=-1)
    boxes = b.add("Concat", *flat["boxes"], axis=1)
    model = b.model(scores, boxes)
    found = by_value(model)
    assert set(found) == {*made["classes"], *made["boxes"]}
    assert {found[name].kind for name in made["classes"]} == {"classes"}
    assert {found[name].kind for name in made["boxes"]} == {"numbers"}
    assert found[made["classes"][0]].behind == scores and found[made["classes"][0]].behind_axis in (-1, 2)
    # 9 places of the second scale are few: it is measured before the Softmax alone.
    assert found[made["classes"][1]].behind is None
    assert sum(gauge.weight for gauge in heads_of(model).gauges) == pytest.approx(1.0)


def test_scores_that_are_multiplied_stay_apart() -> None:
    """That something is there, times which class it has."""
    b = Builder()
    x = stem(b)
    boxes, there, which = b.conv(x, 16, 4, 1), b.conv(x, 16, 1, 1), b.conv(x, 16, 5, 1)
    all_of_it = b.add("Concat", boxes, b.add("Sigmoid", there), b.add("Sigmoid", which), axis=1)
    rows = b.add("Transpose", b.add("Reshape", all_of_it, b.ints(0, 10, -1)), perm=[0, 2, 1])
    parts = [b.add("Slice", rows, b.ints(start), b.ints(stop), b.ints(2)) for start, stop in ((0, 4), (4, 5), (5, 10))]
    model = b.model(parts[0], b.add("Mul", parts[1], parts[2]))
    found = by_value(model)
    assert {boxes, there, which} >= set(found)


def test_a_product_of_two_sigmoids_has_two_heads() -> None:
    b = Builder()
    x = stem(b)
    there, which = b.conv(x, 16, 1, 1), b.conv(x, 16, 5, 1)
    one, other = b.add("Sigmoid", there), b.add("Sigmoid", which)
    model = b.model(
        b.add("Mul", one, b.add("Transpose", b.add("Transpose", other, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]))
    )
    found = by_value(model)
    assert {name: head.kind for name, head in found.items()} == {there: "presence", which: "presence"}
    assert {head.behind for head in found.values()} == {one, other}


def test_the_sum_of_a_picture_and_its_correction_is_the_answer() -> None:
    b = Builder(size=16)
    correction = b.conv(stem(b, stride=1), 16, 3)
    total = b.add("Add", "x", correction)
    assert heads_of(b.model(total)).heads == (Head(total, "picture", (total,), 1),)


def test_a_picture_between_0_and_1_is_a_picture() -> None:
    b = Builder(size=16)
    correction = b.conv(stem(b, stride=1), 16, 3)
    end = b.add("Sigmoid", correction)
    (head,) = heads_of(b.model(end)).heads
    assert (head.value, head.kind, head.behind) == (correction, "picture", None)


def test_one_channel_between_0_and_1_says_what_is_there() -> None:
    b = Builder(size=16)
    mask = b.conv(stem(b, stride=1), 16, 1)
    end = b.add("Sigmoid", mask)
    (head,) = heads_of(b.model(end)).heads
    assert (head.value, head.kind, head.behind) == (mask, "presence", end)


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_may_come_last(channels_last: bool) -> None:
    b = Builder(size=16)
    picture = b.conv(stem(b, stride=1), 16, 3)
    end = b.add("Transpose", picture, perm=[0, 2, 3, 1]) if channels_last else b.add("Identity", picture)
    assert heads_of(b.model(end)).heads == (Head(picture, "picture", (end,), 1),)


def test_a_gate_near_the_output_belongs_to_what_it_scales() -> None:
    b = Builder()
    features = b.conv(stem(b), 16, 16)
    gate = b.add("Sigmoid", b.conv(b.add("GlobalAveragePool", features), 16, 16, 1))
    gated = b.add("Mul", features, gate)
    (head,) = heads_of(b.model(gated)).heads
    assert (head.value, head.kind) == (gated, "numbers")


@pytest.mark.parametrize("behind", ["mul_add", "batchnorm"])
def test_what_folds_into_a_convolution_is_one_with_it(behind: str) -> None:
    """The head is what the site puts out, not a value inside it that is gone once it is rewritten."""
    b = Builder()
    inner = b.conv(stem(b), 16, 8)
    column = (1, 8, 1, 1)
    if behind == "mul_add":
        end = b.add("Mul", inner, b.const(np.abs(normal(*column)) + 0.5))
        end = b.add("Add", end, b.const(normal(*column)))
    else:
        four = [b.const(np.abs(normal(8, seed=seed)) + 0.5) for seed in range(4)]
        end = b.add("BatchNormalization", inner, *four)
    model = b.model(b.add("Sigmoid", end))
    shapes = resolve(model)
    site = find_sites(model, shapes)[-1]
    assert site.folds and str(site.output.name) == end
    (head,) = heads_of(model).heads
    assert (head.value, head.axis) == (end, 1)


def test_arithmetic_with_constants_is_passed() -> None:
    b = Builder()
    inner = b.conv(stem(b), 16, 8)
    relu = b.add("Relu", inner)
    scaled = b.add("Div", b.add("Sub", b.const(np.array(1.0)), b.add("Pow", relu, b.const(np.array(2.0)))), relu)
    (head,) = heads_of(b.model(scaled)).heads
    assert head.value == relu


def test_the_largest_class_at_every_place() -> None:
    b = Builder()
    scores = b.conv(stem(b), 16, 6)
    end = b.add("ArgMax", scores, axis=1)
    (head,) = heads_of(b.model(end, types={end: TensorProto.INT64})).heads
    assert (head.value, head.kind, head.outputs, head.behind) == (scores, "classes", (end,), None)


def test_the_best_few_of_many() -> None:
    b = Builder()
    scores = b.conv(stem(b), 16, 6)
    flat = b.add("Reshape", b.add("Sigmoid", scores), b.ints(0, -1))
    values, indices = b.several("TopK", 2, flat, b.ints(5), axis=1)
    (head,) = heads_of(b.model(values, indices, types={indices: TensorProto.INT64})).heads
    assert (head.value, head.kind, head.outputs) == (scores, "presence", (values, indices))


def test_outputs_of_varying_size_are_compared_before_they_vary() -> None:
    b = Builder(batch=1)
    x = stem(b)
    boxes, scores = b.conv(x, 16, 4, 1), b.conv(x, 16, 3, 1)
    rows = b.add("Transpose", b.add("Reshape", boxes, b.ints(0, 4, PLACES)), perm=[0, 2, 1])
    sure = b.add("Sigmoid", b.add("Reshape", scores, b.ints(0, 3, PLACES)))
    limits = [b.ints(10), b.const(np.array([0.5])), b.const(np.array([0.3]))]
    kept = b.add("NonMaxSuppression", rows, sure, *limits)
    picked = b.add("Gather", kept, b.ints(2), axis=1)
    left = b.add("GatherND", rows, b.add("Concat", b.add("Gather", kept, b.ints(0), axis=1), picked, axis=1))
    model = b.model(left, kept, types={kept: TensorProto.INT64})
    found = by_value(model)
    assert {name: head.kind for name, head in found.items()} == {boxes: "numbers", scores: "presence"}
    assert found[scores].behind == sure
    assert set(found[scores].outputs) == {left, kept}


def test_whole_numbers_are_compared_where_they_were_none() -> None:
    b = Builder()
    scores = b.conv(stem(b), 16, 6)
    end = b.add("Cast", b.add("Round", scores), to=TensorProto.INT32)
    (head,) = heads_of(b.model(end, types={end: TensorProto.INT32})).heads
    assert (head.value, head.kind) == (scores, "numbers")


def test_outputs_that_say_nothing_are_named_with_a_reason() -> None:
    b = Builder()
    answer = b.conv(stem(b), 16, 6)
    size = b.add("Shape", answer)
    same = b.add("Identity", "x")
    fixed = b.add("Identity", b.const(np.ones(3)))
    counted = b.add("ReduceSum", b.add("Cast", answer, to=TensorProto.INT64))
    kinds = {size: TensorProto.INT64, counted: TensorProto.INT64}
    found = heads_of(b.model(answer, size, same, fixed, counted, types=kinds))
    assert [head.value for head in found.heads] == [answer]
    assert set(found.silent) == {size, same, fixed, counted}
    assert all(reason.startswith("Nothing learned goes into it") for reason in found.silent.values())
    assert found.to_dict()["not_compared"] == dict(found.silent)


def test_a_network_without_an_answer_has_no_gauge() -> None:
    b = Builder()
    size = b.add("Shape", b.conv("x", 3, 8))
    found = heads_of(b.model(size, types={size: TensorProto.INT64}))
    assert (found.heads, found.gauges, set(found.silent)) == ((), (), {size})
    assert found.drift([], []) == 0.0


def sequence_model(op: str) -> ir.Model:
    """Two answers as a sequence, of an operator that is known or of one that is not."""
    b = Builder()
    x = stem(b)
    one, other = b.conv(x, 16, 6), b.conv(x, 16, 6)
    end = b.add("SequenceConstruct", one, other)
    if op == "SequenceErase":
        end = b.add(op, end, b.const(np.array(0)))
        b.weights[-1] = helper.make_tensor(b.weights[-1].name, TensorProto.INT64, [], [0])
    elif op == "SequenceAt":
        b.const(np.array(0))
        b.weights[-1] = helper.make_tensor(b.weights[-1].name, TensorProto.INT64, [], [0])
        end = b.add(op, end, b.weights[-1].name)
        return b.model(end)
    proto = b.proto(end)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    proto.graph.output[0].type.CopyFrom(kind)
    return ir.serde.deserialize_model(proto)


def test_a_sequence_is_compared_by_its_parts() -> None:
    model = sequence_model("SequenceConstruct")
    convolutions = [str(node.outputs[0].name) for node in model.graph if node.op_type == "Conv"]
    assert {head.value for head in heads_of(model).heads} == set(convolutions[1:])


def test_a_sequence_of_unknown_making_is_not_compared() -> None:
    found = heads_of(sequence_model("SequenceErase"))
    assert found.heads == ()
    (reason,) = found.silent.values()
    assert "no tensor" in reason


def test_what_is_taken_out_of_a_sequence_is_a_value_like_others() -> None:
    model = sequence_model("SequenceAt")
    found = heads_of(model)
    assert found.silent == {} and found.heads


def test_a_node_with_branches_inside_answers_itself() -> None:
    model = ir.serde.deserialize_model(if_model(normal(6, 6, 3, 3)))
    assert [(head.value, head.kind) for head in heads_of(model).heads] == [("y", "numbers")]


# --- what is asked for by name ----------------------------------------------------------------------------------------


def test_weights_are_those_that_are_named() -> None:
    model = branching()
    first, second = heads_of(model).heads
    found = heads_of(model, named={second.value: 3.0, first.value: 1.0})
    assert [(gauge.value, gauge.weight) for gauge in found.gauges] == [(second.value, 0.75), (first.value, 0.25)]
    alone = heads_of(model, named={first.value: 2.0, second.value: 0.0})
    assert [(gauge.value, gauge.weight) for gauge in alone.gauges] == [(first.value, 1.0)]
    assert [head.weight for head in alone.heads] == [2.0, 0.0]


def test_kinds_are_those_that_are_named() -> None:
    """What lies behind a head that was found belongs to the kind that was found."""
    model = detector()
    found = {head.value: head for head in heads_of(model).heads}
    name, was = next((name, head) for name, head in found.items() if head.kind == "presence")
    (same,) = heads_of(model, named={name: "presence"}).heads
    assert (same.kind, same.behind, same.weight) == ("presence", was.behind, 1.0) and was.behind is not None
    (other,) = heads_of(model, named={name: (2.0, "classes")}).heads
    assert (other.kind, other.behind, other.weight, other.axis) == ("classes", None, 2.0, was.axis)


@pytest.mark.parametrize("softmax", [False, True])
def test_what_a_map_is_made_of_is_a_head_of_classes(softmax: bool) -> None:
    scores = ["Softmax"] if softmax else []
    names = ["g", *(f"{name}_out" for name in scores)]
    nodes = [helper.make_node("Conv", ["x", "W"], ["c"]), helper.make_node("Flatten", ["c"], ["f"]),
             helper.make_node("MatMul", ["f", "V"], ["g"])]  # fmt: skip
    nodes += [helper.make_node(kind, [names[0]], [names[1]]) for kind in scores]
    nodes.append(helper.make_node("ZipMap", names[-1:], ["map"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]))
    zipped = onnx.ValueInfoProto(name="map")
    zipped.type.sequence_type.elem_type.map_type.key_type = onnx.TensorProto.INT64
    zipped.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    weights = {"W": normal(4, 4, 3, 3), "V": normal(4 * 36, 3)}
    model = make_model(nodes, [value("x", ["N", 4, 8, 8])], [zipped], weights)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    found = heads_of(load(model))
    assert [(head.value, head.kind, head.outputs) for head in found.heads] == [("g", "classes", ("map",))]
    assert found.silent == {}


def test_what_gets_its_name_as_text_is_a_head_of_classes() -> None:
    nodes = [helper.make_node("Conv", ["x", "W"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["f"]),
             helper.make_node("Flatten", ["f"], ["g"]), helper.make_node("ArgMax", ["g"], ["i"], axis=1, keepdims=0),
             helper.make_node("LabelEncoder", ["i"], ["name"], domain="ai.onnx.ml", keys_int64s=[0, 1, 2],
                              values_strings=["one", "two", "three"])]  # fmt: skip
    text = helper.make_tensor_value_info("name", onnx.TensorProto.STRING, ["N"])
    model = make_model(nodes, [value("x", ["N", 4, 8, 8])], [text], {"W": normal(3, 4, 3, 3)})
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    found = heads_of(load(model))
    assert [(head.value, head.kind, head.outputs) for head in found.heads] == [("f", "classes", ("name",))]


def test_a_value_inside_may_be_named() -> None:
    model = residual()
    inside = next(str(node.outputs[0].name) for node in model.graph if node.op_type == "Add")
    (head,) = heads_of(model, named={inside: 1.0}).heads
    assert (head.value, head.kind, head.outputs) == (inside, "numbers", ())


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"nope": 1.0}, r"no value 'nope'.*its heads are 'v"),
        ({"x": 1.0}, "no value 'x'"),
        ({"c0": 1.0}, "no value 'c0'"),
        ({"v0": -1.0}, "at least 0, not -1"),
        ({"v0": float("nan")}, "at least 0, not nan"),
        ({"v0": float("inf")}, "at least 0, not inf"),
        ({"v0": 0.0}, "all 0"),
        ({"v0": "colours"}, "cannot be of the kind 'colours'; the kinds are classes, presence, picture, numbers"),
        ({"v0": (1.0, "colours")}, "cannot be of the kind 'colours'"),
        ({"v0": ("classes", 1.0)}, "must be a number of at least 0, not classes"),
    ],
)
def test_heads_that_make_no_sense_are_refused(weights: dict[str, Said], words: str) -> None:
    with pytest.raises(InputError, match=words):
        heads_of(branching(), named=weights)


def test_outputs_may_be_ignored() -> None:
    model = branching()
    first, second = (str(value.name) for value in model.graph.outputs)
    found = heads_of(model, ignored=[second])
    assert [head.outputs for head in found.heads] == [(first,)]
    assert found.silent == {second: "It was ignored by name."}
    with pytest.raises(InputError, match="no output 'nope'.*" + first):
        heads_of(model, ignored=["nope"])
    with pytest.raises(InputError, match="Every output is ignored"):
        heads_of(model, ignored=[first, second])


# --- graphs of any size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Neg", "Add", "Concat"])
def test_deep_graphs_are_walked_once(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more ways than anybody could go, and one call inside another would not end well."""
    b = Builder()
    answer = x = b.conv("x", 3, 4)
    for _ in range(2500 if op == "Concat" else 5000):
        if op == "Concat":  # of two halves
            left, right = b.several("Split", 2, x, b.ints(2, 2), axis=1)
            x = b.add("Concat", right, left, axis=1)
        else:
            x = b.add(op, *[x] * (2 if op == "Add" else 1))
    shapes = resolve(b.model(x))
    steps = {"_made_of": 0, "_passed": 0}

    def counted(name: str) -> None:
        real = getattr(walking._Walk, name)

        def step(self: Any, *given: Any) -> Any:
            steps[name] += 1
            return real(self, *given)

        monkeypatch.setattr(walking._Walk, name, step)

    for name in steps:
        counted(name)
    sites = find_sites(shapes.model, shapes)
    assert [head.value for head in find_heads(shapes, sites=sites).heads] == [answer]
    assert max(steps.values()) <= 8000


@st.composite
def graphs(draw: st.DrawFn) -> tuple[ir.Model, set[str]]:
    """Heads that are moved about, put together and parted again, and the convolutions among them."""
    b = Builder(draw(st.integers(0, 100)))
    x = stem(b)
    answers = [b.conv(x, 16, 4, 1) for _ in range(draw(st.integers(1, 4)))]
    values = list(answers)
    for _ in range(draw(st.integers(0, 8))):
        value = values[draw(st.integers(0, len(values) - 1))]
        kind = draw(st.sampled_from(["Sigmoid", "Exp", "Neg", "Transpose", "Mul", "Concat"]))
        if kind == "Concat":
            other = values[draw(st.integers(0, len(values) - 1))]
            both = b.add("Concat", value, other, axis=1)
            values.extend(b.several("Split", 2, both, b.ints(4, 4), axis=1))
        elif kind == "Mul":
            values.append(b.add("Mul", value, b.const(np.array(draw(st.floats(0.5, 2.0))))))
        elif kind == "Transpose":
            values.append(b.add("Transpose", value, perm=[0, 1, 3, 2]))
        else:
            values.append(b.add(kind, value))
    ends = values[len(answers) :] or values
    model = b.model(*ends)
    return model, {str(site.output.name) for site in find_sites(model)}


@CHECKED
@given(graphs())
def test_heads_are_what_was_learned_last_and_are_found_again(made: tuple[ir.Model, set[str]]) -> None:
    model, answers = made
    found = heads_of(model)
    assert {head.value for head in found.heads} <= answers
    assert found.heads and not found.silent
    assert sum(gauge.weight for gauge in found.gauges) == pytest.approx(1.0)
    assert len({gauge.value for gauge in found.gauges}) == len(found.gauges)
    assert found == heads_of(model)


@CHECKED
@given(st.lists(st.floats(0.01, 10.0), min_size=2, max_size=2), st.integers(0, 1000))
def test_drift_of_a_network_is_the_weighted_mean_of_its_gauges(weights: list[float], seed: int) -> None:
    model = branching()
    names = [head.value for head in heads_of(model).heads]
    found = heads_of(model, named=dict(zip(names, weights, strict=True)))
    rng = np.random.default_rng(seed)
    before = [rng.standard_normal((6, 8, 4, 4)), rng.standard_normal((6, 16))]
    after = [value + 0.1 * rng.standard_normal(value.shape) for value in before]
    shares = found.drifts(before, after)
    assert all(share is not None for share in shares)
    assert found.drift(before, after) == pytest.approx(np.average(shares, weights=weights))  # type: ignore[arg-type]
    assert found.drift(before, before) == 0.0
    before[0][:] = 3.0  # says nothing any more
    assert found.drifts(before, after)[0] is None
    assert found.drift(before, after) == pytest.approx(shares[1])


def test_grids_of_a_detector_share_the_weight_of_one_answer_by_their_places() -> None:
    """A coarse grid has few places: what it says counts no more than what a fine one says at as many."""
    b = Builder()
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    half = b.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    fine, coarse = b.conv(x, CHANNELS, 4, k=1), b.conv(half, CHANNELS, 4, k=1)
    mask = b.conv(x, CHANNELS, 1, k=1)
    scores = b.add(
        "Sigmoid", b.add("Concat", *(b.add("Reshape", one, b.ints(0, 4, -1)) for one in (fine, coarse)), axis=2)
    )
    found = heads_of(b.model(scores, b.add("Identity", mask)))
    weights = {head.value: head.weight for head in found.heads}
    assert weights == pytest.approx({fine: 0.8, coarse: 0.2, mask: 1.0})
    gauges = {gauge.value: gauge.weight for gauge in found.gauges}
    behind = next(head.behind for head in found.heads if head.value == fine)
    assert behind is not None
    assert gauges == pytest.approx({fine: 0.3, coarse: 0.075, behind: 0.125, mask: 0.5})
