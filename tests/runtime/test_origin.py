"""Where results come from: what was asked for, in few words and without the data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from onnx_pointwise.graph import Choice, Plan
from onnx_pointwise.runtime import origin_of
from onnx_pointwise.settings import CheckSettings, Settings
from tests import small


def test_only_what_was_asked_for_is_told_and_data_by_their_size() -> None:
    asked = Settings(
        target_macs=0.5,
        calibration=np.zeros((4, 3, 8, 8), np.float32),
        inputs={"x": np.zeros((2, 3))},
        evaluate=math.sqrt,  # type: ignore[arg-type]
        forms=("reduce",),
        plan=Plan({"a": Choice("reduce", 3)}),
        progress=lambda *_: None,
    )
    origin = origin_of("rewrite", asked, Path("model.onnx"))
    assert origin.models == ("model.onnx",)
    told = json.loads(json.dumps(origin.to_dict()))["asked"]
    assert told.pop("plan")["sites"] == {"a": {"form": "reduce", "rank": 3}}
    assert told == {
        "target_macs": 0.5,
        "calibration": "float32 array [4, 3, 8, 8]",
        "inputs": {"x": "float64 array [2, 3]"},
        "evaluate": "math:sqrt",
        "forms": ["reduce"],
    }


def test_defaults_are_not_told() -> None:
    assert origin_of("check", CheckSettings(providers=("cpu",)), small.network()).asked == {}
    assert origin_of("check", CheckSettings(batch_sizes=range(1, 99))).asked == {"batch_sizes": "98 items"}
