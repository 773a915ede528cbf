"""What a linear filter of an image makes of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.numerics.plain import channel_axis, plain_errors
from tests.graphs import normal

Array = np.ndarray[Any, Any]
# Far below what a picture varies by.
NOTHING = 1e-9


def filtered(images: Array, channels: int, seed: int) -> Array:
    """A filter of 3 by 3 pixels and all channels, edges repeated, with a constant."""
    weights = normal(channels, images.shape[1], 3, 3, seed=seed).astype(np.float64)
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")
    high, wide = images.shape[2:]
    seen = np.stack([padded[:, :, i : i + high, j : j + wide] for i in range(3) for j in range(3)], 2)
    return np.einsum("oct,nctyx->noyx", weights.reshape(channels, -1, 9), seen) + 0.5


def images(count: int, channels: int = 3, size: int = 32) -> Array:
    return np.random.default_rng(1).random((count, channels, size, size))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    factor=st.integers(1, 4),
    cut=st.integers(0, 6),
    channels=st.integers(1, 4),
    kept=st.integers(1, 5),
    last=st.booleans(),
    last_picture=st.booleans(),
)
def test_what_a_filter_makes_is_recognised(
    factor: int, cut: int, channels: int, kept: int, last: bool, last_picture: bool
) -> None:
    """Of any size, cut at its sides, in any layout: nothing is left of it, and all of what is added."""
    seen = images(2, channels, 40)
    phases = filtered(seen, kept * factor**2, 3).reshape(2, kept, factor, factor, 40, 40)
    picture = phases.transpose(0, 1, 4, 2, 5, 3).reshape(2, kept, 40 * factor, 40 * factor)
    picture = picture[:, :, cut : 40 * factor - cut, cut : 40 * factor - cut]
    more = picture + 0.1 * np.random.default_rng(2).standard_normal(picture.shape)
    given_images = seen.transpose(0, 2, 3, 1) if last else seen
    axis, pictures = (
        (3, [one.transpose(0, 2, 3, 1) for one in (picture, more)]) if last_picture else (1, [picture, more])
    )
    nothing, noise = (plain_errors(given_images, one, axis) for one in pictures)
    assert nothing is not None and nothing == pytest.approx(0.0, abs=NOTHING)
    assert noise is not None and noise == pytest.approx(0.01, rel=0.1)


def test_more_places_than_are_looked_at() -> None:
    seen = images(1, 1, 256)
    noise = 0.1 * np.random.default_rng(4).standard_normal(seen.shape)
    assert plain_errors(seen, filtered(seen, 1, 5) + noise, 1) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("image", "picture"),
    [
        ((2, 8, 32, 32), (2, 3, 32, 32)),  # no image
        ((2, 3, 32, 32), (2, 3, 8, 8)),  # much smaller: not a cut of it
        ((2, 1, 4, 5), (2, 3, 512, 640)),  # much larger
        ((2, 3, 32, 32), (2, 10)),
        ((3, 32, 32), (3, 32, 32)),
        ((1, 3, 32, 32), (2, 3, 32, 32)),
        ((2, 3, 32, 32), (2, 3, 32, 0)),
    ],
)
def test_what_cannot_be_laid_over_one_another_says_nothing(image: tuple[int, ...], picture: tuple[int, ...]) -> None:
    assert plain_errors(np.ones(image), np.ones(picture), 1) is None


def test_few_places_and_strange_numbers_say_nothing() -> None:
    seen = images(1, 3, 8)
    assert np.isnan(plain_errors(seen, filtered(seen, 3, 1), 1)).all()
    seen = images(2)
    picture = filtered(seen, 3, 1)
    picture[0, 0, 3, 3] = np.nan
    errors = plain_errors(seen, picture, 1)
    assert errors is not None and np.isnan(errors[0]) and errors[1] < NOTHING


def test_a_flat_image_explains_nothing_but_a_mean() -> None:
    picture = normal(1, 3, 32, 32, seed=7)
    errors = plain_errors(np.ones((1, 3, 32, 32)), picture, 1)
    assert errors == pytest.approx(picture.var(), rel=0.1)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 3, 32, 32), 1), ((1, 32, 32, 3), 3), ((1, 64, 32, 32), None), ((1, 3, 3, 3), None), ((3, 32, 32), None)],
)
def test_where_channels_lie(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis
