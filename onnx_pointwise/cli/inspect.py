"""``onnx-pointwise inspect``."""

from __future__ import annotations

from dataclasses import replace

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_options
from onnx_pointwise.cli.output import Model, Output
from onnx_pointwise.reports import terminal as report
from onnx_pointwise.settings import InspectSettings


@with_options(InspectSettings, report=True)
def inspect(model: Model, settings: InspectSettings, output: Output) -> None:
    """Show each convolution: cost, spectrum, the ranks that would do, or why it stays dense."""
    with output.progress() as progress:
        result = api.inspect(model, replace(settings, progress=progress))
    output.show(report.inspection(result, whole=output.whole))
    output.save(result.to_dict())
