"""What example inputs tell of a network: moments and sensitivities of its sites, and where plans are tried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import Choice, Replacement, ResolvedShapes, Site, corrected, find_sites
from onnx_pointwise.numerics import (
    FORMS,
    SWEEPS,
    TRIAL_SWEEPS,
    Factors,
    Form,
    Method,
    OutputNorm,
    Terms,
    factorize,
    largest_first,
    workers,
)
from onnx_pointwise.progress import Progress, silent, within
from onnx_pointwise.study.collect import Seen, declared_batch, fitting_batch, reachable, site_moments
from onnx_pointwise.study.copies import copies
from onnx_pointwise.study.effort import DEFAULT_EFFORT, Effort
from onnx_pointwise.study.heads import Heads, find_heads
from onnx_pointwise.study.outlook import outlooks, site_fits
from onnx_pointwise.study.overflow import overflowing
from onnx_pointwise.study.prefixes import widest
from onnx_pointwise.study.rounding import Rounding, roundings
from onnx_pointwise.study.sensitivity import Sensitivity, sensitivities
from onnx_pointwise.study.shares import shares, some_parts
from onnx_pointwise.study.slopes import Slopes
from onnx_pointwise.study.whole import WholeNetwork, answers

Array = NDArray[Any]

# One example in so many is held back to see whether the refit helped, where there are enough.
_HELD_BACK = 8
# Examples that the sensitivities are measured on, at most; no more than half of them.
_TRIALS = 64
# Fewer examples than this are not parted into those that factors are made from and those that they are tried on.
_LEAST_SPLIT = 2
# Of so many batches whose size is built into a network one is held back: then one is left to try plans on, and one to
# make factors from.
_LEAST_BATCHES = 3


@dataclass(frozen=True, eq=False)
class Study:
    """What the example inputs tell of a model.

    Attributes:
        model: The model as it was read.
        shapes: Its shapes.
        sites: The sites looked at, in graph order.
        fit: Example inputs that plans and weights are made from, by name.
        tried: Which of them plans are tried on, with factors made from the others, [N].
        held: Example inputs held back from all that; empty where there were too few.
        copies: Shifted and mirrored copies of those that weights are made from, by name, [n * N, ...], see `copies`.
        heads: Where the network answers.
        moments: What each site sees.
        norms: Which errors of a site's outputs count, by its name.
        sensitivities: What each site's error does to the answers.
        batch: Examples in one run.
        method: How factors are computed.
        effort: How much may be spent.
        told: What `untouched` gives, where that is known already.
    """

    model: ir.Model
    shapes: ResolvedShapes
    sites: tuple[Site, ...]
    fit: Mapping[str, Array]
    tried: NDArray[np.bool_]
    held: Mapping[str, Array]
    copies: Mapping[str, Array]
    heads: Heads
    moments: Mapping[str, Seen]
    norms: Mapping[str, OutputNorm]
    sensitivities: Mapping[str, Sensitivity]
    batch: int
    method: Method
    effort: Effort
    told: Sequence[Array] | None = None

    @cached_property
    def untouched(self) -> Sequence[Array]:
        """What the untouched network gives at the heads on the examples that plans are tried on, see `answers`."""
        if self.told is not None:
            return self.told
        return answers(self.shapes.model, self.heads, self.trial, batch=self.batch, threads=self.effort.threads)

    @property
    def trial(self) -> Mapping[str, Array]:
        """The examples that plans are tried on; all of them where there were too few to part."""
        if not self.tried.any():
            return self.fit
        return {name: array[self.tried] for name, array in self.fit.items()}

    def learned(self, most: int) -> Mapping[str, Array]:
        """Some of the examples that trial factors are made from, spread evenly, whole batches where these are fixed.

        Args:
            most: How many, about.
        """
        known = np.flatnonzero(~self.tried) if not self.tried.all() else np.arange(self.count)
        chosen = known[_spread(len(known), declared_batch(self.model) or 1, most)]
        return {name: array[chosen] for name, array in self.fit.items()}

    @property
    def count(self) -> int:
        """Examples that plans and weights are made from."""
        return len(next(iter(self.fit.values())))

    def thinned(self, most: int) -> Study:
        """The same with fewer examples to fit to, spread evenly; whole batches where the model fixes their size.

        What was learned from all of them stays as it is.

        Args:
            most: Examples to keep, about.
        """
        kept = _spread(self.count, declared_batch(self.model) or 1, most)
        if kept.all():
            return self
        fit = {name: array[kept] for name, array in self.fit.items()}
        made = replace(self, fit=fit, tried=self.tried[kept], told=None)
        vars(made)["rehearsal"] = self.rehearsal  # what was tried out already need not be tried again
        return made

    def factors(self, site: Site, choice: Choice, *, part: bool = False, start: Factors | None = None) -> Replacement:
        """Weights for the inputs that a site has in the untouched network, the bias taking up the mean.

        Args:
            site: The site.
            choice: Form and rank.
            part: Whether to leave out what was seen in the examples that plans are tried on.
            start: Factors of the same choice to start from, such as those of a part.
        """
        seen = self.moments[site.name].part if part else self.moments[site.name].whole
        kernel, bias = site.weights()
        first: Factors | Terms | None = start
        if start is None and part and choice.form == "depthwise" and self.method == "als":
            first = self._fit(site, choice)
        factors = factorize(
            kernel.astype(site.dtype),
            choice.form,
            choice.rank,
            method=self.method,
            second_moment=seen.covariance,
            outputs=self.norms.get(site.name),
            sweeps=TRIAL_SWEEPS if part else SWEEPS,
            start=first,
        )
        return corrected(site, Replacement(factors, bias), seen.mean)

    def _fit(self, site: Site, choice: Choice) -> Terms | None:
        """The terms of the curve of `depthwise` to start a choice from: too many; with too few one starts anew."""
        known = self.sensitivities.get(site.name)
        fits = known.fits if known is not None else ()
        fits = fits or site_fits(site, self.moments[site.name], self.norms.get(site.name))  # the same in a replay
        assert isinstance(choice.rank, int), "depthwise has one rank"
        return next((terms for terms in fits if len(terms.rows) >= choice.rank), None)

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """Where plans are tried out."""
        return Rehearsal(self)


class Rehearsal:
    """Runs plans on examples that their factors are not made from.

    Args:
        found: What the examples told.
    """

    def __init__(self, found: Study) -> None:
        self._found = found
        self._sites = {site.name: site for site in found.sites}
        self._made: dict[tuple[str, Choice], Replacement] = {}
        self._run: dict[frozenset[tuple[str, Choice]], list[float | None]] = {}

    @property
    def heads(self) -> Heads:
        """Where drift is measured."""
        return self._found.heads

    @property
    def untouched(self) -> dict[str, Array]:
        """What the untouched network answers on the examples tried on, by the names of the gauges."""
        return dict(zip(self.heads.names, self._found.untouched, strict=True))

    @cached_property
    def _network(self) -> WholeNetwork:
        found = self._found
        return WholeNetwork(
            found.shapes.model,
            found.trial,
            found.heads,
            found.untouched,
            batch=found.batch,
            threads=found.effort.threads,
        )

    def drift(self, choices: Mapping[str, Choice]) -> float:
        """Relative squared drift at the heads with these choices, before any refit.

        Args:
            choices: Form and rank by site name; sites that were not studied stay as they are.
        """
        return self._found.heads.whole(self.drifts(choices))

    def drifts(self, choices: Mapping[str, Choice]) -> list[float | None]:
        """The same at each gauge of the heads; None for one that does not vary over the examples.

        Where the network will be quantised, what is rounded between new convolutions comes on top: that noise has
        nothing to do with the errors of factors, so that squares add up.
        """
        rounding = self._rounding(choices)
        plan = frozenset(self._wanted(choices))
        if plan not in self._run:  # who makes the weights of a plan asks again for what it was chosen by
            self._run[plan] = self._network.drifts(self.replacements(choices))
        return [None if drift is None else drift + rounding for drift in self._run[plan]]

    def shares(self, choices: Mapping[str, Choice]) -> dict[str, float]:
        """What each site adds to the relative squared drift of a plan, see `shares`, about.

        Args:
            choices: Form and rank by site name; sites that were not studied stay as they are.

        Returns:
            By the names of those sites that a gradient reaches; below 0 where an error makes up for others.
        """
        found = self._found
        made = self.replacements(choices)
        told = shares(found.shapes, found.sites, made, *self._parts, found.heads, threads=found.effort.threads)
        return {name: share + self._rounding_of(name, choices[name]) for name, share in told.items()}

    @cached_property
    def _parts(self) -> tuple[list[dict[str, Array]], list[list[Array]]]:
        """Some of the examples tried on in batches, and what the untouched network answers."""
        found = self._found
        parts = some_parts(found.shapes, found.sites, found.trial, found.effort.memory, declared_batch(found.model))
        return parts, [self._network.values(part) for part in parts]

    def _rounding(self, choices: Mapping[str, Choice]) -> float:
        """Relative squared drift that rounding between new convolutions causes."""
        return sum(self._rounding_of(name, choice) for name, choice in choices.items())

    def _rounding_of(self, name: str, choice: Choice) -> float:
        known = self._found.sensitivities.get(name)
        if known is None or known.rounding is None:
            return 0.0
        return float(known.response(np.array([known.rounding.of(choice)]))[0])

    def _wanted(self, choices: Mapping[str, Choice]) -> list[tuple[str, Choice]]:
        """Form and rank alone, of the sites that were studied."""
        return [(name, replace(choice, error=None)) for name, choice in choices.items() if name in self._sites]

    def replacements(self, choices: Mapping[str, Choice]) -> dict[str, Replacement]:
        """The weights that are tried for these choices, by site name; of the sites that were studied."""
        wanted = self._wanted(choices)
        new = [key for key in wanted if key not in self._made]
        made = largest_first(
            lambda key: self._found.factors(self._sites[key[0]], key[1], part=True),
            new,
            workers(self._found.effort.threads),
            lambda key: self._sites[key[0]].width,
        )
        self._made.update(zip(new, made, strict=True))
        return {name: self._made[name, choice] for name, choice in wanted}


def _spread(count: int, group: int, most: int) -> NDArray[np.bool_]:
    """Which of so many examples to keep, whole groups spread evenly, about as many as wanted; [N]."""
    groups, wanted = count // group, -(-most // group)
    if groups <= wanted or count % group:
        return np.ones(count, np.bool_)
    return np.isin(np.arange(count) // group, np.linspace(0, groups - 1, wanted).round().astype(int))


def study(
    model: ir.Model,
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    inputs: Mapping[str, Array],
    *,
    heads: Heads | None = None,
    forms: Sequence[Form] = FORMS,
    method: Method = "als",
    measure: bool = True,
    quantised: bool = False,
    arithmetic: bool = False,
    effort: Effort = DEFAULT_EFFORT,
    progress: Progress = silent,
) -> Study:
    """Look at a model's sites with example inputs.

    Args:
        model: The model; it is left as it is.
        shapes: Its shapes.
        sites: Sites that may be rewritten, in graph order.
        inputs: Example inputs by name, [N, ...].
        heads: Where the network answers; they are found if None.
        forms: Forms that plans may use.
        method: How factors are computed, see `factorize`.
        measure: Whether to measure sensitivities, which plans need and given ranks do not.
        quantised: Whether rounding between new convolutions counts.
        arithmetic: Whether plans count multiplications alone, see `outlook`.
        effort: How much may be spent.
        progress: Called with a stage and what is taken up in it.

    Returns:
        What was found.

    Raises:
        ModelError: The model does not run on the inputs.
        InputError: An activation is not finite.
    """
    batch, fixed = fitting_batch(model, shapes, effort.memory), declared_batch(model) is not None
    fit, held = _split(inputs, batch, fixed=fixed)
    heads = heads or find_heads(shapes)
    # All that could be looked at, whichever are: what is shared must not depend on that.
    everywhere = reachable(shapes.model, [site for site in find_sites(model, shapes) if site.rewritable])
    tried = _tried(len(next(iter(fit.values()))), batch, fixed=fixed)
    try:
        more, moments = _moments(shapes, sites, everywhere, fit, tried, batch, effort, progress)
    except InputError as error:  # of sums, which know neither values nor examples
        said = overflowing(shapes, sites, inputs, batch=batch, threads=effort.threads)
        if said is None:
            raise
        raise said from error
    seen = [site for site in sites if site.name in moments]
    trial = {name: array[tried] for name, array in fit.items()} if tried.any() else fit
    found: Mapping[str, Sensitivity] = {}
    wanted = bool(seen) and (measure or method == "als")
    slopes = _slopes(model, shapes, everywhere, trial, heads, effort, progress) if wanted else None
    norms = _norms(slopes, seen, method)
    if measure and slopes is not None:
        heard = within(progress, "sensitivity")
        looks = outlooks(
            seen, moments, norms, forms, method, arithmetic=arithmetic, threads=effort.threads, progress=heard
        )
        # Of wide sites what is judged by takes as much as what it judges, and gradients need the room.
        moments = {name: replace(one, rest=None) for name, one in moments.items()}
        found = sensitivities(
            shapes, seen, looks, slopes, norms, trial, heads, batch=batch, effort=effort, progress=heard
        )
        found = _rounded(shapes, seen, found, moments, norms, trial if quantised else {}, batch, effort)
    told = None if slopes is None else slopes.answers
    return Study(
        model, shapes, tuple(seen), fit, tried, held, more, heads, moments, norms, found, batch, method, effort, told
    )


def _moments(
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    everywhere: Sequence[Site],
    fit: Mapping[str, Array],
    tried: NDArray[np.bool_],
    batch: int,
    effort: Effort,
    progress: Progress,
) -> tuple[dict[str, Array], dict[str, Seen]]:
    """Copies of examples where these help, and what sites see in all of them."""
    more = copies(shapes, sites, fit, tried, batch=batch, seed=effort.seed, threads=effort.threads)
    moments = site_moments(
        shapes,
        sites,
        fit,
        batch=batch,
        tried=tried,
        copies=more,
        longer=widest(shapes.model, everywhere),
        patch_limit=effort.patch_limit,
        memory=effort.memory // 2,
        seed=effort.seed,
        threads=effort.threads,
        progress=within(progress, "moments"),
    )
    return more, moments


def _norms(slopes: Slopes | None, sites: Sequence[Site], method: Method) -> dict[str, OutputNorm]:
    """Which errors of the outputs of sites count, where that is known and asked for."""
    told = slopes.norms() if slopes is not None and method == "als" else {}
    return {site.name: told[site.name] for site in sites if site.name in told}


def _rounded(
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    found: Mapping[str, Sensitivity],
    moments: Mapping[str, Seen],
    norms: Mapping[str, OutputNorm],
    inputs: Mapping[str, Array],
    batch: int,
    effort: Effort,
) -> dict[str, Sensitivity]:
    """Add what rounding between new convolutions loses, on inputs by name; nothing without any. Weights are let go."""
    tried = {name: one.tried for name, one in found.items()}
    rounded: Mapping[str, Rounding] = {}
    if inputs:
        rounded = roundings(shapes.model, sites, tried, moments, norms, inputs, batch=batch, threads=effort.threads)
    return {name: replace(one, tried=(), rounding=rounded.get(name)) for name, one in found.items()}


def _slopes(
    model: ir.Model,
    shapes: ResolvedShapes,
    everywhere: Sequence[Site],
    trial: Mapping[str, Array],
    heads: Heads,
    effort: Effort,
    progress: Progress,
) -> Slopes:
    """Gradients at every site that could be looked at.

    What is asked of a session decides what the runtime fuses, and so how it rounds. Gradients of all sites are asked
    for whichever of them are wanted, so that the replay of a plan, which wants fewer, gives the same bytes.
    """
    progress("sensitivity", "gradients")
    return Slopes(
        shapes,
        everywhere,
        trial,
        heads,
        batch=declared_batch(model),
        memory=effort.memory,
        seed=effort.seed,
        threads=effort.threads,
    )


def _split(
    inputs: Mapping[str, Array], batch: int, *, fixed: bool = False
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Hold every eighth example back; whole batches, at least one of them, where the model fixes their size."""
    count = len(next(iter(inputs.values())))
    size = batch if fixed or (count % batch == 0 and count // batch >= _HELD_BACK) else 1
    groups = count // size
    back = np.arange(count) // size % _HELD_BACK == _HELD_BACK - 1
    if fixed and count >= _HELD_BACK and _LEAST_BATCHES <= groups < _HELD_BACK:
        back = np.arange(count) // size == groups - 1
    if not back.any():
        return dict(inputs), {}
    return {k: v[~back] for k, v in inputs.items()}, {k: v[back] for k, v in inputs.items()}


def _tried(count: int, batch: int, *, fixed: bool = False) -> NDArray[np.bool_]:
    """Examples that trials are run on and that trial factors are not made from, spread evenly; none of a few.

    They are whole batches where the model fixes their size.
    """
    size = batch if fixed or (count % batch == 0 and count // batch >= _LEAST_SPLIT) else 1
    groups = count // size
    tried = np.zeros(count, np.bool_)
    if groups >= _LEAST_SPLIT:
        wanted = min(max(1, groups // 2), max(1, -(-_TRIALS // size)))
        chosen = np.unique(np.linspace(0, groups - 1, wanted).round().astype(int))
        tried[np.isin(np.arange(count) // size, chosen)] = True
    return tried
