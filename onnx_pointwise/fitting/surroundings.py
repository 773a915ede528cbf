"""What becomes of a site's output: what it is added to, and the activation that follows."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnx_pointwise.graph import Site, constant
from onnx_pointwise.numerics import STEPS, Activation, Curve, Step

# What an operator's attributes are where they are not given, in the order in which `STEPS` takes them.
_DEFAULTS: dict[str, dict[str, float]] = {
    "Elu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "LeakyRelu": {"alpha": 0.01},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "Swish": {"alpha": 1.0},
}
# Operators that one constant number goes into.
_SCALAR = ("Add", "Sub", "Mul", "Div")
# Operators between a value and the product of it and its gate, at most.
_LONGEST = 5


def surroundings(model: ir.Model, site: Site, answers: Collection[str] = ()) -> tuple[str | None, Activation]:
    """Look at what follows a site.

    Args:
        model: The untouched model with its types inferred.
        site: One of its sites.
        answers: Names of values that count as they are, whatever else reads them.

    Returns:
        Name of the value that its output is added to, None for none; and the activation behind.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    value = values[str(site.output.name)]
    branch = None
    users = _users(value, answers)
    if users is not None and len(users) == 1 and users[0].op_type == "Add":
        others = [other for other in users[0].inputs if other is not value and other is not None]
        if len(others) == 1 and constant(others[0]) is None and _same_shape(others[0], value):
            branch, value = str(others[0].name), users[0].outputs[0]
            users = _users(value, answers)
    if not users:
        return branch, Activation()
    gate = _gate(value, users)
    found = {gate} if gate is not None else {_activation(node) for node in users}
    return branch, found.pop() if len(found) == 1 else Activation()


def _users(value: ir.Value, answers: Collection[str]) -> list[ir.Node] | None:
    """Nodes that read a value; None where it must be kept as it is: an answer, or an output of the network."""
    if value.is_graph_output() or value.name in answers:
        return None
    return list(dict.fromkeys(node for node, _ in value.uses()))


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and one.shape == other.shape


def _activation(node: ir.Node) -> Activation:
    """What one node is as an activation; a linear one for any other node."""
    step = None if node.op_type in _SCALAR else _step(node)
    if step is None:
        return Activation()
    name, numbers = step
    if name == "Relu":
        return Activation(low=0.0)
    if name == "Clip":
        return Activation(numbers[0], numbers[1])
    if name == "HardSigmoid" and numbers[0] > 0.0:
        return Activation(-numbers[1] / numbers[0], (1.0 - numbers[1]) / numbers[0])
    return Activation(curve=Curve((step,)))


def _gate(value: ir.Value, users: list[ir.Node]) -> Activation | None:
    """The activation that multiplies a value with what operators on single numbers make of it: SiLU, Mish and such."""
    if len(users) != 2:
        return None
    for product, node in (users, users[::-1]):
        if product.op_type != "Mul" or product.domain not in ("", "ai.onnx"):
            continue
        steps: list[Step] = []
        while len(steps) < _LONGEST and (step := _step(node)) is not None:
            steps.append(step)
            made = node.outputs[0]
            readers = _users(made, ())
            if readers is None or len(readers) != 1:
                break
            (node,) = readers
            if node is product:
                both = {id(one) for one in product.inputs}
                return Activation(curve=Curve(tuple(steps), gated=True)) if both == {id(value), id(made)} else None
    return None


def _step(node: ir.Node) -> Step | None:
    """An operator on single numbers with its own numbers; None for any other."""
    if node.domain not in ("", "ai.onnx"):
        return None
    kind = node.op_type
    if kind in _SCALAR:
        return _with_number(node)
    if kind == "Clip":
        return _clip(node)
    if kind == "PRelu":
        slopes = None if node.inputs[1] is None else constant(node.inputs[1])
        if slopes is None or not _by_map(tuple(slopes.shape.numpy()), node.inputs[0]):
            return None
        return kind, tuple(float(slope) for slope in slopes.numpy().ravel())
    if kind not in STEPS:
        return None
    given = {name: node.attributes.get(name) for name in _DEFAULTS.get(kind, {})}
    return kind, tuple(
        _DEFAULTS[kind][name] if attribute is None else attribute.as_float() for name, attribute in given.items()
    )


def _by_map(shape: tuple[int, ...], value: ir.Value | None) -> bool:
    """Whether a constant is one number, or one for each feature map of a value [N, C, ...]."""
    rank = None if value is None or value.shape is None else len(value.shape)
    return math.prod(shape) == 1 or (rank is not None and len(shape) == rank - 1 and math.prod(shape[1:]) == 1)


def _number(value: ir.Value | None) -> float | None:
    tensor = None if value is None else constant(value)
    if tensor is None or math.prod(tensor.shape.numpy()) != 1:
        return None
    return float(np.asarray(tensor.numpy()).reshape(()))


def _with_number(node: ir.Node) -> Step | None:
    first, second = node.inputs[0], node.inputs[1]
    kind = node.op_type
    number = _number(second)
    if number is None and kind in ("Add", "Mul"):
        number = _number(first)
    if number is None or (kind == "Div" and number == 0.0):
        return None
    if kind == "Sub":
        return "Add", (-number,)
    return ("Mul", (1.0 / number,)) if kind == "Div" else (kind, (number,))


def _clip(node: ir.Node) -> Step | None:
    bounds = [-math.inf, math.inf]
    for index, name in enumerate(("min", "max")):
        attribute = node.attributes.get(name)
        if attribute is not None:
            bounds[index] = attribute.as_float()
        value = node.inputs[index + 1] if len(node.inputs) > index + 1 else None
        if value is not None:
            number = _number(value)
            if number is None:
                return None
            bounds[index] = number
    return "Clip", tuple(bounds)
