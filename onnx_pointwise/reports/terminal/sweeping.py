"""What a sweep looks like on a terminal: a table and a plot for each execution provider."""

from __future__ import annotations

import math

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult

from onnx_pointwise.check import WORDS
from onnx_pointwise.jobs import Front, Sweep, SweepPoint
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.figures import count, percent, size
from onnx_pointwise.reports.terminal.tables import Column, Grid

#: What the answers are judged by, in words.
JUDGED = {"drift": "drift of the head that is off most", "agreement": "how far along its limits the head that is off "
          "most is (below 1 the same, below 2 close)", "score": "loss of your own score"}  # fmt: skip
COSTS = {"macs": "MACs", "params": "parameters", "size": "file", "latency": "latency"}
_HEIGHT = 10
_WIDEST = 72


def sweep(result: Sweep) -> RenderableType:
    """Show the networks of a sweep."""
    shown: list[RenderableType] = []
    for front in result.fronts:
        shown += [*_front(front), Text()]
    return Group(*shown, Text(str(result.calibration["sentence"])), *_warnings(result))


def _warnings(result: Sweep) -> list[Text]:
    said = [str(warning) for warning in result.calibration.get("warnings", ())]
    for front in result.fronts:
        said += [warning for point in front.points[:1] for warning in point.check.warnings]
    return [Text(warning, style="yellow") for warning in dict.fromkeys(said)]


def _front(front: Front) -> list[RenderableType]:
    where = front.provider if front.precision is None else f"{front.provider}, {front.precision}"
    heading = f"{where}: {COSTS[front.cost]} against {JUDGED[front.answers]}."
    shown: list[RenderableType] = [Text(heading, style="bold")]
    if front.unmeasured is not None:
        shown.append(Text(f"Planned by arithmetic: {front.unmeasured}.", style="dim"))
    if front.points:
        shown += [_table(front), _Plot(front), *_legend(front)]
    shown += [Text(f"{one.asked:g}: {one.reason}", style="dim") for one in front.unmade]
    return shown


def _table(front: Front) -> Grid:
    timed = any(point.latency is not None for point in front.points)
    scored = any(point.score is not None for point in front.points)
    grid = Grid(
        Column(""),
        Column("For", right=True),
        Column("MACs", right=True, extra=2),
        Column("Left", right=True),
        Column("Params", right=True, extra=1),
        Column("File", right=True),
        *([Column("Latency", right=True)] if timed else []),
        Column("Drift", right=True),
        Column("Worst head", extra=3),
        *([Column("Score", right=True)] if scored else []),
        Column("Answers"),
    )
    for point in front.points:
        worst = point.check.worst
        cells = [
            _mark(front, point),
            f"{point.asked:g}",
            count(point.after.macs),
            percent(point.share("macs")),
            percent(point.share("params")),
            size(point.after.bytes),
            *([percent(point.share("latency"))] if timed else []),
            "" if point.drift is None else f"{point.drift:.3g}",
            "" if worst is None else worst.figure,
            *(["" if point.score is None else f"{point.score.after:.4f}"] if scored else []),
            ("" if point.verdict is None else WORDS[point.verdict]) + ("" if point.passed else ", fails"),
        ]
        grid.add_row(*(Text(cell, style="" if point.on_front else "dim") for cell in cells))
    return grid


def _mark(front: Front, point: SweepPoint) -> str:
    return "◆" if point is front.knee else "●" if point.on_front else "○"


def _legend(front: Front) -> list[Text]:
    told = "● no other network is both cheaper and better"
    if any(not point.on_front for point in front.points):
        told += ", ○ another one is"
    if front.knee is not None:
        told += ", ◆ the knee"
    picked = [f"{rule} {asked:g}" for rule, asked in front.picks.items() if asked is not None and rule != "changed"]
    return [Text(told, style="dim"), Text(f"--pick takes of these: {', '.join(picked)}.")] if picked else [Text(told)]


class _Plot:
    """The networks of a front: what is left of the cost to the right, what their answers lose upwards."""

    def __init__(self, front: Front) -> None:
        self._cost = COSTS[front.cost]
        self._points = [
            (point.share(front.cost), point.loss(front.answers), _mark(front, point))
            for point in front.points
            if math.isfinite(point.share(front.cost)) and math.isfinite(point.loss(front.answers))
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as wide as the terminal, within reason."""
        if len(self._points) < 2:
            return
        losses = [loss for _, loss, _ in self._points]
        least, most = min(0.0, *losses), max(losses)
        right = max(1.0, *(share for share, _, _ in self._points))
        margin = max(len(f"{end:.3g}") for end in (least, most)) + 1
        columns = max(20, min(options.max_width, _WIDEST) - margin - 2)
        grid = [[" "] * (columns + 1) for _ in range(_HEIGHT + 1)]
        for share, loss, mark in [(1.0, 0.0, "·"), *self._points]:
            height = round((most - loss) / max(most - least, 1e-12) * _HEIGHT)
            grid[height][round(share / right * columns)] = mark
        for number, row in enumerate(grid):
            label = f"{most:.3g}" if number == 0 else f"{least:.3g}" if number == _HEIGHT else ""
            yield Text(f"{label:>{margin}}│{''.join(row).rstrip()}")
        yield Text(f"{'':>{margin}}└{'─' * (columns + 1)}")
        end = f"0 % of the {self._cost}"
        yield Text(f"{'':>{margin}} {end}{f'{100 * right:.0f} %':>{columns + 1 - len(end)}}", style="dim")
