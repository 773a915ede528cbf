"""What rounding between two new convolutions loses, held against rounding itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnx_pointwise.graph import Choice, Replacement
from onnx_pointwise.numerics import Packed
from onnx_pointwise.numerics.factorize import Factors, factorize
from onnx_pointwise.planning.options import options, share_out
from onnx_pointwise.runtime import Piece, without_shapes
from onnx_pointwise.study import study
from onnx_pointwise.study.collect import Seen, SiteMoments
from onnx_pointwise.study.rounding import Rounding, roundings
from tests.graphs import Array, conv_model, normal
from tests.networks import EFFORT, examples, prepared, residual

SIZE = (12, 12)


def taps(x: Array) -> Array:
    """All 3x3 patches of padded inputs, [N * H * W, I * 9]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.asarray(windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * 9))


def lost_by_rounding(factors: Factors, x: Array) -> float:
    """Relative squared error of the outputs of a pair when what crosses is rounded to u8, by doing so."""
    assert factors.before is not None
    z = np.einsum("ri,nihw->nrhw", factors.before, x)
    low, high = min(z.min(), 0.0), max(z.max(), 0.0)
    step = (high - low) / 255.0
    rounded = np.round(z / step) * step
    kernel = factors.kernel.reshape(len(factors.kernel), -1).T
    before, after = taps(z) @ kernel, taps(rounded) @ kernel
    return float(np.sum((after - before) ** 2) / np.sum((before - before.mean(0)) ** 2))


@pytest.mark.parametrize("stretch", [1.0, 40.0])
def test_it_is_what_rounding_does(stretch: float) -> None:
    """In the basis that factors have, and in one in which maps are of unlike size."""
    model = conv_model(normal(16, 8, 3, 3), SIZE)
    shapes, (site,) = prepared(ir.serde.deserialize_model(model))
    x = normal(6, 8, *SIZE, seed=3)
    (name,) = shapes.inputs
    patches = taps(x)
    moment = SiteMoments(Packed.of(np.cov(patches.T)), patches.mean(0), "exact")
    made = factorize(site.weights()[0].astype(np.float32), "reduce", 5, second_moment=moment.covariance)
    sizes = np.geomspace(1.0, stretch, 5)
    assert made.before is not None
    moved = Factors(
        "reduce",
        5,
        made.before * sizes[:, None],
        made.kernel / sizes[None, :, None, None],
        None,
        made.error,
    )
    found = roundings(
        shapes.model,
        [site],
        {site.name: [Replacement(moved, None)]},
        {site.name: Seen(moment, moment, None)},
        {},
        {name: x},
        batch=2,
    )
    whole = taps(x) @ site.weights()[0].reshape(16, -1).T
    kept = taps(np.einsum("ri,nihw->nrhw", moved.before, x)) @ moved.kernel.reshape(16, -1).T  # type: ignore[index]
    share = float(np.sum((kept - kept.mean(0)) ** 2) / np.sum((whole - whole.mean(0)) ** 2))
    real = lost_by_rounding(moved, x) * share
    assert found[site.name].of(Choice("reduce", 5)) == pytest.approx(real, rel=0.3)


def test_a_stretched_basis_loses_more_by_far() -> None:
    x, made = normal(4, 8, *SIZE), factorize(normal(16, 8, 3, 3), "reduce", 5)
    assert made.before is not None
    sizes = np.geomspace(1.0, 40.0, 5)
    moved = Factors("reduce", 5, made.before * sizes[:, None], made.kernel / sizes[:, None, None], None, 0.0)
    assert lost_by_rounding(moved, x) > 5.0 * lost_by_rounding(made, x)


def test_between_ranks_and_for_other_forms_the_nearest_is_taken() -> None:
    found = Rounding({"reduce": ((2, 1e-4), (8, 3e-4)), "expand": ((4, 1e-3),)})
    curve = found.curve("reduce", [17])
    assert curve[1] == curve[2] == 1e-4 and curve[8] == curve[16] == 3e-4
    assert curve[4] == pytest.approx(2e-4) and np.all(np.diff(curve) >= 0.0)
    assert found.of(Choice("reduce_expand", (8, 5))) == pytest.approx(1.3e-3)
    assert found.curve("reduce_expand", [9, 6]).shape == (9, 6)
    assert found.of(Choice("vertical", 3)) == found.of(Choice("reduce", 3))
    assert Rounding({"expand": ((4, 1e-3),)}).of(Choice("horizontal", 9)) == 1e-3


def looked_at(**more: Any) -> Any:
    shapes, sites = prepared(residual())
    return study(residual(), shapes, sites, examples(32), effort=EFFORT, **more)


def test_a_network_that_is_quantised_is_predicted_to_drift_more() -> None:
    plain, rounded = looked_at(), looked_at(quantised=True)
    choices = {site.name: Choice("reduce", max(1, site.in_channels // 2)) for site in plain.sites}
    assert set(rounded.sensitivities) == set(plain.sensitivities)
    for name, known in rounded.sensitivities.items():
        assert plain.sensitivities[name].rounding is None and known.tried == ()
        assert known.rounding is not None and 0.0 < known.rounding.of(choices[name]) < 0.01
        for form in known.curves:
            assert np.all(known.curve(form) > plain.sensitivities[name].curve(form))
    assert rounded.rehearsal.drift(choices) > plain.rehearsal.drift(choices)
    assert rounded.rehearsal.drift({}) == plain.rehearsal.drift({}) == 0.0


def test_a_form_that_quantises_badly_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked_at(quantised=True)
    limit = {"macs": 0.6 * sum(float(one.costs[-1, 0]) for one in options(found))}

    def forms() -> set[str]:
        return {choice.form for choice in share_out(options(found), limit).values()}  # type: ignore[arg-type]

    assert "reduce" in forms()
    for known in found.sensitivities.values():
        assert known.rounding is not None
        bad = {"reduce": ((1, 0.5),), "expand": ((1, 1e-6),)}
        object.__setattr__(known, "rounding", Rounding(bad))  # type: ignore[arg-type]
    assert forms() and "reduce" not in forms() and "reduce_expand" not in forms()


def test_nothing_stays_behind_in_the_network() -> None:
    found = looked_at(quantised=True)
    assert not any("crossing" in str(node.name) for node in found.shapes.model.graph)
    assert Piece(without_shapes(found.shapes.model), list(found.fit), found.heads.names) is not None
