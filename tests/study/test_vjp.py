"""The gradient of every operator against finite differences, on shapes, axes and paddings drawn by hypothesis."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_pointwise.study.gradients import Backward
from onnx_pointwise.study.vjp import RULES
from tests.graphs import Array
from tests.study.derivatives import as_ir, assert_gradients, node, small_model

# Each step of shrinking opens three sessions, and what fails is small as it is.
PHASES = (Phase.explicit, Phase.generate)
few = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
some = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
seeds = st.integers(0, 2**16)


def away(shape: tuple[int, ...], seed: int, kinks: tuple[float, ...] = (0.0,), spread: float = 1.5) -> Array:
    """Numbers that stay clear of kinks."""
    x = np.asarray(np.random.default_rng(seed).uniform(-spread, spread, shape))
    for kink in kinks:
        near = np.abs(x - kink) < 0.06
        x = np.where(near, kink + np.where(x < kink, -0.07, 0.07), x)
    return np.asarray(x)


def spread(shape: tuple[int, ...], seed: int) -> Array:
    """Numbers whose deviation along any axis is not small: what is divided by it must not bend much."""
    places = np.indices(shape).sum(0) % 3
    return np.asarray(2.0 * places + np.random.default_rng(seed).uniform(-0.4, 0.4, shape))


def positive(shape: tuple[int, ...], seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).uniform(0.5, 2.0, shape))


def apart(shape: tuple[int, ...], seed: int) -> Array:
    """Numbers no two of which are close, so that the largest stays the largest."""
    count = math.prod(shape)
    return (np.random.default_rng(seed).permutation(count) * 0.1 - 0.05 * count + 0.025).reshape(shape)


SMOOTH: list[tuple[str, dict[str, Any], int, tuple[float, ...]]] = [
    ("Abs", {}, 13, (0.0,)),
    ("Atan", {}, 13, ()),
    ("Celu", {"alpha": 0.7}, 12, (0.0,)),
    ("Cos", {}, 9, ()),
    ("Elu", {}, 9, (0.0,)),
    ("Elu", {"alpha": 0.6}, 9, (0.0,)),
    ("Erf", {}, 13, ()),
    ("Exp", {}, 13, ()),
    ("Gelu", {}, 20, ()),
    ("Gelu", {"approximate": "tanh"}, 20, ()),
    ("HardSigmoid", {}, 9, (-2.5, 2.5)),
    ("HardSigmoid", {"alpha": 0.6, "beta": 0.4}, 9, (-2 / 3, 1.0)),
    ("HardSwish", {}, 14, (-3.0, 3.0)),
    ("Identity", {}, 13, ()),
    ("LeakyRelu", {}, 9, (0.0,)),
    ("LeakyRelu", {"alpha": 0.3}, 16, (0.0,)),
    ("Mish", {}, 18, ()),
    ("Neg", {}, 13, ()),
    ("Relu", {}, 9, (0.0,)),
    ("Relu", {}, 14, (0.0,)),
    ("Selu", {}, 9, (0.0,)),
    ("Selu", {"alpha": 1.2, "gamma": 0.9}, 9, (0.0,)),
    ("Sigmoid", {}, 13, ()),
    ("Sin", {}, 9, ()),
    ("Softplus", {}, 9, ()),
    ("Softsign", {}, 9, (0.0,)),
    ("Swish", {"alpha": 1.3}, 24, ()),
    ("Tanh", {}, 13, ()),
    ("ThresholdedRelu", {"alpha": 0.5}, 10, (0.5,)),
    ("Dropout", {}, 9, ()),
    ("Dropout", {}, 13, ()),
]


@pytest.mark.parametrize(("op_type", "attributes", "opset", "kinks"), SMOOTH)
@given(shape=shapes, seed=seeds)
@settings(few, max_examples=4)
def test_functions_of_one_number(
    op_type: str, attributes: dict[str, Any], opset: int, kinks: tuple[float, ...], shape: tuple[int, ...], seed: int
) -> None:
    x = away(shape, seed, kinks, 4.0 if op_type.startswith("Hard") else 1.5)
    assert_gradients(node(op_type, ["x"], **attributes), {"x": x}, opset=opset)


@pytest.mark.parametrize("op_type", ["Log", "Sqrt", "Reciprocal"])
@given(shape=shapes, seed=seeds)
@settings(few, max_examples=4)
def test_functions_of_one_positive_number(op_type: str, shape: tuple[int, ...], seed: int) -> None:
    assert_gradients(node(op_type, ["x"]), {"x": positive(shape, seed)})


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean"])
@given(pair=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3), seed=seeds, held=st.integers(0, 2))
@settings(few, max_examples=8)
def test_arithmetic(op_type: str, pair: Any, seed: int, held: int) -> None:
    first, second = pair.input_shapes
    together = apart((math.prod(first) + math.prod(second),), seed) if op_type in ("Max", "Min") else None
    if together is None:
        arrays = {"a": positive(first, seed), "b": positive(second, seed + 1)}
    else:
        arrays = {
            "a": together[: math.prod(first)].reshape(first),
            "b": together[math.prod(first) :].reshape(second),
        }
    # Either operand may be a weight.
    stored = {name: arrays.pop(name) for name in ("a", "b")[held : held + 1]}
    assert_gradients(node(op_type, ["a", "b"]), arrays, stored)


@given(shape=shapes, exponent=st.sampled_from([2.0, 3.0, 0.5, -1.0]), whole=st.booleans(), seed=seeds)
@few
def test_powers(shape: tuple[int, ...], exponent: float, whole: bool, seed: int) -> None:
    stored: dict[str, Array] = {"float32_p": np.array(exponent, np.float32)}
    if whole and exponent == int(exponent) and exponent > 0:
        stored = {"float32_p": np.array(int(exponent), np.int64)}
    assert_gradients(node("Pow", ["x", "float32_p"]), {"x": positive(shape, seed)}, stored)


def test_power_of_negative_numbers() -> None:
    assert_gradients(node("Pow", ["x", "p"]), {"x": away((3, 4), 0)}, {"p": np.array(2.0)})
    assert_gradients(node("Pow", ["x", "p"]), {"x": away((3, 4), 0)}, {"p": np.array(3.0)})


@given(shape=st.lists(st.integers(1, 3), min_size=2, max_size=4), shared=st.booleans(), seed=seeds)
@few
def test_prelu(shape: list[int], shared: bool, seed: int) -> None:
    slope = positive((1 if shared else shape[1], *[1] * (len(shape) - 2)), seed)
    assert_gradients(node("PRelu", ["x", "slope"]), {"x": away(tuple(shape), seed)}, {"slope": slope})


@given(triple=hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3), seed=seeds)
@few
def test_where(triple: Any, seed: int) -> None:
    condition, first, second = triple.input_shapes
    which = np.asarray(np.random.default_rng(seed).random(condition) < 0.5)
    assert_gradients(
        node("Where", ["which", "a", "b"]), {"which": which, "a": away(first, seed), "b": away(second, seed + 1)}
    )


@pytest.mark.parametrize("opset", [6, 9, 11, 13])
@given(shape=shapes, low=st.booleans(), high=st.booleans(), seed=seeds)
@settings(few, max_examples=4)
def test_clip(opset: int, shape: tuple[int, ...], low: bool, high: bool, seed: int) -> None:
    x = away(shape, seed, (-0.5, 0.75))
    bounds = {"min": -0.5} if low else {}
    bounds |= {"max": 0.75} if high else {}
    if opset < 11:
        assert_gradients(node("Clip", ["x"], **bounds), {"x": x}, opset=max(opset, 7))
        return
    names = ["x", "min" if low else "", "max" if high else ""]
    assert_gradients(node("Clip", names), {"x": x}, {key: np.array(item) for key, item in bounds.items()}, opset=opset)


def test_casts_between_floats() -> None:
    nodes = [node("Cast", ["x"], ["t"], to=1), node("Mul", ["t", "float32_w"], ["m"]), node("Cast", ["m"], to=11)]
    nodes[2].name = "back"
    stored = {"float32_w": away((3, 4), 1).astype(np.float32)}
    x = away((3, 4), 0)
    model, inputs = small_model(nodes, {"x": x}, stored, 17, np.float64)
    backward = Backward(as_ir(model, {"x": x.shape}), ["y"], {"x": "x", "t": "t"}, inputs, threads=1)
    _, found = backward.run(inputs, {"y": np.ones((3, 4))})
    assert (found["x"].dtype, found["t"].dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(found["x"], stored["float32_w"])


def test_casts_to_the_type_of_another() -> None:
    assert_gradients(node("CastLike", ["x", "w"]), {"x": away((2, 3), 0)}, {"w": np.zeros(1)}, opset=15)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    side = 3 if rank < 3 else 2
    kernel = draw(st.lists(st.integers(1, side), min_size=rank, max_size=rank))
    dilations = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    strides = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    if draw(st.booleans()):
        strides = [1] * rank
    group = draw(st.sampled_from([1, 1, 2, 4]))
    inputs, outputs = (group * draw(st.integers(1, 2)) for _ in range(2))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    auto = draw(st.sampled_from(["", "", "", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto:
        attributes["auto_pad"] = auto
        if auto.startswith("SAME"):
            attributes["dilations"] = dilations = [1] * rank
    else:
        attributes["pads"] = draw(st.lists(st.integers(0, 3), min_size=2 * rank, max_size=2 * rank))
    size = [draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 5)) for k, d in zip(kernel, dilations, strict=True)]
    return {
        "shape": (draw(st.integers(1, 2)), inputs, *size),
        "kernel": (outputs, inputs // group, *kernel),
        "attributes": attributes,
        "seed": draw(seeds),
        "dynamic": draw(st.booleans()),
    }


@given(case=convolutions())
@settings(some, max_examples=60)
def test_convolution(case: dict[str, Any]) -> None:
    x, kernel = away(case["shape"], case["seed"]), away(case["kernel"], case["seed"] + 1)
    stored = {"b": away((len(kernel),), 5)}
    inputs = {"x": x}
    (inputs if case["dynamic"] else stored)["w"] = kernel
    assert_gradients(node("Conv", ["x", "w", "b"], **case["attributes"]), inputs, stored, wanted=["x"])


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> dict[str, Any]:
    case = draw(convolutions())
    rank = len(case["shape"]) - 2
    attributes = case["attributes"]
    attributes.pop("auto_pad", None)
    attributes.pop("pads", None)
    kernel, strides, dilations = case["kernel"][2:], attributes["strides"], attributes["dilations"]
    spans = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    how = draw(st.sampled_from(["pads", "pads", "output_padding", "SAME_UPPER", "SAME_LOWER", "output_shape"]))
    if how in ("pads", "output_padding"):
        attributes["pads"] = [draw(st.integers(0, min(2, span))) for span in spans + spans]
    if how == "output_padding":
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    if how.startswith("SAME"):
        attributes["auto_pad"] = how
    if how == "output_shape":
        attributes["output_shape"] = [
            s * (n - 1) + 1 + draw(st.integers(0, span))
            for s, n, span in zip(strides, case["shape"][2:], spans, strict=True)
        ]
        attributes |= draw(st.sampled_from([{}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}]))
    outputs, inputs = case["kernel"][1], case["shape"][1]
    case["kernel"] = (inputs, outputs, *case["kernel"][2:])
    assert len(strides) == rank
    return case


@given(case=transposed_convolutions())
@settings(some, max_examples=60)
def test_transposed_convolution(case: dict[str, Any]) -> None:
    x, kernel = away(case["shape"], case["seed"]), away(case["kernel"], case["seed"] + 1)
    assert_gradients(node("ConvTranspose", ["x", "w"], **case["attributes"]), {"x": x}, {"w": kernel})


@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
    turns=st.tuples(st.booleans(), st.booleans()),
    bias=st.sampled_from(["none", "scalar", "row", "column", "full"]),
    fixed=st.booleans(),
    seed=seeds,
)
@some
def test_gemm(sizes: tuple[int, int, int], turns: tuple[bool, bool], bias: str, fixed: bool, seed: int) -> None:
    rows, inner, columns = sizes
    arrays = {
        "a": away((inner, rows) if turns[0] else (rows, inner), seed),
        "b": away((columns, inner) if turns[1] else (inner, columns), seed + 1),
    }
    shape = {"scalar": (), "row": (columns,), "column": (rows, 1), "full": (rows, columns)}.get(bias)
    if shape is not None:
        arrays["c"] = away(shape, seed + 2)
    stored = {"b": arrays.pop("b")} if fixed else {}
    names = ["a", "b", *(["c"] if shape is not None else [])]
    attributes = {"alpha": 0.7, "beta": 1.3, "transA": int(turns[0]), "transB": int(turns[1])}
    assert_gradients(node("Gemm", names, **attributes), arrays, stored)


@given(lead=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3), kind=st.integers(0, 3), seed=seeds)
@some
def test_matmul(lead: Any, kind: int, seed: int) -> None:
    first, second = (*lead.input_shapes[0], 3, 4), (*lead.input_shapes[1], 4, 2)
    first, second = (4,) if kind in (1, 3) else first, (4,) if kind in (2, 3) else second
    assert_gradients(node("MatMul", ["a", "b"]), {"a": away(first, seed), "b": away(second, seed + 1)})


@st.composite
def pools(draw: st.DrawFn, dilated: bool) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)),
    }
    if draw(st.booleans()):
        attributes["strides"] = [1] * rank
    dilations = [1] * rank
    if dilated:
        dilations = attributes["dilations"] = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    auto = draw(st.sampled_from(["", "", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto and not (dilated and auto != "VALID"):
        attributes["auto_pad"] = auto
        # Where steps are wider than windows the runtime refuses what "same" leads to.
        attributes["strides"] = [min(s, k) for s, k in zip(attributes["strides"], kernel, strict=True)]
    else:
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        attributes["ceil_mode"] = draw(st.integers(0, 1))
    size = [draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 4)) for k, d in zip(kernel, dilations, strict=True)]
    return {"shape": (draw(st.integers(1, 2)), 2, *size), "attributes": attributes, "seed": draw(seeds)}


@given(case=pools(dilated=True), opset=st.sampled_from([10, 12, 22]))
@some
def test_max_pool(case: dict[str, Any], opset: int) -> None:
    assert_gradients(
        node("MaxPool", ["x"], **case["attributes"]), {"x": apart(case["shape"], case["seed"])}, opset=opset
    )


@given(case=pools(dilated=False), inside=st.integers(0, 1), opset=st.sampled_from([10, 11, 19, 22]))
@settings(some, max_examples=60)
def test_average_pool(case: dict[str, Any], inside: int, opset: int) -> None:
    attributes = {**case["attributes"], "count_include_pad": inside}
    assert_gradients(node("AveragePool", ["x"], **attributes), {"x": away(case["shape"], case["seed"])}, opset=opset)


@given(case=pools(dilated=True), inside=st.integers(0, 1))
@few
def test_dilated_average_pool(case: dict[str, Any], inside: int) -> None:
    attributes = {**case["attributes"], "count_include_pad": inside}
    assert_gradients(node("AveragePool", ["x"], **attributes), {"x": away(case["shape"], case["seed"])}, opset=19)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
@given(shape=hnp.array_shapes(min_dims=3, max_dims=5, max_side=4), seed=seeds)
@few
def test_global_pools(op_type: str, shape: tuple[int, ...], seed: int) -> None:
    assert_gradients(node(op_type, ["x"]), {"x": apart(shape, seed)})


@given(shape=hnp.array_shapes(min_dims=4, max_dims=4, max_side=5), size=st.sampled_from([1, 3, 5]), seed=seeds)
@few
def test_lrn(shape: tuple[int, ...], size: int, seed: int) -> None:
    attributes = {"size": size, "alpha": 0.5, "beta": 0.8, "bias": 1.2}
    assert_gradients(node("LRN", ["x"], **attributes), {"x": away(shape, seed)})


@given(shape=hnp.array_shapes(min_dims=2, max_dims=5, max_side=4), opset=st.sampled_from([9, 14, 15]), seed=seeds)
@few
def test_batch_normalization(shape: tuple[int, ...], opset: int, seed: int) -> None:
    stored = {name: positive((shape[1],), seed + index) for index, name in enumerate("sbmv")}
    inputs = ["x", *"sbmv"]
    assert_gradients(node("BatchNormalization", inputs, epsilon=1e-3), {"x": away(shape, seed)}, stored, opset=opset)


@given(shape=hnp.array_shapes(min_dims=3, max_dims=5, min_side=3, max_side=4), seed=seeds)
@few
def test_instance_normalization(shape: tuple[int, ...], seed: int) -> None:
    stored = {name: positive((shape[1],), seed + index) for index, name in enumerate("sb")}
    assert_gradients(node("InstanceNormalization", ["x", "s", "b"]), {"x": spread(shape, seed)}, stored)


@given(
    groups=st.integers(1, 3),
    each=st.integers(1, 3),
    size=st.lists(st.integers(3, 4), min_size=1, max_size=2),
    opset=st.sampled_from([18, 21]),
    seed=seeds,
)
@few
def test_group_normalization(groups: int, each: int, size: list[int], opset: int, seed: int) -> None:
    count = groups if opset < 21 else groups * each
    stored = {name: positive((count,), seed + index) for index, name in enumerate("sb")}
    x = spread((2, groups * each, *size), seed)
    assert_gradients(
        node("GroupNormalization", ["x", "s", "b"], num_groups=groups), {"x": x}, stored, opset=opset, step=1e-2
    )


@given(shape=hnp.array_shapes(min_dims=2, max_dims=4, min_side=3, max_side=4), data=st.data(), seed=seeds)
@few
def test_layer_normalization(shape: tuple[int, ...], data: st.DataObject, seed: int) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    stored = {name: positive(shape[axis % len(shape) :], seed + index) for index, name in enumerate("sb")}
    names = ["x", "s", *data.draw(st.sampled_from([[], ["b"]]))]
    assert_gradients(
        node("LayerNormalization", names, axis=axis),
        {"x": spread(shape, seed)},
        {name: stored[name] for name in names[1:]},
    )


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=2, max_side=4),
    p=st.integers(1, 2),
    data=st.data(),
    seed=seeds,
)
@few
def test_lp_normalization(shape: tuple[int, ...], p: int, data: st.DataObject, seed: int) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    assert_gradients(node("LpNormalization", ["x"], axis=axis, p=p), {"x": away(shape, seed)})


@given(
    shape=hnp.array_shapes(min_dims=4, max_dims=4, min_side=2, max_side=3), opset=st.sampled_from([9, 13]), seed=seeds
)
@few
def test_mean_variance_normalization(shape: tuple[int, ...], opset: int, seed: int) -> None:
    assert_gradients(node("MeanVarianceNormalization", ["x"]), {"x": spread(shape, seed)}, opset=opset)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@given(shape=shapes, opset=st.sampled_from([9, 11, 13]), data=st.data(), seed=seeds)
@few
def test_softmax(op_type: str, shape: tuple[int, ...], opset: int, data: st.DataObject, seed: int) -> None:
    low = -len(shape) if opset >= 11 else 0
    axis = data.draw(st.integers(low, len(shape) - 1))
    given_axis = data.draw(st.booleans()) or (opset < 13 and len(shape) < 2)
    assert_gradients(
        node(op_type, ["x"], **({"axis": axis} if given_axis else {})), {"x": away(shape, seed, ())}, opset=opset
    )


_REDUCTIONS = ["Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]


@pytest.mark.parametrize("kind", _REDUCTIONS)
@given(shape=shapes, opset=st.sampled_from([11, 13, 18]), keep=st.integers(0, 1), data=st.data(), seed=seeds)
@settings(few, max_examples=8)
def test_reductions(kind: str, shape: tuple[int, ...], opset: int, keep: int, data: st.DataObject, seed: int) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=len(shape)))
    axes = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    x = apart(shape, seed) if kind in ("Max", "Min") else positive(shape, seed)
    if opset >= 18 or (kind == "Sum" and opset >= 13):
        stored = {"axes": np.array(axes, np.int64)} if axes else {}
        assert_gradients(node(f"Reduce{kind}", ["x", *stored], keepdims=keep), {"x": x}, stored, opset=opset)
    else:
        attributes = {"axes": axes} if axes else {}
        assert_gradients(node(f"Reduce{kind}", ["x"], keepdims=keep, **attributes), {"x": x}, opset=opset)


def test_reduction_of_nothing() -> None:
    stored = {"axes": np.zeros(0, np.int64)}
    assert_gradients(node("ReduceSum", ["x", "axes"], noop_with_empty_axes=1), {"x": away((2, 3), 0)}, stored, opset=13)


_TRANSFORMS = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]


@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    wanted=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    transform=st.sampled_from(_TRANSFORMS),
    rounding=st.sampled_from(["round_prefer_floor", "floor", "ceil"]),
    opset=st.sampled_from([11, 13, 18, 19]),
    by_scale=st.booleans(),
    antialias=st.booleans(),
    seed=seeds,
)
@settings(some, max_examples=60)
def test_resize(
    size: tuple[int, int],
    wanted: tuple[int, int],
    mode: str,
    transform: str,
    rounding: str,
    opset: int,
    by_scale: bool,
    antialias: bool,
    seed: int,
) -> None:
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": transform}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    if antialias and opset >= 18 and mode != "nearest":
        attributes["antialias"] = 1
    stored: dict[str, Array] = {"roi": np.zeros(0, np.float32)}
    if by_scale:
        scales = [new / old for new, old in zip(wanted, size, strict=True)]
        stored = {"float32_scales": np.array([1.0, 1.0, *scales], np.float32)}
        names = ["x", "", "float32_scales"]
        if opset < 13:
            stored["float32_roi"] = np.zeros(0, np.float32)
            names[1] = "float32_roi"
    else:
        stored = {"sizes": np.array([2, 2, *wanted], np.int64)}
        names = ["x", "", "", "sizes"]
        if opset < 13:
            stored |= {"float32_roi": np.zeros(0, np.float32), "float32_scales": np.zeros(0, np.float32)}
            names[1:3] = ["float32_roi", "float32_scales"]
    assert_gradients(node("Resize", names, **attributes), {"x": away((2, 2, *size), seed)}, stored, opset=opset)


@pytest.mark.parametrize("rank", [1, 3])
def test_resize_of_other_ranks(rank: int) -> None:
    for mode in ("nearest", "linear"):
        stored = {"float32_scales": np.array([1.0, 1.0, *[1.6] * rank], np.float32)}
        x = away((1, 2, *[4] * rank), 1)
        assert_gradients(node("Resize", ["x", "", "float32_scales"], mode=mode), {"x": x}, stored, opset=13)


def test_resize_of_channels_and_chosen_axes() -> None:
    stored = {"float32_scales": np.array([1.0, 3.0, 2.0, 1.5], np.float32)}
    assert_gradients(node("Resize", ["x", "", "float32_scales"]), {"x": away((2, 2, 3, 3), 0)}, stored, opset=13)
    stored = {"sizes": np.array([7, 5], np.int64)}
    names = ["x", "", "", "sizes"]
    assert_gradients(node("Resize", names, axes=[3, 2], mode="linear"), {"x": away((2, 2, 3, 3), 0)}, stored, opset=18)


@given(
    op=st.sampled_from([("Upsample", 9), ("Resize", 10)]),
    mode=st.sampled_from(["nearest", "linear"]),
    scales=st.tuples(st.sampled_from([1.0, 1.5, 2.0, 3.0]), st.sampled_from([1.0, 2.0, 2.5])),
    seed=seeds,
)
@few
def test_early_resizes(op: tuple[str, int], mode: str, scales: tuple[float, float], seed: int) -> None:
    stored = {"float32_s": np.array([1.0, 1.0, *scales], np.float32)}
    assert_gradients(node(op[0], ["x", "float32_s"], mode=mode), {"x": away((1, 2, 3, 4), seed)}, stored, opset=op[1])


@given(shape=shapes, count=st.integers(1, 3), data=st.data(), seed=seeds)
@few
def test_concat(shape: tuple[int, ...], count: int, data: st.DataObject, seed: int) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    arrays = {}
    for index in range(count):
        own = list(shape)
        own[axis] = data.draw(st.integers(1, 3))
        arrays[f"x{index}"] = away(tuple(own), seed + index)
    stored = {"x0": arrays.pop("x0")} if count > 1 and data.draw(st.booleans()) else {}
    assert_gradients(node("Concat", [f"x{index}" for index in range(count)], axis=axis), arrays, stored)


@given(
    sizes=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    used=st.integers(0, 2),
    opset=st.sampled_from([9, 13]),
    axis=st.sampled_from([0, 1, -1]),
    seed=seeds,
)
@few
def test_split(sizes: list[int], used: int, opset: int, axis: int, seed: int) -> None:
    assume(not (opset < 11 and axis < 0))
    shape = [2, 3, 2]
    shape[axis] = sum(sizes)
    outputs = [f"s{index}" for index in range(len(sizes))]
    stored = {"split": np.array(sizes, np.int64)} if opset >= 13 else {}
    attributes = {} if opset >= 13 else {"split": sizes}
    part = node("Split", ["x", *stored], outputs, axis=axis, **attributes)
    # The part that is used goes through something that is not linear.
    assert_gradients(
        [part, node("Exp", [outputs[min(used, len(sizes) - 1)]])], {"x": away(tuple(shape), seed)}, stored, opset=opset
    )


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=2, max_side=7),
    opset=st.sampled_from([9, 10, 13]),
    data=st.data(),
    seed=seeds,
)
@settings(some, max_examples=50)
def test_slice(shape: tuple[int, ...], opset: int, data: st.DataObject, seed: int) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1, max_size=len(shape)))
    starts, ends, steps = [], [], []
    for axis in axes:
        size = shape[axis]
        step = 1 if opset < 10 else data.draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        first, last = sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True)))
        start, end = (first, last) if step > 0 else (last - 1, first - 1)
        if step > 0 and data.draw(st.booleans()):
            start, end = start - size, (end - size if end < size else 2**31)
        if step < 0 and end < 0:
            end = data.draw(st.sampled_from([-size - 1, -(2**31)]))
        starts.append(start)
        ends.append(end)
        steps.append(step)
    x = {"x": away(shape, seed)}
    if opset < 10:
        assert_gradients(node("Slice", ["x"], axes=axes, starts=starts, ends=ends), x, opset=opset)
        return
    bounds = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    stored = {name: np.array(numbers, np.int64) for name, numbers in bounds.items()}
    assert_gradients(node("Slice", ["x", *bounds]), x, stored, opset=opset)


@given(shape=shapes, data=st.data(), seed=seeds)
@some
def test_gather(shape: tuple[int, ...], data: st.DataObject, seed: int) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    picked = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=9))
    indices = np.random.default_rng(seed).integers(-size, size, picked)
    assert_gradients(node("Gather", ["x", "i"], axis=axis), {"x": away(shape, seed)}, {"i": np.asarray(indices)})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=3, max_side=4),
    opset=st.sampled_from([10, 11, 18]),
    data=st.data(),
    seed=seeds,
)
@few
def test_pad(mode: str, shape: tuple[int, ...], opset: int, data: st.DataObject, seed: int) -> None:
    opset = 19 if mode == "wrap" else opset
    low = -1 if mode == "constant" else 0
    pads = data.draw(st.lists(st.integers(low, 2), min_size=2 * len(shape), max_size=2 * len(shape)))
    x = {"x": away(shape, seed)}
    if opset < 11:
        assert_gradients(node("Pad", ["x"], mode=mode, pads=pads), x, opset=opset)
    elif opset < 18 or len(shape) < 2:
        assert_gradients(node("Pad", ["x", "p"], mode=mode), x, {"p": np.array(pads, np.int64)}, opset=opset)
    else:
        stored = {"p": np.array([*pads[1:2], *pads[3:4]], np.int64), "axes": np.array([-1], np.int64)}
        assert_gradients(node("Pad", ["x", "p", "", "axes"], mode=mode), x, stored, opset=opset)


@given(shape=shapes, data=st.data(), seed=seeds)
@few
def test_transpose(shape: tuple[int, ...], data: st.DataObject, seed: int) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    attributes = {"perm": order} if data.draw(st.booleans()) else {}
    assert_gradients(node("Transpose", ["x"], **attributes), {"x": away(shape, seed)})


@given(shape=shapes, seed=seeds, data=st.data())
@few
def test_new_shapes(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    x = {"x": away(shape, seed)}
    # Something in front that is not linear, so that the order of the elements matters.
    front = node("Exp", ["x"], ["t"])
    count = math.prod(shape)
    divisor = data.draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
    assert_gradients([front, node("Reshape", ["t", "s"])], x, {"s": np.array([divisor, -1], np.int64)})
    assert_gradients([front, node("Flatten", ["t"], axis=data.draw(st.integers(0, len(shape))))], x)
    axis = data.draw(st.integers(0, len(shape)))
    axes = {"axes": np.array([axis], np.int64)}
    assert_gradients([front, node("Unsqueeze", ["t", "axes"])], x, axes, opset=13)
    assert_gradients([front, node("Unsqueeze", ["t"], axes=[axis])], x, opset=11)
    back = [front, node("Unsqueeze", ["t"], ["u"], axes=[axis]), node("Squeeze", ["u"], axes=[axis])]
    assert_gradients(back, x, opset=11)


@given(pair=hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=4, max_side=3), seed=seeds)
@few
def test_expand(pair: Any, seed: int) -> None:
    shape, other = pair.input_shapes
    assert_gradients(node("Expand", ["x", "s"]), {"x": away(shape, seed)}, {"s": np.array(other, np.int64)})


@given(shape=shapes, data=st.data(), seed=seeds)
@few
def test_tile(shape: tuple[int, ...], data: st.DataObject, seed: int) -> None:
    repeats = data.draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)))
    assert_gradients(node("Tile", ["x", "r"]), {"x": away(shape, seed)}, {"r": np.array(repeats, np.int64)})


@given(
    block=st.integers(1, 3), sizes=st.tuples(*[st.integers(1, 2)] * 4), mode=st.sampled_from(["DCR", "CRD"]), seed=seeds
)
@few
def test_depth_to_space_and_back(block: int, sizes: tuple[int, ...], mode: str, seed: int) -> None:
    batch, channels, height, width = sizes
    deep, wide = (batch, channels * block**2, height, width), (batch, channels, height * block, width * block)
    assert_gradients(node("DepthToSpace", ["x"], blocksize=block, mode=mode), {"x": away(deep, seed)}, opset=11)
    assert_gradients(node("SpaceToDepth", ["x"], blocksize=block), {"x": away(wide, seed)})


def test_every_rule_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    reductions = {f"Reduce{kind}" for kind in _REDUCTIONS}
    assert [op_type for op_type in RULES if f'"{op_type}"' not in text and op_type not in reductions] == []
