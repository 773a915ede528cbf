"""Export a Keras model to ONNX, and prove that the ONNX file computes what Keras computes.

    python -m tools.export_keras SOURCE OUT.onnx

SOURCE is a `.keras`, `.h5` or `.hdf5` file (Keras 2 files too), a SavedModel folder, or `module:function`, a function
without arguments that returns a keras.Model. Nothing is written unless every check passes. Exit code 2: the source or
the options are no good; 1: the converted model is not what Keras computes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.exporting.convert import DEFAULT_OPSET
from onnx_pointwise.exporting.export import ExportResult, export
from onnx_pointwise.exporting.runtime import ExportError, VerificationError
from onnx_pointwise.exporting.trace import InputShape

__all__ = ["ExportError", "ExportResult", "VerificationError", "app", "export"]


def parse_input_shape(texts: list[str]) -> InputShape | None:
    """Read `--input-shape` options: `224,224,3` once, or `NAME=224,224,3` for each input.

    Raises:
        ExportError: one of them is not a list of positive whole numbers.
    """
    named: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise ExportError(f"--input-shape {text}: give positive sizes without the batch, such as 224,224,3.")
        named[name] = shape
    if "" in named and len(texts) > 1:
        raise ExportError("--input-shape: with several, name the input of each: NAME=224,224,3.")
    return named.get("", named or None)


def _print(result: ExportResult, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("layer", "kernel", "stride", "output shape"):
        table.add_column(heading, overflow="fold")
    table.add_column("Keras", justify="right", no_wrap=True)
    table.add_column("ONNX", justify="right", no_wrap=True)
    table.add_column("why they differ", overflow="fold")
    for row in result.rows:
        table.add_row(
            escape(row.layer),
            _by(row.kernel),
            _by(row.stride),
            _by(row.output_shape[1:]),
            "" if row.keras_parameters is None else f"{row.keras_parameters:,}",
            f"{row.onnx_parameters:,}",
            escape(row.reason),
        )
    table.add_section()
    total = "" if result.keras_parameters is None else f"{result.keras_parameters:,}"
    table.add_row("total", "", "", "", total, f"{result.onnx_parameters:,}", "")
    console.print(table)
    for note in result.notes:
        console.print(escape(note), soft_wrap=True)
    batches = " and ".join(str(batch) for batch in result.batches)
    console.print(
        f"{result.path}: {len(result.model.graph.node)} nodes, {result.model.ByteSize():,} bytes.", soft_wrap=True
    )
    console.print(f"ONNX Runtime agrees with the original to {result.max_error:.1e} relative on batches of {batches}.")


def _by(sizes: tuple[int | None, ...] | None) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes or ())


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    source: Annotated[
        str, typer.Argument(help="A .keras, .h5 or .hdf5 file, a SavedModel folder, or module:function.")
    ],
    out: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = DEFAULT_OPSET,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(help="Static sizes without the batch, H,W,C or NAME=H,W,C; once for each input to fix."),
    ] = None,
    nchw: Annotated[bool, typer.Option("--nchw", help="Rank-4 inputs and outputs as N,C,H,W.")] = False,
    signature: Annotated[str | None, typer.Option(help="Which signature of a SavedModel folder.")] = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help="Load Lambda layers: runs code from the file.")] = False,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Convert even if the memory looks too small.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest relative difference from Keras; 1e-4, more where it computes in half precision."),
    ] = None,
) -> None:
    """Export a Keras model to ONNX and prove that it computes what Keras computes."""
    try:
        result = export(
            source,
            out,
            opset=opset,
            input_shape=parse_input_shape(input_shape or []),
            nchw=nchw,
            signature=signature,
            unsafe=unsafe,
            ignore_memory=ignore_memory,
            tolerance=tolerance,
        )
    except OnnxPointwiseError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1 if isinstance(error, VerificationError) else 2) from error
    _print(result, Console())


if __name__ == "__main__":
    app()
