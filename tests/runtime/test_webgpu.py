"""Rewritten networks on GPU providers: shapes and drift, no timings.

WebGPU runs wherever Vulkan has a device, the one that Mesa emulates on the CPU included; tools/install_webgpu.sh
installs it. CUDA and TensorRT run the same tests where they load. What does not load is skipped with its reason.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_pointwise import rewrite
from onnx_pointwise.check import check
from onnx_pointwise.errors import ProviderError
from onnx_pointwise.jobs.benchmark import bench
from onnx_pointwise.numerics.factorize import compose, factorize
from onnx_pointwise.runtime import devices, providers
from onnx_pointwise.runtime.profiling import node_times, site_times
from onnx_pointwise.runtime.providers import discover, nodes_off_provider, open_session, provider_info
from tests.graphs import conv_model, make_model, normal, value
from tools.check_gpu import ANY_ANSWERS

# Software GPU drivers crash beside other native libraries: these tests get a process of their own.
pytestmark = pytest.mark.gpu

# TensorFloat-32 rounds products to 10 bits; without it all providers agree to rounding.
PROVIDERS = ["webgpu", "cuda:use_tf32=0", "tensorrt"]


@pytest.fixture(params=PROVIDERS)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU provider that loads here; the test is skipped where it does not."""
    monkeypatch.setenv(providers.SOFTWARE_VARIABLE, "1")
    provider = str(request.param)
    info = provider_info(provider)
    if not info.available:
        pytest.skip(str(info.reason))
    return provider


@pytest.fixture
def webgpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """WebGPU alone."""
    monkeypatch.setenv(providers.SOFTWARE_VARIABLE, "1")
    info = provider_info("webgpu")
    if not info.available:
        pytest.skip(str(info.reason))
    return "webgpu"


def pair(rank: int, *, relu: bool = True) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A 3x3 convolution, and the same as a 1x1 in front of a 3x3 of a given rank, its weights from the factors."""
    kernel = normal(12, 16, 3, 3) / 12
    factors = factorize(kernel, "reduce", rank)
    assert factors.before is not None
    tail = [helper.make_node("Relu", ["c"], ["y"], name="relu")] if relu else []
    end = "c" if relu else "y"
    inputs, outputs = [value("x", ["n", 16, "h", "w"])], [value("y", ["n", 12, "h", "w"])]
    dense = [helper.make_node("Conv", ["x", "W"], [end], name="site", pads=[1, 1, 1, 1])]
    bottleneck = [
        helper.make_node("Conv", ["x", "P"], ["r"], name="site_1x1"),
        helper.make_node("Conv", ["r", "V"], [end], name="site", pads=[1, 1, 1, 1]),
    ]
    weights = {"P": factors.before[:, :, None, None], "V": factors.kernel}
    return (
        make_model([*dense, *tail], inputs, outputs, {"W": kernel}),
        make_model([*bottleneck, *tail], inputs, outputs, weights),
    )


def test_a_session_runs_there_and_nowhere_else(gpu: str) -> None:
    session = open_session(pair(8)[1].SerializeToString(), gpu)
    assert session.get_providers()[0] == provider_info(gpu).runtime_name
    assert nodes_off_provider(session) == []


@pytest.mark.parametrize("rank", [4, 16])
def test_shapes_and_drift_of_a_bottleneck(gpu: str, rank: int) -> None:
    dense, bottleneck = pair(rank)
    shapes = {"x": (1, 16, 24, 24)}
    result = check(
        dense, bottleneck, providers=(gpu, "cpu"), input_shapes=shapes, latency=False, threads=1, limits=ANY_ANSWERS
    )
    assert result.passed and result.shapes_equal
    there, here = result.providers
    assert len(there.trials) == 4 and all(trial.shapes_equal for trial in there.trials)
    # The rewrite drifts as far there as on the CPU, and each network alone agrees with the CPU to rounding.
    assert there.drift["y"].relative_l2 == pytest.approx(here.drift["y"].relative_l2, rel=1e-3, abs=1e-5)
    assert there.dense_from_cpu is not None and there.dense_from_cpu["y"].relative_l2 < 1e-5
    assert there.drift_from_cpu is not None
    assert there.drift_from_cpu["y"].relative_l2 == pytest.approx(here.drift["y"].relative_l2, rel=1e-3, abs=1e-5)
    assert there.nodes_off == there.nodes_off_before == ()
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_composed_kernel_is_what_runs(gpu: str) -> None:
    factors = factorize(normal(12, 16, 3, 3) / 12, "reduce", 5)
    composed = conv_model(compose(factors).astype(np.float32), (9, 7), pads=[1, 1, 1, 1])
    weights = {"P": np.asarray(factors.before)[:, :, None, None], "V": factors.kernel}
    nodes = [
        helper.make_node("Conv", ["x", "P"], ["r"], name="site_1x1"),
        helper.make_node("Conv", ["r", "V"], ["y"], name="site", pads=[1, 1, 1, 1]),
    ]
    split = make_model(nodes, [value("x", ["n", 16, 9, 7])], [value("y", ["n", 12, 9, 7])], weights)
    x = normal(2, 16, 9, 7)
    outputs = [open_session(model.SerializeToString(), gpu).run(None, {"x": x})[0] for model in (composed, split)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "size", "attributes"),
    [
        ((16, 16, 3, 3), (13, 11), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((16, 16, 5, 5), (12, 12), {"pads": [2, 2, 2, 2]}),
        ((16, 16, 3, 3), (12, 12), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ((16, 16, 3), (20,), {"pads": [1, 1]}),
    ],
)
def test_rewritten_sites_run_there(
    gpu: str, kernel: tuple[int, ...], size: tuple[int, ...], attributes: dict[str, list[int]]
) -> None:
    dense = conv_model(normal(*kernel), size, behind="batchnorm", relu=True, **attributes)
    result = rewrite(dense, ranks={"conv": 8}, check=False)
    verdict = check(dense, result.model, providers=(gpu, "cpu"), latency=False, threads=1, limits=ANY_ANSWERS)
    assert verdict.passed and verdict.shapes_equal
    there, here = (each.drift["y"].relative_l2 for each in verdict.providers)
    assert there == pytest.approx(here, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("rank", [6, 9, 15])
def test_ranks_that_a_provider_gets_wrong_are_found(gpu: str, rank: int) -> None:
    # WebGPU 0.4 gets these wrong, so the check must say so there; a provider that gets them right must pass.
    shapes = {"x": (1, 16, 12, 12)}
    dense, bottleneck = pair(rank)
    x = normal(1, 16, 12, 12, seed=3)
    here, there = (open_session(bottleneck.SerializeToString(), name).run(None, {"x": x})[0] for name in ("cpu", gpu))
    right = np.linalg.norm(there - here) < 1e-3 * np.linalg.norm(here)
    result = check(dense, bottleneck, providers=(gpu,), input_shapes=shapes, latency=False, limits=ANY_ANSWERS)
    assert [finding.code for finding in result.findings] == ([] if right else ["provider_differs"])


def test_nodes_that_the_provider_leaves_to_the_cpu_are_named(webgpu: str) -> None:
    # LRN has no WebGPU kernel.
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name="site", pads=[1, 1, 1, 1]),
        helper.make_node("LRN", ["a"], ["y"], name="norm", size=3),
    ]
    model = make_model(nodes, [value("x", ["n", 8, 8, 8])], [value("y", ["n", 8, 8, 8])], {"W": normal(8, 8, 3, 3)})
    off = nodes_off_provider(open_session(model.SerializeToString(), webgpu))
    assert [(node.name, node.op_type, node.provider) for node in off] == [("norm", "LRN", "cpu")]
    plain = make_model(nodes[:1], [value("x", ["n", 8, 8, 8])], [value("a", ["n", 8, 8, 8])], {"W": normal(8, 8, 3, 3)})
    assert nodes_off_provider(open_session(plain.SerializeToString(), webgpu)) == []


def test_kernels_map_back_to_sites(gpu: str) -> None:
    if gpu == "tensorrt":
        pytest.skip("TensorRT makes one kernel of the whole network.")
    times = node_times(pair(8)[1], provider=gpu, input_shapes={"x": (1, 16, 8, 8)}, runs=2, warmup=1)
    assert set(site_times(times)) == {"site", "site_1x1"}
    assert {kernel.provider for kernel in times if kernel.site} == {gpu.partition(":")[0]}


def test_inputs_lie_on_the_device_and_emulation_is_warned_of(gpu: str) -> None:
    result = bench(*pair(8), provider=gpu, input_shapes={"x": (1, 16, 8, 8)}, runs=5, warmup=2, max_seconds=0.5)
    comparison = result.rows[0].comparison
    assert comparison is not None and comparison.bound in ("webgpu", "cuda")
    software = provider_info(gpu).software
    assert any("emulated on the CPU" in warning for warning in result.warnings) == software


def test_emulated_devices_are_not_timed(gpu: str) -> None:
    shapes = {"x": (1, 16, 8, 8)}
    result = check(*pair(8), providers=(gpu,), input_shapes=shapes, latency_seconds=0.3, threads=1)
    software = provider_info(gpu).software
    assert (result.latency is None) == result.providers[0].software == software
    assert any("so it was not timed" in warning for warning in result.warnings) == software


def test_nothing_is_written_to_the_terminal(webgpu: str, capfd: pytest.CaptureFixture[str]) -> None:
    session = open_session(pair(8)[1].SerializeToString(), webgpu)
    session.run(None, {"x": normal(1, 16, 8, 8)})
    assert capfd.readouterr() == ("", "")
    with providers._without_notes():
        os.write(2, b"Warning: maxThings artificially reduced from 9 to 8\nAnother matter\n")
    assert capfd.readouterr() == ("", "Another matter\n")


def test_options_reach_the_provider_and_unknown_ones_are_refused(webgpu: str) -> None:
    source = pair(8)[1].SerializeToString()
    session = open_session(source, "webgpu:preferredLayout=NCHW")
    assert session.get_provider_options()["WebGpuExecutionProvider"]["preferredLayout"] == "NCHW"
    with pytest.raises(ProviderError, match=r"Provider webgpu has no option 'layout'; it has .*preferredLayout"):
        open_session(source, "webgpu:layout=NCHW")
    with pytest.raises(ProviderError, match="refuses the options 'preferredLayout=CHWN': Invalid preferred layout"):
        open_session(source, "webgpu:preferredLayout=CHWN")


def test_the_listing_names_the_device(webgpu: str) -> None:
    info = next(info for info in discover() if info.name == webgpu)
    assert info.available and info.device and info.version
    assert info.package == "onnxruntime-ep-webgpu"


# --- what is missing is said ------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere WebGPU does not go through Vulkan")
plugin = pytest.mark.skipif(
    not provider_info("webgpu").version, reason="the package onnxruntime-ep-webgpu is not installed"
)


def reason() -> str:
    """Say why WebGPU does not load; asking and opening a session must give the same sentence."""
    providers._probe.cache_clear()  # what is hidden from a test was there a moment ago
    info = provider_info("webgpu")
    assert not info.available
    with pytest.raises(ProviderError) as caught:
        open_session(pair(8)[1].SerializeToString(), "webgpu")
    assert str(caught.value) == info.reason
    return str(caught.value)


def test_a_hidden_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_plugins", dict)
    assert reason() == (
        "Provider webgpu does not load: the package onnxruntime-ep-webgpu is not installed; "
        "install it with: pip install onnxruntime-ep-webgpu."
    )


@linux
@plugin
def test_a_hidden_vulkan_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(library: str) -> None:
        raise OSError(f"{library}: cannot open shared object file")

    monkeypatch.setenv(providers.SOFTWARE_VARIABLE, "1")
    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    assert reason() == (
        "Provider webgpu does not load: the Vulkan loader (libvulkan.so.1) is not installed; "
        "install it (Debian: libvulkan1) and a Vulkan driver."
    )


@linux
@plugin
def test_a_hidden_device(webgpu: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(variable, str(tmp_path / "no_driver.json"))
    assert "no Vulkan driver is installed; install a GPU driver with Vulkan" in reason()


@linux
@plugin
def test_an_emulated_device_is_used_only_where_that_is_allowed(webgpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not provider_info(webgpu).software:
        pytest.skip("this machine has a GPU")
    for setting in (None, "0", "no"):
        if setting is None:
            monkeypatch.delenv(providers.SOFTWARE_VARIABLE)
        else:
            monkeypatch.setenv(providers.SOFTWARE_VARIABLE, setting)
        text = reason()
        assert "the only Vulkan device is emulated on the CPU" in text
        assert "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1" in text


@linux
@plugin
def test_a_driver_that_the_provider_rejects(webgpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rejected(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 11 : EP_FAIL : Failed to get a WebGPU adapter: No supported adapters")

    monkeypatch.setattr(providers, "_create", rejected)
    assert reason() == (
        "Provider webgpu does not load: Failed to get a WebGPU adapter: No supported adapters; update the Vulkan "
        "driver (tools/install_webgpu.sh brings a software device that works)."
    )
