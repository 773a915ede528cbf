"""What rounding to eight bits does between the two convolutions that take the place of one.

A quantised network rounds every feature map to a step s, the range of them all by 255: noise of variance s^2 / 12 in
each number. What crosses between two new convolutions, z, is rounded though the untouched network has nothing there,
and the second convolution K adds that up: of the energy E that the site's outputs have, in the norm of `outputs`, the
share (s^2 / 12) |K|^2 / E is lost beside what the rank loses. Where three take its place, as in `depthwise`, that
happens twice, and K is all that is behind. The bases are chosen so that it is small (`basis`), and
it changes little over the rank; so ranges are measured with the factors that sensitivities are tried with, and taken
between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import Choice, Replacement, Site, laid_out, node_attributes, pieces
from onnx_pointwise.numerics import (
    Factors,
    Form,
    Norm,
    OutputNorm,
    in_order,
    workers,
)
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study.collect import Seen

Array = NDArray[Any]

_LEVELS = 255
# Examples that ranges are taken from, at most.
_EXAMPLES = 16
_ENDS = ("ReduceMin", "ReduceMax")


@dataclass(frozen=True)
class Rounding:
    """Relative squared error of a site's output that rounding between its pieces adds.

    Attributes:
        points: By form, ranks and what was found there, in the order of the rank; at least one form with one point.
    """

    points: Mapping[Form, tuple[tuple[int, float], ...]]

    def curve(self, form: Form, size: Sequence[int]) -> NDArray[np.float64]:
        """What it adds at each rank of a form, in the shape of the form's error curve."""
        if form != "reduce_expand":
            return self._along(form, size[0])
        return self._along("reduce", size[0])[:, None] + self._along("expand", size[1])[None, :]

    def of(self, choice: Choice) -> float:
        """What it adds in a choice."""
        ranks = choice.rank if isinstance(choice.rank, tuple) else (choice.rank,)
        return float(self.curve(choice.form, [rank + 1 for rank in ranks])[tuple(ranks)])

    def _along(self, form: Form, size: int) -> NDArray[np.float64]:
        known = self.points.get(form) or self.points.get("reduce") or next(iter(self.points.values()))
        ranks, found = np.array(known, np.float64).T
        between: NDArray[np.float64] = np.interp(np.log(np.maximum(np.arange(size), 1)), np.log(ranks), found)
        return between


def roundings(
    model: ir.Model,
    sites: Sequence[Site],
    tried: Mapping[str, Sequence[Replacement]],
    moments: Mapping[str, Seen],
    norms: Mapping[str, OutputNorm],
    inputs: Mapping[str, Array],
    *,
    batch: int,
    threads: int | None = None,
) -> dict[str, Rounding]:
    """Measure the ranges of what crosses, and say what rounding it loses.

    Args:
        model: The untouched model with its types inferred; it is left as it is.
        sites: The sites.
        tried: Weights that were tried at each, by its name.
        moments: What each site sees, by its name.
        norms: Which errors of its outputs count, by its name.
        inputs: Example inputs by name, [N, ...].
        batch: Examples in one run.
        threads: Threads of the runtime; its own choice if None.

    Returns:
        By site name; those that nothing was tried at are left out.

    Raises:
        ModelError: The model does not run on the inputs.
    """
    ranges = _ranges(model, sites, tried, inputs, batch, threads)

    def look(site: Site) -> Rounding:
        found: dict[Form, list[tuple[int, float]]] = {}
        energy = _energy(site, moments[site.name], norms.get(site.name))
        for number, weights in enumerate(tried[site.name]):
            factors = weights.factors
            assert factors.form != "dense", "what is tried is split"
            assert isinstance(factors.rank, int), "forms of one rank are tried"
            steps = [width / _LEVELS for width in ranges[site.name, number]]
            behind = zip(steps, _behind(factors, norms.get(site.name)), strict=True)
            added = sum(step**2 / 12.0 * squares for step, squares in behind)
            found.setdefault(factors.form, []).append((factors.rank, added / energy if energy > 0.0 else 0.0))
        return Rounding({form: tuple(sorted(points)) for form, points in found.items()})

    wanted = [site for site in sites if tried.get(site.name)]
    return dict(zip((site.name for site in wanted), in_order(look, wanted, workers(threads)), strict=True))


def _behind(factors: Factors, outputs: OutputNorm | None) -> list[float]:
    """Sum of the squares of all that is behind each crossing, in the norm of the outputs."""
    last = factors.pieces[-1].astype(np.float64)
    turned = last if outputs is None else outputs.turn(last)
    columns = np.sum(turned * turned, axis=(0, *range(2, turned.ndim)))
    if factors.form != "depthwise":
        return [float(columns.sum())]
    taps = factors.kernel.reshape(len(columns), -1).astype(np.float64)
    return [float(columns @ np.sum(taps * taps, axis=1)), float(columns.sum())]


def _energy(site: Site, seen: Seen, outputs: OutputNorm | None) -> float:
    """Energy of the site's outputs, their mean left out, in the norm that errors are told in."""
    kernel = site.weights()[0].astype(np.float64)
    turned = kernel if outputs is None else outputs.turn(kernel)
    moment = seen.whole.covariance
    norm = Norm.of(moment, site.in_channels, site.taps)
    weights = turned.reshape(len(turned), site.in_channels, -1)
    level = float(np.trace(moment, dtype=np.float64)) / len(moment)
    return level * float(np.sum(norm.apply(weights).astype(np.float64) * weights))


def _ranges(
    model: ir.Model,
    sites: Sequence[Site],
    tried: Mapping[str, Sequence[Replacement]],
    inputs: Mapping[str, Array],
    batch: int,
    threads: int | None,
) -> dict[tuple[str, int], list[float]]:
    """Range of what crosses at each place, zero included, by site and number of what was tried."""
    copy = without_shapes(model.clone())
    values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    ends: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for site in sites:
        for number, weights in enumerate(tried.get(site.name, ())):
            ends[site.name, number] = _watched(
                copy, site, weights, values[site.source], f"{site.name}/crossing{number}"
            )
    if not ends:
        return {}
    names = [name for pairs in ends.values() for pair in pairs for name in pair]
    piece = Piece(copy, list(inputs), names, threads=threads)
    count = min(len(next(iter(inputs.values()))), max(batch, _EXAMPLES // batch * batch))
    found: dict[str, list[float]] = {name: [0.0] for name in names}
    for start in range(0, count, batch):
        feeds = {name: array[start : start + batch] for name, array in inputs.items()}
        for name, value in zip(names, piece.run(feeds), strict=True):
            found[name].append(float(value))
    return {key: [max(found[high]) - min(found[low]) for low, high in pairs] for key, pairs in ends.items()}


def _watched(model: ir.Model, site: Site, weights: Replacement, source: ir.Value, name: str) -> list[tuple[str, str]]:
    """Add all new convolutions but the last beside a site; gives the names of the least and largest each puts out."""
    parts = pieces(site, weights.factors.form, weights.factors.rank)
    ends: list[tuple[str, str]] = []
    for number, (part, kernel) in enumerate(zip(parts[:-1], weights.factors.pieces, strict=False)):
        stored = np.ascontiguousarray(laid_out(site, part, kernel).astype(site.dtype))
        tensor = ir.tensor(stored, name=f"{name}/weight{number}")
        weight = ir.Value(name=tensor.name, shape=ir.Shape(stored.shape), type=ir.TensorType(tensor.dtype))
        weight.const_value = tensor
        model.graph.register_initializer(weight)
        crossing = ir.Value(name=f"{name}/z{number}", type=ir.TensorType(tensor.dtype))
        made = f"{name}/{number}"
        nodes = [ir.Node("", part.op_type, [source, weight], node_attributes(part), outputs=[crossing], name=made)]
        low, high = (ir.Value(name=f"{made}/{kind}", type=crossing.type) for kind in _ENDS)
        for kind, end in zip(_ENDS, (low, high), strict=True):
            keep = ir.AttrInt64("keepdims", 0)
            nodes.append(ir.Node("", kind, [crossing], [keep], outputs=[end], name=str(end.name)))
        model.graph.extend(nodes)
        ends.append((str(low.name), str(high.name)))
        source = crossing
    return ends
