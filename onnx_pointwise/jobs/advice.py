"""What a specialist would say of a network's figures: each sentence with its number, and the command that shows it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.graph import ModelCost, ModelSource, SiteCost, frozen
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.latency import SiteLatency
from onnx_pointwise.runtime import (
    Elsewhere,
    LatencyComparison,
    Machine,
    NodeTime,
    compare,
    elsewhere,
    installed_providers,
    node_times,
)

# Of a network whose convolutions have less of the MACs, or of the time, than this little is to be had.
_LITTLE = 0.5
# A kernel that takes less, in seconds, has no room for another one beside it: starting one takes some microseconds.
_SHORT = 30e-6
# A provider has to be this much faster to be worth a move.
_FASTER = 0.95
# A network that moves its weights and activations at this share of what a copy reaches waits for memory.
_BOUND = 0.5
# ... and one that would move so many times as much does not: rows of a table that are looked up, not the whole table.
_BEYOND = 4.0
# Less than this stays in the caches of the processor, in bytes.
_CACHED = 2**25
_COPIED = 2**26
_COPIES = 3
# Seconds and runs of what is measured for advice alone.
_SECONDS, _RUNS = 2.0, 10


@dataclass(frozen=True)
class Advice:
    """One thing to do or to know.

    Attributes:
        code: What it is about: ``share``, ``inputs``, ``treads``, ``time``, ``short``, ``memory``, ``int8``, ``amx``,
            ``providers``.
        sentence: The same for a person.
        numbers: What it rests on.
        command: What shows it; empty where nothing has to be shown.
    """

    code: str
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    command: str = ""

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give the same as JSON-ready values."""
        return {
            "code": self.code,
            "sentence": self.sentence,
            "numbers": dict(self.numbers),
            "command": self.command,
        }


def of_convolutions(
    name: str,
    total: ModelCost,
    rewritable: Sequence[SiteCost],
    timed: Sequence[SiteLatency],
    overridable: Sequence[str],
    installed: Sequence[str] = (),
) -> tuple[Advice, ...]:
    """Advise on a network by its convolutions.

    Args:
        name: The network's.
        total: What it costs.
        rewritable: What each convolution costs that can be rewritten.
        timed: Latency over ranks, where it was measured.
        overridable: Initializers that are graph inputs, too.
        installed: Providers beside the CPU whose packages are installed.
    """
    found = []
    share = sum(cost.macs for cost in rewritable) / max(1, total.macs)
    numbers = {"share": share, "convolutions": float(len(rewritable))}
    if share < _LITTLE:
        sentence = f"Only {_percent(share)} of the MACs are in convolutions that can be rewritten: no more is saved."
        found.append(Advice("share", sentence, numbers))
    else:
        sentence = f"Convolutions that can be rewritten have {_percent(share)} of the MACs; what they can give up shows"
        found.append(Advice("share", sentence, numbers, f"sweep {name}"))
    if overridable:
        found.append(_inputs(name, len(overridable), None))
    if timed:
        best = [min((seconds / one.dense for seconds in one.seconds), default=1.0) for one in timed]
        faster = sum(ratio < 1.0 for ratio in best)
        found.append(
            Advice(
                "treads",
                f"A lower rank is faster at {faster} of {len(timed)} of them, at best in {min(best):.2f} of the time.",
                {"faster": float(faster), "of": float(len(timed)), "best": min(best)},
            )
        )
    if installed:
        sentence = f"Installed beside the CPU: {', '.join(installed)}; which of them is fastest"
        found.append(Advice("providers", sentence, {"installed": float(len(installed))}, f"bench {name}"))
    return tuple(found)


def of_latency(
    name: str,
    model: ModelSource | bytes,
    timing: Mapping[str, Any],
    seconds: float,
    cost: ModelCost | None,
    machine: Machine,
    overridable: Sequence[str],
) -> tuple[Advice, ...]:
    """Advise on a network by what it takes on the CPU, for which its kernels are timed once more.

    Args:
        name: The network's.
        model: The network.
        timing: How it was timed.
        seconds: What one run took.
        cost: What it costs at these shapes; None where that is not known.
        machine: Where.
        overridable: Initializers that are graph inputs, too.
    """
    found = []
    if overridable and not isinstance(model, bytes):
        both = compare(model, frozen(model), **{**timing, "max_seconds": min(_SECONDS, timing["max_seconds"])})
        found.append(_inputs(name, len(overridable), both))
    kernels = node_times(model, **_how(timing))
    found += _by_kernels(name, kernels, machine)
    if cost is None or not cost.activation_bytes:
        return tuple(found)
    moved = cost.bytes + 2 * cost.activation_bytes
    if moved < _CACHED:
        return tuple(found)
    reached, copied = moved / seconds, _copying()
    if _BOUND * copied < reached < _BEYOND * copied:
        sentence = (
            f"It moves about {reached / 1e9:.1f} GB/s, a copy on this machine {copied / 1e9:.1f} GB/s: it waits for "
            "memory, and fewer MACs alone make it little faster."
        )
        found.append(Advice("memory", sentence, {"bytes_per_second": reached, "copy": copied}))
    return tuple(found)


def others(tell: Callable[[str], None], model: ModelSource | bytes, timing: Mapping[str, Any]) -> list[Elsewhere]:
    """Time a network on every other provider that is installed, each in a process of its own.

    Those that do not load, or run it too slowly to wait for, are left out: `discover` and `compare` say why.

    Args:
        tell: Told which provider is taken up.
        model: The network.
        timing: How it was timed on the CPU.
    """
    found = []
    for provider in beside_the_cpu():
        tell(provider)
        how = {**timing, "provider": provider, "max_seconds": min(_SECONDS, timing["max_seconds"])}
        with contextlib.suppress(OnnxPointwiseError):
            found.append(elsewhere(model, **how))
    return found


def beside_the_cpu() -> list[str]:
    """Providers other than the CPU whose packages are installed; whether they load is another question."""
    return [provider for provider in installed_providers() if provider != "cpu"]


def of_providers(name: str, timed: Sequence[Elsewhere]) -> tuple[Advice, ...]:
    """Advise on where to run a network.

    Args:
        name: The network's.
        timed: What it takes on others than the CPU.
    """
    if not timed:
        return ()
    ranked = sorted(timed, key=lambda one: one.ratio)
    best, rest = ranked[0], ranked[1:]
    numbers = {one.provider: one.ratio for one in ranked}
    after = "".join(f", on {one.provider} {one.ratio:.2f}" for one in rest)
    if best.ratio < _FASTER:
        sentence = f"The fastest provider here is {best.provider}: {best.ratio:.2f} of the CPU's time"
    else:
        sentence = f"No provider here is faster than the CPU: on {best.provider} it takes {best.ratio:.2f} of the time"
    return (Advice("providers", f"{sentence}{after}", numbers, f"bench {name} --provider {best.provider}"),)


def _by_kernels(name: str, kernels: Sequence[NodeTime], machine: Machine) -> list[Advice]:
    """What the time of the kernels says."""
    total = sum(kernel.seconds for kernel in kernels) or 1.0
    convolutions = [kernel.seconds for kernel in kernels if kernel.site is not None]
    if not convolutions:
        return [Advice("time", "No kernel is a convolution: there is nothing to rewrite.", {"share": 0.0})]
    share, middle = sum(convolutions) / total, statistics.median(convolutions)
    numbers = {"share": share, "median_seconds": middle}
    command = f"bench {name} --nodes"
    fast = next((kind for kind in machine.instruction_sets if "AMX" in kind or "VNNI" in kind), None)
    if share < _LITTLE:
        sentence = f"Convolutions take only {_percent(share)} of the time: neither a rewrite nor int8 saves more."
        return [Advice("time", sentence, numbers, command)]
    found = [Advice("time", f"Convolutions take {_percent(share)} of the time.", numbers, command)]
    if middle < _SHORT:
        sentence = (
            f"Half of them take less than {1e6 * middle:.0f} us, which leaves little room for another kernel: "
            f"{'int8 alone may be best' if fast else 'larger batches may do more than a rewrite'}, and latency decides."
        )
        found.append(Advice("short", sentence, numbers, f"inspect {name} --treads cpu"))
    elif fast is not None:
        sentence = f"The CPU has {fast}: int8 and a rewrite will both pay, and multiply; rewrite first, then quantise."
        found.append(Advice("int8", sentence, numbers, f"rewrite {name} OUT"))
    if any("AMX" in kind for kind in machine.instruction_sets) and "openvino" not in installed_providers():
        sentence = "With AMX the OpenVINO plug-in may run plain 3x3 networks several times as fast as this provider."
        found.append(Advice("amx", sentence, {}, f"bench {name} --provider openvino"))
    return found


def _inputs(name: str, count: int, measured: LatencyComparison | None) -> Advice:
    """What initializers cost that a caller may override."""
    numbers = {"initializers": float(count)}
    costs = "keeps ONNX Runtime from optimising fully"
    if measured is not None:
        numbers["ratio"] = measured.ratio
        costs = f"as constants it takes {measured.ratio:.2f} of the time ({measured.verdict})"
    said = f"{count} initializers are graph inputs, too, which {costs}" if measured is None else ""
    said = said or f"{count} initializers are graph inputs, too: {costs}"
    return Advice("inputs", f"{said}.", numbers, f"bench {name} --freeze-initializers")


def _how(timing: Mapping[str, Any]) -> dict[str, Any]:
    """How kernels are timed: as the network was."""
    return {**{name: value for name, value in timing.items() if name != "max_seconds"}, "runs": _RUNS, "warmup": 3}


def _copying() -> float:
    """Bytes per second that a copy reads and writes, the best of a few."""
    source = np.ones(_COPIED // 4, np.float32)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(_COPIES):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2.0 * source.nbytes / best


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
