"""The job end to end: load, look, plan, fit, check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx_pointwise.graph import ModelSource
from onnx_pointwise.jobs.attempts import fitted
from onnx_pointwise.jobs.checking import judged, scored
from onnx_pointwise.jobs.clock import Clock
from onnx_pointwise.jobs.concluding import Ending, concluded
from onnx_pointwise.jobs.curves import Curve, curves_of
from onnx_pointwise.jobs.deciding import asked, planned
from onnx_pointwise.jobs.deploying import deployed_if_faster
from onnx_pointwise.jobs.loading import examples_for, network, read_plan, with_full_names, with_stems
from onnx_pointwise.jobs.looking import Evidence, not_measurable, studied
from onnx_pointwise.jobs.results import RewriteResult, Search
from onnx_pointwise.jobs.searching import promised, searched, untouched
from onnx_pointwise.runtime import origin_of
from onnx_pointwise.schema import job
from onnx_pointwise.settings import Settings


@job(Settings)
def rewrite(model: ModelSource, settings: Settings) -> RewriteResult:
    """Make a convolutional network cheaper, and check it.

    Without a budget, the fastest network is searched whose answers stay the same, by the limits of the check; with the
    largest drift or loss alone, the fastest within that. Where latency is not measured, the fewest MACs. Such a search
    takes example inputs, and where nothing pays, it hands the network over as it was. A target, a share for every site,
    ranks or a plan say how far to go instead. Of ``ranks`` a number stands for the first of ``forms`` that takes one
    rank, a pair for ``reduce_expand``, a ``Choice`` for itself. With the same examples a plan gives the same bytes.

    Form and rank are chosen by what is measured on the provider, and nothing slower is handed over. The provider
    ``none`` plans by arithmetic alone and checks on the CPU; so does, on itself, a provider whose device is emulated,
    and so do ranks by hand and the replay of a plan. Drift is measured on ``inputs``, else on examples held back from
    the calibration, else on random inputs. With ``calibration=None``, and for a plan without a rank below full, weights
    come from the kernels alone. A frozen model is compared with its frozen source.

    Args:
        model: Path, ``ModelProto`` or ``onnx_ir.Model``; it is left as it is.
        settings: What is asked for, in place of the keywords that follow.

    Returns:
        The rewritten model, its plan, costs and check.

    Raises:
        ModelError: The model cannot be read, described or run.
        PlanError: The budget or plan does not fit the model, or cannot be met.
        InputError: The inputs, calibration inputs or input shapes do not fit the model.
        ProviderError: The provider does not load.
    """
    clock, origin = Clock(), origin_of("rewrite", settings, model)
    settings.require_consistent()
    replay = None if settings.plan is None else read_plan(settings.plan)
    unmeasured = not_measurable(settings)
    net = network(model, settings)
    settings = with_full_names(settings, net)
    settings.deployment.require(net.base)
    examples = examples_for(net, replay, settings)
    settings.deployment.require_examples(examples.inputs)
    net = with_stems(net, examples, settings)
    clock.lap("load")
    score = scored(net.source, settings)

    search: Search | None = None
    curves: Mapping[str, tuple[Curve, ...]] = {}
    if replay is not None:
        settings = replace(settings, method=replay.method)
        seen = Evidence(studied(net, replay.choices, examples, settings, measure=False), drawn=examples.drawn)
        clock.lap("study")
        made = fitted(net, replay, seen.found, settings)
    else:
        question = asked(net, examples, unmeasured, settings, clock)
        seen = question.seen
        curves = curves_of(seen.found, question.listed)
        if settings.searches:
            settings = promised(settings)
            made, search = searched(net, question, score, settings)
        else:
            made = fitted(net, planned(net, question, settings), seen.found, settings)
    clock.lap("weights")

    verdict = judged(net, made, seen, settings)
    if search is not None and verdict is not None and any(found.code == "slower" for found in verdict.findings):
        made, search = untouched(net, made, search, "Timed once more, the network that was found was slower.", settings)
        verdict = judged(net, made, seen, settings)
    made, search, verdict, deployed = deployed_if_faster(net, made, search, seen, examples, verdict, settings)
    ending = Ending(verdict, score, search, clock, origin, curves, deployed)
    return concluded(net, made, seen, examples, settings, ending)
