from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnx_pointwise.graph import load, origin, random_nodes, still
from onnx_pointwise.graph import stilled as stilled_source
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.runtime import without_shapes
from tests.graphs import Array, make_model, normal, run, session, value

node = helper.make_node
SIZE = [4, 50, 20, 5]


def noisy(
    op_type: str, *more: str, opset: int = 17, outputs: int = 1, x: str = "x", **attributes: Any
) -> onnx.ModelProto:
    """A random node, its results first, and what it reads."""
    names = ["y", "mask"][:outputs]
    inputs = [x, *more] if x else []
    weights = {"ratio": np.array(0.25, np.float32), "yes": np.array(True), "no": np.array(False)}
    declared = [helper.make_empty_tensor_value_info(name) for name in names]
    nodes = [node(op_type, inputs, names, name="noise", **attributes), node("Identity", ["x"], ["z"])]
    return make_model(nodes, [value("x", ["n", *SIZE[1:]])], [*declared, value("z", None)], weights, opset=opset)


def stilled(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = load(model).clone()
    assert still(copy) == ["noise"] and random_nodes(copy) == []
    return serialize(copy)


def drawn(model: onnx.ModelProto, x: Array) -> Array:
    """What comes out, the same every time."""
    opened = session(model)
    first, second = (opened.run(None, {"x": x})[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, run(model, x=x)[0])
    return np.asarray(first)


@pytest.mark.parametrize("opset", [9, 13, 17, 21])
@pytest.mark.parametrize(
    ("op_type", "attributes", "mean", "deviation"),
    [
        ("RandomNormalLike", {}, 0.0, 1.0),
        ("RandomNormalLike", {"mean": 3.0, "scale": 0.5, "dtype": TensorProto.DOUBLE}, 3.0, 0.5),
        ("RandomUniformLike", {"low": -1.0, "high": 3.0}, 1.0, 4 / 12**0.5),
        ("RandomNormal", {"shape": SIZE, "scale": 2.0}, 0.0, 2.0),
        ("RandomUniform", {"shape": SIZE, "seed": 3.0}, 0.5, 1 / 12**0.5),
    ],
)
def test_noise_keeps_its_distribution(
    op_type: str, attributes: dict[str, Any], mean: float, deviation: float, opset: int
) -> None:
    x = normal(*SIZE)
    model = noisy(op_type, opset=opset, x="x" if "Like" in op_type else "", **attributes)
    found, original = drawn(stilled(model), x), run(model, x=x)[0]
    assert (found.shape, found.dtype) == (original.shape, original.dtype)
    for array in (found, original):
        assert array.mean() == pytest.approx(mean, abs=0.03)
        assert array.std() == pytest.approx(deviation, rel=0.03)
    # Neighbours, and examples of a batch, have nothing in common.
    flat = found.ravel() - found.mean()
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_noise_has_the_type_of_what_it_is_like(dtype: Any) -> None:
    nodes = [node("RandomNormalLike", ["x"], ["y"], name="noise")]
    model = make_model(nodes, [value("x", ["n", 8], dtype)], [value("y", ["n", 8], dtype)])
    assert drawn(stilled(model), normal(3, 8, dtype=dtype)).dtype == dtype


def test_bernoulli() -> None:
    x = np.full(SIZE, 0.2, np.float32)
    found = drawn(stilled(noisy("Bernoulli")), x)
    assert found.dtype == np.float32 and set(np.unique(found)) == {0, 1}
    assert found.mean() == pytest.approx(0.2, abs=0.01)


def test_multinomial() -> None:
    model = make_model(
        [node("Multinomial", ["x"], ["y"], name="noise", sample_size=5000, dtype=TensorProto.INT64)],
        [value("x", ["n", 3])],
        [value("y", ["n", 5000], np.int64)],
    )
    found = drawn(stilled(model), np.log(np.array([[0.2, 0.3, 0.5], [1e-9, 1 - 2e-9, 1e-9]], np.float32)))
    assert found.shape == (2, 5000) and found.dtype == np.int64
    np.testing.assert_allclose(np.bincount(found[0], minlength=3) / 5000, [0.2, 0.3, 0.5], atol=0.03)
    assert (found[1] == 1).all()


def test_dropout_that_is_told_to_train() -> None:
    x = np.ones(SIZE, np.float32)
    model = stilled(noisy("Dropout", "ratio", "yes", outputs=2))
    found = drawn(model, x)
    assert (found == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert found.max() == pytest.approx(1 / 0.75)
    np.testing.assert_array_equal(run(model, x=x)[1], found != 0)
    for more in ((), ("ratio",), ("ratio", "no")):
        assert random_nodes(load(noisy("Dropout", *more))) == []


def test_different_nodes_draw_differently_and_bodies_are_looked_into() -> None:
    bodies = [
        helper.make_graph(
            [node("RandomNormalLike", ["x"], [f"{name}_out"], name=name)], name, [], [value(f"{name}_out", None)]
        )
        for name in ("then", "else")
    ]
    nodes = [
        node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
        node("RandomNormalLike", ["x"], ["z"]),
    ]
    outputs = [value("y", None), value("z", None)]
    model = load(make_model(nodes, [value("c", [], np.bool_), value("x", ["n", 50])], outputs)).clone()
    assert sorted(random_nodes(model)) == ["else", "then", "z"]
    assert len(still(model)) == 3
    x = normal(2, 50)
    (one, z), (other, again) = (run(serialize(model), c=np.array(c), x=x) for c in (True, False))
    np.testing.assert_array_equal(z, again)
    for a, b in ((one, other), (one, z), (other, z)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.4


def test_what_is_run_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "noisy.onnx"
    onnx.save(noisy("RandomNormalLike"), path)
    copy = stilled_source(path)
    assert isinstance(copy, ir.Model) and random_nodes(copy) == [] and origin(copy) == str(path)
    assert origin(stilled_source(copy)) == str(path)  # type: ignore[arg-type]
    onnx.save(noisy("Identity"), path)
    assert stilled_source(path) is path


def test_copies_that_are_run_draw_alike_and_the_model_itself_stays() -> None:
    model = load(noisy("RandomNormalLike"))
    assert random_nodes(without_shapes(model)) == []
    assert random_nodes(model) == ["noise"]
