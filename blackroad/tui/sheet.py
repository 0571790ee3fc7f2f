"""A table before it is drawn: which rows pass the filter, in which order, in which columns.

Pure.  This file must not know what the rows are about, nor what draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from blackroad.tui.words import clean, fit, width

GAP: Final = 1
# A filter that is pasted by mistake must not cost a second for each row.
FILTER_MAX: Final = 200
Sortable = float | int | str


class Column(NamedTuple):
    """One column: the least important leave first where there is no room (`rank` 0 stays)."""

    name: str
    head: str
    right: bool = False
    rank: int = 0
    width_max: int = 24
    # Sorting begins with the largest.
    down: bool = False
    # Grows into the room that is left.
    wide: bool = False


class Cell(NamedTuple):
    """What a cell shows, what it is sorted by (its text where nothing is given), and its style."""

    text: str
    key: Sortable | None = None
    style: str = ""

    def sorted_by(self) -> Sortable:
        """The value that orders this cell among those of its column."""
        return self.text.lower() if self.key is None else self.key


class Row(NamedTuple):
    """One row; `key` tells it from others from one look to the next."""

    key: str
    cells: tuple[Cell, ...]
    style: str = ""


class Order(NamedTuple):
    """By which column, and whether upside down."""

    column: str
    reverse: bool = False


class Sheet(NamedTuple):
    """Columns and rows as they are shown; `total` counts rows before the filter."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    total: int
    order: Order


class Layout(NamedTuple):
    """Which columns are shown, and how wide each is."""

    at: tuple[int, ...]
    widths: tuple[int, ...]


def sheet(
    columns: Sequence[Column], rows: Sequence[Row], order: Order, words: str = "", limit: int = 0
) -> Sheet:
    """Filter and sort; equal cells keep the order of `rows`."""
    total = len(rows)
    wanted = tests_of(words)
    names = [column.name for column in columns]
    kept = [row for row in rows if _passes(row, names, wanted)] if wanted else list(rows)
    if order.column in names:
        at = names.index(order.column)
        down = columns[at].down != order.reverse
        # Texts and numbers may meet in one column: what is unknown sorts below what is known.
        kept.sort(key=lambda row: _rank(row.cells[at].sorted_by()), reverse=down)
    if limit:
        kept = kept[:limit]
    return Sheet(tuple(columns), tuple(kept), total, order)


def _rank(value: Sortable) -> tuple[int, float, str]:
    if isinstance(value, str):
        return (0, 0.0, value)
    return (1, value, "")


class Test(NamedTuple):
    """One word of a filter."""

    column: str
    text: str
    unwanted: bool


def tests_of(words: str) -> list[Test]:
    """Read a filter: all its words must be in a row.

    `word` is anywhere, `user:ann` in that column, and `!word` nowhere.
    """
    found = []
    for word in words[:FILTER_MAX].lower().split():
        unwanted = word.startswith("!")
        column, colon, text = word.removeprefix("!").partition(":")
        if not colon:
            column, text = "", column
        if text:
            found.append(Test(column, text, unwanted))
    return found


def _passes(row: Row, names: Sequence[str], wanted: Sequence[Test]) -> bool:
    for test in wanted:
        if test.column:
            cells = [
                cell
                for name, cell in zip(names, row.cells, strict=True)
                if name.startswith(test.column)
            ]
        else:
            cells = list(row.cells)
        there = any(_says(cell, test.text) for cell in cells)
        if not test.column and not there:
            there = test.text in row.key.lower()
        if there == test.unwanted:
            return False
    return True


def _says(cell: Cell, text: str) -> bool:
    # What is shown in short can be found by all of it.
    whole = cell.key if isinstance(cell.key, str) else ""
    return text in cell.text.lower() or text in whole.lower()


def layout(shown: Sheet, columns: int) -> Layout:
    """Choose columns and widths for a terminal so wide.

    Columns that say nothing in any row are left out; where there is no room, those of the highest
    rank go first, and the widest one that remains is cut.
    """
    wants: list[int] = []
    at = list(range(len(shown.columns)))
    for number, column in enumerate(shown.columns):
        longest = max((width(clean(row.cells[number].text)) for row in shown.rows), default=0)
        wants.append(min(column.width_max, max(longest, width(column.head) + 1)))
        if not longest and column.rank:
            at.remove(number)
    while at and _room(at, wants) > columns:
        last = max(at, key=lambda number: (shown.columns[number].rank, number))
        if shown.columns[last].rank == 0:
            break
        at.remove(last)
    widths = {number: wants[number] for number in at}
    while at and _room(at, widths) > columns and max(widths.values()) > 4:
        widest = max(at, key=lambda number: widths[number])
        widths[widest] -= 1
    spare = columns - _room(at, widths) if at else 0
    wide = [number for number in at if shown.columns[number].wide]
    if wide and spare > 0:
        widths[wide[-1]] += spare
    return Layout(tuple(at), tuple(widths[number] for number in at))


def _room(at: Sequence[int], widths: dict[int, int] | Sequence[int]) -> int:
    return sum(widths[number] for number in at) + GAP * (len(at) - 1)


def head_line(shown: Sheet, chosen: Layout) -> list[tuple[str, bool]]:
    """The heads as they are drawn, each with whether the rows are sorted by it."""
    parts = []
    for number, columns in zip(chosen.at, chosen.widths, strict=True):
        column = shown.columns[number]
        sorts = column.name == shown.order.column
        down = column.down != shown.order.reverse
        text = column.head + (("▾" if down else "▴") if sorts else "")
        parts.append((fit(text, columns, right=column.right), sorts))
    return parts


def row_line(shown: Sheet, chosen: Layout, row: Row) -> list[tuple[str, str]]:
    """A row's cells as they are drawn, each with its style."""
    parts = []
    for number, columns in zip(chosen.at, chosen.widths, strict=True):
        cell = row.cells[number]
        text = fit(clean(cell.text), columns, right=shown.columns[number].right)
        parts.append((text, cell.style or row.style))
    return parts
