"""The whole network with any kernels at its sites, in one session: how plans are tried out.

Kernels and biases of the sites are inputs of the session, so that no session has to be opened for a plan. A plan's
factors come in multiplied out; what it would save is not saved here, but its drift is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import Replacement, Site, find_sites, runtime_source
from onnx_pointwise.numerics import compose
from onnx_pointwise.runtime import open_session, run_session, without_shapes
from onnx_pointwise.study.heads import Heads

Array = NDArray[Any]


class WholeNetwork:
    """Measures the drift of many plans on the same examples.

    Args:
        model: The untouched model with its types inferred.
        sites: Sites whose kernels may change.
        inputs: Example inputs by name, [N, ...].
        heads: Where the network answers.
        batch: Examples in one run.
        threads: Threads of the session; the runtime's own choice if None.

    Attributes:
        reference: What the untouched network gives at the gauges, [N, ...] each.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[Site],
        inputs: Mapping[str, Array],
        heads: Heads,
        *,
        batch: int,
        threads: int | None = None,
    ) -> None:
        self._inputs, self._batch = dict(inputs), batch
        self._heads, self._outputs = heads, heads.names
        copy = without_shapes(model)
        named = {str(site.output.name): site.name for site in sites}
        self._sites = {site.name: site for site in sites}
        self._feeds: dict[str, tuple[str, str]] = {}
        self._trained: dict[str, Array] = {}
        values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
        copy.graph.outputs.extend(values[name] for name in self._outputs if not values[name].is_graph_output())
        for site in find_sites(copy):
            name = named.get(str(site.output.name))
            if name is not None:
                self._open(copy.graph, site, name)
        with runtime_source(copy, in_place=True) as source:
            self._session = open_session(source, "cpu", threads=threads)
        self.reference = self._run({}) if self._outputs else []

    def _open(self, graph: ir.Graph, site: Site, name: str) -> None:
        """Turn the kernel and the bias of a site into inputs; what folds into them goes."""
        kernel, bias = site.weights()
        dtype = site.dtype
        kind = ir.TensorType(ir.DataType.from_numpy(dtype))
        keys = f"{name}/trial_kernel", f"{name}/trial_bias"
        feeds = [ir.Value(name=key, type=kind) for key in keys]
        graph.inputs.extend(feeds)
        site.node.resize_inputs(3)
        for index, feed in enumerate(feeds):
            site.node.replace_input_with(index + 1, feed)
        if site.folds:
            old, new = site.output, site.node.outputs[0]
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            graph.remove(list(site.folds), safe=True)
            old.name, new.name = None, old.name
        self._feeds[name] = keys
        self._trained[keys[0]] = site.stored(kernel.astype(dtype))
        self._trained[keys[1]] = (np.zeros(len(kernel)) if bias is None else bias).astype(dtype)

    def drift(self, replacements: Mapping[str, Replacement]) -> float:
        """Relative squared drift at the heads, with weights in place; 0 for a network without any.

        Args:
            replacements: Weights by site name; the other sites stay as they are.
        """
        return self._heads.whole(self.drifts(replacements))

    def drifts(self, replacements: Mapping[str, Replacement]) -> list[float | None]:
        """The same at each gauge of the heads; None for one that does not vary over the examples."""
        if not self._outputs:
            return []
        weights: dict[str, Array] = {}
        for name, replacement in replacements.items():
            kernel, bias = self._feeds[name]
            dtype = self._trained[kernel].dtype
            weights[kernel] = self._sites[name].stored(compose(replacement.factors).astype(dtype))
            if replacement.bias is not None:
                weights[bias] = replacement.bias.astype(dtype)
        return self._heads.drifts(self.reference, self._run(weights))

    def values(self, inputs: Mapping[str, Array]) -> list[Array]:
        """What the untouched network gives at the gauges for one batch of other inputs by name."""
        return run_session(self._session, self._outputs, {**inputs, **self._trained}) if self._outputs else []

    def _run(self, weights: Mapping[str, Array]) -> list[Array]:
        count = len(next(iter(self._inputs.values())))
        parts = []
        for start in range(0, count, self._batch):
            feeds = {name: array[start : start + self._batch] for name, array in self._inputs.items()}
            parts.append(run_session(self._session, self._outputs, {**feeds, **self._trained, **weights}))
        return [np.concatenate(column) if column[0].ndim else column[0] for column in zip(*parts, strict=True)]
