"""Events of real daemons: told in the log, kept, and seen from every node."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blackroad.client import happenings
from blackroad.client.client import Client
from blackroad.errors import TaskFailed, WorkerCrashed
from tests.edge.meshes import Daemon, Mesh, answered, command, until

pytestmark = pytest.mark.edge


def fail() -> None:
    raise ValueError("on purpose")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(client: Client, **choice: Any) -> list[str]:
    return [one["name"] for one in happenings.events(client, **choice)]


@contextmanager
def following(daemon: Daemon, *words: str) -> Iterator[list[dict[str, Any]]]:
    """What `blackroad events -f --json` prints, as it comes; it is ended for certain."""
    process = subprocess.Popen(
        [sys.executable, "-m", "blackroad", "events", "-f", "--json", *words],
        env=daemon.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background of a shell has it ignored for all of them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    found: list[dict[str, Any]] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            found.append(json.loads(line))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield found
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()


def test_every_node_shows_all_nodes(pair: Mesh) -> None:
    """Both daemons started; each is told of the other, whomever one asks."""
    one, two = pair.daemons
    pair.settled()
    for daemon in (one, two):
        rows = command(daemon, "events", "--name", "daemon.started", "--json").stdout.splitlines()
        told = [json.loads(row) for row in rows]
        assert {row["host"] for row in told} == {"one", "two"}
        assert all(row["severity"] == "info" for row in told)


def test_a_failed_task_is_an_event_and_a_line_with_one_cause(pair: Mesh, client: Client) -> None:
    """Its id is what one searches for, in the log and in the events of all machines."""
    future = client.submit(fail)
    with pytest.raises(TaskFailed):
        future.result(30)
    with pair.daemons[1].client() as other:
        [told] = happenings.events(other, cause=future.task_id)
    assert (told["name"], told["host"]) == ("task.failed", "one")
    assert told["facts"]["error"] == "ValueError"
    [line] = [
        row for row in pair.daemons[0].events("task.failed") if row["cause"] == future.task_id
    ]
    assert (line["host"], line["level"]) == ("one", "warning")


def test_a_crash_is_told_where_it_happens_and_where_it_is_decided(
    pair: Mesh, client: Client
) -> None:
    """The node that ran it, and its owner: one cause."""
    future = client.submit(die)
    with pytest.raises(WorkerCrashed):
        future.result(30)
    found = names(client, cause=future.task_id)
    assert found.count("task.failed") == 1
    assert found.count("attempt.crashed") == found.count("attempt.lost") >= 1


def test_following_shows_what_happens_on_other_nodes(mesh: Mesh) -> None:
    """First what was, then what is: a node drains, is killed, and is told lost by others."""
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    with following(one, "--name", "node.*,daemon.started") as found:

        def seen(name: str, host: str) -> bool:
            return any((row["name"], row["host"]) == (name, host) for row in found)

        until(lambda: seen("daemon.started", "two"), "the past")
        assert command(two, "drain").returncode == 0
        until(lambda: seen("node.draining", "two"), "news of another node")
        two.end(signal.SIGKILL)
        until(lambda: seen("node.died", "one"), "a lost node")
        assert len({row["id"] for row in found}) == len(found)
    died = [row for row in found if row["name"] in ("node.suspected", "node.died")]
    assert {row["cause"] for row in died} == {f"{two.facts()['node'][:8]}-1"}


def test_done_tasks_are_told_to_who_follows_them(pair: Mesh, client: Client) -> None:
    """And to nobody else: not kept, not in the log."""
    with following(pair.daemons[1], "--name", "task.done", "--limit", "0") as found:

        def told() -> bool:
            future = client.submit(abs, -1)
            future.result(30)
            return any(row["cause"] == future.task_id for row in found[-1:])

        until(told, "the end of a task of another node")
    assert names(client, name="task.done", severity="debug") == []
    assert pair.daemons[0].events("task.done") == []


def test_since_an_event(pair: Mesh) -> None:
    daemon = pair.daemons[0]
    rows = command(daemon, "events", "--json", "--limit", "10000").stdout.splitlines()
    told = [json.loads(row) for row in rows]
    after = command(daemon, "events", "--json", "--since", told[1]["id"]).stdout.splitlines()
    ids = [json.loads(row)["id"] for row in after]
    assert told[1]["id"] not in ids
    assert told[2]["id"] in ids


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--name", "nodes.*"), "no event is called"),
        (("--node", "attic"), "no node `attic` is in this mesh"),
        (("--since", "k3f7x2ab-1-2"), "no node that answers knows the event"),
        (("--since", "noon"), "noon"),
        (("--severity", "loud"), "loud"),
    ],
)
def test_what_can_show_nothing_is_refused(pair: Mesh, words: tuple[str, ...], text: str) -> None:
    done = command(pair.daemons[0], "events", *words)
    assert done.returncode == 2
    assert text in done.stderr


def test_programs_cannot_tell_events(client: Client) -> None:
    """The topics of events are for daemons alone."""
    from blackroad.errors import UsageError

    with pytest.raises(UsageError, match="reserved"):
        client.publish("blackroad/events/node.died", {"name": "node.died"})


def test_a_task_that_does_not_fit_is_refused_at_once(pair: Mesh) -> None:
    """Each need with what there is; with --wait-for-node it waits, and `why` says for what."""
    daemon = pair.daemons[0]
    done = command(daemon, "submit", "--gpu", "3", "--", "true")
    assert done.returncode == 3
    assert "no node can run `true`" in done.stderr
    done = command(daemon, "submit", "--gpu", "3", "--wait-for-node", "--json", "--", "true")
    id_ = json.loads(done.stdout)["tasks"][0]["id"]
    told = answered(daemon, "why", id_)
    assert told["holds"][0][0] == "nowhere"
    assert {row["rule"] for row in told["nodes"]} == {"lacks"}
    assert all(row["missing"][0][:2] == ["gpu", "3"] for row in told["nodes"])
    assert command(daemon, "cancel", id_).returncode == 0


def test_why_asks_the_coordinator_who_uses_what(mesh: Mesh) -> None:
    """Asked on either node, of a task of the other: its owner and the pool answer together."""
    one, two = mesh.add("one"), mesh.add("two")
    mesh.settled()
    client = mesh.client(one)
    tasks = [client.submit(_wait) for _ in range(8)]
    last = tasks[-1]
    until(lambda: client.status(last.task_id)["state"] == "queued", "a queue")

    def full() -> bool:
        told = answered(two, "why", last.task_id)
        return bool({row["rule"] for row in told["nodes"]} == {"full"} and told["pool"]["known"])

    until(full, "all slots in use")
    text = command(two, "why", last.task_id).stdout
    assert "everything that fits it is in use" in text
    assert [line.split()[:2] for line in text.splitlines()[-2:]] == [
        ["one", "full"],
        ["two", "full"],
    ]
    for task in tasks:
        task.cancel()


def _wait() -> None:
    threading.Event().wait(60)


# --- the log --------------------------------------------------------------------------------------

SAY = """
from blackroad import logs
logs.setup("auto", "info", "attic").warning("node.died", node="x")
"""


def said(**environ: str) -> str:
    """What a daemon writes on a terminal."""
    ours, theirs = pty.openpty()
    try:
        clean = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
        subprocess.run(
            [sys.executable, "-c", SAY], env={**clean, **environ}, stderr=theirs, check=True
        )
        return os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_log_is_json_under_systemd_and_text_on_a_terminal() -> None:
    row = json.loads(said(JOURNAL_STREAM="8:1"))
    assert (row["event"], row["level"], row["host"], row["node"]) == (
        "node.died",
        "warning",
        "attic",
        "x",
    )
    text = said()
    assert "node.died" in text
    assert "\x1b[" in text
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(text)
