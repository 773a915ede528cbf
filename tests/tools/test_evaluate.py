"""The evaluation of anyone's networks: what it needs, what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import helper

from onnx_pointwise.errors import InputError
from tests.commands import invoke
from tests.graphs import make_model, value
from tools.evaluate import app
from tools.measuring import load_networks

NETWORKS = Path(__file__).resolve().parents[2] / "models" / "networks.py"


def run(*arguments: str | Path) -> tuple[int, str]:
    result = invoke(app, *arguments)
    return result.exit_code, result.output


def test_the_table_holds_dense_and_every_method_and_budget(small_folder: Path, tmp_path: Path) -> None:
    code, _ = run(
        small_folder / "networks.py", "--target-macs", "0.6,0.0001", "--method", "als", "--calibration-limit", "24",
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


def test_networks_their_examples_and_their_metric_come_from_the_file() -> None:
    networks = load_networks(NETWORKS, calibration_limit=3, metric_limit=100)
    assert networks.names == ("digits",)
    assert networks.path("digits") == NETWORKS.with_name("digits.onnx")
    assert {name: array.shape for name, array in networks.examples("digits").items()} == {"image": (3, 16, 16, 1)}
    assert networks.metric("digits", networks.path("digits")) > 0.9


def test_a_network_with_several_inputs_takes_arrays_by_name(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["a", "b"], ["y"], name="add")
    onnx.save(make_model([node], [value("a", [1, 2]), value("b", [1, 2])], [value("y", [1, 2])]), tmp_path / "sum.onnx")
    file = tmp_path / "networks.py"
    head = "import numpy as np\nNETWORKS = ['sum']\nmetric = None\none = np.zeros((1, 2), np.float32)\n"
    file.write_text(head + "calibration = lambda name, limit: one\n")
    with pytest.raises(InputError, match=r"has 2 inputs; calibration\(\) must return arrays by name"):
        load_networks(file).examples("sum")
    file.write_text(head + "calibration = lambda name, limit: {'a': one, 'b': one}\n")
    assert set(load_networks(file).examples("sum")) == {"a", "b"}
