"""What commands print: tables, facts and JSON; rich on a terminal, plain text elsewhere.

rich is imported only for a terminal.  This file must not know tasks, nodes or the daemon.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from blackroad.cli.report import clean, in_colour, table

if TYPE_CHECKING:
    from rich.table import Table


class Cell(NamedTuple):
    """One cell and the colours it has on a terminal."""

    text: str
    style: str = ""


class Grid(NamedTuple):
    """A table before it is drawn; `right` marks with an "r" what is set flush right."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    right: str = ""

    def without_empty(self, *optional: str) -> Grid:
        """Leave out those of the optional columns that say nothing in any row."""
        keep = [
            at
            for at, head in enumerate(self.heads)
            if head not in optional or any(row[at].text for row in self.rows)
        ]
        marks = self.right.ljust(len(self.heads))
        return Grid(
            tuple(self.heads[at] for at in keep),
            [tuple(row[at] for at in keep) for row in self.rows],
            "".join(marks[at] for at in keep),
        )


def is_terminal() -> bool:
    """Tell whether a person looks at what is printed."""
    try:
        return sys.stdout.isatty()
    except ValueError:
        return False


def say(text: str = "") -> None:
    """Print a line of the answer."""
    click.echo(text)


def say_as_it_is(text: str) -> None:
    """Print what a task printed, at once and with the colours it chose."""
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line beside the answer, where it disturbs no pipe."""
    click.echo(text, err=True)


def print_json(value: object) -> None:
    """Print one JSON document on one line, or on several for people."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if is_terminal() else None))


def print_json_line(value: object) -> None:
    """Print one JSON document on exactly one line, at once."""
    click.echo(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def print_grid(grid: Grid) -> None:
    """Print a table."""
    if not is_terminal():
        for line in plain(grid):
            say(line)
        return
    from rich.console import Console

    Console(highlight=False, no_color=not in_colour(sys.stdout)).print(drawn(grid))


def plain(grid: Grid) -> list[str]:
    """Lay a table out without colours."""
    return table(grid.heads, [[cell.text for cell in row] for row in grid.rows], grid.right)


def drawn(grid: Grid) -> Table:
    """Make a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head, mark in zip(grid.heads, grid.right.ljust(len(grid.heads)), strict=True):
        made.add_column(
            head, justify="right" if mark == "r" else "left", no_wrap=True, overflow="ellipsis"
        )
    for row in grid.rows:
        made.add_row(*(Text(clean(cell.text), style=cell.style) for cell in row))
    return made


def facts(pairs: Sequence[tuple[str, Any]], indent: str = "  ") -> None:
    """Print names and values in two columns, leaving out what is empty."""
    given = [(name, clean(str(value))) for name, value in pairs if value not in ("", None)]
    width = max((len(name) for name, _ in given), default=0)
    for name, value in given:
        say(f"{indent}{name.ljust(width)}  {value}")


def count(number: int, one: str, many: str = "") -> str:
    """Write a number with its noun: "1 node", "3 nodes"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}".replace(",", " ")


def quiet() -> bool:
    """Tell whether nobody looks at standard error, so that no progress is shown there."""
    try:
        return not sys.stderr.isatty() or os.environ.get("TERM") == "dumb"
    except ValueError:
        return True
