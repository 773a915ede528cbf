"""Networks from dear to cheap: looked at and timed once, planned and fitted for every share, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx_pointwise.errors import PlanError, TargetError
from onnx_pointwise.examples import Calibration
from onnx_pointwise.graph import ModelSource, Plan, model_cost
from onnx_pointwise.jobs.attempts import fitted
from onnx_pointwise.jobs.checking import compared, judged, scored, scores_of
from onnx_pointwise.jobs.clock import Clock
from onnx_pointwise.jobs.concluding import Ending, concluded
from onnx_pointwise.jobs.curves import curves_of
from onnx_pointwise.jobs.deciding import Question, asked
from onnx_pointwise.jobs.deploying import deployed_if_faster
from onnx_pointwise.jobs.fronts import Front, Sweep, SweepPoint, Unmade, front_of, is_share
from onnx_pointwise.jobs.handing import handed_out
from onnx_pointwise.jobs.loading import Network, examples_for, network, with_full_names, with_stems
from onnx_pointwise.jobs.looking import Evidence, not_measurable
from onnx_pointwise.jobs.results import RewriteResult
from onnx_pointwise.latency import Timing
from onnx_pointwise.numerics import one_thread_of_blas
from onnx_pointwise.planning import Budget, Corrected, choose, timed_once
from onnx_pointwise.runtime import Origin, origin_of, resolve
from onnx_pointwise.schema import job, shared
from onnx_pointwise.settings import Answers, Cost, Settings, SweepSettings

# The networks of a sweep are fitted to so many examples, a share of all; the one that is handed over, to all of them.
_PART = 4
_LEAST = 128
_LEAST_SHARE = 1e-6
_TARGETS: Mapping[Cost, str] = {
    "macs": "target_macs",
    "params": "target_params",
    "size": "target_params",
    "latency": "target_latency",
}


@job(SweepSettings)
def sweep(model: ModelSource, settings: SweepSettings) -> Sweep:
    """Make networks from dear to cheap, and find those that no other one is both cheaper and better than.

    What examples tell and what is measured on a provider serves all of them, so that a sweep takes little longer than a
    rewrite. Each network has the plan that `rewrite` makes for its share, but for the latency, which is timed once and
    not corrected; its weights are made from a part of the examples, where there are many, and its answers are compared
    on examples held back. To be deployed in another precision, it is timed, compared and scored in that. The one that
    ``pick`` names is fitted to all examples and checked as `rewrite` does, for the first provider. Others are made from
    their plans: ``rewrite(model, plan=point.plan, calibration=...)``.

    Args:
        model: Path, ``ModelProto`` or ``onnx_ir.Model``; it is left as it is.
        settings: What is asked for, in place of the keywords that follow.

    Returns:
        The networks, by provider.

    Raises:
        ModelError: The model cannot be read, described or run.
        PlanError: A share or rule makes no sense, no network can be picked, or there is nothing to choose from.
        InputError: The inputs, calibration inputs or input shapes do not fit the model.
        ProviderError: A provider does not load.
    """
    clock, origin = Clock(), origin_of("sweep", settings, model)
    shares = _shares(settings)
    answers = _answers(settings)
    base = [replace(Settings(**shared(settings, Settings)), provider=name) for name in settings.providers]
    costs = [_cost(settings, one) for one in base]
    net = network(model, base[0])
    base = [with_full_names(one, net) for one in base]
    base[0].deployment.require(net.base)
    examples = examples_for(net, None, base[0])
    base[0].deployment.require_examples(examples.inputs)
    net = with_stems(net, examples, base[0])
    clock.lap("load")
    score = scored(net.source, base[0])
    if score is not None:
        clock.lap("evaluate")

    works: list[_Work] = []
    for one, cost in zip(base, costs, strict=True):
        found = works[0].question.seen.found if works else None
        question = asked(net, examples, not_measurable(one), replace(one, **_target(cost, 1.0)), clock, found)
        works.append(_Work(net, question, score, one, cost))
    fronts = tuple(_front(work, shares, answers, settings.scheduler) for work in works)
    clock.lap("networks")
    picked = None
    if settings.pick is not None:
        picked = _handed_over(works[0], fronts[0].pick(settings.pick).plan, examples, clock, origin)
    return Sweep(net.cost, fronts, examples.description, origin, settings.pick, picked, clock.seconds)


@dataclass(frozen=True)
class _Work:
    """What the networks for one provider are made from.

    Attributes:
        net: The untouched network.
        question: What is known about it.
        score: The user's own score of it; ``None`` without one.
        settings: What `rewrite` would be asked for, but for how far to go.
        cost: What must fall.
    """

    net: Network
    question: Question
    score: float | None
    settings: Settings
    cost: Cost

    def alone(self) -> _Work:
        """The same without what belongs to this process: sessions, measurements, who is told of progress."""
        found = self.question.seen.found
        seen = Evidence(None if found is None else replace(found))  # a copy knows no rehearsal
        question = replace(self.question, learned=None, listed=(), seen=seen)
        return replace(self, question=question, settings=replace(self.settings, progress=None))


@dataclass(frozen=True)
class _Piece:
    """A network to make.

    Attributes:
        share: The share that was asked for.
        plan: Its plan.
        timing: What it takes on the provider; ``None`` where nothing is measured.
    """

    share: float
    plan: Plan
    timing: Timing | None


def _shares(settings: SweepSettings) -> list[float]:
    """The shares to make networks for, from dear to cheap; one that is to be picked is among them."""
    given = list(settings.shares)
    if settings.pick is not None and is_share(settings.pick):
        given.append(float(settings.pick))
    if not given:
        raise PlanError("A sweep needs at least one share of the cost to make a network for.")
    for share in given:
        if not 0.0 < share <= 1.0:
            raise PlanError(f"A network is made for a share above 0 and at most 1, not {share:g}.")
    return sorted(set(given), reverse=True)


def _answers(settings: SweepSettings) -> Answers:
    if settings.evaluate is None and (settings.answers == "score" or settings.max_loss is not None):
        raise PlanError("To judge answers by your own score, name a function with evaluate.")
    if settings.answers is not None:
        return settings.answers
    return "drift" if settings.evaluate is None else "score"


def _cost(settings: SweepSettings, one: Settings) -> Cost:
    """What must fall on one provider."""
    if settings.cost is None:
        return "latency" if not_measurable(one) is None else "macs"
    not_measurable(replace(one, **_target(settings.cost, 1.0)))  # refuses a latency that is not measured
    return settings.cost


def _target(cost: Cost, share: float) -> dict[str, Any]:
    return {_TARGETS[cost]: share}


def _front(work: _Work, shares: Sequence[float], answers: Answers, scheduler: str | None) -> Front:
    """Make a network for every share, each from what is known alone: none depends on another."""
    made: list[_Piece] = []
    unmade: list[Unmade] = []
    for number, share in enumerate(shares):
        work.settings.tell("plans", f"{share:g} of the {work.cost}", number, len(shares))
        try:
            plan = _planned(work, share)
        except TargetError as error:
            unmade.append(Unmade(share, str(error)))
            continue
        same = next((piece for piece in made if piece.plan.choices == plan.choices), None)
        if not plan.choices:
            unmade.append(Unmade(share, "The untouched network keeps that share."))
        elif same is not None:
            unmade.append(Unmade(share, f"It is the network for {same.share:g} once more."))
        else:
            made.append(_timed(work, share, plan))
    points: list[SweepPoint] = []
    for number, point in enumerate(handed_out(_point, work.alone(), made, scheduler)):
        points.append(point)
        work.settings.tell("networks", f"{point.asked:g} of the {work.cost}", number + 1, len(made))
    seen = work.question.seen
    name = work.settings.provider
    deployment = work.settings.deployment
    precision = deployment.precision if deployment.changes else None
    told = {"unmade": tuple(unmade), "unmeasured": seen.unmeasured, "precision": precision}
    return front_of(name, work.cost, answers, points, **told)


def _planned(work: _Work, share: float) -> Plan:
    """The plan for a share, as `rewrite` makes it; a latency is asked for as the sites promise it, or the least."""
    timed = work.question.seen.timed
    wanted = Budget(work.question.wanted.ranks, **_target(work.cost, share))
    if work.cost != "latency" or timed is None:
        return _chosen(work, wanted, wanted)
    try:
        return _chosen(work, wanted, replace(wanted, target_latency=min(1.0, max(_LEAST_SHARE, timed.promised(share)))))
    except TargetError as error:
        if error.least >= 1.0:
            raise
        # What the network will take is known when it is timed: the most that can be done is worth seeing.
        return _chosen(work, wanted, replace(wanted, target_latency=min(1.0, error.least * (1.0 + 1e-9))))


def _chosen(work: _Work, wanted: Budget, ask: Budget) -> Plan:
    """The plan for what is asked for, as one for what was wanted."""
    question, settings, timed = work.question, work.settings, work.question.seen.timed
    # What rehearsals teach is learned anew for each share, so that a plan does not depend on the others.
    learned = None if question.learned is None else Corrected(question.learned.rehearsal)
    with one_thread_of_blas():
        plan = choose(
            work.net.sites,
            question.split,
            ask,
            question.listed,
            work.net.cost,
            method=settings.method,
            learned=learned,
            timed=timed,
            repair_seconds=settings.repair_seconds,
            progress=settings.tell,
        )
    return replace(plan, calibration=question.calibration, budget=wanted.to_dict())


def _timed(work: _Work, share: float, plan: Plan) -> _Piece:
    """Time a network where that means something: here, one after the other, whoever makes the weights."""
    if work.question.seen.timed is None:
        return _Piece(share, plan, None)
    plan, timing = timed_once(plan, work.question.seen.timed)
    return _Piece(share, plan, timing)


def _point(work: _Work, piece: _Piece) -> SweepPoint:
    """Fit a network and compare its answers."""
    net, seen, settings = work.net, work.question.seen, work.settings
    plan, timing = piece.plan, piece.timing
    found = None if seen.found is None else seen.found.thinned(max(_LEAST, seen.found.count // _PART))
    made = fitted(net, plan, found, settings, predict=False)
    # Ranges come from all examples, as those of the network that is handed over do.
    runs = settings.deployment.made(made.model, None if seen.found is None else seen.found.fit)
    return SweepPoint(
        asked=piece.share,
        plan=plan,
        before=net.cost,
        after=model_cost(made.model, resolve(made.model, net.shapes.inputs)),
        latency=None if timing is None else timing.ratio,
        noise=None if timing is None else timing.noise,
        check=compared(net, runs, seen, settings, latency=False),
        score=scores_of(work.score, runs, settings),
    )


def _handed_over(work: _Work, plan: Plan, examples: Calibration, clock: Clock, origin: Origin) -> RewriteResult:
    """The network of a plan, fitted to all examples and checked."""
    net, seen, settings = work.net, work.question.seen, work.settings
    made = fitted(net, plan, seen.found, settings)
    clock.lap("weights")
    verdict = judged(net, made, seen, settings)
    made, _, verdict, deployed = deployed_if_faster(net, made, None, seen, examples, verdict, settings)
    curves = curves_of(seen.found, work.question.listed)
    ending = Ending(verdict, work.score, None, clock, origin, curves, deployed)
    return concluded(net, made, seen, examples, settings, ending)
