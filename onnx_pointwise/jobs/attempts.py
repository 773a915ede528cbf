"""Rewritten models and how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnx_pointwise.fitting import Weights, make_weights
from onnx_pointwise.graph import BottleneckPass, Plan, Replacement, replacement
from onnx_pointwise.jobs.loading import Network
from onnx_pointwise.numerics import one_thread_of_blas
from onnx_pointwise.settings import Settings
from onnx_pointwise.study import Study


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


def fitted(net: Network, plan: Plan, found: Study | None, settings: Settings, *, predict: bool = True) -> Attempt:
    """Compute weights for a plan and rewrite a copy of the model.

    Args:
        net: The network.
        plan: The plan.
        found: What example inputs told; ``None`` without any.
        settings: What was asked for.
        predict: Whether to tell what drift is to be expected.
    """
    sites = net.by_name
    made = None
    with one_thread_of_blas():
        if found is not None:
            # A refit from two or three examples does harm that only others would show.
            refit = settings.refit and bool(found.held)
            made = make_weights(
                found, plan.choices, corrected=plan.corrected, refit=refit, predict=predict, progress=settings.tell
            )
        weights = dict(made.replacements) if made is not None else {}
        for name, choice in plan.choices.items():
            if name not in weights and name in sites:  # the surgery says what is wrong with others
                weights[name] = replacement(sites[name], choice, plan.method)
    model = net.base.clone()
    BottleneckPass(plan, weights)(model)
    return Attempt(plan, model, weights, made)
