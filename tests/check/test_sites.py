"""Which convolution did it."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import pytest

from onnx_pointwise.check import SiteCheck
from onnx_pointwise.check import check as api
from onnx_pointwise.graph import BottleneckPass, Choice, Plan
from onnx_pointwise.reports import terminal
from tests.check.networks import classifier, detector, images, moved
from tests.check.test_answers import printed
from tests.graphs import conv_model, function_model, normal


def sites(before: Any, after: Any, **options: Any) -> tuple[SiteCheck, ...]:
    result = api(before, after, **{"latency": False, "threads": 1, "inputs": images(8), "sites": True} | options)
    assert result.sites is not None
    return result.sites


def rewritten(model: onnx.ModelProto, **choices: Choice) -> ir.Model:
    return BottleneckPass(Plan(choices, method="svd"))(ir.serde.deserialize_model(model)).model


def test_nothing_is_computed_otherwise_in_the_same_network() -> None:
    assert sites(detector(), detector()) == ()
    assert api(detector(), detector(), latency=False, inputs=images(8)).sites is None


def test_sites_come_in_order_with_what_each_did_itself() -> None:
    found = sites(detector(), rewritten(detector(), first=Choice("reduce", 5), second=Choice("expand", 4)))
    assert [(site.name, site.output) for site in found] == [("first", "a0"), ("second", "b0")]
    first, second = found
    assert first.own == pytest.approx(first.drift) and (first.own or 0.0) > 0.01
    assert second.own is not None and second.drift is not None and second.own != pytest.approx(second.drift)


def test_a_site_that_is_exact_only_carries_what_came_before() -> None:
    found = sites(detector(), rewritten(detector(), first=Choice("reduce", 3), second=Choice("reduce", 16)))
    assert found[1].own == pytest.approx(0.0, abs=1e-5) and (found[1].drift or 0.0) > 0.05


def test_other_kernels_are_found_whoever_changed_them() -> None:
    found = sites(detector(), moved(detector(), 0.5, ("W2", "WS")))
    assert [site.name for site in found] == ["second", "scores"]
    assert found[0].own == pytest.approx(found[0].drift)


def test_what_folds_into_a_site_belongs_to_it() -> None:
    model = conv_model(normal(6, 8, 3, 3), (8, 8), behind="batchnorm", relu=True)
    (site,) = sites(model, rewritten(model, conv=Choice("reduce", 3)), inputs={"x": normal(4, 8, 8, 8)})
    assert site.own == pytest.approx(site.drift) and (site.own or 0.0) > 0.05


def test_a_model_with_a_fixed_batch() -> None:
    model = conv_model(normal(6, 8, 3, 3), (8, 8), batch=2, relu=True)
    (site,) = sites(model, rewritten(model, conv=Choice("reduce", 3)), inputs={"x": normal(4, 8, 8, 8)})
    assert site.own == pytest.approx(site.drift)


def test_functions_are_looked_into() -> None:
    kernel = normal(8, 8, 3, 3)
    assert sites(function_model(kernel), function_model(kernel), inputs={"x": normal(1, 8, 8, 8)}) == ()


def test_the_worst_come_first_in_the_table_and_all_are_in_the_json() -> None:
    after = rewritten(classifier(), first=Choice("reduce", 5), second=Choice("expand", 2))
    result = api(classifier(), after, latency=False, inputs=images(8), sites=True)
    lines = printed(terminal.check(result))
    first, second = (next(k for k, line in enumerate(lines) if line.startswith(name)) for name in ("first", "second"))
    assert second < first
    assert [site["name"] for site in result.to_dict()["sites"]] == ["first", "second"]
    (line,) = [line for line in printed(terminal.answers(result, most=1), 200) if "1 more" in line]
    assert "--all" in line
