"""A network that remembers its training data, and nobody who gives any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnx_pointwise
from onnx_pointwise.graph import save
from onnx_pointwise.graph.model_io import serialize
from tests import remembering


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remembering") / "model.onnx"
    save(remembering.network(remembering.photographs(64)), path)
    return path


def rewritten(model: Path, **options: object) -> onnx_pointwise.RewriteResult:
    return onnx_pointwise.rewrite(model, min_channels=3, provider="none", latency=False, **options)  # type: ignore[arg-type]


def test_drawn_images_are_moved_towards_what_was_trained_on_and_a_person_is_told(model: Path) -> None:
    result = rewritten(model, target_macs=0.8)
    told = result.calibration["distilled"]
    assert told["layers"] == 2
    assert told["misfit_after"] < 0.5 * told["misfit_before"]
    assert "moved until 2 BatchNormalizations see nearly what training showed" in result.calibration["sentence"]
    assert result.calibration["source"] == "synthetic", "no more than drawn images, whatever became of them"
    assert result.check is not None and result.plan.choices


def test_a_plan_is_replayed_with_the_same_images(model: Path) -> None:
    first = rewritten(model, target_macs=0.8)
    again = rewritten(model, plan=first.plan)
    assert serialize(first.model).SerializeToString() == serialize(again.model).SerializeToString()


def test_examples_that_were_given_are_left_as_they_are(model: Path) -> None:
    result = rewritten(model, target_macs=0.8, calibration=remembering.photographs(32))
    assert "distilled" not in result.calibration


def test_weights_from_moved_images_serve_the_data_that_was_trained_on_better(model: Path) -> None:
    def drift(calibration: object) -> float:
        result = rewritten(model, target_macs=0.6, calibration=calibration)
        found = onnx_pointwise.check(
            model, result.model, inputs={"x": remembering.photographs(32, seed=7)}, latency=False
        )
        return max(head.drift for head in found.heads if head.drift is not None)

    noise = np.random.default_rng(1).uniform(-2.0, 2.0, (64, 3, 12, 12)).astype(np.float32)
    assert drift("auto") < drift(noise)
