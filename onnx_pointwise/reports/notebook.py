"""What results look like in a notebook: a heading and a table, in HTML that takes colours and fonts from around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from onnx_pointwise.check import WORDS, CheckResult
from onnx_pointwise.graph import ModelCost
from onnx_pointwise.jobs import Benchmark, Inspection, RewriteResult, Sweep
from onnx_pointwise.reports.plain import plain
from onnx_pointwise.reports.terminal.figures import count, milliseconds, percent, rank, size

# Rows that are shown; all of them are in `sites_table()`.
_ROWS = 30
_CELL = "padding:2px 10px;text-align:"


def html(result: Any) -> str:
    """Give the HTML of a result: of a rewrite, check, inspection, sweep or benchmark."""
    for kind, make in _MAKERS.items():
        if isinstance(result, kind):
            made: str = make(result)
            return made
    raise TypeError(f"there is no HTML for a {type(result).__name__}")


def _rewrite(result: RewriteResult) -> str:
    rows = [
        {
            "Convolution": row["name"],
            "Form": row["form"] or row["refusal"],
            "Rank": rank(row["rank"]),
            "MACs": _write(row["macs_before"], count),
            "After": _write(row["macs_after"], count),
            "Left": _write(row["macs_left"], percent),
            "Time left": _write(row["latency_left"], percent),
            "Error": _write(row["error"], percent),
        }
        for row in result.sites_table()
    ]
    said = [*_answers(result.check), *_costs(result.before, result.after), *_latencies(result.check)]
    return _block(said, rows)


def _check(result: CheckResult) -> str:
    rows = [
        {
            "Head": head.value,
            "On": provider.provider,
            "Kind": head.kind,
            "Judged by": head.figure,
            "Drift": _write(head.drift, "{:.3g}".format),
            "Answers": "not compared" if head.verdict is None else WORDS[head.verdict],
        }
        for provider in result.providers
        for head in provider.heads
    ]
    said = [*_answers(result), *_costs(result.before, result.after), *_latencies(result)]
    return _block([*said, *(finding.sentence for finding in result.findings)], rows)


def _inspection(result: Inspection) -> str:
    rows = [
        {
            "Convolution": row["name"],
            "Kernel": "x".join(map(str, row["kernel"])),
            "Maps": f"{row['in_channels']} → {row['out_channels']}",
            "MACs": _write(row["macs"], count),
            "Share": percent(row["share"]),
            "Params": count(row["params"]),
            "Stays, because": row["refusal"] or "",
        }
        for row in result.sites_table()
    ]
    cost = result.cost
    return _block([f"{count(cost.macs)} MACs, {count(cost.params)} parameters, {size(cost.bytes)}"], rows)


def _sweep(result: Sweep) -> str:
    rows = [
        {
            "For": f"{row['asked']:g}",
            "On": row["provider"],
            "MACs left": percent(row["macs_left"]),
            "Latency left": _write(row["latency_left"], percent),
            "File": size(row["bytes"]),
            "Drift": _write(row["drift"], "{:.3g}".format),
            "Answers": "not compared" if row["verdict"] is None else WORDS[row["verdict"]],
            "Worth it": "yes" if row["on_front"] else "",
        }
        for row in result.points_table()
    ]
    return _block([f"{len(rows)} networks from dear to cheap"], rows)


def _bench(result: Benchmark) -> str:
    rows = []
    for row in result.rows:
        timed = [(result.model, row.latency)]
        if row.comparison is not None:
            timed.append((result.other or "", row.comparison.after))
        rows += [
            {
                "Network": name,
                "Batch": "as it is" if row.batch is None else row.batch,
                "Threads": "default" if row.threads is None else row.threads,
                "Median": milliseconds(latency.median),
                "90 % below": milliseconds(latency.p90),
            }
            for name, latency in timed
        ]
    said = [f"{row.comparison.verdict}: {percent(row.comparison.ratio)}" for row in result.rows if row.comparison]
    return _block(said or [result.model], rows)


_MAKERS: Mapping[type, Any] = {
    RewriteResult: _rewrite,
    CheckResult: _check,
    Inspection: _inspection,
    Sweep: _sweep,
    Benchmark: _bench,
}


def _answers(check: CheckResult | None) -> list[str]:
    if check is None:
        return ["The answers were not compared"]
    worst = check.worst
    if worst is None or check.verdict is None:
        return ["Nothing that the networks answer could be compared"]
    return [f"The answers are {WORDS[check.verdict]}: {worst.figure} at {worst.place}"]


def _costs(before: ModelCost, after: ModelCost) -> list[str]:
    return [
        f"MACs {count(before.macs)} → {count(after.macs)} ({percent(after.macs / max(1, before.macs))})",
        f"file {size(before.bytes)} → {size(after.bytes)} ({percent(after.bytes / max(1, before.bytes))})",
    ]


def _latencies(check: CheckResult | None) -> list[str]:
    return [
        f"latency on {one.provider} {percent(one.latency.ratio)} ({one.latency.verdict})"
        for one in (() if check is None else check.providers)
        if one.latency is not None
    ]


def _write(value: Any, write: Any) -> str:
    return "" if value is None else str(write(value))


def _block(said: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A heading and a table; columns that say nothing are left out."""
    first, *rest = [escape(plain(text)) for text in said]
    heading = f"<p><b>{first}</b>{''.join(f'<br>{text}' for text in rest)}</p>"
    titles = [title for title in (rows[0] if rows else ()) if any(str(row[title]) for row in rows)]
    if not titles:
        return heading
    sides = ["left" if number == 0 else "right" for number in range(len(titles))]
    head = "".join(f'<th style="{_CELL}{side}">{escape(t)}</th>' for side, t in zip(sides, titles, strict=True))
    lines = [
        "<tr>"
        + "".join(
            f'<td style="{_CELL}{side}">{escape(plain(row[title]))}</td>'
            for side, title in zip(sides, titles, strict=True)
        )
        + "</tr>"
        for row in rows[:_ROWS]
    ]
    more = f"<p>{len(rows) - _ROWS} more rows are in the table of the result.</p>" if len(rows) > _ROWS else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div>{heading}{table}{more}</div>"
