"""Split a convolution kernel into a kxk convolution and 1x1 convolutions, in the norm that the data define.

Notation: W[O, I, K] is the kernel with its K taps flattened, p[I, K] an input patch, S = E[p p^T] the second moment of
the patches and D = W - composed factors. The site's output error is E|D p|^2 = tr(D S D^T), so each method minimises

    tr(D S D^T)                                                                                                   (1)

for some S: the identity (`svd`), the channel moment C repeated at every tap, S = C (x) 1_K (`whitened`), or the full
S (`als`).

* `expand`, W ~ U A with U[O, R]: for any S the optimum of (1) is U = leading eigenvectors of W S W^T and A = U^T W.
* `reduce`, W[:, :, t] ~ A[:, :, t] P with one P[R, I] for all taps: for S = C (x) 1_K with C = L L^T the optimum is
  the truncated SVD of W L unfolded along the input channels. For a full S there is no closed form. Write B = P (x) 1_K;
  then A = W S B^T (B S B^T)^-1 is the exact optimum given P, and P given A is a linear least-squares problem of R * I
  unknowns, solved by conjugate gradients with the Kronecker preconditioner (sum_t A_t^T A_t) (x) (mean_t S_tt).
* `reduce_expand`, W ~ U A (P (x) 1_K): given P, U is a reduced-rank regression (Izenman 1975), the eigenvectors of
  (W S B^T)(B S B^T)^-1(W S B^T)^T; given U, it is `reduce` for U^T W. In the plain norm this is Tucker-2 by HOOI
  (De Lathauwer, De Moor, Vandewalle 2000).
* `depthwise`, W[:, :, t] ~ A diag(C[:, t]) B: a sum of products, by descent, see `separable`.
* `vertical` and `horizontal`, a kx1 kernel and a 1xk one in either order: `reduce` in another view of the kernel, see
  `forms`. All that follows sees kernels, norms and pieces in the view of the form, I being its channels and K its taps.

The basis between two factors is free: it changes nothing but what rounding does to them. It is the one of `basis`,
which makes the feature maps between them alike, so that they go well into int8 and into float16. Where a 1x1
convolution loses nothing (R of at least the feature maps on its side) it is the identity or a frame.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.errors import PlanError
from onnx_pointwise.numerics.basis import GRAIN, cosines, quiet_basis
from onnx_pointwise.numerics.forms import FORMS, AnyArray, Form, Rank, View, full_rank, has_form, most_terms, view_of
from onnx_pointwise.numerics.norm import Norm, Working, regular_inverse
from onnx_pointwise.numerics.outputs import OutputNorm
from onnx_pointwise.numerics.separable import Terms, separated, term_curves, term_fits, with_columns
from onnx_pointwise.numerics.triangular import cho_solve, sturdy_cholesky

Method = Literal["svd", "whitened", "als"]
Array = NDArray[np.float64]

METHODS: tuple[Method, ...] = get_args(Method)
DTYPES = ("float16", "bfloat16", "float32", "float64")

# Alternating sweeps stop below this relative gain in squared error; further ones cost more than they bring.
SWEEP_GAIN = 2e-3
#: The most alternating sweeps.
SWEEPS = 4
# Steps downhill of `depthwise` that stand for a sweep.
_STEPS = 8
#: Sweeps of factors that are only tried: about two hundredths of the squared error remain to be gained.
TRIAL_SWEEPS = 2
# ... or below this share of the squared output, which is the rounding of float32 weights.
NEGLIGIBLE = 1e-12
# Steps of the 1x1 in front are made this much longer than the least-squares solution asks: plain alternation creeps
# along a valley, and with this stretch three sweeps get as far as ten.
STRETCH = 2.5
# More conjugate gradients in one sweep do not help, the kxk has to follow first.
CG_STEPS = 3


@dataclass(frozen=True)
class Factors:
    """The pieces of one rewritten convolution.

    Attributes:
        form: How the kernel was split; `dense` where it is whole, and only other weights.
        rank: Channels between the pieces; `(R_in, R_out)` for `reduce_expand`, 0 for `dense`.
        before: The 1x1 in front, [R_in, I], its rows of norm 1 in the root mean square, or with orthonormal columns
            where R_in >= I; None for `expand`. Of spatial forms the kernel in front, [R, I, *k] with 1 for the axes
            that `kernel` keeps, likewise.
        kernel: The kxk, [R_out or O, R_in or I, *k], with 1 for the axes that `before` has; the depthwise one of
            `depthwise`, [R, 1, *k].
        after: The 1x1 behind, [O, R_out], its columns of norm 1 in the root mean square, or with orthonormal rows
            where R_out >= O; None for `reduce`. Of `depthwise` [O, R], of any norm.
        error: Predicted relative L2 error of the convolution's output, sqrt(tr(D S D^T) / tr(W S W^T)), of the
            factors as stored.
    """

    form: Form | Literal["dense"]
    rank: Rank
    before: AnyArray | None
    kernel: AnyArray
    after: AnyArray | None
    error: float

    @property
    def pieces(self) -> tuple[AnyArray, ...]:
        """The kernels of all pieces in order, each [out, in, *k]."""
        ones = (1,) * (self.kernel.ndim - 2)
        sides = [
            side if side is None or side.ndim > 2 else side.reshape(*side.shape, *ones)
            for side in (self.before, self.after)
        ]
        return tuple(piece for piece in (sides[0], self.kernel, sides[1]) if piece is not None)


def whole(kernel: AnyArray) -> Factors:
    """A kernel [O, I, *k] as the one piece of a convolution that is not split."""
    return Factors("dense", 0, None, kernel, None, 0.0)


@dataclass(frozen=True)
class _Split:
    """Pieces in the view of a form: before [R_in, I], kernel [R_out, R_in, K], after [O, R_out].

    Until `_finish`, None stands for a side that is not cut, and the columns of `after` are orthonormal; from there on
    all is float64.
    """

    before: Working | None
    kernel: Working
    after: Working | None


def factorize(
    kernel: AnyArray,
    form: Form,
    rank: Rank,
    *,
    method: Method = "als",
    second_moment: AnyArray | Norm | None = None,
    outputs: OutputNorm | None = None,
    sweeps: int = SWEEPS,
    start: Factors | Terms | None = None,
) -> Factors:
    """Split a convolution kernel at a rank.

    Below the number of feature maps (of a spatial form: below min(I * kh, O * kw), or min(I * kw, O * kh)) it is an
    approximation; at that number or above it is exact, and above it the information is spread over all feature maps by
    a Parseval frame, so that none of them is dead.

    Args:
        kernel: [O, I, *k] with one to three kernel dimensions; float16, bfloat16, float32 or float64.
        form: `reduce` (1x1 then kxk), `expand` (kxk then 1x1), `reduce_expand` (1x1, kxk, 1x1), `vertical` (kx1 then
            1xk), `horizontal` (1xk then kx1) or `depthwise` (1x1, depthwise kxk, 1x1).
        rank: Channels between the pieces, at least 1; for `reduce_expand` a pair `(R_in, R_out)`, or one number for
            both.
        method: `svd` minimises the plain norm whatever the moment; `whitened` the norm of the channel second moment
            (the mean over taps of the diagonal blocks where a full moment is given); `als` that of the moment given.
        second_moment: E[p p^T] of the input patches, [I*K, I*K] in the index order of `kernel.reshape(O, I*K)`, or of
            the channels only, [I, I]; None stands for the identity. Scale does not matter. A `Norm` is made of it
            once for several calls.
        outputs: What errors of the outputs count, see `OutputNorm`; all alike if None. For `als` alone.
        sweeps: The most alternating sweeps for the forms that have no closed form; `TRIAL_SWEEPS` come near the end.
        start: Factors of the same form and rank to start `als` from, such as those of a kernel that differs little; if
            None the solution for the channel moment, and the plain one where there are more than `TRIAL_SWEEPS`. No
            difference where there is a closed form or the piece in front is exact. Or one of `depthwise_fits`.

    Returns:
        The factors in the kernel's dtype, with the error measured in the norm of the moment given.

    Raises:
        PlanError: The kernel, moment, rank, form or method is not usable; the sentence says which and why.
    """
    if form not in FORMS:
        raise PlanError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    if method not in METHODS:
        raise PlanError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    plain, scale = unfolded(kernel)
    view = view_of(form, plain.shape[2:])
    true, norm = view.of_kernel(plain), _norm(second_moment, plain).seen(view)
    r_in, r_out = _ranks(form, rank)
    turned = outputs is not None and method == "als"
    weights = outputs.turn(true) if outputs is not None and turned else true
    count, inputs, taps = weights.shape
    if start is not None:
        _require_alike(start, form, rank, np.shape(kernel))
    if form == "depthwise":
        minimised, given = norm.known_to(method), outputs if turned else None
        sides = _store_terms(weights, minimised, r_in, given, sweeps, start, scale, kernel.dtype)
        error = math.sqrt(_relative_squared_error(true, norm.apply(true), _add_terms(*sides) / scale, norm))
        return Factors(form, r_in, sides[0], sides[1].reshape(r_in, 1, *view.size), sides[2], error)
    if view.first and count * taps <= min(r_in, inputs - 1):
        split = _exact_rows(weights)
    elif method == "svd":
        split = _split_by_channels(weights, r_in, r_out, None, sweeps)
    elif method == "whitened" or not norm.full or not weights.any():
        split = _split_by_channels(weights, r_in, r_out, norm.channels, sweeps)
    else:
        assert not isinstance(start, Terms), "they are those of depthwise"
        split = _split_by_patches(weights, norm.apply_lifted(weights), r_in, r_out, norm, sweeps, start)
    split = _finish(split, weights, r_in, r_out, norm)
    if outputs is not None and turned:
        if split.after is None:
            split = replace(split, kernel=outputs.back(split.kernel))
        else:
            split = replace(split, after=outputs.back(split.after))
    before, core, after = _store(split, scale, kernel.dtype)
    approximation = _merge(before, core, after)
    error = math.sqrt(_relative_squared_error(true, norm.apply(true), approximation / scale, norm))
    if before is not None and view.first:
        before = before.reshape(r_in, -1, *view.first_size)
    core = core.reshape(*core.shape[:2], *view.second_size)
    return Factors(form, (r_in, r_out) if form == "reduce_expand" else max(r_in, r_out), before, core, after, error)


def depthwise_fits(kernel: AnyArray, norm: Norm) -> tuple[Terms, ...]:
    """Fits of `depthwise` at a few ranks, see `term_fits`: its error curve goes through them, and others start there.

    Args:
        kernel: [O, I, *k], turned where errors of the outputs count differently, see `OutputNorm.turn`.
        norm: S.
    """
    plain, scale = unfolded(kernel)
    fits = term_fits(View(plain.shape[2:]).of_kernel(plain), norm)
    return tuple(terms.scaled(scale) for terms in fits)


def fitted_factors(terms: Terms, kernel: AnyArray, outputs: OutputNorm | None, error: float) -> Factors:
    """One of `depthwise_fits` as factors.

    Args:
        terms: The fit.
        kernel: [O, I, *k], not turned.
        outputs: What it was turned by; None for nothing.
        error: Relative L2 error that the fit left.
    """
    columns = terms.columns if outputs is None else outputs.back(terms.columns.astype(np.float64))
    rank, dtype = len(terms.rows), kernel.dtype
    taps = terms.taps.reshape(rank, 1, *kernel.shape[2:])
    return Factors("depthwise", rank, terms.rows.astype(dtype), taps.astype(dtype), columns.astype(dtype), error)


def is_exact(form: Form, rank: Rank, inputs: int, outputs: int, size: Sequence[int] = ()) -> bool:
    """Whether a form at a rank computes what the kernel [O, I, *k] computes, to rounding, whatever comes in.

    Args:
        form: As in `factorize`.
        rank: As in `factorize`.
        inputs: Feature maps in, I.
        outputs: Feature maps out, O.
        size: Size of the kernel, k; the spatial forms and `depthwise` need it.

    Raises:
        PlanError: The rank does not fit the form, or the form does not fit the kernel.
    """
    given = [part for part in _ranks(form, rank) if part]
    return all(part >= full for part, full in zip(given, full_rank(form, inputs, outputs, size), strict=True))


def compose(factors: Factors) -> Array:
    """Return the one kernel [O, I, *k], float64, that computes what the factors compute."""
    size, before = _shape_made(factors)[2:], factors.before
    if factors.form == "depthwise":
        assert before is not None and factors.after is not None
        made = _add_terms(before, factors.kernel.reshape(len(before), -1), factors.after)
        return made.reshape(*made.shape[:2], *size)
    if before is not None:
        before = before.reshape(len(before), -1)
    core = factors.kernel.reshape(*factors.kernel.shape[:2], -1)
    view = View(tuple(size)) if factors.form == "dense" else view_of(factors.form, size)
    return view.to_kernel(_merge(before, core, factors.after))


def relative_error(kernel: AnyArray, approximation: AnyArray, second_moment: AnyArray | Norm | None = None) -> float:
    """Relative L2 error of a convolution's output when one kernel replaces another.

    Args:
        kernel: The true kernel, [O, I, *k].
        approximation: The replacement, of the same shape.
        second_moment: As in `factorize`.

    Returns:
        sqrt(tr(D S D^T) / tr(W S W^T)); where the true output is zero, 0 if the replacement's is zero too and infinity
        if not.

    Raises:
        PlanError: The shapes differ, or a value is not finite.
    """
    weights, scale = unfolded(kernel)
    if np.shape(approximation) != np.shape(kernel):
        raise PlanError(f"the kernel has shape {np.shape(kernel)}, its replacement {np.shape(approximation)}")
    other, other_scale = unfolded(approximation)
    weights, other = _flat(weights), _flat(other)
    norm = _norm(second_moment, weights)
    return math.sqrt(_relative_squared_error(weights, norm.apply(weights), other * (other_scale / scale), norm))


def error_curve(kernel: AnyArray, form: Form, second_moment: AnyArray | Norm | None = None) -> Array:
    """Relative squared error that each rank leaves, without a factorisation per rank.

    `expand`: exact, the tail of the eigenvalues of W S W^T. `reduce`: exact for the identity and for a channel moment;
    for a full moment an upper bound that is reached: the optimal kxk weights for the leading channel-whitened
    directions, read off one Cholesky factor of the moment in that basis (`als` can only be better). `reduce_expand`:
    the same with the output side restricted to the leading eigenvectors of W S W^T; an upper bound for every moment.
    `vertical` and `horizontal`: as `reduce`, in their view of the kernel. `depthwise`: from a few fits, see
    `term_curves`; about what a short descent reaches.

    Args:
        kernel: As in `factorize`.
        form: As in `factorize`.
        second_moment: As in `factorize`.

    Returns:
        float64 in [0, 1], not increasing: [I + 1] for `reduce`, [O + 1] for `expand`, indexed by rank from 0 (all
        lost); [I + 1, O + 1] for `reduce_expand`, indexed by `(R_in, R_out)`; [min(I * kh, O * kw) + 1] for `vertical`,
        [min(I * kw, O * kh) + 1] for `horizontal`, [min(I * K, O * K, I * O) + 1] for `depthwise`.

    Raises:
        PlanError: As in `factorize`.
    """
    curves = error_curves(kernel, (form,), second_moment)
    view_of(form, np.shape(kernel)[2:])  # says why there is none
    return curves[form]


def error_curves(
    kernel: AnyArray,
    forms: Sequence[Form] = FORMS,
    second_moment: AnyArray | Norm | None = None,
    nested: Mapping[View, Working] | None = None,
) -> dict[Form, Array]:
    """Give the `error_curve` of several forms, which share most of the work.

    Args:
        kernel: As in `factorize`.
        forms: The forms.
        second_moment: As in `factorize`.
        nested: What `nested_channels` explains of the same kernel in a view, where that is known already; its scale
            does not matter.

    Returns:
        The curves by form, in the order given, without those that the kernel has too few axes for.

    Raises:
        PlanError: As in `factorize`.
    """
    for form in forms:
        if form not in FORMS:
            raise PlanError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    plain, _ = unfolded(kernel)
    given = _norm(second_moment, plain)
    curves: dict[Form, Array] = {}
    explained: dict[View, Working] = dict(nested or {})
    for form in forms:
        if not has_form(form, plain.shape[2:]):
            continue
        view = view_of(form, plain.shape[2:])
        weights, norm = view.of_kernel(plain), given.seen(view)
        if form == "depthwise":
            curves[form] = term_curves(weights, norm, norm, term_fits(weights, norm))[0]
            continue
        if form == "expand":
            gains = _output_gains(weights, norm)
        else:
            if view not in explained:
                explained[view] = _explained(weights, norm)
            gains = _input_gains(explained[view], form)
            gains = gains[: full_rank(form, plain.shape[1], len(plain), plain.shape[2:])[0]]
        kept = np.zeros([n + 1 for n in gains.shape])
        kept[(slice(1, None),) * gains.ndim] = gains
        for axis in range(gains.ndim):
            kept = np.cumsum(kept, axis=axis)
        total = kept.flat[-1]
        curve = 1.0 - kept / total if total > 0 else np.zeros_like(kept)
        curve[(-1,) * curve.ndim] = 0.0
        curves[form] = np.clip(curve, 0.0, 1.0)
    return curves


# --- reading and writing ---------------------------------------------------------------------------------------------


def unfolded(kernel: AnyArray) -> tuple[Array, float]:
    """Check a kernel; return it as float64 [O, I, *k] with largest magnitude in [0.5, 1), and the scale taken out."""
    kernel = np.asarray(kernel)
    if kernel.dtype.name not in DTYPES:
        raise PlanError(f"a kernel of dtype {kernel.dtype.name} cannot be factorised; it must be {', '.join(DTYPES)}")
    if not 3 <= kernel.ndim <= 5 or kernel.size == 0:
        raise PlanError(f"a kernel must be [O, I, *k] with one to three kernel dimensions, not {kernel.shape}")
    weights = kernel.astype(np.float64)
    scale = float(np.max(np.abs(weights)))
    if not math.isfinite(scale):
        raise PlanError("the kernel holds values that are not finite (NaN or infinity); it cannot be factorised")
    scale = math.ldexp(1.0, math.frexp(scale)[1])
    return weights / scale, scale


def _norm(second_moment: AnyArray | Norm | None, weights: Array) -> Norm:
    inputs, taps = weights.shape[1], math.prod(weights.shape[2:])
    if not isinstance(second_moment, Norm):
        return Norm.of(second_moment, inputs, taps)
    if (second_moment.inputs, second_moment.taps) != (inputs, taps):
        raise PlanError(
            f"the norm is one of kernels with {second_moment.inputs} input channels and {second_moment.taps} taps, not "
            f"{inputs} and {taps}"
        )
    return second_moment


def _ranks(form: Form, rank: Rank) -> tuple[int, int]:
    """Return (R_in, R_out) with 0 for a side that the form leaves alone."""
    parts = rank if isinstance(rank, tuple | list) else (rank,)
    try:
        numbers = [0 if isinstance(part, bool) else operator.index(part) for part in parts]
    except TypeError:
        numbers = []
    wanted = (1, 2) if form == "reduce_expand" else (1,)
    if len(numbers) not in wanted or min(numbers) < 1:
        what = "a whole number of at least 1" + (" or a pair of them" if form == "reduce_expand" else "")
        raise PlanError(f"the rank of {form} must be {what}, not {rank!r}")
    if form == "expand":
        return 0, numbers[0]
    return numbers[0], numbers[-1] if form == "reduce_expand" else 0


def _require_alike(start: Factors | Terms, form: Form, rank: Rank, kernel: tuple[int, ...]) -> None:
    """Refuse factors to start from that are none of such a kernel [O, I, *k] in this form, at this rank unless terms.

    Raises:
        PlanError: They are not.
    """
    if isinstance(start, Terms):
        sizes = len(start.columns), start.rows.shape[1], start.taps.shape[1]
        if form != "depthwise" or sizes != (*kernel[:2], math.prod(kernel[2:])):
            raise PlanError(f"terms of a kernel {sizes}, taps in one, are nothing to start {form} of {kernel} from")
        return
    made = _shape_made(start)
    alike = start.form == form and _ranks(form, start.rank) == _ranks(form, rank)
    if not alike or made != kernel:
        raise PlanError(
            f"the factors to start from are {start.form} at rank {start.rank} of a kernel {made}, not {form} at rank "
            f"{rank} of one {kernel}"
        )


def _shape_made(factors: Factors) -> tuple[int, ...]:
    """Shape of the kernel that factors make, [O, I, *k]."""
    before, size = factors.before, factors.kernel.shape[2:]
    if before is not None and before.ndim > 2:
        size = tuple(map(max, size, before.shape[2:]))
    first = factors.kernel if before is None else before
    last = factors.kernel if factors.after is None else factors.after
    return (len(last), first.shape[1], *size)


def _cuts(r_in: int, r_out: int, inputs: int, outputs: int) -> tuple[bool, bool]:
    """Whether feature maps are lost in front of the kxk and behind it, given the ranks as `_ranks` returns them."""
    return 0 < r_in < inputs, 0 < r_out < outputs


def _flat(kernel: AnyArray) -> Array:
    return kernel.astype(np.float64).reshape(*kernel.shape[:2], -1)


def _store(split: _Split, scale: float, dtype: np.dtype[Any]) -> tuple[AnyArray | None, AnyArray, AnyArray | None]:
    """Cast the pieces to a dtype; the kernel in the middle makes up for what rounding does to those at its sides."""
    core = split.kernel * scale
    before, after = split.before, split.after
    if before is not None:
        stored = before.astype(dtype)
        if len(before) <= len(core) * core.shape[2]:  # else its rows may depend on one another
            core = np.einsum("ort,rs->ost", core, _carry(before, stored.astype(np.float64)), optimize=True)
        before = stored
    if after is not None:
        stored = after.astype(dtype)
        core = np.einsum("sr,rit->sit", _carry(after.T, stored.astype(np.float64).T).T, core, optimize=True)
        after = stored
    with np.errstate(over="ignore"):
        cast_core = core.astype(dtype)
    if not np.isfinite(cast_core.astype(np.float64)).all():
        raise PlanError(f"the factors overflow {dtype.name}; convert the model to float32 first")
    return before, cast_core, after


def _store_terms(
    weights: Array,
    norm: Norm,
    rank: int,
    outputs: OutputNorm | None,
    sweeps: int,
    start: Factors | Terms | None,
    scale: float,
    dtype: np.dtype[Any],
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Rows, taps and columns of `depthwise` in a dtype; columns make up for what half precision does to the others."""
    first, steps = None, _STEPS * sweeps
    if isinstance(start, Terms):
        first = start.scaled(1.0 / scale)
        steps = steps * 3 // 8  # 6 from the fits of a curve get where 14 get from singular values
    elif start is not None:
        assert start.before is not None and start.after is not None
        columns = start.after.astype(np.float64) / scale
        columns = columns if outputs is None else outputs.turn(columns)
        rows, taps = start.before.astype(np.float64), start.kernel.astype(np.float64).reshape(rank, -1)
        first = Terms(rows, taps, columns)
        steps //= 3  # from factors of nearly the same kernel
    terms = separated(weights, norm, rank, steps=steps, start=first)
    before, core, columns = terms.rows.astype(dtype), terms.taps.astype(dtype), terms.columns
    coarse = np.dtype(dtype).itemsize < 4
    if coarse and rank < most_terms(weights.shape[1], len(weights), weights.shape[2]):
        columns = with_columns(weights, norm, before.astype(np.float64), core.astype(np.float64))
    columns = columns if outputs is None else outputs.back(columns)
    with np.errstate(over="ignore"):
        after = (columns * scale).astype(dtype)
    if not all(np.isfinite(side.astype(np.float64)).all() for side in (before, core, after)):
        raise PlanError(f"the factors overflow {dtype.name}; convert the model to float32 first")
    return before, core, after


def _add_terms(rows: AnyArray, taps: AnyArray, columns: AnyArray) -> Array:
    """Add stored terms up to one kernel over flattened taps, [O, I, K]."""
    return Terms(*(side.astype(np.float64) for side in (rows, taps, columns))).sum


def _carry(exact: Array, rounded: Array) -> Array:
    """Return X with X @ rounded as close as can be to exact, for matrices [R, I] of full rank."""
    if np.array_equal(exact, rounded):
        return np.eye(len(exact))
    rows, columns = exact.shape
    if rows <= columns:
        return cast(Array, np.linalg.solve(rounded @ rounded.T, rounded @ exact.T).T)
    return exact @ np.linalg.solve(rounded.T @ rounded, rounded.T)


def _merge(before: AnyArray | None, kernel: AnyArray, after: AnyArray | None) -> Array:
    """Multiply stored pieces into one kernel over flattened taps, [O, I, K]."""
    weights = _flat(kernel)
    if before is not None:
        weights = _mix_inputs(weights, before.astype(np.float64))
    if after is not None:
        weights = _mix_outputs(after.astype(np.float64), weights)
    return weights


# --- small algebra ---------------------------------------------------------------------------------------------------


def _mix_inputs(weights: Working, matrix: Working) -> Working:
    """[O, R, K] and [R, I] to [O, I, K]: the matrix acts on the input channels of every tap."""
    return cast(Array, np.matmul(matrix.T, weights))


def _mix_outputs(matrix: Working, weights: Working) -> Working:
    """[O, R] and [R, I, K] to [O, I, K]."""
    return (matrix @ weights.reshape(weights.shape[0], -1)).reshape(len(matrix), *weights.shape[1:])


def _inner(a: Working, b: Working) -> float:
    return float(np.vdot(a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)))


def _relative_squared_error(weights: Array, weighted: Working, approximation: Array, norm: Norm) -> float:
    """tr(D S D^T) / tr(W S W^T), given W S."""
    total = _inner(weighted, weights)
    difference = weights - approximation
    lost = max(_inner(norm.apply(difference), difference), 0.0)
    if total > 0.0:
        return lost / total
    return math.inf if lost else 0.0


def _leading(symmetric: Working, rank: int) -> Working:
    """Leading eigenvectors as columns, largest first."""
    vectors = np.linalg.eigh(symmetric.astype(np.float64, copy=False))[1]
    return vectors[:, ::-1][:, :rank].astype(symmetric.dtype, copy=False)


def _input_gram(weights: Working) -> Working:
    """[I, I]: inner products of the input channels' slices, without a decomposition of the long unfolding."""
    unfolded = weights.transpose(1, 0, 2).reshape(weights.shape[1], -1)
    return unfolded @ unfolded.T


def _output_gram(weights: Working) -> Working:
    unfolded = weights.reshape(len(weights), -1)
    return unfolded @ unfolded.T


def _frame(rank: int, size: int) -> Array:
    """P[rank, size] with P^T P = 1 and no zero row: the identity, or the first columns of the orthonormal DCT-II."""
    return np.eye(size) if rank == size else cosines(rank, size)


def _inverse_apply(symmetric: Working, right: Working) -> Working:
    """symmetric^-1 right for a positive semidefinite matrix, by the lower factor."""
    return cho_solve(sturdy_cholesky(symmetric), right)


# --- the identity and channel moments --------------------------------------------------------------------------------


def _split_by_channels(weights: Array, r_in: int, r_out: int, channels: Array | None, sweeps: int) -> _Split:
    """Minimise the norm of S = C (x) 1_K: the plain norm of the kernel with its input channels whitened."""
    root = None if channels is None else sturdy_cholesky(channels)
    white = weights if root is None else _mix_inputs(weights, root)
    rows, columns = _plain_bases(white, r_in, r_out, sweeps)
    core = weights
    if rows is not None:
        core = _mix_inputs(white, rows.T)
        if root is not None:
            rows = cast(Array, np.linalg.solve(root.T, rows.T).T)
    if columns is not None:
        core = _mix_outputs(columns.T, core)
    return _Split(rows, core, columns)


def _plain_bases(weights: Array, r_in: int, r_out: int, sweeps: int) -> tuple[Array | None, Array | None]:
    """Orthonormal rows [R_in, I] and columns [O, R_out], optimal in the plain norm; None for a side not cut."""
    outputs, inputs, _ = weights.shape
    cut_in, cut_out = _cuts(r_in, r_out, inputs, outputs)
    rows = _leading(_input_gram(weights), r_in).T if cut_in else None
    columns = _leading(_output_gram(weights), r_out) if cut_out else None
    if rows is None or columns is None:
        return rows, columns
    kept = 0.0
    total = _inner(weights, weights)
    for _ in range(sweeps):  # HOOI
        columns = _leading(_output_gram(_mix_inputs(weights, rows.T)), r_out)
        small = _mix_outputs(columns.T, weights)
        rows = _leading(_input_gram(small), r_in).T
        core = _mix_inputs(small, rows.T)
        previous, kept = kept, _inner(core, core)
        if kept - previous <= SWEEP_GAIN * (total - kept) + NEGLIGIBLE * total:
            break
    return rows, columns


def _exact_rows(weights: Array) -> _Split:
    """All that the outputs read of the inputs, [O * K, I], where that is less than there are channels."""
    rows = np.linalg.qr(weights.transpose(0, 2, 1).reshape(-1, weights.shape[1]).T)[0].T
    return _Split(rows, _mix_inputs(weights, rows.T), None)


# --- full patch moments ----------------------------------------------------------------------------------------------


def _split_by_patches(
    weights: Array, weighted: Working, r_in: int, r_out: int, norm: Norm, sweeps: int, start: Factors | None
) -> _Split:
    """Minimise (1) for a full second moment S, given W S; in the type of S."""
    outputs, inputs, _ = weights.shape
    cut_in, cut_out = _cuts(r_in, r_out, inputs, outputs)
    if not cut_in:
        core, columns = weights, None
        if cut_out:
            flat = weights.reshape(outputs, -1).astype(norm.dtype, copy=False)
            columns = _leading((flat @ weighted.reshape(outputs, -1).T).astype(np.float64), r_out)
            core = _mix_outputs(columns.T, core)
        return _Split(None, core, columns)
    problem = _Patches(weights.astype(norm.dtype, copy=False), weighted, norm, _inner(weighted, weights))
    cut = r_out if cut_out else 0
    if start is None:
        # The plain solution, with both sides where both are cut, so that this one is never worse.
        simple = ((norm.channels, 0), (None, cut))[: 1 if sweeps <= TRIAL_SWEEPS else 2]
        first = [_split_by_channels(weights, r_in, behind, channels, sweeps).before for channels, behind in simple]
    else:
        assert start.before is not None
        rows = start.before.astype(np.float64)
        first = [rows.reshape(len(rows), -1)]
    starts = [problem.best_kernel(side, cut) for side in first if side is not None]
    best = max(starts, key=lambda solution: solution.kept)
    stretch = STRETCH
    for _ in range(sweeps):
        step = problem.best_rows(best) - best.rows
        trial = problem.best_kernel(best.rows + np.asarray(stretch, step.dtype) * step, cut)
        if trial.kept < best.kept and stretch > 1.0:
            stretch = 1.0
            trial = problem.best_kernel(best.rows + step, cut)
        gain = trial.kept - best.kept
        if gain > 0.0:
            best = trial
        if gain <= SWEEP_GAIN * (problem.total - best.kept) + NEGLIGIBLE * problem.total:
            break
    return _Split(best.rows, best.core, best.columns)


@dataclass(frozen=True)
class _Solution:
    """Rows [R, I], the optimal kernel [R_out or O, R, K] for them, columns [O, R_out], and the energy they keep."""

    rows: Working
    core: Working
    columns: Working | None
    kept: float


@dataclass(frozen=True)
class _Patches:
    """One `reduce` problem under a full moment.

    Attributes:
        weights: W, [O, I, K].
        weighted: W S, [O, I, K].
        norm: S.
        total: tr(W S W^T).
    """

    weights: Working
    weighted: Working
    norm: Norm
    total: float

    def best_kernel(self, rows: Working, r_out: int) -> _Solution:
        """Exact least squares for the kxk given the 1x1 in front; with `r_out` also for the 1x1 behind."""
        rows = np.linalg.qr(rows.T)[0].T.astype(self.norm.dtype, copy=False)
        outputs, inputs, taps = self.weights.shape
        rank = len(rows)
        right = _mix_inputs(self.weighted, rows.T).reshape(outputs, rank * taps)
        half = (self.norm.blocks @ rows.T).reshape(taps * taps, inputs, rank)
        gram = np.matmul(rows, half).reshape(taps, taps, rank, rank)  # [u, t, s, r]
        gram = gram.transpose(2, 0, 3, 1).reshape(rank * taps, rank * taps)
        core = _inverse_apply((gram + gram.T) * gram.dtype.type(0.5), right.T).T
        columns = None
        if r_out:
            outer = core @ right.T
            columns = _leading((outer + outer.T) * outer.dtype.type(0.5), r_out)
            core, right = columns.T @ core, columns.T @ right
        kept = _inner(core, right)
        return _Solution(rows, core.reshape(len(core), rank, taps), columns, kept)

    def best_rows(self, solution: _Solution) -> Working:
        """Least squares for the 1x1 in front given the kxk (and the 1x1 behind): preconditioned conjugate gradients."""
        core, rows = solution.core, solution.rows
        _, rank, taps = core.shape
        inputs = rows.shape[1]
        weighted = self.weighted if solution.columns is None else _mix_outputs(solution.columns.T, self.weighted)
        flat = core.reshape(len(core), rank * taps)
        gram = (flat.T @ flat).reshape(rank, taps, rank, taps)  # [r, t, s, u]
        spread = np.ascontiguousarray(gram.transpose(0, 3, 1, 2)).reshape(rank * taps * taps, rank)  # [(r, u, t), s]

        def apply(x: Working) -> Working:
            return (spread @ x).reshape(rank, taps * taps * inputs) @ self.norm.blocks

        across = np.einsum("rtst->rs", gram, dtype=np.float64)
        left, right = regular_inverse(across).astype(self.norm.dtype, copy=False), self.norm.channels_inverse
        target = np.tensordot(core, weighted, axes=([0, 2], [0, 2]))
        residual = target - apply(rows)
        step = left @ residual @ right
        direction, slope = step, _inner(residual, step)
        x = rows
        for _ in range(CG_STEPS):
            if slope <= 0.0:
                break
            image = apply(direction)
            curvature = _inner(direction, image)
            if curvature <= 0.0:
                break
            length = slope / curvature
            x = x + np.asarray(length, x.dtype) * direction
            residual = residual - np.asarray(length, x.dtype) * image
            step = left @ residual @ right
            slope, previous = _inner(residual, step), slope
            direction = step + np.asarray(slope / previous, x.dtype) * direction
        return x


# --- the basis between the factors -----------------------------------------------------------------------------------


def _finish(split: _Split, weights: Array, r_in: int, r_out: int, norm: Norm) -> _Split:
    """Fix the free bases: the quiet one where a side is cut, a frame where it is exact."""
    outputs, inputs, _ = weights.shape
    rows, columns = (None if side is None else side.astype(np.float64) for side in (split.before, split.after))
    core, channels = split.kernel.astype(np.float64), norm.channels
    if rows is not None:
        # Orthonormal first: the triangle may be badly conditioned, the basis made of it is not.
        basis, triangle = np.linalg.qr(rows.T)
        rows, core = basis.T, _mix_inputs(core, triangle.T)
        crossing = rows @ rows.T if channels is None else rows @ channels @ rows.T
        # The columns behind are orthonormal here, so the kxk alone has the inner products of both.
        there, back = quiet_basis(crossing + GRAIN * _level(channels) * (rows @ rows.T), _input_gram(core))
        rows, core = there @ rows, _mix_inputs(core, back)
        if r_in > len(rows):
            frame = _frame(r_in, len(rows))
            rows, core = frame @ rows, _mix_inputs(core, frame.T)
        size = math.sqrt(_inner(rows, rows) / len(rows))
        rows, core = rows / size, core * size
    elif r_in:
        rows = _frame(r_in, inputs)
        core = _mix_inputs(core, rows.T)
    if columns is not None:
        whole = core if rows is None else _mix_inputs(core, rows)
        crossing = output_crossing(whole, norm)
        entering = _level(channels if rows is None or channels is None else rows @ channels @ rows.T)
        there, back = quiet_basis(crossing + GRAIN * entering * _output_gram(core), columns.T @ columns)
        core, columns = _mix_outputs(there, core), columns @ back
        size = math.sqrt(_inner(columns, columns) / columns.shape[1])
        core, columns = core * size, columns / size
    elif r_out:
        columns = _frame(r_out, outputs).T
        core = _mix_outputs(columns.T, core)
    return _Split(rows, core, columns)


def output_crossing(weights: Array, norm: Norm) -> Array:
    """W (S + jitter 1) W^T, [O, O], symmetric but for rounding."""
    flat = weights.reshape(len(weights), -1)
    return cast(Array, (flat.astype(norm.dtype) @ norm.apply_lifted(weights).reshape(flat.shape).T).astype(np.float64))


def _level(moment: Array | None) -> float:
    """Mean square over feature maps."""
    return 1.0 if moment is None else float(np.trace(moment)) / len(moment)


def _output_gains(weights: Array, norm: Norm) -> Array:
    """Energy that each further rank of `expand` keeps, [O]; what the leading ranks keep is their sum."""
    return cast(Array, np.maximum(np.linalg.eigvalsh(output_crossing(weights, norm))[::-1], 0.0))


def _explained(weights: Array, norm: Norm) -> Working:
    """[O, I, K]: the outputs over orthogonal directions, the leading ones of which each further input channel adds."""
    if norm.moment is None:
        return _mix_inputs(weights, np.linalg.eigh(_input_gram(weights))[1][:, ::-1])
    return nested_channels(weights, norm)[2]


def nested_channels(weights: Array, norm: Norm) -> tuple[Working, Working, Working]:
    """Directions of the input channels, the most telling first, and what each further one explains.

    The leading directions, made orthonormal one after the other, span the same nested spaces. In that basis W L by a
    Cholesky factor L of S is a Gram-Schmidt over channels: its leading columns hold exactly what the leading channels
    can explain with their best kernel.

    Args:
        weights: W, [O, I, K].
        norm: S, which is not the identity.

    Returns:
        The directions [I, I], one a row; L of S in their basis, [I * K, I * K], or [I, I] for a moment of channels; and
        W L, [O, I, K]; in the type of S.
    """
    _, inputs, taps = weights.shape
    channels = norm.channels
    assert channels is not None and norm.moment is not None
    root = sturdy_cholesky(channels)
    white = _mix_inputs(weights, root)
    vectors = np.linalg.eigh(_input_gram(white))[1][:, ::-1]
    if not norm.full:
        # W R^-T V in the basis V^T R^-1: there S is the identity.
        return np.linalg.solve(root.T, vectors).T, np.eye(inputs), _mix_inputs(white, vectors)
    rows = np.linalg.solve(root.T, vectors)
    rows = np.linalg.qr(rows)[0].T.astype(norm.dtype, copy=False)
    problem = norm.moment.reshape(inputs, taps * inputs * taps)
    turned = (rows @ problem).reshape(inputs, taps, inputs, taps)
    turned = np.einsum("sj,rtju->rtsu", rows, turned, optimize=True).reshape(inputs * taps, inputs * taps)
    turned = (turned + turned.T) * turned.dtype.type(0.5)
    turned[np.diag_indices_from(turned)] += turned.dtype.type(norm.jitter)
    triangle = sturdy_cholesky(turned)
    core = _mix_inputs(weights.astype(norm.dtype, copy=False), rows.T)
    return rows, triangle, (core.reshape(len(core), -1) @ triangle).reshape(weights.shape)


def _input_gains(explained: Working, form: Form) -> Array:
    """Energy that each further rank of a form cut in front, [I], or pair of ranks of `reduce_expand`, [I, O], keeps."""
    if form != "reduce_expand":
        return cast(Array, np.einsum("oik,oik->i", explained, explained, dtype=np.float64))
    columns = _leading(_output_gram(explained), len(explained))
    turned = _mix_outputs(columns.T, explained)
    return cast(Array, np.einsum("oik,oik->io", turned, turned, dtype=np.float64))
