"""From the text of an option to its value."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from onnx_pointwise.errors import InputError, PlanError
from onnx_pointwise.examples import read_npz
from onnx_pointwise.graph import Choice, make_choice
from onnx_pointwise.numerics import FORMS, Form
from onnx_pointwise.study import Kind, Said

_T = TypeVar("_T")


@dataclass(frozen=True)
class Syntax:
    """How a value is written on the command line.

    Attributes:
        annotation: What the command line reads: text, texts, a path.
        parse: Makes the value, from the option's name and what was read.
        written: Gives the text of a default.
        joint: What stands between a name and its value where there are several, for values that are given by name.
    """

    annotation: Any
    parse: Callable[[str, Any], Any]
    written: Callable[[Any], Any] = lambda default: default
    joint: str = ""


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InputError(f"{option} {text}: write numbers with commas between them.") from error


def size(option: str, text: str) -> int:
    """Read a number of bytes, as 500M or 2G."""
    try:
        count = int(float(text[:-1]) * _UNITS[text[-1:].upper()]) if text[-1:].upper() in _UNITS else int(text)
    except ValueError:
        count = 0
    if count < 2**20:
        raise InputError(f"{option} {text}: write at least a megabyte, as 500M or 2G.")
    return count


def size_text(count: int) -> str:
    """Write a number of bytes in the largest unit that divides it."""
    unit = next((unit for unit in "GMK" if count % _UNITS[unit] == 0), "")
    return f"{count // _UNITS.get(unit, 1)}{unit}"


def function(option: str, text: str) -> Callable[[Any], float]:
    """Import the function that ``module:function`` names; modules beside the user come first, as in Python itself."""
    module, _, name = text.partition(":")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"{option} {text}: cannot be imported as MODULE:FUNCTION: {error}.") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise InputError(f"{option} {text}: {name} is not a function.")
    return cast(Callable[[Any], float], found)


def forms(option: str, texts: Sequence[str]) -> tuple[Form, ...]:
    """Read the forms that compete, in the order of ``FORMS``."""
    unknown = [text for text in texts if text not in FORMS]
    if unknown:
        raise PlanError(f"{option} {unknown[0]}: use one or more of {', '.join(FORMS)}.")
    return tuple(form for form in FORMS if form in texts)


def shapes(option: str, texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read shapes by name, written as ``NAME:1,3,224,224``."""
    named = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        try:
            named[name] = tuple(int(part) for part in sizes.replace("x", ",").split(","))
        except ValueError:
            name = ""
        if not name:
            raise PlanError(f"{option} {text}: write it as NAME:1,3,224,224.")
    return named


def tolerances(option: str, texts: Sequence[str]) -> float | dict[str, float]:
    """Read one number for all outputs, or ``OUTPUT:0.01`` for each named one."""
    named: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition(":")
        try:
            named[name] = float(number)
        except ValueError as error:
            raise PlanError(f"{option} {text}: write it as 0.01 or NAME:0.01.") from error
    if "" in named and len(named) > 1:
        raise PlanError(f"{option}: give one number for all outputs, or one for each named output, not both.")
    return named.get("", named)


def heads(option: str, texts: Sequence[str]) -> dict[str, Said]:
    """Read values, with weight and kind behind them or without: ``VALUE``, ``VALUE:2``, ``VALUE:classes``, both.

    A weight of 0 would be one to leave out; in ``scores:0`` it belongs to the name, as TensorFlow writes them.
    """
    named: dict[str, Said] = {}
    for text in texts:
        name, kind = _cut(text, lambda part: next((kind for kind in get_args(Kind) if kind == part), None))
        name, weight = _cut(name, _weight)
        if not name:
            raise PlanError(f"{option} {text}: name a value, as VALUE, VALUE:2, VALUE:classes or VALUE:2:classes.")
        named[name] = (1.0 if weight is None else weight) if kind is None else (1.0 if weight is None else weight, kind)
    return named


def _cut(text: str, read: Callable[[str], _T | None]) -> tuple[str, _T | None]:
    """Take what stands behind the last colon off a name, if it can be read."""
    name, _, part = text.rpartition(":")
    found = read(part) if name else None
    return (text, None) if found is None else (name, found)


def _weight(text: str) -> float | None:
    try:
        return float(text) or None
    except ValueError:
        return None


def limits(option: str, texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Read limits by kind of head, written as ``presence:0.99,0.95,0.8``."""
    named = {}
    for text in texts:
        kind, _, figures = text.partition(":")
        try:
            named[kind] = tuple(float(part) for part in figures.split(","))
        except ValueError as error:
            raise PlanError(f"{option} {text}: write it as presence:0.99,0.95,0.8.") from error
    return named


def ranks(option: str, texts: Sequence[str]) -> dict[str, Choice | int | tuple[int, int]]:
    """Read ranks by name, written as ``NODE=32``, ``NODE=expand:32`` or ``NODE=24,32``."""
    named: dict[str, Choice | int | tuple[int, int]] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        form, _, parts = value.rpartition(":")
        try:
            parsed = tuple(int(part) for part in parts.split(","))
        except ValueError:
            parsed = ()
        if not name or len(parsed) not in (1, 2):
            raise PlanError(f"{option} {text}: write it as NODE=32, NODE=expand:32 or NODE=24,32.")
        rank = parsed[0] if len(parsed) == 1 else parsed
        if form:
            named[name] = make_choice(name, form, rank, where=option)
        else:
            named[name] = rank  # type: ignore[assignment]
    return named


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Read values by name, written as ``KEY=VALUE``."""
    named = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise PlanError(f"{option} {text}: write it as KEY=VALUE.")
        named[name] = value
    return named


def _as_read(option: str, value: Any) -> Any:
    return value


#: By the name that a `schema.Line` gives.
SYNTAXES: dict[str, Syntax] = {
    "bytes": Syntax(str, size, size_text),
    "counts": Syntax(list[int], lambda option, values: tuple(values)),
    "forms": Syntax(list[str], forms),
    "function": Syntax(str | None, function),
    "heads": Syntax(list[str], heads, joint=":"),
    "limits": Syntax(list[str], limits, joint=":"),
    "npz": Syntax(str | None, lambda option, path: read_npz(path)),
    "numbers": Syntax(str | None, numbers, lambda default: None),
    "pairs": Syntax(list[str], pairs, joint="="),
    "path": Syntax(Path | None, _as_read),
    "ranks": Syntax(list[str], ranks, joint="="),
    "shapes": Syntax(list[str], shapes, joint=":"),
    "source": Syntax(str, _as_read),
    "tolerances": Syntax(list[str], tolerances, joint=":"),
}
