"""What became of many models."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType

from onnx_pointwise.check import WORDS
from onnx_pointwise.jobs import Batch, Rewritten
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.answers import STYLES
from onnx_pointwise.reports.terminal.figures import count, percent, size
from onnx_pointwise.reports.terminal.tables import Cell, Column, Grid


def many(result: Batch) -> RenderableType:
    """Show a line for each model, then why some of them failed."""
    table = Grid(
        Column("Model", name=True),
        Column("Answers"),
        Column("MACs", right=True),
        Column("After", right=True, extra=1),
        Column("Left", right=True),
        Column("File", right=True),
        Column("Left", right=True),
        Column("Latency", right=True),
        Column("Seconds", right=True, extra=2),
    )
    for one in result.models:
        table.add_row(*_row(one))
    failed = [one for one in result.models if not one.passed]
    lines = [Text(f"failed: {sentence}", style="bold red") for one in failed for sentence in sentences(one)]
    count_of = len(result.models)
    written = sum(one.written for one in result.models)
    last = f"{count_of - len(failed)} of {count_of} models passed, {written} written."
    return Group(table, *lines, Text(last, style="bold green" if result.passed else "bold red"))


def sentences(one: Rewritten) -> list[str]:
    """Why a model failed."""
    if one.error is not None:
        return [one.error if one.source in one.error else f"{one.source}: {one.error}"]
    if one.document is None or one.passed:
        return []
    found = (one.document.get("check") or {}).get("findings", [])
    score = "Your score fell further than it may."
    return [f"{one.source}: {finding['sentence']}" for finding in found] or [f"{one.source}: {score}"]


def _row(one: Rewritten) -> list[Cell]:
    if one.document is None:
        return [one.source, Text("refused", style="bold red"), *[""] * 7]
    before: dict[str, Any] = one.document["before"]
    after: dict[str, Any] = one.document["after"]
    timed = (one.document.get("check") or {}).get("latency")
    word = "not compared" if one.verdict is None else WORDS[one.verdict]
    return [
        one.source,
        Text(word, style=STYLES.get(one.verdict, "")),
        count(before["macs"]),
        count(after["macs"]),
        percent(after["macs"] / max(1, before["macs"])),
        size(after["bytes"]),
        percent(after["bytes"] / max(1, before["bytes"])),
        "" if timed is None else percent(timed["ratio"]),
        f"{one.document['seconds']['total']:.1f}",
    ]
