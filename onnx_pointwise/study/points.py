"""What was measured of a site's error and the network's."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_pointwise.numerics import Form, Rank


@dataclass(frozen=True)
class Point:
    """One measurement at one site.

    Attributes:
        form: Form of the factors.
        rank: Their rank.
        bound: Relative squared error that `held_curves` gives for the rank.
        error: Relative squared error of the site's output on the examples tried, means taken out.
        drift: Relative squared drift of the network's outputs, their mean over the examples taken out.
    """

    form: Form
    rank: Rank
    bound: float
    error: float
    drift: float
