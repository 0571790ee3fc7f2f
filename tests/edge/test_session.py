"""A program's session over a wire that the test holds the other end of."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.bus import payload
from blackroad.client.connection import Connection
from blackroad.client.futures import TaskFuture, Template
from blackroad.errors import NoDaemon
from blackroad.limits import FOREVER_MS
from tests.edge.meshes import until

pytestmark = pytest.mark.edge

WAIT_S = 30.0
NODE = b"n" * 16
SPEC = m.ClassSpec(b"")


class Wire:
    """What the session says is kept; what the test says is received."""

    def __init__(self, credit: int) -> None:
        self._sign = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.fds: tuple[int, ...] = (self._sign,)
        self.said: list[m.Message] = []
        self._inbox: list[m.Message] = []
        self._credit = credit

    def start(self) -> bool:
        return True

    def send(self, messages: list[m.Message]) -> None:
        self.said += messages
        for one in messages:
            if isinstance(one, m.Open):
                self.tell(m.Opened(one.session, NODE, 1, self._credit, "fake"))

    def tell(self, *messages: m.Message) -> None:
        self._inbox += messages
        os.eventfd_write(self._sign, 1)

    def receive(self) -> Iterable[m.Message]:
        try:
            os.eventfd_read(self._sign)
        except BlockingIOError:
            return []
        inbox, self._inbox = self._inbox, []
        return inbox

    def news(self, ready: Collection[int]) -> Iterable[bool]:
        return ()

    def due_ms(self) -> int:
        return FOREVER_MS

    def close(self) -> None:
        os.close(self._sign)

    def of(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.said if isinstance(one, kind)]


class Home:
    """As much of a client as a future needs."""

    node_id = NODE

    def __init__(self, connection: Connection) -> None:
        self.lead: Callable[..., float | None] = connection.lead
        self.nudge = connection.nudge

    def cancel_task(self, task: bytes) -> None:
        raise AssertionError(task)

    def why(self, task_id: str) -> dict[str, Any]:
        raise AssertionError(task_id)


class Session:
    """One session, with a way to submit."""

    def __init__(self, credit: int = 1000) -> None:
        self.wire = Wire(credit)
        self.connection = Connection(self.wire, "tester", "nowhere")
        self.connection.start(WAIT_S)
        self.home = Home(self.connection)
        self.template = Template(SPEC, None, False, False, "work")

    def submit(self, number: int, timeout_s: float | None = WAIT_S) -> TaskFuture | None:
        future = TaskFuture(self.home, name_of(number), self.template, b"work")
        return future if self.connection.submit(future, timeout_s) else None

    def submitted(self) -> list[bytes]:
        return [item.task for one in self.wire.of(m.Submit) for item in one.tasks]


def name_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def result(number: int, value: Any = None) -> m.Result:
    data = payload.join(payload.encode(number if value is None else value))
    return m.Result(name_of(number), data, 5)


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session()
    yield made
    made.connection.close()


def test_many_results_in_one_message(session: Session) -> None:
    futures = [session.submit(n) for n in range(300)]
    until(lambda: len(session.submitted()) == 300, "all of them said")
    assert sorted(session.submitted()) == [name_of(n) for n in range(300)]
    assert max(len(one.tasks) for one in session.wire.of(m.Submit)) > 100, "in company"
    # The last one is not of this session: it may be told for ever unless it is seen.
    session.wire.tell(m.Results(NODE, tuple(result(n) for n in range(301))))
    assert [one.result(WAIT_S) for one in futures if one is not None] == list(range(300))
    assert futures[7] is not None
    assert futures[7].ended is not None
    assert (futures[7].ended.facts.run_us, futures[7].ended.node) == (5, NODE)
    until(lambda: session.wire.of(m.Seen), "Seen")
    seen = [task for one in session.wire.of(m.Seen) for task in one.tasks]
    assert sorted(seen) == [name_of(n) for n in range(301)]
    assert len(session.wire.of(m.Seen)) == 1
    assert not session.connection.tasks


def test_a_result_that_is_told_again_changes_nothing(session: Session) -> None:
    future = session.submit(1)
    assert future is not None
    session.wire.tell(m.Results(NODE, (result(1, "first"),)))
    assert future.result(WAIT_S) == "first"
    session.wire.tell(m.Results(NODE, (result(1, "second"),)))
    again = m.Ended(name_of(1), m.End.DONE, "", result(1, "third").result, m.Facts(), NODE, 1)
    session.wire.tell(again)
    until(lambda: len([t for s in session.wire.of(m.Seen) for t in s.tasks]) == 3, "Seen")
    assert future.result(0) == "first"


def test_a_large_result_among_small_ones(session: Session) -> None:
    small, large = session.submit(1), session.submit(2)
    assert small is not None
    assert large is not None
    data = payload.join(payload.encode("x" * 70_000))
    ref = m.Ref(payload.digest_of(data), len(data))
    session.wire.tell(m.Results(NODE, (m.Result(name_of(2), ref, 9), result(1))))
    assert small.result(WAIT_S) == 1
    until(lambda: session.wire.of(m.Want), "Want")
    assert not large.done()
    session.wire.tell(m.Chunk(ref.digest, 0, data))
    assert large.result(WAIT_S) == "x" * 70_000
    assert large.ended is not None
    assert large.ended.facts.run_us == 9


def test_callbacks_run_for_results_in_bulk(session: Session) -> None:
    future = session.submit(1)
    assert future is not None
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    session.wire.tell(m.Results(NODE, (result(1),)))
    assert called.wait(WAIT_S)


def test_spent_credit_is_waited_for() -> None:
    session = Session(credit=2)
    first, second = session.submit(1), session.submit(2)
    assert session.submit(3, 0.05) is None
    found: list[TaskFuture | None] = []
    thread = threading.Thread(target=lambda: found.append(session.submit(4)))
    thread.start()
    session.wire.tell(m.Results(NODE, (result(1),)))
    thread.join(WAIT_S)
    until(lambda: name_of(4) in session.submitted(), "the one that waited")
    assert first is not None
    assert first.result(0) == 1
    session.connection.close()
    for one in (second, *found):
        assert one is not None
        assert isinstance(one.exception(0), NoDaemon)


def test_one_task_alone_is_said_by_who_submits_it(session: Session) -> None:
    session.submit(1)
    assert session.submitted() == [name_of(1)]
