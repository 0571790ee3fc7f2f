"""Futures that make their lock only when somebody waits still behave like the library's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any

import pytest

from blackroad.bus import payload
from blackroad.bus import work as works
from blackroad.bus.messages import ClassSpec, End, Ended, Facts, Result
from blackroad.client.futures import GatheredFuture, TaskFuture, Template, settle_all
from blackroad.errors import RemoteProtocolError, TaskFailed, WorkerCrashed


class Owner:
    """As much of a client as a future needs."""

    node_id = b"n" * 16

    def __init__(self) -> None:
        self.cancelled: list[bytes] = []

    def cancel_task(self, task: bytes) -> None:
        self.cancelled.append(task)

    def why(self, task_id: str) -> dict[str, Any]:
        raise AssertionError(f"nobody asked about {task_id}")

    def lead(self, over: Callable[[], bool], timeout_s: float | None) -> float | None:
        return timeout_s

    def nudge(self) -> None:
        """Nobody serves anything here."""


TEMPLATE = Template(ClassSpec(b""), None, False, False, "work")


def future(owner: Owner | None = None) -> TaskFuture:
    return TaskFuture(owner or Owner(), b"t" * 16, TEMPLATE)


def ended(end: End = End.DONE, reason: str = "") -> Ended:
    return Ended(b"t" * 16, end, reason, b"", Facts(), b"", 1)


def value(of: Any) -> bytes:
    return payload.join(payload.encode(of))


def test_it_has_all_that_a_future_has() -> None:
    """A field that a newer library adds must not be missing here, nor begin as something else."""
    one, plain = future(), vars(Future())
    assert plain.pop("_condition") is not one._condition
    assert {name: getattr(one, name) for name in plain} == plain


def test_a_result_that_came_first() -> None:
    one = future()
    one.settle(ended(), value([1, "two"]))
    assert one.done()
    assert one.result(0) == [1, "two"]
    assert one.exception(0) is None
    assert not one.cancelled()


def test_a_waiter_that_came_first() -> None:
    one = future()
    waits = threading.Event()
    found: list[Any] = []

    def wait_for_it() -> None:
        waits.set()
        found.append(one.result(30))

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    waits.wait(30)
    one.settle(ended(), value(7))
    thread.join(30)
    assert found == [7]


def test_callbacks_run_before_and_after() -> None:
    called: list[Any] = []
    before, after = future(), future()
    before.add_done_callback(lambda done: called.append(done.result()))
    before.settle(ended(), value("before"))
    after.settle(ended(), value("after"))
    after.add_done_callback(lambda done: called.append(done.result()))
    assert called == ["before", "after"]


def test_the_library_can_wait_for_them() -> None:
    futures = [future() for _ in range(4)]
    futures[0].settle(ended(), value(0))
    thread = threading.Thread(
        target=lambda: [one.settle(ended(), value(n)) for n, one in enumerate(futures) if n]
    )
    thread.start()
    assert {one.result() for one in as_completed(futures, 30)} == {0, 1, 2, 3}
    thread.join(30)
    assert wait(futures, 30).not_done == set()


def done(number: int) -> Result:
    return Result(b"t" * 16, value(number), 7)


def test_many_results_at_once() -> None:
    """Those that nobody looks at, waits for, or wants to be called for."""
    called: list[int] = []
    plain, waited, watched, late = (future() for _ in range(4))
    late.settle(ended(), value("first"))
    watched.add_done_callback(lambda one: called.append(one.result()))
    waiting = threading.Event()
    found: list[int] = []

    def wait_for_it() -> None:
        with waited._condition:
            waiting.set()
        found.append(waited.result(30))

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    waiting.wait(30)
    pairs = [(one, done(n)) for n, one in enumerate((plain, waited, watched, late))]
    left = settle_all(pairs, b"n" * 16)
    thread.join(30)
    assert [one for one, _ in left] == [watched]
    assert (plain.result(0), found, called) == (0, [1], [])
    assert plain.ended is not None
    assert (plain.ended.facts.run_us, plain.ended.node, plain.ended.attempts) == (7, b"n" * 16, 1)
    assert late.result(0) == "first"
    watched.settle(ended(), value(2))
    assert called == [2]


def test_asyncio_can_wait_for_them() -> None:
    async def both() -> tuple[Any, Any]:
        first, second = future(), future()
        waits = asyncio.gather(asyncio.wrap_future(first), asyncio.wrap_future(second))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, first.settle, ended(), value(1))
        await loop.run_in_executor(None, second.settle, ended(), value([2]))
        return tuple(await waits)

    assert asyncio.run(both()) == (1, [2])


def test_a_result_is_decoded_once() -> None:
    one = future()
    settle_all([(one, Result(b"t" * 16, value([1, 2]), 0))], b"")
    assert one.result(0) is one.result(0)


def test_a_result_that_cannot_be_read_says_so_each_time() -> None:
    one = future()
    one.settle(ended(), b"\x92\x00nothing like it")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            one.result(0)


def test_a_future_that_is_late_is_no_result() -> None:
    one = future()
    with pytest.raises(TimeoutError):
        one.result(0)
    with pytest.raises(TimeoutError):
        one.exception(0)
    assert one.ended is None


def test_cancel_is_a_wish_until_the_task_is_gone() -> None:
    """P7: cancelled is told only when every process of the task is proven ended."""
    owner = Owner()
    one = future(owner)
    assert one.cancel()
    assert owner.cancelled == [b"t" * 16]
    assert not one.cancelled()
    one.settle(ended(End.CANCELLED, "cancelled"), b"")
    assert one.cancelled()
    with pytest.raises(CancelledError):
        one.result(0)
    assert not one.cancel()


def test_a_failure_is_of_its_builtin_kind() -> None:
    one = future()
    failure = works.encode_failure(works.Failure("KeyError", "'x'", "Traceback ..."))
    one.settle(ended(End.FAILED, "TaskFailed"), failure)
    with pytest.raises(KeyError) as caught:
        one.result(0)
    assert isinstance(caught.value, TaskFailed)
    assert caught.value.traceback_text == "Traceback ..."


def test_a_crash_says_how_often() -> None:
    one = future()
    one.settle(ended(End.FAILED, "WorkerCrashed"), b"")
    assert isinstance(one.exception(0), WorkerCrashed)


def test_parts_are_gathered_in_their_order() -> None:
    parts = [future() for _ in range(3)]
    whole = GatheredFuture(parts, lambda found: found, "kernel")
    for n in (2, 0, 1):
        assert not whole.done()
        parts[n].settle(ended(), value(n))
    assert whole.result(0) == [0, 1, 2]
    assert whole.progress() == (3, 3)


def test_one_failed_part_ends_the_whole_and_the_others() -> None:
    owner = Owner()
    parts = [future(owner) for _ in range(3)]
    whole = GatheredFuture(parts, lambda found: found, "kernel")
    parts[1].settle(ended(End.FAILED, "WorkerCrashed"), b"")
    assert isinstance(whole.exception(0), WorkerCrashed)
    assert len(owner.cancelled) == 2
