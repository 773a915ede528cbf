"""What GPU drivers say of their devices, asked through their C libraries.

ONNX Runtime says that a provider did not load, seldom why. The drivers know: whether they are installed, whether they
see a device, what it is called, and whether it is a real one.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One device as its driver describes it.

    Attributes:
        name: The driver's name for it.
        software: Whether the device is emulated on the CPU.
        driver: Version of the driver or of the API that it implements, for people to read.
    """

    name: str
    software: bool
    driver: str


class DriverError(Exception):
    """A driver is missing, or does not work; the message says which and how, without a full stop."""


# From vulkan_core.h: VkInstanceCreateInfo holds the structure type 1 and no application info, layers or extensions.
class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    )


# The head of VkPhysicalDeviceProperties; limits and sparse properties follow it (824 bytes in all).
class _DeviceProperties(ctypes.Structure):
    _fields_ = (
        ("api_version", ctypes.c_uint32),
        ("driver_version", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("type", ctypes.c_int32),
        ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_uint8 * 1024),
    )


_VULKAN_CPU = 4
# Which device a program gets that asks for a fast one: discrete, integrated, virtual, other, emulated.
_VULKAN_ORDER = {2: 0, 1: 1, 3: 2, 0: 3, _VULKAN_CPU: 4}


def vulkan_devices() -> list[Device]:
    """List the Vulkan devices, the ones most likely to be picked first.

    Raises:
        DriverError: There is no Vulkan loader, or it finds no driver.
    """
    library = "vulkan-1.dll" if sys.platform == "win32" else "libvulkan.so.1"
    try:
        vulkan = ctypes.CDLL(library)
    except OSError as error:
        raise DriverError(f"the Vulkan loader ({library}) is not installed") from error
    info = _InstanceCreateInfo(type=1)
    instance = ctypes.c_void_p()
    # -9 is VK_ERROR_INCOMPATIBLE_DRIVER: what the loader returns when it finds no driver at all.
    status = vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance))
    if status:
        raise DriverError(
            "no Vulkan driver is installed" if status == -9 else f"Vulkan does not start (VkResult {status})"
        )
    try:
        count = ctypes.c_uint32()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        handles = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
        found = []
        for handle in handles[: count.value]:
            properties = _DeviceProperties()
            vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), ctypes.byref(properties))
            found.append(properties)
    finally:
        vulkan.vkDestroyInstance(instance, None)
    found.sort(key=lambda item: _VULKAN_ORDER.get(item.type, 3))
    return [
        Device(
            name=item.name.decode("utf-8", "replace"),
            software=item.type == _VULKAN_CPU,
            driver=f"Vulkan {item.api_version >> 22}.{(item.api_version >> 12) & 0x3FF}",
        )
        for item in found
    ]


# From cuda.h; the rest is reported by number.
_CUDA_ERRORS = {
    3: "the driver is not initialised",
    34: "the installed driver is a stub",
    100: "the driver sees no NVIDIA GPU",
    101: "the GPU is not a valid one",
    802: "the GPU is not ready yet",
    803: "the driver's kernel module and its library have different versions",
    804: "the driver is older than its library and this GPU does not allow that",
    999: "the driver fails for a reason it does not know",
}


def cuda_devices() -> list[Device]:
    """List the GPUs that the NVIDIA driver sees, in CUDA's own order.

    Raises:
        DriverError: There is no NVIDIA driver, or it sees no GPU.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise DriverError(f"the NVIDIA driver ({library}) is not installed") from error
    status = cuda.cuInit(0)
    if status:
        raise DriverError(_CUDA_ERRORS.get(status, f"the NVIDIA driver does not start (CUDA error {status})"))
    version = ctypes.c_int()
    count = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    devices = []
    for index in range(count.value):
        handle = ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(handle), index)
        cuda.cuDeviceGetName(name, len(name), handle)
        driver = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        devices.append(Device(name=name.value.decode("utf-8", "replace"), software=False, driver=driver))
    if not devices:
        raise DriverError(_CUDA_ERRORS[100])
    return devices
