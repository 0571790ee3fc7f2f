"""What a live view asks for every second: short rows of the nodes, and of one owner's tasks.

Pure.  An answer is small and costs the same whether ten tasks wait or a million: totals are kept
by the owner anyway, and of the tasks only so many are looked at as are told.  This file must not
know who looks, nor how a row is drawn.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta, Struct

from blackroad.ids import NODE_BYTES, NodeId, TaskId, inc_counter, short
from blackroad.limits import GANG_NODES_MAX
from blackroad.router.records import TaskState, state_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from blackroad.bus.messages import Heartbeat
    from blackroad.node import Node
    from blackroad.router.records import ClassState, Task

ROWS_MAX: Final = 500
CLASSES_MAX: Final = 50
GPUS_TOLD_MAX: Final = 4
TEXT_MAX: Final = 48
STATES_MAX: Final = 64
# Ended tasks may stand between those that have not: so many are passed over to find some.
SCAN_MAX: Final = 512
_ENDED: Final = "ended."


class MeshArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """The query `mesh` takes none."""


class WorkArgs(Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `work`: how many rows of tasks are wanted at most."""

    tasks: int = 40


class Beat(Struct, frozen=True, array_like=True, gc=False):
    """One node, as the node that was asked has last heard it.

    Units  `free_memory_bytes` is what no task has reserved; the percentages are what is used of
           the machine, by whomever; speeds of the network in KiB/s; `owned` counts tasks that were
           submitted there and have not ended; `done` counts attempts that ran there in this life.
    """

    node: bytes
    name: str
    arch: str
    state: str
    incarnation: int
    silent_ms: int
    astray: bool
    slots: int
    running: int
    waiting: int
    done: int
    memory_bytes: int
    free_memory_bytes: int
    cpu_percent: int
    memory_percent: int
    load_percent: int
    temperature_c: int
    throttled: bool
    receiving_kib_s: int
    sending_kib_s: int
    owned: int
    gpus: tuple[str, ...] = ()


class MeshView(Struct, frozen=True):
    """The answer to `mesh`."""

    asked: bytes
    coordinator: bytes
    epoch: int
    epoch_node: bytes
    nodes: tuple[Beat, ...]


class ClassRow(Struct, frozen=True, array_like=True, gc=False):
    """Tasks of equal needs, name, user and priority, of one owner.

    Units  `mean_us` is their measured running time; `oldest_ms` how long the first one waits.
    """

    name: str
    user: str
    priority: int
    queued: int
    waiting: int
    running: int
    mean_us: int
    oldest_ms: int


class TaskRow(Struct, frozen=True, array_like=True, gc=False):
    """One task.

    Units  `age_ms` since it was submitted, of a task that has not ended; `run_us` of one that has.
    """

    task: TaskId
    state: str
    name: str
    user: str
    priority: int
    age_ms: int
    run_us: int
    # Empty for one that ended before any node had it.
    nodes: Annotated[
        tuple[Annotated[bytes, Meta(max_length=NODE_BYTES)], ...], Meta(max_length=GANG_NODES_MAX)
    ]
    tries: int
    note: str


class WorkView(Struct, frozen=True):
    """The answer to `work`: one owner's tasks; `ended` counts those of its present life."""

    node: NodeId
    incarnation: int
    open: Annotated[dict[str, int], Meta(max_length=STATES_MAX)]
    ended: Annotated[dict[str, int], Meta(max_length=STATES_MAX)]
    classes: tuple[ClassRow, ...]
    tasks: tuple[TaskRow, ...]


# --- nodes --------------------------------------------------------------------------------------


def mesh(node: Node, now_ms: int, presence: dict[bytes, str]) -> MeshView:
    """All nodes that this one knows; `presence` has one word for each.

    Cost  about 110 bytes and 10 us a node.
    """
    coordinator = node.election.follows
    rows = [_beat(node, node.me, node.inc, node.beat(now_ms), presence[node.me], 0)]
    for peer in sorted(node.membership.peers.values(), key=lambda peer: peer.node):
        silent_ms = max(0, now_ms - peer.heard_ms)
        rows.append(_beat(node, peer.node, peer.inc, peer.beat, presence[peer.node], silent_ms))
    epoch = node.election.follows_epoch
    return MeshView(
        node.me,
        coordinator or b"",
        epoch.counter if epoch is not None else 0,
        epoch.node if epoch is not None else b"",
        tuple(rows),
    )


def _beat(node: Node, id_: bytes, inc: int, beat: Heartbeat, state: str, silent_ms: int) -> Beat:
    caps = node.capabilities.get(id_)
    supply = beat.supply
    follows = node.election.follows
    gpus = caps.gpus()[:GPUS_TOLD_MAX] if caps is not None else ()
    return Beat(
        id_,
        caps.name if caps is not None else short(id_),
        caps.arch if caps is not None else "",
        state,
        inc_counter(inc),
        silent_ms,
        bool(follows and beat.follows and beat.follows != follows),
        supply.cpu_units // 10_000,
        supply.running,
        supply.waiting,
        supply.done,
        supply.memory_bytes,
        supply.free_memory_bytes,
        beat.cpu_percent,
        beat.memory_percent,
        supply.load_percent,
        supply.temperature_c,
        supply.throttled,
        beat.receiving_kib_s,
        beat.sending_kib_s,
        beat.owned,
        tuple(device.name[:TEXT_MAX] for device in gpus),
    )


# --- one owner's tasks --------------------------------------------------------------------------


def work(node: Node, args: WorkArgs, now_ms: int) -> WorkView:
    """This owner's tasks: totals, its largest classes, and some tasks of every kind.

    Cost  independent of how many tasks there are; about 100 bytes a row.
    """
    owner = node.owner
    queued = waiting = granted = 0
    for cls in owner.by_id.values():
        queued += cls.queued
        out = cls.tasks - cls.queued
        if out > 0:
            ahead = min(out, sum(use.ahead for use in cls.uses.values()))
            waiting += ahead
            granted += out - ahead
    open_ = {"queued": queued, "waiting": waiting, "running": granted}
    counted = owner.counters.items()
    ended = {name[len(_ENDED) :]: n for name, n in counted if name.startswith(_ENDED)}
    rows = islice(_some(node, max(0, min(args.tasks, ROWS_MAX))), ROWS_MAX)
    return WorkView(
        node.me,
        inc_counter(node.inc),
        {name: count for name, count in open_.items() if count},
        ended,
        tuple(_class_row(cls, now_ms) for cls in _largest(owner.by_id.values())),
        tuple(_task_row(task, now_ms) for task in rows),
    )


def _largest(classes: Iterable[ClassState]) -> list[ClassState]:
    some = [cls for cls in classes if cls.tasks]
    if len(some) > CLASSES_MAX:
        some.sort(key=lambda cls: -cls.tasks)
    return some[:CLASSES_MAX]


def _class_row(cls: ClassState, now_ms: int) -> ClassRow:
    out = max(0, cls.tasks - cls.queued)
    ahead = min(out, sum(use.ahead for use in cls.uses.values()))
    oldest = cls.oldest()
    return ClassRow(
        cls.spec.name[:TEXT_MAX],
        cls.spec.user[:TEXT_MAX],
        cls.spec.priority,
        cls.queued,
        ahead,
        out - ahead,
        cls.mean_us,
        max(0, now_ms - oldest.queued_ms) if oldest is not None else 0,
    )


def _some(node: Node, limit: int) -> Iterator[Task]:
    """Half of the rows for what runs, then what waits, then the latest that ended."""
    owner = node.owner
    told: set[bytes] = set()
    running = (task for attempt in owner.attempts.values() for task in attempt.tasks())
    live = islice((task for task in running if task.ended is None), max(1, limit // 2))
    heads = chain.from_iterable(
        islice(
            (task for task in islice(cls.queue, SCAN_MAX) if task.state is TaskState.QUEUED),
            max(1, limit // 4),
        )
        for cls in _largest(owner.by_id.values())
    )
    kept = chain(
        islice(reversed(owner.memory.recent.values()), limit),
        islice(reversed(owner.tasks.values()), SCAN_MAX),
    )
    over = (task for task in kept if task.ended is not None)
    for task in chain(live, islice(heads, max(1, limit // 4)), over):
        if len(told) >= limit:
            return
        if task.id not in told:
            told.add(task.id)
            yield task


def _task_row(task: Task, now_ms: int) -> TaskRow:
    spec = task.cls.spec
    ended = task.ended
    members = [one for attempt in task.attempts for one in attempt.members]
    nodes = (ended.node,) if ended is not None else tuple(one.node for one in members)
    note = ended.reason if ended is not None else task.last_status
    return TaskRow(
        task.id,
        state_text(task),
        spec.name[:TEXT_MAX],
        spec.user[:TEXT_MAX],
        spec.priority,
        max(0, now_ms - task.queued_ms) if ended is None else 0,
        ended.facts.run_us if ended is not None else 0,
        nodes[:4],
        task.tries,
        note[:TEXT_MAX],
    )
