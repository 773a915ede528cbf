"""Measure what rewriting does to networks of your own, by their own metric.

    python -m tools.evaluate models/networks.py --target-macs 0.7,0.5

The file named defines

* ``NETWORKS``: names,
* ``calibration(name, limit)``: unlabelled inputs, an array [N, ...] or arrays by input name,
* ``metric(name, path, limit)``: the network's own figure of an ``.onnx`` file, higher is better,
* optionally ``path(name)``: where the network lies; ``<name>.onnx`` beside the file otherwise.

Every rewrite runs in a process of its own, so that seconds and peak memory are its own too.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import onnx_pointwise
from onnx_pointwise.errors import InputError, OnnxPointwiseError
from onnx_pointwise.graph.model_io import require_writable, write_text
from onnx_pointwise.numerics.factorize import Method
from onnx_pointwise.reports.terminal import count, percent, size
from onnx_pointwise.runtime.providers import open_session
from onnx_pointwise.runtime.timing import compare

DENSE, REFIT = "dense", "refit"


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


def load_networks(path: Path) -> ModuleType:
    """Import the file that describes the networks.

    Raises:
        InputError: It is missing, does not run, or lacks what it must define.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{path}: no such Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise InputError(f"{path}: cannot be imported: {type(error).__name__}: {error}.") from error
    for name in ("NETWORKS", "calibration", "metric"):
        if not hasattr(module, name):
            raise InputError(f"{path}: defines no {name}; see the head of tools/evaluate.py.")
    return module


def pick_networks(module: ModuleType, file: Path, wanted: list[str]) -> list[str]:
    """Give the networks asked for, or all of them.

    Raises:
        InputError: The file has no such network.
    """
    unknown = [name for name in wanted if name not in module.NETWORKS]
    if unknown:
        raise InputError(f"{file}: has no network '{unknown[0]}'; it has {', '.join(module.NETWORKS)}.")
    return wanted or list(module.NETWORKS)


def network_path(module: ModuleType, name: str) -> Path:
    """Find the file of a network."""
    if hasattr(module, "path"):
        return Path(module.path(name))
    return Path(str(module.__file__)).parent / f"{name}.onnx"


def named_inputs(path: Path, examples: NDArray[Any] | Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Give examples their input names; a bare array is for the only input.

    Raises:
        InputError: A bare array for a network with several inputs.
    """
    if isinstance(examples, Mapping):
        return dict(examples)
    names = list(onnx_pointwise.inspect(path).input_shapes)
    if len(names) != 1:
        raise InputError(f"{path}: has {len(names)} inputs; calibration() must return arrays by name.")
    return {names[0]: np.asarray(examples)}


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


def _options(method: str, target: float, provider: str, threads: int) -> dict[str, Any]:
    """``refit`` is the full method; any other name is a way to factorise without it."""
    options: dict[str, Any] = {"target_macs": target, "provider": provider, "threads": threads}
    return options if method == REFIT else options | {"method": method, "refit": False}


def evaluate(
    module: ModuleType,
    name: str,
    *,
    methods: list[str],
    targets: list[float],
    calibration_limit: int | None,
    metric_limit: int | None,
    data: bool,
    latency: bool,
    provider: str = "none",
    threads: int = 1,
) -> Iterator[Row]:
    """Measure one network: dense, then every method at every budget.

    Yields:
        One row after the other, as they are measured.
    """
    path = network_path(module, name)
    dense = onnx_pointwise.inspect(path).cost
    yield Row(name, DENSE, 1.0, module.metric(name, path, metric_limit), dense.macs, dense.params, 1.0)
    examples = named_inputs(path, module.calibration(name, calibration_limit)) if data else None
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            for method in methods:
                out = Path(folder) / "rewritten.onnx"
                options = _options(method, target, provider, threads)
                with context.Pool(1) as pool:
                    outcome = pool.apply(_rewrite, (str(path), str(out), options, examples))
                if isinstance(outcome, str):
                    yield Row(name, method, target, None, None, None, refused=outcome)
                    continue
                macs, params, seconds, passes, peak = outcome
                timed = compare(path, out, threads=threads) if latency else None
                yield Row(
                    name,
                    method,
                    target,
                    module.metric(name, out, metric_limit),
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


def markdown(rows: list[Row]) -> str:
    """Write all rows as a Markdown table."""
    dense = {row.network: row for row in rows if row.method == DENSE}
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cells(row, dense[row.network])) + " |" for row in rows]
    return "\n".join(lines) + "\n"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="Python file that describes the networks.", show_default=False)],
    network: Annotated[list[str], typer.Option(help="Only these networks.")] = [],  # noqa: B006
    target_macs: Annotated[str, typer.Option(help="Shares of the MACs to keep, comma-separated.")] = "0.7,0.5",
    method: Annotated[str, typer.Option(help="svd, whitened, als and refit, comma-separated.")] = REFIT,
    calibration_limit: Annotated[int | None, typer.Option(min=1, help="Calibration inputs to use at most.")] = None,
    metric_limit: Annotated[int | None, typer.Option(min=1, help="Inputs of the metric to use at most.")] = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Give no calibration inputs: synthetic ones.")] = False,
    provider: Annotated[str, typer.Option(help="Provider to plan for; none plans by arithmetic.")] = "none",
    threads: Annotated[int, typer.Option(min=1, help="Threads that latency is measured with.")] = 1,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Do not time the networks.")] = False,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the table as Markdown.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows as JSON.")] = None,
) -> None:
    """Print the table of dense, each method and each budget."""
    console = Console()
    try:
        module = load_networks(file)
        for target in (markdown_file, json_file):
            if target is not None:
                require_writable(target)
        methods = _methods(method)
        targets = _targets(target_macs)
        names = pick_networks(module, file, network)
        rows: list[Row] = []
        table = Table(*HEADS, box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for name in names:
            for row in evaluate(
                module,
                name,
                methods=methods,
                targets=targets,
                calibration_limit=calibration_limit,
                metric_limit=metric_limit,
                data=not no_data,
                latency=not no_latency,
                provider=provider,
                threads=threads,
            ):
                rows.append(row)
                dense = next(item for item in rows if item.network == name)
                table.add_row(*cells(row, dense))
                console.print(f"{name} {row.method} {row.target:g}: {row.refused or row.metric}", style="dim")
        console.print(table)
        if markdown_file is not None:
            write_text(markdown_file, markdown(rows))
        if json_file is not None:
            write_text(json_file, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    except OnnxPointwiseError as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


def _methods(text: str) -> list[str]:
    names = (*get_args(Method), REFIT)
    picked = [name for name in names if name in text.split(",")]
    if len(picked) != len(text.split(",")):
        raise InputError(f"--method {text}: use one or more of {', '.join(names)}, with commas between them.")
    return picked


def _targets(text: str) -> list[float]:
    try:
        targets = [float(part) for part in text.split(",")]
    except ValueError:
        targets = []
    if not targets or not all(0 < target <= 1 for target in targets):
        raise InputError(f"--target-macs {text}: write shares above 0 and at most 1, with commas between them.")
    return targets


if __name__ == "__main__":
    app()
