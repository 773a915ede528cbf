"""Whether what plans are made by ranks them as a metric does: what the tool makes, and how heads are weighed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnx_pointwise.study import Head
from tests.commands import invoke
from tools.rank_plans import WEIGHINGS, Part, Row, app, correlations, rank_correlation, weights_of


def test_plans_are_made_and_ranked(small_folder: Path, tmp_path: Path) -> None:
    result = invoke(
        app, small_folder / "networks.py", "--target-macs", "0.6,0.3", "--plans", "8", "--calibration-limit", "32",
        "--metric-limit", "60", "--json", tmp_path / "rows.json", "--markdown", tmp_path / "rows.md",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["target"] for row in rows} == {0.6, 0.3} and len(rows) >= 5
    first, last = (next(row for row in rows if row["target"] == target) for target in (0.6, 0.3))
    for kind in ("predicted", "rehearsed", *WEIGHINGS):
        assert 0.0 < first["drifts"][kind] < last["drifts"][kind]
    plain = next(row for row in rows if row["target"] == 0.3 and row["variation"] == 0)
    others = [row for row in rows if row["target"] == 0.3 and row["variation"]]
    assert all(row["drifts"]["predicted"] >= plain["drifts"]["predicted"] for row in others)
    lines = (tmp_path / "rows.md").read_text().splitlines()
    assert len(lines) == 2 + len(first["drifts"])


def test_too_few_inputs_are_refused(small_folder: Path) -> None:
    result = invoke(app, small_folder / "networks.py", "--calibration-limit", "4")
    assert result.exit_code == 2 and "too few calibration inputs" in result.output


def test_a_figure_that_does_not_vary_ranks_nothing() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0]) == pytest.approx(1.0)
    assert rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None


def test_budgets_are_ranked_apart() -> None:
    """A drift that knows nothing but the budget ranks all plans well, and none within a budget."""
    rows = [Row("a", target, 0, 1.0 / target + 0.01 * k, {"d": 1.0 / target - 0.02 * k}, {})
            for target in (1.0, 0.5, 0.25) for k in range(3)]  # fmt: skip
    whole, within = correlations(rows, "d")
    assert whole is not None and whole > 0.7
    assert within == pytest.approx(-1.0)


def test_heads_of_one_answer_share_its_weight() -> None:
    fine, coarse = (Head(name, "classes", ("scores",), behind="softmax") for name in ("fine", "coarse"))
    box = Head("box", "numbers", ("boxes",))
    parts = [Part("fine", (fine,), 300, 1.0), Part("coarse", (coarse,), 100, 3.0), Part("box", (box,), 400, 1.0),
             Part("softmax", (fine, coarse), 400, 2.0)]  # fmt: skip

    def weights(name: str) -> list[float]:
        return weights_of(parts, *WEIGHINGS[name])

    assert weights("heads, before") == [1.0, 1.0, 1.0, 0.0]
    assert weights("heads, half") == [0.5, 0.5, 1.0, 1.0]
    assert weights("places, before") == pytest.approx([0.75, 0.25, 1.0, 0.0])
    assert weights("places, behind") == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert weights("energy, half") == pytest.approx([0.125, 0.375, 1.0, 0.5])
