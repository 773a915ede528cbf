"""What the tools that measure networks share: the file that describes them, options, timing, tables.

The file that a tool is given defines

* ``NETWORKS``: names,
* ``calibration(name, limit)``: unlabelled inputs, an array [N, ...] or arrays by input name,
* ``metric(name, path, limit)``: the network's own figure of an ``.onnx`` file, higher is better,
* optionally ``path(name)``: where the network lies; ``<name>.onnx`` beside the file otherwise.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import onnx_pointwise
from onnx_pointwise.errors import InputError, OnnxPointwiseError
from onnx_pointwise.graph import require_writable, write_text
from onnx_pointwise.runtime import LatencyComparison, compare

#: The network as it came.
DENSE = "dense"

# Options, as every tool words them.
DescriptionFile = Annotated[Path, typer.Argument(help="Python file that describes the networks.", show_default=False)]
Only = Annotated[list[str], typer.Option(help="Only these networks.")]
CalibrationLimit = Annotated[int | None, typer.Option(min=1, help="Calibration inputs to use at most.")]
MetricLimit = Annotated[int | None, typer.Option(min=1, help="Inputs of the metric to use at most.")]
PlanFor = Annotated[str, typer.Option(help="Provider whose latency ranks are chosen by; none plans by arithmetic.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that latency is measured with.")]
NoLatency = Annotated[bool, typer.Option("--no-latency", help="Do not time the networks.")]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", help="Write the table as Markdown.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the rows as JSON.")]


@dataclass(frozen=True)
class Networks:
    """Networks of someone's own, as a file describes them.

    Attributes:
        module: The file, imported.
        names: The networks to measure.
        calibration_limit: Calibration inputs to use at most.
        metric_limit: Inputs of the metric to use at most.
    """

    module: ModuleType
    names: tuple[str, ...]
    calibration_limit: int | None = None
    metric_limit: int | None = None

    def path(self, name: str) -> Path:
        """Find the file of a network."""
        if hasattr(self.module, "path"):
            return Path(self.module.path(name))
        return Path(str(self.module.__file__)).parent / f"{name}.onnx"

    def examples(self, name: str) -> dict[str, NDArray[Any]]:
        """Give the calibration inputs of a network by input name; a bare array is for the only input.

        Raises:
            InputError: A bare array for a network with several inputs.
        """
        given = self.module.calibration(name, self.calibration_limit)
        if isinstance(given, Mapping):
            return dict(given)
        path = self.path(name)
        inputs = list(onnx_pointwise.inspect(path).input_shapes)
        if len(inputs) != 1:
            raise InputError(f"{path}: has {len(inputs)} inputs; calibration() must return arrays by name.")
        return {inputs[0]: np.asarray(given)}

    def metric(self, name: str, path: Path) -> float:
        """Judge a file by the network's own figure."""
        return float(self.module.metric(name, path, self.metric_limit))


def load_networks(
    file: Path,
    wanted: Sequence[str] = (),
    *,
    calibration_limit: int | None = None,
    metric_limit: int | None = None,
) -> Networks:
    """Import the file that describes the networks.

    Args:
        file: The file.
        wanted: The networks to measure; all of them if none.
        calibration_limit: Calibration inputs to use at most.
        metric_limit: Inputs of the metric to use at most.

    Raises:
        InputError: The file is missing, does not run, lacks what it must define, or has no such network.
    """
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{file}: no such Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise InputError(f"{file}: cannot be imported: {type(error).__name__}: {error}.") from error
    for name in ("NETWORKS", "calibration", "metric"):
        if not hasattr(module, name):
            raise InputError(f"{file}: defines no {name}; see the head of tools/measuring.py.")
    unknown = [name for name in wanted if name not in module.NETWORKS]
    if unknown:
        raise InputError(f"{file}: has no network '{unknown[0]}'; it has {', '.join(module.NETWORKS)}.")
    return Networks(module, tuple(wanted or module.NETWORKS), calibration_limit, metric_limit)


def shares(option: str, text: str) -> list[float]:
    """Read the shares that an option lists.

    Raises:
        InputError: Something is no share above 0 and at most 1.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < share <= 1 for share in found):
        raise InputError(f"{option} {text}: write shares above 0 and at most 1, with commas between them.")
    return found


@dataclass(frozen=True)
class Timing:
    """How latency is measured: the shapes of inputs with open dimensions, threads, and seconds for a comparison."""

    threads: int
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seconds: float = 10.0

    def compare(self, before: Path, after: Path) -> LatencyComparison:
        """Time two networks in turns."""
        return compare(before, after, input_shapes=self.shapes or None, threads=self.threads, max_seconds=self.seconds)


@dataclass(frozen=True)
class Files:
    """Where the rows go beside the terminal.

    Attributes:
        markdown: File for a Markdown table.
        json: File for all that was measured.
    """

    markdown: Path | None = None
    json: Path | None = None

    def require_writable(self) -> None:
        """Find out before anything is measured.

        Raises:
            OutputError: One of the files cannot be written.
        """
        for target in (self.markdown, self.json):
            if target is not None:
                require_writable(target)

    def write(self, rows: Sequence[Any], heads: Sequence[str] = (), lines: Iterable[Sequence[str]] = ()) -> None:
        """Write rows, dataclasses, as JSON, and as lines under heads in Markdown."""
        if self.markdown is not None:
            write_text(self.markdown, markdown(heads, lines))
        if self.json is not None:
            write_text(self.json, json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    table = [heads, *lines]
    written = ["| " + " | ".join(line) + " |" for line in table]
    return "\n".join([written[0], "|" + "---|" * len(heads), *written[1:]]) + "\n"


def terminal_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """Lay lines out for a terminal."""
    table = Table(*heads, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row(*line)
    return table


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Say what is wrong in a sentence, and exit with code 2."""
    try:
        yield
    except OnnxPointwiseError as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
