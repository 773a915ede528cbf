"""The norm that the data define on the errors of a kernel: a second moment of patches, checked and laid out once.

Notation as in `factorize`: the squared norm of D[O, I, K] is tr(D S D^T), with the identity for S where nothing is
known. Whatever divides by S takes S + jitter 1 instead.

Wide moments are kept in float32, and what is computed with them is: they are sums of float32 products of patches, and
on patches that they were not made from factors lose hundredths, not millionths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.errors import PlanError
from onnx_pointwise.numerics.forms import View
from onnx_pointwise.numerics.parallel import product

Array = NDArray[np.float64]
#: float64, or float32 where the moment is wide.
Working = NDArray[Any]

# Added to a second moment, in units of its Frobenius norm: makes dead channels and too few samples solvable, pulling
# the directions that the data never excite towards the plain norm. Moments are sums of float32 products, whose
# rounding this has to cover, or directions of negative energy would attract the factors.
JITTER = 1e-7
# The same for moments in float32, whose Cholesky factors round that much more.
_COARSE_JITTER = 1e-6
#: Moments of more numbers than this are kept in float32.
WIDE = 256


@dataclass(frozen=True, eq=False)
class Norm:
    """A second moment as `factorize` uses it. Give one to several calls for kernels of one shape, and they share it.

    Attributes:
        inputs: Feature maps that the kernel reads, I.
        taps: Taps of the kernel, K.
        moment: S, [I*K, I*K], or of the channels [I, I], symmetric, with mean diagonal 1, float32 where it is wide and
            float64 else; None for the identity.
        threads: Threads that products with S may take; what comes out does not depend on it.
    """

    inputs: int
    taps: int
    moment: Working | None
    threads: int = 1
    _seen: dict[View, Norm] = field(default_factory=dict, init=False, repr=False)

    @staticmethod
    def of(second_moment: NDArray[Any] | None, inputs: int, taps: int, *, threads: int = 1) -> Norm:
        """Check a second moment.

        Args:
            second_moment: E[p p^T] of the input patches, [I*K, I*K], or of the channels only, [I, I]; None stands for
                the identity. Scale does not matter.
            inputs: I.
            taps: K.
            threads: Threads that products with S may take.

        Raises:
            PlanError: It is not one of such patches.
        """
        if second_moment is None:
            return Norm(inputs, taps, None)
        moment = np.asarray(second_moment)
        moment = moment.astype(np.float32 if len(moment) > WIDE else np.float64, copy=False)
        if moment.shape not in ((inputs, inputs), (inputs * taps, inputs * taps)):
            raise PlanError(
                f"the second moment has shape {moment.shape}; a kernel with {inputs} input channels and {taps} taps "
                f"takes {(inputs * taps,) * 2}, or {(inputs,) * 2} for the channels alone"
            )
        level = float(np.trace(moment, dtype=np.float64)) / len(moment)
        if not math.isfinite(level) or not np.isfinite(moment).all():
            raise PlanError("the second moment holds values that are not finite; check the calibration inputs")
        if np.diagonal(moment).min() < -1e-6 * max(level, 0.0) or level < 0.0:
            raise PlanError("the second moment has a negative diagonal; it is not one of real patches")
        if level == 0.0:
            return Norm(inputs, taps, None)  # nothing ever reaches the kernel: every direction counts the same
        return Norm(inputs, taps, (moment + moment.T) * moment.dtype.type(0.5 / level), threads)

    def seen(self, view: View) -> Norm:
        """The norm of the same kernels in a view of them; made once for each view."""
        if not view.first:
            return self
        if view not in self._seen:
            moment = None if self.moment is None else view.of_moment(self.moment, self.inputs)
            self._seen[view] = Norm(self.inputs * view.channels, view.taps, moment, self.threads)
        return self._seen[view]

    def known_to(self, method: str) -> Norm:
        """The norm that a method of `factorize` minimises: of nothing, of the channels alone, or of all."""
        if method == "svd" or self.moment is None:
            return Norm(self.inputs, self.taps, None)
        return Norm.of(self.channels, self.inputs, self.taps) if method == "whitened" else self

    @property
    def full(self) -> bool:
        """Whether the moment is one of patches; for a single tap it is no different from one of channels."""
        return self.moment is not None and self.taps > 1 and len(self.moment) != self.inputs

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type to compute in: that of the moment."""
        return np.dtype(np.float64) if self.moment is None else self.moment.dtype

    @cached_property
    def jitter(self) -> float:
        """What is added to the diagonal of S before anything is divided by it."""
        if self.moment is None:
            return 0.0
        share = JITTER if self.dtype == np.float64 else _COARSE_JITTER
        return share * float(np.linalg.norm(self.moment))

    def apply(self, weights: Working) -> Working:
        """W S in the shape of W, [O, I, K], in the type of the moment."""
        if self.moment is None:
            return weights
        weights = weights.astype(self.dtype, copy=False)
        if not self.full:
            return cast(Working, np.matmul(self.moment, weights))
        return product(weights.reshape(len(weights), -1), self.moment, self.threads).reshape(weights.shape)

    def apply_lifted(self, weights: Working) -> Working:
        """W (S + jitter 1) in the shape of W, in the type of the moment."""
        return cast(
            Working, self.apply(weights) + self.dtype.type(self.jitter) * weights.astype(self.dtype, copy=False)
        )

    @cached_property
    def channels(self) -> Array | None:
        """Mean over taps of the diagonal blocks of S + jitter 1, float64 [I, I]; None for the identity."""
        if self.moment is None:
            return None
        mean = self.moment
        if self.full:
            blocks = self.moment.reshape(self.inputs, self.taps, self.inputs, self.taps)
            mean = np.einsum("itjt->ij", blocks, dtype=np.float64) / self.taps
        return mean.astype(np.float64) + self.jitter * np.eye(self.inputs)

    @cached_property
    def channels_inverse(self) -> Working:
        """Inverse of `channels` with tiny eigenvalues lifted, in the type of the moment; only ever a preconditioner."""
        assert self.channels is not None
        return regular_inverse(self.channels).astype(self.dtype, copy=False)

    @cached_property
    def blocks(self) -> Working:
        """S + jitter 1 of patches as [K * K * I, I]: blocks[(u, t, j), i] = S[(j, u), (i, t)]."""
        assert self.moment is not None and self.full
        parts = self.moment.reshape(self.inputs, self.taps, self.inputs, self.taps).transpose(1, 3, 0, 2).copy()
        same = np.arange(self.inputs)
        for tap in range(self.taps):
            parts[tap, tap, same, same] += self.jitter
        return parts.reshape(-1, self.inputs)


def regular_inverse(symmetric: Array) -> Array:
    """Inverse of a positive semidefinite matrix with tiny eigenvalues lifted; only ever a preconditioner."""
    values, vectors = np.linalg.eigh(symmetric)
    values = np.maximum(values, max(float(values[-1]) * 1e-8, float(np.finfo(np.float64).tiny)))
    return cast(Array, (vectors / values) @ vectors.T)
