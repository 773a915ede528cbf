"""TensorFlow, Keras and tf2onnx on demand: imported late, quietly, and missed in one clear sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnx_pointwise.errors import OnnxPointwiseError

_LONG = 200
# What TensorFlow puts around some of its messages.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ExportError(OnnxPointwiseError):
    """A Keras model cannot be read or converted."""


class VerificationError(ExportError):
    """A model was converted, but the result is not what Keras computes."""


@dataclass(frozen=True)
class Runtime:
    """The imported modules; typed loosely because none of them ships type information."""

    tf: Any
    keras: Any
    tf2onnx: Any


def runtime() -> Runtime:
    """Import TensorFlow, Keras and tf2onnx without their log output.

    Raises:
        ExportError: one of them is not installed, or Keras is set to another backend.
    """
    _require_tensorflow(os.environ.get("KERAS_BACKEND", "tensorflow"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # On some processors TensorFlow announces these operations on standard error, whatever the log level; they round
    # otherwise, too.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import keras
        import tensorflow as tf
        import tf2onnx
        import tf2onnx.optimizer
    except ImportError as error:
        raise ExportError(
            f"exporting Keras models needs TensorFlow, Keras and tf2onnx ({error}); "
            "install them with: pip install 'onnx-pointwise[keras]'"
        ) from error
    _require_tensorflow(keras.backend.backend())
    return Runtime(tf, keras, tf2onnx)


def _require_tensorflow(backend: str) -> None:
    if backend != "tensorflow":
        raise ExportError(f"Keras runs on {backend}, but the export traces TensorFlow: set KERAS_BACKEND=tensorflow.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the loggers of TensorFlow, absl and tf2onnx, and put their levels back afterwards."""
    names = ("tensorflow", "absl", "tf2onnx")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(error: Exception) -> str:
    """The first line that says what went wrong, without the full stop; the error's type where it says nothing."""
    text = _COLOUR.sub("", str(error)).partition("Arguments received by")[0].strip() or type(error).__name__
    lines = [line for line in text.splitlines() if line.strip()]
    # TensorFlow puts the trace of a traced function first and what went wrong last; Keras names the layer before it.
    line = lines[-1] if lines[0].startswith("in user code") else lines[0]
    if line.startswith("Exception encountered when calling") and len(lines) > 1:
        line = f"{line.strip().rstrip('.')}: {lines[1].strip()}"
    if len(line) > _LONG:  # advice follows, on how to write a layer
        line = line.partition(". ")[0]
    return line.strip().rstrip(".:")
