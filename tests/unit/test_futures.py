"""Futures that make their lock only when somebody waits still behave like the library's."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any, cast

import pytest

from blackroad.bus import payload
from blackroad.bus import work as works
from blackroad.bus.messages import End, Ended, Facts
from blackroad.client.client import Client
from blackroad.client.futures import GatheredFuture, TaskFuture
from blackroad.errors import TaskFailed, WorkerCrashed


class Owner:
    """As much of a client as a future needs."""

    node_id = b"n" * 16

    def __init__(self) -> None:
        self.cancelled: list[bytes] = []

    def cancel_task(self, task: bytes) -> None:
        self.cancelled.append(task)


def future(owner: Owner | None = None) -> TaskFuture:
    return TaskFuture(cast(Client, owner or Owner()), b"t" * 16, "work")


def ended(end: End = End.DONE, reason: str = "") -> Ended:
    return Ended(b"t" * 16, end, reason, b"", Facts(), b"", 1)


def value(of: Any) -> bytes:
    return payload.join(payload.encode(of))


def test_it_has_all_that_a_future_has() -> None:
    """A field that a newer library adds must not be missing here."""
    assert set(vars(Future())) - set(vars(future())) == {"_condition"}


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
