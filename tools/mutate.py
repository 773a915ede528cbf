"""Change the factorisation and the surgery in small ways, one at a time, and see whether their tests notice.

    pip install -e '.[mutation]'
    python -m tools.mutate                          60 mutants of each part, drawn by seed
    python -m tools.mutate --part surgery --all     every mutant of a part: hours
    python -m tools.mutate --show survivors.diff    write what nobody noticed into a file

Mutants are those of cosmic-ray, made in a copy of the tree; the part's tests run on each until the first fails. Left
out are those that say nothing: of annotations, which nobody evaluates, and operators on bits in the place of others,
which floating-point numbers do not have. Ends with exit code 1 where fewer than 85 % of a part's mutants are noticed.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Seconds that the tests may take at least: a busy machine is no mutant.
_LEAST_LIMIT = 120.0

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
        ("tests/graph/test_pieces.py", "tests/numerics/test_forms.py", "tests/numerics/test_factorize.py"),
    ),
    "surgery": Part(
        ("onnx_pointwise/graph/surgery.py",),
        ("tests/graph/test_pieces.py", "tests/graph/test_surgery.py"),
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


def mutations(module: Path) -> Iterator[object]:
    """List the mutations of a module, but for those of annotations and those into operators on bits.

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
    idle = idle_places(module.read_text(encoding="utf-8"))
    for item in sorted(items, key=lambda item: (item.start_pos, item.operator_name, item.occurrence)):
        line, column = item.start_pos
        on_bits = item.operator_name.endswith(("_BitAnd", "_BitOr", "_BitXor", "_LShift", "_RShift"))
        if not on_bits and not any((a, b) <= (line, column) < (c, d) for a, b, c, d in idle):
            yield item


def measure(part: Part, *, count: int | None, seed: int, show: Path | None) -> Tally:
    """Make mutants of a part and run its tests on each.

    Args:
        part: What to change, and which tests should notice.
        count: Mutants to draw; all of them if None.
        seed: Seed of the draw.
        show: File that the survivors' differences are added to.
    """
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.testing import run_tests
    from cosmic_ray.work_item import TestOutcome

    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider -p tools.unshrunk {' '.join(part.tests)}"
    items = [item for module in part.modules for item in mutations(Path(module))]
    drawn = items if count is None else random.Random(seed).sample(items, min(count, len(items)))
    tally = Tally(len(drawn), len(items))
    start = time.perf_counter()
    outcome, output = run_tests(command, 1800)
    if outcome != TestOutcome.SURVIVED:
        raise SystemExit(f"The tests fail on the code as it is:\n{output}")
    limit = max(_LEAST_LIMIT, 10 * (time.perf_counter() - start))
    for number, item in enumerate(drawn, 1):
        result = mutate_and_test([item], command, limit)
        survived = result.test_outcome == TestOutcome.SURVIVED
        tally.killed += not survived
        tally.timed_out += result.output == "timeout"
        if survived:
            tally.survivors.append(result.diff or "")
            if show is not None:
                with show.open("a", encoding="utf-8") as stream:
                    stream.write(f"{result.diff}\n\n")
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
                tallies[name] = measure(PARTS[name], count=count, seed=options.seed, show=show)
        finally:
            os.chdir(before)
    print("| part | mutants | tried | noticed | by running out of time | share |")
    print("|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        print(f"| {name} | {tally.whole} | {tally.drawn} | {tally.killed} | {tally.timed_out} | {tally.share:.1%} |")
    return 1 if any(tally.share < BAR for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
