"""The jobs end to end: rewrite a model, inspect it, insert one 1x1 convolution."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from onnx_pointwise.budget import Budget, choose, hand_made
from onnx_pointwise.check import CheckResult
from onnx_pointwise.check import check as check_models
from onnx_pointwise.cost import ModelCost, SiteCost, dense_cost, model_cost
from onnx_pointwise.errors import ModelError, OutputError, PlanError
from onnx_pointwise.factorize import FORMS, Form, Method
from onnx_pointwise.model_io import ModelSource, file_bytes, load, save
from onnx_pointwise.plan import Choice, Plan, make_choice, require_sites
from onnx_pointwise.rewrite import BottleneckPass, Replacement, replacement
from onnx_pointwise.shapes import Shape, resolve
from onnx_pointwise.sites import MIN_CHANNELS, Refusal, Site, find_sites


@dataclass(frozen=True)
class SiteResult:
    """What a rewrite did to one convolution.

    Attributes:
        name: The site's name.
        form: The form chosen, or ``None`` where it stays dense.
        rank: The rank chosen, or ``None``.
        error: Predicted relative L2 error of the site's output.
        before: Cost before; ``None`` where it is not known.
        after: Cost after; the same as before where the site stays dense.
        refusal: Why it stays dense.
    """

    name: str
    form: Form | None
    rank: int | tuple[int, int] | None
    error: float | None
    before: SiteCost | None
    after: SiteCost | None
    refusal: Refusal | None

    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "name": self.name,
            "form": self.form,
            "rank": list(self.rank) if isinstance(self.rank, tuple) else self.rank,
            "error": self.error,
            "macs_before": None if self.before is None else self.before.macs,
            "macs_after": None if self.after is None else self.after.macs,
            "params_before": None if self.before is None else self.before.params,
            "params_after": None if self.after is None else self.after.params,
            "refusal": None if self.refusal is None else self.refusal.to_dict(),
        }


@dataclass(frozen=True)
class RewriteResult:
    """A rewritten model and the evidence about it.

    Attributes:
        model: The rewritten model; the source is left as it was.
        plan: The plan that made it; replaying it gives the same bytes.
        sites: Every convolution of the model, in graph order.
        before: Cost of the source.
        after: Cost of the rewritten model.
        check: Both models compared in ONNX Runtime; ``None`` where ``check=False`` was asked for.
        input_shapes: The concrete input shapes behind all costs.
        assumed_inputs: Inputs whose open dimensions had to be assumed.
        seconds: Wall time of each stage, in seconds.
    """

    model: ir.Model
    plan: Plan
    sites: tuple[SiteResult, ...]
    before: ModelCost
    after: ModelCost
    check: CheckResult | None
    input_shapes: Mapping[str, Shape]
    assumed_inputs: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the check found nothing wrong, or was not asked for."""
        return self.check is None or self.check.passed

    def save(self, path: str | Path, *, use_external_data_format: bool | None = None) -> None:
        """Write the rewritten model; see ``model_io.save``."""
        save(self.model, path, use_external_data_format=use_external_data_format)

    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "sites": [site.to_dict() for site in self.sites],
            "check": None if self.check is None else self.check.to_dict(),
            "plan": self.plan.to_dict(),
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "assumed_inputs": list(self.assumed_inputs),
            "seconds": dict(self.seconds),
        }


class _Clock:
    """Wall time of consecutive stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._start = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now
        self.seconds["total"] = now - self._start


def rewrite(
    model: ModelSource,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    ranks: Mapping[str, int | tuple[int, int] | Choice] | None = None,
    plan: Plan | str | Path | None = None,
    forms: Sequence[Form] = FORMS,
    method: Method = "als",
    nodes_to_exclude: Sequence[str] = (),
    min_channels: int = MIN_CHANNELS,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inline_functions: bool = False,
    check: bool = True,
    max_drift: float | Mapping[str, float] | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    latency: bool = True,
    provider: str = "cpu",
    threads: int | None = None,
) -> RewriteResult:
    """Make a convolutional network cheaper, and check it.

    Args:
        model: Path, ``ModelProto`` or ``onnx_ir.Model``; it is left as it is.
        target_macs: Share of the whole model's MACs to keep, above 0 and at most 1.
        target_params: Share of the whole model's parameters to keep.
        ratio: Share of its own MACs that every site keeps.
        energy: Share of its output's energy that every site keeps.
        ranks: Rank by site name, chosen by hand. A number stands for the first of ``forms`` that takes one rank, a
            pair ``(R_in, R_out)`` for ``reduce_expand``; a ``Choice`` names its form. May stand beside one of the
            shares above, which then governs the other sites.
        plan: A plan, or the path of one, to replay instead of any budget.
        forms: The forms that compete for a site.
        method: How the factors are computed, see ``factorize``.
        nodes_to_exclude: Sites to leave dense.
        min_channels: Sites with fewer input feature maps stay dense.
        input_shapes: Concrete shapes by input name, where the model leaves dimensions open.
        inline_functions: Inline local functions first, so that convolutions in them can be rewritten.
        check: Compare both models in ONNX Runtime.
        max_drift: Largest relative L2 drift allowed, for all outputs or by output name; ``None`` only reports it.
        inputs: Inputs of the check by name, [N, ...]; random ones in the declared shapes if ``None``.
        latency: Time both networks in the check, too.
        provider: Execution provider of the check.
        threads: Threads of the check; the runtime's own choice if ``None``.

    Returns:
        The rewritten model, its plan, costs and check.

    Raises:
        ModelError: The model cannot be read, described or run.
        PlanError: The budget or plan does not fit the model.
        InputError: The inputs or input shapes do not fit the model.
        ProviderError: The provider does not load.
    """
    clock = _Clock()
    if plan is not None:
        replay: Plan | None = _read_plan(plan)
        if any(value is not None for value in (target_macs, target_params, ratio, energy, ranks)):
            raise PlanError("A plan replays as it is; leave out every budget beside it, or edit the plan.")
        wanted = None
    else:
        replay = None
        wanted = Budget(hand_made(ranks or {}, forms), ratio, energy, target_macs, target_params)
    dense = load(model)
    result = dense.clone()
    if inline_functions and result.functions:
        result = InlinePass()(result).model
    shapes = resolve(result, input_shapes)
    sites = find_sites(result, shapes, min_channels=min_channels)
    before = model_cost(dense, shapes, file_bytes=file_bytes(model) if isinstance(model, str | Path) else None)
    clock.lap("load")

    if replay is None:
        assert wanted is not None
        replay = choose(sites, wanted, before, forms=forms, method=method, nodes_to_exclude=nodes_to_exclude)
    by_name = {site.name: site for site in sites}
    require_sites(replay, by_name)
    clock.lap("plan")

    weights = {name: replacement(by_name[name], choice, replay.method) for name, choice in replay.choices.items()}
    reports = tuple(_report(site, replay, weights) for site in sites)
    BottleneckPass(replay, weights)(result)
    after = model_cost(result, resolve(result, shapes.inputs)) if replay.choices else before
    clock.lap("rewrite")

    verdict = None
    if check:
        verdict = check_models(
            model if isinstance(model, str | Path) else dense,
            result,
            inputs=inputs,
            providers=(provider,),
            input_shapes=input_shapes,
            max_drift=max_drift,
            latency=latency,
            threads=threads,
        )
        clock.lap("check")
    return RewriteResult(result, replay, reports, before, after, verdict, shapes.inputs, shapes.assumed, clock.seconds)


def _read_plan(plan: Plan | str | Path) -> Plan:
    if isinstance(plan, Plan):
        return plan
    path = Path(plan)
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"), where=str(path))
    except FileNotFoundError as error:
        raise PlanError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read as a plan: {error}.") from error


def _report(site: Site, plan: Plan, weights: Mapping[str, Replacement]) -> SiteResult:
    known = bool(site.in_size and site.out_size)
    dense = dense_cost(site) if known else None
    choice = plan.choices.get(site.name)
    if choice is None:
        refusal = plan.refusals.get(site.name) or site.refusal or Refusal("not_in_plan", "The plan leaves it out.")
        return SiteResult(site.name, None, None, None, dense, dense, refusal)
    cost = choice.cost(site) if known else None
    error = weights[site.name].factors.error
    return SiteResult(site.name, choice.form, choice.rank, error, dense, cost, None)


def insert_pointwise(
    model: ModelSource,
    node: str,
    feature_maps: int,
    *,
    method: Method = "als",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    check: bool = True,
    max_drift: float | Mapping[str, float] | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    latency: bool = True,
    provider: str = "cpu",
    threads: int | None = None,
) -> RewriteResult:
    """Put a 1x1 convolution in front of one convolution, whatever it costs.

    Args:
        model: Path, ``ModelProto`` or ``onnx_ir.Model``; it is left as it is.
        node: Name of the convolution.
        feature_maps: Feature maps that the 1x1 puts out. Fewer than the convolution's input has (a bottleneck)
            approximate it; as many (a projection) or more (an expansion) leave the network's function as it was.
        method: How the factors are computed, see ``factorize``.
        input_shapes: Concrete shapes by input name, where the model leaves dimensions open.
        check: Compare both models in ONNX Runtime.
        max_drift: Largest relative L2 drift allowed; ``None`` only reports it.
        inputs: Inputs of the check by name; random ones if ``None``.
        latency: Time both networks in the check, too.
        provider: Execution provider of the check.
        threads: Threads of the check; the runtime's own choice if ``None``.

    Returns:
        As ``rewrite``.

    Raises:
        PlanError: There is no such convolution, it cannot be rewritten, or ``feature_maps`` is below 1.
    """
    plan = Plan({node: make_choice(node, "reduce", feature_maps, where="insert_pointwise")}, method=method)
    return rewrite(
        model,
        plan=plan,
        input_shapes=input_shapes,
        check=check,
        max_drift=max_drift,
        inputs=inputs,
        latency=latency,
        provider=provider,
        threads=threads,
    )


def require_other_file(source: str | Path, target: str | Path) -> None:
    """Check that an output would not overwrite its input.

    Raises:
        OutputError: Both are the same file.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve() or (target.exists() and source.exists() and source.samefile(target)):
        raise OutputError(f"{target}: is the input itself; name another file to write.")


def read_inputs(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read example inputs from an ``.npz`` file.

    Returns:
        Arrays by input name.

    Raises:
        ModelError: The file is missing or holds no arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file.") from error
    except Exception as error:  # zipfile, numpy and OS errors alike
        raise ModelError(f"{path}: cannot be read as .npz: {error}.") from error
