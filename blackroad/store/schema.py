"""The journal's tables, their checksums, and the step from the earlier form of the file.

Edge.  Every row carries a checksum of its content and its table: SQLite notices a page that cannot
be, not a row that changed.  A row's key stands in its content, too, and is compared with it.  This
file must not know when rows are written or what a damaged one means.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from blackroad.router.effects import AttemptRow, EndRow, SpoolRow, TaskRow

SCHEMA: Final = 2
PAGE_BYTES: Final = 4096
AnyRow = TaskRow | AttemptRow | EndRow | SpoolRow
_encode = msgspec.msgpack.encode

_CREATE = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL, sum INTEGER) WITHOUT ROWID;
CREATE TABLE task (serial INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, row BLOB, sum INTEGER);
CREATE TABLE attempt (id BLOB PRIMARY KEY, row BLOB, sum INTEGER) WITHOUT ROWID;
CREATE TABLE outcome (id BLOB PRIMARY KEY, row BLOB, sum INTEGER) WITHOUT ROWID;
CREATE TABLE spool (owner BLOB, inc INTEGER, serial INTEGER, row BLOB, sum INTEGER,
    PRIMARY KEY (owner, inc, serial)) WITHOUT ROWID;
"""
_CREATE_DAMAGED = """
CREATE TABLE damaged (at_ms INTEGER, name TEXT, key BLOB, row BLOB, reason TEXT, sum INTEGER);
"""


class Table(NamedTuple):
    """How one kind of row is kept: `keys` name it, `order` is the order of reading."""

    name: str
    kind: type[Any]
    keys: tuple[str, ...]
    order: tuple[str, ...]
    seed: int

    def sum_of(self, row: bytes) -> int:
        """Checksum of an encoded row; the same bytes in another table have another one.

        Cost  0.5 us for a row of 300 bytes, 0.7 ns for each further byte.
        """
        return crc32(row, self.seed)


def _table(name: str, kind: type[Any], keys: str, order: str) -> Table:
    return Table(name, kind, tuple(keys.split()), tuple(order.split()), crc32(name.encode()))


TASK: Final = _table("task", TaskRow, "id", "serial")
ATTEMPT: Final = _table("attempt", AttemptRow, "id", "id")
OUTCOME: Final = _table("outcome", EndRow, "id", "id")
SPOOL: Final = _table("spool", SpoolRow, "owner inc serial", "owner inc serial")
TABLES: Final = (TASK, ATTEMPT, OUTCOME, SPOOL)
_BY_KIND: Final = {table.kind: table for table in TABLES}
_INSERT: Final = {
    table.kind: f"INSERT OR REPLACE INTO {table.name} ({', '.join(table.keys)}, row, sum) "
    f"VALUES ({', '.join('?' * (len(table.keys) + 2))})"
    for table in TABLES
}


def key_of(row: AnyRow) -> tuple[Any, ...]:
    """The key under which a row is kept."""
    return (row.owner, *row.outcome.token) if isinstance(row, SpoolRow) else (row.task,)


def insert(connection: sqlite3.Connection, row: AnyRow) -> int:
    """Write a row in place of any with the same key; return its size."""
    body = _encode(row)
    values = (*key_of(row), body, _BY_KIND[type(row)].sum_of(body))
    connection.execute(_INSERT[type(row)], values)
    return len(body)


def set_meta(connection: sqlite3.Connection, name: str, value: int) -> None:
    """Write one number about the journal itself."""
    row = (name, value, crc32(f"{name}={value}".encode()))
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)


def meta(connection: sqlite3.Connection, name: str) -> int | None:
    """One number about the journal itself; None where it is not there or damaged."""
    try:
        sql = "SELECT value, sum FROM meta WHERE name = ?"
        found = connection.execute(sql, (name,)).fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return None
    sound = found is not None and found[1] == crc32(f"{name}={found[0]}".encode())
    return int(found[0]) if sound else None


def prepare(connection: sqlite3.Connection) -> None:
    """Settings of every connection; to a new file they also give its form."""
    if not connection.execute("PRAGMA page_count").fetchone()[0]:
        # Before the first table, or it has no effect: freed pages can be given back.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        # SQLite's own checkpoints hide a failed flush; the journal makes them itself.
        "wal_autocheckpoint = 0",
        "journal_size_limit = 8388608",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def create(connection: sqlite3.Connection) -> None:
    """Make the tables of a new file, in one transaction."""
    connection.executescript(f"BEGIN IMMEDIATE; {_CREATE} {_CREATE_DAMAGED}")
    set_meta(connection, "schema", SCHEMA)
    set_meta(connection, "clean", 1)
    connection.execute("COMMIT")


def version(connection: sqlite3.Connection) -> int:
    """Which schema a file has; 0 where it is new."""
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        return 0
    columns = [row[1] for row in connection.execute("PRAGMA table_info(meta)")]
    if "sum" in columns:
        # A number that is damaged proves no other version; this one knows its own form.
        return meta(connection, "schema") or SCHEMA
    found = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    return int(found[0]) if found is not None else -1


def upgrade(connection: sqlite3.Connection) -> None:
    """Turn a file of schema 1 into this one, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for table in TABLES:
        connection.execute(f"ALTER TABLE {table.name} ADD COLUMN sum INTEGER")
        connection.create_function(f"sum_{table.name}", 1, _sum_function(table))
        connection.execute(f"UPDATE {table.name} SET sum = sum_{table.name}(row)")
    connection.execute("ALTER TABLE meta ADD COLUMN sum INTEGER")
    connection.execute(_CREATE_DAMAGED)
    set_meta(connection, "schema", SCHEMA)
    # The earlier schema did not say how its last stop was.
    set_meta(connection, "clean", 0)
    connection.execute("COMMIT")


def _sum_function(table: Table) -> Any:
    return lambda row: table.sum_of(row) if isinstance(row, bytes) else None
