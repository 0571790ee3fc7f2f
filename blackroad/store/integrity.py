"""Is the journal what was written?  Checks, and the repair of what is not.

Edge.  A damaged row goes into the table `damaged`, a damaged file is kept aside and all that can
be read of it goes into a new one; everything else goes on.  What a lost row means for its task is
decided in `verdicts.py`.  This file must not know when it is called.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import msgspec

from blackroad.ids import TASK_BYTES
from blackroad.limits import DAMAGED_ROWS_MAX, SALVAGE_GAPS_MAX
from blackroad.router.effects import AttemptRow, EndRow, TaskRow
from blackroad.store import schema
from blackroad.store.identity import flush_directory
from blackroad.store.schema import ATTEMPT, OUTCOME, SPOOL, TABLES, TASK, AnyRow, Table
from blackroad.store.verdicts import Damage, Kept, stand_ins

_PROBLEMS_MAX: Final = 20
_KEY_BITS: Final = {"task": (63,), "attempt": (128,), "outcome": (128,), "spool": (128, 63, 63)}


class Contents:
    """All that could be read of a journal, each table in its order."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[tuple[Any, ...], AnyRow]] = {one.name: {} for one in TABLES}
        self.damaged: list[Damage] = []
        self.unreadable: set[str] = set()
        self.named: set[bytes] = set()
        self.misplaced = False

    @property
    def sound(self) -> bool:
        """Is every row what was written?"""
        return not self.damaged and not self.unreadable and not self.misplaced

    def add(self, table: Table, keys: tuple[Any, ...], row: Any, found: Any) -> None:
        """Take a row that was read, if its checksum is right."""
        reason = "no bytes"
        if isinstance(row, bytes):
            reason = "wrong checksum"
            if table.sum_of(row) == found:
                try:
                    decoded = _DECODERS[table.name].decode(row)
                except msgspec.MsgspecError as error:
                    reason = f"right checksum, but {error}"
                else:
                    right = schema.key_of(decoded)
                    if right != keys:
                        self.misplaced = True
                    self.rows[table.name][right] = decoded
                    return
        body = row if isinstance(row, bytes) else repr(row).encode()
        self.damaged.append(Damage(table.name, _key_bytes(keys), body, reason))


_DECODERS: Final = {table.name: msgspec.msgpack.Decoder(table.kind) for table in TABLES}


def _key_bytes(keys: tuple[Any, ...]) -> bytes:
    if len(keys) == 1 and isinstance(keys[0], bytes):
        return keys[0]
    return msgspec.msgpack.encode([key if isinstance(key, (bytes, int)) else None for key in keys])


def problems(connection: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with its own file; nothing where it is whole.

    Cost  1.5 us a row.
    """
    try:
        told = connection.execute(f"PRAGMA integrity_check({_PROBLEMS_MAX})").fetchall()
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [text for (text,) in told if text != "ok"]


def read(connection: sqlite3.Connection, *, patiently: bool = False) -> Contents:
    """Read everything; with `patiently` also around pages that cannot be read.

    Cost    4 us a row.
    Raises  sqlite3.DatabaseError where a page cannot be read, unless `patiently`.
    """
    contents = Contents()
    for table in TABLES:
        columns = ", ".join((*table.order, *table.keys, "row", "sum"))
        sql = f"SELECT {columns} FROM {table.name}"
        order = ", ".join(table.order)
        rows: Any
        if patiently:
            rows = _salvage(connection, table, sql, contents)
        else:
            rows = connection.execute(f"{sql} ORDER BY {order}")
        skip = len(table.order)
        for found in rows:
            contents.add(table, found[skip:-2], found[-2], found[-1])
    if patiently:
        contents.named = _named(connection)
    return contents


# --- around damaged pages -------------------------------------------------------------------------


def _salvage(
    connection: sqlite3.Connection, table: Table, sql: str, contents: Contents
) -> list[tuple[Any, ...]]:
    """All rows that can be reached, in order: from both sides up to what cannot be read.

    Where that leaves a gap, each half of it is tried alone, the large gaps first.
    Cost  at most some thousand attempts, however much cannot be read.
    """
    names = ", ".join(table.order)
    with contextlib.suppress(sqlite3.DatabaseError):
        return connection.execute(f"{sql} ORDER BY {names}").fetchall()
    contents.unreadable.add(table.name)
    bits = _KEY_BITS[table.name]
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    gaps = deque([(0, (1 << sum(bits)) - 1)])
    for _ in range(SALVAGE_GAPS_MAX):
        if not gaps:
            break
        gap = _read_gap(connection, table, sql, gaps.popleft(), found)
        if gap is not None:
            low, high = gap
            middle = (low + high) // 2
            gaps += [one for one in ((low, middle), (middle + 1, high)) if one != gap]
    # Damaged keys may be of any kind and then have no order; those of tasks are always numbers.
    return [found[key] for key in sorted(found)] if table is TASK else list(found.values())


def _read_gap(
    connection: sqlite3.Connection,
    table: Table,
    sql: str,
    gap: tuple[int, int],
    found: dict[tuple[Any, ...], tuple[Any, ...]],
) -> tuple[int, int] | None:
    """Read rows between two keys, upwards and downwards; return what gap that leaves."""
    bits = _KEY_BITS[table.name]
    low, high = gap
    names = ", ".join(table.order)
    marks = ", ".join("?" * len(table.order))
    between = f"{sql} WHERE ({names}) >= ({marks}) AND ({names}) <= ({marks}) ORDER BY "
    for direction, step in (("ASC", 1), ("DESC", -1)):
        order = ", ".join(f"{name} {direction}" for name in table.order)
        try:
            for row in connection.execute(between + order, (*_key(low, bits), *_key(high, bits))):
                key = row[: len(table.order)]
                found[key] = row
                reached = _number(key, bits)
                if reached is not None and step > 0:
                    low = max(low, reached + 1)
                elif reached is not None:
                    high = min(high, reached - 1)
        except sqlite3.DatabaseError:
            continue
        return None
    return (low, high) if low <= high else None


def _key(number: int, bits: tuple[int, ...]) -> list[Any]:
    """A number as the key columns of a table: ids count as large numbers."""
    parts: list[Any] = []
    for width in reversed(bits):
        part = number & ((1 << width) - 1)
        parts.append(part if width < 128 else part.to_bytes(TASK_BYTES, "big"))
        number >>= width
    return parts[::-1]


def _number(key: tuple[Any, ...], bits: tuple[int, ...]) -> int | None:
    """The other way round; None for a key that no row was given."""
    number = 0
    for part, width in zip(key, bits, strict=True):
        if isinstance(part, bytes):
            part = int.from_bytes(part, "big")
        if not isinstance(part, int) or not 0 <= part < 1 << width:
            return None
        number = number << width | part
    return number


def _named(connection: sqlite3.Connection) -> set[bytes]:
    """Tasks whose ids stand in the index, whatever became of their rows."""
    found = set()
    sql = "SELECT id FROM task INDEXED BY sqlite_autoindex_task_1"
    with contextlib.suppress(sqlite3.DatabaseError):
        for (id_,) in connection.execute(sql):
            if isinstance(id_, bytes) and len(id_) == TASK_BYTES:
                found.add(id_)
    return found


# --- repair ---------------------------------------------------------------------------------------


def stands_for(contents: Contents) -> list[TaskRow | AttemptRow | EndRow]:
    """Rows in place of the lost ones."""
    kept = Kept(
        {key[0]: row for key, row in contents.rows[TASK.name].items()},  # type: ignore[misc]
        {key[0]: row for key, row in contents.rows[ATTEMPT.name].items()},  # type: ignore[misc]
        {key[0]: row for key, row in contents.rows[OUTCOME.name].items()},  # type: ignore[misc]
        frozenset(contents.named),
    )
    return stand_ins(kept, contents.damaged, frozenset(contents.unreadable))


def set_aside(connection: sqlite3.Connection, contents: Contents) -> None:
    """Move damaged rows of a file that is whole into `damaged`, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for one in contents.damaged:
        table = next(table for table in TABLES if table.name == one.table)
        keys = msgspec.msgpack.decode(one.key) if table is SPOOL else [one.key]
        where = " AND ".join(f"{key} = ?" for key in table.keys)
        connection.execute(f"DELETE FROM {table.name} WHERE {where}", keys)
    _write(connection, contents)
    connection.execute("COMMIT")


def _write(connection: sqlite3.Connection, contents: Contents) -> None:
    now_ms = time.time_ns() // 1_000_000
    for one in contents.damaged:
        total = TASK.sum_of(one.row)
        values = (now_ms, one.table, one.key, one.row, one.reason, total)
        connection.execute("INSERT INTO damaged VALUES (?, ?, ?, ?, ?, ?)", values)
    limit = "(SELECT max(rowid) FROM damaged)"
    connection.execute(f"DELETE FROM damaged WHERE rowid <= {limit} - {DAMAGED_ROWS_MAX}")
    for row in stands_for(contents):
        schema.insert(connection, row)


def rebuild(path: Path, contents: Contents, mark: int) -> Path:
    """Write what was read into a new file and put it in place of the old one; return where that is.

    The old file must be closed, and its log be empty; `mark` is its high-water mark.
    Raises  sqlite3.Error, OSError; the old file is in its place then.
    """
    fresh = path.with_name(path.name + ".new")
    for suffix in ("", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        os.chmod(fresh, 0o600)
        schema.prepare(connection)
        schema.create(connection)
        connection.execute("BEGIN IMMEDIATE")
        schema.set_meta(connection, "mark", mark)
        for rows in contents.rows.values():
            for row in rows.values():
                schema.insert(connection, row)
        _write(connection, contents)
        connection.execute("COMMIT")
        checkpoint(connection, "TRUNCATE")
    except BaseException:
        connection.close()
        fresh.unlink(missing_ok=True)
        raise
    connection.close()
    aside = _free_name(path)
    os.link(path, aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(fresh, path)
    flush_directory(path.parent)
    return aside


def checkpoint(connection: sqlite3.Connection, how: str) -> int:
    """Bring the log into the file; return how many pages the log had.

    Raises  sqlite3.Error where a flush failed, or where TRUNCATE could not have the log alone.
    """
    busy, pages, _ = connection.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
    if busy and how == "TRUNCATE":
        raise sqlite3.OperationalError("another program has the journal open")
    return int(pages)


def _free_name(path: Path) -> Path:
    number = 1
    while (found := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return found
