"""The basis between two convolutions that nothing stands between, chosen so that rounding hurts least.

z = P x goes into y = K z. For any invertible A the pair A P, K A^-1 computes the same, but rounds differently. With
u8 activations on one scale, and s8 weights on one scale for each output feature map, as static quantisation does, there
are three roundings. Write T_z = E[z z^T], G for the Gram matrix of K by its input feature maps, R for the size of z.
A uniform step of width s adds noise of variance s^2 / 12, so the noise in y is, up to common factors,

    activations z   (range of z)^2                  tr(G)
    weights of K    sum_o max |K_o|^2               tr(T_z)
    weights of P    sum_r max |P_r|^2 G_rr          E|x|^2

Once all feature maps are alike, a range is a fixed multiple of a deviation and a maximum one of a root mean square, and
the three add up to tr(T) tr(G) / R with T = T_z + c E[x^2] P P^T. Under A this is tr(A T A^T) tr(A^-T G A^-1) / R,
which by Cauchy and Schwarz is least where both matrices are the same one, A T A^T = A^-T G A^-1, and equals
(sum of singular values of G^1/2 T^1/2)^2 / R there. That leaves a rotation, which is used to make the feature maps
alike: first a Hadamard-like one spreads each principal axis over all of them, then plane rotations give that one
matrix a constant diagonal (which exists by Schur and Horn), so that all feature maps get the same deviation and the
same weight at once.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.numerics.triangular import hadamard

Array = NDArray[np.float64]

#: c above. A step is a range of about 8 deviations by 255 for activations, and a maximum of about 4 root mean squares
#: by 127 for weights: the same width. But z counts twice, in its own rounding and in that of K.
GRAIN = 0.5
# Singular values below this share of the largest are lifted to it: directions that nothing reaches, or that nothing
# reads, must not make the basis ill-conditioned, or float16 could not hold it.
_FLOOR = 1e-3
# Deviation of the diagonal from its mean that counts as even.
_EVEN = 1e-9


def quiet_basis(crossing: Array, gram: Array) -> tuple[Array, Array]:
    """Find the basis in which rounding adds least noise.

    Args:
        crossing: T, float64 [R, R], symmetric positive semidefinite: second moment of what crosses, with the rounding
            of the weights in front added as `GRAIN` says.
        gram: G, float64 [R, R], symmetric positive semidefinite: inner products of what reads each feature map.

    Returns:
        A and its inverse, each float64 [R, R]. The scale is such that A T A^T = A^-T G A^-1, where no value was lifted.
    """
    root, inverse_root = _roots(crossing)
    values, vectors = np.linalg.eigh(root @ gram @ root)
    values, vectors = values[::-1], _signed(vectors[:, ::-1])
    spread = np.sqrt(np.maximum(values, 0.0))
    top = float(spread[0])
    spread = np.maximum(spread, _FLOOR * top) if top > 0.0 else np.ones_like(spread)
    turn = even_rotation(spread)
    half = np.sqrt(spread)
    return (turn * half) @ vectors.T @ inverse_root, root @ (vectors / half) @ turn.T


def even_rotation(spread: Array) -> Array:
    """Give a rotation Q that mixes all axes and gives Q diag(spread) Q^T a constant diagonal.

    Args:
        spread: float64 [R], not negative.

    Returns:
        Orthonormal, float64 [R, R].
    """
    turn = _mixing(len(spread))
    turned = (turn * spread) @ turn.T
    mean = float(spread.mean())
    # Each step puts one entry on the mean for good; the one it is paired with lies on the other side of it.
    for _ in range(len(spread) - 1):
        diagonal = np.diagonal(turned)
        high, low = int(np.argmax(diagonal)), int(np.argmin(diagonal))
        if diagonal[high] - diagonal[low] <= _EVEN * mean:
            break
        plane = _plane_rotation(turned[high, high] - mean, turned[high, low], turned[low, low] - mean)
        pair = [high, low]
        turn[pair] = plane @ turn[pair]
        turned[pair] = plane @ turned[pair]
        turned[:, pair] = turned[:, pair] @ plane.T
    return turn


def _plane_rotation(first: float, cross: float, second: float) -> Array:
    """Rotate [[first, cross], [cross, second]] so that its first entry is zero; first > second, of opposite signs."""
    # The entry at an angle is middle + half cos(2 angle) + cross sin(2 angle).
    middle, half = (first + second) / 2.0, (first - second) / 2.0
    share = max(-1.0, min(1.0, -middle / math.hypot(half, cross)))
    angle = (math.atan2(cross, half) - math.acos(share)) / 2.0
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, sine], [-sine, cosine]])


def _mixing(size: int) -> Array:
    """Orthonormal [size, size] with entries of about one magnitude: Hadamard for its power of two, times a DCT-II."""
    power = size & -size
    rest = size // power
    return cast(Array, np.kron(hadamard(power) / math.sqrt(power), cosines(rest, rest)))


def cosines(rows: int, columns: int) -> Array:
    """The first columns of the orthonormal DCT-II, float64 [rows, columns]."""
    angle = (np.arange(rows)[:, None] + 0.5) * np.arange(columns)[None, :] * (math.pi / rows)
    matrix: Array = np.cos(angle) * math.sqrt(2.0 / rows)
    matrix[:, 0] = math.sqrt(1.0 / rows)
    return matrix


def _roots(symmetric: Array) -> tuple[Array, Array]:
    """Square root of a positive semidefinite matrix and the inverse of it."""
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) * 0.5)
    top = float(values[-1])
    root = np.sqrt(np.maximum(values, _FLOOR**2 * top)) if top > 0.0 else np.ones_like(values)
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _signed(vectors: Array) -> Array:
    """Columns with signs such that their largest entries are positive."""
    peaks = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(vectors.shape[1])]
    signed: Array = vectors * np.where(peaks < 0.0, -1.0, 1.0)
    return signed
