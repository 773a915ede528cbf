"""The latency of a network from its sites: what is predicted, what is timed, what is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnx_pointwise.deploying import Deployment
from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph.model_io import load
from onnx_pointwise.graph.pieces import pieces
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.graph.sites import Site, find_sites
from onnx_pointwise.latency import network as network_module
from onnx_pointwise.latency.cache import LatencyCache
from onnx_pointwise.latency.network import NetworkLatency, Timing, _correction, network_latency
from onnx_pointwise.numerics.forms import SPATIAL, Form
from onnx_pointwise.runtime.shape_inference import resolve
from tests.staircase import install, network_seconds
from tools.generated_networks import Network, random_network


def chain(maps: int = 32, depth: int = 3) -> ir.Model:
    network = Network(maps, 12, 0)
    x = "x"
    for _ in range(depth):
        x = network.conv(x, maps)
    return load(network.classifier(x))


def study(model: ir.Model, **options: Any) -> tuple[list[Site], NetworkLatency]:
    shapes = resolve(model)
    sites = [site for site in find_sites(model, shapes) if site.refusal is None]
    return sites, network_latency(model, shapes, sites, **options)


def test_the_sum_of_sites_is_the_network_where_nothing_else_plays_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    model = chain()
    _, found = study(model)
    assert found.dense == pytest.approx(network_seconds(model, 8))
    plan = Plan({name: Choice("reduce", 16) for name in found.sites})
    assert found.predict(plan.choices) == pytest.approx(found.time(plan).ratio)
    assert found.kept == pytest.approx(1.0)
    assert found.promised(found.predict(plan.choices)) == pytest.approx(found.sum_of_sites(plan.choices))


def test_what_the_network_rewritten_halfway_takes_more_corrects_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8, slow=1.5)
    _, found = study(chain(), forms=["reduce"])  # spatial forms have no 1x1 that could be slow
    assert found.kept < 0.95
    plan = Plan({name: Choice("reduce", 16) for name in found.sites})
    promised, predicted, measured = (
        found.sum_of_sites(plan.choices),
        found.predict(plan.choices),
        found.time(plan).ratio,
    )
    assert abs(predicted - measured) < abs(promised - measured)


@pytest.mark.parametrize(
    ("ratio", "noise", "promised", "kept"),
    [
        (2 / 3, 0.01, 0.5, 0.5),  # nothing but the floor that is always there: the measured share as it is
        (2 / 3, 0.005, 0.5, 0.5),
        (2 / 3, 0.01 + 0.3 * 4 / 9, 0.5, 0.75),  # as uncertain as corrections spread: halfway to none
        (2 / 3, 1.0, 0.5, 0.991),  # so noisy that nothing was learned
        (1.5, 0.01, 0.5, 0.25),
        (0.0, 0.01, 0.5, 2.0),
        (0.7, 0.01, 1.0, 1.0),
        (0.7, 0.01, -0.1, 0.25),  # sites cannot promise to save more than there is
    ],
)
def test_a_correction_is_weighed_by_its_uncertainty(ratio: float, noise: float, promised: float, kept: float) -> None:
    assert _correction(Timing(ratio, noise, "faster"), promised) == pytest.approx(kept, abs=1e-3)


def test_however_far_off_a_promise_is_a_network_takes_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    _, found = study(chain())
    found = replace(found, kept=2.0)
    deep = {name: Choice(*site.choices[0]) for name, site in found.sites.items()}
    shares = [found.predict(choices) for choices in ({}, found.halfway(), deep)]
    assert shares[0] == 1.0 and 1.0 > shares[1] > shares[2] > 0.0


@pytest.mark.parametrize(
    ("noises", "times", "ratio"), [([0.02], 1, 0.5), ([0.2, 0.03], 2, 0.6), ([0.2, 0.05, 0.1], 3, 0.6)]
)
def test_a_noisy_machine_is_asked_again_and_the_quietest_answer_counts(
    noises: list[float], times: int, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, 8)
    _, found = study(chain())
    told = iter(SimpleNamespace(ratio=0.5 + 0.1 * at, noise=noise, verdict="faster") for at, noise in enumerate(noises))
    asked: list[float] = []

    def compare(*_: Any, **__: Any) -> SimpleNamespace:
        answer = next(told)
        asked.append(answer.noise)
        return answer

    monkeypatch.setattr(network_module, "compare", compare)
    timing = found.time(Plan({name: Choice("reduce", 16) for name in found.sites}))
    assert len(asked) == times and timing.ratio == pytest.approx(ratio) and timing.noise == min(noises)


def test_only_treads_that_pay_inside_the_network_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    _, found = study(chain())
    for name, site in found.measured().items():
        assert site.choices
        assert all(seconds < site.dense for seconds in site.seconds)
        for form, rank in site.choices:
            ranks = rank if isinstance(rank, tuple) else (rank,)
            assert all(part % 8 == 0 for part in ranks), (name, form, rank)


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compared = install(monkeypatch, 8)
    cache = LatencyCache(tmp_path / "c.sqlite")
    _, first = study(chain(), cache=cache)
    count = len(compared)
    install(monkeypatch, 16)  # another machine: were anything measured, it would show
    _, again = study(chain(), cache=cache)
    assert again.dense == first.dense
    assert again.sites == first.sites
    plan = Plan({name: Choice("reduce", 8) for name in first.sites})
    with monkeypatch.context() as patch:
        install(patch, 8)
        assert first.time(plan) == first.time(plan)
    assert len(compared) == count


def test_a_change_of_sizes_is_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, 8)
    cache = LatencyCache(tmp_path / "c.sqlite")
    _, small = study(chain(16), cache=cache)
    _, large = study(chain(32), cache=cache)
    assert large.dense > small.dense


def test_ranks_asked_for_by_name_are_measured_whatever_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    model = chain()
    name = next(site.name for site in find_sites(model, resolve(model)) if site.refusal is None)
    _, found = study(model, asked={name: Choice("expand", 31)})
    assert found.seconds(name, Choice("expand", 31)) > 0.0
    with pytest.raises(KeyError):
        found.seconds(name, Choice("expand", 30))


@pytest.mark.parametrize("form", [*SPATIAL, "depthwise"])
def test_networks_in_forms_of_their_own_are_timed(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for factors still to be computed runs, and takes what its pieces take."""
    install(monkeypatch, 8)
    timed: list[Any] = []
    plain = network_module.compare
    monkeypatch.setattr(network_module, "compare", lambda *given, **rest: timed.append(1) or plain(*given, **rest))
    _, found = study(chain(), forms=[form])
    plan = Plan({name: Choice(*site.choices[-1]) for name, site in found.sites.items()})
    assert {kind for site in found.sites.values() for kind, _ in site.choices} == {form}
    before = len(timed)
    assert found.predict(plan.choices) == pytest.approx(found.time(plan).ratio)
    assert len(timed) > before, "where it does not run, its sites stand for it"


@pytest.mark.parametrize("form", ["reduce", "vertical", "reduce_expand", "depthwise"])
def test_every_kernel_that_a_form_adds_has_to_be_started(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    sites, found = study(chain(), forms=[form])
    apart, together = replace(found, between=1e-3), replace(found, between=0.0)
    site = next(site for site in sites if found.sites[site.name].choices)
    choice = Choice(*found.sites[site.name].choices[0])
    more = apart.seconds(site.name, choice) - together.seconds(site.name, choice)
    assert more == pytest.approx(1e-3 * (len(pieces(site, choice.form, choice.rank)) - 1))


def test_it_is_timed_with_the_biases_that_a_refit_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, 8)
    seen: list[ir.Model] = []
    plain = network_module.compare

    def watched(before: ir.Model, after: ir.Model, **rest: Any) -> Any:
        seen.append(after)
        return plain(before, after, **rest)

    monkeypatch.setattr(network_module, "compare", watched)
    model = chain()
    for node in model.graph:
        if node.op_type == "Conv":
            node.resize_inputs(2)
    _, found = study(model)
    first, *others = found.sites
    seen.clear()
    found.time(Plan({first: Choice("reduce", 16)}, corrected=tuple(others)))
    biased = [len(node.inputs) for node in seen[0].graph if node.op_type == "Conv"]
    assert sorted(biased) == [2] + [3] * len(found.sites), "but for the 1x1 in front"

    own = chain()  # whose convolutions have biases
    values = [node.inputs[2].const_value.numpy() for node in own.graph if node.op_type == "Conv"]
    _, found = study(own)
    seen.clear()
    found.time(Plan({first: Choice("reduce", 16)}, corrected=tuple(others)))
    kept = [node.inputs[2] for node in seen[0].graph if node.op_type == "Conv" and len(node.inputs) > 2]
    assert [value.const_value.numpy().tolist() for value in kept] == [value.tolist() for value in values]


@pytest.mark.parametrize("seed", [3, 12])
def test_it_measures_real_networks(seed: int) -> None:
    """Numbers depend on the machine; that every choice can be timed in its network does not."""
    sites, found = study(load(random_network(seed)), threads=1)
    assert set(found.sites) == set(found.inside) == {site.name for site in sites}
    assert all(seconds > 0.0 for seconds in found.inside.values())
    assert sum(found.inside.values()) <= found.dense * (1.0 + 1e-9)
    timing = found.time(Plan({site.name: Choice("reduce_expand", (1, 1)) for site in sites}))
    assert timing.ratio > 0.0
    assert timing.verdict in ("faster", "slower", "no change", "too noisy to tell")


def test_a_network_that_fails_on_stand_ins_is_judged_by_its_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector may find nothing in what random weights make, and fail on it."""
    install(monkeypatch, 8)

    def failing(*_: Any, **__: Any) -> Any:
        raise ModelError("the model in memory: the model does not run: k should not be greater than 0.")

    monkeypatch.setattr(network_module, "compare", failing)
    _, found = study(chain())
    assert found.kept == pytest.approx(1.0)
    plan = Plan({name: Choice("reduce", 16) for name in found.sites})
    timing = found.time(plan)
    assert timing.ratio == pytest.approx(found.sum_of_sites(plan.choices)) and timing.verdict == "faster"
    assert found.time(Plan({})).verdict == "no change"


def test_given_inputs_are_what_is_timed_and_part_of_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, 8)
    seen: list[Any] = []
    plain = network_module.measure

    def watched(model: Any, **options: Any) -> Any:
        seen.append(options)
        return plain(model, **options)

    monkeypatch.setattr(network_module, "measure", watched)
    cache = LatencyCache(tmp_path / "c.sqlite")
    given = {"x": np.ones((1, 32, 12, 12), np.float32)}
    for inputs in (None, given, given, {"x": 2 * given["x"]}):
        study(chain(), cache=cache, inputs=inputs)
    assert ["inputs" in options for options in seen] == 3 * [False] + 6 * [True], "three rounds each"
    assert seen[3]["inputs"] is given


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_whole_networks_are_timed_as_they_are_deployed(
    precision: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, 8)
    timed: list[ir.Model] = []
    plain = network_module.compare

    def compare(before: ir.Model, after: ir.Model, **more: Any) -> Any:
        timed.extend((before, after))
        return plain(before, after, **more)

    monkeypatch.setattr(network_module, "compare", compare)
    cache = LatencyCache(tmp_path / "cache")
    study(chain(), cache=cache)
    assert not any(_deployed(model) for model in timed)
    timed.clear()
    _, found = study(chain(), cache=cache, deployment=Deployment(precision))
    assert timed and all(_deployed(model) for model in timed), "and nothing of float32 was taken for it"
    assert found.deployed is not None and _deployed(found.deployed) and not _deployed(found.model)


def _deployed(model: ir.Model) -> bool:
    return bool({node.op_type for node in model.graph} & {"QuantizeLinear", "Cast"})


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_convolutions_are_found_in_the_deployed_network(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are told to take half as long, else what is timed inside may be what it is alone, to the microsecond."""
    kernels = network_module.node_times
    monkeypatch.setattr(
        network_module,
        "node_times",
        lambda *given, **more: [replace(one, seconds=0.5 * one.seconds) for one in kernels(*given, **more)],
    )
    sites, found = study(chain(16, 2), forms=("reduce",), threads=1, deployment=Deployment(precision))
    alone = {site.name: found.sites[site.name].dense for site in sites}
    assert all(found.inside[name] != seconds for name, seconds in alone.items()), "they are timed inside it"


def test_an_untouched_network_is_timed_in_turns_with_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second round is disturbed: it counts neither for the whole nor for the kernels, and makes the noise."""
    install(monkeypatch, 8)
    _, quiet = study(chain())
    plain, kernels = network_module.measure, network_module.node_times
    slowed = itertools.cycle([1.2, 2.0, 1.0])

    def whole(model: Any, **more: Any) -> SimpleNamespace:
        slow = next(slowed)
        monkeypatch.setattr(
            network_module,
            "node_times",
            lambda *a, **b: [replace(one, seconds=slow * one.seconds) for one in kernels(*a, **b)],
        )
        return SimpleNamespace(times=tuple(slow * seconds for seconds in plain(model, **more).times))

    monkeypatch.setattr(network_module, "measure", whole)
    _, found = study(chain())
    assert found.dense == quiet.dense and found.inside == quiet.inside
    assert network_module._dense_times(found)[1] == pytest.approx(0.2)
