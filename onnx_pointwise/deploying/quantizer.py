"""ONNX Runtime's static quantizer: its settings by name, and a network through it.

Activations are u8, weights s8 with a scale for each output feature map, as CPUs with VNNI run fastest; what a user
names goes before that. The network is simplified first, BatchNormalization folded, as ONNX Runtime recommends. Pairs of
QuantizeLinear and DequantizeLinear become integer kernels when the runtime loads the file.
"""

from __future__ import annotations

import difflib
import enum
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.errors import PlanError

Array = NDArray[Any]

# In the quantizer's words, as `quantizer_settings` reads them.
_USUAL = {"quant_format": "QDQ", "activation_type": "QUInt8", "weight_type": "QInt8", "per_channel": "true"}
# What is given by the network and its examples, or concerns files.
_OURS = {
    "model_input",
    "model_output",
    "calibration_data_reader",
    "use_external_data_format",
    "calibration_providers",
    "extra_options",
    "calibration_cache_path",
}
# How the quantizer's documentation names a setting among its `extra_options`.
_EXTRA = re.compile(r"^ {8,}([A-Z]\w+) = ", re.MULTILINE)
_WORDS = {"true": True, "false": False, "none": None}


def setting_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the installed quantizer's settings: its parameters, and those that go into ``extra_options``."""
    from onnxruntime.quantization import quantize_static  # which takes a second, and few jobs need

    parameters = [name for name in inspect.signature(quantize_static).parameters if name not in _OURS]
    return tuple(parameters), tuple(dict.fromkeys(_EXTRA.findall(quantize_static.__doc__ or "")))


def quantizer_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read settings of the quantizer.

    Args:
        given: Values by the quantizer's own names; texts stand for what they say: ``true``, ``0.5``, ``QInt8``,
            and with commas for a list.

    Returns:
        The values as the quantizer takes them.

    Raises:
        PlanError: There is no such setting, or it does not take that value.
    """
    if not given:
        return {}
    from onnxruntime.quantization import quantize_static

    parameters, extra = setting_names()
    signature = inspect.signature(quantize_static).parameters
    read = {}
    for name, value in given.items():
        if name not in (*parameters, *extra):
            near = difflib.get_close_matches(name, (*parameters, *extra), 1, 0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise PlanError(
                f"ONNX Runtime's quantizer has no setting '{name}'; {hint}It takes {', '.join((*parameters, *extra))}."
            )
        usual = signature[name].default if name in parameters else None
        read[name] = _read(name, value, usual, listed=name in parameters and usual is None)
    return read


def _read(name: str, value: Any, usual: Any, *, listed: bool) -> Any:
    """What a text stands for; other values stay as they are."""
    if not isinstance(value, str):
        return value
    if isinstance(usual, enum.Enum):
        kind = type(usual)
        found = next((one for one in kind if one.name.lower() == value.lower()), None)
        if found is None:
            raise PlanError(f"The quantizer's {name} is one of {', '.join(one.name for one in kind)}, not '{value}'.")
        return found
    if listed:
        return [part for part in value.split(",") if part]
    plain = _number(value)
    if isinstance(usual, bool) and not isinstance(plain, bool):
        raise PlanError(f"The quantizer's {name} is true or false, not '{value}'.")
    return [part for part in value.split(",") if part] if isinstance(plain, str) and "," in plain else plain


def _number(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def quantized(source: Path, target: Path, examples: Mapping[str, Array], batch: int, given: Mapping[str, Any]) -> None:
    """Write a static int8 version of a float network.

    Args:
        source: The network.
        target: Where the quantised one goes; what comes up on the way lies beside it.
        examples: Inputs by name, [N, ...]: what comes up in them makes the ranges.
        batch: Examples in one run.
        given: Settings as `quantizer_settings` reads them.
    """
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    parameters, _ = setting_names()
    known = quantizer_settings(_USUAL) | {name: value for name, value in given.items() if name in parameters}
    extra = {name: value for name, value in given.items() if name not in parameters}
    simple = target.with_name(f"simple_{target.name}")
    quant_pre_process(str(source), str(simple), skip_symbolic_shape=True)
    quantize_static(str(simple), str(target), _Reader(examples, batch), extra_options=extra, **known)


class _Reader:
    """Gives examples in batches, once.

    Args:
        examples: Inputs by name, [N, ...].
        batch: Examples in one run.
    """

    def __init__(self, examples: Mapping[str, Array], batch: int) -> None:
        self._count = min(len(array) for array in examples.values()) // batch
        self._batches = _batches(examples, batch, self._count)

    def get_next(self) -> dict[str, Array] | None:
        """Give the next batch by input name; None at the end."""
        return next(self._batches, None)

    def __len__(self) -> int:
        return self._count


def _batches(examples: Mapping[str, Array], batch: int, count: int) -> Iterator[dict[str, Array]]:
    for start in range(0, count * batch, batch):
        yield {name: np.ascontiguousarray(array[start : start + batch]) for name, array in examples.items()}
