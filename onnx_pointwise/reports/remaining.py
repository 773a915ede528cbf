"""How long a job will still take, from what its stages took so far and from what those to come take beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from onnx_pointwise.progress import Expected


class Remaining:
    """Hears what a job does, and tells the time that is left of all of it.

    Stages cost passes of the examples, or seconds. What a pass takes shows in those that are over and in the share of
    the one that is under way. Stages that are skipped cost nothing; one that nobody expected leaves the estimate of the
    others alone.

    Args:
        expected: The stages to come, in their order.
        clock: Seconds.
    """

    def __init__(self, expected: Sequence[Expected], clock: Callable[[], float] = time.monotonic) -> None:
        self._expected, self._clock = list(expected), clock
        self._at = -1
        self._since = clock()
        self._first: tuple[float, float] | None = None
        self._share = 0.0
        self._rate: float | None = None
        self._passes = self._spent = 0.0

    def hear(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Hear what is taken up."""
        now = self._clock()
        if self._at < 0 or stage != self._expected[self._at].stage:
            ahead = (at for at in range(self._at + 1, len(self._expected)) if self._expected[at].stage == stage)
            at = next(ahead, None)
            if at is None:
                return
            self._close(now)
            self._at, self._since, self._share, self._first, self._rate = at, now, 0.0, None, None
        self._share = min(1.0, done / total) if total else 0.0
        if self._first is None:
            self._first = (now, self._share)
        elif self._share > self._first[1]:
            # What came before the first of them were done is no part of what each takes.
            self._rate = (now - self._first[0]) / (self._share - self._first[1])

    def _close(self, now: float) -> None:
        """A stage is over: its passes took what it took."""
        if self._at >= 0 and self._expected[self._at].passes:
            self._passes += self._expected[self._at].passes
            self._spent += now - self._since

    def left(self) -> float | None:
        """Seconds that are left of the whole job, about; None while nothing tells."""
        if self._at < 0:
            return None
        here, spent = self._expected[self._at], self._clock() - self._since
        passes, seconds = self._passes, self._spent
        if self._rate is not None:
            here_left = (1.0 - self._share) * self._rate
            if here.passes:
                passes, seconds = passes + here.passes, seconds + spent + here_left
        elif here.passes:
            if not passes:
                return None
            here_left = max(0.0, here.passes * seconds / passes - spent)
        elif here.seconds is None:
            return None  # nobody knows how long it takes
        else:
            here_left = max(0.0, here.seconds - spent)
        rest = self._expected[self._at + 1 :]
        if any(stage.passes for stage in rest) and not passes:
            return None
        pace = seconds / passes if passes else 0.0
        return here_left + sum(stage.passes * pace + (stage.seconds or 0.0) for stage in rest)
