"""One site: its weights give back what the untouched network has there, better than those made without looking."""

from __future__ import annotations

import copy
import functools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.numerics.factorize import FORMS, compose, factorize, whole
from onnx_pointwise.numerics.moments import Moments, blended, shrunk, tap_blend
from onnx_pointwise.numerics.reconstruct import (
    RIDGES,
    ROUNDS,
    Activation,
    Block,
    _pick_ridge,
    _proven,
    _solver,
    _walked,
    reconstruct,
)

CHECKED = settings(derandomize=True, deadline=None, max_examples=20)
RELU = Activation(low=0.0)
LINEAR = Activation()


class Problem:
    """A kernel, patches as the rewritten network sees them, and targets from the untouched one."""

    def __init__(self, seed: int, *, outputs=6, inputs=5, taps=4, count=4000, drift=0.3, branch=False):
        rng = np.random.default_rng(seed)
        width = inputs * taps
        mix = rng.standard_normal((width, width)) * np.exp(-np.arange(width) / 8.0)[:, None]
        clean = np.maximum(mix.T @ rng.standard_normal((width, count)) + 0.2, 0.0)
        # A distortion that the site could undo, and noise that it cannot.
        distortion = np.eye(width) + drift * rng.standard_normal((width, width)) / math.sqrt(width)
        self.kernel = rng.standard_normal((outputs, inputs, 2, 2)).astype(np.float32)
        self.bias = rng.standard_normal(outputs)
        flat = self.kernel.reshape(outputs, -1).astype(np.float64)
        self.patches = (distortion @ clean + 0.02 * rng.standard_normal(clean.shape)).astype(np.float32)
        self.targets = (flat @ clean + self.bias[:, None]).astype(np.float32)
        self.added = rng.standard_normal((outputs, count)).astype(np.float32) if branch else None
        self.count = count

    @property
    def blocks(self):
        def block(index, part):
            added = None if self.added is None else self.added[:, part]
            return Block(self.patches[:, part], self.targets[:, part], added, held=index % 4 == 3)

        parts = np.array_split(np.arange(self.count), 8)
        return [functools.partial(block, index, part) for index, part in enumerate(parts)]

    def error(self, factors, bias, activation=LINEAR):
        """Relative L2 error behind the activation."""
        y = compose(factors).reshape(len(self.kernel), -1) @ self.patches + bias[:, None]
        t, added = self.targets, 0.0 if self.added is None else self.added
        low, high = activation.low, activation.high
        truth, got = np.clip(t + added, low, high), np.clip(y + added, low, high)
        return float(np.linalg.norm(got - truth) / np.linalg.norm(truth - truth.mean(axis=1, keepdims=True)))


@CHECKED
@given(st.integers(0, 2**31), st.sampled_from(FORMS), st.booleans())
def test_better_than_factors_made_without_targets(seed, form, branch):
    problem = Problem(seed, branch=branch)
    rank = (3, 4) if form == "reduce_expand" else 3
    done = reconstruct(problem.kernel, problem.bias, form, rank, problem.blocks)
    moment = problem.patches.astype(np.float64) @ problem.patches.T / problem.count
    plain = factorize(problem.kernel, form, rank, second_moment=moment)
    reached = problem.error(done.factors, done.bias)
    assert reached < problem.error(plain, problem.bias)
    problem.added = None
    assert done.error == pytest.approx(problem.error(done.factors, done.bias), rel=2e-3)
    assert done.factors.kernel.dtype == np.float32


def test_undoes_at_full_rank_what_went_wrong_before():
    problem = Problem(1, drift=0.4)
    done = reconstruct(problem.kernel, problem.bias, "reduce", 5, problem.blocks)
    kept = factorize(problem.kernel, "reduce", 5)
    assert problem.error(done.factors, done.bias) < 0.1 * problem.error(kept, problem.bias)


def test_without_drift_the_trained_kernel_stays():
    problem = Problem(2, drift=0.0)
    problem.targets = (
        problem.kernel.reshape(6, -1).astype(np.float64) @ problem.patches + problem.bias[:, None]
    ).astype(np.float32)
    done = reconstruct(problem.kernel, problem.bias, "reduce", 5, problem.blocks)
    np.testing.assert_allclose(compose(done.factors), problem.kernel, atol=1e-3)
    np.testing.assert_allclose(done.bias, problem.bias, atol=1e-2)


def test_few_patches_ask_for_a_strong_ridge():
    many, few = Problem(3, count=20_000), Problem(3, count=64)
    noise = np.random.default_rng(0)
    for problem in (many, few):
        problem.targets = problem.targets + 3.0 * noise.standard_normal(problem.targets.shape).astype(np.float32)
    strong = reconstruct(few.kernel, few.bias, "reduce", 3, few.blocks).ridge
    weak = reconstruct(many.kernel, many.bias, "reduce", 3, many.blocks).ridge
    assert strong > 10.0 * weak


@CHECKED
@given(st.integers(0, 2**31), st.sampled_from(FORMS), st.booleans())
def test_rounds_through_the_activation_lower_the_error_behind_it(seed, form, branch):
    problem = Problem(seed, branch=branch)
    rank = (2, 3) if form == "reduce_expand" else 2
    linear, *more = [
        reconstruct(problem.kernel, problem.bias, form, rank, problem.blocks, activation=RELU, rounds=rounds)
        for rounds in range(4)
    ]
    before, *after = (problem.error(one.factors, one.bias, RELU) for one in (linear, *more))
    assert max(after) < before * 1.002
    for turned in more if form == "expand" else ():  # whose linear solution is the best there is
        assert problem.error(turned.factors, turned.bias) >= problem.error(linear.factors, linear.bias) * 0.999


def test_targets_move_on_flat_parts_only():
    true = np.array([-2.0, -1.0, 0.5, 5.0, 7.0], np.float32)
    now = np.array([-3.0, 1.0, -4.0, 9.0, 5.0], np.float32)
    np.testing.assert_array_equal(RELU.targets(true, now), [-3.0, 0.0, 0.5, 5.0, 7.0])
    np.testing.assert_array_equal(Activation(0.0, 6.0).targets(true, now), [-3.0, 0.0, 0.5, 5.0, 6.0])
    np.testing.assert_array_equal(Activation().targets(true, now), true)
    assert Activation().linear
    assert not Activation(high=6.0).linear


def test_without_a_bias_and_without_blocks_held_back():
    problem = Problem(4)

    def alone(make):
        block = make()
        return Block(block.patches, block.targets)

    blocks = [functools.partial(alone, make) for make in problem.blocks]
    done = reconstruct(problem.kernel, None, "expand", 3, blocks)
    assert problem.error(done.factors, done.bias) < 0.6
    assert done.bias.shape == (6,)


def test_wide_patches_take_the_other_way_to_the_ridge(monkeypatch):
    problem = Problem(5)
    narrow = reconstruct(problem.kernel, problem.bias, "reduce", 3, problem.blocks)
    monkeypatch.setattr(sys.modules[reconstruct.__module__], "_EIGEN_LIMIT", 4)
    wide = reconstruct(problem.kernel, problem.bias, "reduce", 3, problem.blocks)
    assert wide.error == pytest.approx(narrow.error, rel=0.05)


def test_a_ridge_that_rounding_defeats_is_not_picked(monkeypatch):
    problem = Problem(5)
    real = Moments.covariance

    def spoilt(self):
        covariance = real(self)
        values, vectors = np.linalg.eigh(covariance)
        values[0] = -0.02 * values.mean()
        return (vectors * values) @ vectors.T

    monkeypatch.setattr(sys.modules[reconstruct.__module__], "_EIGEN_LIMIT", 4)
    monkeypatch.setattr(Moments, "covariance", spoilt)
    done = reconstruct(problem.kernel, problem.bias, "reduce", 3, problem.blocks)
    assert done.ridge > 0.02


def test_same_input_same_bytes_however_many_threads():
    first, second = (
        reconstruct(p.kernel, p.bias, "reduce", 3, p.blocks, activation=RELU, threads=threads)
        for p, threads in ((Problem(6), 1), (Problem(6), 3))
    )
    assert first.factors.kernel.tobytes() == second.factors.kernel.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()


def test_moments_with_negative_values_from_rounding_take_a_stronger_ridge() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    covariance = (basis * np.array([-2e-4] + [1.0] * 11)) @ basis.T
    ridge, solver = _solver(covariance, 1e-6, 1.0)
    assert ridge == min(strength for strength in RIDGES if strength > 2e-4)
    assert solver is not None
    assert _solver(covariance - 10.0 * np.eye(12), 1e-6, 1.0) == (math.inf, None)


# --- few patches ------------------------------------------------------------------------------------------------------


def parted(problem: Problem, count: int) -> tuple[Problem, Problem]:
    """The first patches to learn from, and all others to be judged by."""
    few, fresh = copy.copy(problem), copy.copy(problem)
    for name in ("patches", "targets", "added"):
        array = getattr(problem, name)
        if array is not None:
            setattr(few, name, array[:, :count])
            setattr(fresh, name, array[:, count:])
    few.count, fresh.count = count, problem.count - count
    return few, fresh


def against_plain(form, count, *, drift=0.3, noise=0.0, seeds=12):
    """Error on fresh patches over that of factors of the same few patches made without targets; mean over draws."""
    rank = (3, 4) if form == "reduce_expand" else 3
    ratios = []
    for seed in range(seeds):
        problem = Problem(seed, drift=drift)
        disturbed = np.random.default_rng(seed + 100).standard_normal(problem.targets.shape)
        problem.targets = problem.targets + (noise * disturbed).astype(np.float32)
        few, fresh = parted(problem, count)
        done = reconstruct(few.kernel, few.bias, form, rank, few.blocks, activation=RELU)
        mean = few.patches.mean(axis=1, dtype=np.float64)
        moment = np.cov(few.patches.astype(np.float64), bias=True)
        moment = shrunk(blended(moment, 4, tap_blend(count, 20, 4)), count)
        plain = factorize(few.kernel, form, rank, second_moment=moment)
        flat = few.kernel.reshape(6, -1) - compose(plain).reshape(6, -1)
        ratios.append(fresh.error(done.factors, done.bias, RELU) / fresh.error(plain, few.bias + flat @ mean, RELU))
    return float(np.exp(np.mean(np.log(ratios))))


@pytest.mark.parametrize("form", ["reduce", "expand", "reduce_expand"])
@pytest.mark.parametrize(
    ("count", "drift", "noise"), [(16, 0.0, 0.0), (16, 0.0, 5.0), (16, 0.3, 0.0), (40, 0.0, 5.0), (40, 0.3, 0.0)]
)
def test_of_few_patches_nothing_is_learned_that_does_not_hold(form, count, drift, noise):
    assert against_plain(form, count, drift=drift, noise=noise) < 1.03


def test_the_proof_pays_where_patches_are_fewest(monkeypatch):
    with_proof = [against_plain(form, 16) for form in ("reduce", "expand")]
    monkeypatch.setattr(
        sys.modules[reconstruct.__module__],
        "_proven",
        lambda problem, fit, ridge, rounds, start: (ridge, rounds, start),
    )
    without = [against_plain(form, 16) for form in ("reduce", "expand")]
    assert np.mean(with_proof) < 0.97 * np.mean(without)


def noted_proofs(monkeypatch):
    asked = []

    def noted(*given):
        asked.append(_proven(*given))
        return asked[-1]

    monkeypatch.setattr(sys.modules[reconstruct.__module__], "_proven", noted)
    return asked


def test_of_many_patches_a_refit_is_not_put_to_the_proof(monkeypatch):
    """More than five for each of the 20 numbers in one."""
    asked = noted_proofs(monkeypatch)
    for count, proofs in ((101, 0), (99, 1)):
        few, _ = parted(Problem(0), count)
        reconstruct(few.kernel, few.bias, "reduce", 3, few.blocks, activation=RELU)
        assert len(asked) == proofs


def test_rounds_that_do_harm_are_dropped(monkeypatch):
    """A rectifier that lets little through leaves rounds to fit the noise of the few patches."""
    asked = noted_proofs(monkeypatch)
    for seed in range(12):
        few, _ = parted(Problem(seed, drift=0.0), 32)
        few.targets = few.targets - 8.0
        few.bias = few.bias - 8.0
        reconstruct(few.kernel, few.bias, "reduce", 3, few.blocks, activation=RELU)
    assert {rounds for _, rounds, _ in asked} == {0, ROUNDS}
    assert any(math.isinf(ridge) for ridge, _, _ in asked)


def test_the_proof_leaves_no_traces():
    """Solving for a part of the blocks changes nothing that the end is made from, in one thread or in several."""
    few, _ = parted(Problem(3), 120)
    first = reconstruct(few.kernel, few.bias, "expand", 3, few.blocks, activation=RELU)
    second = reconstruct(few.kernel, few.bias, "expand", 3, few.blocks, activation=RELU, threads=3)
    assert first.factors.kernel.tobytes() == second.factors.kernel.tobytes()
    assert first.bias.tobytes() == second.bias.tobytes()
    assert (first.error, first.ridge) == (second.error, second.ridge)


@CHECKED
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([40, 400, 4000]))
def test_a_kernel_that_stays_whole_never_gets_worse(seed, branch, count):
    problem = Problem(seed, branch=branch, count=count)
    trained = whole(problem.kernel)
    done = reconstruct(problem.kernel, problem.bias, None, 0, problem.blocks)
    reached = problem.error(done.factors, done.bias)
    assert reached <= problem.error(trained, problem.bias) * (1.0 + 1e-5)
    assert (done.factors.form, done.factors.before, done.factors.after) == ("dense", None, None)
    assert done.factors.kernel.shape == problem.kernel.shape
    assert done.factors.kernel.dtype == np.float32
    problem.added = None
    assert done.error == pytest.approx(problem.error(done.factors, done.bias), rel=2e-3)


def test_a_kernel_that_stays_whole_undoes_what_can_be_undone():
    problem = Problem(1, drift=0.4)
    done = reconstruct(problem.kernel, problem.bias, None, 0, problem.blocks)
    assert problem.error(done.factors, done.bias) < 0.1 * problem.error(whole(problem.kernel), problem.bias)


def test_a_kernel_that_stays_whole_is_not_led_astray_by_noise():
    """Of a few patches it learns as much as the ones held back bear out."""
    many, few = Problem(3, drift=0.0, count=20_000), Problem(3, drift=0.0, count=64)
    noise, moved = np.random.default_rng(0), []
    for problem in (many, few):
        problem.targets = problem.targets + 3.0 * noise.standard_normal(problem.targets.shape).astype(np.float32)
        done = reconstruct(problem.kernel, problem.bias, None, 0, problem.blocks)
        moved.append(np.linalg.norm(done.factors.kernel - problem.kernel) / np.linalg.norm(problem.kernel))
        assert done.ridge >= 0.1
    assert max(moved) < 0.1


@pytest.mark.parametrize("valley", range(5))
def test_the_strength_of_the_ridge_is_walked_to(valley):
    """From the middle to the only valley, and no further than one beyond."""
    strengths, asked = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), []

    def loss(ridge):
        asked.append(ridge)
        return abs(strengths.index(ridge) - valley) - 10.0

    known = _walked(strengths, loss, 1)
    assert min(known, key=known.get) == strengths[valley]
    assert sorted(asked) == sorted(known) == sorted(set(asked))
    assert len(asked) <= min(5, 3 + abs(valley - 2))


def test_wide_sites_pick_the_strength_that_all_of_them_would(monkeypatch):
    """In single precision, of those that are asked for."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((40, 40))
    truth = 0.02 * rng.standard_normal((6, 40))
    lots = []
    for count in (90, 30):
        p = (rng.standard_normal((count, 40)) @ mix).T.astype(np.float32)
        lot = Moments(40, 6)
        lot.add(p, (truth @ p + 2.0 * rng.standard_normal((6, count))).astype(np.float32))
        lots.append(lot)
    narrow, module = _pick_ridge(*lots, 1), sys.modules[reconstruct.__module__]
    monkeypatch.setattr(module, "_EIGEN_LIMIT", 10)
    wide = _pick_ridge(*lots, 2)
    assert wide in module._FEW_RIDGES
    assert 0.3 <= wide / narrow <= 3.5
