"""The live view of the mesh: in the terminal, once, or as JSON.

Textual is imported for the live view alone.  This file must not know how anything is drawn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from blackroad.cli import commands, output
from blackroad.cli.commands import Command, duration, json_option
from blackroad.errors import MissingPackage, UsageError

if TYPE_CHECKING:
    from blackroad.tui.feed import Feed
    from blackroad.tui.model import Model
    from blackroad.tui.sheet import Sheet

INTERVAL_MS: Final = 1_000
INTERVAL_MS_MIN: Final = 100
INTERVAL_MS_MAX: Final = 60_000
TASKS_ONCE: Final = 20
COLUMNS_PLAIN: Final = 160


@click.command(
    "top",
    cls=Command,
    examples=(
        "blackroad top",
        "blackroad top --interval 5s",
        "blackroad top --once",
        "blackroad top --once --json | jq .tasks_per_s",
    ),
)
@click.option("--once", is_flag=True, help="Print it once, without colours that move.")
@click.option(
    "--interval",
    callback=duration,
    metavar="TIME",
    help="Look so often, such as 500ms or 5s; 1s where nothing is said.",
)
@json_option
def top_command(once: bool, interval: int | None, as_json: bool) -> None:
    """Show what runs where, how fast, how warm: live, until q.

    It looks once a second at nodes, tasks, queues and events; `?` lists the keys. It goes on when
    the coordinator changes or the daemon is started anew. With --json it prints one object a line,
    without end; with --once as well, one object.
    """
    from blackroad.tui.feed import Feed, Session, look_twice
    from blackroad.tui.model import Model

    interval_ms = INTERVAL_MS if interval is None else interval
    if not INTERVAL_MS_MIN <= interval_ms <= INTERVAL_MS_MAX:
        raise UsageError("--interval must be from 100ms to 1m", hint="such as 500ms or 5s")
    live = not once and not as_json
    if live and not output.is_terminal():
        raise UsageError(
            "the live view needs a terminal",
            hint="--once prints it once, --json one object a line",
        )
    app = _app() if live else None
    feed, model = Feed(Session(commands.connect), interval_ms / 1000), Model()
    try:
        if app is not None:
            feed.first()
            feed.drain(model)
            app(feed, model, why_lines).run()
        elif once:
            look_twice(feed, model)
            _print(model, as_json)
        else:
            _print_on(feed, model)
    finally:
        feed.close()


def _app() -> Any:
    try:
        from blackroad.tui.app import Top
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise MissingPackage(
            "the live view needs the package textual",
            hint="`pip install 'blackroad[tui]'`; `blackroad top --once` goes without it",
        ) from None
    return Top


def why_lines(told: dict[str, Any]) -> Sequence[str]:
    """Why a task is not running, as `blackroad why` tells it."""
    from blackroad.cli.why import lines

    return lines(told)


# --- without Textual ----------------------------------------------------------------------------


def _print(model: Model, as_json: bool) -> None:
    if as_json:
        output.print_json(model.as_json())
        return
    from blackroad.tui import banner, sheets

    for line in banner.lines(model, _columns(), time.strftime("%H:%M:%S")):
        output.say("".join(text for text, _ in line).strip())
    output.say()
    output.print_grid(_grid(sheets.nodes(model, sheets.ORDERS["nodes"], bars=True)))
    tasks = sheets.tasks(model, sheets.ORDERS["tasks"])
    if tasks.rows:
        output.say()
        output.print_grid(_grid(tasks._replace(rows=tasks.rows[:TASKS_ONCE])))


def _print_on(feed: Feed, model: Model) -> None:
    """One object a line, the first one when a speed is known."""
    from blackroad.tui.feed import look_twice

    look_twice(feed, model)
    output.print_json_line(model.as_json())
    changed = threading.Event()
    feed.start(changed.set)
    while True:
        changed.wait()
        changed.clear()
        feed.drain(model)
        output.print_json_line(model.as_json())


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size((COLUMNS_PLAIN, 24)).columns


def _grid(sheet: Sheet) -> output.Grid:
    """The columns that say something and for which there is room."""
    from blackroad.tui.sheet import layout, row_line

    chosen = layout(sheet, _columns())
    rows = [
        tuple(output.Cell(text.strip(), style) for text, style in row_line(sheet, chosen, row))
        for row in sheet.rows
    ]
    heads = tuple(sheet.columns[at].head for at in chosen.at)
    marks = "".join("r" if sheet.columns[at].right else " " for at in chosen.at)
    return output.Grid(heads, rows, marks)
