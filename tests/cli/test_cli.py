"""The command line as a user meets it: in its own process, exit codes, sentences, files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from onnx_pointwise.cli import parsing
from onnx_pointwise.cli.app import app
from onnx_pointwise.cli.output import Output
from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph.plan import Plan
from tests.check import networks
from tests.commands import invoke
from tests.staircase import install

DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits.onnx"


class Run:
    """What a command left behind."""

    def __init__(self, returncode: int, stdout: str, stderr: str) -> None:
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


def run(*arguments: str | Path, columns: int = 80) -> Run:
    """Run a command in this process, on kernels alone and planned by arithmetic unless it says otherwise.

    Anything else would take minutes, and depend on the machine.
    """
    line = list(map(str, arguments))
    if line[0] in ("rewrite", "insert") and "--calibration" not in line:
        line += ["--calibration", "none"]
    if line[0] == "rewrite" and "--provider" not in line:
        line += ["--provider", "none"]
    result = invoke(app, *line, columns=columns)
    return Run(result.exit_code, result.stdout, result.stderr)


def refused(result: Run, *words: str) -> None:
    """Exit code 2, one sentence that holds the words, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    sentences = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, result.stderr
    for word in words:
        assert word in sentences[0]


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rewritten")
    np.savez(folder / "images.npz", image=np.load(DIGITS.with_suffix(".npz"))["x"][:48])
    result = run(
        "rewrite", DIGITS, folder / "out.onnx", "--target-macs", "0.6", "--no-latency", "--json", folder / "out.json",
        "--save-plan", folder / "plan.json", "--inputs", folder / "images.npz",
    )  # fmt: skip
    return {"folder": folder, "result": result, "document": json.loads((folder / "out.json").read_text())}


def test_rewrite_writes_a_cheaper_model_with_the_same_interface(rewritten: dict[str, Any]) -> None:
    assert rewritten["result"].returncode == 0, rewritten["result"].stderr
    before, after = onnx.load(DIGITS), onnx.load(rewritten["folder"] / "out.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    assert (before.ir_version, before.opset_import) == (after.ir_version, after.opset_import)
    session = ort.InferenceSession(str(rewritten["folder"] / "out.onnx"), providers=["CPUExecutionProvider"])
    (feed,) = session.get_inputs()
    (output,) = session.run(None, {feed.name: np.zeros((3, 16, 16, 1), np.float32)})
    assert output.shape == (3, 10)


def test_rewrite_json_holds_what_it_promises(rewritten: dict[str, Any]) -> None:
    document = rewritten["document"]
    for side, path in (("before", DIGITS), ("after", rewritten["folder"] / "out.onnx")):
        assert {"macs", "params", "bytes"} <= set(document[side])
        assert document[side]["bytes"] == path.stat().st_size
        assert document[side]["params"] == sum(
            int(np.prod(item.dims)) for item in onnx.load(path).graph.initializer if item.data_type == 1
        )
    assert document["after"]["macs"] <= 0.6 * document["before"]["macs"]
    saved = 0
    for site in document["sites"]:
        assert {"name", "form", "rank", "macs_before", "macs_after", "refusal"} <= set(site)
        assert (site["form"] is None) == (site["rank"] is None) == (site["refusal"] is not None)
        saved += site["macs_before"] - site["macs_after"]
    assert saved == document["before"]["macs"] - document["after"]["macs"]
    assert document["check"]["shapes_equal"] is True
    assert set(document["check"]["drift"]) == {output.name for output in onnx.load(DIGITS).graph.output}
    assert document["seconds"]["total"] > 0


def test_a_saved_plan_replays_to_the_same_bytes(rewritten: dict[str, Any], tmp_path: Path) -> None:
    plan = rewritten["folder"] / "plan.json"
    assert Plan.from_json(plan.read_text()).choices
    result = run("rewrite", DIGITS, tmp_path / "again.onnx", "--plan", plan, "--no-check")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again.onnx").read_bytes() == (rewritten["folder"] / "out.onnx").read_bytes()


def test_check_tells_the_same_from_a_drifting_model(rewritten: dict[str, Any], tmp_path: Path) -> None:
    same = run("check", DIGITS, DIGITS, "--max-drift", "0", "--no-latency", "--json", "-")
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["passed"] is True
    other = run(
        "check", DIGITS, rewritten["folder"] / "out.onnx", "--max-drift", "1e-9", "--no-latency",
        "--json", tmp_path / "check.json",
    )  # fmt: skip
    assert other.returncode == 1
    assert json.loads((tmp_path / "check.json").read_text())["findings"][0]["code"] == "drift"


def test_a_failed_check_writes_nothing_unless_forced(tmp_path: Path) -> None:
    arguments = (
        "rewrite",
        DIGITS,
        tmp_path / "out.onnx",
        "--target-macs",
        "0.5",
        "--max-drift",
        "1e-9",
        "--no-latency",
    )
    assert run(*arguments).returncode == 1
    assert list(tmp_path.iterdir()) == []
    assert run(*arguments, "--force").returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def detector_files(folder: Path, share: float) -> tuple[Path, Path, Path]:
    """A detector, the same with kernels that are off by a share, and inputs."""
    onnx.save(networks.detector(), folder / "before.onnx")
    onnx.save(networks.moved(networks.detector(), share), folder / "after.onnx")
    np.savez(folder / "inputs.npz", **networks.images(16))
    return folder / "before.onnx", folder / "after.onnx", folder / "inputs.npz"


def test_a_changed_pair_passes_unless_more_is_required(tmp_path: Path) -> None:
    before, after, inputs = detector_files(tmp_path, 0.2)
    pair = ("check", before, after, "--inputs", inputs, "--no-latency")
    plain = run(*pair)
    assert plain.returncode == 0 and plain.stdout.startswith("The answers are changed: ")
    assert "Check passed" not in plain.stdout
    for required, code in (("changed", 0), ("close", 1), ("same", 1)):
        result = run(*pair, "--require", required, "--json", tmp_path / "check.json")
        assert result.returncode == code
        document = json.loads((tmp_path / "check.json").read_text())
        assert document["verdict"] == "changed" and document["passed"] == (code == 0)
        assert [finding["code"] for finding in document["findings"]] == ["not_alike"] * code
    loose = run(*pair, "--require", "same", "--limit", "presence:0.5,0.2,0.1", "--limit", "numbers:1,2,3")
    assert loose.returncode == 0 and loose.stdout.startswith("The answers are the same: ")
    refused(run(*pair, "--limit", "presence:0.5"), "presence", "three numbers")
    refused(run(*pair, "--limit", "presence"), "--limit presence", "presence:0.99,0.95,0.8")
    refused(run(*pair, "--head", "nose:2"), "nose")
    refused(run(*pair, "--ignore-output", "nose"), "nose")


def test_a_broken_pair_fails_and_sites_say_where(tmp_path: Path) -> None:
    before, after, inputs = detector_files(tmp_path, 1.0)
    result = run("check", before, after, "--inputs", inputs, "--no-latency", "--sites", "--json", "-")
    assert result.returncode == 1 and result.stderr.startswith("The network is broken: ")
    document = json.loads(result.stdout)
    assert document["verdict"] == "broken" and [finding["code"] for finding in document["findings"]] == ["broken"]
    assert [site["name"] for site in document["sites"]] == ["first", "second"]
    assert "failed: The network is broken on cpu: " in result.stderr.replace("\n", " ")


def test_a_ruined_rewrite_is_not_handed_over(tmp_path: Path) -> None:
    before, _, inputs = detector_files(tmp_path, 0.0)
    ruin = (
        "insert", before, tmp_path / "out.onnx", "--node", "second", "--feature-maps", "1", "--inputs", inputs,
        "--no-latency", "--json", tmp_path / "out.json",
    )  # fmt: skip
    result = run(*ruin)
    assert result.returncode == 1 and result.stdout.startswith("The network is broken: ")
    assert not (tmp_path / "out.onnx").exists()
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["verdict"] == "broken" and [site["name"] for site in document["check"]["sites"]] == ["second"]
    forced = run(*ruin, "--force")
    assert forced.returncode == 1 and (tmp_path / "out.onnx").exists()


def test_json_knows_no_infinity(tmp_path: Path) -> None:
    Output(str(tmp_path / "out.json")).save({"a": [float("inf"), {"b": (float("nan"), 1.5)}], "c": np.float64("-inf")})
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": [None, {"b": [None, 1.5]}], "c": None}


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(columns: int, rewritten: dict[str, Any]) -> None:
    for arguments in (("inspect", DIGITS), ("check", DIGITS, DIGITS, "--no-latency")):
        result = run(*arguments, columns=columns)
        assert result.returncode == 0, result.stderr
        assert max(len(line) for line in result.stdout.splitlines()) <= columns
    if columns == 80:
        assert "Planned by arithmetic: the provider none measures nothing." in rewritten["result"].stdout
        assert max(len(line) for line in rewritten["result"].stdout.splitlines()) <= columns


def test_inspect_json_tells_ranks_and_refusals() -> None:
    result = run("inspect", DIGITS, "--json", "-")
    sites = {site["name"]: site for site in json.loads(result.stdout)["sites"]}
    assert sites["conv1"]["refusal"]["code"] == "few_channels"
    ranks = sites["conv2"]["ranks"]
    assert 1 <= ranks["0.90"] <= ranks["0.95"] <= ranks["0.99"] <= sites["conv2"]["in_channels"]
    assert sites["conv2"]["macs"] == 16 * 16 * 64 * 32 * 25
    assert sites["conv2"]["output_shape"] == [1, 64, 16, 16]


@pytest.mark.parametrize("maps", [40, 32, 8, 1])
def test_insert_puts_a_pointwise_in_front(maps: int, tmp_path: Path) -> None:
    tolerance = ("--max-drift", "1e-5") if maps >= 32 else ()
    site = ("--node", "conv2", "--feature-maps", str(maps))
    line = ("insert", DIGITS, tmp_path / "out.onnx", *site, "--no-latency", *tolerance)
    result = run(*line)
    if maps == 1:  # one of 32 feature maps, from the kernel alone: it is said, and asked for again
        assert result.returncode == 1 and "broken" in result.stdout.splitlines()[0]
        assert not (tmp_path / "out.onnx").exists()
        result = run(*line, "--force")
    else:  # with a quarter of them no digit is read otherwise, and drawn images say so
        assert result.returncode == 0, result.stdout + result.stderr
    graph = onnx.load(tmp_path / "out.onnx").graph
    (inserted,) = [node for node in graph.node if node.name == "conv2_reduce"]
    (weight,) = [item for item in graph.initializer if item.name == inserted.input[1]]
    assert list(weight.dims) == [maps, 32, 1, 1]


def test_ranks_and_forms_by_hand(tmp_path: Path) -> None:
    result = run(
        "rewrite", DIGITS, tmp_path / "out.onnx", "--rank", "conv2=12", "--rank", "conv3=expand:20",
        "--rank", "conv4=30,24", "--no-check", "--json", "-",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    sites = {site["name"]: (site["form"], site["rank"]) for site in document["sites"]}
    assert document["unmeasured"] is None, "there was nothing to plan"
    assert sites["conv2"] == ("reduce", 12)
    assert sites["conv3"] == ("expand", 20)
    assert sites["conv4"] == ("reduce_expand", [30, 24])


def bad_files(folder: Path) -> dict[str, Path]:
    (folder / "text.onnx").write_text("this is not a model\n")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "random.onnx").write_bytes(np.random.default_rng(0).bytes(4096))
    (folder / "truncated.onnx").write_bytes(DIGITS.read_bytes()[:-1000])
    return {
        "no such file": folder / "missing.onnx",
        "directory": folder,
        "not an ONNX model": folder / "text.onnx",
        "empty": folder / "empty.onnx",
        "ONNX": folder / "random.onnx",
        "truncated": folder / "truncated.onnx",
    }


@pytest.mark.parametrize("case", ["no such file", "directory", "not an ONNX model", "empty", "ONNX", "truncated"])
@pytest.mark.parametrize("command", ["inspect", "rewrite", "check"])
def test_bad_files_are_refused(command: str, case: str, tmp_path: Path) -> None:
    path = bad_files(tmp_path)[case]
    before = sorted(item.name for item in tmp_path.iterdir())
    arguments = {
        "inspect": ("inspect", path),
        "rewrite": ("rewrite", path, tmp_path / "out.onnx", "--target-macs", "0.5"),
        "check": ("check", DIGITS, path),
    }[command]
    refused(run(*arguments), case, path.name)
    assert sorted(item.name for item in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target-macs", "0"], ["target_macs", "above 0"]),
        (["--target-macs", "1.5"], ["target_macs", "at most 1"]),
        (["--target-macs", "0.0001"], ["cannot be reached"]),
        (["--rank", "nope=8"], ["no convolution 'nope'", "conv1"]),
        (["--rank", "conv2=0"], ["conv2", "at least 1"]),
        (["--rank", "conv2=many"], ["--rank", "NODE=32"]),
        (["--rank", "conv2=middle:3"], ["unknown form 'middle'"]),
        (["--target-macs", "0.5", "--ratio", "0.5"], ["one budget"]),
        (["--calibration", "none"], ["Without a target", "--calibration", "--target-latency"]),
        (["--max-loss", "0.1"], ["max_loss", "evaluate"]),
        (["--target-macs", "0.5", "--evaluate", "nowhere:nothing"], ["nowhere:nothing"]),
        (["--target-macs", "0.5", "--calibration", "missing.npz"], ["missing.npz", "no such file"]),
        (["--target-macs", "0.5", "--calibration", str(DIGITS.with_suffix(".npz"))], ["calibration, x, y", "image"]),
        (["--target-macs", "0.5", "--calibration", f"{DIGITS.with_suffix('.npz')}:y"], ["image", "float32"]),
        (["--target-macs", "0.5", "--calibration", "synthetic", "--preset", "nope"], ["nope", "imagenet"]),
        (["--target-macs", "0.5", "--calibration", "synthetic", "--mean", "a,b"], ["--mean a,b"]),
        (["--target-macs", "0.5", "--memory", "1"], ["--memory 1"]),
        (["--target-macs", "0.5", "--form", "sideways"], ["--form sideways"]),
        (["--target-macs", "0.5", "--exclude", "nope"], ["no convolution 'nope'"]),
        (["--target-macs", "0.5", "--input-shape", "image"], ["--input-shape"]),
        (["--target-macs", "0.5", "--input-shape", "nope:1,2"], ["no input 'nope'", "image"]),
        (["--target-macs", "0.5", "--input-shape", "image:1,2,3"], ["image"]),
        (["--target-macs", "0.5", "--max-drift", "nope:0.1"], ["nope"]),
        (["--target-macs", "0.5", "--provider", "abacus"], ["abacus"]),
        (["--target-macs", "0.5", "--inputs", "missing.npz"], ["missing.npz"]),
        (["--plan", "missing.json"], ["missing.json"]),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    refused(run("rewrite", DIGITS, tmp_path / "out.onnx", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes(DIGITS.read_bytes())
    (tmp_path / "link.onnx").symlink_to(copy)
    for target in (copy, tmp_path / "link.onnx"):
        refused(run("rewrite", copy, target, "--target-macs", "0.5"), "is the input itself")
    assert copy.read_bytes() == DIGITS.read_bytes()


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target, word in (
        (tmp_path / "no" / "out.onnx", "does not exist"),
        (tmp_path, "is a directory"),
        (tmp_path / "file" / "out.onnx", "does not exist"),
    ):
        refused(run("rewrite", DIGITS, target, "--target-macs", "0.5"), word)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unknown_commands_and_options_exit_with_two() -> None:
    for arguments in (("fly",), ("inspect",), ("inspect", DIGITS, "--nope")):
        result = run(*arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


def test_it_runs_as_a_module_with_a_latency_verdict(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "onnx_pointwise", "check", DIGITS, DIGITS, "--json", tmp_path / "check.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    latency = json.loads((tmp_path / "check.json").read_text())["latency"]
    assert latency["verdict"] in ("faster", "slower", "no change", "too noisy to tell")
    assert latency["noise"] >= 0


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    arguments = ["rewrite", str(DIGITS), str(tmp_path / "out.onnx"), "--ratio", "0.6", "--no-check"]
    result = CliRunner().invoke(app, [*arguments, "--calibration", "none", "--provider", "none"])
    assert result.exit_code != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_providers_lists_the_cpu_and_reasons_for_the_others() -> None:
    result = run("providers", "--json", "-")
    infos = {info["name"]: info for info in json.loads(result.stdout)["providers"]}
    assert infos["cpu"]["available"] is True
    assert all(info["available"] or info["reason"] for info in infos.values())


def test_bench_times_two_models_over_threads(tmp_path: Path) -> None:
    arguments = ("bench", DIGITS, DIGITS, "--threads", "1", "--batch", "1", "--batch", "2", "--nodes")
    result = run(*arguments, "--max-seconds", "0.2", "--json", tmp_path / "bench.json")
    assert result.returncode == 0, result.stderr
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["batch"], row["threads"]) for row in document["rows"]] == [(1, 1), (2, 1)]
    assert {node["site"] for node in document["nodes"]} >= {"conv1", "conv2", "conv3", "conv4", "conv5"}


def test_a_calibrated_rewrite_says_what_it_saw_and_repeats_to_the_byte(small_folder: Path, tmp_path: Path) -> None:
    model = small_folder / "small.onnx"
    examples = ("--calibration", f"{small_folder / 'small.npz'}:examples", "--calibration-limit", "48")
    documents = []
    for name in ("one", "two"):
        result = run(
            "rewrite", model, tmp_path / f"{name}.onnx", "--target-macs", "0.5", *examples, "--no-latency",
            "--json", "-", "--save-plan", tmp_path / f"{name}.json",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        documents.append(json.loads(result.stdout))
    first = documents[0]
    assert first["calibration"]["count"] == 48
    assert first["calibration"]["held_back_drift"] <= first["calibration"]["held_back_drift_unrefitted"]
    assert 0.2 < first["calibration"]["predicted_drift"] / first["calibration"]["held_back_drift_unrefitted"] < 5.0
    assert f"({first['calibration']['predicted_drift']:.3g} predicted)" in result.stderr
    assert first["after"]["macs"] <= 0.5 * first["before"]["macs"]
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    replay = run(
        "rewrite", model, tmp_path / "three.onnx", "--plan", tmp_path / "one.json", *examples, "--no-latency",
    )  # fmt: skip
    assert replay.returncode == 0, replay.stderr
    assert (tmp_path / "three.onnx").read_bytes() == (tmp_path / "one.onnx").read_bytes()


def test_without_options_answers_stay_the_same(small_folder: Path, tmp_path: Path) -> None:
    examples = ("--calibration", f"{small_folder / 'small.npz'}:examples", "--calibration-limit", "48")
    model, out = small_folder / "small.onnx", tmp_path / "out.onnx"
    plan = ("--save-plan", tmp_path / "plan.json")
    result = run("rewrite", model, out, *examples, "--no-latency", *plan, "--json", tmp_path / "out.json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("The answers are the same")
    assert "Searched for the cheapest network whose answers stay the same" in " ".join(result.stdout.split())
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["verdict"] == "same" and document["after"]["macs"] < 0.7 * document["before"]["macs"]
    assert document["plan"]["budget"] == document["search"]["limits"]
    replay = run("rewrite", model, tmp_path / "two.onnx", "--plan", tmp_path / "plan.json", *examples, "--no-latency")
    assert replay.returncode == 0, replay.stdout + replay.stderr
    assert (tmp_path / "two.onnx").read_bytes() == out.read_bytes()


def test_a_network_that_may_not_move_is_written_as_it_was(small_folder: Path, tmp_path: Path) -> None:
    examples = ("--calibration", f"{small_folder / 'small.npz'}:examples", "--calibration-limit", "24")
    result = run(
        "rewrite", small_folder / "small.onnx", tmp_path / "out.onnx", *examples, "--no-latency",
        "--limit", "numbers:0.0001,0.1,0.5",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Nothing was rewritten; the model is as it was. Even the smallest" in " ".join(result.stdout.split())
    assert (tmp_path / "out.onnx").exists()


def test_useless_examples_are_said_to_be_useless(small_folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "black.npz", image=np.zeros((16, 3, 16, 16), np.float32))
    line = ("rewrite", small_folder / "small.onnx", tmp_path / "out.onnx", "--calibration", tmp_path / "black.npz")
    refused(run(*line, "--no-latency"), "is blank", "--calibration", "--target-latency")
    result = run(*line, "--no-latency", "--target-macs", "0.6")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "is blank, which tells nothing" in " ".join(result.stdout.split())


def test_inspect_shows_the_treads_of_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    result = run("inspect", DIGITS, "--treads", "cpu", "--threads", "1", "--json", "-")
    assert result.returncode == 0, result.stderr
    sites = {site["name"]: site["latency"] for site in json.loads(result.stdout)["sites"]}
    assert sites["conv1"] is None
    assert sites["conv4"]["dense"] > 0
    assert sites["conv4"]["treads"]
    refused(run("inspect", DIGITS, "--treads", "abacus"), "abacus")


def test_a_plan_by_latency_is_shown_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, 8)
    for columns in (80, 120):
        result = run(
            "rewrite", DIGITS, tmp_path / f"{columns}.onnx", "--target-latency", "0.6", "--provider", "cpu",
            "--threads", "1", "--no-latency", "--no-cache", "--save-plan", tmp_path / "plan.json",
            "--limit", "numbers:2,3,4", columns=columns,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert max(len(line) for line in result.stdout.splitlines()) <= columns
        assert "Planned for cpu, 1 thread" in result.stdout
        assert "Time" in result.stdout
    about = json.loads((tmp_path / "plan.json").read_text())["latency"]
    assert about["measured"] == pytest.approx(0.6, rel=0.05)
    refused(run("rewrite", DIGITS, tmp_path / "n.onnx", "--target-latency", "0.6"), "measures nothing", "provider")


def test_the_cache_is_shown_and_cleared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, 8)
    monkeypatch.setenv("ONNX_POINTWISE_CACHE", str(tmp_path))
    assert json.loads(run("cache", "--json", "-").stdout)["entries"] == 0
    assert run("inspect", DIGITS, "--treads", "cpu", "--threads", "1").returncode == 0
    document = json.loads(run("cache", "--json", "-").stdout)
    assert document["entries"] > 10
    cleared = run("cache", "--clear")
    assert f"{document['entries']} measurements are forgotten" in cleared.stdout.replace("\n", " ")
    assert json.loads(run("cache", "--json", "-").stdout)["entries"] == 0


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["y"], {"y": 1.0}),
        (["y:2", "z"], {"y": 2.0, "z": 1.0}),
        (["scores:0"], {"scores:0": 1.0}),
        (["scores:0:0.5"], {"scores:0": 0.5}),
        (["y:classes"], {"y": (1.0, "classes")}),
        (["scores:0:2:presence"], {"scores:0": (2.0, "presence")}),
        (["a:b:numbers"], {"a:b": (1.0, "numbers")}),
        (["classes"], {"classes": 1.0}),
    ],
)
def test_heads_are_read_with_weight_and_kind(texts: list[str], named: dict[str, object]) -> None:
    assert parsing.heads("--head", texts) == named


def test_a_head_without_a_name_is_refused() -> None:
    with pytest.raises(PlanError, match="name a value, as VALUE, VALUE:2, VALUE:classes"):
        parsing.heads("--head", [""])


@pytest.mark.parametrize("role", ["OUT", "--json", "--save-plan"])
def test_names_longer_than_a_file_can_have_are_refused_before_any_work(
    role: str, small_folder: Path, tmp_path: Path
) -> None:
    long = tmp_path / ("z" * 300 + ".onnx")
    given = [tmp_path / "out.onnx", role, long] if role != "OUT" else [long]
    asked = ("--target-macs", "0.6", "--provider", "none", "--calibration", small_folder)
    result = invoke(app, "rewrite", small_folder / "small.onnx", *given, *asked)
    assert result.exit_code == 2
    assert "cannot be written (File name too long); name another place" in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
    if role == "OUT":
        result = invoke(app, "rewrite", long, tmp_path / "out.onnx", *asked)
        assert result.exit_code == 2
        assert "cannot be read: File name too long" in " ".join(result.output.split())


def test_a_machine_without_enough_memory_is_told_of_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise MemoryError("Unable to allocate 9.00 TiB")

    monkeypatch.setattr("onnx_pointwise.rewrite", full)
    found = run("rewrite", DIGITS, tmp_path / "out.onnx", "--target-macs", 0.5)
    assert found.returncode == 2
    said = " ".join(found.stderr.split())
    assert "The memory does not suffice (Unable to allocate 9.00 TiB); take smaller inputs (--input-shape)" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [["--pick", "knee"], ["out.onnx"]])
def test_a_sweep_writes_where_both_file_and_rule_are_named(given: list[str], tmp_path: Path) -> None:
    found = run("sweep", DIGITS, *(tmp_path / word if word == "out.onnx" else word for word in given))
    assert found.returncode == 2
    assert "To write a network, name the file OUT and what to pick it by" in " ".join(found.stderr.split())
