"""Pieces of a page that a template asks for: rows of the network's picture, plots, groups of refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What of the height of a rewritten convolution a 1x1 takes, beside a kernel.
_POINTWISE = 0.36
# Half of the least width that is still seen, of 100.
_LEAST = 0.6
#: Convolutions whose curves are drawn, at most: those that take most.
CURVES = 18

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """One convolution in the picture.

    Attributes:
        points: Corners, for an SVG polygon in a box of 100 by 20.
        heat: Its share of the dearest convolution's cost, in percent.
        pointwise: Whether it is a 1x1 put beside a kernel.
        title: What it is.
    """

    points: str
    heat: float
    pointwise: bool
    title: str


@dataclass(frozen=True)
class Row:
    """One convolution of the source: before, and what stands in its place."""

    site: Document
    before: Block
    after: tuple[Block, ...]
    share: float | None


def network(sites: Sequence[Document], total: float) -> list[Row]:
    """Lay out the picture of a network: widths are feature maps, colours shares of the cost.

    Args:
        sites: Convolutions of a rewrite's JSON.
        total: MACs of the whole network before.
    """
    shown = [site for site in sites if site["shape"] is not None and site["shape"]["out_channels"]]
    widest = max((_widest(site) for site in shown), default=1)
    dearest = max((site["macs_before"] or 0 for site in shown), default=0) or 1
    rows = []
    for site in shown:
        shape = site["shape"]
        before = _block(shape, site["macs_before"], 0.0, 1.0, widest, dearest)
        after = [before]
        if site["pieces"]:
            after, start = [], 0.0
            for piece, height in zip(site["pieces"], _heights(site["pieces"]), strict=True):
                beside = max(shape["kernel"], default=1) > 1 and max(piece["kernel"], default=1) == 1
                after.append(_block(piece, piece["macs"], start, height, widest, dearest, beside=beside))
                start += height
        share = None if site["macs_before"] is None or not total else site["macs_before"] / total
        rows.append(Row(site, before, tuple(after), share))
    return rows


def _widest(site: Document) -> int:
    shapes = [site["shape"], *site["pieces"]]
    return max(int(max(shape["in_channels"], shape["out_channels"])) for shape in shapes)


def times(sizes: Sequence[int]) -> str:
    """Write a size: 3x3, with the sign for it."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, sizes))


def _heights(pieces: Sequence[Document]) -> list[float]:
    """Shares of the height: 1x1s beside a kernel take less."""
    small = [max(piece["kernel"], default=1) == 1 for piece in pieces]
    if all(small) or not any(small):
        return [1.0 / len(pieces)] * len(pieces)
    weights = [_POINTWISE if one else 1.0 for one in small]
    return [weight / sum(weights) for weight in weights]


def _block(
    shape: Document, macs: int | None, start: float, height: float, widest: int, dearest: int, *, beside: bool = False
) -> Block:
    top, bottom = (max(_LEAST, 50.0 * shape[side] / widest) for side in ("in_channels", "out_channels"))
    y, end = 20.0 * start, 20.0 * (start + height)
    corners = ((50 - top, y), (50 + top, y), (50 + bottom, end), (50 - bottom, end))
    size = times(shape["kernel"]) + (" depthwise" if shape["group"] == shape["in_channels"] > 1 else "")
    cost = "" if macs is None else f", {macs:,} MACs"
    return Block(
        points=" ".join(f"{x:.2f},{at:.2f}" for x, at in corners),
        heat=round(100.0 * (macs or 0) / dearest, 1),
        pointwise=beside,
        title=f"{size}, {shape['in_channels']} → {shape['out_channels']} feature maps{cost}",
    )


def inspected(document: Document) -> list[dict[str, Any]]:
    """The convolutions of an inspection, in the words of a rewrite's JSON."""
    return [
        {
            "name": site["name"],
            "macs_before": site["macs"],
            "pieces": [],
            "shape": {
                "kernel": site["kernel"],
                "in_channels": site["in_channels"] * site["group"],
                "out_channels": site["out_channels"],
                "group": site["group"],
            },
        }
        for site in document["sites"]
    ]


def refusals(sites: Sequence[Document]) -> list[dict[str, Any]]:
    """Convolutions that stay as they are, by the reason, the commonest first."""
    groups: dict[str, dict[str, Any]] = {}
    for site in sites:
        refusal = site["refusal"]
        if refusal is not None:
            group = groups.setdefault(refusal["code"], {"code": refusal["code"], "sites": []})
            group["sites"].append({"name": site["name"], **refusal})
    return sorted(groups.values(), key=lambda group: -len(group["sites"]))


def drawn(sites: Sequence[Document]) -> list[Document]:
    """Convolutions whose curves are drawn: the rewritten ones first, then by their cost."""
    known = [site for site in sites if site["curves"]]
    known.sort(key=lambda site: (site["form"] is None, -(site["macs_before"] or 0)))
    return known[:CURVES]


def curves(site: Document, plan: Document) -> Any:
    """Error over the rank, in each form, with the choice."""
    from onnx_pointwise.reports.html import plots

    chosen = plan["sites"].get(site["name"])
    return plots.curves(site["curves"], chosen)


def latencies(timed: Document) -> Any:
    """How the times of single runs are spread, before and after."""
    from onnx_pointwise.reports.html import plots

    return plots.latencies(timed["before"]["times"], timed["after"]["times"])


def front(one: Document) -> Any:
    """The networks of a sweep: what is left of the cost, and what the answers lose."""
    from onnx_pointwise.reports.html import plots

    return plots.front(one)


def spectrum(site: Document) -> Any:
    """Singular values of a kernel over its input channels."""
    from onnx_pointwise.reports.html import plots

    return plots.spectrum(site["singular_values"], site["ranks"])


def treads(site: Document) -> Any:
    """Measured latency of a convolution over the rank."""
    from onnx_pointwise.reports.html import plots

    return plots.treads(site["latency"])


def loss(point: Document, answers: str) -> float | None:
    """What a network of a sweep was judged by."""
    if answers == "score":
        score = point["score"]
        return None if score is None else score["before"] - score["after"]
    if answers == "agreement":
        head = point["worst_head"]
        return None if head is None else head["severity"]
    drift: float | None = point["drift"]
    return drift
