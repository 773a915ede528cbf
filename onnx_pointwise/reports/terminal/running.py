"""What was measured on providers, and what there is to measure on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from onnx_pointwise.jobs import Benchmark
from onnx_pointwise.latency import CacheInfo
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.figures import milliseconds, percent, size
from onnx_pointwise.reports.terminal.sentences import ALL, advice
from onnx_pointwise.reports.terminal.tables import FEW, SHOWN, Column, Grid
from onnx_pointwise.runtime import LatencyComparison, NodeTime, ProviderInfo


def comparison(timed: LatencyComparison) -> str:
    """Say how the latencies of two networks compare."""
    low, high = timed.interval
    if timed.verdict == "too noisy to tell":
        return (
            f"{timed.verdict}: one network differs from itself by {timed.noise:.3f}; between {low:.3f} and {high:.3f} "
            f"of before (95 %, {timed.rounds} rounds). Time them again while nothing else runs."
        )
    return (
        f"{timed.verdict}, {timed.ratio:.3f} of before (95 % within {low:.3f} to {high:.3f}, "
        f"noise floor {timed.noise:.3f}, {timed.rounds} rounds)."
    )


def _change(timed: LatencyComparison) -> str:
    """How much faster or slower, where that can be told."""
    return "too noisy" if timed.verdict == "too noisy to tell" else f"{100 * (timed.ratio - 1):+.1f} %"


def cache(info: CacheInfo, *, cleared: bool) -> RenderableType:
    """Show what the cache of latencies holds."""
    if cleared:
        return Text(f"Cleared {info.path}; {info.entries} measurements are forgotten.")
    return Text(f"{info.path}: {info.entries} measurements, {size(info.bytes)}. --clear forgets them.")


def providers(infos: Sequence[ProviderInfo]) -> RenderableType:
    """Show which execution providers are there, and why the others are not."""
    table = Grid(Column("Provider"), Column("Device", name=True), Column("Version"))
    lines = []
    for info in infos:
        if info.available:
            device = info.device or ""
            table.add_row(info.name, f"{device} (emulated on the CPU)" if info.software else device, info.version or "")
        else:
            line = Text(f"{info.name}: ", style="bold dim")
            line.append(info.reason or "not available", style="not bold dim")
            lines.append(line)
    return Group(table, Text(), *lines)


def bench(result: Benchmark, nodes: Sequence[NodeTime] = (), *, whole: bool = True) -> RenderableType:
    """Show latency, over batch sizes and threads, and the time of each convolution where it was measured.

    Args:
        result: What was measured.
        nodes: The kernels of the network, the longest first.
        whole: Show all kernels; otherwise, where they are many, those that take longest.
    """
    table = Grid(
        Column("Network", name=True),
        Column("Batch", right=True),
        Column("Threads", right=True),
        Column("Median", right=True),
        Column("P90", right=True),
        Column("Change", right=True),
        Column("Items/s", right=True),
    )
    verdicts = []
    for row in result.rows:
        batch = "as it is" if row.batch is None else str(row.batch)
        threads = "default" if row.threads is None else str(row.threads)
        timed = [(result.model, row.latency, "")]
        if row.comparison is not None:
            timed.append((result.other or "", row.comparison.after, _change(row.comparison)))
            verdicts.append(Text(f"Batch {batch}, threads {threads}: {comparison(row.comparison)}"))
        for name, latency, changed in timed:
            median, p90 = milliseconds(latency.median), milliseconds(latency.p90)
            table.add_row(name, batch, threads, median, p90, changed, f"{latency.throughput:.4g}")
    lines = [
        Text(f"Peak memory of the {role}: {size(used.loading)} to load, {size(used.running)} to run.")
        for role, used in result.memory.items()
    ]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    machine = result.machine
    about = Text(f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.instruction_sets)}", style="dim")
    return Group(*_kernels(nodes, whole=whole), table, *verdicts, *lines, about, *advice(result.advice))


def _kernels(nodes: Sequence[NodeTime], *, whole: bool) -> list[RenderableType]:
    """Show what the kernels of a network take, the longest first."""
    if not nodes:
        return []
    table = Grid(
        Column("Kernel", name=True), Column("Operator"), Column("Time", right=True), Column("Share", right=True)
    )
    total = sum(node.seconds for node in nodes) or 1.0
    shown = list(nodes)
    if not whole and len(nodes) > FEW:
        shown = sorted(nodes, key=lambda node: -node.seconds)[:SHOWN]
    for node in shown:
        share = percent(node.seconds / total)
        table.add_row(node.site or node.name, node.op_type, f"{1e6 * node.seconds:.0f} us", share)
    rest: list[RenderableType] = []
    if len(shown) < len(nodes):
        share = percent(1.0 - sum(node.seconds for node in shown) / total)
        rest.append(Text(f"{len(nodes) - len(shown)} more kernels take {share}. {ALL}.", style="dim"))
    return [table, *rest, Text()]
