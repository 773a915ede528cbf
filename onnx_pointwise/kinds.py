"""What kind of value a field takes, by its annotation: numbers, switches, lists and mappings of them.

A value of another kind would be noticed late and in words about something else, or not at all: of a name where names
are wanted, each letter would be one. Text alone is left to those who read it: they know what it may say.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import numpy as np

_WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    type(None): "None",
}


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the kind that an annotation names; what is not known here fits."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool | np.bool_)
    if origin is tuple:
        kinds = get_args(hint)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(item, get_args(hint)[1]) for item in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence):
        listed = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
        # What is told by text is told better by whoever reads the text.
        return listed and (get_args(hint)[0] is str or all(fits(item, get_args(hint)[0]) for item in value))
    if origin is Callable:
        return callable(value)
    if (
        hint is Any
        or not isinstance(hint, type)
        or issubclass(hint, np.ndarray)
        or getattr(hint, "_is_protocol", False)
    ):
        return True
    return isinstance(value, hint)


def below(value: Any, least: float) -> bool:
    """Tell whether a number, or any in a list or mapping, is below another; what is not a number is."""
    if isinstance(value, Mapping):
        return any(below(item, least) for item in value.values())
    if isinstance(value, Sequence | np.ndarray):
        return any(below(item, least) for item in value)
    return value is not None and not value >= least


def words(hint: Any) -> str:
    """Say what kind of value an annotation names; empty where it is not known here."""
    origin = get_origin(hint)
    if origin is Callable:
        return "a function"
    if origin in (Union, types.UnionType):
        parts = [words(part) for part in get_args(hint)]
        return " or ".join(dict.fromkeys(parts)) if all(parts) else ""
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping of names to values"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "a list or tuple"
    return _WORDS.get(hint, "")
