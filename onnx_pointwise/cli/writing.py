"""How the commands that write a model begin and end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import typer

import onnx_pointwise as api
from onnx_pointwise.cli.output import CHECK_FAILED, Output, errors
from onnx_pointwise.graph import require_writable, staged, staged_text
from onnx_pointwise.jobs import require_other_file
from onnx_pointwise.reports import Text
from onnx_pointwise.reports import terminal as report


def prepare(source: Path, target: Path, save_plan: Path | None = None, quantized: Path | None = None) -> None:
    """See that everything can be written before any work is done."""
    require_other_file(source, target)
    require_writable(target)
    if save_plan is not None:
        require_writable(save_plan)
    if quantized is not None:
        require_writable(quantized)


def finish(
    output: Output,
    result: api.RewriteResult,
    target: Path,
    *,
    force: bool,
    external_data: bool | None,
    document: dict[str, Any] | None = None,
    save_plan: Path | None = None,
    quantized: Path | None = None,
) -> None:
    """Write the model if its check passed, say what happened, and exit accordingly.

    Where one of the files cannot be written, none is.

    Args:
        output: Where tables and JSON go.
        result: The result.
        target: The file to write.
        force: Write it even if the check failed.
        external_data: Keep weights outside the file, or inside; as the input if ``None``.
        document: The JSON, where it is more than the result's own.
        save_plan: The file for the plan.
        quantized: The file for the network in the precision that it is deployed in.
    """
    written = result.passed or force
    plan = contextlib.nullcontext() if save_plan is None else staged_text(save_plan, result.plan.to_json())
    deployed: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if quantized is not None and written and result.deployed is not None:
        deployed = staged(result.deployed.model, quantized, use_external_data_format=external_data)
    with plan, deployed, output.saving(document or result.to_dict()):
        if written:
            result.save(target, use_external_data_format=external_data)
    output.show(report.rewrite(result, whole=output.whole))
    _wrong(output, result)
    if written:
        both = target if quantized is None else f"{target} and {quantized}"
        output.show(Text(f"Wrote {both} in {result.seconds['total']:.1f} s."))
    else:
        text = f"The check failed; {target} was not written. --force writes it all the same."
        (errors() if output.quiet else output.console).print(Text(text, style="bold red"))
    if not result.passed:
        raise typer.Exit(CHECK_FAILED)


def _wrong(output: Output, result: api.RewriteResult) -> None:
    """Say what is wrong where nothing else is said."""
    check = result.check
    warnings = [*result.calibration.get("warnings", ()), *(() if check is None else check.warnings)]
    output.wrong(warnings, () if check is None else [finding.sentence for finding in check.findings])
