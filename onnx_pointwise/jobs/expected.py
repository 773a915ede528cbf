"""Which stages a job goes through, and about what each of them takes: what an estimate of the time left rests on."""

from __future__ import annotations

from onnx_pointwise.jobs.checking import LATENCY_SECONDS
from onnx_pointwise.progress import Expected
from onnx_pointwise.settings import PLAN_ONLY, CheckSettings, InsertSettings, ManySettings, Settings, SweepSettings

# Passes of the examples that stages take, as measured on networks of 7 to 20 convolutions; ``moments`` is one pass.
_SENSITIVITY, _PLAN, _REFIT, _CHECK = 2.0, 1.0, 5.0, 0.3
# Ranges of both networks, one example at a time.
_DEPLOY = 2.0
# Rehearsals of a search, and networks that it fits mostly.
_SEARCH, _FITS = 1.0, 2
# A network of a sweep is fitted to a part of the examples.
_NETWORK = 2.0
# Seconds to time a network as planned.
_TIMED = 2.0


def expected(settings: Settings | SweepSettings | InsertSettings | CheckSettings) -> tuple[Expected, ...]:
    """The stages that a job will go through, in their order.

    Args:
        settings: What the job is asked for.

    Returns:
        The stages; empty for a rewrite of many models, which counts them.
    """
    if isinstance(settings, ManySettings) and settings.scheduler is not None:
        return ()
    if isinstance(settings, CheckSettings):
        timed = [Expected("timing", seconds=settings.latency_seconds)] if settings.latency else []
        return tuple(stage for _ in settings.providers for stage in (Expected("check", _CHECK), *timed))
    if isinstance(settings, SweepSettings):
        return _swept(settings)
    if isinstance(settings, InsertSettings):
        return (*_looked(settings.calibration, False, False), Expected("refit", _REFIT), *_checked(settings))
    return _rewritten(settings)


def _rewritten(settings: Settings) -> tuple[Expected, ...]:
    measured = settings.provider != PLAN_ONLY and settings.plan is None
    examples = settings.calibration is not None and str(settings.calibration) != "none"
    looked = _looked(settings.calibration, measured, settings.plan is None)
    timed = (Expected("latency", seconds=_TIMED),) if measured else ()
    fitted = (Expected("refit", _REFIT),) if examples and settings.refit else ()
    ended = (*_checked(settings), *_deployed(settings))
    if settings.searches:
        one = (*timed, *fitted, Expected("search", _CHECK), Expected("check", _CHECK))
        return (*looked, Expected("search", _SEARCH), *one * _FITS, *ended)
    planned = (Expected("plan", _PLAN),) if examples and settings.plan is None else ()
    repaired = (Expected("repair", seconds=settings.repair_seconds),) if settings.repair_seconds else ()
    return (*looked, *timed, *planned, *repaired, *fitted, *ended)


def _deployed(settings: Settings) -> tuple[Expected, ...]:
    """Both networks made in another precision, timed against one another, and held against the dense one."""
    if not settings.deployment.changes:
        return ()
    made = (Expected("deploy", _DEPLOY),)
    if not settings.check:
        return made
    timed = (Expected("timing", seconds=LATENCY_SECONDS),) if settings.latency else ()
    return (*made, *timed, *(Expected("check", _CHECK), *timed) * 2)


def _swept(settings: SweepSettings) -> tuple[Expected, ...]:
    measured = any(provider != PLAN_ONLY for provider in settings.providers)
    count = len(settings.shares)
    front = (Expected("plans", _PLAN * count), Expected("networks", _NETWORK * count))
    picked = () if settings.pick is None else (Expected("refit", _REFIT), *_checked(settings))
    return (*_looked(settings.calibration, measured, True), *front * len(settings.providers), *picked)


def _looked(calibration: object, measured: bool, judged: bool) -> tuple[Expected, ...]:
    """What is learned before anything is chosen; how long probing the convolutions takes nobody knows beforehand."""
    probed = (Expected("latency"),) if measured else ()
    if calibration is None or str(calibration) == "none":
        return (Expected("load"), *probed)
    seen = (Expected("moments", 1.0), Expected("sensitivity", _SENSITIVITY)) if judged else (Expected("moments", 1.0),)
    return (Expected("load"), *probed, *seen)


def _checked(settings: Settings | SweepSettings | InsertSettings) -> tuple[Expected, ...]:
    if not getattr(settings, "check", True):
        return ()
    timed = (Expected("timing", seconds=LATENCY_SECONDS),) if settings.latency else ()
    return (Expected("check", _CHECK), *timed)
