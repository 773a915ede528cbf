"""Weights of a plan: sequential refit, and a look at examples held back whether it helped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.fitting.refit import SiteRefit
from onnx_pointwise.fitting.refit import refit as sequential_refit
from onnx_pointwise.graph import BottleneckPass, Choice, Plan, Replacement
from onnx_pointwise.numerics import beside, in_order, workers
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study import Progress, Study


@dataclass(frozen=True)
class Weights:
    """Weights of all rewritten sites.

    Attributes:
        replacements: By site name.
        refits: What the refit did, by site name; empty where the unrefitted factors were kept.
        drift: Relative L2 drift on the examples held back, at the heads; None without any.
        unrefitted: The same with the unrefitted factors.
        predicted: The same as it is expected: what a rehearsal of the plan gave, see `study.Rehearsal`, times what the
            refit gained on the examples that it was made from.
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
    threads = workers(found.effort.threads)

    def without_refit(threads: int) -> dict[str, Replacement]:
        made = in_order(lambda site: found.factors(site, kept[site.name]), rewritten, threads)
        return {site.name: weights for site, weights in zip(rewritten, made, strict=True)}

    predicted = math.sqrt(found.rehearsal.drift(kept)) if kept else 0.0
    if not refit:
        plain = without_refit(threads)
        drift = drift_of(found, kept, plain, found.held) if found.held and kept else None
        return Weights(plain, {}, drift, drift, predicted)
    with beside(threads) as begin:
        unfitted = begin(lambda: without_refit(1) if kept else {})
        refits = sequential_refit(
            found.shapes.model,
            found.sites,
            kept,
            found.fit,
            method=found.method,
            norms=found.norms,
            batch=found.batch,
            effort=found.effort,
            rounds=rounds,
            progress=lambda what: progress("refit", what),
        )
        plain = unfitted()
    fitted = {name: done.replacement for name, done in refits.items()}
    if not kept:
        return Weights(fitted, refits, None, None, predicted)
    second = drift_of(found, kept, plain, found.held) if found.held else None
    first = drift_of(found, kept, fitted, found.held) if found.held else None
    if first is not None and second is not None and first > second:
        return Weights(plain, {}, second, second, predicted, dropped=first)
    before, after = (drift_of(found, kept, weights, found.trial) for weights in (plain, fitted))
    gain = min(1.0, after / before) if before > 0.0 else 1.0
    return Weights(fitted, refits, first, second, predicted * gain)


def drift_of(
    found: Study,
    choices: Mapping[str, Choice],
    replacements: Mapping[str, Replacement],
    examples: Mapping[str, NDArray[Any]],
) -> float:
    """Measure the relative L2 drift of a rewritten network.

    Args:
        found: What the examples told.
        choices: Form and rank by site name.
        replacements: Weights that fit them.
        examples: Example inputs by name, [N, ...].

    Returns:
        The drift at the heads, their weighted root mean square.
    """
    names = found.heads.names
    if not names:
        return 0.0
    rewritten = found.shapes.model.clone()
    BottleneckPass(Plan(choices, method=found.method), replacements)(rewritten)
    results = []
    for model in (found.shapes.model, rewritten):
        piece = Piece(without_shapes(model), list(examples), names, threads=found.effort.threads)
        count = len(next(iter(examples.values())))
        parts = [
            piece.run({name: array[start : start + found.batch] for name, array in examples.items()})
            for start in range(0, count, found.batch)
        ]
        results.append([np.concatenate(column) for column in zip(*parts, strict=True)])
    return float(np.sqrt(found.heads.drift(results[0], results[1])))
