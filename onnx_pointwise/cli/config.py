"""Options of a command from a YAML or JSON file: they stand where the command line says nothing."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from onnx_pointwise.cli.parsing import SYNTAXES
from onnx_pointwise.errors import InputError
from onnx_pointwise.schema import Option

#: The parameter that holds the file's name.
CONFIG = "config"


def read_config(path: str | Path) -> dict[str, Any]:
    """Read what a file says, by name; nothing of an empty one.

    Raises:
        InputError: There is no such file, it is neither YAML nor JSON, or holds something else than names and values.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from error
    try:
        document = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except ValueError as error:
        raise InputError(
            f"{path}: cannot be read as {'JSON' if path.suffix == '.json' else 'YAML'}: {error}."
        ) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"{path}: write names and values, as target_macs: 0.5, not a {type(document).__name__}.")
    return {str(name): value for name, value in document.items()}


def _yaml(text: str) -> Any:
    import yaml  # takes as long to import as a file to read

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def apply_config(ctx: typer.Context, path: str | None, listed: Mapping[str, Option]) -> str | None:
    """Let the options of a file stand in for those that the command line leaves out.

    Args:
        ctx: The command that is being read.
        path: The file; None where there is none.
        listed: What the command's settings declare of its options, by name of the parameter.

    Raises:
        InputError: The file names something that the command does not take, or a value that the option does not.
    """
    if path is None:
        return None
    known = _known(ctx)
    given: dict[str, Any] = {}
    for key, value in read_config(path).items():
        found = known.get(key.strip("-").replace("-", "_"))
        if found is None:
            raise InputError(_unknown(path, key, str(ctx.info_name), known))
        if found.name in given:
            raise InputError(f"{path}: '{key}' is said twice, by two of its names.")
        if value is not None:
            option = listed.get(found.name)
            # The option of what is on by default is its negation.
            negated = option is not None and option.default is True and key == found.name
            given[found.name] = _taken(ctx, path, key, found, _texts(path, key, value, found, option, negated=negated))
    ctx.default_map = {**(ctx.default_map or {}), **given}
    return path


def _known(ctx: typer.Context) -> dict[str, Any]:
    """What a file may name: keywords, options and files of the command."""
    known: dict[str, Any] = {}
    for item in ctx.command.params:
        if item.name in (CONFIG, "help") or item.name is None:
            continue
        known[item.name] = item
        metavar = getattr(item, "metavar", None)
        if item.param_type_name == "argument" and metavar:
            known[metavar.lower()] = item
        for text in (*item.opts, *item.secondary_opts):
            if text.startswith("--") and text not in item.secondary_opts:
                known[text.strip("-").replace("-", "_")] = item
    return known


def _unknown(path: str, key: str, command: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key.replace("-", "_"), known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"{command} --help lists what there is."
    return f"{path}: {command} has no option '{key}'; {hint}"


def _texts(path: str, key: str, value: Any, item: Any, option: Option | None, *, negated: bool) -> Any:
    """Write a value as the command line would."""
    if getattr(item, "is_flag", False):
        if not isinstance(value, bool):
            raise InputError(f"{path}: '{key}' is either true or false, not {value!r}.")
        return value is not negated
    syntax = SYNTAXES[option.line.syntax] if option is not None and option.line and option.line.syntax else None
    if isinstance(value, Mapping):
        if syntax is None or not syntax.joint:
            raise InputError(f"{path}: '{key}' takes no names, only a value.")
        return [f"{name}{syntax.joint}{_text(path, key, part)}" for name, part in value.items()]
    if getattr(item, "multiple", False):
        parts = value if isinstance(value, list) else [value]
        return [_text(path, key, part) for part in parts]
    return _text(path, key, value)


def _text(path: str, key: str, value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(path, key, part) for part in value)
    if isinstance(value, bool | Mapping) or value is None:
        raise InputError(f"{path}: '{key}' takes numbers or text, not {json.dumps(value)}.")
    return str(value)


def _taken(ctx: typer.Context, path: str, key: str, item: Any, texts: Any) -> Any:
    """See that the option takes a value."""
    try:
        item.process_value(ctx, texts)
    except typer.BadParameter as error:
        raise InputError(f"{path}: '{key}' does not take {texts!r}: {error.message}") from None
    return texts
