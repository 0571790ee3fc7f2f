"""A mesh inside the program itself: it does what a daemon does, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackroad import Client, Needs
from blackroad.embedded import EmbeddedWire
from blackroad.errors import (
    NoDaemon,
    TaskFailed,
    Unplaceable,
    Unreachable,
    UsageError,
    WorkerCrashed,
)
from tests.edge.alarms import Alarm
from tests.edge.meshes import until

pytestmark = pytest.mark.edge

WAIT_S = 60.0
SCRIPT = """
import os, sys
from blackroad import Client

def where(_):
    return os.getpid()

if __name__ == "__main__":
    br = Client(embedded=True, workers=2)
    print(br.submit(where, 0).result(), flush=True)
    {rest}
"""


def square(number: int) -> int:
    return number * number


def fails() -> None:
    raise KeyError("the shelf is empty")


def says(text: str) -> None:
    print(text)


def dies() -> None:
    os._exit(7)


def waits(path: str) -> str:
    """Return what somebody writes into a named pipe."""
    with open(path) as file:
        return file.read()


def larger(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array + 1


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(embedded=True, workers=2) as found:
        yield found


@pytest.fixture
def gate(tmp_path: Path) -> str:
    path = str(tmp_path / "gate")
    os.mkfifo(path)
    return path


def wire_of(client: Client) -> EmbeddedWire:
    wire = client._connection._wire
    assert isinstance(wire, EmbeddedWire)
    return wire


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


# --- work ---------------------------------------------------------------------------------------


def test_it_computes(client: Client) -> None:
    assert client.submit(pow, 7, 3, mod=5).result(WAIT_S) == 3
    assert client.submit("math:hypot", 3, 4).result(WAIT_S) == 5.0
    assert list(client.map(square, range(3000))) == [n * n for n in range(3000)]
    assert sorted(client.map(square, range(50), ordered=False, chunksize=3)) == sorted(
        n * n for n in range(50)
    )
    assert client.kernel("collatz", start=1, count=100).result(WAIT_S)
    assert client.run(["true"]).result(WAIT_S) == 0


def test_a_failure_is_raised(client: Client) -> None:
    with pytest.raises(KeyError) as caught:
        client.submit(fails).result(WAIT_S)
    assert isinstance(caught.value, TaskFailed)
    with pytest.raises(WorkerCrashed):
        client.submit(dies).result(WAIT_S)


@pytest.mark.parametrize("items", [100_000, 3_000_000])
def test_large_values_go_there_and_back(client: Client, items: int) -> None:
    array = np.arange(items)
    assert np.array_equal(client.submit(larger, array).result(WAIT_S), array + 1)
    assert np.array_equal(client.get(client.put(array)), array)


def test_large_values_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes cannot hand files to each other, the values travel in pieces."""
    monkeypatch.setattr("blackroad.runtime.shed.Shed.made", lambda *_: None)
    array = np.arange(300_000)
    with Client(embedded=True, workers=1) as client:
        assert np.array_equal(client.submit(larger, array).result(WAIT_S), array + 1)
        assert np.array_equal(client.get(client.put(array)), array)


def test_changed_code_is_sent_anew(client: Client) -> None:
    factor = 2

    def scaled(number: int) -> int:
        return factor * number

    assert client.submit(scaled, 4).result(WAIT_S) == 8
    factor = 3
    assert client.submit(scaled, 4).result(WAIT_S) == 12
    found = [client.submit(lambda n, k=k: n + k, 1).result(WAIT_S) for k in range(80)]
    assert found == list(range(1, 81)), "more code than is kept"


def test_questions_are_answered(client: Client, gate: str) -> None:
    (row,) = client.nodes()["nodes"]
    assert (row["name"], row["slots"], row["state"]) == ("embedded", 2, "alive")
    future = client.submit(says, "good morning")
    future.result(WAIT_S)
    until(lambda: client.logs(future.task_id)["text"] == "good morning\n", "its output")
    blocked = [client.submit(waits, gate) for _ in range(3)]
    until(lambda: client.tasks()["counts"].get("running") == 2, "two tasks at once")
    assert blocked[2].why()["reason"]
    Path(gate).write_text("")
    for one in blocked:
        until(lambda one=one: one.done() or Path(gate).write_text("") is None, "an end")


def test_what_it_cannot_run_is_refused_at_once(client: Client) -> None:
    with pytest.raises(Unplaceable):
        client.submit(square, 3, needs=Needs(cpu=3)).result(WAIT_S)


def test_a_task_can_be_cancelled(client: Client, gate: str) -> None:
    future = client.submit(waits, gate)
    until(lambda: client.status(future.task_id)["state"] == "running", "its start")
    assert future.cancel()
    until(future.cancelled, "its end")


# --- what it is not -----------------------------------------------------------------------------


def test_nothing_of_it_lasts(client: Client) -> None:
    with pytest.raises(UsageError, match="durable"):
        client.submit(square, 3, durable=True)
    with pytest.raises(UsageError, match="durable"):
        list(client.map(square, [3], durable=True))
    with pytest.raises(UsageError, match="durable"):
        client.kernel("collatz", options={"durable": True}, start=1, count=10)
    done = client.submit(square, 3)
    done.result(WAIT_S)
    with pytest.raises((UsageError, Unreachable), match="durable"):
        client.retry(done.task_id)


def test_it_has_no_topics_and_no_network(client: Client) -> None:
    with pytest.raises(UsageError, match="no topics"):
        client.subscribe("lab/*")
    client.publish("lab/temperature", 21.5)
    with pytest.raises(UsageError, match="no topics"):
        client.published()
    with pytest.raises(UsageError, match="one node"):
        client.tried()


@pytest.mark.parametrize("workers", [0, -1, True, "two", 5000])
def test_workers_are_a_number(workers: Any) -> None:
    with pytest.raises(UsageError, match="workers"):
        Client(embedded=True, workers=workers)


def test_either_a_daemon_or_a_mesh_of_its_own() -> None:
    with pytest.raises(UsageError, match="endpoint"):
        Client("ipc:///nowhere", embedded=True)
    with pytest.raises(UsageError, match="workers"):
        Client("ipc:///nowhere", workers=2)


# --- its end ------------------------------------------------------------------------------------


def test_two_in_one_program(client: Client) -> None:
    with Client(embedded=True, workers=1) as other:
        assert other.node_id != client.node_id
        futures = [one.submit(square, n) for n in range(20) for one in (client, other)]
        assert sum(future.result(WAIT_S) for future in futures) == 2 * sum(map(square, range(20)))
    assert client.submit(square, 3).result(WAIT_S) == 9


def test_close_ends_everything(gate: str) -> None:
    client = Client(embedded=True, workers=2)
    wire = wire_of(client)
    future = client.submit(waits, gate)
    until(lambda: wire._pool.pids, "a task process")
    pids = [wire._pool.server_pid, *wire._pool.pids]
    directory = wire._directory
    assert directory.is_dir()
    client.close()
    with pytest.raises(NoDaemon):
        future.result(WAIT_S)
    with pytest.raises(NoDaemon):
        client.submit(square, 3)
    assert all(map(is_gone, pids))
    assert not directory.exists()
    client.close()


def test_a_fork_does_not_keep_it_alive() -> None:
    """Whoever was forked has copies of all descriptors, and lets go of none."""
    read, write = os.pipe()
    client = Client(embedded=True, workers=1)
    wire = wire_of(client)
    assert client.submit(square, 3).result(WAIT_S) == 9
    server = wire._pool._serving._server
    assert server is not None
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    client.close()
    assert server._process.returncode == 0, "it ended by itself"
    assert not wire._directory.exists()
    os.close(write)
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("br.submit(where, 1)", 0),
        ("br.close()", 0),
        ("os.kill(os.getpid(), 9)", -9),
        ("os._exit(4)", 4),
    ],
    ids=["runs out", "exits", "leaves work", "closes", "is killed", "exits hard"],
)
def test_a_program_leaves_no_process(tmp_path: Path, rest: str, status: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(rest=rest))
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stderr == ""
    until(lambda: is_gone(int(ended.stdout)), "the end of its task process")
    if status in (0, 3):
        assert not list(tmp_path.glob("blackroad-embedded-*"))


def test_what_a_killed_program_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "blackroad-embedded-old"
    left.mkdir()
    (left / "lock").touch()
    half = tmp_path / "blackroad-embedded-half"
    half.mkdir()
    os.utime(left, (1, 1))
    os.utime(half, (1, 1))
    with Client(embedded=True, workers=1) as client:
        assert not left.exists()
        assert not half.exists()
        mine = wire_of(client)._directory
        os.utime(mine, (1, 1))
        with Client(embedded=True, workers=1):
            assert mine.is_dir()


# --- threads, forks, signals --------------------------------------------------------------------


def test_many_threads_use_it(client: Client) -> None:
    found: list[int] = []

    def use(start: int) -> None:
        found.extend(client.submit(square, start + n).result(WAIT_S) for n in range(50))

    threads = [threading.Thread(target=use, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(found) == sorted(square(100 * a + n) for a in range(4) for n in range(50))


def test_the_ways_of_the_library(client: Client) -> None:
    called: list[int] = []
    done = threading.Event()

    def on_done(future: Future[int]) -> None:
        # A callback may use the client, as it does not run within a turn of it.
        called.append(future.result() + client.submit(square, 2).result(WAIT_S))
        done.set()

    client.submit(square, 3).add_done_callback(on_done)
    assert done.wait(WAIT_S)
    assert called == [13]
    futures = [client.submit(square, n) for n in range(30)]
    assert {one.result() for one in as_completed(futures, WAIT_S)} == {n * n for n in range(30)}

    async def all_of_them() -> list[int]:
        return await asyncio.gather(
            *(asyncio.wrap_future(client.submit(square, n)) for n in range(30))
        )

    assert asyncio.run(all_of_them()) == [n * n for n in range(30)]


def test_a_wait_can_be_interrupted(
    client: Client, gate: str, alarm: Callable[[float], None]
) -> None:
    future = client.submit(waits, gate)
    alarm(0.05)
    with pytest.raises(Alarm):
        future.result(WAIT_S)
    assert not future.done()
    Path(gate).write_text("well")
    assert future.result(WAIT_S) == "well"


def test_signals_leave_the_books_whole(client: Client, alarm: Callable[[float], None]) -> None:
    """A handler that raises at any moment may cost a call, never a task or the mesh."""
    moments = random.Random(7)
    futures = []
    interrupted = 0
    while len(futures) < 300 or interrupted < 50:
        number = len(futures)
        try:
            alarm(moments.uniform(1e-5, 1.5e-3))
            futures.append(client.submit(square, number))
            futures[-1].result(WAIT_S)
            alarm(0)
        except Alarm:
            interrupted += 1
    assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(len(futures))]
    turns = client._connection._turns
    with turns._lock:
        assert not turns._leader
        wire_of(client).node.check()


def test_a_fork_has_no_mesh(client: Client) -> None:
    future = client.submit(square, 3)
    future.result(WAIT_S)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        words = [str(future.result(0))]
        try:
            client.submit(square, 4)
        except NoDaemon as error:
            words.append(error.hint or "")
        client.close()
        os.write(write, "|".join(words).encode())
        os._exit(0)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    with open(read) as file:
        assert file.read() == "9|make a Client() of its own in each process"
    assert client.submit(square, 5).result(WAIT_S) == 25
    assert wire_of(client)._directory.is_dir()
