from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnx_pointwise.graph import BottleneckPass, Plan, constant, constants, find_sites, load, make_choice, model_cost
from onnx_pointwise.graph.constants import leaves, operators
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.runtime import resolve
from tests.graphs import Array, conv_model, make_model, normal, run, value

node = helper.make_node
KERNEL = normal(12, 8, 3, 3)
CHANNELS = np.arange(1, 13, dtype=np.float32).reshape(12, 1, 1, 1)


def behind(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], *, opset: int = 17, **kind: Any
) -> onnx.ModelProto:
    """A convolution whose kernel the nodes make, as W."""
    nodes = [*nodes, node("Conv", ["x", "W"], ["y"], name="conv", pads=[1] * 4)]
    return make_model(
        nodes, [value("x", [2, 8, 9, 9], **kind)], [value("y", [2, 12, "h", "w"], **kind)], weights, opset=opset
    )


def made(opset: int) -> dict[str, onnx.ModelProto]:
    """Kernels that exporters leave behind a few nodes."""
    axes = {"axes": [1, 2, 3]} if opset < 18 else {}
    norm = node("ReduceL2", ["v"] if axes else ["v", "axes"], ["n"], **axes)
    stored = {} if axes else {"axes": np.array([1, 2, 3])}
    quantised = np.clip(np.round(KERNEL * 30), -127, 127).astype(np.int8)
    cases = {
        "cast": ([node("Cast", ["H"], ["W"], to=1)], {"H": KERNEL.astype(np.float16)}),
        "transpose": ([node("Transpose", ["v"], ["W"], perm=[3, 2, 0, 1])], {"v": KERNEL.transpose(2, 3, 1, 0).copy()}),
        "reshape": ([node("Reshape", ["v", "shape"], ["W"])], {"v": KERNEL.ravel(), "shape": np.array(KERNEL.shape)}),
        "normalised": (
            [norm, node("Div", ["v", "n"], ["d"]), node("Mul", ["d", "g"], ["W"])],
            {"v": KERNEL, "g": CHANNELS, **stored},
        ),
        "normalised by hand": (
            [
                node("Mul", ["v", "v"], ["v2"]),
                node("ReduceSum", ["v2", "axes"], ["s"], keepdims=1),
                node("Add", ["s", "tiny"], ["e"]),
                node("Sqrt", ["e"], ["n"]),
                node("Reciprocal", ["n"], ["i"]),
                node("Mul", ["v", "i"], ["W"]),
            ],
            {"v": KERNEL, "axes": np.array([1, 2, 3]), "tiny": np.array(1e-12, np.float32)},
        ),
        "weights in bytes": (
            [node("DequantizeLinear", ["Q", "s", "z"], ["W"], axis=0)],
            {"Q": quantised, "s": np.full(12, 1 / 30, np.float32), "z": np.zeros(12, np.int8)},
        ),
        "shifted": (
            [node("Constant", [], ["c"], value_float=0.5), node("Sub", ["v", "c"], ["d"]), node("Neg", ["d"], ["W"])],
            {"v": KERNEL},
        ),
        "in parts": ([node("Concat", ["a", "b"], ["W"], axis=1)], {"a": KERNEL[:, :3], "b": KERNEL[:, 3:]}),
        "in another order": ([node("Gather", ["v", "i"], ["W"])], {"v": KERNEL, "i": np.arange(12)[::-1].copy()}),
        "one of several": (
            [node("Constant", [], ["i"], value_int=1), node("Gather", ["v", "i"], ["W"])],
            {"v": np.stack([KERNEL * 0, KERNEL])},
        ),
        "a product": (
            [node("MatMul", ["a", "b"], ["m"]), node("Reshape", ["m", "shape"], ["W"])],
            {"a": normal(12, 5), "b": normal(5, 72), "shape": np.array(KERNEL.shape)},
        ),
        "filled": (
            [node("ConstantOfShape", ["shape"], ["f"], value=helper.make_tensor("", 1, [1], [0.5])),
             node("Mul", ["v", "f"], ["W"])],
            {"v": KERNEL, "shape": np.array([8, 3, 1])},
        ),
        "scales listed in nodes": (
            [node("Constant", [], ["s"], value_floats=[0.5 + n for n in range(12)]),
             node("Constant", [], ["shape"], value_ints=[12, 1, 1, 1]),
             node("Reshape", ["s", "shape"], ["s4"]), node("Mul", ["v", "s4"], ["W"])],
            {"v": KERNEL},
        ),
    }  # fmt: skip
    return {name: behind(nodes, weights, opset=opset) for name, (nodes, weights) in cases.items()}


def rewritten(model: onnx.ModelProto, rank: int) -> onnx.ModelProto:
    copy = load(model).clone()
    (site,) = find_sites(copy)
    BottleneckPass(Plan({site.name: make_choice(site.name, "reduce", rank)}))(copy)
    proto = serialize(copy)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("kind", list(made(17)))
def test_a_kernel_that_is_computed_is_rewritten_like_any_other(kind: str, opset: int) -> None:
    model = made(opset)[kind]
    loaded = load(model)
    (site,) = find_sites(loaded, resolve(loaded))
    assert site.refusal is None
    x = normal(2, 8, 9, 9)
    exact = rewritten(model, 8)
    (before,), (after,) = run(model, x=x), run(exact, x=x)
    np.testing.assert_allclose(after, before, atol=2e-4)
    # What made the kernel is gone.
    assert {item.op_type for item in exact.graph.node} == {"Conv"}
    assert len(exact.graph.initializer) == 2
    (low,) = run(rewritten(model, 2), x=x)
    assert low.shape == before.shape


def test_what_others_use_stays() -> None:
    nodes = [
        node("Cast", ["H"], ["F"], to=1),
        node("Mul", ["F", "g"], ["W"]),
        node("Conv", ["x", "W"], ["y"], name="conv"),
        node("ReduceSum", ["F"], ["z"], keepdims=0),
    ]
    weights = {"H": KERNEL.astype(np.float16), "g": CHANNELS}
    model = make_model(nodes, [value("x", [2, 8, 9, 9])], [value("y", [2, 12, "h", "w"]), value("z", [])], weights)
    changed = rewritten(model, 8)
    assert [item.op_type for item in changed.graph.node] == ["Cast", "Conv", "Conv", "ReduceSum"]
    assert {item.name for item in changed.graph.initializer} >= {"H"}
    x = normal(2, 8, 9, 9)
    for before, after in zip(run(model, x=x), run(changed, x=x), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_what_feeds_the_convolution_stays() -> None:
    nodes = [
        node("Transpose", ["x0"], ["x"], perm=[0, 1, 2, 3]),
        node("Cast", ["H"], ["W"], to=1),
        node("Conv", ["x", "W"], ["y"], name="conv"),
    ]
    model = make_model(
        nodes,
        [value("x0", [2, 8, 9, 9])],
        [value("y", [2, 12, "h", "w"])],
        {"H": KERNEL.astype(np.float16), "u": np.zeros(1)},
    )
    assert [item.op_type for item in rewritten(model, 8).graph.node] == ["Transpose", "Conv", "Conv"]


def test_constants_that_fold_may_be_computed_too() -> None:
    nodes = [
        node("Conv", ["x", "W"], ["c"], name="conv"),
        node("Unsqueeze", ["s", "axes"], ["s3"]),
        node("Mul", ["c", "s3"], ["y"]),
    ]
    weights = {"W": KERNEL, "s": normal(12), "axes": np.array([1, 2])}
    model = make_model(nodes, [value("x", [2, 8, 9, 9])], [value("y", [2, 12, "h", "w"])], weights)
    (site,) = find_sites(load(model))
    assert [fold.op_type for fold in site.folds] == ["Mul"]
    x = normal(2, 8, 9, 9)
    np.testing.assert_allclose(run(rewritten(model, 8), x=x)[0], run(model, x=x)[0], atol=1e-3)


def test_parameters_are_what_is_stored() -> None:
    model = load(made(17)["normalised"])
    (site,) = find_sites(model, shapes := resolve(model))
    assert site.stored_params == KERNEL.size + 12 == model_cost(model, shapes).params


def test_what_a_bound_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("Expand", ["v", "shape"], ["e"]), node("ReduceMean", ["e"], ["W"], axes=[0], keepdims=0)]
    for count, code in ((1, "few_channels"), (10**12, "dynamic_kernel")):
        shape = np.array([count, *KERNEL[:, :2].shape])
        (site,) = find_sites(load(behind(nodes, {"v": KERNEL[:, :2], "shape": shape})))
        assert site.refusal is not None and site.refusal.code == code
    for name, nodes, weights in (
        ("filled", [node("ConstantOfShape", ["shape"], ["W"])], {"shape": np.array([10**6] * 4)}),
        ("text", [node("Cast", ["v"], ["t"], to=8), node("Cast", ["t"], ["W"], to=1)], {"v": KERNEL}),
        ("nonsense", [node("Reshape", ["v", "shape"], ["W"])], {"v": KERNEL, "shape": np.array([5, 5])}),
        ("random", [node("RandomNormalLike", ["v"], ["W"])], {"v": KERNEL}),
        ("fed", [node("Mul", ["x", "v"], ["W"])], {"v": KERNEL}),
        ("long", [node("Neg", [f"v{n}"], [f"v{n + 1}" if n < 199 else "W"]) for n in range(200)], {"v0": KERNEL}),
    ):
        (site,) = find_sites(load(behind(nodes, weights)))
        assert site.refusal is not None and site.refusal.code == "dynamic_kernel", name
    monkeypatch.setattr(constants, "_LARGEST", 100)
    (site,) = find_sites(load(made(17)["cast"]))
    assert site.refusal is not None and site.refusal.code == "dynamic_kernel"


def test_a_kernel_that_is_not_finite_is_refused_with_that_reason() -> None:
    nodes = [node("ReduceL2", ["v"], ["n"], axes=[1, 2, 3]), node("Div", ["v", "n"], ["W"])]
    (site,) = find_sites(load(behind(nodes, {"v": np.zeros_like(KERNEL)})))
    assert site.refusal is not None and site.refusal.code == "not_finite"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types_stay(dtype: str) -> None:
    kind = ir.DataType.from_numpy(ir.DataType[{"float64": "DOUBLE"}.get(dtype, dtype.upper())].numpy())
    model = behind([node("Cast", ["v"], ["W"], to=kind.value)], {"v": KERNEL}, opset=22, dtype=kind.numpy())
    (site,) = find_sites(load(model))
    assert site.dtype == kind.numpy() and site.refusal is not None and site.refusal.code == "unknown_shape"
    np.testing.assert_array_equal(site.weights()[0], KERNEL.astype(kind.numpy()))


def test_bounds_of_what_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these puts out, or goes through, more numbers than any of its inputs has."""
    monkeypatch.setattr(constants, "_LARGEST", KERNEL.size - 1)
    for kind in ("in parts", "in another order", "a product", "filled"):
        (site,) = find_sites(load(made(17)[kind]))
        assert site.refusal is not None and site.refusal.code == "dynamic_kernel", kind
    monkeypatch.setattr(constants, "_LARGEST", KERNEL.size * len(KERNEL))
    assert all(find_sites(load(model))[0].weights()[0].shape == KERNEL.shape for model in made(17).values())


def test_what_a_call_of_a_function_sets_is_no_constant_in_it() -> None:
    set_outside = helper.make_node("Constant", [], ["c"])
    set_outside.attribute.add(name="value_float", ref_attr_name="by", type=onnx.AttributeProto.FLOAT)
    cast = helper.make_node("Cast", ["half"], ["W"])
    cast.attribute.add(name="to", ref_attr_name="to", type=onnx.AttributeProto.INT)
    plain = helper.make_node("Constant", [], ["half"], value_floats=[1.0, 2.0])
    function = helper.make_function(
        "local", "f", ["x"], ["y", "W"], [set_outside, plain, cast, node("Mul", ["x", "c"], ["y"])],
        [helper.make_opsetid("", 17)], ["by", "to"],
    )  # fmt: skip
    call = helper.make_node("f", ["x"], ["y", "z"], domain="local", by=2.0, to=1)
    model = make_model(
        [call], [value("x", [2])], [value("y", [2]), value("z", [2])], domains=["local"], functions=[function]
    )
    (read,) = load(model).functions.values()
    values = {str(output.name): output for item in read for output in item.outputs}
    assert constant(values["c"]) is None and constant(values["W"]) is None
    found = constant(values["half"])
    assert found is not None and found.numpy().tolist() == [1.0, 2.0]


def test_a_constant_is_computed_once_and_again_when_what_it_is_made_of_changed() -> None:
    model = load(made(17)["cast"])
    value = model.graph[-1].inputs[1]
    first = constant(value)
    assert first is not None and constant(value) is first
    stored = model.graph.initializers["H"]
    assert leaves(value) == [stored.const_value] and operators(value) == {"Cast"}
    stored.const_value = ir.tensor(2 * KERNEL.astype(np.float16))
    second = constant(value)
    assert second is not None
    np.testing.assert_array_equal(second.numpy(), 2 * first.numpy())
    assert "onnx_pointwise" not in str(serialize(model))


@pytest.mark.parametrize("opset", [11, 17])
def test_kernels_in_a_branch(opset: int) -> None:
    """Subgraphs name no operator set; a Reduce says by its attributes how old it is."""
    then = helper.make_graph(
        [
            node("ReduceL2", ["v"], ["n"], axes=[1, 2, 3]),
            node("Div", ["v", "n"], ["W"]),
            node("Conv", ["x", "W"], ["a"], name="conv", pads=[1] * 4),
        ],
        "then",
        [],
        [value("a", None)],
    )
    other = helper.make_graph([node("Identity", ["x12"], ["b"])], "else", [], [value("b", None)])
    nodes = [
        node("Concat", ["x", "half"], ["x12"], axis=1),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {"v": KERNEL, "half": normal(2, 4, 9, 9)}
    inputs = [value("c", [], np.bool_), value("x", [2, 8, 9, 9])]
    model = make_model(nodes, inputs, [value("y", [2, 12, 9, 9])], weights, opset=opset)
    feeds = {"c": np.array(True), "x": normal(2, 8, 9, 9)}
    np.testing.assert_allclose(run(rewritten(model, 8), **feeds)[0], run(model, **feeds)[0], atol=1e-4)


def test_stored_kernels_are_what_they_were() -> None:
    for source in ("initializer", "constant", "identity"):
        (site,) = find_sites(load(conv_model(KERNEL, [9, 9], source=source)))
        np.testing.assert_array_equal(site.weights()[0], KERNEL)
        assert site.stored_params == KERNEL.size
