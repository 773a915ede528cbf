"""How two networks compare."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType

from onnx_pointwise.check import CheckResult, ProviderCheck, shortened
from onnx_pointwise.graph import ModelCost
from onnx_pointwise.numerics import Drift
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.answers import MOST_SITES, answers
from onnx_pointwise.reports.terminal.figures import (
    change,
    count,
    known_size,
    milliseconds,
    percent,
    size,
    size_change,
    three,
)
from onnx_pointwise.reports.terminal.running import comparison
from onnx_pointwise.reports.terminal.tables import Column, Grid

# Names in a sentence.
_NAME = 40


def check(result: CheckResult, *, whole: bool = True) -> RenderableType:
    """Show how two models compare.

    Args:
        result: The check.
        whole: Show all heads and convolutions; otherwise, where they are many, those that are off most.
    """
    most = None if whole else 2 * MOST_SITES
    return Group(
        answers(result, most=most, whole=whole),
        Text(),
        costs(result.before, result.after, result),
        Text(),
        verdict(result),
    )


def costs(before: ModelCost, after: ModelCost, check: CheckResult | None = None) -> Grid:
    """Show a model's cost before and after, with the latency where it was measured."""
    table = Grid(
        Column("Whole model", name=True),
        Column("Before", right=True),
        Column("After", right=True),
        Column("Change", right=True),
        Column("Left", right=True),
    )
    rows = (
        ("MACs", count, change, before.macs, after.macs),
        ("Parameters", count, change, before.params, after.params),
        ("File", size, size_change, before.bytes, after.bytes),
        ("Activations", known_size, size_change, before.activation_bytes, after.activation_bytes),
    )
    for title, write, difference, old, new in rows:
        unknown = not old or (title == "Activations" and not new)
        left = ("", "") if unknown else (difference(old, new), percent(new / old))
        table.add_row(title, write(old), write(new), *left)
    for result in check.providers if check is not None else ():
        if result.latency is not None:
            timed = result.latency
            gained = 1e3 * (timed.after.median - timed.before.median)
            # Medians of all runs differ by chance where the ratio of the turns, which decides, shows nothing.
            differs = timed.verdict in ("faster", "slower")
            table.add_row(
                f"Latency, {result.provider}",
                milliseconds(timed.before.median),
                milliseconds(timed.after.median),
                f"{'+' if gained > 0 else ''}{three(gained)} ms" if differs else "",
                percent(timed.ratio) if differs else timed.verdict,
            )
    return table


def verdict(result: CheckResult) -> RenderableType:
    """Show what the runtime said: shapes, drift of each output, latency, and what is wrong."""
    table = Grid(
        Column("Output", name=True),
        Column("On"),
        Column("Drift", right=True),
        Column("dB", right=True),
        Column("Max abs", right=True),
        Column("Cosine", right=True, extra=1),
        Column("Same top-1", right=True, extra=2),
    )
    for provider in result.providers:
        for name, drift in provider.drift.items():
            table.add_row(*_drift_row(name, provider.provider, drift))
        for name, drift in (provider.drift_from_cpu or {}).items():
            table.add_row(*_drift_row(name, f"{provider.provider} vs cpu", drift))
    lines = [Text(line) for provider in result.providers for line in _provider_lines(provider)]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    lines += [Text(f"failed: {finding.sentence}", style="bold red") for finding in result.findings]
    if result.passed:
        good = result.verdict in ("same", "close")
        lines.append(Text(_passed(result, good=good), style="bold green" if good else "yellow"))
    if not table.rows:
        return Group(*lines)
    return Group(_tensors(result), table, *lines)


def _tensors(result: CheckResult) -> Text:
    """Say how the drift of output tensors goes with that of heads, which are not the same."""
    if not result.heads:
        return Text("Output tensors, all their numbers together:", style="dim")
    return Text(
        "The heads above are the answers, and decide. These are the output tensors, all their numbers together and "
        "their means left in, for --max-drift:",
        style="dim",
    )


def _passed(result: CheckResult, *, good: bool) -> str:
    """Say what a check that passed stands for: without a limit, any drift passes."""
    unlimited = result.unlimited
    if not result.drift:
        drift = "no output holds numbers whose drift could be limited"
    elif not unlimited:
        drift = "the drift is within its limit"
    elif len(unlimited) == len(result.drift):
        drift = "the drift above was not limited (--max-drift)"
    else:
        names = ", ".join(f"'{shortened(name, _NAME)}'" for name in unlimited)
        drift = f"the drift is within its limit, but that of {names} was not limited (--max-drift)"
    same = f"names, shapes and types are the same, and no output turned NaN or infinite; {drift}"
    return f"Check passed: {same}." if good else f"The answers {result.verdict}, as said first; {same}."


def _drift_row(name: str, where: str, drift: Drift) -> list[str]:
    return [
        name,
        where,
        "nothing" if drift.values in (0, drift.non_finite_before) else f"{drift.relative_l2:.3g}",
        "" if drift.decibel is None else f"{drift.decibel:.1f}",
        f"{drift.max_abs:.3g}",
        "" if drift.cosine is None else f"{drift.cosine:.6f}",
        "" if drift.top1 is None else percent(drift.top1),
    ]


def _provider_lines(result: ProviderCheck) -> Iterable[str]:
    ran = [trial for trial in result.trials if trial.skipped is None]
    same = "the same" if result.shapes_equal else "NOT the same"
    yield f"Shapes and types {same} on {result.provider}, for {len(ran)} input shape{'' if len(ran) == 1 else 's'}."
    if result.nodes_off:
        names = ", ".join(shortened(node.name, _NAME) for node in result.nodes_off[:4])
        more = ", ..." if len(result.nodes_off) > 4 else ""
        count = len(result.nodes_off)
        nodes = f"{count} node{'' if count == 1 else 's'}"
        yield f"{nodes} left {result.provider} for another provider: {names}{more}"
    if result.latency is not None:
        yield f"Latency on {result.provider}: {comparison(result.latency)}"
