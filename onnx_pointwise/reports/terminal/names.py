"""Names that are too long for their column: shortened so that they still tell one from another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnx_pointwise.graph import GAP

# What of a shortened name stands in front of the gap; its end says what it is, its beginning where.
_FIRST = (1 / 3, 1 / 2, 0.0)
# Columns by which a window is moved away from the ends of the names.
_STEP = 2


def fitting(names: Sequence[str], width: int, among: Sequence[str] = ()) -> list[str]:
    """Shorten names to a width, in a way that leaves as many of them different as can be.

    The middle goes first. Names of one network are often alike at both ends, as those that TensorFlow makes: then a
    part of the middle is shown, at the same distance from the end in all of them. What is left out is a ``…``, which
    stands for it where a command takes a name, too.

    Args:
        names: The names.
        width: Characters that each may take.
        among: More names that they shall be told from.
    """
    if all(len(name) <= width for name in names):
        return list(names)
    everything = list(dict.fromkeys((*names, *among)))
    best: dict[str, str] = {}
    for cut in _cuts(max(map(len, names)), width):
        made = {name: name if len(name) <= width else cut(name) for name in everything}
        if len(set(made.values())) > len(set(best.values())):
            best = made
        if len(set(made.values())) == len(everything):
            break
    return [best[name] for name in names]


def _cuts(longest: int, width: int) -> Iterator[Callable[[str], str]]:
    for share in _FIRST:
        yield lambda name, share=share: _without_middle(name, width, share)  # type: ignore[misc]
    for end in range(_STEP, longest, _STEP):
        yield lambda name, end=end: _window(name, width, end)  # type: ignore[misc]


def _without_middle(name: str, width: int, share: float) -> str:
    first = int((width - 1) * share)
    return f"{name[:first]}{GAP}{name[len(name) - (width - 1 - first) :]}"


def _window(name: str, width: int, end: int) -> str:
    """A part of a name that leaves that many characters out behind it."""
    end = min(end, len(name) - (width - 1))  # what stands at the very beginning needs no gap before it
    stop = len(name) - end
    if stop <= width - 1:
        return f"{name[: width - 1]}{GAP}"
    return f"{GAP}{name[stop - (width - 2) : stop]}{GAP}"
