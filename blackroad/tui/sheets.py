"""The tables of the live view: which columns nodes, tasks, queues and events have.

Pure.  This file must not know what draws them, nor who asked for the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from blackroad.glance import Beat
from blackroad.ids import short, text32
from blackroad.tui import words
from blackroad.tui.model import HERE, STATES, Group, Happening, Model, Task, Trace, role_of
from blackroad.tui.sheet import Cell, Column, Order, Row, Sheet, sheet

STATE_STYLES: Final = {
    "alive": "green",
    "draining": "yellow",
    "suspect": "yellow",
    "clone": "red",
    "dead": "red",
    "left": "dim",
    "done": "green",
    "running": "cyan",
    "collecting": "cyan",
    "queued": "",
    "waiting": "",
    "failed": "red",
    "expired": "red",
    "quarantined": "red",
    "unknown": "red",
    "cancelled": "dim",
}
SEVERITY_STYLES: Final = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}
SPARK_COLUMNS: Final = 8
NAME_COLUMNS: Final = 26
HOT_C: Final = 80
BUSY_PERCENT: Final = 90
WARM_C: Final = 70

NODES: Final = (
    Column("name", "name", width_max=20),
    Column("state", "state", width_max=14),
    Column("role", "role", rank=2, width_max=8),
    Column("arch", "arch", rank=6, width_max=8),
    Column("slots", "busy", right=True, down=True, width_max=9),
    Column("cpu", "cpu", right=True, rank=1, down=True, width_max=6),
    Column("memory", "mem", right=True, rank=1, down=True, width_max=11),
    Column("load", "load", right=True, rank=5, down=True, width_max=6),
    Column("temp", "temp", right=True, rank=4, down=True, width_max=9),
    Column("receives", "in/s", right=True, rank=5, down=True, width_max=5),
    Column("sends", "out/s", right=True, rank=5, down=True, width_max=6),
    Column("rate", "task/s", right=True, rank=1, down=True, width_max=7),
    Column("history", "history", rank=3, width_max=SPARK_COLUMNS),
    Column("owns", "owns", right=True, rank=5, down=True, width_max=6),
    Column("waiting", "wait", right=True, rank=7, down=True, width_max=6),
    Column("done", "done", right=True, rank=8, down=True, width_max=6),
    Column("gpu", "gpu", rank=6, width_max=28),
    Column("id", "id", rank=9, width_max=8),
)
TASKS: Final = (
    Column("id", "id", width_max=16),
    Column("state", "state", width_max=11),
    Column("name", "name", width_max=NAME_COLUMNS),
    Column("user", "user", rank=2, width_max=10),
    Column("priority", "pri", right=True, rank=6, down=True, width_max=4),
    Column("age", "age", right=True, rank=1, down=True, width_max=6),
    Column("took", "took", right=True, rank=4, down=True, width_max=6),
    Column("node", "node", rank=1, width_max=16),
    Column("tries", "try", right=True, rank=7, down=True, width_max=4),
    Column("owner", "owner", rank=5, width_max=14),
    Column("note", "note", rank=3, width_max=48, wide=True),
)
QUEUES: Final = (
    Column("name", "class", width_max=32),
    Column("user", "user", rank=1, width_max=12),
    Column("priority", "pri", right=True, rank=3, down=True, width_max=4),
    Column("queued", "queued", right=True, down=True, width_max=8),
    Column("waiting", "wait", right=True, rank=2, down=True, width_max=6),
    Column("running", "run", right=True, down=True, width_max=7),
    Column("mean", "mean", right=True, rank=1, down=True, width_max=7),
    Column("oldest", "oldest", right=True, rank=1, down=True, width_max=8),
    Column("owner", "owner", rank=2, width_max=16),
)
EVENTS: Final = (
    Column("time", "time", width_max=12, down=True),
    Column("severity", "level", rank=3, width_max=8),
    Column("host", "node", rank=1, width_max=14),
    Column("name", "event", width_max=28),
    Column("cause", "cause", rank=2, width_max=18),
    Column("text", "what", rank=1, width_max=400, wide=True),
)
ORDERS: Final = {
    "nodes": Order("state"),
    "tasks": Order("state"),
    "queues": Order("queued"),
    "events": Order("time"),
}
BY: Final = ("class", "user", "owner")
# What somebody should look at stands at the top.
_TROUBLE: Final = {"clone": 0, "suspect": 1, "dead": 2, "draining": 3, "alive": 4, "left": 5}
# One cell for each of `_speeds`; a temperature that nobody knows makes no column.
_NO_SPEEDS: Final = tuple(Cell(text, -1) for text in ("-", "-", "-", "-", "", "-", "-"))
_RANK: Final = {name: at for at, name in enumerate(STATES)}


# --- nodes --------------------------------------------------------------------------------------


def nodes(model: Model, order: Order, filtered: str = "", bars: bool = False) -> Sheet:
    """One row a node; the coordinator's name is bold."""
    coordinator = model.mesh.coordinator if model.mesh is not None else b""
    rows = [
        _node(beat, model.traces.get(beat.node), coordinator, bars)
        for beat in sorted(model.beats(), key=lambda beat: (beat.name, beat.node))
    ]
    return sheet(NODES, rows, order, filtered)


def _node(beat: Beat, trace: Trace | None, coordinator: bytes, bars: bool) -> Row:
    leads = bool(coordinator) and beat.node == coordinator
    per_s = trace.per_s if trace is not None else 0.0
    there = beat.state in HERE
    cells = (
        Cell(beat.name, style="bold" if leads else ""),
        Cell(_state(beat), _TROUBLE.get(beat.state, 0), STATE_STYLES.get(beat.state, "")),
        Cell(role_of(beat, coordinator), style="bold" if leads else ""),
        Cell(beat.arch),
        *(_speeds(beat, bars) if there else _NO_SPEEDS),
        Cell(words.rate(per_s) if there else "-", per_s),
        Cell(_drawn(trace), per_s, "green"),
        Cell(words.count(beat.owned) if there else "-", beat.owned),
        Cell(words.count(beat.waiting) if there else "-", beat.waiting),
        Cell(words.count(beat.done) if there else "-", beat.done),
        Cell(_gpus(beat.gpus)),
        Cell(short(beat.node)),
    )
    return Row(text32(beat.node), cells, "" if there else "dim")


def _speeds(beat: Beat, bars: bool) -> tuple[Cell, ...]:
    busy = beat.running / beat.slots if beat.slots else 0.0
    cpu, used = beat.cpu_percent, beat.memory_percent
    of = f"{used}% of {words.size(beat.memory_bytes)}" if bars else f"{used}%"
    heat = f"{beat.temperature_c}°" if beat.temperature_c else ""
    slow = " slow" if beat.throttled else ""
    return (
        Cell(f"{beat.running}/{beat.slots}", busy, "" if busy < 1 else "cyan"),
        Cell(f"{cpu}%", cpu, "yellow" if cpu >= BUSY_PERCENT else ""),
        Cell(of if used else "", used, _level(used, 75, 92)),
        Cell(f"{beat.load_percent}%", beat.load_percent, _level(beat.load_percent, 150, 300)),
        Cell((heat + slow).strip(), beat.temperature_c, _heat(beat)),
        Cell(_kib(beat.receiving_kib_s), beat.receiving_kib_s),
        Cell(_kib(beat.sending_kib_s), beat.sending_kib_s),
    )


def _state(beat: Beat) -> str:
    late = beat.state not in ("alive", "draining", "left") and beat.silent_ms >= 1000
    return f"{beat.state} {words.age(beat.silent_ms)}" if late else beat.state


def _level(percent: int, warm: int, hot: int) -> str:
    return "red" if percent >= hot else "yellow" if percent >= warm else ""


def _heat(beat: Beat) -> str:
    if beat.throttled or beat.temperature_c >= HOT_C:
        return "red"
    return "yellow" if beat.temperature_c >= WARM_C else ""


def _kib(kib_s: int) -> str:
    return words.size(kib_s * 1024) if kib_s else "0"


def _drawn(trace: Trace | None) -> str:
    if trace is None or not any(trace.rates):
        return ""
    return words.spark(list(trace.rates)[-SPARK_COLUMNS:], SPARK_COLUMNS)


def _gpus(names: tuple[str, ...]) -> str:
    kinds = dict.fromkeys(names)
    return ", ".join(
        f"{names.count(name)}x {name}" if names.count(name) > 1 else name for name in kinds
    )


# --- tasks --------------------------------------------------------------------------------------


def tasks(model: Model, order: Order, filtered: str = "") -> Sheet:
    """One row a task that owners told of."""
    return sheet(TASKS, [_task(one) for one in model.tasks()], order, filtered)


def _task(one: Task) -> Row:
    row = one.row
    owner, _, tail = one.id.partition("-")
    cells = (
        # Tasks of one program begin alike: what tells them apart is the end.
        Cell(f"{owner}{words.ELLIPSIS}{tail[-7:]}", one.id),
        Cell(row.state, _RANK.get(row.state, 99), STATE_STYLES.get(row.state, "")),
        Cell(_task_name(row.name), row.name.lower()),
        Cell(row.user),
        Cell(str(row.priority) if row.priority else "", row.priority),
        Cell(words.age(row.age_ms) if row.age_ms else "", row.age_ms),
        Cell(words.took(row.run_us), row.run_us),
        Cell(", ".join(one.places)),
        Cell(str(row.tries) if row.tries > 1 else "", row.tries),
        Cell(one.owner),
        Cell(row.note),
    )
    return Row(one.id, cells, "dim" if row.state in ("done", "cancelled") else "")


def _task_name(name: str) -> str:
    """Of a function the end tells more than the packages that it is in."""
    path = name.replace(":", ".")
    if len(name) <= NAME_COLUMNS or not all(part.isidentifier() for part in path.split(".")):
        return name
    return words.ELLIPSIS + name[1 - NAME_COLUMNS :]


# --- queues -------------------------------------------------------------------------------------


def queues(model: Model, order: Order, filtered: str = "", by: str = "class") -> Sheet:
    """One row a class of tasks, a user or an owner."""
    rows = [_queue(group, by, at) for at, group in enumerate(model.groups(by))]
    return sheet(QUEUES, rows, order, filtered)


def _queue(group: Group, by: str, at: int) -> Row:
    key = group.user if by == "user" else group.owner if by == "owner" else f"{at}"
    return Row(
        f"{by}/{key}",
        (
            Cell(_task_name(group.name), group.name.lower()),
            Cell(group.user),
            Cell(str(group.priority) if group.priority else "", group.priority or 0),
            Cell(words.count(group.queued), group.queued),
            Cell(words.count(group.waiting), group.waiting),
            Cell(words.count(group.running), group.running, "cyan" if group.running else ""),
            Cell(words.took(group.mean_us), group.mean_us),
            Cell(words.age(group.oldest_ms) if group.queued else "", group.oldest_ms),
            Cell(group.owner),
        ),
    )


# --- events -------------------------------------------------------------------------------------


def events(
    model: Model, order: Order, filtered: str, clock: Callable[[int], str], limit: int = 0
) -> Sheet:
    """One row an event, the newest first; `clock` writes a wall time as people here read it."""
    latest = list(model.happenings)
    if limit and not filtered and order == ORDERS["events"]:
        latest = latest[-limit:]
    return sheet(
        EVENTS,
        [_event(one, model.told_by.get(one.id, 1), clock) for one in latest],
        order,
        filtered,
    )


def _event(one: Happening, nodes: int, clock: Callable[[int], str]) -> Row:
    style = SEVERITY_STYLES.get(one.severity, "")
    cause = one.cause if len(one.cause) <= 18 else one.cause[:8] + words.ELLIPSIS + one.cause[-8:]
    return Row(
        one.id,
        (
            Cell(clock(one.at_ms), one.at_ms, "dim"),
            Cell(one.severity, style=style),
            Cell(one.host),
            Cell(one.name, style=style),
            Cell(cause, one.cause, "dim"),
            Cell(f"{one.text} (seen by {nodes} nodes)" if nodes > 1 else one.text),
        ),
    )
