"""What is said of the lines and branches that tests ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from tools.covered import by_wing, command, shares


def entry(lines: int, run: int, branches: int, taken: int) -> dict[str, dict[str, float]]:
    counts = {"num_statements": lines, "covered_lines": run, "num_branches": branches, "covered_branches": taken}
    return {"summary": {**counts, "percent_covered": 12.5}}


def test_files_add_up_to_wings() -> None:
    wings = by_wing(
        {
            "files": {
                "onnx_pointwise/graph/a.py": entry(10, 9, 4, 2),
                "onnx_pointwise/graph/deeper/b.py": entry(10, 10, 0, 0),
                "onnx_pointwise/errors.py": entry(3, 3, 0, 0),
                "/somewhere/onnx_pointwise/cli/c.py": entry(5, 4, 2, 2),
            }
        }
    )
    assert list(wings) == ["beside", "cli", "graph"]
    assert shares(wings["graph"]) == (0.95, 0.5)
    assert shares(wings["beside"]) == (1.0, 1.0)
    assert shares(wings["cli"]) == (0.8, 1.0)


@pytest.mark.parametrize(("run", "taken", "code"), [(95, 90, 0), (94, 90, 1), (95, 89, 1)])
def test_below_the_bars_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: int, taken: int, code: int
) -> None:
    file = tmp_path / "coverage.json"
    file.write_text(json.dumps({"files": {"onnx_pointwise/graph/a.py": entry(100, run, 100, taken)}}))
    with pytest.raises(typer.Exit) as ended:
        command(file)
    assert ended.value.exit_code == code
    assert f"| all | 100 | {run}.0% | 100 | {taken}.0% |" in capsys.readouterr().out
