"""What JSON can hold: it knows neither NaN nor infinity, and readers of it fail where one stands."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

_Result = TypeVar("_Result")


def jsonable(value: Any) -> Any:
    """Turn a document into values that JSON has; numbers that are not finite become ``None``.

    Args:
        value: Mappings, sequences, NumPy's arrays and numbers, and what JSON has anyway, one within the other.

    Returns:
        A copy: dicts with text for keys, lists, text, numbers, booleans and ``None``. Anything else is written as text.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def json_ready(to_dict: Callable[[_Result], dict[str, Any]]) -> Callable[[_Result], dict[str, Any]]:
    """Let a method that describes a result give nothing but what JSON can hold."""

    @functools.wraps(to_dict)
    def document(self: _Result) -> dict[str, Any]:
        made: dict[str, Any] = jsonable(to_dict(self))
        return made

    return document
