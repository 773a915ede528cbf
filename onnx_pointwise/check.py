"""Does a rewritten network still do what the first one did? Both run in ONNX Runtime on the same inputs.

What must be equal: names, shapes and element types of inputs and outputs, for several batch sizes and, where a network
leaves them open, several spatial sizes. What may differ and is measured: the numbers in the outputs (drift), cost and
latency. The networks run one after the other, so that only one of them is in memory; the latency alone needs both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_pointwise import providers
from onnx_pointwise.benchmark import LatencyComparison, compare
from onnx_pointwise.cost import ModelCost, model_cost
from onnx_pointwise.drift import Drift, DriftMeter
from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.inputs import (
    Array,
    InputSpec,
    as_model,
    feedable,
    input_specs,
    random_inputs,
    split_inputs,
)
from onnx_pointwise.machine import Machine, machine
from onnx_pointwise.model_io import ModelSource, file_bytes, runtime_source
from onnx_pointwise.providers import AssignedNode
from onnx_pointwise.runner import open_initializers
from onnx_pointwise.runtime_errors import sentence
from onnx_pointwise.shapes import concrete_inputs, resolve

# Given inputs run in slices of this many items: activations of a whole data set would not fit into memory.
_SLICE = 16

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: ``declared_inputs``, ``declared_outputs``, ``output_shape``, ``output_dtype``, ``does_not_run``,
            ``non_finite`` or ``drift``.
        sentence: The same for a person.
        numbers: What it was decided on.
    """

    code: str
    sentence: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

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
        dense_from_cpu: Drift of the first network on this provider from itself on the CPU, to compare that with.
        trials: The input shapes that were tried.
        nodes_off: Nodes of the second network that run on another provider.
        nodes_off_before: The same of the first network.
        latency: Both networks timed in turns; None where that was not asked for or means nothing.
    """

    provider: str
    device: str | None
    software: bool
    shapes_equal: bool
    drift: Mapping[str, Drift]
    drift_from_cpu: Mapping[str, Drift] | None
    dense_from_cpu: Mapping[str, Drift] | None
    trials: tuple[Trial, ...]
    nodes_off: tuple[AssignedNode, ...]
    nodes_off_before: tuple[AssignedNode, ...]
    latency: LatencyComparison | None

    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "provider": self.provider,
            "device": self.device,
            "software": self.software,
            "shapes_equal": self.shapes_equal,
            "drift": _drift_dict(self.drift),
            "drift_from_cpu": None if self.drift_from_cpu is None else _drift_dict(self.drift_from_cpu),
            "dense_from_cpu": None if self.dense_from_cpu is None else _drift_dict(self.dense_from_cpu),
            "trials": [trial.to_dict() for trial in self.trials],
            "nodes_off": [node.to_dict() for node in self.nodes_off],
            "nodes_off_before": [node.to_dict() for node in self.nodes_off_before],
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
    """

    passed: bool
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    before: ModelCost
    after: ModelCost
    providers: tuple[ProviderCheck, ...]
    machine: Machine

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

    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "passed": self.passed,
            "shapes_equal": self.shapes_equal,
            "drift": _drift_dict(self.drift),
            "findings": [finding.to_dict() for finding in self.findings],
            "warnings": list(self.warnings),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "providers": [result.to_dict() for result in self.providers],
            "machine": self.machine.to_dict(),
        }


def _drift_dict(drift: Mapping[str, Drift]) -> dict[str, Any]:
    return {name: value.to_dict() for name, value in drift.items()}


def check(
    before: ModelSource | bytes,
    after: ModelSource | bytes,
    *,
    inputs: Mapping[str, Array] | None = None,
    providers: Sequence[str] = ("cpu",),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch_sizes: Sequence[int] = (1, 3),
    max_drift: float | Mapping[str, float] | None = None,
    latency: bool = True,
    latency_seconds: float = 10.0,
    threads: int | None = None,
    optimization: str = "all",
    seed: int = 0,
) -> CheckResult:
    """Compare two networks on the same inputs.

    Args:
        before: The reference: path, serialised model, ``ModelProto`` or ``onnx_ir.Model``.
        after: The network compared with it.
        inputs: Input name to array, [N, ...], N any multiple of the batch size where the model fixes that. Random
            inputs in the declared shapes if None.
        providers: Execution providers, as for ``providers.open_session``; the first one is the main one.
        input_shapes: Shapes of random inputs by name, where the model leaves dimensions open.
        batch_sizes: Batch sizes to try where the model leaves the batch dimension open.
        max_drift: Largest relative L2 drift that is allowed, for every output or by output name. None allows any.
        latency: Time both networks too, with one item a run.
        latency_seconds: Seconds that takes on each provider.
        threads: Threads inside one operator; None leaves the choice to the runtime.
        optimization: Graph optimisation level.
        seed: Seed of random inputs.

    Returns:
        The verdict with all measurements.

    Raises:
        InputError: Given inputs, shapes, batch sizes or output names do not fit the first network.
        ModelError: A model cannot be read, or the first network does not run.
        ProviderError: A provider does not load, or cannot run one of the models.
    """
    pair = _Pair(before, after, as_model(before), as_model(after))
    _require_arguments(pair.dense, providers, batch_sizes, max_drift)
    specs = input_specs(pair.dense)
    batches = _batches(pair.dense, specs, inputs, input_shapes, batch_sizes, seed)
    findings = _declared_differences(pair)
    comparable = not any(finding.code == "declared_inputs" for finding in findings)
    results = []
    if comparable:
        settings = _Settings(threads, optimization, max_drift, latency_seconds if latency else None, seed)
        reference = None
        if any(not _is_cpu(provider) for provider in providers):
            reference = _run(before, batches, "cpu", settings).outputs
        for provider in providers:
            result, more = _check_on(pair, provider, batches, reference, settings)
            results.append(result)
            findings.extend(more)
    base = {name: tuple(array.shape) for name, array in batches[0].feeds.items()}
    return CheckResult(
        passed=not findings,
        findings=tuple(findings),
        warnings=tuple(_warnings(pair, results)),
        before=_cost(before, pair.dense, base),
        after=_cost(after, pair.rewritten, base if comparable else None),
        providers=tuple(results),
        machine=machine(),
    )


@dataclass(frozen=True)
class _Pair:
    before: ModelSource | bytes
    after: ModelSource | bytes
    dense: ir.Model
    rewritten: ir.Model


@dataclass(frozen=True)
class _Settings:
    threads: int | None
    optimization: str
    max_drift: float | Mapping[str, float] | None
    latency_seconds: float | None
    seed: int


@dataclass(frozen=True)
class _Batch:
    """One run's inputs; ``counts`` tells whether its outputs count towards the drift."""

    feeds: dict[str, Array]
    counts: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(array.shape) for name, array in self.feeds.items()}


def _is_cpu(provider: str) -> bool:
    return providers.provider_name(provider) == "cpu"


def _require_arguments(
    model: ir.Model,
    wanted: Sequence[str],
    batch_sizes: Sequence[int],
    max_drift: float | Mapping[str, float] | None,
) -> None:
    """Find faults of the arguments before any work is done."""
    if not wanted:
        raise InputError("Name at least one execution provider to check on.")
    for provider in wanted:
        providers.require(provider)
    for size in batch_sizes:
        if size < 1:
            raise InputError(f"A batch size must be at least 1, not {size}.")
    names = [str(value.name) for value in model.graph.outputs]
    tolerances = max_drift if isinstance(max_drift, Mapping) else {"": max_drift}
    for name, tolerance in tolerances.items():
        if name and name not in names:
            raise InputError(
                f"The model has no output '{name}' to limit the drift of; its outputs are {', '.join(names)}."
            )
        if tolerance is not None and not tolerance >= 0:
            raise InputError(f"A drift limit must be 0 or above, not {tolerance}.")


# --- inputs -----------------------------------------------------------------------------------------------------------


def _batches(
    model: ir.Model,
    specs: Sequence[InputSpec],
    inputs: Mapping[str, Array] | None,
    input_shapes: Mapping[str, Sequence[int]] | None,
    batch_sizes: Sequence[int],
    seed: int,
) -> list[_Batch]:
    """List the runs: given inputs first, else random ones; then other batch sizes and spatial sizes."""
    if inputs is not None:
        if input_shapes:
            raise InputError("Inputs have their own shapes; give either inputs or input shapes.")
        runs = [_Batch(feedable(part), True) for part in split_inputs(specs, inputs, limit=_SLICE)]
        base = _single(specs, runs[0].feeds)
    else:
        base = concrete_inputs(model, input_shapes)[0]
        runs = [_Batch(feedable(random_inputs(specs, base, seed=seed)), True)]
    seen = [run.shapes for run in runs]
    for size in batch_sizes:
        _add(runs, seen, specs, _with_batch(specs, base, size), seed, counts=inputs is None)
    for shapes in _other_sizes(specs, base):
        _add(runs, seen, specs, shapes, seed, counts=False)
    return runs


def _add(
    runs: list[_Batch],
    seen: list[dict[str, tuple[int, ...]]],
    specs: Sequence[InputSpec],
    shapes: Shapes,
    seed: int,
    *,
    counts: bool,
) -> None:
    if dict(shapes) not in seen:
        seen.append(dict(shapes))
        runs.append(_Batch(feedable(random_inputs(specs, shapes, seed=seed)), counts))


def _open(spec: InputSpec, axis: int) -> bool:
    return spec.shape is None or not isinstance(spec.shape[axis], int)


def _single(specs: Sequence[InputSpec], given: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes of one item of given inputs, or of the batch that the model fixes."""
    shapes = {}
    for spec in specs:
        shape = given[spec.name].shape
        if shape:
            first = spec.shape[0] if spec.shape else None
            shape = (first if isinstance(first, int) else 1, *shape[1:])
        shapes[spec.name] = tuple(shape)
    return shapes


def _with_batch(specs: Sequence[InputSpec], base: Shapes, size: int) -> dict[str, tuple[int, ...]]:
    """Set the first dimension of every input that leaves it open."""
    return {
        spec.name: (size, *base[spec.name][1:]) if base[spec.name] and _open(spec, 0) else base[spec.name]
        for spec in specs
    }


def _other_sizes(specs: Sequence[InputSpec], base: Shapes) -> list[dict[str, tuple[int, ...]]]:
    """Vary open dimensions other than the batch: an uneven pair of round sizes, and odd sizes.

    Dimensions of the same name get the same size. Round sizes are multiples of 32, which networks that halve their
    input five times accept; all are below the base, so that they cost less.
    """
    trials = []
    for pick in (_round_size, _odd_size):
        names: dict[str, int] = {}
        shapes = {}
        for spec in specs:
            shape = list(base[spec.name])
            for axis in range(1, len(shape)):
                if spec.shape is not None and _open(spec, axis):
                    key = str(spec.shape[axis] or f"{spec.name} {axis}")
                    shape[axis] = names.setdefault(key, pick(shape[axis], len(names)))
            shapes[spec.name] = tuple(shape)
        if names:
            trials.append(_with_batch(specs, shapes, 1))
    return trials


def _round_size(size: int, index: int) -> int:
    share = (1 / 2, 3 / 4)[index % 2]
    return max(32, round(size * share / 32) * 32) if size >= 64 else max(1, round(size * share))


def _odd_size(size: int, index: int) -> int:
    return max(1, round(size * (3 / 5, 2 / 5)[index % 2]) | 1)


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """What one network gave: for each batch its outputs, or why it did not run."""

    outputs: list[list[Array] | str]
    names: list[str]
    nodes_off: tuple[AssignedNode, ...]


def _run(source: ModelSource | bytes, batches: Sequence[_Batch], provider: str, settings: _Settings) -> _Run:
    outputs: list[list[Array] | str] = []
    with runtime_source(source) as path:
        session = providers.open_session(path, provider, threads=settings.threads, optimization=settings.optimization)
        for batch in batches:
            try:
                outputs.append([np.asarray(value) for value in session.run(None, batch.feeds)])
            except Exception as error:  # the runtime's exceptions share no base class
                outputs.append(sentence(error))
        names = [output.name for output in session.get_outputs()]
        nodes_off = () if _is_cpu(provider) else tuple(providers.nodes_off_provider(session))
    return _Run(outputs, names, nodes_off)


def _check_on(
    pair: _Pair,
    provider: str,
    batches: Sequence[_Batch],
    reference: Sequence[list[Array] | str] | None,
    settings: _Settings,
) -> tuple[ProviderCheck, list[Finding]]:
    """Run both networks on one provider, one after the other, and compare."""
    info = providers.provider_info(provider)
    dense = _run(pair.before, batches, provider, settings)
    if isinstance(dense.outputs[0], str):
        where = pair.before if isinstance(pair.before, str | Path) else "the first model"
        raise ModelError(
            f"{where}: the model does not run on {provider} with inputs {_text(batches[0])}: {dense.outputs[0]}."
        )
    rewritten = _run(pair.after, batches, provider, settings)
    findings: list[Finding] = []
    trials = []
    meter = DriftMeter(dense.names)
    for batch, first, second in zip(batches, dense.outputs, rewritten.outputs, strict=True):
        if isinstance(first, str):
            trials.append(Trial(batch.shapes, None, first))
            continue
        faults = _shape_faults(pair, provider, batch, dense.names, first, second, settings)
        findings.extend(faults)
        trials.append(Trial(batch.shapes, not faults, None))
        if batch.counts and not isinstance(second, str):
            meter.add(first, second)
    drift = meter.result()
    findings.extend(_drift_faults(provider, drift, settings.max_drift))
    equal = all(trial.shapes_equal is not False for trial in trials)
    timing = None
    if settings.latency_seconds and equal and not info.software:
        timing = compare(
            pair.before,
            pair.after,
            inputs=_latency_inputs(input_specs(pair.dense), batches[0]),
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
        drift_from_cpu=None if _is_cpu(provider) else _drift_from(reference, rewritten, batches),
        dense_from_cpu=None if _is_cpu(provider) else _drift_from(reference, dense, batches),
        trials=tuple(_merge(trials)),
        nodes_off=rewritten.nodes_off,
        nodes_off_before=dense.nodes_off,
        latency=timing,
    )
    return result, findings


def _merge(trials: Sequence[Trial]) -> list[Trial]:
    """Keep one trial for slices of the same shapes and outcome."""
    kept: list[Trial] = []
    for trial in trials:
        if trial not in kept:
            kept.append(trial)
    return kept


def _latency_inputs(specs: Sequence[InputSpec], batch: _Batch) -> dict[str, Array]:
    """Take the first item of a batch, or all of it where the model fixes the batch size."""
    return {
        spec.name: np.ascontiguousarray(array[:1]) if array.ndim and _open(spec, 0) else array
        for spec, array in ((spec, batch.feeds[spec.name]) for spec in specs)
    }


def _drift_from(
    reference: Sequence[list[Array] | str] | None, run: _Run, batches: Sequence[_Batch]
) -> dict[str, Drift]:
    meter = DriftMeter(run.names)
    for batch, first, second in zip(batches, reference or (), run.outputs, strict=True):
        if batch.counts and not isinstance(first, str) and not isinstance(second, str):
            meter.add(first, second)
    return meter.result()


def _text(batch: _Batch) -> str:
    return ", ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in batch.shapes.items())


# --- findings ---------------------------------------------------------------------------------------------------------


def _declared_differences(pair: _Pair) -> list[Finding]:
    """Compare names, element types and shapes that the two graphs declare."""
    findings = []
    dense, rewritten = pair.dense.graph, pair.rewritten.graph
    for code, kind, first, second in (
        ("declared_inputs", "inputs", input_values(dense), input_values(rewritten)),
        ("declared_outputs", "outputs", list(dense.outputs), list(rewritten.outputs)),
    ):
        was, now = [_declaration(value) for value in first], [_declaration(value) for value in second]
        if was != now:
            findings.append(
                Finding(
                    code,
                    f"The declared {kind} differ: {'; '.join(was)} before, {'; '.join(now)} after.",
                    {"before": was, "after": now},
                )
            )
    return findings


def input_values(graph: ir.Graph) -> list[ir.Value]:
    """List the graph inputs that a caller must feed: those without a stored value."""
    return [value for value in graph.inputs if value.name not in graph.initializers]


def _declaration(value: ir.Value) -> str:
    sizes = "..."
    if value.shape is not None:
        sizes = ", ".join(str(size if isinstance(size, int) else size.value or "?") for size in value.shape)
    dtype = "unknown" if value.dtype is None else value.dtype.name.lower()
    return f"{value.name}: {dtype}[{sizes}]"


def _shape_faults(
    pair: _Pair,
    provider: str,
    batch: _Batch,
    names: Sequence[str],
    first: Sequence[Array],
    second: Sequence[Array] | str,
    settings: _Settings,
) -> list[Finding]:
    """Compare number, shapes and element types of the outputs of one run."""
    given = _text(batch)
    if isinstance(second, str):
        text = f"On {provider} with inputs {given} the second network does not run: {second}."
        return [Finding("does_not_run", text, {"provider": provider, "input_shapes": _lists(batch)})]
    faults = []
    for name, was, now in zip(names, first, second, strict=False):
        numbers = {"provider": provider, "output": name, "input_shapes": _lists(batch)}
        if was.dtype != now.dtype:
            text = f"Output '{name}' is {now.dtype} instead of {was.dtype} on {provider}."
            faults.append(Finding("output_dtype", text, numbers | {"before": str(was.dtype), "after": str(now.dtype)}))
        if was.shape != now.shape and not _depends_on_data(pair.before, provider, batch, name, was, settings):
            text = (
                f"Output '{name}' has shape {list(now.shape)} instead of {list(was.shape)} on {provider} with {given}."
            )
            faults.append(
                Finding("output_shape", text, numbers | {"before": list(was.shape), "after": list(now.shape)})
            )
    if len(first) != len(second):
        text = f"The second network gives {len(second)} outputs instead of {len(first)} on {provider}."
        faults.append(Finding("output_shape", text, {"provider": provider, "before": len(first), "after": len(second)}))
    return faults


def _lists(batch: _Batch) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in batch.shapes.items()}


def _depends_on_data(
    before: ModelSource | bytes, provider: str, batch: _Batch, name: str, output: Array, settings: _Settings
) -> bool:
    """Tell whether the first network's own output has another shape for other inputs of the same shape."""
    generator = np.random.default_rng(settings.seed + 1)
    shuffled = {
        key: generator.permutation(array.ravel()).reshape(array.shape) * array.dtype.type(2)
        if array.dtype.kind == "f"
        else array
        for key, array in batch.feeds.items()
    }
    again = _run(before, [_Batch(shuffled, False)], provider, settings)
    values = again.outputs[0]
    return not isinstance(values, str) and values[again.names.index(name)].shape != output.shape


def _drift_faults(
    provider: str, drift: Mapping[str, Drift], max_drift: float | Mapping[str, float] | None
) -> list[Finding]:
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
        limit = max_drift.get(name) if isinstance(max_drift, Mapping) else max_drift
        if limit is not None and value.relative_l2 > limit:
            text = f"Output '{name}' drifts by {value.relative_l2:.4g} on {provider}, more than the {limit:g} allowed."
            faults.append(Finding("drift", text, numbers | {"drift": value.to_dict()["relative_l2"], "limit": limit}))
    return faults


def _warnings(pair: _Pair, results: Sequence[ProviderCheck]) -> Iterator[str]:
    yield from open_initializers(pair.before)
    yield from open_initializers(pair.after)
    for result in results:
        if result.software:
            yield f"{result.provider} ran on {result.device}, a device emulated on the CPU, so it was not timed."
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
            spec.name: (1, *shapes[spec.name][1:]) if shapes[spec.name] and _open(spec, 0) else shapes[spec.name]
            for spec in input_specs(model)
        }
    size = file_bytes(source) if isinstance(source, str | Path) else None
    return model_cost(model, resolve(model, one), file_bytes=size)
