"""Which sentences of the package's errors the tests have read.

Every place in the package that makes one of its errors is found in the source. While the tests run, each error that is
made is noted with the place and the sentence, and when the test has passed, whether the test holds words of it: the
string that it looks for, in its own code or in its parameters. So a place counts as read when a test made that very
error there and knew what it would say.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

from onnx_pointwise.errors import OnnxPointwiseError

PACKAGE = Path(__file__).resolve().parents[1] / "onnx_pointwise"
# A name or a number alone says nothing of a sentence.
_LEAST_WORDS = 2


@dataclass(frozen=True, order=True)
class Place:
    """Where an error is made.

    Attributes:
        file: File, in the package.
        first: First line of the call that makes it.
        last: Its last line.
    """

    file: str
    first: int = field(compare=True)
    last: int

    def __str__(self) -> str:
        return f"{self.file}:{self.first}"


def error_names(package: Path = PACKAGE) -> set[str]:
    """Names of the package's errors, and of those that derive from them anywhere in it."""
    found, more = set(), {OnnxPointwiseError.__name__}
    while more - found:
        found |= more
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in found for base in node.bases):
                    more.add(node.name)
    return found


def places(package: Path = PACKAGE) -> list[Place]:
    """Every place in the package that makes one of its errors."""
    names = error_names(package)
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.parent.name == "exporting" or path.name == "olive.py":  # tested by themselves, or not by CI
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                found.append(Place(str(path.relative_to(package)), node.lineno, node.end_lineno or node.lineno))
    return sorted(found)


@dataclass
class Reader:
    """Notes errors as they are made, and which of them a test has read.

    Attributes:
        read: Places whose sentence a test has read.
        made: Places whose error some test has made, and one of their sentences.
    """

    read: set[tuple[str, int]] = field(default_factory=set)
    made: dict[tuple[str, int], str] = field(default_factory=dict)
    _now: list[tuple[tuple[str, int], str]] = field(default_factory=list)

    def listen(self) -> None:
        """Note every error from now on."""
        note = self._note

        def remember(error: OnnxPointwiseError, *arguments: Any) -> None:
            Exception.__init__(error, *arguments)
            note(str(error))

        OnnxPointwiseError.__init__ = remember  # type: ignore[method-assign,assignment]

    def _note(self, sentence: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename.endswith("errors.py"):
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            key = (str(path.relative_to(PACKAGE)), frame.f_lineno)
            self.made.setdefault(key, sentence)
            self._now.append((key, sentence))

    def test_begins(self) -> None:
        """Forget what was made outside of a test."""
        self._now.clear()

    def test_passed(self, words: Iterable[str]) -> None:
        """Look whether a test knew what the errors said that were made in it.

        Args:
            words: The strings that the test holds.
        """
        if self._now:
            known = list(words)
            self.read |= {key for key, sentence in self._now if any(_says(sentence, text) for text in known)}

    def unread(self, among: Iterable[Place]) -> list[Place]:
        """Places whose sentence no test has read."""
        return [place for place in among if not any(_within(place, key) for key in self.read)]

    def never_made(self, among: Iterable[Place]) -> list[Place]:
        """Places whose error no test has made."""
        return [place for place in among if not any(_within(place, key) for key in self.made)]


def _within(place: Place, key: tuple[str, int]) -> bool:
    return place.file == key[0] and place.first <= key[1] <= place.last


def _says(sentence: str, text: str) -> bool:
    """Whether a test's string, plain or a pattern, is part of a sentence."""
    if len(re.findall(r"[^\W\d_]{2,}", text)) < _LEAST_WORDS:
        return False
    flat = " ".join(sentence.split())
    if " ".join(text.split()) in flat:
        return True
    try:
        return re.search(text, sentence) is not None
    except re.error:
        return False


def strings_of(function: Any, parameters: Mapping[str, Any]) -> Iterator[str]:
    """The strings that a test holds: in its code, but for its docstring, and in its parameters.

    Args:
        function: The test.
        parameters: What it was called with.
    """
    function = (getattr(function, "hypothesis", None) and function.hypothesis.inner_test) or function
    function = getattr(function, "__func__", function)
    documented = function.__doc__
    yield from (text for text in _constants(function.__code__) if text != documented)
    yield from _within_value(list(parameters.values()))


def _constants(code: CodeType) -> Iterator[str]:
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield from _constants(item)
        else:
            yield from _within_value(item)


def _within_value(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _within_value(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _within_value(item)
