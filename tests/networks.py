"""Small networks with smooth random weights, made line by line, and example inputs for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnx_pointwise.graph import Choice, Replacement, ResolvedShapes, Site, find_sites
from onnx_pointwise.graph.model_io import serialize
from onnx_pointwise.graph.plan import Plan
from onnx_pointwise.graph.surgery import BottleneckPass
from onnx_pointwise.numerics import relative_drift
from onnx_pointwise.runtime import open_session, resolve
from onnx_pointwise.study import Effort, Study, study

CHANNELS = 12
Array = np.ndarray[Any, Any]


class Builder:
    """A graph made line by line, with smooth random weights; its input is ``x``, 3 channels of 12 by 12."""

    def __init__(self, seed: int = 0, batch: int | str = "batch", *, size: int = 12, opset: int = 13) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])
        self.opset = opset

    def const(self, array: Array) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def ints(self, *numbers: int) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        names = [f"v{len(self.nodes)}" + (f".{index}" if index else "") for index in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n{len(self.nodes)}", **attributes))
        return names

    def conv(self, x: str, i: int, o: int, k: int = 3, **attributes: Any) -> str:
        # Correlated input channels, so that there is something to gain.
        basis = self.rng.standard_normal((o, max(2, i // 2), k, k))
        mix = self.rng.standard_normal((max(2, i // 2), i)) / np.sqrt(i)
        kernel = np.einsum("ormn,ri->oimn", basis, mix) + 0.15 * self.rng.standard_normal((o, i, k, k))
        kernel *= np.sqrt(2.0 / (i * k * k))
        pads = [k // 2] * 4
        bias = self.const(0.1 * self.rng.standard_normal(o))
        return self.add("Conv", x, self.const(kernel), bias, **{"pads": pads, "kernel_shape": [k, k], **attributes})

    def deconv(self, x: str, i: int, o: int, k: int, **attributes: Any) -> str:
        """A transposed convolution of stride 2 whose inputs are as correlated."""
        basis = self.rng.standard_normal((max(2, i // 2), o, k, k))
        mix = self.rng.standard_normal((i, max(2, i // 2))) / np.sqrt(i)
        kernel = np.einsum("ir,romn->iomn", mix, basis) + 0.1 * self.rng.standard_normal((i, o, k, k))
        kernel *= np.sqrt(8.0 / (i * k * k))
        bias = self.const(0.1 * self.rng.standard_normal(o))
        return self.add("ConvTranspose", x, self.const(kernel), bias, **{"strides": [2, 2], **attributes})

    def proto(self, *outputs: str, types: Mapping[str, int] | None = None) -> onnx.ModelProto:
        kinds = types or {}
        ends = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", [self.input], ends, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def model(self, *outputs: str, types: Mapping[str, int] | None = None) -> ir.Model:
        return ir.serde.deserialize_model(self.proto(*outputs, types=types))


def residual(seed: int = 0, batch: int | str = "batch") -> ir.Model:
    """Stem, two residual blocks (one with a projection and a stride), head with a Softmax."""
    b = Builder(seed, batch)
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    y = b.conv(b.add("Relu", b.conv(x, CHANNELS, CHANNELS)), CHANNELS, CHANNELS)
    x = b.add("Relu", b.add("Add", x, y))
    y = b.conv(b.add("Relu", b.conv(x, CHANNELS, 16, strides=[2, 2])), 16, 16)
    x = b.add("Relu", b.add("Add", y, b.conv(x, CHANNELS, 16, 1, strides=[2, 2], pads=[0, 0, 0, 0])))
    flat = b.add("Flatten", b.add("GlobalAveragePool", x))
    return b.model(b.add("Softmax", b.add("Gemm", flat, b.const(b.rng.standard_normal((16, 10)))), axis=1))


def branching(seed: int = 0) -> ir.Model:
    """Branches that are concatenated, a Clip, a value used twice, and two outputs."""
    b = Builder(seed)
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    one = b.add("Clip", b.conv(x, CHANNELS, 8), b.const(np.array(0.0)), b.const(np.array(6.0)))
    two = b.add("Relu", b.conv(x, CHANNELS, 8, 5))
    both = b.add("Concat", one, two, axis=1)
    scale = b.add("Sigmoid", b.add("GlobalAveragePool", both))
    y = b.add("Relu", b.conv(b.add("Mul", both, scale), 16, 16))
    z = b.conv(y, 16, 8)
    return b.model(z, b.add("Sigmoid", b.add("GlobalAveragePool", y)))


def unet(seed: int = 0) -> ir.Model:
    """Two steps down and two up again, with a sum and with a concatenation; kernels of 4 and of 3 at stride 2."""
    b = Builder(seed)
    top = b.add("Relu", b.conv("x", 3, CHANNELS))
    middle = b.add("Relu", b.conv(top, CHANNELS, 16, strides=[2, 2]))
    low = b.add("Relu", b.conv(middle, 16, 20, strides=[2, 2]))
    up = b.add("Relu", b.add("Add", b.deconv(low, 20, 16, 4, pads=[1] * 4), middle))
    up = b.add("LeakyRelu", b.deconv(up, 16, CHANNELS, 3, pads=[1] * 4, output_padding=[1, 1]), alpha=0.1)
    return b.model(b.conv(b.add("Concat", up, top, axis=1), 2 * CHANNELS, 3))


def detector(seed: int = 0) -> ir.Model:
    """Boxes in pixels and scores between 0 and 1 of 36 places, written into one tensor [N, 8, 36]."""
    b = Builder(seed)
    x = b.add("Relu", b.conv("x", 3, CHANNELS))
    x = b.add("Relu", b.conv(x, CHANNELS, 16, strides=[2, 2]))
    boxes = b.conv(b.add("Relu", b.conv(x, 16, 16)), 16, 4, 1)
    scores = b.conv(b.add("Relu", b.conv(x, 16, 16)), 16, 4, 1)
    pixels = b.add("Mul", b.add("Exp", b.add("Reshape", boxes, b.ints(0, 4, -1))), b.const(np.array(50.0)))
    sure = b.add("Sigmoid", b.add("Reshape", scores, b.ints(0, 4, -1)))
    return b.model(b.add("Concat", pixels, sure, axis=1))


NETWORKS = {"residual": residual, "branching": branching, "unet": unet}


def examples(count: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4))
    return {"x": (np.kron(coarse, np.ones((3, 3))) + 0.3 * rng.standard_normal((count, 3, 12, 12))).astype(np.float32)}


def prepared(model: ir.Model, *, fewest_taps: int = 1) -> tuple[ResolvedShapes, list[Site]]:
    shapes = resolve(model)
    return shapes, [site for site in find_sites(model, shapes) if site.refusal is None and site.taps >= fewest_taps]


def run(model: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    return open_session(serialize(model).SerializeToString(), "cpu", threads=1).run(None, dict(feeds))


#: Little enough for a test.
EFFORT = Effort(patch_limit=4000, threads=1)


def look(
    model: ir.Model, shapes: ResolvedShapes, sites: Sequence[Site], feeds: Mapping[str, Array], **settings: Any
) -> Study:
    return study(model, shapes, sites, feeds, effort=EFFORT, **settings)


def halved(sites: Sequence[Site]) -> dict[str, Choice]:
    return {site.name: Choice("reduce", max(1, site.in_channels // 3)) for site in sites}


def drift(
    model: ir.Model,
    choices: Mapping[str, Choice],
    replacements: Mapping[str, Replacement],
    feeds: Mapping[str, Array],
) -> float:
    """Relative L2 drift of the outputs as they are, their root mean square."""
    rewritten = model.clone()
    whole = tuple(name for name in replacements if name not in choices)
    BottleneckPass(Plan(choices, corrected=whole), replacements)(rewritten)
    pairs = zip(run(model, feeds), run(rewritten, feeds), strict=True)
    shares = [share for before, after in pairs if (share := relative_drift(before, after)) is not None]
    return float(np.sqrt(np.mean(shares)))
