"""Weights of one rewritten site that give back what the untouched network computes, from inputs that have drifted.

Notation as in `factorize`. p is a patch of the site's input in the network as rewritten so far, t the output that the
untouched network has at the same place. What the site computes goes through an activation, see `activation`, after a
value s is added to it (a residual branch; 0 for none).

* Least squares. With e = t - W p - b and both sides centred, G = E[e p^T] (S + a 1)^-1 and T = W + G: a ridge towards
  the trained kernel W, whose strength a is picked on held-back examples. T is then factorised in the norm of S, and the
  bias takes up the means.
* Through the activation. Where the true u = t + s lies on a flat part, any output there is as good, so its target
  may move there freely: the target of a rectifier is u where u > 0 and min(u', 0) elsewhere, with u' what the factors
  give now. Alternating this with least squares never raises the one-sided squared error (a majorisation of the error
  behind the activation; Zhang, Zou, He and Sun 2016 treat the same problem with penalties). Curves likewise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.numerics.activation import LINEAR, Activation
from onnx_pointwise.numerics.factorize import SWEEPS, TRIAL_SWEEPS, Factors, Method, compose, factorize, whole
from onnx_pointwise.numerics.forms import Form, Rank
from onnx_pointwise.numerics.moments import Moments, Sums, blended, raised, shrinkage, tap_blend
from onnx_pointwise.numerics.norm import Norm
from onnx_pointwise.numerics.outputs import OutputNorm
from onnx_pointwise.numerics.parallel import in_order
from onnx_pointwise.numerics.triangular import cho_solve, cholesky

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]

# Strengths of the ridge, relative to the mean eigenvalue of S; infinity stands for W itself.
RIDGES = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, math.inf)
# Wider patches than this are solved for each strength of fewer ones: eigenvectors would take longer.
_EIGEN_LIMIT = 700
_FEW_RIDGES = RIDGES[2:-1:2]
# With more patches than so many for each number in one, a refit is not put to the proof.
_PLENTY = 5
#: Rounds through an activation, at most, and the share of the error that a round has to take off for the next one.
ROUNDS = 3
_GAIN = 0.01
# A round gains about so many times what the next one does.
_DECAY = 3.0
# Targets are moved this much further than the activation asks: two rounds then get about as far as three. At full rank
# the error never rises up to twice as far. Below it may, which the next round sees; nobody sees what the last one gave.
_STRETCH, _LAST_STRETCH = 1.4, 1.2
# What the factorisation adds to S at least.
_LEAST = 1e-6


@dataclass(frozen=True)
class Block:
    """Patches and what should come out for them.

    Attributes:
        patches: float32 [I*K, n], less the shift that `reconstruct` is told.
        targets: float32 [O, n], the site's output in the untouched network, corrected for what is added to it.
        added: float32 [O, n], what the network adds to the output before the activation; None for nothing.
        held: Whether the block is held back for the choice of the ridge.
    """

    patches: Array32
    targets: Array32
    added: Array32 | None = None
    held: bool = False


@dataclass(frozen=True, eq=False)
class Beforehand:
    """What is known of the patches of all blocks.

    Attributes:
        shift: float32 [I*K], what was taken off all of them, so that means do not eat the digits.
        sums: What `patch_sums` gives for blocks with the same patches; None where they are still to be summed up.
    """

    shift: Array32
    sums: tuple[Moments, Moments] | None = None


@dataclass(frozen=True)
class Reconstruction:
    """Weights of a rewritten site.

    Attributes:
        factors: The pieces; their error is that of the factorisation alone.
        bias: [O].
        error: Relative L2 error of the output over the blocks, before the activation, means taken out.
        ridge: Strength of the ridge relative to the mean eigenvalue of S; infinite where W itself was best.
    """

    factors: Factors
    bias: Array64
    error: float
    ridge: float


def reconstruct(
    kernel: NDArray[np.floating],
    bias: Array64 | None,
    form: Form | None,
    rank: Rank,
    blocks: Sequence[Callable[[], Block]],
    *,
    beforehand: Beforehand | None = None,
    method: Method = "als",
    norm: OutputNorm | None = None,
    activation: Activation = LINEAR,
    start: Factors | None = None,
    rounds: int = ROUNDS,
    threads: int = 1,
) -> Reconstruction:
    """Compute the weights of one rewritten site.

    Args:
        kernel: The trained kernel [O, I, *k].
        bias: The trained bias [O].
        form: How the site is rewritten; None where it stays one convolution, whose weights alone make up for what has
            drifted before it.
        rank: Channels between the pieces.
        blocks: Each gives patches and targets, the same ones at each call, in any thread. They are asked for once and
            again for each round.
        beforehand: What is known of all patches; nothing is taken off them if None.
        method: See `factorize`.
        norm: Which errors of the outputs count, `outputs` of `factorize`.
        activation: What follows the site.
        start: Factors of the same form and rank for a kernel that differs little, to start from.
        rounds: Rounds through the activation, where there is one, at most.
        threads: Blocks to work on at a time; the result does not depend on it.

    Returns:
        The weights, in the kernel's dtype.

    Raises:
        PlanError: As in `factorize`.
        InputError: An activation is not finite.
    """
    outputs = len(kernel)
    flat = kernel.astype(np.float64).reshape(outputs, -1)
    offset = np.zeros(outputs) if bias is None else bias
    known = Beforehand(np.zeros(flat.shape[1], np.float32)) if beforehand is None else beforehand
    fit, held, parts = _accumulate(flat, offset, blocks, known, threads)
    problem = _Problem(kernel, offset, form, rank, parts, known.shift, method, norm, activation, threads)
    both = fit.merged(held) if held is not None else fit
    ridge = RIDGES[2] if held is None else _pick_ridge(fit, held, threads)
    if activation.linear:
        rounds = 0
    if held is not None and both.count < _PLENTY * flat.shape[1]:
        ridge, rounds, start = _proven(problem, fit, ridge, rounds, start)
    solved = problem.solved(both, ridge, rounds, start=start)[-1]
    return Reconstruction(solved.factors, solved.bias, solved.error, solved.ridge)


def patch_sums(blocks: Sequence[Callable[[], Block]], shift: Array32, *, threads: int = 1) -> tuple[Moments, Moments]:
    """Sum up the patches of blocks, for several sites that see the same ones.

    Args:
        blocks: As for `reconstruct`; their targets do not matter.
        shift: As in `Beforehand`.
        threads: Blocks to work on at a time; the result does not depend on it.

    Returns:
        Sums of those to fit, and of those held back.

    Raises:
        InputError: An activation is not finite.
    """
    fit = Moments(len(shift), shift=shift)
    held = fit.sibling()

    def part(make: Callable[[], Block]) -> tuple[bool, Sums]:
        block = make()
        return block.held, fit.sums(block.patches, shifted=True)

    for back, sums in in_order(part, blocks, threads):
        (held if back else fit).include(sums)
    return fit, held


def _proven(
    problem: _Problem, fit: Moments, ridge: float, rounds: int, start: Factors | None
) -> tuple[float, int, Factors]:
    """Of few patches a refit may learn what does not hold: what it promises has to show on the blocks held back.

    Returns:
        The ridge, infinite where the trained kernel is the better target; the rounds through the activation, 0 where
        they do harm; and the factors that showed it.
    """
    options: list[tuple[float, int, Factors]] = []
    losses: list[float] = []
    for strength in dict.fromkeys([math.inf, ridge]):
        solutions = problem.solved(fit, strength, rounds, fit_only=True, start=start)
        # Without rounds, and with all of them.
        for count, solved in {0: solutions[0], rounds: solutions[-1]}.items():
            options.append((strength, count, solved.factors))
            losses.append(problem.held_loss(solved))
    return options[losses.index(min(losses))]


@dataclass(frozen=True)
class _Solved:
    """Weights, and the change of kernel [O, I*K] and bias [O] that they amount to."""

    factors: Factors
    bias: Array64
    error: float
    ridge: float
    change: Array64
    moved: Array64


@dataclass(frozen=True)
class _Part:
    """A block, made anew whenever it is asked for, with the residuals e of the trained kernel, [O, n]."""

    make: Callable[[], Block]
    held: bool
    residual: Array32


@dataclass(frozen=True)
class _Problem:
    """What `reconstruct` was asked, with the residuals of the trained kernel."""

    kernel: NDArray[np.floating]
    offset: Array64
    form: Form | None
    rank: Rank
    parts: Sequence[_Part]
    shift: Array32
    method: Method
    outputs: OutputNorm | None
    activation: Activation
    threads: int

    def solved(
        self, moments: Moments, ridge: float, rounds: int, *, fit_only: bool = False, start: Factors | None = None
    ) -> list[_Solved]:
        """Solve for the moments of some blocks.

        Args:
            moments: Of the patches and residuals; their targets are replaced where there are rounds.
            ridge: Strength of the ridge relative to the mean eigenvalue of S.
            rounds: Rounds through the activation.
            fit_only: Whether the blocks held back are left out.
            start: Factors for a target that differs little.

        Returns:
            The solutions before the first round and after each.
        """
        kernel, flat = self.kernel, self.kernel.astype(np.float64).reshape(len(self.kernel), -1)
        covariance, mean = moments.covariance(), moments.mean()
        level = max(float(np.trace(covariance)) / len(covariance), np.finfo(np.float64).tiny)
        norm = None if self.form is None else self.norm(covariance, moments.count, level)
        ridge, solver = _solver(covariance, ridge, level)

        def solve(start: Factors | None, sweeps: int) -> tuple[Factors, Array64, Array64]:
            target = flat
            if solver is not None:
                target = flat + cho_solve(solver, moments.cross_covariance().T).T
            wanted = target.reshape(kernel.shape).astype(kernel.dtype)
            factors = whole(wanted) if norm is None else self.factors(wanted, norm, start, sweeps)
            composed = compose(factors).reshape(len(flat), -1)
            return factors, self.offset + moments.target_mean() + (flat - composed) @ mean, composed

        factors, constant, composed = solve(start, SWEEPS)
        error = _relative_error(moments, flat, composed, covariance)
        solutions = [_Solved(factors, constant, error, ridge, composed - flat, constant - self.offset)]
        first = moments.targets()
        used = [part for part in self.parts if not (fit_only and part.held)]
        left = math.inf
        for number in range(rounds):
            change = composed - flat
            moved = constant - self.offset + change @ self.shift
            stretch = _STRETCH if number < rounds - 1 else _LAST_STRETCH
            lost = _retarget(moments, change, moved, self.activation, stretch, used, self.threads)
            gained = 1.0 - lost / left if left > 0.0 else 0.0
            if gained < 0.0:
                solutions.pop()
            if gained < _GAIN:
                break
            left = lost
            factors, constant, composed = solve(factors, TRIAL_SWEEPS)  # the target has moved little
            solutions.append(_Solved(factors, constant, error, ridge, composed - flat, constant - self.offset))
            if gained < _DECAY * _GAIN:
                break  # the next one would hardly be worth its look at all patches
        moments.put_back(first)  # whoever solves next starts from the residuals again
        return solutions

    def norm(self, covariance: Array64, count: int, level: float) -> Norm:
        """The norm of the factorisation; without the ridge, in which it would not show which directions matter."""
        taps = math.prod(self.kernel.shape[2:])
        lifted = blended(covariance, taps, tap_blend(count, len(covariance), taps))
        lifted = raised(lifted, max(shrinkage(lifted, count), _LEAST) * level)
        return Norm.of(lifted, self.kernel.shape[1], taps, threads=self.threads)

    def factors(self, target: NDArray[np.floating], norm: Norm, start: Factors | None, sweeps: int) -> Factors:
        """Split a target kernel."""
        assert self.form is not None
        return factorize(
            target,
            self.form,
            self.rank,
            method=self.method,
            second_moment=norm,
            outputs=self.outputs,
            sweeps=sweeps,
            start=start,
        )

    def held_loss(self, solved: _Solved) -> float:
        """Squared error behind the activation on the blocks held back."""
        narrow = solved.change.astype(np.float32)
        shift = (solved.moved + solved.change @ self.shift).astype(np.float32)[:, None]
        lost = 0.0
        for part in self.parts:
            if not part.held:
                continue
            block = part.make()
            now = block.targets - part.residual + narrow @ block.patches + shift
            added = 0.0 if block.added is None else block.added
            lost += self.activation.lost(block.targets + added, now + added)
        return lost


def _solver(covariance: Array64, ridge: float, level: float) -> tuple[float, Any]:
    """Factor S with a ridge, the next stronger one where rounding has left S with negative values beyond it."""
    for strength in (strength for strength in RIDGES if ridge <= strength < math.inf):
        with contextlib.suppress(np.linalg.LinAlgError):
            return strength, cholesky(raised(covariance, strength * level))
    return math.inf, None


def _accumulate(
    flat: Array64,
    offset: Array64,
    blocks: Sequence[Callable[[], Block]],
    known: Beforehand,
    threads: int,
) -> tuple[Moments, Moments | None, list[_Part]]:
    """Moments of the patches and of the residuals e, of the blocks to fit and of those held back; and all residuals."""
    narrow, constant = flat.astype(np.float32), (offset + flat @ known.shift).astype(np.float32)[:, None]
    if known.sums is None:
        fit = Moments(flat.shape[1], len(flat), shift=known.shift)
        held = fit.sibling()
    else:
        fit, held = (one.with_targets(len(flat)) for one in known.sums)

    def part(make: Callable[[], Block]) -> tuple[bool, Array32, Sums]:
        block = make()
        residual = block.targets - narrow @ block.patches - constant
        return block.held, residual, fit.sums(block.patches, residual, anew=known.sums is None, shifted=True)

    parts = []
    for make, (back, residual, sums) in zip(blocks, in_order(part, blocks, threads), strict=True):
        (held if back else fit).include(sums)
        parts.append(_Part(make, back, residual))
    if not fit.count:
        return held, None, parts
    return fit, held if held.count else None, parts


def _pick_ridge(fit: Moments, held: Moments, threads: int) -> float:
    """The strength that leaves the least squared error on the blocks held back."""
    gap = held.mean() - fit.mean()
    drop = held.target_mean() - fit.target_mean()
    # Second moments of the held-back blocks about the means of the others, which the bias would be fitted to.
    spread = held.covariance() + np.outer(gap, gap)
    about = held.cross_covariance() + np.outer(drop, gap)
    covariance, cross = fit.covariance(), fit.cross_covariance()
    level = max(float(np.trace(covariance)) / len(covariance), np.finfo(np.float64).tiny)
    if len(covariance) > _EIGEN_LIMIT:
        losses = _walked(_FEW_RIDGES, _solved(covariance / level, cross / level, spread, about), threads)
    else:
        scaled = _scaled(covariance, cross, spread, about, level)
        losses = {ridge: scaled(ridge) for ridge in RIDGES[:-1]}
    losses[math.inf] = 0.0
    return min(losses, key=lambda ridge: (losses[ridge], -ridge))


def _walked(
    strengths: Sequence[float], loss: Callable[[float], float], threads: int, first: int = 2
) -> dict[float, float]:
    """Losses of neighbouring strengths up to the first valley from the middle on: most never need to be asked for."""
    asked = list(strengths[first : first + 2])
    known = dict(zip(asked, in_order(loss, asked, threads), strict=True))
    while True:
        best = strengths.index(min(known, key=lambda ridge: (known[ridge], -ridge)))
        beside = [ridge for ridge in strengths[max(best - 1, 0) : best + 2] if ridge not in known]
        if not beside:
            return known
        known |= dict(zip(beside, in_order(loss, beside, threads), strict=True))


def _solved(covariance: Array64, cross: Array64, spread: Array64, about: Array64) -> Callable[[float], float]:
    """What gives tr(G T G^T) - 2 tr(G E^T) for the G of a strength, from S and C of unit level; in single precision.

    Args:
        covariance: S, [I*K, I*K].
        cross: C, [O, I*K].
        spread: T, [I*K, I*K].
        about: E, [O, I*K].
    """
    narrow, right, judged = (array.astype(np.float32) for array in (covariance, cross.T, spread))

    def loss(ridge: float) -> float:
        try:
            change = cho_solve(cholesky(raised(narrow, ridge)), right).T
        except np.linalg.LinAlgError:
            return math.inf  # rounding has left S with this ridge singular
        return float(np.vdot((change @ judged).astype(np.float64), change) - 2.0 * np.vdot(change, about))

    return loss


def _scaled(
    covariance: Array64, cross: Array64, spread: Array64, about: Array64, level: float
) -> Callable[[float], float]:
    """The same from eigenvectors of S: in their basis every strength only scales the columns of G."""
    values, vectors = np.linalg.eigh(covariance)
    turned = cross @ vectors
    products = (turned.T @ turned) * (vectors.T @ spread @ vectors)
    met = np.einsum("oi,oi->i", turned, about @ vectors)

    def loss(ridge: float) -> float:
        scale = 1.0 / (np.maximum(values, 0.0) + ridge * level)
        return float(scale @ products @ scale - 2.0 * (scale @ met))

    return loss


def _retarget(
    moments: Moments,
    change: Array64,
    moved: Array64,
    activation: Activation,
    stretch: float,
    used: Sequence[_Part],
    threads: int,
) -> float:
    """Replace the residuals in the moments by those to the targets that the activation leaves free.

    Args:
        moments: Moments of the patches and residuals.
        change: What the factors have changed of the kernel, [O, I*K].
        moved: What they have changed of the bias, [O], and by the shift of the patches.
        activation: The activation.
        stretch: How many times as far as the activation asks targets are moved.
        used: The blocks of the moments.
        threads: As for `reconstruct`.

    Returns:
        Squared error of what there is now against these targets, which is at least that behind the activation.
    """
    moments.clear_targets(moments.outputs)
    narrow, constant = change.astype(np.float32), moved.astype(np.float32)[:, None]

    def part(given: _Part) -> tuple[float, Sums]:
        block = given.make()
        trained = block.targets - given.residual  # what the trained kernel makes of these patches
        step = narrow @ block.patches + constant
        now = trained + step
        if block.added is None:
            targets = activation.targets(block.targets, now)
        else:
            targets = activation.targets(block.targets + block.added, now + block.added) - block.added
        gap = targets - now
        lost = float(np.vdot(gap, gap))
        return lost, moments.sums(block.patches, step + np.float32(stretch) * gap, anew=False, shifted=True)

    total = 0.0
    for lost, sums in in_order(part, used, threads):
        moments.include(sums)
        total += lost
    return total


def _relative_error(moments: Moments, flat: Array64, composed: Array64, covariance: Array64) -> float:
    """Relative L2 error of the composed kernel against the targets t = e + W p, means taken out."""
    cross, spread = moments.cross_covariance(), moments.target_variance().sum()
    change = composed - flat
    lost = spread - 2.0 * np.vdot(change, cross) + np.vdot(change @ covariance, change)
    whole = spread + 2.0 * np.vdot(flat, cross) + np.vdot(flat @ covariance, flat)
    return math.sqrt(max(float(lost), 0.0) / float(whole)) if whole > 0.0 else 0.0
