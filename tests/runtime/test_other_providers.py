"""A network on another provider is timed in a process of its own, which may die or take too long."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import pytest

from onnx_pointwise.errors import ModelError
from onnx_pointwise.runtime import elsewhere, installed_providers, other_providers, provider_info
from onnx_pointwise.runtime.aside import in_fresh_process
from tests.small import network

THIS = "tests.runtime.test_other_providers"


def test_another_provider_is_timed_beside_the_cpu() -> None:
    # The CPU stands for the other one: that is there everywhere.
    found = elsewhere(network().SerializeToString(), provider="cpu", runs=5, warmup=1, max_seconds=0.2)
    assert found.provider == "cpu" and found.seconds > 0.0 and found.ratio > 0.0
    assert found.to_dict()["ratio"] == found.ratio
    assert "cpu" in installed_providers() and "directml" not in installed_providers()


def test_one_that_does_not_load_says_why() -> None:
    with pytest.raises(ModelError, match=r"does not run in a process of its own: .*Unknown execution provider 'nope'"):
        elsewhere(network().SerializeToString(), provider="nope")


def test_an_emulated_device_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    info = replace(provider_info("cpu"), software=True, device="llvmpipe")
    monkeypatch.setattr(other_providers, "provider_info", lambda name: info)
    monkeypatch.setattr(other_providers, "feeds_of", lambda job: {})
    with pytest.raises(ModelError, match="llvmpipe is emulated on the CPU"):
        other_providers.timing_job({"provider": "cpu"})


def sleep(job: dict[str, Any]) -> None:
    time.sleep(60.0)


def die(job: dict[str, Any]) -> None:
    os._exit(7)


def test_one_that_takes_too_long_is_ended_and_one_that_dies_is_told() -> None:
    with pytest.raises(ModelError, match=r"net\.onnx: it took longer than 0\.5 s in a process of its own"):
        in_fresh_process(f"{THIS}:sleep", {"model": "net.onnx"}, seconds=0.5)
    with pytest.raises(ModelError, match=r"net\.onnx: the model does not run in a process of its own: exit code 7"):
        in_fresh_process(f"{THIS}:die", {"model": "net.onnx"})
