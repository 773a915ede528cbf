from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from onnx import helper

from onnx_pointwise.errors import InputError
from onnx_pointwise.runtime.memory import PeakMemory, peak_memory
from tests.graphs import conv_model, make_model, normal, value

MEGABYTE = 2**20


def wide(rows: int) -> bytes:
    """A model with 4 * rows * 1024 bytes of weights."""
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="product")
    weights = {"W": np.ones((rows, 1024), np.float32)}
    return make_model([node], [value("x", ["n", rows])], [value("y", ["n", 1024])], weights).SerializeToString()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the process' whole peak is all that is known")
def test_weights_and_activations_show() -> None:
    memory = peak_memory(wide(8192), input_shapes={"x": (1, 8192)}, threads=1, runs=1)
    assert memory.loading >= 32 * MEGABYTE
    assert memory.process > 10 * MEGABYTE
    more = peak_memory(conv_model(normal(64, 4, 3, 3), (256, 256)), threads=1, runs=1)
    assert more.running >= 64 * 254 * 254 * 4
    assert json.loads(json.dumps(more.to_dict())) == {
        "loading": more.loading,
        "running": more.running,
        "process": more.process,
    }


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="runs must be above 0"):
        peak_memory(wide(8), runs=0)
    with pytest.raises(InputError, match="no input 'z'"):
        peak_memory(wide(8), input_shapes={"z": (1, 8)})
    assert PeakMemory(1, 2, 3).to_dict() == {"loading": 1, "running": 2, "process": 3}
