"""How long a site takes in each form at each rank, measured on the execution provider that will run the network.

Latency is a staircase in the rank: kernels work on blocks of channels, and a block that is not full costs as much as
a full one. The steps are found by measuring: a coarse grid of ranks first, then the middle of every interval over
which the latency changes, until neighbours differ or the change is within the noise. Only the highest rank of a tread
is worth having. All sites are probed together, many small networks in one session, so that what disturbs one
measurement disturbs all.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_pointwise.cost import dense_cost, rewritten_cost
from onnx_pointwise.factorize import FORMS, Form, Rank
from onnx_pointwise.providers import open_session, provider_name
from onnx_pointwise.runner import Runner
from onnx_pointwise.sites import Site

#: Latencies closer than this share of the dense site's count as equal.
TOLERANCE = 0.03

_GRID = 16
_RUNS, _WARMUP = 12, 3
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
    """

    dense: float
    choices: tuple[tuple[Form, Rank], ...]
    seconds: tuple[float, ...]

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

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class _Probe:
    """A chain of convolutions that is timed as one."""

    batch: int
    in_size: tuple[int, ...]
    dtype: str
    chain: tuple[_Conv, ...]

    @property
    def bytes(self) -> int:
        """About what it takes in memory."""
        weights = sum(conv.in_channels * conv.out_channels * math.prod(conv.kernel) for conv in self.chain)
        widest = max(max(conv.in_channels, conv.out_channels) for conv in self.chain)
        return 4 * (weights + 3 * self.batch * widest * math.prod(self.in_size))


def _probe(site: Site, form: Form | None, rank: Rank) -> _Probe:
    """The chain of a site in a form; of the untouched site where the form is ``None``."""
    spatial = len(site.kernel_shape)
    pads: tuple[str, Any] = ("auto_pad", site.pads) if isinstance(site.pads, str) else ("pads", tuple(site.pads))
    attributes = (("strides", site.strides), ("dilations", site.dilations), pads)
    r_in, r_out = (rank, rank) if isinstance(rank, int) else rank
    ones = (1,) * spatial
    chain: tuple[_Conv, ...]
    if form is None:
        chain = (_Conv(site.in_channels, site.out_channels, site.kernel_shape, attributes),)
    elif form == "reduce":
        chain = (
            _Conv(site.in_channels, r_in, ones, ()),
            _Conv(r_in, site.out_channels, site.kernel_shape, attributes),
        )
    elif form == "expand":
        chain = (
            _Conv(site.in_channels, r_out, site.kernel_shape, attributes),
            _Conv(r_out, site.out_channels, ones, ()),
        )
    else:
        chain = (
            _Conv(site.in_channels, r_in, ones, ()),
            _Conv(r_in, r_out, site.kernel_shape, attributes),
            _Conv(r_out, site.out_channels, ones, ()),
        )
    return _Probe(site.batch, site.in_size, str(site.dtype), chain)


def site_latencies(
    sites: Sequence[Site],
    *,
    forms: Sequence[Form] = FORMS,
    provider: str = "cpu",
    threads: int | None = None,
) -> dict[str, SiteLatency]:
    """Measure what each site takes in each form.

    Args:
        sites: Sites without refusal.
        forms: The forms that compete.
        provider: Execution provider, as for ``open_session``.
        threads: Threads inside one operator; the runtime's own choice if ``None``.

    Returns:
        Latency by site name: of the dense site, and of the top of each tread that is faster by more than the noise.

    Raises:
        ProviderError: The provider does not load.
    """
    clock = _Clock(provider, threads)
    clock.measure(_probe(site, None, 1) for site in sites)
    dense = {site.name: clock.seconds(_probe(site, None, 1)) for site in sites}
    single = [(site, form) for site in sites for form in FORMS if form != "reduce_expand"]
    tops: dict[tuple[str, Form], list[int]] = {}
    open_curves = {(site.name, form): (site, _first_ranks(site, form)) for site, form in single}
    known: dict[tuple[str, Form], list[int]] = {key: [] for key in open_curves}
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
                tops[key] = _tops(curve, TOLERANCE * dense[site.name])
        open_curves = following
    found: dict[str, list[tuple[Form, Rank]]] = {site.name: [] for site in sites}
    for site in sites:
        if "reduce" in forms:
            found[site.name] += [("reduce", rank) for rank in tops[site.name, "reduce"]]
        if "expand" in forms:
            found[site.name] += [("expand", rank) for rank in tops[site.name, "expand"]]
        if "reduce_expand" in forms:
            pairs = _pairs(tops[site.name, "reduce"], tops[site.name, "expand"])
            found[site.name] += [("reduce_expand", pair) for pair in pairs]
    clock.measure(_probe(site, form, rank) for site in sites for form, rank in found[site.name])
    result = {}
    for site in sites:
        timed = [(clock.seconds(_probe(site, form, rank)), form, rank) for form, rank in found[site.name]]
        faster = [entry for entry in timed if entry[0] < (1.0 - TOLERANCE) * dense[site.name]]
        result[site.name] = SiteLatency(
            dense[site.name],
            tuple((form, rank) for _, form, rank in faster),
            tuple(seconds for seconds, _, _ in faster),
        )
    return result


def _first_ranks(site: Site, form: Form) -> list[int]:
    """A coarse grid up to the highest rank that still saves arithmetic."""
    one, two = (rewritten_cost(site, form, rank).macs for rank in (1, 2))
    limit = 1 + (dense_cost(site).macs - 1 - one) // (two - one)
    return sorted({*range(_GRID, limit + 1, _GRID), *(rank for rank in (1, 4, 8, limit) if 1 <= rank <= limit)})


def _middles(curve: Sequence[tuple[int, float]], tolerance: float) -> list[int]:
    """Ranks to measure next: the middle of each interval over which the latency changes."""
    return [
        (low + high) // 2
        for (low, below), (high, above) in itertools.pairwise(curve)
        if high - low > 1 and abs(above - below) > tolerance
    ]


def _tops(curve: Sequence[tuple[int, float]], tolerance: float) -> list[int]:
    """Ranks that no higher rank beats or equals in latency: the tops of the treads."""
    kept, best = [], math.inf
    for rank, seconds in reversed(curve):
        if seconds < best - tolerance:
            kept.append(rank)
            best = seconds
    return kept[::-1]


def _pairs(inner: Sequence[int], outer: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of treads for both sides, thinned out evenly."""

    def some(tops: Sequence[int]) -> list[int]:
        if len(tops) <= _PAIRS:
            return list(tops)
        return sorted({tops[round(index * (len(tops) - 1) / (_PAIRS - 1))] for index in range(_PAIRS)})

    return [(r_in, r_out) for r_in in some(inner) for r_out in some(outer)]


class _Clock:
    """Measures probes, each once, in as few sessions as memory allows."""

    def __init__(self, provider: str, threads: int | None) -> None:
        self._provider, self._threads = provider, threads
        self._known: dict[_Probe, float] = {}

    def seconds(self, probe: _Probe) -> float:
        return self._known[probe]

    def measure(self, probes: Iterable[_Probe]) -> None:
        wanted = [probe for probe in dict.fromkeys(probes) if probe not in self._known]
        for group in _groups(wanted):
            self._known |= self._time(group)

    def _time(self, probes: Sequence[_Probe]) -> dict[_Probe, float]:
        if provider_name(self._provider) == "cpu":
            return self._profile(probes)
        return {probe: self._run(probe) for probe in probes}

    def _profile(self, probes: Sequence[_Probe]) -> dict[_Probe, float]:
        """Time all probes in one session by its profile, which leaves out what only their ends cost."""
        with tempfile.TemporaryDirectory(prefix="onnx_pointwise.") as folder:
            data = _network(probes).SerializeToString()
            session = open_session(data, self._provider, threads=self._threads, profile=Path(folder) / "profile")
            runner = Runner(session, _feeds(probes), self._provider, "latency probe")
            for _ in range(_WARMUP + _RUNS):
                runner.first_run()
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        samples = _chain_seconds(events, len(probes))[_WARMUP:]
        # Disturbances only ever add time, and the profile counts whole microseconds.
        quiet = np.sort(samples, axis=0)[: max(1, _RUNS // 2)].mean(axis=0)
        return {probe: float(seconds) for probe, seconds in zip(probes, quiet, strict=True)}

    def _run(self, probe: _Probe) -> float:
        """Time one probe in a session of its own: a profile would only see kernels being launched."""
        session = open_session(_network([probe]).SerializeToString(), self._provider, threads=self._threads)
        runner = Runner(session, _feeds([probe]), self._provider, "latency probe")
        samples = sorted(runner.first_run() for _ in range(_WARMUP + 2 * _RUNS))
        return float(np.mean(samples[:_RUNS]))


def _groups(probes: Sequence[_Probe]) -> list[list[_Probe]]:
    groups: list[list[_Probe]] = []
    held = 0
    for probe in probes:
        if not groups or held + probe.bytes > _PROBE_BYTES or len(groups[-1]) >= _PROBES:
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
            size = (conv.out_channels, conv.in_channels, *conv.kernel)
            kernel = rng.standard_normal(size, np.float32) / math.sqrt(math.prod(size[1:]))
            weights.append(numpy_helper.from_array(kernel.astype(probe.dtype), f"{name}.weight"))
            node = helper.make_node(
                "Conv", [value, f"{name}.weight"], [f"{name}.y"], name=name, **dict(conv.attributes)
            )
            nodes.append(node)
            value = f"{name}.y"
        outputs.append(helper.make_tensor_value_info(value, element, None))
    graph = helper.make_graph(nodes, "probes", list(inputs.values()), outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


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
        if event["args"]["op_name"].endswith("Conv"):
            probe, _, piece = name.removesuffix("_kernel_time").partition(".")
            current = int(probe)
            if not piece.startswith("0"):
                runs[-1][current] += waiting.pop(current, 0.0)
            runs[-1][current] += seconds
            waiting[current] = 0.0
        elif current >= 0 and current in waiting:
            waiting[current] += seconds
    return np.array(runs[:-1])
