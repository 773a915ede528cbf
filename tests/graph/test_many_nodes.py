"""Graphs of very many nodes: refused in time, and what is taken is walked a bounded number of times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import constants, find_sites, load, model_io
from tests.commands import invoke
from tests.graphs import make_model, normal, value


def test_a_million_nodes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    model = make_model([], [value("x", [1])], [value("y", [1])])
    part = onnx.GraphProto(node=[helper.make_node("Relu", ["x"], ["y"])]).SerializeToString()
    model.graph.MergeFromString(part * 10**6)
    path = tmp_path / "million.onnx"
    path.write_bytes(model.SerializeToString())
    result = invoke(app, "rewrite", path, tmp_path / "out.onnx", "--target-macs", "0.5")
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert said.startswith(f"error: {path}: holds 1000000 nodes and stored tensors; networks of more than")
    assert "export it without unrolling its loops" in said
    assert sorted(tmp_path.iterdir()) == [path]


def test_what_lies_in_bodies_and_functions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])],
        "body",
        [],
        [value("z", [2])],
        [numpy_helper.from_array(normal(2), "w")],
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = make_model(
        [branch, helper.make_node("Twice", ["y"], ["last"], domain="own")],
        [value("x", [2]), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])],
        [value("last", [2])],
        {"unused": normal(2)},
        domains=["own"],
        functions=[function],
    )
    count = 2 + 2 * 2 + 1 + 1  # nodes, two bodies of a node and a tensor, a node of a function, a tensor
    monkeypatch.setattr(model_io, "_MOST_PARTS", count)
    load(model)
    monkeypatch.setattr(model_io, "_MOST_PARTS", count - 1)
    with pytest.raises(ModelError, match=f"holds {count} nodes and stored tensors"):
        load(model)


def test_a_chain_behind_a_convolution_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the chain takes twice the steps."""
    looked = constants._stored
    steps: list[int] = []
    for length in (60, 120):
        names = [f"v{number}" for number in range(length)]
        nodes = [helper.make_node("Conv", ["x", "w"], ["v"])]
        for before, after in zip(["v", *names], names, strict=False):
            nodes.append(helper.make_node("Add", [before, f"{after}.k"], [after]))
        weights = {"w": normal(8, 8, 3, 3), **{f"{name}.k": normal(8, 1, 1) for name in names}}
        model = load(make_model(nodes, [value("x", [1, 8, 8, 8])], [value(names[-1], None)], weights))
        count = 0

        def counted(given: Any) -> Any:
            nonlocal count
            count += 1
            return looked(given)

        monkeypatch.setattr(constants, "_stored", counted)
        (site,) = find_sites(model)
        monkeypatch.setattr(constants, "_stored", looked)
        assert len(site.folds) == length
        steps.append(count)
    assert steps[1] < 2.5 * steps[0]
