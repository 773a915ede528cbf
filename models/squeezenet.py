"""The fire module of SqueezeNet (Iandola et al. 2016, figure 1): a 1x1 squeeze, then 1x1 and 3x3 expansions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def fire(*, width: int = 16, size: int = 55) -> keras.Model:
    """One fire module; at the default width "fire2" of the paper's table 1.

    Args:
        width: feature maps of the squeeze convolution; the input has six times as many, each expansion four times.
        size: height and width of the input.

    Returns:
        A model from float32 [N, size, size, 6 * width] to [N, size, size, 8 * width].
    """
    from keras import Input, Model, layers

    def conv(x: Any, filters: int, size: int, name: str) -> Any:
        return layers.Conv2D(filters, size, padding="same", activation="relu", name=name)(x)

    image = Input((size, size, 6 * width), name="features")
    squeezed = conv(image, width, 1, "squeeze1x1")
    branches = [conv(squeezed, 4 * width, 1, "expand1x1"), conv(squeezed, 4 * width, 3, "expand3x3")]
    return Model(image, layers.Concatenate(name="concatenate")(branches), name="fire")


def fire_narrow() -> keras.Model:
    """`fire` at half of the paper's width, on 14x14 inputs."""
    return fire(width=8, size=14)
