"""Plans and weights from example inputs: look at the sites, share the budget out, refit, and see that it helped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import Choice, Replacement, ResolvedShapes, Site, corrected
from onnx_pointwise.numerics import FORMS, Form, Method, factorize
from onnx_pointwise.runtime import MEMORY
from onnx_pointwise.study.collect import PATCHES, Seen, fitting_batch, site_moments
from onnx_pointwise.study.heads import Heads, find_heads
from onnx_pointwise.study.sensitivity import Sensitivity, sensitivities

Array = NDArray[Any]
Progress = Callable[[str, str], None]

# One example in so many is held back to see whether the refit helped, where there are enough.
_HELD_BACK = 8
# Examples that the sensitivities are measured on, at most; no more than half of them.
_TRIALS = 32
# Fewer examples than this are not parted into those that factors are made from and those that they are tried on.
_LEAST_SPLIT = 2


@dataclass(frozen=True)
class Study:
    """What the example inputs tell of a model.

    Attributes:
        model: The model as it was read.
        shapes: Its shapes.
        sites: The sites looked at, in graph order.
        fit: Example inputs that plans and weights are made from, by name.
        held: Example inputs held back; empty where there were too few.
        heads: Where the network answers.
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
    heads: Heads
    moments: Mapping[str, Seen]
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
    heads = find_heads(shapes)
    tried = _tried(len(next(iter(fit.values()))), batch)
    moments = site_moments(
        shapes,
        sites,
        fit,
        batch=batch,
        tried=tried,
        patch_limit=patch_limit,
        memory=memory // 2,
        seed=seed,
        threads=threads,
        progress=lambda what: progress("moments", what),
    )
    seen = [site for site in sites if site.name in moments]
    found: Mapping[str, Sensitivity] = {}
    if measure and seen:
        found = sensitivities(
            shapes.model,
            seen,
            moments,
            {name: array[tried] for name, array in fit.items()} if tried.any() else fit,
            heads,
            forms=forms,
            method=method,
            batch=batch,
            memory=memory,
            threads=threads,
            progress=lambda what: progress("sensitivity", what),
        )
    settings = {"patch_limit": patch_limit, "memory": memory, "seed": seed, "threads": threads}
    return Study(model, shapes, tuple(seen), fit, held, heads, moments, found, batch, method, settings)


def _split(inputs: Mapping[str, Array], batch: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Hold every eighth example back; whole batches where the model fixes their size."""
    count = len(next(iter(inputs.values())))
    size = batch if count % batch == 0 and count // batch >= _HELD_BACK else 1
    back = np.arange(count) // size % _HELD_BACK == _HELD_BACK - 1
    if not back.any():
        return dict(inputs), {}
    return {k: v[~back] for k, v in inputs.items()}, {k: v[back] for k, v in inputs.items()}


def _tried(count: int, batch: int) -> NDArray[np.bool_]:
    """Examples that trials are run on and that trial factors are not made from, spread evenly; none of a few."""
    size = batch if count % batch == 0 and count // batch >= _LEAST_SPLIT else 1
    groups = count // size
    tried = np.zeros(count, np.bool_)
    if groups >= _LEAST_SPLIT:
        wanted = min(max(1, groups // 2), max(1, -(-_TRIALS // size)))
        chosen = np.unique(np.linspace(0, groups - 1, wanted).round().astype(int))
        tried[np.isin(np.arange(count) // size, chosen)] = True
    return tried


def few_examples(found: Study) -> dict[str, Array]:
    """A few of the examples that a plan is made from, to try plans on."""
    count = len(next(iter(found.fit.values())))
    return _thin(found.fit, min(count, _TRIALS), found.batch)


def _thin(inputs: Mapping[str, Array], wanted: int, batch: int) -> dict[str, Array]:
    """Take some examples, spread evenly."""
    count = len(next(iter(inputs.values())))
    chosen = np.unique(np.linspace(0, count - 1, wanted).round().astype(int))
    return {name: array[chosen] for name, array in inputs.items()}


def unrefitted(site: Site, choice: Choice, found: Study) -> Replacement:
    """Factors for the inputs that a site has in the untouched network, with the bias taking up the mean."""
    seen = found.moments[site.name].whole
    kernel, bias = site.weights()
    factors = factorize(
        kernel.astype(site.dtype), choice.form, choice.rank, method=found.method, second_moment=seen.covariance
    )
    return corrected(site, Replacement(factors, bias), seen.mean)
