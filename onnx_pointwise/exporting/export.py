"""Export a Keras model to ONNX, and prove that the ONNX file computes what Keras computes: all steps in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnx_pointwise.errors import OutputError
from onnx_pointwise.exporting.check import (
    TOLERANCE,
    check_agreement,
    check_inputs,
    check_structure,
    tolerance_of,
)
from onnx_pointwise.exporting.convert import DEFAULT_OPSET, check_memory, check_opset, check_size, to_onnx
from onnx_pointwise.exporting.layouts import channels_last_inside
from onnx_pointwise.exporting.names import rename_dimensions, rename_graph
from onnx_pointwise.exporting.runtime import ExportError, Runtime, runtime
from onnx_pointwise.exporting.sources import SavedModelSource, open_source
from onnx_pointwise.exporting.summary import FOLDED, MUL_AND_ADD, ZERO_BIAS, SummaryRow, summarize
from onnx_pointwise.exporting.trace import InputShape, Traceable, trace_model, trace_saved_model
from onnx_pointwise.graph import atomic_folder, require_writable

if TYPE_CHECKING:
    import keras


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
    tolerance: float | None = None,
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
        tolerance: largest relative difference allowed between ONNX Runtime and Keras; 1e-4 if None, more where layers
            compute in half precision.

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
    dtypes = sorted({str(getattr(entry.layer, "compute_dtype", "")) for entry in traceable.layers})
    allowed = tolerance_of(dtypes) if tolerance is None else tolerance
    with channels_last_inside(rt):
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
            tolerance=allowed,
        )
    rows = summarize(model, traceable.layers, naming)
    if target is not None:
        with atomic_folder(target) as scratch:
            (scratch / target.name).write_bytes(model.SerializeToString(deterministic=True))
    notes = [*traceable.notes, *_notes(rows, traceable)]
    if tolerance is None and allowed > TOLERANCE:
        half = " and ".join(dtype for dtype in dtypes if tolerance_of([dtype]) > TOLERANCE)
        notes.append(f"Layers compute in {half}, so agreement was asked for to {allowed:.1e} only.")
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
