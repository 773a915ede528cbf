"""What the commands share: where their output goes, and how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from onnx_pointwise.graph import require_writable, write_text
from onnx_pointwise.jsonable import jsonable
from onnx_pointwise.reports import Text, console

CHECK_FAILED, BAD_INPUT = 1, 2
#: Where the help lists options that say what becomes of the result.
PANEL = "Output"

Model = Annotated[Path, typer.Argument(help="The .onnx file.", show_default=False)]
Source = Annotated[Path, typer.Argument(metavar="IN", help="The .onnx file to read.", show_default=False)]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="The .onnx file to write.", show_default=False)]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON too; - for standard output.", rich_help_panel=PANEL),
]
Force = Annotated[bool, typer.Option("--force", help="Write the model even if the check fails.", rich_help_panel=PANEL)]
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
    """Where a command's table and JSON go: with JSON on standard output, the table moves to standard error."""

    def __init__(self, target: str | None) -> None:
        self._target = target
        self.console = console(stderr=target == "-")
        if target is not None and target != "-":
            require_writable(target)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or a line."""
        self.console.print(renderable)

    def save(self, document: dict[str, Any]) -> None:
        """Write the JSON where it was asked for."""
        if self._target is None:
            return
        text = json.dumps(jsonable(document), indent=2, allow_nan=False, default=str) + "\n"
        if self._target == "-":
            sys.stdout.write(text)
        else:
            write_text(self._target, text)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, str], None]]:
        """Show what is going on, stage by stage."""
        with errors().status("reading") as status:
            yield lambda stage, what: status.update(Text(f"{stage}: {what}"))

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show that something goes on."""
        with errors().status(what):
            yield
