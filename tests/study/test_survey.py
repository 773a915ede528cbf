"""How examples are shared out, and what a study holds and does; on networks of all kinds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_pointwise.fitting.weights import make_weights
from onnx_pointwise.graph import Choice
from onnx_pointwise.numerics import compose
from onnx_pointwise.planning.options import options
from onnx_pointwise.study import Effort, study
from onnx_pointwise.study import survey as surveying
from onnx_pointwise.study.survey import Rehearsal, _split, _tried
from tests.graphs import normal
from tests.networks import CHANNELS, EFFORT, Builder, branching, detector, examples, halved, look, prepared, residual

CHECKED = settings(derandomize=True, deadline=None, max_examples=60)


@CHECKED
@given(st.integers(1, 300), st.integers(1, 40))
def test_examples_are_shared_out_in_whole_batches_where_these_are_fixed(count: int, batch: int) -> None:
    inputs = {"x": np.arange(count), "y": -np.arange(count)}
    fit, held = _split(inputs, batch)
    assert (fit["x"] == -fit["y"]).all()
    whole = [*fit["x"], *held.get("x", [])]
    assert sorted(whole) == list(range(count))
    if count < 8:
        assert not held
    else:
        share = len(held["x"]) / count
        assert 0.0 < share <= 1.0 / 8.0
    if count % batch == 0 and count // batch >= 8:
        assert len(fit["x"]) % batch == len(held["x"]) % batch == 0
    tried = _tried(len(fit["x"]), batch)
    assert len(tried) == len(fit["x"])
    assert tried.sum() <= max(len(tried) // 2, 1)
    assert tried.any() == (len(tried) >= 2)
    if len(fit["x"]) % batch == 0 and len(fit["x"]) // batch >= 2:
        assert tried.sum() % batch == 0
        assert tried.sum() <= max(surveying._TRIALS, batch) + batch
    else:
        assert tried.sum() <= surveying._TRIALS


@CHECKED
@given(st.integers(1, 40), st.integers(2, 40))
def test_batches_that_are_built_in_are_never_cut(batches: int, batch: int) -> None:
    """A network that takes so many at a time takes no fewer; of three batches one is held back, and one tried on."""
    count = batches * batch
    fit, held = _split({"x": np.arange(count)}, batch, fixed=True)
    assert len(fit["x"]) % batch == 0 and len(held.get("x", ())) % batch == 0
    assert sorted([*fit["x"], *held.get("x", ())]) == list(range(count))
    assert bool(held) == (batches >= 8 or (batches >= 3 and count >= 8))
    tried = _tried(len(fit["x"]), batch, fixed=True)
    assert tried.any() == (len(fit["x"]) >= 2 * batch)
    whole = tried.reshape(-1, batch)
    assert (whole == whole[:, :1]).all() and whole[:, 0].sum() <= max(len(whole) // 2, 1)


def test_one_example_serves_for_everything() -> None:
    shapes, sites = prepared(residual())
    found = look(shapes.model, shapes, sites, examples(1))
    assert not found.tried.any() and not found.held
    assert found.trial is found.fit
    for site in sites:
        assert found.factors(site, Choice("expand", 3), part=True).factors.kernel.tobytes() == (
            found.factors(site, Choice("expand", 3)).factors.kernel.tobytes()
        )


def test_factors_of_a_part_do_not_know_the_examples_that_are_tried_on() -> None:
    """Whatever these show, in one norm of the outputs they stay what they are; those of the whole change."""
    shapes, sites = prepared(residual(), fewest_taps=2)
    feeds = examples(14)  # of which one in eight is held back
    first = replace(look(shapes.model, shapes, sites, feeds, measure=False), norms={})
    changed = {name: array.copy() for name, array in feeds.items()}
    fit = np.flatnonzero(np.arange(14) % 8 != 7)
    changed["x"][fit[first.tried]] = examples(14, seed=5)["x"][fit[first.tried]]
    second = replace(look(shapes.model, shapes, sites, changed, measure=False), norms={})
    assert first.sensitivities == second.sensitivities == {}
    for site in sites[1:]:
        choice = Choice("reduce", 4)
        part, again = (found.factors(site, choice, part=True) for found in (first, second))
        np.testing.assert_allclose(compose(part.factors), compose(again.factors), atol=1e-4)
        whole, other = (found.factors(site, choice) for found in (first, second))
        assert np.abs(compose(whole.factors) - compose(other.factors)).max() > 1e-3


def test_factors_make_up_for_the_mean() -> None:
    """On the examples that they are made from, no output is off on average."""
    shapes, sites = prepared(residual(), fewest_taps=2)
    found = look(shapes.model, shapes, sites, examples(16), measure=False)
    for site in sites:
        made = found.factors(site, Choice("reduce", 2))
        kernel, bias = site.weights()
        mean = found.moments[site.name].whole.mean
        before = kernel.reshape(len(kernel), -1) @ mean + (0.0 if bias is None else bias)
        assert made.bias is not None
        np.testing.assert_allclose(compose(made.factors).reshape(len(kernel), -1) @ mean + made.bias, before, atol=1e-4)


def test_a_rehearsal_makes_factors_once_and_runs_a_plan_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, sites = prepared(residual())
    found = look(shapes.model, shapes, sites, examples(12))
    made: list[tuple[str, Choice]] = []
    real = surveying.Study.factors

    def counted(self, site, choice, *, part=False):
        made.append((site.name, choice))
        assert part
        return real(self, site, choice, part=part)

    ran: list[int] = []
    drifts = surveying.WholeNetwork.drifts

    def noted(self, replacements):
        ran.append(len(replacements))
        return drifts(self, replacements)

    monkeypatch.setattr(surveying.Study, "factors", counted)
    monkeypatch.setattr(surveying.WholeNetwork, "drifts", noted)
    rehearsal = Rehearsal(found)
    choices = halved(sites)
    first = rehearsal.drift(choices)
    assert len(made) == len(sites)
    known = {name: Choice(choice.form, choice.rank, 0.3) for name, choice in choices.items()}
    assert rehearsal.drift(known) == first
    assert rehearsal.drift(choices | {"elsewhere": Choice("reduce", 1)}) == first
    assert len(made) == len(sites) and ran == [len(sites)]
    name = sites[0].name
    other = rehearsal.drift(choices | {name: Choice("expand", 2)})
    assert len(made) == len(sites) + 1 and other != first and len(ran) == 2


def test_drift_of_rehearsals_falls_with_the_rank() -> None:
    shapes, sites = prepared(detector(), fewest_taps=2)
    found = look(shapes.model, shapes, sites, examples(24))
    drifts = []
    for share in (0.2, 0.5, 0.8):
        choices = {site.name: Choice("expand", max(1, round(share * site.out_channels))) for site in sites}
        drifts.append(found.rehearsal.drift(choices))
    assert drifts == sorted(drifts, reverse=True) and drifts[-1] > 0.0


@pytest.mark.parametrize("network", [residual, branching, detector])
def test_the_same_study_says_the_same_however_many_threads(network) -> None:
    shapes, sites = prepared(network())
    said = []
    for threads in (1, 1, 3):
        effort = Effort(patch_limit=2000, threads=threads)
        listed = options(study(shapes.model, shapes, sites, examples(12), effort=effort))
        said.append(np.concatenate([part for one in listed for part in (one.losses, one.errors)]))
    assert said[0].tobytes() == said[1].tobytes()
    np.testing.assert_allclose(said[2], said[0], rtol=1e-3, atol=1e-9)  # the runtime sums in another order


# --- networks of other kinds ------------------------------------------------------------------------------------------


def studied(model: ir.Model, feeds: dict[str, np.ndarray]):
    shapes, sites = prepared(model)
    return study(model, shapes, sites, feeds, effort=EFFORT)


def test_half_precision() -> None:
    """A deep feature map in float16, whose squares overflow, tells as much as in float32."""
    proto = Builder()
    x = proto.add("Relu", proto.conv("x", 3, CHANNELS))
    x = proto.add("Relu", proto.conv(x, CHANNELS, CHANNELS))
    y = proto.add("Mul", proto.conv(x, CHANNELS, 16), proto.const(np.array(20.0)))
    wide = proto.proto(proto.add("Transpose", y, perm=[0, 2, 3, 1]))
    half = type(wide)()
    half.CopyFrom(wide)
    for tensor in half.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    gains = []
    for model, dtype in ((wide, np.float32), (half, np.float16)):
        found = studied(ir.serde.deserialize_model(model), {"x": examples(12)["x"].astype(dtype)})
        gains.append([one.response.gain for one in found.sensitivities.values()])
        assert found.rehearsal.drift({site.name: Choice("reduce", 2) for site in found.sites}) > 1e-3
    assert len(gains[0]) == 2 and min(gains[0]) > 0.0
    np.testing.assert_allclose(gains[1], gains[0], rtol=0.3)


def test_a_network_without_an_answer_can_be_studied_all_the_same() -> None:
    b = Builder()
    x = b.conv(b.add("Relu", b.conv("x", 3, CHANNELS)), CHANNELS, 8)
    size = b.add("Shape", x)
    found = studied(b.model(size, types={size: TensorProto.INT64}), examples(6))
    assert found.heads.gauges == ()
    assert {one.response.gain for one in found.sensitivities.values()} == {0.0}
    choices = {site.name: Choice("reduce", 1) for site in found.sites}
    assert found.rehearsal.drift(choices) == 0.0
    weights = make_weights(found, choices)
    assert weights.predicted is None and set(weights.replacements) == set(choices)
    assert make_weights(look(found.model, found.shapes, found.sites, examples(16)), choices).drift == 0.0


def test_whole_numbers_that_were_rounded_are_compared_before() -> None:
    b = Builder()
    x = b.conv(b.add("Relu", b.conv("x", 3, CHANNELS)), CHANNELS, 8)
    zero = b.const(np.array(0.0))
    b.weights[-1] = numpy_helper.from_array(np.array(0, np.uint8), zero)
    rounded = b.add("QuantizeLinear", x, b.const(np.array(0.1)), zero)
    found = studied(b.model(rounded, types={rounded: TensorProto.UINT8}), examples(6))
    assert [head.value for head in found.heads.heads] == [x]
    assert found.rehearsal.drift({site.name: Choice("reduce", 1) for site in found.sites}) > 0.0


def test_an_answer_that_does_not_vary_says_nothing() -> None:
    b = Builder()
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    flat = b.add("Mul", b.conv(x, CHANNELS, 8), b.add("Identity", b.const(np.array(0.0))))
    found = studied(b.model(flat, b.conv(x, CHANNELS, 8)), examples(10))
    assert len(found.heads.gauges) == 2
    drift = found.rehearsal.drift({site.name: Choice("expand", 2) for site in found.sites})
    assert math.isfinite(drift) and drift > 0.0


def test_batches_that_are_built_into_a_network() -> None:
    """With enough of them, nothing is run at another size than the one that its Reshape takes."""
    b = Builder(batch=4)
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    x = b.add("Relu", b.conv(x, CHANNELS, 16, strides=[2, 2]))
    flat = b.add("Reshape", b.conv(x, 16, 8), b.ints(4, 8 * 36))
    model = b.model(b.add("MatMul", flat, b.const(normal(8 * 36, 10))))
    for count in (32, 64):
        found = studied(model, examples(count))
        assert found.batch == 4
        assert all(one.response.gain > 0.0 for one in found.sensitivities.values())
        assert found.rehearsal.drift({site.name: Choice("reduce", 3) for site in found.sites}) > 0.0


def test_outputs_of_varying_size_do_no_harm() -> None:
    b = Builder(batch=1)
    x = b.add("Relu", b.conv("x", 3, CHANNELS, strides=[2, 2]))
    boxes, scores = b.conv(x, CHANNELS, 4, 1), b.conv(b.add("Relu", b.conv(x, CHANNELS, 16)), 16, 8, 1)
    rows = b.add("Transpose", b.add("Reshape", boxes, b.ints(0, 4, 36)), perm=[0, 2, 1])
    sure = b.add("Sigmoid", b.add("Reshape", scores, b.ints(0, 8, 36)))
    kept = b.add("NonMaxSuppression", rows, sure, b.ints(10), b.const(np.array([0.5])), b.const(np.array([0.3])))
    found = studied(b.model(kept, types={kept: TensorProto.INT64}), examples(16))
    assert {head.value for head in found.heads.heads} == {boxes, scores}
    assert all(one.response.gain > 0.0 for one in found.sensitivities.values())


def test_sequences_are_studied_by_their_parts() -> None:
    b = Builder()
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    end = b.add("SequenceConstruct", b.conv(x, CHANNELS, 8), b.conv(x, CHANNELS, 8))
    proto = b.proto(end)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    proto.graph.output[0].type.CopyFrom(kind)
    found = studied(ir.serde.deserialize_model(proto), examples(8))
    assert len(found.heads.gauges) == 2
    assert all(one.response.gain > 0.0 for one in found.sensitivities.values())
    assert found.rehearsal.drift({site.name: Choice("reduce", 2) for site in found.sites}) > 0.0


def test_a_thinned_study_knows_what_the_whole_one_learned() -> None:
    shapes, sites = prepared(residual())
    found = look(residual(), shapes, sites, examples(64))
    thin = found.thinned(16)
    assert thin.count == 16 and len(thin.tried) == 16 and found.count == 56
    rows = {row.tobytes() for row in found.fit["x"]}
    assert all(row.tobytes() in rows for row in thin.fit["x"])
    assert thin.rehearsal is found.rehearsal and thin.moments is found.moments
    assert (thin.held["x"] == found.held["x"]).all()
    assert found.thinned(56) is found and found.thinned(100) is found
    choices = halved(sites)
    made = make_weights(thin, choices, predict=False)
    assert made.predicted is None and made.drift is not None


def test_batches_that_are_built_in_are_thinned_as_a_whole() -> None:
    shapes, sites = prepared(residual(batch=4))
    found = look(residual(batch=4), shapes, sites, examples(48))
    thin = found.thinned(10)
    assert thin.count % 4 == 0 and thin.count == 12
    starts = [next(i for i, row in enumerate(found.fit["x"]) if (row == first).all()) for first in thin.fit["x"][::4]]
    assert all(start % 4 == 0 for start in starts)
