"""A machine whose latencies are known: convolutions take time by full blocks of channels, all else takes none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from onnx_pointwise.graph.model_io import load
from onnx_pointwise.latency import network as network_latency
from onnx_pointwise.latency.clock import Clock, Reading
from onnx_pointwise.latency.probes import Probe
from onnx_pointwise.runtime.profiling import NodeTime

# Seconds of one product of two blocks at one tap.
UNIT = 1e-6


def seconds(kernel: tuple[int, ...], step: int) -> float:
    """What a convolution with a kernel [O, I, *k] takes."""
    return UNIT * -(-kernel[0] // step) * -(-kernel[1] // step) * math.prod(kernel[2:])


def kernels(model: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each convolution's kernel [O, I, *k] by its node's name, of a quantised network too."""
    found = {}
    for node in load(model).graph.all_nodes():
        weight = node.inputs[1] if node.op_type == "Conv" else None
        if weight is not None and (made_by := weight.producer()) is not None and made_by.op_type == "DequantizeLinear":
            weight = made_by.inputs[0]
        if weight is not None and weight.const_value is not None:
            found[str(node.name)] = tuple(weight.const_value.shape.numpy())
    return found


def network_seconds(model: Any, step: int, *, slow: float = 1.0) -> float:
    """What a network takes; ``slow`` is what its 1x1 convolutions take more than when probed alone."""
    return sum(
        seconds(kernel, step) * (slow if math.prod(kernel[2:]) == 1 else 1.0) for kernel in kernels(model).values()
    )


def install(monkeypatch: pytest.MonkeyPatch, step: int, *, slow: float = 1.0) -> list[str]:
    """Replace every measurement by this machine's; gives a list that each comparison of networks is written to."""
    compared: list[str] = []

    def probe_seconds(probe: Probe) -> float:
        return sum(seconds((conv.out_channels, conv.in_channels, *conv.kernel), step) for conv in probe.chain)

    def compare(before: ir.Model, after: ir.Model, **_: Any) -> SimpleNamespace:
        ratio = network_seconds(after, step, slow=slow) / network_seconds(before, step, slow=slow)
        compared.append(f"{ratio:.3f}")
        return SimpleNamespace(ratio=ratio, noise=0.01, verdict="faster" if ratio < 0.99 else "no change")

    def measure(model: ir.Model, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(times=(network_seconds(model, step, slow=slow),))

    def node_times(model: ir.Model, **_: Any) -> list[NodeTime]:
        return [NodeTime(name, "Conv", "cpu", seconds(kernel, step), name) for name, kernel in kernels(model).items()]

    def times(_: Any, probes: Any) -> Mapping[Probe, Reading]:
        return {probe: Reading(probe_seconds(probe), UNIT) for probe in probes}

    monkeypatch.setattr(Clock, "_time", times)
    monkeypatch.setattr(network_latency, "compare", compare)
    monkeypatch.setattr(network_latency, "measure", measure)
    monkeypatch.setattr(network_latency, "node_times", node_times)
    return compared
