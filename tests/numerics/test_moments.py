"""Patches are what a convolution sees, and moments are those of the patches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnx_pointwise.errors import InputError
from onnx_pointwise.numerics.factorize import compose, factorize, relative_error
from onnx_pointwise.numerics.moments import (
    Lattice,
    Moments,
    Stationary,
    Window,
    blended,
    channel_means,
    lattices,
    make_transposed_window,
    make_window,
    patches,
    sample,
    shrunk,
    tap_blend,
)
from onnx_pointwise.numerics.norm import Norm
from onnx_pointwise.runtime.providers import open_session

CHECKED = settings(derandomize=True, deadline=None, max_examples=40)


def convolve(x: np.ndarray, weights: np.ndarray, **attributes: object) -> np.ndarray:
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:], [onnx.numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return open_session(model.SerializeToString(), "cpu", threads=1).run(None, {"x": x})[0]


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    size = tuple(d * (k - 1) + 1 + draw(st.integers(0, 6)) for k, d in zip(kernel, dilations, strict=True))
    auto = draw(st.sampled_from(["explicit", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(2 * rank)) if auto == "explicit" else auto
    if auto.startswith("SAME"):
        dilations = (1,) * rank
    return kernel, strides, dilations, pads, size


def drawn(convolution, seed: int, *, examples: int, inputs: int, outputs: int):
    """Inputs, weights and outputs of a convolution, and the window that it looks through."""
    kernel, strides, dilations, pads, size = convolution
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((examples, inputs, *size)).astype(np.float32)
    weights = rng.standard_normal((outputs, inputs, *kernel)).astype(np.float32)
    given_pads = {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    y = convolve(x, weights, strides=strides, dilations=dilations, kernel_shape=kernel, **given_pads)
    return x, weights, y, make_window(kernel, strides, dilations, pads, size)


@CHECKED
@given(convolutions(), st.integers(0, 2**31))
def test_patches_are_what_the_runtime_multiplies(convolution, seed):
    x, weights, y, window = drawn(convolution, seed, examples=2, inputs=3, outputs=4)
    size = x.shape[2:]
    assert window.out_size(size) == y.shape[2:]
    unfolded = patches(x, window)
    assert unfolded.shape == (3 * window.taps, 2 * math.prod(y.shape[2:]))
    np.testing.assert_allclose(weights.reshape(4, -1) @ unfolded, sample(y, lattice_of_all(y)), atol=1e-3)


def lattice_of_all(y: np.ndarray) -> Lattice:
    return Lattice(None, (1,) * (y.ndim - 2), (0,) * (y.ndim - 2))


@CHECKED
@given(convolutions(), st.integers(0, 2**31), st.integers(1, 60))
def test_a_lattice_takes_the_same_positions_of_inputs_and_outputs(convolution, seed, limit):
    x, weights, y, window = drawn(convolution, seed, examples=5, inputs=2, outputs=3)
    examples = np.array([0, 2, 3, 4])
    blocks = lattices(examples, y.shape[2:], 2 * window.taps, limit=limit, seed=seed, block_bytes=4000)
    assert np.concatenate([block.examples for block in blocks]).tolist() == examples.tolist()
    for block in blocks:
        expected = sample(y, block)
        np.testing.assert_allclose(weights.reshape(3, -1) @ patches(x, window, block), expected, atol=1e-3)
        assert expected.shape[1] >= len(block.examples)


def test_lattices_keep_to_their_limit_and_repeat():
    examples = np.arange(100)
    blocks = lattices(examples, (32, 32), 144, limit=20_000, seed=3)
    taken = sum(
        len(b.examples) * math.prod(len(range(o, 32, s)) for o, s in zip(b.offsets, b.steps, strict=True))
        for b in blocks
    )
    assert 14_000 <= taken <= 29_000
    again = lattices(examples, (32, 32), 144, limit=20_000, seed=3)
    assert [(b.steps, b.offsets) for b in blocks] == [(b.steps, b.offsets) for b in again]
    (whole,) = lattices(examples, (4, 4), 9, limit=10**9, seed=0)
    assert whole.steps == (1, 1)


@CHECKED
@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_moments_are_those_of_the_patches(seed, offset):
    rng = np.random.default_rng(seed)
    p = (rng.standard_normal((6, 200)) + offset).astype(np.float32)
    t = (rng.standard_normal((3, 6)) @ p + rng.standard_normal((3, 200))).astype(np.float32)
    first = Moments(6, 3, shift=p[:, :50].mean(axis=1))
    first.add(p[:, :50], t[:, :50])
    first.add(p[:, 50:120], t[:, 50:120])
    second = first.sibling()
    second.add(p[:, 120:])
    second.include(second.sums(p[:, 120:], t[:, 120:], anew=False))
    total = first.merged(second)
    joint = np.cov(np.concatenate([t, p]).astype(np.float64), bias=True)
    scale = np.abs(joint).max()
    assert total.count == 200
    np.testing.assert_allclose(total.mean(), p.mean(axis=1, dtype=np.float64), atol=1e-4)
    np.testing.assert_allclose(total.covariance(), joint[3:, 3:], atol=1e-4)
    np.testing.assert_allclose(total.cross_covariance(), joint[:3, 3:], atol=2e-5 * scale + 1e-3)
    np.testing.assert_allclose(total.target_mean(), t.mean(axis=1, dtype=np.float64), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(total.target_variance(), np.diag(joint)[:3], rtol=2e-3, atol=1e-2)
    total.clear_targets(1)
    assert total.cross_covariance is not None
    np.testing.assert_allclose(total.covariance(), joint[3:, 3:], atol=1e-4)


def test_infinite_activations_are_refused():
    with pytest.raises(InputError, match="not finite"):
        Moments(2).add(np.array([[1.0, np.inf], [0.0, 1.0]], np.float32))
    with pytest.raises(InputError, match="not finite"):
        Stationary(1, Window((3,), (1,), (1,), (0, 0))).add(np.array([[[np.nan, 1.0]]], np.float32))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("large", [3e38, 1e20, np.inf])
def test_what_overflows_is_said_in_a_sentence_alone(large: float) -> None:
    maps = np.array([[[large, 1.0, -large, 2.0]]], np.float32)
    window = Window((3,), (1,), (1,), (1, 1))
    with pytest.raises(InputError, match="not finite or overflows"):
        Moments(3).add(patches(maps, window))
    with pytest.raises(InputError, match="not finite or overflows"):
        Moments(3, shift=np.ones(3)).add(patches(maps, window, shift=np.ones(1, np.float32)))
    with pytest.raises(InputError, match="not finite or overflows"):
        Stationary(1, window).add(maps)
    with pytest.raises(InputError, match="not finite or overflows"):
        Stationary(1, window, shift=maps).add(maps)


@pytest.mark.parametrize(("kernel", "dilations"), [((3,), (1,)), ((3, 3), (1, 1)), ((3, 2), (2, 1)), ((5, 5), (1, 1))])
def test_stationary_moments_approach_the_exact_ones(kernel, dilations):
    rng = np.random.default_rng(0)
    rank = len(kernel)
    size = (4000,) if rank == 1 else (64, 64)
    x = rng.standard_normal((8, 3, *size)).astype(np.float32)
    mix = rng.standard_normal((3, 3)).astype(np.float32)
    x = sum(np.tensordot(mix, np.roll(x, s, axis=-1), axes=(1, 1)).swapaxes(0, 1) for s in (0, 1, 2)) + 5.0
    x = np.ascontiguousarray(x, dtype=np.float32)
    window = Window(kernel, (1,) * rank, dilations, (0,) * (2 * rank))
    stationary = Stationary(3, window)
    for part in np.split(x, 4):
        stationary.add(part)
    exact = Moments(3 * window.taps)
    exact.add(patches(x, window))
    scale = np.abs(exact.covariance()).max()
    np.testing.assert_allclose(stationary.covariance(), exact.covariance(), atol=0.06 * scale)
    np.testing.assert_allclose(stationary.mean(), exact.mean(), atol=0.1)
    assert np.linalg.eigvalsh(stationary.covariance()).min() > -1e-4 * scale


def test_stationary_moments_are_symmetric_and_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    stationary = Stationary(2, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)))
    stationary.add(rng.standard_normal((3, 2, 7, 9)).astype(np.float32))
    full = stationary.covariance().reshape(2, 9, 2, 9)
    np.testing.assert_allclose(full, full.transpose(2, 3, 0, 1), atol=1e-6)
    taps = list(itertools.product(range(3), range(3)))
    for (a, s), (b, t) in itertools.product(enumerate(taps), repeat=2):
        if s[0] < 2 and t[0] < 2:
            c, d = taps.index((s[0] + 1, s[1])), taps.index((t[0] + 1, t[1]))
            np.testing.assert_array_equal(full[:, a, :, b], full[:, c, :, d])


@CHECKED
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_maps_of_two_parts_add_up(seed, first):
    rng = np.random.default_rng(seed)
    window = Window((3, 2), (1, 1), (1, 1), (0, 0, 0, 0))
    maps = rng.standard_normal((6, 2, 5, 7)).astype(np.float32)
    one = Stationary(2, window, shift=maps)
    other = Stationary(2, window, shift=maps)
    whole = one.sibling()
    one.add(maps[:first])
    other.add(maps[first:])
    whole.add(maps)
    total = one.merged(other)
    assert total.count == whole.count == maps[:, 0].size
    np.testing.assert_allclose(total.mean(), whole.mean(), atol=1e-6)
    np.testing.assert_allclose(total.covariance(), whole.covariance(), atol=1e-5)
    np.testing.assert_allclose(total.mean(), np.repeat(maps.mean(axis=(0, 2, 3)), 6), atol=1e-5)


def test_sums_of_another_shift_do_not_add_up():
    maps = np.random.default_rng(0).standard_normal((4, 1, 6)).astype(np.float32)
    window = Window((3,), (1,), (1,), (0, 0))
    one, other = Stationary(1, window), Stationary(1, window)
    one.add(maps[:2])
    other.add(maps[2:])
    with pytest.raises(AssertionError, match="shift"):
        one.merged(other)


# --- taps that are taken apart ----------------------------------------------------------------------------------------


def smooth_patches(rng: np.random.Generator, channels: int, count: int, noise: float = 0.2) -> np.ndarray:
    """Patches of 3 by 3 from maps whose channels go together more than their places do, [channels * 9, count]."""
    mix = np.random.default_rng(4).standard_normal((channels, channels)) * np.exp(-np.arange(channels) / 3.0)
    coarse = rng.standard_normal((count, channels, 9)) + 0.8 * rng.standard_normal((count, channels, 1))
    seen = np.einsum("cd,ndt->nct", mix, coarse) + noise * rng.standard_normal(coarse.shape)
    return seen.reshape(count, -1).T


@CHECKED
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5), st.floats(0.0, 1.0))
def test_a_blend_goes_from_the_covariance_to_taps_without_ties(seed, inputs, taps, share):
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((inputs * taps, inputs * taps + 2))
    covariance = roots @ roots.T
    assert blended(covariance, taps, 0.0) is covariance
    made = blended(covariance, taps, share)
    np.testing.assert_allclose(made, made.T, atol=1e-9)
    assert np.linalg.eigvalsh(made).min() > -1e-9 * np.trace(covariance)
    assert np.trace(made) == pytest.approx(np.trace(covariance))
    apart = blended(covariance, taps, 1.0).reshape(inputs, taps, inputs, taps)
    if taps > 1:
        mean = np.einsum("itjt->ij", covariance.reshape(inputs, taps, inputs, taps)) / taps
        for one, other in itertools.product(range(taps), repeat=2):
            np.testing.assert_allclose(apart[:, one, :, other], mean if one == other else 0.0, atol=1e-9)
        np.testing.assert_allclose(
            made, (1.0 - share) * covariance + share * apart.reshape(covariance.shape), atol=1e-9 * np.trace(covariance)
        )


@CHECKED
@given(st.integers(1, 10**6), st.integers(1, 500), st.integers(1, 49))
def test_few_patches_take_taps_apart_and_many_do_not(count, channels, taps):
    width = channels * taps
    share = tap_blend(count, width, taps)
    assert 0.0 <= share < 1.0
    assert tap_blend(count + 1, width, taps) <= share
    assert (share == 0.0) == (taps == 1 or count > 12 * width)


@pytest.mark.parametrize("form", ["reduce", "expand"])
@pytest.mark.parametrize(("share", "gain"), [(0.5, 0.95), (1.0, 0.98), (3.0, 1.0)])
def test_factors_of_few_patches_lose_less_on_others_with_a_blend(form, share, gain):
    """With so many patches for each number in one, in the mean over draws."""
    channels, rank = 8, 3
    width = 9 * channels
    kernel = np.random.default_rng(1).standard_normal((8, channels, 3, 3))
    truth = np.cov(smooth_patches(np.random.default_rng(99), channels, 20_000))
    lost = []
    for seed in range(12):
        seen = smooth_patches(np.random.default_rng(seed), channels, int(share * width))
        covariance, count = np.cov(seen, bias=True), seen.shape[1]
        errors = []
        for blend in (0.0, tap_blend(count, width, 9)):
            factors = factorize(kernel, form, rank, second_moment=shrunk(blended(covariance, 9, blend), count))
            errors.append(relative_error(kernel, compose(factors), truth) ** 2)
        lost.append(errors)
    without, with_blend = np.mean(lost, axis=0)
    assert with_blend < gain * without


@CHECKED
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2))
def test_maps_with_zeros_in_between_are_looked_at_as_they_are(seed, step, kernel, dilation):
    """The stationary moments of a transposed convolution are those of the convolution over the maps laid out."""
    rng = np.random.default_rng(seed)
    maps = (rng.standard_normal((2, 2, 6, 5)) + 1.5).astype(np.float32)
    # Without pads a place behind the last input of each axis, so that every phase comes as often.
    window = Window((kernel, 1), (1, 1), (dilation, 1), (0, 0, step - 1, 0), (step, 1))
    spread = np.zeros((2, 2, 6 * step, 5), np.float32)
    spread[:, :, ::step] = maps
    np.testing.assert_array_equal(
        patches(maps, window), patches(spread, Window((kernel, 1), (1, 1), (dilation, 1), (0,) * 4))
    )
    found = Stationary(2, window)
    found.add(maps)
    centred = maps.astype(np.float64) - (mean := maps.mean(axis=(0, 2, 3), dtype=np.float64))[:, None, None]
    expected = np.zeros((2, kernel, 2, kernel))
    for a, b in itertools.product(range(kernel), repeat=2):
        move, rest = divmod(abs(a - b) * dilation, step)
        expected[:, a, :, b] -= np.outer(mean, mean) / step**2
        if not rest:
            one, other = centred[:, :, move:], centred[:, :, : max(0, 6 - move)]
            one, other = (one, other) if a > b else (other, one)
            both = np.einsum("nihw,njhw->ij", one[:, :, : other.shape[2]], other) / maps[:, 0].size
            expected[:, a, :, b] += (both + np.outer(mean, mean)) / step
    np.testing.assert_allclose(found.covariance(), expected.reshape(2 * kernel, -1), atol=1e-4)
    np.testing.assert_allclose(found.mean(), np.repeat(mean / step, kernel), atol=1e-5)


@CHECKED
@given(st.integers(2, 4), st.integers(1, 3), st.integers(100, 5000))
def test_every_phase_is_looked_at_as_often(step, count, limit):
    size = 64
    blocks = lattices(np.arange(count), (size, size), 9, limit=limit, seed=0, spacing=(step, step))
    seen = np.zeros((step, step))
    for block in blocks:
        rows, columns = (np.arange(o, size, s) % step for o, s in zip(block.offsets, block.steps, strict=True))
        assert len(set(rows)) == len(set(columns)) == 1
        seen[rows[0], columns[0]] += len(block.examples) * len(rows) * len(columns)
    assert seen.min() > 0
    assert seen.max() <= 1.7 * seen.min()
    assert seen.sum() <= max(1.5 * limit, count * step**2)


@CHECKED
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4))
def test_numbers_that_are_zero_in_a_block_are_left_out(seed, step, kernel):
    """The moments are those of all patches, whichever of them are multiplied."""
    rng = np.random.default_rng(seed)
    maps = (rng.standard_normal((3, 2, 5, 7)) + 1.0).astype(np.float32)
    window = make_transposed_window((kernel, 2), (step, 2), (1, 1), (0,) * 4, maps.shape[2:])
    size = window.out_size(maps.shape[2:])
    weights = rng.standard_normal((3, 2 * window.taps)).astype(np.float32)
    found = Moments(2 * window.taps, 3)
    for lattice in lattices(np.arange(3), size, 2 * window.taps, limit=10**6, seed=seed, spacing=window.spacing):
        block = patches(maps, window, lattice)
        found.add(block, weights @ block)
    every = patches(maps, window).astype(np.float64)
    assert found.count == every.shape[1]
    np.testing.assert_allclose(found.mean(), every.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(found.covariance(), np.cov(every, bias=True), atol=1e-4)
    np.testing.assert_allclose(found.cross_covariance(), weights @ np.cov(every, bias=True), atol=1e-3)


def test_what_never_varies_has_no_negative_variance():
    """Padding around maps of 2 by 2 is the same in all patches, far from the mean that is taken off."""
    x = (3.0 + np.random.default_rng(0).standard_normal((40, 6, 2, 2)) * 1e-2).astype(np.float32)
    window = make_window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), (2, 2))
    corner = Lattice(None, (2, 2), (0, 0))
    means = channel_means(x, window)
    sums = Moments(6 * 9, shift=np.repeat(means, 9))
    sums.add(patches(x, window, corner, means), shifted=True)
    covariance = sums.covariance()
    assert np.diagonal(covariance).min() == 0.0
    assert Norm.of(covariance, 6, 9).moment is not None


@pytest.mark.parametrize("kind", ["patches", "maps"])
def test_the_beginning_of_sums_is_the_sum_of_the_beginnings(kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 5, 8, 8), dtype=np.float32)
    window = make_window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), (8, 8))
    if kind == "patches":
        shift = rng.standard_normal(45).astype(np.float32)
        whole, part = Moments(45, shift=shift), Moments(27, shift=shift[:27])
        whole.add(patches(x, window))
        part.add(patches(x[:, :3], window))
        told = whole.leading(27)
    else:
        whole, part = Stationary(5, window, shift=x), Stationary(3, window, shift=x[:, :3])
        whole.add(x)
        part.add(x[:, :3])
        told = whole.leading(3)
    np.testing.assert_allclose(told.covariance(), part.covariance(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(told.mean(), part.mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(told.merged(told).covariance(), told.covariance(), rtol=1e-9)
