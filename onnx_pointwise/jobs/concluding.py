"""What is handed over at the end of a job: the network, what became of each convolution, and the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx_pointwise.check import CheckResult
from onnx_pointwise.examples import Calibration
from onnx_pointwise.graph import Refusal, Site, dense_cost, model_cost
from onnx_pointwise.jobs.attempts import Attempt
from onnx_pointwise.jobs.checking import scores_of
from onnx_pointwise.jobs.clock import Clock
from onnx_pointwise.jobs.curves import Curve
from onnx_pointwise.jobs.loading import Network
from onnx_pointwise.jobs.looking import Evidence
from onnx_pointwise.jobs.results import RewriteResult, Search, SiteResult
from onnx_pointwise.jobs.shapes import SiteShape, pieces_of
from onnx_pointwise.jobs.versions import Deployed
from onnx_pointwise.runtime import Origin, resolve
from onnx_pointwise.settings import Settings
from onnx_pointwise.study import Study


@dataclass(frozen=True)
class Ending:
    """What is known of a network once it was made.

    Attributes:
        verdict: Its check; ``None`` where none was asked for.
        score: The user's own score of the source; ``None`` without one.
        search: How it was searched for; ``None`` where something else said how far to go.
        clock: What the stages took.
        origin: What was asked for, of which model.
        curves: What each rank of a site would lose, by its name.
        deployed: What is deployed, and what else could be; ``None`` where networks run as they are.
    """

    verdict: CheckResult | None
    score: float | None
    search: Search | None
    clock: Clock
    origin: Origin
    curves: Mapping[str, tuple[Curve, ...]] = field(default_factory=dict)
    deployed: Deployed | None = None


def concluded(
    net: Network, made: Attempt, seen: Evidence, examples: Calibration, settings: Settings, end: Ending
) -> RewriteResult:
    """Put together what is handed over; the user's own score of it is taken here."""
    after = model_cost(made.model, resolve(made.model, net.shapes.inputs)) if made.plan.choices else net.cost
    end.clock.lap("check")
    scores = scores_of(end.score, made.model, settings)
    if scores is not None:
        end.clock.lap("evaluate")
    return RewriteResult(
        model=made.model,
        plan=made.plan,
        sites=tuple(_report(site, made, seen.found, end.curves.get(site.name, ())) for site in net.sites),
        before=net.cost,
        after=after,
        check=end.verdict,
        score=scores,
        calibration=examples.description,
        calibrated=made.calibrated,
        input_shapes=net.shapes.inputs,
        assumed_inputs=net.shapes.assumed,
        unmeasured=seen.unmeasured,
        origin=end.origin,
        search=end.search,
        deployed=end.deployed,
        seconds=end.clock.seconds,
    )


def _report(site: Site, made: Attempt, found: Study | None, curves: tuple[Curve, ...]) -> SiteResult:
    """Tell what became of one convolution."""
    plan = made.plan
    known = bool(site.in_size and site.out_size)
    dense = dense_cost(site) if known else None
    choice = plan.choices.get(site.name)
    shape = SiteShape.of(site)
    if choice is None:
        refusal = plan.refusals.get(site.name) or site.refusal or Refusal("not_in_plan", "The plan leaves it out.")
        return SiteResult(
            site.name,
            None,
            None,
            None,
            dense,
            dense,
            refusal,
            corrected=site.name in made.weights,
            shape=shape,
            curves=curves,
        )
    seen = found.moments.get(site.name) if found is not None else None
    timed = plan.latency.get("sites", {}).get(site.name)
    return SiteResult(
        name=site.name,
        form=choice.form,
        rank=choice.rank,
        error=made.weights[site.name].factors.error,
        before=dense,
        after=choice.cost(site) if known else None,
        refusal=None,
        moment=None if seen is None else seen.whole.kind,
        latency=None if timed is None else timed["rewritten"] / timed["dense"],
        shape=shape,
        pieces=pieces_of(site, choice),
        curves=curves,
    )
