"""Questions about a node's state and the four orders: answered as plain data, in pages.

Pure.  Queries change nothing; the four orders among them (R-query-2) each set a state, and are
answered like questions about it.  What only the driver knows (output of tasks) is not answered
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from blackroad import glance
from blackroad.bus.messages import End, Ended, Query, Ref, Reply
from blackroad.discovery.membership import PeerState
from blackroad.errors import RemoteProtocolError
from blackroad.ids import U63, NodeId, TaskId, short, task_text, text32
from blackroad.limits import FOREVER_MS, QUERY_MS, RELAYS_MAX
from blackroad.requirements import Requirement
from blackroad.router import retry as trying
from blackroad.router import why as explaining
from blackroad.router.effects import Lookup
from blackroad.router.records import MemberState, Task, state_text

if TYPE_CHECKING:
    from blackroad.node import Node
    from blackroad.router.records import ClassState

PAGE_BYTES = 60 * 1024
WAIT_MS_MAX = 1_500
LIST_MAX = 1_000
DRIVER_QUERIES: Final = frozenset(
    {"logs", "driver", "checkup", "events", "put", "get", "net.status", "net.probe", "net.ask"}
)
_encode = msgspec.msgpack.encode


class TaskArgs(Struct, frozen=True):
    """Arguments of queries about one task: the start of its id, in base32."""

    task: str
    wait_ms: int = 0


class NoArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """An order that takes none must not be carried out with some that it does not know."""


class RetryArgs(Struct, frozen=True):
    """Arguments of `retry`: the start of the ended task's id, and the whole id of the new one."""

    task: str
    new: TaskId


class PoolArgs(Struct, frozen=True):
    """Arguments of `pool`: whose class it is, and its number there."""

    owner: NodeId
    cls: U63


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
        case "retry":
            return _encode(status(node, _retried(node, query), now_ms))
        case "result":
            return _encode(_result(node, _task(node, query, final)))
        case "why":
            return _encode(why(node, _task(node, query, True), now_ms))
        case "pool":
            asked = _args(query, PoolArgs)
            told = explaining.pool(node.coordinator, asked.owner, asked.cls, now_ms)
            return _encode(told)
        case "tasks":
            return _encode(_tasks(node, _args(query, ListArgs), now_ms))
        case "nodes":
            return _encode(nodes(node, now_ms))
        case "mesh":
            _args(query, glance.MeshArgs)
            return _encode(glance.mesh(node, now_ms, _presences(node)))
        case "work":
            return _encode(glance.work(node, _args(query, glance.WorkArgs), now_ms))
        case "node" | "drain" | "resume":
            return _encode(_one_node(node, now_ms))
    raise RemoteProtocolError(f"this daemon knows no query `{query.name}`")


# --- orders -------------------------------------------------------------------------------------


def cancel(node: Node, query: Query, now_ms: int) -> None:
    """End a task, from any program on any node.

    Raises  RemoteProtocolError where the task is not known here.
    """
    node.owner.stop(_task(node, query, True), End.CANCELLED, "cancelled", now_ms)


def retry(node: Node, query: Query, now_ms: int) -> None:
    """Submit an ended task's work anew, under the id that the client made.

    Raises  RemoteProtocolError where the task is not known here, or cannot be tried again.
    """
    args = _args(query, RetryArgs)
    if args.new not in node.owner.tasks or _found(node, args.task):
        trying.retry(node.owner, _known(node, args.task), args.new, now_ms)


def drain(node: Node, query: Query, now_ms: int) -> None:
    """Let this node take nothing new, until `resume` and beyond its next start."""
    _args(query, NoArgs)
    node.order_drain(True, now_ms)


def resume(node: Node, query: Query, now_ms: int) -> None:
    """Let this node take work again."""
    _args(query, NoArgs)
    node.order_drain(False, now_ms)


ORDERS: Final[dict[str, Callable[[Node, Query, int], None]]] = {
    "cancel": cancel,
    "retry": retry,
    "drain": drain,
    "resume": resume,
}
# What these tell may rest on journal rows that are not flushed yet.
OF_TASKS: Final = frozenset({"status", "result", "why", "tasks", "work", "cancel", "retry"})


def _retried(node: Node, query: Query) -> Task:
    args = _args(query, RetryArgs)
    return node.owner.tasks[args.new]


# --- asking and being asked ---------------------------------------------------------------------


class Desk:
    """Takes questions and orders in: answers now or when the time has come, or relays once."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._out = node.out
        # By the number of the relayed query: client, its number, until when, whom it asks.
        self._relays: dict[int, tuple[bytes, int, int, bytes]] = {}
        self._relay_serial = 0
        self._waiting: list[Waiting] = []

    def take(self, query: Query, now_ms: int, asker: bytes, *, peer: bool) -> None:
        """Answer from here, or relay once to the node concerned."""
        node = self._node
        if query.target not in (b"", node.me):
            if peer:
                self._reply(query, asker, peer, error="a query is relayed once only")
            else:
                self._relay(query, now_ms, asker)
            return
        if query.name in DRIVER_QUERIES:
            self._out.add(Lookup(asker, peer, query.query, query.name, query.args))
            return
        try:
            order = ORDERS.get(query.name)
            if order is not None:
                order(node, query, now_ms)
            body = answer(node, query, now_ms)
        except NotYet as waiting:
            until_ms = now_ms + waiting.wait_ms
            self._waiting.append(Waiting(query, asker, peer, until_ms))
            return
        except RemoteProtocolError as error:
            self._reply(query, asker, peer, error=error.message)
            return
        self._answer(query, asker, peer, body, now_ms)

    def look_again(self, now_ms: int) -> None:
        """Look again at queries that wait for a task to end."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            try:
                body = answer(self._node, one.query, now_ms, final=now_ms >= one.until_ms)
            except NotYet:
                self._waiting.append(one)
                continue
            except RemoteProtocolError as error:
                self._reply(one.query, one.asker, one.peer, error=error.message)
                continue
            self._answer(one.query, one.asker, one.peer, body, now_ms)

    def tick(self, now_ms: int) -> None:
        """Answer whoever has waited long enough."""
        if self._waiting and any(one.until_ms <= now_ms for one in self._waiting):
            self.look_again(now_ms)
        while self._relays:
            first = next(iter(self._relays))
            client, query, until_ms, _ = self._relays[first]
            if until_ms > now_ms:
                return
            del self._relays[first]
            error = "unreachable: no answer within 2 s"
            self._out.tell(client, Reply(query, b"", 0, True, b"", error))

    def next_deadline_ms(self) -> int:
        """When `tick` may next have something to do for a query that waits."""
        if not self._waiting:
            return FOREVER_MS
        return min(one.until_ms for one in self._waiting)

    # --- answers ----------------------------------------------------------------------------------

    def _answer(self, query: Query, asker: bytes, peer: bool, body: bytes, now_ms: int) -> None:
        """Tell nothing of tasks before it is flushed (R-submit-1)."""
        told = (query, asker, peer, body)
        if query.name in OF_TASKS:
            self._out.when_flushed(self._answer_flushed, told, now_ms)
        else:
            self._answer_flushed(told, now_ms)

    def _answer_flushed(self, told: tuple[Query, bytes, bool, bytes], now_ms: int) -> None:
        query, asker, peer, body = told
        self._reply(query, asker, peer, body=body)

    def _reply(
        self, query: Query, asker: bytes, peer: bool, *, body: bytes = b"", error: str = ""
    ) -> None:
        for reply in pages(query.query, self._node.me, body, error):
            if peer:
                self._out.send(asker, reply)
            else:
                self._out.tell(asker, reply)

    # --- relays -----------------------------------------------------------------------------------

    def _relay(self, query: Query, now_ms: int, client: bytes) -> None:
        peer = self._node.membership.peers.get(query.target)
        if peer is None or peer.state in (PeerState.DEAD, PeerState.LEFT):
            self._reply(query, client, False, error="unreachable: that node is not in the mesh")
            return
        self._relay_serial += 1
        if len(self._relays) >= RELAYS_MAX:
            del self._relays[next(iter(self._relays))]
        until_ms = now_ms + QUERY_MS
        self._relays[self._relay_serial] = (client, query.query, until_ms, query.target)
        relayed = Query(self._relay_serial, query.target, query.name, query.args)
        self._out.send(query.target, relayed)

    def pass_on(self, reply: Reply, node: bytes) -> None:
        """Give the answer of another node to the client that asked."""
        relay = self._relays.get(reply.query)
        if relay is None or relay[3] != node:
            return
        if reply.last:
            del self._relays[reply.query]
        client, query, _, _ = relay
        told = Reply(query, node, reply.page, reply.last, reply.body, reply.error)
        self._out.tell(client, told)


# --- answers ------------------------------------------------------------------------------------


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
    task = _known(node, args.task)
    if args.wait_ms > 0 and task.ended is None and not final:
        raise NotYet(min(args.wait_ms, WAIT_MS_MAX))
    return task


def _found(node: Node, text: str) -> list[Task]:
    text = text.lower()
    owner = node.owner
    return [
        task
        for book in (owner.tasks, owner.memory.recent)
        for id_, task in book.items()
        if text32(id_).startswith(text)
    ]


def _known(node: Node, text: str) -> Task:
    """The one task whose id begins like this."""
    found = _found(node, text)
    if not found:
        raise RemoteProtocolError(f"no task {short(node.me)}-{text.lower()} is known here")
    if len(found) > 1:
        raise RemoteProtocolError(f"{text} stands for {len(found)} tasks: write more of the id")
    return found[0]


# --- tasks --------------------------------------------------------------------------------------


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


def _where(node: Node, id_: bytes) -> dict[str, Any]:
    view = node.owner.view.nodes.get(id_)
    return {
        "id": short(id_),
        "node": text32(id_),
        "name": name_of(node, id_),
        "draining": view is not None and view.draining,
    }


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
    """Why a task is not running, as its owner knows it; `why.together` adds the pool's part."""
    owner = node.owner
    granting = owner.granting
    found = explaining.explain(owner, task, now_ms)
    cls = task.cls
    coordinator = granting.coordinator
    return {
        "id": task_text(node.me, task.id),
        "state": state_text(task),
        "reason": explaining.main_reason(found),
        "holds": [list(one) for one in found.holds],
        "needs": needs_text(cls.requirement),
        "waited_ms": max(0, now_ms - task.queued_ms) if task.ended is None else 0,
        "ahead": found.ahead,
        "gang": cls.spec.gang,
        "class": cls.id,
        "owner": text32(node.me),
        "coordinator": short(coordinator) if coordinator else "",
        "coordinator_node": text32(coordinator) if coordinator else "",
        "last": task.last_status,
        "nodes": [_place(node, cls, place) for place in found.places],
    }


def _place(node: Node, cls: ClassState, place: explaining.Place) -> dict[str, Any]:
    view = node.owner.view.nodes[place.node]
    state = "unknown" if view.capabilities is None else "alive"
    if view.suspect or place.rule == explaining.SILENT:
        state = "suspect"
    elif place.rule in (explaining.DRAINING, explaining.AVOIDED):
        state = place.rule
    return {
        "id": short(place.node),
        "node": place.text,
        "name": place.name,
        "state": state,
        "rule": place.rule,
        "text": explaining.TEXTS.get(place.rule, ""),
        "missing": [list(lack) for lack in place.lacks],
        "slots_here": place.slots,
        "in_use": place.used,
        "waiting": place.waiting,
        "backing_off_ms": place.for_ms,
    }


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
        "state": _presence(node, id_, state, supply.draining),
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
        "receiving_kib_s": beat.receiving_kib_s,
        "sending_kib_s": beat.sending_kib_s,
        "owned": beat.owned,
        "cpu_percent": beat.cpu_percent,
        "memory_percent": beat.memory_percent,
        "loop_lag_ms": beat.loop_lag_ms,
        "heartbeat_ms": beat.interval_ms,
        "journal_mark": beat.journal_mark,
    }


def _presences(node: Node) -> dict[bytes, str]:
    """One word for each node."""
    found = {node.me: _presence(node, node.me, "alive", node.worker.draining)}
    for peer in node.membership.peers.values():
        state = PeerState(peer.state).name.lower()
        found[peer.node] = _presence(node, peer.node, state, peer.beat.supply.draining)
    return found


def _presence(node: Node, id_: bytes, state: str, draining: bool) -> str:
    """One word for a node; of one that two machines claim to be nothing else matters."""
    if node.lives.is_clone(id_):
        return "clone"
    return "draining" if state == "alive" and draining else state


def _one_node(node: Node, now_ms: int) -> dict[str, Any]:
    """Counters of this daemon, for tests and people who look for a fault."""
    return {
        "id": short(node.me),
        "name": node.name,
        "incarnation": node.inc >> 32,
        "uptime_ms": now_ms - node.started_ms,
        "draining": node.worker.draining,
        "identity": node.lives.state.name.lower(),
        "running": node.worker.running + node.worker.held,
        "waiting": node.worker.queued,
        "full": node.owner.full,
        "owner": dict(node.owner.counters),
        "worker": dict(node.worker.counters),
        "tasks": len(node.owner.tasks),
        "attempts": len(node.owner.attempts),
        "sessions": len(node.owner.sessions.sessions),
        "tables": node.coordinator.tables,
        "tombstones": len(node.worker.tombstones),
        "unknown_kinds": node.unknown_kinds,
    }
