"""Text and tables of ``rich`` that take every string as it is: names from a model are data, never markup.

A name may hold brackets, which ``rich`` would read as styles, or control characters, with which a file could move the
cursor or colour the terminal of whoever looks at it. Here brackets stay, and control characters are written out.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import rich.table
import rich.text
from rich.console import Console, RenderableType

# Control characters, halves of characters, line and paragraph separators, and format characters, which are not seen
# themselves but turn the direction of what follows.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def plain(text: object) -> str:
    r"""Write text so that it stands on one line and does nothing to a terminal: control characters become ``\x1b``."""
    return "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character) in _UNSEEN else character
        for character in str(text)
    )


class Text(rich.text.Text):
    """Text of one line that holds no control characters."""

    def __init__(self, text: str = "", style: str = "", **settings: Any) -> None:
        super().__init__(plain(text), style, **settings)

    def append(self, text: rich.text.Text | str, style: Any = None) -> Text:
        """Add text, which is taken as it is, too."""
        super().append(plain(text) if isinstance(text, str) else text, style)
        return self


class Table(rich.table.Table):
    """A table whose cells are taken as they are."""

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """Add a row."""
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **settings)


def console(*, stderr: bool = False) -> Console:
    """Open the terminal for what this package prints: strings are no markup there, either."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
