"""The schemas against what the commands really write: everything is in them, and nothing that is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import InputError
from onnx_pointwise.reports.schema import RESULTS, schema
from tests import small
from tests.commands import invoke
from tests.reports.pages import document
from tests.staircase import install

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")


def valid(result: str, made: Any) -> None:
    jsonschema.Draft202012Validator(schema(result)).validate(json.loads(json.dumps(made, allow_nan=False)))


@pytest.mark.parametrize("result", RESULTS)
def test_every_schema_is_one_and_complete(result: str) -> None:
    made = schema(result)
    jsonschema.Draft202012Validator.check_schema(made)
    text = json.dumps(made)
    for name in made["$defs"]:
        assert f'"#/$defs/{name}"' in text, "nothing stands in it that nothing refers to"


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get("type") == "object":
            yield value
        for item in value.values():
            yield from objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)


def test_objects_say_whether_they_hold_more() -> None:
    open_ones = [one for result in RESULTS for one in objects(schema(result)) if "additionalProperties" not in one]
    assert {one.get("description", "") for one in open_ones} == {
        "What the weights were computed from; more is told of some sources."
    }


@pytest.mark.parametrize("kind", ["rewrite", "check", "inspect", "sweep"])
def test_results_are_valid(kind: str) -> None:
    valid(kind, document(kind))


@pytest.mark.parametrize(
    "asked",
    [
        {"calibration": None, "target_macs": 0.5, "check": False},
        {"calibration": None, "ratio": 0.7},
        {"max_drift": 0.2, "max_loss": 1.0, "evaluate": lambda session: 1.0},
        {"target_macs": 0.3, "max_drift": {"scores": 1e-6}, "nodes_to_exclude": ("conv3",), "refit": False},
    ],
)
def test_rewrites_of_all_sorts_are_valid(asked: dict[str, Any]) -> None:
    usual = {"calibration": small.examples(64), "provider": "none", "latency": False}
    result = onnx_pointwise.rewrite(small.network(), **(usual | asked))
    valid("rewrite", result.to_dict())
    valid("plan", result.plan.to_dict())


def test_what_is_measured_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 4)
    asked: dict[str, Any] = {"cache": False, "latency": False, "calibration": small.examples(64)}
    valid("rewrite", onnx_pointwise.rewrite(small.network(), **asked).to_dict())
    valid("sweep", onnx_pointwise.sweep(small.network(), shares=(0.8, 0.1), **asked).to_dict())
    valid("inspect", onnx_pointwise.inspect(small.network(), treads_on="cpu", cache=False).to_dict())


def test_what_commands_write_is_valid(small_folder: Path, tmp_path: Path) -> None:
    model, told = small_folder / "small.onnx", tmp_path / "told.json"
    np.savez(tmp_path / "x.npz", image=small.examples(16))
    check = ["check", model, model, "--inputs", tmp_path / "x.npz", "--sites", "--no-latency"]
    many = ["rewrite", tmp_path / "in", tmp_path / "out", "--target-macs", "0.6", "--calibration", "none"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.onnx").write_bytes(model.read_bytes())
    (tmp_path / "in" / "bad.onnx").write_bytes(b"nothing")
    lines: dict[str, list[Any]] = {
        "inspect": ["inspect", model],
        "check": check,
        "bench": ["bench", model, model, "--max-seconds", "0.1", "--nodes"],
        "cache": ["cache"],
        "providers": ["providers"],
        "many": [*many, "--provider", "none", "--no-latency"],
    }
    for result, line in lines.items():
        told.unlink(missing_ok=True)
        assert invoke(app, *line, "--json", told).exit_code == (1 if result == "many" else 0)
        valid(result, json.loads(told.read_text()))


def test_what_is_not_in_a_schema_is_found() -> None:
    made = document("rewrite") | {"more": 1}
    with pytest.raises(jsonschema.ValidationError, match="more"):
        valid("rewrite", made)
    with pytest.raises(jsonschema.ValidationError, match="'seconds' is a required"):
        valid("rewrite", {name: value for name, value in document("rewrite").items() if name != "seconds"})


def test_the_command_prints_a_schema() -> None:
    result = invoke(app, "schema", "sweep")
    assert result.exit_code == 0 and json.loads(result.stdout) == schema("sweep")
    assert invoke(app, "schema").stdout == invoke(app, "schema", "rewrite").stdout
    assert invoke(app, "schema", "weather").exit_code == 2
    with pytest.raises(InputError, match="no schema of 'weather'; there are those of rewrite"):
        schema("weather")
