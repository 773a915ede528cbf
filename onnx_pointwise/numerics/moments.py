"""Second moments of the patches that a convolution sees, accumulated from its inputs in bounded memory.

A patch p[I*K] holds the I * K inputs of one output position, zeros of the padding included, in the index order
`i * K + tap` of `kernel.reshape(O, I * K)`. Products are made in float32, which is what the runtime computes in and
twice as fast, over blocks of patches; blocks are summed in float64. Patches are shifted by a constant before they are
multiplied, so that the mean of rectified maps does not eat the digits of their covariance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.errors import InputError

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]

#: Bytes of one block of patches, at most and at least.
BLOCK_BYTES = 16 * 2**20
_LEAST_BLOCK = 2**20
# Examples whose means are taken off all of them.
_FEW = 16

# Numbers that tie one tap to another and that a patch tells, and the patches for each number that tell all of them.
_KNOWN = 2.5
_PLENTY = 12


@dataclass(frozen=True)
class Window:
    """How a convolution slides over its input.

    Attributes:
        kernel: Size of the kernel along each spatial axis.
        strides: Strides.
        dilations: Dilations.
        pads: Zeros around the input: begins, then ends; where negative, so much of it is cut off.
        spacing: From one input to the next along each spatial axis, with zeros in between; 1 everywhere if empty.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    spacing: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Positions of the kernel, K."""
        return math.prod(self.kernel)

    @property
    def steps(self) -> tuple[int, ...]:
        """From one input to the next along each axis."""
        return self.spacing or (1,) * len(self.kernel)

    @property
    def phases(self) -> int:
        """Places of the grid that the inputs lie on, for each input."""
        return math.prod(self.spacing)

    def laid_out(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of an input with the zeros in it and around it."""
        axes = range(len(self.kernel))
        return tuple(
            (size[a] - 1) * self.steps[a] + 1 + self.pads[a] + self.pads[a + len(axes)] if size[a] else 0 for a in axes
        )

    def out_size(self, in_size: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output for a spatial size of the input."""
        return tuple(
            (size - dilation * (k - 1) - 1) // stride + 1
            for size, k, stride, dilation in zip(
                self.laid_out(in_size), self.kernel, self.strides, self.dilations, strict=True
            )
        )


def make_window(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | str,
    in_size: Sequence[int],
) -> Window:
    """Describe a convolution, with `auto_pad` turned into numbers by the rules of the ONNX Conv operator.

    Args:
        kernel: Size of the kernel along each spatial axis.
        strides: Strides.
        dilations: Dilations.
        pads: Begins, then ends; or `VALID`, `SAME_UPPER`, `SAME_LOWER`.
        in_size: Spatial size of the input; matters for the two `SAME` modes only.

    Returns:
        The window.
    """
    if not isinstance(pads, str):
        numbers = tuple(pads)
    elif pads in ("VALID", "NOTSET"):
        numbers = (0,) * (2 * len(kernel))
    else:
        begins, ends = [], []
        for size, k, stride, dilation in zip(in_size, kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
            less, more = total // 2, total - total // 2
            begins.append(less if pads == "SAME_UPPER" else more)
            ends.append(more if pads == "SAME_UPPER" else less)
        numbers = (*begins, *ends)
    return Window(tuple(kernel), tuple(strides), tuple(dilations), numbers)


def make_transposed_window(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | str,
    in_size: Sequence[int],
    *,
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
) -> Window:
    """Describe a transposed convolution as the convolution that it is: over inputs with zeros in between.

    Its kernel is that of the transposed one with inputs and outputs exchanged and mirrored along each spatial axis.
    (Dumoulin and Visin 2016, chapter 4.) A patch at an output then holds what the output depends on, its phase, and
    zeros elsewhere, so that the second moment of all patches is that of every phase beside one another.

    Args:
        kernel: Size of the kernel along each spatial axis.
        strides: From what one input gives to what the next one does.
        dilations: Dilations.
        pads: What is cut off the output, begins, then ends; or `VALID`, `SAME_UPPER`, `SAME_LOWER`.
        in_size: Spatial size of the input.
        output_padding: What is added to the end of the output along each axis; nothing if empty.
        output_shape: Spatial size of the output, which then says what is cut off; `pads` does if empty.

    Returns:
        The window.
    """
    rank, named = len(kernel), pads if isinstance(pads, str) else "NOTSET"
    given = (0,) * (2 * rank) if isinstance(pads, str) else tuple(pads)
    begins, ends = [], []
    for axis in range(rank):
        span = dilations[axis] * (kernel[axis] - 1)
        grid = (in_size[axis] - 1) * strides[axis] + 1
        whole = grid + span + (output_padding[axis] if output_padding else 0)
        front, out = given[axis], whole - given[axis] - given[axis + rank]
        if output_shape or named.startswith("SAME"):
            out = output_shape[axis] if output_shape else in_size[axis] * strides[axis]
            total = max(0, whole - out)
            front = total // 2 if named == "SAME_UPPER" else total - total // 2
            out = out if output_shape else whole - total
        begins.append(span - front)
        ends.append(out + front - grid)
    return Window(tuple(kernel), (1,) * rank, tuple(dilations), (*begins, *ends), tuple(strides))


@dataclass(frozen=True)
class Lattice:
    """A part of the examples and of the output positions: every `steps`-th position from `offsets` on.

    Attributes:
        examples: Indices of the examples; None for all.
        steps: Distance of the positions along each spatial axis.
        offsets: First position along each spatial axis.
    """

    examples: NDArray[np.int64] | None
    steps: tuple[int, ...]
    offsets: tuple[int, ...]

    def counts(self, out_size: Sequence[int]) -> tuple[int, ...]:
        """Positions along each axis of an output of this size."""
        return tuple(
            len(range(offset, n, step)) for offset, n, step in zip(self.offsets, out_size, self.steps, strict=True)
        )


def lattices(
    examples: NDArray[np.int64],
    out_size: Sequence[int],
    patch: int,
    *,
    limit: int,
    seed: int,
    spacing: Sequence[int] = (),
    block_bytes: int | None = None,
) -> list[Lattice]:
    """Cut examples and output positions into blocks, leaving positions out where there are too many.

    Args:
        examples: Indices of the examples to take.
        out_size: Spatial size of the output.
        patch: Numbers in a patch, I * K.
        limit: Patches to take in all, about; every example contributes at least one.
        seed: Seed of the offsets.
        spacing: As that of the `Window`: every block is then of one phase, and all phases are seen alike.
        block_bytes: Most bytes of a block of float32 patches, unless one example alone has more; if None, small enough
            that a block stays near the processor, and twice as long as wide, so that its products are worth adding.

    Returns:
        Blocks in the order of the examples; the same arguments give the same blocks.
    """
    if block_bytes is None:
        block_bytes = min(BLOCK_BYTES, max(_LEAST_BLOCK, 8 * patch**2))
    spacing = spacing or (1,) * len(out_size)
    phases = list(itertools.product(*(range(min(s, n)) for s, n in zip(spacing, out_size, strict=True))))
    whole, limit = out_size, limit // len(phases)
    out_size = [math.ceil(n / s) for n, s in zip(whole, spacing, strict=True)]
    count, steps = len(examples), [1] * len(out_size)
    while True:
        taken = count * math.prod(math.ceil(n / s) for n, s in zip(out_size, steps, strict=True))
        # Widening the axis with the most positions left keeps the lattice as square as it can be.
        axis = max(range(len(steps)), key=lambda a: out_size[a] / steps[a])
        wider = taken * steps[axis] / (steps[axis] + 1)
        if taken <= limit or wider < 0.7 * limit or steps[axis] >= out_size[axis]:
            break
        steps[axis] += 1
    each = math.prod(math.ceil(n / s) for n, s in zip(out_size, steps, strict=True))
    # Every offset gets its share of the examples: one lattice alone would look at borders too often, or never.
    places = list(itertools.product(*(range(min(s, n)) for s, n in zip(steps, out_size, strict=True))))
    order = np.random.default_rng(seed).permutation(len(places))
    size = max(1, min(math.ceil(count / len(places)), block_bytes // (4 * patch * each)))
    apart = tuple(step * s for step, s in zip(steps, spacing, strict=True))
    blocks = []
    for index, start in enumerate(range(0, count, size)):
        place = places[order[index % len(places)]]
        for phase in phases:
            offsets = tuple(s * o + p for s, o, p in zip(spacing, place, phase, strict=True))
            # Where the output ends, the last places of some phases are missing.
            inside = tuple(o if o < n else p for o, n, p in zip(offsets, whole, phase, strict=True))
            blocks.append(Lattice(examples[start : start + size], apart, inside))
    return blocks


def patches(
    inputs: NDArray[Any], window: Window, lattice: Lattice | None = None, shift: Array32 | None = None
) -> Array32:
    """Unfold inputs into patches.

    Args:
        inputs: [N, I, *size], any floating-point type.
        window: How the convolution slides.
        lattice: Which examples and output positions; all if None.
        shift: [I], taken off every channel, also where it is padding: the patches are less the same at every tap.

    Returns:
        float32 [I * K, n]; columns are ordered by example, then by position.
    """
    rank = len(window.kernel)
    if lattice is None:
        lattice = Lattice(None, (1,) * rank, (0,) * rank)
    x = inputs if lattice.examples is None else inputs[lattice.examples]
    counts = lattice.counts(window.out_size(x.shape[2:]))
    x = _laid_out(np.swapaxes(x, 0, 1), window)
    if shift is not None:
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found in the products
            x = x.astype(np.float32, copy=False) - shift.reshape(-1, *[1] * (rank + 1))
    unfolded = np.empty((x.shape[0], window.taps, x.shape[1], *counts), np.float32)
    for tap, place in enumerate(itertools.product(*(range(k) for k in window.kernel))):
        where: list[slice] = [slice(None), slice(None)]
        for axis in range(rank):
            stride = window.strides[axis] * lattice.steps[axis]
            start = place[axis] * window.dilations[axis] + lattice.offsets[axis] * window.strides[axis]
            where.append(slice(start, start + (counts[axis] - 1) * stride + 1, stride))
        unfolded[:, tap] = x[tuple(where)]
    return unfolded.reshape(x.shape[0] * window.taps, -1)


def _laid_out(maps: NDArray[Any], window: Window) -> NDArray[Any]:
    """Put maps [.., .., *size] where the window slides over them, zeros in between and around them."""
    if not any(window.pads) and window.phases == 1:
        return maps
    to: list[slice] = [slice(None), slice(None)]
    taken = list(to)
    total = window.laid_out(maps.shape[2:])
    for axis, step in enumerate(window.steps):
        begin, count = window.pads[axis], maps.shape[axis + 2]
        first = max(0, -(begin // step))
        last = min(count, -(-(total[axis] - begin) // step))
        taken.append(slice(first, max(first, last)))
        to.append(slice(begin + first * step, begin + last * step, step) if last > first else slice(0, 0))
    laid = np.zeros((*maps.shape[:2], *total), maps.dtype)
    laid[tuple(to)] = maps[tuple(taken)]
    return laid


def require_finite(numbers: NDArray[Any]) -> None:
    """Refuse sums of activations that say nothing; whoever knows the values and the examples can say more.

    Raises:
        InputError: A number is not finite.
    """
    if not np.isfinite(numbers).all():
        raise InputError("An activation is not finite or overflows: check the calibration inputs and their range.")


def channel_means(inputs: NDArray[Any], window: Window) -> Array32:
    """Mean of each channel in patches of maps [N, I, *size], as a shift for them: about, since any will do.

    None is taken where there are zeros in between: they stay zeros, and are not multiplied.
    """
    few = inputs[:_FEW].astype(np.float32, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found in the products
        means = few.mean(axis=(0, *range(2, few.ndim)), dtype=np.float64)
    return np.asarray(means if window.phases == 1 else 0.0 * means, np.float32)


def sample(outputs: NDArray[Any], lattice: Lattice) -> Array32:
    """Read a convolution's outputs at the positions of a lattice.

    Args:
        outputs: [N, O, *out_size].
        lattice: Which examples and positions.

    Returns:
        float32 [O, n], in the order of the columns of `patches`.
    """
    where = [slice(offset, None, step) for offset, step in zip(lattice.offsets, lattice.steps, strict=True)]
    taken = outputs if lattice.examples is None else outputs[lattice.examples]
    taken = taken[(slice(None), slice(None), *where)]
    return np.ascontiguousarray(np.swapaxes(taken, 0, 1), dtype=np.float32).reshape(outputs.shape[1], -1)


def shrinkage(covariance: Array64, count: int) -> float:
    """Share of a sample covariance to replace by a multiple of the identity, so that it generalises.

    The oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero (2010), for Gaussian samples.

    Args:
        covariance: Sample covariance, [d, d].
        count: Samples.

    Returns:
        The share, 0 to 1; next to nothing for many samples of few effective dimensions.
    """
    size = len(covariance)
    squares, square = float(np.vdot(covariance, covariance)), float(np.trace(covariance)) ** 2
    spread = (count + 1 - 2 / size) * (squares - square / size)
    return 1.0 if spread <= 0.0 else min(1.0, ((1 - 2 / size) * squares + square) / spread)


def blended(covariance: Array64, taps: int, share: float) -> Array64:
    """Covariance of patches with a share of what it would be if no tap told anything of another one.

    From few patches the channels are known long before the taps are: the mean block of a tap has as many times more
    samples as there are taps.

    Args:
        covariance: [I * K, I * K].
        taps: K.
        share: 0 for the covariance itself, 1 for one block of channels at every tap and nothing between them.
    """
    if share <= 0.0 or taps == 1:
        return covariance
    inputs = len(covariance) // taps
    mean = np.einsum("itjt->ij", covariance.reshape(inputs, taps, inputs, taps)) / taps
    return (1.0 - share) * covariance + share * np.kron(mean, np.eye(taps))


def tap_blend(count: int, width: int, taps: int) -> float:
    """Share of `blended` that few patches ask for.

    Factors of a trained descriptor network, judged on faces that they were not made from, lost least at 0.6 with a
    quarter of a patch for each number in one, at 0.5 with 0.4, at 0.2 with two or three, and at 0 with 17: about as if
    it took two fifths of a patch to know each number that ties one tap to another.

    Args:
        count: Patches.
        width: Numbers in a patch, I * K.
        taps: K.
    """
    if taps == 1 or count > _PLENTY * width:
        return 0.0
    return width / (width + _KNOWN * count)


def raised(symmetric: NDArray[Any], value: float) -> NDArray[Any]:
    """A matrix plus a multiple of the identity, in its type."""
    lifted = symmetric.copy()
    lifted[np.diag_indices_from(lifted)] += value
    return lifted


def shrunk(covariance: Array64, count: int) -> Array64:
    """Sample covariance [d, d] of so many samples, shrunk towards its mean eigenvalue."""
    share = shrinkage(covariance, count)
    level = float(np.trace(covariance)) / len(covariance)
    return raised((1.0 - share) * covariance, share * level)


@dataclass(frozen=True)
class Sums:
    """What one block of patches adds to `Moments`; None where patches, or targets, are not added.

    Where numbers of the patches are zero in the whole block, those of another phase, `rows` says which are not, and the
    others are left out; None for all.
    """

    count: int
    rows: NDArray[np.int64] | None
    patches: Array64 | None
    products: Array32 | None
    targets: Array64 | None
    squares: Array64 | None
    cross: Array32 | None


@dataclass(frozen=True)
class Targets:
    """Sums of targets in `Moments`: how many, their sum, their squares, and their products with patches."""

    count: int
    sum: Array64
    squares: Array64
    cross: Array64


class Moments:
    """Running sums of patches and, where given, of the targets that go with them.

    Args:
        patch: Numbers in a patch, I * K.
        targets: Numbers in a target, O; 0 for none.
        shift: [I*K], taken off every patch before it is multiplied; anything near their mean will do.
    """

    def __init__(self, patch: int, targets: int = 0, *, shift: Array32 | None = None) -> None:
        self.count = 0
        self._shift = np.zeros(patch, np.float32) if shift is None else shift.astype(np.float32)
        self._sum = np.zeros(patch)
        self._products = np.zeros((patch, patch))
        self.clear_targets(targets)

    @property
    def outputs(self) -> int:
        """Numbers in a target, O."""
        return len(self._target_sum)

    def clear_targets(self, targets: int) -> None:
        """Forget the targets, to add others for the same patches."""
        self._target_count = 0
        self._target_sum = np.zeros(targets)
        self._target_squares = np.zeros(targets)
        self._cross_products = np.zeros((targets, len(self._sum)))

    def targets(self) -> Targets:
        """What was added of targets, to be put back by `put_back`."""
        return Targets(self._target_count, self._target_sum, self._target_squares, self._cross_products)

    def put_back(self, targets: Targets) -> None:
        """Have the targets that were there when `targets` was asked, in place of those added since `clear_targets`."""
        self._target_count, self._target_sum = targets.count, targets.sum
        self._target_squares, self._cross_products = targets.squares, targets.cross

    def sibling(self) -> Moments:
        """Empty sums of the same size and shift."""
        return Moments(len(self._sum), len(self._target_sum), shift=self._shift)

    def leading(self, numbers: int) -> Moments:
        """The sums over the first so many numbers of every patch, without targets; a view of these."""
        made = Moments(numbers, shift=self._shift[:numbers])
        made.count, made._sum, made._products = self.count, self._sum[:numbers], self._products[:numbers, :numbers]
        return made

    def with_targets(self, targets: int) -> Moments:
        """The same sums of patches, to which targets of so many numbers are to be added; the patches are shared."""
        made = Moments(len(self._sum), targets, shift=self._shift)
        made.count, made._sum, made._products = self.count, self._sum, self._products
        return made

    def add(self, block: Array32, targets: Array32 | None = None, *, shifted: bool = False) -> None:
        """Add a block of patches [I*K, n] and, where there are any, their targets [O, n]; `shifted` as in `sums`.

        Raises:
            InputError: A patch is not finite.
        """
        self.include(self.sums(block, targets, shifted=shifted))

    def sums(self, block: Array32, targets: Array32 | None = None, *, anew: bool = True, shifted: bool = False) -> Sums:
        """Compute what a block adds, without adding it.

        Args:
            block: Patches, [I*K, n].
            targets: Their targets, [O, n].
            anew: Whether the patches count; not where they were added before and only the targets are new.
            shifted: Whether the shift is taken off the patches already.

        Raises:
            InputError: A patch is not finite.
        """
        if not shifted:
            with np.errstate(invalid="ignore", over="ignore"):
                block = block - self._shift[:, None]
        rows = None
        if not (there := block.any(axis=1)).all() and 2 * there.sum() <= len(block):
            rows = np.flatnonzero(there)
            block = block[rows]
        products = None
        if anew:
            with np.errstate(invalid="ignore", over="ignore"):
                products = block @ block.T
            require_finite(np.diagonal(products))
        return Sums(
            block.shape[1],
            rows,
            block.sum(axis=1, dtype=np.float64) if anew else None,
            products,
            None if targets is None else targets.sum(axis=1, dtype=np.float64),
            None if targets is None else np.einsum("on,on->o", targets, targets, dtype=np.float64),
            None if targets is None else targets @ block.T,
        )

    def include(self, sums: Sums) -> None:
        """Add what `sums` gave."""
        if sums.products is not None and sums.patches is not None:
            self.count += sums.count
            if sums.rows is None:
                self._sum += sums.patches
                self._products += sums.products
            else:
                self._sum[sums.rows] += sums.patches
                self._products[np.ix_(sums.rows, sums.rows)] += sums.products
        if sums.targets is not None and sums.squares is not None and sums.cross is not None:
            self._target_count += sums.count
            self._target_sum += sums.targets
            self._target_squares += sums.squares
            self._cross_products[:, slice(None) if sums.rows is None else sums.rows] += sums.cross

    def mean(self) -> Array64:
        """Mean patch, [I*K]."""
        return self._shift + self._sum / self.count

    def covariance(self) -> Array64:
        """Covariance of the patches, [I*K, I*K]."""
        mean = self._sum / self.count
        covariance = self._products / self.count - np.outer(mean, mean)
        # What is the same in all patches, such as the padding of small maps, varies by rounding: never by less than 0.
        np.fill_diagonal(covariance, np.maximum(np.diagonal(covariance), 0.0))
        return covariance

    def target_mean(self) -> Array64:
        """Mean target, [O]."""
        return self._target_sum / self._target_count

    def target_variance(self) -> Array64:
        """Variance of each target, [O]."""
        return np.maximum(self._target_squares / self._target_count - self.target_mean() ** 2, 0.0)

    def cross_covariance(self) -> Array64:
        """Covariance of targets and patches, [O, I*K]."""
        return self._cross_products / self._target_count - np.outer(self.target_mean(), self._sum / self.count)

    def merged(self, other: Moments) -> Moments:
        """Sums over the patches of both, which must be siblings."""
        assert np.array_equal(self._shift, other._shift), "sums of another shift do not add up"
        total = self.sibling()
        total.count = self.count + other.count
        total._sum = self._sum + other._sum
        total._products = self._products + other._products
        total._target_count = self._target_count + other._target_count
        total._target_sum = self._target_sum + other._target_sum
        total._target_squares = self._target_squares + other._target_squares
        total._cross_products = self._cross_products + other._cross_products
        return total


def _means(maps: Array32) -> Array32:
    """Mean of each channel of maps [I, ...]."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found where they are taken off
        return np.asarray(maps.reshape(len(maps), -1).mean(axis=1), np.float32)


class Stationary:
    """Second moment of patches under the assumption that it does not change over the map.

    What two taps see then depends on the distance between them alone, so (2k - 1)^d products of channels replace the
    (k^d)^2 of `Moments`, about a third of the arithmetic for 3x3 kernels. The map is continued by its mean. The result
    is positive semidefinite, because it is an autocorrelation. With zeros in between, taps that never see two inputs at
    once have no product.

    Args:
        channels: Input channels, I.
        window: How the convolution slides; its strides and pads do not matter.
        shift: Maps [N, I, *size] whose mean is taken off before products are summed; the first ones added if None.
    """

    def __init__(self, channels: int, window: Window, *, shift: NDArray[Any] | None = None) -> None:
        self._window = window
        self.count = 0
        self._sum = np.zeros(channels)
        self._shift: Array32 | None = None
        if shift is not None:
            self._shift = _means(np.swapaxes(shift, 0, 1).astype(np.float32))
        reach = [range(1 - k, k) for k in window.kernel]
        # One of each pair of opposite distances is enough: the other one is its transpose.
        self._lags = [lag for lag in itertools.product(*reach) if lag >= (0,) * len(lag)]
        self._lags = [lag for lag in self._lags if self._move(lag) is not None]
        self._products = {lag: np.zeros((channels, channels)) for lag in self._lags}

    def _move(self, lag: tuple[int, ...]) -> tuple[int, ...] | None:
        """How many inputs lie between two taps; None where there is none at one of them."""
        window = self._window
        moves = [step * dilation for step, dilation in zip(lag, window.dilations, strict=True)]
        if any(move % step for move, step in zip(moves, window.steps, strict=True)):
            return None
        return tuple(move // step for move, step in zip(moves, window.steps, strict=True))

    def add(self, inputs: NDArray[Any]) -> None:
        """Add inputs [N, I, *size].

        Raises:
            InputError: A value is not finite.
        """
        x = np.swapaxes(inputs, 0, 1).astype(np.float32)
        if self._shift is None:
            self._shift = _means(x)
        with np.errstate(invalid="ignore", over="ignore"):
            x -= self._shift.reshape(-1, *[1] * (x.ndim - 1))
        require_finite(x)
        self.count += x[0].size
        self._sum += x.reshape(len(x), -1).sum(axis=1, dtype=np.float64)
        for lag in self._lags:
            here: list[slice] = [slice(None), slice(None)]
            there: list[slice] = [slice(None), slice(None)]
            for axis, move in enumerate(self._move(lag) or ()):
                here.append(slice(max(0, -move), x.shape[axis + 2] - max(0, move)))
                there.append(slice(max(0, move), x.shape[axis + 2] - max(0, -move)))
            first = x[tuple(here)].reshape(len(x), -1)
            if first.size:
                with np.errstate(invalid="ignore", over="ignore"):
                    products = first @ x[tuple(there)].reshape(len(x), -1).T
                require_finite(np.diagonal(products))
                self._products[lag] += products

    def merged(self, other: Stationary) -> Stationary:
        """Sums over the maps of both, which must have the same shift."""
        assert self._shift is not None and other._shift is not None, "no inputs were added"
        assert np.array_equal(self._shift, other._shift), "sums of another shift do not add up"
        total = self.sibling()
        total.count = self.count + other.count
        total._sum = self._sum + other._sum
        total._products = {lag: self._products[lag] + other._products[lag] for lag in self._lags}
        return total

    def sibling(self) -> Stationary:
        """Empty sums of the same size and shift."""
        made = Stationary(len(self._sum), self._window)
        made._shift = self._shift
        return made

    def leading(self, channels: int) -> Stationary:
        """The sums over the first so many channels; a view of these."""
        made = Stationary(channels, self._window)
        made.count, made._sum = self.count, self._sum[:channels]
        made._shift = None if self._shift is None else self._shift[:channels]
        made._products = {lag: products[:channels, :channels] for lag, products in self._products.items()}
        return made

    def mean(self) -> Array64:
        """Mean patch, [I*K]."""
        assert self._shift is not None, "no inputs were added"
        return np.repeat((self._shift + self._sum / self.count) / self._window.phases, self._window.taps)

    def covariance(self) -> Array64:
        """Covariance of the patches, [I*K, I*K]."""
        mean = self._sum / self.count
        taps = list(itertools.product(*(range(k) for k in self._window.kernel)))
        full = np.empty((len(mean), len(taps), len(mean), len(taps)))
        sizes = {lag: products / self.count - np.outer(mean, mean) for lag, products in self._products.items()}
        apart: Array64 | float = 0.0
        if self._window.phases > 1:
            assert self._shift is not None, "no inputs were added"
            there = np.outer(self._shift + mean, self._shift + mean)
            apart = -there / self._window.phases**2
            sizes = {lag: (size + there) / self._window.phases + apart for lag, size in sizes.items()}
        for (a, first), (b, second) in itertools.product(enumerate(taps), repeat=2):
            lag = tuple(v - u for u, v in zip(first, second, strict=True))
            back = tuple(-step for step in lag)
            full[:, a, :, b] = sizes[lag] if lag in sizes else sizes[back].T if back in sizes else apart
        return full.reshape(len(mean) * len(taps), -1)
