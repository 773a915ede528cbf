"""How well latency is predicted: networks of random blocks, rewritten by plans, in a precision.

    python -m tools.predict_latency --deploy int8 --networks 20 --threads 1

For every network a plan is made by measurement, about halfway to the fastest one that there is, and by another mix of
forms and ranks than the one that corrects predictions. What `latency.NetworkLatency` predicts of it, as a share of the
dense network in the same precision, stands beside what timing both in turns says.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from onnx_pointwise.deploying import Deployment, Precision
from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.graph import Choice, Plan, find_sites, load
from onnx_pointwise.latency import NetworkLatency, network_latency
from onnx_pointwise.runtime import resolve
from tools import measuring
from tools.generated_networks import random_network
from tools.measuring import Files, terminal_table, told


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        seed: What it was drawn from.
        sites: Convolutions that are rewritten.
        sum_of_sites: Its latency as a share of the dense network's, by the sum of its sites.
        predicted: The same, corrected by the network rewritten halfway.
        measured: The same, as timed.
        noise: Noise floor of that.
        dense: Milliseconds of the dense network.
        refused: Why there is no such row, where there is none.
    """

    seed: int
    sites: int = 0
    sum_of_sites: float | None = None
    predicted: float | None = None
    measured: float | None = None
    noise: float | None = None
    dense: float | None = None
    refused: str | None = None

    @property
    def error(self) -> float | None:
        """How far the prediction is off, as a share of what was measured."""
        if self.predicted is None or self.measured is None:
            return None
        return abs(self.predicted - self.measured) / self.measured


def measure(seed: int, deployment: Deployment, provider: str, threads: int | None) -> Row:
    """Predict and time one network."""
    model = load(random_network(seed))
    shapes = resolve(model)
    sites = [site for site in find_sites(model, shapes, min_channels=1) if site.rewritable]
    found = network_latency(model, shapes, sites, provider=provider, threads=threads, deployment=deployment)
    choices = drawn(found, seed)
    if not choices:
        return Row(seed, dense=1e3 * found.dense, refused="no form of any convolution is faster")
    timed = found.time(Plan(choices))
    return Row(
        seed,
        len(choices),
        found.sum_of_sites(choices),
        found.predict(choices),
        timed.ratio,
        timed.noise,
        1e3 * found.dense,
    )


def drawn(found: NetworkLatency, seed: int) -> dict[str, Choice]:
    """Draw a form and rank for most of the sites that can be made faster."""
    rng = np.random.default_rng([seed, 2])
    choices = {}
    for name, site in found.measured().items():
        if site.choices and rng.random() < 0.8:
            choices[name] = Choice(*site.choices[int(rng.integers(len(site.choices)))])
    return choices


HEADS = ("network", "sites", "dense, ms", "sum of sites", "predicted", "measured", "±", "off by")


def cells(row: Row) -> list[str]:
    """Write a row."""
    if row.error is None:
        return [str(row.seed), "0", f"{row.dense or 0.0:.2f}", row.refused or "", "", "", "", ""]
    return [
        str(row.seed),
        str(row.sites),
        f"{row.dense:.2f}",
        f"{row.sum_of_sites:.3f}",
        f"{row.predicted:.3f}",
        f"{row.measured:.3f}",
        f"{row.noise:.3f}",
        f"{100 * row.error:.1f} %",
    ]


def summary(rows: Sequence[Row]) -> str:
    """Say how far predictions are off."""
    errors = [row.error for row in rows if row.error is not None]
    if not errors:
        return "No network could be made faster."
    return f"{len(errors)} networks: off by {statistics.median(errors):.1%} (median), {max(errors):.1%} (worst)."


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    networks: Annotated[int, typer.Option(min=1, help="How many networks to draw.")] = 20,
    first: Annotated[int, typer.Option(min=0, help="Seed of the first one.")] = 0,
    deploy: Annotated[str | None, typer.Option(help="Precision: int8, float16; as they are otherwise.")] = None,
    provider: measuring.PlanFor = "cpu",
    threads: measuring.Threads = 1,
    markdown_file: measuring.MarkdownFile = None,
    json_file: measuring.JsonFile = None,
) -> None:
    """Print what is predicted and what is measured."""
    console = Console()
    with told():
        files = Files(markdown_file, json_file)
        files.require_writable()
        deployment = Deployment(_precision(deploy))
        rows = []
        for seed in range(first, first + networks):
            rows.append(measure(seed, deployment, provider, threads))
            console.print(" ".join(cells(rows[-1])), style="dim")
        lines = [cells(row) for row in rows]
        console.print(terminal_table(HEADS, lines), summary(rows))
        files.write(rows, HEADS, lines)


def _precision(name: str | None) -> Precision | None:
    known: tuple[Precision, ...] = ("float32", "float16", "int8")
    found = next((one for one in known if one == name), None)
    if name is not None and found is None:
        raise OnnxPointwiseError(f"--deploy {name}: use one of {', '.join(known)}.")
    return found


if __name__ == "__main__":
    app()
