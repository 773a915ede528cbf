"""The machine that a measurement was made on: processor, vector instructions, memory, versions."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import cores

# What ONNX Runtime's CPU kernels choose their code path by, widest first.
_INSTRUCTION_SETS = (
    ("AMX", "amx_tile"),
    ("AVX-512 VNNI", "avx512_vnni"),
    ("AVX-512", "avx512f"),
    ("AVX-VNNI", "avx_vnni"),
    ("AVX2", "avx2"),
    ("AVX", "avx"),
    ("SVE", "sve"),
    ("i8mm", "i8mm"),
    ("dot product", "asimddp"),
    ("fp16", "asimdhp"),
    ("NEON", "asimd"),
)
_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-ep-openvino",
    "onnxruntime-ep-webgpu",
    "onnx-pointwise",
)


@dataclass(frozen=True)
class Machine:
    """What a latency depends on beside the network.

    Attributes:
        cpu: The processor's name.
        instruction_sets: The vector instruction sets it offers, widest first.
        cores: Logical processors that this process may use.
        memory: Bytes of main memory, or None where the system does not tell.
        system: Operating system and architecture.
        versions: Of Python and of the packages that a measurement depends on, where installed.
    """

    cpu: str
    instruction_sets: tuple[str, ...]
    cores: int
    memory: int | None
    system: str
    versions: dict[str, str]

    @json_ready
    def to_dict(self) -> dict[str, object]:
        """Give the same as JSON-ready values."""
        return asdict(self) | {"instruction_sets": list(self.instruction_sets)}


@functools.cache
def machine() -> Machine:
    """Describe this machine."""
    name, flags = _cpu()
    return Machine(
        cpu=name,
        instruction_sets=tuple(label for label, flag in _INSTRUCTION_SETS if flag in flags),
        cores=cores(),
        memory=_memory(),
        system=f"{platform.system()} {platform.machine()}",
        versions={"python": platform.python_version()} | package_versions(_PACKAGES),
    )


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Give the versions of those packages that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu() -> tuple[str, frozenset[str]]:
    """Give the processor's name and feature flags, in Linux' spelling."""
    if sys.platform == "linux":
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine(), _darwin_flags()
    return platform.processor() or platform.machine(), frozenset()


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Read the processor's name and flags from what Linux writes to ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()
    return name, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _darwin_flags() -> frozenset[str]:
    if platform.machine() == "arm64":
        return frozenset({"asimd", "asimddp", "asimdhp"})  # every Apple silicon has them
    listed = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}".lower().split()
    return frozenset({"avx1.0": "avx", "avx2": "avx2", "avx512f": "avx512f"}.get(flag, flag) for flag in listed)


def _sysctl(key: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
