"""The whole chain on small networks: moments, sensitivities, shares, sequential refit, and what it is all for."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.fitting import refit as refitting
from onnx_pointwise.fitting.refit import refit
from onnx_pointwise.fitting.weights import drift_of, make_weights
from onnx_pointwise.graph.cost import dense_cost
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.sites import find_sites
from onnx_pointwise.graph.surgery import BottleneckPass, replacement
from onnx_pointwise.numerics.drift import relative_drift
from onnx_pointwise.numerics.forms import SPATIAL
from onnx_pointwise.numerics.moments import make_window, patches, shrunk
from onnx_pointwise.planning.options import options, predicted_drift, share_out
from onnx_pointwise.runtime.providers import open_session
from onnx_pointwise.runtime.segments import Store, TwinRun
from onnx_pointwise.runtime.shape_inference import resolve
from onnx_pointwise.study.collect import fitting_batch, moment_kind, site_moments
from onnx_pointwise.study.sensitivity import Point, measured_outputs, sensitivities
from onnx_pointwise.study.survey import Study, study

CHANNELS = 12


class Builder:
    """A graph made line by line, with smooth random weights."""

    def __init__(self, seed: int, batch: int | str = "batch") -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.batch = batch

    def const(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def conv(self, x: str, i: int, o: int, k: int = 3, **attributes: object) -> str:
        # Correlated input channels, so that there is something to gain.
        basis = self.rng.standard_normal((o, max(2, i // 2), k, k))
        mix = self.rng.standard_normal((max(2, i // 2), i)) / np.sqrt(i)
        kernel = np.einsum("ormn,ri->oimn", basis, mix) + 0.15 * self.rng.standard_normal((o, i, k, k))
        kernel *= np.sqrt(2.0 / (i * k * k))
        pads = [k // 2] * 4
        bias = self.const(0.1 * self.rng.standard_normal(o))
        return self.add("Conv", x, self.const(kernel), bias, **{"pads": pads, "kernel_shape": [k, k], **attributes})

    def model(self, *outputs: str) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.batch, 3, 12, 12])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.weights,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        return ir.serde.deserialize_model(proto)


def residual(seed: int = 0, batch: int | str = "batch") -> ir.Model:
    """Stem, two residual blocks (one with a projection and a stride), head with a Softmax."""
    b = Builder(seed, batch)
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    y = b.conv(b.add("Relu", b.conv(x, CHANNELS, CHANNELS)), CHANNELS, CHANNELS)
    x = b.add("Relu", b.add("Add", x, y))
    y = b.conv(b.add("Relu", b.conv(x, CHANNELS, 16, strides=[2, 2])), 16, 16)
    x = b.add("Relu", b.add("Add", y, b.conv(x, CHANNELS, 16, 1, strides=[2, 2], pads=[0, 0, 0, 0])))
    flat = b.add("Flatten", b.add("GlobalAveragePool", x))
    return b.model(b.add("Softmax", b.add("Gemm", flat, b.const(b.rng.standard_normal((16, 10)))), axis=1))


def branching(seed: int = 0) -> ir.Model:
    """Branches that are concatenated, a Clip, a value used twice, and two outputs."""
    b = Builder(seed)
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    one = b.add("Clip", b.conv(x, CHANNELS, 8), b.const(np.array(0.0)), b.const(np.array(6.0)))
    two = b.add("Relu", b.conv(x, CHANNELS, 8, 5))
    both = b.add("Concat", one, two, axis=1)
    scale = b.add("Sigmoid", b.add("GlobalAveragePool", both))
    y = b.add("Relu", b.conv(b.add("Mul", both, scale), 16, 16))
    z = b.conv(y, 16, 8)
    return b.model(z, b.add("Sigmoid", b.add("GlobalAveragePool", y)))


NETWORKS = {"residual": residual, "branching": branching}


def examples(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4))
    return {"x": (np.kron(coarse, np.ones((3, 3))) + 0.3 * rng.standard_normal((count, 3, 12, 12))).astype(np.float32)}


def prepared(model: ir.Model, *, fewest_taps: int = 1):
    shapes = resolve(model)
    return shapes, [site for site in find_sites(model, shapes) if site.refusal is None and site.taps >= fewest_taps]


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return open_session(serialize(model).SerializeToString(), "cpu", threads=1).run(None, feeds)


def look(model: ir.Model, shapes, sites, feeds, **settings: object) -> Study:
    return study(model, shapes, sites, feeds, patch_limit=4000, **settings)


def halved(sites) -> dict[str, Choice]:
    return {site.name: Choice("reduce", max(1, site.in_channels // 3)) for site in sites}


def drift(model: ir.Model, choices, replacements, feeds) -> float:
    rewritten = model.clone()
    BottleneckPass(Plan(choices), replacements)(rewritten)
    return float(np.sqrt(relative_drift(run(model, feeds), run(rewritten, feeds))))


@pytest.mark.parametrize("name", NETWORKS)
def test_refit_beats_factors_made_site_by_site(name):
    model = NETWORKS[name]()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(160), threads=1)
    choices = halved(sites)
    weights = make_weights(found, choices)
    assert set(weights.refits) == {site.name for site in sites}
    assert weights.drift is not None
    assert weights.unrefitted is not None
    assert weights.drift < weights.unrefitted
    fresh = examples(64, seed=9)
    alone = {site.name: replacement(site, choices[site.name], "als") for site in sites}
    assert drift(model, choices, weights.replacements, fresh) < 0.7 * drift(model, choices, alone, fresh)
    assert weights.drift == pytest.approx(drift_of(found, choices, weights.replacements))


@pytest.mark.parametrize("name", NETWORKS)
def test_sites_beside_one_another_get_the_weights_they_get_alone(name, monkeypatch):
    model = NETWORKS[name]()
    shapes, sites = prepared(model)

    def kernels(workers: int) -> list[bytes]:
        monkeypatch.setattr(refitting, "workers", lambda threads: workers)
        done = refit(shapes.model, sites, halved(sites), examples(24), batch=8, patch_limit=3000, threads=1)
        assert list(done) == [site.name for site in sites]
        return [item.replacement.factors.kernel.tobytes() + item.replacement.bias.tobytes() for item in done.values()]

    assert kernels(1) == kernels(3)


def test_branches_are_refitted_beside_one_another(monkeypatch):
    model = branching()
    shapes, sites = prepared(model)
    first, both = {site.name for site in sites[:2]}, threading.Barrier(2)
    done_with = refitting.reconstruct

    def meet(kernel, *arguments, **options):
        if len(kernel) == 8 and kernel.shape[1] == CHANNELS:
            both.wait(100)  # passes only where the other branch is under way
        return done_with(kernel, *arguments, **options)

    monkeypatch.setattr(refitting, "workers", lambda threads: 2)
    monkeypatch.setattr(refitting, "reconstruct", meet)
    done = refit(shapes.model, sites, halved(sites), examples(24), batch=8, patch_limit=3000, threads=1)
    assert first < set(done)


def test_branches_and_activations_are_seen():
    model = residual()
    shapes, sites = prepared(model, fewest_taps=2)
    done = refit(shapes.model, sites, halved(sites), examples(48), batch=16, patch_limit=4000, threads=1)
    targets = [(done[site.name].target, done[site.name].activation) for site in sites]
    # The second projection comes after the site that it is added to, so that site aims at its own output.
    assert targets == [("output", "flat"), ("sum", "flat"), ("output", "flat"), ("sum", "flat")]


@pytest.mark.parametrize("name", NETWORKS)
def test_twin_run_computes_what_the_networks_compute(name):
    model = NETWORKS[name]()
    shapes, sites = prepared(model)
    feeds = examples(21)
    choices = halved(sites)
    done = refit(shapes.model, sites, choices, feeds, batch=8, patch_limit=4000, threads=1)
    replacements = {item: value.replacement for item, value in done.items()}
    rewritten = model.clone()
    BottleneckPass(Plan(choices), replacements)(rewritten)
    from onnx_pointwise.fitting.refit import site_session

    with TwinRun(shapes.model, sites, feeds, batch=8, memory=20_000, threads=1) as twin:
        for site in sites:
            twin.advance([str(site.node.inputs[0].name)])
            rest = twin.rest(site)
            dense = twin.dense_output(site)
            assert rest is not None
            for one, other in zip(twin.outcome(rest, site, dense), run(model, feeds), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
            twin.finish(site, dense, site_session(shapes.model, site, choices[site.name], replacements[site.name]))
        twin.advance(twin.outputs)
        for index, name in enumerate(twin.outputs):
            np.testing.assert_allclose(twin.dense[name], run(model, feeds)[index], atol=1e-5)
            np.testing.assert_allclose(twin.rewritten[name], run(rewritten, feeds)[index], atol=1e-4)


def test_values_go_to_files_beyond_the_limit(tmp_path):
    store = Store(1000)
    first = store.new((10, 10), np.dtype(np.float32))
    second = store.new((200,), np.dtype(np.float32))
    assert not isinstance(first, np.memmap)
    third = store.new((200,), np.dtype(np.float32))
    assert isinstance(second, np.memmap)
    assert isinstance(third, np.memmap)
    third[:] = 1.0
    store.drop(second)
    store.drop(first)
    assert not isinstance(store.new((240,), np.dtype(np.float32)), np.memmap)
    store.close()


def test_a_fixed_batch_size_is_kept():
    model = residual(batch=1)
    shapes, sites = prepared(model)
    assert fitting_batch(model, shapes) == 1
    assert fitting_batch(residual(), resolve(residual())) > 1
    found = look(model, shapes, sites, examples(24), threads=1)
    weights = make_weights(found, halved(sites))
    assert weights.drift is not None
    assert np.isfinite(weights.drift)


def test_moments_of_sites_are_those_of_their_patches():
    model = branching()
    shapes, sites = prepared(model)
    feeds = examples(20)
    found = site_moments(shapes, sites, feeds, batch=6, threads=1)
    probe = shapes.model.clone()
    last = next(node for node in probe.graph if node.name == sites[-1].name)
    probe.graph.outputs.append(last.inputs[0])
    for value in (*probe.graph.outputs, *probe.graph.inputs):
        value.shape = None
    (*_, inputs) = run(probe, feeds)
    site = sites[-1]
    window = make_window(site.kernel_shape, site.strides, site.dilations, site.pads, inputs.shape[2:])
    p = patches(inputs, window).astype(np.float64)
    expected = shrunk(np.cov(p, bias=True), p.shape[1])
    np.testing.assert_allclose(found[site.name].covariance, expected, atol=1e-4)
    np.testing.assert_allclose(found[site.name].mean, p.mean(axis=1), atol=1e-4)
    assert found[site.name].kind == "exact"


def test_moments_in_several_passes_are_the_same():
    model = residual()
    shapes, sites = prepared(model)
    once = site_moments(shapes, sites, examples(8), batch=4, threads=1)
    often = site_moments(shapes, sites, examples(8), batch=4, memory=1, threads=1)
    for site in sites:
        np.testing.assert_array_equal(once[site.name].covariance, often[site.name].covariance)


@pytest.mark.parametrize(("exact", "kind"), [(100, "stationary"), (10, "channels")])
def test_wide_sites_are_looked_at_less_closely(monkeypatch, exact, kind):
    monkeypatch.setattr("onnx_pointwise.study.collect.EXACT", exact)
    monkeypatch.setattr("onnx_pointwise.study.collect.STATIONARY", 1000 if kind == "stationary" else 10)
    model = residual()
    shapes, sites = prepared(model, fewest_taps=2)
    assert moment_kind(sites[-1]) == kind
    found = look(model, shapes, sites, examples(64), threads=1)
    assert found.moments[sites[-1].name].kind == kind
    listed = options(found)
    choices = share_out(listed, {"macs": 0.6 * sum(dense_cost(site).macs for site in sites)})
    weights = make_weights(found, choices)
    assert weights.drift is not None
    assert weights.drift < 0.6


def test_sensitivities_are_measured_where_it_counts():
    model = residual()
    assert measured_outputs(model) == [str(model.graph.outputs[0].producer().inputs[0].name)]
    shapes, sites = prepared(model, fewest_taps=2)
    feeds = examples(32)
    moments = site_moments(shapes, sites, feeds, batch=16, threads=1)
    found = sensitivities(shapes.model, sites, moments, feeds, batch=16, threads=1)
    for site in sites:
        points = found[site.name].points
        assert len(points) >= 4
        assert all(0.0 < point.error <= point.bound * 1.001 for point in points)
        assert found[site.name].response.gain > 0.0
        # The curve goes through what was measured, give or take what separates the two forms.
        for point in points:
            predicted = found[site.name].response(np.array([point.error]))[0]
            assert 0.2 < predicted / point.drift < 5.0


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("form", SPATIAL)
def test_spatial_forms_are_refitted_like_all_others(make, form):
    model = make()
    shapes, sites = prepared(model, fewest_taps=2)
    feeds = examples(24)
    choices = {site.name: Choice(form, site.in_channels) for site in sites}
    found = look(model, shapes, sites, feeds, measure=False)
    weights = make_weights(found, choices)
    assert weights.refits and weights.drift < weights.unrefitted
    for site in sites:
        first, second = weights.replacements[site.name].factors.pieces
        assert first.shape[0] == second.shape[1] == site.in_channels
        assert first.shape[2] * second.shape[2] == first.shape[3] * second.shape[3] == site.kernel_shape[0]
    # With as many channels as the kernel has directions nothing is lost.
    full = {site.name: Choice(form, 5 * site.in_channels) for site in sites}
    assert make_weights(found, full, refit=False).drift < 1e-4


def test_errors_of_a_form_that_was_not_tried_are_those_of_reduce():
    """How far the alternation gets below the curve is much the same where one piece is shared by all taps."""
    shapes, sites = prepared(residual(), fewest_taps=2)
    found = look(residual(), shapes, sites, examples(16))
    for site in sites:
        known = found.sensitivities[site.name]
        bounds = np.array([0.01, 0.05, 0.3])
        np.testing.assert_array_equal(known.errors("vertical", bounds), known.errors("reduce", bounds))
        np.testing.assert_array_equal(known.errors("expand", bounds), bounds)
        own = replace(known, points=(*known.points, Point("vertical", 3, 0.05, 0.04, 0.01)))
        np.testing.assert_allclose(own.errors("vertical", bounds), 0.8 * bounds)
        np.testing.assert_array_equal(own.errors("horizontal", bounds), known.errors("reduce", bounds))


def test_a_1x1_kernel_is_tried_in_one_form():
    model = residual()
    shapes, sites = prepared(model)
    pointwise = [site for site in sites if site.taps == 1]
    assert pointwise
    feeds = examples(32)
    moments = site_moments(shapes, pointwise, feeds, batch=16, threads=1)
    found = sensitivities(shapes.model, pointwise, moments, feeds, batch=16, threads=1)
    for site in pointwise:
        assert {point.form for point in found[site.name].points} == {"expand"}


def test_predicted_drift_ranks_plans():
    model = residual(1)
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(96), threads=1)
    listed = options(found)
    rng = np.random.default_rng(0)
    predicted, measured = [], []
    for _ in range(12):
        picked = {one.site.name: one.choices[rng.integers(len(one.choices))] for one in listed}
        choices = {name: choice for name, choice in picked.items() if choice is not None}
        predicted.append(predicted_drift(found, choices))
        weights = make_weights(found, choices)
        assert weights.drift is not None and weights.predicted == predicted[-1]
        measured.append(weights.drift)
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, measured)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_shares_stay_within_the_budget(share):
    model = residual(2)
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(48), threads=1)
    listed = options(found)
    whole = sum(dense_cost(site).macs for site in sites)
    choices = share_out(listed, {"macs": share * whole, "params": 0.9 * sum(dense_cost(s).params for s in sites)})
    spent = sum((choices[s.name].cost(s) if s.name in choices else dense_cost(s)).macs for s in sites)
    assert 0.8 * share * whole < spent <= share * whole
    uniform = {site.name: Choice("reduce", max(1, round(share * 0.75 * site.in_channels))) for site in sites}
    assert make_weights(found, choices).drift < make_weights(found, uniform).drift


def test_refit_that_does_harm_is_not_kept(monkeypatch):
    model = residual()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(64), threads=1)
    choices = halved(sites)
    honest = make_weights(found, choices)

    def spoilt(*args: object, **kwargs: object):
        done = refit(*args, **kwargs)
        for item in done.values():
            item.replacement.bias[:] += 5.0
        return done

    monkeypatch.setattr("onnx_pointwise.fitting.weights.sequential_refit", spoilt)
    kept = make_weights(found, choices)
    assert kept.refits == {}
    assert kept.drift == kept.unrefitted == honest.unrefitted
    assert kept.dropped is not None and kept.dropped > kept.drift
    assert honest.dropped is None


def test_same_inputs_same_bytes():
    def once() -> list[bytes]:
        model = residual()
        shapes, sites = prepared(model)
        found = look(model, shapes, sites, examples(40), threads=1)
        weights = make_weights(found, share_out(options(found), {"macs": 0.6 * sum(dense_cost(s).macs for s in sites)}))
        return [item.factors.kernel.tobytes() for item in weights.replacements.values()]

    assert once() == once()


def test_few_examples_hold_none_back():
    model = residual()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(3), threads=1)
    assert not found.held
    weights = make_weights(found, halved(sites))
    assert weights.drift is None
    assert set(weights.replacements) == {site.name for site in sites}


def test_what_does_not_run_or_is_not_finite_is_said():
    model = residual()
    shapes, sites = prepared(model)
    with pytest.raises(ModelError, match="calibration inputs"):
        study(model, shapes, sites, {"x": np.ones((4, 5, 12, 12), np.float32)}, threads=1)
    with pytest.raises(InputError, match="not finite"):
        study(model, shapes, sites, {"x": np.full((4, 3, 12, 12), np.nan, np.float32)}, threads=1)
