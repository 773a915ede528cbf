"""Networks run from site to site: what does not depend on the examples, and outputs that are no tensors."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from onnx_pointwise.graph import find_sites, load
from onnx_pointwise.runtime import TwinRun, open_session, reads, resolve, run_session, tensor_outputs
from tests.graphs import make_model, normal, run, value

node = helper.make_node


def test_constants_as_long_as_the_examples_are_no_examples() -> None:
    """Both convolutions share a kernel that a node makes, of as many output maps as there are examples."""
    nodes = [
        node("Cast", ["H"], ["W"], name="cast", to=TensorProto.FLOAT),
        node("Conv", ["x", "W"], ["a"], name="c1", pads=[1] * 4),
        node("Conv", ["a", "V"], ["b"], name="site", pads=[1] * 4),
        node("Conv", ["b", "W"], ["y"], name="c2", pads=[1] * 4),
    ]
    weights = {"H": normal(8, 8, 3, 3).astype(np.float16), "V": normal(8, 8, 3, 3, seed=1)}
    proto = make_model(nodes, [value("x", ["n", 8, 6, 6])], [value("y", ["n", 8, 6, 6])], weights)
    found = resolve(load(proto))
    sites = [site for site in find_sites(found.model, found) if site.name == "site"]
    x = normal(8, 8, 6, 6)
    with TwinRun(found.model, sites, {"x": x}, batch=3, memory=2**20) as twin:
        twin.advance([sites[0].source])
        twin.finish(sites[0], twin.dense_output(sites[0]), None)
        twin.advance(["y"])
        np.testing.assert_allclose(twin.dense["y"], run(proto, x=x)[0], rtol=1e-4, atol=1e-3)


def test_random_nodes_are_alike_in_both_networks() -> None:
    nodes = [
        node("Conv", ["x", "V"], ["a"], name="site"),
        node("RandomNormalLike", ["a"], ["noise"], name="noise"),
        node("Add", ["a", "noise"], ["y"]),
    ]
    proto = make_model(nodes, [value("x", ["n", 8, 6, 6])], [value("y", None)], {"V": normal(8, 8, 3, 3)})
    found = resolve(load(proto))
    sites = find_sites(found.model, found)
    with TwinRun(found.model, sites, {"x": normal(5, 8, 6, 6)}, batch=2, memory=2**20) as twin:
        rest = None
        twin.advance([sites[0].source])
        dense = twin.dense_output(sites[0])
        rest = twin.rest(sites[0])
        assert rest is not None
        first, second = twin.outcome(rest, sites[0], dense), twin.outcome(rest, sites[0], dense)
        np.testing.assert_array_equal(first[0], second[0])
        assert np.std(first[0] - dense) > 0.8


def test_outputs_that_are_no_tensors_are_not_kept() -> None:
    nodes = [node("SplitToSequence", ["x", "half"], ["parts"], axis=1), node("Identity", ["x"], ["y"])]
    outputs = [helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None), value("y", ["n", 4])]
    model = load(make_model(nodes, [value("x", ["n", 4])], outputs, {"half": np.array(2)}))
    assert tensor_outputs(model) == ["y"]
    model.graph.outputs[0].type = None
    assert tensor_outputs(model) == ["parts", "y"]  # who knows
    assert isinstance(model.graph.outputs[1].type, ir.TensorType)


def test_a_node_reads_what_its_bodies_take_from_outside_and_nothing_of_their_own() -> None:
    inner = helper.make_graph([node("Add", ["b", "far"], ["c"])], "inner", [], [value("c", None)])
    body = helper.make_graph(
        [
            node("Mul", ["given", "w"], ["a"]),
            node("Add", ["a", "near"], ["b"]),
            node("If", ["a"], ["d"], then_branch=inner, else_branch=inner),
        ],
        "body",
        [value("given", None)],
        [value("d", None), value("through", None)],
        [helper.make_tensor("w", 1, [1], [2.0])],
    )
    made = helper.make_node("Bodies", ["x", "", "y"], ["z"], domain="elsewhere")
    made.attribute.extend([helper.make_attribute("several", [body, inner]), helper.make_attribute("one", body)])
    made.attribute.add(name="set_outside", ref_attr_name="it", type=onnx.AttributeProto.GRAPH)
    # `b` is the body's own in the first of them, and somebody else's in the second.
    assert set(reads(ir.serde.deserialize_node(made))) == {"x", "y", "near", "far", "through", "b"}
    alone = node("If", ["x"], ["z"], then_branch=body, else_branch=body)
    assert set(reads(ir.serde.deserialize_node(alone))) == {"x", "near", "far", "through"}


def test_outputs_lie_where_they_are_wanted() -> None:
    """Also in a session that gives several; what does not fit there lies elsewhere."""
    nodes = [node("Relu", ["x"], ["y"]), node("Shape", ["x"], ["s"])]
    proto = make_model(
        nodes,
        [value("x", ["n", 3])],
        [value("y", ["n", 3]), onnx.helper.make_tensor_value_info("s", TensorProto.INT64, [2])],
        {},
    )
    session = open_session(proto.SerializeToString(), "cpu", threads=1)
    x = normal(4, 3)
    place = np.zeros((8, 3), np.float32)
    y, s = run_session(session, ["y", "s"], {"x": x}, {"y": place[2:6]})
    assert np.shares_memory(y, place)
    np.testing.assert_array_equal(place[2:6], np.maximum(x, 0.0))
    assert not place[:2].any() and not place[6:].any() and s.tolist() == [4, 3]
    (other,) = run_session(session, ["y"], {"x": x}, {"y": place[:3]})
    assert not np.shares_memory(other, place)
    np.testing.assert_array_equal(other, np.maximum(x, 0.0))
