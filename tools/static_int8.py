"""Static int8 and float16 versions of a network, by ONNX Runtime's own tools."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from onnx_pointwise.errors import ModelError


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives examples in batches, once."""

    def __init__(self, examples: Mapping[str, NDArray[Any]], batch: int) -> None:
        self._batches = _batches(examples, batch)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Give the next batch by input name; None at the end."""
        return next(self._batches, None)


def _batches(examples: Mapping[str, NDArray[Any]], batch: int) -> Iterator[dict[str, NDArray[Any]]]:
    count = min(len(array) for array in examples.values())
    for start in range(0, count - batch + 1, batch):
        yield {name: np.ascontiguousarray(array[start : start + batch]) for name, array in examples.items()}


def write_int8(source: Path, target: Path, examples: Mapping[str, NDArray[Any]]) -> None:
    """Write a static int8 version: u8 activations, s8 weights with one scale for each output feature map.

    Ranges are the least and greatest values over the examples. The network is simplified first, BatchNormalization
    folded, as ONNX Runtime recommends. Q/DQ pairs become integer kernels when the runtime loads the file, and ran as
    fast as integer operators in the file did.

    Args:
        source: The float network.
        target: Where the quantised one goes.
        examples: Inputs by name, [N, ...].

    Raises:
        ModelError: The network cannot be quantised.
    """
    fixed = [
        value.type.tensor_type.shape.dim[0].dim_value
        for value in onnx.load(source, load_external_data=False).graph.input
        if value.name in examples and value.type.tensor_type.shape.dim
    ]
    with tempfile.TemporaryDirectory() as folder, _silence():
        simple = Path(folder) / "simple.onnx"
        try:
            quant_pre_process(str(source), str(simple), skip_symbolic_shape=True)
            quantize_static(
                str(simple),
                str(target),
                _Reader(examples, max([1, *fixed])),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        except Exception as error:  # whatever the runtime's tools raise
            raise ModelError(f"{source}: cannot be quantised: {type(error).__name__}: {error}.") from error


def write_float16(source: Path, target: Path) -> None:
    """Write a float16 version; inputs and outputs stay float32.

    Args:
        source: The float32 network.
        target: Where the float16 one goes.

    Raises:
        ModelError: The network cannot be converted.
    """
    with _silence():
        try:
            onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)
        except Exception as error:  # whatever the converter raises
            raise ModelError(f"{source}: cannot be converted to float16: {type(error).__name__}: {error}.") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the tools' advice out of the log: they warn about what was just done."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
