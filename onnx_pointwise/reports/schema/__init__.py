"""What the JSON of each command holds, as JSON Schema (draft 2020-12): every member, and that there is no other.

A number that is not finite, or not known, is null. Times are in seconds, sizes in bytes, shares from 0 to 1.
"""

from __future__ import annotations

from typing import Any

from onnx_pointwise.errors import InputError
from onnx_pointwise.reports.schema.comparing import CHECKED
from onnx_pointwise.reports.schema.making import MADE
from onnx_pointwise.reports.schema.running import RUN
from onnx_pointwise.reports.schema.shared import SHARED
from onnx_pointwise.reports.schema.words import DRAFT

#: What there is a schema for: the JSON of the commands (``insert`` gives that of ``rewrite``), of a rewrite of many
#: models, and the plan.
RESULTS = ("rewrite", "sweep", "inspect", "check", "bench", "providers", "cache", "many", "plan")

__all__ = ["RESULTS", "schema"]


def schema(result: str) -> dict[str, Any]:
    """Give the schema of a result, with all that it refers to.

    Raises:
        InputError: There is no such result.
    """
    if result not in RESULTS:
        raise InputError(f"There is no schema of {result!r}; there are those of {', '.join(RESULTS)}.")
    known = {**SHARED, **CHECKED, **MADE, **RUN}
    used: dict[str, Any] = {}
    left = [result]
    while left:
        name = left.pop()
        if name not in used:
            used[name] = known[name]
            left += _references(known[name])
    title = f"onnx_pointwise {result}"
    return {"$schema": DRAFT, "title": title, "$ref": f"#/$defs/{result}", "$defs": dict(sorted(used.items()))}


def _references(value: Any) -> list[str]:
    """The other parts that a part refers to."""
    if isinstance(value, dict):
        here = [str(value["$ref"]).rsplit("/", 1)[-1]] if isinstance(value.get("$ref"), str) else []
        return here + [name for item in value.values() for name in _references(item)]
    if isinstance(value, list):
        return [name for item in value for name in _references(item)]
    return []
