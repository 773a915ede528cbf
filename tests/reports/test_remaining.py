"""The time that is left of a job: from what its stages took, on clocks that are told what time it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnx_pointwise.jobs import expected
from onnx_pointwise.progress import Expected
from onnx_pointwise.reports.remaining import Remaining
from onnx_pointwise.settings import CheckSettings, InsertSettings, ManySettings, Settings, SweepSettings

# Seconds that stages of real runs took, in their order, with parts of those that tell how far they are.
DIGITS = [("load", 1.3, 0), ("moments", 6.3, 8), ("sensitivity", 20.6, 7), ("plan", 6.8, 0), ("refit", 48.0, 7),
          ("check", 0.9, 2), ("timing", 4.0, 0)]  # fmt: skip
RESNET = [("load", 1.7, 0), ("moments", 6.8, 8), ("sensitivity", 8.2, 19), ("plan", 6.8, 0), ("refit", 40.7, 19),
          ("check", 1.4, 2), ("timing", 4.0, 0)]  # fmt: skip
SEARCH = [("load", 1.1, 0), ("latency", 14.2, 30), ("moments", 8.4, 8), ("sensitivity", 6.2, 19), ("search", 3.9, 0),
          ("latency", 3.0, 0), ("refit", 14.8, 8), ("search", 0.8, 0), ("check", 2.8, 2),
          ("timing", 2.0, 0)]  # fmt: skip


def replay(run: list[tuple[str, float, int]], settings: Settings) -> list[tuple[str, float, float | None]]:
    """Go through a run; gives for each event the stage, the time that was left, and the estimate of it."""
    now = 0.0
    remaining = Remaining(expected(settings), lambda: now)
    whole, told = sum(seconds for _, seconds, _ in run), []
    for stage, seconds, parts in run:
        start = now
        for part in range(parts or 1):
            now = start + seconds * part / (parts or 1)
            remaining.hear(stage, part, parts)
            told.append((stage, whole - now, remaining.left()))
        now = start + seconds
    return told


@pytest.mark.parametrize("run", [DIGITS, RESNET])
def test_what_is_left_is_believable_from_the_second_stage_on(run: list[tuple[str, float, int]]) -> None:
    told = replay(run, Settings(target_macs=0.5, provider="none"))
    assert all(estimate is None for stage, _, estimate in told if stage == "load")
    later = [(true, estimate) for stage, true, estimate in told if stage in ("sensitivity", "plan", "refit", "timing")]
    assert all(estimate is not None and 0.3 < estimate / true < 3.0 for true, estimate in later)
    ends = [(true, estimate) for stage, true, estimate in told if stage == "refit"][2:]
    assert all(estimate is not None and abs(estimate - true) < 0.2 * true + 1.0 for true, estimate in ends)


def test_a_search_that_is_over_sooner_skips_what_was_expected() -> None:
    told = replay(SEARCH, Settings())
    last = [estimate for stage, _, estimate in told if stage == "timing"]
    assert last == [4.0]
    searching = [(true, estimate) for stage, true, estimate in told if stage == "refit"]
    assert all(estimate is not None and 0.3 < estimate / true < 6.0 for true, estimate in searching)


def test_what_nobody_expected_leaves_the_rest_alone() -> None:
    now = 0.0
    remaining = Remaining([Expected("moments", 1.0), Expected("timing", seconds=4.0)], lambda: now)
    assert remaining.left() is None
    remaining.hear("weather")
    assert remaining.left() is None
    remaining.hear("moments", 0, 4)
    now = 2.0
    remaining.hear("moments", 2, 4)
    assert remaining.left() == pytest.approx(2.0 + 4.0)
    remaining.hear("weather", 1, 2)
    assert remaining.left() == pytest.approx(2.0 + 4.0)
    remaining.hear("moments", 0, 4)  # once more
    assert remaining.left() == pytest.approx(4.0 + 4.0)
    now = 5.0
    remaining.hear("timing")
    assert remaining.left() == 4.0
    now = 7.0
    assert remaining.left() == 2.0
    now = 70.0
    assert remaining.left() == 0.0


def test_stages_follow_what_is_asked_for() -> None:
    def names(asked: object) -> list[str]:
        return [stage.stage for stage in expected(asked)]  # type: ignore[arg-type]

    arithmetic = Settings(target_macs=0.5, provider="none")
    assert names(arithmetic) == ["load", "moments", "sensitivity", "plan", "refit", "check", "timing"]
    kernels = Settings(target_macs=0.5, provider="none", calibration="none", latency=False)
    assert names(kernels) == ["load", "check"]
    unchecked = Settings(target_macs=0.5, check=False, repair_seconds=3.0)
    assert names(unchecked) == ["load", "latency", "moments", "sensitivity", "latency", "plan", "repair", "refit"]
    assert names(Settings())[-6:] == ["latency", "refit", "search", "check", "check", "timing"]
    assert names(CheckSettings(providers=("cpu", "cuda"))) == ["check", "timing"] * 2
    assert names(SweepSettings(shares=(0.5,), pick="knee"))[-5:] == ["plans", "networks", "refit", "check", "timing"]
    assert names(InsertSettings(node="a", feature_maps=3)) == ["load", "moments", "refit", "check", "timing"]
    deployed = Settings(target_macs=0.5, provider="none", deploy="int8", check=False)
    assert names(deployed)[-2:] == ["refit", "deploy"]
    assert names(replace(deployed, check=True))[-6:] == ["deploy", "timing", "check", "timing", "check", "timing"]
    assert names(ManySettings(scheduler="tcp://here", provider="none")) == []
