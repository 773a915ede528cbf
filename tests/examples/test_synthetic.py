"""Dead-leaves images: reproducible, in range, and with the statistics that make them useful."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnx_pointwise.examples.synthetic import dead_leaves


@pytest.mark.parametrize(
    ("height", "width", "channels"), [(32, 32, 3), (28, 28, 1), (8, 8, 3), (80, 120, 3), (20, 90, 4)]
)
def test_shape_dtype_and_range(height, width, channels):
    images = dead_leaves(3, height, width, channels=channels)
    assert images.shape == (3, height, width, channels)
    assert images.dtype == np.uint8
    assert all(image.std() > 1.0 for image in images), "an image is flat"


def test_an_image_depends_on_seed_and_index_alone():
    five = dead_leaves(5, 24, 24, seed=7)
    np.testing.assert_array_equal(five, dead_leaves(5, 24, 24, seed=7))
    np.testing.assert_array_equal(five[:2], dead_leaves(2, 24, 24, seed=7))
    assert not np.array_equal(five, dead_leaves(5, 24, 24, seed=8))
    assert not np.array_equal(five[0], five[1])


def test_neighbours_are_alike_and_colours_correlate():
    images = dead_leaves(64, 32, 32, seed=1).astype(np.float64)
    images -= images.mean()

    def correlation(a, b):
        return float((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean()))

    near = correlation(images[:, :, :-1], images[:, :, 1:])
    far = correlation(images[:, :, :-12], images[:, :, 12:])
    assert near > 0.75
    assert far < near - 0.2
    assert 0.3 < correlation(images[..., 0], images[..., 1]) < 0.98


def test_spectrum_falls_like_that_of_photographs():
    images = dead_leaves(48, 64, 64, channels=1, seed=2)[..., 0].astype(np.float64)
    images -= images.mean(axis=(1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(images)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    bands = [(1 / 32, 1 / 16), (1 / 16, 1 / 8), (1 / 8, 1 / 4)]
    levels = [power[(frequency >= a) & (frequency < b)].mean() for a, b in bands]
    slopes = [np.log2(a / b) for a, b in itertools.pairwise(levels)]
    assert all(1.0 < slope < 4.0 for slope in slopes), slopes
