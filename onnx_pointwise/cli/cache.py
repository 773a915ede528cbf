"""``onnx-pointwise cache``."""

from __future__ import annotations

from typing import Annotated

import typer

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_output
from onnx_pointwise.cli.output import PANEL, Output
from onnx_pointwise.reports import terminal as report

Clear = Annotated[bool, typer.Option("--clear", help="Forget all measurements.", rich_help_panel=PANEL)]


@with_output
def cache(output: Output, clear: Clear = False) -> None:
    """Show where measured latencies are kept, or forget them."""
    info = api.cache_info()
    if clear:
        api.clear_cache()
    output.show(report.cache(info, cleared=clear))
    output.save(info.to_dict() | {"cleared": clear})
