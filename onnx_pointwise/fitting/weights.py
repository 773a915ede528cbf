"""Weights of a plan: sequential refit, and a look at examples held back whether it helped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnx_pointwise.fitting.refit import SiteRefit
from onnx_pointwise.fitting.refit import refit as sequential_refit
from onnx_pointwise.graph import BottleneckPass, Choice, Plan, Replacement
from onnx_pointwise.numerics import beside, in_order, workers
from onnx_pointwise.planning import predicted_drift
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study import Progress, Study, unrefitted


@dataclass(frozen=True)
class Weights:
    """Weights of all rewritten sites.

    Attributes:
        replacements: By site name.
        refits: What the refit did, by site name; empty where the unrefitted factors were kept.
        drift: Relative L2 drift on the examples held back, at the heads; None without any.
        unrefitted: The same with the unrefitted factors.
        predicted: The same as the plan predicts it, see `predicted_drift`.
        dropped: The same with the refit, where that did harm and was not kept.
    """

    replacements: Mapping[str, Replacement]
    refits: Mapping[str, SiteRefit]
    drift: float | None
    unrefitted: float | None
    predicted: float | None
    dropped: float | None = None


def make_weights(
    found: Study,
    choices: Mapping[str, Choice],
    *,
    refit: bool = True,
    rounds: int = 2,
    progress: Progress = lambda stage, what: None,
) -> Weights:
    """Compute weights for given choices: sequential refit, unless the examples held back say that it did harm.

    Args:
        found: What the examples told.
        choices: Form and rank by site name; those of sites that were not studied are left out.
        refit: Whether to refit at all.
        rounds: Rounds through activations, see `reconstruct`.
        progress: Called with a stage and what is taken up in it.

    Returns:
        The weights and what they do on the examples held back.
    """
    kept = {site.name: choices[site.name] for site in found.sites if site.name in choices}
    rewritten = [site for site in found.sites if site.name in kept]
    predicted = predicted_drift(found, choices)
    settings = found.settings

    threads = workers(settings["threads"])

    def without_refit(threads: int) -> dict[str, Replacement]:
        made = in_order(lambda site: unrefitted(site, kept[site.name], found), rewritten, threads)
        return {site.name: weights for site, weights in zip(rewritten, made, strict=True)}

    if not refit:
        plain = without_refit(threads)
        drift = drift_of(found, kept, plain) if found.held and kept else None
        return Weights(plain, {}, drift, drift, predicted)
    with beside(threads) as begin:
        unfitted = begin(lambda: without_refit(1) if found.held else {})
        refits = sequential_refit(
            found.shapes.model,
            found.sites,
            kept,
            found.fit,
            method=found.method,
            batch=found.batch,
            rounds=rounds,
            progress=lambda what: progress("refit", what),
            **settings,
        )
        plain = unfitted()
    fitted = {name: done.replacement for name, done in refits.items()}
    if not found.held or not kept:
        return Weights(fitted, refits, None, None, predicted)
    first = drift_of(found, kept, fitted)
    second = drift_of(found, kept, plain)
    if first <= second:
        return Weights(fitted, refits, first, second, predicted)
    return Weights(plain, {}, second, second, predicted, dropped=first)


def drift_of(found: Study, choices: Mapping[str, Choice], replacements: Mapping[str, Replacement]) -> float:
    """Measure the relative L2 drift of a rewritten network on the examples held back (or all, if none were).

    Args:
        found: What the examples told.
        choices: Form and rank by site name.
        replacements: Weights that fit them.

    Returns:
        The drift at the heads, their weighted root mean square.
    """
    examples = found.held or found.fit
    names = found.heads.names
    rewritten = found.shapes.model.clone()
    BottleneckPass(Plan(choices, method=found.method), replacements)(rewritten)
    results = []
    for model in (found.shapes.model, rewritten):
        piece = Piece(without_shapes(model), list(examples), names, threads=found.settings["threads"])
        count = len(next(iter(examples.values())))
        parts = [
            piece.run({name: array[start : start + found.batch] for name, array in examples.items()})
            for start in range(0, count, found.batch)
        ]
        results.append([np.concatenate(column) for column in zip(*parts, strict=True)])
    return float(np.sqrt(found.heads.drift(results[0], results[1])))
