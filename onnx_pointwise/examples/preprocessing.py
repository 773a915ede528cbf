"""From pixels to what a network takes: value range, channel order, layout. Given, named, or inferred from the network.

A network takes (scale * pixel - mean) / std of every channel, pixels from 0 to 255, with mean and std in the units that
``scale`` leads to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError
from onnx_pointwise.examples.synthetic import dead_leaves
from onnx_pointwise.graph import ASSUMED_SIZES, ResolvedShapes, constant, running_statistics, runtime_inputs
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime import Piece, without_shapes

Array = NDArray[Any]
ChannelOrder = Literal["rgb", "bgr"]
Layout = Literal["nchw", "nhwc"]

# Height and width of images for inputs that leave them open.
_OPEN_SIZE = 96
# Images that decide between presets.
_TRIALS = 32


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become numbers.

    Attributes:
        scale: Factor of the pixels, 0 to 255.
        mean: Subtracted after scaling: one number, or one for each channel in the network's order.
        std: Divided by after that.
        channel_order: Order of colour channels that the network takes.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale != 0.0):
            raise InputError(f"The scale must be a finite number other than 0, not {self.scale:g}.")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or 0.0 in self.std:
            raise InputError("Mean and standard deviation must be finite, and the latter not 0.")
        if self.channel_order not in get_args(ChannelOrder):
            raise InputError(f"The channel order is rgb or bgr, not {self.channel_order}.")

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn uint8 images [N, H, W, C] into float32 ones of the same shape.

        Raises:
            InputError: Mean or standard deviation have another number of channels.
        """
        channels = images.shape[-1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise InputError(f"The {name} has {len(values)} numbers, but the images have {channels} channels.")
        if self.channel_order == "bgr":
            images = images[..., ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (images.astype(np.float32) * np.float32(self.scale) - mean) / std

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "channel_order": self.channel_order,
        }


#: Value ranges that networks are commonly trained with.
PRESETS: dict[str, Preprocessing] = {
    "unit": Preprocessing(),
    "imagenet": Preprocessing(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "signed": Preprocessing(1 / 127.5, (1.0,), (1.0,)),
    "raw": Preprocessing(1.0),
    "caffe": Preprocessing(1.0, (104.0, 117.0, 123.0), (1.0,), "bgr"),
}


# What a network takes whose input is bytes.
_AS_THEY_ARE = PRESETS["raw"]


@dataclass(frozen=True)
class ImageInput:
    """The input of a network that takes images.

    Attributes:
        name: Its name.
        dtype: Its element type.
        height: Height in pixels.
        width: Width in pixels.
        channels: 1 or 3.
        layout: Where the channels are.
    """

    name: str
    dtype: np.dtype[Any]
    height: int
    width: int
    channels: int
    layout: Layout

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes pixels as they are, 0 to 255 in bytes, so that no value range applies."""
        return self.dtype == np.uint8

    def require_range(self, mapping: Preprocessing) -> None:
        """Check that a value range can be brought to the input's type.

        Raises:
            InputError: The input takes pixels as they are, and the range is another one.
        """
        if self.takes_pixels and mapping not in (_AS_THEY_ARE, replace(_AS_THEY_ARE, channel_order="bgr")):
            raise InputError(
                f"Input '{self.name}' takes pixels from 0 to 255 as they are (uint8), to which no value range applies: "
                "leave --preset, --mean, --std and --scale out; --channel-order bgr goes with --preset raw."
            )

    def arrange(self, images: Array) -> Array:
        """Bring images [N, H, W, C] into the network's layout and element type."""
        arranged = images.transpose(0, 3, 1, 2) if self.layout == "nchw" else images
        return np.ascontiguousarray(arranged.astype(self.dtype))


_PIXELS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.UINT8}


def image_input(model: ir.Model, shapes: ResolvedShapes) -> ImageInput | None:
    """Tell whether a network takes images: one input [N, C, H, W] or [N, H, W, C], C 1 or 3, of floats or of bytes."""
    inputs = runtime_inputs(model)
    if len(inputs) != 1:
        return None
    (value,) = inputs
    shape = shapes.inputs.get(str(value.name), ())
    if value.dtype is None or value.dtype not in _PIXELS or len(shape) != 4:
        return None
    layout: Layout
    if shape[1] in (1, 3):
        layout, channels, (height, width) = "nchw", shape[1], shape[2:]
    elif shape[3] in (1, 3):
        layout, channels, (height, width) = "nhwc", shape[3], shape[1:3]
    else:
        return None
    declared = list(value.shape) if value.shape is not None else []
    axes = (2, 3) if layout == "nchw" else (1, 2)
    if value.name in shapes.assumed:
        height, width = (
            size if isinstance(declared[axis], int) or size != ASSUMED_SIZES[0] else _OPEN_SIZE
            for axis, size in zip(axes, (height, width), strict=True)
        )
    return ImageInput(str(value.name), np.dtype(value.dtype.numpy()), height, width, channels, layout)


@dataclass(frozen=True)
class Mapped:
    """A value range and where it comes from.

    Attributes:
        preprocessing: The range.
        preset: Its name, where it has one.
        origin: ``given``, ``metadata``, ``type``, ``inferred`` or ``assumed``.
        sentence: The same for a person.
    """

    preprocessing: Preprocessing
    preset: str | None
    origin: str
    sentence: str


def choose_preprocessing(
    model: ir.Model, image: ImageInput, given: Preprocessing | str | None, *, seed: int = 0
) -> Mapped:
    """Settle what pixels are mapped to.

    Args:
        model: The model.
        image: Its input.
        given: A preprocessing, the name of a preset, or ``None`` to find out: from the model's metadata, else from
            the running statistics of a BatchNormalization near the input, else by assumption.
        seed: Seed of the images that decide.

    Raises:
        InputError: There is no such preset.
    """
    mapping = preset_of(given)
    if mapping is not None:
        image.require_range(mapping)
    if isinstance(given, Preprocessing):
        return Mapped(given, None, "given", "the value range given")
    if given is not None:
        return Mapped(PRESETS[given], given, "given", f"the preset '{given}'")
    if image.takes_pixels:
        return Mapped(_AS_THEY_ARE, "raw", "type", "pixels as they are, since the model takes bytes")
    stated = _from_metadata(model.metadata_props)
    if stated is not None:
        return Mapped(stated, None, "metadata", "the value range that the model's metadata state")
    inferred = _from_statistics(model, image, seed)
    if inferred is not None:
        sentence = f"the preset '{inferred}', which fits the statistics of the first BatchNormalization best"
        return Mapped(PRESETS[inferred], inferred, "inferred", sentence)
    preset = "imagenet" if image.channels == 3 and image.layout == "nchw" else "unit"
    sentence = f"the preset '{preset}', assumed since nothing in the model tells; name another with --preset"
    return Mapped(PRESETS[preset], preset, "assumed", sentence)


def preset_of(given: Preprocessing | str | None) -> Preprocessing | None:
    """Look a value range up where it is given by name.

    Raises:
        InputError: There is no such preset.
    """
    if isinstance(given, str) and given not in PRESETS:
        raise InputError(f"There is no preset '{given}'; there are {', '.join(PRESETS)}.")
    return PRESETS[given] if isinstance(given, str) else given


# Image metadata of the ONNX specification.
_RANGES = {
    "NominalRange_0_255": Preprocessing(1.0),
    "Normalized_0_1": Preprocessing(1 / 255),
    "Normalized_1_1": Preprocessing(1 / 127.5, (1.0,)),
    "NominalRange_16_235": Preprocessing(219 / 255, (-16.0,)),
}


def _from_metadata(metadata: Mapping[str, str]) -> Preprocessing | None:
    stated = _RANGES.get(metadata.get("Image.NominalPixelRange", ""))
    if stated is not None and metadata.get("Image.BitmapPixelFormat", "").startswith("Bgr"):
        return replace(stated, channel_order="bgr")
    return stated


def _from_statistics(model: ir.Model, image: ImageInput, seed: int) -> str | None:
    """Find the preset under which the first BatchNormalization sees what its running statistics say."""
    found = _first_normalisation(model)
    if found is None:
        return None
    source, mean, variance = found
    images = dead_leaves(_TRIALS, image.height, image.width, channels=image.channels, seed=seed)
    piece = Piece(without_shapes(model), [image.name], [source])
    fits: dict[str, float] = {}
    batch = _declared_batch(model)
    for name, preset in PRESETS.items():
        if image.channels != 3 and len(preset.mean) > 1:
            continue
        pixels = image.arrange(preset.apply(images))
        seen = np.concatenate(
            [piece.run({image.name: pixels[start : start + batch]})[0] for start in range(0, len(pixels), batch)]
        ).astype(np.float64)
        axes = (0, *range(2, seen.ndim))
        fits[name] = _divergence(seen.mean(axes), seen.var(axes), mean, variance)
    return min(fits, key=lambda name: fits[name])


def _divergence(mean: Array, variance: Array, stored_mean: Array, stored_variance: Array) -> float:
    """Median over channels of the symmetric Kullback-Leibler divergence of two normal distributions."""
    a, b = variance + 1e-12, stored_variance + 1e-12
    gap = (mean - stored_mean) ** 2
    return float(np.median(0.5 * ((a + gap) / b + (b + gap) / a) - 1.0))


def _declared_batch(model: ir.Model) -> int:
    (value,) = runtime_inputs(model)
    first = value.shape[0] if value.shape is not None else None
    return (
        first if isinstance(first, int) and first > 0 and _TRIALS % first == 0 else 1 if isinstance(first, int) else 8
    )


def _first_normalisation(model: ir.Model) -> tuple[str, Array, Array] | None:
    """Find the first BatchNormalization that only linear operators part from the input: its input and statistics."""
    linear = {"Conv", "Transpose", "Identity", "Mul", "Add", "Sub", "Div", "Reshape", "Cast"}
    reached = {str(value.name) for value in runtime_inputs(model)}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if source is None or str(source.name) not in reached:
            continue
        if node.op_type == "BatchNormalization":
            told = running_statistics(node)
            return None if told is None else (str(source.name), *told)
        if node.op_type in linear and all(
            constant(value) is not None for value in node.inputs[1:] if value is not None
        ):
            reached.update(str(value.name) for value in node.outputs)
    return None


def preprocessing_of(
    preset: str | None,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    scale: float | None = None,
    channel_order: str | None = None,
) -> Preprocessing | str | None:
    """Put together what a person said about the value range; what is left out comes from the preset, or from ``unit``.

    Returns:
        ``None`` where nothing was said, the preset's name where nothing else was.

    Raises:
        InputError: There is no such preset, or a number makes no sense.
    """
    if not mean and not std and scale is None and channel_order is None:
        return preset
    base = preset_of(preset) or PRESETS["unit"]
    if channel_order is not None and channel_order not in get_args(ChannelOrder):
        raise InputError(f"The channel order is rgb or bgr, not {channel_order}.")
    order: ChannelOrder = base.channel_order if channel_order is None else "bgr" if channel_order == "bgr" else "rgb"
    return Preprocessing(
        base.scale if scale is None else scale, tuple(mean) or base.mean, tuple(std) or base.std, order
    )
