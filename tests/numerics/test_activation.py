"""Activations as the runtime computes them, and targets before them that lower the error behind."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnx_pointwise.numerics.activation import LINEAR, STEPS, Activation, Curve
from onnx_pointwise.numerics.reconstruct import reconstruct
from tests.numerics.test_reconstruct import Problem

SILU = Curve((("Sigmoid", ()),), gated=True)
CURVES = {
    "Sigmoid": Curve((("Sigmoid", ()),)),
    "Tanh": Curve((("Tanh", ()),)),
    "Elu": Curve((("Elu", (0.7,)),)),
    "LeakyRelu": Curve((("LeakyRelu", (0.1,)),)),
    "PRelu": Curve((("PRelu", (0.3, 0.1, 0.0, 0.5, -0.2, 1.0)),)),
    "Silu": SILU,
    "HardSwish": Curve((("HardSwish", ()),)),
    "Mish": Curve((("Softplus", ()), ("Tanh", ())), gated=True),
}
ATTRIBUTES = {
    "Elu": {"alpha": 0.7},
    "Selu": {"alpha": 1.5, "gamma": 1.1},
    "LeakyRelu": {"alpha": 0.2},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "Swish": {"alpha": 1.3},
}
PLAIN = ["Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Mish", "Relu", "Gelu", *ATTRIBUTES]


@pytest.mark.parametrize("name", PLAIN)
def test_operators_compute_what_onnx_says(name):
    if name == "Swish" and onnx.defs.onnx_opset_version() < 24:
        pytest.skip("this version of onnx does not know it")
    attributes = ATTRIBUTES.get(name, {})
    x = np.linspace(-9.0, 9.0, 181, dtype=np.float32).reshape(1, -1)
    node = helper.make_node(name, ["x"], ["y"], **attributes)
    values = [helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, x.shape) for key in "xy"]
    opset = helper.make_opsetid("", 24 if name == "Swish" else 22)
    model = helper.make_model(helper.make_graph([node], "one", values[:1], values[1:]), opset_imports=[opset])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(STEPS[name](x, *attributes.values()), expected, atol=1e-3 if name == "Gelu" else 1e-5)


@pytest.mark.parametrize("name", CURVES)
def test_targets_lie_between_and_step_less_where_it_is_shallow(name):
    curve, rng = CURVES[name], np.random.default_rng(3)
    true, now = (4.0 * rng.standard_normal((6, 500)).astype(np.float32) for _ in range(2))
    targets = Activation(curve=curve).targets(true, now)
    assert targets.dtype == np.float32
    low, high = np.minimum(true, now), np.maximum(true, now)
    assert np.all((targets >= low - 1e-4) & (targets <= high + 1e-4))
    # As steep as it gets: the true value itself.
    steep = np.array([[2.0], [2.001]], np.float32)
    slopes = Activation(curve=Curve((("LeakyRelu", (0.1,)),))).targets(steep[:1], steep[1:])
    np.testing.assert_allclose(slopes, steep[:1], rtol=1e-6)
    np.testing.assert_array_equal(Activation(curve=curve).targets(true, true), true)


@pytest.mark.parametrize("name", CURVES)
def test_a_round_of_free_outputs_lowers_the_error_behind_a_curve(name):
    activation, rng = Activation(curve=CURVES[name]), np.random.default_rng(5)
    true = 2.0 * rng.standard_normal((6, 400)).astype(np.float32)
    now = true + 0.3 * rng.standard_normal(true.shape).astype(np.float32)
    assert activation.lost(true, activation.targets(true, now)) < activation.lost(true, now)
    assert activation.lost(true, true) == 0.0


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from(sorted(CURVES)), st.booleans())
def test_rounds_through_a_curve_lower_the_error_behind_it(seed, name, branch):
    problem, activation = Problem(seed, branch=branch), Activation(curve=CURVES[name])
    solve = partial(reconstruct, problem.kernel, problem.bias, "reduce", 2, problem.blocks, activation=activation)

    def behind(rounds: int) -> float:
        done = solve(rounds=rounds)
        weights = done.factors.kernel.astype(np.float64)
        composed = np.einsum("orhw,ri->oihw", weights, done.factors.before.astype(np.float64))
        y = composed.reshape(len(composed), -1) @ problem.patches + done.bias[:, None]
        added = 0.0 if problem.added is None else problem.added
        return activation.lost(problem.targets + added, y + added)

    assert behind(3) < behind(0) * 1.005


def test_what_is_linear():
    assert LINEAR.linear
    assert not Activation(curve=SILU).linear
    assert SILU.steepest == pytest.approx(1.0998, abs=1e-3)
    assert CURVES["Sigmoid"].steepest == pytest.approx(0.25, abs=1e-3)
    assert Curve((("PRelu", (0.3, 1.7)),)).steepest == pytest.approx(1.7, abs=1e-3)
