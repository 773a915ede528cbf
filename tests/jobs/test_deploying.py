"""Networks in the precision that they are deployed in: planned, timed, checked and written in it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import ModelError, PlanError
from onnx_pointwise.jobs import RewriteResult, checking, deploying
from onnx_pointwise.jobs.deploying import _best
from onnx_pointwise.jobs.versions import AS_IT_IS, Version
from onnx_pointwise.reports import terminal
from onnx_pointwise.reports.terminal.deploying import sentences
from onnx_pointwise.runtime import FloatShare, Latency, LatencyComparison
from tests import small
from tests.commands import invoke

PLAIN: dict[str, Any] = {"provider": "none", "target_macs": 0.5}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "LATENCY_SECONDS", 0.2)


def shown(result: RewriteResult) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal.rewrite(result))
    return " ".join(console.export_text().split())


def pair(ratio: float, verdict: Any) -> LatencyComparison:
    one = Latency(1e-3, 1e-3, 1e3, 10, (1e-3,))
    return LatencyComparison(
        one, one, ratio, (ratio, ratio), 0.02, verdict, 10, "cpu", None, 1, "all", "host", {"image": (1, 3, 16, 16)}
    )


def types_of(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def rewritten(**more: Any) -> RewriteResult:
    return onnx_pointwise.rewrite(small.network(), calibration=small.examples(64), **(PLAIN | more))


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_four_networks_are_compared_in_one_table(precision: Any) -> None:
    result = rewritten(deploy=precision, latency=False)
    found = result.deployed
    assert found is not None and result.passed
    assert [one.name for one in found.versions] == [
        "dense",
        f"dense {precision}",
        "rewritten",
        f"rewritten {precision}",
    ]
    dense, quantised, moved, both = found.versions
    assert dense.drift == 0.0 and dense.verdict == "same" and dense.figure is None
    assert result.check is not None and moved.verdict == result.verdict
    assert moved.drift == max(head.drift or 0.0 for head in result.check.heads)
    assert quantised.drift is not None and both.drift is not None and moved.drift is not None
    assert 0.0 < quantised.drift < 0.1 and both.drift < 2.0 * (moved.drift + quantised.drift)
    assert quantised.bytes < 0.7 * dense.bytes and both.bytes < 0.7 * moved.bytes
    assert found.best is None and found.pair is None, "nothing was timed"
    said = shown(result)
    assert all(one.name in said for one in found.versions)


def test_the_network_in_the_precision_is_the_rewritten_one(tmp_path: Path) -> None:
    result = rewritten(deploy="int8", latency=False)
    assert result.deployed is not None
    result.save(tmp_path / "out.onnx")
    result.deployed.save(tmp_path / "out.int8.onnx")
    assert "QuantizeLinear" in types_of(tmp_path / "out.int8.onnx") and "QuantizeLinear" not in types_of(
        tmp_path / "out.onnx"
    )
    names = set(result.plan.choices)
    convolutions = [node.name for node in onnx.load(tmp_path / "out.int8.onnx").graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 4 and names <= set(convolutions)
    x, _ = small.images(100, seed=4)
    before, after = small.run(tmp_path / "out.onnx", x), small.run(tmp_path / "out.int8.onnx", x)
    assert np.linalg.norm(after - before) < 0.1 * np.linalg.norm(before)


def test_networks_are_timed_and_the_best_one_is_named() -> None:
    result = rewritten(deploy="int8", threads=1)
    found = result.deployed
    assert found is not None
    assert all(one.latency is not None and one.latency > 0.0 for one in found.versions)
    assert found.best in [one.name for one in found.versions]
    assert "Best: " in shown(result)
    assert found.floats and {"QuantizeLinear", "DequantizeLinear"} <= {one.op_type for one in found.floats}
    assert 0.0 < sum(one.share for one in found.floats) <= 1.0


def test_without_a_check_the_network_is_made_all_the_same() -> None:
    found = rewritten(deploy="int8", check=False).deployed
    assert found is not None and found.versions == () and found.best is None
    assert "QuantizeLinear" in {node.op_type for node in found.model.graph}


# --- a rewritten network that is slower in the precision is not handed over -------------------------------------------


def test_what_is_slower_in_the_precision_comes_back_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "compare", lambda *_, **__: pair(1.49, "slower"))
    result = rewritten(deploy="int8")
    found = result.deployed
    assert found is not None and result.passed
    assert not result.plan.choices and result.after.macs == result.before.macs
    assert {refusal.code for refusal in result.plan.refusals.values()} >= {"network_not_faster"}
    assert found.reason == (
        "In int8 the rewritten network takes 1.49 times as long as the dense one on cpu, so the network stays as it "
        "was."
    )
    assert [one.name for one in found.versions] == ["dense", "dense int8"]
    assert [node.op_type for node in found.model.graph].count("Conv") == 4
    assert found.reason in shown(result)


@pytest.mark.parametrize("verdict", ["faster", "no change"])
def test_what_is_not_slower_stays_rewritten(verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "compare", lambda *_, **__: pair(0.99, verdict))
    result = rewritten(deploy="int8")
    assert result.plan.choices and result.deployed is not None and result.deployed.reason is None


def test_a_search_that_turns_out_slower_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "compare", lambda *_, **__: pair(1.2, "slower"))
    result = rewritten(deploy="int8", target_macs=None)
    assert result.search is not None and result.deployed is not None
    assert result.search.reason == result.deployed.reason and not result.plan.choices


# --- the best of the four ---------------------------------------------------------------------------------------------


def version(network: Any, numbers: str, latency: float | None, *, passed: bool = True) -> Version:
    return Version(network, numbers, passed, "same", None, 0.0, latency, 0.02, 100)


FOUR = (
    replace(version("dense", AS_IT_IS, 1.0), noise=None),
    version("dense", "int8", 0.4),
    version("rewritten", AS_IT_IS, 0.6),
    version("rewritten", "int8", 0.2),
)


def test_the_fastest_within_the_limits_is_best() -> None:
    assert _best(FOUR, pair(0.5, "faster")) == "rewritten int8"
    assert _best((*FOUR[:3], replace(FOUR[3], passed=False)), pair(0.5, "faster")) == "dense int8"
    only = tuple(replace(one, passed=one.numbers == AS_IT_IS) for one in FOUR)
    assert _best(only, pair(0.5, "faster")) == "rewritten"
    assert _best(tuple(replace(one, passed=one.name == "dense") for one in FOUR), None) == "dense"


def test_what_gains_nothing_beyond_the_noise_is_not_best() -> None:
    assert _best(FOUR, pair(0.99, "no change")) == "dense int8"
    slow = tuple(replace(one, latency=0.99) if one.name != "dense" else one for one in FOUR)
    assert _best(slow, None) == "dense"
    assert _best(tuple(replace(one, latency=None) for one in FOUR), None) is None


def test_what_is_no_faster_in_the_precision_is_said_with_its_figure() -> None:
    made = rewritten(deploy="float16", check=False).deployed
    assert made is not None
    for ratio, words in ((1.3, "takes 1.30 times as long in float16"), (0.995, "no faster in float16: 0.99 of the")):
        versions = (FOUR[0], version("dense", "float16", ratio))
        assert any(words in sentence for sentence in sentences(replace(made, versions=versions)))
    floats = (FloatShare("LRN", 2, 0.5), FloatShare("Cast", 3, 0.2), FloatShare("Softmax", 1, 0.001))
    said = sentences(replace(made, floats=floats))
    assert said == [
        "In float32 all the same, 50.0 % of the time of the network handed over: 2 LRN 50.0 %.",
        "Conversions between precisions take 20.0 % of it.",
    ]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_int8_takes_examples() -> None:
    with pytest.raises(PlanError, match="int8 takes the ranges of activations from example inputs"):
        onnx_pointwise.rewrite(small.network(), calibration=None, deploy="int8", **PLAIN)
    assert rewritten(deploy="float16", latency=False, calibration_limit=2).deployed is not None


def test_a_plan_that_asks_nothing_of_examples_still_has_ranges(tmp_path: Path) -> None:
    plan = rewritten(latency=False).plan
    again = rewritten(deploy="int8", latency=False, target_macs=None, plan=plan)
    assert again.deployed is not None and again.plan.choices == plan.choices


def test_settings_of_the_quantizer_are_read_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="did you mean per_channel"):
        rewritten(deploy="int8", quantize_options={"per_chanel": "true"})
    with pytest.raises(PlanError, match="Settings of the quantizer are for int8 alone"):
        rewritten(quantize_options={"per_channel": "true"})


def test_a_quantised_network_is_refused() -> None:
    made = rewritten(deploy="int8", check=False).deployed
    assert made is not None
    with pytest.raises(ModelError, match="is quantised already"):
        onnx_pointwise.rewrite(made.model, calibration=small.examples(8), deploy="int8", **PLAIN)


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def files(small_folder: Path, tmp_path: Path) -> SimpleNamespace:
    np.savez(tmp_path / "examples.npz", image=small.examples(48))
    return SimpleNamespace(
        model=str(small_folder / "small.onnx"),
        examples=str(tmp_path / "examples.npz"),
        out=tmp_path / "out.onnx",
        int8=tmp_path / "out.int8.onnx",
    )


def test_both_networks_are_written(files: SimpleNamespace, tmp_path: Path) -> None:
    line = ["rewrite", files.model, str(files.out), "--calibration", files.examples, "--provider", "none"]
    line += ["--target-macs", "0.5", "--no-latency", "--deploy", "int8", "--quantized", str(files.int8)]
    line += ["--quantize-option", "nodes_to_exclude=conv1,conv2", "--json", str(tmp_path / "out.json")]
    said = invoke(app, *line)
    assert said.exit_code == 0, said.output
    assert types_of(files.int8) >= {"QuantizeLinear"} and "QuantizeLinear" not in types_of(files.out)
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["deployed"]["settings"] == {"nodes_to_exclude": "['conv1', 'conv2']"}
    assert document["origin"]["asked"]["deploy"] == "int8"
    assert len(document["deployed"]["versions"]) == 4
    assert f"Wrote {files.out} and {files.int8} in" in " ".join(said.output.split())


def test_neither_is_written_where_the_check_fails(files: SimpleNamespace) -> None:
    line = ["rewrite", files.model, str(files.out), "--calibration", files.examples, "--provider", "none"]
    line += ["--target-macs", "0.2", "--no-latency", "--deploy", "float16", "--quantized", str(files.int8)]
    said = invoke(app, *line, "--max-drift", "1e-6")
    assert said.exit_code == 1
    assert not files.int8.exists() and not files.out.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--quantized", "q.onnx"], "--quantized writes the network in another precision; name it"),
        (["--deploy", "int8", "--quantize-option", "per_channel"], "write it as KEY=VALUE"),
        (["--deploy", "int8", "--quantized", "out.onnx"], "would be written there"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    more: list[str], words: str, files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files.out.parent)
    said = invoke(app, "rewrite", files.model, "out.onnx", "--target-macs", "0.5", *more)
    assert said.exit_code == 2 and words in " ".join(said.output.split())


def test_the_quantized_network_is_that_of_one_model(files: SimpleNamespace, tmp_path: Path) -> None:
    folder = str(Path(files.model).parent)
    said = invoke(app, "rewrite", folder, str(tmp_path / "all"), "--deploy", "int8", "--quantized", str(files.int8))
    assert said.exit_code == 2 and "--quantized is for one model; name one" in " ".join(said.output.split())
