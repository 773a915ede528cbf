"""Graph surgery: replace the convolutions that a plan names by their pieces.

With W the kernel of a site, folded with what follows it, and b its bias:

    y = W * x + b   becomes   y = K * (P . x) + b                    (reduce)
                              y = U . (K * x) + b                    (expand)
                              y = U . (K * (P . x)) + b              (reduce_expand)
                              y = K * (P * x) + b                    (vertical: P is kx1, K is 1xk; horizontal)
                              y = U . (K * (P . x)) + b              (depthwise: K is depthwise)

where `.` is a 1x1 convolution of stride 1 without padding and `*` keeps the strides, dilations and pads of the site, P
and K of spatial forms each those of its own axes. P carries no bias: where K pads with zeros, a bias would leak into
the border. Of a transposed convolution `*` is that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph.constants import constant
from onnx_pointwise.graph.merge import merge_pointwise
from onnx_pointwise.graph.model_io import named_no_more
from onnx_pointwise.graph.pieces import ConvPiece, laid_out, pieces
from onnx_pointwise.graph.plan import Choice, Plan, require_sites
from onnx_pointwise.graph.sites import Site, find_sites, nodes_with_scope
from onnx_pointwise.numerics import SPATIAL, Factors, Method, compose, factorize


@dataclass(frozen=True)
class Replacement:
    """Weights that replace a site.

    Attributes:
        factors: The kernels of the pieces.
        bias: [O], float64; ``None`` leaves the bias that the convolution has, which is right where nothing folds.
    """

    factors: Factors
    bias: NDArray[np.float64] | None


def replacement(site: Site, choice: Choice, method: Method) -> Replacement:
    """Factorise a site's kernel from its weights alone.

    Raises:
        PlanError: The factors overflow the model's dtype, or the form or rank is none.
    """
    kernel, bias = site.weights()
    try:
        factors = factorize(kernel, choice.form, choice.rank, method=method)
    except PlanError as error:
        raise PlanError(f"Convolution '{site.name}': {str(error).rstrip('.')}.") from error
    return Replacement(factors, bias if site.folds else None)


class BottleneckPass(ir.passes.InPlacePass):
    """Apply a plan to a model, in place.

    The kxk convolution (of a spatial form the second piece) keeps its node name, metadata, doc string and, as far as it
    does what the site did, attributes; the last piece of a site keeps the name and the consumers of the value that the
    site produced. Inserted 1x1 convolutions that follow one another directly become one, see ``merge``. New names
    derive from the site's name and never collide. Inputs, outputs, dynamic dimensions, operator sets and the IR version
    stay as they are.

    Args:
        plan: What to rewrite.
        replacements: Weights by site name; sites without any are factorised from their kernel alone.
    """

    def __init__(self, plan: Plan, replacements: Mapping[str, Replacement] | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.replacements = dict(replacements or {})

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the sites of the plan.

        Raises:
            PlanError: The plan names a convolution that the model lacks or that cannot be rewritten.
        """
        sites = {site.name: site for site in find_sites(model)}
        require_sites(self.plan, sites)
        # All of them before the first cut: an error leaves the model as it was.
        weights = {
            name: self.replacements.get(name) or replacement(sites[name], choice, self.plan.method)
            for name, choice in self.plan.choices.items()
        }
        names = _Names(model)
        weights |= {name: self.replacements[name] for name in self.plan.corrected if name in self.replacements}
        inserted = [node for name in weights for node in _rewrite_site(model, sites[name], weights[name], names)]
        merge_pointwise(inserted)
        if weights:
            named_no_more(model)
        return ir.passes.PassResult(model, modified=bool(weights))


class _Names:
    """Names that are free in the whole model: the runtime wants node names unique, ONNX wants value names so."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        for node, _ in nodes_with_scope(model):
            self._taken.add(node.name or "")
            self._taken.update(value.name or "" for value in node.outputs)
        for graph in model.graphs():
            self._taken.update(value.name or "" for value in graph.inputs)
            self._taken.update(graph.initializers)

    def fresh(self, wish: str) -> str:
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name


def _rewrite_site(model: ir.Model, site: Site, weights: Replacement, names: _Names) -> list[ir.Node]:
    """Cut one site over; gives the 1x1 convolutions that were inserted."""
    inserted: list[ir.Node] = []
    node, graph, factors = site.node, site.node.graph, weights.factors
    assert isinstance(graph, ir.Graph), "sites in functions are refused"
    dtype = site.dtype
    tensor_type = ir.TensorType(ir.DataType.from_numpy(dtype))
    values = [value for user in (node, *site.folds) for value in user.inputs if value is not None]
    replaced = [value for value in values if constant(value) is not None]
    result = site.output
    parts, kernels = pieces(site, factors.form, factors.rank), factors.pieces
    middle = 0 if factors.before is None else 1
    # Before IR version 4 every initializer had to be a graph input, which subgraphs cannot have.
    home = graph if model.ir_version >= 4 else model.graph

    def stored(array: NDArray[Any], name: str) -> ir.Value:
        tensor = ir.tensor(np.ascontiguousarray(array.astype(dtype)), name=names.fresh(name))
        value = ir.Value(name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        home.register_initializer(value)
        if model.ir_version < 4:
            home.inputs.append(value)
        return value

    def beside(source: ir.Value | None, number: int, bias: ir.Value | None, suffix: str) -> ir.Node:
        weight = stored(laid_out(site, parts[number], kernels[number]), f"{site.name}_{suffix}_weight")
        made = ir.Node(
            "",
            parts[number].op_type,
            [source, weight] if bias is None else [source, weight, bias],
            node_attributes(parts[number]),
            outputs=[ir.Value(name=names.fresh(f"{site.name}_{suffix}_output"), type=tensor_type)],
            name=names.fresh(f"{site.name}_{suffix}"),
        )
        if not parts[number].axes:
            inserted.append(made)
        return made

    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weights.bias is not None:
        bias = stored(weights.bias, f"{site.name}_bias")
    if factors.before is not None:
        spatial = factors.form in SPATIAL
        first = beside(node.inputs[0], 0, None, factors.form if spatial else "reduce")
        first.outputs[0].shape = _shape_in_front(site, parts[0])
        graph.insert_before(node, first)
        node.replace_input_with(0, first.outputs[0])
        if spatial or parts[middle].group > 1:
            node.attributes.update({item.name: item for item in node_attributes(parts[middle])})
    node.resize_inputs(2 if factors.after is not None or bias is None else 3)
    node.replace_input_with(1, stored(laid_out(site, parts[middle], kernels[middle]), f"{site.name}_weight"))
    produced = node.outputs[0]
    if factors.after is not None:
        last = beside(produced, middle + 1, bias, "expand")
        graph.insert_after(node, last)
        middle_shape = _with_channels(result, factors.kernel.shape[0])
        _hand_over(result, last.outputs[0], keep=last)
        produced.name = names.fresh(f"{site.name}_output")
        produced.shape, produced.type = middle_shape, tensor_type
    else:
        if bias is not None:
            node.replace_input_with(2, bias)
        if site.folds:
            _hand_over(result, produced)
    graph.remove(list(site.folds), safe=True)
    for value in replaced:
        _drop_if_unused(value)
    return inserted


def node_attributes(piece: ConvPiece) -> list[ir.Attr]:
    """The attributes of a piece as those of a node, the size of its kernel among them."""
    made: list[ir.Attr] = [ir.AttrInt64s("kernel_shape", piece.size)]
    for name, value in piece.attributes.items():
        if isinstance(value, str):
            made.append(ir.AttrString(name, value))
        else:
            made.append(ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrInt64s(name, value))
    return made


def _shape_in_front(site: Site, piece: ConvPiece) -> ir.Shape | None:
    """Shape of what the first piece puts out, as far as the graph tells those of the site."""
    source, made = _with_channels(site.node.inputs[0], piece.out_channels), site.node.outputs[0].shape
    if source is None or not piece.axes:
        return source
    if made is None or len(made) != len(source):
        return None
    return ir.Shape([made[axis] if axis - 2 in piece.axes else size for axis, size in enumerate(source)])


def _with_channels(value: ir.Value | None, channels: int) -> ir.Shape | None:
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    dims = list(value.shape)
    dims[1] = channels
    return ir.Shape(dims)


def _hand_over(old: ir.Value, new: ir.Value, *, keep: ir.Node | None = None) -> None:
    """Give the name, type and consumers of a value to another, but for the node ``keep`` that computes with it."""
    name = old.name
    users = [(user, index) for user, index in old.uses() if user is not keep]
    for user, index in users:
        user.replace_input_with(index, new)
    owner = old.graph if old.is_graph_output() else None
    if owner is not None:
        for index, output in enumerate(owner.outputs):
            if output is old:
                owner.outputs[index] = new
    new.shape, new.doc_string = old.shape, old.doc_string
    new.type = new.type if old.type is None else old.type
    new.metadata_props.update(old.metadata_props)
    old.name, new.name = None, name


def _drop_if_unused(value: ir.Value) -> None:
    """Remove a constant that nothing uses any more, and the nodes that made it."""
    if value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is not None:
        if any(other.uses() or other.is_graph_output() for other in node.outputs):
            return
        graph, sources = node.graph, list(node.inputs)
        if graph is None:
            return  # dropped already: one constant may feed several of the replaced nodes
        graph.remove(node, safe=True)
        for source in sources:
            if source is not None:
                _drop_if_unused(source)
        return
    graph = value.graph
    if not isinstance(graph, ir.Graph):
        return
    if value.is_initializer():
        graph.initializers.pop(str(value.name))
    if value in graph.inputs:
        graph.inputs.remove(value)


def corrected(site: Site, replacement: Replacement, mean: NDArray[np.float64]) -> Replacement:
    """Let the bias take up what factors made without examples do to the mean output.

    Args:
        site: The site.
        replacement: Its weights.
        mean: Mean patch of its input, [I*K].

    Returns:
        The same factors with the bias b + (W - composed) mean.
    """
    kernel, bias = site.weights()
    gap = kernel.astype(np.float64) - compose(replacement.factors)
    offset = np.zeros(site.out_channels) if bias is None else bias
    return Replacement(replacement.factors, offset + gap.reshape(len(gap), -1) @ mean)
