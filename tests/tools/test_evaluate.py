"""The evaluation of anyone's networks: what it needs, what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.evaluate import app

NETWORKS = Path(__file__).resolve().parents[2] / "models" / "networks.py"


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_table_holds_dense_and_every_method_and_budget(tmp_path: Path) -> None:
    code, _ = run(
        NETWORKS, "--target-macs", "0.6,0.0001", "--method", "als", "--calibration-limit", "24",
        "--metric-limit", "100", "--no-latency", "--json", tmp_path / "rows.json", "--markdown", tmp_path / "rows.md",
    )  # fmt: skip
    assert code == 0
    dense, rewritten, refused = json.loads((tmp_path / "rows.json").read_text())
    assert (dense["method"], dense["target"]) == ("dense", 1.0)
    assert rewritten["macs"] <= 0.6 * dense["macs"]
    assert 0 < rewritten["metric"] <= 1
    assert rewritten["passes"] > 0
    assert rewritten["peak_bytes"] > 0
    assert "cannot be reached" in refused["refused"]
    lines = (tmp_path / "rows.md").read_text().splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.py"], "no such Python file"),
        ([NETWORKS, "--network", "nope"], "has no network 'nope'"),
        ([NETWORKS, "--method", "magic"], "svd, whitened, als, refit"),
        ([NETWORKS, "--target-macs", "2"], "above 0 and at most 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str | Path], words: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert words in " ".join(output.split())


def test_files_that_do_not_describe_networks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("NETWORKS = ['a']\n")
    (tmp_path / "broken.py").write_text("raise ValueError('no')\n")
    assert "defines no calibration" in run(tmp_path / "half.py")[1]
    assert "ValueError: no" in run(tmp_path / "broken.py")[1]
