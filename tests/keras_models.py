"""Small Keras models for the tests; whoever imports this is skipped where TensorFlow is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

tf: Any = pytest.importorskip("tensorflow")
keras: Any = pytest.importorskip("keras")
h5py: Any = pytest.importorskip("h5py")
pytest.importorskip("tf2onnx")

layers = keras.layers
IMAGE = (12, 12, 4)


def randomize(model: Any, seed: int = 0) -> Any:
    """Give every weight, biases and statistics of normalizations included, a value that is not its default."""
    rng = np.random.default_rng(seed)
    values = [
        rng.uniform(0.5, 1.5, w.shape) if len(w.shape) == 1 else rng.normal(0, 0.2, w.shape)
        for w in model.get_weights()
    ]
    model.set_weights([value.astype(w.dtype) for value, w in zip(values, model.get_weights(), strict=True)])
    return model


def of_layers(*stack: Any, shape: tuple[int | None, ...] = IMAGE, name: str = "model") -> Any:
    """A functional model of layers one behind the other."""
    image = x = keras.Input(shape, name="image")
    for layer in stack:
        x = layer(x)
    return randomize(keras.Model(image, x, name=name))


def small(name: str = "model") -> Any:
    """A classifier with a folded and a kept BatchNormalization."""
    return of_layers(
        layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv1"),
        layers.BatchNormalization(name="norm1"),
        layers.ReLU(name="relu1"),
        layers.Conv2D(5, 3, strides=2, name="conv2"),
        layers.ReLU(name="relu2"),
        layers.BatchNormalization(name="norm2"),
        layers.GlobalAveragePooling2D(name="features"),
        layers.Dense(3, activation="softmax", name="classes"),
        name=name,
    )


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model that is only code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first = layers.Conv2D(4, 3, padding="same", name="first")
        self.norm = layers.BatchNormalization(name="norm")
        self.second = layers.Conv2D(2, 3, name="second")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.second(self.norm(self.first(x), training=training))


class Structured(keras.Model):
    """A subclassed model that takes and returns dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.left = layers.Conv2D(4, 3, padding="same", name="left")
        self.right = layers.Conv2D(2, 3, name="right")

    def call(self, x: Any) -> Any:
        return {"wide": self.left(x["image"]), "narrow": self.right(x["mask"])}


def nodes(model: onnx.ModelProto, *op_types: str) -> list[onnx.NodeProto]:
    """The nodes of the given operators."""
    return [node for node in model.graph.node if node.op_type in op_types]


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shape of each initializer."""
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def declared(values: Any) -> dict[str, list[int | str]]:
    """Name and shape of graph inputs or outputs."""
    return {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}
