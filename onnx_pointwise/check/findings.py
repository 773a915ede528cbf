"""What is not as it should be, told from what two networks gave; and what makes a check worth less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_pointwise.check.answers import HeadCheck, worst_of
from onnx_pointwise.check.kept import Given
from onnx_pointwise.check.limits import LIKENESSES, WORDS, Likeness, MaxDrift, limit_of
from onnx_pointwise.check.results import Finding, Inputs, ProviderCheck
from onnx_pointwise.check.running import Side, run
from onnx_pointwise.check.trials import Batch
from onnx_pointwise.graph import ModelSource
from onnx_pointwise.numerics import Drift
from onnx_pointwise.runtime import Array, ignores_threads, output_of
from onnx_pointwise.settings import CheckSettings


def declared_differences(before: Side, after: Side) -> list[Finding]:
    """Compare names, element types and shapes that the two graphs declare."""
    findings = []
    for kind, was, now in (("inputs", before.inputs, after.inputs), ("outputs", before.outputs, after.outputs)):
        if was != now:
            text = f"The declared {kind} differ: {'; '.join(was)} before, {'; '.join(now)} after."
            findings.append(Finding(f"declared_{kind}", text, {"before": list(was), "after": list(now)}))
    return findings


def shape_faults(
    before: ModelSource | bytes,
    provider: str,
    batch: Batch,
    first: Given,
    second: Given | str,
    settings: CheckSettings,
) -> list[Finding]:
    """Compare shapes and element types of one run; outputs that one side lacks are declared as such."""
    given = str(batch)
    if isinstance(second, str):
        text = f"On {provider} with inputs {given} the second network does not run: {second}."
        return [Finding("does_not_run", text, {"provider": provider, "input_shapes": batch.lists()})]
    faults = _item_faults(provider, given, first, second)
    for name, was in first.items():
        if name not in second:
            continue
        now = second[name]
        numbers: dict[str, Any] = {"provider": provider, "output": name}
        if was.dtype != now.dtype:
            text = f"Output '{name}' is {now.dtype} instead of {was.dtype} on {provider}."
            faults.append(Finding("output_dtype", text, numbers | {"before": str(was.dtype), "after": str(now.dtype)}))
        if was.shape != now.shape and not _depends_on_data(before, provider, batch, name, was, settings):
            text = (
                f"Output '{name}' has shape {list(now.shape)} instead of {list(was.shape)} on {provider} with {given}."
            )
            numbers |= {"input_shapes": batch.lists(), "before": list(was.shape), "after": list(now.shape)}
            faults.append(Finding("output_shape", text, numbers))
    return faults


def _item_faults(provider: str, given: str, first: Given, second: Given) -> list[Finding]:
    """Compare how many items each sequence has."""
    was, now = (_items(values) for values in (first, second))
    return [
        Finding(
            "output_shape",
            f"Output '{name}' has {now[name]} items instead of {was[name]} on {provider} with {given}.",
            {"provider": provider, "output": name, "before": was[name], "after": now[name]},
        )
        for name in was
        if name in now and was[name] != now[name]
    ]


def _items(values: Given) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in values:
        owner = output_of(name, ())
        if owner != name:
            counts[owner] = counts.get(owner, 0) + 1
    return counts


def _depends_on_data(
    before: ModelSource | bytes, provider: str, batch: Batch, name: str, output: Array, settings: CheckSettings
) -> bool:
    """Tell whether the first network's own output has another shape for other inputs of the same shape."""
    generator = np.random.default_rng(settings.seed + 1)
    shuffled = {
        key: generator.permutation(array.ravel()).reshape(array.shape) * array.dtype.type(2)
        if array.dtype.kind == "f"
        else array
        for key, array in batch.feeds.items()
    }
    again = run(before, [Batch(shuffled, False)], provider, settings)
    values = again.values[0]
    return not isinstance(values, str) and (name not in values or values[name].shape != output.shape)


# --- drift of outputs -------------------------------------------------------------------------------------------------


def drift_faults(provider: str, drift: Mapping[str, Drift], max_drift: MaxDrift) -> list[Finding]:
    """Find outputs that turned NaN or infinite, or moved further than they may."""
    faults = []
    # Of a detector that finds nothing an output may well be empty, as long as there are others.
    any_values = any(value.values for value in drift.values())
    for name, value in drift.items():
        numbers: dict[str, Any] = {"provider": provider, "output": name}
        if value.non_finite_differs:
            text = (
                f"Output '{name}' on {provider} has {value.non_finite_after} NaN or infinite values where it had "
                f"{value.non_finite_before}, {value.non_finite_differs} of them at other places or of another kind."
            )
            counts = {"before": value.non_finite_before, "after": value.non_finite_after}
            faults.append(Finding("non_finite", text, numbers | counts))
        limit = limit_of(name, max_drift)
        if limit is None:
            continue
        if value.relative_l2 > limit:
            text = f"Output '{name}' drifts by {value.relative_l2:.4g} on {provider}, more than the {limit:g} allowed."
            faults.append(Finding("drift", text, numbers | {"drift": value.to_dict()["relative_l2"], "limit": limit}))
        elif value.values in (value.non_finite_before, value.non_finite_after) and (value.values or not any_values):
            text = f"The limit on output '{name}' compared nothing on {provider}: {_of_values(value)}; {_GIVE}"
            faults.append(Finding("nothing_compared", text, numbers | {"limit": limit}))
    return faults


def _of_values(value: Drift) -> str:
    return f"all of its {value.values} values are NaN or infinite" if value.values else "it holds no values"


def never_compared(
    provider: str, drift: Mapping[str, Drift], outputs: Sequence[str], max_drift: MaxDrift
) -> list[Finding]:
    """Find limits on outputs that were compared in no run.

    Args:
        provider: Where both networks ran.
        drift: Drift of what was compared.
        outputs: Outputs that count.
        max_drift: The limit; one for all has failed where none of them was compared.
    """
    compared = {output_of(name, outputs) for name in drift}
    missing = [name for name in outputs if name not in compared and limit_of(name, max_drift) is not None]
    if not isinstance(max_drift, Mapping) and compared:
        missing = []
    return [
        Finding(
            "nothing_compared",
            f"The limit on output '{name}' compared nothing on {provider}: no run gave the same shape in both "
            f"networks; {_GIVE}",
            {"provider": provider, "output": name},
        )
        for name in missing
    ]


# What inputs are called that are no real ones.
_UNREAL: Mapping[Inputs, str] = {"random": "random numbers", "drawn": "synthetic images"}
_UNSURE = (
    "That is on {}, and real inputs may show nothing of it: give some with --inputs FILE.npz or FILE.npz:KEY first. If "
    "they do, take"
)
_GIVE = "give inputs on which it has finite numbers with --inputs, or leave it out with --ignore-output."


# --- answers ----------------------------------------------------------------------------------------------------------


def answer_faults(provider: str, heads: Sequence[HeadCheck], settings: CheckSettings, inputs: Inputs) -> list[Finding]:
    """Find answers that are broken or less alike than required, that moved too far, or that could not be compared."""
    faults = [_nothing(provider, head) for head in heads if head.severity is None]
    if not heads:
        text = f"The networks have no answers that could be compared on {provider}; name a value with --head."
        faults.append(Finding("nothing_compared", text, {"provider": provider}))
    faults += _limited_heads(provider, heads, settings.max_drift)
    worst = worst_of(heads)
    if worst is None or worst.verdict is None:
        return faults
    numbers = worst.to_dict() | {"provider": provider}
    if worst.verdict == "broken":
        first = _UNSURE.format(_UNREAL[inputs]) if inputs in _UNREAL else "Take"
        text = (
            f"The network is broken on {provider}: {worst.figure} at {worst.place}, "
            f"{_beyond(worst, 'broken')}. "
            f"{first} a larger budget or more example inputs, or leave the convolutions that did it as they are with "
            "--exclude; check --sites names them."
        )
        faults.append(Finding("broken", text, numbers))
    elif LIKENESSES.index(worst.verdict) > LIKENESSES.index(settings.require):
        text = (
            f"The answers are {WORDS[worst.verdict]} on {provider}, though {WORDS[settings.require]} was required: "
            f"{worst.figure} at {worst.place}, {_beyond(worst, worst.verdict)}."
        )
        faults.append(Finding("not_alike", text, numbers | {"required": settings.require}))
    return faults


def _beyond(head: HeadCheck, verdict: Likeness) -> str:
    """Say which limit a head is beyond, and why that is higher than usual."""
    assert head.limits is not None, "it has a verdict"
    limit = head.limits[LIKENESSES.index(verdict) - 1]
    if head.judged_by == "drift" or head.kind == "numbers":
        return f"above the limit of {limit:g}"
    if head.plain is None:
        return f"below the limit of {limit:g}"
    return f"below the limit of {limit:.1f} dB, where a mere linear filter of the input has {head.plain:.1f} dB"


def _nothing(provider: str, head: HeadCheck) -> Finding:
    text = (
        f"Nothing could be compared at {head.place} on {provider}: it holds no finite number, or has another shape in "
        f"the second network; {_GIVE}"
    )
    return Finding("nothing_compared", text, {"provider": provider, "head": head.value})


def _limited_heads(provider: str, heads: Sequence[HeadCheck], max_drift: MaxDrift) -> list[Finding]:
    """Limits on heads by name; those on outputs are held to outputs."""
    if not isinstance(max_drift, Mapping):
        return []
    faults = []
    for head in heads:
        limit = max_drift.get(head.value)
        if limit is not None and head.value not in head.outputs and head.drift is not None and head.drift > limit:
            text = f"Head '{head.value}' drifts by {head.drift:.4g} on {provider}, more than the {limit:g} allowed."
            numbers = {"provider": provider, "head": head.value, "drift": head.to_dict()["drift"], "limit": limit}
            faults.append(Finding("drift", text, numbers))
    return faults


# --- providers --------------------------------------------------------------------------------------------------------

# Half precision inside a provider moves outputs by less than this.
_PROVIDER_ERROR = 0.01
# Rounding of float32 moves outputs by less than this, that of bfloat16 or float16 by more.
_LESS_PRECISE = 5e-4


def provider_faults(provider: str, dense: Mapping[str, Drift], rewritten: Mapping[str, Drift]) -> Iterator[Finding]:
    """Find outputs that a provider computes otherwise than the CPU, though it gets the first network right.

    Seen with WebGPU 0.4: with its own layout, kernels larger than 1x1 are wrong where the number of input channels is
    a multiple of 3 above 3 but not of 4, and that of output channels one of 4.
    """
    for name, value in rewritten.items():
        usual = dense[name].relative_l2 if name in dense else 0.0
        if value.relative_l2 > max(_PROVIDER_ERROR, 10 * usual):
            text = (
                f"{provider} computes output '{name}' of the second network otherwise than the CPU: it differs by "
                f"{value.relative_l2:.2g}, that of the first network by {usual:.1g}; choose other ranks, first of all "
                "multiples of 4, or another provider."
            )
            error = value.to_dict()["relative_l2"]
            numbers = {"provider": provider, "output": name, "rewritten": error, "dense": usual}
            yield Finding("provider_differs", text, numbers)


# Rounding moves answers by less than this.
_ROUNDING = 1e-4


def unreal_warning(inputs: Inputs, results: Sequence[ProviderCheck]) -> Iterator[str]:
    """Say what a verdict is worth that no real inputs stand behind, where anything moved at all."""
    if inputs not in _UNREAL or all((head.drift or 0.0) <= _ROUNDING for result in results for head in result.heads):
        return
    if inputs == "drawn":
        yield (
            "No inputs were given, so both networks ran on synthetic images: how alike their answers are on real ones, "
            "only real ones tell; give some with --inputs."
        )
    else:
        yield (
            "No inputs were given, so both networks ran on random numbers, which they were not made for: a verdict on "
            "them says little of real inputs, good or bad; give some with --inputs."
        )


def provider_warnings(results: Sequence[ProviderCheck], threads: int | None) -> Iterator[str]:
    """Say what is odd about a provider."""
    for result in results:
        if result.software:
            yield f"{result.provider} ran on {result.device}, a device emulated on the CPU, so it was not timed."
        for name, value in (result.dense_from_cpu or {}).items():
            if value.relative_l2 > _PROVIDER_ERROR:
                yield (
                    f"{result.provider} computes output '{name}' of the first network otherwise than the CPU already: "
                    f"it differs by {value.relative_l2:.2g}."
                )
        moved = max((value.relative_l2 for value in (result.dense_from_cpu or {}).values()), default=0.0)
        if _LESS_PRECISE < moved <= _PROVIDER_ERROR:
            yield (
                f"{result.provider} computes in a lower precision than the CPU (the first network alone differs by "
                f"{moved:.2g}): drift is that of both networks in this precision."
            )
        if threads is not None and ignores_threads(result.provider):
            yield (
                f"{result.provider} cannot be told how many threads to take: it ran with as many as it likes, not with "
                f"{threads}."
            )
        extra = len(result.nodes_off) - len(result.nodes_off_before)
        if extra > 0:
            more = "1 more node runs" if extra == 1 else f"{extra} more nodes run"
            yield f"On {result.provider} {more} on another provider than before."
        if result.latency is not None and result.latency.verdict == "slower":
            yield f"On {result.provider} the second network takes {result.latency.ratio:.2f} times as long."
