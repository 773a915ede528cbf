"""The convolutions that take the place of a site: what each reads, writes and inherits of the site's attributes.

The pieces share out what the site does along each spatial axis: the one whose kernel covers an axis has its stride,
dilation and pads, all others go along it one by one, without padding. The pieces in front carry no bias, so that the
zeros a later one pads with are those that the site would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_pointwise.graph.shapes import Shape
from onnx_pointwise.graph.sites import Site
from onnx_pointwise.numerics import Form, Rank, view_of


@dataclass(frozen=True)
class ConvPiece:
    """One convolution of a rewritten site.

    Attributes:
        out_channels: Feature maps out.
        in_channels: Feature maps in.
        axes: Spatial axes, from 0, along which it does what the site does; none for a 1x1 put beside a kernel.
        size: Size of the kernel.
        strides: Strides.
        dilations: Dilations.
        pads: Explicit pads (begins, then ends), or the value of ``auto_pad``.
        out_size: Spatial size of the output; empty where unknown.
    """

    out_channels: int
    in_channels: int
    axes: tuple[int, ...]
    size: Shape
    strides: Shape
    dilations: Shape
    pads: Shape | str
    out_size: Shape


def pieces(site: Site, form: Form, rank: Rank) -> tuple[ConvPiece, ...]:
    """List the convolutions of a site in a form, in the order in which they run.

    Args:
        site: A site that may be rewritten.
        form: The form.
        rank: Channels between the pieces; a pair ``(R_in, R_out)``, or one number for both, for ``reduce_expand``.

    Raises:
        PlanError: The kernel cannot be rewritten in this form.
    """
    view = view_of(form, site.kernel_shape)
    r_in, r_out = (rank, rank) if isinstance(rank, int) else rank
    inputs = site.in_channels if form == "expand" else r_in
    outputs = r_out if form in ("expand", "reduce_expand") else site.out_channels
    made = []
    if form != "expand":
        made.append(_piece(site, inputs, site.in_channels, view.first, site.in_size))
    made.append(_piece(site, outputs, inputs, view.second, made[-1].out_size if made else site.in_size))
    if form in ("expand", "reduce_expand"):
        made.append(_piece(site, site.out_channels, outputs, (), site.out_size))
    return tuple(made)


def _piece(site: Site, outputs: int, inputs: int, axes: tuple[int, ...], in_size: Shape) -> ConvPiece:
    """The piece that does what the site does along some axes."""
    rank = len(site.kernel_shape)

    def along(values: Shape, other: int) -> Shape:
        return tuple(value if index % rank in axes else other for index, value in enumerate(values))

    sizes = zip(in_size, site.out_size, strict=True) if in_size and site.out_size else ()
    return ConvPiece(
        out_channels=outputs,
        in_channels=inputs,
        axes=axes,
        size=along(site.kernel_shape, 1),
        strides=along(site.strides, 1),
        dilations=along(site.dilations, 1),
        pads=site.pads if isinstance(site.pads, str) else along(site.pads, 0),
        out_size=tuple(after if axis in axes else before for axis, (before, after) in enumerate(sizes)),
    )
