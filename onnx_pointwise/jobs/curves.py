"""What each rank of a convolution would lose, as it was known when the plan was made: the curves behind a choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import Choice, Site
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import Form, even_terms
from onnx_pointwise.planning import Options
from onnx_pointwise.study import Study

# Ranks of a curve that are kept, at most: a drawing shows no more.
_RANKS = 33

Basis = Literal["examples", "kernel"]


@dataclass(frozen=True)
class Curve:
    """Error of a convolution's output over the rank, in one form; `reduce_expand`, which has two ranks, has no curve.

    Attributes:
        form: The form.
        basis: What it is known from: examples that the factors were not made from, or the kernel alone, of which the
            ranks that were worth considering are told.
        ranks: Ranks, rising.
        errors: Relative L2 error of the output at each.
    """

    form: Form
    basis: Basis
    ranks: tuple[int, ...]
    errors: tuple[float, ...]

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {"form": self.form, "basis": self.basis, "ranks": list(self.ranks), "errors": list(self.errors)}


def curves_of(found: Study | None, listed: Sequence[Options]) -> dict[str, tuple[Curve, ...]]:
    """Give the curves of all sites that something had to be decided at, by name.

    Args:
        found: What the examples told; ``None`` without any.
        listed: What could be done to each site.
    """
    made = {}
    for option in listed:
        name = option.site.name
        known = None if found is None else found.sensitivities.get(name)
        if known is not None:
            made[name] = tuple(
                _measured(form, known.errors(form, _useful(option.site, form, curve)))
                for form, curve in known.curves.items()
                if curve.ndim == 1
            )
        else:
            made[name] = _listed(option.choices)
    return made


def _useful(site: Site, form: Form, curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a curve up to the rank that costs what the site does: `depthwise` has many more."""
    if form != "depthwise":
        return curve
    return curve[: 2 + round(even_terms(site.in_channels, site.out_channels, site.taps))]


def _measured(form: Form, squared: Any) -> Curve:
    """A curve over all ranks from 1 on, thinned."""
    last = len(squared) - 1
    ranks = np.unique(np.linspace(1, last, min(last, _RANKS)).round().astype(int)) if last >= 1 else np.zeros(0, int)
    errors = np.sqrt(np.maximum(np.asarray(squared)[ranks], 0.0))
    return Curve(form, "examples", tuple(int(rank) for rank in ranks), tuple(float(error) for error in errors))


def _listed(choices: Sequence[Choice | None]) -> tuple[Curve, ...]:
    """The candidates of each form that has one rank."""
    forms: dict[Form, dict[int, float]] = {}
    for choice in choices:
        if choice is not None and isinstance(choice.rank, int) and choice.error is not None:
            forms.setdefault(choice.form, {})[choice.rank] = choice.error
    made = []
    for form, errors in forms.items():
        ranks = sorted(errors)
        step = math.ceil(len(ranks) / _RANKS)
        kept = ranks[::-1][::step][::-1]
        made.append(Curve(form, "kernel", tuple(kept), tuple(errors[rank] for rank in kept)))
    return tuple(made)
