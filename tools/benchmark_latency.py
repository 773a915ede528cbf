"""Is what was planned by latency as fast as was promised? Over files, and over generated networks.

    python -m tools.benchmark_latency [FILE ...] [--generated 30] [--target-latency 0.6]

Rewrites each network for a target, then times it against the untouched one, in turns, and prints for each what was
predicted from its sites, what was measured while it was planned, and what the rewritten network took in the end.
Weights come from the kernels alone: they do not matter here. Exit code 1 where a network is slower than the untouched
one beyond the noise floor, or where the predictions are off by more than 10 % in the median or 25 % at worst.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import onnx_pointwise
from onnx_pointwise.errors import PlanError
from onnx_pointwise.runtime import compare
from tools import measuring
from tools.generated_networks import random_network, resnet18, vgg16
from tools.measuring import Files, told

#: Largest error of a prediction, as a share of what was measured: the median over the networks, and the worst.
MEDIAN_ERROR, WORST_ERROR = 0.10, 0.25


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        network: Its name.
        macs: Share of its MACs that is left.
        predicted: Predicted share of its latency.
        planned: The share that was measured while it was planned.
        measured: The share that the rewritten network takes.
        noise: The noise floor of that.
        verdict: Whether it is faster.
        seconds: Wall time of the rewrite.
        refused: Why there is no rewritten network, where there is none.
    """

    network: str
    macs: float | None = None
    predicted: float | None = None
    planned: float | None = None
    measured: float | None = None
    noise: float | None = None
    verdict: str | None = None
    seconds: float | None = None
    refused: str | None = None

    @property
    def error(self) -> float | None:
        """How far the prediction was off."""
        if self.predicted is None or self.measured is None:
            return None
        return abs(self.predicted / self.measured - 1.0)


def measure(name: str, model: Any, budget: dict[str, Any], options: dict[str, Any]) -> Row:
    """Rewrite one network and time it."""
    start = time.perf_counter()
    try:
        result = onnx_pointwise.rewrite(model, **budget, **options, calibration=None, check=False)
    except PlanError as error:
        return Row(name, refused=str(error), seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    left = result.after.macs / max(1, result.before.macs)
    if not result.plan.choices:
        return Row(name, left, refused="nothing is faster", seconds=seconds)
    timed = compare(
        model,
        result.model,
        input_shapes=result.input_shapes,
        provider=options["provider"],
        threads=options["threads"],
    )
    about = result.plan.latency
    return Row(name, left, about["predicted"], about["measured"], timed.ratio, timed.noise, timed.verdict, seconds)


def table(rows: list[Row]) -> Table:
    """Lay the rows out."""
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("network", "MACs", "predicted", "planned", "measured", "noise", "verdict", "seconds"):
        made.add_column(head, justify="left" if head in ("network", "verdict") else "right")
    for row in rows:
        shares = [row.macs, row.predicted, row.planned, row.measured, row.noise]
        made.add_row(
            row.network,
            *("" if share is None else f"{share:.3f}" for share in shares),
            row.verdict or row.refused or "",
            "" if row.seconds is None else f"{row.seconds:.1f}",
        )
    return made


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: Annotated[list[Path], typer.Argument(help="Networks to measure.")] = [],  # noqa: B006
    generated: Annotated[int, typer.Option(min=0, help="Generated networks to measure.")] = 30,
    target_latency: Annotated[float | None, typer.Option(help="Share of the latency to keep.")] = None,
    target_macs: Annotated[float | None, typer.Option(help="Share of the MACs to keep.")] = None,
    size: Annotated[int, typer.Option(help="Height and width where a network leaves them open.")] = 128,
    provider: Annotated[str, typer.Option(help="Execution provider.")] = "cpu",
    threads: measuring.Threads = 1,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure everything anew.")] = False,
    json_file: measuring.JsonFile = None,
) -> None:
    """Print the table; a target of 0.6 of the latency unless another one is named."""
    console = Console()
    budgets = {"target_latency": target_latency, "target_macs": target_macs}
    budget: dict[str, Any] = {name: share for name, share in budgets.items() if share is not None} or {
        "target_latency": 0.6
    }
    files = Files(json=json_file)
    with told():
        files.require_writable()
        rows = []
        networks: list[tuple[str, Any]] = [(path.stem, path) for path in file]
        if generated:
            networks += [("vgg16", vgg16()), ("resnet18", resnet18())]
            networks += [(f"random {seed}", random_network(seed)) for seed in range(max(0, generated - 2))]
        for name, model in networks:
            options: dict[str, Any] = {"provider": provider, "threads": threads, "cache": not no_cache}
            options["input_shapes"] = _sizes(model, size)
            rows.append(measure(name, model, budget, options))
            console.print(table(rows[-1:]), style="dim")
        console.print(table(rows))
        files.write(rows)
    errors = [row.error for row in rows if row.error is not None]
    slower = [row.network for row in rows if row.verdict == "slower"]
    off = bool(errors) and (statistics.median(errors) > MEDIAN_ERROR or max(errors) > WORST_ERROR)
    if errors:
        console.print(
            f"Predictions were off by {100 * statistics.median(errors):.1f} % in the median, "
            f"{100 * max(errors):.1f} % at worst; slower networks: {', '.join(slower) or 'none'}."
        )
    if slower or off:
        raise typer.Exit(1)


def _sizes(model: Any, size: int) -> dict[str, tuple[int, ...]] | None:
    """Name the shapes of inputs that leave height and width open."""
    found = onnx_pointwise.inspect(model)
    if not found.assumed_inputs:
        return None
    return {name: (*found.input_shapes[name][:2], size, size) for name in found.assumed_inputs}


if __name__ == "__main__":
    app()
