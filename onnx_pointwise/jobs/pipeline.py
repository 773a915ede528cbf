"""The jobs end to end: rewrite a model, inspect it, insert one 1x1 convolution."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass
from threadpoolctl import threadpool_limits

from onnx_pointwise.check import CheckResult, Finding
from onnx_pointwise.check import check as check_models
from onnx_pointwise.errors import OutputError, PlanError
from onnx_pointwise.examples import Calibration, CalibrationSource, Layout, Preprocessing, calibrate
from onnx_pointwise.fitting import Weights, make_weights
from onnx_pointwise.graph import (
    MIN_CHANNELS,
    BottleneckPass,
    Choice,
    ModelCost,
    ModelSource,
    Plan,
    Refusal,
    Replacement,
    ResolvedShapes,
    Site,
    dense_cost,
    file_bytes,
    find_sites,
    frozen,
    load,
    model_cost,
    replacement,
    require_sites,
    runtime_source,
)
from onnx_pointwise.jobs.results import RewriteResult, Score, SiteResult
from onnx_pointwise.latency import LatencyCache, NetworkLatency, network_latency
from onnx_pointwise.numerics import FORMS, Form, Method, is_exact
from onnx_pointwise.planning import (
    NO_BUDGET,
    Budget,
    Corrected,
    Options,
    Split,
    choose,
    faster,
    hand_made,
    meeting,
    options_of,
    settle,
)
from onnx_pointwise.runtime import MEMORY, open_session, provider_info, require, resolve
from onnx_pointwise.study import Effort, Progress, Study, study

# Bisection steps of the search for the cheapest network within a limit: to within 1 % of the MACs.
_SEARCH_STEPS = 7
# Seconds of timing both networks after a rewrite; `bench` takes longer over it.
_LATENCY_SECONDS = 4.0


class _Clock:
    """Wall time of consecutive stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._start = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now
        self.seconds["total"] = now - self._start


def rewrite(
    model: ModelSource,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    max_drift: float | Mapping[str, float] | None = None,
    max_loss: float | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    ranks: Mapping[str, int | tuple[int, int] | Choice] | None = None,
    plan: Plan | str | Path | None = None,
    forms: Sequence[Form] = FORMS,
    method: Method = "als",
    refit: bool = True,
    repair_seconds: float = 0.0,
    calibration: CalibrationSource = "auto",
    calibration_limit: int | None = None,
    preprocessing: Preprocessing | str | None = None,
    layout: Layout | None = None,
    evaluate: Callable[[ort.InferenceSession], float] | None = None,
    nodes_to_exclude: Sequence[str] = (),
    min_channels: int = MIN_CHANNELS,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inline_functions: bool = False,
    freeze_initializers: bool = False,
    check: bool = True,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    latency: bool = True,
    provider: str = "cpu",
    threads: int | None = None,
    cache: bool = True,
    jobs: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
) -> RewriteResult:
    """Make a convolutional network cheaper, and check it.

    One of the budgets must be named: a target, a share for every site, ranks, or, alone, the largest drift or loss,
    for which the cheapest network is searched.

    Args:
        model: Path, ``ModelProto`` or ``onnx_ir.Model``; it is left as it is.
        target_macs: Share of the whole model's MACs to keep, above 0 and at most 1.
        target_params: Share of the whole model's parameters to keep; may stand beside ``target_macs``.
        target_latency: Share of the whole model's latency on the provider to keep; may stand beside both.
        max_drift: Largest relative L2 drift of the outputs allowed, for all of them or by name. Measured on examples
            held back from the calibration, or on ``inputs``, or else on random inputs.
        max_loss: How much the score of ``evaluate`` may fall.
        ratio: Share of its own MACs that every site keeps.
        energy: Share of its output's energy that every site keeps.
        ranks: Rank by site name, chosen by hand. A number stands for the first of ``forms`` that takes one rank, a
            pair ``(R_in, R_out)`` for ``reduce_expand``; a ``Choice`` names its form. May stand beside the others.
        plan: A plan, or the path of one, to replay instead of any budget. With the same calibration it gives the same
            bytes.
        forms: The forms that compete for a site.
        method: How the factors are computed, see ``factorize``.
        refit: Let every site make up for what the sites before it have changed.
        repair_seconds: Time to run variations of a plan for targets in, and keep what measures better. Plans from
            measured sensitivities seldom gain by it, so it is off unless asked for; what the time allows for may
            differ from run to run, the plan that is saved does not.
        calibration: Example inputs, see ``calibration.calibrate``; by default synthetic images where the model takes
            images. ``None`` uses the kernels alone; so does a plan without a rank below full, which needs no examples.
        calibration_limit: The most calibration inputs to take.
        preprocessing: What pixels are mapped to, or the name of a preset, for images and synthetic images; found out
            where the model tells, else assumed.
        layout: Layout of given arrays of images, where it is not the model's.
        evaluate: Your own score of a network: takes a session, gives a number, higher is better. Never needed.
        nodes_to_exclude: Sites to leave dense.
        min_channels: Sites with fewer input feature maps stay dense.
        input_shapes: Concrete shapes by input name, where the model leaves dimensions open.
        inline_functions: Inline local functions first, so that convolutions in them can be rewritten.
        freeze_initializers: Make constants of initializers that are graph inputs too, see ``freeze``: the runtime then
            optimises the network fully. The rewritten model is frozen, and compared with the frozen source.
        check: Compare both models in ONNX Runtime.
        inputs: Inputs of the check by name, [N, ...].
        latency: Time both networks in the check, too.
        provider: Execution provider that will run the network: form and rank are chosen by what is measured there,
            and nothing slower is handed over. ``none`` plans by arithmetic alone and checks on the CPU; so does, on
            itself, a provider whose device is emulated, and so do ranks by hand and the replay of a plan.
        threads: Threads of the runtime that latency is measured and the check is made with; its own choice if
            ``None``.
        cache: Keep what was measured on disk and use what is there, see ``latency_cache``.
        jobs: Processors to compute plan and weights on; all there are if ``None``.
        memory: Bytes of activations and moments to hold in memory, about; beyond, activations lie in files.
        seed: Seed of everything that is drawn.
        progress: Called with a stage and what is taken up in it.

    Returns:
        The rewritten model, its plan, costs and check.

    Raises:
        ModelError: The model cannot be read, described or run.
        PlanError: The budget or plan does not fit the model, or cannot be met.
        InputError: The inputs, calibration inputs or input shapes do not fit the model.
        ProviderError: The provider does not load.
    """
    clock = _Clock()
    shares = {
        "ratio": ratio,
        "energy": energy,
        "target_macs": target_macs,
        "target_params": target_params,
        "target_latency": target_latency,
    }
    replay = None if plan is None else _read_plan(plan)
    if replay is not None and (ranks or any(value is not None for value in shares.values())):
        raise PlanError("A plan replays as it is; leave out every budget beside it, or edit the plan.")
    searched = replay is None and not ranks and all(value is None for value in shares.values())
    if searched and max_drift is None and max_loss is None:
        raise PlanError(NO_BUDGET)
    if max_loss is not None and evaluate is None:
        raise PlanError("max_loss needs a score: name a function with evaluate.")
    if searched and not check:
        raise PlanError("Searching for the cheapest network within a limit takes the check; leave it on.")

    unmeasured = _not_measurable(provider, target_latency)
    if freeze_initializers:
        model = frozen(model)
    dense = load(model)
    base = dense.clone()
    if inline_functions and base.functions:
        base = InlinePass()(base).model
    shapes = resolve(base, input_shapes)
    sites = find_sites(base, shapes, min_channels=min_channels)
    before = model_cost(dense, shapes, file_bytes=file_bytes(model, dense) if isinstance(model, str | Path) else None)
    if replay is not None:
        require_sites(replay, {site.name: site for site in sites})
    if replay is not None and _keeps_the_function(replay, sites):
        examples = Calibration({}, {"source": "none", "sentence": _EXACT})
    else:
        examples = calibrate(
            base,
            calibration,
            shapes,
            macs=before.macs,
            limit=calibration_limit,
            preprocessing=preprocessing,
            layout=layout,
            seed=seed,
        )
    job = _Job(
        source=model if isinstance(model, str | Path) else dense,
        base=base,
        shapes=shapes,
        sites=sites,
        before=before,
        examples=examples,
        forms=tuple(forms),
        method=method if replay is None else replay.method,
        refit=refit,
        repair_seconds=repair_seconds,
        max_drift=max_drift,
        max_loss=max_loss,
        evaluate=evaluate,
        provider="cpu" if provider == PLAN_ONLY else provider,
        threads=threads,
        jobs=jobs,
        memory=memory,
        seed=seed,
        progress=progress or (lambda stage, what: None),
        inputs=inputs,
        input_shapes=input_shapes,
    )
    clock.lap("load")
    score = None if evaluate is None else _score(job, job.source)

    timed = None
    if replay is not None:
        unmeasured = None
        found = job.study([site.name for site in sites if site.name in replay.choices], measure=False)
        clock.lap("study")
        attempt = job.attempt(replay, found)
    else:
        wanted = Budget(hand_made(ranks or {}, forms), **({"target_macs": 1.0} if searched else shares))
        split = settle(sites, wanted, nodes_to_exclude)
        if not split.open:
            unmeasured = None
        elif unmeasured is None:
            timed = job.time(split, LatencyCache() if cache else None)
        clock.lap("latency")
        found = job.study([*split.fixed, *(site.name for site in split.open)], measure=bool(split.open))
        clock.lap("study")
        listed = job.options(split, wanted, found, timed)
        if searched:
            attempt = job.search(split, listed, found, timed, score)
        else:
            attempt = job.attempt(job.plan(split, wanted, listed, found, timed), found)
    clock.lap("weights")

    reports = tuple(_report(site, attempt.plan, attempt.weights, found) for site in sites)
    after = model_cost(attempt.model, resolve(attempt.model, shapes.inputs)) if attempt.plan.choices else before
    verdict = job.verdict(attempt.model, found, latency=latency) if check else None
    if verdict is not None and timed is not None and attempt.plan.choices:
        verdict = _require_not_slower(verdict)
    clock.lap("check")
    scores = None
    if evaluate is not None and score is not None:
        scores = Score(score, _score(job, attempt.model), max_loss)
        clock.lap("evaluate")
    return RewriteResult(
        model=attempt.model,
        plan=attempt.plan,
        sites=reports,
        before=before,
        after=after,
        check=verdict,
        score=scores,
        calibration=examples.description,
        calibrated=attempt.calibrated,
        input_shapes=shapes.inputs,
        assumed_inputs=shapes.assumed,
        unmeasured=unmeasured,
        seconds=clock.seconds,
    )


#: The provider that stands for planning by arithmetic alone.
PLAN_ONLY = "none"


def _not_measurable(provider: str, target_latency: float | None) -> str | None:
    """Why a plan is not made from what is measured on a provider; None where it is.

    Raises:
        PlanError: A target for the latency was given, and it is not.
        ProviderError: The provider does not load.
    """
    if provider != PLAN_ONLY:
        require(provider)
        info = provider_info(provider)
        if not info.software:
            return None
        reason = f"{provider} runs on {info.device}, emulated on the CPU, whose timings mean nothing"
    else:
        reason = f"the provider {PLAN_ONLY} measures nothing"
    if target_latency is not None:
        raise PlanError(f"A target for the latency needs measurements, but {reason}; name another provider.")
    return reason


def _require_not_slower(verdict: CheckResult) -> CheckResult:
    """A plan made from measurements that turns out slower all the same is not handed over as good."""
    timed = verdict.latency
    if timed is None or timed.verdict != "slower":
        return verdict
    text = f"On {timed.provider} the rewritten network takes {timed.ratio:.2f} times as long, against its plan."
    finding = Finding("slower", text, {"provider": timed.provider, "ratio": timed.ratio, "noise": timed.noise})
    return replace(verdict, passed=False, findings=(*verdict.findings, finding))


_EXACT = "No rank is below full, so weights come from the kernels alone; example inputs are not needed."


def _keeps_the_function(plan: Plan, sites: Sequence[Site]) -> bool:
    """Whether a plan only projects and expands, so that example inputs have nothing to say."""
    by_name = {site.name: site for site in sites}
    return all(
        is_exact(choice.form, choice.rank, by_name[name].in_channels, by_name[name].out_channels)
        for name, choice in plan.choices.items()
    )


def _score(job: _Job, model: ModelSource) -> float:
    assert job.evaluate is not None
    with runtime_source(model) as source:
        return float(job.evaluate(open_session(source, job.provider, threads=job.threads)))


@dataclass(frozen=True)
class _Attempt:
    """One rewritten model and how it came about."""

    plan: Plan
    model: ir.Model
    weights: Mapping[str, Replacement]
    calibrated: Weights | None


@dataclass(frozen=True)
class _Job:
    """Everything about one call of ``rewrite`` that its stages share."""

    source: ModelSource
    base: ir.Model
    shapes: ResolvedShapes
    sites: Sequence[Site]
    before: ModelCost
    examples: Calibration
    forms: tuple[Form, ...]
    method: Method
    refit: bool
    repair_seconds: float
    max_drift: float | Mapping[str, float] | None
    max_loss: float | None
    evaluate: Callable[[ort.InferenceSession], float] | None
    provider: str
    threads: int | None
    jobs: int | None
    memory: int
    seed: int
    progress: Progress
    inputs: Mapping[str, NDArray[Any]] | None
    input_shapes: Mapping[str, Sequence[int]] | None

    @property
    def blas(self) -> AbstractContextManager[object]:
        """Limit linear algebra to one thread; `parallel` does several independent pieces of it at a time.

        Two pools of threads that wait by spinning, the runtime's and this one, slow each other down many times over as
        soon as anything else runs; and the sums of one thread do not depend on the number of cores.
        """
        limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
        return limits

    def study(self, names: Sequence[str], *, measure: bool) -> Study | None:
        """Look at sites with the example inputs, where there are any."""
        if not self.examples.inputs or not names:
            return None
        with self.blas:
            return study(
                self.base,
                self.shapes,
                [site for site in self.sites if site.name in names],
                self.examples.inputs,
                forms=self.forms,
                method=self.method,
                measure=measure,
                effort=Effort(memory=self.memory, seed=self.seed, threads=self.jobs),
                progress=self.progress,
            )

    def time(self, split: Split, cache: LatencyCache | None) -> NetworkLatency:
        """Measure the network and its sites on the provider."""
        sites = [site for site in self.sites if site.name in split.fixed or site in split.open]
        return network_latency(
            self.base,
            self.shapes,
            sites,
            forms=self.forms,
            asked=split.fixed,
            provider=self.provider,
            threads=self.threads,
            cache=cache,
            progress=lambda what: self.progress("latency", what),
        )

    def options(self, split: Split, wanted: Budget, found: Study | None, timed: NetworkLatency | None) -> list[Options]:
        """List what could be done to the sites that a budget has to decide."""
        with self.blas:
            return options_of(split, wanted, forms=self.forms, found=found, timed=timed)

    def plan(
        self,
        split: Split,
        wanted: Budget,
        listed: Sequence[Options],
        found: Study | None,
        timed: NetworkLatency | None,
    ) -> Plan:
        """Choose forms and ranks under a budget; where latency is measured, see that the network keeps the promise."""
        learned = Corrected(found.rehearsal) if found is not None and found.sensitivities else None

        def choose_for(budget: Budget) -> Plan:
            with self.blas:
                chosen = choose(
                    self.sites,
                    split,
                    budget,
                    listed,
                    self.before,
                    method=self.method,
                    learned=learned,
                    timed=timed,
                    repair_seconds=self.repair_seconds,
                    progress=self.progress,
                )
            return replace(chosen, calibration=self.examples.description, budget=wanted.to_dict())

        if timed is None:
            return choose_for(wanted)
        self.progress("latency", "the rewritten network")
        if wanted.target_latency is not None:
            return meeting(
                wanted.target_latency, lambda share: choose_for(replace(wanted, target_latency=share)), timed
            )
        return faster(choose_for(wanted), timed, fixed=split.fixed)

    def attempt(self, plan: Plan, found: Study | None) -> _Attempt:
        """Compute weights for a plan and rewrite a copy of the model."""
        by_name = {site.name: site for site in self.sites}
        made = None
        with self.blas:
            if found is not None:
                made = make_weights(found, plan.choices, refit=self.refit, progress=self.progress)
            weights = dict(made.replacements) if made is not None else {}
            for name, choice in plan.choices.items():
                if name not in weights:
                    weights[name] = replacement(by_name[name], choice, plan.method)
        model = self.base.clone()
        BottleneckPass(plan, weights)(model)
        return _Attempt(plan, model, weights, made)

    def verdict(self, model: ir.Model, found: Study | None, *, latency: bool) -> CheckResult:
        """Compare a rewritten model with the source."""
        held = found.held if found is not None and found.held else None
        return check_models(
            self.source,
            model,
            inputs=self.inputs if self.inputs is not None else held,
            providers=(self.provider,),
            input_shapes=self.input_shapes if self.inputs is None and held is None else None,
            max_drift=self.max_drift,
            latency=latency,
            latency_seconds=_LATENCY_SECONDS,
            threads=self.threads,
            seed=self.seed,
        )

    def search(
        self,
        split: Split,
        listed: Sequence[Options],
        found: Study | None,
        timed: NetworkLatency | None,
        score: float | None,
    ) -> _Attempt:
        """Find the cheapest network within the limits on drift and loss, by bisection over its share of the MACs."""
        low, high = 0.0, 1.0
        best = self.attempt(Plan({}, split.refusals, self.method), None)
        for _ in range(_SEARCH_STEPS):
            share = (low + high) / 2
            self.progress("search", f"{share:.3f} of the MACs")
            try:
                attempt = self.attempt(self.plan(split, Budget(target_macs=share), listed, found, timed), found)
            except PlanError:  # below the floor
                low = share
                continue
            fits = self.verdict(attempt.model, found, latency=False).passed
            if fits and score is not None and self.max_loss is not None:
                fits = score - _score(self, attempt.model) <= self.max_loss
            if fits:
                best, high = attempt, share
            else:
                low = share
        limits = {"max_drift": self.max_drift, "max_loss": self.max_loss}
        budget = {name: limit for name, limit in limits.items() if limit is not None}
        return replace(best, plan=replace(best.plan, budget=budget))


def _read_plan(plan: Plan | str | Path) -> Plan:
    if isinstance(plan, Plan):
        return plan
    path = Path(plan)
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"), where=str(path))
    except FileNotFoundError as error:
        raise PlanError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read as a plan: {error}.") from error


def _report(site: Site, plan: Plan, weights: Mapping[str, Replacement], found: Study | None) -> SiteResult:
    known = bool(site.in_size and site.out_size)
    dense = dense_cost(site) if known else None
    choice = plan.choices.get(site.name)
    if choice is None:
        refusal = plan.refusals.get(site.name) or site.refusal or Refusal("not_in_plan", "The plan leaves it out.")
        return SiteResult(site.name, None, None, None, dense, dense, refusal)
    cost = choice.cost(site) if known else None
    error = weights[site.name].factors.error
    seen = found.moments.get(site.name) if found is not None else None
    moment = None if seen is None else seen.whole.kind
    timed = plan.latency.get("sites", {}).get(site.name)
    latency = None if timed is None else timed["rewritten"] / timed["dense"]
    return SiteResult(site.name, choice.form, choice.rank, error, dense, cost, None, moment, latency)


def require_other_file(source: str | Path, target: str | Path) -> None:
    """Check that an output would not overwrite its input.

    Raises:
        OutputError: Both are the same file.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve() or (target.exists() and source.exists() and source.samefile(target)):
        raise OutputError(f"{target}: is the input itself; name another file to write.")
