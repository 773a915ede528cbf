"""VGG-16 (Simonyan and Zisserman 2015, table 1, D): thirteen 3x3 convolutions in five blocks, three dense layers.

At the default width it is the network of the paper, 138,357,544 parameters, nearly all of them in the dense layers and
nearly all of its work in the 3x3 kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# Convolutions of each block, and their feature maps as multiples of the width.
BLOCKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


def vgg16(*, width: int = 64, size: int = 224, classes: int = 1000) -> keras.Model:
    """The VGG-16 stack.

    Args:
        width: feature maps of the first block; later ones have 2, 4, 8 and 8 times, the dense layers 64 times as many.
        size: height and width of the image, at least 32.
        classes: number of classes.

    Returns:
        A model from float32 images [N, size, size, 3] to class probabilities [N, classes].
    """
    from keras import Input, Sequential, layers

    model = Sequential(name="vgg16")
    model.add(Input((size, size, 3), name="image"))
    for block, (depth, multiple) in enumerate(BLOCKS, start=1):
        for index in range(1, depth + 1):
            name = f"block{block}_conv{index}"
            model.add(layers.Conv2D(multiple * width, 3, padding="same", activation="relu", name=name))
        model.add(layers.MaxPooling2D(name=f"block{block}_pool"))
    model.add(layers.Flatten(name="flatten"))
    model.add(layers.Dense(64 * width, activation="relu", name="fc1"))
    model.add(layers.Dense(64 * width, activation="relu", name="fc2"))
    model.add(layers.Dense(classes, activation="softmax", name="predictions"))
    return model


def vgg16_narrow() -> keras.Model:
    """`vgg16` at a sixteenth of the paper's width, on 32x32 images, with 10 classes."""
    return vgg16(width=4, size=32, classes=10)
