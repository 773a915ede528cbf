"""What a site or a model costs: multiply-accumulates, parameters, bytes of activations.

One MAC is one multiplication with one addition. A convolution takes N * prod(out) * O * I / groups * prod(k) of them,
a transposed one N * prod(in) as many, padded positions counted, as is usual.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx_ir as ir

from onnx_pointwise.graph.model_io import saved_bytes
from onnx_pointwise.graph.pieces import ConvPiece, pieces, takes, whole
from onnx_pointwise.graph.shapes import ResolvedShapes, Shape
from onnx_pointwise.graph.sites import Site
from onnx_pointwise.graph.wire import tensors
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import Form, Rank

_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcFusedConv"}
_PRODUCTS = {"MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "Gemm", "FusedGemm"}
_PARAMETER_TYPES = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.INT8,
    ir.DataType.UINT8,
}


@dataclass(frozen=True)
class SiteCost:
    """Cost of one site.

    Attributes:
        macs: Multiply-accumulates of one run.
        params: Numbers stored.
        activation_bytes: Bytes written to the outputs of its convolutions.
    """

    macs: int
    params: int
    activation_bytes: int


@dataclass(frozen=True)
class ModelCost:
    """Cost of one run of a model at its resolved shapes.

    Attributes:
        macs: Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul and their quantised and fused kin.
        conv_macs: The part of ``macs`` that large-kernel and other convolutions take.
        params: Numbers in floating-point and 8-bit tensors that the model stores.
        bytes: Size of the file, external data included.
        activation_bytes: Bytes of all intermediate values whose shape is known; 0 where none is.
        unknown: Nodes left out of ``macs`` because a shape is not known.
    """

    macs: int
    conv_macs: int
    params: int
    bytes: int
    activation_bytes: int
    unknown: int

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict; what is not known is None."""
        return asdict(self) | {"activation_bytes": self.activation_bytes or None}


def dense_cost(site: Site) -> SiteCost:
    """Cost of a site as it stands in the model."""
    return replace(_cost(site, [whole(site)]), params=site.stored_params)


def rewritten_cost(site: Site, form: Form, rank: Rank) -> SiteCost:
    """Cost of a site in a form at a rank.

    Args:
        site: A site without refusal.
        form: The form. A piece of it takes N * prod(its output size) * outputs * inputs * prod(its kernel) MACs, a
            transposed one those of its input size; a 1x1 in front runs at input resolution, one behind at that of the
            output, a kx1 in front at that of the input along the columns alone.
        rank: Channels between the pieces; a pair ``(R_in, R_out)`` for ``reduce_expand``.

    Returns:
        The cost, the bias counted where the site has one after folding.

    Raises:
        PlanError: The kernel cannot be rewritten in this form.
    """
    cost = _cost(site, pieces(site, form, rank))
    return replace(cost, params=cost.params + (site.out_channels if site.has_bias else 0))


def _cost(site: Site, parts: Sequence[ConvPiece]) -> SiteCost:
    width = sum(math.prod(piece.out_size) * piece.out_channels for piece in parts)
    macs, params = sum(piece.macs for piece in parts), sum(piece.params for piece in parts)
    return SiteCost(site.batch * macs, params, site.batch * width * site.dtype.itemsize)


def competing(site: Site, forms: Sequence[Form]) -> tuple[Form, ...]:
    """List the forms that a site can take and that differ there.

    Spatial forms need a kernel that is longer than 1 along two axes. A 1x1 kernel becomes two 1x1 convolutions in every
    form; ``expand``, whose rank is optimal, stands for all of them: where the site has a stride it is the cheaper one
    too. For a transposed one that is ``reduce``, which with a single tap is as good.

    Args:
        site: A site without refusal.
        forms: The forms that may be chosen.
    """
    fitting = tuple(form for form in forms if takes(site, form))
    if site.taps > 1 or not fitting:
        return fitting
    best: Form = "reduce" if site.transposed else "expand"
    return (best,) if best in fitting else fitting[:1]


def model_cost(model: ir.Model, shapes: ResolvedShapes, *, file_bytes: int | None = None) -> ModelCost:
    """Count what one run of a model costs.

    Args:
        model: The model.
        shapes: Its shapes, from ``shapes.resolve``. Each subgraph counts once, however often it runs.
        file_bytes: Size of the model's file where it is known already; else the size that saving it would give.

    Returns:
        The cost.
    """
    macs = conv_macs = unknown = activations = 0
    known = shapes.shapes
    for node in shapes.model.graph.all_nodes():
        for value in node.outputs:
            shape = known.get(str(value.name))
            if shape is not None and node.op_type != "Constant":
                activations += math.ceil(math.prod(shape) * _bits(value.dtype) / 8)
        if not _counts(node):
            continue
        count = _node_macs(node, known)
        if count is None:
            unknown += 1
            continue
        macs += count
        conv_macs += count if "Conv" in node.op_type else 0
    size = file_bytes if file_bytes is not None else saved_bytes(model)
    return ModelCost(macs, conv_macs, model_params(model), size, activations, unknown)


def model_params(model: ir.Model) -> int:
    """Count the numbers in the floating-point and 8-bit tensors that a model stores."""
    return sum(math.prod(tensor.shape.numpy()) for tensor in _parameters(model))


def _parameters(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    return (tensor for tensor in tensors(model) if tensor.dtype in _PARAMETER_TYPES)


def _bits(dtype: ir.DataType | None) -> int:
    """Bits of one element; strings and unknown types take none."""
    if dtype is None or dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return 0
    return dtype.bitwidth


def _counts(node: ir.Node) -> bool:
    return node.op_type in _CONVOLUTIONS | _PRODUCTS | {"ConvTranspose"}


def _node_macs(node: ir.Node, shapes: Mapping[str, Shape]) -> int | None:
    def shape(value: ir.Value | None) -> Shape | None:
        if value is None:
            return None
        tensor = value.const_value
        return tuple(tensor.shape.numpy()) if tensor is not None else shapes.get(str(value.name))

    out = shape(node.outputs[0])
    first = shape(node.inputs[0])
    second = shape(node.inputs[_second_operand(node)])
    if out is None or first is None or second is None:
        return None
    if node.op_type in _CONVOLUTIONS:
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    transposed = node.attributes.get("transA")  # of Gemm and FusedMatMul
    inner = first[-2] if transposed is not None and transposed.as_int() else first[-1]
    return math.prod(out) * inner


def _second_operand(node: ir.Node) -> int:
    return {"QLinearConv": 3, "QLinearMatMul": 3}.get(node.op_type, 1)
