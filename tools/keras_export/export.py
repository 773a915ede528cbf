"""Export a Keras model to ONNX, and prove that the ONNX file computes what Keras computes.

    python -m tools.export_keras SOURCE OUT.onnx

SOURCE is a `.keras`, `.h5` or `.hdf5` file (Keras 2 files too), a SavedModel folder, or `module:function`, a function
without arguments that returns a keras.Model. Nothing is written unless every check passes. Exit code 2: the source or
the options are no good; 1: the converted model is not what Keras computes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import onnx
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_pointwise.errors import OnnxPointwiseError, OutputError
from onnx_pointwise.graph.model_io import atomic_folder, require_writable
from tools.keras_check import TOLERANCE, check_agreement, check_inputs, check_structure
from tools.keras_convert import DEFAULT_OPSET, check_memory, check_opset, check_size, to_onnx
from tools.keras_names import rename_dimensions, rename_graph
from tools.keras_runtime import ExportError, Runtime, VerificationError, runtime
from tools.keras_sources import SavedModelSource, open_source
from tools.keras_summary import FOLDED, MUL_AND_ADD, ZERO_BIAS, SummaryRow, summarize
from tools.keras_trace import InputShape, Traceable, trace_model, trace_saved_model

if TYPE_CHECKING:
    import keras

__all__ = ["ExportError", "ExportResult", "SummaryRow", "VerificationError", "app", "export"]


@dataclass(frozen=True)
class ExportResult:
    """A model that passed every check.

    Attributes:
        model: the ONNX model.
        rows: one per layer with weights or a window.
        notes: what is different from the Keras model without being wrong, one sentence each.
        max_error: largest relative difference between ONNX Runtime and Keras.
        batches: the batch sizes on which the two were compared.
        path: the file written; None if none was asked for.
    """

    model: onnx.ModelProto
    rows: tuple[SummaryRow, ...]
    notes: tuple[str, ...]
    max_error: float
    batches: tuple[int, ...]
    path: Path | None

    @property
    def keras_parameters(self) -> int | None:
        """Weights that Keras counts; None for a SavedModel."""
        counts = [row.keras_parameters for row in self.rows]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def onnx_parameters(self) -> int:
        """Weights in the ONNX file."""
        return sum(row.onnx_parameters for row in self.rows)


def export(
    source: str | Path | keras.Model,
    out: str | Path | None = None,
    *,
    opset: int = DEFAULT_OPSET,
    input_shape: InputShape | None = None,
    nchw: bool = False,
    signature: str | None = None,
    unsafe: bool = False,
    ignore_memory: bool = False,
    tolerance: float = TOLERANCE,
) -> ExportResult:
    """Export a Keras model and verify the result.

    Args:
        source: a `.keras`, `.h5` or `.hdf5` file, a SavedModel folder, `module:function`, or a keras.Model.
        out: the ONNX file to write; nothing is written without it, nor when a check fails.
        opset: ONNX operator set, 9 to 18.
        input_shape: static sizes, the batch left out: (224, 224, 3), or by input name.
        nchw: let rank-4 inputs and outputs be [N, C, H, W] instead of Keras' [N, H, W, C].
        signature: which signature of a SavedModel folder.
        unsafe: load Lambda layers; that runs code from the file.
        ignore_memory: convert even if the memory is estimated not to suffice.
        tolerance: largest relative difference allowed between ONNX Runtime and Keras.

    Raises:
        ExportError: the source cannot be read or converted.
        VerificationError: the result is not what Keras computes; it is an ExportError too.
        OutputError: `out` cannot be written, or is the source.
    """
    check_opset(opset)
    target = None if out is None else _target(source, Path(out))
    rt = runtime()
    name, title, traceable = _traceable(rt, source, input_shape, signature, unsafe)
    check_inputs(traceable.specs, name)
    check_size(traceable.weight_bytes, name)
    if not ignore_memory:
        check_memory(traceable.weight_bytes, name)
    with traceable.tracing():
        model = to_onnx(rt, traceable.call, traceable.specs, traceable.output_names, name, opset=opset, nchw=nchw)
    graph = model.graph
    naming = rename_graph(graph, traceable.layer_of, traceable.kernels, [entry.name for entry in traceable.layers])
    rename_dimensions(graph)
    graph.name = title
    graph.ClearField("doc_string")
    check_structure(model, [spec.name for spec in traceable.specs], name)
    agreement = check_agreement(
        model,
        traceable.specs,
        traceable.reference,
        name,
        channels_first=[nchw and spec.shape.rank == 4 for spec in traceable.specs],
        tolerance=tolerance,
    )
    rows = summarize(model, traceable.layers, naming)
    if target is not None:
        with atomic_folder(target) as scratch:
            (scratch / target.name).write_bytes(model.SerializeToString(deterministic=True))
    notes = [*traceable.notes, *_notes(rows, traceable)]
    if not agreement.telling:
        notes.append("The outputs do not change with the input, as in an untrained network: agreement says little.")
    return ExportResult(model, rows, tuple(notes), agreement.error, agreement.batches, target)


def _target(source: str | Path | Any, out: Path) -> Path:
    if isinstance(source, str | Path) and Path(source).exists() and out.exists() and out.samefile(source):
        raise OutputError(f"{out}: is the source itself; name another file for the ONNX model.")
    return require_writable(out)


def _traceable(
    rt: Runtime, source: str | Path | Any, input_shape: InputShape | None, signature: str | None, unsafe: bool
) -> tuple[str, str, Traceable]:
    """Open the source and prepare it for tracing; gives its name for messages and for the graph, too."""
    if not isinstance(source, str | Path):
        if not isinstance(source, rt.keras.Model):
            raise ExportError(
                f"a {type(source).__name__} cannot be exported; give a path, module:function or keras.Model."
            )
        return source.name, source.name, trace_model(rt, source, source.name, input_shape)
    opened = open_source(rt, source, unsafe=unsafe, signature=signature)
    if isinstance(opened, SavedModelSource):
        return opened.name, Path(source).name, trace_saved_model(rt, opened, input_shape)
    return opened.name, opened.model.name, trace_model(rt, opened.model, opened.name, input_shape)


def _notes(rows: tuple[SummaryRow, ...], traceable: Traceable) -> list[str]:
    """What a user may stumble over when comparing the two models."""
    notes = []
    dropped = sum((row.keras_parameters or 0) - row.onnx_parameters for row in rows if row.reason == ZERO_BIAS)
    if dropped:
        notes.append(f"Biases that are all zeros were dropped: {dropped:,} parameters fewer than Keras counts.")
    folded = [row.layer for row in rows if row.reason.startswith(FOLDED)]
    if folded:
        notes.append(f"BatchNormalization was folded into the convolution before it: {', '.join(folded)}.")
    kept = [row.layer for row in rows if row.reason == MUL_AND_ADD]
    if kept:
        notes.append(f"BatchNormalization became Mul and Add: {', '.join(kept)}.")
    open_sizes = any(None in spec.shape[1:] for spec in traceable.specs)
    dilated = [entry.name for entry in traceable.layers if _is_dilated_same(entry.layer)]
    if open_sizes and dilated:
        notes.append(
            f"Dilated convolutions with padding 'same' ({', '.join(dilated)}) take dozens of nodes while height and "
            "width are open; fix them with --input-shape."
        )
    return notes


def _is_dilated_same(layer: Any) -> bool:
    rate = getattr(layer, "dilation_rate", 1)
    rates = rate if isinstance(rate, list | tuple) else (rate,)
    return getattr(layer, "padding", None) == "same" and any(size != 1 for size in rates)


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
    tolerance: Annotated[float, typer.Option(help="Largest relative difference from Keras.")] = TOLERANCE,
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
