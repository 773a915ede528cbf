"""What drivers say where there is none; where there is one, the WebGPU tests use it."""

from __future__ import annotations

import ctypes

import pytest

from onnx_pointwise.runtime import devices

# Software GPU drivers crash beside other native libraries: these tests get a process of their own.
pytestmark = pytest.mark.gpu


def refuse(name: str, *_: object, **__: object) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_a_missing_vulkan_loader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(devices.DriverError, match=r"the Vulkan loader .* is not installed"):
        devices.vulkan_devices()


def test_a_missing_nvidia_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(devices.DriverError, match=r"the NVIDIA driver .* is not installed"):
        devices.cuda_devices()


class Driver:
    """Stands in for libcuda with a driver that starts with a given status and sees the GPUs named."""

    def __init__(self, status: int, *names: str) -> None:
        self.status, self.names = status, names

    def __call__(self, library: str) -> Driver:
        return self

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDriverGetVersion(self, version: object) -> None:  # noqa: N802
        version._obj.value = 12080  # type: ignore[attr-defined]

    def cuDeviceGetCount(self, count: object) -> None:  # noqa: N802
        count._obj.value = len(self.names)  # type: ignore[attr-defined]

    def cuDeviceGet(self, handle: object, index: int) -> None:  # noqa: N802
        handle._obj.value = index  # type: ignore[attr-defined]

    def cuDeviceGetName(self, name: ctypes.Array[ctypes.c_char], size: int, handle: ctypes.c_int) -> None:  # noqa: N802
        name.value = self.names[handle.value].encode()


@pytest.mark.parametrize(
    ("status", "reason"), [(100, "sees no NVIDIA GPU"), (803, "different versions"), (42, "CUDA error 42")]
)
def test_a_driver_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, status: int, reason: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Driver(status))
    with pytest.raises(devices.DriverError, match=reason):
        devices.cuda_devices()


def test_a_driver_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Driver(0))
    with pytest.raises(devices.DriverError, match="sees no NVIDIA GPU"):
        devices.cuda_devices()


def test_gpus_are_listed_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Driver(0, "First", "Second"))
    found = devices.cuda_devices()
    assert [device.name for device in found] == ["First", "Second"]
    assert {device.driver for device in found} == {"CUDA 12.8"}
    assert not any(device.software for device in found)
