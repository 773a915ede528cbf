"""What could be done at every site with the drift that each choice is predicted to cause, and the best of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import Choice, Site
from onnx_pointwise.latency import Measured
from onnx_pointwise.numerics import FORMS, Form, knapsack
from onnx_pointwise.planning.candidates import COLUMNS, Resource, candidates
from onnx_pointwise.study import Sensitivity, Study

# Share of the largest loss below which the solver tells plans apart no more.
_FINE = 1e-3


@dataclass(frozen=True)
class Options:
    """What can be done to one site, from the cheapest candidate to the dense site.

    Attributes:
        site: The site.
        choices: Form and rank of each candidate; None for the dense site.
        costs: [n, 3], MACs, parameters and seconds, see `candidates.COLUMNS`.
        losses: [n], predicted relative squared drift of the network.
        errors: [n], predicted relative squared error of the site's output.
        measured: Its latency; None where that was not measured.
    """

    site: Site
    choices: tuple[Choice | None, ...]
    costs: NDArray[np.float64]
    losses: NDArray[np.float64]
    errors: NDArray[np.float64]
    measured: Measured | None = None

    def with_losses(self, losses: NDArray[np.float64]) -> Options:
        """The same with other losses, [n]."""
        return replace(self, losses=losses)


def options(
    found: Study,
    *,
    forms: Sequence[Form] = FORMS,
    resource: Resource = "macs",
    measured: Mapping[str, Measured] | None = None,
) -> list[Options]:
    """List the candidates of every site with the drift that each is predicted to cause.

    Args:
        found: What the examples told.
        forms: The forms that compete, of those that were studied.
        resource: What must fall.
        measured: Latency by site name; only what is faster is then a candidate.

    Returns:
        The options of each site, in graph order.
    """
    told = [known.response.gain for known in found.sensitivities.values() if known.response.gain > 0.0]
    usual = float(np.median(told)) if told else 1.0
    return [
        _options(site, found, forms, resource, (measured or {}).get(site.name))
        if _shown(found.sensitivities[site.name])
        else plain_options(site, forms, resource, (measured or {}).get(site.name), usual)
        for site in found.sites
    ]


def plain_options(
    site: Site, forms: Sequence[Form], resource: Resource, measured: Measured | None, gain: float = 1.0
) -> Options:
    """The options of a site of which nothing but its kernel is known, at a gain that others have."""
    listed = candidates(site, forms=forms, resource=resource, measured=measured)
    errors = np.append(listed.error, 0.0)
    costs = np.vstack([listed.costs, listed.dense])
    return Options(site, (*listed.choices, None), costs, gain * errors, errors, measured)


def _shown(known: Sensitivity) -> bool:
    """Whether the examples show an error of the site: an error that nothing shows is not small."""
    lowest = [curve[(1,) * curve.ndim] for curve in known.curves.values() if min(curve.shape) > 1]
    return known.response.gain > 0.0 and max(lowest, default=0.0) > 0.0


def _options(site: Site, found: Study, forms: Sequence[Form], resource: Resource, measured: Measured | None) -> Options:
    known = found.sensitivities[site.name]
    curves = {form: known.curve(form) for form in known.curves}
    listed = candidates(site, forms=forms, resource=resource, curves=curves, measured=measured)
    errors = np.append(listed.error, 0.0)
    costs = np.vstack([listed.costs, listed.dense])
    return Options(site, (*listed.choices, None), costs, known.response(errors), errors, measured)


def share_out(listed: Sequence[Options], limits: Mapping[Resource, float]) -> dict[str, Choice]:
    """Pick a candidate for every site: least predicted drift within the limits.

    Args:
        listed: The options of each site.
        limits: The most that all these sites together may cost.

    Returns:
        Choices by site name; the others stay dense.

    Raises:
        PlanError: The limits cannot be met.
    """
    columns = [COLUMNS[name] for name in limits]
    costs, losses = [one.costs[:, columns] for one in listed], [one.losses for one in listed]
    kept = [np.arange(len(loss)) for loss in losses]
    while True:
        found = knapsack(
            [cost[at] for cost, at in zip(costs, kept, strict=True)],
            [loss[at] for loss, at in zip(losses, kept, strict=True)],
            list(limits.values()),
        )
        picked = [int(at[index]) for at, index in zip(kept, found, strict=True)]
        total = sum(float(loss[index]) for loss, index in zip(losses, picked, strict=True))
        largest = max((float(loss[at].max()) for loss, at in zip(losses, kept, strict=True)), default=0.0)
        if total >= _FINE * largest:
            return _named(listed, picked)
        # What alone loses more than this plan is in no better one; the solver does not see differences much smaller.
        kept = [np.flatnonzero(loss <= total * (1.0 + _FINE)) for loss in losses]


def _named(listed: Sequence[Options], picked: Sequence[int]) -> dict[str, Choice]:
    chosen = {one.site.name: one.choices[index] for one, index in zip(listed, picked, strict=True)}
    return {name: choice for name, choice in chosen.items() if choice is not None}
