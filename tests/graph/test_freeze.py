"""Initializers that a caller may override become constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.graph.freeze import frozen, overridable
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.runtime.runner import model_name
from tests.graphs import conv_model, normal, opened, run

KERNEL = normal(8, 6, 3, 3)
QUICK: dict[str, Any] = {"latency": False, "threads": 1, "calibration": None, "provider": "none"}


def model(**options: Any) -> onnx.ModelProto:
    return conv_model(KERNEL, [9, 9], bias=normal(8), behind="batchnorm", name="conv", **options)


def inputs_of(model: onnx.ModelProto) -> list[str]:
    return [item.name for item in model.graph.input]


def optimized(model: onnx.ModelProto, folder: Path) -> list[str]:
    """What ONNX Runtime makes of a model: the operators it runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def test_a_frozen_model_is_optimised_and_computes_the_same(tmp_path: Path) -> None:
    source = opened(model())
    before = source.SerializeToString()
    copy = frozen(source)
    assert isinstance(copy, ir.Model)
    constant = serialize(copy)
    assert source.SerializeToString() == before, "the source stays as it was"
    assert inputs_of(constant) == ["x"]
    assert inputs_of(source) == ["x", *overridable(ir.serde.deserialize_model(source))]
    assert (constant.ir_version, constant.opset_import) == (source.ir_version, source.opset_import)
    assert {item.name for item in constant.graph.initializer} == {item.name for item in source.graph.initializer}
    assert "BatchNormalization" in optimized(source, tmp_path)
    assert optimized(constant, tmp_path) == ["Conv"]
    x = normal(2, 6, 9, 9)
    np.testing.assert_allclose(run(source, x=x)[0], run(constant, x=x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", [model(), model(opset=9, ir_version=3)], ids=["closed", "before IR version 4"])
def test_what_the_runtime_takes_for_constants_stays_as_it_is(source: onnx.ModelProto, tmp_path: Path) -> None:
    assert optimized(source, tmp_path) == ["Conv"]
    assert frozen(source) is source
    onnx.save(source, tmp_path / "model.onnx")
    assert frozen(tmp_path / "model.onnx") == tmp_path / "model.onnx"


def test_a_frozen_copy_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(opened(model()), path)
    copy = frozen(path)
    assert isinstance(copy, ir.Model) and model_name(copy) == str(path)
    assert "origin" not in str(serialize(copy)), "nothing of that is saved"
    assert model_name(copy.clone()) == model_name(frozen(opened(model()))) == "the model in memory"


@pytest.mark.parametrize("freeze", [False, True])
def test_a_rewrite_is_frozen_and_compared_with_the_frozen_source(freeze: bool) -> None:
    source = opened(model())
    result = onnx_pointwise.rewrite(source, ranks={"conv": 4}, freeze_initializers=freeze, **QUICK)
    assert result.check is not None and result.check.passed
    assert any("graph inputs" in warning for warning in result.check.warnings) is not freeze
    assert result.plan.choices
    if freeze:
        assert inputs_of(serialize(result.model)) == ["x"]


def test_before_ir_version_4_a_rewrite_keeps_the_inputs_that_the_format_asks_for() -> None:
    source = model(opset=9, ir_version=3)
    result = onnx_pointwise.insert_pointwise(
        source, "conv", 6, freeze_initializers=True, latency=False, threads=1, max_drift=1e-5
    )
    made = serialize(result.model)
    assert result.passed and made.ir_version == 3
    assert set(inputs_of(made)) == {"x"} | {item.name for item in made.graph.initializer}


def test_every_command_that_runs_a_network_takes_the_option(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(opened(model(batch=1)), path)
    rewritten, inserted = tmp_path / "rewritten.onnx", tmp_path / "inserted.onnx"
    common = ["--freeze-initializers", "--no-latency", "--calibration", "none"]
    lines: list[list[Any]] = [
        ["rewrite", path, rewritten, "--rank", "conv=4", *common],
        ["insert", path, inserted, "--node", "conv", "--feature-maps", "6", *common],
        ["check", path, path, "--freeze-initializers", "--no-latency"],
        ["bench", path, "--freeze-initializers", "--nodes", "--runs", "2", "--warmup", "1", "--max-seconds", "0.1"],
    ]
    for line in lines:
        result = CliRunner().invoke(app, [str(part) for part in line], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert "freeze" not in result.output and "graph inputs" not in result.output
        if line[0] == "bench":
            assert "BatchNormalization" not in result.output
            assert str(path) in result.output
    assert inputs_of(onnx.load(rewritten)) == inputs_of(onnx.load(inserted)) == ["x"]
