"""``onnx-pointwise bench``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import onnx_pointwise as api
from onnx_pointwise.cli.options import with_options
from onnx_pointwise.cli.output import PANEL, Model, Output
from onnx_pointwise.reports import terminal as report
from onnx_pointwise.runtime import one_batch
from onnx_pointwise.settings import BenchSettings

Other = Annotated[Path | None, typer.Argument(help="Another one to compare with.", show_default=False)]
Nodes = Annotated[bool, typer.Option("--nodes", help="Time each kernel of the model too.", rich_help_panel=PANEL)]


@with_options(BenchSettings)
def bench(
    model: Model,
    settings: BenchSettings,
    output: Output,
    other: Other = None,
    nodes: Nodes = False,
) -> None:
    """Time a model, alone or in turns with another one."""
    with output.progress() as progress:
        result = api.bench(model, replace(settings, other=other, progress=progress))
        if nodes:
            progress("kernels", "of the model")
        kernels = _kernels(model, settings) if nodes else []
    output.show(report.bench(result, kernels, whole=output.whole))
    output.wrong(result.warnings, ())
    output.save(result.to_dict() | {"nodes": [kernel.to_dict() for kernel in kernels]})


def _kernels(model: Path, settings: BenchSettings) -> list[api.NodeTime]:
    return api.node_times(
        model,
        inputs=None if settings.inputs is None else one_batch(model, settings.inputs),
        input_shapes=settings.input_shapes,
        provider=settings.provider,
        threads=settings.thread_counts[0],
        freeze_initializers=settings.freeze_initializers,
    )
