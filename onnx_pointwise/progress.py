"""What a job says of itself while it works: a stage, what is taken up in it, and how much of it is done.

Nothing here prints. Who calls a job hands it a `Progress`, and shows what comes as it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

#: The same within a stage: what is taken up, how many are done, and how many there are.
Within = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Expected:
    """A stage that a job will go through.

    Attributes:
        stage: Its name, as a `Progress` hears it.
        passes: What it takes, in passes of the example inputs through the network.
        seconds: What it takes besides; None where nobody knows before it has begun.
    """

    stage: str
    passes: float = 0.0
    seconds: float | None = None


class Progress(Protocol):
    """Is told what a job does."""

    def __call__(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        """Hear what is taken up.

        Args:
            stage: The part of the job: ``load``, ``latency``, ``moments``, ``sensitivity``, ``plan``, ``repair``,
                ``search``, ``sweep``, ``refit``, ``check``. Searches and sweeps go through some of them several times.
            what: What is taken up in it, for a person.
            done: How many of these are done.
            total: How many there are; 0 where nobody knows.
        """


def silent(stage: str, what: str, done: int = 0, total: int = 0) -> None:
    """Hear nothing."""


def unheard(what: str, done: int, total: int) -> None:
    """Hear nothing within a stage."""


def within(progress: Progress, stage: str) -> Within:
    """Say everything of one stage."""
    return lambda what, done, total: progress(stage, what, done, total)
