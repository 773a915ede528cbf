"""``onnx-pointwise insert``."""

from __future__ import annotations

from dataclasses import replace

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_options
from onnx_pointwise.cli.output import External, Force, Output, Source, Target
from onnx_pointwise.cli.writing import finish, prepare
from onnx_pointwise.jobs import expected
from onnx_pointwise.settings import InsertSettings


@with_options(InsertSettings, report=True)
def insert(
    source: Source,
    target: Target,
    settings: InsertSettings,
    output: Output,
    force: Force = False,
    external_data: External = None,
) -> None:
    """Put one 1x1 convolution in front of one convolution, whatever it costs."""
    prepare(source, target)
    with output.progress(expected(settings)) as progress:
        result = api.insert_pointwise(source, replace(settings, progress=progress))
    finish(output, result, target, force=force, external_data=external_data)
