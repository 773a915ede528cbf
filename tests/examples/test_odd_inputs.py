"""Images in bytes, options that do not apply, and files that mean no good."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from PIL import Image

from onnx_pointwise.errors import InputError
from onnx_pointwise.examples import calibrate, preprocessing_of, read_npz
from onnx_pointwise.graph import ResolvedShapes, load
from onnx_pointwise.runtime import resolve
from tests.graphs import make_model, normal, value


def floats(*shape: int | str) -> tuple[ir.Model, ResolvedShapes]:
    """A convolution of floating-point inputs."""
    nodes = [helper.make_node("Conv", ["x", "W"], ["y"], name="conv")]
    model = load(make_model(nodes, [value("x", shape)], [value("y", None)], {"W": normal(8, int(shape[1]), 3, 3)}))
    return model, resolve(model)


IMAGES = ("n", 3, 12, 10)


# --- images in bytes --------------------------------------------------------------------------------------------------


def bytes_in(layout: str = "nhwc") -> tuple[ir.Model, ResolvedShapes]:
    """A network that takes images as bytes and brings them into range itself."""
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2] if layout == "nhwc" else [0, 1, 2, 3]),
        helper.make_node("Conv", ["t", "W"], ["y"], name="conv"),
    ]
    shape = ["n", 32, 32, 3] if layout == "nhwc" else ["n", 3, 32, 32]
    model = load(make_model(nodes, [value("image", shape, np.uint8)], [value("y", None)], {"W": normal(8, 3, 3, 3)}))
    return model, resolve(model)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_bytes_are_images(layout: str, tmp_path: Path) -> None:
    model, shapes = bytes_in(layout)
    found = calibrate(model, "auto", shapes, limit=20)
    images = found.inputs["image"]
    assert images.dtype == np.uint8 and images.shape == (20, *shapes.inputs["image"][1:])
    assert images.std() > 20
    assert (found.description["preset"], found.description["preset_origin"]) == ("raw", "type")
    assert "pixels as they are, since the model takes bytes" in found.description["sentence"]
    Image.fromarray(np.full((40, 50, 3), (10, 20, 30), np.uint8)).save(tmp_path / "a.png")
    (pixels,) = calibrate(model, str(tmp_path), shapes).inputs["image"]
    assert pixels.reshape(-1).tolist()[:1] == [10] and pixels.dtype == np.uint8
    given = normal(5, 32, 32, 3).astype(np.uint8)
    taken = calibrate(model, {"image": given}, shapes, layout="nhwc").inputs["image"]
    np.testing.assert_array_equal(taken, given if layout == "nhwc" else given.transpose(0, 3, 1, 2))
    raw = calibrate(model, "synthetic", shapes, limit=4, preprocessing=preprocessing_of("raw", channel_order="bgr"))
    plain = calibrate(model, "synthetic", shapes, limit=4, preprocessing="raw").inputs["image"]
    np.testing.assert_array_equal(np.flip(plain, 3 if layout == "nhwc" else 1), raw.inputs["image"])


@pytest.mark.parametrize("source", ["auto", "synthetic", "given"])
def test_a_value_range_of_bytes_is_refused(source: str) -> None:
    model, shapes = bytes_in()
    arrays = {"image": np.zeros((4, 32, 32, 3), np.uint8)} if source == "given" else source
    for preprocessing in ("imagenet", "unit", preprocessing_of("raw", mean=(1.0,)), preprocessing_of(None, scale=2.0)):
        with pytest.raises(InputError, match=r"'image' takes pixels from 0 to 255 as they are .* leave --preset"):
            calibrate(model, arrays, shapes, preprocessing=preprocessing)
    with pytest.raises(InputError, match="There is no preset 'none'"):
        calibrate(model, arrays, shapes, preprocessing="none")


def test_options_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    images, features = floats(*IMAGES), floats("n", 8, 6, 6)
    for (model, shapes), source, options, words in (
        (
            features,
            "auto",
            {"preprocessing": "imagenet"},
            "A value range was given, but the model does not take images",
        ),
        (images, "none", {"preprocessing": "imagenet"}, "A value range was given, but no example inputs are taken"),
        (images, None, {"layout": "nhwc"}, "The layout nhwc was given, but no example inputs are taken"),
        (images, "auto", {"layout": "nhwc"}, "The layout nhwc was given, but no arrays of images are given"),
    ):
        with pytest.raises(InputError, match=words):
            calibrate(model, source, shapes, **options)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="holds image files, whose layout is known: leave --layout out"):
        calibrate(*images[:1], str(tmp_path), images[1], layout="nhwc")


# --- files that mean no good ------------------------------------------------------------------------------------------


def test_archives_that_would_fill_the_memory_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, image=np.zeros((300, 256, 256, 4), np.float32))
    with pytest.raises(
        InputError, match=r"bomb.npz: 0\.\d+ MB in it become 300 MB of arrays, which are not read; give"
    ):
        read_npz(path)
    np.savez(path, image=np.zeros((4, 8), np.float32))
    assert read_npz(path)["image"].shape == (4, 8)
    monkeypatch.setattr("onnx_pointwise.examples.calibration._MOST_BYTES", 100)
    with pytest.raises(InputError, match="are not read; give fewer examples"):
        read_npz(path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_that_hold_less_than_they_say_are_not_read(version: tuple[int, int], tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros((64, 2), np.float32), version)
    text = stream.getvalue().replace(b"(64, 2), }" + b" " * 9, b"(99999999999, 2), }")
    (tmp_path / "bomb.npy").write_bytes(text)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("x.npy", text)
    with pytest.raises(
        InputError,
        match=r"bomb\.npz: the array 'x' is said to hold float32\[99999999999, 2\], which takes 799999999992 bytes, "
        r"but there are 512; write it again\.",
    ):
        read_npz(tmp_path / "bomb.npz")
    model, shapes = floats("n", 4, 8, 8)
    with pytest.raises(
        InputError, match=r"bomb\.npy: the array is said to hold float32\[99999999999, 2\], which takes"
    ):
        calibrate(model, str(tmp_path / "bomb.npy"), shapes)


class Trap:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    model, shapes = floats(*IMAGES)
    trap = np.array([Trap(tmp_path / "sprung")], object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=trap, allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("a.npy", "a.npz", "raw.npy", "raw.npz"):
        with pytest.raises(InputError, match=rf"{name}: cannot be read as \.np"):
            calibrate(model, str(tmp_path / name), shapes)
    assert not (tmp_path / "sprung").exists()


def test_images_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = floats(*IMAGES)
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)).save(path)
    whole = path.read_bytes()
    for content in (b"", b"no image", whole[:60], whole[:-40], whole[:20] + bytes(20) + whole[40:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
            calibrate(model, str(tmp_path), shapes)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image: .*pixels"):
        calibrate(model, str(tmp_path), shapes)
