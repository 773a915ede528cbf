"""Many jobs in one process and at once: nothing grows, nothing leaks, nothing is in the way of anything else."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import onnx_pointwise
from onnx_pointwise.graph.model_io import to_bytes
from onnx_pointwise.latency.cache import LatencyCache
from tests import small

WRITING = """
import sys
from pathlib import Path
from onnx_pointwise.latency.cache import LatencyCache
cache = LatencyCache(Path(sys.argv[1]))
for turn in range(20):
    cache.put({f"{sys.argv[2]} {turn}": float(turn), "all": 1.0})
    assert cache.get([f"{sys.argv[2]} {turn}"]) in ({f"{sys.argv[2]} {turn}": float(turn)}, {})
"""


def rewritten(source: Path, rank: int) -> bytes:
    result = onnx_pointwise.rewrite(
        source, ranks={"conv2": rank}, latency=False, provider="none", calibration=small.examples(16), refit=False
    )
    return to_bytes(result.model)


def held() -> tuple[int, int, int]:
    """Open files, threads, and pages of memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), pages  # noqa: PTH208


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what a process holds")
def test_rewrites_leave_no_files_threads_or_memory_behind(small_folder: Path) -> None:
    source = small_folder / "small.onnx"
    for rank in (4, 8, 12):  # what is loaded once, and arenas that find their size
        rewritten(source, rank)
    before = held()
    for turn in range(8):
        rewritten(source, 4 + turn)
    after = held()
    assert after[0] <= before[0] and after[1] <= before[1]
    assert (after[2] - before[2]) * os.sysconf("SC_PAGE_SIZE") < 48 * 2**20


def test_two_threads_get_what_each_gets_alone(small_folder: Path) -> None:
    source = small_folder / "small.onnx"
    alone = [rewritten(source, rank) for rank in (4, 9)]
    together: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda number=number, rank=rank: together.update({number: rewritten(source, rank)}))
        for number, rank in enumerate((4, 9))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[0], together[1]] == alone


def test_processes_share_one_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "c.sqlite"
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    started = [
        subprocess.Popen([sys.executable, "-c", WRITING, str(path), str(number)], env=environment, stderr=-1)
        for number in range(8)
    ]
    for process in started:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    found = LatencyCache(path).get([f"{number} {turn}" for number in range(8) for turn in range(20)])
    assert all(value == float(key.split()[1]) for key, value in found.items())
    assert len(found) > 80, "a lock that lasts costs a measurement; most are kept"
    assert LatencyCache(path).get(["all"]) == {"all": 1.0}
