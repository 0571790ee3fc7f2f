"""What an owner still tells of tasks that are over, within bounds (R-submit-8)."""

from __future__ import annotations

import pytest

from blackroad.bus import messages as m
from blackroad.limits import RETENTION_MS
from blackroad.requirements import from_wire
from blackroad.router import memory
from blackroad.router.memory import Memory
from blackroad.router.records import ClassState, Task
from tests.unit.builders import NEEDS, OwnerBench, spec, task_id


def ended_task(number: int, result: bytes = 20 * b"result") -> Task:
    cls = ClassState(1, spec(), from_wire(NEEDS))
    task = Task(task_id(number), cls, cls.spec, b"", None, b"work", False, 0)
    task.ended = m.Ended(task.id, m.End.DONE, "", result, m.Facts(run_us=7), b"", 1)
    return task


def let_go(task: Task) -> None:
    task.kept = False


def test_the_story_stays_and_the_bytes_go() -> None:
    told = Memory(let_go)
    task = ended_task(1)
    task.kept = False
    told.seen(task)
    kept = told.recent[task_id(1)]
    assert kept.work == b""
    assert kept.ended == m.Ended(task_id(1), m.End.DONE, "", b"", m.Facts(run_us=7), b"", 1)


def test_a_result_of_a_few_bytes_may_stay() -> None:
    """Taking it away would cost more than it does."""
    told = Memory(let_go)
    task = ended_task(1, b"few")
    told.seen(task)
    assert told.recent[task_id(1)].ended is task.ended


def test_the_oldest_story_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "RECENT_TASKS_MAX", 2)
    told = Memory(let_go)
    for number in (1, 2, 3):
        told.seen(ended_task(number))
    assert list(told.recent) == [task_id(2), task_id(3)]


def test_the_work_of_what_was_not_done_stays_with_the_story(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R-isolate-2: kept for *retry* as long as its story, and as there is room."""
    monkeypatch.setattr(memory, "RECENT_TASKS_MAX", 2)
    monkeypatch.setattr(memory, "SPARE_BYTES_MAX", 12)
    told = Memory(lambda task: (let_go(task), told.spent(task)))
    tasks = [ended_task(number) for number in (1, 2, 3)]
    for task in tasks[:2]:
        told.spare(task)
        told.seen(task)
    assert (tasks[0].work, tasks[0].kept, told.spare_bytes) == (b"work", True, 8)
    told.seen(tasks[2])
    assert (tasks[0].kept, told.spare_bytes) == (False, 4)
    for number in (4, 5, 6):
        told.spare(ended_task(number))
    assert (tasks[1].kept, told.spare_bytes) == (False, 12)


def test_a_durable_outcome_is_kept_seven_days() -> None:
    told = Memory(let_go)
    told.retain(b"a", 1_000)
    told.retain(b"b", 2_000)
    assert list(told.due(999 + RETENTION_MS)) == []
    assert list(told.due(1_000 + RETENTION_MS)) == [b"a"]
    assert list(told.due(2_000 + RETENTION_MS)) == [b"b"]
    assert list(told.due(2**60)) == []


def test_too_many_durable_outcomes_push_the_oldest_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "RETAINED_TASKS_MAX", 2)
    told = Memory(let_go)
    for number in range(4):
        told.retain(bytes([number]), 0)
    assert list(told.due(1)) == [b"\0", b"\1"]


def test_an_owner_forgets_a_durable_task_in_time() -> None:
    """The journal row goes with the outcome."""
    bench = OwnerBench()
    bench.submit(1, durable=True)
    bench.owner.on_flushed(bench.owner.out.mark, 10)
    bench.owner.stop(bench.owner.tasks[task_id(1)], m.End.CANCELLED, "cancelled", 20)
    assert bench.owner.tasks[task_id(1)].ended is not None
    bench.owner.tick(19 + RETENTION_MS)
    assert task_id(1) in bench.owner.tasks
    bench.owner.tick(20 + RETENTION_MS)
    assert task_id(1) not in bench.owner.tasks


def test_many_that_are_over_go_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One commit that forgets all of them would keep every other promise waiting."""
    monkeypatch.setattr(memory, "RETENTION_STEP", 3)
    told = Memory(let_go)
    for number in range(7):
        told.retain(task_id(number), 0)
    found = [list(told.due(RETENTION_MS)) for _ in range(4)]
    assert [len(one) for one in found] == [3, 3, 1, 0]
    assert [id_ for one in found for id_ in one] == [task_id(number) for number in range(7)]
