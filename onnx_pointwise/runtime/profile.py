"""ONNX Runtime's profile: the kernels of each run, without what it costs to write them down.

A kernel's time in the profile includes putting together what is written of it: about two microseconds, with threads
four, whatever the kernel. In a quantised network whose kernels take ten it made the sum of all kernels half as long
again as the network. What that is on this machine is measured once, on kernels that take next to nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_pointwise.runtime import providers
from onnx_pointwise.runtime.runner import Runner
from onnx_pointwise.scratch import ScratchFolder

# Kernels side by side, of so many different sizes that whole microseconds are as often too many as too few, and
# with as many inputs as a convolution has, quantised or not: each is written down.
_KERNELS, _INPUTS = 96, 5
_RUNS = 12
# No kernel takes less.
_LEAST = 1e-7


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in one run.

    Attributes:
        name: The runtime's name for the node.
        op_type: Operator that ran.
        provider: The runtime's name of the provider that ran it.
        reads: Element type of its first input; None where it has none.
        seconds: What it took.
    """

    name: str
    op_type: str
    provider: str
    reads: str | None
    seconds: float


def read_profile(path: str | Path, cost: float) -> list[list[Kernel]]:
    """Read a profile.

    Args:
        path: The file that a session has written.
        cost: Seconds that writing a kernel down takes, see `profile_cost`.

    Returns:
        For each run the kernels in the order in which they ran; all turns of a loop are in one run.
    """
    return kernel_runs(json.loads(Path(path).read_text(encoding="utf-8")), cost)


def kernel_runs(events: Sequence[Mapping[str, Any]], cost: float) -> list[list[Kernel]]:
    """Tell the kernels of each run apart; `read_profile` of what is read already."""
    runs: list[list[Kernel]] = [[]]
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            given = event["args"]
            reads = next((kind for entry in given.get("input_type_shape") or () for kind in entry), None)
            seconds = max(_LEAST, event["dur"] * 1e-6 - cost)
            runs[-1].append(
                Kernel(name.removesuffix("_kernel_time"), given["op_name"], given["provider"], reads, seconds)
            )
        elif name == "model_run":  # written when the run has ended
            runs.append([])
    return runs[:-1]


@functools.cache
def profile_cost(provider: str, threads: int | None) -> float:
    """Measure what the profile adds to every kernel: many short ones, with it and without.

    Args:
        provider: Execution provider, as for ``open_session``. It is measured where kernels run when they are called,
            on the CPU; elsewhere it is 0.
        threads: Threads inside one operator; the runtime's own choice if ``None``.

    Returns:
        Seconds.
    """
    if not providers.is_cpu(provider):
        return 0.0
    model = _short_kernels().SerializeToString()
    feeds = {f"x{index}": np.ones((1, size), np.float32) for index, size in enumerate(_sizes())}
    plain = Runner(providers.open_session(model, provider, threads=threads), feeds, provider, "the profile's probe")
    with ScratchFolder() as folder:
        session = providers.open_session(model, provider, threads=threads, profile=folder / "profile")
        watched = Runner(session, feeds, provider, "the profile's probe")
        alone = []
        for _ in range(_RUNS):
            alone.append(plain.run())
            watched.run()
        runs = read_profile(session.end_profiling(), 0.0)
    together = min(sum(kernel.seconds for kernel in run) for run in runs)
    return max(0.0, (together - min(alone)) / _KERNELS)


def _sizes() -> Iterator[int]:
    """How many numbers each of the short kernels reads: few, and a little more from one to the next."""
    return iter(range(16, 16 * (_KERNELS + 1), 16))


def _short_kernels() -> onnx.ModelProto:
    inputs, outputs = (
        [helper.make_tensor_value_info(f"{side}{index}", 1, [1, size]) for index, size in enumerate(_sizes())]
        for side in "xy"
    )
    nodes = [helper.make_node("Max", [f"x{index}"] * _INPUTS, [f"y{index}"]) for index in range(_KERNELS)]
    graph = helper.make_graph(nodes, "short kernels", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
