"""Results in a notebook: HTML without markup of a model's, and rows for tables."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

import onnx_pointwise
from onnx_pointwise.reports import notebook
from tests import small
from tests.reports.pages import HOSTILE, hostile_network

PLAIN: dict[str, Any] = {"provider": "none", "latency": False}


class Cells(HTMLParser):
    """Texts of cells, and the elements there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def result() -> onnx_pointwise.RewriteResult:
    return onnx_pointwise.rewrite(hostile_network(), target_macs=0.5, calibration=small.examples(64), **PLAIN)


def test_a_rewrite_shows_its_verdict_and_convolutions(result: onnx_pointwise.RewriteResult) -> None:
    shown = Cells(result._repr_html_())  # type: ignore[attr-defined]
    assert set(shown.tags) == {"div", "p", "b", "br", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(HOSTILE) <= set(shown.texts)
    assert any(text.startswith("The answers are ") for text in shown.texts)
    assert "Time left" not in shown.texts, "nothing was timed"


def test_rows_of_a_rewrite(result: onnx_pointwise.RewriteResult) -> None:
    rows = result.sites_table()
    assert [row["name"] for row in rows] == list(HOSTILE)
    assert len({tuple(row) for row in rows}) == 1
    for row, site in zip(rows, result.sites, strict=True):
        assert (row["form"], row["rank"], row["error"]) == (site.form, site.rank, site.error)
        assert (row["refusal"] is None) == (row["form"] is not None)
    assert sum(row["macs_before"] - row["macs_after"] for row in rows) == result.before.macs - result.after.macs


def test_rows_of_an_inspection_and_a_sweep() -> None:
    found = onnx_pointwise.inspect(small.network())
    rows = found.sites_table()
    assert sum(row["macs"] for row in rows) == found.cost.conv_macs
    assert "few_channels" in Cells(found._repr_html_()).texts  # type: ignore[attr-defined]
    swept = onnx_pointwise.sweep(
        small.network(), providers=("none",), latency=False, shares=(0.7, 0.4), calibration=small.examples(64)
    )
    assert [row["asked"] for row in swept.points_table()] == [0.7, 0.4]
    assert "2 networks from dear to cheap" in Cells(swept._repr_html_()).texts  # type: ignore[attr-defined]


def test_a_check_and_a_benchmark() -> None:
    model = small.network()
    checked = onnx_pointwise.check(model, model, latency=False)
    assert "the same" in Cells(checked._repr_html_()).texts  # type: ignore[attr-defined]
    timed = onnx_pointwise.bench(model, model, max_seconds=0.05, runs=5)
    assert "Median" in Cells(timed._repr_html_()).texts  # type: ignore[attr-defined]


def test_many_rows_are_cut_and_nothing_else_is_shown() -> None:
    shown = Cells(notebook._block(["a"], [{"n": number, "empty": ""} for number in range(40)]))
    assert shown.tags.count("td") == 30 and "10 more rows are in the table of the result." in shown.texts
    with pytest.raises(TypeError, match="no HTML for a int"):
        notebook.html(3)
