"""What a convolution is, and what stands in its place: as much as a picture of both needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from onnx_pointwise.graph import Choice, Shape, Site, pieces
from onnx_pointwise.jsonable import json_ready


@dataclass(frozen=True)
class SiteShape:
    """What a convolution is.

    Attributes:
        op_type: Its operator.
        kernel: Size of its kernel.
        in_channels: Feature maps in, of all groups.
        out_channels: Feature maps out.
        group: Groups.
        strides: Strides.
        out_size: Spatial size of its output; empty where unknown.
    """

    op_type: str
    kernel: Shape
    in_channels: int
    out_channels: int
    group: int
    strides: Shape
    out_size: Shape

    @classmethod
    def of(cls, site: Site) -> SiteShape:
        """Describe a site."""
        return cls(
            op_type=site.op_type,
            kernel=site.kernel_shape,
            in_channels=site.in_channels * site.group,
            out_channels=site.out_channels,
            group=site.group,
            strides=site.strides,
            out_size=site.out_size,
        )

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True)
class SitePiece:
    """One of the convolutions in the place of another.

    Attributes:
        op_type: Its operator.
        kernel: Size of its kernel.
        in_channels: Feature maps in.
        out_channels: Feature maps out.
        group: Groups: as many as there are feature maps in a depthwise one.
        strides: Strides.
        out_size: Spatial size of its output; empty where unknown.
        macs: Multiply-accumulates of one run; ``None`` where the size is unknown.
    """

    op_type: str
    kernel: Shape
    in_channels: int
    out_channels: int
    group: int
    strides: Shape
    out_size: Shape
    macs: int | None

    @json_ready
    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return asdict(self)


def pieces_of(site: Site, choice: Choice) -> tuple[SitePiece, ...]:
    """Describe what stands in the place of a site, in the order in which it runs."""
    return tuple(
        SitePiece(
            op_type=piece.op_type,
            kernel=piece.size,
            in_channels=piece.in_channels,
            out_channels=piece.out_channels,
            group=piece.group,
            strides=piece.strides,
            out_size=piece.out_size,
            macs=site.batch * piece.macs if piece.out_size else None,
        )
        for piece in pieces(site, choice.form, choice.rank)
    )
