"""What a budget has to decide, what is known about it, and the plan that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx_pointwise.examples import Calibration
from onnx_pointwise.graph import Plan
from onnx_pointwise.jobs.clock import Clock
from onnx_pointwise.jobs.loading import Network
from onnx_pointwise.jobs.looking import Evidence, studied, timed
from onnx_pointwise.numerics import one_thread_of_blas
from onnx_pointwise.planning import (
    Budget,
    Corrected,
    Options,
    Split,
    choose,
    faster,
    hand_made,
    meeting,
    options_of,
    settle,
)
from onnx_pointwise.settings import Settings
from onnx_pointwise.study import Study


@dataclass(frozen=True)
class Question:
    """What a budget has to decide, and what is known about it.

    Attributes:
        wanted: The budget.
        split: What is settled already.
        listed: What could be done to the sites that are open.
        seen: What was learned of the network.
        learned: What plans that are rehearsed teach; ``None`` without example inputs.
        calibration: Where the example inputs came from.
    """

    wanted: Budget
    split: Split
    listed: Sequence[Options]
    seen: Evidence
    learned: Corrected | None
    calibration: Mapping[str, Any]


def asked(
    net: Network,
    examples: Calibration,
    unmeasured: str | None,
    settings: Settings,
    clock: Clock,
    found: Study | None = None,
) -> Question:
    """Settle what needs no decision, and learn what the others take.

    Args:
        net: The network.
        examples: The example inputs.
        unmeasured: Why latency is not measured; ``None`` where it is.
        settings: What was asked for.
        clock: Gets the stages ``latency`` and ``study``.
        found: What the examples told already; they are looked at if ``None``.

    Raises:
        PlanError: The budget makes no sense, or does not fit the network.
    """
    wanted = _wanted(settings, measured=unmeasured is None)
    split = settle(net.sites, wanted, settings.nodes_to_exclude)
    latency = timed(net, split, examples, settings) if split.open and unmeasured is None else None
    clock.lap("latency")
    names = [*split.fixed, *(site.name for site in split.open)]
    if found is None:
        arithmetic = unmeasured is not None
        found = studied(net, names, examples, settings, measure=bool(split.open), arithmetic=arithmetic)
    clock.lap("study")
    with one_thread_of_blas():
        listed = options_of(split, wanted, forms=tuple(settings.forms), found=found, timed=latency)
    seen = Evidence(found, latency, unmeasured if split.open else None, examples.drawn)
    learned = Corrected(found.rehearsal) if found is not None and found.sensitivities else None
    return Question(wanted, split, listed, seen, learned, examples.description)


def _wanted(settings: Settings, *, measured: bool) -> Budget:
    """The budget; for a search the whole network, of which as little is left as its limits allow."""
    if settings.searches:
        return Budget(target_latency=1.0) if measured else Budget(target_macs=1.0)
    return Budget(hand_made(settings.ranks or {}, settings.forms), **settings.shares())


def planned(net: Network, question: Question, settings: Settings) -> Plan:
    """Choose forms and ranks under a budget; where latency is measured, see that the network keeps the promise."""
    wanted, latency = question.wanted, question.seen.timed

    def choose_for(budget: Budget) -> Plan:
        with one_thread_of_blas():
            chosen = choose(
                net.sites,
                question.split,
                budget,
                question.listed,
                net.cost,
                method=settings.method,
                learned=question.learned,
                timed=latency,
                repair_seconds=settings.repair_seconds,
                progress=settings.tell,
            )
        return replace(chosen, calibration=question.calibration, budget=wanted.to_dict())

    if latency is None:
        return choose_for(wanted)
    settings.tell("latency", "the rewritten network")
    if wanted.target_latency is not None:
        return meeting(wanted.target_latency, lambda share: choose_for(replace(wanted, target_latency=share)), latency)
    return faster(choose_for(wanted), latency, fixed=question.split.fixed)
