"""What sites see: moments of their patches, in examples that are tried and in the others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.fitting.weights import make_weights
from onnx_pointwise.graph import load
from onnx_pointwise.numerics.moments import blended, patches, shrunk, tap_blend
from onnx_pointwise.runtime.shape_inference import resolve
from onnx_pointwise.study import collect
from onnx_pointwise.study.collect import fitting_batch, site_moments
from onnx_pointwise.study.prefixes import widest
from onnx_pointwise.study.survey import study
from tests.graphs import make_model, value
from tests.networks import EFFORT, branching, examples, halved, look, prepared, residual, run, unet


def test_a_fixed_batch_size_is_kept():
    model = residual(batch=1)
    shapes, sites = prepared(model)
    assert fitting_batch(model, shapes) == 1
    assert fitting_batch(residual(), resolve(residual())) > 1
    found = look(model, shapes, sites, examples(24))
    weights = make_weights(found, halved(sites))
    assert weights.drift is not None
    assert np.isfinite(weights.drift)


@pytest.mark.parametrize(("make", "index"), [(branching, -1), (unet, -2), (unet, -3)])
def test_moments_of_sites_are_those_of_their_patches(make, index):
    model = make()
    shapes, sites = prepared(model)
    feeds = examples(20)
    found = site_moments(shapes, sites, feeds, batch=6, threads=1)
    probe = shapes.model.clone()
    site = sites[index]
    last = next(node for node in probe.graph if node.name == site.name)
    probe.graph.outputs.append(last.inputs[0])
    for one in (*probe.graph.outputs, *probe.graph.inputs):
        one.shape = None
    (*_, inputs) = run(probe, feeds)
    assert site.transposed == (make is unet)
    p = patches(inputs, site.window(inputs.shape[2:])).astype(np.float64)
    blend = tap_blend(p.shape[1], len(p), site.taps)
    expected = shrunk(blended(np.cov(p, bias=True), site.taps, blend), p.shape[1])
    np.testing.assert_allclose(found[site.name].whole.covariance, expected, atol=1e-4)
    np.testing.assert_allclose(found[site.name].whole.mean, p.mean(axis=1), atol=1e-4)
    assert found[site.name].whole.kind == "exact"


def test_moments_in_several_passes_are_the_same():
    model = residual()
    shapes, sites = prepared(model)
    once = site_moments(shapes, sites, examples(8), batch=4, threads=1)
    often = site_moments(shapes, sites, examples(8), batch=4, memory=500_000, threads=1)
    for site in sites:
        np.testing.assert_array_equal(once[site.name].whole.covariance, often[site.name].whole.covariance)


def test_what_does_not_run_or_is_not_finite_is_said():
    model = residual()
    shapes, sites = prepared(model)
    with pytest.raises(ModelError, match="calibration inputs"):
        study(model, shapes, sites, {"x": np.ones((4, 5, 12, 12), np.float32)}, effort=EFFORT)
    with pytest.raises(InputError, match=r"lead to NaN at .*, which .* reads, first in example 0"):
        study(model, shapes, sites, {"x": np.full((4, 3, 12, 12), np.nan, np.float32)}, effort=EFFORT)


def test_examples_that_are_tried_on_are_kept_apart():
    """The part is what the others show, the rest what those show that are tried on, the whole what all show."""
    shapes, sites = prepared(residual(), fewest_taps=2)
    feeds = examples(16)
    tried = np.arange(16) % 3 == 0
    found = site_moments(shapes, sites, feeds, batch=5, tried=tried, threads=1)
    part = site_moments(shapes, sites, {"x": feeds["x"][~tried]}, batch=5, threads=1)
    whole = site_moments(shapes, sites, feeds, batch=5, threads=1)
    for site in sites:
        seen = found[site.name]
        assert seen.rest is not None
        assert seen.whole.count == whole[site.name].whole.count
        assert seen.part.count == part[site.name].whole.count
        np.testing.assert_allclose(seen.whole.mean, whole[site.name].whole.mean, atol=1e-4)
        np.testing.assert_allclose(seen.part.mean, part[site.name].whole.mean, atol=1e-4)
        scale = np.abs(seen.whole.covariance).max()
        np.testing.assert_allclose(seen.whole.covariance, whole[site.name].whole.covariance, atol=1e-4 * scale)
        np.testing.assert_allclose(seen.part.covariance, part[site.name].whole.covariance, atol=1e-4 * scale)
        rest = seen.rest.full()
        assert np.linalg.eigvalsh(rest.astype(np.float64)).min() > -1e-4 * np.abs(rest).max()


@pytest.mark.parametrize(("exact", "stationary"), [(100, 1000), (10, 10)])
def test_wide_sites_are_parted_too(monkeypatch, exact, stationary):
    monkeypatch.setattr("onnx_pointwise.study.collect.EXACT", exact)
    monkeypatch.setattr("onnx_pointwise.study.collect.STATIONARY", stationary)
    shapes, sites = prepared(residual(), fewest_taps=2)
    tried = np.arange(12) % 2 == 0
    found = site_moments(shapes, sites, examples(12), batch=4, tried=tried, threads=1)
    for site in sites:
        seen = found[site.name]
        assert seen.rest is not None
        assert seen.rest.full().shape == seen.part.covariance.shape == seen.whole.covariance.shape
        assert seen.part.count * 2 == seen.whole.count
        assert seen.whole.mean.shape == (site.in_channels * site.taps,)


@pytest.mark.parametrize("memory", [10**4, 3 * 10**5, 10**7])
def test_moments_keep_to_the_memory(memory, monkeypatch):
    """Sites that do not fit together take further passes; of one that does not fit alone only channels are told."""
    shapes, sites = prepared(residual(8), fewest_taps=2)
    held: list[int] = []
    passes: list[int] = []
    groups = collect._groups

    def noted(*given):
        for group in groups(*given):
            views = {site.view: collect.moment_bytes(site, memory) for site in group}
            held.append(sum(views.values()))
            yield group

    monkeypatch.setattr(collect, "_groups", noted)
    found = site_moments(
        shapes, sites, examples(8), batch=8, memory=memory, threads=1, progress=lambda *told: passes.append(told[1])
    )
    assert max(held) <= memory
    assert len(held) == len(passes)
    for site in sites:
        width = site.in_channels * site.taps
        fits = 24 * width**2 <= memory
        seen = found[site.name].whole
        assert seen.kind == ("exact" if fits else "channels")
        assert len(seen.covariance) == (width if fits else site.in_channels)
    kinds = {found[site.name].whole.kind for site in sites}
    assert kinds == ({"channels"} if memory == 10**4 else {"exact"} if memory == 10**7 else {"exact", "channels"})


@pytest.mark.parametrize("tried", [None, np.zeros(6, np.bool_), np.ones(6, np.bool_)])
def test_where_none_or_all_are_tried_on_there_is_one_moment(tried):
    shapes, sites = prepared(residual())
    for seen in site_moments(shapes, sites, examples(6), batch=4, tried=tried, threads=1).values():
        assert seen.part is seen.whole
        assert seen.rest is None


def test_taps_are_taken_apart_where_patches_are_few_and_not_where_they_are_many():
    shapes, sites = prepared(residual(3), fewest_taps=2)
    few = site_moments(shapes, sites, examples(4), batch=4, tried=np.arange(4) % 2 == 1, threads=1)
    many = site_moments(shapes, sites, examples(96), batch=16, tried=np.arange(96) % 2 == 1, threads=1)
    for seen in [*few.values(), *many.values()]:
        for moment in (seen.whole, seen.part):
            plenty = moment.count > 12 * len(moment.covariance)
            assert moment.blend == 0.0 if plenty else 0.0 < moment.blend < 1.0
        assert seen.whole.blend <= seen.part.blend  # more patches are behind it
    assert any(seen.whole.blend > 0.0 for seen in few.values())
    assert any(seen.part.blend == 0.0 for seen in many.values())


def test_what_is_collected_does_not_depend_on_which_other_sites_are_looked_at():
    """A replay looks only at the sites of its plan."""
    shapes, sites = prepared(residual())
    tried = np.arange(6) % 2 == 1
    together = site_moments(shapes, sites, examples(6), batch=4, tried=tried, patch_limit=200, threads=1)
    for site in sites:
        alone = site_moments(shapes, [site], examples(6), batch=4, tried=tried, patch_limit=200, threads=1)
        seen, other = together[site.name], alone[site.name]
        assert seen.whole.covariance.tobytes() == other.whole.covariance.tobytes()
        assert seen.part.covariance.tobytes() == other.part.covariance.tobytes()
        assert seen.rest is not None and other.rest is not None
        assert seen.rest.full().tobytes() == other.rest.full().tobytes()
        assert seen.whole.blend == other.whole.blend


def dense_block(axis: int) -> ir.Model:
    """Three convolutions, each of which reads all before it, and one that reads in another order."""
    rng = np.random.default_rng(0)
    nodes, weights, known = [], {}, ["x"]
    for number, inputs in enumerate((4, 8, 12)):
        source = known[0]
        if number:
            source = f"all{number}"
            before = known if number == 1 else ["all1", known[-1]]
            nodes.append(helper.make_node("Concat", before, [source], axis=axis))
        weights[f"w{number}"] = rng.standard_normal((4, inputs, 3, 3)).astype(np.float32) / 6.0
        nodes.append(helper.make_node("Conv", [source, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4))
        known.append(f"c{number}")
    nodes.append(helper.make_node("Concat", ["c0", "x", "c1", "c2"], ["other"], axis=axis))
    weights["v"] = rng.standard_normal((4, 16, 3, 3)).astype(np.float32) / 8.0
    nodes.append(helper.make_node("Conv", ["other", "v"], ["y"], "last", pads=[1] * 4))
    proto = make_model(nodes, [value("x", ["N", 4, 10, 10])], [value("y", ["N", 4, 10, 10])], weights)
    return load(proto)


@pytest.mark.parametrize("axis", [1, -3])
def test_sites_of_a_dense_block_share_the_sums_of_the_last(axis):
    shapes, sites = prepared(dense_block(axis), fewest_taps=2)
    assert [site.name for site in sites] == ["conv0", "conv1", "conv2", "last"]
    longer = widest(shapes.model, sites)
    assert {site.name: longer[site.view].name for site in sites if site.view in longer} == {
        "conv0": "conv2",
        "conv1": "conv2",
    }
    feeds = {"x": np.random.default_rng(1).standard_normal((24, 4, 10, 10), dtype=np.float32)}
    tried = np.arange(24) % 3 == 0
    alone, shared = (
        site_moments(shapes, sites, feeds, batch=7, tried=tried, longer=one, threads=2) for one in (None, longer)
    )
    for site in sites:  # all patches are taken
        one, other = alone[site.name], shared[site.name]
        np.testing.assert_allclose(one.whole.covariance, other.whole.covariance, atol=1e-4)
        np.testing.assert_allclose(one.part.covariance, other.part.covariance, atol=1e-4)
        np.testing.assert_allclose(one.rest.full(), other.rest.full(), atol=1e-4)
        np.testing.assert_allclose(one.whole.mean, other.whole.mean, atol=1e-5)
        assert one.whole.count == other.whole.count
    few = site_moments(shapes, sites[:1], feeds, batch=7, tried=tried, longer=longer, threads=1)
    assert few["conv0"].part.covariance.tobytes() == shared["conv0"].part.covariance.tobytes()
