"""Rows that are filtered, sorted and laid out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.tui.sheet import (
    Cell,
    Column,
    Order,
    Row,
    Sheet,
    head_line,
    layout,
    row_line,
    sheet,
)

COLUMNS = (
    Column("name", "name"),
    Column("user", "user", rank=1),
    Column("age", "age", right=True, rank=2, down=True),
    Column("note", "note", rank=3, wide=True, width_max=40),
)


def row(name: str, user: str = "ann", age: int = 1, note: str = "") -> Row:
    return Row(f"key-{name}", (Cell(name), Cell(user), Cell(f"{age}s", age), Cell(note)))


ROWS = (row("render", "ann", 9), row("merge", "bob", 10), row("Render-2", "bob", 2, "ann waits"))


AS_GIVEN = Order("none")


def names(words: str = "", order: Order = AS_GIVEN) -> list[str]:
    return [one.cells[0].text for one in sheet(COLUMNS, ROWS, order, words).rows]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("", ["render", "merge", "Render-2"]),
        ("RENDER", ["render", "Render-2"]),
        ("render bob", ["Render-2"]),
        ("ann", ["render", "Render-2"]),
        ("user:ann", ["render"]),
        ("u:ann", ["render"]),
        ("!user:ann", ["merge", "Render-2"]),
        ("!render", ["merge"]),
        ("key-merge", ["merge"]),
        ("nobody", []),
        ("planet:mars", []),
        ("!planet:mars", ["render", "merge", "Render-2"]),
        ("user: ! :", ["render", "merge", "Render-2"]),
    ],
)
def test_filter(words: str, left: list[str]) -> None:
    assert names(words) == left


def test_numbers_are_sorted_as_numbers_and_the_largest_first() -> None:
    assert names(order=Order("age")) == ["merge", "render", "Render-2"]
    assert names(order=Order("age", True)) == ["Render-2", "render", "merge"]


def test_names_are_sorted_whatever_their_case() -> None:
    assert names(order=Order("name")) == ["merge", "render", "Render-2"]
    assert names(order=Order("name", True)) == ["Render-2", "render", "merge"]


def test_texts_and_numbers_in_one_column() -> None:
    rows = [Row(str(at), (Cell(str(key), key),)) for at, key in enumerate(("x", 3, -1, "a"))]
    made = sheet(COLUMNS[:1], rows, Order("name"))
    assert [one.cells[0].key for one in made.rows] == ["a", "x", -1, 3]


def test_what_a_filter_left_out_is_counted() -> None:
    made = sheet(COLUMNS, ROWS, Order("name"), "bob")
    assert (len(made.rows), made.total) == (2, 3)


def shown(made: Sheet, columns: int) -> list[str]:
    chosen = layout(made, columns)
    lines = [" ".join(text for text, _ in head_line(made, chosen))]
    lines += [" ".join(text for text, _ in row_line(made, chosen, one)) for one in made.rows]
    return lines


def test_layout_where_there_is_room() -> None:
    assert shown(sheet(COLUMNS, ROWS, Order("age")), 40) == [
        "name     user  age▾ note                ",
        "merge    bob    10s                     ",
        "render   ann     9s                     ",
        "Render-2 bob     2s ann waits           ",
    ]


def test_what_matters_least_goes_first() -> None:
    made = sheet(COLUMNS, ROWS, Order("name"))
    heads = [shown(made, columns)[0].split() for columns in (24, 20, 14, 9, 6)]
    assert heads == [["name▴", "user", "age", "note"][:n] for n in (3, 3, 2, 1, 1)]
    assert shown(made, 6)[3] == "Rende…"


def test_a_column_that_says_nothing_is_left_out() -> None:
    made = sheet(COLUMNS, ROWS[:2], Order("name"))
    assert shown(made, 60)[0].split() == ["name▴", "user", "age"]


@given(
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20), st.integers(0, 10**6))),
    st.integers(1, 120),
    st.text(max_size=20),
)
def test_nothing_is_wider_than_the_terminal(
    rows: list[tuple[str, str, int]], columns: int, words: str
) -> None:
    made = sheet(COLUMNS, [row(*one) for one in rows], Order("user"), words)
    chosen = layout(made, columns)
    taken = sum(chosen.widths) + len(chosen.widths) - 1
    # The one column that is always there keeps four letters.
    assert taken <= max(columns, 4)
