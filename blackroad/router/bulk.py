"""What an owner does for many tasks at once, each in a few steps: the hot paths of bundles.

Source  docs/protocol.md, "Bundles", "Outcome".  Pure.  Nothing here may differ in effect from what
`owner.py` does for one task after the other; it only does it with less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blackroad.bus.messages import Early, End, Ended, Facts, Ref, Result, Results
from blackroad.limits import WARM_CODES_MAX
from blackroad.router.records import Task, TaskState

if TYPE_CHECKING:
    from blackroad.router.owner import Owner


def enter(owner: Owner, tasks: Sequence[Task]) -> None:
    """Put new tasks of one class and one code into the books."""
    size = 0
    books = owner.tasks
    for task in tasks:
        books[task.id] = task
        work = task.work
        if isinstance(work, bytes):
            size += len(work)
        else:
            owner.pins.pin(work.digest)
    owner.bytes += size
    first = tasks[0]
    if first.code is not None:
        owner.pins.pin(first.code.digest, len(tasks))
        _warm(owner, first.code.digest)
    first.cls.tasks += len(tasks)


def _warm(owner: Owner, digest: bytes) -> None:
    """Keep code for a while after its last task: the next one finds it without asking."""
    warm = owner.warm_code
    if digest in warm:
        return
    warm[digest] = None
    owner.pins.pin(digest)
    if len(warm) > WARM_CODES_MAX:
        oldest = next(iter(warm))
        del warm[oldest]
        owner.pins.unpin(oldest)


def end(
    owner: Owner, tasks: Sequence[Task], before: Sequence[Early], node: bytes, now_ms: int
) -> None:
    """These tasks of one bundle are done: set and tell their outcomes."""
    done: list[tuple[Task, Early]] = []
    size = 0
    for task, early in zip(tasks, before, strict=True):
        if task.state is TaskState.ENDED:
            continue
        if task.state is not TaskState.GRANTED or task.tries != 1 or task.attempts:
            owner.finish(task, End.DONE, "", early.result, Facts(early.run_us), node, now_ms)
            continue
        task.state = TaskState.ENDED
        task.stop = None
        task.kept = False
        task.ended = Ended(task.id, End.DONE, "", early.result, Facts(early.run_us), node, 1)
        size += len(task.work)  # type: ignore[arg-type] # bundles carry their work
        done.append((task, early))
    if not done:
        return
    count = len(done)
    first = done[0][0]
    first.cls.tasks -= count
    first.cls.active_ms = now_ms
    owner.bytes -= size
    if first.code is not None:
        owner.pins.unpin(first.code.digest, count)
    owner.count("ended.done", count)
    _tell(owner, done, node, now_ms)


def _tell(owner: Owner, done: Sequence[tuple[Task, Early]], node: bytes, now_ms: int) -> None:
    """Tell each session of its tasks, in one message."""
    if owner.on_ended is not None:
        owner.on_ended([task for task, _ in done])
    told: dict[bytes, list[tuple[Task, Early]]] = {}
    first = done[0][0].session
    if all(task.session == first for task, _ in done):
        told[first] = list(done)
    else:
        for one in done:
            told.setdefault(one[0].session, []).append(one)
    sessions = owner.sessions
    for id_, ends in told.items():
        sessions.count(id_, -len(ends))
        results = tuple([Result(task.id, early.result, early.run_us) for task, early in ends])
        outcomes = [task.ended for task, _ in ends]
        if not sessions.ended_together(id_, Results(node, results), outcomes, now_ms):
            for task, _ in ends:
                owner.forget(task)
    sessions.woken.extend([task.id for task, _ in done])


def seen(owner: Owner, id_: bytes, ids: Sequence[bytes]) -> None:
    """A client has these outcomes: attached tasks need not be remembered."""
    session = owner.sessions.seen(id_, ids)
    if session is None:
        return
    tasks, remember = owner.tasks, owner.memory.seen
    for one in ids:
        task = tasks.get(one)
        if task is None or task.ended is None or task.durable or task.session != id_:
            continue
        task.seen = True
        if task.kept or isinstance(task.ended.result, Ref):
            owner.forget(task)
        else:
            del tasks[one]
            remember(task)
