"""Sensitivities by gradients: what errors at all sites do to the heads, from a few runs of the network and back.

With J_s the derivative of the heads by the output of site s, an error d there moves the heads by J_s d, as long as it
is small. For a random probe v at the heads, the mean of (v^T J_s d)^2 is the squared length of J_s d (v of independent
normal numbers, each head scaled by its own deviation and weight), and v^T J_s is what one run back gives for every site
at once. So a site costs no runs of its own: its trial errors are computed at the site alone and multiplied with the
gradient there. What is left out, that large errors bend the response and that errors at several sites come together, is
measured on whole plans, see `planning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import Site
from onnx_pointwise.numerics import centred
from onnx_pointwise.runtime import MEMORY, run_session, without_shapes
from onnx_pointwise.study.gradients import Backward, Unsupported, site_outputs
from onnx_pointwise.study.heads import Heads
from onnx_pointwise.study.outlook import Outlook
from onnx_pointwise.study.points import Point
from onnx_pointwise.study.trials import kernel_session

Array = NDArray[Any]

# Probes of each example: enough that all of them together tell a squared length to about a seventh.
_PROBES = 96
_MOST_PROBES = 8


def by_gradients(
    model: ir.Model,
    sites: Sequence[Site],
    outlooks: Sequence[Outlook],
    inputs: Mapping[str, Array],
    heads: Heads,
    *,
    batch: int = 64,
    memory: int = MEMORY,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, list[Point]], dict[str, tuple[Unsupported, ...]]]:
    """Predict what errors at each site do to the heads.

    Args:
        model: The untouched model with its types inferred; it is left as it is.
        sites: The sites, in graph order.
        outlooks: What to try at each.
        inputs: Example inputs by name, [N, ...].
        heads: Where the network answers.
        batch: Examples in one run, at most.
        memory: Bytes of activations and gradients to hold in memory, about.
        seed: Seed of the probes.
        threads: Threads of the runtime; its own choice if None.
        progress: Called with how far it is.

    Returns:
        The measurements by site name; and the nodes that cut the other sites off from a head.

    Raises:
        ModelError: The model does not run on the inputs.
    """
    count = len(next(iter(inputs.values())))
    probes = max(1, min(_MOST_PROBES, -(-_PROBES // count)))
    batch = _affordable(sites, count, batch, memory, probes)
    parts = [{name: array[k : k + batch] for name, array in inputs.items()} for k in range(0, count, batch)]
    keep = list(dict.fromkeys(name for site in sites for name in (site.source, str(site.output.name))))
    backward = Backward(without_shapes(model), heads.names, site_outputs(sites), parts[0], keep=keep, threads=threads)
    known = [(site, look) for site, look in zip(sites, outlooks, strict=True) if site.name not in backward.unsupported]
    scales = _scales(backward, parts, heads)
    tallies = {site.name: _Tally(site, look, threads) for site, look in known}
    rng = np.random.default_rng(seed)
    for number, part in enumerate(parts):
        progress(f"{number * batch} of {count}")
        forward = backward.forward(part)
        gradients = []
        for _ in range(probes):
            drawn = {
                name: (rng.standard_normal(forward.values[name].shape, dtype=np.float32) * scale)
                for name, scale in scales.items()
            }
            gradients.append(forward.gradients(drawn))
        for site, _ in known:
            reached = [one[site.name] for one in gradients if site.name in one]
            tallies[site.name].add(forward.values, reached)
    points = {name: tally.points(probes) for name, tally in tallies.items()}
    return points, dict(backward.unsupported)


def _affordable(sites: Sequence[Site], count: int, batch: int, memory: int, probes: int) -> int:
    """Examples in one run: whole parts of all of them, few enough that what is held at all sites stays in memory."""
    each = sum(
        4 * (site.in_channels * math.prod(site.in_size) + (1 + probes) * site.out_channels * math.prod(site.out_size))
        for site in sites
    )
    # The sessions hold as much again for nodes between the sites.
    most = max(1, min(batch, count, memory // max(1, 4 * each)))
    if count % batch == 0 and batch > 1 and most < batch:
        most = max(size for size in range(1, most + 1) if batch % size == 0)
    return -(-count // -(-count // most))


def _scales(backward: Backward, parts: Sequence[Mapping[str, Array]], heads: Heads) -> dict[str, float]:
    """What to scale the probe at each gauge by: the root of its weight over the energy of its deviation."""
    values: dict[str, list[Array]] = {name: [] for name in heads.names}
    for part in parts:
        forward = backward.forward(part)
        for name in values:
            values[name].append(np.array(forward.values[name]))
    scales = {}
    for gauge in heads.gauges:
        spread = centred(np.concatenate(values[gauge.value]), gauge.axis)
        energy = float(np.vdot(spread, spread))
        if energy > 0.0:
            scales[gauge.value] = float(np.sqrt(gauge.weight / energy))
    return scales


class _Tally:
    """Sums over the examples of one site."""

    def __init__(self, site: Site, outlook: Outlook, threads: int | None) -> None:
        self._site, self._outlook = site, outlook
        self._session = kernel_session(site, threads)
        kernel, bias = site.weights()
        self._kernel = kernel.astype(np.float64)
        self._bias = np.zeros(len(kernel)) if bias is None else bias
        self._lost = np.zeros(len(outlook.trials))
        self._moved = np.zeros(len(outlook.trials))
        self._numbers = 0
        self._sum = np.zeros(site.out_channels)
        self._squares = np.zeros(site.out_channels)

    def add(self, values: Mapping[str, Array], gradients: Sequence[Array]) -> None:
        """Add a batch: what the site reads and puts out, and the gradients of each probe at its output."""
        source, output = values[self._site.source], values[str(self._site.output.name)]
        flat = np.swapaxes(output, 0, 1).reshape(output.shape[1], -1)
        self._numbers += flat.shape[1]
        self._sum += flat.sum(axis=1, dtype=np.float64)
        self._squares += np.einsum("cn,cn->c", flat, flat, dtype=np.float64)
        for index, trial in enumerate(self._outlook.trials):
            weights = trial.weights(self._site)
            change = {
                "w": (weights["w"].astype(np.float64) - self._kernel).astype(source.dtype),
                "b": (weights["b"].astype(np.float64) - self._bias).astype(source.dtype),
            }
            (error,) = run_session(self._session, ["y"], {"x": source, **change})
            errors = error.reshape(len(error), -1)
            self._lost[index] += float(np.einsum("ni,ni->", errors, errors, dtype=np.float64))
            for gradient in gradients:
                along = np.einsum("ni,ni->n", gradient.reshape(errors.shape), errors, dtype=np.float64)
                self._moved[index] += float(along @ along)

    def points(self, probes: int) -> list[Point]:
        """The measurements."""
        whole = float((self._squares - self._sum**2 / self._numbers).sum())
        if not whole > 0.0:
            return []
        return [
            trial.point(lost / whole, moved / probes)
            for trial, lost, moved in zip(self._outlook.trials, self._lost, self._moved, strict=True)
        ]
