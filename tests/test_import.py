"""What ``import onnx_pointwise`` loads: no more than what every job needs, so that it stays short."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys, time
import onnx, onnx_ir, onnxruntime
start = time.perf_counter()
import onnx_pointwise
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(sys.modules)]))
"""
#: What some commands need, and the package itself does not: the terminal, pictures, plots, the knapsack's solver.
NOT_NEEDED = (
    "matplotlib",
    "onnx.reference",
    "onnxruntime.quantization",
    "pandas",
    "PIL",
    "rich",
    "scipy.linalg",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.sparse",
    "sklearn",
    "tensorflow",
    "typer",
)
#: Seconds that it may take beyond onnx, onnx_ir and onnxruntime. Printed, not asserted: machines differ.
BAR = 0.3


def imported() -> tuple[float, list[str]]:
    """Import the package in a fresh process: seconds beyond its foundations, and all modules there are then."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout)
    return seconds, modules


def test_the_import_loads_nothing_that_only_some_jobs_need(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [imported() for _ in range(3)]
    least = min(seconds for seconds, _ in runs)
    with capsys.disabled():
        print(f"\nimport onnx_pointwise: {least:.3f} s beyond its foundations, the bar is {BAR} s")
    loaded = {name for _, modules in runs for name in modules}
    assert "onnx_pointwise" in loaded
    assert [name for name in NOT_NEEDED if name in loaded] == []
