"""The trained networks that are shipped, with calibration inputs and a metric: what a rewrite is judged by.

A file with ``NETWORKS``, ``path``, ``calibration`` and ``metric`` is all that an evaluation asks for, so a folder of
your own networks can be described in the same way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent
NETWORKS: list[str] = ["digits"]
_BATCH = 100


def path(name: str) -> Path:
    """Where a network's ONNX file lies.

    Raises:
        KeyError: no network of that name is shipped.
    """
    return FOLDER / f"{_known(name)}.onnx"


def calibration(name: str, limit: int | None = None) -> NDArray[np.float32]:
    """Unlabelled inputs for calibration, ready for the network; none of them is an input of the metric.

    Args:
        name: one of `NETWORKS`.
        limit: at most this many; all of them when not given.

    Returns:
        float32 [N, *input shape]; for the digits [512, 16, 16, 1].

    Raises:
        KeyError: no network of that name is shipped.
    """
    return _array(_known(name), "calibration")[:limit]


def metric(name: str, path: str | Path, limit: int | None = None) -> float:
    """How good a network file is at the network's task; higher is better.

    Args:
        name: one of `NETWORKS`: which task.
        path: the file to judge, for instance a rewritten one.
        limit: use at most this many test inputs; all of them when not given.

    Returns:
        Top-1 accuracy, 0 to 1.

    Raises:
        KeyError: no network of that name is shipped.
    """
    inputs, labels = _array(_known(name), "x")[:limit], _array(name, "y")[:limit]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    starts = range(0, len(inputs), _BATCH)
    guesses = [session.run(None, {feed: inputs[i : i + _BATCH]})[0].argmax(1) for i in starts]
    return float((np.concatenate(guesses) == labels).mean())


def _known(name: str) -> str:
    if name not in NETWORKS:
        raise KeyError(f"no shipped network is called {name!r}; there are: {', '.join(NETWORKS)}")
    return name


def _array(name: str, key: str) -> NDArray[np.float32]:
    with np.load(FOLDER / f"{name}.npz") as data:
        array: NDArray[np.float32] = data[key]
    return array
