"""Where a network's time goes: seconds of each kernel, from ONNX Runtime's profile, mapped back to convolutions."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx_ir as ir

from onnx_pointwise.graph import ModelSource, as_model, find_sites, frozen, runtime_source
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.runtime import providers
from onnx_pointwise.runtime.profile import Kernel, profile_cost, read_profile
from onnx_pointwise.runtime.running import Profiling
from onnx_pointwise.schema import job
from onnx_pointwise.scratch import ScratchFolder


@dataclass(frozen=True)
class NodeTime:
    """Time of one kernel, as the runtime's profile gives it.

    Attributes:
        name: The runtime's name for the node, which fusions and layout changes alter.
        op_type: Operator that ran.
        provider: Short name of the provider that ran it.
        seconds: Mean of the middle half of the runs. On a GPU this is the time to launch the kernel.
        site: Name of the convolution of the model that this kernel is or was fused from; None for any other kernel.
        reads: Element type of its first input, ``float``, ``uint8``; None where it has none.
    """

    name: str
    op_type: str
    provider: str
    seconds: float
    site: str | None
    reads: str | None = None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return asdict(self)


@job(Profiling)
def node_times(model: ModelSource | bytes, settings: Profiling) -> list[NodeTime]:
    """Time every kernel of a network from ONNX Runtime's profile, in the order in which they run.

    What the profile itself costs is taken off, see `profile_cost`; the sum of all kernels is about the latency of the
    network, without what lies between two of them. Errors as for `compare`.

    Args:
        model: The network.
        settings: How it is run, in place of the keywords that follow.
    """
    if settings.freeze_initializers:
        model = frozen(model)
    feeds = settings.feeds(model)
    graph = as_model(model)
    copy, aliases = _profiled(graph)
    with (
        runtime_source(copy or model) as source,
        ScratchFolder() as folder,
    ):
        runner = settings.runner(source, feeds, model, profile=folder / "profile")
        for _ in range(settings.warmup + settings.runs):
            runner.run()
        cost = profile_cost(settings.provider, settings.threads)
        runs = read_profile(runner.session.end_profiling(), cost)[-settings.runs :]
    if aliases:
        runs = [[replace(kernel, name=_meant(kernel.name, aliases)) for kernel in run] for run in runs]
    sites = _site_names(graph)
    return [
        NodeTime(name, op_type, providers.short_name(runtime_name), _typical(seconds), _site(name, sites), reads)
        for (name, op_type, runtime_name, reads), seconds in _kernel_seconds(runs).items()
    ]


#: Node, operator, provider, and element type of the first input.
_Kernel = tuple[str, str, str, str | None]


def _kernel_seconds(runs: Sequence[Sequence[Kernel]]) -> dict[_Kernel, list[float]]:
    """Give kernel -> seconds in each run; all turns of a loop count to one."""
    # In the order in which they first ran; a kernel in one branch of an If may be missing from some runs.
    found: dict[_Kernel, list[float]] = {}
    for index, run in enumerate(runs):
        for kernel in run:
            key = kernel.name, kernel.op_type, kernel.provider, kernel.reads
            found.setdefault(key, [0.0] * len(runs))[index] += kernel.seconds
    return found


def _typical(seconds: Sequence[float]) -> float:
    """Mean of the middle half: the profile counts whole microseconds, which a median would keep."""
    aside = len(seconds) // 4
    return statistics.fmean(sorted(seconds)[aside : len(seconds) - aside])


def site_times(times: Sequence[NodeTime]) -> dict[str, float]:
    """Add up the seconds of `node_times` by site."""
    totals: dict[str, float] = {}
    for time_ in times:
        if time_.site is not None:
            totals[time_.site] = totals.get(time_.site, 0.0) + time_.seconds
    return totals


@dataclass(frozen=True)
class FloatShare:
    """Kernels of one operator that compute in float32, or convert, in a network that was made for another precision.

    Attributes:
        op_type: The operator.
        kernels: How many there are.
        share: Their share of the time of all kernels.
    """

    op_type: str
    kernels: int
    share: float

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return asdict(self)


#: Kernels that only convert between precisions.
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "Cast"}


def float_shares(times: Sequence[NodeTime]) -> list[FloatShare]:
    """Add up what computes in float32 and what converts to it or from it, by operator, the longest first."""
    total = sum(time.seconds for time in times) or 1.0
    found: dict[str, list[float]] = {}
    for time in times:
        if time.reads == "float" or time.op_type in CONVERSIONS:
            found.setdefault(time.op_type, []).append(time.seconds)
    shares = [FloatShare(op_type, len(seconds), sum(seconds) / total) for op_type, seconds in found.items()]
    return sorted(shares, key=lambda one: (-one.share, one.op_type))


# What may not stand in JSON as it is.
_AWKWARD = re.compile(r'["\\\x00-\x1f]')
# What the runtime fuses into a convolution before it.
_FUSED = {"BatchNormalization", "Relu", "Add", "Mul", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Identity"}


def _profiled(model: ir.Model) -> tuple[ir.Model | None, dict[str, str]]:
    """Make ready for a profile: every site's node has the site's name, and no name breaks the profile's JSON.

    ONNX Runtime 1.24 writes names into its profile as they are, quotes, backslashes and line breaks too.

    Returns:
        A copy, None where the model will do; and what its aliases stand for.
    """
    named = all(site.node.name == site.name for site in find_sites(model))
    if named and not any(_AWKWARD.search(thing.name or "") for thing in _named(model)):
        return None, {}
    copy = model.clone()
    for site in find_sites(copy):
        site.node.name = site.name
    fed = {value.name for value in copy.graph.inputs}
    aliases: dict[str, str] = {}
    for thing in _named(copy):
        if thing.name and thing.name not in fed and _AWKWARD.search(thing.name):
            alias = f"onnx_pointwise.alias{len(aliases)}."
            aliases[alias], thing.name = thing.name, alias
    return copy, aliases


def _named(model: ir.Model) -> Iterator[ir.Node | ir.Value]:
    """Everything that a kernel may be named after."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            yield node
            yield from node.outputs


def _meant(name: str, aliases: Mapping[str, str]) -> str:
    """A kernel's name with what aliases stand for."""
    for alias, meant in aliases.items():
        name = name.replace(alias, meant)
    return name


def _site_names(model: ir.Model) -> dict[str, str]:
    """Give site name or value name -> site, for each convolution and what may be fused into it.

    A fused kernel is named after the convolution or after the last value that was fused into it.
    """
    names: dict[str, str] = {}
    for site in find_sites(model):
        names[site.name] = site.name
        value = site.node.outputs[0]
        while value.name:
            names.setdefault(value.name, site.name)
            consumers = [use.node for use in value.uses()]
            if len(consumers) != 1 or consumers[0].op_type not in _FUSED:
                break
            value = consumers[0].outputs[0]
    return names


def _site(name: str, sites: Mapping[str, str]) -> str | None:
    """Map a kernel's name to its convolution, through what layout changes and fusions put around the name."""
    bare = re.sub(r"_token_\d+$", "", name).removeprefix("InsertedPrecisionFreeCast_")
    for candidate in (name, bare, bare.removesuffix("_nchwc"), bare.removesuffix("_nchwc").removeprefix("fused ")):
        if candidate in sites:
            return sites[candidate]
    return None
