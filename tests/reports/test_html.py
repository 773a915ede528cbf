"""The HTML page: the JSON and nothing else, complete in itself, the same bytes each time, names that stay names."""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import onnx_pointwise
from onnx_pointwise.check import Inputs
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import OutputError
from onnx_pointwise.reports import require_report
from onnx_pointwise.reports.terminal.answers import ON
from tests import small
from tests.commands import invoke

pytest.importorskip("jinja2", reason="the extra report is not installed")
pytest.importorskip("matplotlib", reason="the extra report is not installed")

from onnx_pointwise.reports.html import KINDS, html
from onnx_pointwise.reports.html.parts import network
from tests.reports.pages import HOSTILE, document
from tests.reports.pages import page as page_of

_VOID = {"meta", "link", "br", "img", "path", "use", "rect", "polygon"}


class Page(HTMLParser):
    """Reads a page: elements with their attributes, and texts by the element that they stand in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag, "elements are closed in order"

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))


@pytest.mark.parametrize("kind", [*KINDS, "hostile"])
def test_a_page_loads_nothing_and_runs_one_script(kind: str) -> None:
    text = page_of(kind)
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), (tag, address)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\((?!#)|@import|@font-face", text)
    scripts = [data for tag, data in page.texts if tag == "script"]
    assert len(scripts) == 1
    allowed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policies = [attributes["content"] or "" for tag, attributes in page.elements if "http-equiv" in attributes]
    assert len(policies) == 1 and "default-src 'none'" in policies[0] and f"'sha256-{allowed}'" in policies[0]


def test_the_same_document_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    told.write_text(json.dumps(document("rewrite")))
    code = (
        "import json, sys; from onnx_pointwise.reports.html import html; "
        "sys.stdout.buffer.write(html(json.load(open(sys.argv[1]))).encode())"
    )
    line = [sys.executable, "-c", code, str(told)]
    made = [subprocess.run(line, capture_output=True, check=True, env={"PYTHONHASHSEED": seed}).stdout for seed in "12"]
    assert made[0] == made[1] == html(document("rewrite")).encode()


def test_names_of_a_model_stay_names() -> None:
    made = document("hostile")
    page = Page(html(made))
    shown = {data for _, data in page.texts}
    for site in made["sites"]:
        assert site["name"] in HOSTILE and site["name"] in shown
    assert made["check"]["heads"][0]["value"] == HOSTILE[0]
    tags = {tag for tag, _ in page.elements}
    assert "img" not in tags and sum(tag == "script" for tag, _ in page.elements) == 1


def test_control_characters_are_written_out() -> None:
    made = copy.deepcopy(document("rewrite"))
    made["sites"][1]["name"] = "a\x1b[31m\u202eb\x00"
    text = html(made)
    assert "\x1b" not in text and "\u202e" not in text and "\x00" not in text
    assert r"a\x1b[31m\u202eb\x00" in text


def test_the_plan_of_the_page_is_the_plan() -> None:
    made = document("rewrite")
    page = Page(html(made))
    (link,) = [attributes for tag, attributes in page.elements if attributes.get("download") == "plan.json"]
    text = base64.b64decode((link["href"] or "").partition("base64,")[2])
    assert json.loads(text) == made["plan"]


def test_what_is_not_known_makes_a_page_all_the_same(small_folder: Path) -> None:
    bare = copy.deepcopy(document("rewrite"))
    bare["check"] = None
    bare["verdict"] = None
    for site in bare["sites"]:
        site |= {"macs_before": None, "macs_after": None, "curves": [], "error": None, "latency": None}
        site["shape"]["out_size"] = []
    text = html(bare)
    assert "not compared" in text and "Error over the rank" not in text
    nothing = copy.deepcopy(document("hostile"))
    nothing["check"]["worst"] = nothing["check"]["verdict"] = None
    for provider in nothing["check"]["providers"]:
        for head in provider["heads"]:
            head |= {"agreement": None, "drift": None, "worst_drift": None, "severity": None, "verdict": None}
    assert "Nothing that the networks answer could be compared" in html(nothing)


@pytest.mark.parametrize("inputs", get_args(Inputs))
def test_a_page_says_what_both_networks_were_compared_on(inputs: str) -> None:
    """In the words of the terminal, whatever that was."""
    changed = copy.deepcopy(document("check"))
    changed["inputs"] = inputs
    assert ON[inputs] in html(changed)


def test_many_models_have_a_section_each_and_no_name_of_an_element_twice() -> None:
    made = document("many")
    page = Page(html(made))
    named = [attributes["id"] or "" for _, attributes in page.elements if "id" in attributes]
    names = [name for name in named if not re.search(r"(^|-)[a-z][0-9a-f]{10}$", name)]  # what plots share
    assert len(names) == len(set(names))
    aims = {(attributes.get("href") or "") for _, attributes in page.elements} | {
        f"#{attributes['data-copy']}" for _, attributes in page.elements if "data-copy" in attributes
    }
    assert {aim[1:] for aim in aims if aim.startswith("#")} <= set(names)
    for number, one in enumerate(made["models"], 1):
        assert f"model-{number}" in names and one["source"] in {data for _, data in page.texts}
    (wrong,) = [one["error"] for one in made["models"] if one["error"]]
    assert wrong in {data for _, data in page.texts}
    options = {data for tag, data in page.texts if tag == "span" and data.startswith("--")}
    assert options <= {"--inputs", "--exclude", "--sites", "--calibration"}  # each whole, in an element of its own
    (link,) = [attributes for _, attributes in page.elements if attributes.get("download") == "plan.json"][:1]
    text = base64.b64decode((link["href"] or "").partition("base64,")[2])
    assert json.loads(text) == made["models"][0]["result"]["plan"]


def test_a_latency_that_nobody_can_tell_has_no_figure() -> None:
    made = copy.deepcopy(document("rewrite"))
    (on_cpu,) = made["check"]["providers"]
    for timed in (on_cpu["latency"], made["check"]["latency"]):
        timed |= {"verdict": "too noisy to tell", "ratio": 0.87654}
    text = html(made)
    assert "too noisy to tell" in text and "87.7 %" not in text


def test_there_are_no_pages_of_other_results() -> None:
    with pytest.raises(OutputError, match="no report for 'bench'"):
        html({"origin": {"job": "bench"}})
    with pytest.raises(OutputError, match="no report for None"):
        html({})


def test_what_is_missing_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else found(name))
    with pytest.raises(OutputError, match=r"takes jinja2.*pip install 'onnx-pointwise\[report\]'"):
        require_report()
    result = invoke(app, "inspect", tmp_path / "none.onnx", "--report", tmp_path / "out.html")
    assert result.exit_code == 2 and "pip install" in result.stderr


def test_widths_are_feature_maps_and_heat_is_cost() -> None:
    made = document("rewrite")
    rows = network(made["sites"], made["before"]["macs"])
    shown = [shape for site in made["sites"] for shape in (site["shape"], *site["pieces"])]
    widest = max(max(shape["in_channels"], shape["out_channels"]) for shape in shown)
    dearest = max(site["macs_before"] for site in made["sites"])
    for row in rows:
        for blocks, shapes in (
            ((row.before,), [row.site["shape"]]),
            (row.after, row.site["pieces"] or [row.site["shape"]]),
        ):
            assert len(blocks) == len(shapes)
            for block, shape in zip(blocks, shapes, strict=True):
                corners = [tuple(map(float, corner.split(","))) for corner in block.points.split()]
                assert corners[1][0] - corners[0][0] == pytest.approx(100 * shape["in_channels"] / widest, abs=0.02)
                assert corners[2][0] - corners[3][0] == pytest.approx(100 * shape["out_channels"] / widest, abs=0.02)
        assert row.before.heat == pytest.approx(100 * row.site["macs_before"] / dearest, abs=0.06)
        ends = [float(corner.split(",")[1]) for block in row.after for corner in block.points.split()]
        assert min(ends) == 0.0 and max(ends) == pytest.approx(20.0)


@pytest.mark.parametrize("more", [[], ["--json", "-"]])
def test_the_command_writes_the_page_with_its_own_line(tmp_path: Path, small_folder: Path, more: list[str]) -> None:
    page = tmp_path / "a page.html"
    result = invoke(app, "inspect", small_folder / "small.onnx", "--report", page, *more)
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "onnx-pointwise inspect" in text and "a page.html" in text
    if more:
        assert json.loads(result.stdout)["origin"]["command"].startswith("onnx-pointwise inspect ")


def test_a_page_and_a_model_are_not_one_file(small_folder: Path) -> None:
    result = invoke(app, "inspect", small_folder / "small.onnx", "--report", small_folder / "small.onnx")
    assert result.exit_code == 2 and "--report" in result.stderr


def test_failed_checks_have_a_page(tmp_path: Path, small_folder: Path) -> None:
    page: Any = tmp_path / "page.html"
    np.savez(tmp_path / "x.npz", image=small.examples(24))
    result = invoke(
        app, "rewrite", small_folder / "small.onnx", tmp_path / "out.onnx", "--target-macs", "0.3", "--require", "same",
        "--calibration", tmp_path / "x.npz", "--provider", "none", "--no-latency", "--report", page,
    )  # fmt: skip
    assert result.exit_code == 1 and not (tmp_path / "out.onnx").exists()
    assert 'class="notice bad"' in page.read_text(encoding="utf-8")


def test_an_inspection_gives_its_advice() -> None:
    made = document("inspect")
    shown = "".join(data for _, data in Page(page_of("inspect")).texts)
    assert made["advice"]
    for one in made["advice"]:
        assert one["sentence"] in shown and f"onnx-pointwise {one['command']}" in shown


def test_from_python_a_result_is_saved_as_a_page(tmp_path: Path) -> None:
    found = onnx_pointwise.inspect(small.network())
    onnx_pointwise.save_report(found, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html(found.to_dict())
    with pytest.raises(OutputError, match="folder"):
        onnx_pointwise.save_report(found, tmp_path / "none" / "page.html")
