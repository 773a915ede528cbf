"""A model by its convolutions."""

from __future__ import annotations

from rich.console import Group, RenderableType

from onnx_pointwise.graph import competing
from onnx_pointwise.jobs import ENERGIES, Inspection, SiteView
from onnx_pointwise.numerics import FORMS
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.figures import count, milliseconds, percent, rank, size, sizes, sparkline
from onnx_pointwise.reports.terminal.sentences import ALL, advice, assumptions, reasons
from onnx_pointwise.reports.terminal.tables import FEW, SHOWN, Cell, Column, Grid


def inspection(result: Inspection, *, whole: bool = False) -> RenderableType:
    """Show a model's convolutions.

    Args:
        result: The model.
        whole: Show all of them in the order of the graph; otherwise, where they are many, those that cost most.
    """
    table = Grid(
        Column("Convolution", name=True),
        Column("Kernel"),
        Column("Maps", right=True),
        Column("Output", right=True, extra=2),
        Column("MACs", right=True),
        Column("Share", right=True),
        Column("Params", right=True, extra=1),
        Column("Spectrum"),
        Column("/".join(f"{100 * energy:.0f}" for energy in ENERGIES) + "%"),
        among=[view.site.name for view in result.sites],
    )
    shown = _shown(result, whole=whole)
    for view in shown:
        table.add_row(*_row(view))
    cost = result.cost
    total = Text(
        f"{len(result.sites)} convolutions, {count(cost.conv_macs)} of the model's {count(cost.macs)} MACs; "
        f"{count(cost.params)} parameters in {size(cost.bytes)}.",
        style="bold",
    )
    hint = Text(
        "Spectrum: singular values of the kernel over its input channels, largest first, and the ranks that "
        "keep that share of their energy.",
        style="dim",
    )
    return Group(
        table,
        *_folded(result, shown),
        *reasons([(view.site.refusal, view.share) for view in result.sites if view.site.refusal is not None]),
        hint,
        *_treads(result, shown),
        total,
        *assumptions(result.assumed_inputs, dict(result.input_shapes)),
        *advice(result.advice),
    )


def _shown(result: Inspection, *, whole: bool) -> list[SiteView]:
    """The convolutions that are shown: all of a few, else those that can be rewritten and cost most."""
    if whole or len(result.sites) <= FEW:
        return list(result.sites)
    rewritable = [view for view in result.sites if view.site.refusal is None] or list(result.sites)
    return sorted(rewritable, key=lambda view: -view.share)[:SHOWN]


def _folded(result: Inspection, shown: list[SiteView]) -> list[Text]:
    """Say what is not shown."""
    left = len(result.sites) - len(shown)
    if not left:
        return []
    share = sum(view.share for view in result.sites) - sum(view.share for view in shown)
    return [
        Text(
            f"The {len(shown)} that cost most of those that can be rewritten; {left} more have {percent(share)} of "
            f"the MACs. {ALL}.",
            style="dim",
        )
    ]


def _treads(result: Inspection, shown: list[SiteView]) -> list[RenderableType]:
    """Show the highest rank of each tread of the staircase, and its share of the dense site's latency."""
    table = Grid(
        Column("Convolution", name=True),
        Column("Dense", right=True),
        Column("Form"),
        Column("Rank: share of latency", wraps=True),
    )
    for view in shown:
        if view.latency is None:
            continue
        timed = view.latency
        forms = [form for form in competing(view.site, FORMS) if form != "reduce_expand"]
        for form in forms:
            treads = [
                f"{rank(at)}: {seconds / timed.dense:.2f}"
                for (kind, at), seconds in zip(timed.choices, timed.seconds, strict=True)
                if kind == form
            ]
            first = form == forms[0]
            dense = milliseconds(timed.dense) if first else ""
            table.add_row(view.site.name if first else "", dense, form, "  ".join(treads) or "never faster")
    return [Text(), table, Text()] if table.rows else []


def _row(view: SiteView) -> list[Cell]:
    site = view.site
    stride = (
        f"{'↑' if site.transposed else '/'}{sizes(site.strides) if len(set(site.strides)) > 1 else site.strides[0]}"
        if max(site.strides, default=1) > 1
        else ""
    )
    maps = f"{site.in_channels * site.group}→{site.out_channels}" if site.in_channels else ""
    spectrum: Cell = sparkline(list(view.profile))
    if site.refusal is not None:
        spectrum = Text(site.refusal.code, style="dim")
    return [
        site.name,
        sizes(site.kernel_shape) + stride,
        maps,
        sizes(site.out_size),
        "" if view.cost is None else count(view.cost.macs),
        "" if view.cost is None else percent(view.share),
        count(site.stored_params),
        spectrum,
        "" if site.refusal is not None else "/".join(map(str, view.ranks)),
    ]
