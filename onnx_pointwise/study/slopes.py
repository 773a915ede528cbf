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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import ResolvedShapes, Site
from onnx_pointwise.numerics import OutputNorm, centred
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.runtime import MEMORY, run_session, without_shapes
from onnx_pointwise.study.collect import named_seed
from onnx_pointwise.study.gradients import Backward, Forward, Unsupported, site_outputs
from onnx_pointwise.study.heads import Heads
from onnx_pointwise.study.outlook import Outlook
from onnx_pointwise.study.points import Point
from onnx_pointwise.study.trials import kernel_session

Array = NDArray[Any]

# Probes of each example: enough that all of them together tell a squared length to about a tenth.
_PROBES = 192
_MOST_PROBES = 8
_LARGEST_BATCH = 16


class Slopes:
    """Gradients of a network's answers at its sites, on some examples.

    Args:
        shapes: The untouched model and its shapes; it is left as it is.
        sites: The sites, in graph order.
        inputs: Example inputs by name, [N, ...].
        heads: Where the network answers.
        batch: Examples in one run, where the model fixes that; as many as fit into the memory if None.
        memory: Bytes of activations and gradients to hold in memory, about.
        seed: Seed of the probes.
        threads: Threads of the runtime; its own choice if None.

    Attributes:
        cut: The nodes that cut sites off from a head, by the sites' names.

    Raises:
        ModelError: The model does not run on the inputs.
    """

    def __init__(
        self,
        shapes: ResolvedShapes,
        sites: Sequence[Site],
        inputs: Mapping[str, Array],
        heads: Heads,
        *,
        batch: int | None = None,
        memory: int = MEMORY,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        count = len(next(iter(inputs.values())))
        # Whatever sites are asked for: what comes out must not depend on how the examples are cut.
        size = batch or _affordable(shapes, count, memory)
        self._parts = [{name: array[k : k + size] for name, array in inputs.items()} for k in range(0, count, size)]
        self._starts = range(0, count, size)
        keep = list(dict.fromkeys(name for site in sites for name in (site.source, str(site.output.name))))
        points = site_outputs(sites)
        model = without_shapes(shapes.model)
        self._backward = Backward(model, heads.names, points, self._parts[0], keep=keep, threads=threads)
        self._sites, self._heads, self._seed, self._threads = list(sites), heads, seed, threads
        self.cut: Mapping[str, tuple[Unsupported, ...]] = self._backward.unsupported
        self._count = count
        self._probes = max(1, min(_MOST_PROBES, -(-_PROBES // count)))
        self._scales = self._deviations()

    def norms(self) -> dict[str, OutputNorm]:
        """Which errors of a site's outputs count, by its name; sites that are cut off or reach no head are left out."""
        sums: dict[str, Array] = {}
        for start, part in zip(self._starts, self._parts, strict=True):
            forward = self._backward.forward(part)
            for name, gradient in forward.gradients(self._drawn(forward, start, 0)).items():
                flat = np.swapaxes(gradient, 0, 1).reshape(gradient.shape[1], -1)
                sums[name] = sums.get(name, 0.0) + (flat @ flat.T).astype(np.float64)
        made = {name: OutputNorm.of(gradients, self._count) for name, gradients in sums.items()}
        return {name: norm for name, norm in made.items() if norm is not None}

    def points(
        self,
        outlooks: Mapping[str, Outlook],
        norms: Mapping[str, OutputNorm],
        progress: Within = unheard,
    ) -> dict[str, list[Point]]:
        """Predict what errors at each site do to the heads.

        Args:
            outlooks: What to try, by the name of a site; the others are left out.
            norms: In which norm the error of its outputs is told, by its name; the plain one if it has none.
            progress: Called with how far it is.

        Returns:
            The measurements by site name, without the sites that are cut off.
        """
        known = [site for site in self._sites if site.name in outlooks and site.name not in self.cut]
        tallies = {site.name: _Tally(site, outlooks[site.name], norms.get(site.name), self._threads) for site in known}
        for start, part in zip(self._starts, self._parts, strict=True):
            progress("example inputs", start, self._count)
            forward = self._backward.forward(part)
            gradients = [forward.gradients(self._drawn(forward, start, probe)) for probe in range(self._probes)]
            for site in known:
                reached = [one[site.name] for one in gradients if site.name in one]
                tallies[site.name].add(forward.values, reached)
        return {name: tally.points(self._probes) for name, tally in tallies.items()}

    def _deviations(self) -> dict[str, float]:
        """What to scale the probe at each gauge by: the root of its weight over the energy of its deviation."""
        values: dict[str, list[Array]] = {name: [] for name in self._heads.names}
        for part in self._parts:
            forward = self._backward.forward(part)
            for name in values:
                values[name].append(np.array(forward.values[name]))
        scales = {}
        for gauge in self._heads.gauges:
            spread = centred(np.concatenate(values[gauge.value]), gauge.axis)
            energy = float(np.vdot(spread, spread))
            if energy > 0.0:
                scales[gauge.value] = float(np.sqrt(gauge.weight / energy))
        return scales

    def _drawn(self, forward: Forward, start: int, probe: int) -> dict[str, Array]:
        """Probes at the gauges for a batch, the same for an example in whatever batch it is."""
        drawn = {}
        for name, scale in self._scales.items():
            shape = forward.values[name].shape
            parts = [
                np.random.default_rng(named_seed(self._seed, name, start + index, probe)).standard_normal(
                    shape[1:], dtype=np.float32
                )
                for index in range(shape[0])
            ]
            drawn[name] = np.stack(parts) * np.float32(scale)
        return drawn


def _affordable(shapes: ResolvedShapes, count: int, memory: int) -> int:
    """Examples in one run: equal parts of all of them, few enough that all values of the network stay in memory."""
    base = max((shape[0] for shape in shapes.inputs.values() if shape), default=1)
    each = sum(4 * math.prod(shape) // base for shape in shapes.shapes.values())
    most = max(1, min(_LARGEST_BATCH, count, memory // max(1, 4 * each)))
    return -(-count // -(-count // most))


class _Tally:
    """Sums over the examples of one site."""

    def __init__(self, site: Site, outlook: Outlook, norm: OutputNorm | None, threads: int | None) -> None:
        self._site, self._outlook = site, outlook
        self._root = None if norm is None else norm.root.astype(np.float32)
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
        flat = self._turned(output)
        self._numbers += flat.shape[1]
        self._sum += flat.sum(axis=1, dtype=np.float64)
        self._squares += np.einsum("cn,cn->c", flat, flat, dtype=np.float64)
        for index, trial in enumerate(self._outlook.trials):
            weights = trial.weights(self._site)
            change = {
                "w": self._site.stored((weights["w"].astype(np.float64) - self._kernel).astype(source.dtype)),
                "b": (weights["b"].astype(np.float64) - self._bias).astype(source.dtype),
            }
            (error,) = run_session(self._session, ["y"], {"x": source, **change})
            errors = error.reshape(len(error), -1)
            lost = self._turned(error)
            self._lost[index] += float(np.einsum("cn,cn->", lost, lost, dtype=np.float64))
            for gradient in gradients:
                along = np.einsum("ni,ni->n", gradient.reshape(errors.shape), errors, dtype=np.float64)
                self._moved[index] += float(along @ along)

    def _turned(self, output: Array) -> Array:
        """Outputs as [O, n] in the norm of the outputs."""
        flat = np.swapaxes(output, 0, 1).reshape(output.shape[1], -1)
        return flat if self._root is None else self._root.astype(flat.dtype) @ flat

    def points(self, probes: int) -> list[Point]:
        """The measurements."""
        whole = float((self._squares - self._sum**2 / self._numbers).sum())
        if not whole > 0.0:
            return []
        return [
            trial.point(lost / whole, moved / probes)
            for trial, lost, moved in zip(self._outlook.trials, self._lost, self._moved, strict=True)
        ]
