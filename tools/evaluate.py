"""Measure what rewriting does to networks of your own, by their own metric.

    python -m tools.evaluate models/networks.py --target-macs 0.7,0.5

What the file named has to define stands at the head of ``tools/measuring.py``.

Every rewrite runs in a process of its own, so that seconds and peak memory are its own too.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from numpy.typing import NDArray
from rich.console import Console

import onnx_pointwise
from onnx_pointwise.errors import InputError, OnnxPointwiseError
from onnx_pointwise.numerics import Method
from onnx_pointwise.reports.terminal import count, percent, size
from onnx_pointwise.runtime import open_session
from tools import measuring
from tools.measuring import DENSE, Files, Networks, Timing, load_networks, terminal_table, told

REFIT = "refit"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        network: Name of the network.
        method: How it was rewritten, or ``dense``.
        target: Share of the MACs asked for.
        metric: The network's own figure.
        macs: Multiply-accumulates of one run.
        params: Numbers stored.
        latency: Latency as a share of the dense network's, medians of interleaved runs; ``None`` if not timed.
        latency_interval: 95 % bootstrap interval of it.
        seconds: Wall time of the rewrite.
        passes: The same by the time that one pass of the calibration inputs through the dense network takes in ONNX
            Runtime; ``None`` without calibration inputs.
        peak_bytes: Peak memory of the rewrite's process.
        refused: Why there is no rewritten network, where there is none.
    """

    network: str
    method: str
    target: float
    metric: float | None
    macs: int | None
    params: int | None
    latency: float | None = None
    latency_interval: tuple[float, float] | None = None
    seconds: float | None = None
    passes: float | None = None
    peak_bytes: int | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Asked:
    """What is measured of each network.

    Attributes:
        methods: ``refit``, the full method, and ways to factorise without it.
        targets: Shares of the MACs to keep.
        data: Whether a rewrite gets the calibration inputs; synthetic ones otherwise.
        provider: Provider to plan for.
        timing: How latency is measured; ``None`` leaves it out.
        threads: Threads to plan for.
    """

    methods: Sequence[str]
    targets: Sequence[float]
    data: bool = True
    provider: str = "none"
    threads: int = 1
    timing: Timing | None = None

    def options(self, method: str, target: float) -> dict[str, Any]:
        """What `onnx_pointwise.rewrite` is asked for."""
        options: dict[str, Any] = {"target_macs": target, "provider": self.provider, "threads": self.threads}
        return options if method == REFIT else options | {"method": method, "refit": False}


def _rewrite(source: str, target: str, options: dict[str, Any], examples: dict[str, NDArray[Any]] | None) -> Any:
    """Rewrite in a process of its own; gives cost, seconds, passes and peak memory, or the sentence of a refusal."""
    try:
        calibration: Any = "auto" if examples is None else examples
        result = onnx_pointwise.rewrite(source, calibration=calibration, check=False, **options)
    except OnnxPointwiseError as error:
        return str(error)
    result.save(target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = result.seconds["total"]
    passes = None if examples is None else seconds / _dense_pass(source, examples)
    return result.after.macs, result.after.params, seconds, passes, peak


def _dense_pass(path: str, examples: dict[str, NDArray[Any]], batch: int = 64) -> float:
    """Seconds that all examples take through a network, after a warm-up; the faster of two passes."""
    session = open_session(path)
    fixed = [item.shape[0] for item in session.get_inputs() if item.shape and isinstance(item.shape[0], int)]
    batch = fixed[0] if fixed else batch
    count = len(next(iter(examples.values())))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for index in range(0, count, batch):
            session.run(None, {name: array[index : index + batch] for name, array in examples.items()})
        times.append(time.perf_counter() - start)
    return min(times[1:])


def evaluate(networks: Networks, name: str, asked: Asked) -> Iterator[Row]:
    """Measure one network: dense, then every method at every budget.

    Yields:
        One row after the other, as they are measured.
    """
    path = networks.path(name)
    dense = onnx_pointwise.inspect(path).cost
    yield Row(name, DENSE, 1.0, networks.metric(name, path), dense.macs, dense.params, 1.0)
    examples = networks.examples(name) if asked.data else None
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for target in asked.targets:
            for method in asked.methods:
                out = Path(folder) / "rewritten.onnx"
                with context.Pool(1) as pool:
                    outcome = pool.apply(_rewrite, (str(path), str(out), asked.options(method, target), examples))
                if isinstance(outcome, str):
                    yield Row(name, method, target, None, None, None, refused=outcome)
                    continue
                macs, params, seconds, passes, peak = outcome
                timed = None if asked.timing is None else asked.timing.compare(path, out)
                yield Row(
                    name,
                    method,
                    target,
                    networks.metric(name, out),
                    macs,
                    params,
                    None if timed is None else timed.ratio,
                    None if timed is None else timed.interval,
                    seconds,
                    passes,
                    peak,
                )


HEADS = ("network", "method", "target", "metric", "MACs", "params", "latency", "seconds", "passes", "memory")


def cells(row: Row, dense: Row) -> list[str]:
    """Write a row, costs as shares of the dense network's."""
    if row.refused is not None:
        return [row.network, row.method, f"{row.target:g}", row.refused, "", "", "", "", "", ""]
    assert row.metric is not None
    assert row.macs is not None
    assert row.params is not None
    first = row is dense
    return [
        row.network,
        row.method,
        f"{row.target:g}",
        f"{row.metric:.4f}",
        count(row.macs) if first else percent(row.macs / max(1, dense.macs or 0)),
        count(row.params) if first else percent(row.params / max(1, dense.params or 0)),
        "" if row.latency is None else f"{row.latency:.2f}",
        "" if row.seconds is None else f"{row.seconds:.1f}",
        "" if row.passes is None else f"{row.passes:.1f}",
        "" if row.peak_bytes is None else size(row.peak_bytes),
    ]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: measuring.DescriptionFile,
    network: measuring.Only = [],  # noqa: B006
    target_macs: Annotated[str, typer.Option(help="Shares of the MACs to keep, comma-separated.")] = "0.7,0.5",
    method: Annotated[str, typer.Option(help="svd, whitened, als and refit, comma-separated.")] = REFIT,
    calibration_limit: measuring.CalibrationLimit = None,
    metric_limit: measuring.MetricLimit = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Give no calibration inputs: synthetic ones.")] = False,
    provider: measuring.PlanFor = "none",
    threads: measuring.Threads = 1,
    no_latency: measuring.NoLatency = False,
    markdown_file: measuring.MarkdownFile = None,
    json_file: measuring.JsonFile = None,
) -> None:
    """Print the table of dense, each method and each budget."""
    console = Console()
    with told():
        networks = load_networks(file, network, calibration_limit=calibration_limit, metric_limit=metric_limit)
        files = Files(markdown_file, json_file)
        files.require_writable()
        timing = None if no_latency else Timing(threads)
        asked = Asked(
            _methods(method), measuring.shares("--target-macs", target_macs), not no_data, provider, threads, timing
        )
        rows: list[Row] = []
        lines: list[list[str]] = []
        for name in networks.names:
            dense: Row | None = None
            for row in evaluate(networks, name, asked):
                dense = dense or row
                rows.append(row)
                lines.append(cells(row, dense))
                console.print(f"{name} {row.method} {row.target:g}: {row.refused or row.metric}", style="dim")
        console.print(terminal_table(HEADS, lines))
        files.write(rows, HEADS, lines)


def _methods(text: str) -> list[str]:
    names = (*get_args(Method), REFIT)
    picked = [name for name in names if name in text.split(",")]
    if len(picked) != len(text.split(",")):
        raise InputError(f"--method {text}: use one or more of {', '.join(names)}, with commas between them.")
    return picked


if __name__ == "__main__":
    app()
