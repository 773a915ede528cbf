"""Advice rests on figures, names the command that shows them, and is in the JSON as it is on the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import ModelCost
from onnx_pointwise.jobs import advice
from onnx_pointwise.latency import SiteLatency
from onnx_pointwise.runtime import Elsewhere, NodeTime, machine
from tests.commands import invoke
from tests.small import network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "net.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture(autouse=True)
def no_other_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed beside the CPU is the business of the tests that install it."""
    monkeypatch.setattr(advice, "installed_providers", lambda: ["cpu"])


def test_inspect_and_bench_advise(model: Path, tmp_path: Path) -> None:
    result = invoke(app, "inspect", model, "--json", tmp_path / "out.json")
    (share,) = json.loads((tmp_path / "out.json").read_text())["advice"]
    assert share["code"] == "share" and share["numbers"]["share"] > 0.5
    assert f"sweep {model}" == share["command"] and "Advice: Convolutions that can" in result.stdout
    result = invoke(app, "bench", model, "--max-seconds", "0.1", "--json", tmp_path / "out.json")
    found = {one["code"]: one for one in json.loads((tmp_path / "out.json").read_text())["advice"]}
    assert 0.0 < found["time"]["numbers"]["share"] <= 1.0 and "--nodes" in found["time"]["command"]
    assert "Advice: " in result.stdout
    assert onnx_pointwise.bench(model, max_seconds=0.1, advice=False).advice == ()


def test_initializers_as_inputs_are_measured(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    for item in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    onnx.save(proto, tmp_path / "open.onnx")
    found = {one.code: one for one in onnx_pointwise.bench(tmp_path / "open.onnx", max_seconds=0.2).advice}
    assert found["inputs"].numbers["ratio"] > 0.0 and "--freeze-initializers" in found["inputs"].command
    found = {one.code: one for one in onnx_pointwise.inspect(tmp_path / "open.onnx").advice}
    assert found["inputs"].numbers == {"initializers": float(len(proto.graph.initializer))}


def kernels(*seconds: float, other: float = 0.0) -> list[NodeTime]:
    made = [NodeTime(f"conv{n}", "Conv", "cpu", one, f"conv{n}") for n, one in enumerate(seconds)]
    return [*made, NodeTime("rest", "LRN", "cpu", other, None)]


@pytest.mark.parametrize(
    ("times", "sets", "codes", "words"),
    [
        (kernels(1e-3, 1e-3), ("AVX-512 VNNI",), ["time", "int8"], "int8 and a rewrite will both pay"),
        (kernels(1e-3, 1e-3), ("AVX2",), ["time"], "100 %"),
        (kernels(1e-5, 1e-5), ("AVX-512 VNNI",), ["time", "short"], "int8 alone"),
        (kernels(1e-5, 1e-5), ("AVX2",), ["time", "short"], "larger batches"),
        (kernels(1e-3, other=9e-3), ("AVX-512 VNNI",), ["time"], "only 10 % of the time"),
        (kernels(1e-3), ("AMX int8",), ["time", "int8", "amx"], "OpenVINO"),
        (kernels(other=1.0), (), ["time"], "nothing to rewrite"),
    ],
)
def test_what_kernels_say(times: list[NodeTime], sets: tuple[str, ...], codes: list[str], words: str) -> None:
    found = advice._by_kernels("net.onnx", times, replace(machine(), instruction_sets=sets))
    assert [one.code for one in found] == codes
    assert words in " ".join(one.sentence for one in found)


@pytest.mark.parametrize(("seconds", "bound"), [(2.5e-3, True), (10.0, False), (1e-5, False)])
def test_a_network_that_waits_for_memory(
    model: Path, seconds: float, bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "_copying", lambda: 1e10)
    timing: dict[str, Any] = {"provider": "cpu", "max_seconds": 0.1, "runs": 1, "warmup": 1}
    cost = ModelCost(macs=1, conv_macs=1, params=1, bytes=2**20, activation_bytes=2**25, unknown=0)
    found = advice.of_latency("net", model, timing, seconds, cost, machine(), [])
    assert ("memory" in [one.code for one in found]) is bound


def test_ranks_that_are_faster() -> None:
    cost = ModelCost(macs=100, conv_macs=10, params=1, bytes=1, activation_bytes=1, unknown=0)
    timed = SiteLatency(1.0, (("expand", 4), ("expand", 8)), (0.5, 0.7))
    found = {one.code: one for one in advice.of_convolutions("net", cost, [], [timed], [])}
    assert "Only 0 % of the MACs" in found["share"].sentence
    assert "faster at 1 of 1 of them, at best in 0.50" in found["treads"].sentence


def elsewhere(model: Any, *, provider: str, **how: Any) -> Elsewhere:
    """What networks take on providers that are not there: one does not load."""
    if provider == "broken":
        raise ModelError("No card.")
    assert how["max_seconds"] <= 2.0 and how["input_shapes"]
    return Elsewhere(provider, 1e-3, {"quick": 0.25, "slow": 3.0}[provider], None)


@pytest.mark.parametrize(
    ("installed", "words", "numbers"),
    [
        (["cpu", "slow", "broken", "quick"], "fastest provider here is quick: 0.25 of the CPU's time, on slow 3.00", 2),
        (["cpu", "slow"], "No provider here is faster than the CPU: on slow it takes 3.00 of the time", 1),
        (["broken", "cpu"], "", 0),
    ],
)
def test_the_fastest_provider(
    model: Path, installed: list[str], words: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "installed_providers", lambda: installed)
    monkeypatch.setattr(advice, "elsewhere", elsewhere)
    heard: list[str] = []
    result = onnx_pointwise.bench(model, max_seconds=0.1, progress=lambda stage, what, *_: heard.append(what))
    found = {one.code: one for one in result.advice}
    assert ("providers" in found) is bool(words)
    if words:
        assert words in found["providers"].sentence and len(found["providers"].numbers) == numbers
        assert found["providers"].command.startswith(f"bench {model} --provider ")
    assert [f"on {provider}" for provider in installed if provider != "cpu"] == [
        what for what in heard if what.startswith("on ")
    ]


def test_inspect_names_other_providers_without_opening_them(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "installed_providers", lambda: ["cpu", "quick"])
    found = {one.code: one for one in onnx_pointwise.inspect(model).advice}
    assert "Installed beside the CPU: quick" in found["providers"].sentence
    assert found["providers"].command == f"bench {model}"


def test_amx_names_the_plug_in_only_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "installed_providers", lambda: ["cpu", "openvino"])
    found = advice._by_kernels("net.onnx", kernels(1e-3), replace(machine(), instruction_sets=("AMX int8",)))
    assert [one.code for one in found] == ["time", "int8"]
