from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph.model_io import as_model
from onnx_pointwise.runtime.inputs import (
    UNNAMED,
    InputSpec,
    feedable,
    input_specs,
    random_inputs,
    require_inputs,
    split_inputs,
)
from tests.graphs import conv_model, make_model, normal

IMAGE = InputSpec("image", np.dtype(np.float32), ("batch", 3, "height", "width"))
FIXED = InputSpec("fixed", np.dtype(np.float32), (2, 3))
SCALAR = InputSpec("scalar", np.dtype(np.bool_), ())


def test_what_a_model_declares() -> None:
    model = as_model(conv_model(normal(4, 8, 3, 3), ("height", None)))
    (spec,) = input_specs(model)
    assert spec == InputSpec("x", np.dtype(np.float32), ("batch", 8, "height", None))
    assert str(spec) == "x: float32[batch, 8, height, ?]"


def test_initializers_are_no_inputs_even_where_they_are_declared_as_such() -> None:
    model = as_model(conv_model(normal(4, 8, 3, 3), (8, 8), opset=8 + 1, ir_version=3))
    assert [spec.name for spec in input_specs(model)] == ["x"]


def test_strings_cannot_be_fed() -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    text = helper.make_tensor_value_info("x", 8, [1])
    model = make_model([node], [text], [helper.make_tensor_value_info("y", 8, [1])])
    with pytest.raises(InputError, match="Input 'x' is no tensor of numbers"):
        input_specs(as_model(model))


def test_bytes_that_are_no_model() -> None:
    with pytest.raises(ModelError, match="not an ONNX model, or truncated"):
        as_model(b"\x08 no model")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]),
    shape=st.lists(st.integers(1, 5), max_size=4),
    seed=st.integers(0, 3),
)
def test_random_inputs_depend_on_seed_name_and_shape_alone(dtype: str, shape: list[int], seed: int) -> None:
    spec = InputSpec("x", np.dtype(dtype), tuple(shape))
    other = InputSpec("other", np.dtype(np.float32), (2,))
    drawn = random_inputs([spec], {"x": shape}, seed=seed)["x"]
    again = random_inputs([other, spec], {"other": (2,), "x": shape}, seed=seed)["x"]
    assert drawn.dtype == np.dtype(dtype) and drawn.shape == tuple(shape)
    np.testing.assert_array_equal(drawn, again)
    if np.dtype(dtype).kind in "iub":
        assert set(np.unique(drawn).tolist()) <= {0, 1}


def test_random_inputs_need_a_shape() -> None:
    with pytest.raises(InputError, match="Input 'x' declares no shape; give one with --input-shape x:1,"):
        random_inputs([InputSpec("x", np.dtype(np.float32), None)], {})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"picture": np.zeros((1, 3, 4, 4))}, "has no input 'picture'; its inputs are image: float32"),
        ({}, "Input 'image' is missing"),
        (
            {"image": np.zeros((1, 3, 4, 4))},
            r"declared as image: float32\[batch, 3, height, width\], but float64\[1, 3, 4, 4\] was given: convert it",
        ),
        ({"image": np.zeros((3, 4, 4), np.float32)}, "needs 4 dimensions, not 3; the batch dimension is missing"),
        ({"image": np.zeros((3, 4), np.float32)}, r"needs 4 dimensions, not 2\."),
        ({"image": np.zeros((1, 4, 4, 4), np.float32)}, "dimension 1 must be 3, not 4"),
        ({"image": np.zeros((0, 3, 4, 4), np.float32)}, "dimension 0 must be at least 1, not 0"),
    ],
)
def test_given_inputs_that_do_not_fit(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_inputs([IMAGE], inputs)


def test_bfloat16_arrays_cannot_be_fed() -> None:
    with pytest.raises(InputError, match="'x' is bfloat16"):
        feedable({"x": np.zeros(3, ml_dtypes.bfloat16)})


@settings(derandomize=True, deadline=None, max_examples=60)
@given(count=st.integers(1, 40), limit=st.integers(1, 16))
def test_slices_hold_every_item_once(count: int, limit: int) -> None:
    image = np.arange(count * 3 * 4, dtype=np.float32).reshape(count, 3, 2, 2)
    parts = split_inputs([IMAGE, SCALAR], {"image": image, "scalar": np.array(True)}, limit=limit)
    assert all(1 <= len(part["image"]) <= limit for part in parts)
    np.testing.assert_array_equal(np.concatenate([part["image"] for part in parts]), image)
    assert all(part["scalar"] == np.array(True) for part in parts)


def test_slices_keep_the_batch_size_that_a_model_fixes() -> None:
    fixed = normal(6, 3)
    image = normal(9, 3, 4, 4)
    parts = split_inputs([FIXED, IMAGE], {"fixed": fixed, "image": image}, limit=1)
    assert [(len(part["fixed"]), len(part["image"])) for part in parts] == [(2, 3)] * 3
    with pytest.raises(InputError, match="dimension 0 must be 2, not 3"):
        split_inputs([FIXED], {"fixed": normal(3, 3)}, limit=1)
    with pytest.raises(InputError, match="different numbers of items: 'fixed' 6, 'image' 4"):
        split_inputs([FIXED, IMAGE], {"fixed": fixed, "image": image[:4]}, limit=1)


def test_inputs_of_different_lengths_stay_together() -> None:
    other = InputSpec("other", np.dtype(np.float32), (None,))
    parts = split_inputs([IMAGE, other], {"image": normal(40, 3, 2, 2), "other": normal(7)}, limit=4)
    assert [len(part["image"]) for part in parts] == [40]


def test_an_array_without_a_name_goes_to_the_only_input() -> None:
    spec = InputSpec("x", np.dtype(np.float32), (None, 3))
    array = np.zeros((4, 3), np.float32)
    assert set(require_inputs([spec], {UNNAMED: array})) == {"x"}
    assert [len(part["x"]) for part in split_inputs([spec], {UNNAMED: array}, limit=3)] == [2, 2]
    with pytest.raises(InputError, match=r"One array was given, but the model's inputs are x: .*; y: "):
        require_inputs([spec, replace(spec, name="y")], {UNNAMED: array})
    with pytest.raises(InputError, match=r"no input 'calibration'.*write FILE.npz:calibration"):
        require_inputs([spec], {"calibration": array})
