from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_pointwise.runtime import profile
from onnx_pointwise.runtime.profile import Kernel, kernel_runs
from onnx_pointwise.runtime.profiling import (
    FloatShare,
    NodeTime,
    _kernel_seconds,
    _typical,
    float_shares,
    node_times,
    site_times,
)
from onnx_pointwise.runtime.runner import Runner
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


def event(name: str, microseconds: int) -> dict[str, object]:
    arguments = {"op_name": "Conv", "provider": "P", "input_type_shape": [{"float": [1]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": arguments}


END = {"cat": "Session", "name": "model_run", "dur": 1, "args": {}}


def test_runs_are_told_apart_and_turns_of_a_loop_added_up() -> None:
    events = [event("a", 1), event("b", 2), event("b", 3), END, event("a", 4), END, event("a", 9)]
    assert _kernel_seconds(kernel_runs(events, 0.0)) == {
        ("a", "Conv", "P", "float"): pytest.approx([1e-6, 4e-6]),
        ("b", "Conv", "P", "float"): pytest.approx([5e-6, 0.0]),
    }


def test_what_the_profile_costs_is_taken_off_every_kernel() -> None:
    ((first, second),) = kernel_runs([event("a", 5), event("b", 1), END], 2e-6)
    assert first.seconds == pytest.approx(3e-6)
    assert 0.0 < second.seconds < 1e-6, "no kernel takes no time"


def test_what_the_profile_costs_is_the_difference_between_two_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """96 kernels that take 300 microseconds together and are written down with 4 each."""
    monkeypatch.setattr(Runner, "run", lambda self: 300e-6)
    monkeypatch.setattr(profile, "read_profile", lambda *_: [[Kernel("n", "Max", "P", "float", 4e-6)] * 96] * 2)
    profile.profile_cost.cache_clear()
    assert profile.profile_cost("cpu", 1) == pytest.approx(4e-6 - 300e-6 / 96)
    profile.profile_cost.cache_clear()
    assert profile.profile_cost("cuda", 1) == 0.0, "nothing is run on it"


def test_what_the_profile_costs_is_measured_once() -> None:
    profile.profile_cost.cache_clear()
    assert 0.0 <= profile.profile_cost("cpu", 1) < 1e-3
    assert profile.profile_cost("cpu", 1) == profile.profile_cost("cpu", 1)
    assert profile.profile_cost.cache_info().misses == 1


@pytest.mark.parametrize(
    ("microseconds", "typical"), [([10, 11, 11, 10, 900, 3, 11, 10], 10.5), ([7], 7), ([1, 2], 1.5)]
)
def test_a_kernel_takes_the_mean_of_the_middle_half(microseconds: list[int], typical: float) -> None:
    assert _typical(microseconds) == pytest.approx(typical)


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
