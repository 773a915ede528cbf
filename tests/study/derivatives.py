"""Gradients of small models against finite differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnx_pointwise.errors import ModelError
from onnx_pointwise.runtime import resolve
from onnx_pointwise.study.gradients import Backward
from tests import graphs
from tests.graphs import Array

# The runtime refuses later IR versions than this.
_IR_VERSION = 10
_DIRECTIONS = 3


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any) -> onnx.NodeProto:
    """A node."""
    return helper.make_node(op_type, list(inputs), list(outputs), name=f"the_{op_type}", **attributes)


def small_model(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Array], stored: Mapping[str, Array], opset: int, dtype: Any
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of a few nodes, and its inputs; all floats in one type."""

    def cast(array: Array) -> Array:
        return array.astype(dtype) if array.dtype.kind == "f" else array

    given = {name: cast(array) for name, array in inputs.items()}
    weights = {name: array if name.startswith("float32") else cast(array) for name, array in stored.items()}
    declared = [graphs.value(name, array.shape, array.dtype) for name, array in given.items()]
    version = min(_IR_VERSION, graphs.ir_version_for(opset))
    model = graphs.make_model(
        nodes, declared, [graphs.value("y", None, dtype)], weights, opset=opset, ir_version=max(version, 4)
    )
    return model, given


def assert_gradients(
    nodes: onnx.NodeProto | Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    stored: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    step: float = 1e-3,
    wanted: Sequence[str] | None = None,
) -> None:
    """Check the gradient of y by some inputs in random directions, in float64 where the runtime has the kernels.

    Args:
        nodes: Nodes that make y.
        inputs: Inputs by name.
        stored: Initializers by name.
        opset: Operator set.
        step: Step in float64; twenty times as large in float32. No kink may lie within it.
        wanted: Names of the inputs to differentiate by; all floats if None.
    """
    nodes = [nodes] if isinstance(nodes, onnx.NodeProto) else nodes
    names = [name for name, array in inputs.items() if array.dtype.kind == "f"] if wanted is None else list(wanted)
    for dtype in (np.float64, np.float32):
        model, given = small_model(nodes, inputs, stored or {}, opset, dtype)
        try:
            session = graphs.session(model)
            (value,) = session.run(None, given)
        except Exception:  # no kernel for the type, or type inference forbids it
            if dtype is np.float32:
                raise
            continue
        resolved = resolve(ir.serde.deserialize_model(model), {name: array.shape for name, array in given.items()})
        try:
            backward = Backward(resolved.model, ["y"], {name: name for name in names}, given, threads=1)
        except ModelError:  # the way back has no such kernel
            if dtype is np.float32:
                raise
            continue
        assert backward.unsupported == {}
        break
    rng = np.random.default_rng(0)
    probe = np.where(rng.standard_normal(value.shape) > 0, 1.0, -0.5) * rng.uniform(0.5, 1.5, value.shape)
    values, gradients = backward.run(given, {"y": probe})
    np.testing.assert_allclose(values["y"], value, rtol=1e-4, atol=1e-5)
    length = step if dtype is np.float64 else 20 * step

    def moved(by: Mapping[str, Array]) -> float:
        shifted = {name: np.asarray(given[name] + by[name], dtype) if name in by else given[name] for name in given}
        return float((session.run(None, shifted)[0].astype(np.float64) * probe).sum())

    for _ in range(_DIRECTIONS):
        # Whole signs, so that each element counts and none goes further than the step.
        directions = {name: np.where(rng.random(given[name].shape) < 0.5, -1.0, 1.0) for name in names}

        def slope(size: float, directions: Mapping[str, Array] = directions) -> float:
            forth, back = ({name: sign * size * u for name, u in directions.items()} for sign in (1.0, -1.0))
            return (moved(forth) - moved(back)) / (2.0 * size)

        expected = (4.0 * slope(length / 2.0) - slope(length)) / 3.0
        terms = np.concatenate(
            [(gradients.get(name, np.zeros(1)) * directions[name]).astype(np.float64).ravel() for name in names]
        )
        # In a random direction terms cancel: their root of squares is what their sum usually is.
        scale = max(abs(expected), float(np.linalg.norm(terms)), 1e-3)
        assert abs(terms.sum() - expected) <= 1e-3 * scale, (nodes[0].op_type, dtype, terms.sum(), expected)


def as_ir(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> ir.Model:
    """A model with its shapes resolved."""
    return resolve(ir.serde.deserialize_model(model), shapes).model
