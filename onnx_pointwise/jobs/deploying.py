"""The networks that could be deployed, side by side: dense and rewritten, as they are and in another precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import onnx_ir as ir

from onnx_pointwise.check import CheckResult, check
from onnx_pointwise.examples import Calibration
from onnx_pointwise.graph import ModelSource, model_bytes
from onnx_pointwise.jobs.attempts import Attempt
from onnx_pointwise.jobs.checking import asked_of, judged
from onnx_pointwise.jobs.loading import Network
from onnx_pointwise.jobs.looking import Evidence
from onnx_pointwise.jobs.results import Search
from onnx_pointwise.jobs.searching import untouched
from onnx_pointwise.jobs.versions import AS_IT_IS, Deployed, Version
from onnx_pointwise.runtime import (
    Array,
    FloatShare,
    LatencyComparison,
    compare,
    float_shares,
    inputs_that_run,
    is_cpu,
    node_times,
    provider_info,
)
from onnx_pointwise.settings import CheckSettings, Settings

# Runs whose kernels are timed.
_PROFILE_RUNS = 10


def deployed_as(
    net: Network, made: Attempt, seen: Evidence, examples: Calibration, verdict: CheckResult | None, settings: Settings
) -> Deployed | None:
    """Make the networks of another precision, and compare them; None where networks run as they are.

    Args:
        net: The network.
        made: What it was rewritten into.
        seen: What was learned of it.
        examples: The example inputs; those that weights are made from give the ranges, too.
        verdict: The check of the rewritten network as it is; None where none was asked for.
        settings: What was asked for.
    """
    deployment = settings.deployment
    if not deployment.changes:
        return None
    settings.tell("deploy", f"the dense network in {deployment.precision}")
    ranges = seen.found.fit if seen.found is not None else examples.inputs
    dense = deployment.made(net.base, ranges)
    model = dense
    if made.plan.choices:
        settings.tell("deploy", f"the rewritten network in {deployment.precision}")
        model = deployment.made(made.model, ranges)
    result = Deployed(str(deployment.precision), deployment.settings, (), None, None, (), None, model, dense)
    if verdict is None:
        return result
    inputs = _timed_on(net, examples, settings)
    asked = asked_of(net, seen, settings, latency=settings.latency)
    pair = _pair(net, result, inputs, asked) if made.plan.choices and _is_timed(settings) else None
    versions = _versions(net, made, result, verdict, asked)
    result = replace(result, versions=versions, pair=pair, floats=_floats(net, model, inputs, settings))
    return replace(result, best=_best(versions, pair))


def deployed_if_faster(
    net: Network,
    made: Attempt,
    search: Search | None,
    seen: Evidence,
    examples: Calibration,
    verdict: CheckResult | None,
    settings: Settings,
) -> tuple[Attempt, Search | None, CheckResult | None, Deployed | None]:
    """Make the networks of another precision, and take everything back where the rewritten one is slower in it.

    Arguments as for `deployed_as`, and the search that led there; gives what is left of them, and what is deployed.
    """
    deployed = deployed_as(net, made, seen, examples, verdict, settings)
    if deployed is None or not deployed.slower:
        return made, search, verdict, deployed
    deployed = taken_back(deployed)
    made, search = untouched(net, made, search, str(deployed.reason), settings)
    return made, search, judged(net, made, seen, settings), deployed


def taken_back(found: Deployed) -> Deployed:
    """What is left where the rewritten network is slower in the precision: the dense one, and why."""
    assert found.pair is not None, "it was timed"
    reason = (
        f"In {found.precision} the rewritten network takes {found.pair.ratio:.2f} times as long as the dense one on "
        f"{found.pair.provider}, so the network stays as it was."
    )
    left = tuple(version for version in found.versions if version.network == "dense")
    return replace(found, versions=left, best=_best(left, None), model=found.dense, reason=reason)


def _is_timed(settings: Settings) -> bool:
    return settings.latency and not provider_info(settings.runs_on).software


def _timed_on(net: Network, examples: Calibration, settings: Settings) -> dict[str, Array] | None:
    given = settings.inputs if settings.inputs is not None else examples.inputs or None
    return inputs_that_run(net.base, net.shapes.inputs, given, provider=settings.runs_on, seed=settings.seed)


def _pair(net: Network, found: Deployed, inputs: Mapping[str, Array] | None, asked: CheckSettings) -> LatencyComparison:
    """Time the rewritten network against the dense one, both in the precision."""
    asked.tell("timing", f"both in {found.precision}, in turns")
    return compare(
        found.dense,
        found.model,
        inputs=inputs,
        input_shapes=net.shapes.inputs if inputs is None else None,
        provider=asked.providers[0],
        threads=asked.threads,
        max_seconds=asked.latency_seconds,
        seed=asked.seed,
    )


def _versions(
    net: Network, made: Attempt, found: Deployed, verdict: CheckResult, asked: CheckSettings
) -> tuple[Version, ...]:
    """Hold every network against the dense one as it is."""

    def against(network: Literal["dense", "rewritten"], model: ModelSource) -> Version:
        asked.tell("check", f"{network} {found.precision}")
        return _version(network, found.precision, check(net.source, model, asked), model)

    quantised = against("dense", found.dense)
    own = None if quantised.latency is None else 1.0
    dense = Version("dense", AS_IT_IS, True, "same", None, 0.0, own, None, net.cost.bytes)
    if not made.plan.choices:
        return dense, quantised
    moved = _version("rewritten", AS_IT_IS, verdict, made.model)
    return dense, quantised, moved, against("rewritten", found.model)


def _version(network: Literal["dense", "rewritten"], numbers: str, result: CheckResult, model: ModelSource) -> Version:
    timed, worst = result.latency, result.worst
    return Version(
        network,
        numbers,
        result.passed,
        result.verdict,
        None if worst is None else worst.figure,
        max((head.drift for head in result.heads if head.drift is not None), default=None),
        None if timed is None else timed.ratio,
        None if timed is None else timed.noise,
        model_bytes(model),
    )


def _best(versions: Sequence[Version], pair: LatencyComparison | None) -> str | None:
    """The fastest network within the limits: another than the dense one has to be faster beyond the noise."""
    timed = [one for one in versions if one.latency is not None]
    if not timed:
        return None
    kept = [one for one in timed if one.passed and (one.noise is None or (one.latency or 0.0) < 1.0 - one.noise)]
    best = min(kept or timed[:1], key=lambda one: one.latency or 0.0)
    if best.network == "rewritten" and pair is not None and pair.verdict != "faster":
        same = next((one for one in kept if one.network == "dense" and one.numbers == best.numbers), None)
        if same is not None:
            return same.name
    return best.name


def _floats(
    net: Network, model: ir.Model, inputs: Mapping[str, Array] | None, settings: Settings
) -> tuple[FloatShare, ...]:
    """Kernels that compute in float32 all the same; known on the CPU alone, where a profile sees kernels."""
    if not _is_timed(settings) or not is_cpu(settings.runs_on):
        return ()
    times = node_times(
        model,
        inputs=inputs,
        input_shapes=net.shapes.inputs if inputs is None else None,
        provider=settings.runs_on,
        threads=settings.threads,
        runs=_PROFILE_RUNS,
    )
    return tuple(float_shares(times))
