"""How alike the answers of two networks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType

from onnx_pointwise.check import WORDS, CheckResult, HeadCheck, Inputs, Likeness
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.sentences import ALL
from onnx_pointwise.reports.terminal.tables import FEW, SHOWN, Cell, Column, Grid

#: Convolutions that are shown where nobody asked for them.
MOST_SITES = 8
# Heads longer than this are called by their output where that is enough.
_LONG = 28
#: How a verdict looks.
STYLES: Mapping[Likeness | None, str] = {"changed": "bold yellow", "broken": "bold red", None: "bold red"}
#: What both networks were compared on, for a person.
ON: Mapping[Inputs, str] = {
    "given": "on the inputs given",
    "held_back": "on held-back examples",
    "examples": "on the examples that its weights were made from",
    "drawn": "on synthetic images, not real inputs",
    "random": "on random numbers, not real inputs",
}


def answers(result: CheckResult, *, most: int | None = None, whole: bool = True) -> RenderableType:
    """Show how alike the answers are: in words first, then head by head, then which convolutions did it.

    Args:
        result: The check.
        most: Convolutions to show at most.
        whole: Show all heads; otherwise, where they are many, those that are off most.
    """
    several = len(result.providers) > 1
    table = Grid(
        Column("Head", name=True),
        Column("Kind"),
        *([Column("On")] if several else []),
        Column("Agreement", right=True),
        Column("Drift", right=True),
        Column("Worst", right=True, extra=1),
        Column("Verdict"),
    )
    heads = [(provider.provider, head, provider.heads) for provider in result.providers for head in provider.heads]
    shown = heads
    if not whole and len(heads) > FEW:
        shown = sorted(heads, key=lambda item: -(item[1].severity or 0.0))[:SHOWN]
    for where, head, others in shown:
        table.add_row(_name(head, others), head.kind, *([where] if several else []), *_row(head))
    lines: list[RenderableType] = [_sentence(result)]
    if table.rows:
        lines.append(table)
        if len(shown) < len(heads):
            lines.append(Text(f"The {len(shown)} of {len(heads)} heads that are off most. {ALL}.", style="dim"))
        lines.append(_limits(result))
    lines += [Text(f"Not compared: {name}. {reason}", style="dim") for name, reason in result.not_compared.items()]
    return Group(*lines, *_sites(result, most))


def _name(head: HeadCheck, heads: Sequence[HeadCheck]) -> str:
    """What to call a head: a long name gives way to that of its output, where no other head goes into it."""
    only = len(head.outputs) == 1 and sum(head.outputs == other.outputs for other in heads) == 1
    return head.outputs[0] if only and len(head.value) > _LONG else head.value


def _sentence(result: CheckResult) -> Text:
    """The one line that a reader remembers."""
    worst, word = result.worst, result.verdict
    style = STYLES.get(word, "bold green" if result.passed else "bold")
    if worst is None or word is None:
        return Text(f"Nothing that the networks answer could be compared {ON[result.inputs]}.", style=style)
    said = "The network is broken" if word == "broken" else f"The answers are {WORDS[word]}"
    return Text(f"{said}: {worst.figure} at {worst.place}, {ON[result.inputs]}.", style=style)


def _row(head: HeadCheck) -> list[Cell]:
    agreement = ""
    if head.agreement is not None:
        agreement = f"{head.agreement:.1f} dB" if head.measure == "PSNR" else f"{head.measure} {head.agreement:.3f}"
        agreement += "" if head.together is None else f" of {head.together:.3f}"
        agreement += "" if head.plain is None else f" (filter {head.plain:.1f})"
        agreement = agreement if head.judged_by == "agreement" else f"({agreement})"
    drift, most = ("" if number is None else f"{number:.3g}" for number in (head.drift, head.worst_drift))
    word = "not compared" if head.verdict is None else WORDS[head.verdict]
    return [agreement, drift, most, Text(word, style=STYLES.get(head.verdict, ""))]


def _limits(result: CheckResult) -> Text:
    """Say what the words stand for."""
    kinds: set[str] = {head.kind for head in result.heads if head.judged_by == "agreement"} or {"numbers"}
    if any(head.judged_by == "drift" for head in result.heads):
        kinds.add("numbers")
    if any(head.plain is not None for head in result.heads):
        kinds.add("gain")
    said = "; ".join(
        f"{kind} {', '.join(f'{number:g}' for number in numbers)}"
        for kind, numbers in result.limits.items()
        if kind in kinds
    )
    few = ""
    if any(head.judged_by == "drift" and head.kind != "numbers" for head in result.heads):
        few = " Where too little was found to count, drift decides, as for numbers."
    if any(head.together is not None for head in result.heads):
        few += " F1 of: of all heads of one kind that go into the same output, which decides."
    if "gain" in kinds:
        few += " Filter: what a linear filter of the input has, on which a picture has to gain as much."
    return Text(f"The same, close, changed up to (--limit): {said}.{few}", style="dim")


def _sites(result: CheckResult, most: int | None) -> list[RenderableType]:
    """Show convolutions that are computed otherwise, the worst first."""
    if result.sites is None:
        return []
    table = Grid(
        Column("Convolution", name=True),
        Column("Own drift", right=True),
        Column("With all before it", right=True),
        among=[site.name for site in result.sites],
    )
    rows = sorted(result.sites, key=lambda site: -1.0 if site.own is None else site.own, reverse=True)
    for site in rows[:most]:
        table.add_row(site.name, *("" if one is None else f"{one:.3g}" for one in (site.own, site.drift)))
    if not table.rows:
        return [Text("Every convolution is computed as before.", style="dim")]
    rest = f"; {len(rows) - len(table.rows)} more with --all" if len(table.rows) < len(rows) else ""
    hint = (
        f"Drift at convolutions that are computed otherwise, worst first{rest}; rewrite --exclude NODE leaves one as "
        "it is, by its name here."
    )
    return [Text(), table, Text(hint, style="dim")]
