"""The fastest network whose answers stay the same, and what becomes of examples that tell nothing."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from rich.console import Console

import onnx_pointwise
from onnx_pointwise.check import CheckResult, Finding
from onnx_pointwise.errors import PlanError
from onnx_pointwise.jobs import checking, searching
from onnx_pointwise.jobs.promise import Promise
from onnx_pointwise.reports import terminal
from tests import small
from tests.jobs.test_pipeline import content
from tests.staircase import install

PLAIN: dict[str, Any] = {"latency": False, "provider": "none"}
#: For machines that are made up: what one of them takes says nothing of the next.
TIMED: dict[str, Any] = {"forms": ("reduce", "expand"), "cache": False}


@pytest.fixture
def model(small_folder: Path) -> Path:
    return small_folder / "small.onnx"


def shown(result: onnx_pointwise.RewriteResult) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal.rewrite(result))
    return " ".join(console.export_text().split())


# --- the main job -----------------------------------------------------------------------------------------------------


def test_without_a_budget_answers_stay_the_same(model: Path, tmp_path: Path) -> None:
    result = onnx_pointwise.rewrite(model, calibration=small.examples(64), **PLAIN)
    assert result.passed and result.verdict == "same"
    assert result.after.macs < 0.6 * result.before.macs
    assert result.check is not None and result.check.inputs == "held_back"
    assert all(head.drift is not None and head.drift <= 0.05 for head in result.check.heads)
    assert result.plan.budget["answers"] == "same" and result.plan.budget["limits"]["numbers"] == 0.05
    result.save(tmp_path / "out.onnx")
    inputs, _ = small.images(400, seed=9)
    same = small.run(model, inputs).argmax(1) == small.run(tmp_path / "out.onnx", inputs).argmax(1)
    assert same.mean() >= 0.985, "on inputs that are no examples"
    assert result.search is not None and 1 <= len(result.search.steps) <= searching.FITS
    assert "Searched for the cheapest network whose answers stay the same" in shown(result)
    assert json.loads(json.dumps(result.to_dict()))["search"]["resource"] == "macs"


def test_a_promise_has_to_hold_beyond_the_few_examples_that_it_was_measured_on(model: Path) -> None:
    result = onnx_pointwise.rewrite(model, calibration=small.examples(64), **PLAIN)
    assert result.check is not None and result.search is not None
    (head,) = result.check.heads
    assert head.drift is not None and head.drift_bound is not None and head.drift < head.drift_bound <= 0.05
    kept = [step for step in result.search.steps if step.passed]
    assert head.drift_bound / 0.05 == pytest.approx(min(kept, key=lambda step: step.share).measured)


def test_limits_are_settings(model: Path) -> None:
    shares = {}
    for limit in (0.02, 0.05, 0.15):
        limits = {"numbers": (limit, 0.3, 0.5)}
        result = onnx_pointwise.rewrite(model, calibration=small.examples(64), limits=limits, **PLAIN)
        assert result.passed and result.check is not None
        assert all(head.drift is not None and head.drift <= limit for head in result.check.heads)
        shares[limit] = result.after.macs / result.before.macs
    assert shares[0.15] < shares[0.05] < shares[0.02] < 1.0


def test_latency_is_what_falls_where_it_is_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = install(monkeypatch, 4)
    result = onnx_pointwise.rewrite(model, calibration=small.examples(64), latency=False, **TIMED)
    assert result.passed and result.verdict == "same"
    assert result.search is not None and result.search.resource == "latency"
    assert result.plan.latency["measured"] < 0.95
    assert len(compared) <= 1 + searching.FITS, "the network itself is timed for plans that are fitted only"
    best = min(step.latency for step in result.search.steps if step.passed and step.latency is not None)
    assert result.plan.latency["measured"] == best


@pytest.mark.parametrize(("step", "slow", "words"), [(64, 1.0, "No form of any"), (4, 200.0, "No network within")])
def test_where_nothing_pays_the_network_comes_back(
    model: Path, monkeypatch: pytest.MonkeyPatch, step: int, slow: float, words: str
) -> None:
    install(monkeypatch, step, slow=slow)
    result = onnx_pointwise.rewrite(model, calibration=small.examples(32), latency=False, **TIMED)
    assert result.passed and not result.plan.choices
    assert content(result.model) == content(onnx_pointwise.rewrite(model, ranks={"conv2": 99}, check=False).model)
    assert result.search is not None and result.search.reason is not None and words in result.search.reason
    assert words in shown(result)


def test_a_network_that_turns_out_slower_in_the_end_is_taken_back(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 4)
    real = checking._not_slower

    def slower(verdict: CheckResult) -> CheckResult:
        return replace(real(verdict), passed=False, findings=(Finding("slower", "It is slower."),))

    monkeypatch.setattr(checking, "_not_slower", slower)
    result = onnx_pointwise.rewrite(model, calibration=small.examples(32), latency=False, **TIMED)
    assert result.passed and not result.plan.choices and result.after == result.before
    assert result.search is not None and "slower" in str(result.search.reason)


def test_answers_that_may_not_move_leave_the_network_as_it_was(model: Path) -> None:
    result = onnx_pointwise.rewrite(model, calibration=small.examples(32), max_drift=1e-9, **PLAIN)
    assert result.passed and not result.plan.choices
    assert result.search is not None and "Even the smallest change" in str(result.search.reason)
    assert {site.refusal.code for site in result.sites if site.refusal} >= {"moves_answers"}


def test_a_promise_that_was_too_high_is_taken_back(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that do three times what they were rehearsed at are made again, until one keeps the limit."""
    real = Promise.measured
    monkeypatch.setattr(Promise, "measured", lambda self, found, score: 3.0 * real(self, found, score))
    result = onnx_pointwise.rewrite(model, calibration=small.examples(64), **PLAIN)
    assert result.search is not None and not result.search.steps[0].passed
    assert result.passed and result.plan.choices and len(result.search.steps) <= searching.FITS
    assert result.check is not None
    assert all(head.drift is not None and head.drift <= 0.05 / 3 for head in result.check.heads)
    monkeypatch.setattr(Promise, "measured", lambda self, found, score: 1e6)
    none = onnx_pointwise.rewrite(model, calibration=small.examples(64), **PLAIN)
    assert none.passed and not none.plan.choices
    assert none.search is not None and "not keep the limits" in str(none.search.reason)


def test_excluded_convolutions_stay_and_repair_is_done(model: Path) -> None:
    result = onnx_pointwise.rewrite(
        model, calibration=small.examples(32), nodes_to_exclude=["conv2"], repair_seconds=0.5, **PLAIN
    )
    assert result.passed and result.plan.choices and "conv2" not in result.plan.choices


# --- what nothing can be promised of ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [None, np.zeros((16, 3, 16, 16), np.float32), np.repeat(small.examples(1), 16, axis=0)]
)
@pytest.mark.parametrize("limits", [{}, {"max_drift": 0.1}])
def test_without_examples_that_tell_anything_a_search_is_refused(model: Path, source: Any, limits: Any) -> None:
    said = r"only example inputs tell.*--calibration, or say how far to go: --target-latency"
    with pytest.raises(PlanError, match=said):
        onnx_pointwise.rewrite(model, calibration=source, **limits, **PLAIN)


def test_inputs_to_check_with_or_a_score_stand_in_for_examples(model: Path) -> None:
    inputs, labels = small.images(100, seed=4)
    result = onnx_pointwise.rewrite(model, calibration=None, inputs={"image": inputs}, max_drift=0.2, **PLAIN)
    assert result.passed and result.plan.choices

    def accuracy(session: ort.InferenceSession) -> float:
        (output,) = session.run(None, {"image": inputs})
        return float((np.asarray(output).argmax(1) == labels).mean())

    result = onnx_pointwise.rewrite(
        model, calibration=None, inputs={"image": inputs}, max_loss=0.05, evaluate=accuracy, **PLAIN
    )
    assert result.passed and result.score is not None and result.score.before - result.score.after <= 0.05


def test_drawn_images_are_said_to_be_drawn(model: Path) -> None:
    result = onnx_pointwise.rewrite(model, calibration_limit=16, **PLAIN)
    assert any("Only drawn images" in warning for warning in result.calibration["warnings"])


# --- few or useless examples ------------------------------------------------------------------------------------------


def test_few_examples_are_compared_on_themselves_with_a_warning(model: Path) -> None:
    result = onnx_pointwise.rewrite(model, calibration=small.examples(5), **PLAIN)
    assert result.check is not None and result.check.inputs == "examples"
    assert any("made from" in warning for warning in result.check.warnings)
    assert "Only 5 different example inputs" in result.calibration["warnings"][0]
    assert "Only 5 different example inputs" in shown(result)


@pytest.mark.parametrize(
    "source",
    [
        small.examples(1),
        np.repeat(small.examples(1), 16, axis=0),
        np.zeros((16, 3, 16, 16), np.float32),
        np.full((9, 3, 16, 16), 0.5, np.float32),
    ],
    ids=["one", "same", "black", "grey"],
)
def test_examples_that_tell_nothing_give_the_plan_without_examples(model: Path, source: Any) -> None:
    result = onnx_pointwise.rewrite(model, target_macs=0.5, calibration=source, **PLAIN)
    plain = onnx_pointwise.rewrite(model, target_macs=0.5, calibration=None, **PLAIN)
    assert result.plan.choices == plain.plan.choices
    assert content(result.model) == content(plain.model)
    assert result.after.macs > 0.45 * result.before.macs, "no less than what was asked for"
    (warning,) = result.calibration["warnings"]
    assert "kernels alone" in warning and warning in shown(result)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_few_examples_cost_no_more_than_none(model: Path, count: int, tmp_path: Path) -> None:
    inputs, _ = small.images(300, seed=9)
    truth, drifts = small.run(model, inputs), {}
    for name, source in (("few", small.examples(count)), ("none", None)):
        result = onnx_pointwise.rewrite(model, target_macs=0.5, calibration=source, **PLAIN)
        result.save(tmp_path / f"{name}.onnx")
        drifts[name] = float(np.linalg.norm(small.run(tmp_path / f"{name}.onnx", inputs) - truth))
        assert result.after.macs > 0.4 * result.before.macs
    assert drifts["few"] <= drifts["none"]
