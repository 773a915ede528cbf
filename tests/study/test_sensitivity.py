"""What errors of sites do to the answers: read off gradients, and by trial where no gradient leads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnx_pointwise.graph.surgery import Replacement, corrected
from onnx_pointwise.numerics.factorize import factorize
from onnx_pointwise.numerics.forms import FORMS
from onnx_pointwise.study import slopes as sloping
from onnx_pointwise.study.collect import site_moments
from onnx_pointwise.study.heads import find_heads
from onnx_pointwise.study.outlook import Outlook, Trial, outlook, outlooks
from onnx_pointwise.study.sensitivity import sensitivities
from onnx_pointwise.study.slopes import Slopes
from onnx_pointwise.study.trials import by_trials
from tests.networks import CHANNELS, EFFORT, Builder, branching, detector, examples, prepared, residual, unet


def measured(model: ir.Model, count: int = 32, *, fewest_taps: int = 1, tried: bool = False):
    """Sensitivities of a network's sites, in the plain norm of their outputs."""
    shapes, sites = prepared(model, fewest_taps=fewest_taps)
    feeds = examples(count)
    back = np.arange(count) % 2 == 1 if tried else None
    moments = site_moments(shapes, sites, feeds, batch=16, tried=back, threads=1)
    used = feeds if back is None else {name: array[back] for name, array in feeds.items()}
    heads = find_heads(shapes)
    slopes = Slopes(shapes, sites, used, heads, threads=1)
    looks = outlooks(sites, moments, {}, FORMS, "als", threads=1)
    return sites, sensitivities(shapes, sites, looks, slopes, {}, used, heads, batch=16, effort=EFFORT)


def test_sensitivities_are_measured_where_it_counts():
    sites, found = measured(residual(), fewest_taps=2)
    for site in sites:
        points = found[site.name].points
        assert len(points) >= 4
        assert all(0.0 < point.error <= point.bound * 1.001 for point in points)
        assert found[site.name].response.gain > 0.0
        assert found[site.name].cut == ()
        # The curve goes through what was measured, give or take what separates the two forms.
        for point in points:
            predicted = found[site.name].response(np.array([point.error]))[0]
            assert 0.2 < predicted / point.drift < 5.0


def test_a_1x1_kernel_is_tried_in_one_form():
    sites, found = measured(residual())
    pointwise = [site for site in sites if site.taps == 1]
    assert pointwise
    for site in pointwise:
        assert {point.form for point in found[site.name].points} == {"expand"}


def test_curves_of_examples_that_factors_do_not_know_promise_less():
    """They fall with the rank, and the error that trials reach stays near them."""
    sites, known = measured(residual(), 8, fewest_taps=2)
    _, unknown = measured(residual(), 8, fewest_taps=2, tried=True)
    for site in sites:
        for form, curve in unknown[site.name].curves.items():
            for axis in range(curve.ndim):
                assert (np.diff(curve, axis=axis) <= 1e-12).all()
            assert curve.min() >= 0.0 and curve.max() <= 1.0
            # That of `depthwise` goes through fits, which end in one valley or another.
            fitted = 0.98 if form == "depthwise" else 1.0
            assert curve.sum() > fitted * known[site.name].curves[form].sum()
        for point in unknown[site.name].points:
            assert 0.5 < point.error / point.bound < 1.3


def small_errors(shapes, sites, feeds) -> list[Outlook]:
    """One or two small errors at each site, from factors of high rank."""
    moments = site_moments(shapes, sites, feeds, batch=16, threads=1)
    looks = []
    for site in sites:
        seen, trials = moments[site.name].whole, []
        for form, size in (("reduce", site.in_channels), ("expand", site.out_channels)):
            kernel = site.weights()[0].astype(np.float32)
            if form == "reduce" and site.taps == 1:
                continue
            for rank in range(size - 1, 0, -1):
                factors = factorize(kernel, form, rank, second_moment=seen.covariance)
                if factors.error**2 > 1e-3:
                    replacement = corrected(site, Replacement(factors, None), seen.mean)
                    trials.append(Trial(replacement, factors.error**2))
                    break
        looks.append(Outlook({}, [trial for trial in trials if trial.bound < 0.007]))
    return looks


@pytest.mark.parametrize("network", [residual, branching, detector, unet])
def test_gradients_tell_what_trials_tell_of_small_errors(network: Callable[[], ir.Model], monkeypatch):
    monkeypatch.setattr(sloping, "_PROBES", 1000)
    monkeypatch.setattr(sloping, "_MOST_PROBES", 40)
    monkeypatch.setattr(sloping, "_EXAMPLES", 48)
    shapes, sites = prepared(network())
    feeds = examples(48)
    heads = find_heads(shapes)
    looks = small_errors(shapes, sites, feeds)
    slopes = Slopes(shapes, sites, feeds, heads, threads=1)
    gradients = slopes.points(dict(zip((site.name for site in sites), looks, strict=True)), {})
    trials = by_trials(shapes.model, sites, looks, feeds, heads, batch=16, threads=1)
    assert not slopes.cut
    compared = 0
    for site in sites:
        for one, other in zip(gradients[site.name], trials[site.name], strict=True):
            assert (one.form, one.rank, one.bound) == (other.form, other.rank, other.bound)
            assert one.error == pytest.approx(other.error, rel=1e-2)
            assert one.drift == pytest.approx(other.drift, rel=0.2)
            compared += 1
    assert compared >= 4


def test_a_few_probes_tell_a_gain_to_about_a_seventh():
    shapes, sites = prepared(residual(), fewest_taps=2)
    feeds, heads = examples(48), find_heads(shapes)
    looks = dict(zip((site.name for site in sites), small_errors(shapes, sites, feeds), strict=True))
    drawn = [Slopes(shapes, sites, feeds, heads, seed=seed, threads=1).points(looks, {}) for seed in range(8)]
    table = np.array([[point.drift for site in sites for point in one[site.name]] for one in drawn])
    scatter = table.std(axis=0) / table.mean(axis=0)
    assert np.sqrt((scatter**2).mean()) < 0.33  # of squares; half as much of lengths


@pytest.mark.parametrize("memory", [1, 10**6, 4 * 10**6])
def test_gradients_do_not_depend_on_how_examples_are_cut(memory: int):
    """Where memory is short, fewer are run at once, with the same probes; the seed of these counts."""
    shapes, sites = prepared(residual(), fewest_taps=2)
    feeds, heads = examples(24), find_heads(shapes)
    looks = dict(zip((site.name for site in sites), small_errors(shapes, sites, feeds), strict=True))
    short = Slopes(shapes, sites, feeds, heads, memory=memory, threads=1)
    assert len(short._parts[0]["x"]) == (1 if memory == 1 else len(short._parts[0]["x"])) <= 16
    found = short.points(looks, {})
    whole = Slopes(shapes, sites, feeds, heads, threads=1).points(looks, {})
    other = Slopes(shapes, sites, feeds, heads, seed=1, threads=1).points(looks, {})
    for site in sites:
        for one, two, three in zip(found[site.name], whole[site.name], other[site.name], strict=True):
            assert one.error == pytest.approx(two.error, rel=1e-4)
            assert one.drift == pytest.approx(two.drift, rel=1e-3)
            assert three.drift != two.drift


def test_gradients_keep_to_a_batch_that_is_fixed():
    shapes, sites = prepared(residual(batch=4))
    slopes = Slopes(shapes, sites, examples(12), find_heads(shapes), batch=4, memory=1, threads=1)
    assert [len(part["x"]) for part in slopes._parts] == [4, 4, 4]
    assert set(slopes.norms()) == {site.name for site in sites}


def test_where_no_gradient_leads_sites_are_tried():
    """A node that has no rule cuts one site off; the other goes on without trials."""
    b = Builder()
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    one = b.conv(b.add("Relu", b.conv(x, CHANNELS, CHANNELS)), CHANNELS, 8)
    other = b.conv(b.add("Mod", b.conv(x, CHANNELS, CHANNELS), b.const(np.array(100.0)), fmod=1), CHANNELS, 8)
    sites, found = measured(b.model(one, other), fewest_taps=2)
    assert [site.name for site in sites if found[site.name].cut]
    for site in sites:
        assert found[site.name].response.gain > 0.0
        assert all(node.op_type == "Mod" for node in found[site.name].cut)
    assert found[sites[-1].name].cut == ()


def test_sites_that_no_head_depends_on_do_no_harm():
    b = Builder()
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    aside = b.add("Shape", b.conv(x, CHANNELS, CHANNELS))
    answer = b.conv(x, CHANNELS, 8)
    sites, found = measured(b.model(answer, aside, types={aside: 7}), fewest_taps=2)
    gains = {str(site.output.name): found[site.name].response.gain for site in sites}
    assert gains[answer] > 0.0
    assert [name for name, gain in gains.items() if gain == 0.0]


def test_errors_are_interpolated_between_what_was_tried():
    sites, found = measured(residual(), fewest_taps=2)
    known = found[sites[0].name]
    for form in ("reduce", "expand"):
        points = [point for point in known.points if point.form == form]
        bounds = np.array([point.bound for point in points])
        np.testing.assert_allclose(known.errors(form, bounds), [point.error for point in points], rtol=1e-6)
    assert known.errors("reduce", np.zeros(1)) == 0.0


def test_outlook_tries_ranks_near_the_levels_that_plans_ask_for():
    shapes, sites = prepared(residual(), fewest_taps=2)
    feeds = examples(24)
    moments = site_moments(shapes, sites, feeds, batch=16, tried=np.arange(24) % 2 == 1, threads=1)
    for site in sites:
        look = outlook(site, moments[site.name], ("reduce", "expand", "reduce_expand"), "als")
        assert set(look.curves) == {"reduce", "expand", "reduce_expand"}
        assert 2 <= len(look.trials) <= 6
        for trial in look.trials:
            assert 0.0 < trial.bound <= 1.0
            weights = trial.weights(site)
            assert weights["w"].shape == site.weights()[0].shape and weights["w"].dtype == site.dtype


def test_the_same_is_found_again():
    first, second = (measured(residual(), 16)[1] for _ in range(2))
    assert {name: one.points for name, one in first.items()} == {name: one.points for name, one in second.items()}
