"""Outputs of every kind: tensors, sequences, maps, strings, and tensors that are not as the file declares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import holds_map, load, save
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.jobs import bench
from onnx_pointwise.runtime import (
    compare,
    inputs_that_run,
    measure,
    node_times,
    not_compared,
    output_of,
    peak_memory,
    resolve,
    run_outputs,
)
from onnx_pointwise.runtime.outputs import comparable
from tests.graphs import make_model, normal, value

node = helper.make_node
QUICK: dict[str, Any] = {"runs": 2, "warmup": 1, "threads": 1}
CLASSES = [0, 1, 2]


def answers(kinds: Sequence[str]) -> onnx.ModelProto:
    """A convolution whose answer comes as tensor, sequence, map or string, as wished."""
    weights = {"W": normal(8, 6, 3, 3), "half": np.array(4), "V": normal(8, 3), "sizes": np.array([0, -1])}
    zipped = onnx.ValueInfoProto(name="map")
    kind = zipped.type.sequence_type.elem_type.map_type
    kind.key_type = TensorProto.INT64
    kind.value_type.tensor_type.elem_type = TensorProto.FLOAT
    made = {
        "tensor": (["Softmax", ["g"], ["tensor"]], value("tensor", [2, 3])),
        "sequence": (
            ["SplitToSequence", ["c", "half"], ["sequence"]],
            helper.make_tensor_sequence_value_info("sequence", TensorProto.FLOAT, None),
        ),
        "map": (["ZipMap", ["g"], ["map"]], zipped),
        "string": (["Cast", ["g"], ["string"]], helper.make_tensor_value_info("string", TensorProto.STRING, [2, 3])),
    }
    more: dict[str, dict[str, Any]] = {
        "sequence": {"axis": 1},
        "map": {"domain": "ai.onnx.ml", "classlabels_int64s": CLASSES},
        "string": {"to": TensorProto.STRING},
    }
    nodes = [
        node("Conv", ["x", "W"], ["c"], name="conv", pads=[1] * 4),
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Reshape", ["p", "sizes"], ["f"]),
        node("MatMul", ["f", "V"], ["g"]),
        *(node(*made[kind][0], name=kind, **more.get(kind, {})) for kind in kinds),
    ]
    outputs = [made[kind][1] for kind in kinds]
    model = make_model(nodes, [value("x", [2, 6, 8, 8])], outputs, weights)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def opened(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_what_can_be_compared_comes_as_arrays() -> None:
    session = opened(answers(["map", "sequence", "tensor", "string"]))
    found = run_outputs(session, {"x": normal(2, 6, 8, 8)})
    assert {name: array.shape for name, array in found.items()} == {
        "sequence[0]": (2, 4, 8, 8),
        "sequence[1]": (2, 4, 8, 8),
        "tensor": (2, 3),
    }
    assert not_compared(session) == {"map": "seq(map(int64,tensor(float)))", "string": "tensor(string)"}
    assert run_outputs(opened(answers(["map"])), {"x": normal(2, 6, 8, 8)}) == {}


def test_names_of_items() -> None:
    assert output_of("parts[3]", ["parts"]) == "parts"
    assert output_of("parts[3]", ["parts[3]"]) == "parts[3]"
    assert output_of("a[b][0]", ["a[b]"]) == "a[b]"
    assert output_of("y", ["y"]) == "y"


@pytest.mark.parametrize(
    ("kind", "yes"),
    [
        ("tensor(float16)", True),
        ("seq(tensor(int64))", True),
        ("optional(tensor(float))", True),
        ("optional(seq(tensor(float)))", True),
        ("tensor(string)", False),
        ("seq(tensor(string))", False),
        ("map(int64,tensor(float))", False),
        ("seq(map(string,tensor(float)))", False),
    ],
)
def test_types_that_can_be_compared(kind: str, yes: bool) -> None:
    assert comparable(kind) == yes


@pytest.mark.parametrize("kinds", [["map"], ["sequence"], ["tensor", "map", "sequence"], ["string"]])
def test_models_whose_outputs_are_no_tensors_are_described_timed_and_written(kinds: list[str], tmp_path: Any) -> None:
    proto = answers(kinds)
    untouched = proto.SerializeToString()
    model = load(proto)
    assert proto.SerializeToString() == untouched
    assert [holds_map(output) for output in model.graph.outputs] == [kind == "map" for kind in kinds]
    found = resolve(model)
    assert found.shapes["c"] == (2, 8, 8, 8)
    assert measure(model, **QUICK).runs >= 2
    assert compare(proto, proto, **QUICK).bound == "host"
    assert {time.op_type for time in node_times(model, **QUICK)} & {"Conv", "FusedConv"}
    written = serialize(model.clone())
    onnx.checker.check_model(written, full_check=True)
    assert [output.type for output in written.graph.output] == [output.type for output in proto.graph.output]
    save(model, tmp_path / "a.onnx")
    assert [holds_map(output) for output in load(tmp_path / "a.onnx").graph.outputs] == [k == "map" for k in kinds]


def wrong_rank() -> onnx.ModelProto:
    """An output of rank 2 that is declared to have rank 3, and nothing that lets the runtime notice before it runs."""
    nodes = [
        node("Conv", ["x", "W"], ["c"], name="conv"),
        node("Slice", ["sizes", "zero", "k"], ["s"]),
        node("Reshape", ["c", "s"], ["y"]),
    ]
    weights = {"W": normal(8, 6, 3, 3), "sizes": np.array([-1, 4, 2]), "zero": np.array([0])}
    inputs = [value("x", ["n", 6, 8, 8]), value("k", [1], np.int64)]
    return make_model(nodes, inputs, [value("y", ["n", 4, 2])], weights)


def test_an_output_that_the_file_declares_otherwise() -> None:
    feeds = {"x": normal(1, 6, 8, 8), "k": np.array([2])}
    assert opened(wrong_rank()).run(None, feeds)[0].ndim == 2
    assert measure(wrong_rank(), inputs=feeds, **QUICK).runs >= 2
    assert compare(wrong_rank(), wrong_rank(), inputs=feeds, **QUICK).rounds >= 5


def detector() -> onnx.ModelProto:
    """As many rows come out as there are large values; with fewer than three TopK fails."""
    nodes = [
        node("Conv", ["x", "W"], ["c"], name="conv"),
        node("Greater", ["c", "limit"], ["g"]),
        node("Compress", ["c", "flat"], ["kept"]),
        node("Reshape", ["g", "all"], ["flat"]),
        node("TopK", ["kept", "three"], ["y", "where"]),
    ]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    weights = {
        "W": np.abs(normal(4, 6, 3, 3)),
        "limit": np.array(1000, np.float32),
        "all": np.array([-1]),
        "three": np.array([3]),
    }
    return make_model(nodes, [value("x", [1, 6, 8, 8])], [value("y", [3])], weights)


def test_networks_that_fail_on_random_inputs_are_timed_on_those_given() -> None:
    model, given = load(detector()), {"x": np.full((5, 6, 8, 8), 1e4, np.float32)}
    shapes = {"x": (1, 6, 8, 8)}
    with pytest.raises(ModelError, match="the model does not run"):
        measure(model, **QUICK)
    chosen = inputs_that_run(model, shapes, given)
    assert chosen is not None
    np.testing.assert_array_equal(chosen["x"], given["x"][:1])
    assert measure(model, inputs=chosen, **QUICK).runs >= 2
    assert node_times(model, inputs=chosen, **QUICK)
    assert peak_memory(detector(), inputs=chosen, runs=1).running > 0
    with pytest.raises(ModelError, match="the model does not run"):
        inputs_that_run(model, shapes, {"x": normal(5, 6, 8, 8)})
    assert inputs_that_run(model, shapes, None) is None
    assert inputs_that_run(load(answers(["tensor"])), {"x": (2, 6, 8, 8)}, {"x": normal(2, 6, 8, 8)}) is None


def test_bench_takes_inputs() -> None:
    given = {"x": np.full((1, 6, 8, 8), 1e4, np.float32)}
    result = bench(detector(), detector(), inputs=given, runs=2, warmup=1, max_seconds=0.1)
    assert result.rows[0].comparison is not None
    open_batch = make_model(
        [node("Conv", ["x", "W"], ["y"], name="conv")],
        [value("x", ["n", 6, 8, 8])],
        [value("y", None)],
        {"W": normal(4, 6, 3, 3)},
    )
    result = bench(open_batch, inputs=given, batch_sizes=[3], runs=2, warmup=1, max_seconds=0.1)
    assert result.rows[0].latency.throughput == pytest.approx(3 / result.rows[0].latency.median)


def test_a_string_attribute_stays() -> None:
    """Nothing else about a model with maps is touched."""
    model = answers(["map", "tensor"])
    model.graph.node[0].doc_string = "kept"
    assert numpy_helper.to_array(serialize(load(model)).graph.initializer[0]).shape == (8, 6, 3, 3)
    assert serialize(load(model)).graph.node[0].doc_string == "kept"
