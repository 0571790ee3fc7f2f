"""I8: every queue, table and message of a node is within the limit that the protocol gives it.

Source  docs/protocol.md, "Timers and limits".  Each function returns what is too much in words, or
nothing.  The limits are read from `limits` at the moment of the check, so that a test may shrink
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad import limits as at_most
from blackroad.bus import messages as m
from blackroad.router.records import TaskState
from blackroad.router.works import State

if TYPE_CHECKING:
    from collections.abc import Sized

    from blackroad import node as n
    from blackroad.router.owner import Owner
    from blackroad.router.worker import Worker


def soon(node: n.Node) -> str:
    """What one event can make too much; cheap enough for each of them."""
    worker = node.worker
    waiting = worker.queued
    if waiting > at_most.WAITING_PER_SLOT_MAX * worker.slots:
        return f"lets {waiting} wait on {worker.slots} slots"
    if len(worker.tombstones) > at_most.TOMBSTONES_MAX:
        return f"remembers {len(worker.tombstones)} tokens"
    if len(node.owner.sessions.sessions) > at_most.SESSIONS_MAX:
        return f"has {len(node.owner.sessions.sessions)} sessions"
    if len(node.owner.tasks) > at_most.OWNER_TASKS_MAX:
        return f"owns {len(node.owner.tasks)} tasks"
    return ""


def tables(node: n.Node) -> str:
    """Look through everything a node keeps."""
    return _worker(node.worker) or _owner(node.owner) or _node(node)


def _worker(worker: Worker) -> str:
    if (
        sum(work.bytes for work in worker.works.values() if work.state is State.WAITING)
        > at_most.WAITING_BYTES_MAX
    ):
        return "lets too many bytes wait"
    # One for each owner ever met, however few tombstones there may be.
    if len(worker.floors) > at_most.PEERS_MAX:
        return "keeps too many floors"
    if any(len(one.lists) > at_most.RENEW_LISTS_KEPT for one in worker.renewing.owners.values()):
        return "keeps too many Renew lists"
    spool = worker.spool
    weight = sum(one.bytes for one in spool.owed.values())
    if weight != spool.bytes:
        return f"counts {spool.bytes} bytes of spool, and it has {weight}"
    heavy = sum(1 for one in spool.owed.values() if one.bytes)
    if weight > at_most.SPOOL_BYTES_MAX and heavy > 1:
        return "spools too many bytes"
    return ""


def _owner(owner: Owner) -> str:
    open_tasks: dict[bytes, int] = {}
    for task in owner.tasks.values():
        if len(task.past) > at_most.PAST_TOKENS_MAX:
            return f"remembers {len(task.past)} tokens of one task"
        if len(task.attempts) > (at_most.PURE_ATTEMPTS_MAX if task.spec.pure else 1):
            return f"has {len(task.attempts)} attempts of one task"
        if task.crashes > at_most.CRASH_RETRIES and task.state is not TaskState.ENDED:
            return f"tries a task again after {task.crashes} crashes"
        if task.losses > at_most.INFRASTRUCTURE_RETRIES and task.state is TaskState.QUEUED:
            return f"tries a task again after {task.losses} losses"
        if task.session and task.state is not TaskState.ENDED:
            open_tasks[task.session] = open_tasks.get(task.session, 0) + 1
    if any(count > at_most.SESSION_TASKS_MAX for count in open_tasks.values()):
        return "has too many open tasks of one session"
    if len(owner.memory.recent) > at_most.RECENT_TASKS_MAX:
        return f"remembers {len(owner.memory.recent)} tasks that were seen"
    for attempt in owner.attempts.values():
        for member in attempt.members:
            if member.resends > at_most.GRANT_RESENDS_MAX:
                return f"repeated a Grant {member.resends} times"
    return ""


def _node(node: n.Node) -> str:
    if len(node.membership.peers) > at_most.PEERS_MAX:
        return f"knows {len(node.membership.peers)} peers"
    return ""


# --- messages -----------------------------------------------------------------------------------


def message(said: m.Message) -> str:
    """What is too much in a message between nodes."""
    match said:
        case m.Renew():
            return _many("attempts", said.attempts, at_most.RENEW_TOKENS_MAX)
        case m.Renewed():
            return _many("refused", said.refused, at_most.RENEW_TOKENS_MAX)
        case m.OutcomeAck():
            return _many("tokens", said.tokens, at_most.OUTCOME_ACK_TOKENS_MAX)
        case m.Allocation():
            return _many("rows", said.rows, at_most.ALLOCATION_ROWS_MAX)
        case m.Demand():
            return (
                _many("classes", said.classes, at_most.DEMAND_CLASSES_MAX)
                or _many("avoid", said.avoid, at_most.AVOID_NODES_MAX)
                or next(
                    filter(
                        None,
                        (
                            _many("in_use", one.in_use, at_most.IN_USE_NODES_MAX)
                            for one in said.classes
                        ),
                    ),
                    "",
                )
            )
        case m.Grant() if said.more:
            size = sum(len(one.work) for one in said.more)
            most = at_most.BUNDLE_BYTES_MAX
            return f"{size} bytes of a bundle, and {most} is the limit" if size > most else ""
        case m.Grant() if isinstance(said.work, bytes):
            return _many("bytes of work", said.work, at_most.INLINE_BYTES_MAX)
        case m.Outcome() if isinstance(said.result, bytes):
            return _many("bytes of result", said.result, at_most.INLINE_BYTES_MAX)
    return ""


def _many(what: str, found: Sized, limit: int) -> str:
    return f"{len(found)} {what}, and {limit} is the limit" if len(found) > limit else ""
