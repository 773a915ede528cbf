"""Copies of a few examples: made where patches are fewer than numbers in one, along axes where they help others."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_pointwise.fitting import refit as refitting
from onnx_pointwise.fitting.weights import drift_of, make_weights
from onnx_pointwise.study import copies as copying
from onnx_pointwise.study.collect import site_moments
from onnx_pointwise.study.copies import copies, in_turns, moved
from tests.networks import Builder, halved, look, prepared

SIZE = 32


def deep(batch="batch"):
    """Two poolings, then many maps on few places."""
    b = Builder(3, batch, size=SIZE)
    y = b.add("Relu", b.conv("x", 3, 16))
    y = b.add("MaxPool", y, kernel_shape=[4, 4], strides=[4, 4])
    y = b.add("Relu", b.conv(y, 16, 48, strides=[2, 2]))
    y = b.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = b.add("Relu", b.conv(y, 48, 48))
    y = b.add("Relu", b.conv(y, 48, 48))
    return b.model(b.add("GlobalAveragePool", y))


def pictures(count, seed=0, alike=True):
    """Smooth images that are as likely as their mirror images, and at any place as likely as beside it; or not so."""
    rng = np.random.default_rng(seed)
    places = np.arange(SIZE) / SIZE
    images = np.zeros((count, 3, SIZE, SIZE), np.float32)
    for image in images:
        for _ in range(4):
            across, down = rng.integers(1, 5, 2)
            phase = rng.uniform(0.0, 2.0 * np.pi, 2) if alike else np.zeros(2)
            wave = np.sin(2.0 * np.pi * across * places + phase[0])[None, :]
            wave = wave * np.sin(2.0 * np.pi * down * places + phase[1])[:, None]
            image += rng.standard_normal((3, 1, 1)).astype(np.float32) * wave.astype(np.float32)
    return {"x": images}


def test_copies_are_moved_by_their_own_distances_along_their_axes():
    x = np.arange(4 * 1 * 20 * 24, dtype=np.float32).reshape(4, 1, 20, 24)
    np.testing.assert_array_equal(moved(x, ((3,), ()), 0), x[..., ::-1])
    np.testing.assert_array_equal(moved(x, ((2, 3), ()), 0), x[..., ::-1, ::-1])
    shifted = moved(x, ((), (3,)), 0)
    for one, other in zip(x, shifted, strict=True):
        (step,) = [s for s in (-1, 1) if np.array_equal(np.roll(one, -s, 2)[..., 1:-1], other[..., 1:-1])]
        edge = -1 if step > 0 else 0
        np.testing.assert_array_equal(other[..., edge], one[..., edge])
    assert shifted.flags.c_contiguous and shifted.dtype == x.dtype
    np.testing.assert_array_equal(shifted, moved(x, ((), (3,)), 0))


@pytest.mark.parametrize(("count", "made"), [(24, True), (900, False), (1, False)])
def test_they_are_made_where_moments_are_singular(count, made):
    shapes, sites = prepared(deep())
    feeds = pictures(count)
    tried = np.arange(count) % 2 == 1
    found = copies(shapes, sites, feeds, tried, batch=16, threads=1)["x"]
    assert found.shape[1:] == feeds["x"].shape[1:]
    assert (len(found) > 0) == made
    assert len(found) % count == 0 and len(found) <= 3 * count


def test_what_does_not_help_is_not_done():
    """Copies of what is never seen elsewhere or turned round tell other examples nothing."""
    shapes, sites = prepared(deep())
    feeds = pictures(24, alike=False)
    feeds["x"] = feeds["x"] + 2.0 * np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)  # left and right differ
    found = copies(shapes, sites, feeds, np.arange(24) % 2 == 1, batch=16, threads=1)["x"]
    mirrored = moved(feeds["x"], ((3,), ()), 0)
    assert not any(np.array_equal(part, mirrored) for part in np.split(found, max(1, len(found) // 24)) if len(part))


def wide():
    """Two convolutions that see many patches of every example."""
    b = Builder(3, "batch", size=SIZE)
    y = b.add("Relu", b.conv("x", 3, 16))
    return b.model(b.conv(y, 16, 16))


def slanted(count, alike=True):
    """Waves that run down to the right, and as often down to the left, or never."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:SIZE, :SIZE] / SIZE
    images = np.zeros((count, 3, SIZE, SIZE), np.float32)
    for image in images:
        for _ in range(2):
            one, other = rng.integers(2, 9, 2)
            side = rng.choice([-1, 1]) if alike else 1
            wave = np.sin(2.0 * np.pi * (one * across + side * other * down + rng.random()))
            image += rng.standard_normal((3, 1, 1)) * wave
    return {"x": images}


@pytest.mark.parametrize(("count", "alike", "made"), [(10, True, True), (120, True, False), (10, False, False)])
def test_few_examples_are_mirrored_once_where_that_suits_others(count, alike, made):
    shapes, sites = prepared(wide())
    feeds = slanted(count, alike=alike)
    found = copies(shapes, sites, feeds, np.arange(count) % 2 == 1, batch=16, threads=1)["x"]
    assert len(found) == count * made
    if made:
        across, down = ((3,), ()), ((2,), ())
        ways = [(across,), (down,), (across, down), (down, across)]
        assert any(np.array_equal(found, in_turns(feeds["x"], turns, 0)) for turns in ways)


def test_moves_are_taken_in_turns():
    x = np.random.default_rng(0).random((5, 2, 20, 24), dtype=np.float32)
    found = in_turns(x, (((2,), ()), ((3,), ())), 0)
    np.testing.assert_array_equal(found[::2], x[::2, :, ::-1])
    np.testing.assert_array_equal(found[1::2], x[1::2, ..., ::-1])


def test_several_inputs_and_none_to_judge_by_get_none():
    shapes, sites = prepared(deep())
    feeds = pictures(24)
    assert not len(copies(shapes, sites, feeds, np.zeros(24, np.bool_), batch=16, threads=1)["x"])
    two = {**feeds, "other": np.zeros((24, 1), np.float32)}
    found = copies(shapes, sites, two, np.arange(24) % 2 == 1, batch=16, threads=1)
    assert {name: len(array) for name, array in found.items()} == {"x": 0, "other": 0}


def test_copies_go_where_their_original_goes():
    """Trial factors know no copy of what they are judged by; weights know all copies; nothing is judged by a copy."""
    shapes, sites = prepared(deep())
    feeds = pictures(16)
    tried = np.arange(16) % 3 == 0
    more = {"x": np.concatenate([moved(feeds["x"], ((3,), ()), 0), moved(feeds["x"], ((), (2, 3)), 1)])}
    both = np.tile(tried, 2)
    found = site_moments(shapes, sites, feeds, batch=5, tried=tried, copies=more, threads=1)
    one = np.concatenate([feeds["x"][~tried], more["x"][~both]])
    part = site_moments(shapes, sites, {"x": one}, batch=5, threads=1)
    rest = site_moments(shapes, sites, feeds, batch=5, tried=tried, threads=1)
    whole = site_moments(shapes, sites, {"x": np.concatenate([feeds["x"], more["x"]])}, batch=5, threads=1)
    for site in sites:
        seen = found[site.name]
        for mine, other in ((seen.part, part[site.name].whole), (seen.whole, whole[site.name].whole)):
            assert mine.count == other.count
            np.testing.assert_allclose(mine.covariance, other.covariance, rtol=1e-3, atol=1e-5)
        told, expected = seen.rest, rest[site.name].rest
        assert told is not None and expected is not None
        np.testing.assert_allclose(told.full(), expected.full(), rtol=1e-3, atol=1e-5)


def test_a_refit_judges_by_no_copy(monkeypatch):
    model = deep()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, pictures(40))
    assert len(found.copies["x"]) and not len(found.copies["x"]) % len(found.fit["x"])
    asked = []
    made = refitting.lattices

    def watched(examples, *arguments, **options):
        asked.append(examples)
        return made(examples, *arguments, **options)

    monkeypatch.setattr(refitting, "lattices", watched)
    weights = make_weights(found, halved(sites))
    assert weights.drift is not None
    count = len(found.fit["x"])
    for fit, back in zip(asked[::2], asked[1::2], strict=True):
        assert back.max() < count <= fit.max()
        assert not set(fit % count) & set(back)


def test_they_help_on_faces_that_nobody_has_seen():
    """Of weights made from few examples those that know copies drift less on others, on the whole."""
    ratios = []
    model = deep()
    shapes, sites = prepared(model)
    for seed in range(3):
        feeds, fresh = pictures(24, seed=seed), pictures(200, seed=50 + seed)
        drifts = []
        for most in (3, 0):
            with pytest.MonkeyPatch.context() as patch:
                if not most:
                    patch.setattr(copying, "_SHARE", 2.0)
                    patch.setattr(copying, "_FEW", 0)
                found = look(model, shapes, sites, feeds)
                assert bool(len(found.copies["x"])) == bool(most)
                weights = make_weights(found, halved(sites), refit=False)
                drifts.append(drift_of(found, halved(sites), weights.replacements, fresh))
        ratios.append(drifts[0] / drifts[1])
    assert np.exp(np.log(ratios).mean()) < 0.99
