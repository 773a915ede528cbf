"""How long a site takes in each form at each rank, measured on the execution provider that will run the network.

Latency is a staircase in the rank: kernels work on blocks of channels, and a block that is not full costs as much as
a full one. The steps are found by measuring: a coarse grid of ranks first, then the middle of every interval over
which the latency changes, until neighbours differ or the change is within the noise. Only the highest rank of a tread
is worth having. All sites are probed together, many small networks in one session, so that what disturbs one
measurement disturbs all. What was measured once is kept, see ``latency_cache``.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnx_pointwise.deploying import AS_IS, Deployment
from onnx_pointwise.graph import (
    ConvPiece,
    Site,
    competing,
    dense_cost,
    load,
    pieces,
    rewritten_cost,
    runtime_source,
    whole,
)
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.latency.cache import LatencyCache, is_duration
from onnx_pointwise.numerics import FORMS, SPATIAL, Form, Rank, full_rank
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.runtime import Runner, is_cpu, machine, open_session, provider_info
from onnx_pointwise.scratch import ScratchFolder

#: Latencies closer than this share of the dense site's count as equal.
TOLERANCE = 0.03

_GRID = 16
# Timed and untimed runs of a probe; long ones are disturbed less, and would take too long.
_RUNS, _WARMUP = 12, 3
_LONG_RUNS, _LONG_WARMUP = 5, 1
_LONG_MACS = 3e8
# ... and of sites that take longer than that, at least this share of the rows is computed.
_FEWEST_ROWS = 0.25
# Part of every key of the cache: to be raised when the way to measure changes.
_WAY = 3
_PROBE_BYTES = 2**28
_PROBES = 400
_PAIRS = 6


@dataclass(frozen=True)
class SiteLatency:
    """Latency of one site.

    Attributes:
        dense: Seconds of the untouched convolution.
        choices: Form and rank of the top of each tread that is faster than that.
        seconds: Seconds of each of them.
        fastest: Seconds of the fastest form and rank measured, faster than ``dense`` or not; infinite where none was.
        asked: Seconds of the forms and ranks that were asked for by name.
    """

    dense: float
    choices: tuple[tuple[Form, Rank], ...]
    seconds: tuple[float, ...]
    fastest: float = math.inf
    asked: Mapping[tuple[Form, Rank], float] = field(default_factory=dict)

    def of(self, form: Form, rank: Rank) -> float:
        """Seconds of a form and rank that was measured.

        Raises:
            KeyError: It was not.
        """
        return (dict(zip(self.choices, self.seconds, strict=True)) | dict(self.asked))[form, rank]

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        treads = [
            {"form": form, "rank": list(rank) if isinstance(rank, tuple) else rank, "seconds": seconds}
            for (form, rank), seconds in zip(self.choices, self.seconds, strict=True)
        ]
        return {"dense": self.dense, "treads": treads}


@dataclass(frozen=True)
class _Conv:
    """One convolution of a probe."""

    op_type: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(piece: ConvPiece) -> _Conv:
        """A piece of a site."""
        return _Conv(piece.op_type, piece.in_channels, piece.out_channels, piece.size, tuple(piece.attributes.items()))

    @property
    def strides(self) -> tuple[int, ...]:
        """Its strides; empty for a 1x1 put beside a kernel."""
        return tuple(dict(self.attributes).get("strides", ()))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its kernel as the operator takes it."""
        outside = self.out_channels, self.in_channels
        return (*(outside[::-1] if self.op_type == "ConvTranspose" else outside), *self.kernel)


@dataclass(frozen=True)
class _Probe:
    """A chain of convolutions that is timed as one."""

    batch: int
    in_size: tuple[int, ...]
    dtype: str
    chain: tuple[_Conv, ...]

    @property
    def long(self) -> bool:
        """Whether one run takes so long that few of them will do."""
        return self.batch * self._places * self._weights > _LONG_MACS / 2

    @property
    def bytes(self) -> int:
        """About what it takes in memory."""
        widest = max(max(conv.in_channels, conv.out_channels) for conv in self.chain)
        return 4 * (self._weights + 3 * self.batch * widest * self._places)

    @property
    def _weights(self) -> int:
        return sum(math.prod(conv.weight_shape) for conv in self.chain)

    @property
    def _places(self) -> int:
        """Of the largest map, about."""
        growth = math.prod(math.prod(conv.strides) for conv in self.chain if conv.op_type == "ConvTranspose")
        return math.prod(self.in_size) * growth


def _probe(site: Site, form: Form | None, rank: Rank) -> _Probe:
    """The chain of a site in a form; of the untouched site where the form is ``None``."""
    parts = [whole(site)] if form is None else pieces(site, form, rank)
    return _Probe(site.batch, _probed_size(site), str(site.dtype), tuple(_Conv.of(piece) for piece in parts))


def _probed_size(site: Site) -> tuple[int, ...]:
    """Size to probe a site at: fewer rows where a run takes long; the shares of its forms hardly depend on them."""
    if site.output_shape:
        return site.in_size
    share = max(_FEWEST_ROWS, min(1.0, _LONG_MACS / max(1, dense_cost(site).macs)))
    reach = (site.kernel_shape[0] - 1) * site.dilations[0] + 1
    return (min(site.in_size[0], max(reach, math.ceil(share * site.in_size[0]))), *site.in_size[1:])


def site_latencies(
    sites: Sequence[Site],
    *,
    forms: Sequence[Form] = FORMS,
    provider: str = "cpu",
    threads: int | None = None,
    asked: Mapping[str, tuple[Form, Rank]] | None = None,
    cache: LatencyCache | None = None,
    deployment: Deployment = AS_IS,
    progress: Within = unheard,
) -> dict[str, SiteLatency]:
    """Measure what each site takes in each form.

    Args:
        sites: Sites that may be rewritten and whose sizes are known.
        forms: The forms that compete.
        provider: Execution provider, as for ``open_session``.
        threads: Threads inside one operator; the runtime's own choice if ``None``.
        asked: Form and rank by site name, to be measured whatever they take.
        cache: Where measurements are kept; ``None`` measures everything anew.
        deployment: What is made of a network before it runs, and so of a probe.
        progress: Called with what is measured next, and how many probes are.

    Returns:
        Latency by site name: of the dense site, and of the top of each tread that is faster by more than the noise.

    Raises:
        ProviderError: The provider does not load.
        ModelError: A probe cannot be deployed so.
    """
    clock = _Clock(provider, threads, cache, progress, deployment)
    clock.measure(_probe(site, None, 1) for site in sites)
    dense = {site.name: clock.seconds(_probe(site, None, 1)) for site in sites}
    named = asked or {}
    clock.measure(_probe(site, *named[site.name]) for site in sites if site.name in named)
    chosen = {site.name: competing(site, forms) for site in sites}
    single = [(site, form) for site in sites for form in _sides(chosen[site.name])]
    known: dict[tuple[str, Form], list[int]] = {(site.name, form): [] for site, form in single}
    tops: dict[tuple[str, Form], list[int]] = {}
    open_curves = {(site.name, form): (site, _first_ranks(site, form)) for site, form in single}
    while open_curves:
        clock.measure(_probe(site, key[1], rank) for key, (site, ranks) in open_curves.items() for rank in ranks)
        following = {}
        for key, (site, ranks) in open_curves.items():
            known[key] = sorted({*known[key], *ranks})
            curve = [(rank, clock.seconds(_probe(site, key[1], rank))) for rank in known[key]]
            between = _middles(curve, TOLERANCE * dense[site.name])
            if between:
                following[key] = (site, between)
            else:
                tops[key] = _tops(curve, (_dense_rank(site, key[1]), dense[site.name]))
        open_curves = following
    found: dict[str, list[tuple[Form, Rank]]] = {site.name: [] for site in sites}
    for site in sites:
        alone = [form for form in chosen[site.name] if form != "reduce_expand"]
        found[site.name] += [(form, rank) for form in alone for rank in tops[site.name, form]]
        if "reduce_expand" in chosen[site.name]:
            pairs = _pairs(tops[site.name, "reduce"], tops[site.name, "expand"])
            found[site.name] += [("reduce_expand", pair) for pair in pairs]
    clock.measure(_probe(site, form, rank) for site in sites for form, rank in found[site.name])
    result = {}
    for site in sites:
        rows = site.in_size[0] / _probed_size(site)[0]  # fewer may have been computed
        timed = [(rows * clock.seconds(_probe(site, form, rank)), form, rank) for form, rank in found[site.name]]
        curves = [
            rows * clock.seconds(_probe(site, form, rank))
            for form in chosen[site.name]
            for rank in known.get((site.name, form), ())
        ]
        faster = [entry for entry in timed if entry[0] < (1.0 - TOLERANCE) * rows * dense[site.name]]
        wanted = [named[site.name]] if site.name in named else []
        result[site.name] = SiteLatency(
            rows * dense[site.name],
            tuple((form, rank) for _, form, rank in faster),
            tuple(seconds for seconds, _, _ in faster),
            min([*curves, *(entry[0] for entry in timed)], default=math.inf),
            {choice: rows * clock.seconds(_probe(site, *choice)) for choice in wanted},
        )
    return result


def _sides(forms: Sequence[Form]) -> list[Form]:
    """Forms whose staircases have to be known; pairs are made of the treads of both sides."""
    wanted = {"reduce", "expand", *forms} if "reduce_expand" in forms else set(forms)
    return [form for form in FORMS if form in wanted and form != "reduce_expand"]


def _highest_rank(site: Site, form: Form) -> int:
    """The highest rank that still saves arithmetic."""
    one, two = (rewritten_cost(site, form, rank).macs for rank in (1, 2))
    return 1 + (dense_cost(site).macs - 1 - one) // (two - one)


def _dense_rank(site: Site, form: Form) -> int:
    """The rank that the untouched site stands for on a form's staircase: the full one.

    Spatial forms cost more than the site long before that; they lose next to nothing where they cost as much.
    """
    (full,) = full_rank(form, site.in_channels, site.out_channels, site.kernel_shape)
    return min(full, _highest_rank(site, form) + 1) if form in SPATIAL else full


def _first_ranks(site: Site, form: Form) -> list[int]:
    """A coarse grid up to the highest rank that still saves arithmetic."""
    limit = _highest_rank(site, form)
    return sorted({*range(_GRID, limit + 1, _GRID), *(rank for rank in (1, 4, 8, limit) if 1 <= rank <= limit)})


def _middles(curve: Sequence[tuple[int, float]], tolerance: float) -> list[int]:
    """Ranks to measure next: the middle of each interval over which the latency changes."""
    return [
        (low + high) // 2
        for (low, below), (high, above) in itertools.pairwise(curve)
        if high - low > 1 and abs(above - below) > tolerance
    ]


def _tops(curve: Sequence[tuple[int, float]], dense: tuple[int, float]) -> list[int]:
    """Ranks worth having: the tops of the treads.

    A rank is none if a higher one takes as long. Nor is it one if it lies well above the line between a lower and a
    higher rank: the foot of a step that rises in stages, where a little more rank costs most of the step.

    Args:
        curve: Ranks, rising, and their seconds.
        dense: Full rank, and the seconds of the untouched site.
    """
    tolerance = TOLERANCE * dense[1]
    kept: list[tuple[int, float]] = []
    best = math.inf
    for rank, seconds in reversed(curve):
        if seconds < best - tolerance:
            kept.append((rank, seconds))
            best = seconds
    kept.reverse()
    hull: list[tuple[int, float]] = []
    for point in [*kept, dense]:
        while len(hull) > 1 and _above(hull[-1], hull[-2], point) >= 0.0:
            hull.pop()
        hull.append(point)
    edges = list(itertools.pairwise(hull))
    return [
        point[0]
        for point in kept
        if not any(low < point < high and _above(point, low, high) > 2.0 * tolerance for low, high in edges)
    ]


def _above(point: tuple[int, float], low: tuple[int, float], high: tuple[int, float]) -> float:
    """How far a point lies above the line between two others."""
    if high[0] == low[0]:
        return 0.0
    return point[1] - (low[1] + (high[1] - low[1]) * (point[0] - low[0]) / (high[0] - low[0]))


def _pairs(inner: Sequence[int], outer: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of treads for both sides, thinned out evenly."""

    def some(tops: Sequence[int]) -> list[int]:
        if len(tops) <= _PAIRS:
            return list(tops)
        return sorted({tops[round(index * (len(tops) - 1) / (_PAIRS - 1))] for index in range(_PAIRS)})

    return [(r_in, r_out) for r_in in some(inner) for r_out in some(outer)]


class _Clock:
    """Measures probes, each once, in as few sessions as memory allows."""

    def __init__(
        self,
        provider: str,
        threads: int | None,
        cache: LatencyCache | None,
        progress: Within,
        deployment: Deployment = AS_IS,
    ) -> None:
        self._provider, self._threads = provider, threads
        self._cache, self._progress = cache, progress
        self._deployment = deployment.nameless()
        self._place = place(provider, threads, self._deployment)
        self._known: dict[_Probe, float] = {}

    def seconds(self, probe: _Probe) -> float:
        return self._known[probe]

    def measure(self, probes: Iterable[_Probe]) -> None:
        wanted = {f"{self._place} {probe}": probe for probe in probes if probe not in self._known}
        if self._cache is not None and wanted:
            stored = self._cache.get(wanted)
            self._known |= {wanted.pop(key): float(seconds) for key, seconds in stored.items() if is_duration(seconds)}
        done = 0
        for group in _groups(list(wanted.values())):
            self._progress("convolutions in other forms", done, len(wanted))
            done += len(group)
            self._known |= self._time(group)
        if self._cache is not None:
            self._cache.put({key: self._known[probe] for key, probe in wanted.items()})

    def _time(self, probes: Sequence[_Probe]) -> dict[_Probe, float]:
        if is_cpu(self._provider):
            return self._profile(probes)
        return {probe: self._run(probe) for probe in probes}

    def _profile(self, probes: Sequence[_Probe]) -> dict[_Probe, float]:
        """Time all probes in one session by its profile, which leaves out what only their ends cost."""
        runs, warmup = _counts(probes)
        with ScratchFolder() as folder:
            session, feeds = self._open(probes, folder / "profile")
            runner = Runner(session, feeds, self._provider, "latency probe")
            for _ in range(warmup + runs):
                runner.run()
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        samples = _chain_seconds(events, len(probes))[warmup:]
        # Disturbances only ever add time, and the profile counts whole microseconds.
        quiet = np.sort(samples, axis=0)[: max(1, runs // 2)].mean(axis=0)
        return {probe: float(seconds) for probe, seconds in zip(probes, quiet, strict=True)}

    def _run(self, probe: _Probe) -> float:
        """Time one probe in a session of its own: a profile would only see kernels being launched."""
        runs, warmup = _counts([probe])
        session, feeds = self._open([probe])
        runner = Runner(session, feeds, self._provider, "latency probe")
        samples = sorted(runner.run() for _ in range(warmup + 2 * runs))
        return float(np.mean(samples[:runs]))

    def _open(
        self, probes: Sequence[_Probe], profile: Path | None = None
    ) -> tuple[ort.InferenceSession, dict[str, Any]]:
        """Open a session of probes as they are deployed, with what they are fed.

        What the numbers are does not matter to a latency, so random ones serve for ranges, too.
        """
        feeds = _feeds(probes)
        model = self._deployment.made(load(_network(probes)), feeds)
        for node in model.graph:
            if node.op_type in ("Conv", "ConvTranspose"):  # a kernel may be named after what it puts out
                node.outputs[0].name = f"{node.name}.z"
        with runtime_source(model) as source:
            return open_session(source, self._provider, threads=self._threads, profile=profile), feeds


def _counts(probes: Sequence[_Probe]) -> tuple[int, int]:
    """Timed and untimed runs of probes that run together."""
    return (_LONG_RUNS, _LONG_WARMUP) if probes[0].long else (_RUNS, _WARMUP)


def place(provider: str, threads: int | None, deployment: Deployment = AS_IS) -> str:
    """Describe all that a latency depends on beside what is run: part of the keys of the cache."""
    info, here = provider_info(provider), machine()
    runtime = {name: version for name, version in here.versions.items() if name.startswith("onnxruntime")}
    return (
        f"way {_WAY}, {provider}, {info.device}, {info.driver}, {here.cpu}, {'/'.join(here.instruction_sets)}, "
        f"{here.cores} cores, {runtime}, {threads} threads:" + (f" {deployment.key}" if deployment.changes else "")
    )


def _groups(probes: Sequence[_Probe]) -> list[list[_Probe]]:
    groups: list[list[_Probe]] = []
    held = 0
    for probe in sorted(probes, key=lambda probe: probe.long):
        last = groups[-1] if groups else [probe]
        full = held + probe.bytes > _PROBE_BYTES or len(last) >= _PROBES or last[0].long != probe.long
        if not groups or full:
            groups.append([])
            held = 0
        groups[-1].append(probe)
        held += probe.bytes
    return groups


def _feeds(probes: Sequence[_Probe]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for probe in probes:
        shape = (probe.batch, probe.chain[0].in_channels, *probe.in_size)
        feeds.setdefault(_feed_name(probe), rng.standard_normal(shape, np.float32).astype(probe.dtype))
    return feeds


def _feed_name(probe: _Probe) -> str:
    sizes = (probe.batch, probe.chain[0].in_channels, *probe.in_size)
    return f"{probe.dtype}_{'x'.join(map(str, sizes))}"


def _network(probes: Sequence[_Probe]) -> onnx.ModelProto:
    """One network of all probes side by side; node ``<index>.<piece>`` is a piece of probe ``index``."""
    rng = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    inputs: dict[str, onnx.ValueInfoProto] = {}
    for index, probe in enumerate(probes):
        element = helper.np_dtype_to_tensor_dtype(np.dtype(probe.dtype))
        value = _feed_name(probe)
        shape = (probe.batch, probe.chain[0].in_channels, *probe.in_size)
        inputs.setdefault(value, helper.make_tensor_value_info(value, element, shape))
        for piece, conv in enumerate(probe.chain):
            name = f"{index}.{piece}"
            kernel = rng.standard_normal(conv.weight_shape, np.float32)
            kernel /= math.sqrt(conv.in_channels * math.prod(conv.kernel))
            weights.append(numpy_helper.from_array(kernel.astype(probe.dtype), f"{name}.weight"))
            node = helper.make_node(
                conv.op_type, [value, f"{name}.weight"], [f"{name}.y"], name=name, **dict(conv.attributes)
            )
            nodes.append(node)
            value = f"{name}.y"
        outputs.append(helper.make_tensor_value_info(value, element, None))
    graph = helper.make_graph(nodes, "probes", list(inputs.values()), outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


# Name of a piece of a probe, see ``_network``.
_PIECE = re.compile(r"(\d+)\.(\d+)")


def _chain_seconds(events: Sequence[Mapping[str, Any]], count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Add up the kernels of each probe in each run: [runs, probes].

    Layout changes between two pieces belong to the probe; those at its ends would not happen inside a network.
    """
    runs: list[np.ndarray[Any, np.dtype[np.float64]]] = [np.zeros(count)]
    waiting: dict[int, float] = {}
    current = -1
    for event in events:
        name = str(event.get("name", ""))
        if name == "model_run":
            runs.append(np.zeros(count))
            waiting, current = {}, -1
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        seconds = event["dur"] * 1e-6
        if event["args"]["op_name"].endswith(("Conv", "ConvTranspose")):
            named = _PIECE.search(name)
            assert named is not None, "every convolution of a probe is named so, whatever the runtime puts around it"
            current = int(named[1])
            if named[2] != "0":
                runs[-1][current] += waiting.pop(current, 0.0)
            runs[-1][current] += seconds
            waiting[current] = 0.0
        elif current >= 0 and current in waiting:
            waiting[current] += seconds
    return np.array(runs[:-1])
