"""Change the factorisation and the surgery in small ways, one at a time, and see whether their tests notice.

    pip install -e '.[mutation]'
    python -m tools.mutate                          60 mutants of each part, drawn by seed
    python -m tools.mutate --part surgery --all     every mutant of a part: hours
    python -m tools.mutate --show survivors.diff    write what nobody noticed into a file

Mutants are those of cosmic-ray, made in a copy of the tree; the part's tests run on each, in a process that is forked
from one that has imported the libraries, until the first fails. Left out are those that say nothing: of annotations,
which nobody evaluates, operators on bits in the place of others, which floating-point numbers do not have, identity in
the place of equality or the other way round, which are the same for small numbers, names and nodes, stars that are no
operators but stand before arguments, -1 turned into -2 where NumPy finds a size out, for which any negative number
stands, and whether `astype` copies. Ends with exit code 1 where fewer than 85 % of a part's mutants are noticed.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import difflib
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds that the tests may take at least: a busy machine is no mutant.
_LEAST_LIMIT = 120.0

# What tests import and mutants do not change.
_SHARED = (
    "numpy",
    "scipy.linalg",
    "scipy.stats",
    "ml_dtypes",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "hypothesis",
    "pytest",
)
# Endings of the names of operators whose mutants say nothing.
_IDLE = ("_BitAnd", "_BitOr", "_BitXor", "_LShift", "_RShift", "_Eq_Is", "_Is_Eq", "_NotEq_IsNot", "_IsNot_NotEq")
# Exit code where the tests saw another copy of the package than the mutated one.
_ELSEWHERE = 97

#: Share of a part's mutants that its tests have to notice.
BAR = 0.85


@dataclass(frozen=True)
class Part:
    """Modules that are changed, and the tests that should notice, quick ones first."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


PARTS = {
    "factorisation": Part(
        ("onnx_pointwise/numerics/factorize.py",),
        (
            "tests/numerics/test_least_squares.py",
            "tests/numerics/test_forms.py",
            "tests/numerics/test_degenerate.py",
            "tests/numerics/test_outputs.py",
            "tests/numerics/test_factorize.py",
        ),
    ),
    "forms": Part(
        ("onnx_pointwise/numerics/forms.py", "onnx_pointwise/graph/pieces.py"),
        (
            "tests/numerics/test_forms.py",
            "tests/graph/test_pieces.py",
            "tests/graph/test_transposed.py",
            "tests/graph/test_surgery.py",
        ),
    ),
    "surgery": Part(
        ("onnx_pointwise/graph/surgery.py",),
        ("tests/graph/test_surgery.py", "tests/graph/test_transposed.py", "tests/graph/test_pieces.py"),
    ),
}


@dataclass
class Tally:
    """What became of the mutants of a part."""

    drawn: int
    whole: int
    killed: int = 0
    timed_out: int = 0
    survivors: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of the mutants that the tests noticed."""
        return self.killed / self.drawn if self.drawn else 1.0


def idle_places(source: str) -> list[tuple[int, int, int, int]]:
    """Where annotations stand: first line and column, last line and column.

    Args:
        source: A module.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        found += [
            (part.lineno, part.col_offset, part.end_lineno or part.lineno, part.end_col_offset or part.col_offset)
            for part in parts
            if isinstance(part, ast.expr)
        ]
    return found


def says_nothing(tree: ast.Module, operator: str, place: tuple[int, int]) -> bool:
    """Whether a mutant cannot be told from the code, or is none that Python can read.

    Args:
        tree: The module.
        operator: Name of the mutation's operator.
        place: Line and column of what it changes.
    """
    name = operator.rpartition("/")[2]
    if name.startswith("ReplaceBinaryOperator"):
        sides = [(node.left, node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp)]
        return not any(_end(left) <= place < (right.lineno, right.col_offset) for left, right in sides)
    method = {"ReplaceUnaryOperator_USub_Invert": "reshape", "ReplaceFalseWithTrue": "astype"}.get(name)
    return any(
        (part.lineno, part.col_offset) == place
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
        for part in (*node.args, *(keyword.value for keyword in node.keywords))
    )


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or node.col_offset


def mutations(module: Path) -> Iterator[object]:
    """List the mutations of a module, but for those that say nothing.

    Args:
        module: Its file.
    """
    from cosmic_ray.commands.init import init
    from cosmic_ray.work_db import WorkDB, use_db

    with (
        tempfile.TemporaryDirectory(prefix="onnx_pointwise.") as folder,
        use_db(str(Path(folder) / "mutants.sqlite"), WorkDB.Mode.create) as database,
    ):
        init([module], database, {})
        items = [item.mutations[0] for item in database.work_items]
    source = module.read_text(encoding="utf-8")
    idle, tree = idle_places(source), ast.parse(source)
    for item in sorted(items, key=lambda item: (item.start_pos, item.operator_name, item.occurrence)):
        line, column = item.start_pos
        annotated = any((a, b) <= (line, column) < (c, d) for a, b, c, d in idle)
        if annotated or item.operator_name.endswith(_IDLE) or says_nothing(tree, item.operator_name, item.start_pos):
            continue
        yield item


def prepare(tree: Path, part: Part) -> None:
    """Compile a tree, but for what is mutated, and import what tests import: each mutant is a fork of this process.

    Args:
        tree: The copy of the repository.
        part: What will be mutated.
    """
    compileall.compile_dir(str(tree / "onnx_pointwise"), quiet=1)
    for module in map(Path, part.modules):
        # What tells that compiled code is out of date is too coarse for files that change twice in a second.
        for compiled in (tree / module.parent / "__pycache__").glob(f"{module.stem}.*"):
            compiled.unlink()
    for name in _SHARED:
        importlib.import_module(name)


def _run_tests(tree: Path, tests: Sequence[str], output: Path) -> None:
    """Run tests in this process, which is a fork, until the first fails; its exit code is theirs."""
    import pytest

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    where = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(where, 1)
    os.dup2(where, 2)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree), *(place for place in sys.path if Path(place or ".").resolve() != ROOT)]
    code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "tools.unshrunk", *tests]))
    found = getattr(sys.modules.get("onnx_pointwise"), "__file__", None)
    if found is not None and tree.resolve() not in Path(found).resolve().parents:
        print(f"The tests imported {found}, not the mutated copy.")
        code = _ELSEWHERE
    sys.stdout.flush()
    os._exit(code)


def tried(tree: Path, tests: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Run tests in a fork.

    Args:
        tree: The copy of the repository.
        tests: Files of tests.
        limit: Seconds that they may take.

    Returns:
        Their exit code, None where they ran out of time, and the end of what they printed.
    """
    with tempfile.TemporaryDirectory(prefix="onnx_pointwise.") as folder:
        output = Path(folder) / "output"
        process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(tree, tests, output))
        process.start()
        process.join(limit)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
        return code, output.read_text(errors="replace")[-3000:] if output.exists() else ""


def measure(part: Part, tree: Path, *, count: int | None, seed: int, show: Path | None) -> Tally:
    """Make mutants of a part and run its tests on each.

    Args:
        part: What to change, and which tests should notice.
        tree: The copy of the repository that is mutated; the current folder.
        count: Mutants to draw; all of them if None.
        seed: Seed of the draw.
        show: File that the survivors' differences are added to.
    """
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    items: list[Any] = [item for module in part.modules for item in mutations(Path(module))]
    drawn = items if count is None else random.Random(seed).sample(items, min(count, len(items)))
    tally = Tally(len(drawn), len(items))
    prepare(tree, part)
    start = time.perf_counter()
    code, output = tried(tree, part.tests, 1800)
    if code != 0:
        raise SystemExit(f"The tests fail on the code as it is:\n{output}")
    limit = max(_LEAST_LIMIT, 10 * (time.perf_counter() - start))
    for number, item in enumerate(drawn, 1):
        operator = get_operator(item.operator_name)(**item.operator_args)
        with use_mutation(item.module_path, operator, item.occurrence) as (before, after):
            code, output = tried(tree, part.tests, limit)
        if code == _ELSEWHERE:
            raise SystemExit(output)
        tally.killed += code != 0
        tally.timed_out += code is None
        if code == 0:
            name = str(item.module_path)
            lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, name, lineterm="")
            tally.survivors.append("\n".join(lines))
            if show is not None:
                with show.open("a", encoding="utf-8") as stream:
                    stream.write(f"{tally.survivors[-1]}\n\n")
        print(f"{number}/{len(drawn)} {tally.killed} noticed", file=sys.stderr, flush=True)
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts that were asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--count", type=int, default=60, help="mutants of each part")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--show", type=Path, help="file for the differences of those that nobody noticed")
    options = parser.parse_args(arguments)
    show = None if options.show is None else options.show.absolute()
    tallies: dict[str, Tally] = {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="onnx_pointwise.") as folder:
        tree = Path(folder) / "tree"
        kept = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "*.onnx", "*.npz", "*.keras")
        shutil.copytree(ROOT, tree, ignore=kept)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
        os.chdir(tree)
        try:
            for name in options.part or PARTS:
                count = None if options.all else options.count
                tallies[name] = measure(PARTS[name], tree, count=count, seed=options.seed, show=show)
        finally:
            os.chdir(before)
    print("| part | mutants | tried | noticed | by running out of time | share |")
    print("|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        print(f"| {name} | {tally.whole} | {tally.drawn} | {tally.killed} | {tally.timed_out} | {tally.share:.1%} |")
    return 1 if any(tally.share < BAR for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
