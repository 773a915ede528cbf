"""Find and describe the convolutions of a model: which may be rewritten, and why the others may not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph.constants import constant, leaves, operators, root_of
from onnx_pointwise.graph.model_io import origin
from onnx_pointwise.graph.shapes import ResolvedShapes, Shape
from onnx_pointwise.graph.statistics import is_trained
from onnx_pointwise.jsonable import json_ready
from onnx_pointwise.numerics import Window, make_transposed_window, make_window

#: Fewer input feature maps than this leave a 1x1 convolution nothing to reduce (image stems).
MIN_CHANNELS = 4

#: Refusals that only say "this would not pay": a rewrite asked for by name is done all the same.
ADVISORY = frozenset({"few_channels", "unknown_shape"})

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_QUANTIZED = {"ConvInteger", "QLinearConv", "QLinearConvTranspose"}
_PLAIN = {"Conv", "ConvTranspose"}
_OTHER_CONVOLUTIONS = {"CausalConvWithState", "DeformConv", "FusedConv", "NhwcConv", "NhwcFusedConv"}

_Read = TypeVar("_Read")

_IN_FUNCTION = "It lies in a local function that several calls may share; inline functions first (--inline-functions)."


@dataclass(frozen=True)
class Refusal:
    """Why a site stays dense.

    Attributes:
        code: A short stable word, for programs.
        reason: One sentence, for people.
        numbers: The figures behind it.
    """

    code: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {"code": self.code, "reason": self.reason, "numbers": dict(self.numbers)}


@dataclass(frozen=True)
class Site:
    """One convolution, with the constant arithmetic behind it that folds into it.

    A transposed convolution is one over its inputs with zeros in between, see ``make_transposed_window``; its kernel is
    given, and taken, as that one's.

    Attributes:
        name: The node's name, or the name of its output where the node has none or shares it with another
            convolution; with a number behind it where that, too, is taken.
        op_type: The operator, ``Conv`` or ``ConvTranspose`` for every site that may be rewritten.
        node: The convolution.
        folds: The nodes behind it (BatchNormalization, Mul, Add, Sub, Div with constants) that fold into it.
        in_channels: Feature maps in, I (of one group).
        out_channels: Feature maps out, O.
        group: Groups.
        kernel_shape: Size of the kernel, one number for each spatial axis.
        strides: Strides.
        dilations: Dilations.
        pads: Explicit pads (begins, then ends), or the value of ``auto_pad``.
        output_padding: Of a transposed convolution, as the node has it; empty where it has none.
        output_shape: Likewise.
        batch: Examples in one run.
        in_size: Spatial size of the input; empty where unknown.
        out_size: Spatial size of the output; empty where unknown.
        stored_params: Numbers stored for this site in the model: kernel, bias and what folds into them.
        refusal: Why the site stays dense; ``None`` for a site that may be rewritten.
    """

    name: str
    op_type: str
    node: ir.Node = field(repr=False, compare=False)
    folds: tuple[ir.Node, ...] = field(default=(), repr=False, compare=False)
    in_channels: int = 0
    out_channels: int = 0
    group: int = 1
    kernel_shape: Shape = ()
    strides: Shape = ()
    dilations: Shape = ()
    pads: Shape | str = ()
    output_padding: Shape = ()
    output_shape: Shape = ()
    batch: int = 1
    in_size: Shape = ()
    out_size: Shape = ()
    stored_params: int = 0
    refusal: Refusal | None = None

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.op_type == "ConvTranspose"

    @property
    def sliding(self) -> tuple[str, Shape, Shape, Shape, Shape | str, Shape, Shape]:
        """All that says how its kernel slides, whatever is in it: sites alike in this see one input alike."""
        window = self.kernel_shape, self.strides, self.dilations, self.pads
        return self.op_type, *window, self.output_padding, self.output_shape

    @property
    def view(self) -> tuple[str, tuple[str, Shape, Shape, Shape, Shape | str, Shape, Shape]]:
        """What it reads, and how: sites of one view see the same patches."""
        return self.source, self.sliding

    @property
    def taps(self) -> int:
        """Positions of the kernel, K."""
        return math.prod(self.kernel_shape)

    @property
    def width(self) -> int:
        """Numbers in a patch that it sees, I * K."""
        return self.in_channels * self.taps

    @property
    def rewritable(self) -> bool:
        """Whether a rewrite that is asked for by name can be done."""
        return self.refusal is None or self.refusal.code in ADVISORY

    @property
    def has_bias(self) -> bool:
        """Whether the site has a bias once everything is folded in."""
        return bool(self.folds) or _has_bias(self.node)

    @property
    def source(self) -> str:
        """Name of the value that the convolution reads; empty where it reads none."""
        value = self.node.inputs[0]
        return str(value.name) if value is not None else ""

    @property
    def output(self) -> ir.Value:
        """The value that the rewritten site produces: the output of the last node that folds into it."""
        return (self.folds[-1] if self.folds else self.node).outputs[0]

    def window(self, in_size: Sequence[int]) -> Window:
        """How its kernel slides over an input of a spatial size."""
        given = self.kernel_shape, self.strides, self.dilations, self.pads, in_size
        if not self.transposed:
            return make_window(*given)
        extra, shape = self.output_padding, self.output_shape
        return make_transposed_window(*given, output_padding=extra, output_shape=shape)

    def stored(self, kernel: NDArray[Any], *, depthwise: bool = False) -> NDArray[Any]:
        """Turn a kernel [O, I, *k] of the site, or of a piece of it, into what its operator takes.

        Of a depthwise piece [R, 1, *k] nothing but the taps is mirrored: each feature map has its own.
        """
        return _mirrored(kernel, depthwise) if self.transposed else kernel

    def weights(self) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
        """Compute the kernel and the bias with everything folded in.

        Returns:
            The kernel [O, I, *k] in the model's dtype, and the bias [O] in float64, or ``None`` where there is none.

        Raises:
            ModelError: A stored tensor holds less data than its shape needs.
        """
        kernel = _array(self.node.inputs[1])
        assert kernel is not None, "only sites with a constant kernel have weights"
        kernel = _mirrored(kernel) if self.transposed else kernel
        bias = _array(self.node.inputs[2]) if _has_bias(self.node) else None
        if not self.folds:
            return kernel, None if bias is None else bias.astype(np.float64)
        scale = np.ones(self.out_channels)
        shift = np.zeros(self.out_channels) if bias is None else bias.astype(np.float64)
        value = self.node.outputs[0]
        for node in self.folds:
            factor, offset = _affine(node, value, self.out_channels, kernel.ndim)
            scale, shift = scale * factor, shift * factor + offset
            value = node.outputs[0]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found and refused
            folded = kernel.astype(np.float64) * scale.reshape(-1, *[1] * (kernel.ndim - 1))
            return folded.astype(kernel.dtype), shift

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype that the kernel is stored in."""
        kernel = constant(self.node.inputs[1])
        assert kernel is not None, "only sites with a constant kernel have a dtype"
        return kernel.dtype.numpy()


def _mirrored(kernel: NDArray[Any], depthwise: bool = False) -> NDArray[Any]:
    """Between the kernel of a transposed convolution and that of the convolution over inputs with zeros in between."""
    return np.flip(kernel if depthwise else kernel.swapaxes(0, 1), tuple(range(2, kernel.ndim)))


def _array(value: ir.Value | None) -> NDArray[Any] | None:
    tensor = constant(value)
    if tensor is None:
        return None
    try:
        return tensor.numpy()
    except (ValueError, OSError) as error:
        raise ModelError(
            f"the data of the tensor '{tensor.name}' do not fit its shape {tensor.shape}; export the model again."
        ) from error


def _has_bias(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None


def nodes_with_scope(model: ir.Model) -> Iterator[tuple[ir.Node, bool]]:
    """Yield every node of a model, subgraphs included, and whether it lies in a local function."""
    for node in model.graph.all_nodes():
        yield node, False
    for function in model.functions.values():
        for node in function.all_nodes():
            yield node, True


def find_sites(
    model: ir.Model, shapes: ResolvedShapes | None = None, *, min_channels: int = MIN_CHANNELS
) -> list[Site]:
    """List the convolutions of a model in graph order.

    Args:
        model: The model; the sites refer to its nodes.
        shapes: The model's shapes, from ``shapes.resolve``; without them no site has a known cost.
        min_channels: Sites with fewer input feature maps are refused.

    Returns:
        One ``Site`` for each convolution of any kind, in subgraphs and local functions too. Those that cannot be
        rewritten carry a refusal.

    Raises:
        ModelError: An attribute or a stored tensor makes no sense.
    """
    found = [
        (node, in_function)
        for node, in_function in nodes_with_scope(model)
        if node.op_type in _PLAIN | _QUANTIZED | _OTHER_CONVOLUTIONS
    ]
    names = _site_names([node for node, _ in found])
    known: Mapping[str, Shape] = {} if shapes is None else shapes.shapes
    try:
        return [
            # The names of values in a function mean nothing outside of it.
            _describe(name, node, in_function, {} if in_function else known, min_channels)
            for name, (node, in_function) in zip(names, found, strict=True)
        ]
    except ModelError as error:  # of a node or a tensor, which know nothing of the file
        raise ModelError(f"{origin(model) or 'the model in memory'}: the model cannot be read: {error}") from error


def _site_names(nodes: Sequence[ir.Node]) -> list[str]:
    """Name every convolution differently."""
    counts = Counter(node.name for node in nodes)
    wishes = [str(node.name if node.name and counts[node.name] == 1 else node.outputs[0].name) for node in nodes]
    taken: set[str] = set()
    names = []
    for wish in wishes:
        name, count = wish, 1
        while name in taken or (count > 1 and name in wishes):
            count += 1
            name = f"{wish}_{count}"
        taken.add(name)
        names.append(name)
    return names


def _describe(name: str, node: ir.Node, in_function: bool, shapes: Mapping[str, Shape], min_channels: int) -> Site:
    def refused(code: str, reason: str, **numbers: float) -> Refusal:
        return Refusal(code, reason, numbers)

    if node.op_type in _QUANTIZED:
        return Site(name, node.op_type, node, refusal=refused("quantized", "The kernel is quantised to integers."))
    if node.op_type in _OTHER_CONVOLUTIONS or node.domain not in ("", "ai.onnx"):
        reason = f"{node.op_type} is not a plain convolution; rewrite the model before it is transformed or fused."
        return Site(name, node.op_type, node, refusal=refused("other_convolution", reason))

    root = root_of(node.inputs[1])
    kernel = constant(node.inputs[1])
    if not in_function and "DequantizeLinear" in operators(node.inputs[1]) and _is_dequantized(node.inputs[0]):
        # Where the activations are, too, the runtime computes with integers, which a rewrite would end.
        reason = "The kernel is quantised, as its input is; rewrite the model before it is quantised."
        return Site(name, node.op_type, node, refusal=refused("quantized", reason))
    if kernel is None:
        if in_function:
            refusal = refused("in_function", _IN_FUNCTION)
        elif _is_dequantized(root):
            refusal = refused("quantized", "The kernel is quantised; rewrite the model before it is quantised.")
        else:
            refusal = refused(
                "dynamic_kernel", "The kernel is computed in the graph or fed into it; fold constants first."
            )
        return Site(name, node.op_type, node, refusal=refusal)
    if not 3 <= len(kernel.shape) <= 5:
        reason = f"A kernel with {len(kernel.shape)} dimensions is none of a 1-D, 2-D or 3-D convolution."
        return Site(name, node.op_type, node, refusal=refused("kernel_rank", reason))

    out_channels, in_channels, *kernel_shape = kernel.shape.numpy()
    rank = len(kernel_shape)
    group = _int(node, "group", 1)
    if node.op_type == "ConvTranspose":
        out_channels, in_channels = in_channels * group, out_channels // max(1, group)
    in_shape, out_shape = (
        shapes.get(str(value.name), ()) if value is not None else () for value in (node.inputs[0], node.outputs[0])
    )
    folds = () if in_function else _folds(node, out_channels, rank + 2)
    site = Site(
        name=name,
        op_type=node.op_type,
        node=node,
        folds=folds,
        in_channels=in_channels,
        out_channels=out_channels,
        group=group,
        kernel_shape=tuple(kernel_shape),
        strides=_ints(node, "strides", (1,) * rank),
        dilations=_ints(node, "dilations", (1,) * rank),
        pads=_pads(node, rank),
        output_padding=_ints(node, "output_padding", ()) if node.op_type == "ConvTranspose" else (),
        output_shape=_ints(node, "output_shape", ()) if node.op_type == "ConvTranspose" else (),
        batch=out_shape[0] if out_shape else 1,
        in_size=in_shape[2:],
        out_size=out_shape[2:],
        stored_params=_stored_params(node, folds),
    )
    return _with_refusal(site, kernel, root, in_function, min_channels)


def _is_dequantized(value: ir.Value | None) -> bool:
    root = root_of(value)
    node = None if root is None else root.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _with_refusal(
    site: Site, kernel: ir.TensorProtocol, root: ir.Value | None, in_function: bool, min_channels: int
) -> Site:
    refusal: Refusal | None = None
    maps = {"in_channels": float(site.in_channels), "out_channels": float(site.out_channels)}
    if in_function:
        refusal = Refusal("in_function", _IN_FUNCTION, maps)
    elif site.group > 1:
        depthwise = site.in_channels == 1
        refusal = Refusal(
            "depthwise" if depthwise else "grouped",
            "A depthwise convolution mixes no channels; there is nothing to project."
            if depthwise
            else "A grouped convolution is already sparse across channels.",
            {"group": float(site.group), **maps},
        )
    elif site.output_shape and len(site.output_shape) != len(site.kernel_shape):
        refusal = Refusal("output_shape", "Its output_shape does not name one size for each spatial axis.", maps)
    elif kernel.dtype not in _FLOATS:
        refusal = Refusal("dtype", f"Kernels of type {kernel.dtype.name} are not rewritten.", maps)
    elif root is not None and (_consumers(root) > 1 or root.is_graph_output()):
        refusal = Refusal(
            "shared_kernel",
            "Other nodes use the same kernel, which would have to be stored beside its factors.",
            {"uses": float(_consumers(root))},
        )
    elif _has_bias(site.node) and constant(site.node.inputs[2]) is None:
        refusal = Refusal(
            "dynamic_bias", "The bias is computed in the graph or fed into it; fold constants first.", maps
        )
    elif (problem := _weight_problem(site)) is not None:
        refusal = Refusal(*problem, maps)
    elif site.in_channels < min_channels:
        come_in = "1 feature map comes" if site.in_channels == 1 else f"{site.in_channels} feature maps come"
        refusal = Refusal("few_channels", f"Only {come_in} in; there is nothing to reduce below {min_channels}.", maps)
    elif not site.in_size or not site.out_size:
        refusal = Refusal("unknown_shape", "Its size is not known, so its cost is not either; name --input-shape.")
    return replace(site, refusal=refusal)


def _weight_problem(site: Site) -> tuple[str, str] | None:
    kernel, bias = site.weights()
    with np.errstate(over="ignore"):
        finite = np.isfinite(kernel).all() and (bias is None or np.isfinite(bias.astype(kernel.dtype)).all())
    if not finite:
        return "not_finite", f"Its weights hold NaN, infinity or more than {kernel.dtype} can."
    if not kernel.any():
        return "zero_kernel", "Its kernel is all zeros."
    return None


def _consumers(root: ir.Value) -> int:
    """Count the nodes that use a value, looking through Identity."""
    count = 0
    for node, _ in root.uses():
        if node.op_type == "Identity":
            count += _consumers(node.outputs[0]) + node.outputs[0].is_graph_output()
        else:
            count += 1
    return count


def _read(node: ir.Node, attribute: ir.Attr, reader: Callable[[ir.Attr], _Read]) -> _Read:
    try:
        return reader(attribute)
    except TypeError as error:
        raise ModelError(
            f"the attribute '{attribute.name}' of the node '{node.name or node.outputs[0].name}' is of type "
            f"{attribute.type.name}, which it cannot be; export the model again."
        ) from error


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else _read(node, attribute, ir.Attr.as_int)


def _ints(node: ir.Node, name: str, default: Shape) -> Shape:
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(_read(node, attribute, ir.Attr.as_ints))


def _pads(node: ir.Node, rank: int) -> Shape | str:
    attribute = node.attributes.get("auto_pad")
    if attribute is not None and (named := _read(node, attribute, ir.Attr.as_string)) != "NOTSET":
        return named
    return _ints(node, "pads", (0,) * (2 * rank))


def _stored_params(node: ir.Node, folds: tuple[ir.Node, ...]) -> int:
    made = {value for user in (node, *folds) for value in user.outputs}
    values = [*node.inputs[1:], *(value for fold in folds for value in fold.inputs if value not in made)]
    return sum(tensor.size for value in values for tensor in leaves(value))


def _folds(node: ir.Node, channels: int, rank: int) -> tuple[ir.Node, ...]:
    """Collect the chain of constant arithmetic behind a convolution that folds into its kernel and bias."""
    folds: list[ir.Node] = []
    value = node.outputs[0]
    while not value.is_graph_output() and len(value.uses()) == 1:
        ((consumer, _),) = value.uses()
        if consumer.graph is not node.graph or not _is_affine(consumer, value, channels, rank):
            break
        folds.append(consumer)
        value = consumer.outputs[0]
    return tuple(folds)


def _is_affine(node: ir.Node, value: ir.Value, channels: int, rank: int) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "BatchNormalization":
        return (
            is_trained(node)
            and node.inputs[0] is value
            and all((held := constant(item)) is not None and held.size == channels for item in node.inputs[1:])
        )
    if node.op_type not in ("Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return False
    if node.op_type in ("Sub", "Div") and node.inputs[0] is not value:
        return False
    other = constant(node.inputs[1] if node.inputs[0] is value else node.inputs[0])
    if other is None or len(other.shape) > rank:
        return False
    aligned = (1,) * (rank - len(other.shape)) + tuple(other.shape.numpy())
    per_channel = aligned[1] in (1, channels) and all(size == 1 for axis, size in enumerate(aligned) if axis != 1)
    return per_channel and not (node.op_type == "Div" and not other.numpy().all())


def _affine(
    node: ir.Node, value: ir.Value, channels: int, rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a node as y = factor * x + offset, both [O]."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization":
        scale, bias, mean, variance = (np.asarray(_array(item), dtype=np.float64) for item in node.inputs[1:5])
        epsilon = node.attributes.get("epsilon")
        with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite is found and refused
            factor = scale / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float()))
            return factor, bias - mean * factor
    stored = _array(node.inputs[1] if node.inputs[0] is value else node.inputs[0])
    other = np.broadcast_to(np.asarray(stored, dtype=np.float64).reshape(-1), (channels,))
    match node.op_type:
        case "Mul":
            return other, zero
        case "Div":
            return one / other, zero
        case "Sub":
            return one, -other
        case _:
            return one, other
