"""Keras model definitions, one family a file, and the files exported from them.

`MODELS` maps a name to a function that builds the model; each of them can be exported by name, as in
``python -m tools.export_keras models:fire fire.onnx``. Keras itself is imported only when a function is called, so
listing the names needs no TensorFlow. ``python -m models`` writes the small ONNX files that lie beside the definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from models.digits import digit_classifier
from models.inception import inception_bottleneck, inception_bottleneck_narrow, inception_naive, inception_naive_narrow
from models.resnet import bottleneck, bottleneck_narrow
from models.squeezenet import fire, fire_narrow
from models.tutorial import conv3x3, decrease, increase, projection
from models.vgg import vgg16, vgg16_narrow

if TYPE_CHECKING:
    import keras

#: Every model, by name; callable without arguments.
MODELS: dict[str, Callable[..., keras.Model]] = {
    "bottleneck": bottleneck,
    "bottleneck_narrow": bottleneck_narrow,
    "conv3x3": conv3x3,
    "decrease": decrease,
    "digit_classifier": digit_classifier,
    "fire": fire,
    "fire_narrow": fire_narrow,
    "inception_bottleneck": inception_bottleneck,
    "inception_bottleneck_narrow": inception_bottleneck_narrow,
    "inception_naive": inception_naive,
    "inception_naive_narrow": inception_naive_narrow,
    "increase": increase,
    "projection": projection,
    "vgg16": vgg16,
    "vgg16_narrow": vgg16_narrow,
}

#: Models with random weights that are small enough for their ONNX file to be shipped beside the definition.
SHIPPED: tuple[str, ...] = (
    "bottleneck_narrow",
    "conv3x3",
    "decrease",
    "fire_narrow",
    "inception_bottleneck_narrow",
    "inception_naive_narrow",
)

__all__ = [*MODELS, "MODELS", "SHIPPED"]
