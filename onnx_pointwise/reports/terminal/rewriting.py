"""What a rewrite did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from onnx_pointwise.check import shortened
from onnx_pointwise.jobs import RewriteResult, SiteResult
from onnx_pointwise.reports.plain import Text
from onnx_pointwise.reports.terminal.answers import MOST_SITES, answers
from onnx_pointwise.reports.terminal.checking import costs, verdict
from onnx_pointwise.reports.terminal.deploying import deployed
from onnx_pointwise.reports.terminal.figures import change, count, milliseconds, percent, rank, threads
from onnx_pointwise.reports.terminal.sentences import ALL, assumptions, reasons
from onnx_pointwise.reports.terminal.tables import FEW, SHOWN, Cell, Column, Grid
from onnx_pointwise.runtime import NOISY

_NAME = 40
_NAMES = 4


def rewrite(result: RewriteResult, *, whole: bool = False) -> RenderableType:
    """Show what a rewrite did.

    Args:
        result: The rewrite.
        whole: Show all convolutions in the order of the graph; otherwise, where they are many, those that save most.
    """
    timed = any(site.latency is not None for site in result.sites)
    table = Grid(
        Column("Convolution", name=True),
        Column("Form"),
        Column("Rank", right=True),
        Column("MACs", right=True),
        Column("After", right=True, extra=1),
        Column("Change", right=True),
        Column("Left", right=True),
        *([Column("Time", right=True)] if timed else []),
        Column("Error", right=True),
        among=[site.name for site in result.sites],
    )
    shown = _shown(result, whole=whole)
    for site in shown:
        table.add_row(*_row(site, timed=timed))
    most = None if whole else MOST_SITES
    first = [] if result.check is None else [answers(result.check, most=most, whole=whole), Text()]
    total = max(1, result.before.macs)
    return Group(
        *first,
        *([table] if shown else []),
        *_folded(result, shown),
        *reasons([(site.refusal, _macs(site) / total) for site in result.sites if site.refusal is not None]),
        Text(),
        *calibration(result),
        *latency(result),
        Text(),
        *([] if result.deployed is None else deployed(result.deployed)),
        costs(result.before, result.after, result.check),
        *([] if result.check is None else [Text(), verdict(result.check)]),
        *assumptions(result.assumed_inputs, dict(result.input_shapes)),
    )


def _macs(site: SiteResult) -> int:
    return 0 if site.before is None else site.before.macs


def _saved(site: SiteResult) -> int:
    return 0 if site.before is None or site.after is None else site.before.macs - site.after.macs


def _shown(result: RewriteResult, *, whole: bool) -> list[SiteResult]:
    """The convolutions that are shown: all of a few, else the rewritten ones that save most."""
    if whole or len(result.sites) <= FEW:
        return list(result.sites)
    return sorted((site for site in result.sites if site.form is not None), key=lambda site: -_saved(site))[:SHOWN]


def _folded(result: RewriteResult, shown: list[SiteResult]) -> list[Text]:
    """Say what is not shown."""
    if len(shown) == len(result.sites):
        return []
    rewritten = [site for site in result.sites if site.form is not None]
    rest = [site for site in rewritten if all(site is not other for other in shown)]
    dense = len(result.sites) - len(rewritten)
    said = []
    if rest:
        saved = sum(map(_saved, rest)) / max(1, sum(map(_saved, rewritten)))
        said.append(f"{len(rest)} more were rewritten, for {percent(saved)} of what is saved")
    if dense:
        said.append(f"{dense} stay as they are")
    return [Text(f"{'; '.join(said)}. {ALL}.", style="dim")]


def calibration(result: RewriteResult) -> list[Text]:
    """Say what the weights were computed from, and what the examples held back say."""
    lines = [Text(str(result.calibration["sentence"]))]
    lines += [Text(warning, style="yellow") for warning in result.calibration.get("warnings", ())]
    coarse = [site for site in result.sites if site.moment not in (None, "exact")]
    for kind, words in (
        ("stationary", "taken to be the same at every position of the kernel"),
        ("channels", "looked at across channels only"),
    ):
        names = [shortened(site.name, _NAME) for site in coarse if site.moment == kind]
        if names:
            more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
            listed = ", ".join(names[:_NAMES])
            lines.append(Text(f"Too wide for exact second moments, so {words}: {listed}{more}."))
    found = result.calibrated
    if found is not None and found.drift is not None and found.unrefitted is not None:
        plan = "" if found.predicted is None else f" ({found.predicted:.3g} predicted)"
        other = "no refit was asked for"
        if found.refits:
            other = f"{found.unrefitted:.3g} as rehearsed, before the refit"
        elif found.dropped is not None:
            other = f"{found.dropped:.3g} with a refit, which was dropped"
        lines.append(Text(f"Drift on examples held back: {found.drift:.3g}{plan}; {other}."))
        if corrected := sum(site.corrected for site in result.sites):
            which = "One convolution that stays" if corrected == 1 else f"{corrected} convolutions that stay"
            lines.append(Text(f"{which} whole got other weights, too, to make up for the others."))
    lines += search(result)
    if result.score is not None:
        score = result.score
        lines.append(
            Text(
                f"Your score: {score.before:.4f} before, {score.after:.4f} after.", style="" if score.passed else "red"
            )
        )
    return lines


def search(result: RewriteResult) -> list[Text]:
    """Say how the network was searched for, and that nothing was rewritten where nothing was, with the reason."""
    lines = []
    found = result.search
    if found is not None and found.steps:
        wanted = "fastest" if found.resource == "latency" else "cheapest"
        limits = "answers stay the same" if found.limits.get("answers") == "same" else "limits are kept"
        kept = sum(step.passed for step in found.steps)
        made = f"{len(found.steps)} network{'s were' if len(found.steps) > 1 else ' was'} made"
        lines.append(
            Text(f"Searched for the {wanted} network whose {limits}: {made}, {kept or 'none'} of them kept it.")
        )
    if not result.plan.choices:
        why = None if result.deployed is None else result.deployed.reason
        why = why if found is None or found.reason is None else found.reason
        reason = "" if why is None else f" {why}"
        lines.append(Text(f"Nothing was rewritten; the model is as it was.{reason}", style="bold yellow"))
    return lines


def latency(result: RewriteResult) -> list[Text]:
    """Say what the plan was made from where it was made from measurements."""
    about = result.plan.latency
    if not about:
        return [Text(f"Planned by arithmetic: {result.unmeasured}.")] if result.unmeasured is not None else []
    alone, inside = about["sites_alone_seconds"], about["sites_inside_seconds"]
    sentence = (
        f"Planned for {about['provider']}, {threads(about['threads'])}{_precision(about)}: the convolutions that "
        f"compete take {milliseconds(alone)} probed alone, {milliseconds(inside)} of the network's "
        f"{milliseconds(about['dense_seconds'])}."
    )
    if about["measured"] is not None:
        sentence += (
            f" Latency as a share of before: {about['sum_of_sites']:.3f} by the sum of the sites, "
            f"{about['predicted']:.3f} corrected, {_measured(about)}."
        )
    return [Text(sentence)]


def _measured(about: Mapping[str, Any]) -> str:
    """The latency of the network as planned, where that could be told."""
    noise = about.get("noise") or 0.0
    if noise > NOISY:
        return f"measured on a machine too noisy to tell closer than {about['measured']:.2f} by {noise:.2f}"
    return f"{about['measured']:.3f} measured"


def _precision(about: Mapping[str, Any]) -> str:
    return f", in {about['precision']}" if "precision" in about else ""


def _row(site: SiteResult, *, timed: bool) -> list[Cell]:
    before = "" if site.before is None else count(site.before.macs)
    if site.form is None:
        code = "" if site.refusal is None else site.refusal.code
        dim = [Text(text, style="dim") for text in (site.name, code, "", before)]
        return [*dim, *([""] * (5 if timed else 4))]
    left = after = less = ""
    if site.before is not None and site.after is not None:
        after, left = count(site.after.macs), percent(site.after.macs / max(1, site.before.macs))
        less = change(site.before.macs, site.after.macs)
    return [
        site.name,
        site.form,
        rank(site.rank),
        before,
        after,
        less,
        left,
        *(["" if site.latency is None else percent(site.latency)] if timed else []),
        "" if site.error is None else percent(site.error),
    ]
