"""The journal: durable tasks, their attempts and outcomes, and the worker's spool, in SQLite.

Edge.  One connection in one thread; commits are strictly in order and grouped; what is reported
as flushed is on disk.  Any flush error is fatal: after one nobody knows what the disk holds.  A
full disk is not: what was promised goes where room was kept back for it.
This file must not know what a task is beyond its rows.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from blackroad.errors import (
    BlackroadError,
    DiskProblem,
    InvariantBroken,
    StateDirectoryProblem,
)
from blackroad.limits import (
    JOURNAL_CHECKPOINT_BYTES,
    JOURNAL_CHECKPOINT_CHANGES,
    JOURNAL_COMMIT_CHANGES,
    JOURNAL_FREE_PAGES,
)
from blackroad.router.effects import (
    AttemptRow,
    EndRow,
    ForgetRow,
    JournalRow,
    SpoolRow,
    TaskRow,
    UnspoolRow,
)
from blackroad.store import integrity, schema, wal
from blackroad.store.ballast import Ballast
from blackroad.store.identity import flush_directory

FILE = "journal.sqlite"
_TABLES_OF_A_TASK = ("task", "attempt", "outcome")


class Left(NamedTuple):
    """What earlier lives left, each kind in its order."""

    tasks: list[TaskRow]
    attempts: list[AttemptRow]
    ends: list[EndRow]
    spool: list[SpoolRow]


class Findings(NamedTuple):
    """What `load` had to say about the file.

    `clean`: the last life ended in order.  `damaged`: rows set aside now; `unreadable`: tables of
    which parts could not be read.  `aside`: files kept to be looked at.
    """

    clean: bool = True
    damaged: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Was everything as it was written?"""
        return not (self.damaged or self.unreadable or self.aside)

    def told(self) -> dict[str, object]:
        """What a person should read in the log; empty where there is nothing to say."""
        if self.sound:
            return {}
        return {
            "rows": len(self.damaged),
            "kinds": sorted(set(self.damaged)),
            "unreadable_parts_of": list(self.unreadable),
            "problems": list(self.problems),
            "kept_aside": list(self.aside),
            "hint": "the disk or the memory of this machine changes data: check both, and restore "
            "tasks that ended `unknown` from where they were submitted; all others go on.  "
            "Damaged rows are in the table `damaged`; files kept aside may be removed",
        }


_Job = tuple[int, tuple[JournalRow, ...]]


class Journal:
    """Durable rows of one node; `wake_fd` becomes readable when something was flushed."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.problem: BlackroadError | None = None
        self.findings = Findings()
        self.counters = dict.fromkeys(("commits", "rows", "checkpoints", "damaged"), 0)
        self._jobs: queue.SimpleQueue[_Job | bool | None] = queue.SimpleQueue()
        self._done: deque[int] = deque()
        self._space: deque[bool] = deque()
        self._thread: threading.Thread | None = None
        self._looking = False
        self._since_changes = self._since_bytes = 0
        self._clean = True
        self._slowest_ms = 0
        # The highest mark of all earlier lives; those of this one count on from there.
        self.base = 0
        self._known = True
        self._mended: wal.Mended | None = None
        self.ballast = Ballast(directory)
        # Opening takes some room, too.
        self._connection = self.ballast.behind(self._open)
        self.wake_fd, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    # --- opening ----------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            mended = wal.mend(self.path.with_name(FILE + "-wal"))
            self._mended = mended or self._mended
            connection = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise self._cannot_open(error) from None
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=2
        )
        # A damaged row may have become a text that is none; that must not stop the reading.
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        try:
            os.chmod(self.path, 0o600)
            schema.prepare(connection)
            found = schema.version(connection)
            if found == 0:
                schema.create(connection)
                # A file flushes its bytes, not its name.
                flush_directory(self.path.parent)
            elif found == 1:
                schema.upgrade(connection)
            elif found != schema.SCHEMA:
                raise StateDirectoryProblem(
                    f"the journal {self.path} was written by another version (schema {found})",
                    hint="run the version that wrote it, or move the file away to start empty",
                )
            self._clean = bool(schema.meta(connection, "clean")) and self._mended is None
            self._known = schema.meta(connection, "schema") is not None
            self.base = schema.meta(connection, "mark") or 0
        except (sqlite3.Error, OSError) as error:
            raise self._cannot_open(error) from None

    def _cannot_open(self, error: Exception) -> StateDirectoryProblem:
        return StateDirectoryProblem(
            f"the journal {self.path} cannot be opened: {error}",
            hint="check the disk and the file's owner; moving it away starts an empty journal",
        )

    # --- reading at start -------------------------------------------------------------------------

    def load(self) -> Left:
        """All that earlier lives left, in the order of acceptance; call before `start`.

        What is damaged is set aside, and told in `findings`.
        Cost    5 us a row.
        Raises  StateDirectoryProblem where not even that can be done.
        """
        try:
            left = self._load()
        except (sqlite3.Error, OSError) as error:
            raise StateDirectoryProblem(
                f"the journal {self.path} is damaged and cannot be repaired: {error}",
                hint="is the disk full or failing?  Give it room, restore the file from a backup, "
                "or move it away to start empty",
            ) from None
        self.ballast.begin()
        if self.ballast.full:
            self._say_space(True)
        return left

    def _load(self) -> Left:
        was_clean = self._clean
        found: list[str] = []
        if not was_clean:
            found = integrity.problems(self._connection)
            # After a flush that failed, memory may show what the disk does not hold: write all of
            # the log once more, to where this flush or its failure is certain.
            self._bring_in()
        contents: integrity.Contents | None = None
        with contextlib.suppress(sqlite3.DatabaseError):
            contents = integrity.read(self._connection)
        aside = [str(self._mended.aside)] if self._mended is not None else []
        broken = contents
        if contents is None or not contents.sound or found or not self._known:
            found = found or integrity.problems(self._connection)
            broken = integrity.read(self._connection, patiently=True)
            aside += self._repair(broken, rebuild=bool(found) or not self._known)
            contents = integrity.read(self._connection)
        tables = (list(rows.values()) for rows in contents.rows.values())
        left = Left(*tables)  # type: ignore[arg-type]
        self.counters["damaged"] = self._connection.execute(
            "SELECT count(*) FROM damaged"
        ).fetchone()[0]
        self.findings = Findings(
            was_clean,
            tuple(f"{one.table}: {one.reason}" for one in broken.damaged) if broken else (),
            tuple(sorted(broken.unreadable)) if broken else (),
            tuple(aside),
            tuple(found),
        )
        return left

    def _repair(self, contents: integrity.Contents, *, rebuild: bool) -> list[str]:
        """Make the file whole again; return the names of what is kept aside."""
        if not rebuild and not contents.unreadable and not contents.misplaced:
            integrity.set_aside(self._connection, contents)
            return []
        integrity.checkpoint(self._connection, "TRUNCATE")
        self._connection.close()
        try:
            aside = integrity.rebuild(self.path, contents, self.base)
        finally:
            self._connection = self._connect()
        schema.prepare(self._connection)
        self._clean = True
        return [str(aside)]

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

    def space(self) -> list[bool]:
        """What changed since the last call: True as the disk became full, False as it has room."""
        told = []
        while self._space:
            told.append(self._space.popleft())
        return told

    def status(self) -> dict[str, object]:
        """Numbers for people: `damaged` counts the rows set aside in all lives."""
        return {**self.counters, "full": self.ballast.full, "clean_start": self.findings.clean}

    def slowest_ms(self) -> int:
        """How long the slowest flush took since the last call."""
        slowest, self._slowest_ms = self._slowest_ms, 0
        return slowest

    def look(self) -> None:
        """Look at the room on the disk, and write nothing; call it every few seconds.

        Cost  one statvfs.
        """
        ballast = self.ballast
        if not ballast.full:
            if ballast.scarce():
                ballast.full = True
                self._say_space(True)
        elif not self._looking and ballast.plenty():
            # Reserving room may take long: that is the writer's business.
            self._looking = True
            self._jobs.put(True)

    def close(self) -> None:
        """Flush what was appended, note that this was an end in order, and stop."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout=10)
        self._connection.close()
        os.close(self.wake_fd)
        os.close(self._wake_write)

    # --- the writer's thread ----------------------------------------------------------------------

    def _write(self) -> None:
        stop = False
        while not stop and self.problem is None:
            jobs, orders = self._next_group()
            stop = None in orders
            try:
                if jobs or (stop and not self._clean):
                    self._commit_somehow(jobs, stop)
                if True in orders:
                    self._make_ballast()
                self._wake()
                self._checkpoint(stop)
            except (sqlite3.Error, OSError) as error:
                self.problem = DiskProblem(
                    f"the journal {self.path} could not be flushed: {error}",
                    hint="free space or replace the disk, then start the daemon again; "
                    "nothing that was not flushed has been promised",
                )
            except Exception as error:
                self.problem = InvariantBroken(f"the journal was given what is no row: {error!r}")
        self._wake()

    def _next_group(self) -> tuple[list[_Job], list[bool | None]]:
        """Wait for work, and take what else is there, up to one group.

        A commit takes as long as the disk flushes; what arrived meanwhile is the next group, so
        no timer is needed to form one.
        """
        jobs: list[_Job] = []
        orders: list[bool | None] = []
        rows = 0
        found = self._jobs.get()
        while True:
            if isinstance(found, tuple):
                jobs.append(found)
                rows += len(found[1])
            else:
                orders.append(found)
            if rows >= JOURNAL_COMMIT_CHANGES or None in orders:
                break
            try:
                found = self._jobs.get_nowait()
            except queue.Empty:
                break
        return jobs, orders

    def _commit_somehow(self, jobs: list[_Job], stop: bool) -> None:
        """Commit; on a full disk once more, into the room that was kept back for this."""
        try:
            self._commit(jobs, stop)
        except sqlite3.Error as error:
            if not self._make_room(error):
                raise
            self._commit(jobs, stop)

    def _make_room(self, error: sqlite3.Error) -> bool:
        """Is the disk full, and was room kept back?  Then it is there now, and the node is told."""
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self.ballast.free():
            return False
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._say_space(True)
        return True

    def _commit(self, jobs: list[_Job], stop: bool) -> None:
        run = self._connection.execute
        began_ns = time.monotonic_ns()
        changes = sum(len(rows) for _, rows in jobs)
        run("BEGIN IMMEDIATE")
        for _, rows in jobs:
            for row in rows:
                self._put(row)
        if stop or self._clean:
            # From its first commit until its last the journal says that it is in use.
            schema.set_meta(self._connection, "clean", int(stop))
        if jobs:
            schema.set_meta(self._connection, "mark", self.base + jobs[-1][0])
        run("COMMIT")
        took_ms = (time.monotonic_ns() - began_ns) // 1_000_000
        self._slowest_ms = max(self._slowest_ms, took_ms)
        self._clean = stop
        self._since_changes += changes
        self.counters["commits"] += 1
        self.counters["rows"] += changes
        self._done.extend(mark for mark, _ in jobs)

    def _put(self, row: JournalRow) -> None:
        run = self._connection.execute
        match row:
            case TaskRow() | AttemptRow() | SpoolRow():
                self._since_bytes += schema.insert(self._connection, row)
            case EndRow():
                self._since_bytes += schema.insert(self._connection, row)
                run("DELETE FROM attempt WHERE id = ?", (row.task,))
            case ForgetRow():
                for table in _TABLES_OF_A_TASK:
                    run(f"DELETE FROM {table} WHERE id = ?", (row.task,))
            case UnspoolRow():
                sql = "DELETE FROM spool WHERE owner = ? AND inc = ? AND serial = ?"
                run(sql, (row.owner, *row.token))

    def _checkpoint(self, stop: bool) -> None:
        """Bring a log that has grown into the file; at the end, in any case.

        Raises  sqlite3.Error where a flush failed.
        """
        if (
            self._since_changes < JOURNAL_CHECKPOINT_CHANGES
            and self._since_bytes < JOURNAL_CHECKPOINT_BYTES
            and not (stop and self._since_changes)
        ):
            return
        self._since_changes = self._since_bytes = 0
        self.counters["checkpoints"] += 1
        self._bring_in()
        if self._shrink():
            self._bring_in()

    def _bring_in(self) -> None:
        """Bring the log into the file, if need be into the room that was kept back."""
        try:
            integrity.checkpoint(self._connection, "PASSIVE")
        except sqlite3.Error as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            if self._make_room(error):
                self._bring_in()
            # Else the log, which holds everything, stays until there is room.

    def _shrink(self) -> bool:
        """Give pages back that hold nothing, some at a time, and always keep a reserve.

        Cost  two flushes, where more than a quarter of the file is free.
        """
        run = self._connection.execute
        free = run("PRAGMA freelist_count").fetchone()[0]
        pages = run("PRAGMA page_count").fetchone()[0]
        if free <= 2 * JOURNAL_FREE_PAGES or free <= pages // 4:
            return False
        count = min(free - JOURNAL_FREE_PAGES, 2 * JOURNAL_FREE_PAGES)
        try:
            # `execute` would take the first step only: one page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({count})")
        except sqlite3.Error as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            # What is free can be used; it need not be given back now.
            return False
        return True

    # --- room -------------------------------------------------------------------------------------

    def _make_ballast(self) -> None:
        self._looking = False
        if self.ballast.full and self.ballast.make():
            self.ballast.full = False
            self._say_space(False)

    def _say_space(self, full: bool) -> None:
        self._space.append(full)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")
