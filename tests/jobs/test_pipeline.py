"""The Python API end to end on the shipped network."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper

import onnx_pointwise
from models.networks import metric
from onnx_pointwise.errors import InputError, ModelError, OutputError, PlanError, TargetError
from onnx_pointwise.examples.calibration import Calibration
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.sites import find_sites
from onnx_pointwise.jobs import checking, loading, looking
from onnx_pointwise.jobs.loading import require_other_file
from onnx_pointwise.latency.cache import FOLDER_VARIABLE
from onnx_pointwise.numerics.forms import FORMS, SPATIAL, Form, full_rank, has_form
from onnx_pointwise.planning import repair
from onnx_pointwise.reports.html import html
from onnx_pointwise.reports.terminal.rewriting import calibration
from onnx_pointwise.settings import CheckSettings
from tests import small
from tests.graphs import conv_model, make_model, normal, value
from tests.staircase import install

#: Forms that put a 1x1 beside the kernel.
POINTWISE: tuple[Form, ...] = tuple(form for form in FORMS if form not in SPATIAL)
DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits.onnx"


def content(model: ir.Model) -> bytes:
    return serialize(model).SerializeToString(deterministic=True)


def test_path_proto_and_ir_model_give_the_same_bytes_and_stay_as_they_were() -> None:
    proto, model = onnx.load(DIGITS), ir.load(DIGITS)
    untouched = proto.SerializeToString(), content(model)
    results = [
        onnx_pointwise.rewrite(source, ratio=0.5, check=False, calibration=None, provider="none")
        for source in (DIGITS, str(DIGITS), proto, model)
    ]
    assert len({content(result.model) for result in results}) == 1
    assert (proto.SerializeToString(), content(model)) == untouched


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_exact_at_full_rank(form: Form) -> None:
    choices = {}
    for site in find_sites(ir.load(DIGITS)):
        if site.rewritable and has_form(form, site.kernel_shape):
            full = full_rank(form, site.in_channels, site.out_channels, site.kernel_shape)
            choices[site.name] = Choice(form, full if len(full) == 2 else full[0])
    result = onnx_pointwise.rewrite(DIGITS, plan=Plan(choices), max_drift=1e-5, latency=False, calibration=None)
    assert result.passed
    assert {site.form for site in result.sites} == {form}


def test_what_was_rewritten_is_reported_and_saved(tmp_path: Path) -> None:
    result = onnx_pointwise.rewrite(DIGITS, target_macs=0.7, latency=False, calibration=None, provider="none")
    result.save(tmp_path / "out.onnx")
    assert result.check is not None
    assert result.check.shapes_equal
    assert result.after.macs <= 0.7 * result.before.macs
    again = onnx_pointwise.check(DIGITS, tmp_path / "out.onnx", latency=False)
    assert again.drift == result.check.drift
    assert again.after == result.after
    assert {site.name for site in result.sites if site.form} == set(result.plan.choices)


def test_a_stem_of_three_maps_becomes_a_kernel_to_fewer_maps_and_a_1x1_where_it_is_asked() -> None:
    model = conv_model(normal(512, 3, 3, 3), [24, 24])
    noise = np.random.default_rng(0).standard_normal((24, 3, 24, 24)).astype(np.float32)
    smooth = (noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3) + np.roll(noise, (1, 1), (2, 3))) / 2.0
    for target, ranks in ((0.65, range(16, 18)), (0.9, range(22, 25))):
        errors = []
        for forms in (["reduce", "expand", "vertical", "horizontal"], list(FORMS)):
            made = onnx_pointwise.rewrite(
                model, calibration=smooth, target_macs=target, provider="none", check=False, forms=forms
            )
            choice = made.plan.choices["conv"]
            assert made.after.macs <= target * made.before.macs
            errors.append(made.sites[0].error)
            if "depthwise" not in forms:
                assert choice.form == "expand" and choice.rank in ranks
        assert errors[1] < 1.05 * errors[0]


@pytest.mark.parametrize(("examples", "asked", "refused"), [(None, None, True), (None, 3, False), (16, None, False)])
def test_stems_compete_where_examples_tell_what_their_errors_do(
    examples: int | None, asked: int | None, refused: bool
) -> None:
    calibration = None if examples is None else small.examples(examples)
    made = onnx_pointwise.rewrite(
        small.network(), ratio=0.9, calibration=calibration, min_channels=asked, provider="none", check=False
    )
    refusal = made.plan.refusals.get("conv1")
    assert (refusal is not None and refusal.code == "few_channels") == refused


def test_a_parameter_budget_counts_the_parameters_of_the_file() -> None:
    result = onnx_pointwise.rewrite(DIGITS, target_params=0.6, check=False, calibration=None, provider="none")
    stored = [value.const_value for value in result.model.graph.initializers.values()]
    floats = sum(tensor.size for tensor in stored if tensor is not None and tensor.dtype == ir.DataType.FLOAT)
    assert floats == result.after.params
    assert result.after.params <= 0.6 * result.before.params


@pytest.mark.parametrize("maps", [1, 31, 32, 33, 70])
def test_insert_pointwise_gives_the_feature_maps_asked_for(maps: int) -> None:
    result = onnx_pointwise.insert_pointwise(DIGITS, "conv2", maps, latency=False, calibration=None)
    graph = serialize(result.model).graph
    weights = {item.name: tuple(item.dims) for item in graph.initializer}
    (inserted,) = [node for node in graph.node if node.name == "conv2_reduce"]
    assert weights[inserted.input[1]] == (maps, 32, 1, 1)
    assert result.check is not None
    (drift,) = result.check.drift.values()
    assert (drift.relative_l2 < 1e-5) == (maps >= 32)


@pytest.mark.parametrize("maps", [31, 32, 48])
def test_example_inputs_are_looked_at_only_where_feature_maps_are_lost(
    maps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def draw(model: ir.Model, source: object, *arguments: object, **options: object) -> Calibration:
        asked.append(source)
        return Calibration({}, {"source": "none", "sentence": "Drawn."})

    monkeypatch.setattr(loading, "calibrate", draw)
    results = [onnx_pointwise.insert_pointwise(DIGITS, "conv2", maps, check=False) for _ in range(2)]
    assert asked == (["auto", "auto"] if maps < 32 else [])
    assert ("kernels alone" in results[0].calibration["sentence"]) == (maps >= 32)
    assert content(results[0].model) == content(results[1].model)


def test_a_replay_looks_at_example_inputs_as_soon_as_one_rank_is_below_full(images: np.ndarray) -> None:
    full = {"conv2": Choice("reduce", 32), "conv3": Choice("expand", 96)}
    exact = onnx_pointwise.rewrite(DIGITS, plan=Plan(full), calibration=images[:16], latency=False, max_drift=1e-5)
    assert exact.passed and exact.calibrated is None
    lossy = Plan(full | {"conv2": Choice("reduce", 16)})
    result = onnx_pointwise.rewrite(DIGITS, plan=lossy, calibration=images[:16], check=False)
    assert result.calibrated is not None
    assert set(result.calibrated.replacements) == set(full)


def test_insert_pointwise_works_on_a_stem_too() -> None:
    result = onnx_pointwise.insert_pointwise(DIGITS, "conv1", 8, latency=False, max_drift=1e-5, calibration=None)
    assert result.passed


def test_a_failed_limit_is_a_finding_not_an_exception() -> None:
    result = onnx_pointwise.rewrite(DIGITS, ratio=0.3, max_drift=1e-9, latency=False, calibration=None, provider="none")
    assert not result.passed
    assert result.check is not None
    assert [finding.code for finding in result.check.findings] == ["drift", "broken"]
    assert result.verdict == "broken"


def test_given_inputs_are_what_the_drift_is_measured_on() -> None:
    with np.load(DIGITS.with_suffix(".npz")) as data:
        images = data["x"][:64]
    feed = ir.load(DIGITS).graph.inputs[0].name
    given = onnx_pointwise.rewrite(
        DIGITS, ratio=0.8, inputs={str(feed): images}, latency=False, calibration=None, provider="none"
    )
    drawn = onnx_pointwise.rewrite(DIGITS, ratio=0.8, latency=False, calibration=None, provider="none")
    assert given.check is not None
    assert drawn.check is not None
    assert given.check.drift != drawn.check.drift


def test_a_plan_excludes_budgets() -> None:
    with pytest.raises(PlanError, match="replays as it is"):
        onnx_pointwise.rewrite(DIGITS, plan=Plan({}), ratio=0.5, calibration=None)


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="no convolution 'elsewhere'"):
        onnx_pointwise.rewrite(DIGITS, plan=Plan({"elsewhere": Choice("reduce", 4)}), calibration=None)


def test_bad_plan_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(PlanError, match=r"plan\.json: no such file"):
        onnx_pointwise.rewrite(DIGITS, plan=path, calibration=None)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match=r"plan\.json"):
        onnx_pointwise.rewrite(DIGITS, plan=path, calibration=None)
    path.write_text("{")
    with pytest.raises(PlanError, match=r"plan\.json: not JSON"):
        onnx_pointwise.rewrite(DIGITS, plan=path, calibration=None)


def test_a_network_with_nothing_to_gain_comes_back_unchanged() -> None:
    depthwise = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="depthwise", group=8, pads=[1, 1, 1, 1])
    weights = onnx.numpy_helper.from_array(np.ones((8, 1, 3, 3), np.float32), "w")
    value = [onnx.helper.make_tensor_value_info(name, 1, ["N", 8, 6, 6]) for name in "xy"]
    graph = onnx.helper.make_graph([depthwise], "depthwise", value[:1], value[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(TargetError, match=r"nothing can be rewritten, 1\.000 of the MACs are left. .* 1 depthwise"):
        onnx_pointwise.rewrite(model, target_macs=0.5, latency=False)
    result = onnx_pointwise.rewrite(model, ratio=0.5, latency=False, max_drift=0.0)
    assert result.passed
    assert content(result.model) == content(ir.serde.deserialize_model(model))
    (site,) = result.sites
    assert site.refusal is not None
    assert site.refusal.code == "depthwise"


def test_output_equal_to_input_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"x")
    (tmp_path / "hard.onnx").hardlink_to(path)
    for target in (path, tmp_path / "hard.onnx", tmp_path / "." / "a.onnx"):
        with pytest.raises(OutputError, match="input itself"):
            require_other_file(path, target)
    require_other_file(path, tmp_path / "b.onnx")


def test_inspection_ranks_keep_what_they_say() -> None:
    inspection = onnx_pointwise.inspect(DIGITS)
    for view in inspection.sites:
        if view.site.refusal is None:
            energy = np.cumsum(view.profile**2) / np.sum(view.profile**2)
            for share, rank in zip((0.90, 0.95, 0.99), view.ranks, strict=True):
                assert energy[rank - 1] >= share - 1e-9
                assert rank == 1 or energy[rank - 2] < share + 1e-9
    assert sum(view.share for view in inspection.sites) == pytest.approx(
        inspection.cost.conv_macs / inspection.cost.macs
    )


def test_inspecting_what_is_no_model() -> None:
    with pytest.raises(ModelError, match="no such file"):
        onnx_pointwise.inspect("missing.onnx")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DIGITS.with_suffix(".npz")) as data:
        calibration: np.ndarray = data["calibration"][:64]
    return calibration


def test_calibration_keeps_the_accuracy_that_kernels_alone_lose(images: np.ndarray, tmp_path: Path) -> None:
    accuracies = {}
    for name, source in (("calibrated", images), ("kernels", None)):
        result = onnx_pointwise.rewrite(DIGITS, target_macs=0.2, calibration=source, latency=False, provider="none")
        assert result.after.macs <= 0.2 * result.before.macs
        result.save(tmp_path / f"{name}.onnx")
        accuracies[name] = metric("digits", tmp_path / f"{name}.onnx")
    assert accuracies["calibrated"] >= metric("digits", DIGITS) - 0.01
    assert accuracies["calibrated"] > accuracies["kernels"]


def test_the_cheapest_network_within_a_drift_limit(small_folder: Path) -> None:
    model, examples = small_folder / "small.onnx", small.examples(32)
    result = onnx_pointwise.rewrite(model, max_drift=0.02, calibration=examples, latency=False, provider="none")
    assert result.passed
    assert result.check is not None
    assert all(drift.relative_l2 <= 0.02 for drift in result.check.drift.values())
    assert result.after.macs < 0.9 * result.before.macs
    assert result.plan.budget == {"max_drift": 0.02}


def test_a_score_is_reported_and_limits_the_search(small_folder: Path) -> None:
    model, (x, y) = small_folder / "small.onnx", small.images(200, seed=1)

    def accuracy(session: ort.InferenceSession) -> float:
        (output,) = session.run(None, {session.get_inputs()[0].name: x})
        return float((output.argmax(1) == y).mean())

    result = onnx_pointwise.rewrite(
        model,
        max_loss=0.01,
        evaluate=accuracy,
        calibration=small.examples(64),
        calibration_limit=32,
        latency=False,
        provider="none",
    )
    assert result.score is not None
    assert result.score.passed
    assert result.score.before - result.score.after <= 0.01
    assert result.after.macs < result.before.macs
    harsh = onnx_pointwise.rewrite(
        model,
        target_macs=0.2,
        max_loss=-1.0,
        evaluate=accuracy,
        calibration=None,
        latency=False,
        provider="none",
    )
    assert not harsh.passed


def test_searching_takes_a_check() -> None:
    with pytest.raises(PlanError, match="takes the check"):
        onnx_pointwise.rewrite(DIGITS, check=False)
    with pytest.raises(PlanError, match="takes the check"):
        onnx_pointwise.rewrite(DIGITS, max_drift=0.1, check=False)
    with pytest.raises(PlanError, match="needs a score"):
        onnx_pointwise.rewrite(DIGITS, max_loss=0.1)


def test_repair_stays_within_the_budget(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that is a second further each time it is read: once at the start, then before each plan but the first.
    seconds = itertools.count()
    monkeypatch.setattr(repair, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    tried: list[str] = []
    result = onnx_pointwise.rewrite(
        small_folder / "small.onnx",
        target_macs=0.4,
        calibration=small.examples(32),
        refit=False,
        repair_seconds=3.0,
        check=False,
        provider="none",
        progress=lambda stage, what, done=0, total=0: tried.append(stage),
    )
    assert result.after.macs <= 0.4 * result.before.macs
    assert tried.count("repair") == 4


def test_threads_are_those_of_the_network_and_jobs_those_of_the_work(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    look, compare = looking.study, checking.check

    def studied(*arguments: Any, **options: Any) -> Any:
        seen["jobs"] = options["effort"].threads
        return look(*arguments, **options)

    def compared(before: Any, after: Any, settings: CheckSettings) -> Any:
        seen["threads"] = settings.threads
        return compare(before, after, settings)

    monkeypatch.setattr(looking, "study", studied)
    monkeypatch.setattr(checking, "check", compared)
    made = {}
    for jobs in (1, 3):
        result = onnx_pointwise.rewrite(
            small_folder / "small.onnx",
            target_macs=0.5,
            calibration=small.examples(16),
            latency=False,
            provider="none",
            threads=2,
            jobs=jobs,
        )
        assert seen == {"jobs": jobs, "threads": 2}
        made[jobs] = content(result.model)
    assert result.unmeasured is not None and "measures nothing" in result.unmeasured
    assert result.to_dict()["unmeasured"] == result.unmeasured
    assert made[1] == made[3]


def test_a_target_latency_needs_measurements() -> None:
    with pytest.raises(PlanError, match="none measures nothing"):
        onnx_pointwise.rewrite(DIGITS, target_latency=0.5, provider="none", calibration=None)


@pytest.mark.parametrize("budget", [{"target_macs": 0.5}, {"target_latency": 0.6}, {"ratio": 0.6}])
def test_on_a_provider_only_the_tops_of_treads_are_chosen(
    budget: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compared = install(monkeypatch, 8)
    options: dict[str, Any] = {"calibration": None, "check": False, "cache": False}
    result = onnx_pointwise.rewrite(DIGITS, **budget, **options)
    assert result.plan.choices
    for choice in result.plan.choices.values():
        ranks = choice.rank if isinstance(choice.rank, tuple) else (choice.rank,)
        assert all(rank % 8 == 0 for rank in ranks)
    about = result.plan.latency
    assert about["measured"] == pytest.approx(about["predicted"])
    assert set(about["sites"]) == set(result.plan.choices)
    assert all(site["rewritten"] < site["dense"] for site in about["sites"].values())
    assert compared
    # Replaying it takes no measurement and gives the same bytes.
    path = tmp_path / "plan.json"
    path.write_text(result.plan.to_json())
    compared.clear()
    again = onnx_pointwise.rewrite(DIGITS, plan=path, **options)
    assert compared == []
    assert content(again.model) == content(result.model)
    assert again.plan.latency == about


def test_the_same_command_gives_the_same_bytes_by_what_was_measured_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    results = []
    for step in (8, 16):  # another machine the second time: were anything measured, it would show
        install(monkeypatch, step)
        results.append(onnx_pointwise.rewrite(DIGITS, ratio=0.6, calibration=None, check=False, threads=1))
    first, second = results
    assert first.plan.latency["measured"] < 1.0
    assert first.plan.to_json() == second.plan.to_json()
    assert content(first.model) == content(second.model)


def test_a_site_that_nothing_makes_faster_stays_dense_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 128)  # one block holds all that any site has
    result = onnx_pointwise.rewrite(DIGITS, ratio=0.9, forms=POINTWISE, calibration=None, check=False, cache=False)
    assert result.plan.choices == {}
    refusal = {site.name: site.refusal for site in result.sites}["conv2"]
    assert refusal is not None
    assert refusal.code == "not_faster"
    assert refusal.numbers["fastest_seconds"] >= refusal.numbers["dense_seconds"]
    with pytest.raises(TargetError, match=r"1\.000 of the MACs are left; name the provider none to plan by arithmetic"):
        onnx_pointwise.rewrite(DIGITS, target_macs=0.9, forms=POINTWISE, calibration=None, check=False, cache=False)


def test_a_network_that_is_not_faster_in_the_end_comes_back_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8, slow=50.0)
    result = onnx_pointwise.rewrite(
        DIGITS, target_macs=0.7, forms=POINTWISE, calibration=None, latency=False, cache=False
    )
    assert result.passed
    assert result.plan.choices == {}
    assert content(result.model) == content(ir.load(DIGITS))
    codes = {site.refusal.code for site in result.sites if site.refusal is not None}
    assert "network_not_faster" in codes


def test_a_network_that_is_slower_against_its_plan_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    compare = checking.check

    def slower(before: Any, after: Any, settings: CheckSettings) -> Any:
        made = compare(before, after, replace(settings, latency_seconds=0.1))
        timed = replace(made.latency, ratio=1.4, verdict="slower")
        return replace(made, providers=(replace(made.providers[0], latency=timed),))

    monkeypatch.setattr(checking, "check", slower)
    any_drift = {"numbers": (99.0, 99.0, 99.0)}
    result = onnx_pointwise.rewrite(DIGITS, target_macs=0.7, calibration=None, cache=False, limits=any_drift)
    assert not result.passed
    assert result.check is not None
    assert [finding.code for finding in result.check.findings] == ["slower"]
    by_hand = onnx_pointwise.rewrite(DIGITS, ranks={"conv2": 4}, calibration=None, cache=False, limits=any_drift)
    assert by_hand.passed


def test_what_cannot_be_reached_on_a_provider_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    with pytest.raises(TargetError, match=r"faster on cpu.* left; ask for 0\.\d+ or more, or name the provider none"):
        onnx_pointwise.rewrite(DIGITS, target_macs=0.002, calibration=None, cache=False)
    with pytest.raises(PlanError, match=r"cannot be reached: the best network took 0\.\d+"):
        onnx_pointwise.rewrite(DIGITS, target_latency=0.01, calibration=None, cache=False)


def test_a_score_that_fails_is_said_in_a_sentence(small_folder: Path) -> None:
    def score(session: ort.InferenceSession) -> float:
        raise ZeroDivisionError("no batches")

    with pytest.raises(InputError, match="score function of evaluate failed with ZeroDivisionError: no batches"):
        onnx_pointwise.rewrite(
            small_folder / "small.onnx", target_macs=0.7, evaluate=score, calibration=None, provider="none"
        )


def test_examples_tell_nothing_where_no_output_holds_numbers(tmp_path: Path) -> None:
    """Optional values, text and the like: the plan comes from the kernels, and the check says what it lacks."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", pads=[1] * 4),
        helper.make_node("Optional", ["a"], ["y"]),
    ]
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None))
    outputs = [helper.make_value_info("y", kind)]
    model = make_model(nodes, [value("x", ["n", 16, 8, 8])], outputs, {"w": normal(16, 16, 3, 3)})
    path = tmp_path / "optional.onnx"
    path.write_bytes(model.SerializeToString())
    asked: dict[str, Any] = {"target_macs": 0.7, "latency": False, "provider": "none"}
    result = onnx_pointwise.rewrite(path, calibration=normal(16, 16, 8, 8), **asked)
    said = result.calibration["warnings"]
    assert "No output of the network holds numbers to measure errors by" in said[0]
    assert "Name a value inside it with --head" in said[0]
    assert not result.passed
    assert onnx_pointwise.rewrite(path, calibration=None, **asked).plan.choices == result.plan.choices


def test_a_part_that_the_runtime_refuses_is_named_after_its_file(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="twice", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["y"], name="twice"),
    ]
    model = make_model(nodes, [value("x", ["n", 16, 8, 8])], [value("y", None)], {"w": normal(16, 16, 3, 3)})
    path = tmp_path / "twice.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"twice\.onnx: ONNX Runtime cannot load the model: .*same node name"):
        onnx_pointwise.rewrite(path, calibration=normal(16, 16, 8, 8), target_macs=0.7, latency=False, provider="none")


def test_convolutions_that_stay_whole_are_corrected_and_those_excluded_are_not(tmp_path: Path) -> None:
    given: dict[str, Any] = {"calibration": small.examples(96), "provider": "none", "latency": False}
    result = onnx_pointwise.rewrite(
        small.network(), ranks={"conv2": Choice("reduce", 3)}, nodes_to_exclude=["conv4"], **given
    )
    # The stem has nothing before it to make up for; conv4 was left out by name.
    assert {site.name for site in result.sites if site.corrected} == {"conv3"}
    assert result.plan.corrected == ("conv1", "conv3")
    assert [site["corrected"] for site in result.to_dict()["sites"]] == [False, False, True, False]
    assert all(site.before == site.after for site in result.sites if site.name != "conv2")
    before = {tensor.name: tensor.raw_data for tensor in small.network().graph.initializer}
    after = {tensor.name: tensor.raw_data for tensor in serialize(result.model).graph.initializer}
    assert {name for name in before if after.get(name) != before[name]} == {"conv2.w", "conv2.b", "conv3.w", "conv3.b"}
    sentence = "One convolution that stays whole got other weights, too, to make up for the others."
    assert sentence in [str(line) for line in calibration(result)]
    assert "1 of the convolutions that stay whole got other weights, too" in html(result.to_dict())

    path = tmp_path / "plan.json"
    path.write_text(result.plan.to_json(), encoding="utf-8")
    assert content(onnx_pointwise.rewrite(small.network(), plan=path, **given).model) == content(result.model)
    left = Plan.from_json(path.read_text(encoding="utf-8").replace('"corrected": [', '"corrected": [], "was": ['))
    alone = onnx_pointwise.rewrite(small.network(), plan=left, **given)
    assert not any(site.corrected for site in alone.sites)
    assert result.calibrated is not None and alone.calibrated is not None
    assert result.calibrated.drift < alone.calibrated.drift
