"""What tasks do in their processes, what comes back, and what the next task finds."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackroad.bus import payload, work
from blackroad.bus.parcels import is_name
from blackroad.errors import LocalProtocolError
from blackroad.ids import text32
from blackroad.runtime import context, wire
from blackroad.runtime.events import Crashed, Finished, Gone, Output, Run
from blackroad.runtime.output import OutputStore
from blackroad.runtime.pool import base_environment
from blackroad.runtime.shed import Shed
from tests.edge.pool_bench import (
    Bench,
    alive,
    call,
    run_of,
    wait_file,
)

pytestmark = pytest.mark.edge

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "objects", preload=("cloudpickle",))
    yield bench
    bench.pool.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """For tests that leave the pool as they found it."""
    bench = Bench(tmp_path_factory.mktemp("objects"))
    yield bench
    bench.pool.close()


# --- what tasks do ------------------------------------------------------------------------------


def test_results_come_back_and_processes_are_used_again(bench: Bench) -> None:
    assert bench.value(divmod, 17, 5) == (3, 2)
    assert bench.value(lambda x: {"x": x, "self": os.getpid()}, {1}) == {
        "x": {1},
        "self": next(iter(bench.pool.pids)),
    }
    assert len(bench.pool.pids) == 1
    assert bench.pool.busy == 0


def test_output_comes_before_the_end(shared: Bench) -> None:
    def speak() -> None:
        print("to you")
        sys.stderr.write("and to you")
        os.write(1, b"by number\n")
        ctypes.CDLL(None).puts(b"from C")

    shared.launch("speak", call(speak))
    mine = [event for event in shared.events if getattr(event, "key", None) == "speak"]
    assert isinstance(mine[-1], Finished)
    out = b"".join(e.data for e in mine if isinstance(e, Output) and e.stream == 1)
    assert out == b"to you\nby number\nfrom C\n"
    assert b"".join(e.data for e in mine if isinstance(e, Output) and e.stream == 2) == (
        b"and to you"
    )


def test_exceptions_come_back_as_text(shared: Bench) -> None:
    def inner() -> None:
        raise LookupError("no such shelf: grüße")

    def outer() -> None:
        try:
            inner()
        except LookupError as error:
            raise RuntimeError("outer") from error

    failure = shared.failure(call(outer))
    assert failure.type_name == "RuntimeError"
    assert failure.text == "outer"
    assert "LookupError: no such shelf: grüße" in failure.traceback_text
    assert "in outer" in failure.traceback_text
    assert "task_process" not in failure.traceback_text, "our own frames are no help"


def test_foreign_exceptions_are_named_with_their_module(shared: Bench) -> None:
    def fails() -> None:
        raise subprocess.SubprocessError("x" * 100_000)

    failure = shared.failure(call(fails))
    assert failure.type_name == "subprocess.SubprocessError"
    assert len(failure.text) <= work.TEXT_BYTES_MAX
    assert len(failure.traceback_text.encode()) <= work.TRACEBACK_BYTES_MAX


def test_the_usual_ways_to_use_more_cores_work_inside_a_task(shared: Bench) -> None:
    def spread() -> list[int]:
        import asyncio
        import concurrent.futures as futures
        import multiprocessing

        with futures.ThreadPoolExecutor(2) as threads:
            found = list(threads.map(abs, [-1, -2]))
        with futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as processes:
            found += processes.map(abs, [-3, -4])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found += pool.map(abs, [-5])

        async def six() -> int:
            done = await asyncio.create_subprocess_exec("sh", "-c", "exit 6")
            return await done.wait()

        return [*found, asyncio.run(six())]

    assert shared.value(spread) == [1, 2, 3, 4, 5, 6]
    assert shared.value(spread) == [1, 2, 3, 4, 5, 6]


def endless(n: int) -> int:
    return endless(n + 1) + 1


@pytest.mark.parametrize(
    ("function", "type_name"),
    [
        (lambda: sys.exit(4), "SystemExit"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), "KeyboardInterrupt"),
        (lambda: endless(0), "RecursionError"),
        (lambda: bytearray(1 << 62), "MemoryError"),
        (lambda: os.kill(os.getpid(), signal.SIGINT), "KeyboardInterrupt"),
    ],
)
def test_even_these_end_the_task_and_not_the_process(
    shared: Bench, function: Callable[[], Any], type_name: str
) -> None:
    before = shared.value(os.getpid)
    failure = shared.failure(call(function))
    assert failure.type_name == type_name
    assert failure.exit_status == (4 if type_name == "SystemExit" else None)
    assert shared.value(os.getpid) == before


def test_an_exception_that_cannot_be_printed_is_told_all_the_same(shared: Bench) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError("not even this")

    def fails() -> None:
        raise Odd

    failure = shared.failure(call(fails))
    assert failure.type_name.endswith("Odd")
    assert "cannot be made: ValueError" in failure.text


def test_a_result_that_cannot_be_sent_says_which_part(shared: Bench) -> None:
    failure = shared.failure(call(lambda: {"lock": threading.Lock()}))
    assert failure.type_name == "ResultNotPicklable"
    assert "result['lock'] (_thread.lock)" in failure.text
    assert "inside the function" in failure.text


def test_a_missing_module_names_the_node_and_what_to_do(shared: Bench) -> None:
    failure = shared.failure(run_of(work.Module("no_such_module:f", payload.encode(((), {})))))
    assert failure.type_name == "ModuleNotFoundError"
    assert "no_such_module" in failure.text
    assert "install it on node attic" in failure.text
    lost = run_of(work.Module("os.path:no.such", payload.encode(((), {}))))
    assert "has no `no.such`" in shared.failure(lost).text


def test_importable_functions_run_by_name(shared: Bench) -> None:
    todo = work.Module("collections:Counter.fromkeys", payload.encode(((["a"], 1), {})))
    assert "NotImplementedError" in shared.failure(run_of(todo)).type_name
    todo = work.Module("os.path:join", payload.encode((("a", "b"), {})))
    end = shared.launch("join", run_of(todo))
    assert payload.decode(end.result) == "a/b"


def test_maps_return_lists_and_name_the_item_that_failed(shared: Bench) -> None:
    def mapped(function: Callable[..., Any], items: list[Any], star: bool = False) -> Run:
        digest, blob, name = payload.encode_function(function)
        todo = work.MapCall(name, star, payload.encode(items))
        return run_of(todo, code_digest=digest, code=blob)

    end = shared.launch("squares", mapped(lambda x: x * x, [1, 2, 3]))
    assert payload.decode(end.result) == [1, 4, 9]
    end = shared.launch("sums", mapped(lambda a, b: a + b, [(1, 2), ("a", "b")], True))
    assert payload.decode(end.result) == [3, "ab"]
    end = shared.launch("fails", mapped(lambda x: 1 // x, [3, 2, 0, 1]))
    assert end.facts["index"] == 2
    assert end.facts["type_name"] == "ZeroDivisionError"
    failure = work.decode_failure(end.result)
    assert failure.type_name == "ZeroDivisionError"
    assert "item 2 of 4" in failure.traceback_text


TASK = bytes(range(16))


def test_the_task_knows_itself(shared: Bench) -> None:
    def ask() -> Any:
        from blackroad.runtime import context

        return tuple(context.current() or ())

    end = shared.launch("ask", call(ask, task=TASK, token=(7, 31), attempt=2))
    assert payload.decode(end.result) == (TASK, (7, 31), 2, "attic")
    assert context.current() is None


def test_kernels_run_and_say_where(shared: Bench) -> None:
    params = payload.encode({"start": 1, "count": 1000})
    end = shared.launch("collatz", run_of(work.KernelRun("collatz", params)))
    assert payload.decode(end.result)["most_steps"] == {"number": 871, "steps": 178}
    assert end.facts["backend"] == "numpy" or str(end.facts["backend"]).startswith("opencl")
    failure = shared.failure(run_of(work.KernelRun("colatz", params)))
    assert failure.type_name == "blackroad.errors.UnknownKernel"


# --- commands -----------------------------------------------------------------------------------


def shell(script: str, **fields: Any) -> work.Command:
    return work.Command(["sh", "-c", script], **fields)


def test_commands_print_and_succeed(shared: Bench) -> None:
    script = "cat; echo $BLACKROAD_TASK_ID $BLACKROAD_TOKEN $BLACKROAD_ATTEMPT $COLOUR; pwd >&2"
    todo = shell(script, env={"COLOUR": "red"}, cwd="/", stdin=payload.encode(b"input\n"))
    end = shared.launch("cat", run_of(todo, task=TASK, token=(2, 3)))
    assert (end.status, end.facts["exit_status"]) == ("done", 0)
    assert payload.decode(end.result) == 0
    assert shared.printed("cat") == f"input\n{text32(TASK)} 2/3 1 red\n/\n".encode()


@pytest.mark.parametrize(
    ("todo", "status", "text"),
    [
        (shell("exit 3"), 3, "`sh` exited with status 3"),
        (shell("kill -TERM $$"), -15, "ended by signal 15 (SIGTERM)"),
        (work.Command(["no-such-program"]), None, "node attic has no program `no-such-program`"),
        (work.Command([str(ROOT / "LICENSE")]), None, "may not be executed"),
        (shell("true", cwd="/no/such"), None, "has no directory `/no/such`"),
        (shell("true", stdin=payload.encode(3)), None, "stdin must be bytes or text"),
        (work.Command(["nul\0byte"]), None, "cannot start"),
    ],
)
def test_commands_that_fail_say_why(
    shared: Bench, todo: work.Command, status: int | None, text: str
) -> None:
    failure = shared.failure(run_of(todo))
    assert failure.exit_status == status
    assert text in failure.text


def test_a_large_stdin_needs_no_reader(shared: Bench) -> None:
    todo = shell("head -c 5 >/dev/null", stdin=payload.encode(bytes(1 << 20)))
    digest, _ = shared.store.put(work.encode_work(todo))
    end = shared.launch("head", Run(work_path=shared.store.path(digest) or ""))
    assert end.status == "done"


# --- large things -------------------------------------------------------------------------------


def test_a_large_result_never_enters_the_daemon(bench: Bench) -> None:
    bench.value(abs, 1)
    before = resident_bytes()
    end = bench.launch("big", call(lambda: __import__("numpy").arange(12_500_000)))
    assert resident_bytes() - before < 20 * 1024 * 1024
    assert end.result == b""
    assert end.size == os.path.getsize(end.path) > 100_000_000
    bench.store.adopt(end.path, end.digest, end.size)
    path = bench.store.path(end.digest)
    assert path is not None
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    assert payload.digest_of(memoryview(mapping)) == end.digest
    assert payload.decode(mapping)[-1] == 12_499_999
    assert end.facts["peak_bytes"] > 100_000_000


def test_a_process_finds_the_parcels_that_its_daemon_made_after_it(
    bench: Bench, tmp_path: Path
) -> None:
    """Processes are forked while the daemon still reads its journal and its keys."""
    bench.value(abs, 1)
    shed = Shed.made(tmp_path / "objects", tmp_path, 64 * 1024 * 1024)
    end = bench.launch("big", call(bytes, 1024 * 1024))
    assert len(bench.pool.pids) == 1
    assert is_name(end.digest)
    assert shed.claim(end.digest, end.size)
    shed.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_large_arguments_come_from_a_file_and_stay_private(bench: Bench) -> None:
    def double(array: np.ndarray[Any, Any]) -> tuple[float, bool]:
        array *= 2
        return float(array[-1]), bool(array.flags.owndata)

    digest, blob, name = payload.encode_function(double)
    array = np.arange(1_000_000, dtype=np.float64)
    todo = work.Call(name, payload.encode(((array,), {})))
    digest_of_work, _ = bench.store.put(work.encode_work(todo))
    digest_of_code, _ = bench.store.put(blob)
    assert digest_of_code == digest
    path = bench.store.path(digest_of_work) or ""
    before = Path(path).read_bytes()
    run = Run(work_path=path, code_digest=digest, code_path=bench.store.path(digest) or "")
    end = bench.launch("double", run)
    assert payload.decode(end.result) == (1_999_998.0, False)
    assert Path(path).read_bytes() == before


def test_a_disk_that_cannot_take_the_result_fails_the_task_clearly(bench: Bench) -> None:
    bench.value(abs, 1)
    os.rmdir(bench.store._incoming)
    end = bench.launch("big", call(lambda: bytes(1_000_000)))
    assert end.status == "failed"
    assert work.decode_failure(end.result).type_name == "DiskProblem"
    assert end.facts["disk_problem"] == "No such file or directory"


def test_a_flood_of_output_is_bounded_and_its_end_is_kept(bench: Bench) -> None:
    def flood() -> None:
        for number in range(160):
            os.write(1, bytes([65 + number % 26]) * 65536)
        print("the last line")

    kept = OutputStore()
    bench.pool.launch("flood", call(flood))
    seen = largest = 0
    while not bench.ended("flood"):
        bench.turn()
        for event in bench.events:
            if isinstance(event, Output):
                kept.append(event.key, event.stream, event.data)
                seen += len(event.data)
                largest = max(largest, kept.kept_bytes)
        bench.events = [e for e in bench.events if not isinstance(e, Output)]
    assert seen == 160 * 65536 + len("the last line\n")
    assert largest < 70_000
    tail = kept.tail("flood")
    assert tail.startswith(b"[")
    assert b"bytes cut]\n" in tail[:40]
    assert tail.endswith(b"the last line\n")


def test_too_much_inline_work_is_our_own_mistake(bench: Bench) -> None:
    with pytest.raises(LocalProtocolError, match="file"):
        bench.pool.launch("huge", Run(work=bytes(300_000)))
    assert bench.value(abs, -1) == 1


# --- code ---------------------------------------------------------------------------------------


def test_code_is_sent_once_for_each_process(bench: Bench) -> None:
    todo = call(lambda: "ran")
    bench.launch("first", todo)
    without = Run(work=todo.work, code_digest=todo.code_digest)
    assert payload.decode(bench.launch("second", without).result) == "ran"


def test_code_that_was_forgotten_is_sent_again(bench: Bench) -> None:
    todo = call(lambda: "ran")
    bench.launch("first", todo)
    (process,) = bench.pool._processes.values()
    for number in range(wire.FUNCTIONS_KEPT):
        bench.value(lambda n=number: n)
    process.known[todo.code_digest] = None
    assert payload.decode(bench.launch("again", todo).result) == "ran"


def test_missing_and_damaged_code_fail_clearly(bench: Bench) -> None:
    todo = call(lambda: 1)
    end = bench.launch("missing", Run(work=todo.work, code_digest=bytes(32)))
    assert isinstance(end, Crashed)
    assert "was not sent along" in end.text
    damaged = Run(work=todo.work, code_digest=bytes(32), code=todo.code)
    assert "digest differs" in bench.failure(damaged).text


def test_damaged_work_fails_clearly(shared: Bench) -> None:
    failure = shared.failure(Run(work=b"\0\0\0"))
    assert failure.type_name == "blackroad.errors.RemoteProtocolError"


# --- one task leaves nothing for the next -------------------------------------------------------


def test_surroundings_are_put_back(bench: Bench) -> None:
    def spoil() -> None:
        os.chdir("/")
        os.environ["SPOILT"] = "yes"
        del os.environ["PATH"]
        os.umask(0o777)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.alarm(1)
        sys.stdout = None  # type: ignore[assignment]

    def look() -> dict[str, Any]:
        print("still here")
        return {
            "pid": os.getpid(),
            "cwd": os.getcwd(),
            "spoilt": os.environ.get("SPOILT"),
            "path": os.environ.get("PATH"),
            "real": subprocess.run(["sh", "-c", "echo $SPOILT"], capture_output=True).stdout,
            "umask": os.umask(0o22),
            "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            "alarm": signal.getsignal(signal.SIGALRM) == signal.SIG_DFL,
            "timer": signal.getitimer(signal.ITIMER_REAL)[0],
        }

    before = bench.value(look)
    assert bench.value(spoil) is None
    assert bench.value(look) == before
    replaced = [e for e in bench.events if isinstance(e, Output)]
    assert len(replaced) == 2


def test_another_environ_mapping_is_put_back_too(bench: Bench) -> None:
    def spoil() -> None:
        os.environ = {"only": "this"}  # type: ignore[assignment] # noqa: B003

    bench.value(spoil)
    assert bench.value(lambda: "PATH" in os.environ and "only" not in os.environ)


def test_a_task_that_closes_its_output_costs_its_process(bench: Bench) -> None:
    first = bench.value(os.getpid)
    bench.value(lambda: os.close(1))
    bench.launch("print", call(lambda: print("seen")))
    assert bench.printed("print") == b"seen\n"
    assert first not in bench.pool.pids


def test_threads_and_processes_left_behind_are_gone_before_the_end(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "pids"

    def leave_threads() -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    def leave_processes(path: str) -> str:
        started = [
            subprocess.Popen(["sleep", "1000"]),
            subprocess.Popen(["sleep", "1000"], start_new_session=True),
        ]
        with open(path, "w") as file:
            file.write(" ".join(str(item.pid) for item in started))
        return "done all the same"

    end = bench.launch("threads", call(leave_threads))
    assert (end.status, end.facts["left_behind"]) == ("done", "threads")
    end = bench.launch("processes", call(leave_processes, str(path)))
    assert payload.decode(end.result) == "done all the same"
    assert end.facts["left_behind"] == "processes"
    assert [pid for pid in wait_file(path, 2) if alive(pid)] == []


def test_an_orphan_beyond_the_session_is_found_too(bench: Bench, tmp_path: Path) -> None:
    def escape(path: str) -> None:
        first = os.fork()
        if first == 0:
            if os.fork() == 0:
                os.setsid()
                with open(path, "w") as file:
                    file.write(str(os.getpid()))
                select.select([], [], [])
            os._exit(0)
        os.waitpid(first, 0)
        while not os.path.exists(path) or not os.path.getsize(path):
            select.select([], [], [], 0.01)

    end = bench.launch("escape", call(escape, str(tmp_path / "pid")))
    assert (end.status, end.facts["left_behind"]) == ("done", "processes")
    assert [pid for pid in wait_file(tmp_path / "pid", 1) if alive(pid)] == []


def test_ended_children_are_no_reason_for_a_new_process(bench: Bench) -> None:
    def zombie() -> int:
        child = subprocess.Popen(["true"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        return os.getpid()

    assert bench.value(zombie) == bench.value(os.getpid)


def test_a_fork_that_returns_into_our_code_ends_quietly(bench: Bench) -> None:
    def split() -> str:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return "parent" if pid else "child"

    assert bench.value(split) == "parent"
    assert bench.value(abs, -2) == 2


def test_every_process_draws_other_random_numbers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, preload=("numpy.random",))

    def draw() -> tuple[float, float]:
        return float(np.random.random()), random.random()

    for key in ("a", "b", "c"):
        bench.pool.launch(key, call(draw))
    drawn = [payload.decode(bench.end(key).result) for key in ("a", "b", "c")]
    assert len(bench.pool.pids) == 3
    assert len({number for pair in drawn for number in pair}) == 6
    bench.pool.close()


def test_each_environment_has_its_own_processes(bench: Bench) -> None:
    def look() -> tuple[str | None, int]:
        return os.environ.get("DEVICE"), os.getpid()

    seen = [
        payload.decode(bench.launch(number, call(look, environment={"DEVICE": device})).result)
        for number, device in enumerate(("0", "1", "0", "1"))
    ]
    assert [device for device, _ in seen] == ["0", "1", "0", "1"]
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]
    assert seen[0][1] != seen[1][1]


def test_the_daemons_own_settings_stay_with_the_daemon() -> None:
    source = {"PATH": "/bin", "BLACKROAD_KEY": "secret", "NOTIFY_SOCKET": "/run/x", "HOME": "/"}
    assert base_environment(source) == {"PATH": "/bin", "HOME": "/"}


def test_a_process_that_looks_for_the_next_task_finds_it(bench: Bench) -> None:
    """It does so after each task here, and nothing else is different."""
    bench.pool.looks = lambda: True
    assert [bench.value(abs, -number) for number in range(200)] == list(range(200))
    bench.launch("prints", call(print, "a line"))
    assert bench.printed("prints") == b"a line\n"
    bench.pool.launch("waits", call(select.select, [], [], []))
    bench.pid("waits")
    bench.pool.kill("waits", "stop")
    assert isinstance(bench.end("waits"), Gone)
    assert bench.value(abs, -7) == 7
