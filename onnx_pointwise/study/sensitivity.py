"""What the error of one site does to the network's outputs, measured by running the network with the error in place.

The network is walked through site by site on a few examples. At each site a few kernels of known error take the place
of the trained one; what follows the site is run on their outputs, and how far the network's outputs move is read off.
Where an output is a Softmax, its input is looked at: probabilities hide what moves while the network is sure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_pointwise.graph import Replacement, Site, competing, corrected, runtime_source
from onnx_pointwise.numerics import (
    FORMS,
    Form,
    Method,
    Norm,
    Rank,
    Response,
    compose,
    error_curves,
    factorize,
    fit_response,
    in_order,
    relative_drift,
    workers,
)
from onnx_pointwise.runtime import TwinRun, open_waiting
from onnx_pointwise.study.collect import SiteMoments

Array = NDArray[Any]

# Relative squared errors at which a site is tried, about: what plans of half the arithmetic ask of most sites.
_LEVELS = (0.02, 0.07, 0.2)
_FORMS: tuple[Form, ...] = ("reduce", "expand")
# Sites whose factors may wait to be tried: the early ones take long to run, the late ones to factorise.
_AHEAD = 8
_NORMALISERS = {"Softmax", "LogSoftmax", "Sigmoid"}


@dataclass(frozen=True)
class Point:
    """One measurement at one site.

    Attributes:
        form: Form of the factors.
        rank: Their rank.
        bound: Relative squared error that `error_curve` gives for the rank.
        error: Relative squared error of the factors.
        drift: Relative squared drift of the network's outputs, their mean over the examples taken out.
    """

    form: Form
    rank: Rank
    bound: float
    error: float
    drift: float


@dataclass(frozen=True)
class Sensitivity:
    """What is known of one site.

    Attributes:
        points: The measurements.
        response: The curve through them.
        curves: Relative squared error of the site's output that each rank leaves, by form, see `error_curves`.
    """

    points: tuple[Point, ...]
    response: Response
    curves: Mapping[Form, NDArray[np.float64]]

    def errors(self, form: Form, bounds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Estimate the error that `factorize` reaches from what `error_curve` gives.

        The curve is an upper bound for all forms but `expand`; how far below it the alternation gets is interpolated
        between the measured ranks, those of the form itself or, where it was not tried, of `reduce`.
        """
        tried = form if any(point.form == form for point in self.points) else "reduce"
        known = sorted((p.bound, p.error / p.bound) for p in self.points if p.form == tried and p.bound > 0.0)
        if form == "expand" or not known:
            return bounds
        at, ratio = np.array(known).T
        safe = np.maximum(bounds, np.finfo(np.float64).tiny)
        reached: NDArray[np.float64] = bounds * np.interp(np.log(safe), np.log(at), ratio)
        return reached


def measured_outputs(model: ir.Model) -> list[str]:
    """Names of the values at which drift is measured: the outputs, or what a final Softmax reads."""
    names = []
    for value in model.graph.outputs:
        node = value.producer()
        if node is not None and node.op_type in _NORMALISERS and node.inputs[0] is not None:
            value = node.inputs[0]
        names.append(str(value.name))
    return list(dict.fromkeys(names))


def sensitivities(
    model: ir.Model,
    sites: Sequence[Site],
    moments: Mapping[str, SiteMoments],
    inputs: Mapping[str, Array],
    *,
    forms: Sequence[Form] = FORMS,
    method: Method = "als",
    batch: int = 64,
    memory: int = 2**31,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Sensitivity]:
    """Measure what the error of each site does to the network's outputs.

    Args:
        model: The untouched model with its types inferred (`ResolvedShapes.model`); it is left as it is.
        sites: The sites to measure, in graph order.
        moments: What each site sees, by its name.
        inputs: A few example inputs by name, [N, ...].
        forms: Forms that plans may use.
        method: How factors are computed.
        batch: Examples in one run of the runtime.
        memory: Bytes of activations to hold in memory.
        threads: Threads of the runtime; its own choice if None.
        progress: Called with the name of each site before it is taken.

    Returns:
        The sensitivity by site name.

    Raises:
        ModelError: The model does not run on the inputs.
    """
    found: dict[str, Sensitivity] = {}
    targets = measured_outputs(model)

    def look(site: Site) -> _Outlook:
        return _outlook(site, moments[site.name], forms, method)

    # Factors are made while the network runs on those of the sites before.
    with (
        contextlib.closing(in_order(look, sites, workers(threads), ahead=_AHEAD)) as ahead,
        TwinRun(model, sites, inputs, batch=batch, memory=memory, threads=threads, outputs=targets) as run,
    ):
        for site, outlook in zip(sites, ahead, strict=True):
            if progress is not None:
                progress(site.name)
            run.advance([site.source])
            dense = run.dense_output(site)
            rest = run.rest(site)
            reference = [] if rest is None else run.outcome(rest, site, dense)
            points = []
            session = None if rest is None else kernel_session(site, threads)
            for trial in outlook.trials if rest is not None else ():
                assert rest is not None and session is not None
                moved = run.apply(session, run.dense[site.source], trial.weights(site))
                drift = relative_drift(reference, run.outcome(rest, site, moved))
                run.release(moved)
                made = trial.replacement.factors
                points.append(Point(made.form, made.rank, trial.bound, made.error**2, drift))
            response = fit_response([point.error for point in points], [point.drift for point in points])
            found[site.name] = Sensitivity(tuple(points), response, outlook.curves)
            run.finish(site, dense, None)
    return found


def kernel_session(site: Site, threads: int | None = None) -> ort.InferenceSession:
    """Open a session of a site whose kernel and bias, with everything folded in, are inputs: x, w, b to y."""
    kind = ir.TensorType(ir.DataType.from_numpy(site.dtype))
    x, w, b = (ir.Value(name=name, type=kind) for name in "xwb")
    attributes = [attribute for attribute in site.node.attributes.values() if attribute.name != "group"]
    node = ir.Node("", "Conv", [x, w, b], attributes, outputs=[ir.Value(name="y", type=kind)])
    graph = ir.Graph([x, w, b], node.outputs, nodes=[node], opset_imports={"": 13}, name=site.name)
    with runtime_source(ir.Model(graph, ir_version=8)) as source:
        return open_waiting(source, threads)


@dataclass(frozen=True)
class _Trial:
    """Factors and bias to try, and the bound of their error as in `Point`."""

    replacement: Replacement
    bound: float

    def weights(self, site: Site) -> dict[str, Array]:
        """The kernel and bias that compute the same, as `kernel_session` takes them."""
        assert self.replacement.bias is not None
        composed = compose(self.replacement.factors)
        return {"w": composed.astype(site.dtype), "b": self.replacement.bias.astype(site.dtype)}


@dataclass(frozen=True)
class _Outlook:
    """Error curves by form, and factors of a few ranks near the error levels that plans ask for."""

    curves: Mapping[Form, NDArray[np.float64]]
    trials: Sequence[_Trial]


def _outlook(site: Site, seen: SiteMoments, forms: Sequence[Form], method: Method) -> _Outlook:
    kernel, _ = site.weights()
    norm = Norm.of(seen.covariance, site.in_channels, site.taps)
    tried = competing(site, _FORMS)
    curves = error_curves(kernel, list(dict.fromkeys([*tried, *competing(site, forms)])), norm)
    trials = []
    for form in tried:
        curve = curves[form]
        inner = np.sqrt(curve[1:-1])
        ranks = {1 + int(np.argmin(np.abs(inner - np.sqrt(level)))) for level in _LEVELS if inner.size}
        for rank in sorted(rank for rank in ranks if curve[rank] > 0.0):
            factors = factorize(kernel.astype(site.dtype), form, rank, method=method, second_moment=norm)
            trials.append(_Trial(corrected(site, Replacement(factors, None), seen.mean), float(curve[rank])))
    return _Outlook(curves, trials)
