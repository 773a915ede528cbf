"""The bottleneck block of ResNet-50 and deeper (He et al. 2016, figure 5): 1x1 down, 3x3, 1x1 up, and a shortcut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

EXPANSION = 4


def bottleneck(*, width: int = 64, size: int = 56, strides: int = 1) -> keras.Model:
    """One bottleneck block with BatchNormalization.

    Args:
        width: feature maps of the 3x3 convolution; the block takes and gives four times as many.
        size: height and width of the input.
        strides: step of the 3x3 convolution; above 1 the shortcut is a 1x1 convolution with the same step.

    Returns:
        A model from float32 [N, size, size, 4 * width] to [N, size / strides, size / strides, 4 * width], the size
        rounded up.
    """
    from keras import Input, Model, layers

    def conv(x: Any, filters: int, size: int, name: str, strides: int = 1) -> Any:
        x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, name=name)(x)
        return layers.BatchNormalization(name=f"{name}_bn")(x)

    image = Input((size, size, EXPANSION * width), name="features")
    x = layers.ReLU(name="reduce_relu")(conv(image, width, 1, "reduce"))
    x = layers.ReLU(name="conv3x3_relu")(conv(x, width, 3, "conv3x3", strides))
    x = conv(x, EXPANSION * width, 1, "expand")
    shortcut = image if strides == 1 else conv(image, EXPANSION * width, 1, "shortcut", strides)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, shortcut]))
    return Model(image, x, name="bottleneck")


def bottleneck_narrow() -> keras.Model:
    """`bottleneck` at a quarter of ResNet-50's first width, on 14x14 inputs."""
    return bottleneck(width=16, size=14)
