"""How it is declared what can be asked for: as a field of a dataclass, from which keyword, option and texts derive.

A job is a function of models and one settings object; `job` and `pair` give it every field as a keyword too, typed,
with its signature and the ``Args`` of its docstring made from the fields. It knows no option by name.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ParamSpec, Protocol, TypeVar, get_type_hints, overload

from onnx_pointwise.errors import RangeError, SettingError
from onnx_pointwise.kinds import below, fits, words

_T = TypeVar("_T")
_P = ParamSpec("_P")
_Model = TypeVar("_Model", contravariant=True)
_Other = TypeVar("_Other", contravariant=True)
_Settings = TypeVar("_Settings", contravariant=True)
_Result = TypeVar("_Result", covariant=True)

_SENTENCE, _UNIT, _LEAST, _LINE = "sentence", "unit", "least", "line"


@dataclass(frozen=True)
class Line:
    """What the command line needs to know of an option beside its default and sentence.

    Attributes:
        name: The option, where it is not the field's own name: ``--input-shape``.
        metavar: What stands for the value in the help.
        syntax: How text becomes the value, a name that the command line knows; plain types need none.
        without: The sentence of ``--no-...``, for what is on by default.
        parts: A dataclass of options that together make the value, by its method ``value``.
    """

    name: str = ""
    metavar: str | None = None
    syntax: str = ""
    without: str = ""
    parts: type | None = None


_PLAIN = Line()


def about(sentence: str, *, unit: str = "", least: float | None = None, line: Line | None = _PLAIN) -> dict[str, Any]:
    """Describe a field; ``line`` is ``None`` for what only the Python API takes."""
    return {_SENTENCE: sentence, _UNIT: unit, _LEAST: least, _LINE: line}


def option(default: _T, sentence: str, *, unit: str = "", least: float | None = None, line: Line | None = _PLAIN) -> _T:
    """Declare a field that may be left out.

    Args:
        default: Its value then.
        sentence: What it is, for the help of the commands and for docstrings.
        unit: What its numbers count, or the values they may have.
        least: The smallest number allowed, of several each.
        line: What the command line needs beyond; ``None`` for what only the Python API takes.
    """
    return field(default=default, metadata=about(sentence, unit=unit, least=least, line=line))


@dataclass(frozen=True)
class Option:
    """One thing that can be asked for, as its field declares it.

    Attributes:
        name: Of the field and of the keyword.
        annotation: Its type as written.
        default: Its value where it is left out; ``dataclasses.MISSING`` where it must be given.
        sentence: What it is.
        unit: What its numbers count, or the values they may have; may be empty.
        least: The smallest number allowed, of several each; ``None`` where any may be.
        topic: ``TITLE`` of the class that first declared it.
        line: What the command line needs beyond; ``None`` for what only the Python API takes.
        positional: Whether the keyword may be left out before its value.
    """

    name: str
    annotation: str
    default: Any
    sentence: str
    unit: str
    least: float | None
    topic: str
    line: Line | None
    positional: bool

    @property
    def text(self) -> str:
        """The sentence with the unit."""
        return f"{self.sentence.rstrip('.')} ({self.unit})." if self.unit else self.sentence


def options(settings: type) -> list[Option]:
    """List what a settings class takes, topic by topic in the order of its bases."""
    known: dict[str, Field[Any]] = {item.name: item for item in fields(settings)}
    home = {name: cls for cls in settings.__mro__ for name in vars(cls).get("__annotations__", {}) if name in known}
    listed = [known[name] for cls in settings.__mro__ for name in home if home[name] is cls]
    return [
        Option(
            name=item.name,
            annotation=str(item.type),
            default=item.default,
            sentence=item.metadata.get(_SENTENCE, ""),
            unit=item.metadata.get(_UNIT, ""),
            least=item.metadata.get(_LEAST),
            topic=getattr(home[item.name], "TITLE", ""),
            line=item.metadata.get(_LINE),
            positional=not item.kw_only,
        )
        for item in listed
    ]


def shared(settings: object, other: type) -> dict[str, Any]:
    """The values of one settings object that another class takes, too."""
    names = {item.name for item in options(other)}
    return {item.name: getattr(settings, item.name) for item in options(type(settings)) if item.name in names}


def checked(settings: type[_T]) -> type[_T]:
    """Let a settings class refuse names that it does not have, and values of another kind than its fields take.

    Numbers below the smallest that a field allows are refused, too. Put it above ``dataclass``. What else a value may
    say, within its kind, is left to those who read it.
    """
    made = settings.__init__
    listed = options(settings)
    known = [item.name for item in listed]
    hints = functools.cache(lambda: get_type_hints(settings))

    @functools.wraps(made)
    def init(self: Any, *values: Any, **named: Any) -> None:
        _require_known(settings.__name__, list(named), known)
        made(self, *values, **named)
        for item in listed:
            value, hint = getattr(self, item.name), hints()[item.name]
            if hint is not str and value is not item.default and not fits(value, hint):
                what = words(hint)
                raise SettingError(
                    f"{item.name} cannot be {value!r:.60}{f', it takes {what}' if what else ''}: {item.text}"
                )
            if item.least is not None and value is not item.default and below(value, item.least):
                raise RangeError(f"{item.name} cannot be {value!r:.60}, {item.least} is the least: {item.text}")

    settings.__init__ = init  # type: ignore[method-assign]
    return settings


class Job(Protocol[_Model, _P, _Settings, _Result]):
    """A job on one model, asked for by keywords or by a settings object."""

    @overload
    def __call__(self, model: _Model, settings: _Settings) -> _Result: ...

    @overload
    def __call__(self, model: _Model, *args: _P.args, **keywords: _P.kwargs) -> _Result: ...


class PairJob(Protocol[_Model, _Other, _P, _Settings, _Result]):
    """A job on two things, asked for by keywords or by a settings object."""

    @overload
    def __call__(self, before: _Model, after: _Other, settings: _Settings) -> _Result: ...

    @overload
    def __call__(self, before: _Model, after: _Other, *args: _P.args, **keywords: _P.kwargs) -> _Result: ...


def job(
    settings: Callable[_P, _Settings],
) -> Callable[[Callable[[_Model, _Settings], _Result]], Job[_Model, _P, _Settings, _Result]]:
    """Let a function of a model and its settings take every field of the settings as a keyword, too."""
    return functools.partial(_with_keywords, settings)


def pair(
    settings: Callable[_P, _Settings],
) -> Callable[[Callable[[_Model, _Other, _Settings], _Result]], PairJob[_Model, _Other, _P, _Settings, _Result]]:
    """The same as `job` for a function of two models, or of models and where they go."""
    return functools.partial(_with_keywords, settings)


def _with_keywords(settings: Any, function: Callable[..., Any]) -> Any:
    """Wrap a function whose last parameter is its settings."""
    listed = options(settings)
    signature = _signature(function, settings, listed)
    models = list(inspect.signature(function).parameters)[:-1]

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        _require_known(function.__name__, list(keywords), list(signature.parameters))
        rest = arguments[len(models) :]
        whole = keywords.get("settings", rest[0] if rest and isinstance(rest[0], settings) else None)
        if whole is not None:
            beside = [name for name in keywords if name not in (*models, "settings")]
            _require_alone(function.__name__, settings, whole, beside)
            return function(*arguments, **keywords)
        try:
            given = signature.bind(*arguments, **keywords).arguments
        except TypeError as error:
            raise TypeError(f"{function.__name__}(): {error}") from None
        whole = given.pop("settings", None)
        if whole is not None:
            _require_alone(function.__name__, settings, whole, [])
        return function(*(given.pop(name) for name in models), settings(**given))

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__doc__ = _documented(function.__doc__ or "", listed)
    return call


def _require_alone(called: str, settings: type, given: Any, beside: Sequence[str]) -> None:
    """Refuse settings of another class, and keywords beside them."""
    if not isinstance(given, settings):
        raise TypeError(f"{called}() takes a {settings.__name__} or keywords, not a {type(given).__name__}")
    if beside:
        raise TypeError(
            f"{called}() takes a {settings.__name__} or keywords, not both: leave out {', '.join(beside)}, or make "
            "another one with dataclasses.replace"
        )


def _signature(function: Callable[..., Any], settings: type, listed: Sequence[Option]) -> inspect.Signature:
    """The models, then either a settings object or its fields by name."""
    plain = inspect.signature(function)
    *models, _ = plain.parameters.values()
    made = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if item.positional else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if item.default is MISSING else item.default,
            annotation=item.annotation,
        )
        for item in listed
    ]
    positional = [item for item in made if item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    whole = inspect.Parameter(
        "settings",
        inspect.Parameter.KEYWORD_ONLY if positional else inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=f"{settings.__name__} | None",
    )
    ordered = sorted([*models, *made, whole], key=lambda item: item.kind)
    return plain.replace(parameters=ordered)


def _require_known(called: str, keywords: Sequence[str], known: Sequence[str]) -> None:
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"{called}() got an unexpected keyword argument '{name}'{hint}")


def _documented(text: str, listed: Sequence[Option]) -> str:
    """Write the fields into the ``Args`` section of a docstring, behind what stands there."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    entries = [
        textwrap.fill(f"{item.name}: {item.text}", 112, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for item in listed
    ]
    return "\n\n".join(
        "\n".join([paragraph, *entries]) if paragraph.startswith("Args:") else paragraph for paragraph in paragraphs
    )
