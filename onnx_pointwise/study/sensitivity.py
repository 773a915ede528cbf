"""What the error of one site does to the network's answers, see `heads`.

It is read off gradients, see `slopes`, for all sites at once. Where a node that no gradient leads through cuts a site
off from the heads, the network is run with errors in place, see `trials`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import Replacement, ResolvedShapes, Site
from onnx_pointwise.numerics import Form, OutputNorm, Response, Terms, fit_response
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.study.effort import Effort
from onnx_pointwise.study.gradients import Unsupported
from onnx_pointwise.study.heads import Heads
from onnx_pointwise.study.outlook import Outlook
from onnx_pointwise.study.points import Point
from onnx_pointwise.study.rounding import Rounding
from onnx_pointwise.study.slopes import Slopes
from onnx_pointwise.study.trials import by_trials

Array = NDArray[Any]


@dataclass(frozen=True)
class Sensitivity:
    """What is known of one site.

    Attributes:
        points: The measurements.
        response: The curve through them.
        cut: Nodes that no gradient leads through, for a site that was measured by trials because of them.
        tried: Weights that it was measured with, while somebody wants them.
        rounding: What rounding between its pieces adds; None where the network will not be quantised.
        curves: Relative squared error of the site's output that each rank leaves on examples that the factors were not
            made from, by form.
        fits: Those that the curve of `depthwise` goes through, of its factors without the examples tried on.
    """

    points: tuple[Point, ...]
    response: Response
    curves: Mapping[Form, NDArray[np.float64]]
    cut: tuple[Unsupported, ...] = ()
    tried: tuple[Replacement, ...] = ()
    rounding: Rounding | None = None
    fits: tuple[Terms, ...] = ()

    def curve(self, form: Form) -> NDArray[np.float64]:
        """The relative squared error of the site's output at each rank, all that is known of it counted in."""
        reached = self.errors(form, self.curves[form])
        return reached if self.rounding is None else reached + self.rounding.curve(form, reached.shape)

    def errors(self, form: Form, bounds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Estimate the error that `factorize` reaches from what `error_curve` gives.

        The curve is an upper bound for all forms but `expand` and `depthwise`; how far below it the alternation gets is
        interpolated between the measured ranks, those of the form itself or, where it was not tried, of `reduce`.
        """
        if form == "depthwise":
            return bounds  # a curve through fits is what they reach
        tried = form if any(point.form == form for point in self.points) else "reduce"
        known = sorted((p.bound, p.error / p.bound) for p in self.points if p.form == tried and p.bound > 0.0)
        if not known:
            return bounds
        at, ratio = np.array(known).T
        safe = np.maximum(bounds, np.finfo(np.float64).tiny)
        reached: NDArray[np.float64] = bounds * np.interp(np.log(safe), np.log(at), ratio)
        return reached


def sensitivities(
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    looks: Mapping[str, Outlook],
    slopes: Slopes,
    norms: Mapping[str, OutputNorm],
    inputs: Mapping[str, Array],
    heads: Heads,
    *,
    batch: int = 64,
    effort: Effort,
    progress: Within = unheard,
) -> dict[str, Sensitivity]:
    """Find out what the error of each site does to the network's answers.

    Args:
        shapes: The untouched model and its shapes; it is left as it is.
        sites: The sites to measure, in graph order.
        looks: What to try at each site, by its name.
        slopes: Gradients at the sites, on the same inputs.
        norms: Which errors of its outputs count, by its name.
        inputs: Example inputs by name, [N, ...], best those that what is tried is not made from.
        heads: Where the network answers.
        batch: Examples in one run of the runtime.
        effort: How much may be spent.
        progress: Called with what is taken up.

    Returns:
        The sensitivity by site name.

    Raises:
        ModelError: The model does not run on the inputs.
    """
    points = slopes.points(looks, norms, lambda what, done, total: progress(f"gradients, {what}", done, total))
    left = [site for site in sites if site.name in slopes.cut]
    if left:
        points |= by_trials(
            shapes.model,
            left,
            [looks[site.name] for site in left],
            inputs,
            heads,
            batch=batch,
            memory=effort.memory,
            threads=effort.threads,
            progress=progress,
        )
    found = {}
    for site in sites:
        measured = points[site.name]
        response = fit_response([point.error for point in measured], [point.drift for point in measured])
        cut = slopes.cut.get(site.name, ())
        look_at = looks[site.name]
        tried = tuple(trial.replacement for trial in look_at.trials)
        fits = tuple(look_at.fits)
        found[site.name] = Sensitivity(tuple(measured), response, look_at.curves, cut, tried, fits=fits)
    return found
