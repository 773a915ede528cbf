"""Sequential refit: every rewritten site makes up for what the sites before it have changed.

Sites are taken in graph order. The inputs of a site come from the network as rewritten so far, its targets from the
untouched network, so that errors do not pile up. Where the output of a site is added to another value that is there
already (a residual branch), the target is the sum: the site also corrects what has gone wrong on the branch. Where a
rectifier or a Clip follows, the error behind it is what counts. Every part of the network runs once in each version.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_pointwise.collect import PATCHES, named_seed, patch_count
from onnx_pointwise.errors import PlanError
from onnx_pointwise.factorize import Method, compose
from onnx_pointwise.model_io import runtime_source
from onnx_pointwise.moments import Lattice, lattices, make_window, patches, sample
from onnx_pointwise.parallel import workers
from onnx_pointwise.plan import Choice, Plan
from onnx_pointwise.reconstruct import Activation, Block, Reconstruction, reconstruct
from onnx_pointwise.rewrite import BottleneckPass, Replacement
from onnx_pointwise.segments import TwinRun, open_waiting
from onnx_pointwise.sites import Site, constant, find_sites

Array = NDArray[Any]

#: Bytes of activations held in memory, unless told otherwise; beyond, they lie in files.
MEMORY = 2**31
# Bytes of patches of one site that are kept from one round to the next.
_KEPT_BYTES = 2**27
# One example in so many is held back for the choice of the ridge.
_HELD_BACK = 4


@dataclass(frozen=True)
class SiteRefit:
    """What the refit did to one site.

    Attributes:
        replacement: Its weights.
        error: Relative L2 error of its output against its target, on the examples, means taken out.
        ridge: Strength of the ridge towards the trained kernel; infinite where the kernel itself was best.
        target: `output`, or `sum` where a branch that is added to it is corrected too.
        activation: `none`, or `flat` where the target may move on flat parts of the activation.
    """

    replacement: Replacement
    error: float
    ridge: float
    target: str
    activation: str


def refit(
    model: ir.Model,
    sites: Sequence[Site],
    choices: Mapping[str, Choice],
    inputs: Mapping[str, Array],
    *,
    method: Method = "als",
    batch: int = 64,
    patch_limit: int = PATCHES,
    memory: int = MEMORY,
    rounds: int = 2,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, SiteRefit]:
    """Compute the weights of all rewritten sites from example inputs, one site after the other.

    Args:
        model: The untouched model with its types inferred (`ResolvedShapes.model`); it is left as it is.
        sites: The model's sites in graph order.
        choices: Form and rank by site name; sites that lie in subgraphs are left out.
        inputs: Example inputs by name, [N, ...].
        method: How the factors are computed, see `factorize`.
        batch: Examples in one run of the runtime.
        patch_limit: Patches of a site to look at, about.
        memory: Bytes of activations to hold in memory; beyond, they lie in a temporary folder.
        rounds: Rounds through activations with flat parts, see `reconstruct`.
        seed: Seed of the positions that are left out.
        threads: Threads of the runtime; its own choice if None.
        progress: Called with the name of each site before it is taken.

    Returns:
        What was done, by site name.

    Raises:
        ModelError: The model does not run on the inputs.
        InputError: An activation is not finite, or the inputs lead to activations of different sizes.
    """
    names = {str(value.name) for node in model.graph for value in node.outputs}
    taken = [site for site in sites if site.name in choices and str(site.output.name) in names]
    done: dict[str, SiteRefit] = {}
    with TwinRun(model, taken, inputs, batch=batch, memory=memory, threads=threads) as run:
        for site in taken:
            if progress is not None:
                progress(site.name)
            source = str(site.node.inputs[0].name) if site.node.inputs[0] is not None else ""
            run.advance([source])
            dense = run.dense_output(site)
            surroundings = _surroundings(model, site)
            branch = surroundings.branch
            if branch is not None:
                if run.reachable(branch):
                    run.advance([branch])
                else:
                    # The branch is still to come, and will correct this site in turn.
                    surroundings = _Surroundings(None, Activation())
            blocks = _blocks(run, site, source, dense, surroundings, patch_limit, seed)
            kernel, bias = site.weights()
            choice = choices[site.name]
            result = reconstruct(
                kernel.astype(site.dtype),
                bias,
                choice.form,
                choice.rank,
                blocks,
                method=method,
                activation=surroundings.activation,
                rounds=rounds,
                threads=workers(threads),
            )
            replacement = Replacement(result.factors, result.bias)
            run.finish(site, dense, site_session(model, site, choice, replacement, threads))
            done[site.name] = _report(result, replacement, surroundings)
    return done


@dataclass(frozen=True)
class _Surroundings:
    """What becomes of a site's output: the value it is added to, if any, and the activation behind."""

    branch: str | None
    activation: Activation


def _surroundings(model: ir.Model, site: Site) -> _Surroundings:
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    value = values[str(site.output.name)]
    branch = None
    users = _users(value)
    if users is not None and len(users) == 1 and users[0].op_type == "Add":
        others = [other for other in users[0].inputs if other is not value and other is not None]
        if len(others) == 1 and constant(others[0]) is None and _same_shape(others[0], value):
            branch, value = str(others[0].name), users[0].outputs[0]
            users = _users(value)
    flats = {_flat(node) for node in users or ()}
    activation = flats.pop() if len(flats) == 1 else Activation()
    return _Surroundings(branch, activation)


def _users(value: ir.Value) -> list[ir.Node] | None:
    """Nodes that read a value; None where it is also an output of the network, which must be kept as it is."""
    return None if value.is_graph_output() else [node for node, _ in value.uses()]


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and one.shape == other.shape


def _flat(node: ir.Node) -> Activation:
    """The flat parts of a node that follows a site."""
    if node.domain not in ("", "ai.onnx"):
        return Activation()
    if node.op_type == "Relu":
        return Activation(low=0.0)
    if node.op_type == "Clip":
        bounds = [node.attributes.get("min"), node.attributes.get("max")]
        low, high = (None if bound is None else bound.as_float() for bound in bounds)
        given = [constant(value) if value is not None else None for value in node.inputs[1:]]
        if any(value is not None and constant(value) is None for value in node.inputs[1:]):
            return Activation()
        if given and given[0] is not None:
            low = float(given[0].numpy())
        if len(given) > 1 and given[1] is not None:
            high = float(given[1].numpy())
        return Activation(-math.inf if low is None else low, math.inf if high is None else high)
    return Activation()


def _blocks(
    run: TwinRun,
    site: Site,
    source: str,
    dense: Array,
    surroundings: _Surroundings,
    limit: int,
    seed: int,
) -> list[Callable[[], Block]]:
    """Give patches of the rewritten network and targets of the untouched one; one example in four is held back."""
    drifted = run.rewritten[source]
    window = make_window(site.kernel_shape, site.strides, site.dilations, site.pads, drifted.shape[2:])
    examples = np.arange(run.count)
    back = examples % _HELD_BACK == _HELD_BACK - 1
    width = site.in_channels * site.taps
    plan: list[tuple[Lattice, bool]] = []
    for held, chosen in ((False, examples[~back]), (True, examples[back])):
        if len(chosen):
            share = max(1, patch_count(limit, width) * len(chosen) // run.count)
            part = lattices(chosen, dense.shape[2:], width, limit=share, seed=named_seed(seed, source, held))
            plan.extend((lattice, held) for lattice in part)
    branch = surroundings.branch
    before, after = (run.dense[branch], run.rewritten[branch]) if branch is not None else (None, None)

    def make(lattice: Lattice, held: bool) -> Block:
        targets = sample(dense, lattice)
        added = None
        if before is not None and after is not None:
            added = sample(after, lattice)
            targets = targets + sample(before, lattice) - added
        return Block(patches(drifted, window, lattice), targets, added, held)

    # Rounds through the activation need the blocks again; unfolding them takes about as long as multiplying them.
    blocks: list[Callable[[], Block]] = []
    room = _KEPT_BYTES
    for lattice, held in plan:
        once = functools.partial(make, lattice, held)
        taken = run.count if lattice.examples is None else len(lattice.examples)
        room -= 4 * width * taken * math.prod(lattice.counts(window.out_size(drifted.shape[2:])))
        blocks.append(functools.cache(once) if room >= 0 else once)
    return blocks


def site_session(
    model: ir.Model, site: Site, choice: Choice, replacement: Replacement, threads: int | None = None
) -> ort.InferenceSession:
    """Open a session of a rewritten site alone.

    Args:
        model: The untouched model.
        site: One of its sites.
        choice: Form and rank.
        replacement: Weights that fit them.
        threads: Threads of the session; the runtime's own choice if None.

    Returns:
        A session with the site's input and output, for any batch size.

    Raises:
        PlanError: The site cannot stand alone.
    """
    source = site.node.inputs[0]
    assert source is not None
    graph = ir.convenience.extract(model.graph, [str(source.name)], [str(site.output.name)])
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
    BottleneckPass(Plan({alone.name: choice}), {alone.name: replacement})(part)
    with runtime_source(part) as data:
        return open_waiting(data, threads)


def _report(result: Reconstruction, replacement: Replacement, surroundings: _Surroundings) -> SiteRefit:
    return SiteRefit(
        replacement,
        result.error,
        result.ridge,
        "output" if surroundings.branch is None else "sum",
        "none" if surroundings.activation.linear else "flat",
    )


def corrected(site: Site, replacement: Replacement, mean: NDArray[np.float64]) -> Replacement:
    """Let the bias take up what factors made without examples do to the mean output.

    Args:
        site: The site.
        replacement: Its weights.
        mean: Mean patch of its input, [I*K].

    Returns:
        The same factors with the bias b + (W - composed) mean.
    """
    kernel, bias = site.weights()
    gap = kernel.astype(np.float64) - compose(replacement.factors)
    offset = np.zeros(site.out_channels) if bias is None else bias
    return Replacement(replacement.factors, offset + gap.reshape(len(gap), -1) @ mean)
