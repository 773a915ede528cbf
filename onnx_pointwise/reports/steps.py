"""What goes on, while it goes on: a line for each stage with its share of the work and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn

from onnx_pointwise.progress import Expected
from onnx_pointwise.reports.plain import Text, plain
from onnx_pointwise.reports.remaining import Remaining
from onnx_pointwise.reports.terminal.names import fitting

# What the line of all stages is called.
_ALL = "all of it"
# Columns of a line beside what is taken up.
_OTHERS = 54
# Redrawing takes time from what is being measured, so it is done seldom.
_REDRAWS = 2


class _Share(ProgressColumn):
    """How many of how many."""

    def render(self, task: Task) -> Text:
        return Text("" if (task.total or 0) <= 1 else f"{task.completed:.0f}/{task.total:.0f}", style="dim")


class _Time(ProgressColumn):
    """Time left, or, of what is over or that nobody can foretell, the time that it has taken."""

    max_refresh = None

    def __init__(self) -> None:
        super().__init__()
        self._left = TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        whole: Remaining | None = task.fields.get("whole")
        left = None if whole is None else whole.left()
        if left is not None:
            return Text(f"{_minutes(left)} left", style="bold cyan")
        taken = Text(f"{task.elapsed or 0.0:.1f} s", style="dim")
        if task.finished or not task.total or task.time_remaining is None:
            return taken
        return Text(f"{self._left.render(task).plain} left", style="cyan")


def _minutes(seconds: float) -> str:
    """A time as minutes and seconds, as those of the stages are."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:02d}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Steps:
    """Shows what a job says of itself, on a console; use it as a context, and hand it to the job.

    Args:
        console: Where to. What is not a terminal gets no bars.
        lines: Write a line for every step in the place of bars, which stays.
        expected: The stages to come, where that is known: what is left of them all is shown beside each of them.
        clock: Seconds.
    """

    def __init__(
        self,
        console: Console,
        *,
        lines: bool = False,
        expected: Sequence[Expected] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._lines, self._clock = console, lines, clock
        self._begun = clock()
        self._said = ("", "")
        self._tasks: dict[str, TaskID] = {}
        self._current = ""
        self._whole = Remaining(expected, clock) if expected and not lines else None
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            _Share(),
            _Time(),
            TextColumn("{task.fields[what]}", markup=False, style="dim"),
            console=console,
            transient=True,
            refresh_per_second=_REDRAWS,
            disable=lines or not console.is_terminal,
        )

    def __enter__(self) -> Steps:
        if not self._bars.disable:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bars.disable:  # rich 13 would print an empty line
            self._bars.stop()

    def __call__(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        """Show what is taken up."""
        if self._lines:
            self._line(stage, what, done, total)
        elif not self._bars.disable:
            self._bar(stage, what, done, total)

    def _line(self, stage: str, what: str, done: int, total: int) -> None:
        if (stage, what) != self._said:
            self._said = (stage, what)
            share = f" ({done + 1} of {total})" if total else ""
            spent = self._clock() - self._begun
            self._console.print(Text(f"{spent:7.1f} s  {stage}: {what}{share}", style="dim"), soft_wrap=True)

    def _of_all(self, whole: Remaining, stage: str, done: int, total: int) -> None:
        """Show how far all of it is: by the time, since stages have nothing else in common."""
        whole.hear(stage, done, total)
        left, spent = whole.left(), self._clock() - self._begun
        share = None if left is None else spent / max(spent + left, 1e-9)
        if _ALL not in self._tasks:
            self._tasks[_ALL] = self._bars.add_task(f"{_ALL:<11}", total=1.0, completed=0, what="", whole=whole)
        if share is not None:
            self._bars.update(self._tasks[_ALL], completed=min(share, 0.999))

    def _bar(self, stage: str, what: str, done: int, total: int) -> None:
        if self._whole is not None:
            self._of_all(self._whole, stage, done, total)
        if stage != self._current and self._current:
            # Nobody says that a stage is over; the next one does.
            last = self._tasks[self._current]
            count = max(1.0, self._bars.tasks[self._bars.task_ids.index(last)].total or 1.0)
            self._bars.update(last, total=count, completed=count, what="")
            self._bars.stop_task(last)
        (short,) = fitting([plain(what)], max(12, self._console.width - _OTHERS))
        known = self._tasks.get(stage)
        if known is None:
            self._tasks[stage] = self._bars.add_task(f"{stage:<11}", total=total or None, completed=done, what=short)
        else:
            task = self._bars.tasks[self._bars.task_ids.index(known)]
            if stage != self._current or done < task.completed:
                self._bars.reset(known, total=total or None, completed=done, what=short)
            self._bars.update(known, total=total or None, completed=done, what=short)
        self._current = stage
