"""How near a plain linear filter of an image comes to the picture that a network makes of it.

A network that cleans or enlarges pictures changes little of them: handed back untouched, or filtered, its input may
already look like its output, in decibels. What it is there for is the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Channels that an image has at most: grey, colours, and transparency.
MOST_CHANNELS = 4
# A picture is at most this many times as large as the image that it is made of, each way.
_MOST_LARGER = 8
# Places that a filter is computed from: more of a picture would not change it.
_PLACES = 2**14
# Equations for each unknown of a filter; fewer, and it would learn the picture by heart.
_EQUATIONS = 4
# Directions that carry less than this share of what the strongest one does are rounding.
_ROUNDING = 1e-9
_OFFSETS = [(i, j) for i in range(3) for j in range(3)]


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels of images, 1 or 3; None for what is no batch of images.

    Args:
        shape: [N, C, H, W] or [N, H, W, C].
    """
    if len(shape) != 4 or not all(shape):
        return None
    return next((axis for axis in (1, 3) if shape[axis] <= MOST_CHANNELS < min(_sides(shape, axis))), None)


def _sides(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    high, wide = (shape[other] for other in (1, 2, 3) if other != axis)
    return high, wide


def plain_errors(images: Array, pictures: Array, axis: int) -> NDArray[np.float64] | None:
    """Mean squared error of the best filter of 3 by 3 pixels and all channels, with a constant, for each picture.

    The filter is that of least squares for the picture itself; a picture that is larger by a whole factor has one for
    each of its phases, as a linear interpolation has. One that is smaller has been cut alike on all sides.

    Args:
        images: [N, C, H, W] or [N, H, W, C], at most `MOST_CHANNELS` channels.
        pictures: [N, ...] with two sides and an axis of channels.
        axis: That axis.

    Returns:
        float64 [N], in squares of the picture's unit; NaN for pictures with too few places to tell, or with numbers
        that are not finite. None where the one cannot be laid over the other.
    """
    channels = channel_axis(images.shape)
    if channels is None or pictures.ndim != 4 or axis % 4 == 0 or len(images) != len(pictures):
        return None
    first = np.moveaxis(images, channels, 1)
    second = np.moveaxis(pictures, axis % 4, 1)
    fitted = _laid(first.shape[2:], second.shape[2:])
    if fitted is None:
        return None
    errors = [_error(one, other, *fitted) for one, other in zip(first, second, strict=True)]
    return np.asarray(errors, np.float64)


def _laid(image: tuple[int, ...], picture: tuple[int, ...]) -> tuple[int, tuple[int, int]] | None:
    """How many times larger a picture is than its image, and what was cut off before it."""
    if not all(picture):
        return None
    factor = max(-(-small // large) for small, large in zip(picture, image, strict=True))
    cut = [large * factor - small for small, large in zip(picture, image, strict=True)]
    if factor > _MOST_LARGER or any(more > small for more, small in zip(cut, picture, strict=True)):
        return None
    return factor, (cut[0] // 2, cut[1] // 2)


def _error(image: Array, picture: Array, factor: int, before: tuple[int, int]) -> float:
    """The error of one picture [K, Y, X] made of an image [C, H, W]."""
    unknowns = len(_OFFSETS) * len(image) + 1
    padded = np.pad(image.astype(np.float64), ((0, 0), (1, 1), (1, 1)), "edge")
    total, count = 0.0, 0
    for down in range(factor):
        for right in range(factor):
            start = (down - before[0]) % factor, (right - before[1]) % factor
            part = picture[:, start[0] :: factor, start[1] :: factor].astype(np.float64)
            corner = (start[0] + before[0]) // factor, (start[1] + before[1]) // factor
            rows, columns = _places(part.shape[1], part.shape[2])
            if len(rows) < _EQUATIONS * unknowns:
                return float("nan")
            seen = np.concatenate([padded[:, corner[0] + rows + i, corner[1] + columns + j] for i, j in _OFFSETS])
            told = part[:, rows, columns]
            total += _residual(seen, told) * len(rows) / (len(rows) - unknowns)
            count += told.size
    return total / count


def _places(high: int, wide: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of places: all, or some drawn, since a regular grid would meet a pattern."""
    places = np.arange(high * wide)
    if len(places) > _PLACES:
        places = np.sort(np.random.default_rng(0).choice(len(places), _PLACES, replace=False))
    rows, columns = np.divmod(places, max(wide, 1))
    return rows, columns


def _residual(seen: Array, told: Array) -> float:
    """Squares that are left of values [K, n] where the best linear function of others [U, n] is taken from them."""
    if not (np.isfinite(seen).all() and np.isfinite(told).all()):
        return float("nan")
    seen = seen - seen.mean(1, keepdims=True)
    told = told - told.mean(1, keepdims=True)
    strengths, directions = np.linalg.eigh(seen @ seen.T)
    shared = directions.T @ (seen @ told.T)
    kept = strengths > _ROUNDING * max(float(strengths[-1]), np.finfo(np.float64).tiny)
    explained = float((shared[kept] ** 2 / strengths[kept, None]).sum())
    return max(0.0, float((told**2).sum()) - explained)
