"""What a picture of a result needs: sizes of the convolutions, what stands in their place, curves behind the choice."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import onnx_pointwise
from onnx_pointwise.graph import find_sites
from tests import small


@pytest.fixture(scope="module")
def result(small_folder: Path) -> onnx_pointwise.RewriteResult:
    return onnx_pointwise.rewrite(
        small_folder / "small.onnx",
        calibration=small.examples(64),
        target_macs=0.5,
        min_channels=4,
        provider="none",
        latency=False,
    )


def test_pieces_are_the_convolutions_in_the_place_of_a_site(result: onnx_pointwise.RewriteResult) -> None:
    made = {site.name: site for site in find_sites(result.model)}
    assert sum(bool(site.pieces) for site in result.sites) >= 2
    for site in result.sites:
        assert site.shape is not None and site.before is not None and site.after is not None
        assert math.prod(
            (*site.shape.out_size, site.shape.out_channels, site.shape.in_channels, *site.shape.kernel)
        ) == (site.before.macs)
        if site.pieces:
            assert sum(piece.macs or 0 for piece in site.pieces) == site.after.macs
            assert any(
                (piece.in_channels, piece.out_channels, piece.kernel)
                == (one.in_channels, one.out_channels, one.kernel_shape)
                for piece in site.pieces
                for one in made.values()
            )
            assert site.pieces[0].in_channels == site.shape.in_channels
            assert site.pieces[-1].out_channels == site.shape.out_channels


def test_the_choice_lies_on_its_curve(result: onnx_pointwise.RewriteResult) -> None:
    drawn = 0
    for site in result.sites:
        for curve in site.curves:
            assert curve.basis == "examples"
            assert list(curve.ranks) == sorted(set(curve.ranks)) and len(curve.ranks) <= 33
            assert all(error >= 0.0 for error in curve.errors)
            if curve.form == site.form and site.rank in curve.ranks:
                promised = result.plan.choices[site.name].error
                assert curve.errors[curve.ranks.index(site.rank)] == pytest.approx(promised, rel=1e-6)
                drawn += 1
    assert drawn >= 2
    assert result.sites[0].refusal is not None and result.sites[0].curves == ()


def test_without_examples_the_curve_is_that_of_the_kernel(small_folder: Path) -> None:
    plain = onnx_pointwise.rewrite(
        small_folder / "small.onnx", calibration=None, target_macs=0.5, provider="none", check=False
    )
    curves = [curve for site in plain.sites for curve in site.curves]
    assert curves and all(curve.basis == "kernel" for curve in curves)
    drawn = [(site, curve) for site in plain.sites for curve in site.curves if curve.form == site.form]
    assert any(site.rank in curve.ranks for site, curve in drawn)
    for site, curve in drawn:
        if site.rank in curve.ranks:
            assert curve.errors[curve.ranks.index(site.rank)] == plain.plan.choices[site.name].error
