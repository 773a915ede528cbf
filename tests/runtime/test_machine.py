from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from onnx_pointwise.numerics.parallel import cores
from onnx_pointwise.runtime.machine import machine, parse_cpuinfo

X86 = """processor\t: 0
model name\t: Some Processor @ 2.00GHz
flags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = """processor : 0
Features : fp asimd asimdhp asimddp sve
CPU part : 0xd40
"""


def test_the_first_processor_counts() -> None:
    name, flags = parse_cpuinfo(X86)
    assert name == "Some Processor @ 2.00GHz"
    assert flags == {"fpu", "sse2", "avx", "avx2", "avx512f", "avx512_vnni"}


def test_arm_lists_features_and_no_name() -> None:
    name, flags = parse_cpuinfo(ARM)
    assert name == (platform.processor() or platform.machine())
    assert {"asimd", "sve"} <= flags


@pytest.mark.parametrize(
    ("architecture", "told", "expected"),
    [
        ("arm64", {"machdep.cpu.brand_string": "Apple M9"}, ("Apple M9", ("dot product", "fp16", "NEON"))),
        (
            "x86_64",
            {"machdep.cpu.features": "FPU AVX1.0 SSE4.2", "machdep.cpu.leaf7_features": "AVX2 AVX512F"},
            ("x86_64", ("AVX-512", "AVX2", "AVX")),
        ),
    ],
)
def test_other_systems_spell_the_sets_their_own_way(
    monkeypatch: pytest.MonkeyPatch, architecture: str, told: dict[str, str], expected: tuple[str, tuple[str, ...]]
) -> None:
    def sysctl(line: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if line[-1] not in told:
            raise subprocess.CalledProcessError(1, line)
        return subprocess.CompletedProcess(line, 0, f"{told[line[-1]]}\n")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(subprocess, "run", sysctl)
    here = machine.__wrapped__()
    assert (here.cpu, here.instruction_sets) == expected


def test_what_a_system_does_not_tell_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(platform, "processor", lambda: "Some Processor")
    monkeypatch.delattr(os, "sysconf")
    here = machine.__wrapped__()
    assert (here.cpu, here.instruction_sets, here.memory) == ("Some Processor", (), None)


def test_this_machine_is_described() -> None:
    here = machine()
    assert here.cpu
    assert here.cores == cores() >= 1
    assert {"python", "numpy", "onnx"} <= set(here.versions)
    assert json.loads(json.dumps(here.to_dict()))["cpu"] == here.cpu


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="reads x86 flags")
def test_wider_instruction_sets_come_first() -> None:
    sets = machine().instruction_sets
    if "AVX2" in sets:
        assert sets.index("AVX2") < sets.index("AVX")
