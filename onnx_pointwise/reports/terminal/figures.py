"""Numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def count(value: float) -> str:
    """Write a count with three digits and a unit: 40.6 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{three(value / size)} {unit}"
    return f"{value:.0f}"


def change(before: float, after: float) -> str:
    """Write by how much a count has changed: -18.1 M."""
    text = count(after - before)
    return f"+{text}" if after > before else text


def size(value: float) -> str:
    """Write a number of bytes: 4.35 MB."""
    text = count(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def size_change(before: float, after: float) -> str:
    """Write by how many bytes: -1.20 MB."""
    return f"+{size(after - before)}" if after > before else size(after - before)


def known_size(value: float) -> str:
    """Write a number of bytes of which 0 says that it is not known."""
    return size(value) if value else "unknown"


def three(value: float) -> str:
    """Write three digits."""
    absolute = abs(value)
    return f"{value:.2f}" if absolute < 9.995 else f"{value:.1f}" if absolute < 99.95 else f"{value:.0f}"


def percent(value: float) -> str:
    """Write a share: 12.3 %."""
    return f"{100 * value:.1f} %"


def rank(value: int | tuple[int, int] | None) -> str:
    """Write a rank: 32, or 24, 32 for both sides."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value[0]}, {value[1]}"


def milliseconds(seconds: float) -> str:
    """Write a time: 3.42 ms."""
    return f"{three(1e3 * seconds)} ms"


def sizes(shape: Sequence[int]) -> str:
    """Write a shape: 224x224."""
    return "x".join(map(str, shape))


def threads(number: int | None) -> str:
    """Write how many threads a network ran with."""
    return "threads left to the runtime" if number is None else f"{number} thread{'s' if number > 1 else ''}"


def sparkline(values: Sequence[float], width: int = 8) -> str:
    """Draw non-negative values, the largest first, as a row of bars."""
    if not len(values):
        return ""
    picked = [values[round(index * (len(values) - 1) / (width - 1))] for index in range(width)]
    top = max(picked) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in picked)
