"""There is no sentence of the package's errors that no test looks for."""

from __future__ import annotations

import pytest

from tests import sentences
from tests.sentences import Module, Sentence


def test_every_sentence_is_looked_for_by_a_test() -> None:
    words, found = sentences.looked_for(), sentences.said()
    assert len(found) > 200
    assert [str(sentence) for sentence in found if not sentence.parts] == []  # its words could not be found
    assert [str(sentence) for sentence in found if not sentence.read_by(words)] == []


SOURCE = """
_TEXT = "There is nothing in {what}; name another one."
def refuse(name, many):
    if many:
        raise PlanError(f"The site '{name}' cannot be cut; leave it out.")
    raise PlanError(_TEXT.format(what=name))
def other(name):
    reason = why(name)
    raise ModelError(reason)
def why(name):
    return f"{name} is too large" " to be read; make it smaller." if name else "no name"
"""


def said_in(source: str) -> list[Sentence]:
    return list(Module("made.py", source, {"PlanError", "ModelError"}).sentences())


def test_the_words_of_errors_are_found_wherever_they_stand() -> None:
    found = {sentence.place: sentence.parts for sentence in said_in(SOURCE)}
    assert found == {
        "made.py:5": ("The site '", "' cannot be cut; leave it out."),
        "made.py:6": ("There is nothing in {what}; name another one.",),
        "made.py:9": (" is too large to be read; make it smaller.", "no name"),
    }


@pytest.mark.parametrize(
    ("test", "counts"),
    [
        ("def test_a():\n    assert 'cannot be cut' in text", True),
        (
            "def test_a():\n    with pytest.raises(PlanError, match=r'site .* cannot be cut; leave'):\n        go()",
            True,
        ),
        ("@pytest.mark.parametrize('words', ['cannot be cut'])\ndef test_a(words):\n    assert words in go()", True),
        ("TABLE = [(1, 'cannot be cut')]\n@pytest.mark.parametrize('n', TABLE)\ndef test_a(n):\n    pass", True),
        # A list that nothing looks for, a word alone, another sentence, a comment.
        ("SENTENCES = ['cannot be cut; leave it out.']", False),
        ("def test_a():\n    known = 'cannot be cut'", False),
        ("def test_a():\n    assert 'cut' in text", False),
        ("def test_a():\n    assert 'cannot be kept' in text", False),
        ("def test_a():\n    '''It cannot be cut; leave it out.'''", False),
    ],
)
def test_words_count_where_a_test_would_fail_without_them(test: str, counts: bool) -> None:
    sentence = said_in(SOURCE)[0]
    assert sentence.read_by(sentences.searched(test)) is counts
