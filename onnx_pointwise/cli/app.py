"""The commands, put together."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from onnx_pointwise.cli.bench import bench
from onnx_pointwise.cli.cache import cache
from onnx_pointwise.cli.check import check
from onnx_pointwise.cli.help import NAME, Command, commands_help
from onnx_pointwise.cli.insert import insert
from onnx_pointwise.cli.inspect import inspect
from onnx_pointwise.cli.interrupting import Interrupted, interruptible
from onnx_pointwise.cli.output import BAD_INPUT, errors, remember
from onnx_pointwise.cli.providers import providers
from onnx_pointwise.cli.rewrite import rewrite
from onnx_pointwise.cli.schema import schema
from onnx_pointwise.cli.streams import make_patient
from onnx_pointwise.cli.sweep import sweep
from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.reports import console, plain

_SMALLER = "take smaller inputs (--input-shape), fewer examples (--calibration-limit) or less --memory"


class _Commands(TyperGroup):
    """Turns the library's own errors into one sentence and exit code 2, and remembers the line that was typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        remember(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        console().print(commands_help(self.commands, self.help or "", self.get_params(ctx)))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OnnxPointwiseError as error:
            errors().print(f"error: {plain(error)}", style="bold red", soft_wrap=True)
            ctx.exit(BAD_INPUT)
        except MemoryError as error:
            said = f" ({plain(error)})" if str(error) else ""
            errors().print(f"error: The memory does not suffice{said}; {_SMALLER}.", style="bold red", soft_wrap=True)
            ctx.exit(BAD_INPUT)
        except Interrupted as interrupt:  # typer knows one exit code for all
            ctx.exit(128 + interrupt.number)


app = typer.Typer(
    name="onnx-pointwise",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (inspect, rewrite, sweep, insert, check, bench, providers, cache, schema):
    app.command(cls=Command)(command)


def _version(asked: bool) -> None:
    if asked:
        console().print(f"{NAME} {version('onnx-pointwise')}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make trained ONNX convolutional networks cheaper with 1x1 convolutions, and check what changed."""


def main() -> None:
    """Run the command line."""
    make_patient()
    try:
        with interruptible():
            app()
    except Interrupted as interrupt:
        sys.exit(128 + interrupt.number)
