"""``onnx-pointwise check``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_options
from onnx_pointwise.cli.output import CHECK_FAILED, Output
from onnx_pointwise.jobs import expected
from onnx_pointwise.reports import terminal as report
from onnx_pointwise.settings import CheckSettings


@with_options(CheckSettings, report=True)
def check(
    before: Annotated[Path, typer.Argument(help="The model as it was.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="The rewritten model.", show_default=False)],
    settings: CheckSettings,
    output: Output,
) -> None:
    """Compare two models in ONNX Runtime: shapes, drift, cost and latency."""
    with output.progress(expected(settings)) as progress:
        result = api.check(before, after, replace(settings, progress=progress))
    output.show(report.check(result, whole=output.whole))
    output.wrong(result.warnings, [finding.sentence for finding in result.findings])
    output.save(result.to_dict())
    if not result.passed:
        raise typer.Exit(CHECK_FAILED)
