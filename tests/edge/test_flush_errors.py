"""A disk that refuses to flush: the daemon stops, and promises nothing that it does not hold."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from blackroad import Needs
from blackroad.client import Client, TaskFuture
from blackroad.errors import EXIT_ENVIRONMENT, EXIT_USAGE
from blackroad.store.journal import Journal
from tests.edge.faults import library
from tests.edge.meshes import Daemon, Mesh

pytestmark = pytest.mark.edge

WAIT_S = 60.0


def faulty(mesh: Mesh, trigger: Path, only: str = "") -> Daemon:
    """A daemon whose flushes fail while `trigger` exists."""
    settings = {"LD_PRELOAD": str(library()), "FAULT_EIO": str(trigger)}
    if only:
        settings["FAULT_ONLY"] = only
    return mesh.add("one", FAULT_DIR=str(mesh.base / "one" / "state"), **settings)


def waits(client: Client, work: bytes) -> TaskFuture:
    """Submit a durable task that no node can run."""
    return client.submit(len, work, durable=True, needs=Needs(node="nowhere"), wait_for_node=True)


def accepted(future: TaskFuture) -> Future[None]:
    assert future.accepted is not None
    return future.accepted


def ids(client: Client) -> set[str]:
    return {row["id"] for row in client.tasks(limit=1000)["tasks"]}


@pytest.mark.parametrize("what", ["journal", "object"])
def test_after_a_flush_error_nothing_is_promised(mesh: Mesh, tmp_path: Path, what: str) -> None:
    trigger = tmp_path / "eio"
    daemon = faulty(mesh, trigger)
    client = mesh.client(daemon)
    before = [waits(client, bytes(100)) for _ in range(20)]
    for future in before:
        accepted(future).result(WAIT_S)
    trigger.touch()
    # Work above 64 KiB is an object, and is flushed before the row that names it.
    size = 100 if what == "journal" else 200_000
    after = [waits(client, number.to_bytes(4, "big") + bytes(size)) for number in range(20)]
    assert daemon.exits() == EXIT_ENVIRONMENT
    assert EXIT_ENVIRONMENT != EXIT_USAGE, "systemd starts it again, but for a wrong configuration"
    assert not any(accepted(one).done() and not accepted(one).exception() for one in after)
    log = daemon.log()
    assert "could not be flushed" in log
    assert "nothing that was not flushed has been promised" in " ".join(log.split())
    assert "Traceback" not in log
    trigger.unlink()
    daemon.start()
    daemon.wait()
    assert {one.task_id for one in before} <= ids(client)
    assert daemon.events("journal.damaged") == []
    # What had no answer is taken now, or its sender knows that it was not; nothing in between.
    taken = {one.task_id for one in after if accepted(one).exception(WAIT_S) is None}
    assert taken <= ids(client)
    assert waits(client, b"again").accepted.result(WAIT_S) is None  # type: ignore[union-attr]


WRITER = """
import select, sys
from pathlib import Path
from blackroad.errors import DiskProblem
from blackroad.limits import JOURNAL_CHECKPOINT_CHANGES
from blackroad.store.journal import Journal
from tests.edge.test_journal import task_row
journal = Journal(Path(sys.argv[1]))
journal.load()
journal.start()
Path(sys.argv[2]).touch()
try:
    for mark in range(1, 3 * JOURNAL_CHECKPOINT_CHANGES, 64):
        journal.append(mark, tuple(map(task_row, range(mark, mark + 64))))
        select.select([journal.wake_fd], [], [], 30)
        for one in journal.flushed():
            print(one, flush=True)
except DiskProblem as problem:
    print("problem:", problem.message, flush=True)
    journal.close()
"""


@pytest.mark.parametrize("only", ["journal.sqlite", "journal.sqlite-wal"])
def test_a_checkpoint_that_cannot_be_flushed_is_no_less_fatal(tmp_path: Path, only: str) -> None:
    state = tmp_path / "state"
    state.mkdir()
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "FAULT_DIR": str(state),
        "FAULT_EIO": str(tmp_path / "eio"),
        "FAULT_ONLY": only,
    }
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(state), str(tmp_path / "eio")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *told, problem = done.stdout.splitlines()
    assert problem.startswith("problem: the journal")
    # The log was flushed each time; only bringing it into the file was not possible.
    assert (len(told) >= 15) is (only == "journal.sqlite")
    journal = Journal(state)
    kept = {int.from_bytes(row.task, "big") for row in journal.load().tasks}
    assert {int(mark) for mark in told} <= kept
    assert journal.findings.sound
    assert not journal.findings.clean
    journal.close()
