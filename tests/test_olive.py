"""The pass for Olive. Olive brings several gigabytes, so CI does without it; see also ``tools/olive_run.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.small import examples, network

pytest.importorskip("olive", reason="Olive brings several gigabytes")


@pytest.fixture
def model(tmp_path: Path) -> Any:
    from olive.model import ONNXModelHandler

    onnx.save(network(), tmp_path / "net.onnx")
    np.savez(tmp_path / "images.npz", image=examples(32))
    return ONNXModelHandler(model_path=tmp_path / "net.onnx")


def made(config: dict[str, Any]) -> Any:
    from olive.passes.olive_pass import create_pass_from_dict

    from onnx_pointwise.olive import OnnxPointwise

    return create_pass_from_dict(OnnxPointwise, {"provider": "none", "latency": False, **config}, disable_search=True)


def test_a_pass_rewrites(model: Any, tmp_path: Path) -> None:
    asked = {"target_macs": 0.7, "calibration": str(tmp_path / "images.npz"), "nodes_to_exclude": ["conv1"]}
    result = made(asked).run(model, str(tmp_path / "out"))
    about = result.model_attributes["onnx_pointwise"]
    assert about["macs_left"] <= 0.7 and "conv1" not in about["plan"]["sites"]
    onnx.checker.check_model(onnx.load(result.model_path), full_check=True)
    json.dumps(result.to_json())


def test_a_rewrite_whose_check_fails_ends_the_pass(model: Any, tmp_path: Path) -> None:
    from onnx_pointwise.errors import PlanError

    with pytest.raises(PlanError, match="drift"):
        made({"ratio": 0.5, "calibration": "none", "max_drift": 1e-9}).run(model, str(tmp_path / "out"))


def test_olive_finds_it() -> None:
    from onnx_pointwise.olive import package_config

    assert package_config()["passes"]["OnnxPointwise"]["module_path"] == "onnx_pointwise.olive.OnnxPointwise"
