"""What examples can tell: how many differ, and where answers do not vary."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnx_pointwise.graph.model_io import load
from onnx_pointwise.runtime import resolve
from onnx_pointwise.study.heads import find_heads
from onnx_pointwise.study.telling import FEW, Telling, _blank, telling
from tests import small
from tests.graphs import make_model, value

Array = np.ndarray[Any, Any]


def told(model: Any, inputs: Array) -> Telling:
    loaded = model if isinstance(model, ir.Model) else load(model)
    shapes = resolve(loaded)
    (name,) = (str(one.name) for one in loaded.graph.inputs)
    return telling(loaded, shapes, find_heads(shapes), {name: inputs})


@pytest.fixture(scope="module")
def network() -> Any:
    return small.network()


def picture() -> Any:
    """One convolution, whose output is a map."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)
    return make_model([node], [value("x", ["N", 3, 24, 24])], [value("y", ["N", 8, 24, 24])], weights)


def test_examples_that_tell_enough_need_no_word(network: Any) -> None:
    found = told(network, small.examples(32))
    assert (found.count, found.distinct, found.useless, found.silent) == (32, 32, False, ())
    assert found.warnings() == []


@pytest.mark.parametrize("count", [2, 3, FEW - 1])
def test_few_examples_are_said_to_be_few(network: Any, count: int) -> None:
    found = told(network, small.examples(count))
    assert not found.useless
    (warning,) = found.warnings()
    assert f"Only {count} different" in warning and "24 would do" in warning


def test_copies_are_counted_once(network: Any) -> None:
    found = told(network, np.repeat(small.examples(3), 8, axis=0))
    assert (found.count, found.distinct, found.useless) == (24, 3, False)
    assert "the other 21 are copies" in found.warnings()[0]


@pytest.mark.parametrize("noise", [1e-7, 1e-6])
def test_what_differs_by_rounding_is_a_copy(network: Any, noise: float) -> None:
    """Of a network that answers at every place, too, to which copies seem to tell something."""
    drawn = np.random.default_rng(3)
    some = np.repeat(small.examples(3), 8, axis=0)
    found = told(network, (some * (1.0 + noise * drawn.standard_normal(some.shape))).astype(np.float32))
    assert (found.count, found.distinct, found.different) == (24, 3, (0, 8, 16))
    one = np.repeat(drawn.standard_normal((1, 3, 24, 24)), 16, axis=0)
    found = told(picture(), (one + noise * drawn.standard_normal(one.shape)).astype(np.float32))
    assert found.distinct == 1 and found.few and not found.useless
    assert "Only 1 different example input; the other 15 are copies" in found.warnings()[0]


def test_frames_of_a_film_differ() -> None:
    """A thousandth of noise is what a camera adds, and one pixel may be what is to be seen."""
    drawn = np.random.default_rng(4)
    still = np.repeat(drawn.random((1, 3, 24, 24)), 12, axis=0)
    noisy = still + 1e-3 * drawn.standard_normal(still.shape)
    assert told(picture(), noisy.astype(np.float32)).distinct == 12
    still[np.arange(12), 0, np.arange(12), 5] += 0.1
    assert told(picture(), still.astype(np.float32)).distinct == 12


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small.examples(1), "The only example input gives answers that do not vary"),
        (lambda: np.repeat(small.examples(1), 16, axis=0), "All 16 example inputs are the same"),
        (lambda: np.zeros((16, 3, 16, 16), np.float32), "is blank"),
        (lambda: np.linspace(0, 1, 16, dtype=np.float32)[:, None, None, None] * np.ones((3, 16, 16)), "is blank"),
    ],
)
def test_examples_that_tell_nothing(network: Any, make: Any, words: str) -> None:
    found = told(network, make().astype(np.float32))
    assert found.useless
    (warning,) = found.warnings()
    assert words in warning and "kernels alone" in warning and "24 different ones would do" in warning


def test_one_picture_tells_of_a_network_that_answers_at_every_place() -> None:
    one = np.random.default_rng(1).standard_normal((1, 3, 24, 24)).astype(np.float32)
    assert not told(picture(), one).useless
    assert told(picture(), np.zeros_like(one)).useless


def test_answers_that_are_no_numbers_tell_nothing(network: Any) -> None:
    bad = small.network()
    (last,) = [item for item in bad.graph.initializer if item.name == "fc.w"]
    last.raw_data = np.full((small.FEATURES, 10), np.nan, np.float32).tobytes()
    found = told(bad, small.examples(16))
    assert found.useless and "numbers" in found.warnings()[0]


@pytest.mark.parametrize(
    ("shape", "blank"), [((5, 400, 1), False), ((5, 1, 400), False), ((5, 16, 16, 3), False), ((5, 3, 1, 1), False)]
)
def test_signals_and_pictures_of_any_layout_are_seen_to_vary(shape: tuple[int, ...], blank: bool) -> None:
    rng = np.random.default_rng(0)
    assert _blank({"x": rng.standard_normal(shape)}) is blank
    constant = np.broadcast_to(rng.standard_normal((5, *[1] * (len(shape) - 1))), shape)
    assert _blank({"x": np.ascontiguousarray(constant)}) is (shape != (5, 3, 1, 1))


def test_examples_of_a_fixed_batch_go_in_as_they_came() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)
    model = make_model([node], [value("x", [4, 3, 8, 8])], [value("y", [4, 8, 8, 8])], weights)
    inputs = rng.standard_normal((12, 3, 8, 8)).astype(np.float32)
    found = told(model, inputs)
    assert (found.distinct, found.few, found.warnings()) == (12, False, [])
    (warning,) = told(model, inputs[:8]).warnings()
    assert "are 2 batches of the 4 that the model takes at a time" in warning and "3 would do" in warning
    assert told(model, np.repeat(inputs[:1], 8, axis=0)).distinct == 1


def test_an_answer_that_few_examples_move_is_heard() -> None:
    """The first few that are run give nothing at all; only then more are."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "b": np.full(8, -5.0, np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4)]
    nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    model = make_model(nodes, [value("x", ["N", 3, 24, 24])], [value("y", ["N", 8, 24, 24])], weights)
    x = 0.01 * rng.standard_normal((20, 3, 24, 24), dtype=np.float32)
    assert told(model, x).silent == ("y",)
    x[8] *= 1000.0
    assert told(model, x).silent == ()
