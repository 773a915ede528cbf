"""Damaged files: some hundred cases of the tool, and that it would see what is wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tools.fuzz_files import BYTES, SECONDS, Outcome, _fault, case, fuzz, run_case


def test_damaged_files_end_in_an_answer_or_a_sentence() -> None:
    outcomes = fuzz(500, seed=1)
    assert [outcome.number for outcome in outcomes] == list(range(500))
    assert [outcome for outcome in outcomes if outcome.fault] == []
    kinds = {outcome.kind for outcome in outcomes}
    assert {"model, fields", "model, bytes", "plan", "configuration", "examples, .npz"} <= kinds
    codes = [outcome.code for outcome in outcomes]
    assert min(codes.count(0), codes.count(2)) > 50, "some still make sense, most do not"


def test_a_case_comes_from_its_number_alone() -> None:
    for number in range(40):
        made, again = case(7, number), case(7, number)
        assert made == again and made != case(8, number)
    assert run_case(case(7, 0), 0).kind == case(7, 0).kind


@pytest.mark.parametrize(
    ("result", "more", "words"),
    [
        ({"exception": ValueError("what")}, {}, "ValueError: what"),
        ({"exit_code": 139}, {}, "exit code 139"),
        ({"output": "Traceback (most recent call last)"}, {}, "Traceback"),
        ({"exit_code": 2, "stderr": "error: no."}, {"new": ["out.json"]}, "but it left out.json"),
        ({"exit_code": 2}, {}, "without a sentence"),
        ({}, {"seconds": SECONDS + 1}, "took 11.0 seconds"),
        ({}, {"peak": 2 * BYTES}, "took 2048 MiB"),
        ({}, {}, ""),
    ],
)
def test_faults_are_seen(result: dict[str, Any], more: dict[str, Any], words: str) -> None:
    whole = SimpleNamespace(**{"exception": None, "exit_code": 0, "output": "", "stderr": ""} | result)
    outcome = Outcome(0, "kind", "line", whole.exit_code, more.get("seconds", 1.0), more.get("peak", 1))
    found = _fault(whole, more.get("new", []), outcome)
    assert (words in found) if words else not found
