"""The whole chain on small networks: shares, sequential refit, what it promises, and what it is all for."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from onnx_pointwise.fitting.refit import refit, site_session
from onnx_pointwise.fitting.weights import drift_of, make_weights
from onnx_pointwise.graph.cost import dense_cost
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.surgery import BottleneckPass, replacement
from onnx_pointwise.planning.options import options, share_out
from onnx_pointwise.runtime.segments import Store, TwinRun
from onnx_pointwise.study.collect import moment_kind
from onnx_pointwise.study.survey import Effort
from tests.networks import (
    CHANNELS,
    NETWORKS,
    Builder,
    branching,
    drift,
    examples,
    halved,
    look,
    prepared,
    residual,
    run,
    unet,
)

refitting, weighing = sys.modules[refit.__module__], sys.modules[make_weights.__module__]


@pytest.mark.parametrize("name", NETWORKS)
def test_refit_beats_factors_made_site_by_site(name):
    model = NETWORKS[name]()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(160))
    choices = halved(sites)
    weights = make_weights(found, choices)
    assert set(weights.refits) == {site.name for site in sites}
    assert weights.drift is not None
    assert weights.unrefitted is not None
    assert weights.drift < weights.unrefitted
    fresh = examples(64, seed=9)
    alone = {site.name: replacement(site, choices[site.name], "als") for site in sites}
    assert drift(model, choices, weights.replacements, fresh) < 0.7 * drift(model, choices, alone, fresh)


@pytest.mark.parametrize("name", NETWORKS)
def test_drift_is_that_of_the_rewritten_network(name):
    """Relative to all examples that were not fitted to: where those held back are the same ones, to themselves."""
    model = NETWORKS[name]()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(48))
    weights = make_weights(replace(found, held=found.trial), halved(sites), refit=False)
    told = drift_of(found, halved(sites), weights.replacements, found.trial)
    # Twice as many numbers take half as much with their mean.
    assert told * (1.0 - 1e-6) <= weights.drift <= told * 1.03


def test_sites_of_one_view_share_what_they_see(monkeypatch):
    """Sums of patches are made once for them, and their weights are those that each would get alone."""
    b = Builder(0)
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    branches = [b.add("Relu", b.conv(x, CHANNELS, 8)) for _ in range(3)]
    wide = b.add("Relu", b.conv(x, CHANNELS, 8, 5))
    model = b.model(b.conv(b.add("Concat", *branches, wide, axis=1), 32, 4))
    shapes, sites = prepared(model)
    made: list[int] = []
    sums = refitting.patch_sums

    def noted(blocks, shift, **how):
        made.append(len(shift))
        return sums(blocks, shift, **how)

    monkeypatch.setattr(refitting, "patch_sums", noted)
    given = shapes.model, sites, halved(sites), examples(24)
    together = refit(*given, effort=Effort(threads=2))
    assert made == [9 * CHANNELS]
    monkeypatch.setattr(refitting.Views, "of", lambda *_: None)
    alone = refit(*given, effort=Effort(threads=2))
    for name, one in together.items():
        for mine, other in zip(one.replacement.factors.pieces, alone[name].replacement.factors.pieces, strict=True):
            assert mine.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_sites_beside_one_another_get_the_weights_they_get_alone(name, monkeypatch):
    model = NETWORKS[name]()
    shapes, sites = prepared(model)

    def kernels(workers: int) -> list[bytes]:
        monkeypatch.setattr(refitting, "workers", lambda threads: workers)
        done = refit(
            shapes.model, sites, halved(sites), examples(24), batch=8, effort=Effort(patch_limit=3000, threads=1)
        )
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
    done = refit(shapes.model, sites, halved(sites), examples(24), batch=8, effort=Effort(patch_limit=3000, threads=1))
    assert first < set(done)


def test_branches_and_activations_are_seen():
    model = residual()
    shapes, sites = prepared(model, fewest_taps=2)
    done = refit(shapes.model, sites, halved(sites), examples(48), batch=16, effort=Effort(patch_limit=4000, threads=1))
    targets = [(done[site.name].target, done[site.name].activation) for site in sites]
    # The second projection comes after the site that it is added to, so that site aims at its own output.
    assert targets == [("output", "flat"), ("sum", "flat"), ("output", "flat"), ("sum", "flat")]


@pytest.mark.parametrize("name", NETWORKS)
def test_twin_run_computes_what_the_networks_compute(name):
    model = NETWORKS[name]()
    shapes, sites = prepared(model)
    feeds = examples(21)
    choices = halved(sites)
    done = refit(shapes.model, sites, choices, feeds, batch=8, effort=Effort(patch_limit=4000, threads=1))
    replacements = {item: value.replacement for item, value in done.items()}
    rewritten = model.clone()
    BottleneckPass(Plan(choices), replacements)(rewritten)
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


def test_patches_too_wide_for_the_memory_are_not_refitted():
    """The others are, and make up for what these lose."""
    model = unet()
    shapes, sites = prepared(model)
    wide = [site for site in sites if site.in_channels * site.taps > 200]
    assert 0 < len(wide) < len(sites)
    whole = look(model, shapes, sites, examples(64))
    found = replace(whole, effort=replace(whole.effort, memory=8 * 8 * 200**2))
    weights = make_weights(found, halved(sites))
    for site in sites:
        done = weights.refits[site.name]
        assert (done.target == "none") == (site in wide)
        start = found.rehearsal.replacements(halved(sites))[site.name].factors
        given = found.factors(site, halved(sites)[site.name], start=start)
        assert (done.replacement.factors.kernel.tobytes() == given.factors.kernel.tobytes()) == (site in wide)
    assert weights.drift < weights.unrefitted


@pytest.mark.parametrize(("exact", "kind"), [(100, "stationary"), (10, "channels")])
def test_wide_sites_are_looked_at_less_closely(monkeypatch, exact, kind):
    monkeypatch.setattr("onnx_pointwise.study.collect.EXACT", exact)
    monkeypatch.setattr("onnx_pointwise.study.collect.STATIONARY", 1000 if kind == "stationary" else 10)
    model = residual()
    shapes, sites = prepared(model, fewest_taps=2)
    assert moment_kind(sites[-1]) == kind
    found = look(model, shapes, sites, examples(64))
    assert found.moments[sites[-1].name].whole.kind == kind
    listed = options(found)
    choices = share_out(listed, {"macs": 0.6 * sum(dense_cost(site).macs for site in sites)})
    weights = make_weights(found, choices)
    assert weights.drift is not None
    assert weights.drift < 0.6


def test_predicted_drift_ranks_plans():
    """So do the losses of single sites, added up; the rehearsal of a plan comes nearer."""
    model = residual(1)
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(96))
    listed = options(found)
    rng = np.random.default_rng(0)
    added, predicted, measured = [], [], []
    for _ in range(24):
        picked = [rng.integers(len(one.choices)) for one in listed]
        pairs = [(one.site.name, one.choices[index]) for one, index in zip(listed, picked, strict=True)]
        added.append(sum(one.losses[index] for one, index in zip(listed, picked, strict=True)))
        weights = make_weights(found, {name: choice for name, choice in pairs if choice is not None})
        assert weights.drift is not None
        predicted.append(weights.predicted)
        measured.append(weights.drift)
    ranks = [np.argsort(np.argsort(values)) for values in (added, predicted, measured)]
    assert np.corrcoef(ranks[0], ranks[2])[0, 1] > 0.8
    assert np.corrcoef(ranks[1], ranks[2])[0, 1] > 0.95


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_shares_stay_within_the_budget(share):
    model = residual(2)
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(48))
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
    found = look(model, shapes, sites, examples(64))
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
    # Made from all examples; where the refit helped, those of a part of them were good enough to tell.
    assert kept.drift == kept.unrefitted <= honest.unrefitted
    assert kept.dropped is not None and kept.dropped > kept.drift
    assert honest.dropped is None


def test_same_inputs_same_bytes():
    def once() -> list[bytes]:
        model = residual()
        shapes, sites = prepared(model)
        found = look(model, shapes, sites, examples(40))
        weights = make_weights(found, share_out(options(found), {"macs": 0.6 * sum(dense_cost(s).macs for s in sites)}))
        return [item.factors.kernel.tobytes() for item in weights.replacements.values()]

    assert once() == once()


def test_few_examples_hold_none_back():
    model = residual()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(3))
    assert not found.held
    weights = make_weights(found, halved(sites))
    assert weights.drift is None
    assert set(weights.replacements) == {site.name for site in sites}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_stays_whole_makes_up_for_what_was_rewritten(name):
    model = NETWORKS[name]()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(160))
    every = halved(sites)
    some = {site.name: every[site.name] for site in sites[1::2]}
    others = [site.name for site in sites if site.name not in some]
    alone, helped = make_weights(found, some), make_weights(found, some, corrected=others)
    # The first one sees what it always saw, and nothing is to be made up for.
    assert set(helped.replacements) == {*some, *others[1:]}
    assert {helped.replacements[one].factors.form for one in others[1:]} == {"dense"}
    fresh = examples(64, seed=9)
    assert drift(model, some, helped.replacements, fresh) < drift(model, some, alone.replacements, fresh)
    assert helped.drift < alone.drift


def test_what_stays_whole_is_left_alone_where_a_refit_did_harm(monkeypatch):
    model = residual()
    shapes, sites = prepared(model)
    found = look(model, shapes, sites, examples(48))
    some = halved(sites[:2])
    monkeypatch.setattr(weighing, "sequential_refit", lambda *given, **more: spoilt(refit(*given, **more)))
    made = make_weights(found, some, corrected=[site.name for site in sites[2:]])
    assert made.dropped > made.drift
    assert set(made.replacements) == set(some)


def spoilt(done):
    return {
        name: replace(one, replacement=replace(one.replacement, bias=one.replacement.bias + 9.0))
        for name, one in done.items()
    }


def test_what_lies_where_examples_are_mixed_is_left_alone():
    b = Builder()
    x = b.add("Relu", b.conv(b.add("Relu", b.conv("x", 3, CHANNELS)), CHANNELS, CHANNELS))
    halves = b.add("Reshape", x, b.ints(-1, CHANNELS // 2, 12, 12))
    model = b.model(b.conv(halves, CHANNELS // 2, 4))
    shapes, sites = prepared(model)
    found = replace(look(model, shapes, sites, examples(48)), batch=16)
    some = halved(sites[:1])
    made = make_weights(found, some, corrected=[sites[1].name])
    assert set(made.replacements) == set(some)
    alone = make_weights(found, some)
    assert (made.drift, made.dropped) == (alone.drift, alone.dropped)
