"""Tables that fit a terminal: names give up their middle, columns that matter less are left out, nothing wraps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.text import Text as AnyText

from onnx_pointwise.reports.plain import Table, Text, plain
from onnx_pointwise.reports.terminal.names import fitting

#: Rows that a table shows of its own accord, the ones that matter first; more than that are folded.
SHOWN = 12
#: Up to here a table is shown as a whole: folding a few rows would save no line.
FEW = 16
# A name needs that much to be told from others; columns that matter less make room for it.
_NAME = 24
_LEAST = 8

Cell = str | AnyText


@dataclass(frozen=True)
class Column:
    """A column of a `Grid`.

    Attributes:
        title: Its title.
        right: Whether it stands to the right, as numbers do.
        extra: How soon it is left out where the terminal is too narrow, the highest first; 0 never is.
        wraps: Whether its cells may take several lines: lists, never names.
        name: Whether it holds names, which may be shortened.
    """

    title: str
    right: bool = False
    extra: int = 0
    wraps: bool = False
    name: bool = False


class Grid:
    """A table that is laid out for the width that it gets.

    Names are shortened so that they are told from those of ``among``, too, rows or not.
    """

    def __init__(self, *columns: Column, among: Sequence[str] = ()) -> None:
        self.columns = columns
        self._among = tuple(map(plain, among))
        self.rows: list[list[Cell]] = []

    def add_row(self, *cells: Cell) -> None:
        """Add a row, a cell for each column."""
        self.rows.append([Text(cell) if isinstance(cell, str) else cell for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._laid_out(options.max_width)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = self._widths()
        return Measurement(min(sum(widths) + len(widths) - 1, options.max_width), options.max_width)

    def _widths(self) -> list[int]:
        """What each column would take."""
        return [
            max([len(column.title), *(_cells(row[place]) for row in self.rows)])
            for place, column in enumerate(self.columns)
        ]

    def _laid_out(self, width: int) -> RenderableType:
        widths = self._widths()
        kept = list(range(len(self.columns)))
        for place in sorted(kept, key=lambda place: -self.columns[place].extra):
            if self.columns[place].extra and self._needed(kept, widths) > width:
                kept.remove(place)
        room = width - sum(widths[place] + 1 for place in kept if not self._gives(place)) + 1
        giving = [place for place in kept if self._gives(place)]
        for place in giving:  # what one of them does not need, the next ones get
            others = giving[giving.index(place) + 1 :]
            share = room - sum(min(widths[other], _LEAST) + 1 for other in others) - 1
            widths[place] = max(min(widths[place], share), min(_LEAST, widths[place]))
            room -= widths[place] + 1
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0), collapse_padding=True)
        for place in kept:
            column = self.columns[place]
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.wraps,
                overflow="fold" if column.wraps else "ellipsis",
                width=widths[place] if self._gives(place) else None,
            )
        cells = [self._column(place, widths[place]) for place in kept]
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        return table

    def _gives(self, place: int) -> bool:
        return self.columns[place].name or self.columns[place].wraps

    def _needed(self, kept: Sequence[int], widths: Sequence[int]) -> int:
        """The least that columns can do with."""
        return sum((min(widths[place], _NAME) if self._gives(place) else widths[place]) + 1 for place in kept) - 1

    def _column(self, place: int, width: int) -> list[AnyText]:
        cells = [row[place] for row in self.rows]
        texts = [cell if isinstance(cell, AnyText) else Text(cell) for cell in cells]
        if not self.columns[place].name:
            return texts
        short = fitting([text.plain for text in texts], width, self._among)
        return [
            Text(one, text.style if isinstance(text.style, str) else "") for one, text in zip(short, texts, strict=True)
        ]


def _cells(cell: Cell) -> int:
    return AnyText(plain(cell)).cell_len if isinstance(cell, str) else cell.cell_len
