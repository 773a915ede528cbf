"""Every result that becomes JSON, filled with numbers that JSON does not know."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import onnx_ir as ir
import pytest

import onnx_pointwise
from onnx_pointwise.graph import Site, find_sites, load
from onnx_pointwise.jsonable import jsonable
from tests.graphs import conv_model, normal


def results() -> Iterator[type]:
    """Every dataclass of the package that has a ``to_dict``."""
    for module in pkgutil.walk_packages(onnx_pointwise.__path__, "onnx_pointwise."):
        if module.name.endswith(("__main__", ".olive")):  # a pass of another tool, which has to be there
            continue
        for item in vars(importlib.import_module(module.name)).values():
            ours = isinstance(item, type) and item.__module__ == module.name
            if ours and dataclasses.is_dataclass(item) and hasattr(item, "to_dict"):
                yield item


MODEL = load(conv_model(normal(4, 4, 3, 3), [8, 8]))
GIVEN: dict[Any, Any] = {float: math.inf, int: 1, str: "x", bool: True, Any: math.nan, Path: Path("x"), ir.Model: MODEL}


def build(kind: Any) -> Any:
    """Make a value of a type, as bad as it may be."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in GIVEN:
        return GIVEN[kind]
    if kind is Site:
        return find_sites(MODEL)[0]
    if origin is Literal:
        return arguments[0]
    if origin in (Union, types.UnionType):
        return build(next(argument for argument in arguments if argument is not type(None)))
    if origin is np.ndarray or kind is np.ndarray:
        return np.array([1.0, np.nan, np.inf])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {build(arguments[0]): build(arguments[1])}
    if origin is tuple:
        return tuple(build(argument) for argument in arguments if argument is not Ellipsis)
    if isinstance(origin, type):  # sequences
        return [build(arguments[0])]
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        made = object.__new__(kind)  # what checks its arguments would refuse these
        for field in dataclasses.fields(kind):
            object.__setattr__(made, field.name, build(hints[field.name]))
        return made
    raise AssertionError(f"no value of {kind}")


@pytest.mark.parametrize("kind", list(results()), ids=lambda kind: kind.__name__)
def test_results_are_json_whatever_was_measured(kind: type) -> None:
    document = build(kind).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_what_json_knows_is_left_alone_and_the_rest_becomes_it() -> None:
    document = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    assert jsonable(document) == document
    assert jsonable({1: (math.nan, -math.inf), "p": Path("x")}) == {"1": [None, None], "p": "x"}
    assert jsonable([np.float32(0.5), np.int64(3), np.array([[1.0, np.inf]]), np.bool_(True)]) == [
        0.5,
        3,
        [[1, None]],
        True,
    ]
