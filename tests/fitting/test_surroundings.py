"""What follows a site is seen in the graph, however it is written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import helper

from onnx_pointwise.fitting.surroundings import surroundings
from onnx_pointwise.graph.model_io import load
from onnx_pointwise.graph.sites import find_sites
from onnx_pointwise.numerics.activation import Activation, Curve
from onnx_pointwise.runtime.shape_inference import resolve
from tests.graphs import make_model, normal, value

NUMBERS = {"three": 3.0, "six": 6.0, "zero": 0.0, "two": 2.0}
node = helper.make_node
SILU = Activation(curve=Curve((("Sigmoid", ()),), gated=True))
HARD = Curve((("Add", (3.0,)), ("Clip", (0.0, 6.0)), ("Mul", (1.0 / 6.0,))), gated=True)
CASES = {
    "relu": ([node("Relu", ["y"], ["out"])], Activation(low=0.0)),
    "relu6": ([node("Clip", ["y", "zero", "six"], ["out"])], Activation(0.0, 6.0)),
    "above": ([node("Clip", ["y", "", "six"], ["out"])], Activation(-math.inf, 6.0)),
    "silu": ([node("Sigmoid", ["y"], ["s"]), node("Mul", ["y", "s"], ["out"])], SILU),
    "silu, turned": ([node("Sigmoid", ["y"], ["s"]), node("Mul", ["s", "y"], ["out"])], SILU),
    "mish": (
        [node("Softplus", ["y"], ["s"]), node("Tanh", ["s"], ["t"]), node("Mul", ["y", "t"], ["out"])],
        Activation(curve=Curve((("Softplus", ()), ("Tanh", ())), gated=True)),
    ),
    "hard swish, in pieces": (
        [
            node("Add", ["three", "y"], ["a"]),
            node("Clip", ["a", "zero", "six"], ["c"]),
            node("Div", ["c", "six"], ["d"]),
            node("Mul", ["y", "d"], ["out"]),
        ],
        Activation(curve=HARD),
    ),
    "hard swish": ([node("HardSwish", ["y"], ["out"])], Activation(curve=Curve((("HardSwish", ()),)))),
    "hard sigmoid": ([node("HardSigmoid", ["y"], ["out"], alpha=0.5, beta=0.25)], Activation(-0.5, 1.5)),
    "elu": ([node("Elu", ["y"], ["out"], alpha=0.5)], Activation(curve=Curve((("Elu", (0.5,)),)))),
    "leaky": (
        [node("LeakyRelu", ["y"], ["out"])],
        Activation(curve=Curve((("LeakyRelu", (float(np.float32(0.01)),)),))),
    ),
    "prelu": (
        [node("PRelu", ["y", "slopes"], ["out"])],
        Activation(curve=Curve((("PRelu", tuple(np.linspace(0.1, 0.4, 6, dtype=np.float32).tolist())),))),
    ),
    "another's gate": ([node("Sigmoid", ["y"], ["s"]), node("Mul", ["x2", "s"], ["out"])], None),
    "two alike": ([node("Relu", ["y"], ["a"]), node("Relu", ["y"], ["out"])], Activation(low=0.0)),
    "two that differ": ([node("Relu", ["y"], ["a"]), node("Tanh", ["y"], ["out"])], Activation()),
    "a sum": ([node("Add", ["y", "two"], ["out"])], Activation()),
    "a gate that more reads": (
        [node("Sigmoid", ["y"], ["s"]), node("Mul", ["y", "s"], ["m"]), node("Add", ["m", "s"], ["out"])],
        Activation(),
    ),
    "a gate behind a difference": (
        [node("Sub", ["y", "three"], ["d"]), node("Sigmoid", ["d"], ["s"]), node("Mul", ["y", "s"], ["out"])],
        Activation(curve=Curve((("Add", (-3.0,)), ("Sigmoid", ())), gated=True)),
    ),
    "a gate that is no number": ([node("Div", ["y", "zero"], ["d"]), node("Mul", ["y", "d"], ["out"])], Activation()),
    "a gate by another value": ([node("Mul", ["y", "x2"], ["d"]), node("Mul", ["y", "d"], ["out"])], Activation()),
    "slopes that come in": ([node("PRelu", ["y", "x2"], ["out"])], Activation()),
    "slopes over places": ([node("PRelu", ["y", "places"], ["out"])], Activation()),
    "a bound that comes in": (
        [node("ReduceMin", ["x2"], ["low"], keepdims=0), node("Clip", ["y", "low"], ["out"])],
        Activation(),
    ),
    "somebody else's": ([node("Relu", ["y"], ["out"], domain="elsewhere")], Activation()),
    "somebody else's product": (
        [node("Sigmoid", ["y"], ["s"]), node("Mul", ["y", "s"], ["out"], domain="elsewhere")],
        Activation(),
    ),
    "nothing": ([node("AveragePool", ["y"], ["out"], kernel_shape=[1, 1])], Activation()),
}


def seen(nodes, answers=()):
    weights = {"w": normal(6, 4, 3, 3), "slopes": np.linspace(0.1, 0.4, 6, dtype=np.float32).reshape(6, 1, 1)}
    weights["places"] = np.linspace(0.1, 0.4, 9, dtype=np.float32)
    weights |= {name: np.array(number, np.float32) for name, number in NUMBERS.items()}
    conv = node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], name="site")
    inputs = [value("x", [1, 4, 9, 9]), value("x2", [1, 6, 9, 9])]
    model = load(
        make_model([conv, *nodes], inputs, [value("out", [1, 6, 9, 9])], weights, opset=16, domains=["elsewhere"])
    )
    shapes = resolve(model)
    (site,) = find_sites(shapes.model, shapes)
    return surroundings(shapes.model, site, answers)


@pytest.mark.parametrize("name", CASES)
def test_an_activation_is_seen(name):
    nodes, expected = CASES[name]
    branch, found = seen(nodes)
    if expected is None:  # the Sigmoid alone: what it is multiplied with is another's
        expected = Activation(curve=Curve((("Sigmoid", ()),)))
    assert branch is None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.curve is None) == (expected.curve is None)
    if found.curve is not None and expected.curve is not None:
        assert found.curve.gated == expected.curve.gated
        for one, other in zip(found.curve.steps, expected.curve.steps, strict=True):
            assert one[0] == other[0] and one[1] == pytest.approx(other[1])


def test_an_activation_behind_a_sum_is_seen_and_answers_count_as_they_are():
    nodes = [node("Add", ["y", "x2"], ["a"]), node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["out"])]
    assert seen(nodes) == ("x2", SILU)
    assert seen(nodes, ["a"]) == ("x2", Activation())
    assert seen(nodes, ["y"]) == (None, Activation())
