"""Which sentences the package's errors say, and which words of them the tests look for. All of it is read from source.

A sentence is what stands where one of the package's errors is made: text with gaps, where it depends on what happened.
Words count as looked for where a test would fail without them: in an assertion, as the pattern of `pytest.raises`, in
what a test is parametrised with or goes through, or in what it hands to a helper that asserts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onnx_pointwise.errors import OnnxPointwiseError

ROOT = Path(__file__).resolve().parents[1]
# A name or a number alone says nothing of a sentence.
_LEAST_WORDS = 2
# ... and so many words in a row are no chance.
_IN_A_ROW = 3
_WORD = re.compile(r"[^\W\d_]{2,}")
# How far text is followed from where an error is made to where its words are: through functions and names.
_DEEPEST = 6


@dataclass(frozen=True)
class Sentence:
    """What an error says.

    Attributes:
        place: File and line.
        parts: Its words, without what is filled in.
    """

    place: str
    parts: tuple[str, ...]

    def read_by(self, words: set[str]) -> bool:
        """Whether a test looks for part of it.

        Args:
            words: What tests look for, see `looked_for`.
        """
        short = all(len(_WORD.findall(part)) < _LEAST_WORDS for part in self.parts)
        return any(_shares(text, part, short) for part in self.parts for text in words)

    def __str__(self) -> str:
        return f"{self.place}: {'{}'.join(self.parts)}"


def _shares(text: str, part: str, short: bool) -> bool:
    """Whether a text that a test looks for is in a part of a sentence, or has it, or three words of it in a row."""
    part = " ".join(part.split()).strip(" .,:;()'")
    if text in part or (part in text and (short or len(_WORD.findall(part)) >= _LEAST_WORDS)):
        return True
    words = part.split(" ")
    return any(
        " ".join(words[k : k + _IN_A_ROW]) in text
        and len(_WORD.findall(" ".join(words[k : k + _IN_A_ROW]))) == _IN_A_ROW
        for k in range(len(words) - _IN_A_ROW + 1)
    )


class Module:
    """A module of the package.

    Args:
        path: Its file.
        source: What stands in it.
        errors: Names of the package's errors.
    """

    def __init__(self, path: str, source: str, errors: set[str]) -> None:
        self.path, self.errors = path, errors
        self.tree = ast.parse(source)

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef]:
        """Functions and methods by name."""
        return {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)}

    def sentences(self) -> Iterator[Sentence]:
        """What each error says that is made here."""
        around: dict[ast.AST, ast.FunctionDef | None] = {}

        def visit(node: ast.AST, function: ast.FunctionDef | None) -> None:
            around[node] = function
            for child in ast.iter_child_nodes(node):
                visit(child, node if isinstance(node, ast.FunctionDef) else function)

        visit(self.tree, None)
        for node, function in around.items():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.errors:
                texts = (text for value in node.args for text in self.texts(value, function, 0))
                parts = tuple(text for text in texts if _WORD.search(text))
                yield Sentence(f"{self.path}:{node.lineno}", parts)

    def texts(self, value: ast.expr, function: ast.FunctionDef | None, depth: int) -> Iterator[str]:
        """The pieces of text that an expression is put together from, wherever in the module they stand."""
        if depth > _DEEPEST:
            return
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value
        elif isinstance(value, ast.JoinedStr):
            for part in value.values:
                if isinstance(part, ast.FormattedValue):
                    yield from self._filled(part.value, function, depth)
                else:
                    yield from self.texts(part, function, depth)
        elif isinstance(value, ast.BinOp | ast.IfExp | ast.BoolOp | ast.Subscript | ast.Dict | ast.Call | ast.Name):
            yield from self._followed(value, function, depth)

    def _filled(self, value: ast.expr, function: ast.FunctionDef | None, depth: int) -> Iterator[str]:
        """Text that fills a gap, where it is written out: one of two wordings, or what stands in front of several."""
        if isinstance(value, ast.IfExp | ast.Name):
            yield from self.texts(value, function, depth + 1)

    def _followed(self, value: ast.expr, function: ast.FunctionDef | None, depth: int) -> Iterator[str]:
        inner: list[tuple[ast.expr, ast.FunctionDef | None]] = []
        match value:
            case ast.BinOp():
                inner = [(value.left, function), (value.right, function)]
            case ast.IfExp():
                inner = [(value.body, function), (value.orelse, function)]
            case ast.BoolOp():
                inner = [(part, function) for part in value.values]
            case ast.Subscript():
                inner = [(value.value, function)]
            case ast.Dict():
                inner = [(part, function) for part in value.values]
            case ast.Call(func=ast.Attribute(attr="format" | "rstrip" | "join", value=text)):
                inner = [(text, function)]
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                called = self.functions[name]
                returned = [node.value for node in ast.walk(called) if isinstance(node, ast.Return) and node.value]
                inner = [(part, called) for part in returned] + [(part, function) for part in value.args]
            case ast.Name(id=name):
                inner = list(self._assigned(name, function))
        for part, where in inner:
            yield from self.texts(part, where, depth + 1)

    def _assigned(
        self, name: str, function: ast.FunctionDef | None
    ) -> Iterator[tuple[ast.expr, ast.FunctionDef | None]]:
        for scope in (function, self.tree):
            nodes = () if scope is None else ast.walk(scope) if scope is function else self.tree.body
            for node in nodes:
                if isinstance(node, ast.NamedExpr) and node.target.id == name:
                    yield node.value, function
                elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                        yield node.value, function


def error_names(sources: dict[str, str]) -> set[str]:
    """Names of the package's errors, and of those that derive from them anywhere in it.

    Args:
        sources: Modules by path.
    """
    classes = [
        node for text in sources.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)
    ]
    found, more = set(), {OnnxPointwiseError.__name__}
    while more - found:
        found |= more
        more |= {node.name for node in classes if any(ast.unparse(base) in found for base in node.bases)}
    return found


def said(package: Path = ROOT / "onnx_pointwise") -> list[Sentence]:
    """What the package's errors say, in every place that makes one."""
    sources = {
        str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))
    }
    errors = error_names(sources)
    return [sentence for path, text in sources.items() for sentence in Module(path, text, errors).sentences()]


def looked_for(tests: Path = ROOT / "tests") -> set[str]:
    """Pieces of text, of two words or more, that the tests look for."""
    return {words for path in sorted(tests.rglob("test_*.py")) for words in searched(path.read_text(encoding="utf-8"))}


def searched(source: str) -> set[str]:
    """Pieces of text that the tests of a file look for.

    Args:
        source: The file.
    """
    tree = ast.parse(source)
    tables = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    helpers = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and _looks(node)}
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            roots.append(node.test)
        elif isinstance(node, ast.keyword) and node.arg == "match":
            roots.append(node.value)
        elif isinstance(node, ast.For) and _looks(node):
            roots.append(node.iter)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in helpers:
            roots += node.args
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                roots.append(decorator)
                names = {part.id for part in ast.walk(decorator) if isinstance(part, ast.Name)}
                roots += [tables[name] for name in names if name in tables]
    texts = (
        part.value
        for root in roots
        for part in ast.walk(root)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )
    return {piece for text in texts for piece in _pieces(text)}


def _looks(node: ast.AST) -> bool:
    """Whether something is asserted in a part of a test, or a pattern looked for."""
    return any(
        isinstance(part, ast.Assert) or (isinstance(part, ast.keyword) and part.arg == "match")
        for part in ast.walk(node)
    )


def _pieces(text: str) -> Iterator[str]:
    """What of a text or pattern stands in a sentence as it is: parts between wildcards, without escapes."""
    plain = " ".join(text.split())
    parts = [plain] if not set(plain) & set("\\*+|^$[") else [plain, *_of_pattern(plain)]
    for part in parts:
        if len(_WORD.findall(part)) >= _LEAST_WORDS:
            yield part


def _of_pattern(pattern: str) -> list[str]:
    parts = re.split(r"(?<!\\)(?:\.[*+]\??|[|^$]|\[[^\]]*\][*+?]?|\\[dwsDWS][*+?]?)", pattern)
    return [re.sub(r"\\(.)", r"\1", part).strip() for part in parts]
