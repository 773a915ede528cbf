"""Dead-leaves images: calibration inputs for the common case that there are none.

Shapes of a power law of sizes that hide one another, shaded and textured, share with photographs what a convolution's
input statistics depend on: edges at every scale, flat regions, correlated colours (Lee, Mumford and Huang, Occlusion
models for natural images, 2001; Baradad et al., Learning to see by looking at noise, 2021).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# The recipe is stated for a canvas of this many pixels; larger canvases get more and larger shapes.
_CANVAS = 64
_SHAPES = (30, 160)
_SMALLEST, _LARGEST = 3.0, 60.0  # radius in pixels of the canvas
_TEXTURE = 12.0  # grey levels
_BLUR = 1.2  # standard deviation in pixels of the canvas


def dead_leaves(count: int, height: int, width: int, *, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Draw images of overlapping discs, ellipses and rectangles.

    An image depends on the seed, its index and its size alone: more images leave the first ones as they are.

    Args:
        count: Images to draw.
        height: Height in pixels.
        width: Width in pixels.
        channels: 3 for colour, 1 for grey; any other number gets correlated channels in the same way.
        seed: Seed of the generator.

    Returns:
        uint8 [count, height, width, channels], 0 to 255.
    """
    images = np.empty((count, height, width, channels), np.uint8)
    for index in range(count):
        images[index] = _draw(np.random.default_rng([seed, index]), height, width, channels)
    return images


def _draw(rng: np.random.Generator, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Draw one image; small ones at twice their size and shrunk, as a camera averages over its pixels."""
    # Here, because few jobs draw and the import of the package would take noticeably longer.
    from scipy.ndimage import gaussian_filter

    shrink = max(2, math.ceil(_CANVAS / (2 * min(height, width)))) if min(height, width) < _CANVAS else 1
    rows, columns = height * shrink, width * shrink
    scale = math.sqrt(rows * columns) / _CANVAS
    base = rng.uniform(60.0, 190.0) + rng.normal(0.0, 25.0, channels)
    spread = rng.uniform(15.0, 55.0)
    image = np.broadcast_to(base, (rows, columns, channels)).copy()
    texture = np.full((rows, columns), rng.uniform(0.0, _TEXTURE))
    for _ in range(round(rng.integers(_SHAPES[0], _SHAPES[1] + 1) * max(scale, 1.0))):
        _paint(rng, image, texture, base, spread, scale)
    image += (texture * rng.standard_normal((rows, columns)))[..., None]
    blur = rng.uniform(0.0, _BLUR)
    image = gaussian_filter(image, (blur, blur, 0.0), mode="nearest", truncate=3.0)
    if shrink > 1:
        image = image.reshape(height, shrink, width, shrink, channels).mean(axis=(1, 3))
    levels: NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return levels


def _paint(
    rng: np.random.Generator,
    image: NDArray[np.float64],
    texture: NDArray[np.float64],
    base: NDArray[np.float64],
    spread: float,
    scale: float,
) -> None:
    """Put one shape on top of what is there."""
    rows, columns, channels = image.shape
    smallest, largest = _SMALLEST * math.sqrt(max(scale, 1.0)), _LARGEST * max(scale, 1.0)
    # A density of r^-3 is what makes the image look the same at every scale.
    radius = min(smallest / math.sqrt(1.0 - rng.random()), largest)
    kind, squeeze = rng.integers(3), rng.uniform(0.3, 1.0)
    angle = rng.uniform(0.0, math.pi)
    centre = rng.uniform(0.0, rows), rng.uniform(0.0, columns)
    colour = base + 1.5 * spread * rng.standard_normal() + spread * rng.standard_normal(channels)
    slope = rng.normal(0.0, 20.0, 2)
    roughness = rng.uniform(0.0, _TEXTURE)

    reach = radius * math.sqrt(2.0)
    top, bottom = max(0, int(centre[0] - reach)), min(rows, int(centre[0] + reach) + 2)
    left, right = max(0, int(centre[1] - reach)), min(columns, int(centre[1] + reach) + 2)
    y = (np.arange(top, bottom) - centre[0])[:, None] / radius
    x = (np.arange(left, right) - centre[1])[None, :] / radius
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    if kind == 0:
        inside = x * x + y * y <= 1.0
    elif kind == 1:
        inside = along**2 + (across / squeeze) ** 2 <= 1.0
    else:
        inside = (np.abs(along) <= 1.0) & (np.abs(across) <= squeeze)
    shade = slope[0] * along + slope[1] * across
    image[top:bottom, left:right][inside] = colour + shade[inside][:, None]
    texture[top:bottom, left:right][inside] = roughness
