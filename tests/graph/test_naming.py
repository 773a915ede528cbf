"""A part of a name stands for the one convolution that it fits, and for none where it may be several."""

from __future__ import annotations

import pytest

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph.naming import full_name

NAMES = ["block1/conv1", "block1/conv2", "block2/conv1", "stem.conv", "a(b)*", "two\nlines"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("block1/conv2", "block1/conv2"),
        ("conv2", "block1/conv2"),
        ("stem…", "stem.conv"),
        ("b…2/conv1", "block2/conv1"),
        ("b...2/conv1", "block2/conv1"),
        ("…b)*", "a(b)*"),  # what expressions are made of stands for itself
        ("two…lines", "two\nlines"),
        ("st.m…", "st.m…"),
        ("conv3", "conv3"),
        ("", ""),
    ],
)
def test_what_is_meant(text: str, name: str) -> None:
    assert full_name(text, NAMES) == name


def test_a_whole_name_goes_before_those_that_end_in_it() -> None:
    assert full_name("conv1", ["conv1", "block/conv1"]) == "conv1"


def test_what_may_be_several_is_refused_with_the_first_few() -> None:
    for text in ("conv1", "b…conv1"):
        with pytest.raises(PlanError, match=f"'{text}' may be any of 2 conv.*: 'block1/conv1', 'block2/conv1'; write"):
            full_name(text, NAMES)
    many = [f"block{number}/conv" for number in range(7)]
    with pytest.raises(PlanError, match=r"any of 7 convolutions: 'block0/conv', .*, 'block4/conv', \.\.\.; write more"):
        full_name("/conv", many)
