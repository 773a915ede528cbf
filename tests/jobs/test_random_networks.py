"""Drawn networks survive: at full rank they compute what they did, below it they are valid, and nothing else is lost.

The same with many more examples than a test run has time for:

    python -m tests.jobs.test_random_networks --examples 2000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import InlinePass

import onnx_pointwise
from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.graph import BottleneckPass, Choice, Plan, Site, find_sites, load, takes
from onnx_pointwise.graph.model_io import serialize, to_bytes
from onnx_pointwise.numerics import FORMS, Rank, full_rank
from onnx_pointwise.runtime import resolve
from tests.graphs import Array, session
from tests.random_networks import BFLOAT16, FLOAT64, Network, in_float32, networks, with_one_input

Rewrite = Callable[..., onnx_pointwise.RewriteResult]


def found(network: Network) -> list[Site]:
    """The convolutions of a network: all of them, each by a name of its own, each refusal with a reason."""
    model = load(network.model)
    sites = find_sites(model, resolve(model, network.shapes) if network.runs else None, min_channels=1)
    assert len(sites) == network.convolutions
    assert len({site.name for site in sites}) == len(sites)
    for site in sites:
        if site.refusal is not None:
            assert site.refusal.code and site.refusal.reason.endswith("."), site.refusal
    return sites


def choices(sites: list[Site], draw: Callable[[int, int], int], *, exact: bool) -> dict[str, Choice]:
    """A form and a rank for most of the convolutions that may be rewritten."""
    chosen: dict[str, Choice] = {}
    for site in sites:
        if not site.rewritable or draw(0, 9) == 0:
            continue
        forms = [form for form in FORMS if takes(site, form)]
        form = forms[draw(0, len(forms) - 1)]
        full = full_rank(form, site.in_channels, site.out_channels, site.kernel_shape)
        ranks = tuple(size + draw(0, 2) if exact else draw(1, size) for size in full)
        rank: Rank = ranks[0] if len(ranks) == 1 else (ranks[0], ranks[1])
        chosen[site.name] = Choice(form, rank)
    return chosen


def rewritten(network: Network, chosen: dict[str, Choice], *, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """Rewrite a network, or what has become of it; the source stays what it is."""
    model = network.model if model is None else model
    before = model.SerializeToString(deterministic=True)
    if network.runs:
        result = onnx_pointwise.rewrite(
            model,
            plan=Plan(chosen),
            calibration=None,
            provider="none",
            check=False,
            min_channels=1,
            input_shapes=network.shapes,
        )
        assert set(result.plan.choices) == set(chosen)
        assert all(site.refusal is None or site.refusal.reason for site in result.sites)
        after = serialize(result.model)
    else:
        after = serialize(BottleneckPass(Plan(chosen))(load(model).clone()).model)
    assert model.SerializeToString(deterministic=True) == before
    return after


def answers(network: Network, model: onnx.ModelProto) -> dict[str, Array]:
    """Run a version of a network; types that ONNX Runtime does not take on a CPU run in float32."""
    feeds = network.feeds
    if network.dtype in (FLOAT64, BFLOAT16):
        model = in_float32(model)
        feeds = {
            name: array.astype(np.float32) if array.dtype == network.dtype else array for name, array in feeds.items()
        }
    opened = session(model)
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, feeds), strict=True))


def require_valid(network: Network, after: onnx.ModelProto) -> None:
    """Inputs, outputs and versions as they were; names that the runtime takes; what the ONNX checker asks for."""
    before = network.model
    onnx.checker.check_model(after, full_check=True)
    assert (after.ir_version, list(after.opset_import)) == (before.ir_version, list(before.opset_import))
    passed_on = {item.name for item in before.graph.input}  # onnx_ir has one shape for an input that is an output
    made = [[item for item in model.graph.output if item.name not in passed_on] for model in (before, after)]
    assert made[0] == made[1]
    stored = {tensor.name for tensor in (*before.graph.initializer, *after.graph.initializer)}
    fed = [[item for item in model.graph.input if item.name not in stored] for model in (before, after)]
    assert fed[0] == fed[1]


def require_alike(network: Network, before: dict[str, Array], after: dict[str, Array], *, exact: bool) -> None:
    assert list(before) == list(after)
    for name, old in before.items():
        new = after[name]
        assert (old.shape, old.dtype) == (new.shape, new.dtype), name
        old, new = old.astype(np.float64), new.astype(np.float64)
        assert np.isfinite(new).all() or not np.isfinite(old).all(), name
        if exact and np.isfinite(old).all():
            scale = np.linalg.norm(old) + 1e-2 * np.sqrt(old.size)
            assert np.linalg.norm(new - old) <= network.rounding * scale, name


# --- what holds of every network --------------------------------------------------------------------------------------


def at_full_rank_it_computes_what_it_did(network: Network, draw: Callable[[int, int], int]) -> None:
    chosen = choices(found(network), draw, exact=True)
    after = rewritten(network, chosen)
    require_valid(network, after)
    require_alike(network, answers(network, network.model), answers(network, after), exact=True)


def below_it_is_valid_and_twice_is_stable(network: Network, draw: Callable[[int, int], int]) -> None:
    chosen = choices(found(network), draw, exact=False)
    after = rewritten(network, chosen)
    require_valid(network, after)
    outputs = answers(network, after)
    require_alike(network, answers(network, network.model), outputs, exact=False)
    assert after.SerializeToString(deterministic=True) == rewritten(network, chosen).SerializeToString(
        deterministic=True
    )
    # What was rewritten is a network like any other.
    model = load(after)
    again = choices(find_sites(model, min_channels=1), draw, exact=True)
    more = rewritten(network, again, model=after)
    require_valid(network, more)
    require_alike(network, outputs, answers(network, more), exact=True)


def inlined_it_computes_what_it_did(network: Network, draw: Callable[[int, int], int]) -> None:
    """Local functions that are opened hold convolutions like others."""
    if not network.model.functions or not network.runs:
        return
    base = InlinePass()(load(network.model).clone()).model
    sites = find_sites(base, resolve(base, network.shapes), min_channels=1)
    assert not any(site.refusal and site.refusal.code == "in_function" for site in sites)
    chosen = choices(sites, draw, exact=True)
    result = onnx_pointwise.rewrite(
        network.model,
        plan=Plan(chosen),
        calibration=None,
        provider="none",
        check=False,
        min_channels=1,
        input_shapes=network.shapes,
        inline_functions=True,
    )
    after = serialize(result.model)
    assert not after.functions or not chosen
    onnx.checker.check_model(after, full_check=True)
    require_alike(network, answers(network, network.model), answers(network, after), exact=True)


def judged_it_is_the_same(network: Network, draw: Callable[[int, int], int]) -> None:
    """The check of a rewrite that changes nothing finds nothing; a look at the network comes to an end."""
    options: dict[str, Any] = {"input_shapes": network.shapes, "min_channels": 1}
    looked = onnx_pointwise.inspect(network.model, **options)
    assert len(looked.sites) == network.convolutions
    chosen = choices(found(network), draw, exact=True)
    result = onnx_pointwise.rewrite(
        network.model, plan=Plan(chosen), calibration=None, provider="none", latency=False, **options
    )
    assert result.check is not None
    json.dumps(result.to_dict(), allow_nan=False)
    if "qdq" not in network.parts and network.dtype == np.float32:
        assert result.passed and result.verdict == "same", [finding.text for finding in result.check.findings]


def planned_it_keeps_its_promises_or_says_why_not(network: Network, draw: Callable[[int, int], int]) -> None:
    """A whole job: examples, plan, weights, check; whatever it says is a result or a sentence."""
    rng = np.random.default_rng(draw(0, 99))
    network = with_one_input(network)
    ((source, fed),) = network.feeds.items()
    examples = {source: rng.standard_normal((12 * len(fed), *fed.shape[1:])).astype(fed.dtype)}
    target = (0.9, 0.6, 0.3)[draw(0, 2)]
    try:
        result = onnx_pointwise.rewrite(
            network.model,
            input_shapes=network.shapes,
            target_macs=target,
            calibration=examples,
            provider="none",
            latency=False,
            min_channels=1,
            memory=2**28,
        )
    except OnnxPointwiseError as error:
        assert str(error).strip()
        return
    assert result.after.macs <= target * result.before.macs
    assert all(site.form is not None or (site.refusal and site.refusal.reason) for site in result.sites)
    after = serialize(result.model)
    require_valid(network, after)
    require_alike(network, answers(network, network.model), answers(network, after), exact=False)
    replayed = onnx_pointwise.rewrite(
        network.model,
        input_shapes=network.shapes,
        plan=Plan.from_json(result.plan.to_json()),
        calibration=examples,
        provider="none",
        check=False,
        min_channels=1,
        memory=2**28,
    )
    assert to_bytes(replayed.model) == to_bytes(result.model)


HOLDS: dict[str, tuple[Callable[[Network, Callable[[int, int], int]], None], bool]] = {
    "exact": (at_full_rank_it_computes_what_it_did, False),
    "low": (below_it_is_valid_and_twice_is_stable, False),
    "inlined": (inlined_it_computes_what_it_did, True),
    "judged": (judged_it_is_the_same, True),
    "planned": (planned_it_keeps_its_promises_or_says_why_not, True),
}


def drawing(data: st.DataObject) -> Callable[[int, int], int]:
    return lambda low, high: data.draw(st.integers(low, high))


@given(networks(), st.data())
@settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
def test_at_full_rank_a_network_computes_what_it_did(network: Network, data: st.DataObject) -> None:
    at_full_rank_it_computes_what_it_did(network, drawing(data))


@given(networks(), st.data())
@settings(derandomize=True, deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
def test_below_full_rank_a_network_is_valid_and_twice_is_stable(network: Network, data: st.DataObject) -> None:
    below_it_is_valid_and_twice_is_stable(network, drawing(data))


@given(networks(runs=True), st.data())
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_inlined_a_network_computes_what_it_did(network: Network, data: st.DataObject) -> None:
    inlined_it_computes_what_it_did(network, drawing(data))


@given(networks(runs=True), st.data())
@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_a_rewrite_that_changes_nothing_is_judged_the_same(network: Network, data: st.DataObject) -> None:
    judged_it_is_the_same(network, drawing(data))


@given(networks(runs=True), st.data())
@settings(derandomize=True, deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
def test_planned_a_network_keeps_its_promises_or_says_why_not(network: Network, data: st.DataObject) -> None:
    planned_it_keeps_its_promises_or_says_why_not(network, drawing(data))


# --- many more --------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Try many networks; print each fault once, with the network that shows it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(HOLDS), help="only this property")
    parser.add_argument("--save", help="folder for the networks that show a fault")
    options = parser.parse_args(arguments)
    faults: Counter[str] = Counter()
    for name, (holds, runs) in HOLDS.items():
        if options.only in (None, name):
            start = time.perf_counter()
            tried = _try(name, holds, runs, options, faults)
            print(f"{name}: {tried} networks, {time.perf_counter() - start:.0f} s", flush=True)
    for fault, count in faults.most_common():
        print(f"{count} x {fault}")
    return 1 if faults else 0


def _try(name: str, holds: Any, runs: bool, options: argparse.Namespace, faults: Counter[str]) -> int:
    tried = 0

    @seed(options.seed)
    @given(networks(runs=runs), st.data())
    @settings(
        max_examples=options.examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    def run(network: Network, data: st.DataObject) -> None:
        nonlocal tried
        tried += 1
        rng = np.random.default_rng(tried)
        try:
            holds(network, lambda low, high: int(rng.integers(low, high + 1)))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{name}: {type(error).__name__} in {where.filename.rsplit('/', 1)[-1]}:{where.lineno}: {error}"[:300]
            faults[key] += 1
            if faults[key] == 1:
                print(f"{key}\n    {network}", flush=True)
                if options.save:
                    onnx.save(network.model, f"{options.save}/{name}_{tried}.onnx")

    run()
    return tried


if __name__ == "__main__":
    sys.exit(main())
