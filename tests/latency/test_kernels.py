"""Latency over ranks: what is measured is a staircase's shape, never a number of seconds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnx_pointwise.deploying import Deployment
from onnx_pointwise.errors import ProviderError
from onnx_pointwise.graph.model_io import load
from onnx_pointwise.graph.sites import Site, find_sites
from onnx_pointwise.latency import clock as clock_module
from onnx_pointwise.latency.cache import LatencyCache
from onnx_pointwise.latency.clock import Clock, Reading, chain_seconds
from onnx_pointwise.latency.kernels import site_latencies
from onnx_pointwise.latency.probes import Conv, Probe, probe, probed_size
from onnx_pointwise.numerics.forms import SPATIAL, Form
from onnx_pointwise.progress import unheard
from onnx_pointwise.runtime import open_session
from onnx_pointwise.runtime import runner as runner_module
from onnx_pointwise.runtime.profile import Kernel
from onnx_pointwise.runtime.shape_inference import resolve
from tests.graphs import conv_model, normal


def sites(channels: int = 24, kernel: int = 3) -> list[Site]:
    weight = np.random.default_rng(0).standard_normal((channels, channels, kernel, kernel)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", auto_pad="SAME_UPPER")
    values = [helper.make_tensor_value_info(name, 1, ["N", channels, 10, 10]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    loaded = ir.serde.deserialize_model(model)
    return find_sites(loaded, resolve(loaded))


def staircase(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Replace the measurement by a staircase in the rank with treads of ``step``."""

    def seconds(one: Probe) -> float:
        return float(
            sum(
                -(-conv.in_channels // step) * -(-conv.out_channels // step) * np.prod(conv.kernel)
                for conv in one.chain
            )
        )

    monkeypatch.setattr(Clock, "_time", lambda self, probes: {one: Reading(seconds(one), 1.0) for one in probes})


@pytest.mark.parametrize("step", [4, 8, 5])
def test_only_the_tops_of_treads_are_kept(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    staircase(monkeypatch, step)
    (site,) = sites(40, 5)
    found = site_latencies([site])["conv"]
    ranks = [rank for form, rank in found.choices if form == "expand"]
    assert ranks
    # The last one is the highest rank that saves arithmetic, wherever it lies on its tread.
    assert all(isinstance(rank, int) and rank % step == 0 for rank in ranks[:-1])
    assert list(range(step, ranks[-2] + 1, step)) == ranks[:-1]


def test_every_choice_is_faster_than_dense_and_no_rank_is_beaten_by_a_higher_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    staircase(monkeypatch, 8)
    (site,) = sites(40, 5)
    found = site_latencies([site])["conv"]
    assert all(seconds < found.dense for seconds in found.seconds)
    for form in ("reduce", "expand"):
        timed = [s for (kind, _), s in zip(found.choices, found.seconds, strict=True) if kind == form]
        assert timed == sorted(timed)


def test_spatial_forms_have_treads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short kernels leave room for more ranks than a whole one, and the top rank is where arithmetic is saved."""
    staircase(monkeypatch, 8)
    (site,) = sites(40, 5)
    choices = site_latencies([site], forms=SPATIAL)["conv"].choices
    for form in SPATIAL:
        ranks = [rank for kind, rank in choices if kind == form]
        assert ranks == list(range(8, 97, 8))  # 2 * 5 * R < 40 * 25
    assert {form for form, _ in choices} == set(SPATIAL)


@pytest.mark.parametrize("form", SPATIAL)
def test_a_probe_is_what_the_rewritten_site_is(form: Form) -> None:
    (site,) = sites(24, 5)
    first, second = probe(site, form, 7).chain
    tall = {"vertical": first, "horizontal": second}[form]
    assert (tall.kernel, (second if tall is first else first).kernel) == ((5, 1), (1, 5))
    assert (first.in_channels, first.out_channels, second.in_channels, second.out_channels) == (24, 7, 7, 24)
    assert dict(first.attributes)["auto_pad"] == dict(second.attributes)["auto_pad"] == "SAME_UPPER"


def upsampling(**attributes: Any) -> Site:
    """64 feature maps of 24x24 to 64 of 48x48."""
    given = {"strides": [2, 2], "pads": [1] * 4} | attributes
    model = load(conv_model(normal(64, 64, 4, 4), [24, 24], batch=1, transposed=True, **given))
    (site,) = find_sites(model, resolve(model))
    return site


def test_it_measures_transposed_convolutions() -> None:
    site = upsampling()
    found = site_latencies([site], threads=1, asked={"conv": ("vertical", 9)})["conv"]
    assert min(found.dense, found.fastest, found.of("vertical", 9)) > 0
    (dense,) = probe(site, None, 1).chain
    assert (dense.op_type, dense.weight_shape, dense.strides) == ("ConvTranspose", (64, 64, 4, 4), (2, 2))
    chain = probe(site, "reduce_expand", (5, 6)).chain
    assert [conv.op_type for conv in chain] == ["Conv", "ConvTranspose", "Conv"]
    assert [conv.weight_shape for conv in chain] == [(5, 64, 1, 1), (5, 6, 4, 4), (64, 6, 1, 1)]


def test_a_given_output_shape_is_timed_as_a_whole() -> None:
    site = upsampling(pads=[0] * 4, output_shape=[47, 47])
    assert probed_size(replace(site, batch=100)) == site.in_size
    assert site_latencies([site], forms=["reduce"], threads=1)["conv"].dense > 0


def test_kernels_of_one_row_have_no_spatial_treads(monkeypatch: pytest.MonkeyPatch) -> None:
    staircase(monkeypatch, 8)
    (site,) = sites(40, 1)
    assert {form for form, _ in site_latencies([site])["conv"].choices} <= {"expand"}
    assert site_latencies([site], forms=SPATIAL)["conv"].choices == ()


def test_it_measures_on_the_cpu() -> None:
    (site,) = sites(16)
    found = site_latencies([site], threads=1)["conv"]
    assert found.dense > 0
    assert len(found.choices) == len(found.seconds)
    assert {"dense", "treads"} == set(found.to_dict())


def test_layout_changes_between_pieces_count_and_those_at_the_ends_do_not() -> None:
    def kernel(name: str, op_type: str, microseconds: int) -> Kernel:
        return Kernel(name, op_type, "P", "float", 1e-6 * microseconds)

    run = [
        kernel("r", "ReorderInput", 100), kernel("0.0", "Conv", 3), kernel("r", "ReorderOutput", 5),
        kernel("0.1", "Conv", 7), kernel("r", "ReorderOutput", 100), kernel("1.0", "Conv", 11),
        kernel("r", "ReorderOutput", 100),
    ]  # fmt: skip
    np.testing.assert_allclose(chain_seconds([run, run[1:4]], 2), [[15e-6, 11e-6], [15e-6, 0.0]])


def test_a_provider_that_does_not_load_is_an_error() -> None:
    with pytest.raises(ProviderError):
        site_latencies(sites(), provider="abacus")


def test_probes_run_as_they_are_deployed_and_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module, "NOISY", math.inf)  # else a busy machine measures again
    site = sites()[0]
    cache = LatencyCache(tmp_path / "cache")
    opened: list[set[str]] = []

    class Watched(Deployment):
        def nameless(self) -> Deployment:
            return self

        def made(self, model: ir.Model, examples: Any = None) -> ir.Model:
            made = super().made(model, examples)
            opened.append({node.op_type for node in made.graph})
            return made

    for precision, marks in ((None, set()), ("int8", {"QuantizeLinear"}), ("float16", {"Cast"})):
        opened.clear()
        found = site_latencies([site], forms=["reduce"], threads=1, cache=cache, deployment=Watched(precision))
        assert found[site.name].dense > 0.0
        assert opened and all(marks <= types for types in opened)
        opened.clear()
        site_latencies([site], forms=["reduce"], threads=1, cache=cache, deployment=Watched(precision))
        assert not opened, "what was measured in this precision is known"


@pytest.mark.parametrize("entry", ["text", None, 1.0, [1.0], [-1.0, 1.0], [1.0, 0], [1.0, True], {"a": 1}, [1.0] * 3])
def test_entries_of_the_cache_that_are_no_times_are_measured_again(
    entry: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staircase(monkeypatch, 8)
    (site,) = sites(40, 5)
    cache = LatencyCache(tmp_path / "c.sqlite")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "get", lambda keys: dict.fromkeys(keys, entry))
        assert site_latencies([site], cache=cache) == site_latencies([site])
    assert site_latencies([site], cache=cache) == site_latencies([site]), "they took the places of the bad ones"


def test_between_two_ranks_that_are_no_faster_than_dense_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a second convolution costs as much as the first one: no tread is below the dense site."""
    asked: set[Probe] = set()

    def times(_: Any, probes: Any) -> dict[Probe, Reading]:
        asked.update(probes)
        return {one: Reading(len(one.chain) + 1e-3 * one.chain[0].out_channels, 1.0) for one in probes}

    monkeypatch.setattr(Clock, "_time", times)
    (site,) = sites(40, 5)
    assert site_latencies([site], forms=["reduce"])["conv"].choices == ()
    ranks = {one.chain[0].out_channels for one in asked if len(one.chain) == 2}
    assert ranks == {1, 4, 8, 16, 32, 38}


# --- noise ------------------------------------------------------------------------------------------------------------


def disturbed(monkeypatch: pytest.MonkeyPatch, slowed: Any) -> list[float]:
    """A machine that takes so many times as long as it could in one session after the other; gives those it took."""
    taken: list[float] = []
    following = iter(slowed)

    def times(_: Any, probes: Any) -> dict[Probe, Reading]:
        taken.append(next(following))
        return {one: Reading(taken[-1] * one.chain[0].out_channels, taken[-1]) for one in probes}

    monkeypatch.setattr(Clock, "_time", times)
    return taken


def measured(cache: LatencyCache | None, *widths: int) -> list[float]:
    """What probes of so many feature maps take, each measured in a session of its own."""
    clock = Clock("cpu", 1, cache, unheard)
    probes = [Probe(1, (8, 8), "float32", (Conv("Conv", 8, width, (3, 3), ()),)) for width in widths]
    for one in probes:
        clock.measure([one])
    return [clock.seconds(one) for one in probes]


def test_sessions_beside_which_the_reference_is_slow_are_measured_again_and_scaled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = disturbed(monkeypatch, [1.0, 1.6, 1.02, 1.5, 1.3, 2.0])
    assert measured(None, 5, 6, 7) == pytest.approx([5.0, 6.0, 7.0])
    assert taken == [1.0, 1.6, 1.02, 1.5, 1.3], "again above 3 %, and no more than twice"


def test_what_was_measured_under_noise_is_measured_again_in_another_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = LatencyCache(tmp_path / "c.sqlite")
    disturbed(monkeypatch, [1.0, 1.5, 1.4])
    assert measured(cache, 5, 6) == pytest.approx([5.0, 6.0])
    taken = disturbed(monkeypatch, [1.2, 1.3])
    assert measured(cache, 5, 6) == pytest.approx([5.0, 6.0])
    assert taken == [1.2, 1.3], "the first was quiet, and that it can be is known"
    taken = disturbed(monkeypatch, [1.01])
    assert measured(cache, 6) == pytest.approx([6.0])
    assert measured(cache, 5, 6) == pytest.approx([5.0, 6.0])
    assert taken == [1.01], "quiet at last"


def test_the_quieter_of_two_measurements_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path / "c.sqlite")
    disturbed(monkeypatch, [1.0, 1.2, 1.2])
    measured(cache, 5, 6)
    disturbed(monkeypatch, [1.9, 1.9])
    measured(cache, 6)
    taken = disturbed(monkeypatch, [1.25])
    monkeypatch.setattr(clock_module, "NOISY", 0.21)
    measured(cache, 6)
    assert not taken, "that of the first run, not of the second"


def on_another_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU stand in for every provider that is not called so, without a profile of its kernels."""
    monkeypatch.setattr(clock_module, "is_cpu", lambda name: name == "cpu")
    monkeypatch.setattr(clock_module, "open_session", lambda source, _, **more: open_session(source, "cpu", **more))
    monkeypatch.setattr(clock_module, "place", lambda *_: "here")
    monkeypatch.setattr(runner_module.providers, "device_memory", lambda _: None)


def test_a_reference_runs_after_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    on_another_provider(monkeypatch)
    (site,) = sites(16)
    for provider in ("cpu", "cpu:enable"):
        clock = Clock(provider, 1, None, unheard)
        one = probe(site, None, 1)
        found = clock._time([one])[one]
        assert found.seconds > 0.0 and found.reference > 0.0


def test_whole_runs_are_timed_between_convolutions_whose_own_time_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(24, 12, 3, 3)
    model = load(conv_model(weight, [10, 8], batch=1, strides=[2, 1], pads=[1, 1, 1, 1]))
    (site,) = find_sites(model, resolve(model), min_channels=1)
    on_another_provider(monkeypatch)
    timed: list[Probe] = []

    def seconds(_: Clock, runner: Any, one: Probe) -> Reading:
        """What convolutions take, a run costs 50, and the machine is slow where the margins are timed."""
        assert runner.session.get_inputs()[0].shape[1] == 16, "few maps at either end, whatever is timed"
        timed.append(one)
        slow = 2.0 if len(one.chain) == 2 else 1.0
        work = sum(conv.in_channels * conv.out_channels * math.prod(conv.kernel) for conv in one.chain)
        return Reading(slow * (50.0 + work), slow)

    monkeypatch.setattr(Clock, "_timed", seconds)
    dense, small = probe(site, None, 1), probe(site, "reduce", 2)
    found = Clock("cuda", 1, None, unheard)._time([dense, small])
    assert found[dense] == Reading(24 * 12 * 9, 1.0)
    assert found[small] == Reading(12 * 2 + 2 * 24 * 9, 1.0)
    ends = [one for one in timed if len(one.chain) == 2]
    assert [(one.in_size, one.chain[0].out_channels) for one in ends] == [((10, 8), 12), ((5, 8), 24)], "each once"


def test_what_is_left_of_a_probe_is_never_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (site,) = sites(16)
    on_another_provider(monkeypatch)
    monkeypatch.setattr(Clock, "_timed", lambda *_: Reading(3.0, 1.0))
    dense = probe(site, None, 1)
    assert 0.0 < Clock("cuda", 1, None, unheard)._time([dense])[dense].seconds < 0.3


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_of_tall_maps_some_rows_are_probed_of_which_few_lie_at_the_edges(kernel: int) -> None:
    model = load(conv_model(normal(64, 64, kernel, kernel), [400, 40], batch=8, pads=[kernel // 2] * 4))
    (site,) = find_sites(model, resolve(model), min_channels=1)
    rows, columns = probed_size(site)
    assert columns == site.in_size[1]
    assert min(6 * (kernel - 1), site.in_size[0]) <= rows <= site.in_size[0]
    if kernel == 7:
        low = replace(site, in_size=(24, 40))
        assert probed_size(low) == (24, 40), "there are no more"
