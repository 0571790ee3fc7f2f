"""A mesh that exists on paper: any number of nodes, as busy as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from blackroad.errors import BlackroadError, NoDaemon
from blackroad.glance import Beat, ClassRow, MeshView, TaskRow, WorkView
from blackroad.ids import text32

GIB = 1 << 30
NAMES = ("attic", "shed", "loft", "garage", "cellar", "porch", "barn", "study")


def node_id(at: int) -> bytes:
    """The id of the node with that number."""
    return at.to_bytes(2, "big") * 8


def task_id(at: int) -> bytes:
    """Ids of one program begin alike."""
    return b"program..." + at.to_bytes(6, "big")


def beat(at: int = 0, **changes: Any) -> Beat:
    """A node that is there and has four slots."""
    fields: dict[str, Any] = {
        "node": node_id(at),
        "name": NAMES[at] if at < len(NAMES) else f"node-{at:03d}",
        "arch": "aarch64" if at % 3 else "x86_64",
        "state": "alive",
        "incarnation": 3,
        "silent_ms": 0,
        "astray": False,
        "slots": 4,
        "running": 2,
        "waiting": 1,
        "done": 100,
        "memory_bytes": 8 * GIB,
        "free_memory_bytes": 6 * GIB,
        "cpu_percent": 35,
        "memory_percent": 25,
        "load_percent": 40,
        "temperature_c": 55,
        "throttled": False,
        "receiving_kib_s": 1200,
        "sending_kib_s": 34,
        "owned": 0,
        "gpus": (),
    }
    return Beat(**{**fields, **changes})


def view(*beats: Beat, coordinator: int | None = 0, epoch: int = 3) -> MeshView:
    """What the first of these nodes tells."""
    leader = node_id(coordinator) if coordinator is not None else b""
    return MeshView(beats[0].node, leader, epoch if leader else 0, leader, tuple(beats))


def task_row(at: int, state: str = "running", **changes: Any) -> TaskRow:
    """A task of one user."""
    fields: dict[str, Any] = {
        "task": task_id(at),
        "state": state,
        "name": "render",
        "user": "ann",
        "priority": 0,
        "age_ms": 0 if state in ("done", "failed") else 1000 + at * 250,
        "run_us": 1500 if state in ("done", "failed") else 0,
        "nodes": () if state == "queued" else (node_id(at % 3),),
        "tries": 1,
        "note": "",
    }
    return TaskRow(**{**fields, **changes})


def work(at: int, *rows: TaskRow, **changes: Any) -> WorkView:
    """What one owner tells."""
    open_: dict[str, int] = {}
    for row in rows:
        if row.state in ("running", "queued", "waiting"):
            open_[row.state] = open_.get(row.state, 0) + 1
    fields: dict[str, Any] = {
        "node": node_id(at),
        "incarnation": 3,
        "open": open_,
        "ended": {},
        "classes": (ClassRow("render", "ann", 0, 3, 1, 2, 1500, 7000),),
        "tasks": rows,
    }
    return WorkView(**{**fields, **changes})


class FakeMesh:
    """Answers what a test put in; `asked` has the orders that came."""

    def __init__(self, *beats: Beat, coordinator: int | None = 0) -> None:
        self.beats = list(beats)
        self.coordinator = coordinator
        self.epoch = 3
        self.works: dict[bytes, WorkView | BlackroadError] = {}
        self.told: dict[str, Any] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.happened: list[dict[str, Any]] = []
        self.away = False
        self.refusal: BlackroadError | None = None
        self.closed = False

    def mesh(self) -> MeshView:
        if self.away:
            raise NoDaemon("no daemon answers", hint="start one")
        if self.refusal is not None:
            raise self.refusal
        return view(*self.beats, coordinator=self.coordinator, epoch=self.epoch)

    def work(self, owner: bytes, tasks: int) -> WorkView:
        self.asked.append(("work", owner, tasks))
        told = self.works.get(owner, WorkView(owner, 3, {}, {}, (), ()))
        if isinstance(told, BlackroadError):
            raise told
        return told

    def events(self, closed: threading.Event) -> Iterable[dict[str, Any]]:
        yield from self.happened
        closed.wait()

    def ask(self, name: str, *args: Any) -> Any:
        self.asked.append((name, *args))
        told = self.told.get(name)
        if isinstance(told, BaseException):
            raise told
        return told

    def close(self) -> None:
        self.closed = True


def node_row(at: int = 0) -> dict[str, Any]:
    """One row of `Client.nodes`, as far as the view reads it."""
    one = beat(at)
    return {
        "id": text32(one.node)[:8],
        "node": text32(one.node),
        "name": one.name,
        "state": "alive",
        "silent_ms": 0,
        "incarnation": 3,
        "coordinator": True,
        "follows": text32(one.node)[:8],
        "arch": one.arch,
        "python": "3.11",
        "cores": 4,
        "slots": 4,
        "running": 2,
        "waiting": 1,
        "done": 100,
        "memory_bytes": one.memory_bytes,
        "free_memory_bytes": one.free_memory_bytes,
        "devices": [],
        "notes": ["the clock is not set"],
        "labels": {"disk": "ssd"},
        "speed": 12.5,
        "temperature_c": 55,
        "throttled": True,
        "load_percent": 40,
        "loop_lag_ms": 2,
        "heartbeat_ms": 1000,
    }


def status_row(task: str, **changes: Any) -> dict[str, Any]:
    """What `Client.status` tells of a running task."""
    fields: dict[str, Any] = {
        "id": task,
        "state": "running",
        "name": "render",
        "user": "ann",
        "needs": "cpu=1",
        "durable": True,
        "pure": False,
        "priority": 0,
        "nodes": [{"name": "attic", "id": "aaaaaaaa"}],
        "waited_ms": 4000,
        "deadline_in_ms": None,
        "attempts": 2,
        "lost": 1,
        "crashed": 0,
        "last": "the worker went away",
        "reason": "",
        "ended": None,
    }
    return {**fields, **changes}
