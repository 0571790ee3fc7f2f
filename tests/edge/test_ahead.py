"""Handing ahead in real processes: the next task lies ready, and the claim says who has it."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blackroad.bus import payload
from blackroad.runtime import processes
from blackroad.runtime.events import Apart, Crashed, Finished, Gone, Output, PoolEvent, Returned
from tests.edge.pool_bench import Bench, wait_gone
from tests.edge.test_bundles import began, bundle, steps_of, values

pytestmark = pytest.mark.edge


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "objects", preload=("cloudpickle",))
    yield bench
    bench.pool.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


class Pair:
    """A first task, or bundle, that runs, and a second one that was handed to its process.

    The first one goes on at `go`; a last one of either that "waits" does so until `end`.
    """

    def __init__(
        self,
        bench: Bench,
        log: Path,
        first: str = "",
        second: str = "",
        sizes: tuple[int, int] = (1, 1),
    ) -> None:
        self.bench = bench
        self.log = log
        self.go, self.end = log.parent / "go", log.parent / "end"
        for path in (self.go, log):
            path.unlink(missing_ok=True)
        far_ms = processes.boot_ms() + 600_000
        steps = steps_of(log, sizes[0], {sizes[0] - 1: first}, str(log.parent / "pid"))
        waits = (str(log), -1, "waits", str(self.go))
        self.first = bundle([waits, *steps], deadline_ms=far_ms)
        steps = steps_of(log, sizes[1], {sizes[1] - 1: second}, str(self.end))
        later = [(path, 1000 + number, deed, way) for path, number, deed, way in steps]
        self.second = bundle(later, deadline_ms=far_ms)
        # The code has to be known where something is handed ahead.
        bench.launch(object(), bundle([(str(log), -2)]))
        bench.pool.launch("a", self.first)
        bench.until(lambda: len(began(log)) == 2)
        bench.pool.hand_ahead("b", self.second, "a")

    def lies_ready(self) -> bool:
        return "b" in self.bench.pool._ahead

    def told(self, events: list[PoolEvent]) -> None:
        self.bench.events += events

    def end_of_a(self) -> Any:
        self.go.touch()
        return self.bench.end("a")

    def end_of_b(self) -> Any:
        self.told(self.bench.pool.launch("b", self.second))
        return self.bench.end("b")

    def began(self) -> list[int]:
        return [number for number in began(self.log) if number >= 0]

    def begins_unread(self) -> None:
        """Let the first one end and the second one begin, and read nothing of it."""
        self.go.touch()
        while 1000 not in self.began():
            select.select([], [], [], 0.01)


def test_the_next_one_begins_without_a_word(bench: Bench, log: Path) -> None:
    """Nothing is told of it before it is launched, and then everything."""
    pair = Pair(bench, log)
    assert pair.lies_ready()
    end = pair.end_of_a()
    assert (end.status, payload.decode(end.result)) == ("done", 0)
    bench.until(lambda: len(pair.began()) == 2)
    bench.until(lambda: bench.pool._untold.get("b"))
    assert not bench.ended("b")
    end = pair.end_of_b()
    assert (end.status, payload.decode(end.result)) == ("done", 1000)
    assert list(bench.pool.pids.values()) == [None]
    assert bench.value(abs, -7) == 7


def test_bundles_follow_each_other_without_mixing(bench: Bench, log: Path) -> None:
    for _ in range(3):
        bench.events.clear()
        pair = Pair(bench, log, sizes=(20, 30))
        assert pair.lies_ready()
        first, second = pair.end_of_a(), pair.end_of_b()
        assert values(first.before) == [-1, *range(19)]
        assert values(second.before) == list(range(1000, 1029))
        assert payload.decode(second.result) == 1029


def test_what_is_withdrawn_never_begins(bench: Bench, log: Path) -> None:
    pair = Pair(bench, log, sizes=(1, 3))
    assert bench.pool.withdraw("b") == [Returned("b")]
    assert bench.pool.withdraw("b") == [Returned("b")]
    pair.end_of_a()
    # What comes next passes over it, in its process.
    assert bench.value(abs, -7) == 7
    assert pair.began() == [0]
    # And it can be launched like any other, or be handed ahead again.
    assert payload.decode(pair.end_of_b().result) == 1002


def test_what_has_begun_is_not_withdrawn(bench: Bench, log: Path) -> None:
    pair = Pair(bench, log)
    pair.go.touch()
    bench.until(lambda: len(pair.began()) == 2)
    assert bench.pool.withdraw("b") == []
    bench.end("a")
    assert payload.decode(pair.end_of_b().result) == 1000


def test_withdrawing_at_any_moment_tells_the_truth(bench: Bench, log: Path) -> None:
    """The claim decides: what is said to be returned has not begun, and what is not will end.

    The claims go back all at once, so a bundle that has begun may end early, as one that is
    divided does; what is told of it is what ran.
    """
    told = set()
    for round_ in range(40):
        bench.events.clear()
        pair = Pair(bench, log, sizes=(round_ % 3 + 1, 2))
        pair.go.touch()
        while len(pair.began()) < min(round_ % 5, round_ % 3 + 2):
            select.select([], [], [], 0.001)
        returned = bench.pool.withdraw("b")
        told.add(bool(returned))
        bench.end("a")
        if returned:
            bench.value(abs, -1)
            assert 1000 not in pair.began()
        end = pair.end_of_b()
        ran = [one for one in pair.began() if one >= 1000]
        assert [*values(end.before), payload.decode(end.result)] == ran
        assert ran == [1000, 1001] or (ran == [1000] and not returned)
    assert told == {True, False}


@pytest.mark.parametrize(
    ("deed", "begins"),
    [
        ("raises", True),
        ("large", True),
        ("moves", True),
        ("prints", False),
        ("prints below", False),
    ],
)
def test_after_an_odd_end(bench: Bench, log: Path, deed: str, begins: bool) -> None:
    """After a failure it goes on; where something is left to be done first, it does not."""
    pair = Pair(bench, log, deed)
    end = pair.end_of_a()
    assert isinstance(end, Finished)
    if begins:
        bench.until(lambda: 1000 in pair.began())
    else:
        assert not pair.lies_ready()
        assert "b" not in bench.pool._untold
    assert payload.decode(pair.end_of_b().result) == 1000
    printed = [event for event in bench.events if isinstance(event, Output)]
    assert {event.key for event in printed} == ({"a"} if deed.startswith("prints") else set())
    assert pair.began() == [0, 1000]


@pytest.mark.parametrize("deed", ["child", "fork", "thread", "killed", "leaves", "closes"])
def test_after_an_end_of_the_process(bench: Bench, log: Path, deed: str) -> None:
    """It is nobody's fault but the first one's: the next one begins elsewhere."""
    pair = Pair(bench, log, deed)
    pair.end_of_a()
    assert 1000 not in pair.began()
    assert "b" not in bench.pool._untold
    end = pair.end_of_b()
    assert isinstance(end, Finished)
    assert payload.decode(end.result) == 1000
    assert pair.began() == [0, 1000]


@pytest.mark.parametrize("deed", ["killed", "leaves"])
def test_a_crash_of_what_began_by_itself(bench: Bench, log: Path, deed: str) -> None:
    """The first one is done, and the second one has crashed: each end is told of its own task."""
    pair = Pair(bench, log, second=deed, sizes=(1, 3))
    end = pair.end_of_a()
    assert isinstance(end, Finished)
    bench.until(lambda: bench.pool._untold.get("b"))
    end = pair.end_of_b()
    assert isinstance(end, Crashed)
    assert values(end.before) == [1000, 1001]
    assert not end.lost


def test_what_it_prints_is_its_own(bench: Bench, log: Path) -> None:
    pair = Pair(bench, log, second="prints")
    pair.end_of_a()
    bench.until(lambda: 1000 in pair.began())
    pair.end_of_b()
    assert [(one.key, one.data) for one in bench.events if isinstance(one, Output)] == [
        ("b", b"this is 1000\n")
    ]


def test_a_kill_takes_the_one_it_names(bench: Bench, log: Path) -> None:
    """The first one runs: it dies, and what lay behind it begins elsewhere."""
    pair = Pair(bench, log)
    bench.pool.kill("a", "stop")
    assert isinstance(bench.end("a"), Gone)
    assert 1000 not in pair.began()
    assert payload.decode(pair.end_of_b().result) == 1000


def test_a_kill_that_comes_too_late_takes_nobody(bench: Bench, log: Path) -> None:
    """The first one has ended, and its process runs the second one."""
    pair = Pair(bench, log, second="waits")
    pair.begins_unread()
    bench.pool.kill("a", "stop")
    assert isinstance(bench.end("a"), Finished)
    pair.end.touch()
    assert isinstance(pair.end_of_b(), Finished)
    assert pair.began() == [0, 1000]


def test_nothing_lies_behind_what_may_run_longer(bench: Bench, log: Path) -> None:
    """The deadline that is watched is that of the first one."""
    pair = Pair(bench, log)
    now_ms = processes.boot_ms()
    bench.pool.extend("b", now_ms + 700_000)
    bench.pool.extend("a", now_ms + 700_000)
    assert pair.lies_ready()
    bench.pool.extend("a", now_ms + 800_000)
    assert not pair.lies_ready()
    bench.pool.hand_ahead("c", pair.second, "a")
    assert "c" not in bench.pool._ahead
    pair.end_of_a()
    pair.end_of_b()


@pytest.mark.parametrize("first", ["channel", "server"])
def test_a_deadline_that_passes_ends_the_second_one_too(
    bench: Bench, log: Path, first: str
) -> None:
    """As long as nothing is heard of it here, the first one's deadline is watched.

    Which of the two is read first, the word of the process or that of the fork server, must not
    make a difference: the second one is lost, and it was not its own deadline that passed.
    """
    pair = Pair(bench, log, second="waits")
    pool, pid = bench.pool, bench.pid("a")
    process = pool._running["a"]
    link = pool._serving._server
    assert link is not None
    channel, server = process.socket.fileno(), link.control_fd
    pair.begins_unread()
    pool._deadlines[process.slot] = processes.boot_ms()
    assert wait_gone([pid]) == []
    select.select([server], [], [])
    if first == "channel":
        bench.events += pool.read(channel)
        assert isinstance(bench.end("a"), Finished)
    while not bench.ended("a") or not pool._untold.get("b"):
        select.select([server], [], [])
        bench.events += pool.read(server)
    assert isinstance(bench.end("a"), Finished)
    end = pair.end_of_b()
    assert isinstance(end, Crashed)
    assert end.lost
    assert end.started
    assert "deadline of the task before" in end.text


@pytest.mark.parametrize("whom", ["server", "process"])
def test_what_dies_under_them(bench: Bench, log: Path, whom: str) -> None:
    """The first one is lost; the second one never began, and begins elsewhere."""
    pair = Pair(bench, log)
    pid = bench.pool.server_pid if whom == "server" else bench.pid("a")
    os.kill(pid, signal.SIGKILL)
    assert isinstance(bench.end("a"), Crashed)
    pair.go.touch()
    assert payload.decode(pair.end_of_b().result) == 1000
    assert pair.began() == [1000]


def test_a_bundle_is_divided_before_its_first_task_began(bench: Bench, log: Path) -> None:
    """What follows was launched, and its process has not looked at it yet."""
    for round_ in range(20):
        bench.events.clear()
        pair = Pair(bench, log, sizes=(1, 5))
        pair.end_of_a()
        pair.told(bench.pool.launch("b", pair.second))
        apart = bench.pool.divide("b")
        end = bench.end("b")
        assert isinstance(end, Finished), round_
        count = len(end.before) + 1
        assert pair.began() == [0, *range(1000, 1000 + count)]
        for one in apart:
            assert isinstance(one, Apart)
            assert len(one.before) + 1 == count


def test_one_after_the_other_each_handed_ahead(bench: Bench, log: Path) -> None:
    """A stream: each is handed to the process of the one before it, and all run once, in order."""
    far_ms = processes.boot_ms() + 600_000
    runs = [bundle([(str(log), number)], deadline_ms=far_ms) for number in range(300)]
    bench.launch("first", runs[0])
    bench.pool.launch(1, runs[1])
    for number in range(2, 300):
        bench.pool.hand_ahead(number, runs[number], number - 1)
        bench.end(number - 1)
        bench.events += bench.pool.launch(number, runs[number])
    bench.end(299)
    assert began(log) == list(range(300))
    assert list(bench.pool.pids.values()) == [None]
