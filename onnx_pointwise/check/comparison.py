"""Does a rewritten network still do what the first one did? Both run in ONNX Runtime on the same inputs.

What must be equal: names, shapes and element types of inputs and outputs, for several batch sizes and, where a network
leaves them open, several spatial sizes. What may differ and is measured: the numbers in the outputs (drift), cost and
latency. The networks run one after the other, so that only one of them is in memory; the latency alone needs both.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_pointwise.check.trials import Batch, Shapes, batches_of, first_item, is_open
from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph import (
    ModelCost,
    ModelSource,
    as_model,
    file_bytes,
    frozen,
    model_cost,
    random_nodes,
    runtime_inputs,
    runtime_source,
    stilled,
)
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import Drift, DriftMeter
from onnx_pointwise.runtime import (
    Array,
    AssignedNode,
    InputSpec,
    LatencyComparison,
    Machine,
    compare,
    first_non_finite,
    input_specs,
    machine,
    model_name,
    nodes_off_provider,
    not_compared,
    open_initializers,
    open_session,
    output_of,
    provider_info,
    provider_name,
    require,
    resolve,
    run_outputs,
    sentence,
)
from onnx_pointwise.schema import pair
from onnx_pointwise.settings import CheckSettings


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: ``declared_inputs``, ``declared_outputs``, ``output_shape``, ``output_dtype``, ``does_not_run``,
            ``non_finite``, ``nothing_compared``, ``drift`` or ``provider_differs``.
        sentence: The same for a person.
        numbers: What it was decided on.
    """

    code: str
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {"code": self.code, "sentence": self.sentence, "numbers": dict(self.numbers)}


@dataclass(frozen=True)
class Trial:
    """One set of input shapes that both networks were given.

    Attributes:
        input_shapes: Shape by input name.
        shapes_equal: Whether all outputs agreed in shape and element type; None where the trial was skipped.
        skipped: Why the first network itself does not run at these shapes; None where it does.
    """

    input_shapes: Shapes
    shapes_equal: bool | None
    skipped: str | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        shapes = {name: list(shape) for name, shape in self.input_shapes.items()}
        return {"input_shapes": shapes, "shapes_equal": self.shapes_equal, "skipped": self.skipped}


@dataclass(frozen=True)
class ProviderCheck:
    """What the check found on one execution provider.

    Attributes:
        provider: Short name and options, as given.
        device: The device's name, where it is known.
        software: Whether the device is emulated on the CPU; such a device is not timed.
        shapes_equal: Whether all outputs agreed in name, shape and element type in every trial that ran.
        drift: Drift of each output from the first network on the same provider.
        drift_from_cpu: Drift of each output from the first network on the CPU; None on the CPU itself.
        dense_from_cpu: Drift of the first network on this provider from itself on the CPU.
        rewritten_from_cpu: Drift of the second network on this provider from itself on the CPU: the provider's own
            error, which a kernel that is wrong for some number of channels makes large.
        trials: The input shapes that were tried.
        nodes_off: Nodes of the second network that run on another provider.
        nodes_off_before: The same of the first network.
        latency: Both networks timed in turns; None where that was not asked for or means nothing.
        not_compared: Outputs that hold no numbers, maps and strings, and their types.
    """

    provider: str
    device: str | None
    software: bool
    shapes_equal: bool
    drift: Mapping[str, Drift]
    drift_from_cpu: Mapping[str, Drift] | None
    dense_from_cpu: Mapping[str, Drift] | None
    rewritten_from_cpu: Mapping[str, Drift] | None
    trials: tuple[Trial, ...]
    nodes_off: tuple[AssignedNode, ...]
    nodes_off_before: tuple[AssignedNode, ...]
    latency: LatencyComparison | None
    not_compared: Mapping[str, str] = field(default_factory=dict)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "provider": self.provider,
            "device": self.device,
            "software": self.software,
            "shapes_equal": self.shapes_equal,
            "drift": _drift_dict(self.drift),
            "drift_from_cpu": _drift_dict(self.drift_from_cpu),
            "dense_from_cpu": _drift_dict(self.dense_from_cpu),
            "rewritten_from_cpu": _drift_dict(self.rewritten_from_cpu),
            "trials": [trial.to_dict() for trial in self.trials],
            "nodes_off": [node.to_dict() for node in self.nodes_off],
            "nodes_off_before": [node.to_dict() for node in self.nodes_off_before],
            "not_compared": dict(self.not_compared),
            "latency": None if self.latency is None else self.latency.to_dict(),
        }


@dataclass(frozen=True)
class CheckResult:
    """The verdict on a pair of networks, and what it rests on.

    Attributes:
        passed: Whether there is no finding.
        findings: What is not as it should be.
        warnings: What makes the result worth less, in sentences.
        before: Cost of the first network, at the input shapes of the first trial.
        after: Cost of the second network.
        providers: One result for each execution provider.
        machine: Where this was measured.
        max_drift: The limit on the drift, for every output or by output name; None where nothing limited it.
    """

    passed: bool
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    before: ModelCost
    after: ModelCost
    providers: tuple[ProviderCheck, ...]
    machine: Machine
    max_drift: float | Mapping[str, float] | None

    @property
    def shapes_equal(self) -> bool:
        """Whether declared and actual names, shapes and element types agree, on every provider."""
        declared = all(not finding.code.startswith("declared") for finding in self.findings)
        return declared and all(result.shapes_equal for result in self.providers)

    @property
    def drift(self) -> Mapping[str, Drift]:
        """Drift of each output on the first provider."""
        return self.providers[0].drift if self.providers else {}

    @property
    def latency(self) -> LatencyComparison | None:
        """Latency of both networks on the first provider."""
        return self.providers[0].latency if self.providers else None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "passed": self.passed,
            "shapes_equal": self.shapes_equal,
            "drift": _drift_dict(self.drift),
            "max_drift": dict(self.max_drift) if isinstance(self.max_drift, Mapping) else self.max_drift,
            "findings": [finding.to_dict() for finding in self.findings],
            "warnings": list(self.warnings),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "providers": [result.to_dict() for result in self.providers],
            "machine": self.machine.to_dict(),
        }


def _drift_dict(drift: Mapping[str, Drift] | None) -> dict[str, Any] | None:
    return None if drift is None else {name: value.to_dict() for name, value in drift.items()}


@pair(CheckSettings)
def check(before: ModelSource | bytes, after: ModelSource | bytes, settings: CheckSettings) -> CheckResult:
    """Compare two networks on the same inputs.

    Given inputs may be any number of examples, but a multiple of the batch size where the model fixes that; without,
    random ones in the declared shapes are drawn. Latency is timed with one item a run.

    Args:
        before: The reference: path, serialised model, ``ModelProto`` or ``onnx_ir.Model``.
        after: The network compared with it.
        settings: What is asked for, in place of the keywords that follow.

    Returns:
        The verdict with all measurements.

    Raises:
        InputError: Given inputs, shapes, batch sizes or output names do not fit the first network.
        ModelError: A model cannot be read, or the first network does not run.
        ProviderError: A provider does not load, or cannot run one of the models.
    """
    providers = settings.providers
    if settings.freeze_initializers:
        before, after = frozen(before), frozen(after)
    model = as_model(before)
    _require_arguments(model, settings)
    batches = batches_of(
        model, input_specs(model), settings.inputs, settings.input_shapes, settings.batch_sizes, settings.seed
    )
    signature = _signature(model)
    dense = _describe(before, model, batches[0].shapes)
    # Weights are needed for the descriptions alone, and graphs are cyclic: only a collection gives gigabytes back.
    del model
    gc.collect()
    model = as_model(after)
    takes_same_inputs = _signature(model) == signature
    rewritten = _describe(after, model, batches[0].shapes if takes_same_inputs else None)
    del model
    gc.collect()
    findings = _declared_differences(dense, rewritten)
    results = []
    if takes_same_inputs:
        elsewhere = any(not _is_cpu(provider) for provider in providers)
        on_cpu = None
        if elsewhere:
            on_cpu = _run(before, batches, "cpu", settings), _run(after, batches, "cpu", settings)
        for provider in providers:
            result, more = _check_on(dense, rewritten, provider, batches, on_cpu, settings)
            results.append(result)
            findings.extend(finding for finding in more if finding not in findings)
    return CheckResult(
        passed=not findings,
        findings=tuple(findings),
        warnings=(*dense.warnings, *rewritten.warnings, *_warnings(results)),
        before=dense.cost,
        after=rewritten.cost,
        providers=tuple(results),
        machine=machine(),
        max_drift=settings.max_drift,
    )


@dataclass(frozen=True)
class _Side:
    """What is known of one network without running it, its weights left out."""

    source: ModelSource | bytes
    specs: tuple[InputSpec, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    cost: ModelCost
    warnings: tuple[str, ...]


def _describe(source: ModelSource | bytes, model: ir.Model, shapes: Shapes | None) -> _Side:
    return _Side(
        source=source,
        specs=tuple(input_specs(model)),
        inputs=tuple(_declaration(value) for value in runtime_inputs(model)),
        outputs=tuple(_declaration(value) for value in model.graph.outputs),
        names=tuple(str(value.name) for value in model.graph.outputs),
        cost=_cost(source, model, shapes),
        warnings=(*open_initializers(model, model_name(source)), *_random_nodes(source, model)),
    )


def _random_nodes(source: ModelSource | bytes, model: ir.Model) -> list[str]:
    """Say that random nodes were made to draw alike."""
    names = random_nodes(model)
    if not names:
        return []
    shown = ", ".join(f"'{name}'" for name in names[:4]) + (", ..." if len(names) > 4 else "")
    return [f"{model_name(source)}: {shown} draw random numbers; for the comparison they drew the same in both."]


def _signature(model: ir.Model) -> list[tuple[str | None, ir.DataType | None]]:
    return [(value.name, value.dtype) for value in runtime_inputs(model)]


def _is_cpu(provider: str) -> bool:
    return provider_name(provider) == "cpu"


def _require_arguments(model: ir.Model, settings: CheckSettings) -> None:
    """Find faults of the arguments before any work is done."""
    if not settings.providers:
        raise InputError("Name at least one execution provider to check on.")
    for provider in settings.providers:
        require(provider)
    for size in settings.batch_sizes:
        if size < 1:
            raise InputError(f"A batch size must be at least 1, not {size}.")
    names = [str(value.name) for value in model.graph.outputs]
    limit = settings.max_drift
    tolerances = limit if isinstance(limit, Mapping) else {"": limit}
    for name, tolerance in tolerances.items():
        if name and name not in names:
            raise InputError(
                f"The model has no output '{name}' to limit the drift of; its outputs are {', '.join(names)}."
            )
        if tolerance is not None and not tolerance >= 0:
            raise InputError(f"A drift limit must be 0 or above, not {tolerance}.")


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """What one network gave: for each batch its outputs, or why it did not run; and outputs that hold no numbers."""

    outputs: list[dict[str, Array] | str]
    nodes_off: tuple[AssignedNode, ...]
    left_out: Mapping[str, str]


def _run(source: ModelSource | bytes, batches: Sequence[Batch], provider: str, settings: CheckSettings) -> _Run:
    outputs: list[dict[str, Array] | str] = []
    with runtime_source(stilled(source)) as path:
        session = open_session(path, provider, threads=settings.threads, optimization=settings.optimization)
        left_out = not_compared(session)
        for batch in batches:
            try:
                outputs.append(run_outputs(session, batch.feeds))
            except Exception as error:  # the runtime's exceptions share no base class
                outputs.append(sentence(error))
        nodes_off = () if _is_cpu(provider) else tuple(nodes_off_provider(session))
    return _Run(outputs, nodes_off, left_out)


def _check_on(
    before: _Side,
    after: _Side,
    provider: str,
    batches: Sequence[Batch],
    on_cpu: tuple[_Run, _Run] | None,
    settings: CheckSettings,
) -> tuple[ProviderCheck, list[Finding]]:
    """Run both networks on one provider, one after the other, and compare."""
    info = provider_info(provider)
    here = on_cpu if _is_cpu(provider) else None
    dense = here[0] if here else _run(before.source, batches, provider, settings)
    if isinstance(dense.outputs[0], str):
        raise ModelError(
            f"{model_name(before.source)}: the model does not run on {provider} with inputs {batches[0]}: "
            f"{dense.outputs[0]}; name others with --input-shape."
        )
    rewritten = here[1] if here else _run(after.source, batches, provider, settings)
    _require_comparable(dense.left_out, settings)
    findings: list[Finding] = []
    trials = []
    meter = DriftMeter()
    for batch, first, second in zip(batches, dense.outputs, rewritten.outputs, strict=True):
        if isinstance(first, str):
            trials.append(Trial(batch.shapes, None, first))
            continue
        faults = _shape_faults(before.source, provider, batch, first, second, settings)
        findings.extend(faults)
        trials.append(Trial(batch.shapes, not faults, None))
        if batch.counts and not isinstance(second, str):
            meter.add(first, second)
    drift = meter.result()
    limits = _limits_of_items(drift, before.names, settings.max_drift)
    findings.extend(_drift_faults(provider, drift, limits))
    findings.extend(_idle_limits(before.source, provider, drift, limits, batches[0]))
    from_cpu: dict[str, Mapping[str, Drift]] = {}
    if on_cpu and not here:
        from_cpu = {
            "drift_from_cpu": _drift_from(on_cpu[0], rewritten, batches),
            "dense_from_cpu": _drift_from(on_cpu[0], dense, batches),
            "rewritten_from_cpu": _drift_from(on_cpu[1], rewritten, batches),
        }
        findings.extend(_provider_faults(provider, from_cpu["dense_from_cpu"], from_cpu["rewritten_from_cpu"]))
    equal = all(trial.shapes_equal is not False for trial in trials)
    timing = None
    if settings.latency and settings.latency_seconds and equal and not info.software:
        timing = compare(
            before.source,
            after.source,
            inputs=first_item(before.specs, batches[0]),
            provider=provider,
            threads=settings.threads,
            optimization=settings.optimization,
            max_seconds=settings.latency_seconds,
            seed=settings.seed,
        )
    result = ProviderCheck(
        provider=provider,
        device=info.device,
        software=info.software,
        shapes_equal=equal,
        drift=drift,
        drift_from_cpu=from_cpu.get("drift_from_cpu"),
        dense_from_cpu=from_cpu.get("dense_from_cpu"),
        rewritten_from_cpu=from_cpu.get("rewritten_from_cpu"),
        trials=tuple(_merge(trials)),
        nodes_off=rewritten.nodes_off,
        nodes_off_before=dense.nodes_off,
        latency=timing,
        not_compared=dense.left_out,
    )
    return result, findings


def _merge(trials: Sequence[Trial]) -> list[Trial]:
    """Keep one trial for slices of the same shapes and outcome."""
    kept: list[Trial] = []
    for trial in trials:
        if trial not in kept:
            kept.append(trial)
    return kept


def _drift_from(reference: _Run, run: _Run, batches: Sequence[Batch]) -> dict[str, Drift]:
    meter = DriftMeter()
    for batch, first, second in zip(batches, reference.outputs, run.outputs, strict=True):
        if batch.counts and not isinstance(first, str) and not isinstance(second, str):
            meter.add(first, second)
    return meter.result()


# --- findings ---------------------------------------------------------------------------------------------------------


def _declared_differences(before: _Side, after: _Side) -> list[Finding]:
    """Compare names, element types and shapes that the two graphs declare."""
    findings = []
    for kind, was, now in (("inputs", before.inputs, after.inputs), ("outputs", before.outputs, after.outputs)):
        if was != now:
            text = f"The declared {kind} differ: {'; '.join(was)} before, {'; '.join(now)} after."
            findings.append(Finding(f"declared_{kind}", text, {"before": list(was), "after": list(now)}))
    return findings


def _declaration(value: ir.Value) -> str:
    sizes = "..."
    if value.shape is not None:
        sizes = ", ".join(str(size if isinstance(size, int) else size.value or "?") for size in value.shape)
    dtype = "unknown" if value.dtype is None else value.dtype.name.lower()
    return f"{value.name}: {dtype}[{sizes}]"


def _shape_faults(
    before: ModelSource | bytes,
    provider: str,
    batch: Batch,
    first: Mapping[str, Array],
    second: Mapping[str, Array] | str,
    settings: CheckSettings,
) -> list[Finding]:
    """Compare shapes and element types of the outputs of one run; outputs that one side lacks are declared as such."""
    given = str(batch)
    if isinstance(second, str):
        text = f"On {provider} with inputs {given} the second network does not run: {second}."
        return [Finding("does_not_run", text, {"provider": provider, "input_shapes": batch.lists()})]
    faults = []
    for name, was in first.items():
        numbers: dict[str, Any] = {"provider": provider, "output": name}
        if name not in second:
            if output_of(name, ()) != name:  # an item of a sequence; other outputs are declared to be missing
                text = f"The sequence '{output_of(name, ())}' has no item for '{name}' on {provider} with {given}."
                faults.append(Finding("output_shape", text, numbers | {"input_shapes": batch.lists()}))
            continue
        now = second[name]
        if was.dtype != now.dtype:
            text = f"Output '{name}' is {now.dtype} instead of {was.dtype} on {provider}."
            faults.append(Finding("output_dtype", text, numbers | {"before": str(was.dtype), "after": str(now.dtype)}))
        if was.shape != now.shape and not _depends_on_data(before, provider, batch, name, was, settings):
            text = (
                f"Output '{name}' has shape {list(now.shape)} instead of {list(was.shape)} on {provider} with {given}."
            )
            numbers |= {"input_shapes": batch.lists(), "before": list(was.shape), "after": list(now.shape)}
            faults.append(Finding("output_shape", text, numbers))
    return faults


def _depends_on_data(
    before: ModelSource | bytes, provider: str, batch: Batch, name: str, output: Array, settings: CheckSettings
) -> bool:
    """Tell whether the first network's own output has another shape for other inputs of the same shape."""
    generator = np.random.default_rng(settings.seed + 1)
    shuffled = {
        key: generator.permutation(array.ravel()).reshape(array.shape) * array.dtype.type(2)
        if array.dtype.kind == "f"
        else array
        for key, array in batch.feeds.items()
    }
    again = _run(before, [Batch(shuffled, False)], provider, settings)
    values = again.outputs[0]
    return not isinstance(values, str) and (name not in values or values[name].shape != output.shape)


def _require_comparable(left_out: Mapping[str, str], settings: CheckSettings) -> None:
    """Refuse limits on what holds no numbers."""
    for name in settings.max_drift if isinstance(settings.max_drift, Mapping) else ():
        if name in left_out:
            raise InputError(
                f"Output '{name}' is {left_out[name]}, which holds no numbers to compare; limit the drift of an output "
                "that is a tensor, or add what lies before it to the outputs."
            )


def _limits_of_items(
    drift: Mapping[str, Drift], outputs: Sequence[str], limit: float | Mapping[str, float] | None
) -> dict[str, float | None]:
    """The limit of each output and each item of a sequence, and of outputs that were not compared at all."""
    if not isinstance(limit, Mapping):
        return dict.fromkeys(drift, limit)
    found = {name: limit.get(output_of(name, outputs)) for name in drift}
    compared = {output_of(name, outputs) for name in drift}
    return {**found, **{name: value for name, value in limit.items() if name not in compared}}


def _idle_limits(
    source: ModelSource | bytes,
    provider: str,
    drift: Mapping[str, Drift],
    limits: Mapping[str, float | None],
    batch: Batch,
) -> Iterator[Finding]:
    """A limit that compared nothing has failed: no output, or none of its numbers finite."""
    # Of a detector that finds nothing an output may well be empty, as long as there are others.
    any_values = any(seen.values for seen in drift.values())
    for name, limit in limits.items():
        seen = drift.get(name)
        if limit is None or (
            seen is not None and (seen.values > seen.non_finite_before or (any_values and not seen.values))
        ):
            continue
        text = f"The limit on output '{name}' compared nothing on {provider}"
        numbers: dict[str, Any] = {"provider": provider, "output": name, "limit": limit}
        if seen is not None and seen.values:
            text += f": all of its {seen.values} values are NaN or infinite in the first network"
            origin = first_non_finite(source, batch.feeds)
            if origin is not None:
                text += f", where {origin}"
                numbers["origin"] = origin.to_dict()
        yield Finding("nothing_compared", f"{text}; check with other --inputs.", numbers)


def _drift_faults(provider: str, drift: Mapping[str, Drift], limits: Mapping[str, float | None]) -> list[Finding]:
    faults = []
    for name, value in drift.items():
        numbers: dict[str, Any] = {"provider": provider, "output": name}
        if value.non_finite_differs:
            text = (
                f"Output '{name}' on {provider} has {value.non_finite_after} NaN or infinite values where it had "
                f"{value.non_finite_before}, {value.non_finite_differs} of them at other places or of another kind."
            )
            counts = {"before": value.non_finite_before, "after": value.non_finite_after}
            faults.append(Finding("non_finite", text, numbers | counts))
        limit = limits.get(name)
        if limit is not None and value.relative_l2 > limit:
            text = f"Output '{name}' drifts by {value.relative_l2:.4g} on {provider}, more than the {limit:g} allowed."
            faults.append(Finding("drift", text, numbers | {"drift": value.to_dict()["relative_l2"], "limit": limit}))
    return faults


# Half precision inside a provider moves outputs by less than this.
_PROVIDER_ERROR = 0.01


def _provider_faults(provider: str, dense: Mapping[str, Drift], rewritten: Mapping[str, Drift]) -> Iterator[Finding]:
    """Find outputs that a provider computes otherwise than the CPU, though it gets the first network right.

    Seen with WebGPU 0.4: with its own layout, kernels larger than 1x1 are wrong where the number of input channels is
    a multiple of 3 above 3 but not of 4, and that of output channels one of 4.
    """
    for name, value in rewritten.items():
        usual = dense[name].relative_l2 if name in dense else 0.0
        if value.relative_l2 > max(_PROVIDER_ERROR, 10 * usual):
            text = (
                f"{provider} computes output '{name}' of the second network otherwise than the CPU: it differs by "
                f"{value.relative_l2:.2g}, that of the first network by {usual:.1g}; choose other ranks, first of all "
                "multiples of 4, or another provider."
            )
            error = value.to_dict()["relative_l2"]
            numbers = {"provider": provider, "output": name, "rewritten": error, "dense": usual}
            yield Finding("provider_differs", text, numbers)


def _warnings(results: Sequence[ProviderCheck]) -> Iterator[str]:
    for result in results:
        if result.software:
            yield f"{result.provider} ran on {result.device}, a device emulated on the CPU, so it was not timed."
        for name, kind in result.not_compared.items():
            yield f"Output '{name}' is {kind}, which holds no numbers, so it was not compared."
        for name, value in (result.dense_from_cpu or {}).items():
            if value.relative_l2 > _PROVIDER_ERROR:
                yield (
                    f"{result.provider} computes output '{name}' of the first network otherwise than the CPU already: "
                    f"it differs by {value.relative_l2:.2g}."
                )
        extra = len(result.nodes_off) - len(result.nodes_off_before)
        if extra > 0:
            yield f"On {result.provider} {extra} more nodes run on another provider than before."
        if result.latency is not None and result.latency.verdict == "slower":
            yield f"On {result.provider} the second network takes {result.latency.ratio:.2f} times as long."


def _cost(source: ModelSource | bytes, model: ir.Model, shapes: Shapes | None) -> ModelCost:
    """Count costs for one item, at the sizes of the first run."""
    one = None
    if shapes is not None:
        one = {
            spec.name: (1, *shapes[spec.name][1:]) if shapes[spec.name] and is_open(spec, 0) else shapes[spec.name]
            for spec in input_specs(model)
        }
    size = file_bytes(source, model) if isinstance(source, str | Path) else None
    return model_cost(model, resolve(model, one), file_bytes=size)
