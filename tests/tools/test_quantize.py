"""Rewriting and other number formats: what int8 does to a rewritten network, the tool's table, float16 networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime.transformers.float16 import convert_float_to_float16

import onnx_pointwise
from models import networks
from onnx_pointwise.deploying import Deployment
from onnx_pointwise.graph import load, save
from tests import small
from tests.commands import invoke
from tests.graphs import relative
from tools.quantize import app

NETWORKS = Path(__file__).resolve().parents[2] / "models" / "networks.py"


def run(*arguments: str | Path) -> tuple[int, str]:
    result = invoke(app, *arguments)
    return result.exit_code, result.output


def write_int8(source: Path, target: Path, examples: dict[str, Any]) -> None:
    save(Deployment("int8").made(load(source), examples), target)


def output(model: onnx.ModelProto | Path, images: NDArray[Any]) -> NDArray[Any]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: images})
    return np.asarray(result)


@pytest.fixture(scope="module")
def rewritten() -> onnx.ModelProto:
    images = networks.calibration("digits", 64)
    result = onnx_pointwise.rewrite(
        networks.path("digits"),
        ratio=0.3,
        calibration=images,
        check=False,
        refit=False,
        provider="none",
        forms=["reduce", "expand", "reduce_expand"],
    )
    return ir.to_proto(result.model)


def in_another_basis(model: onnx.ModelProto, stretch: float) -> onnx.ModelProto:
    """Give the feature maps behind each inserted 1x1 unlike sizes, and let what reads them make up for it."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    stored = {item.name: item for item in other.graph.initializer}
    for node in other.graph.node:
        readers = [user for user in other.graph.node if node.output[0] in user.input]
        if not node.name.endswith("_reduce") or [user.op_type for user in readers] != ["Conv"]:
            continue
        for name, axis, sign in ((node.input[1], 0, 1), (readers[0].input[1], 1, -1)):
            weights = onnx.numpy_helper.to_array(stored[name])
            shape = [-1 if index == axis else 1 for index in range(weights.ndim)]
            sizes = np.geomspace(1.0, stretch**sign, weights.shape[axis], dtype=np.float32).reshape(shape)
            stored[name].CopyFrom(onnx.numpy_helper.from_array(weights * sizes, name))
    return other


def test_int8_hurts_a_rewritten_network_less_than_in_a_bad_basis(rewritten: onnx.ModelProto, tmp_path: Path) -> None:
    images = networks.calibration("digits", 192)
    examples, unseen = images[:64], images[64:]
    truth = output(rewritten, unseen)
    drifts = []
    for name, model in (("good", rewritten), ("bad", in_another_basis(rewritten, 30.0))):
        assert relative(truth, output(model, unseen)) < 1e-4
        onnx.save(model, tmp_path / f"{name}.onnx")
        write_int8(tmp_path / f"{name}.onnx", tmp_path / f"{name}8.onnx", {"image": examples})
        drifts.append(relative(truth, output(tmp_path / f"{name}8.onnx", unseen)))
    assert drifts[0] < 0.05
    assert drifts[0] < 0.7 * drifts[1]


def test_int8_versions_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    images = {"image": networks.calibration("digits", 4)}
    for name in ("one", "two"):
        write_int8(networks.path("digits"), tmp_path / name, images)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    types = {item.data_type for item in onnx.load(tmp_path / "one").graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.UINT8} <= types


def test_the_table_holds_every_version(small_folder: Path, tmp_path: Path) -> None:
    code, _ = run(
        small_folder / "networks.py", "--target-macs", "0.6", "--calibration-limit", "24", "--metric-limit", "100",
        "--float16", "--seconds", "0.1", "--provider", "none", "--json", tmp_path / "rows.json",
        "--markdown", tmp_path / "rows.md",
    )  # fmt: skip
    assert code == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["version"], row["numbers"]) for row in rows] == [
        (version, numbers) for numbers in ("float32", "float16", "int8") for version in ("dense", "bottleneck")
    ]
    assert all(row["metric"] > 0.9 and row["latency"] > 0 and row["bytes"] > 0 for row in rows)
    assert [row["against_int8"] is None for row in rows] == [True] * 5 + [False]
    assert rows[1]["macs"] <= 0.6
    assert rows[4]["bytes"] < 0.4 * rows[0]["bytes"]
    lines = (tmp_path / "rows.md").read_text().splitlines()
    assert len(lines) == 8
    assert len({line.count("|") for line in lines}) == 1


def test_what_cannot_be_rewritten_is_said_in_its_rows(small_folder: Path, tmp_path: Path) -> None:
    code, _ = run(
        small_folder / "networks.py", "--target-macs", "0.0001", "--calibration-limit", "8", "--metric-limit", "10",
        "--no-latency", "--provider", "none", "--json", tmp_path / "rows.json",
    )  # fmt: skip
    assert code == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert ["cannot be reached" in (row["refused"] or "") for row in rows] == [False, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.py"], "no such Python file"),
        ([NETWORKS, "--network", "nope"], "has no network 'nope'"),
        ([NETWORKS, "--target-macs", "2"], "above 0 and at most 1"),
        ([NETWORKS, "--input-shape", "image"], "write it as NAME:1,3,224,224"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str | Path], words: str) -> None:
    code, said = run(*arguments)
    assert code == 2
    assert words in " ".join(said.split())


@pytest.mark.parametrize("kind", ["float32", "float16", "synthetic"])
def test_a_float16_network_stays_one(kind: str) -> None:
    half = convert_float_to_float16(small.network())
    calibration = kind if kind == "synthetic" else small.examples(64).astype(kind)
    result = onnx_pointwise.rewrite(
        half, target_macs=0.4, calibration=calibration, calibration_limit=64, check=False, provider="none"
    )
    after = ir.to_proto(result.model)
    floats = {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    assert {item.data_type for item in after.graph.initializer} <= floats
    images = small.images(128, seed=1)[0].astype(np.float16)
    dense, cheap = output(half, images), output(after, images)
    assert cheap.dtype == np.float16
    assert relative(dense.astype(np.float64), cheap.astype(np.float64)) < 0.05
    assert (dense.argmax(1) == cheap.argmax(1)).mean() > 0.99


def test_ranks_by_hand_take_example_inputs() -> None:
    path, images = networks.path("digits"), networks.calibration("digits", 16)
    names = [view.site.name for view in onnx_pointwise.inspect(path).sites if view.site.rewritable][1:2]
    result = onnx_pointwise.rewrite(path, ranks=dict.fromkeys(names, 8), calibration=images, check=False)
    assert list(result.plan.choices) == names
