"""What a rewritten network is held to: the check, the clock, the user's own score."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnx_pointwise.check import CheckResult, Finding, check, sites_between
from onnx_pointwise.errors import InputError
from onnx_pointwise.graph import ModelSource
from onnx_pointwise.jobs.attempts import Attempt
from onnx_pointwise.jobs.loading import Network
from onnx_pointwise.jobs.looking import Evidence
from onnx_pointwise.jobs.results import Score
from onnx_pointwise.runtime import open_session, session_source
from onnx_pointwise.settings import CheckSettings, Settings

#: Seconds of timing both networks after a rewrite; `bench` takes longer over it.
LATENCY_SECONDS = 4.0
# What makes a user ask which convolution did it.
_FAR = ("changed", "broken")
_FITTED = (
    "There are too few examples to hold any back, so both networks were compared on those that the weights were made "
    "from: on others they are less alike."
)


def compared(net: Network, model: ir.Model, seen: Evidence, settings: Settings, *, latency: bool) -> CheckResult:
    """Compare a rewritten model with its source: on the inputs given, on examples held back, or on random ones.

    A search must not go by random inputs: where no example is held back, it goes by those that there are.
    """
    asked = asked_of(net, seen, settings, latency=latency)
    result = check(net.source, model, asked)
    if settings.inputs is not None or asked.inputs is None or seen.found is None:
        return result
    if seen.found.held:
        return replace(result, inputs="drawn" if seen.drawn else "held_back")
    return replace(result, inputs="examples", warnings=(*result.warnings, _FITTED))


def asked_of(net: Network, seen: Evidence, settings: Settings, *, latency: bool) -> CheckSettings:
    """What the check is asked for."""
    inputs = settings.inputs
    if inputs is None and seen.found is not None and seen.found.held:
        inputs = seen.found.held
    elif inputs is None and seen.found is not None and settings.searches:
        inputs = seen.found.trial
    return CheckSettings(
        inputs=inputs,
        input_shapes=settings.input_shapes if inputs is None else net.shapes.inputs,
        providers=(settings.runs_on,),
        max_drift=settings.max_drift,
        heads=settings.heads,
        ignore_outputs=settings.ignore_outputs,
        limits=settings.limits,
        require=settings.require,
        latency=latency,
        latency_seconds=LATENCY_SECONDS,
        threads=settings.threads,
        seed=settings.seed,
        progress=settings.progress,
    )


def judged(net: Network, made: Attempt, seen: Evidence, settings: Settings) -> CheckResult | None:
    """The check of what is handed over; ``None`` where none was asked for."""
    if not settings.check:
        return None
    verdict = compared(net, made.model, seen, settings, latency=settings.latency)
    if verdict.verdict in _FAR:
        verdict = replace(
            verdict, sites=sites_between(net.source, made.model, asked_of(net, seen, settings, latency=False))
        )
    as_planned = seen.timed is not None and not settings.deployment.changes
    return _not_slower(verdict) if as_planned and made.plan.choices else verdict


def _not_slower(verdict: CheckResult) -> CheckResult:
    """A plan made from measurements that turns out slower all the same is not handed over as good."""
    timed = verdict.latency
    if timed is None or timed.verdict != "slower":
        return verdict
    text = f"On {timed.provider} the rewritten network takes {timed.ratio:.2f} times as long, against its plan."
    finding = Finding("slower", text, {"provider": timed.provider, "ratio": timed.ratio, "noise": timed.noise})
    return replace(verdict, passed=False, findings=(*verdict.findings, finding))


def scored(model: ModelSource, settings: Settings) -> float | None:
    """The user's own score of a network; ``None`` without one."""
    if settings.evaluate is None:
        return None
    with session_source(model, settings.runs_on) as source:
        session = open_session(source, settings.runs_on, threads=settings.threads)
        try:
            return float(settings.evaluate(session))
        except Exception as error:  # whatever the user's function raises
            raise InputError(
                f"The score function of evaluate failed with {type(error).__name__}: {error}; it takes a session and "
                "gives a number."
            ) from error


def scores_of(before: float | None, model: ir.Model, settings: Settings) -> Score | None:
    """Both scores, where there are any; ``before`` is that of the source."""
    after = scored(model, settings)
    return None if before is None or after is None else Score(before, after, settings.max_loss)
