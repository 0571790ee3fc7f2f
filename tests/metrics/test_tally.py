"""What is counted of ended tasks, and that a hundred thousand names stay a few lines."""

from __future__ import annotations

from blackroad.bus import messages as m
from blackroad.metrics import names
from blackroad.metrics.page import Page
from blackroad.metrics.tally import Tally
from blackroad.requirements import from_wire
from blackroad.router.records import ClassState, Task, TaskState
from tests.metrics.reading import read, value, values
from tests.unit.builders import SESSION, spec, task_id


def ended(
    number: int = 1,
    name: str = "f",
    end: m.End = m.End.DONE,
    run_us: int = 1000,
    queued_ms: int = 0,
) -> Task:
    """A task that is over."""
    of = spec(name=name)
    task = Task(
        task_id(number),
        ClassState(1, of, from_wire(of.needs)),
        of,
        SESSION,
        None,
        b"",
        False,
        queued_ms,
        state=TaskState.ENDED,
    )
    task.ended = m.Ended(task.id, end, "", b"", m.Facts(run_us), b"", 1)
    return task


def shown(tally: Tally) -> dict:
    """What a page shows of it."""
    page = Page()
    page.many("blackroad_tasks_by_name_total", tally.by_name.items())
    page.spread(
        "blackroad_task_run_seconds", tally.runs, names.RUN_POWERS, 1e-6, tally.runs_us / 1e6
    )
    page.spread(
        "blackroad_task_whole_seconds",
        tally.wholes,
        names.WHOLE_POWERS,
        1e-3,
        tally.wholes_ms / 1e3,
    )
    return read(page.body())


def test_a_batch_is_counted_by_name_and_end() -> None:
    tally = Tally()
    batch = [ended(1, "f"), ended(2, "f"), ended(3, "g"), ended(4, "f", m.End.FAILED), ended(5)]
    tally.ended(batch, 10)
    tally.ended([ended(6, "g", m.End.CANCELLED, run_us=0)], 10)
    tally.ended([], 10)
    assert tally.by_name == {
        ("f", "done"): 3,
        ("g", "done"): 1,
        ("f", "failed"): 1,
        ("g", "cancelled"): 1,
    }


def test_times_are_of_what_ran_and_of_all_that_ended() -> None:
    tally = Tally()
    tally.ended([ended(run_us=2_000_000), ended(run_us=0, end=m.End.FAILED)], 3_000)
    tally.ended([ended(run_us=0, end=m.End.EXPIRED, queued_ms=2_500)], 3_000)
    series = shown(tally)
    assert value(series, "blackroad_task_run_seconds_count") == 2
    assert value(series, "blackroad_task_run_seconds_sum") == 2.0
    assert value(series, "blackroad_task_whole_seconds_count") == 3
    assert value(series, "blackroad_task_whole_seconds_sum") == 6.5
    runs = values(series, "blackroad_task_run_seconds_bucket")
    assert runs["0.001024",] == 1
    assert runs["4.194304",] == 2


def test_a_clock_that_stands_costs_no_count() -> None:
    tally = Tally()
    tally.ended([ended(queued_ms=5_000)], 4_000)
    assert (sum(tally.wholes), tally.wholes_ms) == (1, 0)


def test_a_task_that_is_not_over_is_not_counted() -> None:
    task = ended()
    task.ended = None
    tally = Tally()
    tally.ended([task], 10)
    assert not tally.by_name
    assert not any(tally.runs)


def test_a_hundred_thousand_names_are_a_hundred_lines_and_one() -> None:
    tally = Tally()
    task = ended()
    for number in range(100_000):
        tally.names.value(f"name-{number}")
        task.spec = spec(name=f"name-{number}")
        tally.ended([task], 10)
    told = values(shown(tally), "blackroad_tasks_by_name_total")
    assert len(told) == names.TASK_NAMES_MAX + 1
    assert told["other", "done"] == 100_000 - names.TASK_NAMES_MAX
    assert told["name-99", "done"] == 1


def test_events_are_counted_by_name_and_severity() -> None:
    tally = Tally()
    tally.told("node.joined", "info")
    tally.told("node.joined", "info")
    for number in range(200):
        tally.told(f"made.up.{number}", "debug")
    assert tally.events["node.joined", "info"] == 2
    assert len(tally.events) <= names.WORDS_MAX + 1
    assert sum(tally.events.values()) == 202
