"""Measurements of whole networks that are kept with their noise, and made again where that was high."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from onnx_pointwise.latency.cache import LatencyCache, is_duration
from onnx_pointwise.runtime import NOISY, Verdict


def kept(cache: LatencyCache | None, key: str, make: Callable[[], list[Any]]) -> list[Any]:
    """Look a measurement up, or make it.

    What another run has measured under noise above `NOISY` is measured again, and the quieter one of both is kept.

    Args:
        cache: Where measurements are; ``None`` for nowhere.
        key: What it is found by.
        make: Makes it: a ratio or seconds, its noise, and what else there is.
    """
    known = None if cache is None else cache.get([key]).get(key)
    old: list[Any] | None = known if _is_measured(known) else None
    if old is not None and (old[1] <= NOISY or (cache is not None and cache.is_own(key))):
        return old
    new = make()
    value = old if old is not None and old[1] <= new[1] else new
    if cache is not None:
        cache.put({key: value})
    return value


def _is_measured(value: Any) -> bool:
    """Whether what a cache holds is what was kept: a number, its noise, and a verdict or kernels with their seconds."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    first, noise, rest = value
    if not is_duration(first) or not _is_count(noise):
        return False
    if isinstance(rest, list):
        return (
            len(rest) == 2
            and _is_count(rest[0])
            and isinstance(rest[1], dict)
            and all(map(_is_count, rest[1].values()))
        )
    return rest in get_args(Verdict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
