"""Plans and weights from example inputs: look at the sites, share the budget out, refit, and see that it helped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.numerics import knapsack
from onnx_pointwise.planning import COLUMNS, Measured, Resource, candidates
from onnx_pointwise.study.collect import PATCHES, SiteMoments, fitting_batch, site_moments
from onnx_pointwise.numerics import FORMS, Form, Method, factorize
from onnx_pointwise.numerics import beside, in_order, workers
from onnx_pointwise.graph import Choice, Plan
from onnx_pointwise.fitting import MEMORY, SiteRefit, corrected
from onnx_pointwise.fitting import refit as sequential_refit
from onnx_pointwise.graph import BottleneckPass, Replacement
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study.sensitivity import Sensitivity, measured_outputs, relative_drift, sensitivities
from onnx_pointwise.graph import ResolvedShapes
from onnx_pointwise.graph import Site

Array = NDArray[Any]
Progress = Callable[[str, str], None]

# One example in so many is held back to see whether the refit helped, where there are enough.
_HELD_BACK = 8
# Examples that the sensitivities are measured on: at most this many, ...
_TRIALS = 64
_FEWEST_TRIALS = 4
# ... and no more than take about this many passes over all examples.
_TRIAL_PASSES = 8.0
_TRIALS_PER_SITE = 3.0  # six runs of half of the network


@dataclass(frozen=True)
class Study:
    """What the example inputs tell of a model.

    Attributes:
        model: The model as it was read.
        shapes: Its shapes.
        sites: The sites looked at, in graph order.
        fit: Example inputs that plans and weights are made from, by name.
        held: Example inputs held back; empty where there were too few.
        moments: What each site sees.
        sensitivities: What each site's error does to the outputs.
        batch: Examples in one run.
        method: How factors are computed.
        settings: Patch limit, bytes of memory, seed and threads of the refit.
    """

    model: ir.Model
    shapes: ResolvedShapes
    sites: tuple[Site, ...]
    fit: Mapping[str, Array]
    held: Mapping[str, Array]
    moments: Mapping[str, SiteMoments]
    sensitivities: Mapping[str, Sensitivity]
    batch: int
    method: Method
    settings: Mapping[str, Any]


def study(
    model: ir.Model,
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    inputs: Mapping[str, Array],
    *,
    forms: Sequence[Form] = FORMS,
    method: Method = "als",
    measure: bool = True,
    patch_limit: int = PATCHES,
    memory: int = MEMORY,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda stage, what: None,
) -> Study:
    """Look at a model's sites with example inputs.

    Args:
        model: The model; it is left as it is.
        shapes: Its shapes.
        sites: Sites that may be rewritten, in graph order.
        inputs: Example inputs by name, [N, ...].
        forms: Forms that plans may use.
        method: How factors are computed, see `factorize`.
        measure: Whether to measure sensitivities, which plans need and given ranks do not.
        patch_limit: Patches of a site to look at, about.
        memory: Bytes of activations or moments to hold in memory.
        seed: Seed of the positions that are left out.
        threads: Threads of the runtime, and pieces of the algebra to work on at a time; as many as there are cores if
            None.
        progress: Called with a stage and what is taken up in it.

    Returns:
        What was found.

    Raises:
        ModelError: The model does not run on the inputs.
        InputError: An activation is not finite.
    """
    batch = fitting_batch(model, shapes)
    fit, held = _split(inputs, batch)
    count = len(next(iter(fit.values())))
    moments = site_moments(
        shapes,
        sites,
        fit,
        batch=batch,
        patch_limit=patch_limit,
        memory=memory // 2,
        seed=seed,
        threads=threads,
        progress=lambda what: progress("moments", what),
    )
    seen = [site for site in sites if site.name in moments]
    found: Mapping[str, Sensitivity] = {}
    if measure and seen:
        wanted = int(_TRIAL_PASSES * count / (_TRIALS_PER_SITE * len(seen)))
        few = _thin(fit, min(count, max(_FEWEST_TRIALS, min(_TRIALS, wanted))), batch)
        found = sensitivities(
            shapes.model,
            seen,
            moments,
            few,
            forms=forms,
            method=method,
            batch=batch,
            memory=memory,
            threads=threads,
            progress=lambda what: progress("sensitivity", what),
        )
    settings = {"patch_limit": patch_limit, "memory": memory, "seed": seed, "threads": threads}
    return Study(model, shapes, tuple(seen), fit, held, moments, found, batch, method, settings)


def _split(inputs: Mapping[str, Array], batch: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Hold every eighth example back; whole batches where the model fixes their size."""
    count = len(next(iter(inputs.values())))
    size = batch if count % batch == 0 and count // batch >= _HELD_BACK else 1
    back = np.arange(count) // size % _HELD_BACK == _HELD_BACK - 1
    if not back.any():
        return dict(inputs), {}
    return {k: v[~back] for k, v in inputs.items()}, {k: v[back] for k, v in inputs.items()}


def few_examples(found: Study) -> dict[str, Array]:
    """A few of the examples that a plan is made from, to try plans on."""
    count = len(next(iter(found.fit.values())))
    return _thin(found.fit, min(count, _TRIALS), found.batch)


def _thin(inputs: Mapping[str, Array], wanted: int, batch: int) -> dict[str, Array]:
    """Take some examples, spread evenly."""
    count = len(next(iter(inputs.values())))
    chosen = np.unique(np.linspace(0, count - 1, wanted).round().astype(int))
    return {name: array[chosen] for name, array in inputs.items()}


@dataclass(frozen=True)
class Options:
    """What can be done to one site, from the cheapest candidate to the dense site.

    Attributes:
        site: The site.
        choices: Form and rank of each candidate; None for the dense site.
        costs: [n, 3], MACs, parameters and seconds, see `candidates.COLUMNS`.
        losses: [n], predicted relative squared drift of the network.
        measured: Its latency; None where that was not measured.
    """

    site: Site
    choices: tuple[Choice | None, ...]
    costs: NDArray[np.float64]
    losses: NDArray[np.float64]
    measured: Measured | None = None


def options(
    found: Study,
    *,
    forms: Sequence[Form] = FORMS,
    resource: Resource = "macs",
    measured: Mapping[str, Measured] | None = None,
) -> list[Options]:
    """List the candidates of every site with the drift that each is predicted to cause.

    Args:
        found: What the examples told.
        forms: The forms that compete, of those that were studied.
        resource: What must fall.
        measured: Latency by site name; only what is faster is then a candidate.

    Returns:
        The options of each site, in graph order.
    """
    return [_options(site, found, forms, resource, (measured or {}).get(site.name)) for site in found.sites]


def _options(site: Site, found: Study, forms: Sequence[Form], resource: Resource, measured: Measured | None) -> Options:
    known = found.sensitivities[site.name]
    listed = candidates(site, forms=forms, resource=resource, curves=known.curves, measured=measured)
    errors = np.array(
        [
            known.errors(choice.form, np.array([error]))[0]
            for choice, error in zip(listed.choices, listed.error, strict=True)
        ]
    )
    choices = [
        replace(choice, error=float(np.sqrt(error))) for choice, error in zip(listed.choices, errors, strict=True)
    ]
    costs = np.vstack([listed.costs, listed.dense])
    return Options(site, (*choices, None), costs, np.append(known.response(errors), 0.0), measured)


def share_out(listed: Sequence[Options], limits: Mapping[Resource, float]) -> dict[str, Choice]:
    """Pick a candidate for every site: least predicted drift within the limits.

    Args:
        listed: The options of each site.
        limits: The most that all these sites together may cost.

    Returns:
        Choices by site name; the others stay dense.

    Raises:
        PlanError: The limits cannot be met.
    """
    columns = [COLUMNS[name] for name in limits]
    picked = knapsack([one.costs[:, columns] for one in listed], [one.losses for one in listed], list(limits.values()))
    return _named(listed, picked)


def _named(listed: Sequence[Options], picked: Sequence[int]) -> dict[str, Choice]:
    chosen = {one.site.name: one.choices[index] for one, index in zip(listed, picked, strict=True)}
    return {name: choice for name, choice in chosen.items() if choice is not None}


def predicted_drift(found: Study, choices: Mapping[str, Choice]) -> float | None:
    """Predict the relative L2 drift of the outputs, before any refit.

    Args:
        found: What the examples told.
        choices: Form and rank by site name.

    Returns:
        The drift; None where a choice was made by hand or is replayed, so that its error was never estimated.
    """
    total = 0.0
    for name, choice in choices.items():
        if name not in found.sensitivities or choice.error is None:
            return None
        total += float(found.sensitivities[name].response(np.array([choice.error**2]))[0])
    return float(np.sqrt(total))


@dataclass(frozen=True)
class Weights:
    """Weights of all rewritten sites.

    Attributes:
        replacements: By site name.
        refits: What the refit did, by site name; empty where the unrefitted factors were kept.
        drift: Relative L2 drift on the examples held back, at the outputs or before a final Softmax; None without any.
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


def unrefitted(site: Site, choice: Choice, found: Study) -> Replacement:
    """Factors for the inputs that a site has in the untouched network, with the bias taking up the mean."""
    seen = found.moments[site.name]
    kernel, bias = site.weights()
    factors = factorize(
        kernel.astype(site.dtype), choice.form, choice.rank, method=found.method, second_moment=seen.covariance
    )
    return corrected(site, Replacement(factors, bias), seen.mean)


def drift_of(found: Study, choices: Mapping[str, Choice], replacements: Mapping[str, Replacement]) -> float:
    """Measure the relative L2 drift of a rewritten network on the examples held back (or all, if none were).

    Args:
        found: What the examples told.
        choices: Form and rank by site name.
        replacements: Weights that fit them.

    Returns:
        The drift at the outputs, or before a final Softmax, root mean square over the outputs.
    """
    examples = found.held or found.fit
    names = measured_outputs(found.shapes.model)
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
    return float(np.sqrt(relative_drift(results[0], results[1])))
