"""Commands run in this process, as a user would call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner


def invoke(app: typer.Typer, *arguments: str | Path, columns: int = 100) -> Any:
    """Run a command in a terminal of that width; what it raises, but for its exit, is raised here."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": str(columns)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
