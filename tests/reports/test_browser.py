"""The page in a real browser: no errors, the figures of the JSON, sorting, phones, light and dark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnx_pointwise.reports.html import KINDS
from onnx_pointwise.reports.terminal import count, percent
from tests.reports.pages import HOSTILE, document, page

pytest.importorskip("jinja2", reason="the extra report is not installed")
pytest.importorskip("matplotlib", reason="the extra report is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium with chromedriver here; tools/install_browser.sh installs them"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open a page; in the end nothing was logged, nothing loaded, and no name has run."""

    def shown(kind: str, width: int = 1280, scheme: str = "light") -> Any:
        file = tmp_path / f"{kind}.html"
        file.write_text(page(kind), encoding="utf-8")
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(file.as_uri())
        return browser

    yield shown
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return window.hacked") is None


def cells(browser: Any, table: str, column: int, *, value: bool = True) -> list[str]:
    """A column of a table as it stands: what it is sorted by, or what is read."""
    read = "cell.dataset.v ?? cell.textContent.trim()" if value else "cell.textContent.trim()"
    code = (
        f"return Array.from(document.querySelectorAll('#{table} tbody tr')).map((row) => "
        f"{{ const cell = row.cells[{column}]; return {read}; }})"
    )
    return list(browser.execute_script(code))


def titles(browser: Any, table: str) -> list[str]:
    code = f"return Array.from(document.querySelectorAll('#{table} thead th')).map((cell) => cell.textContent.trim())"
    return list(browser.execute_script(code))


def text(browser: Any, selector: str) -> str:
    return str(browser.execute_script(f"return document.querySelector('{selector}').textContent.trim()"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", [*KINDS, "hostile"])
def test_every_page_fits_its_screen(show: Any, kind: str, width: int, scheme: str) -> None:
    browser = show(kind, width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark.strip("rgb()").split(","))) < 200) == (scheme == "dark")
    overflowing = browser.execute_script(
        "return Array.from(document.querySelectorAll('.tile, .notice, .lead, h1, .net .row')).filter("
        "(one) => one.scrollWidth > one.clientWidth + 1).length"
    )
    assert overflowing == 0


def test_the_figures_are_those_of_the_json(show: Any) -> None:
    made, browser = document("rewrite"), show("rewrite")
    before, after = made["before"], made["after"]
    assert percent(after["macs"] / before["macs"]) in text(browser, "#tile-macs")
    assert f"{count(before['macs'])} → {count(after['macs'])}" in text(browser, "#tile-macs")
    assert percent(after["bytes"] / before["bytes"]) in text(browser, "#tile-size")
    assert made["check"]["worst"]["figure"] in text(browser, "#tile-answers")
    timed = made["check"]["latency"]
    unsure = timed["verdict"] == "too noisy to tell"
    assert (timed["verdict"] if unsure else percent(timed["ratio"])) in text(browser, "#tile-latency-1")
    columns = titles(browser, "sites")
    keys = {"MACs before": "macs_before", "after": "macs_after", "Error": "error"}
    for title, key in keys.items():
        shown = [None if value == "" else float(value) for value in cells(browser, "sites", columns.index(title))]
        assert shown == [site[key] for site in made["sites"]]
    assert cells(browser, "sites", 0) == [site["name"] for site in made["sites"]]
    head = made["check"]["heads"][0]
    assert float(cells(browser, "heads", titles(browser, "heads").index("Drift"))[0]) == head["drift"]
    assert json.loads(text(browser, "#plan")) == made["plan"]
    drawn = browser.execute_script("return document.querySelectorAll('#network svg.after polygon').length")
    assert drawn == sum(max(1, len(site["pieces"])) for site in made["sites"])


def test_many_models_are_summed_and_lead_to_their_sections(show: Any) -> None:
    made, browser = document("many"), show("many")
    results = [one["result"] for one in made["models"] if one["result"]]
    before, after = (sum(one[side]["macs"] for one in results) for side in ("before", "after"))
    assert percent(after / before) in text(browser, "#tile-macs")
    assert "2 of 3" in text(browser, "#tile-passed") and "1 failed" in text(browser, "h1")
    column = titles(browser, "models").index("MACs left")
    shown = [value for value in cells(browser, "models", column) if value]
    assert [float(value) for value in shown] == [one["after"]["macs"] / one["before"]["macs"] for one in results]
    browser.execute_script("document.querySelector('#models a').click()")
    assert browser.execute_script("return location.hash") == "#model-1"
    assert json.loads(text(browser, "#model-1-plan")) == results[0]["plan"]


def test_a_click_sorts_and_another_one_turns_it_round(show: Any) -> None:
    browser = show("rewrite")
    names = [site["name"] for site in document("rewrite")["sites"]]
    column = titles(browser, "sites").index("Error")

    def click(at: int) -> list[str]:
        browser.execute_script(f"document.querySelectorAll('#sites thead th')[{at}].querySelector('button').click()")
        return cells(browser, "sites", at)

    falling = click(column)
    known = [float(value) for value in falling if value]
    assert known == sorted(known, reverse=True) and falling[len(known) :] == [""] * (len(falling) - len(known))
    header = f"document.querySelectorAll('#sites thead th')[{column}]"
    assert browser.execute_script(f"return {header}.getAttribute('aria-sort')") == "descending"
    rising = [float(value) for value in click(column) if value]
    assert rising == sorted(known)
    assert click(0) == sorted(names)
    assert browser.execute_script(f"return {header}.getAttribute('aria-sort')") is None


def test_hostile_names_are_shown_as_they_are(show: Any) -> None:
    browser = show("hostile")
    assert cells(browser, "sites", 0) == list(HOSTILE)
    assert cells(browser, "heads", 0) == [HOSTILE[0]]


def test_a_sweep_shows_every_network(show: Any) -> None:
    browser = show("sweep")
    (front,) = document("sweep")["fronts"]
    columns = titles(browser, "front-1")
    assert [float(value) for value in cells(browser, "front-1", 0)] == [point["asked"] for point in front["points"]]
    shown = [float(value) for value in cells(browser, "front-1", columns.index("Drift"))]
    assert shown == [point["drift"] for point in front["points"]]
    assert json.loads(text(browser, "#plan")) == document("sweep")["picked"]["plan"]


def test_an_inspection_shows_every_convolution(show: Any) -> None:
    browser = show("inspect")
    sites = document("inspect")["sites"]
    assert [int(value) for value in cells(browser, "sites", titles(browser, "sites").index("MACs"))] == [
        site["macs"] for site in sites
    ]
