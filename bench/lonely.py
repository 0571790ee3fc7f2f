"""A node that is alone with made-up task processes: what its state machines cost for one task.

Nothing travels and nothing runs, so what is counted is owner, coordinator and worker together.
The figures belong to the code, not to the machine: function calls are the same everywhere.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from blackroad.bus import messages as m
from blackroad.capabilities import Capabilities
from blackroad.ids import incarnation
from blackroad.limits import SESSION_TASKS_MAX, SUBMIT_TASKS_MAX
from blackroad.node import AnyEvent, Finished, FromClient, Node, Tick
from blackroad.requirements import Needs
from blackroad.router.effects import Effect, Start, Tell

ME = b"\1" * 16
SLOTS = 2
RUN_US = 20
TURN_MS = 1
WARM_TASKS = 2_000
ROUND_TASKS = 50_000
SPEC = m.ClassSpec(Needs().to_wire(), name="noop")
ALIVE_MS = 250


class Cost(NamedTuple):
    """What one task costs while so many are queued."""

    queued: int
    calls: float
    us: float
    bytes: float


class Lonely:
    """The node, the programs that submit, and processes that are done at once."""

    def __init__(self) -> None:
        self.now_ms = 10_000
        machine = Capabilities(
            name="alone", arch="x86_64", page_bytes=4096, cores=SLOTS, memory_bytes=2**33,
            python="3.11", python_full="3.11.2", implementation="CPython", os="Linux",
            libc="glibc", model="made up",
        )  # fmt: skip
        self.node = Node(ME, incarnation(1, 7), machine, SLOTS, self.now_ms)
        self.ended = 0
        self._started: deque[Start] = deque()
        self._seen: dict[bytes, list[bytes]] = {}
        self._number = 0
        self._sessions = 0
        while self.node.election.claim is None:
            self.turn(ALIVE_MS)

    def submits(self, count: int) -> Iterator[FromClient]:
        """So many tasks as a program submits them, of as many programs as credit wants."""
        left = 0
        for first in range(0, count, SUBMIT_TASKS_MAX):
            size = min(SUBMIT_TASKS_MAX, count - first)
            if left < size:
                self._sessions += 1
                left = SESSION_TASKS_MAX
                session = self._sessions.to_bytes(16, "big")
                yield FromClient(session[-8:], (m.Open(session, 600_000),))
            left -= size
            ids = range(self._number, self._number + size)
            self._number += size
            items = tuple(m.Item(one.to_bytes(16, "big"), b"work") for one in ids)
            submit = m.Submit(session, SPEC, None, False, False, items, 0)
            yield FromClient(session[-8:], (submit,))

    def queue(self, count: int) -> None:
        """Submit, and start nothing that has not begun at once."""
        for event in self.submits(count):
            self._do([event])

    def drain(self) -> None:
        """Turn until every task has ended and its end has been seen."""
        idle = 0
        while self.ended < self._number or self._seen:
            before = self.ended
            self.turn(TURN_MS)
            idle = 0 if self.ended > before else idle + 1
            if idle > 100_000:
                raise AssertionError(f"{self._number - self.ended} tasks never end")

    def turn(self, ms: int) -> None:
        """One turn of a daemon's loop: whatever runs is done, whoever was told has seen it."""
        self.now_ms += ms
        events: list[AnyEvent] = []
        for _ in range(len(self._started)):
            start = self._started.popleft()
            before = tuple(m.Early(b"42", RUN_US) for _ in start.more)
            facts = m.Facts(run_us=RUN_US)
            events.append(Finished(start.key, m.Status.DONE, b"42", facts, before))
        for client, tasks in self._seen.items():
            events += [
                FromClient(client, (m.Seen(tuple(tasks[first : first + 1024])),))
                for first in range(0, len(tasks), 1024)
            ]
        self._seen = {}
        if not events or self.node.next_deadline_ms() <= self.now_ms:
            events.append(Tick())
        self._do(events)

    def _do(self, events: list[AnyEvent]) -> None:
        for effect in self.node.handle_all(events, self.now_ms):
            self._take(effect)

    def _take(self, effect: Effect) -> None:
        if isinstance(effect, Start):
            self._started.append(effect)
        elif isinstance(effect, Tell):
            told = effect.message
            tasks: list[bytes] = []
            if isinstance(told, m.Ended):
                if told.end is not m.End.DONE:
                    raise AssertionError(f"a task ended {told.end.name}: {told.reason}")
                tasks = [told.task]
            elif isinstance(told, m.Results):
                tasks = [one.task for one in told.results]
            elif isinstance(told, m.Rejected | m.Reject):
                raise AssertionError(f"refused: {told}")
            if tasks:
                self.ended += len(tasks)
                self._seen.setdefault(effect.client, []).extend(tasks)


def counted(work: Callable[[], object]) -> int:
    """How many functions are called meanwhile, those of the interpreter included."""
    calls = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    former = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(former)
    return calls


def warmed() -> Lonely:
    """A node that has learnt already how long such a task takes."""
    one = Lonely()
    one.queue(WARM_TASKS)
    one.drain()
    return one


def calls_per_task(queued: int) -> float:
    """Function calls for one task, from its Submit to its Seen, with so many queued before any."""
    one = warmed()

    def work() -> None:
        one.queue(queued)
        one.drain()

    return counted(work) / queued


@contextlib.contextmanager
def like_a_daemon() -> Iterator[None]:
    """Let Python look for garbage as rarely as it does in a daemon."""
    from blackroad.daemon import GC_THRESHOLD

    former = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*former)
        gc.unfreeze()


def cost(queued: int) -> Cost:
    """All that one task costs with so many queued; the memory is that of a queued one."""
    rounds = max(1, ROUND_TASKS // queued)
    with like_a_daemon():
        one = warmed()
        began = time.process_time()
        for _ in range(rounds):
            one.queue(queued)
            one.drain()
        us = 1e6 * (time.process_time() - began) / queued / rounds
        events = list(one.submits(queued))
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for event in events:
            one._do([event])
        held = (tracemalloc.get_traced_memory()[0] - before) / queued
        tracemalloc.stop()
        return Cost(queued, calls_per_task(queued), us, held)
