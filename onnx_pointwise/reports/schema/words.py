"""The words that schemas are written with."""

from __future__ import annotations

from typing import Any

from onnx_pointwise.check import LIKENESSES
from onnx_pointwise.numerics import FORMS

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
TEXT: Schema = {"type": "string"}
TRUTH: Schema = {"type": "boolean"}
ANY: Schema = {}


def one_of(*words: str) -> Schema:
    """One of some words."""
    return {"enum": list(words)}


def maybe(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def every(schema: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": schema}


def named(schema: Schema) -> Schema:
    """An object whose keys are names."""
    return {"type": "object", "additionalProperties": schema}


def ref(name: str) -> Schema:
    """Another part of the schema."""
    return {"$ref": f"#/$defs/{name}"}


def whole(described: str = "", *, optional: tuple[str, ...] = (), **members: Schema) -> Schema:
    """An object with these members and no other; all of them are there but for the optional ones."""
    about = {"description": described} if described else {}
    required = [name for name in members if name not in optional]
    return {**about, "type": "object", "properties": members, "required": required, "additionalProperties": False}


SHAPE = every(WHOLE)
RANK: Schema = {"anyOf": [WHOLE, {"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2}]}
LIKENESS = one_of(*LIKENESSES)
FORM = one_of(*FORMS)
COST = one_of("macs", "params", "size", "latency")
