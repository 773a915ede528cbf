"""``onnx-pointwise rewrite``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_options
from onnx_pointwise.cli.output import CHECK_FAILED, PANEL, External, Force, Output, Quantized
from onnx_pointwise.cli.writing import finish, prepare
from onnx_pointwise.errors import OutputError, PlanError
from onnx_pointwise.jobs import expected, models_in
from onnx_pointwise.reports import terminal as report
from onnx_pointwise.schema import shared
from onnx_pointwise.settings import ManySettings, Settings

Sources = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="A .onnx, Keras or .pt2 file; a folder or pattern of .onnx files.",
        show_default=False,
    ),
]
Targets = Annotated[
    Path, typer.Argument(metavar="OUT", help="The .onnx file to write, or the folder.", show_default=False)
]
SavePlan = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan as JSON.", rich_help_panel=PANEL)]


@with_options(ManySettings, report=True)
def rewrite(
    source: Sources,
    target: Targets,
    settings: ManySettings,
    output: Output,
    save_plan: SavePlan = None,
    quantized: Quantized = None,
    force: Force = False,
    external_data: External = None,
) -> None:
    """Insert 1x1 convolutions while the answers stay the same, or until a budget is met; check the result, write it."""
    if models_in(source) is not None:
        if save_plan is not None:
            raise OutputError("--save-plan is for one model; the plans of many are in the JSON.")
        if quantized is not None:
            raise OutputError("--quantized is for one model; name one, or quantise what is written.")
        _many(source, target, replace(settings, force=force, external_data=external_data), output)
        return
    if settings.scheduler is not None:
        raise PlanError("--scheduler hands out models; one alone is rewritten here.")
    if quantized is not None and not settings.deployment.changes:
        raise PlanError("--quantized writes the network in another precision; name it: --deploy int8 or float16.")
    prepare(source, target, save_plan, quantized)
    with output.progress(expected(settings)) as progress:
        result = api.rewrite(source, replace(Settings(**shared(settings, Settings)), progress=progress))
    finish(
        output,
        result,
        target,
        force=force,
        external_data=external_data,
        save_plan=save_plan,
        quantized=quantized,
    )


def _many(source: Path, target: Path, settings: ManySettings, output: Output) -> None:
    """Rewrite every model that is meant."""
    with output.progress() as progress:
        result = api.rewrite_all(source, target, replace(settings, progress=progress))
    output.show(report.many(result))
    output.wrong((), [sentence for one in result.models for sentence in report.sentences(one)])
    output.save(result.to_dict())
    if not result.passed:
        raise typer.Exit(CHECK_FAILED)
