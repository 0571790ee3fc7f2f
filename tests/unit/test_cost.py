"""What a task costs the state machines, counted in function calls: the same on every machine."""

from __future__ import annotations

import pytest

from bench.lonely import ME, Lonely, calls_per_task, counted

# Some room above what it is today: who adds a call to every task has to know it.
CALLS_MAX = 48.0
GROWTH_MAX = 1.2


def test_a_task_costs_few_calls_and_no_more_when_more_are_queued() -> None:
    few, many = calls_per_task(1_000), calls_per_task(10_000)
    assert max(few, many) <= CALLS_MAX
    assert many <= GROWTH_MAX * few
    assert few <= GROWTH_MAX * many


def test_every_task_was_really_run() -> None:
    one = Lonely()
    one.queue(1_000)
    one.drain()
    assert one.ended == 1_000
    assert one.node.me == ME
    one.node.check()


def idle_calls(former: int) -> int:
    """Calls of ten seconds without work, after so many tasks."""
    one = Lonely()
    one.queue(former)
    one.drain()
    one.turn(250)
    return counted(lambda: [one.turn(250) for _ in range(40)])


def test_idle_seconds_cost_the_same_however_many_tasks_there_were() -> None:
    assert idle_calls(10_000) <= GROWTH_MAX * idle_calls(100)


def test_the_counter_counts() -> None:
    def inner() -> None:
        len("x")

    assert counted(inner) == 3  # inner, len, and the call that stops the counting


@pytest.mark.parametrize("count", [1, 255, 256, 257])
def test_any_number_of_tasks_is_submitted(count: int) -> None:
    one = Lonely()
    assert sum(len(event.messages[0].tasks) for event in list(one.submits(count))[1:]) == count
