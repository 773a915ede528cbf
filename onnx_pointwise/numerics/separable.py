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

Two things decide how many steps it takes. The start: input channels and taps are each made white for their own moments;
along the principal patterns of the taps the kernel is a matrix, and the leading terms of the singular value
decompositions of these matrices are taken. And the measure of a step: were channels and taps independent, S = M (x) T,
the curvature at fixed A would be (A^T A * C T C^T) (x) M by B and (A^T A * B M B^T) (x) T by C, with * from place to
place (the normal equations of alternating least squares, Kolda and Bader 2009, section 3.4). Steps are taken where
these are the identity; they change with the terms, and are made anew every few steps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.numerics.forms import most_terms
from onnx_pointwise.numerics.norm import Norm, Working
from onnx_pointwise.numerics.parallel import product
from onnx_pointwise.numerics.triangular import solve_lower, sturdy_cholesky

Array = NDArray[np.float64]

# e above.
_RIDGE = 1e-5
# What the least squares of A have at least: moments come from float32 products.
_JITTER = 1e-7
# Multiplications that a fit may take, about, and the steps it has all the same: the first ones bring most.
_PRODUCTS = 1e11
_FEWEST_STEPS = 8
# ... and of one step, up to which a fit gets twice the steps, since all else that a site takes is more.
_LITTLE = 1e8
# ... up to which it starts from the solutions in simpler norms, too: it ends in the next valley, and with few terms one
# may be much deeper than another.
_SMALL = 1e7
# A fit ends where so many steps have brought less than this share of what is lost.
_PATIENCE, _GAIN = 4, 1e-2
_NEGLIGIBLE = 1e-12
# Steps after which the measure of a step is made anew, and what of it is left to the diagonal.
_STRETCH = 10
_DIAGONAL = 0.1
# The least curvature of a term, as a share of the largest; its root.
_LEAST_SIZE = 1e-2
# Noise on the terms of the start, relative to one, without which equal ones would stay equal.
_NOISE = 0.1
# Ranks that a curve is found at, as a share of the one that costs what the kernel does; steps of the first fit, and of
# those that go on from the one before.
_SHARES = (0.15, 0.35, 0.65)
_CURVE_STEPS, _MORE_STEPS = 10, 7


@dataclass(frozen=True)
class Terms:
    """The terms of a sum.

    Attributes:
        rows: B, [R, I], float64; float32 where they are only kept.
        taps: C, [R, K].
        columns: A, [O, R].
    """

    rows: Working
    taps: Working
    columns: Working

    def scaled(self, factor: float) -> Terms:
        """Terms of a kernel so many times as large, in float64."""
        return Terms(*(side.astype(np.float64) for side in (self.rows, self.taps, self.columns * factor)))

    def narrowed(self) -> Terms:
        """The same in float32, to be kept."""
        return Terms(*(side.astype(np.float32) for side in (self.rows, self.taps, self.columns)))

    @property
    def sum(self) -> Array:
        """The kernel that they make, [O, I, K]."""
        products = self.rows[:, :, None] * self.taps[:, None, :]
        made = self.columns @ products.reshape(len(products), -1)
        return cast(Array, made.reshape(-1, *products.shape[1:]))


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
        start: Terms to start from, such as those of a kernel that differs little; of more the largest are taken, and
            fewer are made as many by those that what they leave of the kernel starts with.

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
    starts = [] if start is None else [problem.resumed(start, rank)]
    if start is None or (len(start.rows) != rank and problem.work(rank) <= _SMALL):
        starts += _starts(problem, rank, steps)
    found = problem.lowest(starts, steps)
    return _evened(problem.terms(found), norm, np.diagonal(found.gram))


def _starts(problem: _Problem, rank: int, steps: int) -> list[tuple[Array, Array]]:
    """White rows and taps to start from: of singular values; and where they cost little, of simpler norms."""
    starts, norm = [problem.start(rank)], problem.norm
    if norm.moment is not None and problem.work(rank) <= _SMALL:
        simpler = [norm.known_to(method) for method in (("svd", "whitened") if norm.full else ("svd",))]
        starts += [problem.taken(separated(problem.weights, one, rank, steps=steps)) for one in simpler]
    return starts


def with_columns(weights: Array, norm: Norm, rows: Array, taps: Array) -> Array:
    """The best A, [O, R], for rows and taps as they are, such as rounded ones."""
    problem = _Problem.of(weights, norm)
    products, _, gram = problem.products(rows.astype(norm.dtype), taps.astype(norm.dtype))
    return problem.columns(problem.crossing(products), gram, _JITTER)


def term_fits(weights: Array, norm: Norm) -> tuple[Terms, ...]:
    """Fits of a few numbers of terms, each with the terms of the one before and more, for curves and to start from.

    Args:
        weights: W, [O, I, K].
        norm: S.

    Returns:
        The fits; none where nothing comes out, or one term makes the kernel.
    """
    outputs, inputs, taps = weights.shape
    full = most_terms(inputs, outputs, taps)
    even = even_terms(inputs, outputs, taps)
    ranks = sorted({min(full - 1, max(1, round(share * even))) for share in _SHARES})
    problem = _Problem.of(weights, norm)
    if full < 2 or problem.total <= 0.0:
        return ()
    fits: list[Terms] = []
    for rank in ranks:
        steps = _MORE_STEPS if fits else _CURVE_STEPS
        starts = [problem.more(fits[-1], rank)] if fits else []
        if not fits or problem.work(rank) <= _SMALL:
            starts += _starts(problem, rank, _CURVE_STEPS)
        found = problem.lowest(starts, steps)
        fits.append(_evened(problem.terms(found), norm, np.diagonal(found.gram)))
    return tuple(fits)


def term_curves(weights: Array, norm: Norm, held: Norm, fits: Sequence[Terms]) -> tuple[Array, Array]:
    """Squared error that each number of terms leaves, relative to W, in the norm that it is made for and in another.

    Between fits the logarithm of the error is taken to be a straight line that goes on beyond the last.

    Args:
        weights: W, [O, I, K].
        norm: S.
        held: T, of patches that S has not seen; the same as S where there are none.
        fits: What `term_fits` gives for W and S.

    Returns:
        For S and for T, float64 [`most_terms` + 1].
    """
    outputs, inputs, taps = weights.shape
    full = most_terms(inputs, outputs, taps)
    totals = [float(np.vdot(weights, one.apply(weights))) for one in (norm, held)]
    if totals[0] <= 0.0:
        return np.zeros(full + 1), np.zeros(full + 1)
    if full < 2:
        return np.array([1.0, 0.0]), np.array([1.0, 0.0])
    if totals[1] <= 0.0:
        held, totals[1] = norm, totals[0]
    points: list[tuple[int, float, float]] = []
    for terms in fits:
        left = weights - terms.sum
        lost = [float(np.vdot(left, one.apply(left))) / total for one, total in zip((norm, held), totals, strict=True)]
        points.append((len(terms.rows), max(lost[0], _NEGLIGIBLE), max(lost[1], _NEGLIGIBLE)))
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


def _evened(terms: Terms, norm: Norm, behind: Array | None = None) -> Terms:
    """The same terms, scaled so that no feature map is larger than another one.

    Args:
        terms: The terms.
        norm: S.
        behind: The mean squares of the feature maps behind the taps, [R], where they are known.
    """
    rows, taps, columns = terms.rows, terms.taps, terms.columns
    channels = norm.channels
    met = rows if channels is None else rows @ channels
    in_front = _roots(np.einsum("ri,ri->r", met, rows))
    rows, taps = rows / in_front[:, None], taps * in_front[:, None]
    if behind is None:
        products = (rows[:, :, None] * taps[:, None, :]).astype(norm.dtype)
        behind = np.einsum("rik,rik->r", norm.apply(products), products, dtype=np.float64)
    out = _roots(behind)
    taps, columns = taps / out[:, None], columns * out
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
class _Place:
    """A place on the way down.

    Attributes:
        rows: B, of white channels, [R, I].
        taps: C, [R, K].
        gram: Q S Q^T, [R, R].
        crossing: Q S W^T, [R, O].
        mixing: A^T A for the best A, [R, R].
        lost: Squared error with the ridge, relative to W.
        by_rows: Its gradient by the rows.
        by_taps: Its gradient by the taps.
    """

    rows: Array
    taps: Array
    gram: Array
    crossing: Array
    mixing: Array
    lost: float
    by_rows: Array
    by_taps: Array


@dataclass(frozen=True)
class _Measure:
    """In what steps are measured: rows times F^T from the left, taps times G^T from the left and H from the right.

    Attributes:
        rows: F, lower triangle [R, R], of the curvature by the rows.
        taps: G, lower triangle [R, R], of that by the taps.
        between: H, lower triangle [K, K], of the moment of the taps.
        inverses: Of F, G and H.
    """

    rows: Array
    taps: Array
    between: Array
    inverses: tuple[Array, Array, Array]

    @staticmethod
    def at(place: _Place, tap_moment: Array, total: float) -> _Measure:
        """The curvature at a place; W has the squared norm `total`."""
        by_rows = place.mixing * (place.taps @ tap_moment @ place.taps.T)
        by_taps = place.mixing * (place.rows @ place.rows.T)
        factors = _curved(by_rows), _curved(by_taps), sturdy_cholesky(tap_moment)
        inverses = [solve_lower(one, np.eye(len(one))) for one in factors]
        measure = _Measure(*factors, (inverses[0], inverses[1], inverses[2]))
        # The first step that is tried has length 1: as far as the least of the error would lie.
        far = float(np.linalg.norm(measure.gradient(place))) * total / 2.0
        return measure.times(1.0 / far) if far > 0.0 else measure

    def times(self, size: float) -> _Measure:
        """The same with all steps so many times as long."""
        rows, taps, between = self.inverses
        return _Measure(self.rows * size, self.taps * size, self.between, (rows / size, taps / size, between))

    def point(self, place: _Place) -> Array:
        """All that changes at a place as one vector."""
        return np.concatenate([(self.rows.T @ place.rows).ravel(), (self.taps.T @ place.taps @ self.between).ravel()])

    def parted(self, point: Array) -> tuple[Array, Array]:
        """Rows and taps of such a vector."""
        terms = len(self.rows)
        split = len(point) - terms * len(self.between)
        rows, taps, between = self.inverses
        return (
            rows.T @ point[:split].reshape(terms, -1),
            taps.T @ point[split:].reshape(terms, -1) @ between,
        )

    def gradient(self, place: _Place) -> Array:
        """The gradient at a place by such a vector."""
        rows, taps, between = self.inverses
        return np.concatenate([(rows @ place.by_rows).ravel(), (taps @ place.by_taps @ between.T).ravel()])


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

    def work(self, rank: int) -> float:
        """Multiplications of a step, about."""
        numbers = self.weighted.shape[1]
        return float(rank * numbers * ((numbers if self.norm.full else 0) + 2 * rank + 2 * len(self.weights)))

    def start(self, rank: int) -> tuple[Array, Array]:
        """Rows and taps from singular values."""
        _, inputs, taps = self.weights.shape
        white = self.weights if self.root is None else np.matmul(self.root.T, self.weights)
        along = sturdy_cholesky(self.tap_moment)
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

    @cached_property
    def tap_moment(self) -> Array:
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

    def terms(self, place: _Place) -> Terms:
        """The terms at a place, and the best columns."""
        return Terms(self.plain(place.rows), place.taps, self.columns(place.crossing, place.gram, _JITTER))

    def resumed(self, terms: Terms, rank: int) -> tuple[Array, Array]:
        """White rows and taps of so many terms: those given, the largest of more, or fewer and others."""
        if len(terms.rows) < rank:
            return self.more(terms, rank)
        if len(terms.rows) > rank:
            rows, taps = terms.rows.astype(self.norm.dtype), terms.taps.astype(self.norm.dtype)
            sizes = np.diagonal(self.products(rows, taps)[2]) * np.einsum("or,or->r", terms.columns, terms.columns)
            kept = np.sort(np.argsort(-sizes, kind="stable")[:rank])
            terms = Terms(terms.rows[kept], terms.taps[kept], terms.columns[:, kept])
        return self.taken(terms)

    def more(self, terms: Terms, rank: int) -> tuple[Array, Array]:
        """White rows and taps of terms, and of so many more that what they leave of the kernel starts with."""
        parts = [self.taken(terms)]
        if rank > len(terms.rows):
            left = _Problem.of(self.weights - terms.sum, self.norm)
            parts.append(left.start(rank - len(terms.rows)))
        even = [[side / math.sqrt(max(float(np.mean(side**2)), 1e-300)) for side in part] for part in parts]
        rows, taps = zip(*even, strict=True)
        return np.concatenate(rows), np.concatenate(taps)

    def lowest(self, starts: Sequence[tuple[Array, Array]], steps: int) -> _Place:
        """The lowest of the places that so many steps lead to, see `descended`."""
        return min((self.descended(*first, steps) for first in starts), key=lambda place: place.lost)

    def descended(self, rows: Array, taps: Array, steps: int) -> _Place:
        """Go so many steps downhill, twice as many where they take little, and fewer where terms are many and wide."""
        work = self.work(len(rows))
        left = 2 * steps if work <= _LITTLE else min(steps, max(_FEWEST_STEPS, int(_PRODUCTS / work)))
        best = self._place(rows, taps)
        falls = [best.lost]
        while left > 0 and not _settled(falls):
            best = self._further(best, min(left, _STRETCH), falls)
            left -= _STRETCH
        return best

    def _further(self, place: _Place, steps: int, falls: list[float]) -> _Place:
        """Go on from a place, steps measured as they are there; what is lost after each is added to a list."""
        from scipy.optimize import minimize  # half a second to import

        measure = _Measure.at(place, self.tap_moment, self.total)
        best = [place]
        first = [place]

        def lost(point: Array) -> tuple[float, Array]:
            there = first.pop() if first else self._place(*measure.parted(point))
            if there.lost < best[0].lost:
                best[0] = there
            return there.lost, measure.gradient(there)

        def after(_: Array) -> None:
            falls.append(best[0].lost)
            if _settled(falls):
                raise StopIteration

        minimize(
            lost,
            measure.point(place),
            jac=True,
            method="L-BFGS-B",
            callback=after,
            options={"maxiter": steps, "maxfun": steps + 2, "maxcor": steps, "ftol": 0.0, "gtol": 0.0},
        )
        return best[0]

    @np.errstate(over="ignore", invalid="ignore")  # a step too far, in a moment that is none, is seen at its end
    def _place(self, white: Array, filters: Array) -> _Place:
        """What is lost with the ridge, relative to W, with white rows and taps, and its gradient."""
        kind = self.norm.dtype
        rows, taps = self.plain(white).astype(kind), filters.astype(kind)
        products, weighted, gram = self.products(rows, taps)
        crossing = self.crossing(products)
        flat = np.zeros_like(white), np.zeros_like(filters)
        nowhere = _Place(white, filters, gram, crossing, np.zeros_like(gram), math.inf, *flat)
        if not (np.isfinite(gram).all() and np.isfinite(crossing).all()):
            return nowhere
        columns = self.columns(crossing, gram, _RIDGE)
        kept = float(np.sum(columns.T * crossing))
        small = columns.astype(kind)
        mixing = small.T @ small
        crossed = mixing.astype(np.float64)
        mixing[np.diag_indices_from(mixing)] *= kind.type(1.0 + _RIDGE)
        back, threads = np.ascontiguousarray(small.T), self.norm.threads
        slope = product(mixing, weighted, threads) - product(back, self.weighted, threads)
        slope = slope.reshape(*rows.shape, taps.shape[1])
        by_rows = np.einsum("rik,rk->ri", slope, taps).astype(np.float64)
        if self.inverse is not None:
            by_rows = by_rows @ self.inverse.T
        by_taps = np.einsum("rik,ri->rk", slope, rows).astype(np.float64)
        scale = 2.0 / self.total
        lost = max(1.0 - kept / self.total, 0.0)
        if not (np.isfinite(by_rows).all() and np.isfinite(by_taps).all() and np.isfinite(crossed).all()):
            return nowhere
        return _Place(white, filters, gram, crossing, crossed, lost, scale * by_rows, scale * by_taps)

    def products(self, rows: Working, taps: Working) -> tuple[Working, Working, Array]:
        """Q and Q S, [R, I*K], and Q S Q^T."""
        products = rows[:, :, None] * taps[:, None, :]
        weighted = self.norm.apply(products).reshape(len(products), -1)
        flat = products.reshape(len(products), -1)
        gram = product(weighted, flat.T, self.norm.threads).astype(np.float64)
        return flat, weighted, (gram + gram.T) * 0.5

    def crossing(self, products: Working) -> Array:
        """Q S W^T, [R, O]."""
        return cast(Array, (products @ self.weighted.T).astype(np.float64))

    def columns(self, crossing: Array, gram: Array, ridge: float) -> Array:
        """A for products and their moment, [O, R]."""
        for share in (ridge, 1e2 * ridge, 1e4 * ridge):
            with contextlib.suppress(np.linalg.LinAlgError):
                columns = np.linalg.solve(_lifted(gram, share), crossing).T
                # More than there is: rounding has left a moment of terms that are nearly alike with negative values.
                if float(np.sum(columns.T * crossing)) <= 1.001 * self.total:
                    return cast(Array, columns)
        return cast(Array, np.linalg.lstsq(_lifted(gram, ridge), crossing, rcond=1e-6)[0].T)


def _settled(falls: Sequence[float]) -> bool:
    """Whether what was lost after each step says that it is time to end."""
    if not _NEGLIGIBLE < falls[-1] < math.inf:
        return True
    return len(falls) > _PATIENCE and falls[-1 - _PATIENCE] - falls[-1] < _GAIN * falls[-1]


def _curved(curvature: Array) -> Array:
    """Lower factor of a curvature between terms, with what keeps it regular and steps of hardly used terms short."""
    size = np.sqrt(np.maximum(np.diagonal(curvature), 0.0))
    size = np.maximum(size, max(_LEAST_SIZE * float(size.max()), np.finfo(np.float64).tiny))
    alike = (1.0 - _DIAGONAL) * curvature / np.outer(size, size)
    alike[np.diag_indices_from(alike)] = 1.0
    return size[:, None] * sturdy_cholesky(alike)


def _lifted(gram: Array, share: float) -> Array:
    """A moment with a share of its diagonal added, and a little where that is nothing."""
    lifted = gram.copy()
    diagonal = np.diagonal(gram)
    least = 1e-9 * max(float(diagonal.mean()), np.finfo(np.float64).tiny)
    lifted[np.diag_indices_from(lifted)] += share * diagonal + least
    return lifted
