"""How a network is run to be measured: declared once for latency, profile and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_pointwise.graph import ModelSource
from onnx_pointwise.runtime import providers
from onnx_pointwise.runtime.inputs import Array
from onnx_pointwise.runtime.runner import Runner, feeds_for, model_name, require_positive
from onnx_pointwise.schema import option


@dataclass(frozen=True, kw_only=True)
class Running:
    """On what, and with which inputs."""

    inputs: Mapping[str, Array] | None = option(None, "Input name to array; random ones otherwise.")
    input_shapes: Mapping[str, Sequence[int]] | None = option(
        None, "Shapes of random inputs by name, where the model leaves dimensions open."
    )
    provider: str = option("cpu", "Execution provider, as for ``open_session``.")
    threads: int | None = option(None, "Threads inside one operator; the runtime's own choice otherwise.")
    optimization: str = option("all", "Graph optimisation level.")
    seed: int = option(0, "Seed of random inputs, and of what is drawn to judge the numbers.")

    def feeds(self, source: ModelSource | bytes) -> dict[str, Array]:
        """Check the given inputs against a model, or draw random ones."""
        return feeds_for(source, self.inputs, self.input_shapes, self.seed)

    def runner(
        self,
        path: str | bytes,
        feeds: Mapping[str, Array],
        source: ModelSource | bytes,
        *,
        profile: Path | None = None,
        config: Mapping[str, str] | None = None,
    ) -> Runner:
        """Open a session with its inputs in place; ``source`` is what messages name the model after."""
        session = providers.open_session(
            path,
            self.provider,
            threads=self.threads,
            optimization=self.optimization,
            profile=profile,
            config=config or {},
        )
        return Runner(session, feeds, self.provider, model_name(source))


@dataclass(frozen=True, kw_only=True)
class Timing(Running):
    """How long, to know the latency."""

    runs: int = option(100, "Timed runs of each network, at most.")
    warmup: int = option(10, "Untimed runs of each network before the first timed one.")
    max_seconds: float = option(
        10.0, "Time that warm-up and timed runs take in all; five rounds are always run.", unit="seconds"
    )

    def __post_init__(self) -> None:
        require_positive(runs=self.runs, warmup=self.warmup, max_seconds=self.max_seconds)


@dataclass(frozen=True, kw_only=True)
class Profiling(Running):
    """How often, to know the time of each kernel."""

    runs: int = option(20, "Runs whose kernels are timed.")
    warmup: int = option(5, "Untimed runs before them.")
    freeze_initializers: bool = option(False, "Make constants of initializers that are graph inputs too, see `freeze`.")

    def __post_init__(self) -> None:
        require_positive(runs=self.runs, warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class Watching(Running):
    """How often, to know the peak of memory."""

    runs: int = option(3, "Runs to watch.")

    def __post_init__(self) -> None:
        require_positive(runs=self.runs)
