"""The Inception module of GoogLeNet (Szegedy et al. 2015, figure 2), without and with 1x1 bottlenecks.

Widths scale together. At the default of 64 the bottlenecked module is "inception 3a" of the paper's table 1: 192
feature maps in, 256 out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def inception_naive(*, width: int = 64, size: int = 28) -> keras.Model:
    """1x1, 3x3 and 5x5 convolutions and a pooling side by side, all on the module's whole input (figure 2a).

    Args:
        width: feature maps of the 1x1 branch, a multiple of 4; the input has three times as many.
        size: height and width of the input.

    Returns:
        A model from float32 [N, size, size, 3 * width] to [N, size, size, 6.5 * width].
    """
    from keras import Input, Model, layers

    image = Input((size, size, 3 * width), name="features")
    branches = [
        _conv(image, width, 1, "conv1x1"),
        _conv(image, 2 * width, 3, "conv3x3"),
        _conv(image, width // 2, 5, "conv5x5"),
        layers.MaxPooling2D(3, strides=1, padding="same", name="pool")(image),
    ]
    return Model(image, layers.Concatenate(name="concatenate")(branches), name="inception_naive")


def inception_bottleneck(*, width: int = 64, size: int = 28) -> keras.Model:
    """The same with 1x1 bottlenecks in front of the 3x3 and 5x5 convolutions and behind the pooling (figure 2b).

    Args:
        width: feature maps of the 1x1 branch, a multiple of 4; the input has three times as many.
        size: height and width of the input.

    Returns:
        A model from float32 [N, size, size, 3 * width] to [N, size, size, 4 * width].
    """
    from keras import Input, Model, layers

    image = Input((size, size, 3 * width), name="features")
    pool = layers.MaxPooling2D(3, strides=1, padding="same", name="pool")(image)
    branches = [
        _conv(image, width, 1, "conv1x1"),
        _conv(_conv(image, 3 * width // 2, 1, "conv3x3_reduce"), 2 * width, 3, "conv3x3"),
        _conv(_conv(image, width // 4, 1, "conv5x5_reduce"), width // 2, 5, "conv5x5"),
        _conv(pool, width // 2, 1, "pool_project"),
    ]
    return Model(image, layers.Concatenate(name="concatenate")(branches), name="inception_bottleneck")


def inception_naive_narrow() -> keras.Model:
    """`inception_naive` at a quarter of the paper's width, on 14x14 inputs."""
    return inception_naive(width=16, size=14)


def inception_bottleneck_narrow() -> keras.Model:
    """`inception_bottleneck` at a quarter of the paper's width, on 14x14 inputs."""
    return inception_bottleneck(width=16, size=14)


def _conv(x: Any, filters: int, size: int, name: str) -> Any:
    from keras import layers

    return layers.Conv2D(filters, size, padding="same", activation="relu", name=name)(x)
