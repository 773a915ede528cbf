"""What the error of each site adds to the drift of a plan, with all errors in place.

Sensitivities are those of one site at a time and of small errors, in the untouched network. In a plan errors meet: some
cancel, and some are cut off by what others have done. With F the answers of the network as planned less those of the
untouched one, each scaled by its deviation and weight, and e_s what the weights of site s change at its output, the
drift is D = |F|^2, and

    c_s = <(dF / d output of s)^T F, e_s>

is half of what D gains, in relative terms, where e_s grows. Where answers are linear in the errors, the c_s add up to
D. One run and one run back give them for all sites.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import Replacement, ResolvedShapes, Site
from onnx_pointwise.numerics import energy, in_order, workers
from onnx_pointwise.runtime import run_session
from onnx_pointwise.study.gradients import Backward, Forward, site_outputs
from onnx_pointwise.study.heads import Heads
from onnx_pointwise.study.slopes import affordable
from onnx_pointwise.study.trials import KernelSessions
from onnx_pointwise.study.whole import composed, with_kernels

Array = NDArray[Any]

# Examples that take part: what they add to the drift differs little from one to another.
_EXAMPLES = 16


def shares(
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    replacements: Mapping[str, Replacement],
    parts: Sequence[Mapping[str, Array]],
    references: Sequence[Sequence[Array]],
    heads: Heads,
    *,
    threads: int | None = None,
) -> dict[str, float]:
    """Part the drift of a plan among the sites that it rewrites.

    Args:
        shapes: The untouched model and its shapes; it is left as it is.
        sites: Its sites.
        replacements: Weights by site name; the other sites stay as they are.
        parts: Example inputs by name, [N, ...], a batch each.
        references: What the untouched network gives at the gauges of the heads for each batch.
        heads: Where drift is measured.
        threads: Threads of the runtime; its own choice if None.

    Returns:
        c_s by site name, relative to what the answers vary by; left out are sites that no gradient reaches, and those
        whose errors are too large to be told.

    Raises:
        ModelError: The model does not run on the inputs.
    """
    taken = [site for site in sites if site.name in replacements]
    if not taken or not heads.names:
        return {}
    sources = list(dict.fromkeys(site.source for site in taken))
    kernels = composed(replacements)
    planned = with_kernels(shapes.model, kernels)
    backward = Backward(planned, heads.names, site_outputs(taken), parts[0], keep=sources, threads=threads)
    scales = _scales(heads, references)
    sessions = KernelSessions(threads=1)
    changes = {site.name: _change(site, kernels[site.name]) for site in taken}
    found: dict[str, float] = {}
    forward: Forward | None = None
    for part, reference in zip(parts, references, strict=True):
        forward = backward.forward(part, after=forward)
        probes = {
            name: (forward.values[name] - one) * scales[name]
            for name, one in zip(heads.names, reference, strict=True)
            if name in scales
        }
        gradients = forward.gradients(probes)
        reached = [site for site in taken if site.name in gradients]
        share = functools.partial(_share, sessions, changes, forward.values, gradients)
        for site, added in zip(reached, in_order(share, reached, workers(threads)), strict=True):
            found[site.name] = found.get(site.name, 0.0) + added
    return {name: share for name, share in found.items() if math.isfinite(share)}


def _share(
    sessions: KernelSessions,
    changes: Mapping[str, Mapping[str, Array]],
    values: Mapping[str, Array],
    gradients: Mapping[str, Array],
    site: Site,
) -> float:
    """c_s of one batch."""
    (error,) = run_session(sessions.of(site), ["y"], {"x": values[site.source], **changes[site.name]})
    return float(np.vdot(gradients[site.name].astype(np.float64), error.astype(np.float64)))


def some_parts(
    shapes: ResolvedShapes, sites: Sequence[Site], inputs: Mapping[str, Array], memory: int, batch: int | None
) -> list[dict[str, Array]]:
    """Take some examples for `shares`, spread evenly, in batches that the memory can hold.

    Args:
        shapes: The untouched model and its shapes.
        sites: Its sites.
        inputs: Example inputs by name, [N, ...].
        memory: Bytes that activations and gradients may take, about.
        batch: Examples in one run, where the model fixes that.
    """
    count = len(next(iter(inputs.values())))
    size = batch or affordable(shapes, sites, min(count, _EXAMPLES), 1, memory)
    starts = range(0, count - size + 1, size)
    wanted = max(1, min(len(starts), _EXAMPLES // size))
    chosen = np.linspace(0, len(starts) - 1, wanted).round().astype(int)
    return [{name: array[starts[at] : starts[at] + size] for name, array in inputs.items()} for at in chosen]


def _scales(heads: Heads, references: Sequence[Sequence[Array]]) -> dict[str, Array]:
    """The weight of each gauge over its energy in all batches; those that do not vary are left out.

    A number, or one for each channel where these are of different units.
    """
    together = [np.concatenate([np.atleast_1d(value) for value in values]) for values in zip(*references, strict=True)]
    scales: dict[str, Array] = {}
    for gauge, values in zip(heads.gauges, together, strict=True):
        factors = gauge.units(values)
        own = energy(values, gauge.axis, factors)
        if own > 0.0:
            scale = gauge.weight / (own * len(values))
            scales[gauge.value] = np.asarray(scale if factors is None else scale * factors**2, np.float32)
    return scales


def _change(site: Site, made: Replacement) -> dict[str, Array]:
    """What is added to a site's kernel and bias, of factors that are multiplied out."""
    kernel, bias = site.weights()
    trained = np.zeros(len(kernel)) if bias is None else bias
    moved = trained if made.bias is None else made.bias
    return {
        "w": site.stored((made.factors.kernel - kernel).astype(site.dtype)),
        "b": (moved - trained).astype(site.dtype),
    }
