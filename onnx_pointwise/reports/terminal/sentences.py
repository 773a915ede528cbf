"""Sentences that more than one view says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx_pointwise.graph import Refusal, another_size
from onnx_pointwise.jobs import Advice
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.figures import percent, sizes

ALL = "--all shows all of them"


def assumptions(assumed: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> list[Text]:
    """Say which input sizes were assumed."""
    return [
        Text(
            f"The model leaves the size of '{name}' open; costs are for {sizes(shapes[name])}. "
            f"Name another with --input-shape {name}:{','.join(map(str, another_size(shapes[name])))}.",
            style="yellow",
        )
        for name in assumed
    ]


def advice(found: Sequence[Advice]) -> list[Text]:
    """One paragraph of what to do, each sentence with the command that shows it."""
    if not found:
        return []
    said = [f"{one.sentence.rstrip('.')}: {one.command}." if one.command else one.sentence for one in found]
    return [Text(), Text(f"Advice: {' '.join(said)}", style="cyan")]


def reasons(refused: Sequence[tuple[Refusal, float]]) -> list[Text]:
    """One line for each reason to leave convolutions as they are, with how many and what share of the MACs they are.

    Args:
        refused: The refusal of each, with its share of the model's MACs.
    """
    by_code: dict[str, list[tuple[Refusal, float]]] = {}
    for refusal, share in refused:
        by_code.setdefault(refusal.code, []).append((refusal, share))
    lines = []
    for code, found in sorted(by_code.items(), key=lambda item: -sum(share for _, share in item[1])):
        text = Text(code, style="bold dim")
        share = sum(share for _, share in found)
        text.append(f" ({len(found)}, {percent(share)} of the MACs): {found[0][0].reason}", style="not bold dim")
        lines.append(text)
    return lines
