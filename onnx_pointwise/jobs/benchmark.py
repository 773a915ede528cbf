"""Time a network, alone or in turns with another one, over batch sizes and threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_pointwise.errors import InputError, ModelError
from onnx_pointwise.graph import ModelCost, ModelSource, as_model, frozen, model_cost, overridable
from onnx_pointwise.jobs.advice import Advice, of_latency, of_providers, others
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime import (
    Array,
    InputSpec,
    Latency,
    LatencyComparison,
    Machine,
    PeakMemory,
    compare,
    input_sizes,
    input_specs,
    is_cpu,
    machine,
    measure,
    model_name,
    one_batch,
    open_initializers,
    peak_memory,
    provider_info,
    resolve,
)
from onnx_pointwise.schema import job
from onnx_pointwise.settings import BenchSettings


@dataclass(frozen=True)
class Benchmark:
    """What one or two networks take, over batch sizes and thread counts.

    Attributes:
        model: Name of the network.
        other: Name of the one it is compared with; None where there is none.
        rows: One entry for each batch size and thread count.
        memory: Peak memory of each network by its role, ``model`` and ``other``, where it was asked for.
        machine: Where this was measured.
        warnings: What makes the numbers worth less, in sentences.
        advice: What the figures advise; empty where that was not asked for, or elsewhere than on the CPU.
    """

    model: str
    other: str | None
    rows: tuple[BenchmarkRow, ...]
    memory: Mapping[str, PeakMemory]
    machine: Machine
    warnings: tuple[str, ...]
    advice: tuple[Advice, ...] = ()

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "model": self.model,
            "other": self.other,
            "rows": [row.to_dict() for row in self.rows],
            "memory": {role: memory.to_dict() for role, memory in self.memory.items()},
            "machine": self.machine.to_dict(),
            "warnings": list(self.warnings),
            "advice": [one.to_dict() for one in self.advice],
        }


@dataclass(frozen=True)
class BenchmarkRow:
    """One batch size and thread count of a `Benchmark`.

    Attributes:
        batch: Batch size; None where the model fixes it.
        threads: Threads inside one operator; None if left to the runtime.
        latency: The network's latency.
        comparison: Both networks timed in turns; None where there is no other.
    """

    batch: int | None
    threads: int | None
    latency: Latency
    comparison: LatencyComparison | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "batch": self.batch,
            "threads": self.threads,
            "latency": self.latency.to_dict(),
            "comparison": self.comparison.to_dict() if self.comparison else None,
        }


@job(BenchSettings)
def bench(model: ModelSource | bytes, settings: BenchSettings) -> Benchmark:
    """Time a network, alone or against another, over batch sizes and thread counts.

    Peak memory is measured at the first batch size and the first number of threads.

    Args:
        model: The network; the reference if there is another.
        settings: What is asked for, in place of the keywords that follow.

    Raises:
        ProviderError: The provider does not load, or cannot run one of the models.
        ModelError: A model cannot be loaded or run.
        InputError: The shapes or batch sizes do not fit the model.
        ValueError: A count or a time is not positive.
    """
    other = settings.other
    if settings.freeze_initializers:
        model, other = frozen(model), None if other is None else frozen(other)
    graph = as_model(model)
    specs = input_specs(graph)
    inputs = None
    if settings.inputs is None:
        shapes = input_sizes(graph, settings.input_shapes)
    elif settings.input_shapes:
        raise InputError("Inputs have their own shapes; give either inputs or input shapes.")
    else:
        inputs = one_batch(graph, settings.inputs)
        shapes = {name: array.shape for name, array in inputs.items()}
    warnings = open_initializers(graph, model_name(model))
    del graph  # the sessions hold the weights from here on
    if other is not None:
        warnings += open_initializers(as_model(other), model_name(other))
    given = {
        batch: _given(inputs, shapes if batch is None else _with_batch(specs, shapes, batch))
        for batch in settings.batch_sizes or (None,)
    }
    rows = []
    pairs = [(batch, threads) for batch in given for threads in settings.thread_counts]
    for number, (batch, threads) in enumerate(pairs):
        settings.tell("timing", f"for {settings.max_seconds:g} s at most", number, len(pairs))
        rows.append(_row(model, other, batch, threads, given[batch], settings))
    if settings.memory:
        settings.tell("memory", "each network in a process of its own")
    memory = _memory(model, other, next(iter(given.values())), settings) if settings.memory else {}
    info = provider_info(settings.provider)
    if info.software:
        warnings.append(
            f"{settings.provider} runs on {info.device}, a device emulated on the CPU; its timings mean nothing."
        )
    return Benchmark(
        model=model_name(model),
        other=None if other is None else model_name(other),
        rows=tuple(rows),
        memory=memory,
        machine=machine(),
        warnings=tuple(warnings),
        advice=_advice(model, rows[0], next(iter(given.values())), settings),
    )


def _advice(
    model: ModelSource | bytes, row: BenchmarkRow, given: Mapping[str, Any], settings: BenchSettings
) -> tuple[Advice, ...]:
    """What the first row advises, where kernels can be timed."""
    if not settings.advice or not is_cpu(settings.provider):
        return ()
    settings.tell("advice", "the kernels")
    graph = as_model(model)
    shapes = given.get("input_shapes") or {name: array.shape for name, array in given["inputs"].items()}
    try:
        cost: ModelCost | None = model_cost(graph, resolve(graph, shapes))
    except ModelError:  # it runs all the same
        cost = None
    timing = _timing(given, row.threads, settings)
    names = overridable(graph)
    name = model_name(model)
    found = of_latency(name, model, timing, row.latency.median, cost, machine(), names)
    return found + of_providers(name, others(lambda provider: settings.tell("advice", f"on {provider}"), model, timing))


def _timing(given: Mapping[str, Any], threads: int | None, settings: BenchSettings) -> dict[str, Any]:
    """How networks are timed."""
    return {
        **given,
        "threads": threads,
        "provider": settings.provider,
        "optimization": settings.optimization,
        "runs": settings.runs,
        "warmup": settings.warmup,
        "max_seconds": settings.max_seconds,
        "seed": settings.seed,
    }


def _row(
    model: ModelSource | bytes,
    other: ModelSource | bytes | None,
    batch: int | None,
    threads: int | None,
    given: Mapping[str, Any],
    settings: BenchSettings,
) -> BenchmarkRow:
    """Time one batch size and thread count."""
    timing = _timing(given, threads, settings)
    if other is None:
        return BenchmarkRow(batch, threads, measure(model, **timing), None)
    comparison = compare(model, other, **timing)
    return BenchmarkRow(batch, threads, comparison.before, comparison)


def _memory(
    model: ModelSource | bytes,
    other: ModelSource | bytes | None,
    given: Mapping[str, Any],
    settings: BenchSettings,
) -> dict[str, PeakMemory]:
    """Measure peak memory of each network, by its role."""
    return {
        role: peak_memory(
            source,
            **given,
            provider=settings.provider,
            threads=settings.thread_counts[0],
            optimization=settings.optimization,
        )
        for role, source in {"model": model, "other": other}.items()
        if source is not None
    }


def _given(inputs: Mapping[str, Array] | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the runs are given, as the timing functions take it: shapes of random inputs, or inputs of those shapes."""
    if inputs is None:
        return {"input_shapes": shapes}
    sized = {}
    for name, array in inputs.items():
        items = np.asarray(array)
        sized[name] = items[np.arange(shapes[name][0]) % len(items)] if items.ndim and len(items) else items
    return {"inputs": sized}


def _with_batch(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], batch: int
) -> dict[str, tuple[int, ...]]:
    """Set the open first dimension of every input."""
    sized: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in shapes.items()}
    changed = False
    for spec in specs:
        if spec.shape and not isinstance(spec.shape[0], int):
            sized[spec.name] = (batch, *sized[spec.name][1:])
            changed = True
        elif spec.shape and spec.shape[0] == batch:
            changed = True
    if not changed:
        raise InputError(f"Batch size {batch} does not fit: the model fixes its batch size; leave batch sizes out.")
    return sized
