"""Gradients of operators that slide a window: convolutions and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_pointwise.graph import Shape
from onnx_pointwise.study.vjp.draft import Call, RefusedError, Rule, size_of

Array = NDArray[Any]


@dataclass(frozen=True)
class _Windows:
    """Where windows lie on an input, axis by axis.

    Attributes:
        kernel: Positions in a window, k.
        strides: Steps between windows, s.
        dilations: Steps between positions, d.
        begins: Padding in front, p.
        inside: Size of the input, n.
        outside: Number of windows, m.
    """

    kernel: Shape
    strides: Shape
    dilations: Shape
    begins: Shape
    inside: Shape
    outside: Shape

    @property
    def axes(self) -> range:
        """The spatial axes."""
        return range(len(self.kernel))

    @property
    def spans(self) -> Shape:
        """From the first position of a window to its last, d (k - 1)."""
        return tuple(d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True))

    @property
    def behind(self) -> Shape:
        """From the end of the input to the end of the last window; negative where windows end inside."""
        return tuple(
            s * (m - 1) + span + 1 - p - n
            for s, m, span, p, n in zip(self.strides, self.outside, self.spans, self.begins, self.inside, strict=True)
        )

    @property
    def by_convolution(self) -> bool:
        """Whether the gradient is a convolution with the mirrored kernel."""
        return all(s == 1 for s in self.strides) and all(
            p <= span and end <= span for p, end, span in zip(self.begins, self.behind, self.spans, strict=True)
        )

    @property
    def mirrored_pads(self) -> list[int]:
        """Pads of the convolution with the mirrored kernel."""
        fronts = [span - p for span, p in zip(self.spans, self.begins, strict=True)]
        return fronts + [span - end for span, end in zip(self.spans, self.behind, strict=True)]

    @property
    def transposed(self) -> dict[str, list[int]]:
        """Attributes of the transposed convolution that leads from the windows back to the input."""
        return {
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [*self.begins, *(max(0, end) for end in self.behind)],
            "output_padding": [max(0, -end) for end in self.behind],
        }


def _windows(call: Call, kernel: Shape, inside: Shape, outside: Shape) -> _Windows:
    """Read attributes; padding in front is that which `auto_pad` leads to."""
    rank = len(kernel)
    strides, dilations = tuple(call.integers("strides", [1] * rank)), tuple(call.integers("dilations", [1] * rank))
    begins = tuple(call.integers("pads", [0] * (2 * rank))[:rank])
    auto = call.text("auto_pad", "NOTSET")
    if auto == "VALID":
        begins = (0,) * rank
    elif auto != "NOTSET":
        totals = [
            max(0, (m - 1) * s + d * (k - 1) + 1 - n)
            for m, s, d, k, n in zip(outside, strides, dilations, kernel, inside, strict=True)
        ]
        begins = tuple(total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals)
    return _Windows(kernel, strides, dilations, begins, inside, outside)


def _conv(call: Call) -> dict[int, ir.Value]:
    """The transposed convolution, written as a plain one where the stride is 1: that runs in blocked kernels."""
    shape = call.shape(1)
    group = call.integer("group", 1)
    windows = _windows(call, shape[2:], call.shape()[2:], call.out_shape[2:])
    kernel = call.draft.facts.constant(call.input(1))
    if kernel is not None and windows.by_convolution:
        mirrored = call.value(_mirrored(kernel, group))
        plain = {"pads": windows.mirrored_pads, "dilations": list(windows.dilations)}
        return {0: call.draft.op("Conv", call.g, mirrored, group=group, **plain)}
    return {0: call.draft.op("ConvTranspose", call.g, call.x(1), group=group, **windows.transposed)}


def _mirrored(kernel: Array, group: int) -> Array:
    """Turn a kernel [O, I / G, *k] into that of the convolution that leads back, [I, O / G, *k]."""
    outputs, inputs, *taps = kernel.shape
    grouped = kernel.reshape(group, outputs // group, inputs, *taps).swapaxes(1, 2)
    spatial = tuple(range(2, kernel.ndim))
    return np.flip(grouped.reshape(group * inputs, outputs // group, *taps), spatial)


def _conv_transpose(call: Call) -> dict[int, ir.Value]:
    """A convolution whose windows lie on the output."""
    shape = call.shape(1)
    rank = len(shape) - 2
    strides, dilations = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    inside, outside = call.shape()[2:], call.out_shape[2:]
    begins, ends = [], []
    auto, given = call.text("auto_pad", "NOTSET"), call.integers("pads", [0] * (2 * rank))
    extra = call.integers("output_padding", [0] * rank)
    for axis in range(rank):
        reach = strides[axis] * (inside[axis] - 1) + dilations[axis] * (shape[2 + axis] - 1) + 1
        total = max(0, reach + extra[axis] - outside[axis])
        if "output_shape" in call.node.attributes or auto.startswith("SAME"):
            front = total // 2 if auto == "SAME_UPPER" else total - total // 2
        else:
            front = 0 if auto == "VALID" else given[axis]
        begins.append(front)
        # Windows end where the input's last one does, even if the output goes on behind.
        ends.append(reach - front - outside[axis])
    g = call.draft.pad(call.g, [0] * (rank + 2), [0, 0, *(min(0, end) for end in ends)])
    plain = {"strides": strides, "dilations": dilations, "pads": [*begins, *(max(0, end) for end in ends)]}
    return {0: call.draft.op("Conv", g, call.x(1), group=call.integer("group", 1), **plain)}


def _max_pool(call: Call) -> dict[int, ir.Value]:
    """To where the maximum was: the runtime's own indices count through the whole input."""
    if call.integer("storage_order", 0):
        raise RefusedError("its indices are stored by columns")
    draft, shape = call.draft, call.shape()
    indices = draft.facts.second_output(call.node, ir.DataType.INT64, call.out_shape)
    count = size_of(shape)
    zeros = draft.op("ConstantOfShape", draft.ints([count]), value=ir.tensor(np.zeros(1, call.dtype)))
    where, what = (draft.reshape(value, (size_of(call.out_shape),)) for value in (draft.saved(indices), call.g))
    return {0: draft.reshape(draft.op("ScatterElements", zeros, where, what, axis=0, reduction="add"), shape)}


def _average_pool(call: Call) -> dict[int, ir.Value]:
    kernel = tuple(call.integers("kernel_shape", []))
    windows = _windows(call, kernel, call.shape()[2:], call.out_shape[2:])
    counts = np.ones(())
    for axis in windows.axes:
        counts = counts[..., None] * _counts(call, windows, axis)
    share = call.mul(call.g, 1.0 / (float(counts.flat[0]) if (counts == counts.flat[0]).all() else counts[None, None]))
    return {0: _spread(call, share, windows)}


def _counts(call: Call, windows: _Windows, axis: int) -> Array:
    """By how many positions along an axis the sum in each window is divided, [m]."""
    starts = np.arange(windows.outside[axis]) * windows.strides[axis] - windows.begins[axis]
    positions = starts[:, None] + np.arange(windows.kernel[axis]) * windows.dilations[axis]
    low, high = 0, windows.inside[axis]
    if call.integer("count_include_pad", 0):
        # Padding counts, but not what a window that was rounded up reaches beyond it.
        low -= windows.begins[axis]
        high += _end_pad(call, windows, axis)
    # A window that lies in the padding altogether gives to no one.
    counts: Array = np.maximum(((positions >= low) & (positions < high)).sum(1), 1)
    return counts


def _end_pad(call: Call, windows: _Windows, axis: int) -> int:
    rank = len(windows.kernel)
    if call.text("auto_pad", "NOTSET") == "NOTSET":
        return call.integers("pads", [0] * (2 * rank))[rank + axis]
    return max(0, windows.behind[axis])


def _spread(call: Call, g: ir.Value, windows: _Windows) -> ir.Value:
    """Give what each window has to each of its positions: the transpose of a sum over windows."""
    draft, shape = call.draft, call.shape()
    if windows.by_convolution and all(d == 1 for d in windows.dilations):
        mean = draft.op(
            "AveragePool",
            g,
            kernel_shape=list(windows.kernel),
            pads=windows.mirrored_pads,
            count_include_pad=1,
        )
        return call.mul(mean, float(size_of(windows.kernel)))
    # One map at a time: the runtime takes the groups of a transposed convolution one by one anyway.
    maps = draft.reshape(g, (size_of(shape[:2]), 1, *windows.outside))
    ones = call.value(np.ones((1, 1, *windows.kernel)))
    return draft.reshape(draft.op("ConvTranspose", maps, ones, **windows.transposed), shape)


def _global_average_pool(call: Call) -> dict[int, ir.Value]:
    shape = call.shape()
    share = call.mul(call.g, 1.0 / size_of(shape[2:]))
    return {0: call.draft.op("Expand", share, call.draft.ints(shape))}


def _global_max_pool(call: Call) -> dict[int, ir.Value]:
    """To where the maximum was, in equal parts where it was more than once."""
    mask = call.mask("Equal", call.x(), call.y)
    return {0: call.mul(call.div(call.g, call.sum(mask, range(2, len(call.shape())))), mask)}


def _lrn(call: Call) -> dict[int, ir.Value]:
    """From y = x d^-b, d = k + (a / n) sum of x^2 over a window of n channels.

    dx = g d^-b - 2 a b / n x (transposed window sum of g x d^(-b - 1)).
    """
    size, beta = call.integer("size", 1), call.real("beta", 0.75)
    alpha, bias = call.real("alpha", 1e-4), call.real("bias", 1.0)
    front = (size - 1) // 2
    x, shape = call.x(), call.shape()
    sums = _channel_sums(call, call.mul(x, x), shape, front, size)
    d = call.add(call.mul(sums, alpha / size), bias)
    power = call.op("Pow", d, -beta)
    inner = call.div(call.mul(call.g, x, power), d)
    back = _channel_sums(call, inner, shape, size - 1 - front, size)
    return {0: call.sub(call.mul(call.g, power), call.mul(x, back, 2.0 * alpha * beta / size))}


def _channel_sums(call: Call, value: ir.Value, shape: Shape, front: int, size: int) -> ir.Value:
    """Sum over the `size` channels that begin `front` channels before each."""
    draft, rest = call.draft, [0] * (len(shape) - 2)
    padded = draft.pad(value, [0, front, *rest], [0, size - 1 - front, *rest])
    shifted = [
        draft.op("Slice", padded, draft.ints([offset]), draft.ints([offset + shape[1]]), draft.ints([1]))
        for offset in range(size)
    ]
    return draft.total(shifted)


RULES: dict[str, Rule] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "LRN": _lrn,
    "MaxPool": _max_pool,
}
