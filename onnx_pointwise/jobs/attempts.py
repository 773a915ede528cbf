"""Rewritten models: one from a plan, and the cheapest one within limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_pointwise.errors import PlanError
from onnx_pointwise.fitting import Weights, make_weights
from onnx_pointwise.graph import BottleneckPass, Plan, Replacement, replacement
from onnx_pointwise.jobs.deciding import Question, planned
from onnx_pointwise.jobs.loading import Network
from onnx_pointwise.jobs.looking import one_thread_of_blas
from onnx_pointwise.planning import Budget
from onnx_pointwise.settings import Settings
from onnx_pointwise.study import Study

# Bisection steps of the search for the cheapest network within a limit: to within 1 % of the MACs.
_SEARCH_STEPS = 7


@dataclass(frozen=True)
class Attempt:
    """One rewritten model and how it came about.

    Attributes:
        plan: Its plan.
        model: The model.
        weights: What replaced each site.
        calibrated: What the refit did; ``None`` without example inputs.
    """

    plan: Plan
    model: ir.Model
    weights: Mapping[str, Replacement]
    calibrated: Weights | None


def fitted(net: Network, plan: Plan, found: Study | None, settings: Settings) -> Attempt:
    """Compute weights for a plan and rewrite a copy of the model."""
    sites = net.by_name
    made = None
    with one_thread_of_blas():
        if found is not None:
            made = make_weights(found, plan.choices, refit=settings.refit, progress=settings.tell)
        weights = dict(made.replacements) if made is not None else {}
        for name, choice in plan.choices.items():
            if name not in weights:
                weights[name] = replacement(sites[name], choice, plan.method)
    model = net.base.clone()
    BottleneckPass(plan, weights)(model)
    return Attempt(plan, model, weights, made)


def cheapest(net: Network, question: Question, settings: Settings, fits: Callable[[ir.Model], bool]) -> Attempt:
    """Find the cheapest network within the limits on drift and loss, by bisection over its share of the MACs.

    Args:
        net: The network.
        question: What is known about it.
        settings: What was asked for.
        fits: Whether a rewritten model keeps the limits.
    """
    low, high = 0.0, 1.0
    best = fitted(net, Plan({}, question.split.refusals, settings.method), None, settings)
    for _ in range(_SEARCH_STEPS):
        share = (low + high) / 2
        settings.tell("search", f"{share:.3f} of the MACs")
        try:
            plan = planned(net, replace(question, wanted=Budget(target_macs=share)), settings)
            attempt = fitted(net, plan, question.seen.found, settings)
        except PlanError:  # below the floor
            low = share
            continue
        if fits(attempt.model):
            best, high = attempt, share
        else:
            low = share
    limits = {"max_drift": settings.max_drift, "max_loss": settings.max_loss}
    budget = {name: limit for name, limit in limits.items() if limit is not None}
    return replace(best, plan=replace(best.plan, budget=budget))
