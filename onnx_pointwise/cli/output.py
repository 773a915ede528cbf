"""What the commands share: where their output goes, and how they end."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import require_writable, staged_text
from onnx_pointwise.jsonable import jsonable
from onnx_pointwise.progress import Expected, Progress, silent
from onnx_pointwise.reports import Steps, Text, console, require_report

CHECK_FAILED, BAD_INPUT = 1, 2
_NAME = "onnx-pointwise"
_LINE: ContextVar[str | None] = ContextVar("line", default=None)
#: Where the help lists options that say what becomes of the result.
PANEL = "Output"

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)]
Source = Annotated[Path, typer.Argument(metavar="IN", help="The .onnx file to read.", show_default=False)]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="The .onnx file to write.", show_default=False)]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON too; - for standard output.", rich_help_panel=PANEL),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Write the result as one HTML page, complete in itself; takes the extra report.",
        rich_help_panel=PANEL,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Write the model even if the check fails.", rich_help_panel=PANEL)]
Whole = Annotated[
    bool, typer.Option("--all", help="Show every row, not only those that matter.", rich_help_panel=PANEL)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what is wrong.", rich_help_panel=PANEL)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say each step in a line, and what it took.", rich_help_panel=PANEL)
]
Quantized = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.onnx", help="Write the network in the precision of --deploy, too.", rich_help_panel=PANEL
    ),
]
External = Annotated[
    bool | None,
    typer.Option(
        "--external-data/--no-external-data",
        help="Keep weights outside the file, or inside; as the input.",
        rich_help_panel=PANEL,
    ),
]


def errors() -> Console:
    """Where errors and progress go."""
    return console(stderr=True)


class Output:
    """Where a command's table, JSON and page go: with JSON on standard output, the table moves to standard error.

    Attributes:
        report: The page to write; ``None`` for none.
        whole: Whether tables show all rows, or those that matter first.
        quiet: Whether only what is wrong is said.
        verbose: Whether every step is said in a line of its own.
    """

    def __init__(
        self,
        target: str | None,
        *,
        report: Path | None = None,
        whole: bool = False,
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        if quiet and verbose:
            raise InputError("--quiet and --verbose contradict each other; leave one out.")
        self._target, self.report = target, report
        if report is not None:
            require_report()
            require_writable(report)
        self.whole, self.quiet, self.verbose = whole, quiet, verbose
        self.console = console(stderr=target == "-")
        if target is not None and target != "-":
            require_writable(target)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or a line, unless only what is wrong shall be said."""
        if not self.quiet:
            self.console.print(renderable)

    def wrong(self, warnings: Iterable[str], failures: Iterable[str]) -> None:
        """Say what is wrong where tables, which say it too, are not printed."""
        if self.quiet:
            for style, word, sentences in (("yellow", "warning", warnings), ("bold red", "failed", failures)):
                for sentence in sentences:
                    errors().print(Text(f"{word}: {sentence}", style=style), soft_wrap=True)

    def save(self, document: dict[str, Any]) -> None:
        """Write the JSON and the page where they were asked for, with the command that made them."""
        with self.saving(document):
            pass

    @contextmanager
    def saving(self, document: dict[str, Any]) -> Iterator[None]:
        """Do the same if the block ends well; files are ready for that before it begins."""
        document = jsonable(document)
        if "origin" in document:
            document["origin"] |= {"command": _LINE.get()}
        text = json.dumps(document, indent=2, allow_nan=False, default=str) + "\n"
        with ExitStack() as files:
            if self.report is not None:
                from onnx_pointwise.reports import html  # plots and templates, which few commands need

                files.enter_context(staged_text(self.report, html.html(document)))
            if self._target not in (None, "-"):
                files.enter_context(staged_text(str(self._target), text))
            yield
        if self._target == "-":
            sys.stdout.write(text)

    @contextmanager
    def progress(self, expected: Sequence[Expected] = ()) -> Iterator[Progress]:
        """Show what goes on, step by step, unless only what is wrong shall be said.

        Args:
            expected: The stages that are to come, where that is known: they tell the time that is left of them all.
        """
        if self.quiet:
            yield silent
            return
        with Steps(errors(), lines=self.verbose, expected=expected) as steps:
            steps("load", "the model")
            yield steps


def remember(arguments: Sequence[str]) -> None:
    """Keep the line that a user typed, for the results that it leads to."""
    _LINE.set(shlex.join([_NAME, *arguments]))
