"""Networks from dear to cheap: the same plans as single rewrites, what is shared between them, and what is picked."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from rich.console import Console

import onnx_pointwise
from onnx_pointwise.check.limits import LIMITS, severity
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import PlanError
from onnx_pointwise.jobs import Front, Sweep, looking, sweeping
from onnx_pointwise.jobs.fronts import front_of
from onnx_pointwise.reports import terminal as report
from tests import small
from tests.commands import invoke
from tests.jobs.test_pipeline import content
from tests.staircase import install

PLAIN: dict[str, Any] = {"latency": False, "providers": ("none",)}
SHARES = (0.8, 0.5, 0.35)


@pytest.fixture(scope="module")
def examples() -> Any:
    return small.examples(64)


@pytest.fixture(scope="module")
def swept(small_folder: Path, examples: Any) -> Sweep:
    return onnx_pointwise.sweep(small_folder / "small.onnx", calibration=examples, shares=SHARES, pick="0.5", **PLAIN)


def test_every_network_has_the_plan_of_its_own_rewrite(swept: Sweep, small_folder: Path, examples: Any) -> None:
    (front,) = swept.fronts
    assert [point.asked for point in front.points] == list(SHARES)
    for point in front.points:
        alone = onnx_pointwise.rewrite(
            small_folder / "small.onnx",
            calibration=examples,
            target_macs=point.asked,
            provider="none",
            latency=False,
        )
        assert point.plan.choices == alone.plan.choices
        assert point.after == alone.after and point.share("macs") <= point.asked
        assert point.check.inputs == "held_back"


def test_what_is_picked_is_what_rewrite_gives(swept: Sweep, small_folder: Path, examples: Any) -> None:
    assert swept.picked is not None and swept.picked.passed
    alone = onnx_pointwise.rewrite(
        small_folder / "small.onnx", calibration=examples, target_macs=0.5, provider="none", latency=False
    )
    assert content(swept.picked.model) == content(alone.model)


def test_less_cost_is_more_drift_and_all_of_it_is_on_the_front(swept: Sweep) -> None:
    points = swept.fronts[0].points
    drifts = [point.drift for point in points]
    assert drifts == sorted(drifts, key=lambda drift: drift or 0.0)
    assert all(point.on_front for point in points)


def test_examples_are_looked_at_once(small_folder: Path, examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 4)
    looked: list[str] = []
    study = looking.study
    monkeypatch.setattr(looking, "study", lambda *given, **more: looked.append("") or study(*given, **more))
    result = onnx_pointwise.sweep(
        small_folder / "small.onnx",
        calibration=examples,
        shares=SHARES,
        providers=("cpu", "none"),
        cache=False,
        forms=("reduce", "expand"),
        latency=False,
    )
    assert len(looked) == 1
    timed, plain = result.fronts
    assert (timed.cost, plain.cost) == ("latency", "macs")
    assert timed.unmeasured is None and "measures nothing" in (plain.unmeasured or "")
    assert all(point.latency is not None and point.latency < 1.0 for point in timed.worthwhile)
    assert all(point.plan.latency["measured"] == point.latency for point in timed.points)
    assert all(point.latency is None for point in plain.points)


def test_a_score_of_ones_own_decides(small_folder: Path, examples: Any) -> None:
    inputs, labels = small.images(100, seed=1)

    def score(session: ort.InferenceSession) -> float:
        (scores,) = session.run(None, {"image": inputs})
        return float((np.asarray(scores).argmax(1) == labels).mean())

    result = onnx_pointwise.sweep(
        small_folder / "small.onnx", calibration=examples, shares=(0.6, 0.2), evaluate=score, max_loss=0.02, **PLAIN
    )
    (front,) = result.fronts
    assert front.answers == "score"
    for point in front.points:
        assert point.score is not None and point.loss("score") == point.score.before - point.score.after
        assert point.passed == (point.loss("score") <= 0.02)


def test_the_json_tells_it_all(swept: Sweep) -> None:
    document = json.loads(json.dumps(swept.to_dict()))
    (front,) = document["fronts"]
    assert [point["plan"]["sites"] for point in front["points"]] == [
        point.plan.to_dict()["sites"] for point in swept.fronts[0].points
    ]
    assert document["picked"]["plan"]["sites"] == front["points"][1]["plan"]["sites"]
    assert front["points"][0]["shares"]["latency"] is None


# --- picking ----------------------------------------------------------------------------------------------------------


def made_up(swept: Sweep, *points: tuple[float, float]) -> Front:
    """A front of networks with these shares of the latency and drifts."""
    one = swept.fronts[0].points[0]
    head = one.check.heads[0]
    made = []
    for share, drift in points:
        moved = replace(head, drift=drift, severity=severity("numbers", drift, LIMITS["numbers"]))
        provider = replace(one.check.providers[0], heads=(moved,))
        made.append(replace(one, asked=share, latency=share, check=replace(one.check, providers=(provider,))))
    return front_of("cpu", "latency", "drift", made)


def test_rules_pick_from_the_front(swept: Sweep) -> None:
    front = made_up(swept, (0.5, 0.03), (0.9, 0.01), (0.7, 0.02), (0.72, 0.04), (0.3, 0.14))
    assert [point.asked for point in front.points] == [0.9, 0.72, 0.7, 0.5, 0.3]
    assert [point.asked for point in front.worthwhile] == [0.9, 0.7, 0.5, 0.3], "0.72 is dearer and worse than 0.7"
    assert front.pick("knee").asked == 0.5
    assert front.pick("0.71").asked == 0.7
    assert front.pick("0.67").asked == 0.7, "a latency is met within 5 %"
    assert front.pick("same").asked == 0.5
    assert front.pick("close").asked == 0.3


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("0.1", "No network for cpu can be picked: none that keeps its limits costs 0.1 or less"),
        ("same", "answers of none are same"),
        ("elbow", "no rule 'elbow'"),
    ],
)
def test_what_cannot_be_picked_is_refused(swept: Sweep, rule: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        made_up(swept, (0.9, 0.2), (0.5, 0.3)).pick(rule)


def test_what_is_dearer_than_the_untouched_network_is_not_on_the_front(swept: Sweep) -> None:
    assert made_up(swept, (1.1, 0.01)).worthwhile == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"shares": (0.5, 1.5)}, "above 0 and at most 1, not 1.5"),
        ({"shares": ()}, "at least one share"),
        ({"answers": "score"}, "name a function"),
        ({"cost": "latency"}, "needs measurements"),
        ({"pick": "elbow"}, "no rule 'elbow'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        onnx_pointwise.sweep("there is no such file.onnx", **(PLAIN | asked))


def test_shares_that_no_network_is_made_for_say_why(small_folder: Path, examples: Any) -> None:
    result = onnx_pointwise.sweep(small_folder / "small.onnx", calibration=examples, shares=(1.0, 0.001), **PLAIN)
    (front,) = result.fronts
    assert front.points == () and front.knee is None
    assert {one.asked: one.reason.split(":")[0] for one in front.unmade} == {
        1.0: "The untouched network keeps that share.",
        0.001: "The target 0.001 cannot be reached",
    }


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_the_front_and_writes_what_was_picked(small_folder: Path, tmp_path: Path) -> None:
    target, told = tmp_path / "out.onnx", tmp_path / "out.json"
    result = invoke(
        app, "sweep", small_folder / "small.onnx", target, "--pick", "close", "--share", "0.6", "--share", "0.4",
        "--calibration", f"{small_folder / 'small.npz'}:examples", "--provider", "none", "--no-latency",
        "--json", told, columns=80,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "MACs against drift of the head that is off most" in result.output
    assert "● no other network is both cheaper and better" in result.output
    document = json.loads(told.read_text())
    assert document["rule"] == "close" and document["picked"]["verdict"] in ("same", "close")
    assert small.run(target, small.examples(2)).shape == (2, small.CLASSES)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_a_terminal_in_colour(swept: Sweep, columns: int) -> None:
    """Off the front a row is dim, on it plain; what is escaped takes no room, and nothing wraps."""
    (front,) = swept.fronts
    behind = replace(front, points=(replace(front.points[0], on_front=False), *front.points[1:]))
    out = io.StringIO()
    console = Console(file=out, width=columns, force_terminal=True, color_system="standard", legacy_windows=False)
    console.print(report.sweep(replace(swept, fronts=(behind,))))
    written = out.getvalue().splitlines()
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in written]
    assert max(map(len, lines)) <= columns
    head = next(at for at, line in enumerate(lines) if line.rstrip().endswith("Answers"))
    assert [line.split()[1] for line in lines[head + 1 : head + 4]] == [f"{share:g}" for share in SHARES]
    assert lines[head + 1].split()[0] == "○"
    assert ["\x1b[2m" in line for line in written[head + 1 : head + 4]] == [True, False, False]


def test_the_command_wants_a_rule_and_a_file_together(small_folder: Path, tmp_path: Path) -> None:
    for more in (["--pick", "knee"], [tmp_path / "out.onnx"]):
        result = invoke(app, "sweep", small_folder / "small.onnx", *more)
        assert result.exit_code == 2 and "name the file OUT and what to pick it by" in result.output


def test_a_plan_does_not_depend_on_the_other_shares(swept: Sweep, small_folder: Path, examples: Any) -> None:
    alone = onnx_pointwise.sweep(small_folder / "small.onnx", calibration=examples, shares=(0.35,), **PLAIN)
    assert alone.fronts[0].points[0].to_dict() == swept.fronts[0].points[2].to_dict()
    assert sweeping._LEAST >= 32


# --- in the precision that is deployed --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept_in_int8(small_folder: Path, examples: Any) -> Sweep:
    asked: dict[str, Any] = PLAIN | {"deploy": "int8", "evaluate": _quantised, "answers": "drift"}
    return onnx_pointwise.sweep(small_folder / "small.onnx", calibration=examples, shares=(0.5,), pick="0.5", **asked)


def _quantised(session: ort.InferenceSession) -> float:
    """One where the network puts out multiples of one step, as one that is quantised does."""
    (numbers,) = session.run(None, {"image": small.examples(64)})
    steps = np.diff(np.unique(numbers[:, 0]))
    return float(np.allclose(steps / steps.min(), np.round(steps / steps.min()), atol=0.05))


def test_points_are_judged_and_scored_in_the_precision_that_is_deployed(swept: Sweep, swept_in_int8: Sweep) -> None:
    (front,), (plain,) = swept_in_int8.fronts, swept.fronts
    (point,) = front.points
    same = next(other for other in plain.points if other.asked == 0.5)
    assert front.precision == "int8" and plain.precision is None
    assert point.score is not None and (point.score.before, point.score.after) == (0.0, 1.0)
    # Rounding is planned with, so that its ranks may be others than those of the float plan.
    picked = swept_in_int8.picked
    assert picked is not None and point.after == picked.after, "its file is the float network"
    assert point.after.macs == pytest.approx(same.after.macs, rel=0.02)
    assert point.after.bytes == pytest.approx(same.after.bytes, rel=0.1)
    assert (point.drift or 0.0) > (same.drift or 0.0), "rounding is part of its drift"


def test_what_is_picked_is_compared_as_it_is_and_deployed(swept_in_int8: Sweep) -> None:
    picked = swept_in_int8.picked
    assert picked is not None and picked.deployed is not None
    assert "QuantizeLinear" in {node.op_type for node in picked.deployed.model.graph}
    assert not {"QuantizeLinear"} & {node.op_type for node in picked.model.graph}
    assert [one.name for one in picked.deployed.versions] == ["dense", "dense int8", "rewritten", "rewritten int8"]


def test_the_precision_stands_above_the_table(swept_in_int8: Sweep) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.sweep(swept_in_int8))
    assert "none, int8: MACs against drift" in console.export_text()


def test_a_sweep_in_int8_takes_examples_and_a_float_network(small_folder: Path) -> None:
    with pytest.raises(PlanError, match="int8 takes the ranges of activations from example inputs, and there are none"):
        onnx_pointwise.sweep(small_folder / "small.onnx", calibration=None, deploy="int8", **PLAIN)


def test_the_network_that_is_picked_is_written_in_both_precisions(
    swept_in_int8: Sweep, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_pointwise, "sweep", lambda *_: swept_in_int8)
    out, quantized = tmp_path / "out.onnx", tmp_path / "out.int8.onnx"
    given = ["sweep", small_folder / "small.onnx", out, "--pick", "0.5", "--quantized", quantized]
    result = invoke(app, *given, "--deploy", "int8")
    assert result.exit_code == 0, result.output
    types = [{node.op_type for node in onnx.load(path).graph.node} for path in (out, quantized)]
    assert ["QuantizeLinear" in found for found in types] == [False, True]
    refused = invoke(app, *given)
    assert refused.exit_code == 2
    words = " ".join(refused.output.split())
    assert "--quantized writes the network that --pick names in another precision; name OUT" in words
