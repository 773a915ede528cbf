"""The cheapest network that keeps a promise: rehearsed along one budget, fitted a few times, measured, corrected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from onnx_pointwise.check import picture_drifts
from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph import Choice, Plan, Refusal
from onnx_pointwise.jobs.attempts import Attempt, fitted
from onnx_pointwise.jobs.checking import compared, scores_of
from onnx_pointwise.jobs.deciding import Question
from onnx_pointwise.jobs.loading import Network
from onnx_pointwise.jobs.promise import Promise
from onnx_pointwise.jobs.results import Search, SearchStep
from onnx_pointwise.numerics import one_thread_of_blas
from onnx_pointwise.planning import (
    COLUMNS,
    Ladder,
    Outcome,
    Resource,
    faster,
    next_strain,
    plan_of,
    repaired,
    share_out,
)
from onnx_pointwise.settings import Settings

#: Networks that are fitted at most; with rehearsals to go by few are needed.
FITS = 4
# The same where nothing can be rehearsed: the share of the cost is halved so often.
_HALVINGS = 7
# What a network is taken to strain that fails for a reason of its own, though its answers keep the limits.
_FAILED = 1.5

_NO_EXAMPLES = (
    "Without a target, the cheapest network is searched whose answers stay the same, and only example inputs tell "
    "whether they do. {why} Name example inputs with --calibration, or say how far to go: --target-latency, "
    "--target-macs, --target-params, --ratio, --energy, --rank or --plan."
)


@dataclass(frozen=True)
class _Made:
    """A network that was fitted and measured."""

    attempt: Attempt
    outcome: Outcome
    cost: float


def require_promises(question: Question, settings: Settings) -> None:
    """Refuse to search where nothing tells what answers do.

    Raises:
        PlanError: There are no example inputs, or none that tell anything, nor inputs or a score to go by.
    """
    if not question.split.open or question.learned is not None:
        return
    if settings.inputs is None and settings.max_loss is None:
        said = question.calibration.get("warnings") or ["None were given."]
        raise PlanError(_NO_EXAMPLES.format(why=" ".join(said)))


def promised(settings: Settings) -> Settings:
    """What the networks of a search are checked for: that answers stay the same, where no other limit was named."""
    return replace(settings, require="same") if Promise.of(settings).same else settings


def searched(net: Network, question: Question, score: float | None, settings: Settings) -> tuple[Attempt, Search]:
    """Find the cheapest network that keeps the limits: in latency where that is measured, else in MACs.

    Args:
        net: The network.
        question: What is known about it.
        score: The user's own score of it; None without one.
        settings: What was asked for.

    Returns:
        The network, the untouched one where none pays, and how it was found.

    Raises:
        PlanError: Nothing tells what answers do.
    """
    require_promises(question, settings)
    return _Searcher(net, question, score, settings).run()


def untouched(
    net: Network, made: Attempt, search: Search | None, reason: str, settings: Settings
) -> tuple[Attempt, Search | None]:
    """Take everything back that was rewritten, for a reason that only showed in the end."""
    refusal = Refusal("network_not_faster", reason)
    plan = replace(made.plan.without(dict.fromkeys(made.plan.choices, refusal)), latency={})
    return fitted(net, plan, None, settings), None if search is None else replace(search, reason=reason)


class _Searcher:
    """One search."""

    def __init__(self, net: Network, question: Question, score: float | None, settings: Settings) -> None:
        self._net, self._question, self._score, self._settings = net, question, score, settings
        self._promise = Promise.of(settings)
        self._timed = question.seen.timed
        self._resource: Resource = question.wanted.resource
        self._made: list[_Made] = []
        self._steps: list[SearchStep] = []
        self._slow = False

    def run(self) -> tuple[Attempt, Search]:
        """Search."""
        reason = None
        if all(len(option.choices) == 1 for option in self._question.listed):
            reason = self._nothing_pays()
        else:
            self._by_halving() if self._question.learned is None else self._by_rehearsal()
        kept = [made for made in self._made if made.outcome.passed]
        if kept:
            attempt = min(kept, key=lambda made: made.cost).attempt
        else:
            reason = reason or self._why_none()
            plan = self._plan({})
            attempt = fitted(self._net, plan, None, self._settings)
        budget = self._promise.to_dict()
        attempt = replace(attempt, plan=replace(attempt.plan, budget=budget))
        return attempt, Search(budget, self._resource, tuple(self._steps), reason)

    def _by_rehearsal(self) -> None:
        learned = self._question.learned
        found = self._question.seen.found
        assert learned is not None and found is not None, "there are examples"
        rehearsal = learned.rehearsal
        pictures = picture_drifts(rehearsal.heads, found.trial, rehearsal.untouched, self._promise.limits)
        ladder = Ladder(
            self._question.listed,
            self._resource,
            learned,
            self._promise.rehearsed(rehearsal.heads, pictures),
            lambda share: self._settings.tell("search", f"{share:.3f} of what convolutions take"),
        )
        strain: float | None = 1.0
        tried: list[Mapping[str, Choice]] = []
        while strain is not None and len(tried) < FITS:
            with one_thread_of_blas():
                plan = ladder.within(strain)
            if not plan.choices or plan.choices in tried:
                break
            tried.append(plan.choices)
            if not self._try(plan.choices, plan.limit, plan.strain):
                break
            strain = next_strain([made.outcome for made in self._made])

    def _by_halving(self) -> None:
        """Fit networks at shares that close in on the limit; there is nothing to rehearse them on."""
        listed, column = self._question.listed, COLUMNS[self._resource]
        high = sum(float(option.costs[-1, column]) for option in listed)
        low = sum(float(option.costs[:, column].min()) for option in listed)
        for step in range(_HALVINGS):
            limit = (low + high) / 2
            with one_thread_of_blas():
                choices = share_out(listed, {self._resource: limit})
            passed = bool(choices) and self._try(choices, limit, float(step + 1)) and self._made[-1].outcome.passed
            low, high = (low, limit) if passed else (limit, high)

    def _try(self, choices: Mapping[str, Choice], limit: float, strain: float) -> bool:
        """Fit and measure a plan; gives whether there was anything to fit, once sites that do not pay went back."""
        settings, learned = self._settings, self._question.learned
        listed = self._question.listed
        if learned is not None and settings.repair_seconds > 0:
            column = COLUMNS[self._resource]
            with one_thread_of_blas():
                choices = repaired(
                    learned.rehearsal,
                    listed,
                    [limit],
                    [column],
                    choices,
                    seconds=settings.repair_seconds,
                    progress=settings.tell,
                )
        plan = self._plan(choices)
        ratio = None
        if self._timed is not None:
            settings.tell("latency", "a rewritten network")
            plan = faster(plan, self._timed)
            ratio = plan.latency["measured"]
        if not plan.choices:
            self._slow = True
            return False
        attempt = fitted(self._net, plan, self._question.seen.found, settings)
        settings.tell("search", "comparing answers")
        found = compared(self._net, attempt.model, self._question.seen, settings, latency=False)
        score = None if settings.max_loss is None else scores_of(self._score, attempt.model, settings)
        measured = self._promise.measured(found, score)
        sure = found.inputs != "examples" and all(head.drift_bound is not None for head in found.heads)
        if not sure:  # its weights know the examples, or there was one alone; the rehearsal had others
            measured = max(measured, strain)
        within = measured <= 1.0 + 1e-9 or not self._promise.same
        passed = found.passed and (score is None or score.passed) and within
        if not passed and measured <= 1.0:
            measured = _FAILED
        share = self._share(plan)
        self._made.append(_Made(attempt, Outcome(strain, measured, passed), share if ratio is None else ratio))
        rehearsed = None if learned is None else strain
        self._steps.append(SearchStep(share, ratio, rehearsed, measured, passed, found.verdict))
        return True

    def _plan(self, choices: Mapping[str, Choice]) -> Plan:
        """A plan with what it was made from; a site that stays does so for the sake of the answers."""
        question = self._question
        made = plan_of(
            self._net.sites,
            question.split,
            question.listed,
            choices,
            self._resource,
            timed=self._timed,
            method=self._settings.method,
        )
        refusals = {
            name: Refusal("moves_answers", "Rewriting it as well would move the answers too far.", refusal.numbers)
            if refusal.code == "budget_met"
            else refusal
            for name, refusal in made.refusals.items()
        }
        return replace(made, refusals=refusals, calibration=question.calibration)

    def _share(self, plan: Plan) -> float:
        """What a plan leaves of the whole network, by what its sites promise."""
        if self._timed is not None:
            return self._timed.sum_of_sites(plan.choices)
        costs = [
            (option.costs[-1, 0], option.costs[option.choices.index(plan.choices[option.site.name]), 0])
            for option in self._question.listed
            if option.site.name in plan.choices
        ]
        return 1.0 - float(sum(dense - cost for dense, cost in costs)) / self._net.cost.macs

    def _nothing_pays(self) -> str:
        """Why no site has anything to choose from."""
        if not self._question.listed:
            return "No convolution of the model can be rewritten."
        if self._timed is not None:
            return f"No form of any convolution is faster on {self._timed.provider}, by more than the noise."
        return "No form of any convolution saves MACs."

    def _why_none(self) -> str:
        """Why none of the networks that were made is handed over."""
        if self._made:
            best = min(self._made, key=lambda made: made.outcome.measured).outcome
            count = len(self._made)
            which = "The network that was made does" if count == 1 else f"All {count} networks that were made do"
            return (
                f"{which} not keep the limits: the best one goes {best.measured:.2g} times as far as it may. "
                "More example inputs, or wider limits, may let one pass."
            )
        if self._slow and self._timed is not None:
            return f"No network within the limits is faster on {self._timed.provider}, beyond the noise floor."
        return "Even the smallest change that saves anything moves the answers further than it may."
