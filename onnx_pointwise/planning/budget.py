"""Turn a budget into a plan: choose form and rank for every site."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnx_pointwise.errors import PlanError, TargetError
from onnx_pointwise.graph import Choice, ModelCost, Plan, Refusal, Site, dense_cost, make_choice, require_sites
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.latency import NetworkLatency
from onnx_pointwise.numerics import FORMS, Form, Method
from onnx_pointwise.planning.candidates import COLUMNS, Resource
from onnx_pointwise.planning.correction import Corrected
from onnx_pointwise.planning.options import Options, options, plain_options, share_out
from onnx_pointwise.planning.repair import repaired
from onnx_pointwise.progress import Progress, silent
from onnx_pointwise.study import Study

NO_BUDGET = (
    "Name a budget: target_macs, target_params, target_latency, ratio, energy, the rank of a site, or the largest "
    "drift allowed."
)
#: Budgets that are a share of the whole model's cost, and what they count.
TARGETS: dict[str, Resource] = {"target_macs": "macs", "target_params": "params", "target_latency": "latency"}


@dataclass(frozen=True)
class Budget:
    """How far to go.

    ``ranks`` may stand beside anything else. ``ratio`` and ``energy`` treat every site alike and stand alone; the
    targets may be combined.

    Attributes:
        ranks: Choice by site name, made by hand.
        ratio: The same share of its own MACs at every site.
        energy: The share of the output's energy kept at every site.
        target_macs: Share of the whole model's MACs to keep.
        target_params: Share of the whole model's parameters to keep.
        target_latency: Share of the whole model's latency to keep.
    """

    ranks: Mapping[str, Choice] = field(default_factory=dict)
    ratio: float | None = None
    energy: float | None = None
    target_macs: float | None = None
    target_params: float | None = None
    target_latency: float | None = None

    def __post_init__(self) -> None:
        shares = self.shares()
        alone = [name for name in shares if name not in TARGETS]
        if alone and len(shares) > 1:
            raise PlanError(f"Name one budget, not {' and '.join(sorted(shares))} at once.")
        for name, value in shares.items():
            if not 0 < value <= 1:
                raise PlanError(f"The budget {name} is a share above 0 and at most 1, not {value:g}.")
        if not shares and not self.ranks:
            raise PlanError(NO_BUDGET)

    def shares(self) -> dict[str, float]:
        """The shares that are set, by name."""
        named = {
            "ratio": self.ratio,
            "energy": self.energy,
            "target_macs": self.target_macs,
            "target_params": self.target_params,
            "target_latency": self.target_latency,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def targets(self) -> dict[Resource, float]:
        """The shares of the whole model that are set, by what they count."""
        return {TARGETS[name]: value for name, value in self.shares().items() if name in TARGETS}

    @property
    def resource(self) -> Resource:
        """What must fall for a rewrite to count."""
        return next(iter(self.targets), "macs")

    @json_ready
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


@dataclass(frozen=True)
class Split:
    """What a budget leaves open once ranks by hand, refusals and exclusions are settled.

    Attributes:
        open: Sites still to be decided, in graph order.
        fixed: Choices made by hand, by site name.
        refusals: Refusals that are settled, by site name.
    """

    open: tuple[Site, ...]
    fixed: Mapping[str, Choice]
    refusals: Mapping[str, Refusal]


def settle(sites: Sequence[Site], wanted: Budget, nodes_to_exclude: Sequence[str] = ()) -> Split:
    """Sort the sites of a model into those decided already and those that a budget has to decide.

    Raises:
        PlanError: A rank or an exclusion names a site that does not exist or cannot be rewritten.
    """
    by_name = {site.name: site for site in sites}
    require_sites(Plan(wanted.ranks), by_name)
    for name in nodes_to_exclude:
        if name not in by_name:
            require_sites(Plan({name: Choice("reduce", 1)}), by_name)
    refusals: dict[str, Refusal] = {}
    fixed: dict[str, Choice] = {}
    for name, choice in wanted.ranks.items():
        dense, cost = dense_cost(by_name[name]), choice.cost(by_name[name])
        if cost.macs < dense.macs:
            fixed[name] = choice
        else:
            refusals[name] = Refusal(
                "no_gain",
                f"At rank {choice.rank} it takes as many MACs as before or more; insert (insert_pointwise) can do it.",
                {"macs": float(dense.macs), "macs_after": float(cost.macs)},
            )
    for site in sites:
        if site.refusal is not None and site.name not in fixed:
            refusals.setdefault(site.name, site.refusal)
        elif site.name in nodes_to_exclude:
            refusals[site.name] = Refusal("excluded", "It was excluded by name.")
    left = tuple(site for site in sites if site.name not in refusals and site.name not in fixed)
    if not wanted.shares():
        refusals |= {site.name: Refusal("not_asked", "No rank was named for it.") for site in left}
        left = ()
    return Split(left, fixed, refusals)


def choose(
    sites: Sequence[Site],
    split: Split,
    wanted: Budget,
    listed: Sequence[Options],
    total: ModelCost,
    *,
    method: Method = "als",
    learned: Corrected | None = None,
    timed: NetworkLatency | None = None,
    repair_seconds: float = 0.0,
    progress: Progress = silent,
) -> Plan:
    """Turn a budget into a plan.

    Args:
        sites: All sites of the model.
        split: What is settled already, from ``settle``.
        wanted: The budget.
        listed: What could be done to the sites that are open, from ``options_of``.
        total: Cost of the dense model.
        method: How the factors will be computed.
        learned: What plans that were rehearsed have taught; None without example inputs.
        timed: What the network takes on a provider, where the options come from that.
        repair_seconds: Time to run variations of a plan for targets in, see ``repair``; takes ``learned``.
        progress: Called with a stage and what is taken up in it.

    Returns:
        The plan, with a refusal for every convolution that stays dense.

    Raises:
        TargetError: A target cannot be met.
        PlanError: The budget cannot be met for another reason.
    """
    if wanted.target_latency is not None and timed is None:
        raise PlanError("A target for the latency needs a provider to measure on; none plans by arithmetic alone.")
    chosen = dict(split.fixed)
    if wanted.ratio is not None:
        chosen |= by_ratio(listed, wanted.ratio)
    elif wanted.energy is not None:
        chosen |= by_energy(listed, wanted.energy)
    elif wanted.targets:
        saved = _fixed_savings(sites, split, timed)
        limits = _limits(listed, wanted.targets, total, saved, timed, stuck=_stuck(sites, split, listed, timed))
        if any(len(option.choices) > 1 for option in listed):
            progress("plan", "rehearsal")
            chosen |= _shared_out(listed, limits, split.fixed, learned, repair_seconds, progress)
    plan = plan_of(sites, split, listed, chosen, wanted.resource, timed=timed, method=method)
    return replace(plan, budget=wanted.to_dict())


def plan_of(
    sites: Sequence[Site],
    split: Split,
    listed: Sequence[Options],
    chosen: Mapping[str, Choice],
    resource: Resource,
    *,
    timed: NetworkLatency | None = None,
    method: Method = "als",
) -> Plan:
    """Put choices into a plan, with a refusal for every convolution that stays dense.

    Args:
        sites: All sites of the model.
        split: What is settled already, from ``settle``.
        listed: What could be done to the sites that are open.
        chosen: Choices by site name.
        resource: What had to fall.
        timed: What the network takes on a provider, where the options come from that.
        method: How the factors will be computed.
    """
    refusals = dict(split.refusals) | _left_dense(listed, chosen, resource, timed)
    order = [site.name for site in sites]
    return Plan(
        {name: chosen[name] for name in order if name in chosen},
        {name: refusals[name] for name in order if name in refusals},
        method,
        corrected=_corrected(sites, chosen, refusals, free_bias=timed is None or timed.bias_is_free),
    )


def _corrected(
    sites: Sequence[Site], chosen: Mapping[str, Choice], refusals: Mapping[str, Refusal], *, free_bias: bool
) -> tuple[str, ...]:
    """Sites that stay whole and may have other weights: all but those that were excluded, where any is rewritten.

    Nor those without a bias where one is not free: it comes with the weights.
    """
    if not chosen:
        return ()
    whole = [site for site in sites if site.rewritable and site.name not in chosen and (free_bias or site.has_bias)]
    return tuple(site.name for site in whole if refusals[site.name].code != "excluded")


def _shared_out(
    listed: Sequence[Options],
    limits: Mapping[Resource, float],
    fixed: Mapping[str, Choice],
    learned: Corrected | None,
    repair_seconds: float,
    progress: Progress,
) -> dict[str, Choice]:
    """Choices within the limits, rehearsed and repaired where there are example inputs."""
    if learned is None:
        return share_out(listed, limits)
    chosen = learned.share_out(listed, limits, fixed)
    if repair_seconds <= 0:
        return chosen
    return repaired(
        learned.rehearsal,
        listed,
        list(limits.values()),
        [COLUMNS[resource] for resource in limits],
        {**fixed, **chosen},
        seconds=repair_seconds,
        progress=progress,
    )


def options_of(
    split: Split,
    wanted: Budget,
    *,
    forms: Sequence[Form] = FORMS,
    found: Study | None = None,
    timed: NetworkLatency | None = None,
) -> list[Options]:
    """List what could be done to the sites that a budget has to decide.

    Args:
        split: What is settled already, from ``settle``.
        wanted: The budget.
        forms: The forms that compete for a site.
        found: What example inputs told; without it, relative errors of the kernels alone are added up, which knows
            nothing of what a site's error does to the outputs.
        timed: What the network takes on a provider; only what is faster there is then listed.

    Returns:
        The options of each site, in graph order.

    Raises:
        PlanError: There is no form to choose from.
    """
    if not forms:
        raise PlanError(f"Name at least one form of {', '.join(FORMS)}.")
    measured = {} if timed is None else timed.measured()
    if found is not None and split.open:  # sensitivities are measured only where something is open
        names = {site.name for site in split.open}
        seen = options(found, forms=forms, resource=wanted.resource, measured=measured)
        return [option for option in seen if option.site.name in names]
    return [plain_options(site, forms, wanted.resource, measured.get(site.name)) for site in split.open]


def _fixed_savings(sites: Sequence[Site], split: Split, timed: NetworkLatency | None) -> dict[Resource, float]:
    saved: dict[Resource, float] = dict.fromkeys(COLUMNS, 0.0)
    for site in sites:
        if site.name in split.fixed:
            choice = split.fixed[site.name]
            dense, cost = dense_cost(site), choice.cost(site)
            saved["macs"] += dense.macs - cost.macs
            saved["params"] += dense.params - cost.params
            if timed is not None:
                saved["latency"] += timed.seconds(site.name, None) - timed.seconds(site.name, choice)
    return saved


def by_ratio(listed: Sequence[Options], ratio: float) -> dict[str, Choice]:
    """At every site, the smallest error that keeps at most a share of its MACs.

    Args:
        listed: Options of each site.
        ratio: Share of each site's own MACs, above 0 and at most 1.

    Returns:
        Choices by site name; sites where even the cheapest candidate costs more are left out.
    """
    chosen = {}
    for option in listed:
        macs = option.costs[:, 0]
        affordable = [
            choice for choice, cost in zip(option.choices, macs, strict=True) if choice and cost <= ratio * macs[-1]
        ]
        if affordable:
            chosen[option.site.name] = min(affordable, key=_error)
    return chosen


def by_energy(listed: Sequence[Options], energy: float) -> dict[str, Choice]:
    """At every site, the cheapest candidate that keeps a share of its output's energy.

    Args:
        listed: Options of each site.
        energy: Share of the squared output norm to keep, above 0 and at most 1.

    Returns:
        Choices by site name; sites where no cheaper candidate keeps that much are left out.
    """
    chosen = {}
    for option in listed:
        faithful = [
            (cost, choice)
            for choice, cost in zip(option.choices, option.costs[:, 0], strict=True)
            if choice and _error(choice) ** 2 <= 1.0 - energy + 1e-12
        ]
        if faithful:
            chosen[option.site.name] = min(faithful, key=lambda item: item[0])[1]
    return chosen


def _error(choice: Choice) -> float:
    assert choice.error is not None, "candidates carry their error"
    return choice.error


def _limits(
    listed: Sequence[Options],
    targets: Mapping[Resource, float],
    total: ModelCost,
    fixed: Mapping[Resource, float],
    timed: NetworkLatency | None,
    *,
    stuck: str,
) -> dict[Resource, float]:
    """What the sites of a budget may cost together, so that the whole model keeps its shares.

    Args:
        listed: What could be done to each of them.
        targets: The shares.
        total: Cost of the model.
        fixed: What ranks chosen by hand save already.
        timed: What was measured, where latency was.
        stuck: What to say of sites where nothing can be done.

    Raises:
        TargetError: Even the cheapest candidates cost more.
    """
    limits: dict[Resource, float] = {}
    wholes: dict[Resource, float] = {"macs": total.macs, "params": total.params}
    if timed is not None:
        wholes["latency"] = timed.dense
    for resource, target in targets.items():
        whole, column = wholes[resource], COLUMNS[resource]
        dense = sum(float(option.costs[-1, column]) for option in listed)
        least = sum(float(option.costs[:, column].min()) for option in listed)
        rest = whole - fixed[resource] - dense
        if rest + least > target * whole * (1.0 + _ROUNDING) or (not whole and target < 1.0):
            left = (rest + least) / whole if whole else 1.0
            among = "" if timed is None else f" among the forms and ranks that are faster on {timed.provider}"
            least_of_all = f"with every site at its lowest rank{among}"
            if not any(len(option.choices) > 1 for option in listed):
                least_of_all = "nothing can be rewritten" if not fixed[resource] else "with the ranks chosen by hand"
            ways_out = [f"ask for {math.ceil(1e3 * left) / 1e3:.3f} or more"] if left < 1.0 else []
            if timed is not None:
                ways_out.append("name the provider none to plan by arithmetic alone")
            raise TargetError(
                resource,
                left,
                f"The target {target:.3g} cannot be reached: {least_of_all}, {left:.3f} of the {_WORDS[resource]} are "
                f"left{'; ' if ways_out else ''}{', or '.join(ways_out)}.{stuck}",
            )
        limits[resource] = target * whole - rest
    return limits


def _stuck(sites: Sequence[Site], split: Split, listed: Sequence[Options], timed: NetworkLatency | None) -> str:
    """Say what keeps sites from being rewritten, in a sentence of its own; nothing where none is kept from it."""
    if not sites:
        return " The model has no convolution."
    codes = Counter(refusal.code for name, refusal in split.refusals.items() if name not in split.fixed)
    if timed is not None and (slow := sum(len(option.choices) == 1 for option in listed)):
        codes["not_faster"] += slow
    if not codes:
        return ""
    reasons = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    hint = "; --inline-functions reaches those in functions" if codes["in_function"] else ""
    return f" Of {len(sites)} convolutions these stay as they are: {reasons} (inspect says more){hint}."


def _left_dense(
    listed: Sequence[Options], chosen: Mapping[str, Choice], resource: Resource, timed: NetworkLatency | None
) -> dict[str, Refusal]:
    """Say for each site that stays dense why it does."""
    said = {}
    for option in listed:
        if option.site.name in chosen:
            continue
        dense = float(option.costs[-1, COLUMNS[resource]])
        measured = option.measured
        if len(option.choices) > 1:
            said[option.site.name] = Refusal("budget_met", "The budget is met without it.", {resource: dense})
        elif timed is not None and measured is not None and not measured.choices:
            said[option.site.name] = Refusal(
                "not_faster",
                f"No form is faster on {timed.provider} at any rank, by more than the noise.",
                {"dense_seconds": measured.dense, "fastest_seconds": measured.fastest},
            )
        else:
            said[option.site.name] = Refusal(
                "no_gain", f"No form saves {_WORDS[resource]} at any rank.", {resource: dense}
            )
    return said


# Sums of times are not exact.
_ROUNDING = 1e-9

_WORDS: dict[Resource, str] = {"macs": "MACs", "params": "parameters", "latency": "latency"}
