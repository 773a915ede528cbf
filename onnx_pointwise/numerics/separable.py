"""A kernel as a sum of products: a 1x1 convolution, a depthwise kxk and another 1x1.

Notation as in `factorize`, whose norm is minimised:

    W[o, i, t] ~ sum_r A[o, r] B[r, i] C[r, t]

Each of R feature maps mixes the inputs (B, a 1x1), is filtered by a pattern of its own (C, a depthwise kxk) and goes
into all outputs (A, a 1x1): the canonical polyadic decomposition of a kernel whose taps are one axis (Lebedev, Ganin,
Rakhuba, Oseledets and Lempitsky 2015, there with the plain norm and each axis of the kernel apart). Where arithmetic is
what counts it leaves a third of the squared error of any form with full kernels.

With q_r = B_r (x) C_r and Q[R, I*K] the best A is least squares, A = W S Q^T (Q S Q^T + e D)^-1, and what is left of
the error is a function of B and C alone (variable projection, Golub and Pereyra 1973). Its gradient is that at a fixed
A, and L-BFGS follows it (Liu and Nocedal 1989). D holds the diagonal of Q S Q^T and e is small: terms that grow without
end and cancel one another, which such sums are known for, would not survive rounding.

The start decides how many steps it takes. Input channels and taps are each made white for their own moments; along the
principal patterns of the taps the kernel is a matrix, and the leading terms of the singular value decompositions of
these matrices are taken. The size of a term lies in B, so that the columns of A are alike and so is the curvature.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.numerics.forms import most_terms
from onnx_pointwise.numerics.norm import Norm, Working
from onnx_pointwise.numerics.triangular import solve_lower, sturdy_cholesky

Array = NDArray[np.float64]

# e above.
_RIDGE = 1e-5
# What the least squares of A have at least: moments come from float32 products.
_JITTER = 1e-7
# Multiplications that a fit may take, about, and the steps it has all the same: the first ones bring most.
_PRODUCTS = 1e11
_FEWEST_STEPS = 8
# ... and of one step, up to which a fit starts from the solutions in simpler norms, too: it ends in the next valley,
# and with few terms one may be much deeper than another.
_SMALL = 1e7
# A fit ends where so many steps have brought less than this share of what is lost.
_PATIENCE, _GAIN = 4, 1e-2
_NEGLIGIBLE = 1e-12
# Pairs of steps and gradients that the curvature is made of.
_MEMORY = 10
# Noise on the terms of the start, relative to one, without which equal ones would stay equal.
_NOISE = 0.1
# Ranks that a curve is found at, as a share of the one that costs what the kernel does, and the steps of each fit.
_SHARES = (0.15, 0.35, 0.65)
_CURVE_STEPS = 16


@dataclass(frozen=True)
class Terms:
    """The terms of a sum.

    Attributes:
        rows: B, float64 [R, I].
        taps: C, float64 [R, K].
        columns: A, float64 [O, R].
    """

    rows: Array
    taps: Array
    columns: Array

    @property
    def sum(self) -> Array:
        """The kernel that they make, [O, I, K]."""
        products = self.rows[:, :, None] * self.taps[:, None, :]
        return (self.columns @ products.reshape(len(products), -1)).reshape(-1, *products.shape[1:])


def even_terms(inputs: int, outputs: int, taps: int) -> float:
    """How many terms take as many multiplications as the kernel, at one place."""
    return inputs * outputs * taps / (inputs + outputs + taps)


def separated(weights: Array, norm: Norm, rank: int, *, steps: int, start: Terms | None = None) -> Terms:
    """Find the terms that come nearest to a kernel.

    Args:
        weights: W, [O, I, K].
        norm: S.
        rank: R, at least 1.
        steps: Steps of the descent, at most.
        start: Terms to start from, as many, such as those of a kernel that differs little.

    Returns:
        Terms whose feature maps have equal mean squares in the norm, in front of the taps and behind them, and rows of
        norm 1 in the root mean square.
    """
    if rank >= most_terms(weights.shape[1], len(weights), weights.shape[2]):
        return _evened(_exact(weights, rank), norm)
    problem = _Problem.of(weights, norm)
    if not problem.total > 0.0:  # all terms are as good where nothing comes out
        some = _drawn(np.random.default_rng(0), rank, weights.shape[1:])
        return _evened(Terms(*some, np.zeros((len(weights), rank))), norm)
    if start is not None:
        starts = [problem.taken(start)]
    else:
        starts = [problem.start(rank)]
        if norm.moment is not None and problem.products(rank) <= _SMALL:
            others = [norm.known_to(method) for method in (("svd", "whitened") if norm.full else ("svd",))]
            starts += [problem.taken(separated(weights, one, rank, steps=steps)) for one in others]
    found = [problem.descended(*first, steps) for first in starts]
    rows, taps, _ = min(found, key=lambda one: one[2])
    return _evened(problem.terms(rows, taps), norm)


def with_columns(weights: Array, norm: Norm, rows: Array, taps: Array) -> Array:
    """The best A, [O, R], for rows and taps as they are, such as rounded ones."""
    return _Problem.of(weights, norm).terms(rows, taps, white=False).columns


def term_curves(weights: Array, norm: Norm, held: Norm) -> tuple[Array, Array]:
    """Squared error that each number of terms leaves, relative to W, in the norm that it is made for and in another.

    A few fits; between them the logarithm of the error is taken to be a straight line that goes on beyond the last.

    Args:
        weights: W, [O, I, K].
        norm: S.
        held: T, of patches that S has not seen; the same as S where there are none.

    Returns:
        For S and for T, float64 [`most_terms` + 1].
    """
    outputs, inputs, taps = weights.shape
    full = most_terms(inputs, outputs, taps)
    even = even_terms(inputs, outputs, taps)
    ranks = sorted({min(full - 1, max(1, round(share * even))) for share in _SHARES})
    totals = [float(np.vdot(weights, one.apply(weights))) for one in (norm, held)]
    if totals[0] <= 0.0:
        return np.zeros(full + 1), np.zeros(full + 1)
    if full < 2:
        return np.array([1.0, 0.0]), np.array([1.0, 0.0])
    if totals[1] <= 0.0:
        held, totals[1] = norm, totals[0]
    problem = _Problem.of(weights, norm)
    points: list[tuple[int, float, float]] = []
    for rank in ranks:
        rows, filters, _ = problem.descended(*problem.start(rank), _CURVE_STEPS)
        left = weights - problem.terms(rows, filters).sum
        lost = [float(np.vdot(left, one.apply(left))) / total for one, total in zip((norm, held), totals, strict=True)]
        points.append((rank, max(lost[0], _NEGLIGIBLE), max(lost[1], _NEGLIGIBLE)))
    at, promised, judged = np.array(points).T
    return _between(at, promised, full), _between(at, judged, full)


def _between(ranks: Array, lost: Array, full: int) -> Array:
    """A curve through the error at some ranks."""
    at, logs = np.append(0.0, ranks), np.append(0.0, np.log(lost))
    places = np.arange(full + 1, dtype=np.float64)
    curve = np.interp(places, at, logs)
    slope = (logs[-1] - logs[-2]) / (at[-1] - at[-2])
    beyond = places > at[-1]
    curve[beyond] = logs[-1] + min(slope, 0.0) * (places[beyond] - at[-1])
    curve = np.minimum.accumulate(np.exp(np.minimum(curve, 0.0)))
    curve[-1] = 0.0
    return curve


def _exact(weights: Array, rank: int) -> Terms:
    """Terms that make a kernel whatever it is, each pair of indices of its two shortest axes one; more share them."""
    outputs, inputs, taps = weights.shape
    full = most_terms(inputs, outputs, taps)
    unit = {size: np.eye(size) for size in (inputs, outputs, taps)}
    if full == inputs * taps:
        terms = np.repeat(unit[inputs], taps, 0), np.tile(unit[taps], (inputs, 1)), weights.reshape(outputs, -1)
    elif full == outputs * taps:
        terms = (
            weights.transpose(0, 2, 1).reshape(-1, inputs),
            np.tile(unit[taps], (outputs, 1)),
            np.repeat(unit[outputs], taps, 1),
        )
    else:
        terms = (
            np.tile(unit[inputs], (outputs, 1)),
            weights.reshape(-1, taps),
            np.repeat(unit[outputs], inputs, 1),
        )
    which = np.arange(rank) % full
    rows, filters, columns = terms
    return Terms(rows[which], filters[which], columns[:, which] / np.bincount(which)[which])


def _evened(terms: Terms, norm: Norm) -> Terms:
    """The same terms, scaled so that no feature map is larger than another one."""
    rows, taps, columns = terms.rows, terms.taps, terms.columns
    channels = norm.channels
    met = rows if channels is None else rows @ channels
    in_front = _roots(np.einsum("ri,ri->r", met, rows))
    rows, taps = rows / in_front[:, None], taps * in_front[:, None]
    products = (rows[:, :, None] * taps[:, None, :]).astype(norm.dtype)
    behind = _roots(np.einsum("rik,rik->r", norm.apply(products), products, dtype=np.float64))
    taps, columns = taps / behind[:, None], columns * behind
    size = math.sqrt(float(np.vdot(rows, rows)) / len(rows))
    return Terms(rows / size, taps * size, columns) if size > 0.0 else Terms(rows, taps, columns)


def _roots(squares: Array) -> Array:
    """Square roots, 1 for what is nothing beside the largest."""
    top = float(squares.max(initial=0.0))
    return np.sqrt(np.where(squares > 1e-12 * top, squares, 1.0))


def _drawn(rng: np.random.Generator, rank: int, sizes: Sequence[int]) -> tuple[Array, Array]:
    inputs, taps = sizes
    return rng.standard_normal((rank, inputs)) / math.sqrt(inputs), rng.standard_normal((rank, taps)) / math.sqrt(taps)


@dataclass(frozen=True)
class _Problem:
    """A kernel and a norm; rows are those of white channels unless something else is said.

    Attributes:
        weights: W, float64 [O, I, K].
        weighted: W S, [O, I*K], in the type of S.
        norm: S.
        root: Lower factor L of the moment of the channels, float64 [I, I]; None for the identity.
        inverse: L^-1.
        total: tr(W S W^T).
    """

    weights: Array
    weighted: Working
    norm: Norm
    root: Array | None
    inverse: Array | None
    total: float

    @staticmethod
    def of(weights: Array, norm: Norm) -> _Problem:
        weighted = norm.apply(weights.astype(norm.dtype))
        channels = norm.channels
        root = inverse = None
        if channels is not None:
            level = float(np.trace(channels)) / len(channels)
            root = sturdy_cholesky(channels + 1e-6 * level * np.eye(len(channels)))
            inverse = solve_lower(root, np.eye(len(root)))
        total = float(np.vdot(weights, weighted.astype(np.float64)))
        return _Problem(weights, weighted.reshape(len(weights), -1), norm, root, inverse, total)

    def white(self, rows: Array) -> Array:
        """B L, the rows for white channels."""
        return rows if self.root is None else rows @ self.root

    def plain(self, rows: Array) -> Array:
        """The rows B for the channels as they are: those of white ones times L^-1."""
        return rows if self.inverse is None else rows @ self.inverse

    def taken(self, terms: Terms) -> tuple[Array, Array]:
        """White rows and taps of terms, the size of each in its row."""
        sizes = _roots(np.einsum("or,or->r", terms.columns, terms.columns))
        return self.white(terms.rows * sizes[:, None]), terms.taps

    def products(self, rank: int) -> float:
        """Multiplications of a step, about."""
        numbers = self.weighted.shape[1]
        return float(rank * numbers * ((numbers if self.norm.full else 0) + 2 * rank + 2 * len(self.weights)))

    def start(self, rank: int) -> tuple[Array, Array]:
        """Rows and taps from singular values."""
        _, inputs, taps = self.weights.shape
        white = self.weights if self.root is None else np.matmul(self.root.T, self.weights)
        along = sturdy_cholesky(self._tap_moment())
        seen = white @ along
        patterns = np.linalg.eigh(np.einsum("oik,oil->kl", seen, seen))[1][:, ::-1].T
        filters = np.linalg.solve(along.T, patterns.T).T
        sizes, rows = [], []
        for pattern in patterns:
            _, size, right = np.linalg.svd(seen @ pattern, full_matrices=False)
            sizes.append(size)
            rows.append(right)
        size, which = np.concatenate(sizes), np.repeat(np.arange(taps), len(sizes[0]))
        order = np.argsort(-size, kind="stable")[:rank]  # there are at least as many as make any kernel
        noise = _drawn(np.random.default_rng(0), rank, (inputs, taps))
        chosen = filters[which[order]]
        chosen = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
        scale = size[order] / size[order].mean()
        made = np.concatenate(rows)[order] + _NOISE * noise[0]
        return made * np.maximum(scale, 1e-3)[:, None], chosen + _NOISE * noise[1]

    def _tap_moment(self) -> Array:
        """Moment of the taps where the channels are white, [K, K], with what keeps it regular."""
        taps = self.weights.shape[2]
        moment = np.eye(taps)
        if self.norm.full:
            assert self.norm.moment is not None
            blocks = self.norm.moment.reshape(self.norm.inputs, taps, self.norm.inputs, taps)
            inverse = self.norm.channels_inverse
            moment = np.einsum("ij,itjs->ts", inverse, blocks, dtype=np.float64) / self.norm.inputs
            moment = (moment + moment.T) / 2.0
        return cast(Array, moment + 1e-4 * float(np.trace(moment)) / taps * np.eye(taps))

    def terms(self, rows: Array, taps: Array, *, white: bool = True) -> Terms:
        """The terms with these rows and taps, and the best columns."""
        rows = self.plain(rows) if white else rows
        products, _, gram = self._products(rows.astype(self.norm.dtype), taps.astype(self.norm.dtype))
        columns = self._columns(self._crossing(products), gram, _JITTER)
        return Terms(rows.astype(np.float64), taps.astype(np.float64), columns)

    def descended(self, rows: Array, taps: Array, steps: int) -> tuple[Array, Array, float]:
        """Rows and taps after so many steps downhill at most, fewer where they are many and wide; and what is lost."""
        from scipy.optimize import minimize  # half a second to import

        rank, inputs = rows.shape
        steps = min(steps, max(_FEWEST_STEPS, int(_PRODUCTS / self.products(rank))))
        # With the size of a term in its row, a change of its taps counts that many times as much as one of its row.
        size = _roots(np.einsum("ri,ri->r", rows, rows))[:, None]
        best: list[Any] = [math.inf, None]
        falls: list[float] = []

        def parted(point: Array) -> tuple[Array, Array]:
            split = rank * inputs
            return point[:split].reshape(rank, inputs), point[split:].reshape(taps.shape) / size

        def lost(point: Array) -> tuple[float, Array]:
            value, by_rows, by_taps = self._lost(*parted(point))
            gradient = np.concatenate([by_rows.ravel(), (by_taps / size).ravel()])
            if value < best[0]:
                best[:] = value, point.copy()
            return value, gradient

        def after(_: Array) -> None:
            falls.append(best[0])
            if best[0] <= _NEGLIGIBLE:
                raise StopIteration
            if len(falls) > _PATIENCE and falls[-1 - _PATIENCE] - best[0] < _GAIN * best[0]:
                raise StopIteration

        point = np.concatenate([rows.ravel(), (taps * size).ravel()])
        minimize(
            lost,
            point,
            jac=True,
            method="L-BFGS-B",
            callback=after,
            options={"maxiter": steps, "maxfun": steps + 2, "maxcor": _MEMORY, "ftol": 0.0, "gtol": 0.0},
        )
        return *parted(point if best[1] is None else best[1]), float(best[0])

    def _lost(self, white: Array, filters: Array) -> tuple[float, Array, Array]:
        """Squared error with the ridge, relative to W, and its gradient by white rows and by taps."""
        kind = self.norm.dtype
        rows, taps = self.plain(white).astype(kind), filters.astype(kind)
        products, weighted, gram = self._products(rows, taps)
        crossing = self._crossing(products)
        columns = self._columns(crossing, gram, _RIDGE)
        kept = float(np.sum(columns.T * crossing))
        small = columns.astype(kind)
        mixing = small.T @ small
        mixing[np.diag_indices_from(mixing)] *= kind.type(1.0 + _RIDGE)
        slope = (mixing @ weighted - small.T @ self.weighted).reshape(*rows.shape, taps.shape[1])
        by_rows = np.einsum("rik,rk->ri", slope, taps).astype(np.float64)
        if self.inverse is not None:
            by_rows = by_rows @ self.inverse.T
        by_taps = np.einsum("rik,ri->rk", slope, rows).astype(np.float64)
        scale = 2.0 / self.total
        return max(1.0 - kept / self.total, 0.0), scale * by_rows, scale * by_taps

    def _products(self, rows: Working, taps: Working) -> tuple[Working, Working, Array]:
        """Q and Q S, [R, I*K], and Q S Q^T."""
        products = rows[:, :, None] * taps[:, None, :]
        weighted = self.norm.apply(products).reshape(len(products), -1)
        flat = products.reshape(len(products), -1)
        gram = (weighted @ flat.T).astype(np.float64)
        return flat, weighted, (gram + gram.T) * 0.5

    def _crossing(self, products: Working) -> Array:
        """Q S W^T, [R, O]."""
        return cast(Array, (products @ self.weighted.T).astype(np.float64))

    def _columns(self, crossing: Array, gram: Array, ridge: float) -> Array:
        """A for products and their moment, [O, R]."""
        for share in (ridge, 1e2 * ridge, 1e4 * ridge):
            with contextlib.suppress(np.linalg.LinAlgError):
                columns = np.linalg.solve(_lifted(gram, share), crossing).T
                # More than there is: rounding has left a moment of terms that are nearly alike with negative values.
                if float(np.sum(columns.T * crossing)) <= 1.001 * self.total:
                    return cast(Array, columns)
        return cast(Array, np.linalg.lstsq(_lifted(gram, ridge), crossing, rcond=1e-6)[0].T)


def _lifted(gram: Array, share: float) -> Array:
    """A moment with a share of its diagonal added, and a little where that is nothing."""
    lifted = gram.copy()
    diagonal = np.diagonal(gram)
    least = 1e-9 * max(float(diagonal.mean()), np.finfo(np.float64).tiny)
    lifted[np.diag_indices_from(lifted)] += share * diagonal + least
    return lifted
