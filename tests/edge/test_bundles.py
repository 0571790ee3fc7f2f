"""Bundles in real processes: a hundred small tasks, and one of them is not as the others."""

from __future__ import annotations

import collections
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from blackroad import Client, Needs
from blackroad.bus import messages as m
from blackroad.bus import payload, work
from blackroad.errors import TaskFailed, WorkerCrashed
from blackroad.limits import CRASH_RETRIES
from blackroad.runtime import processes
from blackroad.runtime.events import Apart, Crashed, Finished, Gone, Output, PoolEvent, Run
from tests.edge.meshes import Mesh, mesh_of, until
from tests.edge.pool_bench import Bench, alive

pytestmark = pytest.mark.edge

WAIT_S = 60.0
MANY = 100


def step(log: str, number: int, deed: str = "", path: str = "") -> Any:
    """Write down that it began, do something odd perhaps, and return its number."""
    import os
    import select
    import signal
    import subprocess
    import sys
    import threading

    from blackroad.runtime.context import current

    context = current()
    attempt = f"{context.token[0]}/{context.token[1]}" if context else ""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{number} {attempt}\n".encode())
    os.close(fd)
    match deed:
        case "raises":
            raise ValueError(f"number {number}")
        case "prints":
            print(f"this is {number}")
        case "prints below":
            os.write(2, f"this is {number}\n".encode())
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leaves":
            os._exit(3)
        case "exits":
            sys.exit(3)
        case "child":
            pid = subprocess.Popen(["sleep", "600"]).pid
            if path:
                with open(path, "w") as file:
                    file.write(str(pid))
        case "fork":
            pid = os.fork()
            if not pid:
                signal.pause()
            if path:
                with open(path, "w") as file:
                    file.write(str(pid))
        case "copy":
            if os.fork() == 0:
                return "nobody's"
        case "thread":
            threading.Thread(target=threading.Event().wait, args=(600,)).start()
        case "moves":
            os.chdir("/")
            os.environ["SPOILT"] = "yes"
            os.environ.pop("HOME", None)
            os.umask(0o777)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "closes":
            os.closerange(3, 4096)
        case "large":
            return bytes(200_000)
        case "waits":
            while not os.path.exists(path):
                select.select([], [], [], 0.02)
        case "looks":
            return os.getcwd(), os.environ.get("SPOILT"), os.environ.get("HOME"), os.umask(0o22)
        case "unsendable":
            return (number for _ in ())
    return number


def task(number: int) -> bytes:
    return number.to_bytes(16, "big")


def bundle(steps: Sequence[tuple[Any, ...]], **fields: Any) -> Run:
    """These calls of `step` as one bundle."""
    digest, blob, name = payload.encode_function(step)
    works = [
        payload.join(work.encode_work(work.Call(name, payload.encode((args, {})))))
        for args in steps
    ]
    more = tuple(m.Small(task(at), one) for at, one in enumerate(works[1:], 1))
    return Run(
        work=works[0],
        task=task(0),
        code_digest=digest,
        code=blob,
        more=more,
        node="attic",
        **fields,
    )


def steps_of(log: Path, count: int, odd: dict[int, str], path: str = "") -> list[tuple[Any, ...]]:
    return [(str(log), number, odd.get(number, ""), path) for number in range(count)]


def began(log: Path) -> list[int]:
    """Which tasks began, in order."""
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


def values(before: Sequence[m.Early]) -> list[Any]:
    return [payload.decode(one.result) for one in before]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "objects", preload=("cloudpickle",))
    yield bench
    bench.pool.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def outputs(bench: Bench) -> list[tuple[int, bytes]]:
    return [(one.place, one.data) for one in bench.events if isinstance(one, Output)]


# --- through the pool ---------------------------------------------------------------------------


def test_a_bundle_runs_in_order_in_one_process(bench: Bench, log: Path) -> None:
    end = bench.launch("b", bundle(steps_of(log, MANY, {})))
    assert isinstance(end, Finished)
    assert (end.status, payload.decode(end.result)) == ("done", MANY - 1)
    assert values(end.before) == list(range(MANY - 1))
    assert began(log) == list(range(MANY))
    assert list(bench.pool.pids.values()) == [None]
    assert [one for one in bench.events if isinstance(one, Apart)] == []


def test_bundles_and_single_tasks_follow_each_other(bench: Bench, log: Path) -> None:
    """What is left of one bundle is nothing to the next: no claim, no result."""
    for round_ in range(3):
        end = bench.launch(("odd", round_), bundle(steps_of(log, 9, {4: "raises"})))
        assert (end.status, len(end.before)) == ("failed", 4)
        assert bench.value(abs, -round_) == round_
        end = bench.launch(("all", round_), bundle(steps_of(log, 3, {})))
        assert (values(end.before), payload.decode(end.result)) == ([0, 1], 2)
    assert began(log) == [*range(5), *range(3)] * 3


Check = Callable[[Any], object]


def _failed(kind: str) -> Check:
    return lambda end: (
        isinstance(end, Finished)
        and end.status == "failed"
        and work.decode_failure(end.result).type_name == kind
    )


def _crashed(number: int | None, status: int | None) -> Check:
    return lambda end: (
        isinstance(end, Crashed)
        and (end.signal, end.exit_status, end.lost) == (number, status, False)
    )


def _done(end: PoolEvent) -> object:
    return isinstance(end, Finished) and end.status == "done"


LAST = {
    "raises": _failed("ValueError"),
    "exits": _failed("SystemExit"),
    "unsendable": _failed("ResultNotPicklable"),
    "killed": _crashed(signal.SIGKILL, None),
    "leaves": _crashed(None, 3),
    "prints": _done,
    "prints below": _done,
    "child": _done,
    "fork": _done,
    "thread": _done,
    "large": _done,
}


@pytest.mark.parametrize("place", [0, 37, MANY - 1])
@pytest.mark.parametrize("deed", LAST)
def test_an_odd_one_is_the_last_that_begins(bench: Bench, log: Path, deed: str, place: int) -> None:
    """R-bundle-4, R-bundle-5: those before it are done, those after it never began."""
    end = bench.launch("b", bundle(steps_of(log, MANY, {place: deed})))
    assert LAST[deed](end), end
    assert values(end.before) == list(range(place))
    assert began(log) == list(range(place + 1))
    told = b"".join(data for _, data in outputs(bench))
    assert {at for at, _ in outputs(bench)} <= {place}
    assert told == (b"this is %d\n" % place if deed.startswith("prints") else b"")
    # The next one runs in any case.
    assert bench.value(abs, -7) == 7


def test_who_closes_all_descriptors_has_crashed(bench: Bench, log: Path) -> None:
    """It cannot claim the next one, so nothing begins after it."""
    end = bench.launch("b", bundle(steps_of(log, MANY, {37: "closes"})))
    assert isinstance(end, Crashed)
    assert values(end.before) == list(range(37))
    assert began(log) == list(range(38))


def test_what_one_does_to_its_surroundings_does_not_reach_the_next(bench: Bench, log: Path) -> None:
    odd = {0: "looks", 1: "moves", 2: "looks", 3: "moves", 4: "looks"}
    end = bench.launch("b", bundle(steps_of(log, 6, odd)))
    found = values(end.before)
    assert found[0] == found[2] == found[4]
    assert payload.decode(end.result) == 5


def test_a_copy_that_returns_into_our_code_begins_nothing(bench: Bench, log: Path) -> None:
    """Both have the same claims, and only the original takes them."""
    end = bench.launch("b", bundle(steps_of(log, MANY, {37: "copy"})))
    assert isinstance(end, Finished)
    rest = len(end.before) + 1
    assert began(log) == list(range(rest))
    assert values(end.before) == list(range(rest - 1))
    assert rest >= 38


@pytest.mark.parametrize("deed", ["child", "fork"])
def test_what_was_left_running_is_gone_before_the_end(
    bench: Bench, log: Path, tmp_path: Path, deed: str
) -> None:
    path = tmp_path / "pid"
    end = bench.launch("b", bundle(steps_of(log, 5, {2: deed}, str(path))))
    assert not alive(int(path.read_text()))
    assert end.facts["left_behind"] == "processes"


def test_a_bundle_is_divided_while_it_runs(bench: Bench, log: Path, tmp_path: Path) -> None:
    """R-bundle-5: what has not begun is taken back at once, in one step."""
    go = tmp_path / "go"
    bench.pool.launch("b", bundle(steps_of(log, MANY, {37: "waits"}, str(go))))
    bench.until(lambda: len(began(log)) == 38)
    [apart] = bench.pool.divide("b")
    assert isinstance(apart, Apart)
    assert values(apart.before) == list(range(37))
    # Asked again it says the same.
    assert bench.pool.divide("b") == [apart]
    go.touch()
    end = bench.end("b")
    assert isinstance(end, Finished)
    assert (values(end.before), payload.decode(end.result)) == (list(range(37)), 37)
    assert began(log) == list(range(38))
    assert bench.pool.divide("b") == []


def test_dividing_at_any_moment_tells_the_truth(bench: Bench, log: Path) -> None:
    """The claim decides: never does a task begin that was said to be taken back."""
    for round_ in range(60):
        log.unlink(missing_ok=True)
        bench.pool.launch(round_, bundle(steps_of(log, 60, {})))
        bench.until(lambda goal=round_ % 50: len(began(log)) >= goal)
        apart = bench.pool.divide(round_)
        end = bench.end(round_)
        assert isinstance(end, Finished)
        assert values(end.before) == list(range(len(end.before)))
        assert began(log) == list(range(len(end.before) + 1))
        assert not apart or apart[0].before == end.before  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["kill", "deadline", "server"])
def test_what_ends_a_bundle_from_outside_leaves_what_is_done(
    bench: Bench, log: Path, tmp_path: Path, how: str
) -> None:
    todo = bundle(steps_of(log, MANY, {37: "waits"}, str(tmp_path / "never")))
    bench.pool.launch("b", todo)
    bench.until(lambda: len(began(log)) == 38)
    match how:
        case "kill":
            bench.pool.kill("b", "stop")
        case "deadline":
            bench.pool.extend("b", processes.boot_ms())
        case "server":
            os.kill(bench.pool.server_pid, signal.SIGKILL)
    end = bench.end("b")
    assert values(end.before) == list(range(37))
    if how == "server":
        assert isinstance(end, Crashed)
        assert end.lost
    else:
        assert isinstance(end, Gone)
        assert end.why == {"kill": "stop", "deadline": "deadline"}[how]
    assert began(log) == list(range(38))


def test_results_that_find_no_room_together_end_the_bundle(bench: Bench, tmp_path: Path) -> None:
    """R-bundle-5: 64 KiB for all of them, and the one beyond that stands in a file."""
    digest, blob, name = payload.encode_function(bytes.__add__)
    call = work.Call(name, payload.encode(((bytes(20_000), b"x"), {})))
    one = payload.join(work.encode_work(call))
    more = tuple(m.Small(task(at), one) for at in range(1, 6))
    run = Run(work=one, task=task(0), code_digest=digest, code=blob, more=more)
    end = bench.launch("b", run)
    assert isinstance(end, Finished)
    assert values(end.before) == [bytes(20_000) + b"x"] * 3
    assert end.path
    assert end.size > 20_000


def test_a_pipe_is_emptied_only_when_nothing_further_begins(
    bench: Bench, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the process could go on in between, and the output would be the next one's."""
    read = os.read
    found: list[bool] = []

    def watched(fd: int, size: int) -> bytes:
        data = read(fd, size)
        for child in bench.pool._processes.values():
            if data and fd in child.pipes.values():
                found.append(child.mailbox.whole)
        return data

    monkeypatch.setattr(os, "read", watched)
    bench.launch("b", bundle(steps_of(log, 9, {4: "prints"})))
    assert found
    assert not any(found)


def test_output_is_always_that_of_the_one_that_printed(bench: Bench, log: Path) -> None:
    """Bundle after bundle, whoever reads the pipe first."""
    at = 0
    while at < 60:
        steps = [(str(log), number, "prints") for number in range(at, 60)]
        bench.events.clear()
        end = bench.launch(at, bundle(steps))
        assert isinstance(end, Finished)
        for place, data in outputs(bench):
            assert data == b"this is %d\n" % (at + place)
        at += 1 + len(end.before)
    assert began(log) == list(range(60))


def test_code_that_was_forgotten_is_sent_again_before_anything_began(
    bench: Bench, log: Path
) -> None:
    """Each task begins once all the same."""
    bench.launch("first", bundle(steps_of(log, 3, {})))
    log.unlink()
    for child in bench.pool._processes.values():
        # As if the pool had lost count of what its process still knows.
        child.known[b"d" * 32] = None
    stranger = bundle(steps_of(log, 5, {}))
    forgotten = Run(
        **{name: getattr(stranger, name) for name in stranger.__struct_fields__ if name != "task"},
        task=task(9),
    )
    end = bench.launch("again", forgotten)
    assert values(end.before) == [0, 1, 2, 3]
    assert began(log) == [0, 1, 2, 3, 4]


def test_a_process_that_names_more_than_it_did_is_not_believed(bench: Bench, log: Path) -> None:
    """What stands in the shared memory is only read as far as tasks were claimed."""

    def lies() -> None:
        import gc

        from blackroad.runtime.tray import Tray

        [tray] = [one for one in gc.get_objects() if isinstance(one, Tray)]
        tray._table[0] = 2**31

    digest, blob, name = payload.encode_function(lies)
    one = payload.join(work.encode_work(work.Call(name, payload.encode(((), {})))))
    more = tuple(m.Small(task(at), one) for at in range(1, 4))
    end = bench.launch("b", Run(work=one, task=task(0), code_digest=digest, code=blob, more=more))
    assert isinstance(end, Finished | Crashed)
    assert len(end.before) <= 3
    assert bench.value(abs, -7) == 7


# --- through daemons ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone() -> Iterator[Mesh]:
    """One daemon of two slots, which the tests below share."""
    with mesh_of("one", BLACKROAD_SLOTS="2") as made:
        yield made


@pytest.fixture
def warm(alone: Mesh, tmp_path: Path) -> Iterator[Client]:
    """A client of it; how long `step` takes is known there."""
    with alone.daemons[0].client() as client:
        warm_up(client, tmp_path)
        yield client


def warm_up(client: Client, directory: Path, needs: Needs | None = None) -> None:
    for _ in range(3):
        futures = [client.submit(step, str(directory / "warm"), n, needs=needs) for n in range(20)]
        assert [one.result(WAIT_S) for one in futures] == list(range(20))


def hold(gate: str, place: int) -> None:
    """Say that it runs, and keep its slot until the gate is there."""
    import select

    Path(f"{gate}.{place}").touch()
    while not Path(gate).exists():
        select.select([], [], [], 0.005)


def send(
    client: Client, log: Path, odd: dict[int, str], path: str = "", needs: Needs | None = None
) -> list[Any]:
    """Submit them while both slots are taken: what starts as fast as it comes goes alone."""
    gate = log.with_name("gate")
    gate.unlink(missing_ok=True)
    places = range(2)
    holders = [client.submit(hold, str(gate), place, needs=needs) for place in places]
    until(lambda: all(Path(f"{gate}.{place}").exists() for place in places), "both slots taken")
    futures = [client.submit(step, *args, needs=needs) for args in steps_of(log, MANY, odd, path)]
    gate.touch()
    for place, holder in zip(places, holders, strict=True):
        holder.result(WAIT_S)
        Path(f"{gate}.{place}").unlink()
    return futures


def in_company(log: Path) -> bool:
    """Did any two tasks share an attempt?"""
    attempts = collections.Counter(line.split()[1] for line in log.read_text().splitlines())
    return max(attempts.values()) > 1


def others(futures: list[Any], odd: int) -> list[int]:
    return [one.result(WAIT_S) for at, one in enumerate(futures) if at != odd]


REST = [number for number in range(MANY) if number != 37]
AGAIN = 1 + CRASH_RETRIES


@pytest.mark.parametrize(
    ("deed", "error", "begins"),
    [
        ("raises", TaskFailed, 1),
        ("exits", TaskFailed, 1),
        ("killed", WorkerCrashed, AGAIN),
        ("leaves", WorkerCrashed, AGAIN),
        ("closes", WorkerCrashed, AGAIN),
    ],
)
def test_one_of_many_fails_and_the_others_do_not_notice(
    warm: Client, log: Path, deed: str, error: type[Exception], begins: int
) -> None:
    futures = send(warm, log, {37: deed})
    with pytest.raises(error):
        futures[37].result(WAIT_S)
    assert others(futures, 37) == REST
    assert in_company(log)
    count = collections.Counter(began(log))
    assert count == {**dict.fromkeys(REST, 1), 37: begins}


@pytest.mark.parametrize("deed", ["child", "fork", "thread", "moves", "copy"])
def test_one_of_many_leaves_something_and_all_are_done(warm: Client, log: Path, deed: str) -> None:
    futures = send(warm, log, {37: deed})
    assert [one.result(WAIT_S) for one in futures] == list(range(MANY))
    assert in_company(log)
    assert collections.Counter(began(log)) == dict.fromkeys(range(MANY), 1)


def test_a_large_result_among_small_ones(warm: Client, log: Path) -> None:
    futures = send(warm, log, {37: "large"})
    assert len(futures[37].result(WAIT_S)) == 200_000
    assert others(futures, 37) == REST
    assert collections.Counter(began(log)) == dict.fromkeys(range(MANY), 1)


def test_output_stands_under_the_one_that_printed(warm: Client, log: Path) -> None:
    odd = dict.fromkeys((0, 36, 37, 38, 99), "prints")
    futures = send(warm, log, odd)
    assert [one.result(WAIT_S) for one in futures] == list(range(MANY))
    for number, future in enumerate(futures):
        if number in odd:
            until(lambda: warm.logs(future.task_id)["text"], "its output")  # noqa: B023
        if number in odd or number % 9 == 0:
            text = f"this is {number}\n" if number in odd else ""
            assert warm.logs(future.task_id)["text"] == text
    assert in_company(log)


def test_the_others_end_while_one_takes_long(warm: Client, log: Path, tmp_path: Path) -> None:
    """R-bundle-5: what waits behind it goes to the other slot."""
    go = tmp_path / "go"
    futures = send(warm, log, {37: "waits"}, str(go))
    assert others(futures, 37) == REST
    assert not futures[37].done()
    go.touch()
    assert futures[37].result(WAIT_S) == 37
    assert collections.Counter(began(log)) == dict.fromkeys(range(MANY), 1)


@pytest.mark.parametrize("deed", ["waits", ""])
def test_one_of_many_is_cancelled(warm: Client, log: Path, tmp_path: Path, deed: str) -> None:
    """R-bundle-3: whether it runs, waits or is done: the others are done, and began once."""
    futures = send(warm, log, {37: deed}, str(tmp_path / "never"))
    if deed:
        until(lambda: 37 in began(log), "its begin")
    warm.cancel(futures[37].task_id)
    assert others(futures, 37) == REST
    try:
        assert futures[37].result(WAIT_S) == 37
        assert not deed
    except CancelledError:
        pass
    count = collections.Counter(began(log))
    assert {number: count[number] for number in REST} == dict.fromkeys(REST, 1)
    assert count[37] <= 1


def test_a_daemon_is_killed_under_its_bundles(tmp_path: Path, log: Path) -> None:
    """R-bundle-6: what had begun there begins again, alone; nothing is lost, nothing done twice."""
    go = tmp_path / "go"
    with mesh_of("one", "two", BLACKROAD_SLOTS="2") as mesh:
        there = Needs(node="two")
        one, two = mesh.daemons
        client = mesh.client(one)
        warm_up(client, tmp_path, there)
        futures = send(client, log, {37: "waits"}, str(go), there)
        until(lambda: 37 in began(log), "its begin")
        pids = [pid for pid, words in mesh.processes().items() if "forkserver" in words]
        assert pids
        two.end(signal.SIGKILL)
        go.touch()
        two.start()
        assert [future.result(WAIT_S) for future in futures] == list(range(MANY))
        count = collections.Counter(began(log))
        assert set(count) == set(range(MANY))
        assert max(count.values()) <= 2
        assert in_company(log)
