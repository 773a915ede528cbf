"""The replay of a plan gives the same bytes as the run that made it, however few the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onnx_pointwise
from onnx_pointwise.graph import Choice
from onnx_pointwise.graph.model_io import serialize
from tests import small
from tests.networks import examples, prepared, residual

QUIET: dict[str, Any] = {"provider": "none", "check": False}


def model_bytes(result: Any) -> bytes:
    return bytes(serialize(result.model).SerializeToString(deterministic=True))


@pytest.mark.parametrize("count", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("refit", [True, False])
def test_a_replay_gives_the_same_bytes(small_folder: Path, tmp_path: Path, count: int, refit: bool) -> None:
    """Sites that the plan leaves dense are not looked at again, which must not matter."""
    options = QUIET | {"calibration": small.examples(count), "refit": refit}
    first = onnx_pointwise.rewrite(small_folder / "small.onnx", target_macs=0.55, **options)
    assert first.plan.choices
    path = tmp_path / "plan.json"
    path.write_text(first.plan.to_json())
    again = onnx_pointwise.rewrite(small_folder / "small.onnx", plan=path, **options)
    assert model_bytes(again) == model_bytes(first)
    if count == 1:  # one example of a network with one answer tells nothing
        assert first.calibrated is None and again.calibrated is None
        return
    assert first.calibrated is not None and again.calibrated is not None
    # Another number of kernels are inputs of the session that plans are rehearsed in, which rounds otherwise.
    predicted = None if first.calibrated.predicted is None else pytest.approx(first.calibrated.predicted, rel=1e-3)
    assert again.calibrated.predicted == predicted
    assert again.calibrated.drift == first.calibrated.drift


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_replay_of_part_of_the_sites_gives_the_same_bytes(small_folder: Path, jobs: int) -> None:
    options = QUIET | {"calibration": small.examples(9), "jobs": jobs}
    ranks = {"conv2": 4, "conv4": Choice("expand", 7)}
    made = [
        onnx_pointwise.rewrite(small_folder / "small.onnx", ranks=ranks, target_macs=0.6, **options),
        onnx_pointwise.rewrite(
            small_folder / "small.onnx", ranks=ranks, target_macs=0.6, **QUIET | {"calibration": small.examples(9)}
        ),
    ]
    made.append(onnx_pointwise.rewrite(small_folder / "small.onnx", plan=made[0].plan, **options))
    assert made[0].plan == made[1].plan
    assert len({model_bytes(one) for one in made}) == 1


@pytest.mark.parametrize("left", range(2))
def test_sites_that_a_plan_leaves_dense_change_nothing(left: int) -> None:
    """What is asked of a session decides what the runtime fuses, and so how it rounds, wherever nodes branch."""
    model = residual()
    options = QUIET | {"calibration": examples(12)["x"]}
    sites = [site.name for site in prepared(model)[1]]
    ranks: dict[str, Any] = dict.fromkeys(sites[left::2], 3)
    first = onnx_pointwise.rewrite(model, ranks=ranks, target_macs=0.98, **options)
    assert len(first.plan.choices) < len(sites)
    again = onnx_pointwise.rewrite(model, plan=first.plan, **options)
    assert model_bytes(again) == model_bytes(first)
