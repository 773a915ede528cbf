"""Measure what a data-free rewrite costs next to loading and saving the same file.

    python -m tools.benchmark_rewrite [--runs N] [--target-macs SHARE] [--folder FOLDER]

Builds a VGG-16 (138 million parameters, random weights) without any training framework and saves it. Then, each time in
a fresh process, it measures wall time and peak resident memory of

    load+save         onnx.load, then onnx.save
    rewrite           onnx_pointwise.rewrite(file, target_macs=..., provider="none", calibration=None, check=False)
                      and save
    rewrite + check   the same with the check in ONNX Runtime: both networks run on several inputs, but are not timed

and prints the medians and the ratios to load+save and to the size of the file. The project holds `rewrite` to at most 6
times the time of load+save and to a memory peak below 4 times the file: exit code 1 where that is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MOST_TIME = 6.0
MOST_MEMORY = 4.0
JOBS = ("build", "load+save", "rewrite", "rewrite + check")
#: Feature maps of the 3x3 convolutions, a pooling behind each block (Simonyan and Zisserman 2014, table 1, D).
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
HIDDEN = 4096
CLASSES = 1000


@dataclass(frozen=True)
class Measurement:
    """What one job took.

    Attributes:
        seconds: Wall time of the job, imports not counted.
        peak: Largest resident size of its process, in bytes, imports and libraries counted.
    """

    seconds: float
    peak: int


def build_vgg16(*, size: int = 224, seed: int = 0) -> onnx.ModelProto:
    """Build a VGG-16 with random weights.

    Args:
        size: Height and width of the input, a multiple of 32.
        seed: Seed of the weights.

    Returns:
        A model [batch, 3, size, size] -> [batch, 1000], opset 17; 138,357,544 parameters at size 224.
    """
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def store(name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:]))
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2.0 / fan_in))
        weights.append(numpy_helper.from_array(values, name))
        return name

    def zeros(name: str, count: int) -> str:
        weights.append(numpy_helper.from_array(np.zeros(count, np.float32), name))
        return name

    def add(op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    value, maps = "image", 3
    for block, widths in enumerate(BLOCKS, 1):
        for index, width in enumerate(widths, 1):
            name = f"conv{block}_{index}"
            kernel, bias = store(f"{name}_weight", width, maps, 3, 3), zeros(f"{name}_bias", width)
            value = add("Conv", name, value, kernel, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            value, maps = add("Relu", f"relu{block}_{index}", value), width
        value = add("MaxPool", f"pool{block}", value, kernel_shape=[2, 2], strides=[2, 2])
    value = add("Flatten", "flatten", value)
    features = maps * (size // 32) ** 2
    for index, width in enumerate((HIDDEN, HIDDEN, CLASSES), 6):
        kernel, bias = store(f"fc{index}_weight", width, features), zeros(f"fc{index}_bias", width)
        value = add("Gemm", f"fc{index}", value, kernel, bias, transB=1)
        features = width
        if width != CLASSES:
            value = add("Relu", f"relu{index}", value)
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run_job(job: str, source: Path, target: Path, target_macs: float) -> Measurement:
    """Do one job in this process."""
    if job == "build":
        start = time.perf_counter()
        onnx.save(build_vgg16(), source)
    elif job == "load+save":
        start = time.perf_counter()
        onnx.save(onnx.load(source), target)
    else:
        import onnx_pointwise

        start = time.perf_counter()
        check = job == "rewrite + check"
        result = onnx_pointwise.rewrite(
            source, target_macs=target_macs, calibration=None, check=check, latency=False, provider="none"
        )
        result.save(target)
    return Measurement(time.perf_counter() - start, peak_memory())


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux, getrusage counts in what the parent held when it forked.
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(job: str, source: Path, target_macs: float) -> Measurement:
    """Do one job in a fresh process."""
    target = source.with_name("out.onnx")
    command = [sys.executable, "-m", "tools.benchmark_rewrite", "--job", job, "--source", str(source)]
    command += ["--target", str(target), "--target-macs", str(target_macs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    target.unlink(missing_ok=True)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Run the benchmark, or one of its jobs."""
    parser = argparse.ArgumentParser(description="Measure a data-free rewrite of a VGG-16 against load+save.")
    parser.add_argument("--runs", type=int, default=3, help="runs of each job (3)")
    parser.add_argument("--target-macs", type=float, default=0.5, help="share of the MACs to keep (0.5)")
    parser.add_argument("--folder", type=Path, help="where 1.2 GB of temporary files may lie")
    parser.add_argument("--no-check", action="store_true", help="leave out the rewrite with its check")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(asdict(run_job(arguments.job, arguments.source, arguments.target, arguments.target_macs))))
        return 0
    jobs = JOBS[1:-1] if arguments.no_check else JOBS[1:]
    with tempfile.TemporaryDirectory(prefix="benchmark_rewrite.", dir=arguments.folder) as folder:
        source = Path(folder) / "vgg16.onnx"
        measure("build", source, 1.0)
        # Interleaved, so that a slow minute of the machine hits every job.
        runs = [{job: measure(job, source, arguments.target_macs) for job in jobs} for _ in range(arguments.runs)]
        size = source.stat().st_size
    seconds = {job: statistics.median(run[job].seconds for run in runs) for job in jobs}
    peak = {job: statistics.median(run[job].peak for run in runs) for job in jobs}
    print(f"VGG-16, {size / 1e6:.0f} MB, to {arguments.target_macs:g} of its MACs; medians of {arguments.runs} runs")
    print(f"{'':16} {'seconds':>8} {'x load+save':>12} {'peak MB':>8} {'x file':>7}")
    for job in jobs:
        times = seconds[job] / seconds["load+save"]
        print(f"{job:16} {seconds[job]:8.2f} {times:12.2f} {peak[job] / 1e6:8.0f} {peak[job] / size:7.2f}")
    met = seconds["rewrite"] <= MOST_TIME * seconds["load+save"] and peak["rewrite"] < MOST_MEMORY * size
    bar = f"{MOST_TIME:g} times the time of load+save and {MOST_MEMORY:g} times the memory of the file"
    print(f"rewrite stays within {bar}." if met else f"rewrite EXCEEDS {bar}.")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
