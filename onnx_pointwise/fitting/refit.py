"""Sequential refit: every rewritten site makes up for what the sites before it have changed.

Sites are taken in graph order, beside one another where none needs another (the branches of an Inception module). The
inputs of a site come from the network as rewritten so far, its targets from the untouched network, so that errors do
not pile up. Where the output of a site is added to another value that is there already (a residual branch), the target
is the sum: the site also corrects what has gone wrong on the branch. Where an activation follows, the error behind it
is what counts. Every part of the network runs once in each version.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_pointwise.errors import PlanError
from onnx_pointwise.fitting.order import latest, worth_correcting
from onnx_pointwise.fitting.surroundings import surroundings
from onnx_pointwise.fitting.views import Once, Views
from onnx_pointwise.graph import BottleneckPass, Choice, Plan, Replacement, Site, find_sites, runtime_source
from onnx_pointwise.numerics import (
    ROUNDS,
    Activation,
    Beforehand,
    Block,
    Factors,
    Lattice,
    Method,
    OutputNorm,
    Reconstruction,
    beside,
    channel_means,
    lattices,
    patch_sums,
    patches,
    reconstruct,
    sample,
    workers,
)
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.runtime import TwinRun, open_waiting
from onnx_pointwise.study import Effort, named_seed, patch_count

Array = NDArray[Any]

# Bytes of patches that are kept from one round to the next, of all sites under way.
_KEPT_BYTES = 2**27
# Patches of a site, as a multiple of those of a look at it, and multiplications spent on them, many more than on those:
# what a refit learns from too few goes into all sites behind. At patches of 576 numbers a denoiser of twenty layers
# drifted 10 % further with 24,000 than with 60,000, and a U-Net 2 % further with these than with 150,000.
_PATCHES = 2.5
_PRODUCTS = 2e10
# Share of that for sites that stay whole: they make up for little, and most of them are best left as they are.
_OF_WHOLE = 0.25
# One example in so many is held back for the choice of the ridge.
_HELD_BACK = 4
# How far ahead in the graph to look for sites that can be refitted beside others, and the most under way.
_AHEAD = 8
_TOGETHER = 4
# Float64 matrices as wide as a patch, I * K, that a refit holds at once, about.
_MATRICES = 8


@dataclass(frozen=True)
class SiteRefit:
    """What the refit did to one site.

    Attributes:
        replacement: Its weights.
        error: Relative L2 error of its output against its target, on the examples, means taken out.
        ridge: Strength of the ridge towards the trained kernel; infinite where the kernel itself was best.
        target: `output`; `sum` where a branch that is added to it is corrected too; `none` where it was not refitted.
        activation: `none`; `flat` where the target may move on flat parts of the activation that follows; `curve` where
            it moves as far as the activation is shallow.
    """

    replacement: Replacement
    error: float
    ridge: float
    target: str
    activation: str


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of sites before they are refitted, by their names.

    Attributes:
        norms: Which errors of a site's outputs count.
        answers: Names of values that count as they are, whatever activation follows them.
        starts: Factors of the same form and rank to start from.
        fixed: Weights of sites that are not refitted.
    """

    norms: Mapping[str, OutputNorm] = field(default_factory=dict)
    answers: Collection[str] = ()
    starts: Mapping[str, Factors] = field(default_factory=dict)
    fixed: Mapping[str, Replacement] = field(default_factory=dict)


def too_wide(site: Site, memory: int) -> bool:
    """Whether the moments that a refit of a site needs do not fit into the memory, in bytes."""
    return _MATRICES * 8 * site.width**2 > memory


def refit(
    model: ir.Model,
    sites: Sequence[Site],
    choices: Mapping[str, Choice],
    inputs: Mapping[str, Array],
    *,
    corrected: Collection[str] = (),
    copies: Mapping[str, Array] | None = None,
    method: Method = "als",
    known: Known | None = None,
    batch: int = 64,
    effort: Effort,
    rounds: int = ROUNDS,
    progress: Within = unheard,
) -> dict[str, SiteRefit]:
    """Compute the weights of all rewritten sites from example inputs, each after those that it depends on.

    Args:
        model: The untouched model with its types inferred (`ResolvedShapes.model`); it is left as it is.
        sites: The model's sites in graph order.
        choices: Form and rank by site name; sites that lie in subgraphs are left out.
        inputs: Example inputs by name, [N, ...].
        corrected: Names of sites that stay whole, and whose weights make up for what drifts before them.
        copies: Copies of them by name, [n * N, ...]; what is held back for the choice of a ridge is, with its copies.
        method: How the factors are computed, see `factorize`.
        known: What is known beforehand; nothing if None.
        batch: Examples in one run of the runtime.
        effort: How much may be spent; activations beyond the memory lie in a temporary folder.
        rounds: Rounds through activations at most, see `reconstruct`.
        progress: Called with the name of each site before it is taken.

    Returns:
        What was done, by site name.

    Raises:
        ModelError: The model does not run on the inputs.
        InputError: An activation is not finite, or the inputs lead to activations of different sizes.
    """
    count, known = len(next(iter(inputs.values()))), known or Known()
    inputs = _together(inputs, copies)
    names = {str(value.name) for node in model.graph for value in node.outputs}
    threads = effort.threads
    taken = [site for site in sites if site.name in choices or site.name in corrected]
    taken = [site for site in taken if str(site.output.name) in names]
    taken = worth_correcting(model, taken, choices, known.answers)
    done: dict[str, SiteRefit] = {}
    left = _tasks(model, taken, choices, known.answers)
    views = Views(taken)
    under_way: deque[tuple[_Problem, Callable[[], SiteRefit]]] = deque()

    # What is begun and taken when must not depend on who is quick: it decides how the network is cut into sessions.
    with (
        TwinRun(model, taken, inputs, batch=batch, memory=effort.memory, threads=threads) as run,
        beside(workers(threads)) as begin,
    ):
        while left or under_way:
            for task in _ready(run, left, _TOGETHER - len(under_way)):
                progress(task.site.name, len(done), len(taken))
                left.remove(task)
                problem = _problem(run, task, views, count, effort, _KEPT_BYTES // workers(threads))
                under_way.append(
                    (problem, begin(functools.partial(_solve, problem, known, method, rounds, workers(threads))))
                )
            problem, result = under_way.popleft()
            site = problem.task.site
            done[site.name] = made = result()
            session = site_session(model, site, problem.task.choice, made.replacement, threads)
            run.finish(site, problem.dense, session)
    return {site.name: done[site.name] for site in taken}


def _together(inputs: Mapping[str, Array], copies: Mapping[str, Array] | None) -> Mapping[str, Array]:
    if copies is None or not len(next(iter(copies.values()))):
        return inputs
    return {name: np.concatenate([array, copies[name]]) for name, array in inputs.items()}


@dataclass(frozen=True, eq=False)
class _Task:
    """A site to be refitted.

    Attributes:
        site: The site.
        choice: Form and rank; None where it stays whole.
        branch: Name of the value that its output is added to and that is to be corrected with it; None for none.
        activation: What follows.
        share: Share of the patches and products to spend on it, the same for all sites that see the same.
    """

    site: Site
    choice: Choice | None
    branch: str | None
    activation: Activation
    share: float


@dataclass(frozen=True)
class _Problem:
    """All that the weights of a site are computed from.

    Attributes:
        task: The site.
        dense: Its outputs in the untouched network.
        shift: What is taken off the patches, [I*K].
        blocks: Gives those for `reconstruct`, which keep patches for as long as they live.
        seen: Gives sums of the patches where other sites see the same ones; None where none does.
    """

    task: _Task
    dense: Array
    shift: Array
    blocks: Callable[[], Sequence[Callable[[], Block]]]
    seen: Once | None


def _solve(problem: _Problem, known: Known, method: Method, rounds: int, threads: int) -> SiteRefit:
    """Compute the weights of one site."""
    site, choice = problem.task.site, problem.task.choice
    fixed = known.fixed.get(site.name)
    if fixed is not None:
        return SiteRefit(fixed, fixed.factors.error, math.inf, "none", "none")
    kernel, bias = site.weights()
    solved = reconstruct(
        kernel.astype(site.dtype),
        bias,
        None if choice is None else choice.form,
        0 if choice is None else choice.rank,
        problem.blocks(),
        beforehand=Beforehand(problem.shift, None if problem.seen is None else problem.seen()),
        method=method,
        norm=known.norms.get(site.name),
        activation=problem.task.activation,
        start=known.starts.get(site.name),
        rounds=rounds,
        threads=threads,
    )
    return _report(solved, problem.task)


def _tasks(
    model: ir.Model, sites: Sequence[Site], choices: Mapping[str, Choice], answers: Collection[str]
) -> list[_Task]:
    last = latest(model, sites)
    rewritten = {site.view for site in sites if site.name in choices}
    tasks = []
    for number, site in enumerate(sites):
        branch, activation = surroundings(model, site, answers)
        if branch is not None and last[branch] >= number:
            # The branch is still to come, and will correct this site in turn.
            branch, activation = None, Activation()
        share = 1.0 if site.view in rewritten else _OF_WHOLE
        tasks.append(_Task(site, choices.get(site.name), branch, activation, share))
    return tasks


def _ready(run: TwinRun, left: Sequence[_Task], most: int) -> list[_Task]:
    """The next sites that depend on none still to be done, the branch to correct included."""
    return [
        task
        for task in left[:_AHEAD]
        if run.reachable(task.site.source) and (task.branch is None or run.reachable(task.branch))
    ][:most]


def _problem(run: TwinRun, task: _Task, views: Views, originals: int, effort: Effort, kept: int) -> _Problem:
    branch = task.branch
    run.advance([task.site.source] if branch is None else [task.site.source, branch])
    dense = run.dense_output(task.site)
    added = None if branch is None else (run.dense[branch], run.rewritten[branch])
    source = run.rewritten[task.site.source]
    means = channel_means(source, task.site.window(source.shape[2:]))
    blocks = functools.partial(
        _blocks, task, source, means, dense, added, originals=originals, effort=effort, kept=kept
    )
    shift = np.repeat(means, task.site.taps)
    seen = views.of(task.site, lambda: patch_sums(blocks(), shift, threads=workers(effort.threads)))
    return _Problem(task, dense, shift, blocks, seen)


def _blocks(
    task: _Task,
    drifted: Array,
    means: Array,
    dense: Array,
    branch: tuple[Array, Array] | None,
    *,
    originals: int,
    effort: Effort,
    kept: int,
) -> list[Callable[[], Block]]:
    """Give patches of the rewritten network and targets of the untouched one; one example in four is held back.

    Args:
        task: The site.
        drifted: Its inputs in the network as rewritten so far.
        means: What to take off their channels.
        dense: Its outputs in the untouched network.
        branch: What is added to them, in the untouched network and as rewritten so far; None for nothing.
        originals: Examples that are no copies; the others are copies of all of them, one after the other.
        effort: How many patches to look at, and the seed of the positions that are left out.
        kept: Bytes of patches to keep from one call of a block to the next.
    """
    site, count = task.site, len(drifted)
    window = site.window(drifted.shape[2:])
    examples = np.arange(count)
    back = examples % originals % _HELD_BACK == _HELD_BACK - 1
    width = site.width
    plan: list[tuple[Lattice, bool]] = []
    for held, chosen in ((False, examples[~back]), (True, examples[back & (examples < originals)])):
        if len(chosen):
            most = patch_count(round(task.share * _PATCHES * effort.patch_limit), width, task.share * _PRODUCTS)
            share = max(1, most * len(chosen) // count)
            drawn = named_seed(effort.seed, task.site.source, held)
            part = lattices(chosen, dense.shape[2:], width, limit=share, seed=drawn, spacing=window.spacing)
            plan.extend((lattice, held) for lattice in part)

    def make(lattice: Lattice, held: bool) -> Block:
        targets = sample(dense, lattice)
        added = None
        if branch is not None:
            before, after = branch
            added = sample(after, lattice)
            targets = targets + sample(before, lattice) - added
        return Block(patches(drifted, window, lattice, means), targets, added, held)

    # Rounds through the activation need the blocks again; unfolding them takes about as long as multiplying them.
    blocks: list[Callable[[], Block]] = []
    room = kept
    for lattice, held in plan:
        once = functools.partial(make, lattice, held)
        taken = count if lattice.examples is None else len(lattice.examples)
        room -= 4 * width * taken * math.prod(lattice.counts(window.out_size(drifted.shape[2:])))
        blocks.append(functools.cache(once) if room >= 0 else once)
    return blocks


def site_session(
    model: ir.Model, site: Site, choice: Choice | None, replacement: Replacement, threads: int | None = None
) -> ort.InferenceSession:
    """Open a session of a rewritten site alone.

    Args:
        model: The untouched model.
        site: One of its sites.
        choice: Form and rank; None where it stays whole.
        replacement: Weights that fit them.
        threads: Threads of the session; the runtime's own choice if None.

    Returns:
        A session with the site's input and output, for any batch size.

    Raises:
        PlanError: The site cannot stand alone.
    """
    graph = ir.convenience.extract(model.graph, [site.source], [str(site.output.name)])
    for name, version in model.graph.opset_imports.items():
        graph.opset_imports.setdefault(name, version)
    for value in graph.inputs:
        value.shape = None
    for node in graph:
        for value in node.outputs:
            value.shape = None
    part = ir.Model(graph, ir_version=model.ir_version)
    (alone,) = find_sites(part)
    if not alone.rewritable or str(alone.output.name) != str(site.output.name):
        raise PlanError(f"Site '{site.name}' reads differently once it stands alone; leave it out of the plan.")
    plan = Plan({}, corrected=(alone.name,)) if choice is None else Plan({alone.name: choice})
    BottleneckPass(plan, {alone.name: replacement})(part)
    with runtime_source(part, in_place=True) as data:
        return open_waiting(data, threads)


def _report(result: Reconstruction, task: _Task) -> SiteRefit:
    return SiteRefit(
        Replacement(result.factors, result.bias),
        result.error,
        result.ridge,
        "output" if task.branch is None else "sum",
        "none" if task.activation.linear else "flat" if task.activation.curve is None else "curve",
    )
