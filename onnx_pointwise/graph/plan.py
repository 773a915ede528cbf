"""The plan: which sites are rewritten, in which form, at which rank. A JSON document that a person can edit."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, get_args

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph.cost import SiteCost, dense_cost, rewritten_cost
from onnx_pointwise.graph.pieces import takes
from onnx_pointwise.graph.sites import Refusal, Site
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import Form, Method, Rank, has_form

FORMAT = "onnx_pointwise plan"
VERSION = 1

# Convolutions named in an error message.
_NAMED = 5


@dataclass(frozen=True)
class Choice:
    """What happens to one site.

    Attributes:
        form: How the site is rewritten.
        rank: Channels between the pieces; a pair ``(R_in, R_out)`` for ``reduce_expand``.
        error: Predicted relative L2 error of the site's output, 0 to 1; ``None`` where it was not computed.
    """

    form: Form
    rank: Rank
    error: float | None = None

    def cost(self, site: Site) -> SiteCost:
        """Cost of the site as chosen here."""
        return rewritten_cost(site, self.form, self.rank)


@dataclass(frozen=True)
class Plan:
    """Site to form and rank, and why the other sites stay dense.

    Attributes:
        choices: Choice by site name, in graph order.
        refusals: Refusal by site name.
        method: How the factors are computed, see ``factorize``.
        budget: What was asked for, for the record.
        corrected: Sites that stay whole, whose weights make up for what those before them have changed, where examples
            tell how; by name.
        calibration: What the weights are computed from, for the record.
        latency: What was measured on the provider that the plan was made for, for the record; empty where it was made
            by arithmetic alone.
    """

    choices: Mapping[str, Choice]
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    method: Method = "als"
    budget: Mapping[str, Any] = field(default_factory=dict)
    corrected: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)

    def without(self, refused: Mapping[str, Refusal]) -> Plan:
        """Take sites out of the plan; they stay whole.

        Args:
            refused: Why, by site name.
        """
        choices = {name: choice for name, choice in self.choices.items() if name not in refused}
        whole = (*self.corrected, *(name for name in self.choices if name in refused)) if choices else ()
        return replace(self, choices=choices, refusals={**self.refusals, **refused}, corrected=whole)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict; only ``method``, ``sites`` and ``corrected`` matter when it is read again."""
        sites: dict[str, Any] = {}
        for name, choice in self.choices.items():
            rank = [int(part) for part in choice.rank] if isinstance(choice.rank, tuple) else int(choice.rank)
            sites[name] = {"form": choice.form, "rank": rank}
            if choice.error is not None:
                sites[name]["error"] = choice.error
        return {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "budget": dict(self.budget),
            "calibration": dict(self.calibration),
            "latency": dict(self.latency),
            "sites": sites,
            "corrected": list(self.corrected),
            "refusals": {name: refusal.to_dict() for name, refusal in self.refusals.items()},
        }

    def to_json(self) -> str:
        """Write the plan as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "the plan") -> Plan:
        """Read a plan.

        Args:
            text: JSON as ``to_json`` writes it; ``sites`` is all that must be there.
            where: What to call the plan in error messages.

        Raises:
            PlanError: Not JSON, not a plan, an unknown form or method, or a rank that is none.
        """
        try:
            document = json.loads(text, object_pairs_hook=_without_duplicates)
        except json.JSONDecodeError as error:
            raise PlanError(f"{where}: not JSON: {error.msg} in line {error.lineno}.") from error
        except RecursionError as error:
            raise PlanError(f"{where}: not a plan: it is nested too deeply.") from error
        except _DuplicateError as error:
            raise PlanError(f"{where}: '{error}' stands in it twice; keep one of them.") from error
        if not isinstance(document, dict) or not isinstance(document.get("sites"), dict):
            raise PlanError(f"{where}: not a plan: it needs an object 'sites' with a form and a rank for each site.")
        if document.get("format", FORMAT) != FORMAT:
            raise PlanError(f"{where}: not a plan: its format is {document['format']!r}, not {FORMAT!r}.")
        if document.get("version", VERSION) != VERSION:
            raise PlanError(f"{where}: version {document['version']!r} of the plan format is not known here.")
        for name in ("budget", "latency"):
            if not isinstance(document.get(name, {}), dict):
                raise PlanError(f"{where}: '{name}' must be an object; it may be left out.")
        method = document.get("method", "als")
        if method not in get_args(Method):
            raise PlanError(f"{where}: unknown method {method!r}; use one of {', '.join(get_args(Method))}.")
        choices = {name: _choice(name, entry, where) for name, entry in document["sites"].items()}
        budget, latency = document.get("budget", {}), document.get("latency", {})
        if latency and not _is_record(latency):
            raise PlanError(
                f"{where}: 'latency' is what was measured when the plan was made, and is not whole; leave it as it was "
                "written, or leave it out."
            )
        corrected = document.get("corrected", [])
        if not isinstance(corrected, list) or not all(isinstance(name, str) for name in corrected):
            raise PlanError(f"{where}: 'corrected' must be a list of names of convolutions; it may be left out.")
        if both := [name for name in corrected if name in choices]:
            raise PlanError(f"{where}: '{both[0]}' is rewritten, so it cannot stand among those corrected as they are.")
        return cls(choices, method=method, budget=budget, corrected=tuple(corrected), latency=latency)


# What is written down of measurements: seconds and shares, which may be missing where nothing was timed.
_MEASURED = ("dense_seconds", "sites_alone_seconds", "sites_inside_seconds", "sum_of_sites", "predicted")
_PERHAPS = ("measured", "noise")


def _is_record(latency: Mapping[str, Any]) -> bool:
    """Whether a record of measurements is as `planning` writes it, so that reports can tell it again."""
    sites = latency.get("sites")
    return (
        isinstance(latency.get("provider"), str)
        and isinstance(latency.get("threads"), int | None)
        and all(_is_number(latency.get(name)) for name in _MEASURED)
        and all(latency.get(name, 0) is None or _is_number(latency.get(name)) for name in _PERHAPS)
        and isinstance(sites, dict)
        and all(
            isinstance(site, dict)
            and _is_number(site.get("dense"))
            and _is_number(site.get("rewritten"))
            and site["dense"] > 0
            for site in sites.values()
        )
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _DuplicateError(ValueError):
    """A key that stands twice in one object: JSON readers would drop the first without a word."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _DuplicateError(key)
        made[key] = value
    return made


def _choice(name: str, entry: Any, where: str) -> Choice:
    if not isinstance(entry, dict):
        raise PlanError(f"{where}: site '{name}' needs an object with 'form' and 'rank'.")
    unknown = sorted(set(entry) - {"form", "rank", "error"})
    if unknown:
        raise PlanError(f"{where}: site '{name}' has an unknown entry '{unknown[0]}'; it takes form and rank.")
    rank = entry.get("rank")
    return make_choice(name, entry.get("form", "reduce"), tuple(rank) if isinstance(rank, list) else rank, where=where)


def make_choice(name: str, form: Any, rank: Any, *, where: str = "the plan") -> Choice:
    """Check a form and a rank that a person wrote.

    Args:
        name: The site.
        form: One of the forms.
        rank: A whole number of at least 1; for ``reduce_expand`` a pair of them, or one that counts for both.
        where: What to call the source in error messages.

    Raises:
        PlanError: The form is unknown, or the rank does not fit it.
    """
    if form not in get_args(Form):
        raise PlanError(f"{where}: site '{name}' has the unknown form {form!r}; use {', '.join(get_args(Form))}.")
    parts = rank if isinstance(rank, tuple) else (rank,)
    whole = [int(part) for part in parts if isinstance(part, Integral) and not isinstance(part, bool)]
    if len(whole) == len(parts) and min(whole, default=0) >= 1:
        if form == "reduce_expand" and len(parts) in (1, 2):
            return Choice(form, (whole[0], whole[-1]))
        if form != "reduce_expand" and len(parts) == 1:
            return Choice(form, whole[0])
    wanted = "two ranks" if form == "reduce_expand" else "a rank"
    given = list(rank) if isinstance(rank, tuple) else rank
    raise PlanError(
        f"{where}: site '{name}' needs {wanted} of at least 1 for {form}, whole numbers only, not {given!r}."
    )


def require_sites(plan: Plan, sites: Mapping[str, Site]) -> None:
    """Check that a plan fits a model.

    Raises:
        PlanError: A site of the plan is not in the model, or cannot be rewritten, or not in the form chosen.
    """
    for name in (*plan.choices, *plan.corrected):
        site, choice = sites.get(name), plan.choices.get(name)
        if site is None:
            close = difflib.get_close_matches(name, sites, n=_NAMED, cutoff=0.3)
            known = ", ".join(f"'{item}'" for item in (close or list(sites)[:_NAMED]))
            names = f"its convolutions are named like {known}" if known else "it has no convolution at all"
            raise PlanError(
                f"The model has no convolution '{name}'; {names}. The end of a name will do, or a name with … for a "
                "part of it, where only one is meant."
            )
        if not site.rewritable:
            assert site.refusal is not None
            raise PlanError(f"Convolution '{name}' cannot be rewritten: {site.refusal.reason}")
        if choice is None:
            continue
        if not has_form(choice.form, site.kernel_shape):
            size = "x".join(map(str, site.kernel_shape))
            wants = (
                f"which filters every feature map on its own, and a kernel of {size} filters none"
                if choice.form == "depthwise"
                else f"which splits a kernel between two of its axes: it is {size}"
            )
            found = f"Convolution '{name}' cannot be rewritten as {choice.form}, {wants}."
            raise PlanError(f"{found} Use reduce or expand.")
        if not takes(site, choice.form):
            raise PlanError(
                f"Convolution '{name}' cannot be rewritten as {choice.form}: its output_shape does not say what comes "
                "between the two pieces. Use reduce or expand."
            )


def saving(site: Site, choice: Choice) -> tuple[int, int]:
    """MACs and parameters that a choice saves; negative where it costs more."""
    dense, cost = dense_cost(site), choice.cost(site)
    return dense.macs - cost.macs, dense.params - cost.params
