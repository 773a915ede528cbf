"""How long a site takes in each form at each rank, measured on the execution provider that will run the network.

Latency is a staircase in the rank: kernels work on blocks of channels, and a block that is not full costs as much as
a full one. The steps are found by measuring: a coarse grid of ranks first, then the middle of every interval over
which the latency changes, until neighbours differ or the change is within the noise. Only the highest rank of a tread
is worth having. All sites are probed together, and what was measured once is kept, see `clock`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx_pointwise.deploying import AS_IS, Deployment
from onnx_pointwise.graph import Site, competing, dense_cost, rewritten_cost
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.latency.cache import LatencyCache
from onnx_pointwise.latency.clock import Clock
from onnx_pointwise.latency.probes import Probe, probe, probed_size
from onnx_pointwise.numerics import FORMS, SPATIAL, Form, Rank, full_rank
from onnx_pointwise.progress import Within, unheard

#: Latencies closer than this share of the dense site's count as equal.
TOLERANCE = 0.03

_GRID = 16
_PAIRS = 6


@dataclass(frozen=True)
class SiteLatency:
    """Latency of one site.

    Attributes:
        dense: Seconds of the untouched convolution.
        choices: Form and rank of the top of each tread that is faster than that.
        seconds: Seconds of each of them.
        fastest: Seconds of the fastest form and rank measured, faster than ``dense`` or not; infinite where none was.
        asked: Seconds of the forms and ranks that were asked for by name.
    """

    dense: float
    choices: tuple[tuple[Form, Rank], ...]
    seconds: tuple[float, ...]
    fastest: float = math.inf
    asked: Mapping[tuple[Form, Rank], float] = field(default_factory=dict)

    def of(self, form: Form, rank: Rank) -> float:
        """Seconds of a form and rank that was measured.

        Raises:
            KeyError: It was not.
        """
        return (dict(zip(self.choices, self.seconds, strict=True)) | dict(self.asked))[form, rank]

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        treads = [
            {"form": form, "rank": list(rank) if isinstance(rank, tuple) else rank, "seconds": seconds}
            for (form, rank), seconds in zip(self.choices, self.seconds, strict=True)
        ]
        return {"dense": self.dense, "treads": treads}


def site_latencies(
    sites: Sequence[Site],
    *,
    forms: Sequence[Form] = FORMS,
    provider: str = "cpu",
    threads: int | None = None,
    asked: Mapping[str, tuple[Form, Rank]] | None = None,
    cache: LatencyCache | None = None,
    deployment: Deployment = AS_IS,
    progress: Within = unheard,
) -> dict[str, SiteLatency]:
    """Measure what each site takes in each form.

    Args:
        sites: Sites that may be rewritten and whose sizes are known.
        forms: The forms that compete.
        provider: Execution provider, as for ``open_session``.
        threads: Threads inside one operator; the runtime's own choice if ``None``.
        asked: Form and rank by site name, to be measured whatever they take.
        cache: Where measurements are kept; ``None`` measures everything anew.
        deployment: What is made of a network before it runs, and so of a probe.
        progress: Called with what is measured next, and how many probes are.

    Returns:
        Latency by site name: of the dense site, and of the top of each tread that is faster by more than the noise.

    Raises:
        ProviderError: The provider does not load.
        ModelError: A probe cannot be deployed so.
    """
    clock = Clock(provider, threads, cache, progress, deployment)
    by_name = {site.name: site for site in sites}

    @functools.cache
    def chain(name: str, form: Form | None = None, rank: Rank = 1) -> Probe:
        return probe(by_name[name], form, rank)

    clock.measure(chain(site.name) for site in sites)
    dense = {site.name: clock.seconds(chain(site.name)) for site in sites}
    named = asked or {}
    clock.measure(chain(site.name, *named[site.name]) for site in sites if site.name in named)
    chosen = {site.name: competing(site, forms) for site in sites}
    single = [(site, form) for site in sites for form in _sides(chosen[site.name])]
    known: dict[tuple[str, Form], list[int]] = {(site.name, form): [] for site, form in single}
    tops: dict[tuple[str, Form], list[int]] = {}
    open_curves = {(site.name, form): (site, _first_ranks(site, form)) for site, form in single}
    while open_curves:
        clock.measure(chain(*key, rank) for key, (site, ranks) in open_curves.items() for rank in ranks)
        following = {}
        for key, (site, ranks) in open_curves.items():
            known[key] = sorted({*known[key], *ranks})
            curve = [(rank, clock.seconds(chain(*key, rank))) for rank in known[key]]
            between = _middles(curve, TOLERANCE * dense[site.name])
            if between:
                following[key] = (site, between)
            else:
                tops[key] = _tops(curve, (_dense_rank(site, key[1]), dense[site.name]))
        open_curves = following
    found: dict[str, list[tuple[Form, Rank]]] = {site.name: [] for site in sites}
    for site in sites:
        alone = [form for form in chosen[site.name] if form != "reduce_expand"]
        found[site.name] += [(form, rank) for form in alone for rank in tops[site.name, form]]
        if "reduce_expand" in chosen[site.name]:
            pairs = _pairs(tops[site.name, "reduce"], tops[site.name, "expand"])
            found[site.name] += [("reduce_expand", pair) for pair in pairs]
    clock.measure(chain(site.name, form, rank) for site in sites for form, rank in found[site.name])
    result = {}
    for site in sites:
        rows = site.in_size[0] / probed_size(site)[0]  # fewer may have been computed
        timed = [(rows * clock.seconds(chain(site.name, form, rank)), form, rank) for form, rank in found[site.name]]
        curves = [
            rows * clock.seconds(chain(site.name, form, rank))
            for form in chosen[site.name]
            for rank in known.get((site.name, form), ())
        ]
        faster = [entry for entry in timed if entry[0] < (1.0 - TOLERANCE) * rows * dense[site.name]]
        wanted = [named[site.name]] if site.name in named else []
        result[site.name] = SiteLatency(
            rows * dense[site.name],
            tuple((form, rank) for _, form, rank in faster),
            tuple(seconds for seconds, _, _ in faster),
            min([*curves, *(entry[0] for entry in timed)], default=math.inf),
            {choice: rows * clock.seconds(chain(site.name, *choice)) for choice in wanted},
        )
    return result


def _sides(forms: Sequence[Form]) -> list[Form]:
    """Forms whose staircases have to be known; pairs are made of the treads of both sides."""
    wanted = {"reduce", "expand", *forms} if "reduce_expand" in forms else set(forms)
    return [form for form in FORMS if form in wanted and form != "reduce_expand"]


def _highest_rank(site: Site, form: Form) -> int:
    """The highest rank that still saves arithmetic."""
    one, two = (rewritten_cost(site, form, rank).macs for rank in (1, 2))
    return 1 + (dense_cost(site).macs - 1 - one) // (two - one)


def _dense_rank(site: Site, form: Form) -> int:
    """The rank that the untouched site stands for on a form's staircase: the full one.

    Spatial forms cost more than the site long before that; they lose next to nothing where they cost as much.
    """
    (full,) = full_rank(form, site.in_channels, site.out_channels, site.kernel_shape)
    return min(full, _highest_rank(site, form) + 1) if form in SPATIAL else full


def _first_ranks(site: Site, form: Form) -> list[int]:
    """A coarse grid up to the highest rank that still saves arithmetic."""
    limit = _highest_rank(site, form)
    return sorted({*range(_GRID, limit + 1, _GRID), *(rank for rank in (1, 4, 8, limit) if 1 <= rank <= limit)})


def _middles(curve: Sequence[tuple[int, float]], tolerance: float) -> list[int]:
    """Ranks to measure next: the middle of each interval over which the latency changes."""
    return [
        (low + high) // 2
        for (low, below), (high, above) in itertools.pairwise(curve)
        if high - low > 1 and abs(above - below) > tolerance
    ]


def _tops(curve: Sequence[tuple[int, float]], dense: tuple[int, float]) -> list[int]:
    """Ranks worth having: the tops of the treads.

    A rank is none if a higher one takes as long. Nor is it one if it lies well above the line between a lower and a
    higher rank: the foot of a step that rises in stages, where a little more rank costs most of the step.

    Args:
        curve: Ranks, rising, and their seconds.
        dense: Full rank, and the seconds of the untouched site.
    """
    tolerance = TOLERANCE * dense[1]
    kept: list[tuple[int, float]] = []
    best = math.inf
    for rank, seconds in reversed(curve):
        if seconds < best - tolerance:
            kept.append((rank, seconds))
            best = seconds
    kept.reverse()
    hull: list[tuple[int, float]] = []
    for point in [*kept, dense]:
        while len(hull) > 1 and _above(hull[-1], hull[-2], point) >= 0.0:
            hull.pop()
        hull.append(point)
    edges = list(itertools.pairwise(hull))
    return [
        point[0]
        for point in kept
        if not any(low < point < high and _above(point, low, high) > 2.0 * tolerance for low, high in edges)
    ]


def _above(point: tuple[int, float], low: tuple[int, float], high: tuple[int, float]) -> float:
    """How far a point lies above the line between two others."""
    if high[0] == low[0]:
        return 0.0
    return point[1] - (low[1] + (high[1] - low[1]) * (point[0] - low[0]) / (high[0] - low[0]))


def _pairs(inner: Sequence[int], outer: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of treads for both sides, thinned out evenly."""

    def some(tops: Sequence[int]) -> list[int]:
        if len(tops) <= _PAIRS:
            return list(tops)
        return sorted({tops[round(index * (len(tops) - 1) / (_PAIRS - 1))] for index in range(_PAIRS)})

    return [(r_in, r_out) for r_in in some(inner) for r_out in some(outer)]
