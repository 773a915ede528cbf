"""Compare and combine rewriting with static int8, by the metric of networks of your own.

    python -m tools.quantize models/networks.py --target-macs 0.5

The file named is the one that `tools.evaluate` takes. Each network is measured as it is, rewritten, quantised, and
rewritten then quantised, with the same calibration inputs for both. Latencies are shares of the dense float32
network's, measured in turns, batch 1.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import onnx_pointwise
from onnx_pointwise.errors import InputError, OnnxPointwiseError
from onnx_pointwise.graph.model_io import require_writable, write_text
from onnx_pointwise.reports.terminal import percent, size
from onnx_pointwise.runtime.timing import LatencyComparison, compare
from tools.evaluate import load_networks, named_inputs, network_path, pick_networks
from tools.static_int8 import write_float16, write_int8

DENSE, BOTTLENECK = "dense", "bottleneck"
FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        network: Name of the network.
        version: ``dense`` or ``bottleneck``.
        numbers: ``float32``, ``float16`` or ``int8``.
        metric: The network's own figure, higher is better.
        macs: Share of the dense network's multiply-accumulates.
        latency: Latency as a share of the dense float32 network's; ``None`` if not timed.
        latency_interval: 95 % bootstrap interval of it.
        noise: Noise floor of that comparison.
        against_int8: For ``bottleneck`` and ``int8``, latency as a share of the dense int8 network's, timed in turns.
        bytes: Size of the file.
        refused: Why there is no such network, where there is none.
    """

    network: str
    version: str
    numbers: str
    metric: float | None = None
    macs: float | None = None
    latency: float | None = None
    latency_interval: tuple[float, float] | None = None
    noise: float | None = None
    against_int8: float | None = None
    bytes: int | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Timing:
    """How latency is measured: the shapes of inputs with open dimensions, threads, and seconds for a comparison."""

    shapes: Shapes
    threads: int
    seconds: float


def measure(
    module: ModuleType,
    name: str,
    *,
    options: Mapping[str, Any],
    calibration_limit: int | None,
    metric_limit: int | None,
    timing: Timing | None,
    half: bool,
) -> Iterator[Row]:
    """Measure one network in all versions.

    Args:
        module: What `load_networks` gave.
        name: One of its networks.
        options: What `onnx_pointwise.rewrite` is asked for.
        calibration_limit: Calibration inputs to use at most, for the rewrite and for int8.
        metric_limit: Inputs of the metric to use at most.
        timing: How latency is measured; ``None`` leaves it out.
        half: Measure float16 versions too.

    Yields:
        One row after the other, as they are measured.
    """
    path = network_path(module, name)
    examples = named_inputs(path, module.calibration(name, calibration_limit))
    with tempfile.TemporaryDirectory() as folder:
        rewritten, share, refused = Path(folder) / "bottleneck.onnx", 1.0, None
        try:
            result = onnx_pointwise.rewrite(path, calibration=examples, check=False, **options)
            result.save(rewritten)
            share = result.after.macs / max(1, result.before.macs)
        except OnnxPointwiseError as error:
            refused = str(error)
        sources = {DENSE: (path, 1.0, None), BOTTLENECK: (rewritten, share, refused)}
        for numbers in (FLOAT32, *((FLOAT16,) if half else ()), INT8):
            for version, (source, macs, fault) in sources.items():
                row = Row(name, version, numbers, refused=fault)
                if fault is None:
                    row = _row(module, row, path, source, examples, Path(folder), macs, metric_limit, timing)
                yield row


def _row(
    module: ModuleType,
    row: Row,
    dense: Path,
    source: Path,
    examples: Mapping[str, NDArray[Any]],
    folder: Path,
    macs: float,
    limit: int | None,
    timing: Timing | None,
) -> Row:
    """Convert a network to the numbers of a row and measure it."""
    target = source
    try:
        if row.numbers != FLOAT32:
            target = folder / f"{row.version}_{row.numbers}.onnx"
        if row.numbers == INT8:
            write_int8(source, target, examples)
        elif row.numbers == FLOAT16:
            write_float16(source, target)
    except OnnxPointwiseError as error:
        return Row(row.network, row.version, row.numbers, refused=str(error))
    timed = None if timing is None or target == dense else _time(dense, target, timing)
    first = folder / f"{DENSE}_{INT8}.onnx"
    both = timing is not None and (row.version, row.numbers) == (BOTTLENECK, INT8) and first.is_file()
    return Row(
        row.network,
        row.version,
        row.numbers,
        module.metric(row.network, target, limit),
        macs,
        (1.0 if target == dense else None) if timed is None else timed.ratio,
        None if timed is None else timed.interval,
        None if timed is None else timed.noise,
        _time(first, target, timing).ratio if both and timing is not None else None,
        target.stat().st_size,
    )


def _time(before: Path, after: Path, timing: Timing) -> LatencyComparison:
    return compare(
        before, after, input_shapes=timing.shapes or None, threads=timing.threads, max_seconds=timing.seconds
    )


HEADS = ("network", "version", "numbers", "metric", "MACs", "latency", "±", "of int8", "file")


def cells(row: Row) -> list[str]:
    """Write a row."""
    if row.refused is not None:
        return [row.network, row.version, row.numbers, row.refused, "", "", "", "", ""]
    assert row.metric is not None
    assert row.macs is not None
    assert row.bytes is not None
    return [
        row.network,
        row.version,
        row.numbers,
        f"{row.metric:.4f}",
        percent(row.macs),
        "" if row.latency is None else f"{row.latency:.3f}",
        "" if row.noise is None else f"{row.noise:.3f}",
        "" if row.against_int8 is None else f"{row.against_int8:.3f}",
        size(row.bytes),
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Write all rows as a Markdown table."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    return "\n".join([*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows)]) + "\n"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="Python file that describes the networks.", show_default=False)],
    network: Annotated[list[str], typer.Option(help="Only these networks.")] = [],  # noqa: B006
    target_macs: Annotated[float, typer.Option(help="Share of the MACs to keep.")] = 0.5,
    plan: Annotated[Path | None, typer.Option(help="Replay this plan instead, for one network.")] = None,
    calibration_limit: Annotated[int | None, typer.Option(min=1, help="Calibration inputs to use at most.")] = None,
    metric_limit: Annotated[int | None, typer.Option(min=1, help="Inputs of the metric to use at most.")] = None,
    input_shape: Annotated[
        list[str],
        typer.Option(metavar="NAME:1,3,224,224", help="Shape to time an input with open dimensions at."),
    ] = [],  # noqa: B006
    provider: Annotated[
        str, typer.Option(help="Provider whose latency ranks are chosen by; none plans by arithmetic.")
    ] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads that latency is measured with.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each comparison of latencies.")] = 10.0,
    float16: Annotated[bool, typer.Option("--float16", help="Measure float16 versions too.")] = False,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Do not time the networks.")] = False,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the table as Markdown.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows as JSON.")] = None,
) -> None:
    """Print the table of dense, rewritten, quantised, and rewritten then quantised."""
    console = Console()
    try:
        module = load_networks(file)
        for target in (markdown_file, json_file):
            if target is not None:
                require_writable(target)
        names = pick_networks(module, file, network)
        if plan is not None and len(names) != 1:
            raise InputError(f"--plan {plan}: a plan is for one network; name it with --network.")
        if not 0 < target_macs <= 1:
            raise InputError(f"--target-macs {target_macs:g}: write a share above 0 and at most 1.")
        timing = None if no_latency else Timing(_shapes(input_shape), threads, seconds)
        rows: list[Row] = []
        table = Table(*HEADS, box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for name in names:
            for row in measure(
                module,
                name,
                options={
                    **({"target_macs": target_macs} if plan is None else {"plan": plan}),
                    "provider": provider,
                    "threads": threads,
                    "input_shapes": _shapes(input_shape) or None,
                },
                calibration_limit=calibration_limit,
                metric_limit=metric_limit,
                timing=timing,
                half=float16,
            ):
                rows.append(row)
                table.add_row(*cells(row))
                console.print(f"{name} {row.version} {row.numbers}: {row.refused or row.metric}", style="dim")
        console.print(table)
        if markdown_file is not None:
            write_text(markdown_file, markdown(rows))
        if json_file is not None:
            write_text(json_file, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    except OnnxPointwiseError as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        try:
            shapes[name] = tuple(int(part) for part in sizes.split(","))
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--input-shape {text}: write it as NAME:1,3,224,224.")
    return shapes


if __name__ == "__main__":
    app()
