"""Gradients of operators that work element by element, broadcasting included.

The derivatives of activations follow from their definitions in the ONNX operator specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnx_pointwise.study.vjp.draft import Call, RefusedError, Rule

# Constants of the ONNX operator Selu.
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _unary(slope: Callable[[Call], ir.Value]) -> Rule:
    """Make the rule of y = f(x) from f'."""
    return lambda call: {0: call.mul(call.g, slope(call))}


def _pass_on(call: Call) -> dict[int, ir.Value]:
    return {0: call.g}


def _negate(call: Call) -> dict[int, ir.Value]:
    return {0: call.op("Neg", call.g)}


def _relu(call: Call) -> ir.Value:
    return call.positive(call.node.outputs[0])


def _leaky_relu(call: Call) -> ir.Value:
    below = call.real("alpha", 0.01)
    # The output has the input's sign, and asking for it leaves the runtime free to fuse.
    value = call.node.outputs[0] if below > 0.0 else call.input(0)
    return call.add(call.mul(call.positive(value), 1.0 - below), below)


def _prelu(call: Call) -> dict[int, ir.Value]:
    # The slope broadcasts towards x only, so x has the output's shape.
    slope = call.draft.facts.constant(call.input(1))
    positive = call.positive(call.node.outputs[0] if slope is not None and (slope > 0).all() else call.input(0))
    below = call.x(1)
    return {0: call.mul(call.g, call.add(call.mul(positive, call.sub(1.0, below)), below))}


def _elu(call: Call) -> ir.Value:
    # Below zero y = alpha (exp(x) - 1), so y' = y + alpha.
    alpha = call.real("alpha", 1.0)
    return _piece(call, call.x(), 1.0, call.add(call.y, alpha))


def _celu(call: Call) -> ir.Value:
    # Below zero y = alpha (exp(x / alpha) - 1), so y' = y / alpha + 1.
    alpha = call.real("alpha", 1.0)
    return _piece(call, call.x(), 1.0, call.add(call.mul(call.y, 1.0 / alpha), 1.0))


def _selu(call: Call) -> ir.Value:
    alpha, gamma = call.real("alpha", _SELU_ALPHA), call.real("gamma", _SELU_GAMMA)
    return _piece(call, call.x(), gamma, call.add(call.y, alpha * gamma))


def _piece(call: Call, x: ir.Value, above: ir.Value | float, below: ir.Value | float) -> ir.Value:
    """`above` where x > 0, else `below`."""
    return call.draft.op("Where", call.op("Greater", x, 0.0), call.value(above), call.value(below))


def _thresholded_relu(call: Call) -> ir.Value:
    return call.mask("Greater", call.x(), call.real("alpha", 1.0))


def _sigmoid(call: Call) -> ir.Value:
    return call.mul(call.y, call.sub(1.0, call.y))


def _hard_sigmoid(call: Call) -> ir.Value:
    alpha = call.real("alpha", 0.2)
    return call.mul(_inside(call, call.y, 0.0, 1.0), alpha)


def _inside(call: Call, value: ir.Value, low: float, high: float) -> ir.Value:
    """1 where low < value < high, else 0."""
    both = call.draft.op("And", call.op("Greater", value, low), call.op("Less", value, high))
    return call.draft.op("Cast", both, to=ir.DataType.from_numpy(call.dtype).value)


def _hard_swish(call: Call) -> ir.Value:
    # y = x max(0, min(1, x / 6 + 1 / 2)).
    x = call.x()
    ramp = call.add(call.mul(x, 1.0 / 6.0), 0.5)
    clipped = call.draft.op("Clip", ramp, call.value(0.0), call.value(1.0))
    return call.add(clipped, call.mul(x, _inside(call, ramp, 0.0, 1.0), 1.0 / 6.0))


def _softplus(call: Call) -> ir.Value:
    return call.op("Sigmoid", call.x())


def _softsign(call: Call) -> ir.Value:
    falloff = call.add(call.op("Abs", call.x()), 1.0)
    return call.div(1.0, call.mul(falloff, falloff))


def _mish(call: Call) -> ir.Value:
    # y = x tanh(softplus(x)); softplus' is the sigmoid.
    x = call.x()
    t = call.op("Tanh", call.op("Softplus", x))
    return call.add(t, call.mul(x, call.op("Sigmoid", x), call.sub(1.0, call.mul(t, t))))


def _swish(call: Call) -> ir.Value:
    # y = x sigmoid(alpha x), so y' = s + alpha y (1 - s).
    alpha = call.real("alpha", 1.0)
    s = call.op("Sigmoid", call.mul(call.x(), alpha))
    return call.add(s, call.mul(call.mul(call.y, alpha), call.sub(1.0, s)))


def _gelu(call: Call) -> ir.Value:
    x = call.x()
    square = call.mul(x, x)
    if call.text("approximate", "none") == "tanh":
        # y = x / 2 (1 + tanh(c (x + 0.044715 x^3))).
        c = math.sqrt(2.0 / math.pi)
        t = call.op("Tanh", call.mul(x, call.add(call.mul(square, 0.044715 * c), c)))
        inner = call.add(call.mul(square, 3.0 * 0.044715 * c), c)
        rest = call.mul(x, call.sub(1.0, call.mul(t, t)), inner, 0.5)
        return call.add(call.add(call.mul(t, 0.5), 0.5), rest)
    cdf = call.add(call.mul(call.op("Erf", call.mul(x, math.sqrt(0.5))), 0.5), 0.5)
    density = call.mul(call.op("Exp", call.mul(square, -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
    return call.add(cdf, call.mul(x, density))


def _tanh(call: Call) -> ir.Value:
    return call.sub(1.0, call.mul(call.y, call.y))


def _erf(call: Call) -> ir.Value:
    x = call.x()
    return call.mul(call.op("Exp", call.op("Neg", call.mul(x, x))), 2.0 / math.sqrt(math.pi))


def _exp(call: Call) -> ir.Value:
    return call.y


def _log(call: Call) -> dict[int, ir.Value]:
    return {0: call.div(call.g, call.x())}


def _sqrt(call: Call) -> dict[int, ir.Value]:
    return {0: call.div(call.mul(call.g, 0.5), call.y)}


def _abs(call: Call) -> ir.Value:
    return call.op("Sign", call.x())


def _sin(call: Call) -> ir.Value:
    return call.op("Cos", call.x())


def _cos(call: Call) -> ir.Value:
    return call.op("Neg", call.op("Sin", call.x()))


def _atan(call: Call) -> dict[int, ir.Value]:
    return {0: call.div(call.g, call.add(call.mul(call.x(), call.x()), 1.0))}


def _reciprocal(call: Call) -> ir.Value:
    return call.op("Neg", call.mul(call.y, call.y))


def _clip(call: Call) -> dict[int, ir.Value]:
    x, kept = call.x(), call.g
    low = call.value(call.real("min", 0.0)) if "min" in call.node.attributes else call.x(1) if call.given(1) else None
    high = call.value(call.real("max", 0.0)) if "max" in call.node.attributes else call.x(2) if call.given(2) else None
    if low is not None:
        kept = call.mul(kept, call.mask("GreaterOrEqual", x, low))
    if high is not None:
        kept = call.mul(kept, call.mask("LessOrEqual", x, high))
    return {0: kept}


def _cast(call: Call) -> dict[int, ir.Value]:
    to = call.draft.facts.gradient_dtype(call.input(0))
    return {0: call.g if to == call.dtype else call.draft.op("Cast", call.g, to=ir.DataType.from_numpy(to).value)}


def _sum(call: Call) -> dict[int, ir.Value]:
    found: dict[int, ir.Value] = {}
    for index, wanted in enumerate(call.wanted):
        if wanted:
            found |= call.reduced(index, call.g)
    return found


def _mean(call: Call) -> dict[int, ir.Value]:
    share = call.mul(call.g, 1.0 / len(call.node.inputs))
    return {index: call.reduced(index, share)[index] for index, wanted in enumerate(call.wanted) if wanted}


def _sub(call: Call) -> dict[int, ir.Value]:
    found: dict[int, ir.Value] = {}
    if call.wanted[0]:
        found |= call.reduced(0, call.g)
    if call.wanted[1]:
        found |= {1: call.op("Neg", call.reduced(1, call.g)[1])}
    return found


def _mul(call: Call) -> dict[int, ir.Value]:
    found: dict[int, ir.Value] = {}
    for index in (0, 1):
        if call.wanted[index]:
            found |= call.reduced(index, call.mul(call.g, call.x(1 - index)))
    return found


def _div(call: Call) -> dict[int, ir.Value]:
    found: dict[int, ir.Value] = {}
    share = call.div(call.g, call.x(1))
    if call.wanted[0]:
        found |= call.reduced(0, share)
    if call.wanted[1]:
        found |= call.reduced(1, call.op("Neg", call.mul(share, call.y)))
    return found


def _pow(call: Call) -> dict[int, ir.Value]:
    found: dict[int, ir.Value] = {}
    exponent = call.input(1)
    power = call.x(1)
    if call.draft.facts.dtype(exponent) != call.dtype:
        power = call.draft.op("Cast", power, to=ir.DataType.from_numpy(call.dtype).value)
    if call.wanted[0]:
        known = call.draft.facts.known(exponent)
        if known is not None and known.size == 1 and float(known.reshape(())) == 2.0:
            slope = call.mul(call.x(), 2.0)
        else:
            slope = call.mul(power, call.op("Pow", call.x(), call.sub(power, 1.0)))
        found |= call.reduced(0, call.mul(call.g, slope))
    if call.wanted[1]:
        found |= call.reduced(1, call.mul(call.g, call.y, call.op("Log", call.x())))
    return found


def _extreme(call: Call) -> dict[int, ir.Value]:
    """Max and Min: to the operand that gave the value, in equal parts where several did."""
    masks = [call.mask("Equal", call.x(index), call.y) for index in range(len(call.node.inputs))]
    share = call.div(call.g, call.draft.total(masks))
    found: dict[int, ir.Value] = {}
    for index, wanted in enumerate(call.wanted):
        if wanted:
            found |= call.reduced(index, call.mul(share, masks[index]))
    return found


def _where(call: Call) -> dict[int, ir.Value]:
    found: dict[int, ir.Value] = {}
    taken = call.draft.op("Cast", call.x(0), to=ir.DataType.from_numpy(call.dtype).value)
    if call.wanted[1]:
        found |= call.reduced(1, call.mul(call.g, taken))
    if call.wanted[2]:
        found |= call.reduced(2, call.mul(call.g, call.sub(1.0, taken)))
    return found


def _dropout(call: Call) -> dict[int, ir.Value]:
    """It passes everything on unless it is told to train."""
    training = call.known(2)
    if training is not None and bool(np.any(training)):
        raise RefusedError("it is in training mode")
    return {0: call.g}


RULES: dict[str, Rule] = {
    "Abs": _unary(_abs),
    "Add": _sum,
    "Atan": _atan,
    "Cast": _cast,
    "CastLike": _cast,
    "Celu": _unary(_celu),
    "Clip": _clip,
    "Cos": _unary(_cos),
    "Div": _div,
    "Dropout": _dropout,
    "Elu": _unary(_elu),
    "Erf": _unary(_erf),
    "Exp": _unary(_exp),
    "Gelu": _unary(_gelu),
    "HardSigmoid": _unary(_hard_sigmoid),
    "HardSwish": _unary(_hard_swish),
    "Identity": _pass_on,
    "LeakyRelu": _unary(_leaky_relu),
    "Log": _log,
    "Max": _extreme,
    "Mean": _mean,
    "Min": _extreme,
    "Mish": _unary(_mish),
    "Mul": _mul,
    "Neg": _negate,
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _unary(_reciprocal),
    "Relu": _unary(_relu),
    "Selu": _unary(_selu),
    "Sigmoid": _unary(_sigmoid),
    "Sin": _unary(_sin),
    "Softplus": _unary(_softplus),
    "Softsign": _unary(_softsign),
    "Sqrt": _sqrt,
    "Sub": _sub,
    "Sum": _sum,
    "Swish": _unary(_swish),
    "Tanh": _unary(_tanh),
    "ThresholdedRelu": _unary(_thresholded_relu),
    "Where": _where,
}
