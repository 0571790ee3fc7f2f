"""Who serves a connection: threads that wait, threads that do not, forks and signal handlers."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from pathlib import Path

import pytest

from blackroad import Client
from blackroad.errors import NoDaemon, TaskFailed
from tests.edge.alarms import Alarm
from tests.edge.meshes import until

pytestmark = pytest.mark.edge

WAIT_S = 60.0


def square(number: int) -> int:
    return number * number


def fails(number: int) -> None:
    raise ValueError(number)


def waits(path: str) -> str:
    with open(path) as file:
        return file.read()


@pytest.fixture
def gate(tmp_path: Path) -> str:
    path = str(tmp_path / "gate")
    os.mkfifo(path)
    return path


def test_the_thread_that_waits_serves(client: Client) -> None:
    """The turns that bring a result are taken where somebody waits for it."""
    connection = client._connection
    seen: list[int] = []
    take = connection.turn

    def turn(ready: object) -> None:
        seen.append(threading.get_ident())
        take(ready)  # type: ignore[arg-type]

    connection.turn = turn  # type: ignore[method-assign, assignment]
    assert [client.submit(square, n).result(WAIT_S) for n in range(50)] == [
        n * n for n in range(50)
    ]
    assert seen.count(threading.get_ident()) > len(seen) / 2


def test_a_limit_of_time_is_kept_while_it_serves(client: Client, gate: str) -> None:
    future = client.submit(waits, gate)
    with pytest.raises(TimeoutError):
        future.result(0.05)
    with pytest.raises(TimeoutError):
        future.exception(0.05)
    assert not client._connection._turns._leader
    Path(gate).write_text("well")
    assert future.result(WAIT_S) == "well"


def test_one_thread_serves_for_all(client: Client, gate: str) -> None:
    """Others wait, submit and get results while one of them is stuck with a long task."""
    long = client.submit(waits, gate)
    found: list[object] = []
    leader = threading.Thread(target=lambda: found.append(long.result(WAIT_S)))
    leader.start()
    until(lambda: client._connection._turns._leader, "a thread that serves")
    assert [client.submit(square, n).result(WAIT_S) for n in range(30)] == [
        n * n for n in range(30)
    ]
    futures = [client.submit(square, n) for n in range(300)]
    assert [one.result(WAIT_S) for one in futures] == [n * n for n in range(300)]
    with pytest.raises(ValueError, match="3") as caught:
        client.submit(fails, 3).result(WAIT_S)
    assert isinstance(caught.value, TaskFailed)
    assert client.nodes()["nodes"]
    Path(gate).write_text("well")
    leader.join(WAIT_S)
    assert found == ["well"]


def test_many_threads(client: Client) -> None:
    found: list[int] = []

    def use(start: int) -> None:
        for n in range(40):
            found.append(client.submit(square, start + n).result(WAIT_S))

    threads = [threading.Thread(target=use, args=(100 * n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(found) == sorted(square(100 * a + n) for a in range(5) for n in range(40))


def test_callbacks_may_use_the_client(client: Client) -> None:
    called: list[object] = []
    done = threading.Event()

    def on_done(future: Future[int]) -> None:
        called.append(threading.current_thread() is threading.main_thread())
        called.append(future.result() + client.submit(square, 2).result(WAIT_S))
        called.append(len(client.nodes()["nodes"]) > 0)
        done.set()

    future = client.submit(square, 3)
    future.add_done_callback(on_done)
    assert future.result(WAIT_S) == 9
    assert done.wait(WAIT_S)
    assert called[1:] == [13, True]


def test_callbacks_may_wait_within_callbacks(client: Client) -> None:
    called: list[int] = []
    done = threading.Event()

    def inner(future: Future[int]) -> None:
        called.append(future.result() + client.submit(square, 4).result(WAIT_S))
        done.set()

    def outer(future: Future[int]) -> None:
        second = client.submit(square, 3)
        second.add_done_callback(inner)
        called.append(second.result(WAIT_S))

    client.submit(square, 2).add_done_callback(outer)
    assert done.wait(WAIT_S)
    until(lambda: len(called) == 2, "the end of both callbacks")
    assert sorted(called) == [9, 25]


def test_a_result_does_not_wait_for_callbacks(client: Client, gate: str) -> None:
    # One that is done already would call back at once, in this thread.
    future = client.submit(waits, gate)
    left = threading.Event()
    in_time: list[bool] = []
    future.add_done_callback(lambda _: in_time.append(left.wait(WAIT_S)))
    Path(gate).write_text("well")
    assert future.result(WAIT_S) == "well"
    left.set()
    until(lambda: in_time, "the end of the callback")
    assert in_time == [True]


def test_the_ways_of_the_library(client: Client, gate: str) -> None:
    futures = [client.submit(square, n) for n in range(100)]
    assert {one.result() for one in as_completed(futures, WAIT_S)} == {n * n for n in range(100)}
    long = client.submit(waits, gate)
    soon = [client.submit(square, n) for n in range(3)]
    ended, others = wait([long, *soon], WAIT_S, FIRST_COMPLETED)
    assert ended
    assert long in others
    Path(gate).write_text("well")

    async def all_of_them() -> list[object]:
        return await asyncio.gather(
            *(asyncio.wrap_future(one) for one in (long, *soon, client.submit(square, 9)))
        )

    assert asyncio.run(all_of_them()) == ["well", 0, 1, 4, 81]


def test_a_wait_can_be_interrupted(
    client: Client, gate: str, alarm: Callable[[float], None]
) -> None:
    future = client.submit(waits, gate)
    alarm(0.05)
    with pytest.raises(Alarm):
        future.result(WAIT_S)
    Path(gate).write_text("well")
    assert future.result(WAIT_S) == "well"


def test_signals_lose_nothing(client: Client, alarm: Callable[[float], None]) -> None:
    moments = random.Random(11)
    futures = []
    interrupted = 0
    while len(futures) < 200 or interrupted < 30:
        number = len(futures)
        try:
            alarm(moments.uniform(1e-5, 2e-3))
            futures.append(client.submit(square, number))
            futures[-1].result(WAIT_S)
            alarm(0)
        except Alarm:
            interrupted += 1
    assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(len(futures))]


def test_a_fork_is_told(client: Client, gate: str) -> None:
    done, waiting = client.submit(square, 3), client.submit(waits, gate)
    done.result(WAIT_S)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        words = [str(done.result(0))]
        for use in (lambda: client.submit(square, 4), client.nodes, waiting.result):
            try:
                use()
            except NoDaemon as error:
                words.append(str("forked" in error.message))
        client.close()
        os.write(write, " ".join(words).encode())
        os._exit(0)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    with open(read) as file:
        assert file.read() == "9 True True True"
    Path(gate).write_text("well")
    assert waiting.result(WAIT_S) == "well"
    assert client.submit(square, 5).result(WAIT_S) == 25


def test_a_client_that_was_closed_says_so(pair: object, client: Client, gate: str) -> None:
    waiting = client.submit(waits, gate)
    found: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: found.append(waiting.exception(WAIT_S)))
    thread.start()
    until(lambda: client._connection._turns._leader, "a thread that serves")
    client.close()
    thread.join(WAIT_S)
    assert isinstance(found[0], NoDaemon)
    with pytest.raises(NoDaemon, match="closed"):
        client.submit(square, 3)


HANDLERS_USE_IT = """
import random
import signal

from blackroad import Client
from blackroad.errors import NoDaemon


def square(number):
    return number * number


def ring(handler):
    signal.signal(signal.SIGALRM, lambda number, frame: handler())


with Client(embedded=True, workers=1) as client:
    moments = random.Random(5)
    found = []

    def trip(number):
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 2e-3))
        assert client.submit(square, number).result() == number * number

    # What is imported at the first use cannot be imported within itself.
    assert client.submit(square, 0).result() == 0
    ring(lambda: found.append(client.submit(square, 7).result()))
    number = 1
    while len(found) < 40:
        trip(number)
        number += 1
    ring(client.close)
    try:
        while True:
            trip(number)
    except NoDaemon:
        print(sorted(set(found)), "closed")
"""


def test_signal_handlers_may_use_and_close_the_client() -> None:
    # In a program of its own: one that waits for itself could not be ended in this one.
    ran = subprocess.run(
        [sys.executable, "-c", HANDLERS_USE_IT], capture_output=True, text=True, timeout=WAIT_S
    )
    assert (ran.stdout, ran.stderr) == ("[49] closed\n", "")
