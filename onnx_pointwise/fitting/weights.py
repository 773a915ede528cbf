"""Weights of a plan: sequential refit, and a look at examples held back whether it helped."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.fitting.refit import Known, SiteRefit, too_wide
from onnx_pointwise.fitting.refit import refit as sequential_refit
from onnx_pointwise.graph import BottleneckPass, Choice, Plan, Replacement, find_sites
from onnx_pointwise.numerics import ROUNDS, largest_first, workers
from onnx_pointwise.progress import Progress, silent, within
from onnx_pointwise.study import Study, answers

Array = NDArray[Any]

# A refit that leaves less than this of the drift of what was rehearsed did no harm.
_CLEAR = 0.9
# Examples that tell what a refit gained, at most.
_GAUGED = 16


@dataclass(frozen=True)
class Weights:
    """Weights of all rewritten sites.

    Attributes:
        replacements: By site name.
        refits: What the refit did, by site name; empty where the unrefitted factors were kept.
        drift: Relative L2 drift on the examples held back, at the heads; None without any.
        unrefitted: The same with unrefitted factors: where a refit is kept those that were rehearsed, made of a part of
            the examples; else those handed over.
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
    corrected: Collection[str] = (),
    refit: bool = True,
    rounds: int = ROUNDS,
    predict: bool = True,
    progress: Progress = silent,
) -> Weights:
    """Compute weights for given choices: sequential refit, unless the examples held back say that it did harm.

    Args:
        found: What the examples told.
        choices: Form and rank by site name; those of sites that were not studied are left out.
        corrected: Names of sites that stay whole, whose weights a refit may change.
        refit: Whether to refit at all.
        rounds: Rounds through activations at most, see `reconstruct`.
        predict: Whether to tell what drift is to be expected, which takes a rehearsal.
        progress: Called with a stage and what is taken up in it.

    Returns:
        The weights and what they do on the examples held back.
    """
    kept = {site.name: choices[site.name] for site in found.sites if site.name in choices}
    rewritten = [site for site in found.sites if site.name in kept]

    measured = _Measured(found, kept, _GAUGED if refit and predict else 0) if found.held and kept else None
    predicted = None if kept or not predict else 0.0
    if predict and measured is not None:
        predicted = measured.rehearsed(found.rehearsal.drifts(kept))
    rehearsed = found.rehearsal.replacements(kept)
    # Made from a part of the examples: little is left to do for all of them.
    starts = {name: one.factors for name, one in rehearsed.items()}

    def without_refit() -> dict[str, Replacement]:
        made = largest_first(
            lambda site: found.factors(site, kept[site.name], start=starts[site.name]),
            rewritten,
            workers(found.effort.threads),
            lambda site: site.width,
        )
        return {site.name: weights for site, weights in zip(rewritten, made, strict=True)}

    if not refit:
        plain = without_refit()
        drift = None if measured is None else measured.drift(plain)[0]
        return Weights(plain, {}, drift, drift, predicted)
    wide = [site for site in rewritten if too_wide(site, found.effort.memory)]
    fixed = {site.name: found.factors(site, kept[site.name], start=starts[site.name]) for site in wide}
    known = Known(found.norms, found.heads.names, starts, fixed)
    refits = _refitted(found, kept, known, corrected, rounds, progress)
    fitted = {name: done.replacement for name, done in refits.items()}
    if measured is None:
        return Weights(fitted, refits, None, None, predicted)
    (first, after), (second, before) = measured.drift(fitted), measured.drift(rehearsed)
    if first > _CLEAR * second:  # made from all examples they may do better
        plain = without_refit()
        other, _ = measured.drift(plain)
        if first > other:
            return Weights(plain, {}, other, other, predicted, dropped=first)
    # On examples that both are made from, so that neither is flattered.
    gain = min(1.0, after / before) if before > 0.0 else 1.0
    return Weights(fitted, refits, first, second, None if predicted is None else predicted * gain)


def _refitted(
    found: Study,
    choices: Mapping[str, Choice],
    known: Known,
    corrected: Collection[str],
    rounds: int,
    progress: Progress,
) -> dict[str, SiteRefit]:
    """Refit sites, those that stay whole among them where the network runs in parts as far as they lie."""
    sites = find_sites(found.model, found.shapes, min_channels=1)
    whole = [site.name for site in sites if site.name in corrected and not too_wide(site, found.effort.memory)]
    try:
        return sequential_refit(
            found.shapes.model,
            sites,
            choices,
            found.fit,
            corrected=whole,
            copies=found.copies,
            method=found.method,
            known=known,
            batch=found.batch,
            effort=found.effort,
            rounds=rounds,
            progress=within(progress, "refit"),
        )
    except (InputError, ModelError):
        if not whole:
            raise
        # Behind the last site that is rewritten examples may be mixed, or of several sizes; nobody has to go there.
        return _refitted(found, choices, known, (), rounds, progress)


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
    reference = _answers(found, found.shapes.model, examples)
    moved = _answers(found, _rewritten(found, choices, replacements), examples)
    return math.sqrt(found.heads.drift(reference, moved))


class _Measured:
    """Drift on examples held back, and on some that both the refit and what was rehearsed are made from.

    The former is relative to how the answers vary over those held back and those that plans are tried on together: of a
    few examples the deviation itself is off by a lot, and one that lies far out among them would make any drift small.

    Args:
        found: What the examples told, some of them held back.
        choices: Form and rank by site name.
        gauged: Of how many examples, at most, to tell the drift that are not held back; of none if 0.
    """

    def __init__(self, found: Study, choices: Mapping[str, Choice], gauged: int) -> None:
        self._found, self._choices = found, choices
        learned = found.learned(gauged) if gauged else {name: array[:0] for name, array in found.held.items()}
        self._examples = {name: np.concatenate([array, learned[name]]) for name, array in found.held.items()}
        self._count, self._total = (len(next(iter(lot.values()))) for lot in (found.held, self._examples))
        self._dense = self._run(found.shapes.model)
        parts = found.untouched, self._dense[0]
        both = found.heads.energies([np.concatenate(pair) for pair in zip(*parts, strict=True)])
        self._own = [
            [one / whole if whole else 1.0 for one, whole in zip(found.heads.energies(part), both, strict=True)]
            for part in parts
        ]

    def rehearsed(self, drifts: Sequence[float | None]) -> float:
        """Relative L2 drift of a network from the squares at each gauge on the examples that plans are tried on."""
        return self._whole(drifts, self._own[0])

    def drift(self, weights: Mapping[str, Replacement]) -> tuple[float, float]:
        """Relative L2 drift with weights, on the examples held back, and on the others as relative to these alone."""
        heads = self._found.heads
        moved = self._run(_rewritten(self._found, self._choices, weights))
        held = self._whole(heads.drifts(self._dense[0], moved[0]), self._own[1])
        if self._count == self._total:
            return held, 0.0
        return held, math.sqrt(heads.drift(self._dense[1], moved[1]))

    def _whole(self, drifts: Sequence[float | None], own: Sequence[float]) -> float:
        squares = [None if drift is None else drift * one for drift, one in zip(drifts, own, strict=True)]
        return math.sqrt(self._found.heads.whole(squares))

    def _run(self, model: ir.Model) -> tuple[list[Array], list[Array]]:
        """What a network gives at the heads, on both lots of examples."""
        given = _answers(self._found, model, self._examples)
        cuts = [len(array) * self._count // self._total if array.ndim else 0 for array in given]
        parts = [
            (array[:cut], array[cut:]) if array.ndim else (array, array) for array, cut in zip(given, cuts, strict=True)
        ]
        return [first for first, _ in parts], [second for _, second in parts]


def _rewritten(found: Study, choices: Mapping[str, Choice], weights: Mapping[str, Replacement]) -> ir.Model:
    model = found.shapes.model.clone()
    corrected = tuple(name for name in weights if name not in choices)
    BottleneckPass(Plan(choices, method=found.method, corrected=corrected), weights)(model)
    return model


def _answers(found: Study, model: ir.Model, examples: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """What a network gives at the heads, over all examples."""
    return answers(model, found.heads, examples, batch=found.batch, threads=found.effort.threads)
