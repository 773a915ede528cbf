"""The four networks by which 1x1 convolutions are usually explained.

A 3x3 convolution with 512 feature maps on a 256x256 colour image, alone and followed by a 1x1 convolution that keeps
the number of feature maps (a projection), decreases it or increases it. Parameters: 14,336 alone; a 1x1 convolution
from I to O feature maps adds I * O + O: 262,656, 32,832 and 525,312.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

FEATURE_MAPS = 512


def conv3x3(*, size: int = 256) -> keras.Model:
    """One 3x3 convolution to 512 feature maps, with ReLU.

    Args:
        size: height and width of the image; the number of parameters does not depend on it.

    Returns:
        A model from float32 [N, size, size, 3] to [N, size, size, 512], 14,336 parameters.
    """
    return _network("conv3x3", size)


def projection(*, size: int = 256) -> keras.Model:
    """`conv3x3` and a 1x1 convolution with ReLU that keeps the 512 feature maps; 276,992 parameters."""
    return _network("projection", size, FEATURE_MAPS, activation="relu")


def decrease(*, size: int = 256) -> keras.Model:
    """`conv3x3` and a 1x1 convolution that decreases the feature maps to 64; 47,168 parameters."""
    return _network("decrease", size, 64)


def increase(*, size: int = 256) -> keras.Model:
    """`conv3x3` and a 1x1 convolution that increases the feature maps to 1024; 539,648 parameters."""
    return _network("increase", size, 1024)


def _network(name: str, size: int, pointwise: int | None = None, activation: str | None = None) -> keras.Model:
    from keras import Input, Sequential, layers

    model = Sequential(name=name)
    model.add(Input((size, size, 3), name="image"))
    model.add(layers.Conv2D(FEATURE_MAPS, 3, padding="same", activation="relu", name="conv3x3"))
    if pointwise is not None:
        model.add(layers.Conv2D(pointwise, 1, activation=activation, name="conv1x1"))
    return model
