"""The tool that tells how well latency is predicted, on a machine of known latencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnx_pointwise.graph import find_sites, load
from onnx_pointwise.latency import network_latency
from onnx_pointwise.runtime import resolve
from tests.commands import invoke
from tests.staircase import install
from tools.generated_networks import random_network
from tools.predict_latency import Row, app, drawn, summary


@pytest.mark.parametrize("precision", [None, "int8"])
def test_predictions_of_a_machine_without_surprises_are_true(
    precision: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, 8)
    more: list[Any] = [] if precision is None else ["--deploy", precision]
    done = invoke(app, "--networks", "3", "--json", tmp_path / "rows.json", "--markdown", tmp_path / "rows.md", *more)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1, 2]
    made = [row for row in rows if row["refused"] is None]
    assert made
    for row in made:
        assert row["sites"] > 0 and row["measured"] < 1.0
        assert row["predicted"] == pytest.approx(row["measured"], rel=0.05)
    assert "(median)" in done.output and (tmp_path / "rows.md").read_text().count("\n") == 5


def test_what_is_drawn_is_another_plan_than_the_halfway_one(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    model = load(random_network(1))
    shapes = resolve(model)
    sites = [site for site in find_sites(model, shapes, min_channels=1) if site.rewritable]
    found = network_latency(model, shapes, sites)
    assert drawn(found, 1) == drawn(found, 1) != found.halfway()


def test_the_summary_is_about_what_was_measured() -> None:
    rows = [Row(0, 3, 0.5, 0.6, 0.5, 0.01, 1.0), Row(1, 3, 0.5, 0.51, 0.5, 0.01, 1.0), Row(2, refused="none")]
    assert summary(rows) == "2 networks: off by 11.0% (median), 20.0% (worst)."
    assert summary(rows[2:]) == "No network could be made faster."


def test_an_unknown_precision_is_refused() -> None:
    done = invoke(app, "--deploy", "int4")
    assert done.exit_code == 2 and "--deploy int4: use one of float32, float16, int8." in " ".join(done.output.split())
