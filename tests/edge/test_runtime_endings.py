"""Crashes, kills, deadlines, lost fork servers and lost daemons: nothing is left running."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blackroad.bus import payload
from blackroad.errors import Busy, InvariantBroken
from blackroad.runtime import cgroups, forkserver, processes
from blackroad.runtime.events import Clean, Crashed, Finished, Gone, PoolEvent, Problem
from blackroad.runtime.pool import Pool
from blackroad.runtime.serving import RESTART_PAUSE_MS
from blackroad.runtime.task_process import RETIRE_ABOVE_BYTES
from tests.edge.groups import group as group
from tests.edge.pool_bench import (
    PATIENCE_S,
    STUBBORN,
    Bench,
    alive,
    call,
    stubborn,
    wait_file,
    wait_gone,
)

pytestmark = pytest.mark.edge

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["table", "group"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """The same endings with the process table alone, and with control groups."""
    group = request.getfixturevalue("group") if request.param == "group" else None
    bench = Bench(tmp_path / "objects", preload=("cloudpickle",), cgroup=group)
    yield bench
    bench.pool.close()
    assert group is None or not cgroups.populated(group)


# --- crashes ------------------------------------------------------------------------------------


def test_leaving_the_process_is_a_crash(bench: Bench) -> None:
    bench.launch("warm", call(abs, 1))
    end = bench.launch("leaves", call(lambda: os._exit(3)))
    assert end == Crashed("leaves", None, 3, "the task process left with status 3 (os._exit?)")
    assert bench.value(abs, -1) == 1


def test_a_segmentation_fault_is_a_crash_with_a_trace(bench: Bench) -> None:
    end = bench.launch("segfault", call(lambda: ctypes.string_at(0)))
    assert (end.signal, end.exit_status, end.lost) == (signal.SIGSEGV, None, False)
    assert "SIGSEGV" in end.text
    assert b"Fatal Python error: Segmentation fault" in bench.printed("segfault")
    assert bench.value(abs, -1) == 1


def test_children_of_a_crashed_task_are_gone_before_it_is_told(
    bench: Bench, tmp_path: Path
) -> None:
    def crash(path: str) -> None:
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        with open(path, "w") as file:
            file.write(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    end = bench.launch("crash", call(crash, str(tmp_path / "pid")))
    assert end.signal == signal.SIGKILL
    assert "memory" in end.text
    assert [pid for pid in wait_file(tmp_path / "pid", 1) if alive(pid)] == []


def test_writing_to_our_channel_ends_the_task_only(bench: Bench) -> None:
    def intrude() -> None:
        for fd in range(3, 100):
            try:
                socket.socket(fileno=os.dup(fd)).send(b"\xff garbage")
            except OSError:
                continue
        threading.Event().wait(30)

    end = bench.launch("intrude", call(intrude))
    assert isinstance(end, Crashed)
    assert "not its own" in end.text
    assert bench.value(abs, -1) == 1


def test_one_key_runs_once(bench: Bench) -> None:
    bench.pool.launch("key", call(abs, 1))
    with pytest.raises(InvariantBroken):
        bench.pool.launch("key", call(abs, 1))
    bench.end("key")


# --- kill ---------------------------------------------------------------------------------------


def test_a_killed_task_is_gone_with_all_it_started(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    bench.pool.launch("stubborn", call(stubborn, str(path), STUBBORN))
    limit = time.monotonic() + PATIENCE_S
    while not path.exists() or len(path.read_text().split()) < 5:
        assert time.monotonic() < limit
        bench.turn(20)
    pids = wait_file(path, 5)
    assert all(alive(pid) for pid in pids)
    bench.pool.kill("stubborn", "cancelled")
    bench.pool.kill("stubborn", "a second time")
    assert bench.end("stubborn") == Gone("stubborn", "cancelled")
    assert [pid for pid in pids if alive(pid)] == [], "gone means gone, not: soon"
    assert bench.value(abs, -1) == 1
    assert len(bench.ended("stubborn")) == 1


def test_a_bomb_of_forks_is_contained(bench: Bench) -> None:
    def bomb() -> None:
        for _ in range(30):
            if os.fork() == 0:
                select.select([], [], [])
        print("burning")
        select.select([], [], [])

    bench.pool.launch("bomb", call(bomb))
    bench.until(lambda: b"burning" in bench.printed("bomb"))
    pid = bench.pid("bomb")
    below = processes.below([e for e in processes.table() if e.pid == pid], processes.table())
    assert len(below) == 31
    bench.pool.kill("bomb", "cancelled")
    assert isinstance(bench.end("bomb"), Gone)
    assert [e.pid for e in below if alive(e.pid)] == []


def test_work_that_was_done_first_is_done(bench: Bench) -> None:
    bench.value(abs, 1)
    (process,) = bench.pool._processes.values()
    bench.pool.launch("quick", call(abs, -5))
    assert select.select([process.socket], [], [], PATIENCE_S)[0]
    bench.pool.kill("quick", "too late")
    end = bench.end("quick")
    assert isinstance(end, Finished)
    assert payload.decode(end.result) == 5
    assert bench.until(lambda: not bench.pool.pids)


def test_a_kill_before_the_fork_server_is_up(bench: Bench) -> None:
    bench.pool.launch("early", call(select.select, [], [], []))
    bench.pool.kill("early", "changed my mind")
    assert bench.end("early") == Gone("early", "changed my mind")
    bench.pool.kill("never heard of", "nothing happens")


def test_a_killed_task_leaves_no_half_written_result(bench: Bench) -> None:
    def slow() -> bytes:
        class Slow:
            def __reduce__(self) -> Any:
                print("pickling")
                select.select([], [], [])

        return bytes(1_000_000), Slow()  # type: ignore[return-value]

    bench.pool.launch("slow", call(slow))
    bench.until(lambda: b"pickling" in bench.printed("slow"))
    (process,) = bench.pool._processes.values()
    path = Path(bench.pool._incoming_path(process))
    path.write_bytes(b"half")
    bench.pool.kill("slow", "cancelled")
    bench.end("slow")
    assert not path.exists()


# --- deadlines ----------------------------------------------------------------------------------


def test_a_deadline_is_kept_while_the_daemon_does_nothing(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    todo = call(stubborn, str(path), STUBBORN, deadline_ms=processes.boot_ms() + 600_000)
    bench.pool.launch("late", todo)
    pids = wait_file(path, 5)
    bench.pool.extend("late", processes.boot_ms() + 10)
    assert wait_gone(pids) == [], "nobody called the pool meanwhile"
    assert bench.end("late") == Gone("late", "deadline")


def test_what_comes_after_its_deadline_is_not_begun(bench: Bench, tmp_path: Path) -> None:
    """A daemon that stood still sends what it decided before; somebody else may run it by now."""
    bench.launch("warm", call(abs, 1))
    before = set(bench.pool.pids)
    mark = tmp_path / "ran"
    late = call(mark.touch, deadline_ms=processes.boot_ms() - 1)
    assert bench.launch("late", late) == Gone("late", "deadline")
    assert bench.value(abs, -1) == 1
    assert not mark.exists()
    assert set(bench.pool.pids) == before


def test_the_deadline_is_watched_before_the_task_is_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon may be stopped between the two for as long as it pleases."""
    bench.launch("warm", call(abs, 1))
    due_ms = processes.boot_ms() + 1_000_000
    seen = []
    send = socket.socket.send

    def watched(self: socket.socket, data: bytes, *more: Any) -> int:
        seen.append(due_ms in list(bench.pool._deadlines))
        return send(self, data, *more)

    monkeypatch.setattr(socket.socket, "send", watched)
    bench.launch("watched", call(abs, 1, deadline_ms=due_ms))
    assert seen == [True]


def test_a_deadline_can_be_moved(bench: Bench) -> None:
    first_ms = processes.boot_ms() + 1500
    bench.pool.launch("moved", call(select.select, [], [], [], deadline_ms=first_ms))
    bench.pool.extend("moved", first_ms + 600_000)
    bench.pool.extend("unknown", 1)
    pid = bench.pid("moved")
    while processes.boot_ms() < first_ms + 2 * forkserver.DEADLINE_CHECK_MS:
        bench.turn(50)
    assert alive(pid)
    assert bench.ended("moved") == []


# --- idle ---------------------------------------------------------------------------------------


def test_idle_processes_end_after_a_while(tmp_path: Path) -> None:
    bench = Bench(tmp_path, idle_ms=1000, keep=1)
    bench.pool.tick(50_000)
    for key in range(3):
        bench.pool.launch(key, call(abs, key))
    for key in range(3):
        bench.end(key)
    bench.pool.tick(50_999)
    bench.until(lambda: len(bench.pool.pids) == 3)
    bench.pool.tick(51_000)
    bench.until(lambda: len(bench.pool.pids) == 1)
    bench.pool.tick(90_000)
    bench.turn(50)
    assert len(bench.pool.pids) == 1
    bench.pool.close()


@pytest.mark.slow
def test_a_process_that_grew_large_is_replaced(bench: Bench) -> None:
    def hoard() -> int:
        sys.hoard = b"x" * (RETIRE_ABOVE_BYTES + 1)  # type: ignore[attr-defined]
        return os.getpid()

    pid = bench.value(hoard)
    assert bench.until(lambda: pid not in bench.pool.pids)
    assert bench.value(os.getpid) != pid


# --- the fork server ----------------------------------------------------------------------------


def test_the_loss_of_the_fork_server_is_survived(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    bench.pool.launch("victim", call(stubborn, str(path), STUBBORN))
    bench.until(lambda: path.exists() and len(path.read_text().split()) >= 5)
    pids = wait_file(path, 5)
    server = bench.pool.server_pid
    os.kill(server, signal.SIGKILL)
    end = bench.end("victim")
    assert isinstance(end, Crashed)
    assert end.lost
    assert "fork server" in end.text
    assert [pid for pid in pids if alive(pid)] == [], "swept before it was told"
    assert bench.pool.server_pid not in (0, server)
    assert bench.value(abs, -1) == 1


def test_processes_made_early_take_the_first_tasks(bench: Bench) -> None:
    bench.pool.prefork(2)
    bench.pool.prefork(2)
    early = bench.until(lambda: len(bench.pool.pids) == 2 and set(bench.pool.pids))
    assert {bench.value(os.getpid) for _ in range(2)} < early
    assert set(bench.pool.pids) == early


def test_processes_that_no_fork_server_has_made_yet_wait_for_the_next_one(bench: Bench) -> None:
    while not any(isinstance(one, Problem) for one in bench.events):
        if bench.pool.server_pid:
            os.kill(bench.pool.server_pid, signal.SIGKILL)
        bench.turn()
    bench.pool.prefork(2)
    bench.pool.tick(2 * RESTART_PAUSE_MS)
    early = bench.until(lambda: len(bench.pool.pids) == 2 and set(bench.pool.pids))
    assert bench.value(os.getpid) in early


def test_task_processes_die_with_their_fork_server_at_once(bench: Bench) -> None:
    bench.pool.launch("victim", call(select.select, [], [], []))
    pid = bench.pid("victim")
    os.kill(bench.pool.server_pid, signal.SIGKILL)
    assert wait_gone([pid]) == [], "nobody called the pool meanwhile"


def test_a_task_that_kills_its_parent_does_not_harm_the_daemon(bench: Bench) -> None:
    server = bench.value(os.getppid)
    end = bench.launch("patricide", call(lambda: os.kill(os.getppid(), signal.SIGKILL)))
    # It may even have got so far as to say that it is done.
    assert isinstance(end, Finished) or (isinstance(end, Crashed) and end.lost)
    bench.until(lambda: bench.pool.server_pid not in (0, server))
    assert bench.value(abs, -1) == 1


def test_a_fork_server_that_keeps_dying_is_a_problem_and_then_tried_again(bench: Bench) -> None:
    def problems() -> list[Problem]:
        return [event for event in bench.events if isinstance(event, Problem)]

    def kill_server() -> bool:
        if bench.pool.server_pid:
            os.kill(bench.pool.server_pid, signal.SIGKILL)
        return bool(problems())

    bench.until(kill_server)
    (problem,) = problems()
    assert "times within a minute" in problem.error.message
    assert problem.error.hint
    assert bench.pool.server_pid == 0
    bench.pool.launch("waits", call(abs, -7))
    bench.pool.tick(5_000)
    assert payload.decode(bench.end("waits").result) == 7


def test_a_fork_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    pool = Pool(objects_dir=str(tmp_path), environment={"PYTHONHOME": "/nonexistent"})
    pool.start()
    found: list[PoolEvent] = []
    limit = time.monotonic() + PATIENCE_S
    while not any(isinstance(event, Problem) for event in found):
        assert time.monotonic() < limit
        poller = select.poll()
        for fd in pool.fds():
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(500):
            found += pool.read(fd)
    pool.close()


DAEMON = """
import select, sys
sys.path.insert(0, {root!r})
from blackroad.bus import payload, work
from blackroad.runtime.pool import Pool, Run, base_environment
from tests.edge.pool_bench import STUBBORN, call, stubborn
pool = Pool(objects_dir=sys.argv[1], environment=base_environment())
pool.start()
for key in range(2):
    pool.launch(key, call(stubborn, sys.argv[2], STUBBORN))
with open(sys.argv[3], "w") as file:
    file.write(str(pool.server_pid))
while True:
    poller = select.poll()
    for fd in pool.fds():
        poller.register(fd, select.POLLIN)
    for fd, _ in poller.poll():
        pool.read(fd)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int], int]]:
    """A process with a pool and ten task processes and children; and the fork server's pid."""
    arguments = [str(tmp_path / name) for name in ("objects", "pids", "server")]
    script = DAEMON.format(root=str(ROOT))
    process = subprocess.Popen([sys.executable, "-c", script, *arguments])
    pids = wait_file(tmp_path / "pids", 10)
    (server,) = wait_file(tmp_path / "server", 1)
    yield process, pids, server
    process.kill()
    process.wait()
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


Daemon = tuple["subprocess.Popen[bytes]", list[int], int]


def test_a_killed_daemon_leaves_no_process(daemon: Daemon) -> None:
    process, pids, server = daemon
    assert all(alive(pid) for pid in (*pids, server))
    process.kill()
    process.wait()
    assert wait_gone([*pids, server]) == []


def test_what_a_killed_daemon_and_fork_server_left_is_swept_at_the_next_start(
    daemon: Daemon, tmp_path: Path
) -> None:
    process, pids, server = daemon
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(server, signal.SIGKILL)
    process.kill()
    process.wait()
    assert any(alive(pid) for pid in pids), "orphans that nobody was left to kill"
    bench = Bench(tmp_path / "objects")
    bench.until(lambda: any(isinstance(event, Clean) for event in bench.events))
    assert [pid for pid in pids if alive(pid)] == []
    bench.pool.close()


# --- many ---------------------------------------------------------------------------------------


def test_each_launch_has_exactly_one_end(bench: Bench) -> None:
    chance = random.Random(20261122)
    kinds = {
        "fine": call(abs, -1),
        "raises": call(lambda: 1 // 0),
        "exits": call(lambda: os._exit(1)),
        "large": call(lambda: bytes(100_000)),
        "hangs": call(select.select, [], [], []),
        "messy": call(lambda: subprocess.Popen(["sleep", "1000"]).pid),
        "prints": call(lambda: print("x" * 5000)),
    }
    plan = [(number, chance.choice(sorted(kinds))) for number in range(120)]
    waiting = list(plan)
    running: dict[int, str] = {}
    while waiting or running:
        while waiting and len(running) < 6:
            number, kind = waiting.pop()
            bench.pool.launch(number, kinds[kind])
            running[number] = kind
        for number, kind in running.items():
            if kind == "hangs" or chance.random() < 0.1:
                bench.pool.kill(number, "killed")
        bench.turn(5000)
        running = {n: kind for n, kind in running.items() if not bench.ended(n)}
    expected = {"fine": Finished, "hangs": Gone}
    for number, kind in plan:
        (end,) = bench.ended(number)
        if not isinstance(end, Gone):
            assert isinstance(end, expected.get(kind, Finished | Crashed)), (kind, end)
    assert bench.pool.busy == 0


def test_closing_ends_everything_and_gives_every_descriptor_back(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    bench = Bench(tmp_path / "objects")
    for key in range(3):
        bench.pool.launch(key, call(stubborn, str(tmp_path / "pids"), STUBBORN))
    path = tmp_path / "pids"
    bench.until(lambda: path.exists() and len(path.read_text().split()) >= 15)
    pids = [*wait_file(path, 15), bench.pool.server_pid]
    bench.pool.close()
    bench.pool.close()
    assert [pid for pid in pids if alive(pid)] == []
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert list(bench.pool.fds()) == []


def test_a_full_table_of_descriptors_is_busy_and_passes(bench: Bench) -> None:
    bench.value(abs, 1)
    before = sorted(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 3, hard))
    try:
        with pytest.raises(Busy, match="no further task process") as caught:
            bench.pool.launch("one too many", call(abs, 1, environment={"OWN": "process"}))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "LimitNOFILE" in caught.value.hint
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert bench.value(abs, -1) == 1
