"""What the alternation solves, against dense least squares: best factors, steps downhill, and when it stops."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.numerics.factorize import (
    CG_STEPS,
    NEGLIGIBLE,
    STRETCH,
    SWEEP_GAIN,
    SWEEPS,
    TRIAL_SWEEPS,
    compose,
    error_curve,
    error_curves,
    factorize,
    nested_channels,
    output_crossing,
    relative_error,
)
from onnx_pointwise.numerics.forms import View
from onnx_pointwise.numerics.norm import Norm

subject = sys.modules[factorize.__module__]  # the package has a function of its name
CHECKED = settings(derandomize=True, deadline=None, max_examples=20)
SEED = st.integers(0, 2**32 - 1)
#: Outputs, inputs, taps, rank in front.
SIZES = st.sampled_from([(5, 4, 3, 2), (3, 6, 2, 3), (7, 5, 4, 1), (2, 5, 3, 4)])


def make_moment(seed: int, size: int, samples: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed + 1)
    patches = np.maximum(rng.standard_normal((samples or 4 * size, size)) @ rng.standard_normal((size, size)), 0.0)
    return patches.T @ patches / len(patches)


def make_problem(seed: int, sizes: tuple[int, int, int, int]) -> tuple[Any, np.ndarray, np.ndarray]:
    """A problem, the moment with jitter that it minimises for, [I * K, I * K], and rows [R, I] that are no optimum."""
    outputs, inputs, taps, rank = sizes
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((outputs, inputs, taps))
    norm = Norm.of(make_moment(seed, inputs * taps), inputs, taps)
    weighted = norm.apply_lifted(weights)
    total = float(np.vdot(weighted, weights))
    lifted = norm.moment + norm.jitter * np.eye(inputs * taps)
    return subject._Patches(weights, weighted, norm, total), lifted, rng.standard_normal((rank, inputs))


def composed(solution: Any, rows: np.ndarray | None = None) -> np.ndarray:
    """The kernel of a solution, [O or R_out, I, K], with other rows in front where they are given."""
    return np.einsum("ort,ri->oit", solution.core, solution.rows if rows is None else rows)


def loss(difference: np.ndarray, moment: np.ndarray) -> float:
    flat = difference.reshape(len(difference), -1)
    return float(np.vdot(flat @ moment, flat))


def gradient_of_rows(target: np.ndarray, solution: Any, rows: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Half the gradient of the weighted squared error with respect to the 1x1 in front, [R, I]."""
    difference = composed(solution, rows) - target
    weighted = (difference.reshape(len(difference), -1) @ moment).reshape(difference.shape)
    return np.einsum("ort,oit->ri", solution.core, weighted)


@contextmanager
def constants(**values: Any) -> Iterator[None]:
    """Other values for the module's constants."""
    with pytest.MonkeyPatch.context() as patch:
        for name, number in values.items():
            patch.setattr(subject, name, number)
        yield


# --- one step --------------------------------------------------------------------------------------------------------


@CHECKED
@given(SEED, SIZES)
def test_the_kernel_behind_given_rows_is_the_least_squares_one(seed: int, sizes: tuple[int, int, int, int]) -> None:
    problem, moment, rows = make_problem(seed, sizes)
    outputs, _, taps, rank = sizes
    solution = problem.best_kernel(rows, 0)
    root = np.linalg.cholesky(moment)  # |D root|^2 = tr(D S D^T)
    basis = np.kron(solution.rows, np.eye(taps))  # [R * K, I * K]
    wanted = np.linalg.lstsq((basis @ root).T, (problem.weights.reshape(outputs, -1) @ root).T, rcond=None)[0].T
    np.testing.assert_allclose(solution.core.reshape(outputs, -1), wanted, rtol=1e-6, atol=1e-8)
    assert solution.columns is None
    np.testing.assert_allclose(solution.rows @ solution.rows.T, np.eye(rank), atol=1e-12)
    # What it keeps and what it loses are all there is.
    lost = loss(problem.weights - composed(solution), moment)
    assert solution.kept + lost == pytest.approx(problem.total, rel=1e-9)


@CHECKED
@given(SEED, SIZES, st.integers(1, 2))
def test_with_both_sides_cut_no_other_columns_keep_more(
    seed: int, sizes: tuple[int, int, int, int], behind: int
) -> None:
    problem, moment, rows = make_problem(seed, sizes)
    free, solution = problem.best_kernel(rows, 0), problem.best_kernel(rows, behind)
    columns = solution.columns
    assert columns.shape == (sizes[0], behind)
    np.testing.assert_allclose(columns.T @ columns, np.eye(behind), atol=1e-12)
    # Reduced-rank regression: the leading eigenvectors of what the free kernel explains.
    explained = composed(free).reshape(sizes[0], -1)
    values, vectors = np.linalg.eigh(explained @ moment @ explained.T)
    leading = vectors[:, ::-1][:, :behind]
    np.testing.assert_allclose(columns @ columns.T, leading @ leading.T, atol=1e-6)
    assert solution.kept == pytest.approx(values[::-1][:behind].sum(), rel=1e-9)
    whole = np.einsum("os,sit->oit", columns, composed(solution))
    assert solution.kept + loss(problem.weights - whole, moment) == pytest.approx(problem.total, rel=1e-9)


@CHECKED
@given(SEED, SIZES, st.sampled_from([0, 1, 2]))
def test_as_many_conjugate_gradients_as_unknowns_end_where_the_gradient_is_zero(
    seed: int, sizes: tuple[int, int, int, int], behind: int
) -> None:
    problem, moment, rows = make_problem(seed, sizes)
    solution = problem.best_kernel(rows, behind)
    target = problem.weights
    if solution.columns is not None:
        target = np.einsum("os,oit->sit", solution.columns, target)
    before = np.linalg.norm(gradient_of_rows(target, solution, solution.rows, moment))
    with constants(CG_STEPS=sizes[1] * sizes[3]):
        found = problem.best_rows(solution)
    assert np.linalg.norm(gradient_of_rows(target, solution, found, moment)) < 1e-5 * before
    root = np.linalg.cholesky(moment)
    system = np.einsum("ort,ij->oitrj", solution.core, np.eye(sizes[1])).reshape(len(target), -1, sizes[3] * sizes[1])
    system = np.concatenate([root.T @ part for part in system])
    wanted = np.linalg.lstsq(system, np.concatenate([root.T @ part.ravel() for part in target]), rcond=None)[0]
    reached = loss(target - composed(solution, found), moment)
    assert reached == pytest.approx(loss(target - composed(solution, wanted.reshape(found.shape)), moment), rel=1e-6)


@CHECKED
@given(SEED, SIZES)
def test_each_conjugate_gradient_goes_downhill(seed: int, sizes: tuple[int, int, int, int]) -> None:
    problem, moment, rows = make_problem(seed, sizes)
    solution = problem.best_kernel(rows, 0)
    lost = [loss(problem.weights - composed(solution), moment)]
    for steps in range(1, CG_STEPS + 1):
        with constants(CG_STEPS=steps):
            lost.append(loss(problem.weights - composed(solution, problem.best_rows(solution)), moment))
    assert all(later < earlier for earlier, later in pairwise(lost))
    assert lost[-1] == loss(problem.weights - composed(solution, problem.best_rows(solution)), moment)


@CHECKED
@given(SEED, SIZES)
def test_where_all_taps_see_the_same_one_preconditioned_step_is_exact(
    seed: int, sizes: tuple[int, int, int, int]
) -> None:
    """For S = C (x) 1_K the preconditioner is the inverse."""
    outputs, inputs, taps, rank = sizes
    rng = np.random.default_rng(seed)
    moment = np.kron(make_moment(seed, inputs), np.eye(taps))
    norm = Norm.of(moment, inputs, taps)
    weights = rng.standard_normal((outputs, inputs, taps))
    problem = subject._Patches(weights, norm.apply_lifted(weights), norm, 1.0)
    solution = problem.best_kernel(rng.standard_normal((rank, inputs)), 0)
    # Rows that the kernel does not suit: from the best ones, the gradient is zero already.
    off = subject._Solution(rng.standard_normal((rank, inputs)), solution.core, None, solution.kept)
    lifted = norm.moment + norm.jitter * np.eye(inputs * taps)
    before = np.linalg.norm(gradient_of_rows(weights, off, off.rows, lifted))
    with constants(CG_STEPS=1):
        found = problem.best_rows(off)
    assert np.linalg.norm(gradient_of_rows(weights, off, found, lifted)) < 1e-6 * before


def test_rows_at_the_optimum_stay() -> None:
    """A kernel of zeros asks for no rows, and nothing is divided by its size or by a slope of zero."""
    problem, _, rows = make_problem(0, (5, 4, 3, 2))
    solution = problem.best_kernel(rows, 0)
    still = subject._Solution(solution.rows, np.zeros_like(solution.core), None, 0.0)
    np.testing.assert_array_equal(problem.best_rows(still), solution.rows)


# --- the alternation -------------------------------------------------------------------------------------------------


class Watched(subject._Patches):
    """A problem that writes down what it is asked: ("rows", of what, answer) and ("kernel", rows, answer)."""

    log: list[tuple[str, Any, Any]] = []  # noqa: RUF012 (emptied by `alternation`)

    def best_kernel(self, rows: np.ndarray, r_out: int) -> Any:
        answer = super().best_kernel(rows, r_out)
        self.log.append(("kernel", rows, answer))
        return answer

    def best_rows(self, solution: Any) -> np.ndarray:
        answer = super().best_rows(solution)
        self.log.append(("rows", solution, answer))
        return answer


def alternation(kernel: np.ndarray, *args: Any, **more: Any) -> tuple[Any, list[tuple[str, Any, Any]]]:
    with constants(_Patches=Watched):
        Watched.log.clear()
        factors = factorize(kernel, *args, **more)
        return factors, list(Watched.log)


def replayed(log: list[tuple[str, Any, Any]], total: float, sweeps: int) -> float:
    """Follow the alternation by what it asked; gives what the best solution keeps."""
    starts = log[: [kind for kind, *_ in log].index("rows")]
    best = max((answer for _, _, answer in starts), key=lambda solution: solution.kept)
    rest, stretch, turns = log[len(starts) :], STRETCH, 0
    while rest:
        (asked, of, answer), (_, given_rows, trial) = rest[0], rest[1]
        assert asked == "rows" and of is best, "each sweep starts from the best so far"
        np.testing.assert_allclose(given_rows, best.rows + stretch * (answer - best.rows), rtol=1e-12, atol=1e-14)
        rest, turns = rest[2:], turns + 1
        if trial.kept < best.kept and stretch > 1.0:
            stretch = 1.0
            (asked, given_rows, trial), rest = rest[0], rest[1:]
            assert asked == "kernel", "a step that went too far is taken once more, in its own length"
            np.testing.assert_allclose(given_rows, answer, rtol=1e-9, atol=1e-12)
        gain = trial.kept - best.kept
        best = trial if gain > 0.0 else best
        done = gain <= SWEEP_GAIN * (total - best.kept) + NEGLIGIBLE * total
        assert bool(rest) == (not done and turns < sweeps), "it ends where a sweep brings little, and not before"
    return best.kept


@CHECKED
@given(SEED, st.sampled_from(["reduce", "reduce_expand", "vertical"]), st.sampled_from([1, 2, SWEEPS, 12]))
def test_sweeps_go_from_the_best_in_long_steps_until_they_bring_little(seed: int, form: Any, sweeps: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, moment = rng.standard_normal((6, 5, 3, 2)), make_moment(seed, 30)
    rank = (2, 3) if form == "reduce_expand" else 4
    factors, log = alternation(kernel, form, rank, second_moment=moment, sweeps=sweeps)
    norm = Norm.of(moment, 5, 6)
    scaled = kernel / 2.0 ** math.frexp(np.abs(kernel).max())[1]
    lifted = norm.moment + norm.jitter * np.eye(30)
    total = loss(scaled, lifted)
    kept = replayed(log, total, sweeps)
    assert 1.0 - factors.error**2 == pytest.approx(kept / total, abs=1e-5)
    starts = [entry[0] for entry in log].index("rows")
    assert starts == (1 if sweeps <= TRIAL_SWEEPS else 2)
    # Both starts, so that neither baseline is better.
    for method in ("whitened", "svd")[:starts]:
        assert factors.error <= factorize(kernel, form, rank, method=method, second_moment=moment).error * (1 + 1e-6)


def test_a_step_too_far_is_taken_back() -> None:
    """Among drawn kernels are some for which the long step is worse than none."""
    with constants(STRETCH=60.0):
        for seed in range(5):
            kernel, moment = np.random.default_rng(seed).standard_normal((6, 5, 3)), make_moment(seed, 15)
            factors, log = alternation(kernel, "reduce", 3, second_moment=moment)
            kinds = "".join(kind[0] for kind, *_ in log)
            assert kinds.startswith("kkrkk"), kinds
            assert "rkk" not in kinds[5:], "once only: from there on steps have their own length"
            assert factors.error <= factorize(kernel, "reduce", 3, method="whitened", second_moment=moment).error


@CHECKED
@given(SEED, st.sampled_from(["reduce", "reduce_expand"]))
def test_many_sweeps_end_where_neither_factor_can_be_bettered(seed: int, form: Any) -> None:
    """The gradient of the weighted squared error with respect to each factor is zero."""
    rng = np.random.default_rng(seed)
    kernel, moment = rng.standard_normal((6, 4, 3)), make_moment(seed, 12)
    rank = (2, 3) if form == "reduce_expand" else 2
    with constants(SWEEP_GAIN=0.0, NEGLIGIBLE=0.0, CG_STEPS=8):
        factors = factorize(kernel, form, rank, second_moment=moment, sweeps=3000)
    norm = Norm.of(moment, 4, 3)
    lifted = norm.moment + norm.jitter * np.eye(12)
    difference = compose(factors) - kernel
    weighted = (difference.reshape(6, -1) @ lifted).reshape(difference.shape)
    after = np.eye(6) if factors.after is None else factors.after
    scale = np.linalg.norm(kernel.reshape(6, -1) @ lifted)
    of_kernel = np.einsum("os,oit,ri->srt", after, weighted, factors.before)
    of_before = np.einsum("os,srt,oit->ri", after, factors.kernel, weighted)
    of_after = np.einsum("oit,srt,ri->os", weighted, factors.kernel, factors.before)
    assert np.linalg.norm(of_kernel) < 1e-5 * scale
    assert np.linalg.norm(of_before) < 2e-3 * scale
    assert form == "reduce" or np.linalg.norm(of_after) < 1e-4 * scale


@CHECKED
@given(SEED, st.sampled_from([1, 2, SWEEPS, 40]))
def test_the_plain_alternation_ends_where_a_sweep_brings_little(seed: int, sweeps: int) -> None:
    """HOOI, as in the literature: from the bases of either side, until what is kept grows no more."""
    weights = np.random.default_rng(seed).standard_normal((6, 5, 4))
    rows, columns = subject._plain_bases(weights, 2, 3, sweeps)

    def leading(unfolded: np.ndarray, rank: int) -> np.ndarray:
        return np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]

    total, kept = float(np.vdot(weights, weights)), 0.0
    front = leading(weights.transpose(1, 0, 2).reshape(5, -1), 2)
    for _ in range(sweeps):
        behind = leading(np.einsum("oit,ir->ort", weights, front).reshape(6, -1), 3)
        small = np.einsum("oit,os->sit", weights, behind)
        front = leading(small.transpose(1, 0, 2).reshape(5, -1), 2)
        now = float(np.sum(np.einsum("sit,ir->srt", small, front) ** 2))
        gain, kept = now - kept, now
        if gain <= SWEEP_GAIN * (total - kept) + NEGLIGIBLE * total:
            break
    np.testing.assert_allclose(rows.T @ rows, front @ front.T, atol=1e-8)
    np.testing.assert_allclose(columns @ columns.T, behind @ behind.T, atol=1e-8)


def test_a_kernel_that_fits_takes_one_sweep() -> None:
    """What is lost is rounding, and a share of that is not waited for."""
    rng = np.random.default_rng(0)
    kernel = np.einsum("ort,ri->oit", rng.standard_normal((6, 2, 3)), rng.standard_normal((2, 5)))
    factors, log = alternation(kernel, "reduce", 2, second_moment=make_moment(0, 15), sweeps=50)
    assert "".join(kind[0] for kind, *_ in log) in ("kkrk", "kkrkk")
    assert factors.error < 1e-7


def test_a_start_that_is_given_is_the_only_one() -> None:
    kernel, moment = np.random.default_rng(0).standard_normal((6, 5, 3)), make_moment(0, 15)
    start = factorize(kernel, "reduce", 2)
    _, log = alternation(kernel, "reduce", 2, second_moment=moment, start=start)
    assert [kind for kind, *_ in log[:2]] == ["kernel", "rows"]
    np.testing.assert_array_equal(log[0][1], start.before)


# --- triangles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_triangle_of_a_regular_matrix_is_its_own(dtype: Any) -> None:
    matrix = make_moment(0, 8).astype(dtype)
    triangle = subject.sturdy_cholesky(matrix)
    assert triangle.dtype == dtype
    np.testing.assert_allclose(triangle, np.linalg.cholesky(matrix.astype(np.float64)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(triangle @ triangle.T, matrix, rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("level", [1e-30, 1.0, 1e12])
@pytest.mark.parametrize(
    ("dtype", "least", "added"),
    [
        (np.float64, -2e-13, 1e-12),
        (np.float64, -5e-11, 1e-9),
        (np.float32, -4e-6, 1e-5),
        (np.float32, -4e-5, 1e-4),
    ],
)
def test_eigenvalues_lost_in_rounding_are_lifted_by_as_little_as_does(
    dtype: Any, least: float, added: float, level: float
) -> None:
    """In units of the mean eigenvalue."""
    values = np.array([least, 1.0, 2.0, 5.0])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    matrix = (turn * (values / values.mean() * level)) @ turn.T
    matrix = ((matrix + matrix.T) / 2).astype(dtype)
    triangle = subject.sturdy_cholesky(matrix).astype(np.float64)
    assert np.array_equal(triangle, np.tril(triangle))
    gained = triangle @ triangle.T - matrix
    slack = 0.3 if dtype == np.float64 else 0.2
    np.testing.assert_allclose(np.diagonal(gained) / level, added, rtol=slack, atol=6e-7 if dtype == np.float32 else 0)
    assert np.abs(gained - np.diag(np.diagonal(gained))).max() <= slack * added * level


@pytest.mark.parametrize(("dtype", "floor"), [(np.float64, 1e-7), (np.float32, 1e-4)])
def test_a_matrix_that_is_far_from_positive_keeps_its_positive_part(dtype: Any, floor: float) -> None:
    values = np.array([-0.5, -1e-2, 0.5, 2.0, 3.0])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    matrix = (turn * values) @ turn.T
    triangle = subject.sturdy_cholesky(((matrix + matrix.T) / 2).astype(dtype)).astype(np.float64)
    np.testing.assert_allclose(triangle, np.tril(triangle), atol=1e-6)
    held = np.linalg.eigvalsh(triangle @ triangle.T)
    np.testing.assert_allclose(held[2:], values[2:], rtol=1e-5)
    np.testing.assert_allclose(held[:2], floor * values.mean(), rtol=1e-2 if dtype == np.float32 else 1e-6)


def test_a_zero_matrix_has_a_triangle_to_solve_with() -> None:
    solved = subject._inverse_apply(np.zeros((3, 3)), np.zeros((3, 2)))
    assert np.isfinite(solved).all()


# --- curves ----------------------------------------------------------------------------------------------------------


@CHECKED
@given(SEED, st.sampled_from([(5, 4, 3), (3, 6, 2), (4, 5, 2, 2)]), st.sampled_from(["full", "channels"]))
def test_the_curve_is_what_the_leading_directions_leave(seed: int, shape: tuple[int, ...], kind: str) -> None:
    """For `reduce` and `reduce_expand`, computed here by dense least squares for every rank."""
    outputs, inputs, taps = shape[0], shape[1], math.prod(shape[2:])
    kernel = np.random.default_rng(seed).standard_normal(shape)
    moment = make_moment(seed, inputs * taps if kind == "full" else inputs)
    norm = Norm.of(moment, inputs, taps)
    whole = norm.moment if kind == "full" else np.kron(norm.moment, np.eye(taps))
    whole = whole + norm.jitter * np.eye(len(whole))
    weights = kernel.reshape(outputs, inputs, taps)
    white = np.einsum("oit,ij->ojt", weights, np.linalg.cholesky(norm.channels))
    vectors = np.linalg.svd(white.transpose(1, 0, 2).reshape(inputs, -1), full_matrices=False)[0]
    directions = np.linalg.solve(np.linalg.cholesky(norm.channels).T, vectors)
    root = np.linalg.cholesky(whole)
    flat = weights.reshape(outputs, -1) @ root
    after = np.linalg.eigh(flat @ flat.T)[1][:, ::-1]
    curves = error_curves(kernel, ("reduce", "reduce_expand"), moment)
    total = np.sum(flat**2)
    for rank in range(1, min(inputs, directions.shape[1]) + 1):
        basis = np.kron(directions[:, :rank].T, np.eye(taps)) @ root
        space = np.linalg.qr(basis.T)[0]
        kept = flat @ space
        assert curves["reduce"][rank] == pytest.approx(1.0 - np.sum(kept**2) / total, abs=1e-6)
        for behind in range(1, outputs + 1):
            both = np.sum((after[:, :behind].T @ kept) ** 2)
            assert curves["reduce_expand"][rank, behind] == pytest.approx(1.0 - both / total, abs=1e-6)


@CHECKED
@given(SEED, st.sampled_from(["full", "channels"]))
def test_directions_come_with_the_moment_and_the_kernel_in_their_basis(seed: int, kind: str) -> None:
    outputs, inputs, taps = 4, 5, 3
    weights = np.random.default_rng(seed).standard_normal((outputs, inputs, taps))
    norm = Norm.of(make_moment(seed, inputs * taps if kind == "full" else inputs), inputs, taps)
    rows, triangle, explained = nested_channels(weights, norm)
    lifted = norm.moment + norm.jitter * np.eye(len(norm.moment))
    basis = np.kron(rows, np.eye(taps)) if kind == "full" else rows
    np.testing.assert_allclose(triangle @ triangle.T, basis @ lifted @ basis.T, atol=1e-8 * np.abs(lifted).max())
    # The same energy, by directions.
    assert np.sum(explained**2) == pytest.approx(np.vdot(norm.apply_lifted(weights), weights), rel=1e-9)
    telling = np.einsum("oit,oit->i", explained, explained)
    assert kind == "full" or (np.diff(telling) <= 1e-9).all()
    given_already = error_curves(weights, ("reduce", "reduce_expand"), norm, {View((taps,)): 3.0 * explained})
    for form, curve in error_curves(weights, ("reduce", "reduce_expand"), norm).items():
        np.testing.assert_allclose(given_already[form], curve, atol=1e-12)


@CHECKED
@given(SEED, st.sampled_from([(5, 4, 3), (6, 3, 2)]))
def test_the_curve_of_a_1x1_behind_is_the_tail_of_the_outputs_energy(seed: int, shape: tuple[int, ...]) -> None:
    kernel, moment = np.random.default_rng(seed).standard_normal(shape), make_moment(seed, math.prod(shape[1:]))
    flat = kernel.reshape(shape[0], -1)
    norm = Norm.of(moment, shape[1], shape[2])
    lifted = norm.moment + norm.jitter * np.eye(len(moment))
    np.testing.assert_allclose(output_crossing(kernel, norm), flat @ lifted @ flat.T, rtol=1e-9, atol=1e-12)
    values = np.linalg.eigvalsh(flat @ lifted @ flat.T)[::-1]
    tail = 1.0 - np.concatenate([[0.0], np.cumsum(values)]) / values.sum()
    np.testing.assert_allclose(error_curve(kernel, "expand", moment), tail, atol=1e-9)


def test_curves_of_a_kernel_that_is_zero_lose_nothing() -> None:
    for curve in error_curves(np.zeros((4, 5, 3, 3)), second_moment=np.eye(45)).values():
        assert not curve.any()


# --- storing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["reduce", "expand", "reduce_expand"])
def test_the_kernel_makes_up_for_what_rounding_does_beside_it(form: Any) -> None:
    """In float16 the pieces beside the kernel are rounded first; with them as they are, its own rounding is all."""
    kernel = np.random.default_rng(0).standard_normal((12, 10, 3, 3)).astype(np.float16)
    rank = (7, 8) if form == "reduce_expand" else 7
    wide = factorize(kernel.astype(np.float64), form, rank)
    stored = factorize(kernel, form, rank)
    fixed = stored.kernel.astype(np.float64)
    best = wide.kernel
    if stored.before is not None:
        # Least squares for the kernel between the pieces as they are stored.
        before = stored.before.astype(np.float64)
        best = np.einsum("orhw,rs->oshw", best, wide.before @ np.linalg.pinv(before))
    if stored.after is not None:
        best = np.einsum("so,orhw->srhw", np.linalg.pinv(stored.after.astype(np.float64)) @ wide.after, best)
    np.testing.assert_allclose(fixed, best, rtol=2**-11, atol=2**-24)


def test_errors_are_of_factors_as_they_are_stored() -> None:
    kernel = np.random.default_rng(0).standard_normal((6, 5, 3)).astype(np.float16)
    moment = make_moment(0, 15)
    for scale in (1.0, 2.0**-6, 2.0**3):
        scaled = (kernel * np.float16(scale)).astype(np.float16)
        factors = factorize(scaled, "reduce", 3, second_moment=moment)
        exact = factorize(kernel.astype(np.float64), "reduce", 3, second_moment=moment)
        assert factors.error == pytest.approx(exact.error, rel=1e-2)
        assert factors.error == pytest.approx(relative_error(scaled, compose(factors), moment), rel=1e-9)


# --- the small pieces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [0.5, 0.75, 1.0, 3.0, 1e-30, 1e30])
def test_kernels_are_scaled_by_a_power_of_two_to_below_one(peak: float) -> None:
    kernel = np.array([[[peak, -peak / 3]]])
    weights, scale = subject.unfolded(kernel)
    assert math.frexp(scale)[0] == 0.5
    assert 0.5 <= np.abs(weights).max() < 1.0
    np.testing.assert_array_equal(weights * scale, kernel)


def test_a_side_is_cut_between_nothing_and_all_of_its_feature_maps() -> None:
    for rank in range(4):
        assert subject._cuts(rank, 0, 3, 3) == (rank in (1, 2), False)
        assert subject._cuts(0, rank, 3, 3) == (False, rank in (1, 2))


def test_a_moment_that_rounding_made_negative_loses_nothing() -> None:
    """Where only a direction of negative energy differs."""
    kernel = np.ones((2, 2, 1))
    other = kernel + np.array([0.0, 1.0]).reshape(1, 2, 1)
    assert relative_error(kernel, other, np.diag([1.0, -1e-7])) == 0.0


def test_rows_stay_where_the_curvature_is_negative() -> None:
    """No step length is read off a moment that is none."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 3, 2))
    norm = Norm(3, 2, np.kron(np.eye(3), [[1.0, 3.0], [3.0, 1.0]]))
    problem = subject._Patches(weights, norm.apply_lifted(weights), norm, 1.0)
    rows, one_tap = rng.standard_normal((2, 3)), rng.standard_normal((4, 2, 1))
    solution = subject._Solution(rows, np.concatenate([one_tap, -one_tap], axis=2), None, 0.0)
    np.testing.assert_array_equal(problem.best_rows(solution), rows)


@pytest.mark.parametrize("sweeps", [1, 2, 30])
def test_a_kernel_that_fits_takes_two_plain_sweeps(sweeps: int) -> None:
    rng = np.random.default_rng(0)
    weights = np.einsum("os,srt,ri->oit", *(rng.standard_normal(s) for s in ((6, 3), (3, 2, 4), (2, 5))))
    asked: list[int] = []

    def leading(symmetric: np.ndarray, rank: int) -> np.ndarray:
        asked.append(rank)
        return np.linalg.eigh(symmetric)[1][:, ::-1][:, :rank]

    with constants(_leading=leading):
        rows, columns = subject._plain_bases(weights, 2, 3, sweeps)
    assert asked == [2, 3] + [3, 2] * min(sweeps, 2)
    left = weights - np.einsum("op,sp,sit,ri,rj->ojt", columns, columns, weights, rows, rows)
    assert np.abs(left).max() < 1e-9


def test_a_few_sweeps_come_near_where_many_end() -> None:
    """Squared errors over that of many sweeps, as medians over kernels: of all sweeps, of trials, of one."""
    over: dict[int, list[float]] = {1: [], TRIAL_SWEEPS: [], SWEEPS: []}
    for seed in range(12):
        kernel, moment = np.random.default_rng(seed).standard_normal((12, 10, 3, 3)), make_moment(seed, 90, 180)
        with constants(SWEEP_GAIN=1e-6):
            end = factorize(kernel, "reduce", 4, second_moment=moment, sweeps=60).error
        for sweeps, found in over.items():
            found.append((factorize(kernel, "reduce", 4, second_moment=moment, sweeps=sweeps).error / end) ** 2)
    one, trial, all_of_them = (float(np.median(found)) for found in over.values())
    assert all_of_them < 1.02 < trial < 1.04 < one
