"""Install the lowest versions that pyproject.toml allows, and run tests with them.

    python -m tools.lowest_versions FOLDER [--python python3.11] [TEST ...]

FOLDER gets a virtual environment. Dependencies are those of the package itself and of the extras named by ``--extra``,
without one of what the fast tests touch; what only tests need is the newest. A bound has to name a version that exists.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
#: Extras that these need.
EXTRAS = ("images", "report")
#: Tests that touch what dependencies do, in some minutes.
FAST = (
    "tests/graph",
    "tests/numerics",
    "tests/runtime",
    "tests/latency",
    "tests/examples",
    "tests/cli",
    "tests/test_faults.py",
    "tests/test_import.py",
)
_TEST_ONLY = ("pytest", "hypothesis", "jsonschema")
_LOWER_BOUND = re.compile(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9][^,;\s]*)")


def lowest(pyproject: Path, extras: tuple[str, ...] = ()) -> list[str]:
    """Pin every dependency to its lower bound.

    Args:
        pyproject: The file.
        extras: Optional dependencies to include.

    Raises:
        ValueError: A dependency has no lower bound.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    pins = []
    for line in wanted:
        found = _LOWER_BOUND.match(line)
        if found is None:
            raise ValueError(f"{pyproject}: the dependency '{line}' has no lower bound; write it as name>=1.0.")
        pins.append(f"{found[1]}=={found[2]}")
    return pins


def command(
    folder: Annotated[Path, typer.Argument(help="Where the environment goes.")],
    tests: Annotated[list[str] | None, typer.Argument(help="Tests to run; fast ones otherwise.")] = None,
    python: Annotated[str, typer.Option(help="The Python to use.")] = sys.executable,
    extra: Annotated[list[str] | None, typer.Option(help="Optional dependencies to include.")] = None,
) -> None:
    """Install the lowest versions that pyproject.toml allows, and run tests with them."""
    pins = lowest(ROOT / "pyproject.toml", tuple(extra or EXTRAS))
    print("\n".join(pins), flush=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    subprocess.run([inside, "-m", "pip", "install", "-q", *pins, *_TEST_ONLY], check=True)
    # Its name and version; the code that runs is that of the tree.
    subprocess.run([inside, "-m", "pip", "install", "-q", "--no-deps", "-e", str(ROOT)], check=True)
    line = [inside, "-m", "pytest", "-q", *(tests or FAST)]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    raise typer.Exit(done.returncode)


if __name__ == "__main__":
    typer.run(command)
