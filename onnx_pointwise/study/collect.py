"""Second moments of the inputs of many sites of an untouched network, in few passes and bounded memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import ResolvedShapes, Site, runtime_inputs
from onnx_pointwise.numerics import (
    Moments,
    Packed,
    Stationary,
    Window,
    blended,
    channel_means,
    in_order,
    lattices,
    patches,
    shrunk,
    tap_blend,
    workers,
)
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.runtime import MEMORY, Piece, without_shapes

Array = NDArray[Any]
MomentKind = Literal["exact", "stationary", "channels"]

#: Patches of each site that are looked at, unless told otherwise.
PATCHES = 60_000
# Of wide patches fewer are looked at, about as many as take this many multiplications, but no fewer than this many and
# so many for each number in a patch; of narrow ones so many for each number do.
_PRODUCTS = 2e9
_FEWEST_PATCHES = 12_000
_PATCHES_PER_NUMBER, _MOST_PER_NUMBER = 8, 60
#: Widest patch, I * K, whose second moment is summed exactly; wider ones are taken to be stationary.
EXACT = 2304
#: Widest patch whose taps are told apart at all; of wider ones only the channels are looked at.
STATIONARY = 4608
# Bytes for each number in the moments of a site: float64 sums of examples that are tried on and of the others, and a
# copy when they are ended.
_NUMBER_BYTES = 24
# Activations of one batch take this share of the memory, and about as much again in the runtime.
_BATCH_SHARE = 0.125
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class SiteMoments:
    """What a site sees.

    Attributes:
        packed: Its covariance, see there.
        mean: Mean patch, [I*K].
        kind: `exact`; `stationary`, the same for taps at the same distance; or `channels`.
        count: Patches behind it.
        blend: Share of it in which taps are taken to tell nothing of one another, see `blended`.
    """

    packed: Packed
    mean: NDArray[np.float64]
    kind: MomentKind
    count: int = 0
    blend: float = 0.0

    @property
    def covariance(self) -> NDArray[np.float32]:
        """Covariance of the input patches, [I*K, I*K], or of the channels, [I, I], as `factorize` takes it, made anew.

        It is blended and shrunk as few samples ask for, and in float32, as exact as the sums behind it.
        """
        return self.packed.full()


@dataclass(frozen=True)
class Seen:
    """What a site sees in all examples, and in those that trials leave to it.

    Attributes:
        whole: Of all examples: what the weights are made from.
        part: Of those that are not tried on: what trial factors are made from; the same where none is tried on.
        rest: Covariance in those that are tried on, as it is: what trial factors are judged by; None without any, and
            once nobody wants it any more.
    """

    whole: SiteMoments
    part: SiteMoments
    rest: Packed | None


def moment_kind(site: Site, memory: int = MEMORY) -> MomentKind:
    """How closely the inputs of a site are looked at, where moments may take so many bytes."""
    width = site.width
    if width > STATIONARY or _NUMBER_BYTES * width**2 > memory:
        return "channels"
    return "exact" if width <= EXACT else "stationary"


def moment_bytes(site: Site, memory: int = MEMORY) -> int:
    """Bytes that the moments of a site take while they are summed."""
    taps = 1 if moment_kind(site, memory) == "channels" else site.taps
    return _NUMBER_BYTES * (site.in_channels * taps) ** 2


def patch_count(limit: int, width: int, products: float = _PRODUCTS) -> int:
    """How many patches of a width, I * K, to look at: at most the limit, and fewer of wide ones.

    Args:
        limit: The most patches.
        width: Numbers in a patch.
        products: Multiplications that may be spent on them, about; there is a least number of patches all the same.
    """
    affordable = min(int(products / width**2), _MOST_PER_NUMBER * width)
    return min(limit, max(_FEWEST_PATCHES, _PATCHES_PER_NUMBER * width, affordable))


def named_seed(seed: int, name: str, *parts: int) -> int:
    """A seed for what is drawn from a value of the network, whatever else is drawn."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), *parts]).generate_state(1)[0])


def declared_batch(model: ir.Model) -> int | None:
    """The batch size that a model's inputs declare; None where they leave it open."""
    for value in runtime_inputs(model):
        if value.shape is not None and len(value.shape) and isinstance(size := value.shape[0], int) and size > 0:
            return size
    return None


def fitting_batch(model: ir.Model, shapes: ResolvedShapes, memory: int = MEMORY) -> int:
    """Choose how many examples to run at once.

    Args:
        model: The model as it declares its inputs.
        shapes: Its shapes.
        memory: Bytes of activations or moments to hold in memory.

    Returns:
        The batch size that the inputs declare, if they do; else one of which all activations fit well.
    """
    declared = declared_batch(model)
    if declared is not None:
        return declared
    base = max((shape[0] for shape in shapes.inputs.values() if shape), default=1)
    each = sum(4 * math.prod(shape) / base for shape in shapes.shapes.values())
    return int(max(1, min(_LARGEST_BATCH, _BATCH_SHARE * memory // max(1.0, each))))


def reachable(model: ir.Model, sites: Sequence[Site]) -> list[Site]:
    """Those of the sites whose inputs a run shows: what lies in a subgraph runs when the subgraph does."""
    inside = {str(value.name) for node in model.graph for value in node.outputs}
    known = inside | {str(value.name) for value in model.graph.inputs}
    return [site for site in sites if site.source in known and str(site.output.name) in inside]


def site_moments(
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    inputs: Mapping[str, Array],
    *,
    batch: int,
    tried: NDArray[np.bool_] | None = None,
    copies: Mapping[str, Array] | None = None,
    longer: Mapping[object, Site] | None = None,
    patch_limit: int = PATCHES,
    memory: int = 2**30,
    seed: int = 0,
    threads: int | None = None,
    progress: Within = unheard,
) -> dict[str, Seen]:
    """Run the untouched network on example inputs and collect what each site sees.

    Args:
        shapes: The model's shapes.
        sites: The sites to look at; those that lie in subgraphs are left out.
        inputs: Example inputs by name, [N, ...].
        batch: Examples in one run.
        tried: Whether trials are run on each example, [N]; on none if None.
        copies: Copies of the examples by name, [n * N, ...], for what weights are made from, trial factors too; nothing
            is judged by them.
        longer: By view, sites whose patches begin with those of this view, see `prefixes`: one sum does for both.
        patch_limit: Patches of a site to look at, about.
        memory: Bytes of moments to hold at once; more sites than fit take further passes, and of a site whose own do
            not fit only the channels are looked at.
        seed: Seed of the positions that are left out.
        threads: Threads of the runtime; its own choice if None.
        progress: Called before each batch with how many examples have run.

    Returns:
        The moments by site name.

    Raises:
        ModelError: The model does not run on the inputs.
        InputError: An activation is not finite.
    """
    model = without_shapes(shapes.model)
    seen_by_a_run = reachable(model, sites)
    inputs, folds = _with_copies(inputs, tried, copies)
    count = len(folds)
    found: dict[str, Seen] = {}
    summed = {site.name: _summed(site, longer or {}, memory) for site in seen_by_a_run}
    for number, group in enumerate(groups := list(_groups(seen_by_a_run, summed, memory))):
        # Sites that read one value in the same way see the same.
        shared: dict[object, _Collector] = {}
        for site in group:
            one = summed[site.name]
            shared.setdefault(one.view, _Collector(one, seed, patch_limit, memory)).sites.append(site)
        names = list(dict.fromkeys(summed[site.name].source for site in group))
        made = [name for name in names if name not in inputs]
        piece = Piece(model, list(inputs), made, threads=threads) if made else None
        for start in range(0, count, batch):
            progress("example inputs", number * count + start, len(groups) * count)
            feeds = {name: array[start : start + batch] for name, array in inputs.items()}
            values = dict(feeds)
            if piece is not None:
                values.update(zip(made, piece.run(feeds), strict=True))
            work = [(one, values[one.source], folds, start) for one in shared.values()]
            for _ in in_order(_add, work, workers(threads)):
                pass
        for seen in in_order(lambda one: one.moments(), list(shared.values()), workers(threads)):
            found.update(seen)
    return {site.name: found[site.name] for site in seen_by_a_run}


# What becomes of an example: trial factors are made from it, or judged by it; or it is a copy of one of the latter,
# which only the weights may know.
_PART, _REST, _COPIED = range(3)


def _with_copies(
    inputs: Mapping[str, Array], tried: NDArray[np.bool_] | None, copies: Mapping[str, Array] | None
) -> tuple[Mapping[str, Array], NDArray[np.intp]]:
    """All examples, copies behind, and what becomes of each."""
    count = len(next(iter(inputs.values())))
    folds = np.full(count, _PART) if tried is None else np.where(tried, _REST, _PART)
    more = 0 if copies is None else len(next(iter(copies.values())))
    if copies is None or not more:
        return inputs, folds
    known = np.where(folds == _REST, _COPIED, _PART)
    both = {name: np.concatenate([array, copies[name]]) for name, array in inputs.items()}
    return both, np.concatenate([folds, *[known] * (more // count)])


def _summed(site: Site, longer: Mapping[object, Site], memory: int) -> Site:
    """The site whose patches are summed for another one: itself, or one whose patches begin with its own."""
    other = longer.get(site.view, site)
    kind = moment_kind(other, memory)
    return other if kind != "channels" and kind == moment_kind(site, memory) else site


def _groups(sites: Sequence[Site], summed: Mapping[str, Site], memory: int) -> Iterator[list[Site]]:
    """Cut the sites into groups whose moments, those of the sites summed for them, fit into memory together."""
    group: list[Site] = []
    views: set[object] = set()
    held = 0
    for site in sites:
        one = summed[site.name]
        if one.view in views:
            group.append(site)
            continue
        size = moment_bytes(one, memory)
        if group and held + size > memory:
            yield group
            group, views, held = [], set(), 0
        group.append(site)
        views.add(one.view)
        held += size
    if group:
        yield group


class _Collector:
    """Running sums of what a site sees, for every one of the same view, or whose patches are the beginning of these.

    Attributes:
        sites: All these sites.
        source: The value that they read.
    """

    def __init__(self, site: Site, seed: int, limit: int, memory: int) -> None:
        self._site, self._seed, self._limit = site, seed, limit
        self.sites: list[Site] = []
        self.source = site.source
        self._kind = moment_kind(site, memory)
        self._shift: NDArray[np.float32] | None = None
        self._sums: list[Moments] | list[Stationary] = []

    def _window(self, size: Sequence[int]) -> Window:
        site = self._site
        if self._kind == "channels":
            once = (1,) * len(site.kernel_shape)
            spacing = site.strides if site.transposed else ()
            return Window(once, once, once, (0,) * (2 * len(once)), spacing)
        return site.window(size)

    def add(self, inputs: Array, folds: NDArray[np.intp], start: int) -> None:
        """Add a batch, the examples from `start` on."""
        here = folds[start : start + len(inputs)]
        if len(here) != len(inputs):  # what does not depend on the examples
            here = np.full(len(inputs), _PART)
        window = self._window(inputs.shape[2:])
        if self._kind == "stationary":
            self._add_maps(inputs, window, here)
            return
        width = inputs.shape[1] * window.taps
        share = len(inputs) / len(folds)
        limit = max(1, round(patch_count(self._limit, width) * share))
        for fold in (_PART, _REST, _COPIED):
            examples = np.flatnonzero(here == fold)
            if not len(examples):
                continue
            most = max(1, limit * len(examples) // len(inputs))
            seed = named_seed(self._seed, self._site.source, start, fold)
            for lattice in lattices(
                examples, window.out_size(inputs.shape[2:]), width, limit=most, seed=seed, spacing=window.spacing
            ):
                if self._shift is None:
                    self._shift = channel_means(inputs, window)
                    self._sums = [Moments(width, shift=np.repeat(self._shift, window.taps))]
                    self._sums += [self._sums[0].sibling(), self._sums[0].sibling()]
                sums = self._sums[fold]
                assert isinstance(sums, Moments)
                sums.add(patches(inputs, window, lattice, self._shift), shifted=True)

    def _add_maps(self, inputs: Array, window: Window, here: NDArray[np.intp]) -> None:
        if not self._sums:
            self._sums = [Stationary(inputs.shape[1], window, shift=inputs) for _ in range(3)]
        for fold in (_PART, _REST, _COPIED):
            if (here == fold).any():
                sums = self._sums[fold]
                assert isinstance(sums, Stationary)
                sums.add(inputs[here == fold])

    def moments(self) -> dict[str, Seen]:
        """What was collected, by site name; of the tried examples nothing may be known."""
        assert self._sums, "there are no examples"
        alike: dict[int, list[str]] = {}
        for site in self.sites:
            alike.setdefault(site.in_channels, []).append(site.name)
        found: dict[str, Seen] = {}
        for channels, names in alike.items():
            found |= dict.fromkeys(names, self._seen([self._leading(sums, channels) for sums in self._sums]))
        self._sums = []
        return found

    def _leading(self, sums: Moments | Stationary, channels: int) -> Moments | Stationary:
        if channels == self._site.in_channels:
            return sums
        return sums.leading(channels if isinstance(sums, Stationary) else channels * self._site.taps)

    def _seen(self, sums: Sequence[Moments | Stationary]) -> Seen:
        part, rest, copied = sums
        if not rest.count or not part.count:
            whole = self._finished(part if part.count else rest)
            return Seen(whole, whole, None)
        told = Packed.of(rest.covariance())
        both = _merged(part, rest)
        whole = self._finished(_merged(both, copied) if copied.count else both)
        return Seen(whole, self._finished(part), told)

    def _finished(self, sums: Moments | Stationary) -> SiteMoments:
        mean = sums.mean()
        taps = self._site.taps
        blend = 0.0 if self._kind == "channels" else tap_blend(sums.count, len(mean), taps)
        if self._kind == "channels":
            mean = np.repeat(mean, taps)
        covariance = sums.covariance()
        if self._kind != "channels":
            covariance = blended(covariance, taps, blend)
        kept = Packed.of(shrunk(covariance, sums.count))
        return SiteMoments(kept, mean, self._kind, sums.count, blend)


def _merged(one: Moments | Stationary, other: Moments | Stationary) -> Moments | Stationary:
    if isinstance(one, Moments) and isinstance(other, Moments):
        return one.merged(other)
    assert isinstance(one, Stationary) and isinstance(other, Stationary)
    return one.merged(other)


def _add(work: tuple[_Collector, Array, NDArray[np.intp], int]) -> None:
    collector, values, folds, start = work
    collector.add(values, folds, start)
