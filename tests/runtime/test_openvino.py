"""OpenVINO's provider, built in or as a plug-in: what it is told, and networks on it where it has a device."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import onnx_pointwise
from onnx_pointwise.check import check
from onnx_pointwise.check.findings import provider_warnings
from onnx_pointwise.errors import ProviderError
from onnx_pointwise.runtime import ignores_threads, open_session, openvino, provider_info, providers
from tests.small import examples, network

BFLOAT = 'openvino:load_config={"CPU":{"INFERENCE_PRECISION_HINT":"bf16"}}'


@pytest.mark.parametrize(
    ("options", "threads", "known", "told"),
    [
        ({}, 1, None, {"num_of_threads": "1"}),
        ({}, None, None, {}),
        ({"num_of_threads": "3"}, 1, None, {"num_of_threads": "3"}),
        ({"precision": "ACCURACY"}, 2, {"num_of_threads"}, {"precision": "ACCURACY", "num_of_threads": "2"}),
        ({}, 1, {"precision"}, {}),
        ({"load_config": '{"CPU":{"INFERENCE_NUM_THREADS":"4"}}'}, 1, None, None),
    ],
)
def test_so_many_threads_mean_that(options: Any, threads: int | None, known: Any, told: dict[str, str] | None) -> None:
    assert openvino.with_threads(options, threads, known) == (options if told is None else told)


def test_a_plug_in_spells_out_what_it_knows() -> None:
    library = b"\x00num_of_threads\x00some_precision\x00ep.openvino.device_type\x00cache_dir is not set\x00"
    assert openvino.plugin_options(library) == {"num_of_threads", "device_type"}


def test_options_may_be_json() -> None:
    _, options = providers._parse(f"{BFLOAT},num_of_threads=1")
    assert options == {"load_config": BFLOAT.partition("=")[2], "num_of_threads": "1"}
    _, options = providers._parse('openvino:load_config={"CPU":{"A":"1","B":"2"}},precision=FP32')
    assert options == {"load_config": '{"CPU":{"A":"1","B":"2"}}', "precision": "FP32"}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A plug-in that was built with some options, whether it is installed or not."""
    entry = providers._Entry("openvino", "OpenVINOExecutionProvider", "onnxruntime-ep-openvino", "a_module")

    def with_options(*names: str) -> None:
        monkeypatch.setattr(providers, "_entries", lambda: (providers._BUILT_IN[0], entry))
        monkeypatch.setattr(providers, "_known_options", lambda module, runtime_name: frozenset(names))

    return with_options


def test_a_plug_in_that_takes_no_number_of_threads_is_told_of(plugin: Any) -> None:
    plugin("precision")
    assert ignores_threads("openvino")
    found = check(network(), network(), latency=False).providers
    (on_cpu,) = found
    elsewhere = replace(on_cpu, provider="openvino")
    assert any("cannot be told how many threads" in said for said in provider_warnings([elsewhere], 1))
    assert not list(provider_warnings([elsewhere], None))
    plugin("num_of_threads")
    assert not ignores_threads("openvino") and not list(provider_warnings([elsewhere], 1))


def test_a_plug_in_without_a_device_names_the_other_package(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin("precision")
    monkeypatch.setattr(providers, "_register", lambda module: None)
    monkeypatch.setattr(providers, "_ep_devices", list)
    with pytest.raises(ProviderError, match=r"offers no device on this machine, .* package onnxruntime-openvino"):
        open_session("none.onnx", "openvino")


def test_what_has_it_built_in_is_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("CPUExecutionProvider", "OpenVINOExecutionProvider")
    monkeypatch.setattr(providers, "_built_in_names", lambda: names)
    (entry,) = [entry for entry in providers._entries() if entry.name == "openvino"]
    assert entry.package == "onnxruntime-openvino" and not entry.plugin
    opened: list[Any] = []

    class Session:
        def __init__(self, model: Any, settings: Any, providers: Any, **_: Any) -> None:
            opened.append(providers[0])

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"] if "GPU" in str(opened[-1]) else list(names)

    monkeypatch.setattr(providers, "ort", _with(ort, InferenceSession=Session))
    open_session(network().SerializeToString(), "openvino:precision=FP32", threads=2)
    assert opened[-1] == ("OpenVINOExecutionProvider", {"precision": "FP32", "num_of_threads": "2"})
    with pytest.raises(ProviderError, match="does not load with the options 'device_type=GPU', though it does without"):
        open_session(network().SerializeToString(), "openvino:device_type=GPU")
    providers._probe.cache_clear()


def _with(module: Any, **changed: Any) -> Any:
    """A module with some of its names changed."""
    made = types.SimpleNamespace(**{name: getattr(module, name) for name in dir(module)})
    for name, value in changed.items():
        setattr(made, name, value)
    return made


# --- on the provider itself -------------------------------------------------------------------------------------------


@pytest.fixture
def here() -> str:
    info = provider_info("openvino")
    if not info.available:
        pytest.skip(str(info.reason))
    return "openvino"


@pytest.mark.gpu
def test_a_rewritten_network_runs_on_it(here: str) -> None:
    images = examples(32)
    result = onnx_pointwise.rewrite(
        network(), target_macs=0.6, provider="none", latency=False, calibration=images, threads=1
    )
    found = check(network(), result.model, inputs={"image": images}, providers=(here,), latency=False, threads=1)
    (there,) = found.providers
    assert there.shapes_equal and not there.nodes_off
    assert max(value.relative_l2 for value in (there.rewritten_from_cpu or {}).values()) < 1e-4
    assert provider_info(here).device and provider_info(here).version


@pytest.mark.gpu
def test_bfloat16_is_told_and_drift_is_measured_in_it(here: str) -> None:
    images = examples(32)
    found = check(network(), network(), inputs={"image": images}, providers=(BFLOAT,), latency=False)
    (there,) = found.providers
    moved = max(value.relative_l2 for value in (there.dense_from_cpu or {}).values())
    assert any("lower precision than the CPU" in warning for warning in found.warnings) == (5e-4 < moved <= 0.01)
    assert moved > 1e-5


@pytest.mark.gpu
def test_options_that_it_does_not_know_are_refused(here: str) -> None:
    with pytest.raises(ProviderError, match="nonsense"):
        open_session(network().SerializeToString(), "openvino:nonsense=1")


@pytest.mark.gpu
def test_plans_are_made_on_it(here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_POINTWISE_CACHE", str(tmp_path))
    result = onnx_pointwise.rewrite(
        network(), provider=here, threads=1, calibration=np.asarray(examples(32)), latency=False, cache=False
    )
    assert result.plan.latency.get("provider", here) == here and result.check is not None
    assert not list(tmp_path.iterdir())
