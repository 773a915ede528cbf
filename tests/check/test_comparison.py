from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from onnx_pointwise.check import CheckResult, running
from onnx_pointwise.check.comparison import _unlike_numbers
from onnx_pointwise.check.comparison import check as api
from onnx_pointwise.check.findings import provider_warnings
from onnx_pointwise.errors import InputError, ModelError, ProviderError
from onnx_pointwise.reports.terminal import verdict
from onnx_pointwise.runtime import AssignedNode, providers
from tests.graphs import conv_model, function_model, if_model, make_model, normal, opened, value

KERNEL = normal(6, 8, 3, 3)


def check(*arguments: Any, **options: Any) -> CheckResult:
    """Check without timing, on one thread."""
    return api(*arguments, **{"latency": False, "threads": 1} | options)


def dense(size: tuple[int | str, int | str] = (8, 8), **options: Any) -> onnx.ModelProto:
    return conv_model(KERNEL, size, **options)


def changed(model: onnx.ModelProto, factor: float = 1.0, add: float = 0.0) -> onnx.ModelProto:
    """The same model with another kernel."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kernel = next(item for item in copy.graph.initializer if item.name == "W")
    kernel.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(kernel) * factor + add).astype(np.float32), "W"))
    return copy


def codes(result: CheckResult) -> list[str]:
    return [finding.code for finding in result.findings]


def test_a_model_passes_against_itself() -> None:
    result = check(dense(), dense())
    assert result.passed and result.shapes_equal and not result.findings and not result.warnings
    assert result.drift["y"].relative_l2 == 0.0
    assert result.before == result.after
    assert result.before.macs == 6 * 6 * 6 * 8 * 9
    assert result.latency is None


@pytest.mark.parametrize("kind", ["path", "bytes", "proto", "ir"])
def test_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    proto = dense()
    onnx.save(proto, tmp_path / "model.onnx")
    sources: dict[str, Any] = {
        "path": tmp_path / "model.onnx",
        "bytes": proto.SerializeToString(),
        "proto": proto,
        "ir": ir.serde.deserialize_model(proto),
    }
    result = check(sources[kind], changed(proto, 1.25))
    assert result.passed
    assert result.drift["y"].relative_l2 == pytest.approx(0.25, rel=1e-4)
    assert result.drift["y"].decibel == pytest.approx(-12.04, abs=0.01)


def test_the_result_is_json() -> None:
    result = check(dense(), changed(dense(), 1.5), max_drift=0.1)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["passed"] is False and data["shapes_equal"] is True
    assert data["drift"]["y"]["relative_l2"] == pytest.approx(0.5, rel=1e-4)
    assert data["findings"][0]["code"] == "drift" and data["findings"][0]["numbers"]["limit"] == 0.1
    assert data["before"]["macs"] == data["after"]["macs"] > 0
    assert data["origin"]["machine"]["versions"]["onnxruntime"]
    assert [trial["input_shapes"]["x"][0] for trial in data["providers"][0]["trials"]] == [1, 3]


@pytest.mark.parametrize(
    ("limit", "passes"),
    [(None, True), (0.3, True), (0.2, False), ({"y": 0.3}, True), ({"y": 0.2}, False), ({}, True)],
)
def test_drift_limits(limit: Any, passes: bool) -> None:
    result = check(dense(), changed(dense(), 1.25), max_drift=limit)
    assert result.passed is passes
    assert codes(result) == ([] if passes else ["drift"])
    if not passes:
        assert result.findings[0].sentence == "Output 'y' drifts by 0.25 on cpu, more than the 0.2 allowed."


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (None, "; the drift above was not limited (--max-drift)."),
        ({}, "; the drift above was not limited (--max-drift)."),
        (0.0, "; the drift is within its limit."),
        ({"y": 0.0}, "; the drift is within its limit, but that of 'z' was not limited (--max-drift)."),
        ({"y": 0.0, "z": 0.0}, "; the drift is within its limit."),
    ],
)
def test_the_verdict_in_words_claims_no_more_than_was_checked(limit: Any, said: str) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    model = make_model(nodes, [value("x", [1, 4])], [value("y", [1, 4]), value("z", [1, 4])])
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(verdict(check(model, model, max_drift=limit)))
    start = "Check passed: names, shapes and types are the same, and no output turned NaN or infinite"
    assert console.export_text().strip().endswith(start + said)


def test_batch_sizes_and_spatial_sizes_are_tried_where_they_are_open() -> None:
    result = check(dense(("height", "width")), dense(("height", "width")), batch_sizes=(2, 5))
    shapes = [trial.input_shapes["x"] for trial in result.providers[0].trials]
    assert [shape[0] for shape in shapes] == [1, 2, 5, 1, 1]
    assert shapes[0] == (1, 8, 224, 224)
    assert all(shape[2] != shape[3] for shape in shapes[3:])
    assert any(shape[2] % 2 and shape[3] % 2 for shape in shapes)
    assert all(trial.shapes_equal for trial in result.providers[0].trials)


def test_dimensions_of_one_name_stay_equal() -> None:
    square = dense(("side", "side"))
    result = check(square, square, input_shapes={"x": (1, 8, 20, 20)})
    assert len(result.providers[0].trials) == 4
    assert all(trial.input_shapes["x"][2] == trial.input_shapes["x"][3] for trial in result.providers[0].trials)


def flatten_model(*, rows: int = 8 * 8 * 6) -> onnx.ModelProto:
    """A classifier that says it takes any size, but works at one alone."""
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["a"], ["b"], name="flatten"),
        helper.make_node("Gemm", ["b", "M"], ["y"], name="head"),
    ]
    weights = {"W": KERNEL, "M": normal(rows, 10)}
    return make_model(nodes, [value("x", ["batch", 8, "h", "w"])], [value("y", ["batch", 10])], weights)


def test_sizes_that_the_first_network_refuses_are_skipped_with_the_reason() -> None:
    result = check(flatten_model(), flatten_model(), input_shapes={"x": (1, 8, 8, 8)})
    trials = result.providers[0].trials
    assert result.passed
    assert [trial.shapes_equal for trial in trials] == [True, True, None, None]
    assert all(trial.skipped and "head" in trial.skipped for trial in trials[2:])
    assert result.drift["y"].top1 == 1.0


def test_a_first_network_that_does_not_run_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"does not run on cpu with inputs x:1,8,9,9: .*head.*--input-shape"):
        check(flatten_model(), flatten_model(), input_shapes={"x": (1, 8, 9, 9)})


def picky_model(declared: list[Any]) -> onnx.ModelProto:
    """A network that looks its largest input up in a table of one row: few inputs are right."""
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name="conv"),
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["index"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["row"], name="look_up"),
        helper.make_node("Add", ["a", "row"], ["y"]),
    ]
    weights = {"W": KERNEL, "table": np.zeros(1, np.float32)}
    return make_model(nodes, [value("x", declared)], [value("y", None)], weights)


@pytest.mark.parametrize(
    ("declared", "inputs", "way_out"),
    [
        (
            ["batch", 8, "h", 9],
            None,
            "; name others with --input-shape x:1,8,256,9, or give inputs that it was made for with --inputs.",
        ),
        (["batch", 8, 9, 9], None, "; give inputs that it was made for with --inputs."),
        (["batch", 8, "h", 9], np.full((2, 8, 9, 9), 5.0, np.float32), "; give some of other sizes with --inputs."),
        (["batch", 8, 9, 9], np.full((2, 8, 9, 9), 5.0, np.float32), "."),
        ([0, 8, 9, 9], None, "."),
    ],
)
def test_what_may_help_a_first_network_that_does_not_run_is_named(
    declared: list[Any], inputs: Any, way_out: str
) -> None:
    model = picky_model(declared)
    with pytest.raises(ModelError, match=r"does not run on cpu with inputs x:\d,8,\d+,9: .*\.$") as raised:
        check(model, model, inputs=inputs if inputs is None else {"x": inputs})
    said = str(raised.value)
    assert said.endswith(way_out) and said.count("--") == way_out.count("--")


def test_a_second_network_that_does_not_run_is_a_finding() -> None:
    result = check(flatten_model(), flatten_model(rows=7), input_shapes={"x": (1, 8, 8, 8)})
    assert not result.passed and not result.shapes_equal
    assert set(codes(result)) == {"does_not_run"}
    assert "does not run" in result.findings[0].sentence and "head" in result.findings[0].sentence
    assert result.drift == {}


def test_another_output_shape_is_a_finding() -> None:
    other = dense(strides=[2, 2])
    result = check(dense(), other)
    assert set(codes(result)) == {"output_shape"} and not result.shapes_equal
    assert result.findings[0].sentence == (
        "Output 'y' has shape [1, 6, 3, 3] instead of [1, 6, 6, 6] on cpu with x:1,8,8,8."
    )
    assert result.findings[0].numbers["after"] == [1, 6, 3, 3]


def test_another_element_type_is_a_finding() -> None:
    def cast(to: int) -> onnx.ModelProto:
        node = helper.make_node("Cast", ["x"], ["y"], to=to)
        return make_model([node], [value("x", ["n", 4])], [helper.make_tensor_value_info("y", to, ["n", 4])])

    result = check(cast(11), cast(10))
    assert codes(result) == ["declared_outputs", "output_dtype"] and not result.shapes_equal
    assert "y: double[n, 4] before, y: float16[n, 4] after" in result.findings[0].sentence


def identity(name: str, output: str, dtype: int = 1, shape: Any = ("n", 4)) -> onnx.ModelProto:
    node = helper.make_node("Identity", [name], [output])
    values = [helper.make_tensor_value_info(label, dtype, shape) for label in (name, output)]
    return make_model([node], values[:1], values[1:])


@pytest.mark.parametrize(
    ("after", "expected", "ran"),
    [
        (identity("other", "y"), ["declared_inputs"], 0),
        (identity("x", "z"), ["declared_outputs", "nothing_compared"], 1),
        (identity("x", "y", dtype=11), ["declared_inputs", "declared_outputs"], 0),
        (identity("x", "y", shape=("n", "m")), ["declared_inputs", "declared_outputs"], 1),
        (identity("x", "y", shape=("batch", 4)), ["declared_inputs", "declared_outputs"], 1),
    ],
)
def test_another_declaration_is_a_finding(after: onnx.ModelProto, expected: list[str], ran: int) -> None:
    result = check(identity("x", "y"), after)
    assert codes(result) == expected
    assert not result.passed and not result.shapes_equal
    assert len(result.providers) == ran
    json.dumps(result.to_dict(), allow_nan=False)


def test_outputs_are_paired_by_name() -> None:
    def two(first: str, second: str) -> onnx.ModelProto:
        nodes = [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Neg", ["x"], ["negated"])]
        return make_model(nodes, [value("x", ["n", 4])], [value(first, ["n", 4]), value(second, ["n", 4])])

    result = check(two("same", "negated"), two("negated", "same"))
    assert codes(result) == ["declared_outputs"]
    assert {name: drift.relative_l2 for name, drift in result.drift.items()} == {"same": 0.0, "negated": 0.0}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": normal(1, 8, 8, 8)}, "has no input 'y'"),
        ({}, "Input 'x' is missing"),
        ({"x": normal(1, 8, 8)}, "needs 4 dimensions, not 3; the batch dimension is missing"),
        ({"x": normal(1, 8, 8, 8, dtype=np.float64)}, "convert it with"),
        ({"x": normal(1, 8, 9, 8)}, "dimension 2 must be 8, not 9"),
    ],
)
def test_given_inputs_must_fit(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(dense(), dense(), inputs=inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drift": {"z": 0.1}}, "has no output 'z' to limit the drift of; its outputs are y"),
        ({"max_drift": -0.1}, "must be 0 or above"),
        ({"max_drift": float("nan")}, "must be 0 or above"),
        ({"providers": ()}, "at least one execution provider"),
        ({"input_shapes": {"z": (1, 8, 8, 8)}}, "no input 'z'"),
        ({"input_shapes": {"x": (1, 4, 8, 8)}}, "declared as"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(dense(), dense(), **options)


def test_an_unknown_provider() -> None:
    with pytest.raises(ProviderError, match="Unknown execution provider 'gpu'"):
        check(dense(), dense(), providers=("cpu", "gpu"))


def test_answers_are_compared_on_what_is_given_and_costs_told_at_the_size_that_is_deployed() -> None:
    model = dense(("height", "width"))
    images = normal(3, 8, 8, 8)
    result = check(
        model,
        changed(model, 1.5),
        inputs={"x": images},
        input_shapes={"x": (2, 8, 32, 24)},
        latency=True,
        latency_seconds=0.01,
    )
    assert result.drift["y"].values == 3 * 6 * 6 * 6
    assert result.latency is not None
    assert result.latency.input_shapes == {"x": (2, 8, 32, 24)}
    assert result.before == check(model, model, input_shapes={"x": (2, 8, 32, 24)}, latency=False).before


def test_given_inputs_are_cut_into_slices_and_all_count() -> None:
    images = normal(37, 8, 8, 8)
    result = check(dense(), changed(dense(), 1.5), inputs={"x": images})
    assert result.drift["y"].values == 37 * 6 * 6 * 6
    shapes = [trial.input_shapes["x"][0] for trial in result.providers[0].trials]
    assert shapes == [13, 12, 1, 3]


def test_given_inputs_may_be_many_batches_where_the_model_fixes_its_batch_size() -> None:
    model = dense(batch=2)
    result = check(model, changed(model, 1.5), inputs={"x": normal(6, 8, 8, 8)})
    assert result.drift["y"].values == 6 * 6 * 6 * 6
    assert [trial.input_shapes["x"] for trial in result.providers[0].trials] == [(2, 8, 8, 8)]
    assert result.before.macs == 2 * 6 * 6 * 6 * 8 * 9
    with pytest.raises(InputError, match="dimension 0 must be 2, not 5"):
        check(model, model, inputs={"x": normal(5, 8, 8, 8)})


def test_the_same_seed_gives_the_same_numbers() -> None:
    pair = dense(), changed(dense(), 1.0, 0.01)
    first, second, other = (check(*pair, seed=seed).drift["y"].relative_l2 for seed in (1, 1, 2))
    assert first == second != other


def scale_by(factor: float) -> onnx.ModelProto:
    nodes = [helper.make_node("Mul", ["x", "f"], ["a"]), helper.make_node("Sqrt", ["a"], ["y"])]
    weights = {"f": np.array([factor], np.float32)}
    return make_model(nodes, [value("x", ["n", 8])], [value("y", ["n", 8])], weights)


def test_the_same_nan_on_both_sides_is_no_finding() -> None:
    result = check(scale_by(1.0), scale_by(1.0))
    drift = result.drift["y"]
    assert result.passed
    assert drift.non_finite_before == drift.non_finite_after > 0
    assert drift.relative_l2 == drift.non_finite_differs == 0


def test_nan_at_other_places_is_a_finding() -> None:
    result = check(scale_by(1.0), scale_by(-1.0))
    assert codes(result) == ["non_finite", "broken"]
    assert "NaN or infinite values" in result.findings[0].sentence
    assert result.findings[0].numbers["before"] + result.findings[0].numbers["after"] == result.drift["y"].values
    json.dumps(result.to_dict(), allow_nan=False)


def select_positive(threshold: float) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Greater", ["x", "t"], ["a"]),
        helper.make_node("NonZero", ["a"], ["y"]),
    ]
    weights = {"t": np.array([threshold], np.float32)}
    return make_model(nodes, [value("x", ["n", 64])], [value("y", [2, "found"], np.int64)], weights)


def test_output_shapes_that_depend_on_the_data_may_differ() -> None:
    ramp = np.linspace(-2, 2, 6400, dtype=np.float32).reshape(100, 64)
    result = check(select_positive(1.0), select_positive(1.01), inputs={"x": ramp})
    assert result.passed, result.findings


def test_initializers_that_callers_may_override_are_warned_of() -> None:
    result = check(opened(dense()), dense())
    assert result.passed
    assert len(result.warnings) == 1
    assert "1 initializers are graph inputs too ('W'...)" in result.warnings[0]
    assert "--freeze-initializers" in result.warnings[0]
    assert not check(opened(dense()), dense(), freeze_initializers=True).warnings


def test_before_ir_version_4_initializers_are_constants_to_the_runtime() -> None:
    old = dense(opset=9, ir_version=3)
    assert {item.name for item in old.graph.input} == {"x", "W"}
    assert not check(old, dense(opset=9, ir_version=8)).warnings


def test_subgraphs_functions_and_several_types_of_input() -> None:
    kernel = normal(8, 8, 3, 3)
    assert check(if_model(kernel), if_model(kernel)).drift["y"].relative_l2 == 0.0
    assert check(function_model(kernel), function_model(kernel)).passed


def test_half_precision() -> None:
    model = conv_model(KERNEL.astype(np.float16), (8, 8))
    assert check(model, model).drift["y"].relative_l2 == 0.0


def test_latency_is_measured_with_one_item() -> None:
    result = api(dense(), dense(), inputs={"x": normal(4, 8, 8, 8)}, latency_seconds=0.2, threads=1)
    assert result.latency is not None
    assert result.latency.input_shapes == {"x": (1, 8, 8, 8)}
    assert result.latency.threads == 1
    json.dumps(result.to_dict(), allow_nan=False)


def test_no_latency_where_the_networks_cannot_be_compared() -> None:
    assert api(dense(), dense(strides=[2, 2]), threads=1).latency is None


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second name for the CPU, which stands for another provider that computes the same."""
    entry = providers._Entry("twin", "CPUExecutionProvider", "onnxruntime")
    monkeypatch.setattr(providers, "_BUILT_IN", (*providers._BUILT_IN, entry))
    monkeypatch.setattr(providers, "_entries", lambda: providers._BUILT_IN)


@pytest.mark.usefixtures("twin")
def test_two_providers_give_two_results() -> None:
    result = check(dense(), changed(dense(), 1.25), providers=("twin", "cpu"), max_drift=0.1)
    twin, cpu = result.providers
    assert twin.drift_from_cpu == twin.drift and cpu.drift_from_cpu is None
    assert twin.dense_from_cpu is not None and twin.dense_from_cpu["y"].relative_l2 == 0.0
    assert twin.rewritten_from_cpu is not None and twin.rewritten_from_cpu["y"].relative_l2 == 0.0
    assert cpu.dense_from_cpu is None and cpu.rewritten_from_cpu is None
    assert [finding.numbers["provider"] for finding in result.findings] == ["twin", "cpu"]
    assert result.drift == twin.drift


class Wrong:
    """A session whose outputs are off by a share."""

    def __init__(self, session: Any, share: float) -> None:
        self.session, self.share = session, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, *arguments: Any) -> list[Any]:
        return [output * (1 + self.share) for output in self.session.run(*arguments)]


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize(
    ("dense_share", "rewritten_share", "found", "warned"),
    [
        (0.0, 0.0, [], 0),
        (0.0, 0.005, [], 0),
        (0.0, 0.5, ["provider_differs"], 0),
        (0.02, 0.15, [], 1),
        (0.02, 0.5, ["provider_differs"], 1),
    ],
)
def test_a_provider_that_computes_the_second_network_wrongly(
    monkeypatch: pytest.MonkeyPatch, dense_share: float, rewritten_share: float, found: list[str], warned: int
) -> None:
    before, after = dense().SerializeToString(), changed(dense(), 1.5).SerializeToString()
    real = providers.open_session

    def open_session(source: bytes, provider: str, **options: Any) -> Any:
        share = {before: dense_share, after: rewritten_share}[source]
        return Wrong(real(source, provider, **options), share if provider == "twin" else 0.0)

    monkeypatch.setattr(running, "open_session", open_session)
    result = check(before, after, providers=("twin",), limits={"numbers": (0.1, 0.2, 3.0)})
    assert codes(result) == found
    assert len([warning for warning in result.warnings if "twin" in warning]) == warned
    assert result.providers[0].rewritten_from_cpu is not None
    assert result.providers[0].rewritten_from_cpu["y"].relative_l2 == pytest.approx(rewritten_share, abs=1e-6)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"dense_from_cpu": 0.2},
            "cuda computes output 'y' of the first network otherwise than the CPU",
        ),
        ({"dense_from_cpu": 0.004}, "cuda computes in a lower precision than the CPU (the first network alone differs"),
        ({"dense_from_cpu": 1e-6}, None),
        ({"nodes_off": 1}, "On cuda 1 more node runs on another provider than before."),
        ({"nodes_off": 6}, "On cuda 6 more nodes run on another provider than before."),
        ({"nodes_off": 2, "nodes_off_before": 2}, None),
        ({"software": True, "device": "lavapipe"}, "cuda ran on lavapipe, a device emulated on the CPU, so it was not"),
    ],
)
def test_what_is_odd_about_a_provider_is_said(found: dict[str, Any], said: str | None) -> None:
    (one,) = check(dense(), dense()).providers
    for name, number in found.items():
        if name == "dense_from_cpu":
            found |= {name: {"y": replace(one.drift["y"], relative_l2=number)}}
        elif name.startswith("nodes_off"):
            found |= {name: tuple(AssignedNode(f"node {index}", "Conv", "cpu") for index in range(number))}
    sentences = list(provider_warnings([replace(one, provider="cuda", **found)], None))
    assert len(sentences) == (said is not None)
    assert said is None or sentences[0].startswith(said)


def test_the_terminal_tells_of_nodes_that_left_and_of_drift_from_the_cpu() -> None:
    result = check(dense(), changed(dense(), 1.001))
    (one,) = result.providers
    nodes = tuple(AssignedNode(f"node {index}", "Conv", "cpu") for index in range(5))
    there = replace(one, provider="cuda", nodes_off=nodes, drift_from_cpu=one.drift)
    out = io.StringIO()
    Console(file=out, width=120).print(verdict(replace(result, providers=(there,))))
    text = " ".join(out.getvalue().split())
    assert "5 nodes left cuda for another provider: node 0, node 1, node 2, node 3, ..." in text
    assert "cuda vs cpu" in text


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (helper.make_sequence_type_proto(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))),
         "It is a sequence of something else than tensors."),
        (helper.make_optional_type_proto(helper.make_tensor_type_proto(1, None)),
         "It is neither a tensor nor a sequence of them."),
    ],
)  # fmt: skip
def test_outputs_that_hold_no_numbers_say_so(kind: onnx.TypeProto, why: str) -> None:
    output = ir.serde.deserialize_value_info_proto(helper.make_value_info("s", kind), None)
    assert _unlike_numbers(output) == why
