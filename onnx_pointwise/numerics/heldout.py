"""What factors lose on patches that they were not made from.

Notation as in `factorize`. Factors that are optimal in the norm of one second moment S are judged in another one, T, of
patches that S has not seen. With few patches the two differ by far: the leading directions of S explain its own patches
all too well, and what they promise on them is no promise. Curves of all ranks come from one factorisation of S and one
of T, as those of `error_curves` come from S alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.numerics.factorize import (
    depthwise_fits,
    error_curves,
    nested_channels,
    output_crossing,
    unfolded,
)
from onnx_pointwise.numerics.forms import FORMS, Form, View, full_rank, has_form, view_of
from onnx_pointwise.numerics.norm import Norm, Working
from onnx_pointwise.numerics.separable import Terms, term_curves
from onnx_pointwise.numerics.triangular import solve_lower_transposed

Array = NDArray[np.float64]

# Kernels that a curve of a form cut in front is computed from without a thought: as many ranks as there are times the
# outputs. Of more, ranks at most, and all the same where there are many outputs.
_KERNELS = 1024
_MOST_RANKS, _RANKS = 10, 5


def held_curves(
    kernel: NDArray[Any],
    norm: Norm,
    held: Norm,
    forms: Sequence[Form] = FORMS,
    fits: Sequence[Terms] | None = None,
) -> tuple[dict[Form, Array], dict[Form, Array]]:
    """Relative squared error on held-back patches that each rank leaves, by form.

    `expand` is exact; `depthwise` comes from a few fits, see `term_curves`; `reduce` and the spatial forms are those of
    the nested directions of `error_curve`; `reduce_expand` adds what both sides lose more than they promise to its own
    curve.

    Args:
        kernel: W, [O, I, *k].
        norm: S, which the factors are made for.
        held: T, which they are judged by.
        forms: The forms.
        fits: What `depthwise_fits` gives for W and S; made anew if None.

    Returns:
        What `error_curves` promises, and what holds in T, not increasing; the same where T knows nothing.
    """
    size = kernel.shape[2:]
    forms = [form for form in forms if has_form(form, size)]
    both: tuple[Form, ...] = ("reduce", "expand") if "reduce_expand" in forms else ()
    wanted = list(dict.fromkeys([*forms, *both]))
    plain, scale = unfolded(kernel)
    flat = View(size).of_kernel(plain)
    total = 0.0 if held.moment is None or norm.moment is None else float(np.vdot(flat, held.apply(flat)))
    if total <= 0.0:
        promised = error_curves(kernel, wanted, norm)
        return promised, promised
    nesting = [form for form in wanted if form not in ("expand", "depthwise")]
    views = list(dict.fromkeys(view_of(form, size) for form in nesting))
    nested, lost = {}, {}
    for view in views:  # one after the other: each takes several matrices of the size of a moment
        lost[view], nested[view] = _in_front(view.of_kernel(plain), norm.seen(view), held.seen(view))
    promised = error_curves(kernel, [form for form in wanted if form != "depthwise"], norm, nested)
    curves: dict[Form, Array] = {}
    for form in wanted:
        if form == "depthwise":
            made = depthwise_fits(kernel, norm) if fits is None else fits
            fitted = [terms.scaled(1.0 / scale) for terms in made]
            promised[form], curves[form] = term_curves(flat, norm, held, fitted)
        elif form == "expand":
            curves[form] = _falling(_behind(flat, norm, held) / total)
        elif form in nesting and form != "reduce_expand":
            full = full_rank(form, kernel.shape[1], len(kernel), size)[0]
            curves[form] = _falling(lost[view_of(form, size)][: full + 1] / total)
    if "reduce_expand" in forms:
        excess = {side: np.maximum(curves[side] - promised[side], 0.0) for side in ("reduce", "expand")}
        whole = promised["reduce_expand"] + excess["reduce"][:, None] + excess["expand"][None, :]
        curves["reduce_expand"] = _falling(whole)
    return promised, curves


def expand_curve(kernel: NDArray[Any], norm: Norm, held: Norm) -> Array:
    """The curve of `expand` alone that holds in T, see `held_curves`, [O + 1].

    Args:
        kernel: W, [O, I, *k].
        norm: S, which the factors are made for.
        held: T, which they are judged by.
    """
    flat = View(kernel.shape[2:]).of_kernel(kernel.astype(np.float64))
    total = float(np.vdot(flat, held.apply(flat)))
    return _falling(_behind(flat, norm, held) / total) if total > 0.0 else np.zeros(len(kernel) + 1)


def _falling(curve: Array) -> Array:
    """A curve over ranks that never rises, nowhere below the one given; nothing is lost at full rank."""
    for axis in range(curve.ndim):
        curve = np.flip(np.maximum.accumulate(np.flip(curve, axis), axis), axis)
    curve[(-1,) * curve.ndim] = 0.0
    return np.clip(curve, 0.0, 1.0)


def _behind(weights: Array, norm: Norm, held: Norm) -> Array:
    """Squared error in T of the leading output directions of S, [O + 1]."""
    flat = weights.reshape(len(weights), -1)
    gram = output_crossing(weights, norm)
    vectors = np.linalg.eigh((gram + gram.T) * 0.5)[1][:, ::-1]
    turned = vectors.T @ flat
    kept = np.einsum("oi,oi->o", turned, held.apply(turned.reshape(weights.shape)).reshape(turned.shape))
    return _tails(np.maximum(kept, 0.0))


def _in_front(weights: Array, norm: Norm, held: Norm) -> tuple[Array, Working]:
    """Squared error in T of the best kernels in S behind its leading channel directions, [I + 1]; and W L.

    In the basis of those directions, S = L L^T. What the kernel for the leading R leaves of W p is the trailing part of
    W L applied to L^-1 p. Its energy in S is a sum of squares for every R; in T it is computed at a few R, and how many
    times that of S it is changes little between them.
    """
    outputs, inputs, taps = weights.shape
    rows, triangle, explained = nested_channels(weights, norm)
    promised = _tails(np.einsum("oik,oik->i", explained, explained, dtype=np.float64))
    few = max(_RANKS, min(_MOST_RANKS, inputs * taps // outputs))
    count = inputs if inputs * outputs <= _KERNELS else min(inputs, few)
    at = np.linspace(0, inputs - 1, count).round().astype(int)
    trailing = np.stack([np.where(np.arange(inputs)[:, None] < rank, 0.0, explained) for rank in at])
    trailing = trailing.astype(explained.dtype).reshape(len(at) * outputs, -1)
    left = solve_lower_transposed(triangle, trailing) if norm.full else trailing
    kernels = np.matmul(rows.T, left.reshape(len(at) * outputs, inputs, taps)).astype(held.dtype, copy=False)
    seen = np.einsum("oik,oik->o", held.apply(kernels), kernels, dtype=np.float64)
    judged = np.maximum(seen.reshape(len(at), outputs).sum(axis=1), 0.0)
    known = promised[at] > 0.0
    if not known.any():
        return promised, explained
    ratio = np.interp(np.arange(inputs + 1), at[known], judged[known] / promised[at[known]])
    return ratio * promised, explained


def _tails(values: Array) -> Array:
    """Sums from each place to the end, and 0 behind it."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)
