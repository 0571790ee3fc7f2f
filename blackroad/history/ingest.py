"""From the spool into the database, each record once.

Edge.  The rows of a piece of a segment and the place up to which it was read are written in one
transaction: whatever ends in between, nothing is lost and nothing is counted twice.  Rows that
have a key of their own (an event, a task, a sample) are besides taken once, however many nodes
write them into the same database.  This file must not know when it is run.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from blackroad.errors import HistoryProblem
from blackroad.history import schema
from blackroad.history.database import Database, RowRefused
from blackroad.history.records import (
    MAGIC,
    Counted,
    Fact,
    Finished,
    Happened,
    Known,
    Linked,
    Record,
    Sampled,
    Setting,
    Tried,
    unframe,
)
from blackroad.history.spool import Segment, segments
from blackroad.ids import short, task_text

BATCH_RECORDS: Final = 2_000
SAMPLE_MS: Final = 30_000
MINUTE_MS: Final = 60_000
TEXT_MAX: Final = 256
# Two nodes do not read the same time when they hear the same heartbeat.
CLOCK_MS: Final = 2_000

Rows = dict[str, list[dict[str, Any]]]


class Ingest:
    """Takes segments in; remembers nothing that the database does not."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.directory = directory
        self.refused = 0
        # Where there was nothing more to read: then the database need not be asked.
        self._read: dict[str, int] = {}
        insert = sqlite.insert if database.dialect == "sqlite" else postgresql.insert
        self._statements = {table.name: _statement(insert, table) for table in _TABLES}
        self._place = _statement(insert, schema.spool_positions)

    def run(self) -> int:
        """Take in all that lies there; return how many records it was.

        Raises  HistoryProblem; what was taken in until then stays so.
        """
        there = segments(self.directory)
        return sum(self._segment(one, one is not there[-1]) for one in there)

    def _segment(self, one: Segment, closed: bool) -> int:
        try:
            fd = os.open(one.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # It went to make room for newer ones.
            return 0
        taken = 0
        with os.fdopen(fd, "rb") as file:
            size = os.fstat(fd).st_size
            if self._read.get(one.id) == size and not closed:
                return 0
            at = self._position(one)
            while at < size:
                file.seek(at)
                data = file.read(size - at)
                records, end = _batch(data)
                if not end:
                    break
                self._write(one, records, at, at + end)
                taken += len(records)
                at += end
        if at >= size:
            self._read = {one.id: size}
        if closed:
            self._done(one)
        return taken

    def _position(self, one: Segment) -> int:
        places = schema.spool_positions
        with self.database.begin() as connection:
            found = connection.execute(
                select(places.c.position).where(places.c.segment == one.id)
            ).scalar()
        return int(found) if found is not None else len(MAGIC)

    def _write(self, one: Segment, records: Sequence[Record], at: int, end: int) -> None:
        rows = rows_of(records)
        place = {"segment": one.id, "position": end, "read_ms": _now_ms()}
        try:
            with self.database.begin(rows=True) as connection:
                for table in _TABLES:
                    if rows.get(table.name):
                        connection.execute(self._statements[table.name], rows[table.name])
                connection.execute(self._place, [place])
        except RowRefused:
            self._write_singly(rows, place)

    def _write_singly(self, rows: Rows, place: dict[str, Any]) -> None:
        """One row that the database will never take must not hold up all others."""
        with self.database.begin() as connection:
            for table in _TABLES:
                for row in rows.get(table.name, ()):
                    try:
                        with self.database.within(connection):
                            connection.execute(self._statements[table.name], [row])
                    except RowRefused:
                        self.refused += 1
            connection.execute(self._place, [place])

    def _done(self, one: Segment) -> None:
        """Everything in it is stored: first the file goes, then what is known of its place."""
        with contextlib.suppress(FileNotFoundError):
            one.path.unlink()
        places = schema.spool_positions
        with self.database.begin() as connection:
            connection.execute(places.delete().where(places.c.segment == one.id))


def _batch(data: bytes) -> tuple[list[Record], int]:
    """Whole frames from the begin of `data`, and the offset behind them; 0 where there is none.

    Raises  HistoryProblem where another program wrote them.
    """
    records: list[Record] = []
    at = 0
    while len(records) < BATCH_RECORDS:
        try:
            found = unframe(data, at)
        except msgspec.MsgspecError as error:
            raise HistoryProblem(
                f"the spool holds what this version cannot read: {error}",
                hint="a newer blackroad wrote it: install that, or delete the directory",
            ) from None
        if found is None:
            break
        records += found.records
        at = found.end
    return records, at


# --- rows ---------------------------------------------------------------------------------------


def rows_of(records: Sequence[Record]) -> Rows:
    """What each record comes to, by table."""
    rows: Rows = defaultdict(list)
    counted: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        match record:
            case Finished():
                rows["tasks"].append(_finished(record))
            case Counted():
                _count(counted, record)
            case Tried():
                rows["lost_attempts"].append(_tried(record))
            case Happened():
                rows["cluster_events"].append(_event(record))
            case Sampled():
                rows["system_resources"].append(_sample(record))
            case Known():
                rows["cluster_nodes"].append(_node(record))
                rows["gpu_resources"] += _gpus(record)
            case Linked():
                rows["network_topology"].append(_asdict(record))
            case Setting():
                rows["cluster_config"].append(_setting(record))
    rows["load_balancing_metrics"] = list(counted.values())
    return rows


def _finished(record: Finished) -> dict[str, Any]:
    told = _asdict(record)
    told["task"] = task_text(record.owner, record.task)
    told["owner"] = short(record.owner)
    told["node"] = short(record.node) if record.node else ""
    told["user_name"] = told.pop("user")
    return told


def _tried(record: Tried) -> dict[str, Any]:
    told = _asdict(record)
    told["task"] = task_text(record.owner, record.task)
    told["node"] = short(record.node)
    del told["owner"]
    return told


def _count(counted: dict[tuple[Any, ...], dict[str, Any]], record: Counted) -> None:
    key = (
        record.minute_ms,
        short(record.owner),
        short(record.node) if record.node else "",
        _clean(record.name),
        _clean(record.user),
        record.state,
    )
    row = counted.get(key)
    if row is None:
        names = ("at_ms", "owner", "node", "name", "user_name", "state")
        row = counted[key] = dict(zip(names, key, strict=True))
        row |= {"span_ms": MINUTE_MS, "tasks": 0, "run_us": 0, "core_us": 0}
    row["tasks"] += record.tasks
    row["run_us"] += record.run_us
    row["core_us"] += record.core_us


def _event(record: Happened) -> dict[str, Any]:
    told = _asdict(record)
    told["facts"] = {_clean(key): _fact(value) for key, value in record.facts.items()}
    return told


def _fact(value: Fact) -> Fact:
    if isinstance(value, str):
        return _clean(value)
    # JSON has no word for these.
    endless = isinstance(value, float) and not math.isfinite(value)
    return str(value) if endless else value


def _sample(record: Sampled) -> dict[str, Any]:
    told = _asdict(record)
    told["throttled"] = float(record.throttled)
    told |= {
        "span_ms": SAMPLE_MS,
        "samples": 1,
        "load_percent_max": record.load_percent,
        "temperature_c_max": record.temperature_c,
    }
    return told


def _node(record: Known) -> dict[str, Any]:
    told = _asdict(record)
    told["status"] = told.pop("state")
    told["last_heartbeat_ms"] = told["joined_ms"] = told.pop("heard_ms")
    del told["gpus"]
    return told


def _gpus(record: Known) -> list[dict[str, Any]]:
    return [
        {
            "node": record.node,
            "gpu": gpu.index,
            "name": _clean(gpu.name),
            "memory_bytes": gpu.memory_bytes,
            "driver": _clean(gpu.driver),
            "problem": _clean(gpu.problem),
            "seen_ms": record.heard_ms,
        }
        for gpu in record.gpus
    ]


def _setting(record: Setting) -> dict[str, Any]:
    told = _asdict(record)
    told["changed_ms"] = told.pop("at_ms")
    return told


def _asdict(record: Record) -> dict[str, Any]:
    told = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        told[name] = _clean(value) if isinstance(value, str) else value
    return told


def _clean(text: str) -> str:
    """What PostgreSQL takes as text: it knows no zero bytes and no halves of letters."""
    if text.isascii() and "\0" not in text:
        return text[:TEXT_MAX]
    whole = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return whole.encode("utf-8", "replace").decode("utf-8")[:TEXT_MAX]


# --- statements ---------------------------------------------------------------------------------

_TABLES: Final = (
    schema.cluster_nodes,
    schema.gpu_resources,
    schema.system_resources,
    schema.cluster_events,
    schema.load_balancing_metrics,
    schema.cluster_config,
    schema.network_topology,
    schema.tasks,
    schema.lost_attempts,
)
# Of these the newest counts; the column says which that is.
_NEWEST: Final = {
    "cluster_nodes": "last_heartbeat_ms",
    "gpu_resources": "seen_ms",
    "cluster_config": "changed_ms",
    "network_topology": "at_ms",
    "spool_positions": "read_ms",
}
_SUMS: Final = ("tasks", "run_us", "core_us")
_KEPT: Final = ("joined_ms",)


def _statement(insert: Any, table: Table) -> Any:
    """An insert that knows what to do where the row is there already."""
    statement = insert(table).values({column.name: bindparam(column.name) for column in table.c})
    keys = list(table.primary_key.columns)
    if table is schema.load_balancing_metrics:
        sums = {name: table.c[name] + statement.excluded[name] for name in _SUMS}
        return statement.on_conflict_do_update(index_elements=keys, set_=sums)
    newest = _NEWEST.get(table.name)
    if newest is None:
        return statement.on_conflict_do_nothing(index_elements=keys)
    fresh = {
        column.name: statement.excluded[column.name]
        for column in table.c
        if column not in keys and column.name not in _KEPT
    }
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_=fresh,
        where=table.c[newest] <= statement.excluded[newest] + CLOCK_MS,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
