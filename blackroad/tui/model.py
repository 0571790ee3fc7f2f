"""What the live view knows: the last answers of the mesh, and how fast it goes.

Pure.  Answers and times come in, rows and JSON go out.  This file must not know who asks the
daemons, nor what draws the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.glance import Beat, MeshView, TaskRow, WorkView
from blackroad.ids import short, task_text, text32
from blackroad.tui.words import clean

if TYPE_CHECKING:
    from blackroad.glance import ClassRow

HISTORY: Final = 120
EVENTS_MAX: Final = 1_000
# Two heartbeats nearer than this tell nothing of a speed.
SPAN_MS_MIN: Final = 100
# Every node that sees it says it, with one cause; within so long it is the same.
SEEN_BY_ALL: Final = frozenset(
    {
        "coordinator.changed",
        "node.died",
        "node.joined",
        "node.left",
        "node.recovered",
        "node.reincarnated",
        "node.suspected",
    }
)
SAME_MS: Final = 10_000
HERE: Final = ("alive", "draining", "suspect")
GONE: Final = ("dead", "left")
STATES: Final = (
    "running",
    "collecting",
    "cancelling",
    "expiring",
    "waiting",
    "queued",
    "failed",
    "quarantined",
    "expired",
    "unknown",
    "cancelled",
    "done",
)


class Happening(NamedTuple):
    """One event, as a line of the event pane."""

    id: str
    at_ms: int
    host: str
    name: str
    severity: str
    cause: str
    text: str


class Trace:
    """How many tasks a second one node ends, over time.

    Units  `heard_ms` is when the heartbeat came that said `done`: what lies between two heartbeats
           is known exactly, however late they are looked at.
    """

    __slots__ = ("done", "heard_ms", "incarnation", "per_s", "rates")

    def __init__(self, beat: Beat, at_ms: int) -> None:
        self.incarnation = beat.incarnation
        self.done = beat.done
        self.heard_ms = at_ms - beat.silent_ms
        self.per_s = 0.0
        self.rates: deque[float] = deque(maxlen=HISTORY)

    def take(self, beat: Beat, at_ms: int) -> None:
        """Learn from the next look."""
        heard_ms = at_ms - beat.silent_ms
        past_ms = heard_ms - self.heard_ms
        if beat.incarnation != self.incarnation or beat.done < self.done:
            # A new life counts from nothing; what it did before this look took unknown time.
            self.incarnation, self.done, self.heard_ms = beat.incarnation, beat.done, heard_ms
            self.per_s = 0.0
        elif past_ms >= SPAN_MS_MIN:
            self.per_s = (beat.done - self.done) * 1000 / past_ms
            self.done, self.heard_ms = beat.done, heard_ms
        if beat.state not in HERE:
            self.per_s = 0.0
        self.rates.append(self.per_s)


class Task(NamedTuple):
    """A task and who owns it."""

    id: str
    owner: str
    row: TaskRow
    places: tuple[str, ...]


class Group(NamedTuple):
    """Tasks that are told together, with what they have in common."""

    name: str
    user: str
    priority: int | None
    owner: str
    queued: int
    waiting: int
    running: int
    mean_us: int
    oldest_ms: int


class Model:
    """All that is shown, from the answers that came."""

    def __init__(self) -> None:
        self.mesh: MeshView | None = None
        self.traces: dict[bytes, Trace] = {}
        self.works: dict[bytes, WorkView] = {}
        self.total_rates: deque[float] = deque(maxlen=HISTORY)
        self.happenings: deque[Happening] = deque(maxlen=EVENTS_MAX)
        # How many nodes told the same, by the id of the event that stands for it.
        self.told_by: dict[str, int] = {}
        self._known: set[str] = set()
        # What keeps the view from being fresh, in words for people.
        self.problem = ""
        self.looks = 0

    # --- what comes in ----------------------------------------------------------------------------

    def take_mesh(self, view: MeshView, at_ms: int) -> None:
        """A daemon told of all nodes."""
        if self.mesh is not None and self.mesh.asked != view.asked:
            # Another daemon heard the same heartbeats at other times.
            self.traces = {}
        self.mesh = view
        self.looks += 1
        there = {beat.node for beat in view.nodes}
        for node in [node for node in self.traces if node not in there]:
            del self.traces[node]
        for beat in view.nodes:
            trace = self.traces.get(beat.node)
            if trace is None:
                self.traces[beat.node] = Trace(beat, at_ms)
            else:
                trace.take(beat, at_ms)
        self.total_rates.append(self.per_s())
        lives = {beat.node: beat.incarnation for beat in view.nodes if beat.state not in GONE}
        for node, work in list(self.works.items()):
            if lives.get(node) != work.incarnation:
                # What it will have taken up from its journal it says itself.
                del self.works[node]

    def take_work(self, view: WorkView) -> None:
        """An owner told of its tasks."""
        self.works[view.node] = view

    def take_happenings(self, news: Iterable[Happening]) -> None:
        """Events came; one that came before is not shown twice, whoever told it."""
        fresh = []
        for one in news:
            if one.id not in self._known:
                self._known.add(one.id)
                fresh.append(one)
        if not fresh:
            return
        fresh.sort(key=_when)
        same = {(one.name, one.cause): one for one in self.happenings}
        for one in fresh:
            shared = one.cause and one.name in SEEN_BY_ALL
            before = same.get((one.name, one.cause)) if shared else None
            if before is not None and abs(one.at_ms - before.at_ms) <= SAME_MS:
                self.told_by[before.id] = self.told_by.get(before.id, 1) + 1
                continue
            same[one.name, one.cause] = one
            self.happenings.append(one)
        merged = sorted(self.happenings, key=_when)
        self.happenings.clear()
        self.happenings.extend(merged)
        if len(self._known) > 4 * EVENTS_MAX:
            kept = {one.id for one in self.happenings}
            self._known = kept
            self.told_by = {id_: count for id_, count in self.told_by.items() if id_ in kept}

    # --- totals -----------------------------------------------------------------------------------

    def beats(self) -> Sequence[Beat]:
        """All nodes."""
        return self.mesh.nodes if self.mesh is not None else ()

    def present(self) -> list[Beat]:
        """Nodes that are there."""
        return [beat for beat in self.beats() if beat.state in HERE]

    def per_s(self) -> float:
        """Tasks a second, of all nodes."""
        return sum(trace.per_s for trace in self.traces.values())

    def name_of(self, node: bytes) -> str:
        """A node's label, or the start of its id."""
        if not node:
            return ""
        for beat in self.beats():
            if beat.node == node:
                return beat.name
        return short(node)

    def counts(self) -> dict[str, int]:
        """How many tasks are in which state; those that have ended are of their owners' lives.

        Tasks of owners that have not answered yet are "untold".
        """
        found: dict[str, int] = {}
        for work in self.works.values():
            for name, count in (*work.open.items(), *work.ended.items()):
                found[name] = found.get(name, 0) + count
        untold = sum(beat.owned for beat in self.present() if beat.node not in self.works)
        if untold:
            found["untold"] = untold
        order = {name: at for at, name in enumerate(STATES)}
        return dict(sorted(found.items(), key=lambda one: (order.get(one[0], 99), one[0])))

    def silent(self) -> list[str]:
        """Names of the nodes that are known and not there."""
        return [beat.name for beat in self.beats() if beat.state not in (*HERE, "left")]

    # --- tasks ------------------------------------------------------------------------------------

    def tasks(self) -> list[Task]:
        """Those tasks that owners told of, live ones first."""
        names = {beat.node: beat.name for beat in self.beats()}
        found = [
            Task(
                task_text(owner, row.task),
                names.get(owner, short(owner)),
                row,
                tuple(names.get(node) or short(node) for node in row.nodes if node),
            )
            for owner, work in self.works.items()
            for row in work.tasks
        ]
        rank = {name: at for at, name in enumerate(STATES)}
        found.sort(key=lambda one: (rank.get(one.row.state, 99), -one.row.age_ms))
        return found

    def groups(self, by: str) -> list[Group]:
        """Classes of all owners; `by` is class, user or owner."""
        names = {beat.node: beat.name for beat in self.beats()}
        made: dict[tuple[Any, ...], list[tuple[str, ClassRow]]] = {}
        for owner, work in self.works.items():
            name = names.get(owner, short(owner))
            for row in work.classes:
                keys = {"user": (row.user,), "owner": (owner,)}
                # Equal names may differ in their needs: only the same row is the same class.
                key = keys.get(by, (owner, len(made)))
                made.setdefault(key, []).append((name, row))
        return [_group(rows, by) for rows in made.values()]

    # --- for programs -----------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """`blackroad top --json`; the page docs/top.md tells what each name means."""
        mesh = self.mesh
        coordinator = mesh.coordinator if mesh is not None else b""
        return {
            "schema": 1,
            "asked": short(mesh.asked) if mesh is not None else None,
            "coordinator": short(coordinator) if coordinator else None,
            "epoch": [mesh.epoch, short(mesh.epoch_node)] if mesh and mesh.epoch_node else None,
            "tasks_per_s": round(self.per_s(), 3),
            "nodes": [self._node_json(beat, coordinator) for beat in self.beats()],
            "tasks": self.counts(),
            "problem": self.problem,
        }

    def _node_json(self, beat: Beat, coordinator: bytes) -> dict[str, Any]:
        trace = self.traces.get(beat.node)
        return {
            "id": short(beat.node),
            "node": text32(beat.node),
            "name": beat.name,
            "state": beat.state,
            "role": role_of(beat, coordinator),
            "coordinator": beat.node == coordinator,
            "arch": beat.arch,
            "slots": beat.slots,
            "running": beat.running,
            "waiting": beat.waiting,
            "owned": beat.owned,
            "done": beat.done,
            "tasks_per_s": round(trace.per_s, 3) if trace is not None else 0.0,
            "cpu_percent": beat.cpu_percent,
            "memory_percent": beat.memory_percent,
            "load_percent": beat.load_percent,
            "memory_bytes": beat.memory_bytes,
            "free_memory_bytes": beat.free_memory_bytes,
            "temperature_c": beat.temperature_c,
            "throttled": beat.throttled,
            "receiving_kib_s": beat.receiving_kib_s,
            "sending_kib_s": beat.sending_kib_s,
            "gpus": list(beat.gpus),
            "incarnation": beat.incarnation,
            "silent_ms": beat.silent_ms,
        }


def _group(rows: Sequence[tuple[str, ClassRow]], by: str) -> Group:
    owners = {name for name, _ in rows}
    first_owner, first = rows[0]
    one_class = by not in ("user", "owner")
    measured = [row.mean_us for _, row in rows if row.mean_us]
    return Group(
        first.name if one_class else f"{len(rows)} classes" if len(rows) > 1 else first.name,
        first.user if by != "owner" or len({row.user for _, row in rows}) == 1 else "",
        first.priority if one_class or len(rows) == 1 else None,
        first_owner if len(owners) == 1 else "",
        sum(row.queued for _, row in rows),
        sum(row.waiting for _, row in rows),
        sum(row.running for _, row in rows),
        sum(measured) // len(measured) if measured else 0,
        max(row.oldest_ms for _, row in rows),
    )


def _when(one: Happening) -> tuple[int, str]:
    return one.at_ms, one.id


def role_of(beat: Beat, coordinator: bytes) -> str:
    """One word: who coordinates is a worker like others, most of the time."""
    if coordinator and beat.node == coordinator:
        return "coord"
    # It takes tasks from its clients, and runs none.
    return "worker" if beat.slots else "entry"


def happening(event: Any, text_of: Callable[[Any], str] | None = None) -> Happening:
    """Read an event as it travels: a mapping with the names of docs/events.md."""
    facts = event.get("facts") or {}
    words = " ".join(f"{name}={value}" for name, value in facts.items())
    return Happening(
        str(event.get("id", "")),
        int(event.get("at_ms", 0)),
        clean(str(event.get("host") or event.get("node", ""))),
        clean(str(event.get("name", ""))),
        str(event.get("severity", "info")),
        clean(str(event.get("cause", ""))),
        clean(text_of(event) if text_of is not None else words),
    )
