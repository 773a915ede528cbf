"""Which mutants are drawn: those that Python can read and that change what is computed."""

from __future__ import annotations

import ast

import pytest

from tools.mutate import idle_places, says_nothing

SOURCE = """
def f(a: "x | y", *, b) -> "x | y":
    c = {"d": 1, **b}
    return g(a.reshape(2, -1), *c) * a.astype(int, copy=False) - h(-1) + (a) ** 2
"""
TREE = ast.parse(SOURCE)


def place(text: str, number: int = 0) -> tuple[int, int]:
    """Line and column of an occurrence of text."""
    at = -1
    for _ in range(number + 1):
        at = SOURCE.index(text, at + 1)
    return SOURCE.count("\n", 0, at) + 1, at - SOURCE.rfind("\n", 0, at) - 1


@pytest.mark.parametrize(
    ("operator", "where", "idle"),
    [
        ("ReplaceBinaryOperator_Mul_Div", place("*, b"), True),
        ("ReplaceBinaryOperator_Pow_Sub", place("**b"), True),
        ("ReplaceBinaryOperator_Mul_Add", place("*c"), True),
        ("ReplaceBinaryOperator_Mul_Add", place("* a.astype"), False),
        ("ReplaceBinaryOperator_Sub_Add", place("- h("), False),
        ("ReplaceBinaryOperator_Pow_Mul", place("** 2"), False),
        ("ReplaceUnaryOperator_USub_Invert", place("-1"), True),
        ("ReplaceUnaryOperator_USub_Invert", place("-1", 1), False),
        ("ReplaceUnaryOperator_Delete_USub", place("-1"), False),
        ("ReplaceFalseWithTrue", place("False"), True),
        ("NumberReplacer", place("1"), False),
    ],
)
def test_what_is_no_operator_or_makes_no_difference_is_left_out(
    operator: str, where: tuple[int, int], idle: bool
) -> None:
    assert says_nothing(TREE, f"core/{operator}", where) == idle


def test_annotations_are_found() -> None:
    lines = SOURCE.splitlines()
    found = [lines[a - 1][b:d] for a, b, c, d in idle_places(SOURCE) if a == c]
    assert found == ['"x | y"', '"x | y"']
