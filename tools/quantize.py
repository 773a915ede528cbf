"""Compare and combine rewriting with static int8, by the metric of networks of your own.

    python -m tools.quantize models/networks.py --target-macs 0.5

The file named is the one that `tools.evaluate` takes. Each network is measured as it is, rewritten, quantised, and
rewritten then quantised, with the same calibration inputs for both; it is planned for int8 (`rewrite --deploy int8`).
Latencies are shares of the dense float32 network's, measured in turns, batch 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from numpy.typing import NDArray
from rich.console import Console

import onnx_pointwise
from onnx_pointwise.deploying import Deployment
from onnx_pointwise.errors import InputError, OnnxPointwiseError
from onnx_pointwise.graph import load, save
from onnx_pointwise.reports.terminal import percent, size
from tools import measuring
from tools.measuring import DENSE, Files, Networks, Timing, load_networks, terminal_table, told

BOTTLENECK = "bottleneck"
FLOAT32: Literal["float32"] = "float32"
FLOAT16: Literal["float16"] = "float16"
INT8: Literal["int8"] = "int8"


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
class _Version:
    """A float32 file that is measured as it is and in other numbers.

    Attributes:
        name: ``dense`` or ``bottleneck``.
        file: The file.
        macs: Share of the dense network's multiply-accumulates.
        refused: Why there is no such network, where there is none.
    """

    name: str
    file: Path
    macs: float = 1.0
    refused: str | None = None


def measure(
    networks: Networks, name: str, *, options: Mapping[str, Any], timing: Timing | None, half: bool
) -> Iterator[Row]:
    """Measure one network in all versions.

    Args:
        networks: What `load_networks` gave.
        name: One of its networks; its calibration inputs serve the rewrite and int8.
        options: What `onnx_pointwise.rewrite` is asked for.
        timing: How latency is measured; ``None`` leaves it out.
        half: Measure float16 versions too.

    Yields:
        One row after the other, as they are measured.
    """
    dense = _Version(DENSE, networks.path(name))
    examples = networks.examples(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        versions = dense, _rewritten(dense.file, folder / "bottleneck.onnx", examples, options)
        for numbers in (FLOAT32, *((FLOAT16,) if half else ()), INT8):
            for version in versions:
                yield _row(networks, name, version, numbers, examples, folder, timing)


def _rewritten(
    source: Path, target: Path, examples: Mapping[str, NDArray[Any]], options: Mapping[str, Any]
) -> _Version:
    try:
        result = onnx_pointwise.rewrite(source, calibration=examples, check=False, **options)
    except OnnxPointwiseError as error:
        return _Version(BOTTLENECK, target, refused=str(error))
    result.save(target)
    return _Version(BOTTLENECK, target, result.after.macs / max(1, result.before.macs))


def _row(
    networks: Networks,
    name: str,
    version: _Version,
    numbers: str,
    examples: Mapping[str, NDArray[Any]],
    folder: Path,
    timing: Timing | None,
) -> Row:
    """Convert a version to other numbers and measure it."""
    refused = version.refused
    target = version.file if numbers == FLOAT32 else folder / f"{version.name}_{numbers}.onnx"
    if refused is None:
        try:
            if numbers != FLOAT32:
                deployment = Deployment(INT8 if numbers == INT8 else FLOAT16)
                save(deployment.made(load(version.file), examples), target)
        except OnnxPointwiseError as error:
            refused = str(error)
    if refused is not None:
        return Row(name, version.name, numbers, refused=refused)
    dense = networks.path(name)
    timed = None if timing is None or target == dense else timing.compare(dense, target)
    first = folder / f"{DENSE}_{INT8}.onnx"
    both = (version.name, numbers) == (BOTTLENECK, INT8) and first.is_file()
    return Row(
        name,
        version.name,
        numbers,
        networks.metric(name, target),
        version.macs,
        (1.0 if target == dense else None) if timed is None else timed.ratio,
        None if timed is None else timed.interval,
        None if timed is None else timed.noise,
        timing.compare(first, target).ratio if both and timing is not None else None,
        target.stat().st_size,
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


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: measuring.DescriptionFile,
    network: measuring.Only = [],  # noqa: B006
    target_macs: Annotated[float, typer.Option(help="Share of the MACs to keep.")] = 0.5,
    target_latency: Annotated[float | None, typer.Option(help="Share of the int8 latency to keep instead.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Replay this plan instead, for one network.")] = None,
    calibration_limit: measuring.CalibrationLimit = None,
    metric_limit: measuring.MetricLimit = None,
    input_shape: Annotated[
        list[str],
        typer.Option(metavar="NAME:1,3,224,224", help="Shape to time an input with open dimensions at."),
    ] = [],  # noqa: B006
    provider: measuring.PlanFor = "cpu",
    threads: measuring.Threads = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each comparison of latencies.")] = 10.0,
    float16: Annotated[bool, typer.Option("--float16", help="Measure float16 versions too.")] = False,
    no_latency: measuring.NoLatency = False,
    markdown_file: measuring.MarkdownFile = None,
    json_file: measuring.JsonFile = None,
) -> None:
    """Print the table of dense, rewritten, quantised, and rewritten then quantised."""
    console = Console()
    with told():
        networks = load_networks(file, network, calibration_limit=calibration_limit, metric_limit=metric_limit)
        files = Files(markdown_file, json_file)
        files.require_writable()
        if plan is not None and len(networks.names) != 1:
            raise InputError(f"--plan {plan}: a plan is for one network; name it with --network.")
        if not 0 < target_macs <= 1:
            raise InputError(f"--target-macs {target_macs:g}: write a share above 0 and at most 1.")
        shapes = _shapes(input_shape)
        budget: dict[str, Any] = {"target_macs": target_macs}
        if target_latency is not None:
            budget = {"target_latency": target_latency}
        if plan is not None:
            budget = {"plan": plan}
        options = budget | {"provider": provider, "threads": threads, "input_shapes": shapes or None, "deploy": INT8}
        timing = None if no_latency else Timing(threads, shapes, seconds)
        rows: list[Row] = []
        for name in networks.names:
            for row in measure(networks, name, options=options, timing=timing, half=float16):
                rows.append(row)
                console.print(f"{name} {row.version} {row.numbers}: {row.refused or row.metric}", style="dim")
        lines = [cells(row) for row in rows]
        console.print(terminal_table(HEADS, lines))
        files.write(rows, HEADS, lines)


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
