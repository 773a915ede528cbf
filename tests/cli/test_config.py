"""Options from a file say what the same options say on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from onnx_pointwise.cli.app import app
from onnx_pointwise.settings import Settings
from tests.commands import invoke
from tests.test_settings import SAID, settings_of

DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits.onnx"
#: How a file says what `SAID` says on the command line, where that is not the name of the keyword and its value.
NATIVE: dict[str, dict[str, Any]] = {
    "ranks": {"ranks": {"a": 4, "b": "expand:3"}},
    "plan": {"plan": "plan.json"},
    "preprocessing": {"preset": "raw", "mean": [1, 2, 3], "channel_order": "bgr"},
    "memory": {"memory": "500M"},
    "evaluate": {"evaluate": "math:sqrt"},
    "heads": {"heads": {"scores:0": 1, "boxes": 0.5, "a": 1}},
}


def native(name: str) -> dict[str, Any]:
    value = SAID[name][1]
    return NATIVE.get(name, {name: list(value) if isinstance(value, tuple) else value})


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_says_the_same_as_the_command_line(name: str, suffix: str, tmp_path: Path) -> None:
    arguments, value = SAID[name]
    path = tmp_path / f"job.{suffix}"
    document = json.loads(json.dumps(native(name)))  # tuples are lists in a file
    path.write_text(json.dumps(document) if suffix == "json" else yaml.safe_dump(document))
    assert (
        settings_of(Settings, "--config", str(path)) == settings_of(Settings, *arguments) == Settings(**{name: value})
    )


def test_options_go_by_their_own_name_too_and_the_command_line_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "target-macs: 0.5\n--exclude: a\nrank: {b: [24, 32]}\nno-refit: true\nno_check: false\nseed: null\n"
    )
    made = settings_of(Settings, "--config", str(path), "--target-macs", "0.3")
    assert made == Settings(target_macs=0.3, nodes_to_exclude=("a",), ranks={"b": (24, 32)}, refit=False)
    path.write_text("")
    assert settings_of(Settings, "--config", str(path)) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("target_mac: 0.5", ["no option 'target_mac'", "did you mean 'target_macs'?"]),
        ("colour: 0.5", ["no option 'colour'", "--help"]),
        ("jobs: 2.5", ["'jobs'", "'2.5'", "integer"]),
        ("jobs: 0", ["'jobs'", "'0'"]),
        ("require: never", ["'require'", "same"]),
        ("refit: 3", ["'refit'", "true or false"]),
        ("seed: true", ["'seed'", "numbers or text"]),
        ("seed: {a: 1}", ["'seed'", "takes no names"]),
        ("target_macs: 0.5\ntarget-macs: 0.6", ["said twice"]),
        ("exclude: a\nnodes_to_exclude: b", ["said twice"]),
        ("- a", ["names and values"]),
        ("a: [", ["cannot be read as YAML"]),
    ],
)
def test_what_a_file_must_not_say(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    result = invoke(app, "rewrite", DIGITS, tmp_path / "out.onnx", "--config", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: ")
    assert all(word in result.stderr for word in words), result.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["job.yaml"]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    for name, word in (
        ("missing.yaml", "no such file"),
        ("job.json", "cannot be read as JSON"),
        (".", "cannot be read"),
    ):
        result = invoke(app, "inspect", DIGITS, "--config", tmp_path / name)
        assert result.exit_code == 2 and word in result.stderr


def test_a_whole_job_may_stand_in_a_file(tmp_path: Path) -> None:
    document = {
        "in": str(DIGITS),
        "out": str(tmp_path / "out.onnx"),
        "ratio": 0.8,
        "calibration": "none",
        "provider": "none",
        "check": False,
        "json": str(tmp_path / "out.json"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    result = invoke(app, "rewrite", "--config", tmp_path / "job.yaml")
    assert result.exit_code == 0, result.stderr
    made = json.loads((tmp_path / "out.json").read_text())
    assert made["plan"]["budget"] == {"ratio": 0.8} and (tmp_path / "out.onnx").exists()


def test_the_file_itself_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text("{}")
    result = invoke(app, "inspect", DIGITS, "--config", path, "--json", path)
    assert result.exit_code == 2 and "--config" in result.stderr
    assert path.read_text() == "{}"
