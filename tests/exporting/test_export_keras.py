"""Export of Keras models: every kind of source, every workaround, every refusal."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from onnx_pointwise.cli.app import app as commands
from onnx_pointwise.errors import OnnxPointwiseError, OutputError
from onnx_pointwise.exporting import check, convert
from tests.keras_models import (
    IMAGE,
    Structured,
    Subclassed,
    declared,
    h5py,
    keras,
    layers,
    nodes,
    of_layers,
    randomize,
    shapes,
    small,
    tf,
)
from tools.export_keras import ExportError, ExportResult, VerificationError, app, export, parse_input_shape

exporting = importlib.import_module("onnx_pointwise.exporting.export")  # the wing hands out a function of that name

# TensorFlow and a software GPU driver bring an LLVM each, and crash one another in one process.
pytestmark = pytest.mark.keras

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh_layer_names() -> None:
    """Keras numbers unnamed layers through the whole process."""
    keras.backend.clear_session()


def agrees(model: Any, result: ExportResult, *inputs: np.ndarray) -> None:
    """Compare with Keras once more, independently of the exporter's own check."""
    session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
    expected = model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
    for wanted, found in zip(tf.nest.flatten(expected), session.run(None, feeds), strict=True):
        np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-4, atol=1e-5)


def images(batch: int = 2, shape: tuple[int, ...] = IMAGE) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((batch, *shape)).astype(np.float32)


# What the ONNX file looks like


def test_names_shapes_and_summary_of_a_classifier(tmp_path: Path) -> None:
    model = small()
    result = export(model, tmp_path / "small.onnx")
    assert result.path == tmp_path / "small.onnx"
    saved = onnx.load(result.path)
    assert saved == result.model
    agrees(model, result, images())
    assert declared(saved.graph.input) == {"image": ["batch", 12, 12, 4]}
    assert declared(saved.graph.output) == {"classes": ["batch", 3]}
    assert saved.graph.name == "model"
    assert saved.opset_import[0].version == 17
    convolutions = nodes(saved, "Conv")
    assert [node.name for node in convolutions] == ["conv1", "conv2"]
    assert [list(node.input)[1:] for node in convolutions] == [
        ["conv1/kernel", "conv1/bias"],
        ["conv2/kernel", "conv2/bias"],
    ]
    assert shapes(saved)["conv1/kernel"] == [6, 4, 3, 3]
    assert [node.name for node in nodes(saved, "Relu")] == ["relu1/Relu", "relu2/Relu"]
    names = [node.name for node in saved.graph.node]
    assert len(set(names)) == len(names)
    rows = {row.layer: row for row in result.rows}
    assert list(rows) == ["conv1", "norm1", "conv2", "norm2", "classes"]
    assert (rows["conv2"].kernel, rows["conv2"].stride, rows["conv2"].output_shape) == ((3, 3), (2, 2), (None, 5, 5, 5))
    assert [(row.keras_parameters, row.onnx_parameters) for row in result.rows] == [
        (216, 222),
        (24, 0),
        (275, 275),
        (20, 10),
        (18, 18),
    ]
    assert [row.reason for row in result.rows] == [
        "bias from norm1",
        "folded into conv1",
        "",
        "became Mul and Add",
        "",
    ]
    assert result.keras_parameters == model.count_params()
    stored = sum(int(np.prod(shape)) for name, shape in shapes(saved).items() if not name.endswith("axes"))
    assert result.onnx_parameters == stored
    assert "folded into the convolution before it: norm1." in result.notes[0]
    assert result.notes[1] == "BatchNormalization became Mul and Add: norm2."
    assert len(result.notes) == 2
    assert result.batches == (1, 3)
    assert 0 <= result.max_error < 1e-5


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for run in range(2):
        keras.backend.clear_session()
        export(small(), tmp_path / f"{run}.onnx")
        contents.append((tmp_path / f"{run}.onnx").read_bytes())
    assert contents[0] == contents[1]


def test_zero_biases_are_dropped_and_trained_ones_stay() -> None:
    model = of_layers(layers.Conv2D(5, 3, name="a"), layers.Conv2D(6, 3, name="b"))
    layer = model.get_layer("b")
    layer.bias.assign(np.zeros(6))
    result = export(model)
    assert [(row.onnx_parameters, row.reason) for row in result.rows] == [(185, ""), (270, "zero bias dropped")]
    assert set(shapes(result.model)) == {"a/kernel", "a/bias", "b/kernel"}
    assert result.notes == ("Biases that are all zeros were dropped: 6 parameters fewer than Keras counts.",)


@pytest.mark.parametrize(
    ("layer", "kernels"),
    [
        (lambda: layers.Conv2D(6, (3, 1), name="x"), {"x/kernel": [6, 4, 3, 1]}),
        (lambda: layers.Conv2D(6, 3, groups=2, padding="same", name="x"), {"x/kernel": [6, 2, 3, 3]}),
        (lambda: layers.Conv2D(6, 3, dilation_rate=2, padding="same", name="x"), {"x/kernel": [6, 4, 3, 3]}),
        (lambda: layers.Conv2D(6, 3, activation="gelu", name="x"), {"x/kernel": [6, 4, 3, 3]}),
        (lambda: layers.Conv2D(6, 3, activation="hard_silu", use_bias=False, name="x"), {"x/kernel": [6, 4, 3, 3]}),
        (lambda: layers.DepthwiseConv2D(3, name="x"), {"x/kernel": [4, 1, 3, 3]}),
        (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="x"), {"x/kernel": [8, 1, 3, 3]}),
        (
            lambda: layers.SeparableConv2D(6, 3, name="x"),
            {"x/depthwise_kernel": [4, 1, 3, 3], "x/pointwise_kernel": [6, 4, 1, 1]},
        ),
        (lambda: layers.Conv2DTranspose(6, 3, strides=2, name="x"), {"x/kernel": [4, 6, 3, 3]}),
    ],
)
def test_kinds_of_convolution(layer: Any, kernels: dict[str, list[int]]) -> None:
    model = of_layers(layer())
    result = export(model)
    agrees(model, result, images())
    found = {node.input[1]: shapes(result.model)[node.input[1]] for node in nodes(result.model, *check.CONVOLUTIONS)}
    assert found == kernels
    assert {node.name.split("/")[0] for node in nodes(result.model, *check.CONVOLUTIONS)} == {"x"}
    assert result.keras_parameters == result.onnx_parameters


def test_one_and_three_dimensions() -> None:
    one = of_layers(layers.Conv1D(5, 3, name="x"), shape=(20, 4))
    result = export(one)
    agrees(one, result, images(shape=(20, 4)))
    assert shapes(result.model)["x/kernel"] == [5, 4, 1, 3]
    assert [node.op_type for node in result.model.graph.node if "x" in node.name.split("/")[0]].count("Conv") == 1
    three = of_layers(layers.Conv3D(5, 3, name="x"), shape=(6, 7, 8, 2))
    result = export(three)
    agrees(three, result, images(shape=(6, 7, 8, 2)))
    assert shapes(result.model)["x/kernel"] == [5, 2, 3, 3, 3]


def test_gelu_becomes_erf() -> None:
    result = export(of_layers(layers.Conv2D(3, 1, name="x"), layers.Activation("gelu", name="act")))
    assert [node.op_type for node in nodes(result.model, "Erf", "Erfc")] == ["Erf"]


def test_hard_swish_keeps_transpositions_at_the_border() -> None:
    stack = [layers.Conv2D(6, 3, use_bias=False, name="x"), layers.Activation("hard_silu"), layers.Conv2D(5, 1)]
    result = export(of_layers(*stack))
    assert [result.model.graph.node[0].op_type, result.model.graph.node[-1].op_type] == ["Transpose", "Transpose"]
    assert len(nodes(result.model, "Transpose")) == 2


def test_augmentation_is_off() -> None:
    stack = [
        layers.RandomFlip(),
        layers.RandomRotation(0.2),
        layers.RandomZoom(0.2),
        layers.RandomContrast(0.2),
        layers.GaussianNoise(0.5),
        layers.Dropout(0.5),
        layers.Conv2D(3, 3, name="x"),
    ]
    model = of_layers(*stack, shape=(12, 12, 3))
    result = export(model)
    agrees(model, result, images(shape=(12, 12, 3)))
    assert [node.op_type for node in result.model.graph.node] == ["Transpose", "Conv", "Transpose"]


def test_preprocessing_inside_the_model_keeps_its_constants() -> None:
    stack = [layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0]), layers.Conv2D(3, 3, name="x")]
    model = of_layers(*stack, shape=(12, 12, 3))
    result = export(model)
    assert list(declared(result.model.graph.input)) == ["image"]
    agrees(model, result, images(shape=(12, 12, 3)))


# Structure of the model


def test_sequential_models() -> None:
    model = randomize(keras.Sequential([keras.Input(IMAGE, name="image"), layers.Conv2D(5, 3, name="only")]))
    result = export(model)
    agrees(model, result, images())
    assert [list(declared(values)) for values in (result.model.graph.input, result.model.graph.output)] == [
        ["image"],
        ["only"],
    ]


def test_a_sequential_model_without_input_shape() -> None:
    with pytest.raises(ExportError, match="declares no input shape; pass it with --input-shape"):
        export(keras.Sequential([layers.Conv2D(5, 3)]))
    result = export(keras.Sequential([layers.Conv2D(5, 3)]), input_shape=IMAGE)
    assert next(iter(declared(result.model.graph.input).values())) == ["batch", *IMAGE]


def test_layers_shared_and_nested() -> None:
    def branch(name: str) -> Any:
        return keras.Sequential([keras.Input(IMAGE), layers.Conv2D(4, 3, padding="same", name="conv")], name=name)

    image, shared, other = keras.Input(IMAGE, name="image"), branch("left"), branch("right")
    head = layers.Conv2D(2, 1, name="head")
    model = randomize(keras.Model(image, [head(shared(shared(image))), head(other(image))]))
    result = export(model)
    agrees(model, result, images())
    assert sorted(node.name for node in nodes(result.model, "Conv")) == [
        "head",
        "head/Conv",
        "left/conv",
        "left/conv/Conv",
        "right/conv",
    ]
    assert set(shapes(result.model)) == {
        f"{name}/{part}" for name in ("head", "left/conv", "right/conv") for part in ("kernel", "bias")
    }
    assert list(declared(result.model.graph.output)) == ["head", "head_2"]


def test_default_layer_names_are_not_confused() -> None:
    stack = [layers.Conv2D(filters, 3, padding="same") for filters in (4, 4, 4, 4)]
    model = of_layers(*stack)
    result = export(model)
    for layer in stack:
        stored = next(t for t in result.model.graph.initializer if t.name == f"{layer.name}/kernel")
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(stored), np.transpose(np.asarray(layer.kernel), (3, 2, 0, 1))
        )
    assert [layer.name for layer in stack] == ["conv2d", "conv2d_1", "conv2d_2", "conv2d_3"]


def test_several_inputs_and_named_outputs() -> None:
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((5,), name="b")
    outputs = {"seen": layers.Conv2D(4, 3, name="c")(a), "heard": layers.Dense(2, name="d")(b)}
    model = randomize(keras.Model({"b": b, "a": a}, outputs))
    result = export(model)
    assert declared(result.model.graph.input) == {"a": ["batch", 8, 8, 3], "b": ["batch", 5]}
    assert declared(result.model.graph.output) == {"heard": ["batch", 2], "seen": ["batch", 6, 6, 4]}
    with pytest.raises(ExportError, match=r"several inputs \(a, b\); say which"):
        export(model, input_shape=(8, 8, 3))
    assert export(model, input_shape={"a": (8, 8, 3)}).max_error < 1e-5


def test_a_fixed_batch_stays_fixed() -> None:
    image = keras.Input(batch_shape=(2, *IMAGE), name="image")
    result = export(randomize(keras.Model(image, layers.Conv2D(3, 3)(image))))
    assert declared(result.model.graph.input) == {"image": [2, *IMAGE]}
    assert result.batches == (2,)


def test_whole_number_inputs() -> None:
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 255)(image)
    model = randomize(keras.Model(image, layers.Conv2D(3, 3)(x)))
    result = export(model)
    assert result.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    agrees(model, result, np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))


def test_subclassed_models() -> None:
    with pytest.raises(ExportError, match="never called; pass it with --input-shape"):
        export(Subclassed())
    fresh = Subclassed()
    assert list(declared(export(fresh, input_shape=IMAGE).model.graph.input).values()) == [["batch", *IMAGE]]
    model = Subclassed()
    model(images())
    result = export(randomize(model))
    agrees(model, result, images())
    assert [node.name for node in nodes(result.model, "Conv")] == ["first", "second"]
    assert [row.output_shape for row in result.rows if row.kernel] == [(None, 12, 12, 4), (None, 10, 10, 2)]


def test_a_structure_of_inputs_goes_by_way_of_model_export() -> None:
    model = Structured()
    image, mask = images(), images(shape=(9, 9, 1))
    model({"image": image, "mask": mask})
    result = export(randomize(model))
    assert list(declared(result.model.graph.input)) == ["image", "mask"]
    assert list(declared(result.model.graph.output)) == ["narrow", "wide"]
    assert sorted(node.name for node in nodes(result.model, "Conv")) == ["left", "right"]
    assert "by way of model.export" in result.notes[0]
    session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = model({"image": image, "mask": mask})
    for name, found in zip(("narrow", "wide"), session.run(None, {"image": image, "mask": mask}), strict=True):
        np.testing.assert_allclose(found, np.asarray(expected[name]), atol=1e-5)


def test_an_untrained_network_whose_outputs_are_constant_is_pointed_out() -> None:
    model = of_layers(layers.GlobalAveragePooling2D(), layers.Dense(3))
    model.set_weights([np.zeros_like(w) for w in model.get_weights()[:1]] + model.get_weights()[1:])
    assert "agreement says little" in export(model).notes[-1]


# Options


def test_static_sizes_for_dilated_convolutions() -> None:
    model = of_layers(layers.Conv2D(3, 3, dilation_rate=2, padding="same", name="x"), shape=(None, None, 4))
    open_sizes = export(model)
    assert declared(open_sizes.model.graph.input) == {"image": ["batch", "height", "width", 4]}
    assert "fix them with --input-shape" in open_sizes.notes[0]
    assert nodes(open_sizes.model, "SpaceToDepth")
    fixed = export(model, input_shape=(11, 10, 4))
    assert declared(fixed.model.graph.input) == {"image": ["batch", 11, 10, 4]}
    assert [node.op_type for node in fixed.model.graph.node] == ["Transpose", "Conv", "Transpose"]
    assert fixed.notes == ()
    agrees(model, fixed, images(shape=(11, 10, 4)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((11, 10), "does not fit"), ((11, 10, 3), "does not fit"), ({"picture": (11, 10, 4)}, "has no input 'picture'")],
)
def test_input_shapes_that_do_not_fit(shape: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(of_layers(layers.Conv2D(3, 3), shape=(None, None, 4)), input_shape=shape)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], None),
        (["224,224,3"], (224, 224, 3)),
        (["a=8,8,3"], {"a": (8, 8, 3)}),
        (["a=8,8,3", "b=5"], {"a": (8, 8, 3), "b": (5,)}),
    ],
)
def test_reading_input_shapes(texts: list[str], expected: Any) -> None:
    assert parse_input_shape(texts) == expected


@pytest.mark.parametrize("texts", [["224x224x3"], ["0,4,4"], ["-1,4,4"], [""], ["a="], ["1,2,3", "a=4"]])
def test_input_shapes_that_cannot_be_read(texts: list[str]) -> None:
    with pytest.raises(ExportError, match="--input-shape"):
        parse_input_shape(texts)


def test_channels_first_on_request() -> None:
    model = of_layers(layers.Conv2D(5, 3, name="x"), layers.ReLU(name="r"))
    result = export(model, nchw=True)
    assert declared(result.model.graph.input) == {"image": ["batch", 4, 12, 12]}
    assert declared(result.model.graph.output) == {"r": ["batch", 5, 10, 10]}
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu"]
    session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": np.moveaxis(images(), -1, 1)})
    np.testing.assert_allclose(np.moveaxis(found, 1, -1), np.asarray(model(images())), atol=1e-5)


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_opsets_that_can_be_written(opset: int) -> None:
    result = export(of_layers(layers.Conv2D(3, 3, activation="gelu"), layers.GlobalAveragePooling2D()), opset=opset)
    assert result.model.opset_import[0].version == opset


@pytest.mark.parametrize("opset", [8, 19, 20])
def test_opsets_that_cannot(opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset {opset} is not supported: the Keras converter writes opsets 9 to 18"):
        export(small(), opset=opset)


def test_too_little_memory_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"553 MB of weights takes about 13\.\d GiB of memory, but 8\.0 GiB"):
        convert.check_memory(553_000_000, "vgg16", available=8 * 2**30)
    convert.check_memory(102_000_000, "resnet50", available=6 * 2**30)
    monkeypatch.setattr(convert, "available_bytes", lambda: 2**20)
    with pytest.raises(ExportError, match=r"model: converting .*include_top=False.*--ignore-memory"):
        export(small())
    assert export(small(), ignore_memory=True).max_error < 1e-5


def test_more_than_a_file_can_hold_is_refused() -> None:
    convert.check_size(2_000_000_000, "large")
    with pytest.raises(ExportError, match=r"large: its 2\.2 GB of weights exceed the 2 GiB"):
        convert.check_size(2_200_000_000, "large")


def test_inputs_that_cannot_be_drawn_are_refused() -> None:
    text = keras.Input((1,), dtype="string", name="words")
    model = keras.Model(text, layers.Dense(2)(layers.Hashing(5, output_mode="one_hot")(text)))
    with pytest.raises(ExportError, match="input 'words' holds strings; export the part behind it"):
        export(model)
    with pytest.raises(ExportError, match="input 'any' declares no shape"):
        check.check_inputs([tf.TensorSpec(None, tf.float32, name="any")], "model")


def test_available_memory_is_known_here() -> None:
    assert 2**20 < (convert.available_bytes() or 2**30) < 2**50


# Files


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_files_of_keras_3(name: str, tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / name)
    result = export(tmp_path / name, tmp_path / "out.onnx")
    agrees(model, result, images())
    assert [node.name for node in nodes(result.model, "Conv")] == ["conv1", "conv2"]


def test_a_compiled_model_saved_with_its_training_state(tmp_path: Path) -> None:
    model = small()
    model.compile("adam", "mse")
    model.fit(images(), np.zeros((2, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    agrees(model, export(tmp_path / "model.keras"), images())


def keras_2_file(path: Path, model: Any) -> None:
    """Write a convolution and a normalization the way Keras 2.0 did, training state and all."""

    def layer(class_name: str, name: str, source: str | None, **config: Any) -> dict[str, Any]:
        inbound = [] if source is None else [[[source, 0, 0, {}]]]
        return {
            "class_name": class_name,
            "config": {"name": name, **config},
            "name": name,
            "inbound_nodes": inbound,
        }

    initializer = {
        "class_name": "VarianceScaling",
        "config": {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": None},
    }
    stack = [
        layer("InputLayer", "image", None, batch_input_shape=[None, *IMAGE], dtype="float32", sparse=False),
        layer(
            "Conv2D",
            "conv",
            "image",
            trainable=True,
            filters=5,
            kernel_size=[3, 3],
            strides=[1, 1],
            padding="same",
            data_format="channels_last",
            dilation_rate=[1, 1],
            activation="linear",
            use_bias=True,
            kernel_initializer=initializer,
            bias_initializer={"class_name": "Zeros", "config": {}},
            kernel_regularizer=None,
            bias_regularizer=None,
            activity_regularizer=None,
            kernel_constraint=None,
            bias_constraint=None,
        ),
        layer("BatchNormalization", "norm", "conv", trainable=True, axis=-1, momentum=0.99, epsilon=1e-3),
        layer("Activation", "relu", "norm", trainable=True, activation="relu"),
    ]
    config = {
        "class_name": "Model",
        "config": {
            "name": "old",
            "layers": stack,
            "input_layers": [["image", 0, 0]],
            "output_layers": [["relu", 0, 0]],
        },
    }
    training = {
        "optimizer_config": {"class_name": "Adam", "config": {"lr": 0.001, "decay": 0.1, "beta_1": 0.9}},
        "loss": "a_loss_that_no_longer_exists",
        "metrics": ["acc"],
        "sample_weight_mode": None,
    }
    weights = {
        "conv": [("kernel:0", model.get_layer("conv").kernel), ("bias:0", model.get_layer("conv").bias)],
        "norm": [
            (f"{name}:0", getattr(model.get_layer("norm"), name))
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        ],
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.0.6"
        file.attrs["backend"] = b"tensorflow"
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["training_config"] = json.dumps(training).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [entry["name"].encode() for entry in stack]
        for entry in stack:
            held = group.create_group(entry["name"])
            named = weights.get(entry["name"], [])
            held.attrs["weight_names"] = [f"{entry['name']}/{name}".encode() for name, _ in named]
            for name, value in named:
                held.create_dataset(f"{entry['name']}/{name}", data=np.asarray(value))


@pytest.mark.parametrize("name", ["old.h5", "old.hdf5"])
def test_files_of_keras_2(name: str, tmp_path: Path) -> None:
    model = of_layers(
        layers.Conv2D(5, 3, padding="same", name="conv"), layers.BatchNormalization(name="norm"), layers.ReLU()
    )
    keras_2_file(tmp_path / name, model)
    with pytest.raises(Exception, match=r"lr|Adam|loss|optimizer|decay"):  # Keras itself needs compile=False for it
        keras.models.load_model(tmp_path / name)
    result = export(tmp_path / name)
    agrees(model, result, images())
    assert result.model.graph.name == "old"


def test_saved_model_folders(tmp_path: Path) -> None:
    model = of_layers(
        layers.Conv2D(6, 3, padding="same", name="conv1"),
        layers.BatchNormalization(name="norm1"),
        layers.ReLU(name="relu1"),
        layers.Conv2D(6, 3, groups=2, name="grouped"),
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.Conv2D(6, 3),
        layers.Conv2D(6, 3),
    )
    model.export(tmp_path / "saved", verbose=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "saved").rglob("*")}
    result = export(tmp_path / "saved", tmp_path / "out.onnx")
    agrees(model, result, images())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "saved").rglob("*")} == before
    assert [node.name for node in nodes(result.model, "Conv")] == [
        "conv1",
        "grouped",
        "depthwise",
        "conv2d",
        "conv2d_1",
    ]
    assert declared(result.model.graph.input) == {"image": ["batch", 12, 12, 4]}
    assert result.keras_parameters is None
    rows = {row.layer: row for row in result.rows}
    assert (rows["conv1"].kernel, rows["conv1"].output_shape) == ((3, 3), (None, 12, 12, 6))
    assert sum(row.onnx_parameters for row in result.rows) == model.count_params() - 12  # scale and offset of four


def test_saved_model_of_a_subclass_with_open_sizes(tmp_path: Path) -> None:
    image = keras.Input((None, None, 4), name="image")
    model = randomize(keras.Model(image, layers.Conv2D(3, 3, dilation_rate=2, padding="same", name="x")(image)))
    model.export(tmp_path / "open", verbose=False)
    result = export(tmp_path / "open", input_shape=(10, 9, 4))
    assert [node.op_type for node in result.model.graph.node] == ["Transpose", "Conv", "Transpose"]
    agrees(model, result, images(shape=(10, 9, 4)))
    subclassed = Subclassed()
    subclassed(images())
    randomize(subclassed).export(tmp_path / "subclassed", verbose=False)
    result = export(tmp_path / "subclassed")
    agrees(subclassed, result, images())
    assert [node.name for node in nodes(result.model, "Conv")] == ["first", "second"]


class Signatures(tf.Module):
    """A SavedModel that Keras had no part in."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32), name="kernel")

    @tf.function(input_signature=[tf.TensorSpec((None, *IMAGE), tf.float32, name="picture")])
    def once(self, picture: Any) -> dict[str, Any]:
        return {"map": tf.nn.conv2d(picture, self.kernel, 1, "SAME")}

    @tf.function(input_signature=[tf.TensorSpec((None, *IMAGE), tf.float32, name="picture")])
    def twice(self, picture: Any) -> dict[str, Any]:
        return {"map": 2 * tf.nn.conv2d(picture, self.kernel, 1, "SAME")}


def test_signatures_of_a_saved_model(tmp_path: Path) -> None:
    module = Signatures()
    tf.saved_model.save(module, str(tmp_path / "one"), signatures={"once": module.once})
    assert list(declared(export(tmp_path / "one").model.graph.input)) == ["picture"]
    signatures = {"once": module.once, "twice": module.twice}
    tf.saved_model.save(module, str(tmp_path / "two"), signatures=signatures)
    with pytest.raises(ExportError, match="choose one with --signature: once, twice"):
        export(tmp_path / "two")
    factors = {}
    for name in signatures:
        session = onnxruntime.InferenceSession(
            export(tmp_path / "two", signature=name).model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        factors[name] = session.run(["map"], {"picture": images()})[0]
    np.testing.assert_allclose(factors["twice"], 2 * factors["once"], rtol=1e-5, atol=1e-5)
    tf.saved_model.save(module, str(tmp_path / "none"), signatures={})
    with pytest.raises(ExportError, match="has no signature to export"):
        export(tmp_path / "none")


# Functions


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "users_models.py").write_text(
        "import keras\n"
        "def build():\n"
        "    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, name='mine')])\n"
        "ready = build()\n"
        "class Zoo:\n"
        "    build = staticmethod(build)\n"
        "def number():\n"
        "    return 3\n"
        "def wide(width):\n"
        "    return build()\n"
        "def fails():\n"
        "    raise RuntimeError('no weights today')\n"
        "constant = 3\n"
    )
    (folder / "users_broken.py").write_text("import a_package_that_does_not_exist\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "users_models", raising=False)
    return "users_models"


@pytest.mark.parametrize("function", ["build", "ready", "Zoo.build"])
def test_functions_that_return_a_model(function: str, module: str) -> None:
    result = export(f"{module}:{function}")
    assert [node.name for node in nodes(result.model, "Conv")] == ["mine"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("users_models:nothing", "the module users_models has no function 'nothing'"),
        ("users_models:", "name both the module and the function"),
        (":build", "name both the module and the function"),
        ("users_models", "is a module; name the function in it"),
        ("users_models:number", "returned a int, not a keras.Model"),
        ("users_models:constant", "is a int, not a function that returns a keras.Model"),
        ("users_models:wide", "must be callable without arguments, but needs width"),
        ("users_models:fails", "calling it failed with RuntimeError: no weights today"),
        ("users_broken:build", "importing users_broken failed with ModuleNotFoundError"),
        ("no_such_module:build", "there is no module 'no_such_module'"),
    ],
)
def test_functions_that_do_not(source: str, message: str, module: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(source)


# Bad files: a sentence, exit code 2, nothing written


def lambda_model() -> Any:
    return of_layers(layers.Conv2D(3, 3), layers.Lambda(lambda x: x * 2, name="twice"))


def make(kind: str, folder: Path) -> str:
    """Create a bad source of one kind and return how it is called on the command line."""
    path = folder / "model.keras"
    if kind == "missing":
        return str(path)
    if kind == "missing folder":
        return str(folder / "nowhere" / "model")
    if kind == "corrupt":
        path.write_bytes(b"this is not a zip archive" * 40)
    elif kind == "truncated":
        small().save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "flipped":
        small().save(path)
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("model.weights.h5")
        content = bytearray(path.read_bytes())
        content[info.header_offset + 2000] ^= 255
        path.write_bytes(bytes(content))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind in ("lambda", "lambda.h5"):
        path = path.with_suffix(".h5") if kind.endswith("h5") else path
        lambda_model().save(path)
    elif kind == "weights":
        path = folder / "model.weights.h5"
        small().save_weights(path)
    elif kind == "truncated.h5":
        path = folder / "model.h5"
        small().save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text.h5":
        path = folder / "model.h5"
        path.write_text("not HDF5")
    elif kind == "unknown":
        path = folder / "model.pt"
        path.write_bytes(b"?")
    elif kind == "onnx":
        path = folder / "model.onnx"
        path.write_bytes(b"?")
    elif kind == "folder":
        path = folder / "folder"
        path.mkdir()
    elif kind == "damaged saved model":
        path = folder / "saved"
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"\xff" * 100)
    elif kind == "incomplete saved model":
        path = folder / "saved"
        small().export(path, verbose=False)
        shutil.rmtree(path / "variables")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file or folder; the exporter takes .keras, .h5, .hdf5, a SavedModel folder"),
        ("missing folder", "no such file or folder"),
        ("corrupt", "is damaged or truncated, no whole .keras archive"),
        ("truncated", "is damaged or truncated, no whole .keras archive"),
        ("flipped", "model.weights.h5 fails its checksum"),
        ("zip", "is a zip archive but no Keras model, it lacks config.json, metadata.json, model.weights.h5"),
        ("lambda", "layer 'twice' is a Lambda, whose code lies in the file"),
        ("lambda.h5", "layer 'twice' is a Lambda, whose code lies in the file"),
        ("weights", "holds weights only, no model"),
        ("truncated.h5", "is damaged or truncated; copy or save it again"),
        ("text.h5", "is damaged or no HDF5 file at all"),
        ("unknown", "unknown kind of file '.pt'"),
        ("onnx", "is an ONNX file already"),
        ("folder", "is a folder but no SavedModel"),
        ("damaged saved model", "TensorFlow cannot load this SavedModel"),
        ("incomplete saved model", "TensorFlow cannot load this SavedModel"),
    ],
)
def test_bad_sources(kind: str, message: str, tmp_path: Path) -> None:
    source = make(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, [source, str(tmp_path / "out.onnx")])
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert done.output.count("\n") == 1  # one sentence
    assert source in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_lambda_layers_on_request(tmp_path: Path) -> None:
    for name in ("lambda", "lambda.h5"):
        result = export(make(name, tmp_path), unsafe=True)
        assert nodes(result.model, "Mul")


def test_a_class_that_keras_does_not_know(tmp_path: Path) -> None:
    class Unknown(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 2

    of_layers(Unknown()).save(tmp_path / "model.keras")
    with pytest.raises(ExportError, match="uses the class Unknown, which Keras does not know; write a function"):
        export(tmp_path / "model.keras")


@pytest.mark.parametrize("kind", ["itself", "missing folder", "file as folder", "folder"])
def test_bad_targets(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "model.keras"
    small().save(source)
    target = {
        "itself": source,
        "missing folder": tmp_path / "missing" / "out.onnx",
        "file as folder": source / "out.onnx",
        "folder": tmp_path,
    }[kind]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = CliRunner().invoke(app, [str(source), str(target)])
    assert done.exit_code == 2
    assert str(target) in done.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_source_is_recognised_through_a_link(tmp_path: Path) -> None:
    small().save(tmp_path / "model.keras")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "model.keras")
    with pytest.raises(OutputError, match="is the source itself"):
        export(tmp_path / "model.keras", tmp_path / "link.onnx")


def test_what_is_neither_a_path_nor_a_model() -> None:
    with pytest.raises(ExportError, match="a int cannot be exported"):
        export(3)
    with pytest.raises(ExportError, match="only SavedModel folders have signatures"):
        export(ROOT / "models" / "digits.keras", signature="serving_default")


def test_a_missing_converter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ExportError, match=r"pip install 'onnx-pointwise\[keras\]'"):
        export("model.keras")


def test_another_keras_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ExportError, match=r"Keras runs on jax.*set KERAS_BACKEND=tensorflow"):
        export("model.keras")


def test_errors_belong_to_the_packages_tree() -> None:
    assert issubclass(VerificationError, ExportError)
    assert issubclass(ExportError, OnnxPointwiseError)
    assert ExportError is exporting.ExportError


# The converter is not trusted


def spoil_weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.ndim == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(value * np.float32(1.01), tensor.name))


def spoil_operator(model: onnx.ModelProto) -> None:
    nodes(model, "Relu")[0].op_type = "StatefulPartitionedCall"


def spoil_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("learning_phase", onnx.TensorProto.BOOL, []))


def spoil_constant(model: onnx.ModelProto) -> None:
    convolution = nodes(model, "Conv")[0]
    model.graph.node.append(onnx.helper.make_node("Identity", [convolution.input[1]], ["computed"], "identity"))
    convolution.input[1] = "computed"


def spoil_types(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64


def spoil_shape(model: onnx.ModelProto) -> None:
    classes = model.graph.output[0]
    model.graph.node.append(onnx.helper.make_node("Transpose", [classes.name], ["turned"], "turn"))
    classes.name = "turned"
    classes.type.tensor_type.shape.ClearField("dim")
    for name in ("columns", "rows"):
        classes.type.tensor_type.shape.dim.add().dim_param = name


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, r"differs from the original by .* relative, more than 1e-04"),
        (spoil_operator, "has the operator 'StatefulPartitionedCall', which ONNX does not have"),
        (spoil_inputs, "the inputs image, learning_phase where the model has image"),
        (spoil_constant, "is computed in the graph instead of stored"),
        (spoil_types, "the ONNX checker refuses the export"),
        (spoil_shape, r"has the shape \(3, 1\) in ONNX Runtime, \(1, 3\) in the original"),
    ],
)
def test_a_spoilt_conversion_fails_loudly(
    spoil: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = exporting.to_onnx

    def spoilt(*args: Any, **options: Any) -> onnx.ModelProto:
        model = converted(*args, **options)
        spoil(model)
        return model

    monkeypatch.setattr(exporting, "to_onnx", spoilt)
    with pytest.raises(VerificationError, match=message):
        export(small(), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_exit_code_of_a_failed_verification(tmp_path: Path) -> None:
    small().save(tmp_path / "model.keras")
    command = [str(tmp_path / "model.keras"), str(tmp_path / "out.onnx"), "--tolerance", "1e-12"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "nothing was written" in done.output
    assert not (tmp_path / "out.onnx").exists()


def test_an_old_file_stays_when_the_export_fails(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    with pytest.raises(VerificationError):
        export(small(), tmp_path / "out.onnx", tolerance=1e-12)
    assert (tmp_path / "out.onnx").read_bytes() == b"old"
    export(small(), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").graph.name == "model"
    assert list(tmp_path.iterdir()) == [tmp_path / "out.onnx"]


def test_values_that_are_not_finite_cannot_be_verified() -> None:
    model = of_layers(layers.Conv2D(3, 3), layers.Lambda(lambda x: x / 0.0, output_shape=(10, 10, 3)))
    with pytest.raises(VerificationError, match="is not finite in the original on random inputs"):
        export(model)


def test_what_onnx_lacks_is_named() -> None:
    model = of_layers(layers.Conv2D(3, 3, name="x"), layers.Lambda(lambda x: tf.math.lgamma(x), name="gamma"))
    with pytest.raises(VerificationError, match="'Lgamma', which ONNX does not have"):
        export(model)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_switched(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF2ONNX_CATCH_ERRORS", raising=False)
    model = small()
    names = [layer.name for layer in model.layers]
    if fails:

        def broken(*args: Any, **options: Any) -> Any:
            assert tf.config.functions_run_eagerly()
            assert "TF2ONNX_CATCH_ERRORS" in os.environ
            raise RuntimeError("out of luck")

        monkeypatch.setattr("tf2onnx.convert.from_keras", broken)
        with pytest.raises(ExportError, match="model: the converter gave up: out of luck"):
            export(model)
    else:
        export(model)
    assert not tf.config.functions_run_eagerly()
    assert "TF2ONNX_CATCH_ERRORS" not in os.environ
    assert gc.get_freeze_count() == 0
    assert [layer.name for layer in model.layers] == names
    monkeypatch.setenv("TF2ONNX_CATCH_ERRORS", "mine")
    if not fails:
        export(model)
    assert os.environ["TF2ONNX_CATCH_ERRORS"] == "mine"


# The command line


def test_the_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.export_keras", "models:fire_narrow", str(tmp_path / "fire.onnx")]
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no chatter from TensorFlow
    lines = [line.strip() for line in done.stdout.splitlines()]
    (row,) = [line for line in lines if line.startswith("expand3x3")]
    assert row.split() == ["expand3x3", "3x3", "1x1", "14x14x32", "2,336", "2,304", "zero", "bias", "dropped"]
    (total,) = [line for line in lines if line.startswith("total")]
    assert total.split() == ["total", "3,016", "2,944"]
    assert any("Biases that are all zeros were dropped: 72 parameters" in line for line in lines)
    assert any("ONNX Runtime agrees with the original to" in line and "batches of 1 and 3" in line for line in lines)
    assert onnx.load(tmp_path / "fire.onnx").graph.name == "fire"


def test_a_keras_file_is_rewritten_in_one_go(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "model.keras")
    arguments = ["rewrite", str(tmp_path / "model.keras"), str(tmp_path / "out.onnx"), "--ratio", "0.8", "--force"]
    more = ["--calibration", "none", "--provider", "none", "--no-latency", "--min-channels", "2"]
    result = CliRunner().invoke(commands, [*arguments, *more, "--json", str(tmp_path / "out.json")])
    assert result.exit_code in (0, 1), result.output
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["check"]["shapes_equal"] and str(tmp_path / "model.keras") in document["origin"]["models"]
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    (tmp_path / "broken.keras").write_text("nothing")
    result = CliRunner().invoke(commands, ["inspect", str(tmp_path / "broken.keras")])
    assert result.exit_code == 2 and "broken.keras" in result.output


# --- kinds of models that once failed, or were refused without a way out ----------------------------------------------


def test_channels_first() -> None:
    """TensorFlow computes channels last alone on a processor; the layers transpose, and what cancels is gone."""
    inputs = keras.Input((8, 12, 12), name="image")
    x = layers.Conv2D(12, 3, padding="same", data_format="channels_first", name="c1")(inputs)
    x = layers.MaxPooling2D(2, data_format="channels_first")(layers.ReLU()(layers.BatchNormalization(axis=1)(x)))
    result = export(keras.Model(inputs, layers.Conv2D(4, 3, data_format="channels_first", name="c2")(x)))
    assert result.max_error < 1e-5
    assert [list(node.input)[1] for node in nodes(result.model, "Conv")]


def test_recurrent_convolutions() -> None:
    inputs = keras.Input((3, 10, 10, 4), name="frames")
    result = export(keras.Model(inputs, layers.ConvLSTM2D(6, 3, padding="same", name="lstm")(inputs)))
    assert result.max_error < 1e-5


def test_half_precision_is_held_against_its_own_rounding() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        inputs = keras.Input((10, 10, 8), name="image")
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 3, padding="same", name="c1")(inputs))
        model = keras.Model(inputs, layers.Activation("softmax", dtype="float32")(layers.Dense(5, name="fc")(x)))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    result = export(model)
    assert result.max_error < 8 * 2**-10
    assert any("compute in float16, so agreement was asked for to 7.8e-03 only" in note for note in result.notes)
    with pytest.raises(VerificationError, match="differs from the original"):
        export(model, tolerance=1e-9)


def test_sizes_that_are_open_are_named_as_the_way_out() -> None:
    inputs = keras.Input((None, None, 4), name="image")
    x = layers.UpSampling2D(2, interpolation="bilinear", name="up")(layers.Conv2D(6, 3, name="c1")(inputs))
    model = keras.Model(inputs, x)
    with pytest.raises(
        ExportError,
        match=r"the converter gave up: .{20,150}; some layers need sizes .*, as in --input-shape 64,64,4",
    ):
        export(model)
    assert export(model, input_shape=(12, 12, 4)).max_error < 1e-5


def test_a_layer_that_is_a_saved_model(tmp_path: Path) -> None:
    inputs = keras.Input((10, 10, 4), name="image")
    keras.Model(inputs, layers.Conv2D(6, 3, name="c1")(inputs)).export(tmp_path / "saved", verbose=False)
    wrapped = layers.TFSMLayer(str(tmp_path / "saved"), call_endpoint="serve", name="wrapped")(inputs)
    path = tmp_path / "model.keras"
    keras.Model(inputs, layers.Conv2D(3, 3, name="after")(wrapped)).save(path)
    with pytest.raises(ExportError, match=r"layer 'wrapped' is a SavedModel .*pass --unsafe if you trust"):
        export(path)
    assert export(path, unsafe=True).max_error < 1e-5
    (tmp_path / "saved").rename(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match=r"layer 'wrapped' is the SavedModel in the folder .*, which is not there"):
        export(path, unsafe=True)
