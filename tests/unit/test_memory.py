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


def ended_task(number: int) -> Task:
    cls = ClassState(1, spec(), from_wire(NEEDS))
    task = Task(task_id(number), cls, b"", None, b"work", False, 0)
    task.ended = m.Ended(task.id, m.End.DONE, "", b"result", m.Facts(run_us=7), b"", 1)
    return task


def test_the_story_stays_and_the_bytes_go() -> None:
    told = Memory()
    told.seen(ended_task(1))
    kept = told.recent[task_id(1)]
    assert kept.work == b""
    assert kept.ended == m.Ended(task_id(1), m.End.DONE, "", b"", m.Facts(run_us=7), b"", 1)


def test_the_oldest_story_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "RECENT_TASKS_MAX", 2)
    told = Memory()
    for number in (1, 2, 3):
        told.seen(ended_task(number))
    assert list(told.recent) == [task_id(2), task_id(3)]


def test_a_durable_outcome_is_kept_seven_days() -> None:
    told = Memory()
    told.retain(b"a", 1_000)
    told.retain(b"b", 2_000)
    assert list(told.due(999 + RETENTION_MS)) == []
    assert list(told.due(1_000 + RETENTION_MS)) == [b"a"]
    assert list(told.due(2_000 + RETENTION_MS)) == [b"b"]
    assert list(told.due(2**60)) == []


def test_too_many_durable_outcomes_push_the_oldest_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "RETAINED_TASKS_MAX", 2)
    told = Memory()
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
