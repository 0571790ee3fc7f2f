"""What an owner takes over from its journal when it begins another life.

Source  docs/protocol.md, R-lease-12, R-submit-8.  Pure.  This file must not know how rows are
stored, nor what an attempt comes to afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.messages import Ended, Ref
from blackroad.limits import KILLER_ENDINGS_MAX
from blackroad.router.records import Task, TaskState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blackroad.router.effects import AttemptRow, EndRow, TaskRow
    from blackroad.router.owner import Owner


def restore(
    owner: Owner,
    rows: Sequence[TaskRow],
    attempts: Sequence[AttemptRow],
    ends: Sequence[EndRow],
    now_ms: int,
) -> None:
    """Put the journal's tasks into the books of a fresh owner.

    Of several attempt rows of a task the last one counts; an attempt that may live gets a fresh
    full bound from now, and nothing is issued early.
    """
    for row in rows:
        cls = owner.class_of(row.spec)
        task = Task(row.task, cls, cls.spec, b"", row.code, row.work, True, now_ms)
        task.wait_for_node = row.wait_for_node
        if row.deadline_ms:
            owner.set_deadline(task, now_ms + row.deadline_ms)
        owner.enter_all((task,))
    for end in ends:
        _restore_end(owner, end, now_ms)
    adopted = []
    last = {row.task: row for row in attempts}
    for task in owner.tasks.values():
        if task.state is TaskState.ENDED:
            continue
        found = last.get(task.id)
        if found is not None:
            _restore_counts(owner, task, found)
            if found.members:
                adopted.append(owner.runs.adopt(task, found, now_ms))
                continue
        task.cls.queue.append(task)
        task.cls.queued += 1
        owner.granting.dirty(task.cls)
    for attempt in adopted:
        if attempt.task.stop is not None:
            owner.runs.stop(attempt, now_ms)
        owner.runs.settle_adopted(attempt, now_ms)


def _restore_counts(owner: Owner, task: Task, row: AttemptRow) -> None:
    task.tries, task.crashes, task.failures = row.tries, row.crashes, row.failures
    task.losses, task.killers = row.losses, row.killers
    if row.members and row.stop is not None:
        task.stop = (row.stop, row.stop_reason)
    if task.killers >= KILLER_ENDINGS_MAX and not task.cls.spec.isolated:
        owner.isolate(task)


def _restore_end(owner: Owner, end: EndRow, now_ms: int) -> None:
    task = owner.tasks.get(end.task)
    if task is None:
        return
    task.cls.tasks -= 1
    task.state = TaskState.ENDED
    task.tries = end.attempts
    task.ended = Ended(end.task, end.end, end.reason, end.result, end.facts, end.node, end.attempts)
    if isinstance(end.result, Ref):
        owner.pins.pin(end.result.digest)
    owner.memory.retain(end.task, now_ms)
    owner.ease(task)
