"""Does what a plan is made by rank plans as a network's own metric does?

    python -m tools.rank_plans models/networks.py

A plan is the one of least drift, so all depends on what drift is. For every network, plans are made at a few budgets:
the planner's own, and others for which the losses of the sites were multiplied by random factors, alike for sites that
stand near each other, so that some treat one branch of the network better, some another. Their weights are computed
without a refit. What is printed is Spearman's rank correlation, over the plans, between the loss of the metric and

* the drift as predicted, without running the plan,
* the drift of a rehearsal, on calibration inputs that the factors do not know,
* the drift on inputs held back, with the heads weighted in several ways (`WEIGHINGS`).

The first figure is over all plans, the second within each budget, the mean of the budgets: that budgets are ranked is
easily had. Where plans have all but the same metric (few inputs, a network that does not care) a figure means nothing.
What the file named has to define stands at the head of ``tools/measuring.py``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir
import typer
from numpy.typing import NDArray
from rich.console import Console
from threadpoolctl import threadpool_limits

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import BottleneckPass, Choice, Plan, Replacement, find_sites, load, model_cost, save
from onnx_pointwise.numerics import centred, relative_drift, weighted_drift
from onnx_pointwise.planning import Budget, Corrected, Options, choose, options_of, settle
from onnx_pointwise.runtime import Piece, input_specs, resolve, without_shapes
from onnx_pointwise.study import Head, Study, find_heads, study
from tools import measuring
from tools.measuring import Files, Networks, load_networks, terminal_table, told

Array = NDArray[Any]

# How much the losses of sites are varied, as the deviation of their logarithm, and how alike those of two sites are
# that follow one another.
_VARIED, _ALIKE = 1.2, 0.85


@dataclass(frozen=True)
class Part:
    """A value at which drift is measured, with what its weight may depend on.

    Attributes:
        value: Its name.
        heads: The head itself, or all heads that go through the Sigmoid or Softmax that the value lies behind.
        places: Places at which an example is answered there.
        energy: Its squared deviation over the inputs held back.
    """

    value: str
    heads: tuple[Head, ...]
    places: int
    energy: float

    @property
    def behind(self) -> bool:
        """Whether it lies behind a Sigmoid or Softmax."""
        return all(head.value != self.value for head in self.heads)


def _by_heads(part: Part) -> tuple[object, float]:
    """Every head is an answer of its own."""
    return part.heads[0].value, 1.0


def _by_places(part: Part) -> tuple[object, float]:
    """Heads of one kind that go into the same outputs give one answer, at as many places as each has."""
    return (part.heads[0].kind, part.heads[0].outputs), float(part.places)


def _by_energy(part: Part) -> tuple[object, float]:
    """The same, and what is off counts alike at whichever of them it is."""
    return (part.heads[0].kind, part.heads[0].outputs), part.energy


def weights_of(parts: Sequence[Part], share: Callable[[Part], tuple[object, float]], behind: float) -> list[float]:
    """Weigh parts.

    Args:
        parts: The parts.
        share: Which answer a head belongs to, and how much of it the head is.
        behind: How much of a head's weight lies behind its Sigmoid or Softmax, where that is among the parts.
    """
    answers: dict[object, float] = {}
    alone = [part for part in parts if not part.behind]
    for part in alone:
        answer, size = share(part)
        answers[answer] = answers.get(answer, 0.0) + size
    heads = {part.value: share(part)[1] / answers[share(part)[0]] for part in alone}
    through = {part.value for part in parts if part.behind}
    return [
        behind * sum(heads[head.value] for head in part.heads)
        if part.behind
        else heads[part.value] * (1.0 - behind if part.heads[0].behind in through else 1.0)
        for part in parts
    ]


#: Ways to weigh the parts of a network, by name: how heads share the weight, and how much of it lies behind them.
WEIGHINGS: Mapping[str, tuple[Callable[[Part], tuple[object, float]], float]] = {
    f"{name}, {place}": (share, behind)
    for name, share in (("heads", _by_heads), ("places", _by_places), ("energy", _by_energy))
    for place, behind in (("before", 0.0), ("quarter", 0.25), ("half", 0.5), ("behind", 1.0))
}
_WORST = "worst head"


@dataclass(frozen=True)
class Row:
    """One plan.

    Attributes:
        network: Name of the network.
        target: Share of the MACs asked for.
        variation: Number of the variation; 0 is the planner's own plan.
        loss: Loss of the metric.
        drifts: Relative L2 drift: as predicted, as rehearsed, and on inputs held back by each weighing.
        parts: Relative squared drift at each part, by its name.
    """

    network: str
    target: float
    variation: int
    loss: float
    drifts: Mapping[str, float]
    parts: Mapping[str, float | None]


class Bench:
    """A network that was studied, on which plans are tried.

    Args:
        networks: Where it comes from.
        name: Its name.
        seed: Seed of the variations.

    Raises:
        InputError: There are too few calibration inputs to hold any back.
    """

    def __init__(self, networks: Networks, name: str, seed: int) -> None:
        self._networks, self._name, self._seed = networks, name, seed
        path, examples = networks.path(name), networks.examples(name)
        model = load(path)
        self._shapes = resolve(model, _one(model, examples))
        self._sites = find_sites(model, self._shapes)
        self._cost = model_cost(model, self._shapes)
        self._split = settle(self._sites, Budget(target_macs=1.0))
        heads = find_heads(self._shapes)
        self._found: Study = study(model, self._shapes, self._split.open, examples, heads=heads)
        if not self._found.held:
            raise InputError(f"{path}: too few calibration inputs to hold any back.")
        self._listed = options_of(self._split, Budget(target_macs=1.0), found=self._found)
        self._learned = Corrected(self._found.rehearsal)
        self._dense = networks.metric(name, path)
        self._made: dict[tuple[str, Choice], Replacement] = {}
        axes: dict[str, tuple[int, tuple[Head, ...]]] = {head.value: (head.axis, (head,)) for head in heads.heads}
        for value in dict.fromkeys(head.behind for head in heads.heads if head.behind is not None):
            through = tuple(head for head in heads.heads if head.behind == value)
            axes[value] = (through[0].behind_axis, through)
        self._reference = self._answers(self._shapes.model, list(axes))
        self._axes = [axis for axis, _ in axes.values()]
        self.parts = [
            Part(value, told, _places(answer, axis), float((centred(answer, axis) ** 2).sum()))
            for (value, (axis, told)), answer in zip(axes.items(), self._reference, strict=True)
        ]

    def plans(self, targets: Sequence[float], variations: int) -> Iterator[tuple[float, int, Mapping[str, Choice]]]:
        """Make plans: target, number of the variation, and choices; those that come out alike are left out."""
        for target in targets:
            seen: list[Mapping[str, Choice]] = []
            for number in range(variations):
                listed = self._listed if number == 0 else self._varied(target, number)
                learned = self._learned if number == 0 else None
                plan = choose(self._sites, self._split, Budget(target_macs=target), listed, self._cost, learned=learned)
                choices = {name: replace(choice, error=None) for name, choice in plan.choices.items()}
                if choices not in seen:
                    seen.append(choices)
                    yield target, number, plan.choices

    def _varied(self, target: float, number: int) -> list[Options]:
        rng = np.random.default_rng([self._seed, number, round(1000 * target)])
        steps = rng.standard_normal(len(self._listed))
        walk = np.zeros(len(steps))
        for index, step in enumerate(steps):  # a stationary chain of unit deviation
            walk[index] = step if index == 0 else _ALIKE * walk[index - 1] + math.sqrt(1 - _ALIKE**2) * step
        corrected = [self._learned.correction.of(one) for one in self._listed]
        return [
            one.with_losses(one.losses * math.exp(_VARIED * float(way)))
            for one, way in zip(corrected, walk, strict=True)
        ]

    def row(self, target: float, number: int, choices: Mapping[str, Choice]) -> Row:
        """Make the weights of a plan, and measure it."""
        wanted = {name: replace(choice, error=None) for name, choice in choices.items()}
        sites = {site.name: site for site in self._found.sites}
        for key in wanted.items():
            if key not in self._made:
                self._made[key] = self._found.factors(sites[key[0]], key[1])
        weights = {name: self._made[name, choice] for name, choice in wanted.items()}
        model = self._shapes.model.clone()
        BottleneckPass(Plan(wanted), weights)(model)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rewritten.onnx"
            rewritten = load(self._networks.path(self._name))
            BottleneckPass(Plan(wanted), weights)(rewritten)
            save(rewritten, file)
            loss = self._dense - self._networks.metric(self._name, file)
        moved = self._answers(model, [part.value for part in self.parts])
        shares = [
            relative_drift(one, other, axis)
            for one, other, axis in zip(self._reference, moved, self._axes, strict=True)
        ]
        drifts = {"predicted": self._predicted(choices), "rehearsed": math.sqrt(self._found.rehearsal.drift(choices))}
        for name, (share, behind) in WEIGHINGS.items():
            drifts[name] = math.sqrt(weighted_drift(shares, weights_of(self.parts, share, behind)) or 0.0)
        drifts[_WORST] = math.sqrt(max((share for share in shares if share is not None), default=0.0))
        parts = {part.value: moved for part, moved in zip(self.parts, shares, strict=True)}
        return Row(self._name, target, number, loss, drifts, parts)

    def _predicted(self, choices: Mapping[str, Choice]) -> float:
        total = 0.0
        for option in self._listed:
            if option.site.name in choices:
                corrected = self._learned.correction.of(option)
                total += float(corrected.losses[option.choices.index(choices[option.site.name])])
        return math.sqrt(total)

    def _answers(self, model: ir.Model, names: Sequence[str]) -> list[Array]:
        """What a network gives on the inputs held back."""
        held, batch = self._found.held, self._found.batch
        piece = Piece(without_shapes(model), list(held), list(names))
        count = len(next(iter(held.values())))
        runs = [
            piece.run({name: array[start : start + batch] for name, array in held.items()})
            for start in range(0, count, batch)
        ]
        return [np.concatenate(column) for column in zip(*runs, strict=True)]


def _one(model: ir.Model, examples: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs for one example, or for the batch that the model fixes."""
    first = {spec.name: spec.shape[0] if spec.shape else None for spec in input_specs(model)}
    return {
        name: (size if isinstance(size := first.get(name), int) else 1, *array.shape[1:])
        for name, array in examples.items()
    }


def _places(answer: Array, axis: int) -> int:
    return math.prod(size for index, size in enumerate(answer.shape) if index not in (0, axis % answer.ndim))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's; None where one of both does not vary."""
    from scipy.stats import rankdata

    first, second = rankdata(one), rankdata(other)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def correlations(rows: Sequence[Row], drift: str) -> tuple[float | None, float | None]:
    """Of the loss and a drift: over all plans, and within budgets, the mean of these."""
    targets = dict.fromkeys(row.target for row in rows)
    within = [
        found
        for target in targets
        if (found := _correlation([row for row in rows if row.target == target], drift)) is not None
    ]
    return _correlation(rows, drift), float(np.mean(within)) if within else None


def _correlation(rows: Sequence[Row], drift: str) -> float | None:
    return rank_correlation([row.loss for row in rows], [row.drifts[drift] for row in rows])


HEADS = ("network", "plans", "loss", "drift", "all plans", "within budgets")


def lines_of(rows: Sequence[Row]) -> list[list[str]]:
    """Lines of the table for the plans of one network, one for each kind of drift."""
    losses = [row.loss for row in rows]
    lines = []
    for drift in rows[0].drifts if rows else ():
        figures = ["" if figure is None else f"{figure:.2f}" for figure in correlations(rows, drift)]
        lines.append([rows[0].network, str(len(rows)), f"{min(losses):.4f} to {max(losses):.4f}", drift, *figures])
    return lines


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: measuring.DescriptionFile,
    network: measuring.Only = [],  # noqa: B006
    target_macs: Annotated[str, typer.Option(help="Shares of the MACs to keep, comma-separated.")] = "0.7,0.5",
    plans: Annotated[int, typer.Option(min=3, help="Plans for each share.")] = 8,
    calibration_limit: measuring.CalibrationLimit = None,
    metric_limit: measuring.MetricLimit = None,
    seed: Annotated[int, typer.Option(help="Seed of the plans.")] = 0,
    markdown_file: measuring.MarkdownFile = None,
    json_file: measuring.JsonFile = None,
) -> None:
    """Print how well each kind of drift ranks plans, by network."""
    console = Console()
    with told(), threadpool_limits(1, user_api="blas"):  # it and the runtime's pool would wait for each other
        networks = load_networks(file, network, calibration_limit=calibration_limit, metric_limit=metric_limit)
        files = Files(markdown_file, json_file)
        files.require_writable()
        targets = measuring.shares("--target-macs", target_macs)
        rows: list[Row] = []
        lines: list[list[str]] = []
        for name in networks.names:
            bench = Bench(networks, name, seed)
            mine = []
            for target, number, choices in bench.plans(targets, plans):
                mine.append(bench.row(target, number, choices))
                console.print(f"{name} {target:g} plan {number}: loss {mine[-1].loss:.4f}", style="dim")
            rows += mine
            lines += lines_of(mine)
        console.print(terminal_table(HEADS, lines))
        files.write(rows, HEADS, lines)


if __name__ == "__main__":
    app()
