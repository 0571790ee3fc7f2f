"""Errors in words and as data: what the snapshots do not show."""

from __future__ import annotations

import pytest

from blackroad.cli import output, report
from blackroad.cli.output import Cell, Grid
from blackroad.errors import BlackroadError, TaskFailed, UsageError


def test_reasons_follow_the_message_and_the_hint_an_empty_line() -> None:
    error = BlackroadError(
        "it broke.\nin two lines", because=["it fell.", "the shelf\nwas old"], hint="glue it."
    )
    assert report.as_text(error) == (
        "error: it broke.\n"
        "  in two lines\n"
        "  because it fell\n"
        "  because the shelf\n"
        "    was old\n"
        "\n"
        "hint: glue it"
    )


def test_words_of_others_cannot_steer_the_terminal() -> None:
    told = report.as_text(UsageError("\x1b]0;title\x07 \r \u202e \x9b", hint="\x1b[2J"))
    assert told == "error: \\x1b]0;title\\x07 \\x0d \\x202e \\x9b\n\nhint: \\x1b[2J"


def test_an_ellipsis_keeps_its_dots() -> None:
    assert report.without_stop("wait...") == "wait..."
    assert report.without_stop("done.") == "done"


def test_a_class_made_for_a_remote_error_has_the_name_of_its_family() -> None:
    class TaskFailedToo(TaskFailed, KeyError):
        """As the client makes them."""

    assert report.as_data(TaskFailedToo("x", type_name="KeyError"))["type"] == "TaskFailed"
    assert report.as_data(report.readable(RuntimeError("x")))["type"] == "InternalError"


def test_a_trace_without_frames_says_nothing_new() -> None:
    error = TaskFailed(
        "ValueError: bad", type_name="ValueError", text="bad", traceback_text="ValueError: bad"
    )
    assert report.as_text(error) == "error: ValueError: bad"


def test_columns_are_as_wide_as_their_widest() -> None:
    rows = [["a", "10", "x"], ["long\nname", "9", ""]]
    assert report.table(["name", "n", ""], rows, " r") == [
        "name        n",
        "a          10  x",
        "long name   9",
    ]


def test_columns_that_say_nothing_are_left_out() -> None:
    rows = [(Cell("a"), Cell(""), Cell("1")), (Cell("b"), Cell(""), Cell("2"))]
    grid = Grid(("name", "gpu", "n"), rows, "  r").without_empty("gpu", "n")
    assert grid.heads == ("name", "n")
    assert output.plain(grid) == ["name  n", "a     1", "b     2"]


def test_a_table_for_a_terminal_has_the_same_cells() -> None:
    from rich.console import Console

    grid = Grid(("name", "n"), [(Cell("[bold]x[/]", "red"), Cell("1"))], " r")
    console = Console(width=40, file=None, record=True, force_terminal=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(output.drawn(grid))
    # Markup in a name is a name.
    assert "[bold]x[/]" in captured.get()


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1 node"), (0, "0 nodes"), (12_345, "12 345 nodes")]
)
def test_counts(number: int, text: str) -> None:
    assert output.count(number, "node") == text
