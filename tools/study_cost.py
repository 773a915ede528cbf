"""What a rewrite costs, stage by stage, in passes of its examples through the untouched network.

    python -m tools.study_cost                                      generated residual stacks of 25, 50, 100, 200 sites
    python -m tools.study_cost FILE --network googlenet --target-macs 0.65

A pass is the time that all example inputs take through the untouched network in ONNX Runtime, in the batches and with
the threads of the rewrite; the cost of looking at a network should be a few of them however many sites it has. What a
FILE has to define stands at the head of ``tools/measuring.py``. Each rewrite runs in a process of its own: plans by
arithmetic, no latency. Printed are seconds, passes (seconds by seconds, and processor time by processor time, which
other work on the machine disturbs less) and the peak of memory in each stage:

    load        reading, shapes, heads, what the examples can tell
    moments     second moments of what the sites see
    gradients   runs back from the heads for the output side of the norm
    trials      error curves, and factors to try at every site
    points      gradients along the errors of those
    plan        knapsack, rehearsals, latency
    refit       weights, and whether the refit helped
    check       the rewritten network beside the untouched one

Without a FILE the exit code is 1 where the passes of the stacks differ by more than a factor of 1.5.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from numpy.typing import NDArray
from rich.console import Console

import onnx_pointwise
from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.reports.terminal import size
from onnx_pointwise.runtime import open_session
from tools import measuring
from tools.benchmark_rewrite import peak_memory
from tools.generated_networks import residual_stack
from tools.measuring import Files, load_networks, terminal_table, told

#: Numbers of sites of the generated stacks, their maps, and the examples that go through them.
STACKS, MAPS, SIZE, EXAMPLES = (25, 50, 100, 200), 32, 32, 64
#: How far the passes of the stacks may be apart.
EVEN = 1.5
STAGES = ("load", "moments", "gradients", "trials", "points", "plan", "refit", "check")
# By what a rewrite says it takes up; the look at the sites has three parts.
_SAID = {stage: stage for stage in ("moments", "plan", "refit", "check")}


@dataclass(frozen=True)
class Row:
    """What the rewrite of one network took.

    Attributes:
        network: Its name.
        sites: Its convolutions.
        examples: Example inputs.
        target: Share of the MACs asked for.
        pass_seconds: Wall time of one pass of the examples through the untouched network.
        pass_processor: Processor time of it.
        seconds: Wall time by stage.
        processor: Processor time by stage.
        peak: Largest resident size by stage, in bytes; of the whole process where it cannot be told apart.
        refused: Why there is no rewritten network, where there is none.
    """

    network: str
    sites: int
    examples: int
    target: float
    pass_seconds: float
    pass_processor: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    processor: Mapping[str, float] = field(default_factory=dict)
    peak: Mapping[str, int] = field(default_factory=dict)
    refused: str | None = None

    @property
    def passes(self) -> float:
        """Seconds of the rewrite by those of a pass."""
        return sum(self.seconds.values()) / self.pass_seconds

    @property
    def processor_passes(self) -> float:
        """The same in processor time."""
        return sum(self.processor.values()) / self.pass_processor


class Stages:
    """Wall time, processor time and peak memory of consecutive stages; told the progress of a rewrite."""

    def __init__(self) -> None:
        self.seconds, self.processor = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
        self.peak = dict.fromkeys(STAGES, 0)
        self._stage = "load"
        self._lock = threading.Lock()  # sites are taken up in several threads
        self._last = time.perf_counter(), time.process_time()
        _reset_peak()

    def heard(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        """Hear what a rewrite takes up."""
        if stage == "sensitivity":
            part = "trials"
            if what == "gradients":
                part = "gradients"
            elif what.startswith("gradients, "):
                part = "points"
            self.begin(part)
        else:
            self.begin(_SAID.get(stage, self._stage))

    def begin(self, stage: str) -> None:
        """End a stage, and begin another one."""
        with self._lock:
            if stage == self._stage:
                return
            now = time.perf_counter(), time.process_time()
            self.seconds[self._stage] += now[0] - self._last[0]
            self.processor[self._stage] += now[1] - self._last[1]
            self.peak[self._stage] = max(self.peak[self._stage], peak_memory())
            self._stage, self._last = stage, now
            _reset_peak()

    def end(self) -> None:
        """End the last stage."""
        self.begin("")


def _reset_peak() -> None:
    """Let the peak of memory begin anew; elsewhere than on Linux it is that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def dense_pass(path: str, examples: Mapping[str, NDArray[Any]], batch: int) -> tuple[float, float]:
    """Wall and processor time of all examples through a network, after a warm-up; the fastest of three passes."""
    # Threads that wait asleep, as those of the rewrite: spinning ones would take processor time for nothing.
    session = open_session(path, config={"session.intra_op.allow_spinning": "0"})
    fixed = [item.shape[0] for item in session.get_inputs() if item.shape and isinstance(item.shape[0], int)]
    size = fixed[0] if fixed else batch
    count = len(next(iter(examples.values())))
    taken = []
    for _ in range(4):
        start = time.perf_counter(), time.process_time()
        for index in range(0, count, size):
            session.run(None, {name: array[index : index + size] for name, array in examples.items()})
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, processor = zip(*taken[1:], strict=True)
    return min(wall), min(processor)


def measured(name: str, path: str, examples: dict[str, NDArray[Any]], options: dict[str, Any]) -> Row:
    """Rewrite one network; best in a process of its own, whose memory is measured."""
    count, target = len(next(iter(examples.values()))), options["target_macs"]
    taken = dense_pass(path, examples, batch=16)
    stages = Stages()
    try:
        result = onnx_pointwise.rewrite(
            path, calibration=examples, provider="none", latency=False, progress=stages.heard, **options
        )
    except OnnxPointwiseError as error:
        return Row(name, 0, count, target, *taken, refused=str(error))
    stages.end()
    return Row(name, len(result.sites), count, target, *taken, stages.seconds, stages.processor, stages.peak)


def stack(sites: int, folder: Path) -> tuple[Path, dict[str, NDArray[Any]]]:
    """Write a generated stack; gives its file and the examples."""
    path = folder / f"stack{sites}.onnx"
    onnx.save(residual_stack(sites, maps=MAPS, size=SIZE), path)
    drawn = np.random.default_rng(0).standard_normal((EXAMPLES, MAPS, SIZE, SIZE), dtype=np.float32)
    return path, {"x": drawn}


def apart(name: str, path: Path, examples: dict[str, NDArray[Any]], options: dict[str, Any]) -> Row:
    """Measure in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (name, str(path), examples, options))


HEADS = ("network", "sites", "pass", "", *STAGES, "all", "passes", "by processor")


def lines(row: Row) -> list[list[str]]:
    """Write what one network took: seconds, passes, memory."""
    if row.refused is not None:
        return [[row.network, "", f"{row.pass_seconds:.3g} s", row.refused, *[""] * (len(STAGES) + 3)]]
    total = sum(row.seconds.values())
    return [
        [
            row.network,
            str(row.sites),
            f"{row.pass_seconds:.3g} s",
            "s",
            *(f"{row.seconds[stage]:.1f}" for stage in STAGES),
            f"{total:.1f}",
            f"{row.passes:.1f}",
            f"{row.processor_passes:.1f}",
        ],
        ["", "", "", "passes", *(f"{row.seconds[stage] / row.pass_seconds:.1f}" for stage in STAGES), "", "", ""],
        ["", "", "", "peak", *(size(row.peak[stage]) for stage in STAGES), size(max(row.peak.values())), "", ""],
    ]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: Annotated[
        Path | None, typer.Argument(help="Python file that describes networks.", show_default=False)
    ] = None,
    network: measuring.Only = [],  # noqa: B006
    stacks: Annotated[str, typer.Option(help="Without a file: sites of the stacks.")] = ",".join(map(str, STACKS)),
    target_macs: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the MACs to keep.")] = 0.5,
    calibration_limit: measuring.CalibrationLimit = None,
    memory: Annotated[int | None, typer.Option(help="Bytes for activations and moments, as of rewrite.")] = None,
    markdown_file: measuring.MarkdownFile = None,
    json_file: measuring.JsonFile = None,
) -> None:
    """Print what rewrites cost, stage by stage."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    options = {"target_macs": target_macs} | ({} if memory is None else {"memory": memory})
    rows: list[Row] = []
    with told(), tempfile.TemporaryDirectory(prefix="study_cost.") as folder:
        files = Files(markdown_file, json_file)
        files.require_writable()
        if file is not None:
            networks = load_networks(file, network, calibration_limit=calibration_limit)
            work = [(name, networks.path(name), networks.examples(name)) for name in networks.names]
        else:
            work = [(f"{count} sites", *stack(count, Path(folder))) for count in _counts(stacks)]
        for name, path, examples in work:
            rows.append(apart(name, path, examples, options))
            console.print(f"{name}: {rows[-1].refused or f'{rows[-1].passes:.1f} passes'}", style="dim")
        table = [line for row in rows for line in lines(row)]
        console.print(terminal_table(HEADS, table))
        files.write(rows, HEADS, table)
    if file is None:
        passes = [row.passes for row in rows]
        even = max(passes) <= EVEN * min(passes)
        word = "within" if even else "NOT within"
        console.print(
            f"The passes of the stacks lie {word} a factor of {EVEN:g}: {min(passes):.1f} to {max(passes):.1f}."
        )
        raise typer.Exit(0 if even else 1)


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise typer.BadParameter(f"{text}: write numbers of sites, with commas between them", param_hint="--stacks")
    return counts


if __name__ == "__main__":
    app()
