"""Which convolutions that stay whole take part in a refit."""

from __future__ import annotations

import numpy as np

from onnx_pointwise.fitting.order import latest, worth_correcting
from onnx_pointwise.fitting.refit import refit
from onnx_pointwise.study import Effort
from tests.networks import CHANNELS, Builder, detector, examples, halved, prepared, residual


def test_what_lies_behind_a_rewritten_one_and_before_an_answer():
    model = detector()
    _, sites = prepared(model)
    first, _, boxes, *scores = sites
    assert worth_correcting(model, sites, halved([first]), ()) == sites
    assert worth_correcting(model, sites, halved([first]), [str(boxes.output.name)]) == sites[:3]
    assert worth_correcting(model, sites, halved(sites[1:2]), ()) == sites[1:3]
    assert worth_correcting(model, sites, halved(scores[1:]), ()) == scores[1:]


def test_the_last_site_that_a_value_depends_on():
    model = residual()
    _, sites = prepared(model)
    found = latest(model, sites)
    # The last one is a projection beside the two before it.
    assert [found[site.source] for site in sites] == [-1, 0, 1, 2, 1]
    assert found["x"] == -1
    assert found[str(model.graph.outputs[0].name)] == len(sites) - 1


def sized():
    """Behind two convolutions a value is laid out by a size that the network tells of itself; others follow."""
    b = Builder()
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    y = b.add("Relu", b.conv(b.add("Relu", b.conv(x, CHANNELS, CHANNELS)), CHANNELS, CHANNELS))
    seen = b.add("Reshape", y, b.add("Shape", y))
    z = b.add("Relu", b.conv(seen, CHANNELS, CHANNELS))
    behind = b.add("Add", b.conv(y, CHANNELS, CHANNELS), z)
    return b.model(b.conv(behind, CHANNELS, 4))


def test_sizes_on_the_way_do_not_stop_a_refit_that_went_well_without():
    model = sized()
    shapes, sites = prepared(model)
    choices = halved(sites[:1])
    assert [site.name for site in worth_correcting(model, sites, choices, ())] == [site.name for site in sites[:2]]
    assert worth_correcting(model, sites, halved([sites[0], sites[-1]]), ()) == sites
    every = [site.name for site in sites[1:]]
    feeds = {name: array[:21] for name, array in examples(24).items()}
    # The last batch is smaller, and its size is none of the others'.
    done = refit(shapes.model, sites, choices, feeds, corrected=every, batch=8, effort=Effort(threads=1))
    assert list(done) == [site.name for site in sites[:2]]
    assert np.isfinite(done[sites[1].name].error)
