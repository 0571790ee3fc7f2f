"""The journal: durable tasks, their attempts and outcomes, and the worker's spool, in SQLite.

Edge.  One connection in one thread; commits are strictly in order and grouped; what is reported
as flushed is on disk.  Any flush error is fatal: after one nobody knows what the disk holds.
This file must not know what a task is beyond its rows.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections import deque
from pathlib import Path
from typing import TypeVar

import msgspec

from blackroad.errors import (
    BlackroadError,
    DiskProblem,
    InvariantBroken,
    StateDirectoryProblem,
)
from blackroad.limits import JOURNAL_COMMIT_CHANGES
from blackroad.router.effects import (
    AttemptRow,
    EndRow,
    ForgetRow,
    JournalRow,
    SpoolRow,
    TaskRow,
    UnspoolRow,
)

FILE = "journal.sqlite"
SCHEMA = 1
_encode = msgspec.msgpack.encode
_R = TypeVar("_R", TaskRow, AttemptRow, EndRow, SpoolRow)

_SCHEMA_SQL = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS task (serial INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, row BLOB);
CREATE TABLE IF NOT EXISTS attempt (id BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (id BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spool (owner BLOB, inc INTEGER, serial INTEGER, row BLOB,
    PRIMARY KEY (owner, inc, serial)) WITHOUT ROWID;
"""


class Journal:
    """Durable rows of one node; `wake_fd` becomes readable when something was flushed."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.problem: BlackroadError | None = None
        self._jobs: queue.SimpleQueue[tuple[int, tuple[JournalRow, ...]] | None]
        self._jobs = queue.SimpleQueue()
        self._done: deque[int] = deque()
        self._thread: threading.Thread | None = None
        self._connection = self._open()
        self.wake_fd, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=2
            )
        except (sqlite3.Error, OSError) as error:
            raise self._cannot_open(error) from None
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        try:
            os.chmod(self.path, 0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(_SCHEMA_SQL)
            found = connection.execute("SELECT value FROM meta WHERE name='schema'").fetchone()
            if found is None:
                connection.execute("INSERT INTO meta VALUES ('schema', ?)", (SCHEMA,))
            elif found[0] != SCHEMA:
                raise StateDirectoryProblem(
                    f"the journal {self.path} was written by another version (schema {found[0]})",
                    hint="run the version that wrote it, or move the file away to start empty",
                )
        except (sqlite3.Error, OSError) as error:
            raise self._cannot_open(error) from None

    def _cannot_open(self, error: Exception) -> StateDirectoryProblem:
        return StateDirectoryProblem(
            f"the journal {self.path} cannot be opened: {error}",
            hint="check the disk and the file's owner; moving it away starts an empty journal",
        )

    # --- reading at start -------------------------------------------------------------------------

    def load(self) -> tuple[list[TaskRow], list[AttemptRow], list[EndRow], list[SpoolRow]]:
        """All that earlier lives left, in the order of acceptance; call before `start`.

        Raises  StateDirectoryProblem naming the table with a row that cannot be read.
        """
        return (
            self._rows("task", "serial", TaskRow),
            self._rows("attempt", "id", AttemptRow),
            self._rows("outcome", "id", EndRow),
            self._rows("spool", "owner, inc, serial", SpoolRow),
        )

    def _rows(self, table: str, order: str, kind: type[_R]) -> list[_R]:
        decoder = msgspec.msgpack.Decoder(kind)
        sql = f"SELECT row FROM {table} ORDER BY {order}"
        try:
            return [decoder.decode(row) for (row,) in self._connection.execute(sql)]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise StateDirectoryProblem(
                f"the journal {self.path} holds a row of `{table}` that cannot be read: {error}",
                hint="restore it from a backup, or move it away to start empty",
            ) from None

    # --- writing ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the one writer."""
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def append(self, mark: int, rows: tuple[JournalRow, ...]) -> None:
        """Flush these rows after all earlier ones; `mark` is reported by `flushed` then."""
        self._jobs.put((mark, rows))

    def flushed(self) -> list[int]:
        """Marks that are on disk since the last call, in order.

        Raises  DiskProblem once a commit failed: nothing after that was promised to anybody;
                InvariantBroken where a row was none.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
        marks = []
        while self._done:
            marks.append(self._done.popleft())
        if self.problem is not None:
            raise self.problem
        return marks

    def close(self) -> None:
        """Flush what was appended and stop."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout=10)
        self._connection.close()
        os.close(self.wake_fd)
        os.close(self._wake_write)

    # --- the writer's thread ----------------------------------------------------------------------

    def _write(self) -> None:
        stop = False
        while not stop:
            jobs = [self._jobs.get()]
            # A commit takes as long as the disk flushes; what arrived meanwhile is the next
            # group, so no timer is needed to form one.
            while len(jobs) < JOURNAL_COMMIT_CHANGES:
                try:
                    jobs.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            stop = None in jobs
            try:
                self._commit([job for job in jobs if job is not None])
            except (sqlite3.Error, OSError) as error:
                self.problem = DiskProblem(
                    f"the journal {self.path} could not be flushed: {error}",
                    hint="free space or replace the disk, then start the daemon again; "
                    "nothing that was not flushed has been promised",
                )
                self._wake()
                return
            except Exception as error:
                self.problem = InvariantBroken(f"the journal was given what is no row: {error!r}")
                self._wake()
                return
            self._wake()

    def _commit(self, jobs: list[tuple[int, tuple[JournalRow, ...]]]) -> None:
        if not jobs:
            return
        self._connection.execute("BEGIN IMMEDIATE")
        for _, rows in jobs:
            for row in rows:
                self._put(row)
        self._connection.execute("COMMIT")
        self._done.extend(mark for mark, _ in jobs)

    def _put(self, row: JournalRow) -> None:
        run = self._connection.execute
        match row:
            case TaskRow():
                sql = "INSERT OR REPLACE INTO task (id, row) VALUES (?, ?)"
                run(sql, (row.task, _encode(row)))
            case AttemptRow():
                run("INSERT OR REPLACE INTO attempt VALUES (?, ?)", (row.task, _encode(row)))
            case EndRow():
                run("INSERT OR REPLACE INTO outcome VALUES (?, ?)", (row.task, _encode(row)))
                run("DELETE FROM attempt WHERE id = ?", (row.task,))
            case ForgetRow():
                for table in ("task", "attempt", "outcome"):
                    run(f"DELETE FROM {table} WHERE id = ?", (row.task,))
            case SpoolRow():
                sql = "INSERT OR REPLACE INTO spool VALUES (?, ?, ?, ?)"
                run(sql, (row.owner, *row.outcome.token, _encode(row)))
            case UnspoolRow():
                sql = "DELETE FROM spool WHERE owner = ? AND inc = ? AND serial = ?"
                run(sql, (row.owner, *row.token))

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")
