"""The convolutions of the ONNX backend suite: rewritten, or refused with a reason; none fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.graphs import conv_model, normal
from tools import conformance
from tools.conformance import Case, Row, cases, conform, main, table


def test_no_case_of_the_suite_fails(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [conform(case) for case in cases(("node", "converted", "operator"))]
    print(table(rows))
    assert [f"{row.name}: {fault}" for row in rows for fault in row.faults] == []
    assert sum(row.status == "passed" for row in rows) >= 25
    assert {row.status for row in rows if "ConvTranspose2d" in row.name} == {"passed"}
    # Nothing is left alone without a word.
    assert all(row.rewritten or row.refused for row in rows)
    assert "0 failed" in capsys.readouterr().out


def test_a_network_of_the_suite_with_random_weights() -> None:
    (case,) = cases(("network",), "squeezenet")
    row = conform(case)
    assert (row.faults, row.rewritten) == ([], 26)


def test_kernels_that_are_inputs_become_constants() -> None:
    node = helper.make_node("Conv", ["x", "W"], ["y"])
    shape = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [shape("x", 1, [1, 2, 4, 4]), shape("W", 1, [3, 2, 3, 3])],
        [shape("y", 1, [1, 3, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    frozen, feeds = conformance.with_kernels(model, [normal(1, 2, 4, 4), normal(3, 2, 3, 3)])
    assert [item.name for item in frozen.graph.input] == ["x"] and list(feeds) == ["x"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(frozen.graph.initializer[0]), normal(3, 2, 3, 3))


def case_of(model: onnx.ModelProto, expected: np.ndarray | None = None) -> Case:
    outputs = None if expected is None else [expected]
    return Case("node", "made", lambda: (model, {"x": normal(1, 5, 8, 8)}, outputs))


def test_what_goes_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = conv_model(normal(6, 5, 3, 3), [8, 8], batch=1)
    assert conform(case_of(model)).status == "passed"
    wrong = conform(case_of(model, np.zeros((1, 6, 6, 6), np.float32)))
    assert wrong.faults == ["'y' of the case itself is not what the suite expects"]
    # A rewrite that computes something else, one that changes a shape, and one that breaks down.
    other = conv_model(normal(6, 5, 3, 3, seed=1), [8, 8], batch=1)
    monkeypatch.setattr(conformance, "_rewritten", lambda model, choices: other)
    assert all("full rank: 'y' is off by" in fault for fault in conform(case_of(model)).faults)
    smaller = conv_model(normal(6, 5, 3, 3), [8, 8], batch=1, strides=[2, 2])
    monkeypatch.setattr(conformance, "_rewritten", lambda model, choices: smaller)
    assert "'y' was float32[1, 6, 6, 6], is float32[1, 6, 3, 3]" in conform(case_of(model)).faults[0]
    monkeypatch.setattr(conformance, "_rewritten", lambda model, choices: 1 / 0)
    assert conform(case_of(model)).faults == ["ZeroDivisionError: division by zero"]


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = case_of(conv_model(normal(6, 5, 3, 3), [8, 8], batch=1))
    monkeypatch.setattr(conformance, "cases", lambda kinds, name: iter([good]))
    assert main([]) == 0
    assert "1 passed, 0 refused, 0 failed" in capsys.readouterr().out
    monkeypatch.setattr(conformance, "conform", lambda case: replace(Row("node", "made"), faults=["it broke"]))
    assert main([]) == 1
    monkeypatch.setattr(conformance, "cases", lambda kinds, name: iter([]))
    assert main(["--kind", "node", "--name", "nothing"]) == 2
