"""The small network that is really trained: scikit-learn's handwritten digits, enlarged to 16x16.

3x3 and 5x5 convolutions over 32 to 128 feature maps, each followed by BatchNormalization and ReLU; only the classifier
has a bias of its own. Nearly all of its 28 million multiply-accumulates are in the 5x5 and 3x3 kernels, which is what
makes it a fair thing to compress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

INPUT_SHAPE = (16, 16, 1)
CLASSES = 10


def digit_classifier(*, width: int = 32) -> keras.Model:
    """The digit classifier, untrained.

    Args:
        width: feature maps of the first convolution; the others are 2, 3, 2 and 4 times as wide.

    Returns:
        A model from float32 images [N, 16, 16, 1] in 0..1 to class probabilities [N, 10].
    """
    from keras import Input, Model, layers

    def conv(x: Any, filters: int, size: int, name: str, strides: int = 1) -> Any:
        x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, name=name)(x)
        # An epoch is only some twenty steps long, so the running averages must forget quickly to be of any use.
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    image = Input(INPUT_SHAPE, name="image")
    x = conv(image, width, 3, "conv1")
    x = conv(x, 2 * width, 5, "conv2")
    x = layers.MaxPooling2D(name="pool")(x)
    x = conv(x, 3 * width, 3, "conv3")
    x = conv(x, 2 * width, 5, "conv4")
    x = conv(x, 4 * width, 3, "conv5", strides=2)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    x = layers.Dense(CLASSES, activation="softmax", name="probabilities")(x)
    return Model(image, x, name="digit_classifier")
