"""What the results look like on a terminal. Builds ``rich`` renderables; printing them is the command line's work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement

from onnx_pointwise.check import WORDS, CheckResult, HeadCheck, Inputs, Likeness, ProviderCheck, shortened
from onnx_pointwise.graph import ModelCost, Refusal, another_size, competing
from onnx_pointwise.jobs import ENERGIES, Benchmark, Inspection, RewriteResult, SiteResult, SiteView
from onnx_pointwise.latency import CacheInfo
from onnx_pointwise.numerics import FORMS, Drift
from onnx_pointwise.reports.plain import Table, Text, plain
from onnx_pointwise.runtime import LatencyComparison, NodeTime, ProviderInfo

_BARS = "▁▂▃▄▅▆▇█"


def count(value: float) -> str:
    """Write a count with three digits and a unit: 40.6 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """Write a number of bytes: 4.35 MB."""
    text = count(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def _known_size(value: float) -> str:
    return size(value) if value else "unknown"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def percent(value: float) -> str:
    """Write a share: 12.3 %."""
    return f"{100 * value:.1f} %"


def rank(value: int | tuple[int, int] | None) -> str:
    """Write a rank: 32, or 24, 32 for both sides."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value[0]}, {value[1]}"


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0), collapse_padding=True)
    for title, justify in columns:
        first = not table.columns
        table.add_column(
            title,
            justify="right" if justify == "right" else "left",
            overflow="fold" if first else "ellipsis",
            no_wrap=not first,
            min_width=12 if first else None,
        )
    return table


def _size_of(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def sparkline(values: Sequence[float], width: int = 8) -> str:
    """Draw non-negative values, the largest first, as a row of bars."""
    if not len(values):
        return ""
    picked = [values[round(index * (len(values) - 1) / (width - 1))] for index in range(width)]
    top = max(picked) or 1.0
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in picked)


def assumptions(assumed: Iterable[str], shapes: dict[str, tuple[int, ...]]) -> list[Text]:
    """Say which input sizes were assumed."""
    return [
        Text(
            f"The model leaves the size of '{name}' open; costs are for {_size_of(shapes[name])}. "
            f"Name another with --input-shape {name}:{','.join(map(str, another_size(shapes[name])))}.",
            style="yellow",
        )
        for name in assumed
    ]


def inspection(result: Inspection) -> RenderableType:
    """Show a model's convolutions."""
    table = _table(
        ("Convolution", "left"),
        ("Kernel", "left"),
        ("Maps", "right"),
        ("Output", "right"),
        ("MACs", "right"),
        ("Share", "right"),
        ("Params", "right"),
        ("Spectrum", "left"),
        ("/".join(f"{100 * energy:.0f}" for energy in ENERGIES) + "%", "left"),
    )
    for view in result.sites:
        table.add_row(*_inspection_row(view))
    cost = result.cost
    total = Text(
        f"{len(result.sites)} convolutions, {count(cost.conv_macs)} of the model's {count(cost.macs)} MACs; "
        f"{count(cost.params)} parameters in {size(cost.bytes)}.",
        style="bold",
    )
    hint = Text(
        "Spectrum: singular values of the kernel over its input channels, largest first, and the ranks that "
        "keep that share of their energy.",
        style="dim",
    )
    return Group(
        table,
        *_refusal_lines([(view.site.name, view.site.refusal) for view in result.sites]),
        hint,
        *_treads(result),
        total,
        *assumptions(result.assumed_inputs, dict(result.input_shapes)),
    )


def _treads(result: Inspection) -> list[RenderableType]:
    """Show the highest rank of each tread of the staircase, and its share of the dense site's latency."""
    table = _table(("Convolution", "left"), ("Dense", "right"), ("Form", "left"), ("Rank: share of latency", "left"))
    table.columns[-1].no_wrap = False
    for view in result.sites:
        if view.latency is None:
            continue
        timed = view.latency
        shown = [form for form in competing(view.site, FORMS) if form != "reduce_expand"]
        for form in shown:
            treads = [
                f"{rank(at)}: {seconds / timed.dense:.2f}"
                for (kind, at), seconds in zip(timed.choices, timed.seconds, strict=True)
                if kind == form
            ]
            first = form == shown[0]
            dense = milliseconds(timed.dense) if first else ""
            table.add_row(view.site.name if first else "", dense, form, "  ".join(treads) or "never faster")
    return [Text(), table, Text()] if table.rows else []


def _inspection_row(view: SiteView) -> list[str | Text]:
    site = view.site
    stride = (
        f"{'↑' if site.transposed else '/'}{_size_of(site.strides) if len(set(site.strides)) > 1 else site.strides[0]}"
        if max(site.strides, default=1) > 1
        else ""
    )
    maps = f"{site.in_channels * site.group}→{site.out_channels}" if site.in_channels else ""
    spectrum: str | Text = sparkline(list(view.profile))
    if site.refusal is not None:
        spectrum = Text(site.refusal.code, style="dim")
    return [
        site.name,
        _size_of(site.kernel_shape) + stride,
        maps,
        _size_of(site.out_size),
        "" if view.cost is None else count(view.cost.macs),
        "" if view.cost is None else percent(view.share),
        count(site.stored_params),
        spectrum,
        "" if site.refusal is not None else "/".join(map(str, view.ranks)),
    ]


def _refusal_lines(named: Sequence[tuple[str, Refusal | None]]) -> list[Text]:
    """One line for each reason, with how many sites it holds for."""
    reasons: dict[str, list[str]] = {}
    sentences: dict[str, str] = {}
    for name, refusal in named:
        if refusal is not None:
            reasons.setdefault(refusal.code, []).append(name)
            sentences.setdefault(refusal.code, refusal.reason)
    lines = []
    for code, names in reasons.items():
        text = Text(f"{code}", style="bold dim")
        text.append(f" ({len(names)}): {sentences[code]}", style="not bold dim")
        lines.append(text)
    return lines


def rewrite(result: RewriteResult) -> RenderableType:
    """Show what a rewrite did."""
    timed = any(site.latency is not None for site in result.sites)
    table = _table(
        ("Convolution", "left"),
        ("Form", "left"),
        ("Rank", "right"),
        ("MACs", "right"),
        ("After", "right"),
        ("Left", "right"),
        *([("Time", "right")] if timed else []),
        ("Error", "right"),
    )
    for site in result.sites:
        table.add_row(*_rewrite_row(site, timed=timed))
    first = [] if result.check is None else [answers(result.check, most=_MOST_SITES), Text()]
    return Group(
        *first,
        table,
        *_refusal_lines([(site.name, site.refusal) for site in result.sites]),
        Text(),
        *calibration(result),
        *latency(result),
        Text(),
        costs(result.before, result.after, result.check),
        *([] if result.check is None else [Text(), verdict(result.check)]),
        *assumptions(result.assumed_inputs, dict(result.input_shapes)),
    )


def calibration(result: RewriteResult) -> list[Text]:
    """Say what the weights were computed from, and what the examples held back say."""
    lines = [Text(str(result.calibration["sentence"]))]
    lines += [Text(warning, style="yellow") for warning in result.calibration.get("warnings", ())]
    coarse = [site for site in result.sites if site.moment not in (None, "exact")]
    for kind, words in (
        ("stationary", "taken to be the same at every position of the kernel"),
        ("channels", "looked at across channels only"),
    ):
        names = [site.name for site in coarse if site.moment == kind]
        if names:
            lines.append(Text(f"Too wide for exact second moments, so {words}: {', '.join(names)}."))
    found = result.calibrated
    if found is not None and found.drift is not None and found.unrefitted is not None:
        plan = "" if found.predicted is None else f" ({found.predicted:.3g} predicted)"
        other = "no refit was asked for"
        if found.refits:
            other = f"{found.unrefitted:.3g} without the refit"
        elif found.dropped is not None:
            other = f"{found.dropped:.3g} with a refit, which was dropped"
        lines.append(Text(f"Drift on examples held back: {found.drift:.3g}{plan}; {other}."))
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
        reason = "" if found is None or found.reason is None else f" {found.reason}"
        lines.append(Text(f"Nothing was rewritten; the model is as it was.{reason}", style="bold yellow"))
    return lines


def latency(result: RewriteResult) -> list[Text]:
    """Say what the plan was made from where it was made from measurements."""
    about = result.plan.latency
    if not about:
        return [Text(f"Planned by arithmetic: {result.unmeasured}.")] if result.unmeasured is not None else []
    alone, inside = about["sites_alone_seconds"], about["sites_inside_seconds"]
    sentence = (
        f"Planned for {about['provider']}, {_threads(about['threads'])}: the convolutions that compete take "
        f"{milliseconds(alone)} probed alone, {milliseconds(inside)} of the network's "
        f"{milliseconds(about['dense_seconds'])}."
    )
    if about["measured"] is not None:
        sentence += (
            f" Latency as a share of before: {about['sum_of_sites']:.3f} by the sum of the sites, "
            f"{about['predicted']:.3f} corrected, {about['measured']:.3f} measured."
        )
    return [Text(sentence)]


def _threads(count: int | None) -> str:
    return "threads left to the runtime" if count is None else f"{count} thread{'s' if count > 1 else ''}"


def _rewrite_row(site: SiteResult, *, timed: bool) -> list[str | Text]:
    before = "" if site.before is None else count(site.before.macs)
    if site.form is None:
        code = "" if site.refusal is None else site.refusal.code
        return [Text(site.name, style="dim"), Text(code, style="dim"), "", Text(before, style="dim")]
    left = after = ""
    if site.before is not None and site.after is not None:
        after, left = count(site.after.macs), percent(site.after.macs / max(1, site.before.macs))
    return [
        site.name,
        site.form,
        rank(site.rank),
        before,
        after,
        left,
        *(["" if site.latency is None else percent(site.latency)] if timed else []),
        "" if site.error is None else percent(site.error),
    ]


def costs(before: ModelCost, after: ModelCost, check: CheckResult | None = None) -> Table:
    """Show a model's cost before and after, with the latency where it was measured."""
    table = _table(("Whole model", "left"), ("Before", "right"), ("After", "right"), ("Left", "right"))
    rows = (
        ("MACs", count, before.macs, after.macs),
        ("Parameters", count, before.params, after.params),
        ("File", size, before.bytes, after.bytes),
        ("Activations", _known_size, before.activation_bytes, after.activation_bytes),
    )
    for title, write, old, new in rows:
        unknown = not old or (title == "Activations" and not new)
        table.add_row(title, write(old), write(new), "" if unknown else percent(new / old))
    for result in check.providers if check is not None else ():
        if result.latency is not None:
            timed = result.latency
            table.add_row(
                f"Latency, {result.provider}",
                milliseconds(timed.before.median),
                milliseconds(timed.after.median),
                percent(timed.ratio),
            )
    return table


def milliseconds(seconds: float) -> str:
    """Write a time: 3.42 ms."""
    return f"{_three(1e3 * seconds)} ms"


def check(result: CheckResult) -> RenderableType:
    """Show how two models compare."""
    return Group(answers(result), Text(), costs(result.before, result.after, result), Text(), verdict(result))


# Sites that are shown where nobody asked for them.
_MOST_SITES = 8
_STYLES: Mapping[Likeness | None, str] = {"changed": "bold yellow", "broken": "bold red", None: "bold red"}
_ON: Mapping[Inputs, str] = {
    "given": "on the inputs given",
    "held_back": "on held-back examples",
    "examples": "on the examples that its weights were made from",
    "random": "on random inputs, not real ones",
}


# Names longer than this are cut in tables, and those of one network are often alike but for their middle.
_LONG = 28


def _head_name(head: HeadCheck, heads: Sequence[HeadCheck]) -> str:
    """What to call a head: a long name gives way to that of its output, where no other head goes into it."""
    only = len(head.outputs) == 1 and sum(head.outputs == other.outputs for other in heads) == 1
    return head.outputs[0] if only and len(head.value) > _LONG else head.value


def answers(result: CheckResult, *, most: int | None = None) -> RenderableType:
    """Show how alike the answers are: in words first, then head by head, then which convolutions did it.

    Args:
        result: The check.
        most: Convolutions to show at most.
    """
    several = len(result.providers) > 1
    table = _table(
        ("Head", "left"),
        ("Kind", "left"),
        *([("On", "left")] if several else []),
        ("Agreement", "right"),
        ("Drift", "right"),
        ("Worst", "right"),
        ("Verdict", "left"),
    )
    for provider in result.providers:
        for head in provider.heads:
            where = [provider.provider] if several else []
            table.add_row(_Shortened(_head_name(head, provider.heads)), head.kind, *where, *_head_row(head))
    lines: list[RenderableType] = [_sentence(result)]
    if table.rows:
        lines += [table, _limits(result)]
    lines += [Text(f"Not compared: {name}. {reason}", style="dim") for name, reason in result.not_compared.items()]
    return Group(*lines, *_sites(result, most))


def _sentence(result: CheckResult) -> Text:
    """The one line that a reader remembers."""
    worst, word = result.worst, result.verdict
    style = _STYLES.get(word, "bold green" if result.passed else "bold")
    if worst is None or word is None:
        return Text(f"Nothing that the networks answer could be compared {_ON[result.inputs]}.", style=style)
    said = "The network is broken" if word == "broken" else f"The answers are {WORDS[word]}"
    return Text(f"{said}: {worst.figure} at {worst.place}, {_ON[result.inputs]}.", style=style)


def _head_row(head: HeadCheck) -> list[str | Text]:
    agreement = ""
    if head.agreement is not None:
        agreement = f"{head.agreement:.1f} dB" if head.measure == "PSNR" else f"{head.measure} {head.agreement:.3f}"
        agreement = agreement if head.judged_by == "agreement" else f"({agreement})"
    drift, most = ("" if number is None else f"{number:.3g}" for number in (head.drift, head.worst_drift))
    word = "not compared" if head.verdict is None else WORDS[head.verdict]
    return [agreement, drift, most, Text(word, style=_STYLES.get(head.verdict, ""))]


def _limits(result: CheckResult) -> Text:
    """Say what the words stand for."""
    kinds = {head.kind for head in result.heads if head.judged_by == "agreement"} or {"numbers"}
    if any(head.judged_by == "drift" for head in result.heads):
        kinds.add("numbers")
    said = "; ".join(
        f"{kind} {', '.join(f'{number:g}' for number in numbers)}"
        for kind, numbers in result.limits.items()
        if kind in kinds
    )
    few = ""
    if any(head.judged_by == "drift" and head.kind != "numbers" for head in result.heads):
        few = " Where too little was found to count, drift decides, as for numbers."
    return Text(f"The same, close, changed up to (--limit): {said}.{few}", style="dim")


def _sites(result: CheckResult, most: int | None) -> list[RenderableType]:
    """Show convolutions that are computed otherwise, the worst first."""
    if result.sites is None:
        return []
    table = _table(("Convolution", "left"), ("Own drift", "right"), ("With all before it", "right"))
    rows = sorted(result.sites, key=lambda site: -1.0 if site.own is None else site.own, reverse=True)
    for site in rows[:most]:
        table.add_row(_Shortened(site.name), *("" if one is None else f"{one:.3g}" for one in (site.own, site.drift)))
    if not table.rows:
        return [Text("Every convolution is computed as before.", style="dim")]
    rest = f"; {len(rows) - len(table.rows)} more are in the JSON" if len(table.rows) < len(rows) else ""
    hint = (
        f"Drift at convolutions that are computed otherwise, worst first{rest}; rewrite --exclude NODE leaves one out."
    )
    return [Text(), table, Text(hint, style="dim")]


class _Shortened:
    """A name that gives up its middle where the table is too narrow for it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shortened(plain(self._name), options.max_width), no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(12, len(plain(self._name))), len(plain(self._name)))


def verdict(result: CheckResult) -> RenderableType:
    """Show what the runtime said: shapes, drift of each output, latency, and what is wrong."""
    table = _table(
        ("Output", "left"),
        ("On", "left"),
        ("Drift", "right"),
        ("dB", "right"),
        ("Max abs", "right"),
        ("Cosine", "right"),
        ("Same top-1", "right"),
    )
    for provider in result.providers:
        for name, drift in provider.drift.items():
            table.add_row(*_drift_row(name, provider.provider, drift))
        for name, drift in (provider.drift_from_cpu or {}).items():
            table.add_row(*_drift_row(name, f"{provider.provider} vs cpu", drift))
    lines = [Text(line) for provider in result.providers for line in _provider_lines(provider)]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    lines += [Text(f"failed: {finding.sentence}", style="bold red") for finding in result.findings]
    if result.passed:
        good = result.verdict in ("same", "close")
        lines.append(Text(_passed(result, good=good), style="bold green" if good else "yellow"))
    return Group(table, *lines) if table.rows else Group(*lines)


def _passed(result: CheckResult, *, good: bool) -> str:
    """Say what a check that passed stands for: without a limit, any drift passes."""
    unlimited = result.unlimited
    if not unlimited:
        drift = "the drift is within its limit"
    elif len(unlimited) == len(result.drift):
        drift = "the drift above was not limited (--max-drift)"
    else:
        names = ", ".join(f"'{name}'" for name in unlimited)
        drift = f"the drift is within its limit, but that of {names} was not limited (--max-drift)"
    same = f"names, shapes and types are the same, and no output turned NaN or infinite; {drift}"
    return f"Check passed: {same}." if good else f"The answers {result.verdict}, as said first; {same}."


def _drift_row(name: str, where: str, drift: Drift) -> list[str]:
    return [
        name,
        where,
        "nothing" if drift.values in (0, drift.non_finite_before) else f"{drift.relative_l2:.3g}",
        "" if drift.decibel is None else f"{drift.decibel:.1f}",
        f"{drift.max_abs:.3g}",
        "" if drift.cosine is None else f"{drift.cosine:.6f}",
        "" if drift.top1 is None else percent(drift.top1),
    ]


def _provider_lines(result: ProviderCheck) -> Iterable[str]:
    ran = [trial for trial in result.trials if trial.skipped is None]
    same = "the same" if result.shapes_equal else "NOT the same"
    yield f"Shapes and types {same} on {result.provider}, for {len(ran)} input shapes."
    if result.nodes_off:
        names = ", ".join(node.name for node in result.nodes_off[:4])
        more = ", ..." if len(result.nodes_off) > 4 else ""
        yield f"{len(result.nodes_off)} nodes left {result.provider} for another provider: {names}{more}"
    if result.latency is not None:
        yield f"Latency on {result.provider}: {comparison(result.latency)}"


def comparison(timed: LatencyComparison) -> str:
    """Say how the latencies of two networks compare."""
    low, high = timed.interval
    return (
        f"{timed.verdict}, {timed.ratio:.3f} of before (95 % within {low:.3f} to {high:.3f}, "
        f"noise floor {timed.noise:.3f}, {timed.rounds} rounds)."
    )


def cache(info: CacheInfo, *, cleared: bool) -> RenderableType:
    """Show what the cache of latencies holds."""
    if cleared:
        return Text(f"Cleared {info.path}; {info.entries} measurements are forgotten.")
    return Text(f"{info.path}: {info.entries} measurements, {size(info.bytes)}. --clear forgets them.")


def providers(infos: Sequence[ProviderInfo]) -> RenderableType:
    """Show which execution providers are there, and why the others are not."""
    table = _table(("Provider", "left"), ("Device", "left"), ("Version", "left"))
    lines = []
    for info in infos:
        if info.available:
            device = info.device or ""
            table.add_row(info.name, f"{device} (emulated on the CPU)" if info.software else device, info.version or "")
        else:
            line = Text(f"{info.name}: ", style="bold dim")
            line.append(info.reason or "not available", style="not bold dim")
            lines.append(line)
    return Group(table, Text(), *lines)


def bench(result: Benchmark, nodes: Sequence[NodeTime] = ()) -> RenderableType:
    """Show latency, over batch sizes and threads, and the time of each convolution where it was measured."""
    table = _table(
        ("Network", "left"),
        ("Batch", "right"),
        ("Threads", "right"),
        ("Median", "right"),
        ("P90", "right"),
        ("Items/s", "right"),
    )
    verdicts = []
    for row in result.rows:
        batch = "as it is" if row.batch is None else str(row.batch)
        threads = "default" if row.threads is None else str(row.threads)
        timed = [(result.model, row.latency)]
        if row.comparison is not None:
            timed.append((result.other or "", row.comparison.after))
            verdicts.append(Text(f"Batch {batch}, threads {threads}: {comparison(row.comparison)}"))
        for name, latency in timed:
            median, p90 = milliseconds(latency.median), milliseconds(latency.p90)
            table.add_row(name, batch, threads, median, p90, f"{latency.throughput:.4g}")
    lines = [
        Text(f"Peak memory of the {role}: {size(used.loading)} to load, {size(used.running)} to run.")
        for role, used in result.memory.items()
    ]
    lines += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    machine = result.machine
    about = Text(f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.instruction_sets)}", style="dim")
    kernels: list[RenderableType] = [_node_table(nodes), Text()] if nodes else []
    return Group(*kernels, table, *verdicts, *lines, about)


def _node_table(nodes: Sequence[NodeTime]) -> Table:
    table = _table(("Kernel", "left"), ("Operator", "left"), ("Time", "right"), ("Share", "right"))
    total = sum(node.seconds for node in nodes) or 1.0
    for node in nodes:
        table.add_row(
            node.site or node.name, node.op_type, f"{1e6 * node.seconds:.0f} us", percent(node.seconds / total)
        )
    return table
