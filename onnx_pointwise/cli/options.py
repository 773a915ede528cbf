"""Options of a command, made from the settings that its job takes."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from onnx_pointwise.cli.config import CONFIG, apply_config
from onnx_pointwise.cli.files import require_files_apart
from onnx_pointwise.cli.output import PANEL, Json, Output, Quiet, Report, Verbose, Whole
from onnx_pointwise.cli.parsing import SYNTAXES
from onnx_pointwise.schema import Line, Option, options

_Settings = TypeVar("_Settings")


def with_options(settings: type, *, report: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take the options of a settings class in the place of its parameter ``settings``.

    In the place of a parameter ``output`` come those that say where it goes, and how much of it; with ``report``, into
    which HTML page, too.
    """
    made = functools.partial(_with, lambda: [*_parameters(settings), _config(settings)], settings)
    return functools.partial(made, report=report)


def with_output(command: Callable[..., None]) -> Callable[..., None]:
    """The same for a command that takes no settings."""
    return _with(list, None, command)


def _with(
    made: Callable[[], list[inspect.Parameter]],
    settings: type | None,
    command: Callable[..., None],
    *,
    report: bool = False,
) -> Callable[..., None]:
    """Put options in the place of the parameters ``settings`` and ``output``."""
    plain = inspect.signature(command, eval_str=True)
    places = {"settings": made(), "output": [*([_REPORT] if report else []), *_OUTPUT]}
    names = set(plain.parameters) - set(places)

    @functools.wraps(command)
    def call(**texts: Any) -> None:
        require_files_apart(texts)
        given: dict[str, Any] = {name: value for name, value in texts.items() if name in names}
        if "output" in plain.parameters:
            given["output"] = Output(
                texts["json_file"],
                report=texts.get("report_file"),
                whole=texts["whole"],
                quiet=texts["quiet"],
                verbose=texts["verbose"],
            )
        if settings is not None:
            given["settings"] = read(settings, texts)
        command(**given)

    parameters = [
        part.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, item in plain.parameters.items()
        for part in places.get(name, [item])
    ]
    call.__signature__ = plain.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {item.name: item.annotation for item in parameters} | {"return": None}
    del call.__wrapped__  # it takes the settings, which typer must not see
    return call


_REPORT = inspect.Parameter("report_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Report)
_OUTPUT = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        ("json_file", None, Json),
        ("whole", False, Whole),
        ("quiet", False, Quiet),
        ("verbose", False, Verbose),
    )
]


def read(settings: type[_Settings], texts: Mapping[str, Any]) -> _Settings:
    """Make settings from what the command line read; what was not given keeps the default of its field.

    Raises:
        InputError: A text does not say what it should.
        PlanError: The same of a rank, a form, a shape or a tolerance.
    """
    return settings(**_values(settings, texts))


def _config(settings: type) -> inspect.Parameter:
    """The option that names a file of options."""
    listed = dict(_flat(settings))

    def apply(ctx: typer.Context, value: str | None) -> str | None:
        return apply_config(ctx, value, listed)

    about = typer.Option(
        "--config",
        metavar="FILE.yaml|json",
        help="Options from a file, by their names here or in Python; those given beside it go first.",
        callback=apply,
        is_eager=True,
        rich_help_panel=PANEL,
    )
    return inspect.Parameter(
        CONFIG, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, about]
    )


def _flat(settings: type) -> Iterator[tuple[str, Option]]:
    """What the command line takes, by name of the parameter."""
    for item in options(settings):
        if item.line is not None and item.line.parts is not None:
            yield from _flat(item.line.parts)
        elif item.line is not None:
            yield item.name, item


def _values(settings: type, texts: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for item in options(settings):
        line = item.line
        if line is None:
            continue
        if line.parts is not None:
            parts = _values(line.parts, texts)
            if parts:
                values[item.name] = line.parts(**parts).value()
            continue
        text = texts[item.name]
        if text is None or text == []:
            continue
        if line.syntax:
            values[item.name] = SYNTAXES[line.syntax].parse(_name(item, line), text)
        elif item.default is True:
            values[item.name] = not text
        else:
            values[item.name] = tuple(text) if isinstance(text, list) else text
    return values


def _name(item: Option, line: Line) -> str:
    """How the option is written."""
    dashed = item.name.replace("_", "-")
    return line.name or (f"--no-{dashed}" if item.default is True else f"--{dashed}")


def _parameters(settings: type, panel: str = "") -> Iterator[inspect.Parameter]:
    hints = get_type_hints(settings)
    for item in options(settings):
        if item.line is None:
            continue
        if item.line.parts is not None:
            yield from _parameters(item.line.parts, item.topic)
            continue
        annotation, default = _typed(item, item.line, hints[item.name])
        negated = item.default is True
        about = typer.Option(
            _name(item, item.line),
            help=item.line.without if negated else item.sentence if item.line.syntax else item.text,
            metavar=item.line.metavar or _metavar(item, hints[item.name]),
            min=item.least,
            rich_help_panel=panel or item.topic or None,
        )
        yield inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=Annotated[annotation, about],
        )


def _typed(item: Option, line: Line, hint: Any) -> tuple[Any, Any]:
    """What the command line reads for an option, and the default that it shows."""
    if line.syntax:
        syntax = SYNTAXES[line.syntax]
        several = get_origin(syntax.annotation) is list
        return syntax.annotation, [] if several else syntax.written(item.default)
    if item.default is True:
        return bool, False
    if get_origin(hint) is not None and get_origin(hint) not in (Union, types.UnionType) and _is_sequence(hint):
        return list[get_args(hint)[0]], list(item.default)  # type: ignore[misc]
    return hint, item.default


def _metavar(item: Option, hint: Any) -> str | None:
    """What stands for a value in the help, where the field does not say."""
    if item.default is True or item.default is False:
        return None
    kinds = {kind for part in (hint, *get_args(hint)) for kind in (part, *get_args(part)) if kind is not Any}
    choices = [kind for kind in kinds if isinstance(kind, str)]
    if choices:
        return "|".join(choice for choice in _in_order(hint) if choice in choices)
    if item.unit == "seconds":
        return "SECONDS"
    if "most 1" in item.unit:
        return "SHARE"
    names = {Path: "FILE", int: "N", float: "X", str: "NAME"}
    return next((name for kind, name in names.items() if kind in kinds), None)


def _in_order(hint: Any) -> list[str]:
    """The words that a hint allows, as they are declared."""
    if isinstance(hint, str):
        return [hint]
    return [word for part in get_args(hint) for word in _in_order(part)]


def _is_sequence(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Sequence)
