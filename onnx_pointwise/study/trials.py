"""Sensitivities by trial: the network is run with the error in place.

The network is walked through site by site. At each site a few kernels of known error take the place of the trained one;
what follows the site is run on their outputs, and how far the heads move is read off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_pointwise.graph import Site, runtime_source
from onnx_pointwise.numerics import relative_drift, weighted_drift
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.runtime import Piece, TwinRun, open_waiting
from onnx_pointwise.study.heads import Heads
from onnx_pointwise.study.outlook import Outlook
from onnx_pointwise.study.points import Point

Array = NDArray[Any]


def by_trials(
    model: ir.Model,
    sites: Sequence[Site],
    outlooks: Iterable[Outlook],
    inputs: Mapping[str, Array],
    heads: Heads,
    *,
    batch: int = 64,
    memory: int = 2**31,
    threads: int | None = None,
    progress: Within = unheard,
) -> dict[str, list[Point]]:
    """Measure what errors at each site do to the heads.

    Args:
        model: The untouched model with its types inferred; it is left as it is.
        sites: The sites to measure, in graph order.
        outlooks: What to try at each.
        inputs: Example inputs by name, [N, ...].
        heads: Where the network answers.
        batch: Examples in one run.
        memory: Bytes of activations to hold in memory.
        threads: Threads of the runtime; its own choice if None.
        progress: Called with the name of each site before it is taken.

    Returns:
        The measurements by site name.

    Raises:
        ModelError: The model does not run on the inputs.
    """
    found: dict[str, list[Point]] = {}
    with TwinRun(model, sites, inputs, batch=batch, memory=memory, threads=threads, outputs=heads.names) as run:
        for number, (site, outlook) in enumerate(zip(sites, outlooks, strict=True)):
            progress(site.name, number, len(sites))
            run.advance([site.source])
            dense = run.dense_output(site)
            rest = run.rest(site)
            reference = [] if rest is None else run.outcome(rest, site, dense)
            points = []
            session = None if rest is None else kernel_session(site, threads)
            for trial in outlook.trials if rest is not None else ():
                assert rest is not None and session is not None
                weights = trial.weights(site)
                fed = {**weights, "w": site.stored(weights["w"])}
                moved = run.apply(session, run.dense[site.source], fed)
                drift = _drift_behind(heads, rest, reference, run.outcome(rest, site, moved))
                error = relative_drift(dense, moved)
                run.release(moved)
                if error is not None:
                    points.append(trial.point(error, drift))
            found[site.name] = points
            run.finish(site, dense, None)
    return found


def _drift_behind(heads: Heads, rest: Piece, reference: Sequence[Array], moved: Sequence[Array]) -> float:
    """Relative squared drift of the network where only the gauges behind a site were computed; the others stay."""
    pairs = dict(zip(rest.outputs, zip(reference, moved, strict=True), strict=True))
    shares = [gauge.drift(*pairs[gauge.value]) if gauge.value in pairs else 0.0 for gauge in heads.gauges]
    return weighted_drift(shares, [gauge.weight for gauge in heads.gauges]) or 0.0


def kernel_session(site: Site, threads: int | None = None) -> ort.InferenceSession:
    """Open a session of a site whose kernel and bias, with everything folded in, are inputs: x, w, b to y.

    The kernel is as the site's operator takes it, see `Site.stored`.
    """
    kind = ir.TensorType(ir.DataType.from_numpy(site.dtype))
    x, w, b = (ir.Value(name=name, type=kind) for name in "xwb")
    attributes = [attribute for attribute in site.node.attributes.values() if attribute.name != "group"]
    node = ir.Node("", site.op_type, [x, w, b], attributes, outputs=[ir.Value(name="y", type=kind)])
    graph = ir.Graph([x, w, b], node.outputs, nodes=[node], opset_imports={"": 13}, name=site.name)
    with runtime_source(ir.Model(graph, ir_version=8), in_place=True) as source:
        return open_waiting(source, threads)


class KernelSessions:
    """Sessions as of `kernel_session`, one for all sites that slide alike.

    Args:
        threads: Threads of each; one where the work of a site is one thread's.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._open: dict[tuple[object, ...], ort.InferenceSession] = {}
        self._threads = threads

    def of(self, site: Site) -> ort.InferenceSession:
        """The session of a site."""
        alike = (site.sliding, site.dtype)
        if alike not in self._open:
            self._open[alike] = kernel_session(site, self._threads)
        return self._open[alike]
