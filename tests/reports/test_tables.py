"""Tables fit whatever terminal, and a name that a table shows is one that a command takes."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import onnx_pointwise
from onnx_pointwise.errors import PlanError
from onnx_pointwise.graph import GAP, full_name
from onnx_pointwise.progress import Expected
from onnx_pointwise.reports import Steps
from onnx_pointwise.reports.terminal import Column, Grid, change, fitting
from onnx_pointwise.reports.terminal.checking import costs
from onnx_pointwise.reports.terminal.running import comparison
from onnx_pointwise.runtime import Latency, LatencyComparison, Verdict
from tests.small import network

#: As TensorFlow names them: alike at both ends.
LONG = [
    f"functional_1/stage_{n // 9}/block_{n // 3}/conv2d_{n}/Conv2D;functional_1/stage/batch_normalization/Fused"
    for n in range(100)
]
NAMES = st.lists(st.text("ab/_;.01", min_size=1, max_size=60), min_size=1, max_size=20, unique=True)


def printed(renderable: object, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue().splitlines()


@given(NAMES, st.integers(8, 40))
def test_names_fit_and_those_that_are_short_stay(names: list[str], width: int) -> None:
    for name, short in zip(names, fitting(names, width), strict=True):
        assert len(short) <= width
        assert short == name or (len(name) > width and GAP in short)


@given(NAMES, st.integers(8, 40))
def test_what_is_shown_means_what_it_was_made_from(names: list[str], width: int) -> None:
    for name, short in zip(names, fitting(names, width), strict=True):
        try:
            assert full_name(short, names) == name or short in names
        except PlanError as error:
            assert "may be any of" in str(error)


@pytest.mark.parametrize("width", [24, 30, 40, 60])
def test_long_names_that_are_alike_at_both_ends_are_told_apart(width: int) -> None:
    short = fitting(LONG, width)
    assert len(set(short)) == len(LONG)
    assert [full_name(one, LONG) for one in short] == LONG


def test_names_are_told_from_those_that_are_not_shown() -> None:
    (short,) = fitting(LONG[1:2], 30, LONG)
    assert full_name(short, LONG) == LONG[1]


@pytest.mark.parametrize(
    ("text", "found"),
    [("a/conv1", "a/conv1"), ("b/conv1", "b/conv1"), ("a…1", "a/conv1"), ("b/...", "b/conv1"), ("nothing", "nothing")],
)
def test_parts_of_names(text: str, found: str) -> None:
    assert full_name(text, ["a/conv1", "b/conv1", "a/conv12"]) == found


def test_a_part_of_several_names_is_refused_with_them() -> None:
    with pytest.raises(PlanError, match="'conv1' may be any of 2 convolutions: 'a/conv1', 'b/conv1'; write more"):
        full_name("conv1", ["a/conv1", "b/conv1", "conv2"])
    assert full_name("conv1", ["conv1", "b/conv1"]) == "conv1", "a name as it is stands for itself"


@given(st.integers(40, 140), st.integers(0, 8))
def test_a_table_fits_and_nothing_in_it_wraps(width: int, extra: int) -> None:
    numbers = [Column(f"Figure {n}", right=True, extra=n + 1) for n in range(extra)]
    table = Grid(Column("Name", name=True), Column("Kind"), *numbers)
    for name in LONG[:7]:
        table.add_row(name, "reduce_expand", *("123.4 M" for _ in numbers))
    lines = printed(table, width)
    assert len(lines) == 8 and max(map(len, lines)) <= width
    assert all("reduce_expand" in line for line in lines[1:])


def test_what_matters_less_is_left_out_first() -> None:
    table = Grid(Column("Name", name=True), Column("Kept"), Column("Less", extra=1), Column("Least", extra=2))
    table.add_row(LONG[0], "x" * 20, "y" * 20, "z" * 20)
    assert [word for word in ("Kept", "Less", "Least") if word in printed(table, 120)[0]] == ["Kept", "Less", "Least"]
    assert [word for word in ("Kept", "Less", "Least") if word in printed(table, 80)[0]] == ["Kept", "Less"]
    assert [word for word in ("Kept", "Less", "Least") if word in printed(table, 50)[0]] == ["Kept"]


def test_changes() -> None:
    assert [change(1e6, 4e5), change(0, 2048), change(5, 5)] == ["-600 k", "+2.05 k", "0"]


# --- progress ---------------------------------------------------------------------------------------------------------


def test_steps_in_lines() -> None:
    out = io.StringIO()
    ticks = iter([0.0, 1.0, 2.5])
    with Steps(Console(file=out, width=80), lines=True, clock=lambda: next(ticks)) as steps:
        steps("load", "the model")
        steps("refit", "conv1", 2, 5)
        steps("refit", "conv1", 3, 5)
    assert out.getvalue().splitlines() == ["    1.0 s  load: the model", "    2.5 s  refit: conv1 (3 of 5)"]


def test_steps_show_nothing_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Steps(Console(file=out, width=80)) as steps:
        steps("load", "the model")
    assert out.getvalue() == ""


def test_steps_show_what_is_left_of_all_of_them() -> None:
    out, now = io.StringIO(), 0.0
    expected = (Expected("moments", 1.0), Expected("refit", 5.0), Expected("timing", seconds=4.0))
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with Steps(console, expected=expected, clock=lambda: now) as steps:
        for done in range(4):
            now = 10.0 * done
            steps("moments", "example inputs", done, 4)
    # A quarter of a pass takes ten seconds: five passes and a quarter are left, and the timing.
    assert "all of it" in out.getvalue() and "03:34 left" in out.getvalue()


def test_steps_on_a_terminal_show_share_and_name() -> None:
    out = io.StringIO()
    with Steps(Console(file=out, width=80, force_terminal=True, color_system=None)) as steps:
        for done in range(4):
            steps("refit", LONG[done], done, 4)
        steps("search", "anything")
        steps("refit", LONG[0], 1, 4)
    text = out.getvalue()
    assert "refit" in text and "1/4" in text and "search" in text
    assert all(len(line.split("\x1b")[0]) <= 80 for line in text.splitlines())


# --- latency ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "shown", "hidden"),
    [
        ("no change", "no change", "118.4 %"),
        ("too noisy to tell", "too noisy to tell", "118.4 %"),
        ("slower", "118.4 %", "no change"),
    ],
)
def test_a_latency_inside_the_noise_has_no_share(word: Verdict, shown: str, hidden: str) -> None:
    run = Latency(median=5e-4, p90=6e-4, throughput=1.0, runs=1, times=(5e-4,))
    timed = LatencyComparison(
        before=run, after=run, ratio=1.184, interval=(0.8, 1.3), noise=0.4, verdict=word, rounds=10, provider="cpu",
        device=None, threads=None, optimization="all", bound="host", input_shapes={},
    )  # fmt: skip
    checked = onnx_pointwise.check(network(), network(), latency=False)
    (on_cpu,) = checked.providers
    checked = replace(checked, providers=(replace(on_cpu, latency=timed),))
    out = io.StringIO()
    Console(file=out, width=80).print(costs(checked.before, checked.after, checked))
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("Latency, cpu")]
    assert shown in line and hidden not in line and "0.50 ms" in line
    assert ("differs from itself by 0.400" in comparison(timed)) == (word == "too noisy to tell")
    assert ("1.184" in comparison(timed)) == (word != "too noisy to tell")
