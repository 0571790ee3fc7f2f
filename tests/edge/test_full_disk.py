"""A disk that becomes full: nothing new is promised, what was promised is kept, and it recovers."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blackroad import Needs
from blackroad.client import Client
from blackroad.errors import DiskProblem
from blackroad.runtime.objects import ObjectStore
from blackroad.store.ballast import FILE as BALLAST
from blackroad.store.ballast import Ballast
from blackroad.store.journal import FILE, Journal
from tests.edge.meshes import Mesh, mark_and_wait, until
from tests.edge.test_journal import flushed, reopened, task_id, task_row

pytestmark = pytest.mark.edge

KIB = 1024
MIB = 1024 * KIB
WAIT_S = 60.0


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A disk of that size, or a skipped test."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only who may mount can make a small disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path, leave_bytes: int = 0) -> Path:
    """Take all room but that much."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4 * KIB))
    if leave_bytes:
        os.truncate(filler, filler.stat().st_size - leave_bytes)
    return filler


def told(journal: Journal) -> list[bool]:
    """Wait for the next change of room."""
    deadline = time.monotonic() + WAIT_S
    found: list[bool] = []
    while not found:
        assert time.monotonic() < deadline, "nothing was told"
        select.select([journal.wake_fd], [], [], 0.5)
        journal.flushed()
        found = journal.space()
    return found


def kept(directory: Path) -> set[int]:
    return {int.from_bytes(row.task, "big") for row in reopened(directory)[0]}


# --- the room that is kept back -------------------------------------------------------------------


def test_the_room_is_real_and_small(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        ballast = Ballast(disk)
        free_bytes = os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize
        ballast.begin()
        assert (ballast.held, ballast.full) == (True, False)
        assert ballast.size == MIB
        left_bytes = os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize
        assert free_bytes - left_bytes >= MIB
        again = Ballast(disk)
        again.begin()
        assert again.held
        assert os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize == left_bytes
        assert ballast.free()
        assert not ballast.free(), "what was given up cannot be given up again"
        assert os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize > left_bytes


def test_work_that_needs_room_gets_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        ballast = Ballast(disk)
        ballast.begin()
        fill(disk)
        assert ballast.behind(lambda: (disk / "more").write_bytes(bytes(50 * KIB))) == 50 * KIB
        assert ballast.full
        fill(disk)
        with pytest.raises(OSError, match="No space"):
            ballast.behind(lambda: (disk / "yet-more").write_bytes(bytes(50 * KIB)))


def test_other_problems_do_not_cost_the_room(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path)
    ballast.begin()
    with pytest.raises(FileNotFoundError):
        ballast.behind((tmp_path / "missing").read_bytes)
    assert ballast.held
    assert not ballast.full


# --- the journal ----------------------------------------------------------------------------------


@pytest.fixture
def capped(tmp_path: Path) -> Iterator[tuple[Journal, list[str]]]:
    """A journal whose file may not grow; giving the room up lets it grow a little."""
    journal = Journal(tmp_path)
    journal.load()
    done: list[str] = []
    run = journal._connection.execute
    pages = run("PRAGMA page_count").fetchone()[0]
    real: Callable[[], bool] = journal.ballast.free

    def free() -> bool:
        done.append("freed")
        held = real()
        if held:
            run(f"PRAGMA max_page_count = {pages + 60}").fetchall()
        return held

    journal.ballast.free = free  # type: ignore[method-assign]
    run(f"PRAGMA max_page_count = {pages + 30}").fetchall()
    journal.start()
    yield journal, done
    with contextlib.suppress(sqlite3.Error):
        journal.close()


def test_what_was_taken_is_committed_into_the_room(
    capped: tuple[Journal, list[str]], tmp_path: Path
) -> None:
    journal, done = capped
    mark = 0
    while not journal.space():
        mark += 1
        journal.append(mark, (task_row(mark, bytes(4_000)),))
        assert flushed(journal, mark)[-1] == mark
        assert mark < 100
    assert done == ["freed"]
    assert journal.ballast.full
    assert not (tmp_path / BALLAST).exists()
    other = sqlite3.connect(tmp_path / FILE)
    assert other.execute("SELECT count(*) FROM task").fetchone() == (mark,)
    other.close()


def test_when_that_room_is_full_too_it_is_a_problem(
    capped: tuple[Journal, list[str]], tmp_path: Path
) -> None:
    journal, done = capped
    last = 0

    def fill_up() -> None:
        nonlocal last
        for mark in range(1, 200):
            journal.append(mark, (task_row(mark, bytes(4_000)),))
            flushed(journal, mark)
            last = mark

    with pytest.raises(DiskProblem) as caught:
        fill_up()
    assert "full" in caught.value.message
    assert done == ["freed", "freed"]
    assert kept(tmp_path) == set(range(1, last + 1))


def test_a_full_disk_and_room_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        journal = Journal(disk)
        journal.load()
        journal.start()
        journal.append(1, (task_row(1),))
        flushed(journal, 1)
        filler = fill(disk)
        mark = 1
        while not (found := journal.space()):
            mark += 1
            journal.append(mark, (task_row(mark, bytes(4_000)),))
            flushed(journal, mark)
            assert mark < 500
        assert found == [True]
        journal.look()
        journal.append(mark + 1, (task_row(mark + 1),))
        flushed(journal, mark + 1)
        assert journal.space() == [], "there is no room yet"
        filler.unlink()
        journal.look()
        assert told(journal) == [False]
        assert (disk / BALLAST).stat().st_blocks > 0
        journal.close()
        assert kept(disk) == set(range(1, mark + 2))


def test_scarce_room_is_told_before_it_is_gone(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        journal = Journal(disk)
        journal.load()
        journal.start()
        journal.look()
        assert journal.space() == []
        filler = fill(disk, leave_bytes=journal.ballast.size // 2)
        journal.look()
        journal.look()
        assert journal.space() == [True]
        assert (disk / BALLAST).exists(), "the room is kept for what is promised already"
        filler.unlink()
        journal.look()
        assert told(journal) == [False]
        journal.close()


def test_a_journal_opens_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        journal = Journal(disk)
        journal.load()
        journal.start()
        journal.append(1, (task_row(1),))
        flushed(journal, 1)
        journal.close()
        fill(disk)
        journal = Journal(disk)
        assert [row.task for row in journal.load().tasks] == [task_id(1)]
        assert journal.space() == [True]
        journal.start()
        journal.append(2, (task_row(2),))
        flushed(journal, 2)
        journal.close()
        assert kept(disk) == {1, 2}


def test_looking_writes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.load()
    journal.start()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for _ in range(1_000):
        journal.look()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert journal.counters["commits"] == 0
    journal.close()


# --- objects --------------------------------------------------------------------------------------


def test_an_object_without_room_is_one_clear_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        store = ObjectStore(disk / "objects", 100 * MIB)
        digest, _ = store.put(b"small")
        store.pin(digest)
        fill(disk, leave_bytes=2 * MIB)
        with pytest.raises(DiskProblem, match="no room"):
            store.put(bytes(3 * MIB))
        with pytest.raises(DiskProblem, match="no room"):
            store.writer(b"d" * 32, 3 * MIB)
        assert store.read(digest, 0, 5) == b"small"
        assert [path for path in (disk / "objects").rglob("*") if path.is_file()] == [
            disk / "objects" / digest.hex()
        ]


def test_unused_objects_make_room_for_others(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        store = ObjectStore(disk / "objects", 100 * MIB)
        dropped: list[bytes] = []
        store.on_dropped = dropped.append
        old, _ = store.put(b"o" * (3 * MIB))
        pinned, _ = store.put(b"p" * MIB)
        store.pin(pinned)
        new, _ = store.put(b"n" * (4 * MIB))
        assert dropped == [old]
        assert store.has(pinned)
        assert store.has(new)


def test_room_that_vanishes_under_an_object_leaves_no_half_of_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        store = ObjectStore(disk / "objects", 100 * MIB)
        writer = store.writer(b"d" * 32, 2 * MIB)
        writer.write(0, bytes(256 * KIB))
        filler = fill(disk)
        with pytest.raises(DiskProblem, match="No space"):
            writer.write(256 * KIB, bytes(MIB))
        writer.abandon()
        assert list((disk / "objects" / "incoming").iterdir()) == []
        filler.unlink()
        assert store.put(bytes(2 * MIB))[1] == 2 * MIB, "its room was given back"


# --- a daemon -------------------------------------------------------------------------------------


def no_room(client: Client) -> bool:
    """Is a durable submit refused for want of room, in words that say what to do?"""
    future = client.submit(
        len, bytes(30_000), durable=True, needs=Needs(node="nowhere"), wait_for_node=True
    )
    assert future.accepted is not None
    error = future.accepted.exception(WAIT_S)
    if error is None:
        return False
    assert isinstance(error, DiskProblem)
    assert "full" in error.message
    assert "room" in error.hint
    return True


def test_a_daemon_lives_through_a_full_disk(
    mesh: Mesh, tmp_path: Path, there: tuple[str, Path]
) -> None:
    with small_disk(mesh.base / "disk", "24m") as disk:
        daemon = mesh.add("one", BLACKROAD_STATE_DIR=str(disk), BLACKROAD_SLOTS="2")
        client = mesh.client(daemon)
        here, go = there
        # Code that is here needs no more room.
        assert client.submit(len, b"code", durable=True).result(WAIT_S) == 4
        running = client.submit(mark_and_wait, here, str(go), durable=True)
        until(lambda: os.path.exists(here), "a running task")
        filler = fill(disk)
        until(lambda: no_room(client), "a refused submit")
        assert client.submit(len, b"attached").result(WAIT_S) == 8, "attached work goes on"
        go.touch()
        assert running.result(WAIT_S) is None, "what runs ends, and its outcome is kept"
        daemon.send(signal.SIGKILL)
        daemon.exits()
        daemon.start()
        again = mesh.client(daemon)
        assert again.status(running.task_id)["state"] == "done"
        filler.unlink()
        until(lambda: again.submit(len, b"more", durable=True).result(5.0) == 4, "room again")
        assert daemon.end() == 0
