"""Plots as SVG that takes its colours from the page, so that it is light and dark with it. Numbers alone, no names.

The same numbers give the same bytes: identifiers come from a fixed salt, and nothing is dated.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Colours that stand for those of the page, see page.css.
_COLOURS = {
    "ink": "#0a0b01",
    "muted": "#0a0b02",
    "line": "#0a0b03",
    "before": "#0a0b04",
    "after": "#0a0b05",
    "accent": "#0a0b06",
    "reduce": "#0a0b07",
    "expand": "#0a0b08",
    "vertical": "#0a0b09",
    "horizontal": "#0a0b0a",
    "depthwise": "#0a0b0b",
}
_STYLE = {
    "svg.hashsalt": "onnx_pointwise",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": _COLOURS["ink"],
    "axes.edgecolor": _COLOURS["line"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["muted"],
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
_WIDE, _SMALL = (4.6, 2.1), (2.3, 1.6)
# Runs that take more than so many times the slower median would squeeze all others: they share the last bar.
_SHOWN = 1.8
_BINS = 40


@contextmanager
def _axes(size: tuple[float, float]) -> Iterator[tuple[Any, list[Markup]]]:
    """Axes to draw on, and a list that then holds the SVG."""
    made: list[Markup] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), made
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    made.append(_themed(text.getvalue()))


def _themed(svg: str) -> Markup:
    """Let the page decide on colours and fonts, and drop what only stands in files."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="(?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib\.axis|PathCollection|legend)_\d+"', "", svg
    )
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", svg)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(re.sub(r"\n\s*", "\n", svg))


def curves(drawn: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None) -> Markup:
    """Error of a convolution over the rank, in each form; a ring marks the choice."""
    with _axes(_SMALL) as (axes, made):
        for curve in drawn:
            errors = np.maximum(curve["errors"], 0.0)
            axes.plot(curve["ranks"], errors, color=_COLOURS[curve["form"]], linewidth=1.4)
        if chosen is not None and chosen.get("error") is not None:
            rank, error = chosen["rank"], chosen["error"]
            if isinstance(rank, list):
                axes.axhline(error, color=_COLOURS["accent"], linewidth=1.2, linestyle=(0, (3, 2)))
            else:
                axes.plot([rank], [error], "o", markersize=8, markerfacecolor="none", color=_COLOURS["accent"])
                axes.plot([rank], [error], "o", markersize=2.5, color=_COLOURS["accent"])
        axes.set_ylim(bottom=0.0)
        axes.set_xlim(left=0.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.locator_params(nbins=5)
    return made[0]


def latencies(before: Sequence[float], after: Sequence[float]) -> Markup:
    """Histograms of single runs in milliseconds, with their medians."""
    first, second = 1e3 * np.asarray(before), 1e3 * np.asarray(after)
    both = np.concatenate([first, second])
    slow = _SHOWN * float(max(np.median(first), np.median(second)))
    low, high = float(both.min()), min(float(both.max()), slow)
    edges = np.linspace(low, high if high > low else low + 1e-6, _BINS + 1)
    with _axes(_WIDE) as (axes, made):
        for times, name in ((first, "before"), (second, "after")):
            axes.hist(
                np.clip(times, edges[0], edges[-1]), edges, color=_COLOURS[name], alpha=0.55, label=name, linewidth=0
            )
            axes.axvline(float(np.median(times)), color=_COLOURS[name], linewidth=1.6)
        axes.set_xlabel("ms a run; lines: medians; last bar: the slowest")
        axes.set_ylabel("runs")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", ncols=2)
    return made[0]


def front(one: Mapping[str, Any]) -> Markup:
    """Networks of a sweep; a line joins those that no other one is both cheaper and better than."""
    from onnx_pointwise.reports.html.parts import loss

    known = [
        (point["shares"][one["cost"]], loss(point, one["answers"]), point)
        for point in one["points"]
        if point["shares"][one["cost"]] is not None and loss(point, one["answers"]) is not None
    ]
    with _axes((4.6, 2.9)) as (axes, made):
        kept = sorted([(1.0, 0.0), *((share, lost) for share, lost, point in known if point["on_front"])])
        axes.plot([share for share, _ in kept], [lost for _, lost in kept], color=_COLOURS["after"], linewidth=1.4)
        axes.plot([1.0], [0.0], "s", color=_COLOURS["before"], markersize=6)
        for share, lost, point in known:
            fill = _COLOURS["after"] if point["on_front"] else "none"
            axes.plot([share], [lost], "o", color=_COLOURS["after"], markerfacecolor=fill, markersize=7)
            axes.annotate(f"{point['asked']:g}", (share, lost), (6, 6), textcoords="offset points")
            if point["asked"] == one["picks"]["knee"]:
                axes.plot([share], [lost], "D", color=_COLOURS["accent"], markerfacecolor="none", markersize=14)
        axes.set_xlim(0.0, max(1.03, *(share for share, _, _ in known)) if known else 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(
            {"macs": "MACs", "params": "parameters", "size": "file", "latency": "latency"}[one["cost"]] + " left"
        )
        axes.set_ylabel({"drift": "drift", "agreement": "severity", "score": "loss of the score"}[one["answers"]])
    return made[0]


def spectrum(values: Sequence[float], ranks: Mapping[str, int]) -> Markup:
    """Singular values, and the ranks that keep shares of their energy."""
    with _axes(_SMALL) as (axes, made):
        axes.fill_between(np.arange(1, len(values) + 1), values, color=_COLOURS["after"], alpha=0.4, linewidth=0)
        axes.plot(np.arange(1, len(values) + 1), values, color=_COLOURS["after"], linewidth=1.4)
        for rank in ranks.values():
            axes.axvline(rank, color=_COLOURS["accent"], linewidth=1.0, linestyle=(0, (3, 2)))
        axes.set_ylim(bottom=0.0)
        axes.set_xlim(left=0.0)
        axes.locator_params(nbins=5)
    return made[0]


def treads(latency: Mapping[str, Any]) -> Markup:
    """Latency over the rank as a share of the dense convolution's, by form, of those with one rank."""
    with _axes(_SMALL) as (axes, made):
        forms: dict[str, list[tuple[int, float]]] = {}
        for tread in latency["treads"]:
            if isinstance(tread["rank"], int):
                forms.setdefault(tread["form"], []).append((tread["rank"], tread["seconds"] / latency["dense"]))
        for form, known in forms.items():
            ranks, shares = zip(*sorted(known), strict=True)
            axes.step(ranks, shares, where="pre", color=_COLOURS[form], linewidth=1.4)
            axes.plot(ranks, shares, "o", color=_COLOURS[form], markersize=3)
        axes.axhline(1.0, color=_COLOURS["before"], linewidth=1.0)
        axes.set_ylim(bottom=0.0)
        axes.set_xlim(left=0.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.locator_params(nbins=5)
    return made[0]
