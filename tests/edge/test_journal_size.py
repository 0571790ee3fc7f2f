"""How large the journal becomes, and that an idle node writes nothing."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from blackroad.client import Client
from blackroad.limits import (
    JOURNAL_CHECKPOINT_CHANGES,
    JOURNAL_COMMIT_CHANGES,
    JOURNAL_FREE_PAGES,
)
from blackroad.router.effects import ForgetRow
from blackroad.store import schema
from blackroad.store.journal import FILE, Journal
from tests.edge.meshes import Mesh, until
from tests.edge.test_journal import attempt_row, end_row, flushed, task_id, task_row

pytestmark = pytest.mark.edge

WAIT_S = 60.0
MIB = 2**20


def opened(path: Path) -> Journal:
    journal = Journal(path)
    journal.load()
    journal.start()
    return journal


def size_of(path: Path) -> int:
    return path.stat().st_size


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_ends_at_so_many_changes_however_they_came(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.load()
    per_mark = 100
    for mark in range(10):
        rows = tuple(task_row(1_000 * mark + number) for number in range(per_mark))
        journal.append(mark + 1, rows)
    journal.start()
    flushed(journal, 10)
    # Three marks go over the bound, and none is divided.
    assert JOURNAL_COMMIT_CHANGES == 256
    assert journal.counters["commits"] == 4
    assert journal.counters["rows"] == 1_000
    journal.close()


def test_one_change_does_not_wait_for_others(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for mark in range(1, 6):
        journal.append(mark, (task_row(mark),))
        flushed(journal, mark)
    assert journal.counters["commits"] == 5
    journal.close()


# --- the log --------------------------------------------------------------------------------------


def test_the_log_is_bounded(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    largest = 0
    for mark in range(1, 101):
        numbers = range(100 * mark, 100 * mark + 100)
        journal.append(mark, tuple(map(task_row, numbers)))
        flushed(journal, mark)
        largest = max(largest, size_of(tmp_path / (FILE + "-wal")))
    assert journal.counters["checkpoints"] == 10_000 // JOURNAL_CHECKPOINT_CHANGES
    assert largest < 8 * MIB
    journal.close()
    assert not (tmp_path / (FILE + "-wal")).exists()


def test_large_rows_bring_the_log_in_sooner(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for mark in range(1, 401):
        journal.append(mark, (task_row(mark, bytes(60_000)),))
        flushed(journal, mark)
    assert size_of(tmp_path / (FILE + "-wal")) < 12 * MIB
    assert journal.counters["checkpoints"] >= 4
    journal.close()


def test_a_reader_from_outside_does_not_stop_the_journal(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(1, (task_row(1),))
    flushed(journal, 1)
    reader = sqlite3.connect(tmp_path / FILE)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM task").fetchone()
    for mark in range(2, 60):
        numbers = range(100 * mark, 100 * mark + 100)
        journal.append(mark, tuple(map(task_row, numbers)))
        flushed(journal, mark)
    reader.close()
    journal.close()
    assert len(Journal(tmp_path).load().tasks) == 5_801


# --- the file -------------------------------------------------------------------------------------


def come_and_go(journal: Journal, count: int) -> None:
    """So many tasks are accepted, granted, ended and forgotten."""
    mark = journal.counters["rows"]
    for rows in (task_row, attempt_row, end_row, lambda number: ForgetRow(task_id(number))):
        for first in range(0, count, 250):
            mark += 1
            journal.append(mark, tuple(rows(number) for number in range(first, first + 250)))
        flushed(journal, mark)


@pytest.mark.parametrize(
    "count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_the_file_gives_back_what_it_does_not_need(tmp_path: Path, count: int) -> None:
    journal = opened(tmp_path)
    come_and_go(journal, count)
    largest = size_of(tmp_path / FILE)
    journal.close()
    kept = (2 * JOURNAL_FREE_PAGES + 64) * schema.PAGE_BYTES
    journal = opened(tmp_path)
    # What is left over goes bit by bit, with the work that comes.
    for mark in range(1, 3 + largest // MIB):
        numbers = range(mark, mark + JOURNAL_CHECKPOINT_CHANGES)
        journal.append(mark, tuple(ForgetRow(task_id(number)) for number in numbers))
        flushed(journal, mark)
    journal.close()
    assert size_of(tmp_path / FILE) <= kept
    assert Journal(tmp_path).load().tasks == []


# --- an idle node ---------------------------------------------------------------------------------


def test_a_journal_with_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(1, (task_row(1),))
    flushed(journal, 1)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(tmp_path)}
    for _ in range(100):
        journal.look()
        assert journal.flushed() == []
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(tmp_path)}
    assert after == before
    journal.close()


def files(path: Path) -> list[Path]:
    return [one for one in sorted(path.rglob("*")) if one.is_file() and one.suffix != ".sqlite-shm"]


def asked(client: Client, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = client._ask(name, {})
    return answer


def written(mesh: Mesh) -> dict[int, int]:
    """Bytes that each process of the mesh has caused to be written to disks."""
    found = {}
    for pid in mesh.processes():
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        found[pid] = int(dict(line.split(": ") for line in lines)["write_bytes"])
    return found


def changed(mesh: Mesh) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in mesh.base.rglob("*")
        if path.is_file()
    }


@pytest.mark.skipif(not os.access("/proc/self/io", os.R_OK), reason="no /proc/PID/io here")
def test_an_idle_daemon_writes_nothing(mesh: Mesh) -> None:
    # A history is asked for on real storage only, and writes a sample now and then.
    daemon = mesh.add("one", BLACKROAD_HISTORY_URL="off")
    client = mesh.client(daemon)
    for future in [client.submit(len, b"x", durable=True) for _ in range(50)]:
        assert future.result(WAIT_S) == 1
    until(lambda: daemon.events("probe.ended"), "the end of the probe")
    # Acknowledgements and what they strike out come a moment after the results.
    last = [0, 0]

    def quiet() -> bool:
        now = [asked(client, "driver")["journal"]["commits"], asked(client, "node")["uptime_ms"]]
        if now[0] != last[0]:
            last[:] = now
        return now[1] > last[1] + 1_000

    until(quiet, "the last commit")
    began = asked(client, "node")["uptime_ms"]
    before, bytes_before = changed(mesh), written(mesh)
    commits = asked(client, "driver")["journal"]["commits"]
    # Long enough for each thing that is done now and then to have been done.
    until(lambda: asked(client, "node")["uptime_ms"] > began + 7_000, "some idle seconds")
    assert changed(mesh) == before
    assert written(mesh) == bytes_before
    assert asked(client, "driver")["journal"]["commits"] == commits


# --- damage, as a daemon tells it -----------------------------------------------------------------


def test_a_daemon_tells_of_damage_once_and_goes_on(mesh: Mesh) -> None:
    daemon = mesh.add("one")
    client = mesh.client(daemon)
    good = client.submit(len, b"unharmed", durable=True)
    bad = client.submit(len, b"to-be-spoilt", durable=True)
    assert (good.result(WAIT_S), bad.result(WAIT_S)) == (8, 12)
    client.close()
    daemon.end()
    path = Path(daemon.environ["BLACKROAD_STATE_DIR"]) / FILE
    other = sqlite3.connect(path)
    other.execute("UPDATE outcome SET sum = sum + 1 WHERE id = ?", (bad.task,))
    assert other.total_changes == 1
    other.commit()
    other.close()
    daemon.start()
    again = mesh.client(daemon)
    assert again.status(good.task_id)["state"] == "done"
    told = again.status(bad.task_id)
    assert (told["state"], told["reason"]) == ("unknown", "lost")
    [logged] = daemon.events("journal.damaged")
    assert logged["rows"] == 1
    assert "check" in logged["hint"]
    assert asked(again, "driver")["journal"]["damaged"] == 1
    again.close()
    daemon.end()
    daemon.start()
    third = mesh.client(daemon)
    assert third.status(bad.task_id)["state"] == "unknown"
    assert asked(third, "driver")["journal"]["damaged"] == 1
    assert len(daemon.events("journal.damaged")) == 1
