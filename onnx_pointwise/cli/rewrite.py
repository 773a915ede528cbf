"""``onnx-pointwise rewrite``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_options
from onnx_pointwise.cli.output import PANEL, External, Force, Output, Source, Target
from onnx_pointwise.cli.writing import finish, prepare
from onnx_pointwise.graph import write_text
from onnx_pointwise.settings import Settings

SavePlan = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan as JSON.", rich_help_panel=PANEL)]


@with_options(Settings)
def rewrite(
    source: Source,
    target: Target,
    settings: Settings,
    output: Output,
    save_plan: SavePlan = None,
    force: Force = False,
    external_data: External = None,
) -> None:
    """Insert 1x1 convolutions while the answers stay the same, or until a budget is met; check the result, write it."""
    prepare(source, target, save_plan)
    with output.progress() as progress:
        result = api.rewrite(source, replace(settings, progress=progress))
    if save_plan is not None:
        write_text(save_plan, result.plan.to_json())
    finish(output, result, target, force=force, external_data=external_data)
