"""The journal on a real disk: what it said is flushed is there, whatever happens next."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.errors import EXIT_ENVIRONMENT, InvariantBroken, StateDirectoryProblem
from blackroad.ids import Token
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
from blackroad.store import schema
from blackroad.store.journal import FILE, Journal

pytestmark = pytest.mark.edge

WAIT_S = 30.0
OWNER = b"o" * 16
NODE = b"n" * 16
SPEC = m.ClassSpec(b"\x90", name="spin")


def task_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def task_row(number: int, work: m.Payload = b"work") -> TaskRow:
    code = m.Ref(b"c" * 32, 100)
    return TaskRow(task_id(number), SPEC, code, work, False, 0)


def attempt_row(number: int, serial: int = 1) -> AttemptRow:
    members = ((NODE, 5 << 32),)
    return AttemptRow(task_id(number), Token(7, serial), members, False, True, 1, 0, 0, 0)


def end_row(number: int, result: m.Payload = b"result") -> EndRow:
    return EndRow(task_id(number), m.End.DONE, "", result, m.Facts(5), NODE, 1)


def spool_row(serial: int) -> SpoolRow:
    outcome = m.Outcome(Token(7, serial), task_id(serial), 9, m.Status.DONE, b"result", m.Facts(12))
    return SpoolRow(OWNER, outcome)


def flushed(journal: Journal, upto: int) -> list[int]:
    """Wait until mark `upto` is reported; return all marks in the order they came in."""
    marks: list[int] = []
    deadline = time.monotonic() + WAIT_S
    while upto not in marks:
        assert time.monotonic() < deadline, "the mark was never reported"
        select.select([journal.wake_fd], [], [], 0.5)
        marks += journal.flushed()
    return marks


def reopened(directory: Path) -> tuple[list[Any], ...]:
    journal = Journal(directory)
    try:
        return journal.load()
    finally:
        journal.close()


def write(directory: Path, *groups: tuple[JournalRow, ...]) -> None:
    """One life that writes these groups and ends in order."""
    journal = Journal(directory)
    journal.start()
    for mark, rows in enumerate(groups, start=1):
        journal.append(mark, rows)
    flushed(journal, len(groups))
    journal.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    one = Journal(tmp_path)
    one.start()
    yield one
    one.close()


# --- what comes back ----------------------------------------------------------------------------


def test_an_empty_journal_is_empty(tmp_path: Path) -> None:
    assert reopened(tmp_path) == ([], [], [], [])
    assert reopened(tmp_path) == ([], [], [], [])


def test_every_kind_of_row_comes_back_as_it_was(tmp_path: Path) -> None:
    large = m.Ref(b"d" * 32, 10_000_000)
    rows = (task_row(1), task_row(2, large), attempt_row(1), spool_row(4))
    write(tmp_path, rows, (end_row(2, large),))
    assert reopened(tmp_path) == (
        [task_row(1), task_row(2, large)],
        [attempt_row(1)],
        [end_row(2, large)],
        [spool_row(4)],
    )


def test_tasks_come_back_in_the_order_of_acceptance(tmp_path: Path) -> None:
    numbers = list(range(50))
    random.Random(4).shuffle(numbers)
    write(tmp_path, *((task_row(number),) for number in numbers))
    assert [row.task for row in reopened(tmp_path)[0]] == [task_id(n) for n in numbers]


def test_the_newest_attempt_of_a_task_counts(tmp_path: Path) -> None:
    write(tmp_path, (task_row(1), attempt_row(1, 1)), (attempt_row(1, 2),), (attempt_row(1, 3),))
    assert reopened(tmp_path)[1] == [attempt_row(1, 3)]


def test_an_end_takes_the_attempt_away_and_keeps_the_task(tmp_path: Path) -> None:
    write(tmp_path, (task_row(1), attempt_row(1)), (end_row(1),))
    assert reopened(tmp_path) == ([task_row(1)], [], [end_row(1)], [])


def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    write(tmp_path, (task_row(1), task_row(2), attempt_row(2)), (end_row(1), ForgetRow(task_id(1))))
    assert reopened(tmp_path) == ([task_row(2)], [attempt_row(2)], [], [])


def test_an_acknowledged_outcome_is_owed_no_more(tmp_path: Path) -> None:
    rows = (spool_row(1), spool_row(2), spool_row(3))
    write(tmp_path, rows, (UnspoolRow(OWNER, Token(7, 2)), UnspoolRow(NODE, Token(7, 1))))
    assert reopened(tmp_path)[3] == [spool_row(1), spool_row(3)]


def test_the_file_is_the_owners_alone(journal: Journal) -> None:
    assert journal.path.stat().st_mode & 0o777 == 0o600


# --- marks --------------------------------------------------------------------------------------


def test_a_mark_is_told_only_when_others_can_read_the_row(journal: Journal) -> None:
    other = sqlite3.connect(journal.path)
    for mark in range(1, 40):
        journal.append(mark, (task_row(mark),))
        flushed(journal, mark)
        found = other.execute("SELECT count(*) FROM task WHERE id = ?", (task_id(mark),))
        assert found.fetchone() == (1,)
    other.close()


def test_marks_come_in_order_and_each_once(journal: Journal) -> None:
    count = 3 * JOURNAL_COMMIT_CHANGES
    for mark in range(1, count + 1):
        journal.append(mark, (task_row(mark),))
    assert flushed(journal, count) == list(range(1, count + 1))
    assert journal.flushed() == []


def test_what_waits_is_committed_together(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    commits: list[str] = []
    journal._connection.set_trace_callback(
        lambda sql: commits.append(sql) if sql == "COMMIT" else None
    )
    count = 2 * JOURNAL_COMMIT_CHANGES
    for mark in range(1, count + 1):
        journal.append(mark, (task_row(mark),))
    journal.start()
    flushed(journal, count)
    journal.close()
    assert len(commits) == 3, "two groups, and the note that the end was in order"


def test_closing_flushes_what_was_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start()
    for mark in range(1, 30):
        journal.append(mark, (task_row(mark),))
    journal.close()
    assert len(reopened(tmp_path)[0]) == 29


def test_the_loop_is_woken(journal: Journal) -> None:
    assert select.select([journal.wake_fd], [], [], 0)[0] == []
    journal.append(1, (task_row(1),))
    assert select.select([journal.wake_fd], [], [], WAIT_S)[0] == [journal.wake_fd]


# --- kill -9 ------------------------------------------------------------------------------------

WRITER = """
import os, select, sys
from pathlib import Path
from blackroad.store.journal import Journal
from tests.edge.test_journal import attempt_row, end_row, spool_row, task_row
journal = Journal(Path(sys.argv[1]))
start = int(sys.argv[2])
journal.start()
number = start
while True:
    for _ in range(20):
        number += 1
        rows = (task_row(number), attempt_row(number), spool_row(number))
        journal.append(number, rows if number % 3 else (*rows, end_row(number)))
    select.select([journal.wake_fd], [], [])
    for mark in journal.flushed():
        os.write(1, b"%d\\n" % mark)
"""


def killed_writer(directory: Path, start: int, after_marks: int) -> int:
    """Run a writer, kill it when it has reported so many marks, return the last it told."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(start)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        told = b""
        deadline = time.monotonic() + WAIT_S
        while told.count(b"\n") < after_marks:
            assert time.monotonic() < deadline
            told += os.read(writer.stdout.fileno(), 65_536)
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.read()
        writer.wait()
    marks = [int(line) for line in told.split(b"\n")[:-1]]
    assert marks == list(range(start + 1, start + 1 + len(marks)))
    return marks[-1]


def test_every_mark_that_was_told_survives_kill_9(tmp_path: Path) -> None:
    chance = random.Random(20_260_101)
    last = 0
    for _ in range(4):
        last = killed_writer(tmp_path, last, chance.randint(1, 400))
        tasks, attempts, ends, spool = reopened(tmp_path)
        kept = {int.from_bytes(row.task, "big") for row in tasks}
        assert set(range(1, last + 1)) <= kept
        ended = {int.from_bytes(row.task, "big") for row in ends}
        assert {n for n in kept if n % 3 == 0} == ended, "a group is there whole or not at all"
        assert {int.from_bytes(row.task, "big") for row in attempts} == kept - ended
        assert {row.outcome.token.serial for row in spool} == kept
        # What was committed but not told yet may be there too; the next life goes on above it.
        last = max(kept)


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [b"this is no database", b"SQLite format 3\x00" + b"\xff" * 5_000]
)
def test_a_damaged_file_is_said_so_and_kept(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / FILE
    path.write_bytes(damage)
    with pytest.raises(StateDirectoryProblem) as caught:
        Journal(tmp_path)
    assert str(path) in caught.value.message
    assert "moving it away" in caught.value.hint
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    assert path.read_bytes()[:15] == damage[:15]


def test_another_versions_journal_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, (task_row(1),))
    with sqlite3.connect(tmp_path / FILE) as other:
        schema.set_meta(other, "schema", 99)
    with pytest.raises(StateDirectoryProblem) as caught:
        Journal(tmp_path)
    assert "schema 99" in caught.value.message
    assert "run the version that wrote it" in caught.value.hint


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("CREATE TABLE meta (something TEXT)")
        other.execute("CREATE TABLE task (todo TEXT)")
    with pytest.raises(StateDirectoryProblem):
        reopened(tmp_path)


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(StateDirectoryProblem):
        Journal(tmp_path)


def test_opening_in_vain_leaks_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(StateDirectoryProblem):
            Journal(tmp_path)
    assert len(os.listdir("/proc/self/fd")) <= before + 5


# --- full disk ----------------------------------------------------------------------------------

LIMITED = """
import resource, select, signal, sys
from pathlib import Path
from blackroad.errors import DiskProblem
from blackroad.store.journal import Journal
from tests.edge.test_journal import task_row
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
journal.start()
size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
number = told = 0
try:
    while number < 10_000:
        number += 1
        journal.append(number, (task_row(number, bytes(4_000)),))
        select.select([journal.wake_fd], [], [], 30)
        for mark in journal.flushed():
            told = mark
            print(mark, flush=True)
except DiskProblem as problem:
    again = ""
    try:
        journal.append(number + 1, (task_row(number + 1),))
        journal.flushed()
    except DiskProblem as second:
        again = "and again"
    print("problem:", problem.message, again, "| hint:", problem.hint, flush=True)
    journal.close()
"""


def test_a_full_disk_is_a_problem_and_breaks_no_promise(tmp_path: Path) -> None:
    limit_bytes = 500_000
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(limit_bytes)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *told, problem = done.stdout.splitlines()
    assert problem.startswith("problem: the journal")
    assert "and again" in problem, "after a failed flush nothing is promised any more"
    assert "free space" in problem
    kept = {int.from_bytes(row.task, "big") for row in reopened(tmp_path)[0]}
    assert {int(mark) for mark in told} <= kept
    assert len(told) > 10


def test_a_row_that_cannot_be_written_stops_the_journal(journal: Journal) -> None:
    journal.append(1, (task_row(1, object()),))  # type: ignore[arg-type]
    journal.append(2, (task_row(2),))
    with pytest.raises(InvariantBroken):
        flushed(journal, 2)


def test_the_limit_of_this_process_is_untouched() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
