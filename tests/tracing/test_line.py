"""One story that a collector never takes, and a collector that is away: told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from blackroad.tracing.line import ASIDE_MAX, BATCH_MAX, FAILURES_MIN, QUEUE_MAX, Line
from blackroad.tracing.story import Story


class Named:
    """Stands for a story: the line never looks into one."""

    def __init__(self, number: int) -> None:
        self.number = number


def stories(count: int, first: int = 0) -> list[Story]:
    return [cast(Any, Named(first + at)) for at in range(count)]


def numbers(batch: list[Story]) -> list[int]:
    return [cast(Any, one).number for one in batch]


def send(line: Line, takes: Callable[[list[int]], bool], most: int = 10_000) -> list[int]:
    """Go on until nothing waits, or so many batches were tried; return what was taken."""
    taken: list[int] = []
    for _ in range(most):
        batch = line.next()
        if not batch:
            break
        if takes(numbers(batch)):
            line.took(batch)
            taken += numbers(batch)
        else:
            line.refused(batch)
    return taken


def test_all_go_in_their_order_and_in_company() -> None:
    line = Line()
    line.add(stories(600))
    sizes: list[int] = []

    def takes(batch: list[int]) -> bool:
        sizes.append(len(batch))
        return True

    assert send(line, takes) == list(range(600))
    assert sizes == [BATCH_MAX, BATCH_MAX, 600 - 2 * BATCH_MAX]
    assert (line.sent, line.dropped, len(line)) == (600, 0, 0)


@pytest.mark.parametrize("bad", [{0}, {599}, {17, 300}, {5, 6, 7, 8}, {0, 1, 599}])
def test_what_is_never_taken_is_all_that_is_lost(bad: set[int]) -> None:
    line = Line()
    line.add(stories(600))
    taken = send(line, lambda batch: not bad & set(batch), most=1_000)
    # Only what is taken after it shows that it was the last one's fault.
    line.add(stories(1, first=600))
    taken += send(line, lambda batch: not bad & set(batch), most=1_000)
    assert sorted(taken) == [one for one in range(601) if one not in bad]
    assert (line.dropped, len(line)) == (len(bad), 0)


def test_a_collector_that_is_away_costs_nothing() -> None:
    line = Line()
    line.add(stories(600))
    assert send(line, lambda batch: False, most=500) == []
    assert (line.dropped, len(line)) == (0, 600)
    assert sorted(send(line, lambda batch: True)) == list(range(600))
    assert line.dropped == 0


def test_a_short_trouble_does_not_divide_anything() -> None:
    line = Line()
    line.add(stories(600))
    assert send(line, lambda batch: False, most=FAILURES_MIN - 1) == []
    assert len(line.next()) == BATCH_MAX


def test_more_bad_ones_than_step_aside_are_lost_in_the_end() -> None:
    line = Line()
    line.add(stories(4 * ASIDE_MAX))
    bad = set(range(2 * ASIDE_MAX))
    line.add(stories(10, first=1_000))
    taken = send(line, lambda batch: not bad & set(batch), most=3_000)
    assert not bad & set(taken)


def test_the_oldest_go_where_there_are_too_many() -> None:
    line = Line()
    line.add(stories(QUEUE_MAX + 5))
    assert (line.dropped, len(line)) == (5, QUEUE_MAX)
    assert numbers(line.next())[0] == 5
