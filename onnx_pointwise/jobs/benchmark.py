"""Time a network, alone or in turns with another one, over batch sizes and threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import ModelSource, as_model, concrete_inputs, frozen
from onnx_pointwise.runtime import (
    InputSpec,
    Latency,
    LatencyComparison,
    Machine,
    PeakMemory,
    compare,
    input_specs,
    machine,
    measure,
    model_name,
    open_initializers,
    peak_memory,
    provider_info,
)


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
    """

    model: str
    other: str | None
    rows: tuple[BenchmarkRow, ...]
    memory: Mapping[str, PeakMemory]
    machine: Machine
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "model": self.model,
            "other": self.other,
            "rows": [row.to_dict() for row in self.rows],
            "memory": {role: memory.to_dict() for role, memory in self.memory.items()},
            "machine": self.machine.to_dict(),
            "warnings": list(self.warnings),
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

    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "batch": self.batch,
            "threads": self.threads,
            "latency": self.latency.to_dict(),
            "comparison": self.comparison.to_dict() if self.comparison else None,
        }


def bench(
    model: ModelSource | bytes,
    other: ModelSource | bytes | None = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch_sizes: Sequence[int] = (),
    thread_counts: Sequence[int | None] = (None,),
    provider: str = "cpu",
    optimization: str = "all",
    runs: int = 100,
    warmup: int = 10,
    max_seconds: float = 10.0,
    freeze_initializers: bool = False,
    seed: int = 0,
    memory: bool = False,
) -> Benchmark:
    """Time a network, alone or against another, over batch sizes and thread counts.

    Args:
        model: The network; the reference if there is another.
        other: The network compared with it.
        input_shapes: Shapes of the random inputs by name, where the model leaves dimensions open.
        batch_sizes: First dimensions of the inputs that leave it open; none keeps the shapes as they are.
        thread_counts: Threads inside one operator, each measured.
        provider: Execution provider, as for ``providers.open_session``.
        optimization: Graph optimisation level.
        runs: Timed runs of each network and row, at most.
        warmup: Untimed runs before them.
        max_seconds: Seconds a row takes.
        freeze_initializers: Run with initializers that are graph inputs too made constants, see ``freeze``.
        seed: Of random inputs and of the bootstrap.
        memory: Measure peak memory too, each network in a process of its own, at the first batch size.

    Raises:
        ProviderError: The provider does not load, or cannot run one of the models.
        ModelError: A model cannot be loaded or run.
        InputError: The shapes or batch sizes do not fit the model.
        ValueError: A count or a time is not positive.
    """
    if freeze_initializers:
        model, other = frozen(model), None if other is None else frozen(other)
    graph = as_model(model)
    specs, shapes = input_specs(graph), concrete_inputs(graph, input_shapes)[0]
    warnings = open_initializers(graph, model_name(model))
    del graph  # the sessions hold the weights from here on
    if other is not None:
        warnings += open_initializers(as_model(other), model_name(other))
    settings: dict[str, Any] = {
        "provider": provider,
        "optimization": optimization,
        "runs": runs,
        "warmup": warmup,
        "max_seconds": max_seconds,
        "seed": seed,
    }
    rows = []
    for batch in batch_sizes or (None,):
        sized = shapes if batch is None else _with_batch(specs, shapes, batch)
        for threads in thread_counts:
            comparison = None
            if other is None:
                latency = measure(model, input_shapes=sized, threads=threads, **settings)
            else:
                comparison = compare(model, other, input_shapes=sized, threads=threads, **settings)
                latency = comparison.before
            rows.append(BenchmarkRow(batch, threads, latency, comparison))
    used: dict[str, PeakMemory] = {}
    if memory:
        sized = _with_batch(specs, shapes, batch_sizes[0]) if batch_sizes else shapes
        for role, source in {"model": model, "other": other}.items():
            if source is not None:
                used[role] = peak_memory(
                    source, input_shapes=sized, provider=provider, threads=thread_counts[0], optimization=optimization
                )
    info = provider_info(provider)
    if info.software:
        warnings.append(f"{provider} runs on {info.device}, a device emulated on the CPU; its timings mean nothing.")
    return Benchmark(
        model=model_name(model),
        other=None if other is None else model_name(other),
        rows=tuple(rows),
        memory=used,
        machine=machine(),
        warnings=tuple(warnings),
    )


def _with_batch(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], batch: int
) -> dict[str, tuple[int, ...]]:
    """Set the open first dimension of every input."""
    if batch < 1:
        raise InputError(f"A batch size must be at least 1, not {batch}.")
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
