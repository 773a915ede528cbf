"""What a sweep looks like on a terminal: a table and a plot for each execution provider."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType

from onnx_pointwise.check import WORDS
from onnx_pointwise.jobs import Front, Sweep, SweepPoint
from onnx_pointwise.reports.plain import Table, Text
from onnx_pointwise.reports.terminal import count, percent, size

#: What the answers are judged by, in words.
JUDGED = {"drift": "drift of the head that is off most", "agreement": "how far along its limits the head that is off "
          "most is (below 1 the same, below 2 close)", "score": "loss of your own score"}  # fmt: skip
COSTS = {"macs": "MACs", "params": "parameters", "size": "file", "latency": "latency"}
_HEIGHT = 10
_WIDEST = 72


def sweep(result: Sweep, *, width: int) -> RenderableType:
    """Show the networks of a sweep."""
    shown: list[RenderableType] = []
    for front in result.fronts:
        shown += [*_front(front, width), Text()]
    return Group(*shown, Text(str(result.calibration["sentence"])), *_warnings(result))


def _warnings(result: Sweep) -> list[Text]:
    said = [str(warning) for warning in result.calibration.get("warnings", ())]
    for front in result.fronts:
        said += [warning for point in front.points[:1] for warning in point.check.warnings]
    return [Text(warning, style="yellow") for warning in dict.fromkeys(said)]


def _front(front: Front, width: int) -> list[RenderableType]:
    heading = f"{front.provider}: {COSTS[front.cost]} against {JUDGED[front.answers]}."
    shown: list[RenderableType] = [Text(heading, style="bold")]
    if front.unmeasured is not None:
        shown.append(Text(f"Planned by arithmetic: {front.unmeasured}.", style="dim"))
    if front.points:
        shown += [_table(front), *plot(front, min(width, _WIDEST)), *_legend(front)]
    shown += [Text(f"{one.asked:g}: {one.reason}", style="dim") for one in front.unmade]
    return shown


def _table(front: Front) -> Table:
    timed = any(point.latency is not None for point in front.points)
    scored = any(point.score is not None for point in front.points)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0), collapse_padding=True)
    for title in ("", "For", "MACs", "Left", "Params", "File", *(["Latency"] if timed else []), "Drift"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("Worst head", *(["Score"] if scored else []), "Answers"):
        table.add_column(title, no_wrap=True)
    for point in front.points:
        worst = point.check.worst
        after = point.after
        table.add_row(
            _mark(front, point),
            f"{point.asked:g}",
            count(after.macs),
            percent(point.share("macs")),
            percent(point.share("params")),
            size(after.bytes),
            *([percent(point.share("latency"))] if timed else []),
            "" if point.drift is None else f"{point.drift:.3g}",
            "" if worst is None else worst.figure,
            *(["" if point.score is None else f"{point.score.after:.4f}"] if scored else []),
            ("" if point.verdict is None else WORDS[point.verdict]) + ("" if point.passed else ", fails"),
            style="" if point.on_front else "dim",
        )
    return table


def _mark(front: Front, point: SweepPoint) -> str:
    return "◆" if point is front.knee else "●" if point.on_front else "○"


def _legend(front: Front) -> list[Text]:
    told = "● no other network is both cheaper and better"
    if any(not point.on_front for point in front.points):
        told += ", ○ another one is"
    if front.knee is not None:
        told += ", ◆ the knee of the front (--pick knee)"
    return [Text(told, style="dim")]


def plot(front: Front, width: int) -> list[Text]:
    """Draw the networks of a front: what is left of the cost to the right, what their answers lose upwards."""
    drawn = [
        (point.share(front.cost), point.loss(front.answers), _mark(front, point))
        for point in front.points
        if math.isfinite(point.share(front.cost)) and math.isfinite(point.loss(front.answers))
    ]
    if len(drawn) < 2:
        return []
    least, most = min(0.0, *(loss for _, loss, _ in drawn)), max(loss for _, loss, _ in drawn)
    right = max(1.0, *(share for share, _, _ in drawn))
    top, bottom = f"{most:.3g}", f"{least:.3g}"
    margin = max(len(top), len(bottom)) + 1
    columns = max(20, width - margin - 2)
    grid = [[" "] * (columns + 1) for _ in range(_HEIGHT + 1)]
    for share, loss, mark in [(1.0, 0.0, "·"), *drawn]:
        height = round((most - loss) / max(most - least, 1e-12) * _HEIGHT)
        grid[height][round(share / right * columns)] = mark
    lines = []
    for number, row in enumerate(grid):
        label = top if number == 0 else bottom if number == _HEIGHT else ""
        lines.append(Text(f"{label:>{margin}}│{''.join(row).rstrip()}"))
    lines.append(Text(f"{'':>{margin}}└{'─' * (columns + 1)}"))
    ends = f"0 % of the {COSTS[front.cost]}", f"{100 * right:.0f} %"
    lines.append(Text(f"{'':>{margin}} {ends[0]}{ends[1]:>{max(1, columns + 1 - len(ends[0]))}}", style="dim"))
    return lines
