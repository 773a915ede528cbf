"""What "the same" means: how far each kind of answer may be off before it is close, changed or broken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from onnx_pointwise.errors import InputError
from onnx_pointwise.numerics import MOST_DECIBELS
from onnx_pointwise.runtime import output_of
from onnx_pointwise.study import Kind

#: What a network is compared with another, from the best to the worst.
Likeness = Literal["same", "close", "changed", "broken"]
LIKENESSES: tuple[Likeness, ...] = get_args(Likeness)
#: The same for a person.
WORDS: Mapping[Likeness, str] = {"same": "the same", "close": "close", "changed": "changed", "broken": "broken"}

#: What has limits: the kinds of head, and what a picture has to gain on a plain filter of the input.
Limited = Kind | Literal["gain"]
#: Up to which figure a head is the same, close, and only changed. Classes and presence by the share that agrees,
#: pictures by decibels, and by decibels beyond those of the best linear filter of the input, numbers by drift.
LIMITS: Mapping[Limited, tuple[float, float, float]] = {
    "classes": (0.99, 0.95, 0.8),
    "presence": (0.99, 0.95, 0.8),
    "picture": (40.0, 34.0, 26.0),
    "gain": (15.0, 10.0, 6.0),
    "numbers": (0.05, 0.15, 0.5),
}
# A gain raises the limits of a picture to these decibels at most: what comes near the rounding of eight bits is not
# worth more.
_HIGHEST = (52.0, 49.0, 46.0)
_BEST: Mapping[Kind, float] = {"classes": 1.0, "presence": 1.0, "picture": MOST_DECIBELS, "numbers": 0.0}

Limits = Mapping[Limited, tuple[float, float, float]]


def limits_of(given: Mapping[str, Sequence[float]] | None) -> Limits:
    """Put limits that were given in the place of the usual ones.

    Raises:
        InputError: There is no such kind of head, or the numbers are not three in a row from better to worse.
    """
    limits: dict[Limited, tuple[float, float, float]] = dict(LIMITS)
    for name, numbers in (given or {}).items():
        kind = next((kind for kind in LIMITS if kind == name), None)
        if kind is None:
            raise InputError(f"There is no kind of head '{name}' to limit; the kinds are {', '.join(LIMITS)}.")
        falling = kind != "numbers"
        ordered = sorted(numbers, reverse=falling)
        if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers) or list(numbers) != ordered:
            raise InputError(
                f"The limits of {kind} must be three numbers, {'falling' if falling else 'rising'}: up to where it is "
                f"the same, close, and only changed, as {','.join(f'{number:g}' for number in LIMITS[kind])}; not "
                f"{','.join(f'{number:g}' for number in numbers)}."
            )
        limits[kind] = (float(numbers[0]), float(numbers[1]), float(numbers[2]))
    return limits


def raised(limits: Limits, plain: float | None) -> tuple[float, float, float]:
    """The limits of a picture, in decibels, where a linear filter of its input comes near it.

    Args:
        limits: Those of all kinds.
        plain: What the best linear filter has; None where that is unknown.
    """
    usual = limits["picture"]
    if plain is None:
        return usual
    first, second, third = (
        max(low, min(plain + more, high)) for low, more, high in zip(usual, limits["gain"], _HIGHEST, strict=True)
    )
    return first, second, third


def severity(kind: Kind, figure: float, limits: tuple[float, float, float]) -> float:
    """How far along its limits a figure is: below 1 the same, below 2 close, below 3 changed, below 4 broken."""
    sign = 1.0 if kind == "numbers" else -1.0
    marks = (_BEST[kind], *limits)
    step = sum(not sign * figure <= sign * mark for mark in limits)
    gone = max(0.0, sign * (figure - marks[step]))
    if step == len(limits):
        share = gone / (1.0 + gone) if math.isfinite(gone) else 1.0
    else:
        wide = abs(marks[step + 1] - marks[step])
        share = gone / wide if wide else 0.0
    return step + min(share, 0.999)


def likeness(severity: float) -> Likeness:
    """The word for a severity."""
    return LIKENESSES[int(min(severity, 3.0))]


# --- limits on the drift of outputs -----------------------------------------------------------------------------------

MaxDrift = float | Mapping[str, float] | None


def limit_of(name: str, max_drift: MaxDrift) -> float | None:
    """The limit on the drift of an output; one for a sequence holds for its items."""
    if isinstance(max_drift, Mapping):
        return max_drift.get(name, max_drift.get(output_of(name, ())))
    return max_drift
