"""Names a person recognises: nodes, initializers and dimensions after the Keras layers they came from.

The converter names things after TensorFlow scopes, folded constants and a counter that never restarts. Afterwards the
convolution of layer ``conv1`` is the node ``conv1`` with initializers ``conv1/kernel`` and ``conv1/bias``; other nodes
of a layer are ``conv1/Relu``; tensors are ``conv1:0``. The same model gives the same names every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("MatMul", "Gemm")
_FLOAT_ROLES = {"Add": "bias", "Mul": "scale", "Div": "scale"}
_INTEGER_ROLES = {"Reshape": "shape", "Expand": "shape", "Squeeze": "axes", "Unsqueeze": "axes"}
_INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)

LayerOf = Callable[[str], str | None]


@dataclass(frozen=True)
class Kernel:
    """A trained kernel of a layer: what an initializer is recognised by.

    Attributes:
        layer: name of the layer; None where only the scope of the node can tell.
        role: "kernel", "depthwise_kernel" or "pointwise_kernel".
        value: the kernel laid out as the ONNX operator wants it.
        op_type: the ONNX operator it belongs to; "MatMul" stands for Gemm too.
    """

    layer: str | None
    role: str
    value: NDArray[np.floating]
    op_type: str


@dataclass
class Naming:
    """What was found out while naming.

    Attributes:
        layer: node name -> layer name, for nodes that come from a layer.
        parameters: layer name -> weights it holds in the graph, a shared tensor counted once.
        folded: layer name -> name of the convolution whose kernel took it in (BatchNormalization).
        without_bias: layers whose convolution or product has no bias in the graph.
    """

    layer: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    without_bias: set[str] = field(default_factory=set)


class _Unique:
    """Numbers names that were given out before."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._taken = set(taken)

    def __call__(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


def onnx_layout(kernel: NDArray[np.floating], role: str) -> NDArray[np.floating]:
    """A Keras kernel laid out as ONNX has it; one spatial axis becomes two, as the converter does it.

    Args:
        kernel: [*k, I, O]; of a transposed convolution [*k, O, I]; depthwise [*k, I, M].
        role: the kernel's role in its layer.

    Returns:
        [O, I, *k]; transposed [I, O, *k]; depthwise [I * M, 1, *k].
    """
    spatial = kernel.ndim - 2
    value = np.transpose(kernel, (spatial + 1, spatial, *range(spatial)))
    if role == "depthwise_kernel":
        value = np.swapaxes(value, 0, 1)
        value = value.reshape(-1, 1, *value.shape[2:])
    return value[:, :, None, :] if spatial == 1 else value


def matches(candidate: NDArray[np.floating], kernel: Kernel) -> bool:
    """Whether an initializer is a kernel, up to a factor for each output channel (folded BatchNormalization)."""
    value = kernel.value
    if candidate.shape != value.shape:
        return False
    if np.array_equal(candidate, value):
        return True
    if kernel.op_type == "ConvTranspose":
        candidate, value = np.swapaxes(candidate, 0, 1), np.swapaxes(value, 0, 1)
    a = candidate.reshape(len(candidate), -1).astype(np.float64)
    b = value.reshape(len(value), -1).astype(np.float64)
    if a.shape[1] < 2:  # a single weight is proportional to any other
        return False
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return bool(np.any(norms > 0) and np.all(np.abs(np.einsum("oi,oi->o", a, b)) >= (1 - 1e-5) * norms))


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a graph's nodes (loops, branches), at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield inner
                yield from bodies(inner)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Bring the nodes into the order in which the outputs ask for them; the converter's order changes between runs."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [_reads(node) for node in graph.node]
    order: list[int] = []
    done: set[int] = set()
    stack = [makers[value.name] for value in reversed(graph.output) if value.name in makers]
    while stack:
        index = stack[-1]
        waiting = [makers[name] for name in needs[index] if name in makers and makers[name] not in done]
        if index not in done and waiting:
            stack.extend(reversed(waiting))
            continue
        stack.pop()
        if index not in done:
            done.add(index)
            order.append(index)
    copies = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(copies)


def _reads(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node needs, those that its bodies take from outside included."""
    names = list(node.input)
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            names.extend(name for inner in body.node for name in _reads(inner))
            names.extend(value.name for value in body.output)
    return names


def rename_boundary(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename graph inputs and outputs wherever they are used; bring the outputs into the order of `names`."""
    for body in (graph, *bodies(graph)):
        for node in body.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    order = {name: index for index, name in enumerate(names.values())}
    outputs = sorted(graph.output, key=lambda value: order.get(value.name, len(order)))
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del graph.output[:]
    graph.output.extend(copies)


def rename_dimensions(graph: onnx.GraphProto) -> None:
    """Call the dynamic first dimension `batch` and others after their value; drop what was stated inside."""
    for values, is_input in ((graph.input, True), (graph.output, False)):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            spatial = is_input and len(graph.input) == 1 and len(dims) == 4
            for axis, dim in enumerate(dims):
                if dim.dim_value > 0:
                    continue
                if axis == 0:
                    dim.dim_param = "batch"
                elif spatial and axis in (1, 2):
                    dim.dim_param = ("height", "width")[axis - 1]
                else:
                    dim.dim_param = f"{value.name}_dim{axis}"
    del graph.value_info[:]


def rename_graph(
    graph: onnx.GraphProto, layer_of: LayerOf, kernels: Sequence[Kernel], layers: Sequence[str] = ()
) -> Naming:
    """Rename every node, initializer and tensor after its layer; inputs and outputs of the graph keep their names.

    Args:
        graph: the converter's graph; changed in place, initializers sorted by first use.
        layer_of: the layer that a node or tensor name of the converter speaks of.
        kernels: the trained kernels, to recognise initializers whose names say nothing.
        layers: names of all layers, so that a numbered name never looks like another layer's.

    Returns:
        What belongs to which layer.
    """
    sort_nodes(graph)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    boundary = [value.name for value in (*graph.input, *graph.output)]
    outer = {*initializers, *(name for node in graph.node for name in node.output)}
    inside = [node for body in bodies(graph) for node in body.node]
    inside_values = {name for node in inside for name in (*node.input, *node.output)} - outer
    unique_node = _Unique([node.name for node in inside])
    unique_value = _Unique([*boundary, *inside_values])
    values = {name: name for name in boundary}
    roles = _kernel_roles(graph, initializers, kernels, layer_of)
    naming = Naming()
    sizes: dict[str, dict[str, int]] = {}

    for node in graph.node:
        layer, role = roles.get(node.name, (layer_of(node.name), None))
        end = _changes_layout(graph, node)
        layer = layer if end is None else None
        if role is not None and layer is not None and (scope := layer_of(node.name)) not in (None, layer):
            naming.folded[str(scope)] = layer
        node.name = unique_node(f"{end}/{node.op_type}" if end else _node_name(node, layer, role, naming.layer, layers))
        if layer is not None:
            naming.layer[node.name] = layer
            if role is not None and len(node.input) < 3:
                naming.without_bias.add(layer)
        for index, source in enumerate(node.input):
            if source not in initializers:
                continue
            part = _role(node, index, role, initializers[source])
            if source not in values:
                values[source] = unique_value(f"{layer}/{part}" if layer else f"{node.name}/{part}")
            if layer is not None and _is_weight(node, part, initializers[source]):
                sizes.setdefault(layer, {})[source] = _size(initializers[source])
            if layer is not None and part == "bias":
                naming.without_bias.discard(layer)
        for index, target in enumerate(node.output):
            if target and target not in values:
                values[target] = unique_value(f"{node.name}:{index}")

    for name in initializers:
        if name not in values:  # only read inside a body
            values[name] = unique_value("constant")
    _apply(graph, values)
    naming.parameters.update({layer: sum(held.values()) for layer, held in sizes.items()})
    return naming


def _node_name(
    node: onnx.NodeProto,
    layer: str | None,
    role: str | None,
    taken: Mapping[str, str],
    layers: Sequence[str],
) -> str:
    """What to call a node, before numbering."""
    if layer is None:
        return node.op_type
    if role is None:
        return f"{layer}/{node.op_type}"
    name = layer if role == "kernel" else f"{layer}/{role.removesuffix('_kernel')}"
    # A layer that is called twice: its second node must not read like another layer's.
    return f"{layer}/{node.op_type}" if name in taken or (name != layer and name in layers) else name


def _changes_layout(graph: onnx.GraphProto, node: onnx.NodeProto) -> str | None:
    """The graph input or output at which a node only changes between Keras' layout and ONNX's; it is no layer's."""
    if node.op_type == "Transpose":
        return next((v.name for v in (*graph.input, *graph.output) if v.name in (*node.input, *node.output)), None)
    if node.op_type == "Reshape" and any(v.name == node.input[0] for v in graph.input):
        readers = [other.op_type for other in graph.node if node.output[0] in other.input]
        return node.input[0] if readers and set(readers) <= {"Conv"} else None
    return None


def _apply(graph: onnx.GraphProto, values: Mapping[str, str]) -> None:
    """Rename tensors in a graph and its bodies, and sort the initializers by first use."""
    for body in (graph, *bodies(graph)):
        for node in body.node:
            node.input[:] = [values.get(name, name) for name in node.input]
            node.output[:] = [values.get(name, name) for name in node.output]
        if body is not graph:
            for value in body.output:
                value.name = values.get(value.name, value.name)
    order = {name: index for index, name in enumerate(values)}
    tensors = sorted(graph.initializer, key=lambda tensor: order[tensor.name])
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    for tensor in copies:
        tensor.name = values[tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _kernel_roles(
    graph: onnx.GraphProto,
    initializers: Mapping[str, onnx.TensorProto],
    kernels: Sequence[Kernel],
    layer_of: LayerOf,
) -> dict[str, tuple[str | None, str]]:
    """Node name -> (layer, role of its kernel), for every convolution and product with a constant kernel."""
    roles: dict[str, tuple[str | None, str]] = {}
    for node in graph.node:
        if node.op_type not in (*CONVOLUTIONS, *PRODUCTS) or len(node.input) < 2 or node.input[1] not in initializers:
            continue
        weight = node.input[1]
        op_type = "MatMul" if node.op_type in PRODUCTS else node.op_type
        array = onnx.numpy_helper.to_array(initializers[weight])
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            array = array.T
        hints = [name for name in (layer_of(weight), layer_of(node.name)) if name is not None]
        # The scope usually says it; trying those layers first keeps equal kernels of different layers apart.
        candidates = sorted(
            (kernel for kernel in kernels if kernel.op_type == op_type),
            key=lambda kernel: hints.index(kernel.layer) if kernel.layer in hints else len(hints),
        )
        found = next((kernel for kernel in candidates if matches(array, kernel)), None)
        if found is not None:
            roles[node.name] = (found.layer or next(iter(hints), None), found.role)
        elif op_type != "MatMul":
            roles[node.name] = (next(iter(hints), None), "kernel")
    return roles


def _role(node: onnx.NodeProto, index: int, kernel_role: str | None, tensor: onnx.TensorProto) -> str:
    """What an initializer is to the node that reads it."""
    if node.op_type in (*CONVOLUTIONS, *PRODUCTS) and index == 1:
        return kernel_role or "kernel"
    if node.op_type in (*CONVOLUTIONS, "Gemm") and index == 2:
        return "bias"
    if tensor.data_type in _INTEGERS:
        return _INTEGER_ROLES.get(node.op_type, "constant")
    # A single number is part of an activation, not of what was trained.
    return "constant" if _size(tensor) == 1 else _FLOAT_ROLES.get(node.op_type, "constant")


def _is_weight(node: onnx.NodeProto, part: str, tensor: onnx.TensorProto) -> bool:
    """Whether an initializer holds numbers that come from training, as far as one can tell."""
    if part == "bias" or part.endswith("kernel"):
        return True
    return tensor.data_type not in _INTEGERS and _size(tensor) > 1 and node.op_type not in ("Resize", "Pad", "Clip")


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))
