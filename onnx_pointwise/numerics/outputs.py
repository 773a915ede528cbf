"""Which errors of a convolution's outputs count: the output side of the norm.

With g the gradient of the network's answers at a site's output and G = E[g g^T] over positions and examples, an error d
of the output moves the answers by g^T d, so that errors of a kernel weigh tr(G D S D^T) instead of tr(D S D^T): what
the network does not look at may go. Factors that are optimal in it are those of G^(1/2) W, with G^(-1/2) put back into
the last piece: closed forms stay closed. (Kronecker-factored curvature, Martens and Grosse 2015, used as a norm.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.numerics.moments import shrinkage

Array = NDArray[np.float64]

# Eigenvalues below this share of the mean are lifted to it: an output that no answer depends on is still an output.
_LEAST = 1e-2


@dataclass(frozen=True, eq=False)
class OutputNorm:
    """A shrunk G as it is used.

    Attributes:
        root: G^(1/2), [O, O]: root^T root = G.
        inverse: Its inverse.
    """

    root: Array
    inverse: Array

    @staticmethod
    def of(
        gradients: NDArray[np.floating], count: int, factors: NDArray[np.floating] | None = None
    ) -> OutputNorm | None:
        """Make one of a sum of g g^T.

        Args:
            gradients: [O, O]; its scale does not matter.
            count: Independent samples behind it: examples times probes, since places of one example go together. The
                fewer, the nearer to the identity it is taken.
            factors: What brings outputs of different units to one, [O], see `drift.units`: it is in this unit that all
                of them are taken to count alike. None where they are of one.

        Returns:
            The norm; None where there is no gradient at all.
        """
        if factors is not None:
            gradients = gradients / np.outer(factors, factors)
        level = float(np.trace(gradients)) / len(gradients)
        if not (np.isfinite(gradients).all() and level > 0.0):
            return None
        measured = (gradients + gradients.T) * (0.5 / level)
        share = shrinkage(measured, count)
        values, vectors = np.linalg.eigh((1.0 - share) * measured + share * np.eye(len(measured)))
        values = np.sqrt(np.maximum(values, _LEAST))
        root, inverse = (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
        if factors is not None:
            root, inverse = root * factors, inverse / factors[:, None]
        return OutputNorm(root, inverse)

    def turn(self, kernel: Array) -> Array:
        """G^(1/2) W for a kernel [O, ...]."""
        return cast(Array, np.tensordot(self.root, kernel, axes=(1, 0)))

    def back(self, piece: Array) -> Array:
        """G^(-1/2) U for the last piece [O, ...]."""
        return cast(Array, np.tensordot(self.inverse, piece, axes=(1, 0)))
