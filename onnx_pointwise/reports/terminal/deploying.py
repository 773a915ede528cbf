"""The networks that could be deployed, side by side."""

from __future__ import annotations

from rich.console import RenderableType

from onnx_pointwise.jobs import Deployed, Version
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.answers import STYLES
from onnx_pointwise.reports.terminal.figures import percent, size
from onnx_pointwise.reports.terminal.running import comparison
from onnx_pointwise.reports.terminal.tables import Column, Grid
from onnx_pointwise.runtime import CONVERSIONS

# What is named of the kernels that compute in float32, at most, and from which share of the time on.
_MOST, _LEAST = 4, 0.01


def deployed(found: Deployed) -> list[RenderableType]:
    """Show the networks that were compared, the best of them, and what the precision does not reach."""
    if not found.versions:
        return []
    table = Grid(
        Column("Network", name=True),
        Column("Answers"),
        Column("At worst"),
        Column("Drift", right=True),
        Column("Latency", right=True),
        Column("Noise", right=True, extra=1),
        Column("File", right=True),
    )
    for version in found.versions:
        table.add_row(
            Text(version.name, style="bold" if version.name == found.best else ""),
            Text(version.verdict or "not compared", style=STYLES.get(version.verdict, "")),
            version.figure or "",
            "" if version.drift is None else f"{version.drift:.3g}",
            "" if version.latency is None else percent(version.latency),
            "" if version.noise is None else percent(version.noise),
            size(version.bytes),
        )
    return [Text(), table, *(Text(sentence) for sentence in sentences(found)), Text()]


def sentences(found: Deployed) -> list[str]:
    """Say which network is best, and what the precision gains and does not reach."""
    said = []
    if found.best is not None:
        said.append(f"Best: {found.best}, the fastest whose answers are within the limits.")
    if found.pair is not None:
        said.append(f"Rewritten against dense, both in {found.precision}: {comparison(found.pair)}")
    dense = _of(found, "dense")
    if dense is not None and dense.latency is not None and dense.noise is not None:
        if dense.latency > 1.0 + dense.noise:
            said.append(
                f"The dense network takes {dense.latency:.2f} times as long in {found.precision}: here that is no gain."
            )
        elif dense.latency >= 1.0 - dense.noise:
            said.append(
                f"The dense network is no faster in {found.precision}: {dense.latency:.2f} of the time as it is."
            )
    return said + floats(found)


def floats(found: Deployed) -> list[str]:
    """Name what computes in float32 all the same, and what converts to it."""
    computing = [one for one in found.floats if one.op_type not in CONVERSIONS and one.share >= _LEAST]
    converting = sum(one.share for one in found.floats if one.op_type in CONVERSIONS)
    said = []
    if computing:
        named = ", ".join(f"{one.kernels} {one.op_type} {percent(one.share)}" for one in computing[:_MOST])
        more = ", ..." if len(computing) > _MOST else ""
        whole = sum(one.share for one in computing)
        said.append(f"In float32 all the same, {percent(whole)} of the time of the network handed over: {named}{more}.")
    if converting >= _LEAST:
        said.append(f"Conversions between precisions take {percent(converting)} of it.")
    return said


def _of(found: Deployed, network: str) -> Version | None:
    """A network in the precision."""
    return next((one for one in found.versions if one.network == network and one.numbers == found.precision), None)
