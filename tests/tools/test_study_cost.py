"""What a rewrite costs: the stages add up, stacks are compared, what is asked for wrongly is refused."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from onnx_pointwise.graph import find_sites, load
from tests.commands import invoke
from tools import study_cost
from tools.generated_networks import residual_stack
from tools.study_cost import STAGES, app


def run(*arguments: str | Path) -> tuple[int, str]:
    result = invoke(app, *arguments)
    return result.exit_code, result.output


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process, and little."""
    monkeypatch.setattr(study_cost, "apart", lambda name, path, *rest: study_cost.measured(name, str(path), *rest))
    for name, value in {"MAPS": 8, "SIZE": 8, "EXAMPLES": 16}.items():
        monkeypatch.setattr(study_cost, name, value)


@pytest.mark.usefixtures("here")
def test_stages_are_told_apart(small_folder: Path, tmp_path: Path) -> None:
    code, output = run(small_folder / "networks.py", "--calibration-limit", "24", "--json", tmp_path / "rows.json")
    assert code == 0, output
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert list(row["seconds"]) == list(STAGES)
    assert all(row["seconds"][stage] > 0.0 for stage in STAGES)
    assert all(row["peak"][stage] > 0 for stage in STAGES)
    assert (row["examples"], row["refused"]) == (24, None)
    assert row["sites"] >= 3


@pytest.mark.usefixtures("here")
def test_stacks_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_cost, "EVEN", 1e9)
    code, output = run("--stacks", "2,3", "--target-macs", "0.7", "--json", tmp_path / "rows.json")
    assert code == 0 and "lie within" in output, output
    assert [row["sites"] for row in json.loads((tmp_path / "rows.json").read_text())] == [2, 3]
    monkeypatch.setattr(study_cost, "EVEN", 0.5)
    code, output = run("--stacks", "1", "--target-macs", "0.7")
    assert code == 1 and "NOT within" in output, output


def test_stacks_have_as_many_sites_as_asked_for() -> None:
    for count in (1, 2, 25):
        sites = find_sites(load(residual_stack(count, maps=8, size=8)))
        assert [site.rewritable for site in sites] == [True] * count


@pytest.mark.parametrize("stacks", ["many", "0", "2,,3"])
def test_stacks_that_are_none_are_refused(stacks: str) -> None:
    code, output = run("--stacks", stacks)
    assert code == 2
    assert "numbers of sites" in output


def test_a_stage_that_two_threads_end_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen it go on when the first one ends it: reading the peak takes a while."""
    stages = study_cost.Stages()
    stages.begin("gradients")
    stages._last = tuple(now - 1000.0 for now in stages._last)
    monkeypatch.setattr(study_cost, "peak_memory", lambda: time.sleep(0.05) or 0)
    gate = threading.Barrier(2)

    def begin() -> None:
        gate.wait()
        stages.heard("sensitivity", "some site")

    workers = [threading.Thread(target=begin) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert 1000.0 <= stages.seconds["gradients"] < 1900.0
    assert 1000.0 <= stages.processor["gradients"] < 1900.0
