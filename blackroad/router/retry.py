"""Trying a task again that ended otherwise than *done*: the order *retry*.

Source  docs/protocol.md, R-isolate-2, R-query-2.  Pure.  This file must not know who asks for it,
nor how ids are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.messages import End
from blackroad.errors import RemoteProtocolError
from blackroad.ids import task_text
from blackroad.router.effects import TaskRow
from blackroad.router.records import Task
from blackroad.router.refusing import NO_SPACE

if TYPE_CHECKING:
    from blackroad.router.owner import Owner


def retry(owner: Owner, old: Task, id_: bytes, now_ms: int) -> Task:
    """Submit the work of an ended task anew, as a durable task with counts of its own.

    It is durable whatever the old one was, for no session waits for it; a deadline is not taken
    over.  The same id again is the same task.

    Raises  RemoteProtocolError saying why that cannot be, and what to do instead.
    """
    known = owner.tasks.get(id_)
    if known is not None:
        if known.spec != old.spec or known.code != old.code or known is old:
            raise RemoteProtocolError("the id for the new task stands for different work already")
        return known
    _refuse_what_cannot_be(owner, old)
    cls = owner.class_of(old.spec)
    task = Task(id_, cls, cls.spec, b"", old.code, old.work, True, now_ms)
    task.wait_for_node = old.wait_for_node
    owner.out.persist(TaskRow(id_, old.spec, old.code, old.work, old.wait_for_node, 0))
    owner.enter_all((task,))
    cls.queue.append(task)
    cls.queued += 1
    cls.active_ms = now_ms
    owner.granting.dirty(cls)
    owner.out.note("task.retried", task=old.id, again=id_)
    return task


def _refuse_what_cannot_be(owner: Owner, old: Task) -> None:
    text = task_text(owner.me, old.id)
    if old.ended is None:
        raise RemoteProtocolError(
            f"{text} has not ended: `blackroad cancel` ends it, `blackroad why` says what it "
            "waits for"
        )
    if old.ended.end is End.DONE:
        raise RemoteProtocolError(f"{text} is done: submit it anew to run it once more")
    if not old.kept:
        raise RemoteProtocolError(
            f"the work of {text} is not kept any more: submit it anew from where it came"
        )
    if owner.full:
        raise RemoteProtocolError(NO_SPACE)
    if owner.crowded(1):
        raise RemoteProtocolError(
            "this node holds as many tasks as it can: wait until some of them have ended"
        )
