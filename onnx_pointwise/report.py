"""What the results look like on a terminal. Builds ``rich`` renderables; printing them is the command line's work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_pointwise.check import CheckResult
from onnx_pointwise.cost import ModelCost
from onnx_pointwise.inspection import ENERGIES, Inspection, SiteView
from onnx_pointwise.pipeline import RewriteResult, SiteResult
from onnx_pointwise.sites import Refusal

_BARS = "▁▂▃▄▅▆▇█"


def count(value: float) -> str:
    """Write a count with three digits and a unit: 40.6 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Write a number of bytes: 4.35 MB."""
    text = count(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def percent(value: float) -> str:
    """Write a share: 12.3 %."""
    return f"{100 * value:.1f} %"


def rank(value: int | tuple[int, int] | None) -> str:
    """Write a rank: 32, or 24, 32 for both sides."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value[0]}, {value[1]}"


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title, justify in columns:
        first = not table.columns
        table.add_column(
            title,
            justify="right" if justify == "right" else "left",
            overflow="fold" if first else "ellipsis",
            no_wrap=not first,
            min_width=12 if first else None,
        )
    return table


def _size_of(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def sparkline(values: Sequence[float], width: int = 8) -> str:
    """Draw non-negative values, the largest first, as a row of bars."""
    if not len(values):
        return ""
    picked = [values[round(index * (len(values) - 1) / (width - 1))] for index in range(width)]
    top = max(picked) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in picked)


def assumptions(assumed: Iterable[str], shapes: dict[str, tuple[int, ...]]) -> list[Text]:
    """Say which input sizes were assumed."""
    return [
        Text(
            f"The model leaves the size of '{name}' open; costs are for {_size_of(shapes[name])}. "
            f"Name another with --input-shape {name}:{','.join(map(str, shapes[name]))}.",
            style="yellow",
        )
        for name in assumed
    ]


def inspection(result: Inspection) -> RenderableType:
    """Show a model's convolutions."""
    table = _table(
        ("Convolution", "left"),
        ("Kernel", "left"),
        ("Maps", "right"),
        ("Output", "right"),
        ("MACs", "right"),
        ("Share", "right"),
        ("Params", "right"),
        ("Spectrum", "left"),
        ("/".join(f"{100 * energy:.0f}" for energy in ENERGIES) + " %", "left"),
    )
    for view in result.sites:
        table.add_row(*_inspection_row(view))
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
        *_refusal_lines([(view.site.name, view.site.refusal) for view in result.sites]),
        hint,
        total,
        *assumptions(result.assumed_inputs, dict(result.input_shapes)),
    )


def _inspection_row(view: SiteView) -> list[str | Text]:
    site = view.site
    stride = (
        f"/{_size_of(site.strides) if len(set(site.strides)) > 1 else site.strides[0]}"
        if max(site.strides, default=1) > 1
        else ""
    )
    maps = f"{site.in_channels * site.group}→{site.out_channels}" if site.in_channels else ""
    last: str | Text = "/".join(map(str, view.ranks))
    if site.refusal is not None:
        last = Text(site.refusal.code, style="dim")
    return [
        site.name,
        _size_of(site.kernel_shape) + stride,
        maps,
        _size_of(site.out_size),
        "" if view.cost is None else count(view.cost.macs),
        "" if view.cost is None else percent(view.share),
        count(site.stored_params),
        "" if site.refusal is not None else sparkline(list(view.profile)),
        last,
    ]


def _refusal_lines(named: Sequence[tuple[str, Refusal | None]]) -> list[Text]:
    """One line for each reason, with how many sites it holds for."""
    reasons: dict[str, list[str]] = {}
    sentences: dict[str, str] = {}
    for name, refusal in named:
        if refusal is not None:
            reasons.setdefault(refusal.code, []).append(name)
            sentences.setdefault(refusal.code, refusal.reason)
    lines = []
    for code, names in reasons.items():
        text = Text(f"{code}", style="bold dim")
        text.append(f" ({len(names)}): {sentences[code]}", style="not bold dim")
        lines.append(text)
    return lines


def rewrite(result: RewriteResult) -> RenderableType:
    """Show what a rewrite did."""
    table = _table(
        ("Convolution", "left"),
        ("Form", "left"),
        ("Rank", "right"),
        ("MACs", "right"),
        ("After", "right"),
        ("Left", "right"),
        ("Error", "right"),
    )
    for site in result.sites:
        table.add_row(*_rewrite_row(site))
    return Group(
        table,
        *_refusal_lines([(site.name, site.refusal) for site in result.sites]),
        Text(),
        costs(result.before, result.after),
        *assumptions(result.assumed_inputs, dict(result.input_shapes)),
    )


def _rewrite_row(site: SiteResult) -> list[str | Text]:
    before = "" if site.before is None else count(site.before.macs)
    if site.form is None:
        code = "" if site.refusal is None else site.refusal.code
        return [Text(site.name, style="dim"), Text(code, style="dim"), "", Text(before, style="dim"), "", "", ""]
    left = after = ""
    if site.before is not None and site.after is not None:
        after, left = count(site.after.macs), percent(site.after.macs / max(1, site.before.macs))
    return [
        site.name,
        site.form,
        rank(site.rank),
        before,
        after,
        left,
        "" if site.error is None else percent(site.error),
    ]


def costs(before: ModelCost, after: ModelCost) -> Table:
    """Show a model's cost before and after."""
    table = _table(("Whole model", "left"), ("Before", "right"), ("After", "right"), ("Left", "right"))
    rows = (
        ("MACs", count, before.macs, after.macs),
        ("Parameters", count, before.params, after.params),
        ("File", size, before.bytes, after.bytes),
        ("Activations", size, before.activation_bytes, after.activation_bytes),
    )
    for title, write, old, new in rows:
        table.add_row(title, write(old), write(new), percent(new / old) if old else "")
    return table
