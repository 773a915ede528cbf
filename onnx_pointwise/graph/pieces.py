"""The convolutions that take the place of a site: what each reads, writes and inherits of the site's attributes.

The pieces share out what the site does along each spatial axis: the one whose kernel covers an axis has its stride,
dilation and pads, all others go along it one by one, without padding. The pieces in front carry no bias, so that the
zeros a later one pads with are those that the site would have seen. The pieces of a transposed convolution are
transposed, too, but for the 1x1 beside it; the zeros that it puts between its inputs stay zeros likewise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from onnx_pointwise.graph.shapes import Shape
from onnx_pointwise.graph.sites import Site
from onnx_pointwise.numerics import SPATIAL, Form, Rank, has_form, view_of

# Forms with a 1x1 behind the kernel.
_BEHIND: tuple[Form, ...] = ("expand", "reduce_expand", "depthwise")


@dataclass(frozen=True)
class ConvPiece:
    """One convolution of a rewritten site.

    Attributes:
        op_type: The operator.
        out_channels: Feature maps out.
        in_channels: Feature maps in.
        axes: Spatial axes, from 0, along which it does what the site does; none for a 1x1 put beside a kernel.
        size: Size of the kernel.
        strides: Strides.
        dilations: Dilations.
        pads: Explicit pads (begins, then ends), or the value of ``auto_pad``.
        output_padding: Of a transposed convolution; empty for none.
        output_shape: Likewise.
        in_size: Spatial size of the input; empty where unknown.
        out_size: Spatial size of the output; empty where unknown.
        group: Groups of feature maps: as many as there are of a depthwise one.
    """

    op_type: str
    out_channels: int
    in_channels: int
    axes: tuple[int, ...]
    size: Shape
    strides: Shape
    dilations: Shape
    pads: Shape | str
    output_padding: Shape
    output_shape: Shape
    in_size: Shape
    out_size: Shape
    group: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one example: all weights for each output, or each input of a transposed one."""
        places = self.in_size if self.op_type == "ConvTranspose" else self.out_size
        return math.prod(places) * self.params

    @property
    def kernel(self) -> Shape:
        """Shape of its kernel, [out, in, *k], in of one group."""
        return (self.out_channels, self.in_channels // self.group, *self.size)

    @property
    def params(self) -> int:
        """Numbers in its kernel."""
        return math.prod(self.kernel)

    @property
    def attributes(self) -> dict[str, Shape | str | int]:
        """Those of the node, without the size of its kernel: none for a 1x1 put beside a kernel."""
        if not self.axes:
            return {}
        padding = {"auto_pad": self.pads} if isinstance(self.pads, str) else {"pads": self.pads}
        further = {"output_padding": self.output_padding, "output_shape": self.output_shape}
        given: dict[str, Shape | str | int] = {name: value for name, value in further.items() if value}
        if self.group > 1:
            given["group"] = self.group
        return {"strides": self.strides, "dilations": self.dilations, **padding, **given}


def takes(site: Site, form: Form) -> bool:
    """Whether a site can be rewritten in a form.

    A spatial one takes two axes along which the kernel is longer than 1 (`depthwise` one), and an output whose size
    follows from that of the input: what stands between two pieces of a transposed convolution has one size or the other
    along each axis.
    """
    return has_form(form, site.kernel_shape) and not (site.output_shape and form in SPATIAL)


def whole(site: Site) -> ConvPiece:
    """The untouched site as one piece."""
    return _piece(site, site.out_channels, site.in_channels, range(len(site.kernel_shape)), site.in_size)


def piece_count(form: Form) -> int:
    """How many convolutions take the place of a site in a form."""
    return (form != "expand") + 1 + (form in _BEHIND)


def pieces(site: Site, form: Form | Literal["dense"], rank: Rank) -> tuple[ConvPiece, ...]:
    """List the convolutions of a site in a form, in the order in which they run.

    Args:
        site: A site that may be rewritten.
        form: The form; ``dense`` for the site as it is.
        rank: Channels between the pieces; a pair ``(R_in, R_out)``, or one number for both, for ``reduce_expand``.

    Raises:
        PlanError: The kernel cannot be rewritten in this form.
    """
    if form == "dense":
        return (whole(site),)
    view = view_of(form, site.kernel_shape)
    r_in, r_out = (rank, rank) if isinstance(rank, int) else rank
    inputs = site.in_channels if form == "expand" else r_in
    outputs = r_out if form in _BEHIND else site.out_channels
    made = []
    if form != "expand":
        made.append(_piece(site, inputs, site.in_channels, view.first, site.in_size))
    group = r_in if form == "depthwise" else 1
    made.append(_piece(site, outputs, inputs, view.second, made[-1].out_size if made else site.in_size, group))
    if form in _BEHIND:
        made.append(_piece(site, site.out_channels, outputs, (), site.out_size))
    return tuple(made)


def laid_out(site: Site, piece: ConvPiece, kernel: NDArray[Any]) -> NDArray[Any]:
    """Turn the kernel [out, in, *k] of a piece into what its operator takes."""
    return site.stored(kernel, depthwise=piece.group > 1) if piece.axes else kernel


def _piece(site: Site, outputs: int, inputs: int, axes: Sequence[int], in_size: Shape, group: int = 1) -> ConvPiece:
    """The piece that does what the site does along some axes."""
    rank = len(site.kernel_shape)

    def along(values: Shape, other: int) -> Shape:
        return tuple(value if index % rank in axes else other for index, value in enumerate(values))

    sizes = zip(in_size, site.out_size, strict=True) if in_size and site.out_size else ()
    return ConvPiece(
        op_type=site.op_type if axes else "Conv",
        out_channels=outputs,
        in_channels=inputs,
        axes=tuple(axes),
        size=along(site.kernel_shape, 1),
        strides=along(site.strides, 1),
        dilations=along(site.dilations, 1),
        pads=site.pads if isinstance(site.pads, str) else along(site.pads, 0),
        output_padding=along(site.output_padding, 0) if axes else (),
        output_shape=site.output_shape if axes else (),
        in_size=in_size,
        out_size=tuple(after if axis in axes else before for axis, (before, after) in enumerate(sizes)),
        group=group,
    )
