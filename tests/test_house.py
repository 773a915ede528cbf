"""The plan of the house: which wing may import which, and what a wing hands out. See CONTRIBUTING.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "onnx_pointwise"
#: From the top to the ground; what stands on one line may import only what stands below it.
FLOORS = (
    "__main__",
    "olive",
    "cli",
    "reports",
    "jobs",
    "check",
    "settings",
    "exporting",
    "fitting",
    "planning",
    "latency",
    "study",
    "deploying",
    "examples",
    "runtime",
    "graph",
    "numerics",
    "schema",
    "progress",
    "kinds",
    "jsonable",
    "scratch",
    "early",
    "errors",
)
#: The package's own ``__init__`` hands out what users call; the command line calls it as they do.
FACADE = "onnx_pointwise"


def room(path: Path) -> str:
    """The wing that a file lies in, or its own name where it lies in the package's folder."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Every import of the package, as line and dotted name of what is imported from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name.split(".")[0] == FACADE)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module is None or node.module.split(".")[0] != FACADE:
                continue
            if node.module == FACADE:  # `from onnx_pointwise import wing`
                yield from ((node.lineno, f"{FACADE}.{name.name}") for name in node.names)
            else:
                yield node.lineno, node.module


def faults(mine: str, source: str) -> list[str]:
    """What is wrong with the imports of a file in a wing."""
    found = []
    for line, module in imported(source):
        parts = module.split(".")[1:]
        if not parts:
            if mine not in ("cli", "__main__"):
                found.append(f"{line}: only the command line imports the package itself")
            continue
        theirs = parts[0]
        if theirs not in FLOORS:
            found.append(f"{line}: {module} is on no floor")
        elif theirs != mine and FLOORS.index(theirs) < FLOORS.index(mine):
            found.append(f"{line}: {mine} imports {theirs}, which lies above it")
        elif theirs != mine and len(parts) > 1:
            found.append(f"{line}: {module} reaches past what {theirs} hands out")
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_stop_at_the_door(path: Path) -> None:
    assert room(path) in FLOORS
    assert faults(room(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("mine", "source"),
    [
        ("graph", "from onnx_pointwise.runtime import open_session"),
        ("check", "def f():\n    from onnx_pointwise.jobs import rewrite"),
        ("study", "from onnx_pointwise.graph.sites import Site"),
        ("study", "import onnx_pointwise.graph.sites"),
        ("study", "import onnx_pointwise"),
        ("study", "from onnx_pointwise import cli"),
        ("study", "from onnx_pointwise.attic import Site"),
    ],
)
def test_what_must_not_be_imported_is_found(mine: str, source: str) -> None:
    assert len(faults(mine, source)) == 1


def test_what_may_be_imported() -> None:
    assert (
        faults("check", "import numpy\nfrom onnx_pointwise.graph import Site\nfrom onnx_pointwise.errors import A")
        == []
    )
    assert faults("check", "from onnx_pointwise.check.trials import Batch") == []


@pytest.mark.parametrize("wing", sorted({room(path) for path in FILES if path.parent != PACKAGE}))
def test_every_wing_says_what_it_knows_and_what_not(wing: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None and len(text.split("\n\n")) == 2


# --- how large a function may be --------------------------------------------------------------------------------------

MOST_PARAMETERS, MOST_LINES = 12, 80


def large(source: str) -> list[str]:
    """Functions that take too much or are too long; what is generated from settings is in no source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            given = node.args
            count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            name = getattr(node, "name", "lambda")
            if count > MOST_PARAMETERS:
                found.append(f"{name} takes {count} parameters")
            if lines > MOST_LINES:
                found.append(f"{name} is {lines} lines long")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_stay_small(path: Path) -> None:
    assert large(path.read_text(encoding="utf-8")) == []


def test_large_functions_are_found() -> None:
    many = ", ".join(f"p{number}" for number in range(13))
    assert large(f"def f({many}): pass") == ["f takes 13 parameters"]
    assert large("class A:\n    def f(self):\n" + "        pass\n" * 80) == ["f is 81 lines long"]
    assert large("def f(a, *, b):\n    return a") == []
