"""Describe a model by its convolutions: what each one costs, and how far its rank could fall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_pointwise.graph import (
    ModelCost,
    ModelSource,
    Shape,
    Site,
    SiteCost,
    dense_cost,
    load,
    overridable,
)
from onnx_pointwise.jobs.advice import Advice, beside_the_cpu, of_convolutions
from onnx_pointwise.jobs.loading import cost_of, onnx_of, opened
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.latency import LatencyCache, SiteLatency, site_latencies
from onnx_pointwise.numerics import error_curve
from onnx_pointwise.progress import within
from onnx_pointwise.runtime import Origin, model_name, origin_of
from onnx_pointwise.schema import job
from onnx_pointwise.settings import InspectSettings

#: Shares of energy that the ranks of a site are given for.
ENERGIES = (0.90, 0.95, 0.99)


@dataclass(frozen=True)
class SiteView:
    """What ``inspect`` tells about one convolution.

    Attributes:
        site: The convolution.
        cost: Its cost; ``None`` where it is not known.
        share: Its share of the model's MACs, 0 to 1.
        profile: Singular values of the kernel unfolded along its input channels, largest first, divided by the
            first; empty where the site cannot be rewritten.
        ranks: The smallest rank of the form ``reduce`` that keeps each share of the energy of ``ENERGIES``.
        latency: Measured latency of the site over forms and ranks; ``None`` where that was not asked for.
    """

    site: Site
    cost: SiteCost | None
    share: float
    profile: NDArray[np.float64]
    ranks: tuple[int, ...]
    latency: SiteLatency | None = None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        site = self.site
        return {
            "name": site.name,
            "op_type": site.op_type,
            "kernel": list(site.kernel_shape),
            "in_channels": site.in_channels,
            "out_channels": site.out_channels,
            "group": site.group,
            "strides": list(site.strides),
            "dilations": list(site.dilations),
            "pads": site.pads if isinstance(site.pads, str) else list(site.pads),
            "folds": [node.op_type for node in site.folds],
            "output_padding": list(site.output_padding),
            "output_shape": [site.batch, site.out_channels, *site.out_size] if site.out_size else None,
            "macs": None if self.cost is None else self.cost.macs,
            "share": self.share,
            "params": site.stored_params,
            "singular_values": [float(value) for value in self.profile],
            "ranks": {f"{energy:.2f}": rank for energy, rank in zip(ENERGIES, self.ranks, strict=False)},
            "refusal": None if site.refusal is None else site.refusal.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
        }


@dataclass(frozen=True)
class Inspection:
    """A model seen by its convolutions.

    Attributes:
        cost: Cost of the whole model.
        sites: Its convolutions, in graph order.
        input_shapes: The concrete input shapes behind all costs.
        assumed_inputs: Inputs whose open dimensions had to be assumed.
        origin: What was asked for, of which model, where.
        advice: What the figures advise.
    """

    cost: ModelCost
    sites: tuple[SiteView, ...]
    input_shapes: Mapping[str, Shape]
    assumed_inputs: tuple[str, ...]
    origin: Origin
    advice: tuple[Advice, ...] = ()

    def sites_table(self) -> list[dict[str, Any]]:
        """Give a row for each convolution, in graph order, for a table or a data frame.

        Returns:
            Rows with the same keys: ``name``, ``op_type``, ``kernel``, ``strides``, ``group``, ``in_channels``,
            ``out_channels``, ``output``, ``macs``, ``share``, ``params``, ``refusal`` (its code) and ``reason``. What
            is not known is None.
        """
        return [
            {
                "name": view.site.name,
                "op_type": view.site.op_type,
                "kernel": view.site.kernel_shape,
                "strides": view.site.strides,
                "group": view.site.group,
                "in_channels": view.site.in_channels * view.site.group,
                "out_channels": view.site.out_channels,
                "output": view.site.out_size or None,
                "macs": None if view.cost is None else view.cost.macs,
                "share": view.share,
                "params": view.site.stored_params,
                "refusal": None if view.site.refusal is None else view.site.refusal.code,
                "reason": None if view.site.refusal is None else view.site.refusal.reason,
            }
            for view in self.sites
        ]

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "origin": self.origin.to_dict(),
            "model": self.cost.to_dict(),
            "sites": [site.to_dict() for site in self.sites],
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "assumed_inputs": list(self.assumed_inputs),
            "advice": [one.to_dict() for one in self.advice],
        }


@job(InspectSettings)
def inspect(model: ModelSource, settings: InspectSettings) -> Inspection:
    """Describe every convolution of a model.

    Args:
        model: Path, ``ModelProto`` or ``onnx_ir.Model``; it is left as it is.
        settings: What is asked for, in place of the keywords that follow.

    Raises:
        ModelError: The model cannot be read, described or run.
        InputError: The input shapes do not fit the model.
        ProviderError: The provider does not load.
    """
    model = onnx_of(model)
    base, shapes, sites = opened(load(model), settings)
    cost = cost_of(model, base, shapes)
    timed: dict[str, SiteLatency] = {}
    if settings.treads_on is not None:
        timed = site_latencies(
            [site for site in sites if site.refusal is None],
            provider=settings.treads_on,
            threads=settings.threads,
            cache=LatencyCache() if settings.cache else None,
            progress=within(settings.tell, "latency"),
        )
    views = []
    for number, site in enumerate(sites):
        settings.tell("spectrum", site.name, number, len(sites))
        views.append(replace(_view(site, cost), latency=timed.get(site.name)))
    origin = origin_of("inspect", settings, model)
    costs = [view.cost for view in views if view.cost is not None and view.site.refusal is None]
    installed = beside_the_cpu()
    advice = of_convolutions(model_name(model), cost, costs, list(timed.values()), overridable(base), installed)
    return Inspection(cost, tuple(views), shapes.inputs, shapes.assumed, origin, advice)


def _view(site: Site, total: ModelCost) -> SiteView:
    cost = dense_cost(site) if site.in_size and site.out_size else None
    share = 0.0 if cost is None or not total.macs else cost.macs / total.macs
    if not site.rewritable:
        return SiteView(site, cost, share, np.zeros(0), ())
    lost = error_curve(site.weights()[0], "reduce")
    values = np.sqrt(np.maximum(lost[:-1] - lost[1:], 0.0))
    ranks = tuple(int(np.argmax(lost <= 1.0 - energy)) for energy in ENERGIES)
    return SiteView(site, cost, share, values / values[0], ranks)
