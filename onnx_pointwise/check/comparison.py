"""Does a rewritten network still do what the first one did? Both run in ONNX Runtime on the same inputs.

What must be equal: names, shapes and element types of inputs and outputs, for several batch sizes and, where a network
leaves them open, several spatial sizes. What may differ and is measured: the answers at the heads, on which the verdict
stands, the numbers in the outputs (drift), cost and latency. The networks run one after the other, so that only one of
them is in memory; the latency alone needs both.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_pointwise.check.answers import AnswerMeter, Reading, output_reading, readings_of, without
from onnx_pointwise.check.findings import (
    answer_faults,
    declared_differences,
    drift_faults,
    never_compared,
    provider_faults,
    provider_warnings,
    shape_faults,
    unreal_warning,
)
from onnx_pointwise.check.limits import LIKENESSES, Limits, limits_of
from onnx_pointwise.check.results import CheckResult, Finding, Inputs, ProviderCheck, Trial
from onnx_pointwise.check.running import Run, Side, described, run, shapes_of
from onnx_pointwise.check.sites import SiteCheck, compare_sites
from onnx_pointwise.check.trials import Batch, batches_of, first_item, images_for, other_inputs
from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph import ModelSource, ResolvedShapes, as_model, frozen, holds_map, runtime_inputs
from onnx_pointwise.numerics import Drift, DriftMeter
from onnx_pointwise.runtime import (
    Array,
    LatencyComparison,
    ProviderInfo,
    compare,
    first_non_finite,
    input_sizes,
    input_specs,
    inputs_that_run,
    is_cpu,
    model_name,
    origin_of,
    output_of,
    provider_info,
    require,
)
from onnx_pointwise.schema import pair
from onnx_pointwise.settings import CheckSettings
from onnx_pointwise.study import find_heads


@pair(CheckSettings)
def check(before: ModelSource | bytes, after: ModelSource | bytes, settings: CheckSettings) -> CheckResult:
    """Compare two networks on the same inputs.

    Given inputs may be any number of examples, but a multiple of the batch size where the model fixes that; without,
    synthetic images are drawn where the first network takes images, else random numbers in the declared shapes. Heads
    are those of the first network. Latency is timed with one item a run.

    Args:
        before: The reference: path, serialised model, ``ModelProto`` or ``onnx_ir.Model``.
        after: The network compared with it.
        settings: What is asked for, in place of the keywords that follow.

    Returns:
        The verdict with all measurements.

    Raises:
        InputError: Given inputs, shapes, batch sizes, limits, or names of outputs or heads do not fit the first
            network.
        ModelError: A model cannot be read, or the first network does not run.
        ProviderError: A provider does not load, or cannot run one of the models.
    """
    if settings.freeze_initializers:
        before, after = frozen(before), frozen(after)
    pairing = _paired(before, after, settings)
    findings = declared_differences(pairing.first, pairing.second)
    results: list[ProviderCheck] = []
    if pairing.fits:
        results, more = _on_providers(pairing, settings)
        findings.extend(finding for finding in _located(more, pairing) if finding not in findings)
    warnings = [*pairing.warnings, *provider_warnings(results, settings.threads)]
    warnings.extend(unreal_warning(pairing.inputs, results))
    return CheckResult(
        passed=not findings,
        findings=tuple(findings),
        warnings=tuple(warnings),
        before=pairing.first.cost,
        after=pairing.second.cost,
        providers=tuple(results),
        origin=origin_of("check", settings, before, after),
        max_drift=settings.max_drift,
        limits=pairing.limits,
        inputs=pairing.inputs,
        not_compared=_not_compared(pairing, results),
        sites=_sites(pairing, settings) if settings.sites and pairing.fits else None,
    )


def sites_between(
    before: ModelSource | bytes, after: ModelSource | bytes, settings: CheckSettings
) -> tuple[SiteCheck, ...]:
    """Compare two networks at every convolution that they compute otherwise, see `compare_sites`."""
    return _sites(_paired(before, after, settings), settings)


def _located(findings: Sequence[Finding], pairing: _Pairing) -> list[Finding]:
    """Say where NaN comes from, where that is why nothing could be compared."""
    place = next((index for index, one in enumerate(findings) if one.code == "nothing_compared"), None)
    if place is None:
        return list(findings)
    first, one = pairing.first, findings[place]
    origin = first_non_finite(first.source, first_item(first.specs, pairing.batches[0]))
    if origin is not None:
        one = Finding(
            one.code,
            f"{one.sentence} In the first network {origin}.",
            {**one.numbers, "origin": origin.to_dict()},
        )
    return [*findings[:place], one, *findings[place + 1 :]]


def _sites(pairing: _Pairing, settings: CheckSettings) -> tuple[SiteCheck, ...]:
    first, second = pairing.first, pairing.second
    return compare_sites(first.source, second.source, first.specs, pairing.batches, threads=settings.threads)


# --- what is known before anything runs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairing:
    """Two networks, and what they are compared on.

    Attributes:
        first: The reference.
        second: The network compared with it.
        fits: Whether the second takes the same inputs.
        batches: What both are given.
        sizes: Shapes of the inputs that cost and latency are told at.
        inputs: Where that comes from.
        readings: Heads, and how they are read.
        limits: Up to where they are the same, close, and only changed.
        silent: Why outputs are not compared, by their name.
        warnings: What makes the comparison worth less.
    """

    first: Side
    second: Side
    fits: bool
    batches: Sequence[Batch]
    sizes: Mapping[str, Sequence[int]]
    inputs: Inputs
    readings: Sequence[Reading]
    limits: Limits
    silent: Mapping[str, str]
    warnings: Sequence[str]

    @property
    def hidden(self) -> list[str]:
        """Values inside the networks that heads are read at."""
        names = dict.fromkeys(name for one in self.readings for name in one.names)
        return [name for name in names if name not in self.first.names]


def _paired(before: ModelSource | bytes, after: ModelSource | bytes, settings: CheckSettings) -> _Pairing:
    """Read both networks, and find faults of the arguments before any work is done."""
    _require_arguments(settings)
    model = as_model(before)
    specs = input_specs(model)
    drawn = None if settings.inputs is not None else images_for(model, settings.input_shapes, settings.seed)
    inputs = settings.inputs if drawn is None else drawn
    wanted = settings.input_shapes if drawn is None else None
    batches = batches_of(model, specs, inputs, wanted, settings.batch_sizes, settings.seed)
    sizes = input_sizes(model, settings.input_shapes) if settings.input_shapes else batches[0].shapes
    signature = _signature(model)
    shapes = shapes_of(model, sizes)
    first = described(before, model, shapes)
    readings, silent = _readings(model, shapes, settings)
    _require_limits(model, readings, silent, settings)
    types = {str(value.name): value.dtype for value in model.graph.outputs if str(value.name) not in silent}
    # Weights are needed for the descriptions alone, and graphs are cyclic: only a collection gives gigabytes back.
    del model, shapes
    gc.collect()
    model = as_model(after)
    fits = _signature(model) == signature
    shapes = shapes_of(model, sizes if fits else None)
    second = described(after, model, shapes)
    warnings = [*first.warnings, *second.warnings]
    missing = {name for one in readings for name in one.names} - _values(model, shapes)
    if missing:
        readings = without(readings, missing, types)
        warnings.append(_lost(missing))
    del model, shapes
    gc.collect()
    limits = limits_of(settings.limits)
    origin: Inputs = "given" if settings.inputs is not None else "random" if drawn is None else "drawn"
    return _Pairing(first, second, fits, batches, sizes, origin, readings, limits, silent, warnings)


def _readings(
    model: ir.Model, shapes: ResolvedShapes, settings: CheckSettings
) -> tuple[list[Reading], Mapping[str, str]]:
    """Find the heads of the first network; where nothing learned answers, its outputs are looked at themselves."""
    heads = find_heads(shapes, named=settings.heads, ignored=settings.ignore_outputs)
    silent = {name: reason for name, reason in heads.silent.items() if name in settings.ignore_outputs}
    silent |= {str(value.name): reason for value in model.graph.outputs if (reason := _unlike_numbers(value))}
    # Of a node that puts out a map nothing may be known; the map is found as a head of its own then.
    readings = [one for one in readings_of(shapes, heads) if one.head.value not in silent]
    for one in readings:
        silent |= {
            name: f"{silent[name]} What it is made of is compared, '{one.head.value}'."
            for name in one.head.outputs
            if name in silent and name not in settings.ignore_outputs
        }
    if not readings:
        values = [value for value in model.graph.outputs if str(value.name) not in silent]
        readings = [output_reading(str(value.name), "numbers", value.dtype) for value in values]
    return readings, silent


def _unlike_numbers(value: ir.Value) -> str:
    """Why an output cannot be compared; empty for one that can."""
    if holds_map(value):
        return "It is a map, or a sequence of them, and holds no numbers to compare."
    if value.dtype == ir.DataType.STRING:
        return "It is text, and holds no numbers to compare."
    if value.type is not None and not isinstance(value.type, ir.TensorType | ir.SequenceType):
        return "It is neither a tensor nor a sequence of them."
    if isinstance(value.type, ir.SequenceType) and not isinstance(value.type.elem_type, ir.TensorType):
        return "It is a sequence of something else than tensors."
    return ""


def _lost(missing: set[str]) -> str:
    """Say that heads could not be looked at."""
    named = ", ".join(f"'{name}'" for name in sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
    return (
        f"The second network has no {named}, where the first one answers: outputs were compared instead, in which one "
        "kind of number may hide another."
    )


def _values(model: ir.Model, shapes: ResolvedShapes) -> set[str]:
    """Names of what a network computes, its functions inlined or not."""
    names: set[str] = set()
    for one in (model, shapes.model):
        names |= set(ir.convenience.create_value_mapping(one.graph, include_subgraphs=False))
    return names


def _signature(model: ir.Model) -> list[tuple[str | None, ir.DataType | None]]:
    return [(value.name, value.dtype) for value in runtime_inputs(model)]


def _require_arguments(settings: CheckSettings) -> None:
    if not settings.providers:
        raise InputError("Name at least one execution provider to check on.")
    for provider in settings.providers:
        require(provider)
    if settings.require not in LIKENESSES[:-1]:
        raise InputError(f"What is required must be one of {', '.join(LIKENESSES[:-1])}, not '{settings.require}'.")
    limits_of(settings.limits)


def _require_limits(
    model: ir.Model, readings: Sequence[Reading], silent: Mapping[str, str], settings: CheckSettings
) -> None:
    """See that limits on the drift make sense, and name what can be compared."""
    names = [str(value.name) for value in model.graph.outputs]
    heads = [one.head.value for one in readings if one.head.value not in names]
    limit = settings.max_drift
    for name, tolerance in (limit if isinstance(limit, Mapping) else {"": limit}).items():
        if name and name not in (*names, *heads):
            others = f", its heads {', '.join(heads)}" if heads else ""
            raise InputError(
                f"The model has no output '{name}' to limit the drift of; its outputs are {', '.join(names)}{others}."
            )
        if name in silent:
            raise InputError(f"The drift of output '{name}' cannot be limited: {silent[name]}")
        if tolerance is not None and not tolerance >= 0:
            raise InputError(f"A drift limit must be 0 or above, not {tolerance}.")


# --- runs -------------------------------------------------------------------------------------------------------------


def _on_providers(pairing: _Pairing, settings: CheckSettings) -> tuple[list[ProviderCheck], list[Finding]]:
    """Compare both networks on every provider."""
    on_cpu = None
    if any(not is_cpu(provider) for provider in settings.providers):
        on_cpu = _run(pairing, pairing.first, "cpu", settings), _run(pairing, pairing.second, "cpu", settings)
    results, findings = [], []
    for provider in settings.providers:
        result, more = _check_on(pairing, provider, on_cpu, settings)
        results.append(result)
        findings.extend(more)
    return results, findings


def _run(pairing: _Pairing, side: Side, provider: str, settings: CheckSettings) -> Run:
    return run(side.source, pairing.batches, provider, settings, pairing.hidden)


@dataclass(frozen=True)
class _Met:
    """What came of running both networks on the same batches."""

    heads: AnswerMeter
    drift: DriftMeter
    trials: list[Trial]
    findings: list[Finding]


def _check_on(
    pairing: _Pairing, provider: str, on_cpu: tuple[Run, Run] | None, settings: CheckSettings
) -> tuple[ProviderCheck, list[Finding]]:
    """Run both networks on one provider, one after the other, and compare."""
    info = provider_info(provider)
    here = on_cpu if is_cpu(provider) else None
    dense = here[0] if here else _run(pairing, pairing.first, provider, settings)
    if isinstance(dense.values[0], str):
        raise ModelError(
            f"{model_name(pairing.first.source)}: the model does not run on {provider} with inputs "
            f"{pairing.batches[0]}: {dense.values[0]}"
            f"{other_inputs(pairing.first.specs, pairing.batches[0], given=pairing.inputs == 'given')}."
        )
    rewritten = here[1] if here else _run(pairing, pairing.second, provider, settings)
    met = _meet(pairing, provider, dense, rewritten, settings)
    heads, drift = met.heads.result(pairing.limits), met.drift.result()
    findings = [*met.findings, *drift_faults(provider, drift, settings.max_drift)]
    equal = all(trial.shapes_equal is not False for trial in met.trials)
    if equal:
        findings += never_compared(provider, drift, _compared_outputs(pairing, dense), settings.max_drift)
        findings += answer_faults(provider, heads, settings, pairing.inputs)
    result = ProviderCheck(
        provider=provider,
        device=info.device,
        software=info.software,
        shapes_equal=equal,
        heads=heads,
        drift=drift,
        drift_from_cpu=None,
        dense_from_cpu=None,
        rewritten_from_cpu=None,
        trials=tuple(_merge(met.trials)),
        nodes_off=rewritten.nodes_off,
        nodes_off_before=dense.nodes_off,
        latency=_latency(pairing, info, provider, settings) if equal else None,
    )
    if on_cpu and not here:
        result = _with_cpu(result, pairing, on_cpu, (dense, rewritten))
        findings += provider_faults(provider, result.dense_from_cpu or {}, result.rewritten_from_cpu or {})
    return result, findings


def _meet(pairing: _Pairing, provider: str, dense: Run, rewritten: Run, settings: CheckSettings) -> _Met:
    """Compare what both networks gave, batch by batch."""
    met = _Met(AnswerMeter(pairing.readings), DriftMeter(), [], [])
    for batch, first, second in zip(pairing.batches, dense.values, rewritten.values, strict=True):
        if isinstance(first, str):
            met.trials.append(Trial(batch.shapes, None, first))
            continue
        mine = _outputs(pairing, first)
        theirs = second if isinstance(second, str) else _outputs(pairing, second)
        faults = shape_faults(pairing.first.source, provider, batch, mine, theirs, settings)
        met.findings.extend(faults)
        met.trials.append(Trial(batch.shapes, not faults, None))
        if batch.counts and not isinstance(second, str) and not isinstance(theirs, str):
            met.drift.add(_counting(pairing, mine), theirs)
            met.heads.add(batch.feeds, first, second)
    return met


def _outputs(pairing: _Pairing, values: Mapping[str, Array]) -> dict[str, Array]:
    """The network's outputs among all that it gave."""
    names = {*pairing.first.names, *pairing.second.names}
    return {name: array for name, array in values.items() if output_of(name, names) in names}


def _counting(pairing: _Pairing, values: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs that count."""
    outputs = pairing.first.names
    return {name: array for name, array in values.items() if output_of(name, outputs) not in pairing.silent}


def _compared_outputs(pairing: _Pairing, dense: Run) -> list[str]:
    """Outputs that count and hold numbers."""
    return [name for name in pairing.first.names if name not in pairing.silent and name not in dense.others]


def _merge(trials: Sequence[Trial]) -> list[Trial]:
    """Keep one trial for slices of the same shapes and outcome."""
    kept: list[Trial] = []
    for trial in trials:
        if trial not in kept:
            kept.append(trial)
    return kept


def _latency(pairing: _Pairing, info: ProviderInfo, provider: str, settings: CheckSettings) -> LatencyComparison | None:
    """Time both networks where that was asked for and means something."""
    if not settings.latency or not settings.latency_seconds or info.software:
        return None
    first = pairing.first
    inputs: Mapping[str, Array] | None = first_item(first.specs, pairing.batches[0])
    if settings.inputs is not None and settings.input_shapes:
        # What answers are compared on need not have the sizes that are deployed.
        model = as_model(first.source)
        inputs = inputs_that_run(model, pairing.sizes, inputs, provider=provider, seed=settings.seed)
    settings.tell("timing", f"{provider}, both in turns, for {settings.latency_seconds:g} s at most")
    return compare(
        first.source,
        pairing.second.source,
        inputs=inputs,
        input_shapes=pairing.sizes if inputs is None else None,
        provider=provider,
        threads=settings.threads,
        optimization=settings.optimization,
        max_seconds=settings.latency_seconds,
        seed=settings.seed,
    )


def _with_cpu(
    result: ProviderCheck, pairing: _Pairing, on_cpu: tuple[Run, Run], here: tuple[Run, Run]
) -> ProviderCheck:
    """Add how the provider differs from the CPU."""
    return replace(
        result,
        drift_from_cpu=_drift_from(pairing, on_cpu[0], here[1]),
        dense_from_cpu=_drift_from(pairing, on_cpu[0], here[0]),
        rewritten_from_cpu=_drift_from(pairing, on_cpu[1], here[1]),
    )


def _drift_from(pairing: _Pairing, reference: Run, other: Run) -> dict[str, Drift]:
    meter = DriftMeter()
    for batch, first, second in zip(pairing.batches, reference.values, other.values, strict=True):
        if batch.counts and not isinstance(first, str) and not isinstance(second, str):
            meter.add(_counting(pairing, _outputs(pairing, first)), second)
    return meter.result()


def _not_compared(pairing: _Pairing, results: Sequence[ProviderCheck]) -> dict[str, str]:
    """Say of each output that no number stands for why that is so."""
    compared = {output_of(name, pairing.first.names) for result in results for name in result.drift}
    reasons = dict(pairing.silent)
    if results:
        for name in pairing.first.names:
            if name not in compared:
                reasons.setdefault(name, "It is no number, or no run gave the same shape of it in both networks.")
    return reasons
