"""One reader of calibration inputs, written for ONNX Runtime's quantizer, serves a rewrite and the quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

import onnx_pointwise
from onnx_pointwise.errors import InputError
from tests.small import accuracy, examples, network


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """As the examples of ONNX Runtime write it: one batch after the other."""

    def __init__(self) -> None:
        self._batches = np.array_split(examples(32), 4)
        self._next = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self._next += 1
        return None if self._next > len(self._batches) else {"image": self._batches[self._next - 1]}


class Rewindable(Reader):
    def rewind(self) -> None:
        self._next = 0


ASKED: dict[str, Any] = {"target_macs": 0.7, "provider": "none", "latency": False}


def quantized(source: Path, target: Path, reader: Reader) -> onnx.ModelProto:
    quantize_static(source, target, reader, quant_format=QuantFormat.QDQ)
    return onnx.load(target)


def test_a_reader_that_rewinds_serves_both(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "dense.onnx")
    reader = Rewindable()
    result = onnx_pointwise.rewrite(tmp_path / "dense.onnx", calibration=reader, **ASKED)
    result.save(tmp_path / "cheaper.onnx")
    model = quantized(tmp_path / "cheaper.onnx", tmp_path / "int8.onnx", reader)
    assert accuracy(model) > 0.9
    reader = Rewindable()  # and the other way round
    quantized(tmp_path / "dense.onnx", tmp_path / "dense_int8.onnx", reader)
    again = onnx_pointwise.rewrite(tmp_path / "dense.onnx", calibration=reader, **ASKED)
    assert again.plan == result.plan


def test_a_reader_that_does_not_is_read_once(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "dense.onnx")
    reader = Reader()
    result = onnx_pointwise.rewrite(tmp_path / "dense.onnx", calibration=reader, **ASKED)
    with pytest.raises(InputError, match=r"needs rewind\(\)"):
        onnx_pointwise.rewrite(tmp_path / "dense.onnx", calibration=reader, **ASKED)
    same = onnx_pointwise.rewrite(tmp_path / "dense.onnx", calibration=examples(32), **ASKED)
    assert same.plan.choices == result.plan.choices
