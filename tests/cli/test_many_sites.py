"""A network of a hundred convolutions with long names is not a hundred lines, and fits the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_pointwise.cli.app import app
from tests.commands import invoke
from tests.graphs import make_model, value

COUNT = 100


def name_of(index: int) -> str:
    return f"model_1/stage_{index // 25}_1/block_{index // 5}_1/conv_{index}_1/Conv2D;model_1/bn_{index}_1/Fused"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    nodes, weights, x = [], {}, "image"
    for index in range(COUNT):
        name = name_of(index)
        weights[f"{name}/w"] = (rng.standard_normal((8, 8, 3, 3)) / np.sqrt(72)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [x, f"{name}/w"], [f"{name}/y"], name=name, pads=[1, 1, 1, 1]))
        x = f"{name}/y"
    nodes[-1].output[0] = "StatefulPartitionedCall/model_1/predictions_head_of_the_network/Softmax:0"
    output = value(nodes[-1].output[0], [1, 8, 4, 4])
    path = tmp_path_factory.mktemp("many") / "many.onnx"
    onnx.save(make_model(nodes, [value("image", [1, 8, 4, 4])], [output], weights), path)
    return path


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_and_show_what_matters(model: Path, columns: int, tmp_path: Path) -> None:
    rewrite = ("rewrite", model, tmp_path / "out.onnx", "--ratio", "0.7", "--calibration", "none", "--provider", "none")
    more = ("--no-latency", "--force", "--json", tmp_path / "out.json")
    for arguments, most in ((("inspect", model), 30), ((*rewrite, *more), 60)):
        result = invoke(app, *arguments, columns=columns)
        lines = result.stdout.splitlines()
        assert result.exit_code in (0, 1), result.stderr
        assert max(map(len, lines)) <= columns and len(lines) <= most
        assert "--all" in result.stdout
    shown = next(line.split()[0] for line in lines if " k -" in line)
    again = invoke(app, *rewrite, "--no-check", "--exclude", shown, "--json", tmp_path / "again.json", columns=columns)
    assert again.exit_code == 0, again.stderr
    refused = [site["name"] for site in json.loads((tmp_path / "again.json").read_text())["sites"] if site["refusal"]]
    assert len(refused) == 1


def test_all_of_them_on_request(model: Path) -> None:
    lines = invoke(app, "inspect", model, "--all", columns=120).stdout.splitlines()
    assert sum("8→8" in line for line in lines) == COUNT


def test_quiet_says_nothing_but_what_is_wrong(model: Path, tmp_path: Path) -> None:
    result = invoke(app, "inspect", model, "--quiet")
    assert (result.stdout, result.stderr) == ("", "")
    result = invoke(app, "check", model, model, "--max-drift", "0", "--no-latency", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    line = ("rewrite", model, tmp_path / "out.onnx", "--ratio", "0.4", "--calibration", "none", "--provider", "none")
    result = invoke(app, *line, "--no-latency", "--max-drift", "1e-9", "--quiet")
    assert result.exit_code == 1 and result.stdout == ""
    said = [line.split(":")[0] for line in result.stderr.splitlines()]
    assert "warning" in said and "failed" in said and "--force writes it" in result.stderr
    result = invoke(app, "inspect", model, "--quiet", "--verbose")
    assert result.exit_code == 2 and "contradict" in result.stderr


def test_verbose_says_each_step(model: Path) -> None:
    steps = invoke(app, "inspect", model, "--verbose").stderr
    assert f"spectrum: {name_of(3)} (4 of {COUNT})" in steps and "load: the model" in steps
