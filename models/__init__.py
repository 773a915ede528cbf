"""Keras model definitions, one family a file, and the files exported from them.

``MODELS`` maps a name to a function that builds the model. Keras itself is imported only when a function is called, so
listing the names needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from models.digits import digits

if TYPE_CHECKING:
    import keras

MODELS: dict[str, Callable[..., keras.Model]] = {
    "digits": digits,
}

__all__ = ["MODELS", "digits"]
