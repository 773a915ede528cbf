from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_pointwise.runtime.profiling import (
    FloatShare,
    NodeTime,
    _kernel_seconds,
    float_shares,
    node_times,
    site_times,
)
from tests.graphs import BEHIND, conv_model, loop_model, make_model, normal, value


def residual_model(*, named: bool = True) -> onnx.ModelProto:
    """Two convolutions with BatchNormalization and Relu, and a shortcut that is added to them."""
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "V"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "x"], ["d"], name="shortcut"),
        helper.make_node("Relu", ["d"], ["e"], name="last"),
        helper.make_node("GlobalAveragePool", ["e"], ["y"], name="pool"),
    ]
    weights = {"W": normal(16, 16, 3, 3), "V": normal(16, 16, 3, 3, seed=1)}
    weights |= {name: np.abs(normal(16, seed=index)) for index, name in enumerate("sbmv")}
    model = make_model(nodes, [value("x", ["n", 16, 8, 8])], [value("y", ["n", 16, 1, 1])], weights)
    if not named:
        for node in model.graph.node:
            node.name = ""
    return model


@pytest.mark.parametrize("optimization", ["none", "basic", "extended", "all"])
@pytest.mark.parametrize("named", [True, False])
def test_kernels_map_back_to_sites_through_fusions(optimization: str, named: bool) -> None:
    times = node_times(residual_model(named=named), optimization=optimization, threads=1, runs=2, warmup=1)
    sites = {"first", "second"} if named else {"a", "c"}
    assert set(site_times(times)) == sites
    for kernel in times:
        assert (kernel.site is not None) >= ("Conv" in kernel.op_type)
        assert kernel.provider == "cpu" and kernel.seconds >= 0
    assert next(kernel for kernel in times if "Pool" in kernel.op_type).site is None
    json.dumps([kernel.to_dict() for kernel in times])


@pytest.mark.parametrize("behind", BEHIND)
def test_what_folds_into_a_convolution_keeps_its_name(behind: str) -> None:
    model = conv_model(normal(16, 16, 3, 3), (8, 8), behind=behind, relu=True)
    times = node_times(model, threads=1, runs=1, warmup=1)
    assert [kernel.site for kernel in times if "Conv" in kernel.op_type] == ["conv"]


def test_all_turns_of_a_loop_count_to_one_run() -> None:
    times = node_times(loop_model(normal(4, 4, 3, 3), times=3), threads=1, runs=2, warmup=1)
    assert [kernel.site for kernel in times if "Conv" in kernel.op_type] == ["loop_conv"]


def test_runs_are_told_apart_and_only_the_last_ones_count() -> None:
    def kernel(name: str, microseconds: int) -> dict[str, object]:
        arguments = {"op_name": "Conv", "provider": "P"}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": arguments}

    end = {"cat": "Session", "name": "model_run", "dur": 1, "args": {}}
    events = [kernel("a", 9), end, kernel("a", 1), kernel("b", 2), kernel("b", 3), end, kernel("a", 4), end]
    seconds = _kernel_seconds(events, runs=2)
    assert seconds == {
        ("a", "Conv", "P", None): pytest.approx([1e-6, 4e-6]),
        ("b", "Conv", "P", None): pytest.approx([5e-6, 0.0]),
    }


def test_kernels_that_compute_in_float32_are_added_up_by_operator() -> None:
    def kernel(op_type: str, seconds: float, reads: str | None) -> NodeTime:
        return NodeTime("n", op_type, "cpu", seconds, None, reads)

    times = [kernel("QLinearConv", 4.0, "uint8"), kernel("LRN", 1.0, "float"), kernel("LRN", 2.0, "float")]
    times += [kernel("DequantizeLinear", 2.0, "uint8"), kernel("Shape", 0.5, "int64"), kernel("Constant", 0.5, None)]
    assert float_shares(times) == [FloatShare("LRN", 2, 0.3), FloatShare("DequantizeLinear", 1, 0.2)]
    assert float_shares([]) == []


def test_kernels_say_what_they_read() -> None:
    times = node_times(residual_model(), threads=1, runs=1, warmup=1)
    assert {time.reads for time in times} == {"float"}


def test_sites_add_up_their_kernels() -> None:
    times = node_times(residual_model(), threads=1, runs=1, warmup=1)
    totals = site_times([*times, *times])
    assert totals["first"] == pytest.approx(2 * site_times(times)["first"])
