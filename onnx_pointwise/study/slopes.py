"""Sensitivities by gradients: what errors at all sites do to the heads, from a few runs of the network and back.

With J_s the derivative of the heads by the output of site s, an error d there moves the heads by J_s d, as long as it
is small. For a random probe v at the heads, the mean of (v^T J_s d)^2 is the squared length of J_s d (v of independent
normal numbers, each head scaled by its own deviation and weight), and v^T J_s is what one run back gives for every site
at once. So a site costs no runs of its own: its trial errors are computed at the site alone and multiplied with the
gradient there. What is left out, that large errors bend the response and that errors at several sites come together, is
measured on whole plans, see `planning`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import ResolvedShapes, Site
from onnx_pointwise.numerics import OutputNorm, centred, in_order, workers
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.runtime import MEMORY, run_session, without_shapes
from onnx_pointwise.study.collect import named_seed
from onnx_pointwise.study.gradients import Backward, Forward, Unsupported, site_outputs
from onnx_pointwise.study.heads import Heads
from onnx_pointwise.study.outlook import Outlook
from onnx_pointwise.study.points import Point
from onnx_pointwise.study.trials import KernelSessions
from onnx_pointwise.study.whole import answers

Array = NDArray[Any]

# Probes of all examples together that trial errors are multiplied with, enough to tell a length to about a seventh, of
# which a plan hardly takes notice: what it minimises is flat where it is least. And the examples that take part, since
# a probe more of an example costs less than the errors of another one.
_PROBES = 24
_MOST_PROBES = 8
_EXAMPLES = 32
_LARGEST_BATCH = 16
# Bytes of the errors of a site's trials at a time.
_ERROR_BYTES = 2**24


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
        answers: What the network gives at the gauges of the heads on all examples, [N, ...] each.

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
        self._probes = max(1, min(_MOST_PROBES, -(-_PROBES // min(count, _EXAMPLES))))
        size = batch or affordable(shapes, sites, count, self._probes, memory // 4)  # the rest is moments
        self._parts = [{name: array[k : k + size] for name, array in inputs.items()} for k in range(0, count, size)]
        self._starts = range(0, count, size)
        keep = list(dict.fromkeys(name for site in sites for name in (site.source, str(site.output.name))))
        points = site_outputs(sites)
        model = without_shapes(shapes.model)
        self._backward = Backward(model, heads.names, points, self._parts[0], keep=keep, threads=threads)
        self._sites, self._heads, self._seed, self._threads = list(sites), heads, seed, threads
        self.cut: Mapping[str, tuple[Unsupported, ...]] = self._backward.unsupported
        self._count = count
        self.answers = answers(shapes.model, heads, inputs, batch=size, threads=threads)
        self._scales = _deviations(heads, self.answers)

    def norms(self) -> dict[str, OutputNorm]:
        """Which errors of a site's outputs count, by its name; sites that are cut off or reach no head are left out."""
        sums: dict[str, Array] = {}
        forward: Forward | None = None
        count = 0
        for start, part in self._some():
            forward = self._backward.forward(part, after=forward)
            count += len(next(iter(part.values())))
            for name, gradient in forward.gradients(self._drawn(forward, start, 0)).items():
                sums[name] = sums.get(name, 0.0) + _second_moment(gradient)
        units = self._units()
        made = {name: OutputNorm.of(total, count, units.get(name)) for name, total in sums.items()}
        return {name: norm for name, norm in made.items() if norm is not None}

    def _units(self) -> dict[str, Array]:
        """What brings the outputs of sites to one unit, where a site answers in several, by its name."""
        scales = {
            gauge.value: self._scales[gauge.value].ravel()
            for gauge in self._heads.gauges
            if gauge.mixed and gauge.axis == 1 and self._scales.get(gauge.value, np.zeros(())).ndim
        }
        answers = {site.name: scales.get(str(site.output.name)) for site in self._sites}
        return {name: scale / scale.min() for name, scale in answers.items() if scale is not None}

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
        sessions = KernelSessions(threads=1)
        tallies = {site.name: _Tally(site, outlooks[site.name], norms.get(site.name), sessions) for site in known}
        forward: Forward | None = None
        for start, part in self._some():
            progress("example inputs", start, self._count)
            forward = self._backward.forward(part, after=forward)
            gradients = [forward.gradients(self._drawn(forward, start, probe)) for probe in range(self._probes)]

            def add(site: Site, values: Mapping[str, Array], gradients: Sequence[Mapping[str, Array]]) -> None:
                reached = [one[site.name] for one in gradients if site.name in one]
                tallies[site.name].add(values, reached)

            work = functools.partial(add, values=forward.values, gradients=gradients)
            for _ in in_order(work, known, workers(self._threads)):
                pass
        return {name: tally.points(self._probes) for name, tally in tallies.items()}

    def _some(self) -> list[tuple[int, Mapping[str, Array]]]:
        """Parts of about as many examples as take part, spread evenly, and where they start."""
        parts = list(zip(self._starts, self._parts, strict=True))
        wanted = -(-_EXAMPLES * len(parts) // max(self._count, _EXAMPLES))
        return [parts[index] for index in np.linspace(0, len(parts) - 1, wanted).round().astype(int)]

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
            drawn[name] = np.stack(parts) * scale
        return drawn


def _deviations(heads: Heads, answers: Sequence[Array]) -> dict[str, Array]:
    """What to scale the probe at each gauge by: the root of its weight over the energy of its deviation.

    A number, or one for each channel where these are of different units.
    """
    scales: dict[str, Array] = {}
    for gauge, whole in zip(heads.gauges, answers, strict=True):
        factors = gauge.units(whole)
        spread = centred(whole if factors is None else whole * factors, gauge.axis)
        energy = float(np.vdot(spread, spread))
        if energy > 0.0:
            scale = np.sqrt(gauge.weight / energy)
            scales[gauge.value] = np.asarray(scale if factors is None else scale * factors, np.float32)
    return scales


def affordable(shapes: ResolvedShapes, sites: Sequence[Site], count: int, probes: int, memory: int) -> int:
    """Examples in one run: equal parts of all of them, few enough for the memory.

    All values of the network are held, the runtime takes about as much again, and gradients of all probes at the sites.
    """
    base = max((shape[0] for shape in shapes.inputs.values() if shape), default=1)
    sizes = {name: 4 * math.prod(shape) // base for name, shape in shapes.shapes.items()}
    held = sum(sizes.get(str(site.output.name), 0) for site in sites)
    each = 3 * sum(sizes.values()) + probes * held
    most = max(1, min(_LARGEST_BATCH, count, memory // max(1, each)))
    return -(-count // -(-count // most))


def _second_moment(maps: Array) -> Array:
    """Sum over examples and places of the products of channels of maps [N, O, ...], float64 [O, O]."""
    total = np.zeros((maps.shape[1], maps.shape[1]))
    for one in maps.reshape(*maps.shape[:2], -1):
        total += one @ one.T
    return total


class _Tally:
    """Sums over the examples of one site."""

    def __init__(self, site: Site, outlook: Outlook, norm: OutputNorm | None, sessions: KernelSessions) -> None:
        self._site, self._outlook = site, outlook
        self._weight = None if norm is None else norm.root.T @ norm.root
        self._session = sessions.of(site)
        # What all trials change, as one kernel of so many times the outputs: the runtime unfolds what comes in once.
        kernel, bias = site.weights()
        trained = kernel.astype(np.float64), np.zeros(len(kernel)) if bias is None else bias
        given = [trial.weights(site) for trial in outlook.trials]
        change = {
            key: np.concatenate([(one[key] - old).astype(site.dtype) for one in given]) if given else old
            for key, old in zip("wb", trained, strict=True)
        }
        self._change = {"w": site.stored(change["w"]), "b": change["b"]}
        self._lost = np.zeros(len(outlook.trials))
        self._moved = np.zeros(len(outlook.trials))
        self._numbers = 0
        self._sum = np.zeros(site.out_channels)
        self._products = np.zeros((site.out_channels, site.out_channels))

    @np.errstate(over="ignore", invalid="ignore")  # nothing is planned from trials whose errors are not finite
    def add(self, values: Mapping[str, Array], gradients: Sequence[Array]) -> None:
        """Add a batch: what the site reads and puts out, and the gradients of each probe at its output."""
        source, output = values[self._site.source], values[str(self._site.output.name)]
        count, trials = len(output), len(self._outlook.trials)
        maps = output.reshape(count, self._site.out_channels, -1).astype(np.float32, copy=False)
        self._numbers += count * maps.shape[2]
        self._sum += maps.sum(axis=(0, 2), dtype=np.float64)
        self._products += _second_moment(maps)
        if not trials:
            return
        each = max(1, _ERROR_BYTES // (4 * trials * maps[0].size))  # several times what a site puts out
        for start in range(0, count, each):
            part = slice(start, start + each)
            (errors,) = run_session(self._session, ["y"], {"x": source[part], **self._change})
            errors = errors.reshape(len(errors), trials, *maps.shape[1:]).astype(np.float32, copy=False)
            products = np.matmul(errors, errors.swapaxes(2, 3)).sum(axis=0, dtype=np.float64)
            self._lost += [self._energy(one) for one in products]
            flat = errors.reshape(len(errors), trials, -1)
            for gradient in gradients:
                ways = gradient[part].reshape(len(flat), -1, 1).astype(np.float32, copy=False)
                self._moved += (np.matmul(flat, ways)[:, :, 0].astype(np.float64) ** 2).sum(axis=0)

    def _energy(self, products: Array) -> float:
        """What sums of products of the outputs [O, O] amount to in the norm of the outputs."""
        if self._weight is None:
            return float(np.trace(products, dtype=np.float64))
        return float(np.vdot(self._weight, products))

    def points(self, probes: int) -> list[Point]:
        """The measurements."""
        if not self._numbers:
            return []
        whole = self._energy(self._products - np.outer(self._sum, self._sum) / self._numbers)
        if not whole > 0.0:
            return []
        return [
            trial.point(float(lost) / whole, float(moved) / probes)
            for trial, lost, moved in zip(self._outlook.trials, self._lost, self._moved, strict=True)
        ]
