"""How long a site takes in each form at each rank, measured on the execution provider that will run the network.

Latency is a staircase in the rank: kernels work on blocks of channels, and a block that is not full costs as much as
a full one. The steps are found by measuring: a coarse grid of ranks first, then the middle of every interval over
which the latency changes, until neighbours differ or the change is within the noise; where both ends take as long as
the untouched site, nothing between them is looked for. Only the highest rank of a tread is worth having. All sites are
probed together, and what was measured once is kept, see `clock`.
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
from onnx_pointwise.latency.probes import probe, probed_size
from onnx_pointwise.numerics import FORMS, Form, Rank, full_rank
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
    found = _Treads(sites, forms, asked or {}, Clock(provider, threads, cache, progress, deployment))
    return {site.name: found.of(site) for site in sites}


class _Treads:
    """The staircases of sites, found by measuring.

    Args:
        sites: The sites.
        forms: The forms that compete.
        asked: Form and rank by site name, to be measured whatever they take.
        clock: What measures.
    """

    def __init__(
        self, sites: Sequence[Site], forms: Sequence[Form], asked: Mapping[str, tuple[Form, Rank]], clock: Clock
    ) -> None:
        self._sites = {site.name: site for site in sites}
        self._asked, self._clock = asked, clock
        self._chain = functools.cache(lambda name, form, rank: probe(self._sites[name], form, rank))
        self._forms = {site.name: competing(site, forms) for site in sites}
        clock.measure(self._chain(name, None, 1) for name in self._sites)
        clock.measure(self._chain(name, *asked[name]) for name in self._sites if name in asked)
        self._known: dict[tuple[str, Form], list[int]] = {}
        self._climb()
        self._found = {name: self._tops(name) for name in self._sites}
        clock.measure(self._chain(name, *choice) for name, tops in self._found.items() for choice in tops)

    def of(self, site: Site) -> SiteLatency:
        """Sum up what was found of a site."""
        name, forms = site.name, self._forms[site.name]
        rows = site.in_size[0] / probed_size(site)[0]  # fewer may have been computed
        dense = rows * self._seconds(name)
        timed = [(rows * self._seconds(name, *choice), choice) for choice in self._found[name]]
        curves = [rows * seconds for form in forms for _, seconds in self._curve(name, form)]
        faster = [(seconds, choice) for seconds, choice in timed if seconds < (1.0 - TOLERANCE) * dense]
        wanted = [self._asked[name]] if name in self._asked else []
        return SiteLatency(
            dense,
            tuple(choice for _, choice in faster),
            tuple(seconds for seconds, _ in faster),
            min([*curves, *(seconds for seconds, _ in timed)], default=math.inf),
            {choice: rows * self._seconds(name, *choice) for choice in wanted},
        )

    def _seconds(self, name: str, form: Form | None = None, rank: Rank = 1) -> float:
        return self._clock.seconds(self._chain(name, form, rank))

    def _curve(self, name: str, form: Form) -> list[tuple[int, float]]:
        """Ranks of a form that were measured, rising, and their seconds."""
        return [(rank, self._seconds(name, form, rank)) for rank in self._known.get((name, form), ())]

    def _climb(self) -> None:
        """Measure all staircases at once, finer and finer."""
        following = {
            (name, form): _first_ranks(site, form)
            for name, site in self._sites.items()
            for form in _sides(self._forms[name])
        }
        self._known = {key: [] for key in following}
        while following:
            self._clock.measure(self._chain(*key, rank) for key, ranks in following.items() for rank in ranks)
            for key, ranks in following.items():
                self._known[key] = sorted({*self._known[key], *ranks})
            between = {key: _middles(self._curve(*key), self._seconds(key[0])) for key in following}
            following = {key: ranks for key, ranks in between.items() if ranks}

    def _tops(self, name: str) -> list[tuple[Form, Rank]]:
        """Forms and ranks of a site that are worth having, faster than it or not."""
        site, forms = self._sites[name], self._forms[name]
        tops = {
            form: _tops(self._curve(name, form), (_dense_rank(site, form), self._seconds(name)))
            for form in _sides(forms)
        }
        found: list[tuple[Form, Rank]] = [(form, rank) for form in forms if form in tops for rank in tops[form]]
        if "reduce_expand" in forms:
            found += [("reduce_expand", pair) for pair in _pairs(tops["reduce"], tops["expand"])]
        return found


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

    Spatial and depthwise forms cost more than the site long before that; they lose next to nothing where they cost as
    much.
    """
    (full,) = full_rank(form, site.in_channels, site.out_channels, site.kernel_shape)
    return full if form in ("reduce", "expand") else min(full, _highest_rank(site, form) + 1)


def _first_ranks(site: Site, form: Form) -> list[int]:
    """A coarse grid up to the highest rank that still saves arithmetic."""
    limit = _highest_rank(site, form)
    return sorted({*range(_GRID, limit + 1, _GRID), *(rank for rank in (1, 4, 8, limit) if 1 <= rank <= limit)})


def _middles(curve: Sequence[tuple[int, float]], dense: float) -> list[int]:
    """Ranks to measure next: the middle of each interval over which the latency changes and is below the dense one."""
    return [
        (low + high) // 2
        for (low, below), (high, above) in itertools.pairwise(curve)
        if high - low > 1 and abs(above - below) > TOLERANCE * dense and min(below, above) < (1.0 - TOLERANCE) * dense
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
