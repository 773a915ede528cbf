"""The help: what matters first, examples that work, no jargon of the parser, and nothing that does not fit."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from onnx_pointwise.cli.app import app
from onnx_pointwise.cli.guide import GUIDES
from tests.commands import invoke
from tests.small import examples, network
from tests.staircase import install

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_has_its_guide() -> None:
    assert set(GUIDES) == set(COMMANDS)
    for name, guide in GUIDES.items():
        parameters = {item.name for item in COMMANDS[name].params}
        assert set(guide.first) <= parameters and len(guide.first) <= 6
        assert guide.examples and all(line.split()[0] == name for line, _ in guide.examples)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ["", *GUIDES])
def test_the_help_fits_and_speaks_plainly(name: str, columns: int) -> None:
    result = invoke(app, *([name] if name else []), "--help", columns=columns)
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines()) <= columns
    assert not re.search(r"<\w+>|\[x>=", result.stdout), "words of the parser"
    assert "\x1b" not in result.stdout
    if name:
        for item in COMMANDS[name].params:
            for written in item.opts:
                assert written in result.stdout or not written.startswith("--")


def test_what_matters_most_stands_before_all_topics_and_only_there() -> None:
    text = invoke(app, "rewrite", "--help").stdout
    first, rest = text.split("Most used")[1].split("Budget\n")
    assert "--calibration SOURCE" in first and "--calibration SOURCE" not in rest
    assert "--target-params SHARE" in rest


def test_the_help_of_check_promises_no_examples() -> None:
    assert "held back" not in invoke(app, "check", "--help").stdout
    assert "held back" in " ".join(invoke(app, "rewrite", "--help").stdout.split())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the examples name, on a machine of known latencies."""
    (tmp_path / "net.onnx").write_bytes(network().SerializeToString())
    (tmp_path / "out.onnx").write_bytes(network().SerializeToString())
    np.savez(tmp_path / "images.npz", image=examples(24))
    (tmp_path / "job.yaml").write_text("ratio: 0.8\nprovider: none\ncalibration: none\nlatency: false\n")
    install(monkeypatch, 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", [line for guide in GUIDES.values() for line, _ in guide.examples])
def test_examples_work(line: str, place: Path) -> None:
    arguments: list[Any] = shlex.split(line)
    more: dict[str, list[str]] = {
        "rewrite": ["--no-latency", "--no-cache"],
        "sweep": ["--no-cache"],
        "check": ["--no-latency"],
        "bench": ["--max-seconds", "0.1"],
    }
    arguments += more.get(arguments[0], [])
    result = invoke(app, *arguments)
    assert result.exit_code in (0, 1), result.stdout + result.stderr
    assert "error" not in result.stderr


def test_the_version() -> None:
    assert re.fullmatch(r"onnx-pointwise \d+\.\d+\.\d+\S*\n", invoke(app, "--version").stdout)
