"""Read-only answers about a node's state, as plain data, in pages.

Pure.  Queries change nothing, but for the order to cancel; what only the driver knows (output of
tasks) is not answered here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from blackroad.bus.messages import End, Ended, Query, Ref, Reply
from blackroad.discovery.membership import PeerState
from blackroad.errors import RemoteProtocolError
from blackroad.ids import short, task_text, text32
from blackroad.requirements import Requirement, from_wire, shortfall
from blackroad.router.records import FOREVER_MS, MemberState, Task, TaskState

if TYPE_CHECKING:
    from blackroad.node import Node

PAGE_BYTES = 60 * 1024
WAIT_MS_MAX = 1_500
LIST_MAX = 1_000
_encode = msgspec.msgpack.encode


class TaskArgs(Struct, frozen=True):
    """Arguments of queries about one task: the start of its id, in base32."""

    task: str
    wait_ms: int = 0


class ListArgs(Struct, frozen=True):
    """Arguments of `tasks`."""

    state: str = ""
    limit: int = 100


class Waiting(Struct, frozen=True):
    """A query that waits for its task to end, or for its time."""

    query: Query
    asker: bytes
    peer: bool
    until_ms: int


class NotYet(Exception):
    """The task has not ended; ask again then, or after `wait_ms`."""

    def __init__(self, wait_ms: int) -> None:
        super().__init__(wait_ms)
        self.wait_ms = wait_ms


def answer(node: Node, query: Query, now_ms: int, *, final: bool = False) -> bytes:
    """Answer one query about this node.

    Raises  NotYet where the asker wants to wait; RemoteProtocolError with a text for people where
            the query makes no sense.
    """
    match query.name:
        case "status" | "cancel":
            return _encode(status(node, _task(node, query, final), now_ms))
        case "result":
            return _encode(_result(node, _task(node, query, final)))
        case "why":
            return _encode(why(node, _task(node, query, True), now_ms))
        case "tasks":
            return _encode(_tasks(node, _args(query, ListArgs), now_ms))
        case "nodes":
            return _encode(nodes(node, now_ms))
        case "node":
            return _encode(_one_node(node, now_ms))
    raise RemoteProtocolError(f"this daemon knows no query `{query.name}`")


def cancel(node: Node, query: Query, now_ms: int) -> None:
    """The one order among the queries (R-query-2): end a task, from any program on any node.

    Raises  RemoteProtocolError where the task is not known here.
    """
    node.owner.stop(_task(node, query, True), End.CANCELLED, "cancelled", now_ms)


def pages(query: int, node: bytes, body: bytes, error: str) -> Iterator[Reply]:
    """Cut an answer into replies."""
    count = max(1, -(-len(body) // PAGE_BYTES))
    for page in range(count):
        part = body[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        yield Reply(query, node, page, page == count - 1, part, error[:512])


def _args(query: Query, kind: type[Any]) -> Any:
    try:
        return msgspec.msgpack.decode(query.args or b"\x80", type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"query `{query.name}`: {error}") from None


def _task(node: Node, query: Query, final: bool) -> Task:
    args = _args(query, TaskArgs)
    text = args.task.lower()
    owner = node.owner
    found = [
        task
        for book in (owner.tasks, owner.memory.recent)
        for id_, task in book.items()
        if text32(id_).startswith(text)
    ]
    if not found:
        raise RemoteProtocolError(f"no task {short(node.me)}-{text} is known here")
    if len(found) > 1:
        raise RemoteProtocolError(f"{text} stands for {len(found)} tasks: write more of the id")
    task = found[0]
    if args.wait_ms > 0 and task.ended is None and not final:
        raise NotYet(min(args.wait_ms, WAIT_MS_MAX))
    return task


# --- tasks --------------------------------------------------------------------------------------


def state_text(task: Task) -> str:
    """One word for where a task is in its life."""
    if task.ended is not None:
        return task.ended.end.name.lower()
    if task.stop is not None:
        return "cancelling" if task.stop[0].name == "CANCELLED" else "expiring"
    if task.state is TaskState.QUEUED:
        return "queued"
    states = [one.state for attempt in task.attempts for one in attempt.members]
    if MemberState.COLLECTING in states:
        return "collecting"
    waiting = (MemberState.WAITING, MemberState.WRITING)
    return "waiting" if states and all(s in waiting for s in states) else "running"


def status(node: Node, task: Task, now_ms: int) -> dict[str, Any]:
    """One task's life so far."""
    spec = task.cls.spec
    ended = task.ended
    return {
        "id": task_text(node.me, task.id),
        "state": state_text(task),
        "name": spec.name,
        "user": spec.user,
        "priority": spec.priority,
        "durable": task.durable,
        "pure": spec.pure,
        "attempts": task.tries,
        "lost": task.losses,
        "crashed": task.crashes,
        "last": task.last_status,
        "waited_ms": max(0, now_ms - task.queued_ms) if ended is None else 0,
        "deadline_in_ms": task.deadline_ms - now_ms if task.deadline_ms != FOREVER_MS else None,
        "nodes": [
            _where(node, one.node)
            for attempt in task.attempts
            for one in attempt.members
            if one.state is not MemberState.ENDED
        ]
        or ([_where(node, ended.node)] if ended is not None and ended.node else []),
        "reason": ended.reason if ended is not None else "",
        "needs": needs_text(task.cls.requirement),
        "ended": _ended(ended) if ended is not None else None,
    }


def _where(node: Node, id_: bytes) -> dict[str, str]:
    return {"id": short(id_), "node": text32(id_), "name": name_of(node, id_)}


def name_of(node: Node, id_: bytes) -> str:
    """A node's label, or its short id while its label is unknown."""
    caps = node.capabilities.get(id_)
    return caps.name if caps is not None else short(id_)


def _ended(ended: Ended) -> dict[str, Any]:
    facts = ended.facts
    return {
        "end": ended.end.name.lower(),
        "reason": ended.reason,
        "run_us": facts.run_us,
        "exit_status": facts.exit_status,
        "backend": facts.backend,
        "type": facts.type_name,
        "text": facts.text,
        "attempts": ended.attempts,
    }


def _result(node: Node, task: Task) -> dict[str, Any]:
    """The outcome with its bytes, or with the object to fetch."""
    ended = task.ended
    if ended is None:
        return {"state": state_text(task), "id": task_text(node.me, task.id), "ended": None}
    if task.id not in node.owner.tasks:
        raise RemoteProtocolError("its result was fetched by the program that submitted it")
    ref = ended.result if isinstance(ended.result, Ref) else None
    return {
        "state": state_text(task),
        "id": task_text(node.me, task.id),
        "ended": _ended(ended),
        "task": task.id,
        "node": ended.node,
        "inline": b"" if ref is not None else ended.result,
        "digest": ref.digest if ref is not None else b"",
        "size": ref.size if ref is not None else 0,
    }


def _tasks(node: Node, args: ListArgs, now_ms: int) -> dict[str, Any]:
    counts: dict[str, int] = {}
    listed: list[dict[str, Any]] = []
    limit = max(0, min(args.limit, LIST_MAX))
    for task in reversed(node.owner.tasks.values()):
        state = state_text(task)
        counts[state] = counts.get(state, 0) + 1
        if len(listed) < limit and args.state in ("", state):
            listed.append(status(node, task, now_ms))
    return {"node": short(node.me), "counts": counts, "tasks": listed}


def needs_text(requirement: Requirement) -> str:
    """Needs as a person would write them."""
    texts = []
    for ask in requirement.alternatives:
        parts = [f"cpu={ask.cpu_units / 10_000:g}"]
        if ask.memory_bytes:
            parts.append(f"memory={ask.memory_bytes}")
        if ask.gpu:
            parts.append(f"gpu={ask.gpu}")
        if ask.gpu_memory_bytes:
            parts.append(f"gpu_memory={ask.gpu_memory_bytes}")
        if ask.arch:
            parts.append("arch=" + ",".join(ask.arch))
        if ask.python:
            parts.append(f"python={ask.python}")
        if ask.node:
            parts.append(f"node={ask.node}")
        parts += [f"label {key}={value}" for key, value in ask.labels]
        parts += [f"program {name}" for name in ask.programs]
        texts.append(" ".join(parts))
    return " or ".join(texts)


def why(node: Node, task: Task, now_ms: int) -> dict[str, Any]:
    """Why a task is not running: one reason, and what each node lacks."""
    owner = node.owner
    rows: list[dict[str, Any]] = []
    for view in owner.view.present():
        if view.capabilities is None:
            rows.append({"node": view.text, "name": view.text, "missing": [], "state": "unknown"})
            continue
        use = task.cls.uses.get(view.node)
        lacks = shortfall(from_wire(task.cls.spec.needs), view.capabilities, view.text)
        rows.append(
            {
                "node": view.text,
                "name": view.capabilities.name,
                "missing": [list(lack) for lack in lacks],
                "state": _node_state(view.suspect, view.draining, view.avoid_until_ms > now_ms),
                "slots_here": owner.granting.table.get(task.cls.id, {}).get(view.node, 0),
                "in_use": use.in_use() if use is not None else 0,
                "waiting": use.ahead if use is not None else 0,
                "backing_off_ms": max(0, use.backoff_until_ms - now_ms) if use is not None else 0,
            }
        )
    ahead = 0
    for other in task.cls.queue:
        if other is task:
            break
        ahead += other.state is TaskState.QUEUED
    return {
        "id": task_text(node.me, task.id),
        "state": state_text(task),
        "reason": owner.granting.why(task, now_ms),
        "needs": needs_text(task.cls.requirement),
        "ahead": ahead if task.state is TaskState.QUEUED else 0,
        "coordinator": short(owner.granting.coordinator) if owner.granting.coordinator else "",
        "last": task.last_status,
        "nodes": rows,
    }


def _node_state(suspect: bool, draining: bool, avoided: bool) -> str:
    if suspect:
        return "suspect"
    if draining:
        return "draining"
    return "avoided" if avoided else "alive"


# --- nodes --------------------------------------------------------------------------------------


def nodes(node: Node, now_ms: int) -> dict[str, Any]:
    """The cluster as this node sees it now."""
    mine = _node_row(node, node.me, node.inc, node.beat(now_ms), "alive", 0)
    rows = [mine]
    for peer in sorted(node.membership.peers.values(), key=lambda peer: peer.node):
        state = PeerState(peer.state).name.lower()
        rows.append(_node_row(node, peer.node, peer.inc, peer.beat, state, now_ms - peer.heard_ms))
    epoch = node.election.follows_epoch
    coordinator = node.election.follows
    return {
        "schema": 1,
        "asked": short(node.me),
        "coordinator": short(coordinator) if coordinator else None,
        "epoch": [epoch.counter, short(epoch.node)] if epoch is not None else None,
        "nodes": rows,
    }


def _node_row(
    node: Node, id_: bytes, inc: int, beat: Any, state: str, silent_ms: int
) -> dict[str, Any]:
    caps = node.capabilities.get(id_)
    supply = beat.supply
    return {
        "id": short(id_),
        "node": text32(id_),
        "name": name_of(node, id_),
        "state": "draining" if state == "alive" and supply.draining else state,
        "silent_ms": max(0, silent_ms),
        "incarnation": inc >> 32,
        "coordinator": node.election.follows == id_,
        "follows": short(beat.follows) if beat.follows else "",
        "arch": caps.arch if caps is not None else "",
        "python": caps.python if caps is not None else "",
        "cores": caps.cores if caps is not None else 0,
        "slots": supply.cpu_units // 10_000,
        "running": supply.running,
        "waiting": supply.waiting,
        "done": supply.done,
        "memory_bytes": supply.memory_bytes,
        "free_memory_bytes": supply.free_memory_bytes,
        "gpus": [device.name for device in caps.gpus()] if caps is not None else [],
        "devices": [msgspec.to_builtins(device) for device in caps.devices] if caps else [],
        "notes": list(caps.notes) if caps is not None else [],
        "labels": dict(caps.labels) if caps is not None else {},
        "speed": supply.speed_permille / 1000,
        "temperature_c": supply.temperature_c,
        "throttled": supply.throttled,
        "load_percent": supply.load_percent,
        "loop_lag_ms": beat.loop_lag_ms,
        "heartbeat_ms": beat.interval_ms,
    }


def _one_node(node: Node, now_ms: int) -> dict[str, Any]:
    """Counters of this daemon, for tests and people who look for a fault."""
    return {
        "id": short(node.me),
        "name": node.name,
        "incarnation": node.inc >> 32,
        "uptime_ms": now_ms - node.started_ms,
        "owner": dict(node.owner.counters),
        "worker": dict(node.worker.counters),
        "tasks": len(node.owner.tasks),
        "attempts": len(node.owner.attempts),
        "sessions": len(node.owner.sessions.sessions),
        "tables": node.coordinator.tables,
        "tombstones": len(node.worker.tombstones),
        "unknown_kinds": node.unknown_kinds,
    }
