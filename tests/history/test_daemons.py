"""Real daemons, real databases: what happened is there once, whatever was away meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from blackroad.client import Client
from blackroad.errors import TaskError
from blackroad.history.database import Database
from blackroad.history.spool import segments
from blackroad.history.storage import own_url, spool_of
from tests.edge.meshes import Daemon, Mesh, mesh_of, until
from tests.history.postgres import Postgres
from tests.history.words import one, rows

pytestmark = pytest.mark.edge


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with mesh_of() as made:
        yield made


def fail() -> None:
    raise ValueError("on purpose")


def work(client: Client, tasks: int) -> None:
    """Some tasks that are done, and one that fails."""
    futures = [client.submit(pow, 2, number) for number in range(tasks)]
    bad = client.submit(fail)
    assert [future.result() for future in futures] == [2**number for number in range(tasks)]
    with pytest.raises(TaskError):
        bad.result()


def writer_of(daemon: Daemon) -> int:
    """The process that writes this daemon's history, 0 where there is none."""
    for child in psutil.Process(daemon.pid).children():
        # One that was just killed has no words any more.
        with contextlib.suppress(psutil.Error):
            if "blackroad.history" in child.cmdline():
                return int(child.pid)
    return 0


def history(daemon: Daemon, *words: str) -> Any:
    """What the command says, as JSON."""
    told = subprocess.run(
        [sys.executable, "-m", "blackroad", "history", *words, "--json"],
        env=daemon.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return json.loads(told.stdout)


def counted(url: str) -> dict[str, int]:
    """Tasks in the database by state, as rows; and as counts, which have to say the same."""
    database = Database(url)
    try:
        found = rows(database, "SELECT state, COUNT(*) AS n FROM tasks GROUP BY state")
        sums = rows(
            database,
            "SELECT state, SUM(tasks) AS n FROM load_balancing_metrics GROUP BY state",
        )
    finally:
        database.close()
    listed = {row["state"]: int(row["n"]) for row in found}
    return listed if listed == {row["state"]: int(row["n"]) for row in sums} else {}


def test_a_daemon_writes_what_happens_and_people_read_it(mesh: Mesh) -> None:
    daemon = mesh.add("attic", BLACKROAD_HISTORY_URL="sqlite")
    with daemon.client() as client:
        work(client, 40)
    until(lambda: writer_of(daemon), "a process that writes")
    daemon.end()
    # The daemon is gone; what it had no time to store is stored by who looks.
    told = history(daemon, "tasks", "--limit", "1000")
    assert told["counts"] == {"done": 40, "failed": 1}
    assert len(told["tasks"]) == 41
    failed = [task for task in told["tasks"] if task["state"] == "failed"]
    assert [(task["reason"], task["node_name"]) for task in failed] == [("ValueError", "attic")]
    nodes = history(daemon, "nodes")["nodes"]
    assert [(node["name"], node["tasks"], node["failed"]) for node in nodes] == [("attic", 41, 1)]
    usage = history(daemon, "usage", "--by", "state")["usage"]
    assert {row["key"]: row["tasks"] for row in usage} == {"done": 40, "failed": 1}
    assert {"daemon.started", "task.failed", "daemon.stopping"} <= names_of(daemon)
    assert daemon.home.stat().st_mode & 0o077 == 0
    file = Path(own_url(daemon.home / "state").removeprefix("sqlite:///"))
    assert file.stat().st_mode & 0o077 == 0


def names_of(daemon: Daemon) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-m", "blackroad", "history", "events", "--json"],
        env=daemon.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {json.loads(line)["name"] for line in told.stdout.splitlines()}


def test_whoever_is_killed_nothing_is_lost_or_doubled(mesh: Mesh) -> None:
    daemon = mesh.add("attic", BLACKROAD_HISTORY_URL="sqlite")
    url = own_url(daemon.home / "state")
    with daemon.client() as client:
        for _ in range(2):
            work(client, 30)
            first = until(lambda: writer_of(daemon), "a process that writes")
            os.kill(first, signal.SIGKILL)
            until(lambda old=first: writer_of(daemon) not in (0, old), "another one")
    # A second later the daemon has spooled it; then it may be killed as well.
    spooled = spool_of(daemon.home / "state")
    size = sum(segment.path.stat().st_size for segment in segments(spooled))
    until(lambda: counted(url) == {"done": 60, "failed": 2}, "all of it in the database")
    daemon.end(signal.SIGKILL)
    daemon.start()
    with daemon.client() as client:
        work(client, 5)
    until(lambda: counted(url) == {"done": 65, "failed": 3}, "all of both lives")
    assert size > 0
    assert daemon.events("history.lost") == []


def test_a_postgresql_that_goes_away_under_work_costs_nothing(
    mesh: Mesh, postgres: Postgres
) -> None:
    url = postgres.fresh("away")
    nodes = [mesh.add(name, BLACKROAD_HISTORY_URL=url) for name in ("attic", "shed")]
    with nodes[0].client() as client, nodes[1].client() as other:
        until(lambda: len(client.nodes()["nodes"]) == 2, "both")
        work(client, 30)
        until(lambda: counted(url).get("done") == 30, "the first tasks in the database")
        postgres.stop()
        try:
            for _ in range(3):
                work(client, 40)
                work(other, 40)
            until(lambda: nodes[0].events("history.behind"), "a word that it is away")
        finally:
            postgres.start()
        wanted = {"done": 30 + 240, "failed": 1 + 6}
        until(lambda: counted(url) == wanted, "everything in the database")
        until(lambda: nodes[0].events("history.again"), "a word that it is back")
    database = Database(url)
    try:
        events = rows(
            database,
            "SELECT node, COUNT(*) AS n, COUNT(DISTINCT id) AS d FROM cluster_events "
            "WHERE name = 'task.failed' GROUP BY node",
        )
        assert sorted((row["n"], row["d"]) for row in events) == [(3, 3), (4, 4)]
        assert one(database, "SELECT COUNT(*) FROM cluster_nodes") == 2
    finally:
        database.close()
    assert nodes[0].events("history.lost") == nodes[1].events("history.lost") == []
    for node in nodes:
        assert "a-secret-word" not in node.log()
        told = psutil.Process(writer_of(node)).cmdline()
        assert not any("a-secret-word" in word for word in told)


def test_a_database_that_refuses_is_told_and_the_daemon_goes_on(
    mesh: Mesh, postgres: Postgres
) -> None:
    wrong = postgres.url("postgres", "wrong-word")
    daemon = mesh.add("attic", BLACKROAD_HISTORY_URL=wrong)
    with daemon.client() as client:
        until(lambda: daemon.events("history.behind"), "a word about it")
        work(client, 20)
    told = daemon.events("history.behind")[0]["reason"]
    assert "password authentication failed" in told
    assert "wrong-word" not in daemon.log()


def test_off_means_nothing_at_all(mesh: Mesh) -> None:
    daemon = mesh.add("attic", BLACKROAD_HISTORY_URL="off")
    with daemon.client() as client:
        work(client, 5)
    assert writer_of(daemon) == 0
    assert not (daemon.home / "state" / "history").exists()
    told = subprocess.run(
        [sys.executable, "-m", "blackroad", "history", "tasks"],
        env=daemon.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert "history_url is off" in told.stderr
