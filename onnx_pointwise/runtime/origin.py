"""Where a result came from: which model, asked for what, on which machine. What a reader needs to get it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_pointwise.graph import ModelSource
from onnx_pointwise.jsonable import json_ready, jsonable
from onnx_pointwise.runtime.machine import Machine, machine
from onnx_pointwise.runtime.runner import model_name
from onnx_pointwise.schema import options

# Numbers of a sequence that are written out; more are described.
_FEW = 16


@dataclass(frozen=True)
class Origin:
    """Where a result came from.

    Attributes:
        job: The function that made it: ``rewrite``, ``check``, ...
        models: Names of the models that it was given.
        asked: What it was asked for beyond the defaults, by keyword; arrays by their size alone.
        machine: Where it ran.
    """

    job: str
    models: tuple[str, ...]
    asked: Mapping[str, Any]
    machine: Machine

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "job": self.job,
            "models": list(self.models),
            "asked": dict(self.asked),
            "machine": self.machine.to_dict(),
        }


def origin_of(job: str, settings: Any, *models: ModelSource | bytes) -> Origin:
    """Describe where a result comes from.

    Args:
        job: The function that makes it.
        settings: What it was asked for.
        models: The models that it was given.
    """
    given = {item.name: (getattr(settings, item.name), item.default) for item in options(type(settings))}
    asked = {name: _described(value) for name, (value, default) in given.items() if _differs(value, default)}
    asked.pop("progress", None)
    return Origin(job, tuple(model_name(model) for model in models), asked, machine())


def _differs(value: Any, default: Any) -> bool:
    same = value is default
    if not same and type(value) is type(default):
        try:
            same = bool(value == default)
        except ValueError:  # arrays
            return True
    return not same


def _described(value: Any) -> Any:
    """A value as JSON, short: what is large or no data is named."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array {list(value.shape)}"
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _described(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if len(value) > _FEW:
            return f"{len(value)} items"
        return [_described(item) for item in value]
    if callable(value):
        return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__name__)}"
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict):
        return jsonable(to_dict())
    if is_dataclass(value):
        return {item.name: _described(getattr(value, item.name)) for item in fields(value)}
    return type(value).__name__
