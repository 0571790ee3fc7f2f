"""Orders to real daemons, tasks whose process is killed, and nodes that cannot keep a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blackroad import Client, Needs
from blackroad.bus.parcels import read_guide
from blackroad.errors import StillRunning, TaskFailed, UnknownTask, UsageError, WorkerCrashed
from tests.edge.meshes import Daemon, Mesh, mark_and_wait, mesh_of, until, where

pytestmark = pytest.mark.edge

WAIT_S = 60.0
There = tuple[str, Path]


@pytest.fixture(scope="module")
def pair() -> Iterator[Mesh]:
    """Two daemons of this file's own: its tests leave them as they were."""
    with mesh_of("one", "two") as made:
        yield made


def fails_until(path: str) -> str:
    if not os.path.exists(path):
        raise ValueError("not yet")
    return "at last"


def state_of(client: Client, name: str) -> str:
    return next(str(row["state"]) for row in client.nodes()["nodes"] if row["name"] == name)


def command(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program against one daemon."""
    return subprocess.run(
        [sys.executable, "-m", "blackroad", *words],
        env=daemon.environ,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


# --- retry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_failed_task_is_tried_again_from_another_node(
    pair: Mesh, client: Client, tmp_path: Path, durable: bool
) -> None:
    path = tmp_path / "now"
    future = client.submit(fails_until, str(path), durable=durable)
    with pytest.raises(TaskFailed, match="not yet"):
        future.result(WAIT_S)
    path.touch()
    with pair.daemons[1].client() as other:
        new = until(lambda: other.retry(future.task_id), "the order")
        assert new != future.task_id
        assert other.outcome(new, WAIT_S) == "at last"
        with pytest.raises(UsageError, match="is done: submit it anew"):
            other.retry(new)
        with pytest.raises((UsageError, UnknownTask), match="no task"):
            other.retry(f"{new[:8]}-zzzzzzzz")
    assert client.status(new)["durable"] is True


def test_a_failed_task_is_tried_again_after_the_owner_came_back(mesh: Mesh, tmp_path: Path) -> None:
    """Its work is large: an object, which the journal keeps too."""
    path = tmp_path / "now"
    daemon = mesh.add("one")
    with daemon.client() as client:
        padding = os.urandom(200_000)

        def fails_with(data: bytes, path: str) -> int:
            if not os.path.exists(path):
                raise ValueError("not yet")
            return len(data)

        future = client.submit(fails_with, padding, str(path), durable=True)
        with pytest.raises(TaskFailed):
            future.result(WAIT_S)
    daemon.end(signal.SIGKILL)
    daemon.start()
    daemon.wait()
    path.touch()
    answer = command(daemon, "retry", future.task_id)
    assert answer.returncode == 0, answer.stderr
    with daemon.client() as client:
        assert client.outcome(answer.stdout.strip(), WAIT_S) == 200_000


# --- drain and resume ---------------------------------------------------------------------------


def test_a_node_that_drains_ends_its_work_and_gets_none(
    pair: Mesh, client: Client, there: There
) -> None:
    here, go = there
    first = client.submit(mark_and_wait, here, str(go), needs=Needs(node="two"))
    until(lambda: os.path.exists(here), "its start")
    told = client.drain("two")
    assert (told["name"], told["draining"], told["running"]) == ("two", True, 1)
    until(lambda: state_of(client, "two") == "draining", "the state of `two`")
    assert {client.submit(where).result(WAIT_S) for _ in range(4)} == {"one"}
    with pytest.raises(StillRunning, match="`two` still runs 1 task"):
        client.drained("two", 0.0)
    go.touch()
    assert first.result(WAIT_S) is None
    answer = command(pair.daemons[0], "drain", "two", "--wait", "--json")
    assert json.loads(answer.stdout)["running"] == 0
    later = client.submit(where, needs=Needs(node="two"))
    assert client.resume("two")["draining"] is False
    assert later.result(WAIT_S) == "two"
    until(lambda: state_of(client, "two") == "alive", "the state of `two`")


def test_draining_outlives_a_restart_of_the_daemon(mesh: Mesh) -> None:
    daemon = mesh.add("one")
    with daemon.client() as client:
        client.drain()
    for number in (signal.SIGKILL, signal.SIGTERM):
        daemon.end(number)
        daemon.start()
        with daemon.client() as client:
            assert state_of(client, "one") == "draining"
    with daemon.client() as client:
        client.resume()
    daemon.end(signal.SIGTERM)
    daemon.start()
    with daemon.client() as client:
        assert client.submit(where).result(WAIT_S) == "one"
        assert state_of(client, "one") == "alive"


def test_a_node_that_nobody_knows_is_not_drained(client: Client) -> None:
    with pytest.raises(UsageError, match="no node `tow`") as caught:
        client.drain("tow")
    assert caught.value.hint == "did you mean `two`? there are: one, two"


def test_a_daemon_that_is_stopped_blames_nobody(mesh: Mesh, there: There) -> None:
    """R-life-8: its own attempts end as *stopped*, which is no killer ending."""
    here, go = there
    daemon = mesh.add("one")
    with daemon.client() as client:
        future = client.submit(mark_and_wait, here, str(go), durable=True)
        until(lambda: os.path.exists(here), "its start")
    daemon.end(signal.SIGTERM)
    daemon.start()
    with daemon.client() as client:
        until(lambda: len(Path(here).read_text().split()) == 2, "its second start")
        told = client.status(future.task_id)
        assert (told["attempts"], told["lost"], told["crashed"]) == (2, 1, 0)
        go.touch()
        assert client.outcome(future.task_id, WAIT_S) is None


# --- processes that die -------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["one", "two"])
def test_a_task_whose_process_is_killed_is_started_three_times(
    client: Client, there: There, node: str
) -> None:
    """R-outcome-4: a crash is no loss of its node: queued twice, then WorkerCrashed."""
    here, go = there
    future = client.submit(mark_and_wait, here, str(go), needs=Needs(node=node), durable=True)
    for count in (1, 2, 3):

        def started(count: int = count) -> list[str]:
            lines = Path(here).read_text().split()
            return lines if len(lines) == count else []

        os.kill(int(until(started, f"start {count}")[-1]), signal.SIGKILL)
    with pytest.raises(WorkerCrashed, match="3 times") as caught:
        future.result(WAIT_S)
    assert "signal 9" in caught.value.message
    told = client.status(future.task_id)
    assert (told["state"], told["attempts"], told["crashed"], told["lost"]) == ("failed", 3, 3, 0)
    assert len(Path(here).read_text().split()) == 3


# --- a node that cannot keep a result -----------------------------------------------------------


def incoming(daemon: Daemon) -> Path:
    """Where results and objects are written first; without it, nothing finds room."""
    return Path(daemon.environ["BLACKROAD_STATE_DIR"], "objects", "incoming")


def no_room(daemon: Daemon) -> Callable[[], None]:
    """Take away all places for large results; return what puts them back."""
    roots = read_guide(daemon.facts()["client_socket"].rpartition("/")[0])
    moved = []
    for place in (incoming(daemon), *(Path(root.path) for root in roots)):
        moved.append((place.rename(f"{place}.away"), place))

    def put_back() -> None:
        for away, place in moved:
            away.rename(place)

    return put_back


def large_after(here: str, go: str) -> bytes:
    mark_and_wait(here, go)
    return bytes(1_000_000)


def test_a_result_that_finds_no_room_at_its_worker_is_computed_again(
    mesh: Mesh, there: There
) -> None:
    """Infrastructure, not the task's fault: no retry of the user's is used up."""
    here, go = there
    owner, other = mesh.add("one"), mesh.add("two")
    mesh.settled()
    with owner.client() as client:
        future = client.submit(large_after, here, str(go), needs=Needs(node="two"))
        until(lambda: os.path.exists(here), "its start")
        put_back = no_room(other)
        go.touch()
        until(lambda: client.status(future.task_id)["lost"], "a result without room")
        assert "no room for its result" in client.status(future.task_id)["last"]
        put_back()
        assert len(future.result(WAIT_S)) == 1_000_000
        told = client.status(future.task_id)
        assert (told["attempts"], told["crashed"]) == (told["lost"] + 1, 0)


def test_a_result_that_finds_no_room_at_its_owner_waits_for_room(mesh: Mesh, there: There) -> None:
    """R-outcome-5: a full disk at the owner is no fault of the attempt; nothing runs twice."""
    here, go = there
    owner, _ = mesh.add("one"), mesh.add("two")
    mesh.settled()
    with owner.client() as client:
        future = client.submit(large_after, here, str(go), needs=Needs(node="two"))
        until(lambda: os.path.exists(here), "its start")
        put_back = no_room(owner)
        go.touch()
        until(lambda: client.status(future.task_id)["state"] == "collecting", "its end there")
        put_back()
        assert len(future.result(WAIT_S)) == 1_000_000
        told = client.status(future.task_id)
        assert (told["attempts"], told["lost"]) == (1, 0)


def test_once_is_not_run_again_when_its_result_found_no_room(mesh: Mesh, tmp_path: Path) -> None:
    """P5: it ran, and whether its effects stand only people can know."""
    daemon = mesh.add("one")
    place = str(incoming(daemon))
    starts = tmp_path / "starts"

    def large(place: str, starts: str) -> bytes:
        with open(starts, "a") as file:
            file.write("x")
        os.rename(place, place + ".away")
        return bytes(1_000_000)

    with daemon.client() as client:
        future = client.submit(large, place, str(starts), once=True, durable=True)
        assert until(lambda: client.status(future.task_id)["ended"], "its end")["end"] == "unknown"
        assert starts.read_text() == "x"
