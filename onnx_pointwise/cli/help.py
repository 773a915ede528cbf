"""The help of the commands: how to call them, what matters first, then every option by topic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from typer.core import TyperCommand

from onnx_pointwise.cli.guide import GUIDES, Guide
from onnx_pointwise.cli.output import PANEL
from onnx_pointwise.reports import Text, console

NAME = "onnx-pointwise"
_MOST = "Most used"
# An option with its value takes this much of a line; a longer one gets a line of its own.
_WIDE = 27
_INDENT = 2


class Command(TyperCommand):
    """A command whose help is written here."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print it."""
        console().print(command_help(self, ctx))


def command_help(command: Any, ctx: Any) -> RenderableType:
    """Show how a command is called.

    Args:
        command: The command.
        ctx: What it was asked for in.
    """
    guide = GUIDES.get(str(command.name), Guide(""))
    parameters = [item for item in command.get_params(ctx) if not getattr(item, "hidden", False)]
    arguments = [item for item in parameters if item.param_type_name == "argument"]
    options = [item for item in parameters if item.param_type_name != "argument"]
    names = " ".join(_argument(item) for item in arguments)
    most = [item for name in guide.first for item in options if item.name == name]
    parts: list[RenderableType] = [
        Text(f"Usage: {NAME} {command.name} {names} [OPTIONS]", style="bold"),
        Text(),
        Text(" ".join((command.help or "").split())),
    ]
    if arguments:
        parts += [Text(), *_rows((_argument(item).strip("[]"), _about(item)) for item in arguments)]
    if guide.examples:
        parts += [Text(), Text("Examples", style="bold"), *_examples(guide.examples)]
    for title, items in _topics(most, options).items():
        parts += [Text(), Text(title, style="bold"), *_rows((_label(item), _about(item)) for item in items)]
    return Group(*parts)


def commands_help(commands: Mapping[str, Any], about: str, options: Sequence[Any]) -> RenderableType:
    """Show which commands there are.

    Args:
        commands: The commands by name.
        about: What they are for.
        options: What may stand before a command.
    """
    parts: list[RenderableType] = [Text(f"Usage: {NAME} COMMAND ...", style="bold"), Text(), Text(about)]
    groups: dict[str, list[str]] = {}
    for name in sorted(commands, key=lambda name: list(GUIDES).index(name) if name in GUIDES else len(GUIDES)):
        groups.setdefault(GUIDES[name].group if name in GUIDES else "More", []).append(name)
    for title, names in groups.items():
        rows = ((name, Text(" ".join((commands[name].help or "").split()))) for name in names)
        parts += [Text(), Text(title, style="bold"), *_rows(rows, width=11)]
    shown = [item for item in options if not getattr(item, "hidden", False)]
    parts += [Text(), Text("Options", style="bold"), *_rows((_label(item), _about(item)) for item in shown)]
    first = next(iter(GUIDES.values())).examples[:1]
    parts += [Text(), *_examples(first), Text(), Text(f"{NAME} COMMAND --help says more of each.", style="dim")]
    return Group(*parts)


def _topics(most: Sequence[Any], options: Sequence[Any]) -> dict[str, list[Any]]:
    """The options by topic, those that matter first before all topics, and what becomes of the result last."""
    topics: dict[str, list[Any]] = {_MOST: list(most)} if most else {}
    rest = [item for item in options if item not in most]
    for item in sorted(rest, key=lambda item: (getattr(item, "rich_help_panel", None) or PANEL) == PANEL):
        topics.setdefault(getattr(item, "rich_help_panel", None) or PANEL, []).append(item)
    return topics


def _rows(pairs: Iterable[tuple[str, Text]], width: int = _WIDE) -> Iterable[RenderableType]:
    """What is called so, and what it is: side by side, or one below the other where the first is long."""
    for label, about in pairs:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=width, no_wrap=True)
        table.add_column()
        if len(label) > width:
            yield Padding(Text(label, style="cyan"), (0, 0, 0, _INDENT), expand=False)
            label = ""
        table.add_row(Text(label, style="cyan"), about)
        yield Padding(table, (0, 0, 0, _INDENT), expand=False)


def _examples(examples: Iterable[tuple[str, str]]) -> Iterable[RenderableType]:
    for line, about in examples:
        yield Padding(Text(f"{NAME} {line}"), (0, 0, 0, _INDENT), expand=False)
        yield Padding(Text(about, style="dim"), (0, 0, 0, 3 * _INDENT), expand=False)


def _argument(item: Any) -> str:
    name = item.metavar or item.name.upper()
    name = f"{name}..." if item.nargs != 1 else name
    return name if item.required else f"[{name}]"


def _label(item: Any) -> str:
    """How an option is written."""
    names = ", ".join(sorted((*item.opts, *item.secondary_opts), key=lambda name: (len(name) > 2, name.find("--no-"))))
    if item.is_flag:
        return names
    metavar = item.metavar or item.name.upper()
    return f"{names} {metavar}{' ...' if item.multiple else ''}"


def _about(item: Any) -> Text:
    """What an option is, and what it is otherwise."""
    text = Text("Say this." if item.name == "help" else item.help or "")
    default = item.default
    if default not in (None, "", False, []) and not callable(default) and getattr(item, "show_default", False):
        said = ", ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        text.append(f" [{said}]", style="dim")
    if item.required and item.param_type_name != "argument":
        text.append(" [needed]", style="dim")
    return text
