"""What is learned of a network before anything is chosen: from example inputs, and from the clock."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx_pointwise.errors import PlanError
from onnx_pointwise.examples import Calibration
from onnx_pointwise.jobs.loading import Network
from onnx_pointwise.latency import LatencyCache, NetworkLatency, network_latency
from onnx_pointwise.numerics import one_thread_of_blas
from onnx_pointwise.planning import Split
from onnx_pointwise.progress import within
from onnx_pointwise.runtime import inputs_that_run, provider_info, require
from onnx_pointwise.settings import PLAN_ONLY, Settings
from onnx_pointwise.study import Effort, Study, study


@dataclass(frozen=True)
class Evidence:
    """What was learned of a network.

    Attributes:
        found: What example inputs told; ``None`` without any.
        timed: What it takes on the provider; ``None`` where nothing was measured.
        unmeasured: Why nothing was measured though there was something to plan.
        drawn: Whether the example inputs are synthetic.
    """

    found: Study | None
    timed: NetworkLatency | None = None
    unmeasured: str | None = None
    drawn: bool = False


def not_measurable(settings: Settings) -> str | None:
    """Why a plan is not made from what is measured on the provider; None where it is.

    Raises:
        PlanError: A target for the latency was given, and it is not.
        ProviderError: The provider does not load.
    """
    if settings.provider != PLAN_ONLY:
        require(settings.provider)
        info = provider_info(settings.provider)
        if not info.software:
            return None
        reason = f"{settings.provider} runs on {info.device}, emulated on the CPU, whose timings mean nothing"
    else:
        reason = f"the provider {PLAN_ONLY} measures nothing"
    if settings.target_latency is not None:
        raise PlanError(f"A target for the latency needs measurements, but {reason}; name another provider.")
    return reason


def studied(
    net: Network,
    names: Collection[str],
    examples: Calibration,
    settings: Settings,
    *,
    measure: bool,
    arithmetic: bool = False,
) -> Study | None:
    """Look at sites with the example inputs, where there are any.

    Args:
        net: The network.
        names: The sites to look at.
        examples: The example inputs.
        settings: What was asked for.
        measure: Measure what errors at the sites do to the outputs, too.
        arithmetic: Whether plans count multiplications alone.
    """
    if not examples.inputs or not names:
        return None
    with one_thread_of_blas():
        return study(
            net.base,
            net.shapes,
            [site for site in net.sites if site.name in names],
            examples.inputs,
            heads=net.heads,
            forms=tuple(settings.forms),
            method=settings.method,
            measure=measure,
            quantised=settings.deployment.precision == "int8",
            arithmetic=arithmetic,
            effort=Effort(memory=settings.memory, seed=settings.seed, threads=settings.jobs),
            progress=settings.tell,
        )


def timed(net: Network, split: Split, examples: Calibration, settings: Settings) -> NetworkLatency:
    """Measure the network and those of its sites that a budget concerns, on the provider."""
    given = settings.inputs if settings.inputs is not None else examples.inputs or None
    return network_latency(
        net.base,
        net.shapes,
        [site for site in net.sites if site.name in split.fixed or site in split.open],
        forms=tuple(settings.forms),
        asked=split.fixed,
        provider=settings.runs_on,
        threads=settings.threads,
        cache=LatencyCache() if settings.cache else None,
        deployment=settings.deployment,
        inputs=inputs_that_run(net.base, net.shapes.inputs, given, provider=settings.runs_on, seed=settings.seed),
        progress=within(settings.tell, "latency"),
    )
