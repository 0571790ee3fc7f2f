"""Records and small helpers that these tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import text

from blackroad.history.database import Database
from blackroad.history.ingest import Ingest
from blackroad.history.records import (
    Counted,
    Finished,
    Gpu,
    Happened,
    Known,
    Record,
    Sampled,
    Tried,
)
from blackroad.history.spool import Spool
from blackroad.ids import short

OWNER, WORKER = b"o" * 16, b"w" * 16
# A whole day, hour and minute.
NOON_MS = 1_795_348_800_000
NODE_TEXT = "abcdefghijklmnopqrstuvwxyz"


def finished(number: int, **changes: Any) -> Finished:
    told: dict[str, Any] = {
        "owner": OWNER,
        "task": number.to_bytes(16, "big"),
        "state": "done",
        "reason": "",
        "name": "fib",
        "user": "ada",
        "priority": 0,
        "durable": False,
        "gang": 1,
        "cpu_units": 20_000,
        "memory_bytes": 1024,
        "gpus": 0,
        "submitted_ms": NOON_MS,
        "ended_ms": NOON_MS + 1_000 + number,
        "run_us": 400_000,
        "node": WORKER,
        "tries": 1,
        "backend": "",
    }
    return Finished(**told | changes)


def counted(tasks: int, **changes: Any) -> Counted:
    told: dict[str, Any] = {
        "owner": OWNER,
        "minute_ms": NOON_MS,
        "node": WORKER,
        "name": "fib",
        "user": "ada",
        "state": "done",
        "tasks": tasks,
        "run_us": tasks * 1_000,
        "core_us": tasks * 2_000,
    }
    return Counted(**told | changes)


def happened(number: int, **changes: Any) -> Happened:
    told: dict[str, Any] = {
        "id": f"{short(OWNER)}-1-{number}",
        "at_ms": NOON_MS + number,
        "node": short(OWNER),
        "host": "attic",
        "name": "node.joined",
        "severity": "info",
        "cause": "",
        "facts": {"node": "shed", "count": number},
    }
    return Happened(**told | changes)


def sampled(at_ms: int, **changes: Any) -> Sampled:
    told: dict[str, Any] = {
        "node": short(WORKER),
        "at_ms": at_ms,
        "slots": 4,
        "running": 2,
        "waiting": 0,
        "owned": 0,
        "done": 7,
        "load_percent": 50,
        "memory_bytes": 1000,
        "free_memory_bytes": 250,
        "temperature_c": 60,
        "throttled": False,
        "receiving_kib_s": 10,
        "sending_kib_s": 20,
        "cpu_percent": 55,
        "memory_percent": 75,
    }
    return Sampled(**told | changes)


def known(node: bytes = WORKER, **changes: Any) -> Known:
    told: dict[str, Any] = {
        "node": short(node),
        "name": "shed",
        "state": "alive",
        "incarnation": 1,
        "heard_ms": NOON_MS,
        "arch": "aarch64",
        "cores": 4,
        "slots": 4,
        "memory_bytes": 1000,
        "python": "3.11.2",
        "os": "Debian",
        "model": "Raspberry Pi 5",
        "version": "0.1.0",
        "address": "tcp://10.0.0.2:7701",
        "gpus": (Gpu(0, "V3D", 4096, "mesa", ""),),
        "labels": {"rack": "3"},
    }
    return Known(**told | changes)


def tried(number: int, **changes: Any) -> Tried:
    told: dict[str, Any] = {
        "owner": OWNER,
        "task": number.to_bytes(16, "big"),
        "number": 1,
        "node": WORKER,
        "granted_ms": NOON_MS,
        "ended_ms": NOON_MS + 500,
        "run_us": 500_000,
        "status": "crashed: SIGKILL",
    }
    return Tried(**told | changes)


def spool(directory: Path, life: int = 1, bytes_max: int = 64 * 1024 * 1024) -> Spool:
    return Spool(directory, NODE_TEXT, life, bytes_max)


def write(made: Spool, *records: Record) -> None:
    for one in records:
        made.add(one)
    made.flush()


def store(database: Database, directory: Path, *records: Record) -> Ingest:
    """All the way: spooled, and taken in."""
    made = spool(directory)
    write(made, *records)
    made.close()
    taken = Ingest(database, directory)
    taken.run()
    return taken


def rows(database: Database, statement: str, **values: Any) -> list[dict[str, Any]]:
    with database.begin() as connection:
        found = connection.execute(text(statement), values).mappings()
        return [dict(row) for row in found]


def one(database: Database, statement: str, **values: Any) -> Any:
    return next(iter(rows(database, statement, **values)[0].values()))
