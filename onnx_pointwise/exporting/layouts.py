"""Layers that keep their channels first, on processors where TensorFlow computes channels last alone."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from onnx_pointwise.exporting.runtime import Runtime

# Operations of Keras' backend that take images and know their layout.
_OPERATIONS = ("conv", "depthwise_conv", "separable_conv", "conv_transpose", "max_pool", "average_pool")
_FIRST, _LAST = "channels_first", "channels_last"


@contextlib.contextmanager
def channels_last_inside(rt: Runtime) -> Iterator[None]:
    """Let channels-first operations of Keras transpose, compute channels last, and transpose back.

    Traced so, a model converts like any other: the transpositions between two such layers cancel each other out.
    """
    from keras.src import backend

    before = {name: getattr(backend.nn, name) for name in _OPERATIONS if hasattr(backend.nn, name)}
    try:
        for name, operation in before.items():
            setattr(backend.nn, name, _last(rt, operation))
        yield
    finally:
        for name, operation in before.items():
            setattr(backend.nn, name, operation)


def _last(rt: Runtime, operation: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(operation)

    @functools.wraps(operation)
    def call(*arguments: Any, **keywords: Any) -> Any:
        given = signature.bind(*arguments, **keywords)
        images = given.arguments.get("inputs")
        if given.arguments.get("data_format") != _FIRST or images is None:
            return operation(*arguments, **keywords)
        rank = len(images.shape)
        given.arguments["inputs"] = rt.tf.transpose(images, [0, *range(2, rank), 1])
        given.arguments["data_format"] = _LAST
        return rt.tf.transpose(operation(*given.args, **given.kwargs), [0, rank - 1, *range(1, rank - 1)])

    return call
