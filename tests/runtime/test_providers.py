from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from onnx_pointwise.errors import ModelError, ProviderError
from onnx_pointwise.runtime import providers
from onnx_pointwise.runtime.devices import Device, DriverError
from onnx_pointwise.runtime.providers import discover, nodes_off_provider, open_session, provider_info
from tests.graphs import conv_model, make_model, normal, value

# Software GPU drivers crash beside other native libraries: these tests get a process of their own.
pytestmark = pytest.mark.gpu

KERNEL = normal(4, 8, 3, 3)


def dense() -> bytes:
    return conv_model(KERNEL, (8, 8)).SerializeToString()


def test_the_cpu_is_available_and_described() -> None:
    info = provider_info("cpu")
    assert info.available and info.reason is None and info.device
    assert info.runtime_name == "CPUExecutionProvider"
    assert info.to_dict()["name"] == "cpu"


def test_each_missing_provider_has_a_reason_and_a_way_out() -> None:
    infos = discover()
    assert infos[0].name == "cpu"
    assert [info.available for info in infos] == sorted((info.available for info in infos), reverse=True)
    assert {"cuda", "tensorrt", "directml", "coreml", "openvino", "webgpu"} <= {info.name for info in infos}
    for info in infos:
        if info.available:
            assert info.reason is None and info.version
        else:
            assert info.reason and info.reason.startswith(f"Provider {info.name} does not load: ")
            assert "; " in info.reason and info.reason.endswith(".")


def test_a_session_runs_on_the_provider_named() -> None:
    for name in ("cpu", "CPU", "CPUExecutionProvider"):
        session = open_session(dense(), name, threads=1)
        assert session.get_providers() == ["CPUExecutionProvider"]
        assert nodes_off_provider(session) == []


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("gpu", "Unknown execution provider 'gpu'; known are cpu, cuda, "),
        ("cpu:arena=1", "Provider cpu has no options, but 'arena' was given"),
        ("cuda:use_tf32", "'use_tf32' is not of the form key=value"),
        ("cuda:=1", "'=1' is not of the form key=value"),
    ],
)
def test_bad_provider_names_and_options(provider: str, message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        open_session(dense(), provider)


def test_a_provider_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_built_in_names", lambda: ("CPUExecutionProvider",))
    with pytest.raises(ProviderError, match="the package onnxruntime-gpu is not installed"):
        open_session(dense(), "cuda")


def test_a_provider_that_the_runtime_drops_silently_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # A build of the runtime without this provider only warns, and gives a session on the CPU.
    monkeypatch.setattr(providers, "_built_in_names", lambda: ("MIGraphXExecutionProvider", "CPUExecutionProvider"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ProviderError, match=r"Provider migraphx does not load: .*dropped it"):
            open_session(dense(), "migraphx")
        info = provider_info("migraphx")
    assert not info.available and info.reason and "dropped it" in info.reason


def bad(op_type: str = "Conv", ir_version: int = 8, **attributes: int) -> bytes:
    node = helper.make_node(op_type, ["x", "W"], ["y"], name="site", **attributes)
    shape = ["batch", 8, 8, 8]
    model = make_model([node], [value("x", shape)], [value("y", None)], {"W": KERNEL}, ir_version=ir_version)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"no model", "parsing failed"),
        (b"", "No graph was found"),
        (bad("NoSuchOperator"), "node 'site': No Op registered for NoSuchOperator"),
        (bad(ir_version=99), "Unsupported model IR version: 99"),
        (bad(no_such_attribute=1), "node 'site': Unrecognized attribute: no_such_attribute"),
    ],
)
def test_a_model_that_does_not_load_has_a_one_sentence_reason(source: bytes, reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        open_session(source)
    text = str(caught.value)
    assert text.startswith("the model in memory: ONNX Runtime cannot load the model: ") and reason in text
    assert "ONNXRuntimeError" not in text and ".cc:" not in text and "\n" not in text


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx: no such file"):
        open_session(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match=r"is a directory; name the .onnx file in it"):
        open_session(tmp_path)
    (tmp_path / "cut.onnx").write_bytes(dense()[:100])
    with pytest.raises(ModelError, match=r"cut\.onnx: ONNX Runtime cannot load the model"):
        open_session(tmp_path / "cut.onnx")


def test_levels_and_threads_out_of_range() -> None:
    with pytest.raises(ValueError, match="Unknown optimisation level 'most'; known are none, basic, extended, all"):
        open_session(dense(), optimization="most")
    with pytest.raises(ValueError, match="threads must be at least 1"):
        open_session(dense(), threads=0)


def test_optimisation_levels_and_threads_reach_the_runtime() -> None:
    for name, level in providers.OPTIMIZATION_LEVELS.items():
        options = open_session(dense(), optimization=name, threads=2).get_session_options()
        assert options.graph_optimization_level == level
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def test_a_profile_is_written_where_asked(tmp_path: Path) -> None:
    session = open_session(dense(), profile=tmp_path / "run")
    session.run(None, {"x": normal(1, 8, 8, 8)})
    written = Path(session.end_profiling())
    assert written.parent == tmp_path and written.name.startswith("run") and written.stat().st_size > 0


def test_quiet_even_where_the_runtime_would_log(capfd: pytest.CaptureFixture[str]) -> None:
    # A declared shape that contradicts the real one is worth a warning to the runtime.
    model = onnx.load_from_string(dense())
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 99
    session = open_session(model.SerializeToString())
    assert session.run(None, {"x": np.zeros((1, 8, 8, 8), np.float32)})[0].shape == (1, 4, 6, 6)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime built with CUDA, on a machine whose driver sees a GPU; its libraries are not there."""
    monkeypatch.setattr(providers, "_built_in_names", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    monkeypatch.setattr(providers, "cuda_devices", lambda: [Device("Some GPU", False, "CUDA 13.0")])
    monkeypatch.setattr(providers, "_preload", lambda: None)
    warnings.simplefilter("ignore")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "libcublasLt.so.13",
            "a library is missing (libcublasLt.so.13); pip install 'onnxruntime-gpu[cuda,cudnn]' brings it.",
        ),
        ("libnvinfer.so.10", "pip install 'tensorrt' brings it."),
        (None, "ONNX Runtime dropped it without a reason; compare the CUDA and cuDNN versions"),
    ],
)
def test_what_cuda_lacks_is_named(monkeypatch: pytest.MonkeyPatch, missing: str | None, message: str) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this runtime has CUDA")
    monkeypatch.setattr(providers, "_missing_library", lambda name: missing)
    with pytest.raises(ProviderError) as caught:
        open_session(dense(), "cuda")
    assert str(caught.value).startswith("Provider cuda does not load: ")
    assert message in str(caught.value)


@pytest.mark.usefixtures("cuda")
def test_a_missing_driver_comes_before_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise DriverError("the NVIDIA driver (libcuda.so.1) is not installed")

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this runtime has CUDA")
    monkeypatch.setattr(providers, "cuda_devices", no_driver)
    with pytest.raises(ProviderError, match=r"the NVIDIA driver \(libcuda.so.1\) is not installed; install NVIDIA's"):
        open_session(dense(), "cuda")


def test_a_missing_library_is_what_the_loader_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, mode: int) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(providers.ctypes, "CDLL", load)
    assert providers._missing_library("cuda") == "libcudart.so.13"


@pytest.mark.parametrize(
    ("provider", "place"),
    [
        ("cpu", None),
        ("cuda", ("cuda", 0)),
        ("cuda:device_id=1", ("cuda", 1)),
        ("tensorrt", ("cuda", 0)),
        ("directml", ("dml", 0)),
        ("webgpu", ("webgpu", 0)),
        ("openvino", None),
    ],
)
def test_where_tensors_can_be_bound(provider: str, place: tuple[str, int] | None) -> None:
    assert providers.device_memory(provider) == place
