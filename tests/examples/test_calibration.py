"""Example inputs: every source gives the same arrays, and what does not fit is refused with what was expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnx_pointwise.errors import InputError
from onnx_pointwise.examples.calibration import Calibration, calibrate, read_npz
from onnx_pointwise.examples.preprocessing import PRESETS, Preprocessing, preprocessing_of
from onnx_pointwise.examples.synthetic import dead_leaves
from onnx_pointwise.runtime.shape_inference import resolve


def network(
    inputs: Mapping[str, list[Any]], *, normalise: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> ir.Model:
    """One convolution on the first input, with BatchNormalization behind it where statistics are given."""
    declared = [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()]
    name, shape = next(iter(inputs.items()))
    weight = np.random.default_rng(seed).standard_normal((8, int(shape[1]), 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", [name, "w"], ["z"], name="conv")]
    weights = [numpy_helper.from_array(weight, "w")]
    if normalise is not None:
        ones = np.ones(8, np.float32)
        stored = {"scale": ones, "shift": 0 * ones, "mean": normalise[0], "var": normalise[1]}
        weights += [numpy_helper.from_array(value.astype(np.float32), key) for key, value in stored.items()]
        nodes.append(helper.make_node("BatchNormalization", ["z", "scale", "shift", "mean", "var"], ["y"], name="bn"))
    else:
        nodes.append(helper.make_node("Relu", ["z"], ["y"], name="relu"))
    output = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(nodes, "g", declared, [output], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


IMAGES = {"x": ["N", 3, 12, 10]}


def take(source: Any, inputs: Mapping[str, list[Any]] = IMAGES, **options: Any) -> Calibration:
    model = network(inputs)
    return calibrate(model, source, resolve(model), **options)


@pytest.fixture
def examples() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((7, 3, 12, 10)).astype(np.float32)


class Reader:
    """ONNX Runtime's protocol."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def test_every_source_gives_the_same_examples(examples: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", examples)
    np.savez(tmp_path / "named.npz", x=examples, other=examples[:2])
    folder = tmp_path / "folder"
    folder.mkdir()
    for index, example in enumerate(examples):
        np.save(folder / f"{index}.npy", example if index % 2 else example[None])
    batches = [examples[:3], examples[3:]]
    sources: list[Any] = [
        examples,
        {"x": examples},
        batches,
        iter(batches),
        [{"x": batch} for batch in batches],
        Reader([{"x": batch} for batch in batches]),
        tmp_path / "x.npy",
        str(tmp_path / "named.npz"),
        f"{tmp_path / 'named.npz'}:x",
        folder,
    ]
    for source in sources:
        np.testing.assert_array_equal(take(source).inputs["x"], examples)


def test_a_limit_stops_reading(examples: np.ndarray) -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield examples

    assert len(take(endless(), limit=10).inputs["x"]) == 10
    assert len(take(endless()).inputs["x"]) == 1024


def test_several_inputs_go_by_name() -> None:
    inputs = {"x": ["N", 3, 12, 10], "extra": ["N", 2]}
    given = {"x": np.zeros((4, 3, 12, 10), np.float32), "extra": np.ones((4, 2), np.float32)}
    assert set(take(given, inputs).inputs) == {"x", "extra"}
    with pytest.raises(InputError, match=r"2 inputs.*by name"):
        take(given["x"], inputs)
    with pytest.raises(InputError, match=r"Input 'extra' is missing"):
        take({"x": given["x"]}, inputs)
    with pytest.raises(InputError, match="different numbers"):
        take({"x": given["x"], "extra": np.ones((3, 2), np.float32)}, {"x": [1, 3, 12, 10], "extra": [1, 2]})


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 3, 12), np.float32), "4 dimensions, not 3"),
        (np.zeros((4, 1, 12, 10), np.float32), "dimension 1 must be 3, not 1"),
        (np.zeros((4, 3, 12, 10), np.float64), "float64"),
        (np.zeros((4, 3, 12, 10), np.int8), "int8"),
        (np.zeros((4, 5, 12, 10), np.uint8), "uint8"),
        (np.zeros((0, 3, 12, 10), np.float32), "no calibration inputs"),
        (np.full((4, 3, 12, 10), np.nan, np.float32), "NaN"),
        (np.full((4, 3, 12, 10), np.inf, np.float32), "infinity"),
    ],
)
def test_what_does_not_fit_is_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        take({"x": array})


def test_the_example_that_holds_nan_is_named(examples: np.ndarray) -> None:
    examples[5, 1, 2, 3] = np.nan
    with pytest.raises(InputError, match="first in example 5"):
        take(examples)


def test_wrong_names_say_what_was_expected(examples: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no input 'z'.*x: float32\[N, 3, 12, 10\]"):
        take({"z": examples})
    np.savez(tmp_path / "a.npz", first=examples, second=examples)
    with pytest.raises(InputError, match=r"holds first, second.*a\.npz:first"):
        take(tmp_path / "a.npz")
    with pytest.raises(InputError, match="no array 'third'"):
        take(f"{tmp_path / 'a.npz'}:third")


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("missing.npz", "no such file"),
        ("bad.npz", "cannot be read"),
        ("bad.npy", "cannot be read"),
        ("notes.txt", ".npz, .npy or a folder"),
        ("empty", "neither images"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            take(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(InputError, match="no calibration inputs"):
        take([])


def test_synthetic_images_fit_the_network() -> None:
    found = take("auto", macs=10**10)  # so many that few images are drawn
    images = found.inputs["x"]
    assert images.shape == (64, 3, 12, 10)
    assert images.dtype == np.float32
    assert found.description["source"] == "synthetic"
    assert "assumed" in found.description["sentence"]
    np.testing.assert_array_equal(take("synthetic", limit=64).inputs["x"], images)
    assert not np.array_equal(take("synthetic", limit=64, seed=1).inputs["x"], images)


def test_networks_without_images_are_told_so() -> None:
    flat = {"x": ["N", 5, 20, 20]}
    found = take("auto", flat)
    assert not found.inputs
    assert "does not take images" in found.description["sentence"]
    with pytest.raises(InputError, match=r"x: float32\[N, 5, 20, 20\]"):
        take("synthetic", flat)
    assert not take(None).inputs
    assert not take("none").inputs


@pytest.mark.parametrize("preset", ["unit", "imagenet", "signed", "raw", "caffe"])
def test_the_value_range_is_read_off_a_batch_normalization(preset: str) -> None:
    plain = network(IMAGES, seed=3)
    pixels = dead_leaves(64, 12, 10, channels=3, seed=11)
    images = PRESETS[preset].apply(pixels).transpose(0, 3, 1, 2)
    kernel = np.asarray(plain.graph.initializers["w"].const_value.numpy(), np.float64)  # type: ignore[union-attr]
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (3, 3), axis=(2, 3))
    seen = np.einsum("nchwij,ocij->nohw", windows, kernel)
    model = network(IMAGES, normalise=(seen.mean((0, 2, 3)), seen.var((0, 2, 3))), seed=3)
    found = calibrate(model, "auto", resolve(model), limit=8)
    assert found.description["preset"] == preset
    assert found.description["preset_origin"] == "inferred"


def test_metadata_state_the_value_range() -> None:
    model = network(IMAGES)
    model.metadata_props["Image.NominalPixelRange"] = "NominalRange_0_255"
    model.metadata_props["Image.BitmapPixelFormat"] = "Bgr8"
    found = calibrate(model, "auto", resolve(model), limit=8)
    assert found.description["preset_origin"] == "metadata"
    assert found.description["preprocessing"]["channel_order"] == "bgr"
    assert found.inputs["x"].max() > 100


def test_folders_of_images_are_fitted_and_mapped(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[..., 0] = 255
    image_module.fromarray(pixels).save(tmp_path / "red.png")
    rgb = take(tmp_path, preprocessing="raw").inputs["x"]
    assert rgb.shape == (1, 3, 12, 10)
    np.testing.assert_array_equal(rgb[0, :, 0, 0], [255, 0, 0])
    bgr = take(tmp_path, preprocessing=Preprocessing(1 / 255, channel_order="bgr")).inputs["x"]
    np.testing.assert_array_equal(bgr[0, :, 0, 0], [0, 0, 1])
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.png: cannot be read as an image"):
        take(tmp_path)


def test_given_images_are_brought_into_layout_and_range() -> None:
    pixels = dead_leaves(3, 12, 10, channels=3)
    found = take(pixels, preprocessing="imagenet", layout="nhwc").inputs["x"]
    np.testing.assert_array_equal(found, PRESETS["imagenet"].apply(pixels).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_bytes_for_a_network_of_floats_are_pixels_in_either_layout(axes: tuple[int, ...], tmp_path: Path) -> None:
    pixels = dead_leaves(3, 12, 10, channels=3)
    np.savez(tmp_path / "a.npz", pixels.transpose(axes))
    found = take(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.inputs["x"], PRESETS["imagenet"].apply(pixels).transpose(0, 3, 1, 2))
    assert "mapped by the preset 'imagenet', assumed" in found.description["sentence"]
    assert found.description["preset"] == "imagenet"
    named = take(pixels.transpose(axes), preprocessing="unit")
    np.testing.assert_array_equal(named.inputs["x"], PRESETS["unit"].apply(pixels).transpose(0, 3, 1, 2))
    assert named.description["sentence"] == "3 calibration inputs, mapped by the preset 'unit'."


def test_the_layout_of_arrays_alone_changes_no_value() -> None:
    images = np.random.default_rng(0).normal(size=(3, 12, 10, 3)).astype(np.float32)
    np.testing.assert_array_equal(take(images, layout="nhwc").inputs["x"], images.transpose(0, 3, 1, 2))


def test_an_array_that_nobody_named_is_that_of_the_only_input(examples: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", examples)
    for path in (tmp_path / "a.npz", f"{tmp_path / 'a.npz'}:arr_0"):
        np.testing.assert_array_equal(take(path).inputs["x"], examples)
    with pytest.raises(InputError, match=r"2 inputs.*by name"):
        take(tmp_path / "a.npz", {"x": ["N", 3, 12, 10], "extra": ["N", 2]})


@pytest.mark.parametrize(
    "options",
    [{"scale": 0.0}, {"mean": (float("nan"),)}, {"std": (0.0,)}, {"channel_order": "gbr"}],
)
def test_preprocessing_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Preprocessing(**options)


def test_preprocessing_options_build_on_a_preset() -> None:
    assert preprocessing_of(None) is None
    assert preprocessing_of("caffe") == "caffe"
    changed = preprocessing_of("caffe", mean=(1.0, 2.0, 3.0))
    assert changed == Preprocessing(1.0, (1.0, 2.0, 3.0), (1.0,), "bgr")
    with pytest.raises(InputError, match="no preset 'nope'"):
        preprocessing_of("nope", scale=2.0)
    with pytest.raises(InputError, match="no preset 'nope'"):
        take("auto", preprocessing="nope", limit=8)
    with pytest.raises(InputError, match="2 numbers, but the images have 3 channels"):
        take("auto", preprocessing=Preprocessing(mean=(1.0, 2.0)), limit=8)


def test_one_array_of_a_file_is_read_without_a_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.arange(3.0), b=np.arange(4.0))
    assert set(read_npz(tmp_path / "two.npz")) == {"a", "b"}
    (name, array), *rest = read_npz(f"{tmp_path / 'two.npz'}:b").items()
    assert (name, len(array), rest) == ("", 4, [])
    with pytest.raises(InputError, match="holds no array 'c'; it holds a, b"):
        read_npz(f"{tmp_path / 'two.npz'}:c")


def test_names_of_arrays_may_hold_colons(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **{"input:0": np.zeros(2), "b": np.ones(2)})
    (found,) = read_npz(f"{path}:input:0").values()
    np.testing.assert_array_equal(found, np.zeros(2))
    (found,) = read_npz(f"{path}:b").values()
    np.testing.assert_array_equal(found, np.ones(2))
    with pytest.raises(InputError, match=r"a\.npz: holds no array 'input:1'; it holds input:0, b"):
        read_npz(f"{path}:input:1")
