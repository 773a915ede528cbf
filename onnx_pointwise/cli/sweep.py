"""``onnx-pointwise sweep``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_options
from onnx_pointwise.cli.output import External, Force, Model, Output, Quantized
from onnx_pointwise.cli.writing import finish, prepare
from onnx_pointwise.errors import OutputError, PlanError
from onnx_pointwise.jobs import expected
from onnx_pointwise.reports import terminal as report
from onnx_pointwise.settings import SweepSettings

Picked = Annotated[
    Path | None, typer.Argument(metavar="OUT", help="Where the network that --pick names goes.", show_default=False)
]


@with_options(SweepSettings, report=True)
def sweep(
    source: Model,
    settings: SweepSettings,
    output: Output,
    target: Picked = None,
    quantized: Quantized = None,
    force: Force = False,
    external_data: External = None,
) -> None:
    """Make networks from dear to cheap and show what each costs and answers; write the one that --pick names."""
    if (target is None) != (settings.pick is None):
        raise OutputError("To write a network, name the file OUT and what to pick it by, --pick knee, 0.7, close, ...")
    if quantized is not None and (target is None or not settings.deployment.changes):
        raise PlanError(
            "--quantized writes the network that --pick names in another precision; name OUT, a rule and the "
            "precision: --pick close --deploy int8."
        )
    if target is not None:
        prepare(source, target, quantized)
    with output.progress(expected(settings)) as progress:
        result = api.sweep(source, replace(settings, progress=progress))
    output.show(report.sweep(result))
    if target is None or result.picked is None:
        output.save(result.to_dict())
    else:
        finish(
            output,
            result.picked,
            target,
            force=force,
            external_data=external_data,
            quantized=quantized,
            document=result.to_dict(),
        )
