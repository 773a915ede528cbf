"""Shifted and mirrored copies of a few examples, for what a site sees.

From fewer patches than there are numbers in one, second moments are singular: most of what other examples will show is
in none of them. A picture moved by some pixels shows the same things at other places of the lattice, and a mirrored one
often what another picture would. Whether it does is asked of the examples: factors made with the copies of some of them
have to lose less on the others, along every axis by itself. So faces are mirrored from left to right and not upside
down, and a spectrogram is moved in time if that helps.

Where moments are not singular, few examples still tell less than more would of what a refit has to make up for (a
denoiser of twenty layers loses 0.051 dB instead of 0.057 with every one of its 64 crops mirrored, too); then each is
mirrored once, along one or another of the axes along which that helps.

Copies go where their original goes, and are never among those that anything is judged by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import ResolvedShapes, Site, dense_cost
from onnx_pointwise.numerics import Norm, blended, expand_curve, lattices, patches, require_finite, shrunk, tap_blend
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study.collect import EXACT

Array = NDArray[Any]

#: How a copy is made: the axes along which it is mirrored, and those along which it is shifted.
Move = tuple[tuple[int, ...], tuple[int, ...]]
#: What one copy of every example is: moves that they take in turns.
Turns = tuple[Move, ...]

# Copies of each example where they may be shifted and not mirrored, each by distances of its own.
_TWICE = 2
# Sites of fewer patches than numbers in one have to make up this share of the arithmetic for copies to be worth a run.
_SHARE = 0.05
# Sites that are asked, those of the most arithmetic.
_ASKED = 3
# An axis shorter than this is not one of places.
_SHORTEST = 16
# Shifts reach this share of an axis.
_REACH = 1 / 16
# A kind of copies has to lower the error on other examples by this share: it takes the place of patches that are no
# copies (a U-Net whose errors fell by 0.1 % came out 0.2 dB worse).
_GAIN = 0.01
# Fewer examples than this are mirrored where that suits other examples.
_FEW = 100
# Patches that are looked at for that.
_PATCHES = 24_000
# Errors of ranks that plans may ask for.
_LEVELS = (0.01, 0.4)


def copies(
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    inputs: Mapping[str, Array],
    tried: NDArray[np.bool_],
    *,
    batch: int,
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, Array]:
    """Copy examples where there are few and where that helps.

    Args:
        shapes: The model's shapes.
        sites: The sites to be looked at.
        inputs: Example inputs by name, [N, ...].
        tried: Which of them trials are run on, [N]: copies of the others are judged by them.
        batch: Examples in one run.
        seed: Seed of the shifts.
        threads: Threads of the runtime; its own choice if None.

    Returns:
        As many copies of each example as there are kinds, by name, [kinds * N, ...], all of the first kind first; with
        no kind, of no examples.

    Raises:
        ModelError: The model does not run on the inputs.
        InputError: A patch is not finite.
    """
    kinds = _moves(shapes, sites, inputs, tried, batch, seed, threads)
    return {
        name: np.concatenate([array[:0], *(in_turns(array, kind, seed + number) for number, kind in enumerate(kinds))])
        for name, array in inputs.items()
    }


def in_turns(inputs: Array, turns: Turns, seed: int) -> Array:
    """Copy every example by one of several moves: the first by the first, and so on in turns.

    Args:
        inputs: [N, ...].
        turns: The moves.
        seed: As for `moved`.
    """
    found = np.empty_like(inputs)
    for number, move in enumerate(turns):
        found[number :: len(turns)] = moved(inputs[number :: len(turns)], move, seed)
    return found


def moved(inputs: Array, move: Move, seed: int) -> Array:
    """Mirror and shift examples, each by its own distance; what comes in at the border continues the border.

    Args:
        inputs: [N, ...].
        move: How.
        seed: Seed of the distances.
    """
    mirrored, shifted = move
    found = np.flip(inputs, mirrored) if mirrored else inputs
    for axis in shifted:
        length = inputs.shape[axis]
        reach = max(1, int(length * _REACH))
        steps = np.random.default_rng([seed, axis]).integers(1, reach + 1, len(inputs))
        steps *= np.where(np.arange(len(inputs)) % 2, -1, 1)
        places = np.clip(np.arange(length) + steps[:, None], 0, length - 1)
        shape = [len(inputs), *(length if other == axis else 1 for other in range(1, inputs.ndim))]
        found = np.take_along_axis(found, places.reshape(shape), axis)
    return np.ascontiguousarray(found)


def _moves(
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    inputs: Mapping[str, Array],
    tried: NDArray[np.bool_],
    batch: int,
    seed: int,
    threads: int | None,
) -> list[Turns]:
    """The kinds of copies that help."""
    if len(inputs) != 1 or not tried.any() or tried.all():
        return []
    ((name, array),) = inputs.items()
    short = _short(shapes, sites, len(array))
    asked = short or (_largest(shapes, sites) if len(array) < _FEW else [])
    axes = [axis for axis in range(1, array.ndim) if array.shape[axis] >= _SHORTEST]
    if not asked or not axes:
        return []
    sources = list(dict.fromkeys(site.source for site in asked))
    made = [source for source in sources if source != name]
    piece = Piece(without_shapes(shapes.model), [name], made, threads=threads) if made else None

    def seen(examples: Array, *most: int) -> list[list[_Sample]]:
        """What the sites see, in so many patches at most, for each of several numbers from one run."""
        found: list[list[list[Array]]] = [[[] for _ in asked] for _ in most]
        for start in range(0, len(examples), batch):
            part = examples[start : start + batch]
            values = dict(zip(made, [] if piece is None else piece.run({name: part}), strict=True)) | {name: part}
            for limit, collected in zip(most, found, strict=True):
                for site, parts in zip(asked, collected, strict=True):
                    parts.extend(_patches(site, values[site.source], start, len(examples), limit, seed))
        return [[_Sample.of(parts) for parts in collected] for collected in found]

    fit = array[~tried]
    # Of many patches copies take the place of some: more of them would always be better.
    each = _PATCHES if short else _PATCHES // 2
    alone, *others = seen(fit, *dict.fromkeys([_PATCHES, each]))
    beside = others[0] if others else alone
    (held,) = seen(array[tried], _PATCHES)
    before = [_lost(site, one, other) for site, one, other in zip(asked, alone, held, strict=True)]

    def change(move: Move) -> float:
        """Mean logarithm of what the error on other examples is multiplied with."""
        changes = []
        (copied,) = seen(moved(fit, move, seed), each)
        for site, one, more, other, lost in zip(asked, beside, copied, held, before, strict=True):
            after = _lost(site, one.with_copies(more), other)
            told = (lost > _LEVELS[0]) & (lost < _LEVELS[1]) & (after > 0.0)
            if told.any():
                changes.append(float(np.log(after[told] / lost[told]).mean()))
        return sum(changes) / len(changes) if changes else 0.0

    good = math.log(1.0 - _GAIN)
    mirrors = sorted((change(((axis,), ())), axis) for axis in axes)
    if not short:
        turns = tuple(((axis,), ()) for gain, axis in mirrors if gain < good)
        return [turns] if turns else []
    shifts = tuple(axis for axis in axes if change(((), (axis,))) < good)
    return [(move,) for move in _kinds(tuple(axis for found, axis in mirrors if found < good), shifts)]


def _kinds(mirrors: tuple[int, ...], shifts: tuple[int, ...]) -> list[Move]:
    """Kinds of copies along axes that help, of the axes to mirror the most helpful first."""
    if not mirrors:
        return [((), shifts)] * _TWICE if shifts else []
    best = mirrors[:1]
    if shifts:
        return [(best, ()), ((), shifts), (best, shifts)]
    return [(best, ()), *([(mirrors[1:2], ()), (mirrors[:2], ())] if len(mirrors) > 1 else [])]


def _short(shapes: ResolvedShapes, sites: Sequence[Site], count: int) -> list[Site]:
    """The largest of the sites whose moments so many examples leave singular, where these matter; else none."""
    reachable = _reachable(shapes, sites)
    short = [site for site in reachable if _exact(site) and count * math.prod(site.out_size or ()) < site.width]
    if sum(map(_macs, short)) < _SHARE * sum(map(_macs, reachable)):
        return []
    return _largest(shapes, short)


def _largest(shapes: ResolvedShapes, sites: Sequence[Site]) -> list[Site]:
    """Those to be asked of the sites whose moments can be looked at as they are."""
    exact = [site for site in _reachable(shapes, sites) if _exact(site)]
    return sorted(exact, key=lambda site: -_macs(site))[:_ASKED]


def _reachable(shapes: ResolvedShapes, sites: Sequence[Site]) -> list[Site]:
    known = {str(value.name) for value in shapes.model.graph.inputs}
    known |= {str(value.name) for node in shapes.model.graph for value in node.outputs}
    return [site for site in sites if site.source in known and site.out_size]


def _macs(site: Site) -> int:
    return dense_cost(site).macs


def _exact(site: Site) -> bool:
    return site.width <= EXACT


class _Sample:
    """Mean, covariance and number of patches."""

    def __init__(self, mean: Array, covariance: Array, count: int) -> None:
        self.mean, self.covariance, self.count = mean, covariance, count

    @staticmethod
    def of(parts: Sequence[Array]) -> _Sample:
        """Of patches [I*K, n] each."""
        seen = np.concatenate(parts, axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = seen.mean(axis=1, dtype=np.float64)
            centred = seen - mean.astype(np.float32)[:, None]
            products = centred @ centred.T
        require_finite(np.diagonal(products))
        return _Sample(mean, products.astype(np.float64) / seen.shape[1], seen.shape[1])

    def with_copies(self, more: _Sample) -> _Sample:
        """The two together."""
        count = self.count + more.count
        share = more.count / count
        gap = more.mean - self.mean
        covariance = (1.0 - share) * self.covariance + share * more.covariance
        return _Sample(self.mean + share * gap, covariance + share * (1.0 - share) * np.outer(gap, gap), count)


def _patches(site: Site, values: Array, start: int, count: int, most: int, seed: int) -> Iterator[Array]:
    """What a site sees of a batch of its inputs, of so many patches that are taken of all examples, about.

    Args:
        site: The site.
        values: Its inputs, those of the batch.
        start: Number of the first example in the batch.
        count: Examples in all.
        most: Patches of all of them.
        seed: Seed of the positions that are left out.
    """
    window = site.window(values.shape[2:])
    size = window.out_size(values.shape[2:])
    for lattice in lattices(np.arange(count), size, site.width, limit=most, seed=seed, spacing=window.spacing):
        assert lattice.examples is not None, "they were named"
        here = lattice.examples - start
        here = here[(here >= 0) & (here < len(values))]
        if len(here):
            yield patches(values, window, replace(lattice, examples=here))


def _lost(site: Site, fit: _Sample, held: _Sample) -> Array:
    """Relative squared error that each rank of `expand` leaves in other examples."""
    inputs, taps = site.in_channels, site.taps
    moment = shrunk(blended(fit.covariance, taps, tap_blend(fit.count, len(fit.covariance), taps)), fit.count)
    kernel, _ = site.weights()
    return expand_curve(kernel, Norm.of(moment, inputs, taps), Norm.of(held.covariance, inputs, taps))
