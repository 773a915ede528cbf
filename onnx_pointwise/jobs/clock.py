"""What each stage of a job takes."""

from __future__ import annotations

import time


class Clock:
    """Wall time of consecutive stages, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._start = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now
        self.seconds["total"] = now - self._start
