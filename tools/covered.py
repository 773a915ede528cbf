"""Say how many lines and branches of each wing the tests ran.

    pip install -e '.[coverage]'
    coverage run -m pytest -q && coverage run -m pytest -q -m keras && coverage run -m pytest -q -m gpu
    coverage combine && coverage json -q && python -m tools.covered

Each run writes a file of its own, the commands that tests start among them, so that wings can be run one after another.
Exit code 1 where fewer than 95 % of the package's lines or 90 % of its branches were run.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

#: Shares of all lines and of all branches that tests have to run.
LINES, BRANCHES = 0.95, 0.90


def by_wing(report: dict[str, Any]) -> dict[str, Counter[str]]:
    """Add up what `coverage json` says of files.

    Args:
        report: Its content.

    Returns:
        The counts of each wing, and of the modules beside them together.
    """
    wings: dict[str, Counter[str]] = {}
    for name, entry in report["files"].items():
        inside = Path(name.replace("\\", "/")).parts
        inside = inside[len(inside) - inside[::-1].index("onnx_pointwise") :]
        wing = inside[0] if len(inside) > 1 else "beside"
        counts = {key: number for key, number in entry["summary"].items() if isinstance(number, int)}
        wings.setdefault(wing, Counter()).update(counts)
    return dict(sorted(wings.items()))


def shares(counts: Counter[str]) -> tuple[float, float]:
    """Give the shares of lines and of branches that were run."""
    return tuple(  # type: ignore[return-value]
        counts[f"covered_{what}"] / counts[f"num_{whole}"] if counts[f"num_{whole}"] else 1.0
        for what, whole in (("lines", "statements"), ("branches", "branches"))
    )


def command(
    file: Annotated[Path, typer.Argument(help="What `coverage json` wrote.")] = Path("coverage.json"),
) -> None:
    """Say how many lines and branches of each wing the tests ran."""
    wings = by_wing(json.loads(file.read_text(encoding="utf-8")))
    total = sum(wings.values(), Counter())
    print("| wing | lines | run | branches | run |")
    print("|---|---|---|---|---|")
    for name, counts in (*wings.items(), ("all", total)):
        lines, branches = shares(counts)
        print(f"| {name} | {counts['num_statements']} | {lines:.1%} | {counts['num_branches']} | {branches:.1%} |")
    lines, branches = shares(total)
    raise typer.Exit(1 if lines < LINES or branches < BRANCHES else 0)


if __name__ == "__main__":
    typer.run(command)
