"""The Keras model definitions: what Keras counts, what ONNX holds, and the files that are shipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import models
import models.__main__ as writer
from models import MODELS, SHIPPED
from models.inception import inception_bottleneck, inception_naive
from models.resnet import bottleneck
from models.squeezenet import fire
from models.tutorial import conv3x3, decrease, increase, projection
from models.vgg import vgg16
from tests.keras_models import declared, nodes, shapes
from tools.export_keras import export

# TensorFlow and a software GPU driver bring an LLVM each, and crash one another in one process.
pytestmark = pytest.mark.keras

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 300_000  # bytes
SMALL = {
    "bottleneck": {"width": 8, "size": 10},
    "conv3x3": {"size": 8},
    "decrease": {"size": 8},
    "fire": {"width": 4, "size": 9},
    "inception_bottleneck": {"width": 8, "size": 9},
    "inception_naive": {"width": 8, "size": 9},
    "increase": {"size": 8},
    "projection": {"size": 8},
    "vgg16": {"width": 2, "size": 32, "classes": 7},
}


def test_listing_the_models_needs_no_tensorflow() -> None:
    code = "import models, sys; assert models.MODELS; print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_model_can_be_exported_by_name() -> None:
    for name, build in MODELS.items():
        assert getattr(models, name) is build


# Keras' own counts, worked out by hand: k * k * I * O + O for a convolution, 4 * C for BatchNormalization.
@pytest.mark.parametrize(
    ("build", "parameters", "output"),
    [
        (conv3x3, 14_336, (None, 256, 256, 512)),
        (projection, 14_336 + 262_656, (None, 256, 256, 512)),
        (decrease, 14_336 + 32_832, (None, 256, 256, 64)),
        (increase, 14_336 + 525_312, (None, 256, 256, 1024)),
        (inception_naive, 12_352 + 221_312 + 153_632, (None, 28, 28, 416)),
        (inception_bottleneck, 163_696, (None, 28, 28, 256)),
        (bottleneck, 69_632 + 1_536, (None, 56, 56, 256)),
        (fire, 11_920, (None, 55, 55, 128)),
        (vgg16, 138_357_544, (None, 1000)),
    ],
)
def test_counts_at_the_papers_width(build, parameters: int, output: tuple[int | None, ...]) -> None:
    model = build()
    assert model.count_params() == parameters
    assert model.output_shape == output


def test_a_strided_bottleneck_projects_its_shortcut() -> None:
    model = bottleneck(width=8, size=9, strides=2)
    assert model.output_shape == (None, 5, 5, 32)
    assert model.get_layer("shortcut").kernel.shape == (1, 1, 32, 32)
    assert export(model).max_error < 1e-5


T, C, R = "Transpose", "Conv", "Relu"


@pytest.mark.parametrize(
    ("build", "operators", "pointwise"),
    [
        (conv3x3, [T, C, R, T], None),
        (projection, [T, C, R, C, R, T], [512, 512, 1, 1]),
        (decrease, [T, C, R, C, T], [64, 512, 1, 1]),
        (increase, [T, C, R, C, T], [1024, 512, 1, 1]),
    ],
)
def test_the_tutorials_four_in_onnx(build, operators: list[str], pointwise: list[int] | None) -> None:
    model = build(size=16)
    result = export(model)
    assert [node.op_type for node in result.model.graph.node] == operators
    expected = {"conv3x3/kernel": [512, 3, 3, 3]} | ({"conv1x1/kernel": pointwise} if pointwise else {})
    assert shapes(result.model) == expected
    assert result.keras_parameters == model.count_params()
    # Keras starts its biases at zero, and the converter drops those.
    assert result.onnx_parameters == sum(int(np.prod(shape)) for shape in expected.values())
    assert {row.reason for row in result.rows} == {"zero bias dropped"}


@pytest.mark.parametrize(("name", "layer", "feature_maps"), [("conv3x3", "conv3x3", 512), ("decrease", "conv1x1", 64)])
def test_the_tutorials_shipped_files_have_the_full_size(name: str, layer: str, feature_maps: int) -> None:
    graph = onnx.load(ROOT / "models" / f"{name}.onnx").graph
    assert declared(graph.input) == {"image": ["batch", 256, 256, 3]}
    assert declared(graph.output) == {layer: ["batch", 256, 256, feature_maps]}


def test_summary_of_the_tutorials_first() -> None:
    (row,) = export(conv3x3(size=16)).rows
    assert (row.layer, row.kernel, row.stride, row.output_shape) == ("conv3x3", (3, 3), (1, 1), (None, 16, 16, 512))
    assert (row.keras_parameters, row.onnx_parameters) == (14_336, 13_824)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_family_exports_at_another_width(name: str) -> None:
    model = MODELS[name](**SMALL[name])
    result = export(model)
    assert result.max_error < 1e-5
    assert result.batches == (1, 3)
    convolutions = [layer for layer in model.layers if type(layer).__name__ == "Conv2D"]
    exported = {node.name: shapes(result.model)[node.input[1]] for node in nodes(result.model, "Conv")}
    assert exported == {c.name: [c.kernel.shape[i] for i in (3, 2, 0, 1)] for c in convolutions}


def test_every_model_is_covered() -> None:
    assert set(MODELS) == {*SMALL, *(name for name in MODELS if name.endswith("_narrow")), "digit_classifier"}


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("_narrow")])
def test_narrow_models_are_cheap(name: str) -> None:
    assert MODELS[name]().count_params() < 140_000


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_what_the_definitions_give(name: str, tmp_path: Path) -> None:
    path = ROOT / "models" / f"{name}.onnx"
    assert path.stat().st_size < LARGEST
    shipped, built = onnx.load(path), onnx.load(writer.write(name, tmp_path))
    onnx.checker.check_model(shipped, full_check=True)
    assert list(shipped.graph.node) == list(built.graph.node)
    assert list(shipped.graph.input) == list(built.graph.input)
    for ours, theirs in zip(shipped.graph.initializer, built.graph.initializer, strict=True):
        assert ours.name == theirs.name
        np.testing.assert_allclose(onnx.numpy_helper.to_array(ours), onnx.numpy_helper.to_array(theirs), rtol=1e-6)


def test_writing_the_shipped_files_refuses_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert writer.main([str(tmp_path / "missing")]) == 2
    assert "does not exist" in capsys.readouterr().err
