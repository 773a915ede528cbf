"""What stands for a site when it is timed: the convolutions of a form, with nothing around them.

Many probes run side by side in one network, so that what disturbs one measurement disturbs all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_pointwise.graph import ConvPiece, Site, dense_cost, pieces, whole
from onnx_pointwise.latency.patterns import Patterns
from onnx_pointwise.numerics import Form, Rank

# Multiply-accumulates of a run from which on few runs will do.
_LONG_MACS = 3e8
# ... and of sites that take longer than that, at least this share of the rows is computed, and so many times as many as
# lie between a kernel's first and last: kernels may leave out what lies beyond the edges.
_FEWEST_ROWS = 0.25
_ROWS_OF_KERNEL = 6


@dataclass(frozen=True)
class Conv:
    """One convolution of a probe.

    Attributes:
        op_type: The operator.
        in_channels: Feature maps in.
        out_channels: Feature maps out.
        kernel: Size of the kernel.
        attributes: Those of the node, without the size of its kernel.
        group: Groups of feature maps.
    """

    op_type: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]
    group: int = 1

    @staticmethod
    def of(piece: ConvPiece) -> Conv:
        """Take what matters to the time of a piece of a site."""
        given = tuple(piece.attributes.items())
        return Conv(piece.op_type, piece.in_channels, piece.out_channels, piece.size, given, piece.group)

    @property
    def strides(self) -> tuple[int, ...]:
        """Its strides; empty for a 1x1 put beside a kernel."""
        return tuple(dict(self.attributes).get("strides", ()))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its kernel as the operator takes it."""
        if self.op_type == "ConvTranspose":
            return (self.in_channels, self.out_channels // self.group, *self.kernel)
        return (self.out_channels, self.in_channels // self.group, *self.kernel)


@dataclass(frozen=True)
class Probe:
    """A chain of convolutions that is timed as one.

    Attributes:
        batch: Examples in one run.
        in_size: Spatial size of the input.
        dtype: Number format of the network that it stands for.
        chain: The convolutions, in the order in which they run.
    """

    batch: int
    in_size: tuple[int, ...]
    dtype: str
    chain: tuple[Conv, ...]

    @property
    def long(self) -> bool:
        """Whether one run takes so long that few of them will do."""
        return self.batch * self._places * self._weights > _LONG_MACS / 2

    @property
    def numbers(self) -> int:
        """About how many it keeps in memory."""
        widest = max(max(conv.in_channels, conv.out_channels) for conv in self.chain)
        return self._weights + 3 * self.batch * widest * self._places

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of what it is fed."""
        return (self.batch, self.chain[0].in_channels, *self.in_size)

    @property
    def feed(self) -> str:
        """Name of what it is fed; probes whose inputs have the same shape share one."""
        return f"{self.dtype}_{'x'.join(map(str, self.in_shape))}"

    def between(self, width: int) -> Probe:
        """The same between two 1x1 convolutions, from so many feature maps and to as many."""
        first, last = self.chain[0].in_channels, self.chain[-1].out_channels
        return replace(self, chain=(self._pointwise(width, first), *self.chain, self._pointwise(last, width)))

    def margins(self, width: int, out_shape: Sequence[int]) -> tuple[Probe, Probe]:
        """What of `between` is there without it: its input made and read, and its output.

        Args:
            width: The feature maps before and behind.
            out_shape: Shape of what it puts out, its channels aside.
        """
        ends = (self.in_size, self.chain[0].in_channels), (tuple(out_shape[2:]), self.chain[-1].out_channels)
        first, last = (
            replace(self, in_size=size, chain=(self._pointwise(width, maps), self._pointwise(maps, width)))
            for size, maps in ends
        )
        return first, last

    def _pointwise(self, inside: int, outside: int) -> Conv:
        return Conv("Conv", inside, outside, (1,) * len(self.in_size), ())

    @property
    def _weights(self) -> int:
        return sum(math.prod(conv.weight_shape) for conv in self.chain)

    @property
    def _places(self) -> int:
        """Of the largest map, about."""
        growth = math.prod(math.prod(conv.strides) for conv in self.chain if conv.op_type == "ConvTranspose")
        return math.prod(self.in_size) * growth


def probe(site: Site, form: Form | None, rank: Rank) -> Probe:
    """Give the chain of a site in a form.

    Args:
        site: A site whose sizes are known.
        form: The form; ``None`` for the untouched site.
        rank: Its rank; it does not matter to the untouched site.
    """
    parts = [whole(site)] if form is None else pieces(site, form, rank)
    return Probe(site.batch, probed_size(site), str(site.dtype), tuple(Conv.of(piece) for piece in parts))


def probed_size(site: Site) -> tuple[int, ...]:
    """Give the size to probe a site at: fewer rows where a run takes long.

    The shares that its forms take of the untouched site hardly depend on them.
    """
    if site.output_shape:
        return site.in_size
    share = max(_FEWEST_ROWS, min(1.0, _LONG_MACS / max(1, dense_cost(site).macs)))
    reach = (site.kernel_shape[0] - 1) * site.dilations[0]
    rows = max(1, _ROWS_OF_KERNEL * reach, math.ceil(share * site.in_size[0]))
    return (min(site.in_size[0], rows), *site.in_size[1:])


def feeds(probes: Sequence[Probe]) -> dict[str, Any]:
    """Draw what probes are fed; gives arrays by the name of the input."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, np.float32).astype(dtype)
        for name, shape, dtype in {probe.feed: (probe.feed, probe.in_shape, probe.dtype) for probe in probes}.values()
    }


def network(probes: Sequence[Probe], patterns: Patterns) -> onnx.ModelProto:
    """Build one network of all probes side by side, as they are deployed.

    Args:
        probes: The probes.
        patterns: What chains of convolutions look like when they are deployed.

    Returns:
        The network; the convolution that stands for a piece is called ``<probe>.<piece>``, by their indices, and so is
        what it puts out, followed by ``.z``.

    Raises:
        ModelError: Such a chain cannot be deployed so.
    """
    rng = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    inputs: dict[str, onnx.ValueInfoProto] = {}
    imports: dict[str, int] = {}
    for index, one in enumerate(probes):
        pattern = patterns.of(tuple((conv.op_type, conv.group > 1) for conv in one.chain), len(one.in_size), one.dtype)
        if one.feed not in inputs:
            inputs[one.feed] = helper.make_tensor_value_info(one.feed, pattern.element, one.in_shape)
            nodes += pattern.head(one.feed)
            weights += pattern.head_weights(one.feed)
        made = pattern.stamped(str(index), one.feed, one.chain, rng)
        nodes += made.nodes
        weights += made.weights
        outputs.append(made.output)
        imports |= pattern.imports
    graph = helper.make_graph(nodes, "probes", list(inputs.values()), outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in imports.items()], ir_version=8)
