"""Turn a budget into a plan: choose form and rank for every site."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_pointwise.candidates import Candidates, Resource, candidates
from onnx_pointwise.cost import ModelCost, dense_cost
from onnx_pointwise.errors import PlanError
from onnx_pointwise.factorize import FORMS, Form, Method
from onnx_pointwise.plan import Choice, Plan, make_choice, require_sites
from onnx_pointwise.sites import Refusal, Site


@dataclass(frozen=True)
class Budget:
    """How far to go. Exactly one of the ways is used, except that ``ranks`` may stand beside any of the shares.

    Attributes:
        ranks: Choice by site name, made by hand.
        ratio: The same share of its own cost at every site.
        energy: The share of the output's energy kept at every site.
        target_macs: Share of the whole model's MACs to keep.
        target_params: Share of the whole model's parameters to keep.
    """

    ranks: Mapping[str, Choice] = field(default_factory=dict)
    ratio: float | None = None
    energy: float | None = None
    target_macs: float | None = None
    target_params: float | None = None

    def __post_init__(self) -> None:
        shares = self.shares()
        if len(shares) > 1:
            raise PlanError(f"Name one budget, not {' and '.join(sorted(shares))} at once.")
        for name, value in shares.items():
            if not 0 < value <= 1:
                raise PlanError(f"The budget {name} is a share above 0 and at most 1, not {value:g}.")
        if not shares and not self.ranks:
            raise PlanError("Name a budget: target_macs, target_params, ratio, energy or the rank of a site.")

    def shares(self) -> dict[str, float]:
        """The shares that are set, by name."""
        named = {
            "ratio": self.ratio,
            "energy": self.energy,
            "target_macs": self.target_macs,
            "target_params": self.target_params,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def resource(self) -> Resource:
        """What must fall for a rewrite to count."""
        return "params" if self.target_params is not None else "macs"

    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict of what was asked for."""
        ranks = {name: choice.rank for name, choice in self.ranks.items()}
        return {**self.shares(), **({"ranks": ranks} if ranks else {})}


def hand_made(ranks: Mapping[str, int | tuple[int, int] | Choice], forms: Sequence[Form]) -> dict[str, Choice]:
    """Read ranks chosen by hand: a number for the first form that takes one, a pair for ``reduce_expand``.

    Raises:
        PlanError: A rank does not fit its form.
    """
    made = {}
    for name, rank in ranks.items():
        if isinstance(rank, Choice):
            made[name] = rank
        elif isinstance(rank, tuple):
            made[name] = make_choice(name, "reduce_expand", rank, where="ranks")
        else:
            form = next((form for form in forms if form != "reduce_expand"), None)
            if form is None:
                raise PlanError(f"Site '{name}' needs two ranks, R_in and R_out, for the form reduce_expand.")
            made[name] = make_choice(name, form, rank, where="ranks")
    return made


def choose(
    sites: Sequence[Site],
    wanted: Budget,
    total: ModelCost,
    *,
    forms: Sequence[Form] = FORMS,
    method: Method = "als",
    nodes_to_exclude: Sequence[str] = (),
) -> Plan:
    """Turn a budget into a plan.

    Args:
        sites: All sites of the model.
        wanted: The budget.
        total: Cost of the dense model.
        forms: The forms that compete for a site.
        method: How the factors will be computed.
        nodes_to_exclude: Sites to leave dense.

    Returns:
        The plan, with a refusal for every convolution that stays dense.

    Raises:
        PlanError: The budget cannot be met, or it names sites that do not exist or cannot be rewritten.
    """
    if not forms:
        raise PlanError(f"Name at least one form of {', '.join(FORMS)}.")
    by_name = {site.name: site for site in sites}
    require_sites(Plan(wanted.ranks), by_name)
    for name in nodes_to_exclude:
        if name not in by_name:
            require_sites(Plan({name: Choice("reduce", 1)}), by_name)
    refusals: dict[str, Refusal] = {}
    fixed: dict[str, Choice] = {}
    for name, choice in wanted.ranks.items():
        site = by_name[name]
        dense, cost = dense_cost(site), choice.cost(site)
        if cost.macs < dense.macs:
            fixed[name] = choice
        else:
            refusals[name] = Refusal(
                "no_gain",
                f"At rank {choice.rank} it takes as many MACs as before or more; insert_pointwise can do it.",
                {"macs": float(dense.macs), "macs_after": float(cost.macs)},
            )
    for site in sites:
        if site.refusal is not None and site.name not in fixed:
            refusals.setdefault(site.name, site.refusal)
        elif site.name in nodes_to_exclude:
            refusals[site.name] = Refusal("excluded", "It was excluded by name.")
    open_sites = [site for site in sites if site.name not in refusals and site.name not in fixed]
    chosen = dict(fixed)
    resource = wanted.resource
    if wanted.shares():
        options = [candidates(site, forms=forms, resource=resource) for site in open_sites]
        if wanted.ratio is not None:
            chosen |= by_ratio(options, wanted.ratio)
        elif wanted.energy is not None:
            chosen |= by_energy(options, wanted.energy)
        else:
            target = wanted.target_macs if wanted.target_params is None else wanted.target_params
            assert target is not None
            whole = total.macs if resource == "macs" else total.params
            saved = sum(_saved(by_name[name], choice, resource) for name, choice in fixed.items())
            chosen |= by_target(options, target, whole, resource, spent=whole - saved)
        refusals |= _left_dense(options, chosen, resource)
    else:
        refusals |= {site.name: Refusal("not_asked", "No rank was named for it.") for site in open_sites}
    order = [site.name for site in sites]
    return Plan(
        {name: chosen[name] for name in order if name in chosen},
        {name: refusals[name] for name in order if name in refusals},
        method,
        wanted.to_dict(),
    )


def _saved(site: Site, choice: Choice, resource: Resource) -> int:
    dense, cost = dense_cost(site), choice.cost(site)
    return dense.macs - cost.macs if resource == "macs" else dense.params - cost.params


def by_ratio(options: Sequence[Candidates], ratio: float, resource: Resource = "macs") -> dict[str, Choice]:
    """At every site, the smallest error that keeps at most a share of its cost.

    Args:
        options: Candidates of each site.
        ratio: Share of each site's own cost, above 0 and below 1.
        resource: What is budgeted.

    Returns:
        Choices by site name; sites where even the cheapest candidate costs more are left out.
    """
    chosen = {}
    for option in options:
        affordable = np.flatnonzero(option.cost(resource) <= ratio * option.dense_cost(resource))
        if affordable.size:
            chosen[option.site.name] = option.choices[affordable[-1]]
    return chosen


def by_energy(options: Sequence[Candidates], energy: float) -> dict[str, Choice]:
    """At every site, the cheapest candidate that keeps a share of its output's energy.

    Args:
        options: Candidates of each site.
        energy: Share of the squared output norm to keep, above 0 and at most 1.

    Returns:
        Choices by site name; sites where no cheaper candidate keeps that much are left out.
    """
    chosen = {}
    for option in options:
        faithful = np.flatnonzero(option.error <= 1.0 - energy + 1e-12)
        if faithful.size:
            chosen[option.site.name] = option.choices[faithful[0]]
    return chosen


def by_target(
    options: Sequence[Candidates],
    target: float,
    total: int,
    resource: Resource = "macs",
    *,
    spent: int | None = None,
) -> dict[str, Choice]:
    """Reach a share of the whole model's cost at the least lost energy, greedily.

    Sites start dense. The step that loses the least relative energy for what it saves is taken next, along the lower
    convex hull of each site's candidates, until the budget is met.

    Args:
        options: Candidates of each site.
        target: Share of the whole model's cost to keep, above 0 and at most 1.
        total: Cost of the whole dense model.
        resource: What is budgeted.
        spent: Cost of the model before any of these sites is rewritten, where it is not ``total`` any more.

    Returns:
        Choices by site name; the others stay dense.

    Raises:
        PlanError: The budget cannot be met.
    """
    spent = total if spent is None else spent
    least = spent - sum(
        option.dense_cost(resource) - int(option.cost(resource)[0]) for option in options if option.choices
    )
    if least > target * total:
        raise PlanError(
            f"The target {target:.3g} cannot be reached: with every site at rank 1, "
            f"{least / total:.3f} of the {_WORDS[resource]} are left."
        )
    position: dict[int, int] = {}
    heap: list[tuple[float, int, int]] = []
    hulls = [_hull(option, resource) for option in options]
    for index, hull in enumerate(hulls):
        if len(hull) > 1:
            heapq.heappush(heap, (_slope(hull, 0), index, 0))
    while spent > target * total:
        _, index, step = heapq.heappop(heap)
        hull = hulls[index]
        spent -= hull[step][0] - hull[step + 1][0]
        position[index] = hull[step + 1][2]
        if step + 2 < len(hull):
            heapq.heappush(heap, (_slope(hull, step + 1), index, step + 1))
    return {options[index].site.name: options[index].choices[at] for index, at in sorted(position.items())}


def _slope(hull: list[tuple[int, float, int]], step: int) -> float:
    (cost, error, _), (cheaper, worse, _) = hull[step], hull[step + 1]
    return (worse - error) / (cost - cheaper)


def _hull(option: Candidates, resource: Resource) -> list[tuple[int, float, int]]:
    """Lower convex hull of (cost, error, candidate), from the dense site to the cheapest candidate."""
    points = [(option.dense_cost(resource), 0.0, -1)]
    points += [
        (int(cost), float(error), index)
        for index, (cost, error) in reversed(list(enumerate(zip(option.cost(resource), option.error, strict=True))))
    ]
    hull: list[tuple[int, float, int]] = []
    for point in points:
        while len(hull) >= 2 and _slope([hull[-2], point], 0) <= _slope([hull[-2], hull[-1]], 0):
            hull.pop()
        hull.append(point)
    return hull


def _left_dense(options: Sequence[Candidates], chosen: Mapping[str, Choice], resource: Resource) -> dict[str, Refusal]:
    """Say for each site that stays dense why it does."""
    said = {}
    for option in options:
        if option.site.name in chosen:
            continue
        dense = float(option.dense_cost(resource))
        if option.choices:
            said[option.site.name] = Refusal("budget_met", "The budget is met without it.", {resource: dense})
        else:
            said[option.site.name] = Refusal(
                "no_gain", f"No form saves {_WORDS[resource]} at any rank.", {resource: dense}
            )
    return said


_WORDS: dict[Resource, str] = {"macs": "MACs", "params": "parameters"}
