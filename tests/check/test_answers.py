"""The verdict: what a check says of answers that are the same, close, changed and broken."""

from __future__ import annotations

import io
import json
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from rich.console import Console

from onnx_pointwise.check import CheckResult, picture_drifts, shortened
from onnx_pointwise.check import check as api
from onnx_pointwise.check.answers import readings_of
from onnx_pointwise.check.limits import LIKENESSES, LIMITS, likeness, limits_of, severity
from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import load
from onnx_pointwise.reports import terminal
from onnx_pointwise.runtime import resolve
from onnx_pointwise.study import Kind, find_heads
from tests import small
from tests.check.networks import NETWORKS, classifier, descriptor, detector, finder, images, moved, painter
from tests.graphs import function_model, make_model, normal, run, value

KINDS = get_args(Kind)


def check(*arguments: Any, **options: Any) -> CheckResult:
    return api(*arguments, **{"latency": False, "threads": 1, "inputs": images()} | options)


def codes(result: CheckResult) -> list[str]:
    return [finding.code for finding in result.findings]


def printed(renderable: Any, columns: int = 80) -> list[str]:
    console = Console(width=columns, file=io.StringIO(), record=True)
    console.print(renderable)
    return [line.rstrip() for line in console.export_text().splitlines()]


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_limits_are_where_the_words_change(kind: Kind) -> None:
    worse = 1e-9 if kind == "numbers" else -1e-9
    for step, mark in enumerate(LIMITS[kind]):
        assert likeness(severity(kind, mark, LIMITS[kind])) == LIKENESSES[step]
        assert likeness(severity(kind, mark + worse, LIMITS[kind])) == LIKENESSES[step + 1]


@settings(derandomize=True, deadline=None)
@given(kind=st.sampled_from(KINDS), one=st.floats(0, 2), other=st.floats(0, 2))
def test_what_is_further_off_is_never_called_better(kind: Kind, one: float, other: float) -> None:
    scale = 100.0 if kind == "picture" else 1.0
    better, worse = sorted((scale * one, scale * other), reverse=kind != "numbers")
    assert severity(kind, better, LIMITS[kind]) <= severity(kind, worse, LIMITS[kind]) < 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"boxes": (1, 2, 3)}, "no kind of head 'boxes'"),
        ({"classes": (0.9, 0.95, 0.8)}, "must be three numbers, falling"),
        ({"numbers": (0.3, 0.2, 0.1)}, "must be three numbers, rising"),
        ({"numbers": (0.1, 0.2)}, "not 0.1,0.2"),
        ({"picture": (40, float("nan"), 20)}, "three numbers"),
    ],
)
def test_limits_that_make_no_sense(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        limits_of(given)
    with pytest.raises(InputError, match=words):
        check(descriptor(), descriptor(), limits=given)


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_the_same_as_itself(name: str) -> None:
    make, kinds = NETWORKS[name]
    result = check(make(), make(), require="same")
    assert result.passed and result.verdict == "same" and not result.warnings
    assert {head.kind for head in result.heads} == kinds
    assert all(head.drift == 0.0 and head.verdict == "same" for head in result.heads)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_ruined_network_is_broken(name: str) -> None:
    make, _ = NETWORKS[name]
    result = check(make(), moved(make(), 1.0))
    assert not result.passed and result.verdict == "broken"
    assert codes(result) == ["broken"]
    sentence = result.findings[0].sentence
    assert result.worst is not None and f"{result.worst.figure} at y (" in sentence
    assert "larger budget" in sentence and "--exclude" in sentence
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_further_off_the_worse_the_word(name: str) -> None:
    make, _ = NETWORKS[name]
    words = [check(make(), moved(make(), share)).verdict for share in (0.003, 0.06, 0.3, 1.0)]
    ranks = [LIKENESSES.index(word) for word in words if word is not None]
    assert ranks == sorted(ranks) and (ranks[0], ranks[-1]) == (0, 3) and len(set(ranks)) >= 3


def test_scores_are_seen_beside_boxes_in_one_tensor() -> None:
    result = check(detector(), moved(detector(), 1.0, ("WS",)))
    heads = {head.kind: head for head in result.heads}
    assert result.drift["y"].relative_l2 < 0.02, "boxes in pixels hide the scores"
    assert heads["numbers"].verdict == "same" and heads["presence"].verdict == "broken"
    assert result.verdict == "broken"
    assert result.worst is not None and result.worst.place == "y (presence, score)"


def test_classes_that_only_a_reshape_makes_are_compared_behind_it() -> None:
    shapes = resolve(ir.serde.deserialize_model(finder()), {"x": (1, 6, 16, 16)})
    (reading,) = readings_of(shapes, find_heads(shapes))
    assert (reading.head.value, reading.value, reading.axis) == ("anchors", "y", 2)
    (head,) = check(finder(), moved(finder(), 0.3)).heads
    assert head.measure == "F1" and 0.3 < (head.agreement or 0.0) < 0.95


def test_few_answers_are_judged_by_drift() -> None:
    few = check(classifier(), moved(classifier(), 0.2), inputs=images(5)).heads[0]
    many = check(classifier(), moved(classifier(), 0.2)).heads[0]
    assert (few.judged_by, many.judged_by) == ("drift", "agreement")
    assert few.agreement is not None and few.counted < 10 <= many.counted
    assert few.figure.startswith("drift ") and many.figure.startswith("top-1 ")


def test_limits_can_be_set() -> None:
    pair = descriptor(), moved(descriptor(), 0.2)
    assert check(*pair).verdict in ("changed", "broken")
    loose = check(*pair, limits={"numbers": (1.0, 2.0, 3.0)})
    assert loose.verdict == "same" and loose.to_dict()["limits"]["numbers"] == [1.0, 2.0, 3.0]
    assert check(*pair, limits={"numbers": (0.0, 0.0, 0.0)}).verdict == "broken"


def test_how_alike_answers_must_be_can_be_required() -> None:
    pair = descriptor(), moved(descriptor(), 0.2)
    limits = {"numbers": (0.01, 0.02, 3.0)}
    assert check(*pair, limits=limits).passed and check(*pair, limits=limits).verdict == "changed"
    for required in ("same", "close"):
        result = check(*pair, limits=limits, require=required)
        assert not result.passed and codes(result) == ["not_alike"]
        assert f"changed on cpu, though {'the same' if required == 'same' else 'close'} was required" in (
            result.findings[0].sentence
        )
    with pytest.raises(InputError, match="one of same, close, changed"):
        check(*pair, require="broken")


# --- which heads count ------------------------------------------------------------------------------------------------


def two_outputs() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "W1"], ["y"], name="one"),
        helper.make_node("Conv", ["x", "W2"], ["z"], name="two"),
    ]
    weights = {"W1": normal(4, 6, 1, 1), "W2": normal(4, 6, 1, 1, seed=1)}
    outputs = [value(name, ["N", 4, 16, 16]) for name in ("y", "z")]
    return make_model(nodes, [value("x", ["N", 6, 16, 16])], outputs, weights)


def test_outputs_that_do_not_count() -> None:
    pair = two_outputs(), moved(two_outputs(), 1.0, ("W2",))
    assert check(*pair).verdict == "broken"
    result = check(*pair, ignore_outputs=("z",), max_drift=0.1)
    assert result.passed and result.verdict == "same" and list(result.drift) == ["y"]
    assert result.not_compared == {"z": "It was ignored by name."}
    with pytest.raises(InputError, match="no output 'w' to ignore"):
        check(*pair, ignore_outputs=("w",))
    with pytest.raises(InputError, match="'z' cannot be limited: It was ignored"):
        check(*pair, ignore_outputs=("z",), max_drift={"z": 0.1})


def test_heads_by_hand() -> None:
    pair = detector(), moved(detector(), 1.0, ("WS",))
    result = check(*pair, heads={"box": 1.0})
    assert [head.value for head in result.heads] == ["box"] and result.verdict == "same"
    inner = check(*pair, heads={"b": 2.0, "score": 0.0})
    assert [head.value for head in inner.heads] == ["b"]
    with pytest.raises(InputError, match="no value 'nose'"):
        check(*pair, heads={"nose": 1.0})


def test_the_drift_of_a_head_can_be_limited() -> None:
    pair = detector(), moved(detector(), 0.1, ("WS",))
    assert check(*pair, max_drift={"score": 0.9, "y": 0.1}).passed
    result = check(*pair, max_drift={"score": 0.01})
    assert codes(result) == ["drift"] and "Head 'score' drifts by" in result.findings[0].sentence
    with pytest.raises(InputError, match=r"no output 'nose' to limit .* its outputs are y, its heads "):
        check(*pair, max_drift={"nose": 0.01})


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    return copy


def test_where_the_second_network_lacks_a_head_outputs_are_compared() -> None:
    result = check(classifier(), renamed(classifier(), "m0", "other"))
    assert result.verdict == "same" and [head.value for head in result.heads] == ["y"]
    assert result.heads[0].kind == "classes" and result.heads[0].agreement == 1.0
    assert len(result.warnings) == 1 and "has no 'm0'" in result.warnings[0]
    mixed = check(detector(), renamed(moved(detector(), 1.0), "score", "other"))
    assert [head.kind for head in mixed.heads] == ["numbers"] and mixed.verdict == "broken"


def test_heads_inside_local_functions() -> None:
    kernel = normal(8, 8, 3, 3)
    result = check(function_model(kernel), function_model(kernel), inputs={"x": normal(1, 8, 8, 8)})
    assert result.verdict == "same" and not result.warnings


# --- what cannot be compared ------------------------------------------------------------------------------------------


def logarithm() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Log", ["x"], ["l"], name="log"),
        helper.make_node("Conv", ["l", "W1"], ["y"], name="conv"),
    ]
    shape = ["N", 6, 16, 16]
    return make_model(nodes, [value("x", shape)], [value("y", ["N", 4, 14, 14])], {"W1": normal(4, 6, 3, 3)})


@pytest.mark.parametrize("limit", [None, 0.1, {"y": 0.1}])
def test_a_limit_that_compared_nothing_has_failed(limit: Any) -> None:
    result = check(logarithm(), logarithm(), max_drift=limit, inputs={"x": -np.abs(images()["x"])})
    assert not result.passed and set(codes(result)) == {"nothing_compared"}
    assert len(result.findings) == (1 if limit is None else 2)
    assert all("--inputs" in finding.sentence for finding in result.findings)
    assert "In the first network the node 'log' (Log) makes " in result.findings[0].sentence
    assert result.verdict is None
    assert "Nothing that the networks answer could be compared" in " ".join(printed(terminal.check(result)))
    assert check(logarithm(), logarithm(), inputs={"x": np.abs(images()["x"])}, max_drift=limit).passed


def parts(count: int, *, seed: int = 1) -> onnx.ModelProto:
    """A convolution whose channels are put out as a sequence, and a score."""
    nodes = [
        helper.make_node("Conv", ["x", "W1"], ["c"], name="conv"),
        helper.make_node("SplitToSequence", ["c", "sizes"], ["parts"], axis=1),
        helper.make_node("ReduceMean", ["c"], ["z"], axes=[2, 3], keepdims=0),
    ]
    sizes = np.full(count, 12 // count, np.int64)
    outputs = [
        helper.make_tensor_sequence_value_info("parts", onnx.TensorProto.FLOAT, None),
        value("z", ["N", 12]),
    ]
    weights = {"W1": normal(12, 6, 1, 1, seed=seed), "sizes": sizes}
    return make_model(nodes, [value("x", ["N", 6, 16, 16])], outputs, weights)


def test_sequences_are_compared_item_by_item() -> None:
    result = check(parts(3), parts(3), max_drift={"parts": 0.001})
    assert result.passed and set(result.drift) == {"parts[0]", "parts[1]", "parts[2]", "z"}
    assert result.unlimited == ["z"]
    other = check(parts(3), moved(parts(3), 0.3), max_drift={"parts": 0.001})
    assert codes(other) == ["drift"] * 3
    fewer = check(parts(3), parts(2))
    assert "output_shape" in codes(fewer)
    assert "Output 'parts' has 2 items instead of 3 on cpu" in fewer.findings[0].sentence


def test_text_is_named_with_what_it_is_made_of() -> None:
    table = helper.make_node(
        "LabelEncoder", ["k"], ["t"], domain="ai.onnx.ml", keys_int64s=[0, 1], values_strings=["a", "b"]
    )
    nodes = [
        helper.make_node("Conv", ["x", "W1"], ["y"], name="conv"),
        helper.make_node("ArgMax", ["y"], ["k"], axis=1, keepdims=0),
        table,
    ]
    outputs = [value("y", ["N", 2, 16, 16]), helper.make_tensor_value_info("t", onnx.TensorProto.STRING, None)]
    weights = {"W1": normal(2, 6, 1, 1)}
    model = make_model(nodes, [value("x", ["N", 6, 16, 16])], outputs, weights)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    result = check(model, model)
    said = "It is text, and holds no numbers to compare. What it is made of is compared, 'y'."
    assert result.passed and result.not_compared == {"t": said}
    assert f"Not compared: t. {said}" in " ".join(" ".join(printed(terminal.check(result))).split())
    assert [(head.kind, head.outputs) for head in result.heads] == [("classes", ("y", "t"))]
    with pytest.raises(InputError, match="'t' cannot be limited: It is text"):
        check(model, model, max_drift={"t": 0.1})
    assert check(model, model, max_drift=0.1).passed


def test_random_inputs_are_warned_of_where_anything_moved() -> None:
    moved_a_bit = check(descriptor(), moved(descriptor(), 0.01), inputs=None)
    assert moved_a_bit.inputs == "random" and len(moved_a_bit.warnings) == 1
    assert "--inputs" in moved_a_bit.warnings[0]
    assert not check(descriptor(), descriptor(), inputs=None).warnings
    ruined = check(descriptor(), moved(descriptor(), 1.0), inputs=None)
    assert "on random numbers" in ruined.findings[0].sentence
    assert "on random numbers, not real" in printed(terminal.check(ruined))[0]


def test_classes_of_several_boxes_at_a_place_are_compared_where_they_are_chosen() -> None:
    """Their shape is not known where it is computed in the graph; channels of two boxes are not four classes."""
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "V"], ["logits"]),
        helper.make_node("Transpose", ["logits"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "zero", "one"], ["count"]),
        helper.make_node("Concat", ["count", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["last", "target"], ["boxes"]),
        helper.make_node("Softmax", ["boxes"], ["scores"], axis=2),
    ]
    weights = {
        "W": normal(8, 6, 3, 3), "V": normal(4, 8, 1, 1, seed=1), "zero": np.array([0]), "one": np.array([1]),
        "rest": np.array([-1, 2]),
    }  # fmt: skip
    model = make_model(nodes, [value("x", ["N", 6, 16, 16])], [value("scores", None)], weights)
    shapes = resolve(load(model))
    (reading,) = readings_of(shapes, find_heads(shapes))
    assert (reading.head.value, reading.head.kind) == ("logits", "classes")
    assert (reading.value, reading.axis % 3) == ("scores", 2)
    (head,) = check(model, model).heads
    assert head.agreement == 1.0


def test_networks_that_take_images_are_compared_on_drawn_ones() -> None:
    """Random numbers are nothing that a network of images was made for: there a good one may seem broken."""
    found = api(small.network(), small.network(), latency=False)
    assert (found.inputs, found.verdict, found.warnings) == ("drawn", "same", ())
    assert max(trial.input_shapes["image"][0] for trial in found.providers[0].trials) == 16
    second = small.network()
    for kernel in second.graph.initializer:
        if kernel.name == "conv2.w":
            kernel.CopyFrom(numpy_helper.from_array(0.0 * numpy_helper.to_array(kernel), kernel.name))
    ruined = api(small.network(), second, latency=False)
    assert ruined.verdict == "broken" and "on synthetic images" in ruined.findings[0].sentence
    assert any("only real ones tell" in warning for warning in ruined.warnings)


def test_logits_that_are_said_to_be_classes_are_judged_by_the_largest() -> None:
    before, after = descriptor(), moved(descriptor(), 0.03)
    plain, told = check(before, after), check(before, after, heads={"y": "classes"})
    assert plain.heads[0].kind == "numbers" and plain.heads[0].judged_by == "drift"
    assert told.heads[0].kind == "classes" and told.heads[0].measure == "top-1"
    assert told.heads[0].agreement is not None and told.heads[0].drift == plain.heads[0].drift


def test_scores_that_are_named_behind_their_sigmoid_are_there_above_one_half() -> None:
    before, after = detector(), moved(detector(), 0.3)
    (usual,) = (head for head in check(before, after).heads if head.kind == "presence")
    behind = next(node.output[0] for node in before.graph.node if node.op_type == "Sigmoid")
    (named,) = check(before, after, heads={behind: "presence"}).heads
    assert (named.agreement, named.counted) == (usual.agreement, usual.counted)


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_line_is_the_verdict(name: str, share: float) -> None:
    make, _ = NETWORKS[name]
    result = check(make(), moved(make(), share))
    lines = printed(terminal.check(result))
    words = {"same": "The answers are the same: ", "close": "The answers are close: ",
             "changed": "The answers are changed: ", "broken": "The network is broken: "}  # fmt: skip
    assert result.verdict is not None and result.worst is not None
    assert lines[0].startswith(words[result.verdict] + result.worst.figure)
    assert max(map(len, lines)) <= 80
    assert ("Check passed" in "\n".join(lines)) == (result.verdict in ("same", "close"))


def cleaner(share: float) -> onnx.ModelProto:
    """Takes a little from what it is given, as a network that cleans pictures does; of that only a share."""
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "V"], ["noise"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Sub", ["x", "noise"], ["y"], name="clean"),
    ]
    weights = {"W": normal(16, 3, 3, 3) / 5, "V": np.float32(share) * normal(3, 16, 3, 3, seed=1) / 700}
    return make_model(nodes, [value("x", ["N", 3, 24, 24])], [value("y", ["N", 3, 24, 24])], weights)


def test_a_picture_has_to_be_nearer_than_a_filter_of_the_input_comes() -> None:
    """Without its work, the network gives back what it was given: above 40 dB, and broken all the same."""
    seen = {"x": np.random.default_rng(5).random((6, 3, 24, 24)).astype(np.float32)}
    found = {share: check(cleaner(1.0), cleaner(share), inputs=seen) for share in (1.0, 0.97, 0.0)}
    assert found[1.0].verdict == "same" and found[0.97].verdict == "same"
    head = found[0.0].heads[0]
    assert head.agreement is not None and head.agreement > LIMITS["picture"][0]
    assert head.plain is not None and head.plain > head.agreement
    assert found[0.0].verdict == "broken" and head.to_dict()["plain_filter"] == head.plain
    shown = " ".join(printed(terminal.check(found[0.0])))
    assert f"(filter {head.plain:.1f})" in shown and "gain 15, 10, 6" in shown
    lenient = check(cleaner(1.0), cleaner(0.0), inputs=seen, limits={"gain": (-15, -20, -30)})
    assert lenient.verdict == "same"


def test_how_far_pictures_may_drift_is_told_before_they_are_compared() -> None:
    """A little nearer they are the same, a little further they are not; heads of other kinds have no such limit."""
    seen = {"x": np.random.default_rng(5).random((6, 3, 24, 24)).astype(np.float32)}
    model = load(cleaner(1.0))
    heads = find_heads(resolve(model, {"x": (6, 3, 24, 24)}))
    (head,) = heads.heads
    answers = {head.value: run(cleaner(1.0), **seen)[0]}
    limit = picture_drifts(heads, seen, answers, LIMITS)[head.value]
    drifts = {share: check(cleaner(1.0), cleaner(share), inputs=seen).heads[0] for share in (0.99, 0.6)}
    assert drifts[0.99].drift is not None and drifts[0.6].drift is not None
    each = (drifts[0.99].drift - drifts[0.6].drift) / (0.6 - 0.99)  # drift by share that is left out
    for part, verdict in ((0.9, "same"), (1.1, "close")):
        result = check(cleaner(1.0), cleaner(1.0 - part * limit / each), inputs=seen)
        assert result.heads[0].kind == "picture" and result.verdict == verdict
    lenient = picture_drifts(heads, seen, answers, limits_of({"picture": (30, 25, 20), "gain": (-9, -10, -11)}))
    assert lenient[head.value] > 2.0 * limit
    numbers = find_heads(resolve(load(descriptor()), {"x": images()["x"].shape}))
    assert picture_drifts(numbers, images(), {numbers.heads[0].value: images()["x"]}, LIMITS) == {}


def test_what_raised_the_limit_is_said() -> None:
    seen = {"x": np.random.default_rng(5).random((6, 3, 24, 24)).astype(np.float32)}
    result = check(cleaner(1.0), cleaner(0.0), inputs=seen)
    assert codes(result) == ["broken"]
    assert "where a mere linear filter of the input has" in result.findings[0].sentence


def test_pictures_are_said_in_decibels() -> None:
    result = check(painter(), moved(painter(), 0.02))
    assert printed(terminal.check(result))[0].startswith("The answers are ")
    assert (
        "PSNR" in printed(terminal.check(result))[0]
        and " dB at y (picture), on the inputs given." in (printed(terminal.check(result))[0])
    )


def test_long_names_lose_their_middle() -> None:
    name = "model/backbone/stage4/block3/conv2/very_long/Conv_output"
    assert shortened(name, 20) == "model/…g/Conv_output" and shortened("abc", 3) == "abc"
    pair = [renamed(one, "score", name) for one in (detector(), moved(detector(), 0.3))]
    result = check(*pair)
    for columns in (80, 120):
        lines = printed(terminal.check(result), columns)
        assert max(map(len, lines)) <= columns
        row = next(line for line in lines if " presence " in line)
        assert row.startswith("model/")
        assert ("…" in row) == (columns == 80)


def two_grids(wrong: float = 0.0) -> onnx.ModelProto:
    """Scores of a fine and a coarse grid in one output; the coarse one is off by a share of its places."""
    nodes = [
        helper.make_node("Conv", ["x", "W1"], ["fine"], name="fine_head"),
        helper.make_node("AveragePool", ["x"], ["p"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["p", "W2", "b2"], ["coarse"], name="coarse_head"),
        helper.make_node("Flatten", ["fine"], ["f"], name="flat1"),
        helper.make_node("Flatten", ["coarse"], ["c"], name="flat2"),
        helper.make_node("Concat", ["f", "c"], ["z"], name="both", axis=1),
        helper.make_node("Sigmoid", ["z"], ["y"], name="sigmoid"),
    ]
    weights = {
        "W1": normal(1, 6, 1, 1, seed=1),
        "W2": normal(1, 6, 1, 1, seed=2),
        "b2": np.array([wrong], np.float32),
    }
    return make_model(nodes, [value("x", ["N", 6, 16, 16])], [value("y", None)], weights)


def test_grids_that_give_one_answer_are_judged_by_all_of_it() -> None:
    result = check(two_grids(), two_grids(wrong=0.4), inputs={"x": normal(8, 6, 16, 16, seed=5)}, latency=False)
    fine, coarse = sorted(result.heads, key=lambda head: -head.counted)
    assert (fine.agreement, fine.together) == (1.0, coarse.together)
    assert coarse.agreement is not None
    assert coarse.together is not None
    assert coarse.agreement < 0.9 < 0.98 < coarse.together  # few of all places are the coarse grid's
    assert coarse.verdict != "broken"
    assert coarse.place == "y (presence)"
    assert coarse.figure == f"F1 {coarse.together:.3f}"
    assert "decides" in " ".join(printed(terminal.check(result)))
