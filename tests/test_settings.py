"""What can be asked for is declared once: sentences, keywords, options, and the place that uses each of them."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.cli.options import with_options
from onnx_pointwise.cli.parsing import SYNTAXES
from onnx_pointwise.errors import OnnxPointwiseError, PlanError, RangeError, SettingError
from onnx_pointwise.examples import Preprocessing
from onnx_pointwise.graph import Choice
from onnx_pointwise.jobs import insertion
from onnx_pointwise.schema import Line, job, option, options, shared
from onnx_pointwise.settings import (
    BenchSettings,
    Budgets,
    CheckSettings,
    InsertSettings,
    InspectSettings,
    PixelRange,
    Settings,
    SweepSettings,
)

PACKAGE = Path(onnx_pointwise.__file__).parent
JOBS: dict[str, tuple[type, Callable[..., Any]]] = {
    "rewrite": (Settings, onnx_pointwise.rewrite),
    "sweep": (SweepSettings, onnx_pointwise.sweep),
    "insert": (InsertSettings, onnx_pointwise.insert_pointwise),
    "check": (CheckSettings, onnx_pointwise.check),
    "bench": (BenchSettings, onnx_pointwise.bench),
    "inspect": (InspectSettings, onnx_pointwise.inspect),
}
#: The files that a job's settings are read in, beside `settings.py` itself.
ROOMS = {
    "rewrite": ["jobs/pipeline.py", "jobs/loading.py", "jobs/looking.py", "jobs/deciding.py", "jobs/attempts.py",
                "jobs/checking.py", "jobs/promise.py", "jobs/searching.py", "jobs/deploying.py"],
    "sweep": ["jobs/sweeping.py"],
    "insert": ["jobs/insertion.py"],
    "check": ["check/comparison.py", "check/running.py", "check/findings.py"],
    "bench": ["jobs/benchmark.py"],
    "inspect": ["jobs/inspection.py", "jobs/loading.py"],
}  # fmt: skip


def flags(command: str) -> dict[str, Any]:
    """Every option of a command by the way it is written."""
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
    return {name: item for item in parameters for name in item.opts if name.startswith("--")}


def written(item: Any) -> str:
    dashed = item.name.replace("_", "-")
    return item.line.name or (f"--no-{dashed}" if item.default is True else f"--{dashed}")


def read_in(path: Path) -> set[str]:
    """The names that a file reads of what it calls ``settings``, and within settings of ``self``."""
    owners = {"settings", "self"} if path.name == "settings.py" else {"settings"}
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners
    }


@pytest.mark.parametrize("name", JOBS)
def test_every_field_has_a_sentence_and_a_topic(name: str) -> None:
    settings, _ = JOBS[name]
    listed = options(settings)
    assert {item.name for item in listed} == {item.name for item in fields(settings)}
    for item in listed:
        assert item.sentence.endswith(".") and item.sentence.count(". ") == 0, item
        assert item.topic, item


@pytest.mark.parametrize("name", JOBS)
def test_every_field_is_an_option_or_for_the_api_alone(name: str) -> None:
    settings, _ = JOBS[name]
    offered = flags(name)
    for item in options(settings):
        if item.line is None:
            assert f"--{item.name.replace('_', '-')}" not in offered or item.name == "threads"
        elif item.line.parts is not None:
            assert {written(part) for part in options(item.line.parts)} <= set(offered)
        else:
            assert item.line.syntax in {"", *SYNTAXES}
            assert offered[written(item)].help
            assert offered[written(item)].required == (item.default is MISSING)


@pytest.mark.parametrize("name", JOBS)
def test_every_field_is_a_keyword_that_help_tells_of(name: str) -> None:
    settings, function = JOBS[name]
    parameters = inspect.signature(function).parameters
    for item in options(settings):
        expected = inspect.Parameter.empty if item.default is MISSING else item.default
        assert parameters[item.name].default == expected
        assert f"    {item.name}: {item.sentence[:30].rstrip('.')}" in (function.__doc__ or "")


@pytest.mark.parametrize("name", JOBS)
def test_every_field_is_used(name: str) -> None:
    """By its own job; what `insert_pointwise` and `sweep` do not use themselves they hand to what `rewrite` does."""
    settings, _ = JOBS[name]
    used = {attribute for room in [*ROOMS[name], "settings.py"] for attribute in read_in(PACKAGE / room)}
    if name in ("insert", "sweep"):
        used |= {item.name for item in fields(Settings)}
    assert {item.name for item in fields(settings)} <= used


def test_what_insert_shares_with_rewrite_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []
    monkeypatch.setattr(insertion, "rewrite", lambda model, settings: asked.append(settings))
    monkeypatch.setattr(insertion, "load", lambda model: model)
    monkeypatch.setattr(insertion, "find_sites", lambda model: [])
    common = {item.name for item in fields(InsertSettings)} & {item.name for item in fields(Settings)}
    plain = InsertSettings("conv2", 8)
    for name in sorted(common):
        another = SAID[name][1] if name in SAID else UNSAID[name]
        marked = replace(plain, **{name: another})
        onnx_pointwise.insert_pointwise("model.onnx", marked)
        assert getattr(asked[-1], name) is another
    assert len(common) > 15


#: One value a command line can say for each option of `rewrite`, and what it means.
SAID: dict[str, tuple[list[str], Any]] = {
    "target_macs": (["--target-macs", "0.5"], 0.5),
    "target_params": (["--target-params", "0.5"], 0.5),
    "target_latency": (["--target-latency", "0.5"], 0.5),
    "ratio": (["--ratio", "0.5"], 0.5),
    "energy": (["--energy", "0.5"], 0.5),
    "ranks": (["--rank", "a=4", "--rank", "b=expand:3"], {"a": 4, "b": Choice("expand", 3)}),
    "plan": (["--plan", "plan.json"], Path("plan.json")),
    "calibration": (["--calibration", "none"], "none"),
    "calibration_limit": (["--calibration-limit", "7"], 7),
    "preprocessing": (
        ["--preset", "raw", "--mean", "1,2,3", "--channel-order", "bgr"],
        Preprocessing(1.0, (1.0, 2.0, 3.0), (1.0,), "bgr"),
    ),
    "layout": (["--layout", "nhwc"], "nhwc"),
    "method": (["--method", "svd"], "svd"),
    "refit": (["--no-refit"], False),
    "forms": (["--form", "expand", "--form", "reduce"], ("reduce", "expand")),
    "nodes_to_exclude": (["--exclude", "a", "--exclude", "b"], ("a", "b")),
    "repair_seconds": (["--repair-seconds", "3"], 3.0),
    "min_channels": (["--min-channels", "9"], 9),
    "provider": (["--provider", "none"], "none"),
    "threads": (["--threads", "3"], 3),
    "deploy": (["--deploy", "int8"], "int8"),
    "quantize_options": (["--quantize-option", "reduce_range=true"], {"reduce_range": "true"}),
    "cache": (["--no-cache"], False),
    "jobs": (["--jobs", "3"], 3),
    "memory": (["--memory", "500M"], 500 * 2**20),
    "check": (["--no-check"], False),
    "max_drift": (["--max-drift", "y:0.5"], {"y": 0.5}),
    "heads": (["--head", "scores:0", "--head", "boxes:0.5", "--head", "a"], {"scores:0": 1.0, "boxes": 0.5, "a": 1.0}),
    "ignore_outputs": (["--ignore-output", "a", "--ignore-output", "b"], ("a", "b")),
    "limits": (["--limit", "presence:0.9,0.8,0.7"], {"presence": (0.9, 0.8, 0.7)}),
    "require": (["--require", "close"], "close"),
    "latency": (["--no-latency"], False),
    "max_loss": (["--max-loss", "0.5"], 0.5),
    "evaluate": (["--evaluate", "math:sqrt"], __import__("math").sqrt),
    "input_shapes": (["--input-shape", "x:1,2"], {"x": (1, 2)}),
    "inline_functions": (["--inline-functions"], True),
    "freeze_initializers": (["--freeze-initializers"], True),
    "seed": (["--seed", "5"], 5),
}
#: The same for what no command line says, or says by a file.
UNSAID: dict[str, Any] = {"inputs": {"x": np.zeros(3)}, "progress": lambda stage, what: None}


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        (Settings, {"target_macs": "0.5"}, "target_macs cannot be '0.5', it takes a number or None: Share of the"),
        (Settings, {"target_macs": True}, "target_macs cannot be True"),
        (Settings, {"seed": 0.5}, "seed cannot be 0.5, it takes a whole number"),
        (Settings, {"check": "no"}, "check cannot be 'no', it takes True or False"),
        (Settings, {"nodes_to_exclude": "conv1"}, "nodes_to_exclude cannot be 'conv1', it takes a list or tuple"),
        (Settings, {"ranks": ["conv1"]}, "ranks cannot be .'conv1'."),
        (Settings, {"ranks": {"conv1": "4"}}, "ranks cannot be {'conv1': '4'}"),
        (Settings, {"input_shapes": {"x": "1,3"}}, "input_shapes cannot be {'x': '1,3'}"),
        (Settings, {"plan": 3}, "plan cannot be 3"),
        (Settings, {"evaluate": "module:function"}, "evaluate cannot be 'module:function'"),
        (Settings, {"limits": {"presence": 0.9}}, "limits cannot be"),
        (InsertSettings, {"node": "a", "feature_maps": "8"}, "feature_maps cannot be '8', it takes a whole number"),
        (CheckSettings, {"providers": "cpu"}, "providers cannot be 'cpu', it takes a list or tuple"),
        (BenchSettings, {"runs": 1e3}, "runs cannot be 1000.0"),
        (InspectSettings, {"threads": "2"}, "threads cannot be '2', it takes a whole number or None"),
    ],
)
def test_values_of_another_kind_are_refused(settings: type, given: dict[str, Any], words: str) -> None:
    for error in (SettingError, OnnxPointwiseError, TypeError):
        with pytest.raises(error, match=f"^{words}"):
            settings(**given)


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        (Settings, {"seed": -1}, "seed cannot be -1, 0 is the least: Seed of everything"),
        (CheckSettings, {"seed": np.int64(-1)}, "seed cannot be .*-1.*, 0 is the least"),
        (Settings, {"jobs": 0}, "jobs cannot be 0, 1 is the least: Processors to compute"),
        (SweepSettings, {"memory": -5}, r"memory cannot be -5, 1048576 is the least: .* \(bytes\)"),
        (Settings, {"repair_seconds": float("nan")}, "repair_seconds cannot be nan, 0.0 is the least"),
        (BenchSettings, {"thread_counts": (None, 0)}, r"thread_counts cannot be \(None, 0\), 1 is the least"),
        (BenchSettings, {"batch_sizes": np.array([1, 0])}, r"batch_sizes cannot be array\(.*, 1 is the least"),
        (CheckSettings, {"batch_sizes": [0]}, r"batch_sizes cannot be \[0\], 1 is the least"),
    ],
)
def test_numbers_below_the_smallest_are_refused(settings: type, given: dict[str, Any], words: str) -> None:
    for error in (RangeError, OnnxPointwiseError, ValueError):
        with pytest.raises(error, match=f"^{words}"):
            settings(**given)


@pytest.mark.parametrize("line", [("--seed", "-1"), ("--jobs", "0"), ("--memory", "-5"), ("--calibration-limit", "0")])
def test_the_command_line_refuses_them_with_its_own_exit_code(line: tuple[str, str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["rewrite", "in.onnx", "out.onnx", "--target-macs", "0.5", *line])
    assert result.exit_code == 2 and line[0] in result.output
    config = tmp_path / "job.json"
    name = line[0][2:].replace("-", "_")
    config.write_text(json.dumps({name: int(line[1]), "target_macs": 0.5}))
    result = CliRunner().invoke(app, ["rewrite", "in.onnx", "out.onnx", "--config", str(config)])
    assert result.exit_code == 2
    assert re.search(rf"'{name}' does not take '{line[1]}'|{line[0]} {line[1]}", result.output)


def test_the_smallest_itself_is_taken() -> None:
    made = Settings(seed=0, jobs=1, memory=2**20, repair_seconds=0.0)
    assert (made.seed, made.jobs, made.memory) == (0, 1, 2**20)
    assert BenchSettings(thread_counts=(1, None)).thread_counts == (1, None)


def test_numbers_of_other_libraries_are_numbers() -> None:
    made = Settings(target_macs=np.float32(0.5), seed=np.int64(3), check=np.True_, ranks={"a": np.int32(4)})  # type: ignore[arg-type]
    assert made.target_macs == 0.5 and made.seed == 3
    assert CheckSettings(batch_sizes=np.array([1, 2])).max_drift is None  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [settings for settings, _ in JOBS.values()])
def test_names_that_are_not_known_are_refused_with_the_nearest(settings: type) -> None:
    with pytest.raises(TypeError, match=rf"{settings.__name__}\(\) got an unexpected .* did you mean '\w+'\?"):
        settings(**{f"{fields(settings)[-1].name}s": 1})


def settings_of(cls: type, *arguments: str) -> Any:
    """What a command that takes a settings class makes of a command line."""
    made = []
    command = typer.Typer()
    command.command()(with_options(cls)(lambda settings: made.append(settings)))
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return made[0]


@pytest.mark.parametrize("name", SAID)
def test_the_command_line_says_the_same_as_keywords(name: str) -> None:
    arguments, value = SAID[name]
    assert settings_of(Settings, *arguments) == Settings(**{name: value})


def test_the_list_above_leaves_nothing_out() -> None:
    assert {item.name for item in options(Settings) if item.line is not None} - {"inputs"} == set(SAID)


def test_a_command_line_that_says_nothing_leaves_the_defaults() -> None:
    for settings in (Settings, SweepSettings, CheckSettings, BenchSettings, InspectSettings):
        assert settings_of(settings) == settings()
    assert settings_of(InsertSettings, "--node", "a", "--feature-maps", "3") == InsertSettings("a", 3)


# --- one more option is one more field --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Extra:
    TITLE: ClassVar[str] = "Extra"

    brightness: float = option(0.5, "How bright it shall be.", unit="lumen", least=0.0)
    glare: bool = option(True, "Let it glare.", line=Line(without="Do not let it glare."))
    names: tuple[str, ...] = option((), "Names of it.", line=Line("--name", syntax="forms"))
    hidden: int = option(1, "Not for the command line.", line=None)


@dataclass(frozen=True, kw_only=True)
class More(Extra, Budgets):
    """A budget and more."""


@job(More)
def shine(model: str, settings: More) -> tuple[str, More]:
    """Shine.

    Args:
        model: What shines.
        settings: How.

    Returns:
        Both.
    """
    return model, settings


def test_a_new_field_is_a_keyword_by_declaration_alone() -> None:
    assert shine("a", brightness=0.7, target_macs=0.5) == ("a", More(brightness=0.7, target_macs=0.5))
    assert shine("a", More(glare=False)) == shine("a", glare=False) == shine(model="a", settings=More(glare=False))
    assert shine("a", settings=None, glare=False) == shine("a", glare=False)
    assert inspect.signature(shine).parameters["brightness"].default == 0.5
    assert "brightness: How bright it shall be (lumen)." in (inspect.getdoc(shine) or "")


def test_a_new_field_is_an_option_by_declaration_alone() -> None:
    made = settings_of(More, "--brightness", "0.7", "--no-glare", "--name", "reduce", "--target-macs", "0.5")
    assert made == More(brightness=0.7, glare=False, names=("reduce",), target_macs=0.5)
    command = typer.Typer()
    command.command()(with_options(More)(lambda settings: None))
    text = CliRunner().invoke(command, ["--help"], env={"COLUMNS": "200"}).output
    assert "─ Extra ─" in text and "How bright it shall be (lumen)." in text and "Do not let it glare." in text
    assert "hidden" not in text
    assert CliRunner().invoke(command, ["--brightness", "-1"]).exit_code == 2


def test_what_two_classes_share() -> None:
    assert shared(More(target_macs=0.5), Extra) == {"brightness": 0.5, "glare": True, "names": (), "hidden": 1}


# --- what is refused --------------------------------------------------------------------------------------------------


def test_unknown_keywords_are_named_with_the_nearest_known_one() -> None:
    with pytest.raises(TypeError, match="'target_mac'; did you mean 'target_macs'"):
        onnx_pointwise.rewrite("model.onnx", target_mac=0.5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"'colour'$"):
        onnx_pointwise.check("a.onnx", "b.onnx", colour=1)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: shine("a", More(), brightness=0.1), "not both: leave out brightness"),
        (lambda: shine("a", Extra()), "takes a More or keywords, not a Extra"),
        (lambda: shine("a", settings=Extra()), "takes a More or keywords, not a Extra"),
        (lambda: shine("a", 3), "takes a More or keywords, not a int"),
        (lambda: shine(brightness=0.1), "missing a required argument: 'model'"),
        (lambda: shine("a", More(), "b"), "positional argument"),
        (lambda: onnx_pointwise.insert_pointwise("a", "conv"), "feature_maps"),
    ],
)
def test_calls_that_make_no_sense(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"check": False}, "takes the check"),
        ({"plan": "a.json", "ratio": 0.5}, "replays as it is"),
        ({"max_loss": 0.1, "target_macs": 0.5}, "needs a score"),
        ({"max_drift": 0.1, "check": False}, "takes the check"),
    ],
)
def test_contradictions_are_refused_before_any_work(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        onnx_pointwise.rewrite("there is no such file.onnx", Settings(**asked))


def test_a_pixel_range_that_says_nothing_is_none() -> None:
    assert PixelRange().value() is None
    assert PixelRange(preset="raw").value() == "raw"


@pytest.mark.parametrize("asked", [{"max_drift": 0.1}, {"require": "same"}, {"inputs": {"x": np.zeros(1)}}])
def test_what_is_for_the_check_needs_the_check(asked: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="are for the check; leave it on"):
        Settings(target_macs=0.5, check=False, **asked).require_consistent()
