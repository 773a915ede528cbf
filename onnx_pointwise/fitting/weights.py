"""Weights of a plan: sequential refit, and a look at examples held back whether it helped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.fitting.refit import SiteRefit
from onnx_pointwise.fitting.refit import refit as sequential_refit
from onnx_pointwise.graph import BottleneckPass, Choice, Plan, Replacement
from onnx_pointwise.numerics import beside, in_order, workers
from onnx_pointwise.progress import Progress, silent, within
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study import Study


@dataclass(frozen=True)
class Weights:
    """Weights of all rewritten sites.

    Attributes:
        replacements: By site name.
        refits: What the refit did, by site name; empty where the unrefitted factors were kept.
        drift: Relative L2 drift on the examples held back, at the heads; None without any.
        unrefitted: The same with the unrefitted factors.
        predicted: The same as it is expected: what a rehearsal of the plan gave, see `study.Rehearsal`, times what the
            refit gained on the examples that it was made from; None where that was not asked for, and where there were
            too few examples to hold any back: factors of one or two, tried on one or two like them, promise anything.
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
    predict: bool = True,
    progress: Progress = silent,
) -> Weights:
    """Compute weights for given choices: sequential refit, unless the examples held back say that it did harm.

    Args:
        found: What the examples told.
        choices: Form and rank by site name; those of sites that were not studied are left out.
        refit: Whether to refit at all.
        rounds: Rounds through activations, see `reconstruct`.
        predict: Whether to tell what drift is to be expected, which takes a rehearsal.
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

    predicted = None
    if predict and (found.held or not kept):
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
            answers=found.heads.names,
            batch=found.batch,
            effort=found.effort,
            rounds=rounds,
            progress=within(progress, "refit"),
        )
        plain = unfitted()
    fitted = {name: done.replacement for name, done in refits.items()}
    if not kept:
        return Weights(fitted, refits, None, None, predicted)
    first = second = None
    if found.held:
        second, first = _drifts_of(found, kept, [plain, fitted], found.held)
        if first > second:
            return Weights(plain, {}, second, second, predicted, dropped=first)
    if predicted is None:
        return Weights(fitted, refits, first, second, None)
    before, after = _drifts_of(found, kept, [plain, fitted], found.trial)
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
    return _drifts_of(found, choices, [replacements], examples)[0]


def _drifts_of(
    found: Study,
    choices: Mapping[str, Choice],
    variants: Sequence[Mapping[str, Replacement]],
    examples: Mapping[str, NDArray[Any]],
) -> list[float]:
    """The same for several sets of weights; the untouched network runs once for all of them."""
    if not found.heads.names:
        return [0.0] * len(variants)
    reference = _answers(found, found.shapes.model, examples)
    drifts = []
    for replacements in variants:
        rewritten = found.shapes.model.clone()
        BottleneckPass(Plan(choices, method=found.method), replacements)(rewritten)
        drifts.append(float(np.sqrt(found.heads.drift(reference, _answers(found, rewritten, examples)))))
    return drifts


def _answers(found: Study, model: ir.Model, examples: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What a network gives at the heads, over all examples."""
    piece = Piece(without_shapes(model), list(examples), found.heads.names, threads=found.effort.threads)
    count = len(next(iter(examples.values())))
    parts = [
        piece.run({name: array[start : start + found.batch] for name, array in examples.items()})
        for start in range(0, count, found.batch)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
