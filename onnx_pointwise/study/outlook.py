"""What could become of a site: error curves, and factors near the error levels that plans ask for, to be tried."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import Replacement, Site, competing, corrected, rewritten_cost
from onnx_pointwise.numerics import (
    SPATIAL,
    TRIAL_SWEEPS,
    Factors,
    Form,
    Method,
    Norm,
    OutputNorm,
    Terms,
    compose,
    depthwise_fits,
    factorize,
    fitted_factors,
    held_curves,
    largest_first,
    workers,
)
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.study.collect import Seen
from onnx_pointwise.study.points import Point

Array = NDArray[Any]

# Relative squared errors at which a site is tried, about: what plans of half the arithmetic ask of most sites.
_LEVELS = (0.02, 0.07, 0.2)
_FORMS: tuple[Form, ...] = ("reduce", "expand")
# Where plans go by arithmetic, spatial forms have no hope if another one leaves less than this of what a 1x1 does.
_OUTDONE = 0.5


@dataclass(frozen=True)
class Trial:
    """Factors and bias to try, and the bound of their error as in `points.Point`."""

    replacement: Replacement
    bound: float

    def point(self, error: float, drift: float) -> Point:
        """What was measured with it."""
        factors = self.replacement.factors
        assert factors.form != "dense", "trials are split"
        return Point(factors.form, factors.rank, self.bound, error, drift)

    def weights(self, site: Site) -> dict[str, Array]:
        """The kernel and bias that compute the same, [O, I, *k] and [O]."""
        assert self.replacement.bias is not None
        composed = compose(self.replacement.factors)
        return {"w": composed.astype(site.dtype), "b": self.replacement.bias.astype(site.dtype)}


@dataclass(frozen=True)
class Outlook:
    """What could become of a site.

    Attributes:
        curves: Error curves by form.
        trials: Factors of a few ranks near the error levels that plans ask for.
        fits: Those that the curve of `depthwise` goes through, see `site_fits`.
    """

    curves: Mapping[Form, NDArray[np.float64]]
    trials: Sequence[Trial]
    fits: Sequence[Terms] = ()


def outlooks(
    sites: Sequence[Site],
    moments: Mapping[str, Seen],
    norms: Mapping[str, OutputNorm],
    forms: Sequence[Form],
    method: Method,
    *,
    arithmetic: bool = False,
    threads: int | None = None,
    progress: Within = unheard,
) -> dict[str, Outlook]:
    """Look at what could become of many sites.

    Args:
        sites: The sites.
        moments: What each sees, by its name.
        norms: Which errors of its outputs count, by its name; all alike if it has none.
        forms: Forms that plans may use.
        method: How factors are computed.
        arithmetic: As of `outlook`.
        threads: Sites to look at at a time; as many as there are processors if None.
        progress: Called with the name of each site before it is taken.

    Returns:
        The outlook by site name.
    """
    taken = itertools.count()

    def look(site: Site) -> Outlook:
        progress(site.name, next(taken), len(sites))
        return outlook(site, moments[site.name], forms, method, norms.get(site.name), arithmetic=arithmetic)

    found = largest_first(look, sites, workers(threads), lambda site: site.width)
    return dict(zip((site.name for site in sites), found, strict=True))


def outlook(
    site: Site,
    seen: Seen,
    forms: Sequence[Form],
    method: Method,
    outputs: OutputNorm | None = None,
    *,
    arithmetic: bool = False,
) -> Outlook:
    """Look at what could become of a site.

    Args:
        site: The site.
        seen: What it sees.
        forms: Forms that plans may use.
        method: How factors are computed.
        outputs: Which errors of its outputs count; all alike if None. Errors are told in that norm.
        arithmetic: Whether plans count multiplications alone. Spatial forms are then left out where they have no hope.

    Returns:
        Its curves, on examples that factors are not made from, and factors made without the examples to try them on.
    """
    kernel, _ = site.weights()
    norm = Norm.of(seen.part.covariance, site.in_channels, site.taps)
    held = Norm.of(seen.rest.full(), site.in_channels, site.taps) if seen.rest is not None else norm
    tried = competing(site, _FORMS)
    wanted = list(dict.fromkeys([*tried, *competing(site, forms)]))
    turned = _turned(kernel, outputs)
    fits = depthwise_fits(turned, norm) if "depthwise" in wanted else ()
    promised, judged = held_curves(turned, norm, held, [form for form in wanted if form not in SPATIAL], fits)
    spatial = [form for form in wanted if form in SPATIAL]
    if spatial and not (arithmetic and _outdone(site, judged, [len(terms.rows) for terms in fits])):
        for all_of_them, more in zip((promised, judged), held_curves(turned, norm, held, spatial), strict=True):
            all_of_them.update(more)
    trials = []
    for terms in fits:
        lost, bound = (curves["depthwise"][len(terms.rows)] for curves in (promised, judged))
        if bound > 0.0:
            trials.append(_trial(site, seen, fitted_factors(terms, kernel, outputs, float(np.sqrt(lost))), bound))
    for form in tried:
        curve = judged[form]
        inner = np.sqrt(curve[1:-1])
        levels = _LEVELS[1:2] if fits else _LEVELS  # what fits do to the network is known at all levels
        ranks = {1 + int(np.argmin(np.abs(inner - np.sqrt(level)))) for level in levels if inner.size}
        for rank in sorted(rank for rank in ranks if curve[rank] > 0.0):
            factors = factorize(
                kernel.astype(site.dtype),
                form,
                rank,
                method=method,
                second_moment=norm,
                outputs=outputs,
                sweeps=TRIAL_SWEEPS,
            )
            trials.append(_trial(site, seen, factors, curve[rank]))
    curves = judged if seen.rest is None else _expected(promised, judged, seen.part.count / seen.whole.count)
    return Outlook(curves, trials, tuple(terms.narrowed() for terms in fits))


def _outdone(site: Site, curves: Mapping[Form, NDArray[np.float64]], ranks: Sequence[int]) -> bool:
    """Whether `depthwise` leaves far less than forms with one 1x1 do for as many multiplications, at all these ranks.

    Spatial forms leave 0.6 to 1 of what the better one of those does, seldom less than half.
    """
    if not ranks or not site.out_size:
        return False
    for rank in ranks:
        macs = rewritten_cost(site, "depthwise", rank).macs
        for form in _FORMS:
            one, two = (rewritten_cost(site, form, count).macs for count in (1, 2))
            most = min(1 + (macs - one) // (two - one), len(curves[form]) - 1) if macs >= one else 0
            if curves["depthwise"][rank] > _OUTDONE * curves[form][most]:
                return False
    return True


def _trial(site: Site, seen: Seen, factors: Factors, bound: float) -> Trial:
    return Trial(corrected(site, Replacement(factors, None), seen.part.mean), float(bound))


def site_fits(site: Site, seen: Seen, outputs: OutputNorm | None = None) -> tuple[Terms, ...]:
    """Fits of `depthwise` at a few ranks, as an outlook has them, of a site that was not looked at.

    Args:
        site: The site.
        seen: What it sees.
        outputs: Which errors of its outputs count; all alike if None.
    """
    norm = Norm.of(seen.part.covariance, site.in_channels, site.taps)
    return tuple(terms.narrowed() for terms in depthwise_fits(_turned(site.weights()[0], outputs), norm))


def _turned(kernel: Array, outputs: OutputNorm | None) -> Array:
    """A kernel whose errors all count alike."""
    return kernel if outputs is None else outputs.turn(kernel.astype(np.float64))


def _expected(
    promised: Mapping[Form, NDArray[np.float64]], judged: Mapping[Form, NDArray[np.float64]], share: float
) -> dict[Form, NDArray[np.float64]]:
    """Curves of factors made from all examples, on others.

    What holds lies as far above what would be lost with endless examples as what was promised lies below it, and both
    gaps shrink with the number of examples (as training and test error of a least-squares fit do, Akaike 1970). Of n
    examples the gap between the two is 2 c / n, so with n / share of them c share / n are lost beyond.

    Args:
        promised: Curves of a part of the examples.
        judged: What holds of them on the others.
        share: How large the part is.
    """
    half = 0.5 * (1.0 + share)
    return {
        form: np.clip(promised[form] + half * np.maximum(judged[form] - promised[form], 0.0), 0.0, 1.0)
        for form in judged
    }
