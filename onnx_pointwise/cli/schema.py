"""``onnx-pointwise schema``."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from onnx_pointwise.reports import schema as results

Result = Annotated[
    str, typer.Argument(metavar="RESULT", help=f"One of {', '.join(results.RESULTS)}.", show_default=False)
]


def schema(result: Result = "rewrite") -> None:
    """Print the JSON Schema of what a command writes with --json, or of a plan."""
    sys.stdout.write(json.dumps(results.schema(result), indent=2) + "\n")
