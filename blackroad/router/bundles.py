"""Bundles: many small tasks of one class travel and run as one attempt, and stay single tasks.

Source  docs/protocol.md, "Bundles".  Pure.  A message costs more than a small task, so what is
short by measurement goes in company.  This file must not know who grants, nor what becomes of a
task in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blackroad.bus.messages import Small
from blackroad.limits import BUNDLE_BYTES_MAX, BUNDLE_TASKS_MAX
from blackroad.router.records import TaskState

if TYPE_CHECKING:
    from blackroad.bus.messages import ClassSpec, Early, Outcome
    from blackroad.router.judge import Judge
    from blackroad.router.records import ClassState, Member, Task, Use


def may_bundle(spec: ClassSpec) -> bool:
    """May tasks of this class share an attempt?

    Not where an attempt has its own clock, its own machine, or must never be begun twice.
    """
    alone = spec.exclusive or spec.isolated or spec.once or spec.timeout_ms
    return spec.gang == 1 and not alone


def size_of(cls: ClassState, use: Use, slots: int, work_us: int) -> int:
    """How many tasks of this class the next attempt on that node should carry, at least 1.

    As many as fit `work_us` by what they took there so far, but no more than an even share of
    the queue for each of `slots`: small work is spread before it is bundled.
    """
    if not use.mean_us or not may_bundle(cls.spec):
        return 1
    share = -(-cls.queued // max(slots, 1))
    return max(1, min(BUNDLE_TASKS_MAX, work_us // use.mean_us, share))


def gather(cls: ClassState, first: Task, count: int) -> tuple[Task, ...]:
    """Take up to `count` tasks from the head of the queue that can go along with `first`.

    The queue's order is kept: the first one that cannot ends the bundle.
    """
    work = first.work
    if first.durable or not isinstance(work, bytes) or _marked(first):
        return ()
    more: list[Task] = []
    queue = cls.queue
    room = BUNDLE_BYTES_MAX - len(work)
    code, tries = first.code, first.tries
    while count > 0 and queue:
        task = queue[0]
        if task.state is not TaskState.QUEUED:
            queue.popleft()
            continue
        work = task.work
        if (
            (task.code is not code and task.code != code)
            or task.durable
            or task.tries != tries
            or not isinstance(work, bytes)
            or len(work) > room
            or _marked(task)
        ):
            break
        room -= len(work)
        count -= 1
        more.append(task)
        queue.popleft()
    cls.queued -= len(more)
    return tuple(more)


def _marked(task: Task) -> bool:
    """Did anything go wrong with it already?  Then it goes alone, so that it alone is judged."""
    return bool(task.losses or task.killers or task.crashes or task.failures or task.attempts)


def wished(task: Task) -> bool:
    """Is its attempt to end, whatever it does?  Its outcome may stand already, by another one."""
    return task.stop is not None or task.state is TaskState.ENDED


def ends(member: Member, outcome: Outcome) -> bool:
    """Is this how the one task that is left of that member's attempt ended?

    Not where more are left: what contradicts itself ends nothing, and the bound ends the attempt.
    """
    attempt = member.attempt
    alone = not attempt.more and attempt.task.id == outcome.task
    return alone and member.inc == outcome.inc


def along(more: Sequence[Task]) -> tuple[Small, ...]:
    """What a Grant says of the tasks that go along with its first one."""
    return tuple([Small(task.id, task.work) for task in more if isinstance(task.work, bytes)])


def divide(
    member: Member, running: bytes, before: Sequence[Early], judge: Judge, now_ms: int
) -> None:
    """Leave the task `running` alone in its attempt: those before it are done, the rest unbegun.

    A position and an id that contradict each other change nothing.
    """
    attempt = member.attempt
    tasks = attempt.tasks()
    position = len(before)
    if position >= len(tasks) or tasks[position].id != running:
        return
    attempt.task, attempt.more = tasks[position], ()
    done, unbegun = tasks[:position], tasks[position + 1 :]
    for task in (*done, *unbegun):
        task.attempts.remove(attempt)
    if done:
        mean_us = sum([one.run_us for one in before]) // position
        member.use.learn(mean_us)
        tasks[0].cls.learn(mean_us)
        judge.early(done, before, member.node, now_ms)
    if unbegun:
        judge.unbegun(unbegun, now_ms)
