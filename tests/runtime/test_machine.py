from __future__ import annotations

import json
import platform

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
