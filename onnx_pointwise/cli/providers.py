"""``onnx-pointwise providers``."""

from __future__ import annotations

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_output
from onnx_pointwise.cli.output import Output
from onnx_pointwise.reports import terminal as report


@with_output
def providers(output: Output) -> None:
    """List the execution providers of this machine, and why the others are missing."""
    with output.progress() as progress:
        progress("load", "execution providers")
        found = api.discover()
    output.show(report.providers(found))
    output.save({"providers": [info.to_dict() for info in found]})
