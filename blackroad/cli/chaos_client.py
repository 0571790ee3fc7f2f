"""Edge: the program that submits while chaos is on: `python -m blackroad.cli.chaos_client ORDER`.

It writes down what it asks for and what it is told.  It may be killed at any moment: started again
it reads what it had written, and submits every durable task without an end again under the same
id.  It ends when the file `stop` is there and all it submitted has ended, after it has asked for
some outcomes a second time.  This file must not know what is done to the mesh.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections import deque
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from blackroad.bus.messages import End
from blackroad.cli import chaos_record
from blackroad.cli.chaos_history import ENDS, OWNER_LOST
from blackroad.cli.chaos_tasks import result_of, worker
from blackroad.cli.chaos_work import Plan, plan
from blackroad.client.client import Client
from blackroad.client.futures import TaskFuture
from blackroad.errors import BlackroadError, Busy, NoDaemon, OwnerLost, Unplaceable, UsageError

TURN_S: Final = 0.02
AGAIN_S: Final = 0.5
LOOK_TWICE: Final = 25
CONNECT_S: Final = 1.0
WORK: Final = "blackroad.cli.chaos_tasks:work"
# Nothing is concluded from these: the task is asked for again.
PASSING: Final = (OwnerLost, Busy, NoDaemon)
REFUSED: Final = "the daemon did not take the task"


class Order(NamedTuple):
    """What a submitter is told on its command line."""

    name: str
    seed: str
    endpoint: str
    history: str
    locks: str
    stop: str
    per_s: float
    open_max: int
    tasks_max: int


class _Named(Client):
    """A client that submits under ids given to it, so that a killed one can be replaced."""

    next_id = b""

    def _new_task(self) -> bytes:
        return self.next_id


class Submitter:
    """Submits in its own time, and follows what it submitted."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._client: _Named | None = None
        self._number = 0
        self._futures: dict[str, tuple[Plan, TaskFuture]] = {}
        self._again: list[tuple[float, Plan]] = []
        self._cancels: list[tuple[float, str]] = []
        self._accepted: set[str] = set()
        self._done: deque[Plan] = deque(maxlen=LOOK_TWICE)
        self._looked = False
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._took: queue.SimpleQueue[str] = queue.SimpleQueue()
        # One function object: its class of work then stays one.
        self._worker = worker()

    def run(self) -> None:
        """Work until it is told to stop and all has ended.

        Raises  EnvironmentProblem where the history cannot be kept.
        """
        self._recover()
        due_s = time.monotonic()
        while not self._connect():
            if os.path.exists(self._order.stop) and not self._again:
                return
        while True:
            stopping = os.path.exists(self._order.stop) or self._number >= self._order.tasks_max
            self._hear()
            if stopping and not self._futures and not self._again and not self._look_twice():
                break
            now_s = time.monotonic()
            if not stopping and now_s >= due_s:
                # What could not be submitted in time is not made up for in one burst.
                due_s = max(due_s, now_s - 1) + 1 / self._order.per_s
                if len(self._futures) + len(self._again) < self._order.open_max:
                    self._submit(self._plan(self._number))
                    self._number += 1
                    continue
            self._repeat(now_s)
            time.sleep(TURN_S)
        if self._client is not None:
            self._client.close()

    def _plan(self, number: int) -> Plan:
        return plan(self._order.seed, self._order.name, number)

    def _connect(self) -> bool:
        try:
            self._client = _Named(
                self._order.endpoint, user=self._order.name, connect_timeout=CONNECT_S
            )
        except BlackroadError:
            time.sleep(TURN_S)
            return False
        return True

    def _recover(self) -> None:
        """Go on where an earlier life of this program was killed."""
        found = chaos_record.read(self._order.history).tasks
        while (each := self._plan(self._number)).name in found:
            self._number += 1
            task = found[each.name]
            if task.accepted_ms is not None:
                self._accepted.add(each.name)
            if task.ended or (task.rejected and task.accepted_ms is None):
                continue
            if each.durable:
                self._again.append((0.0, each))
            else:
                # It went with the session of the life that was killed.
                self._tell("ended", each, end=OWNER_LOST)

    # --- asking -----------------------------------------------------------------------------------

    def _submit(self, each: Plan, *, again: bool = False) -> None:
        client = self._client
        if client is None:
            return
        if not again:
            self._tell("submitted", each, durable=each.durable, pure=each.pure, once=each.once)
        client.next_id = each.task
        order = each.order(self._order.history, self._order.locks)
        options: dict[str, Any] = {
            "durable": each.durable,
            "pure": each.pure,
            "once": each.once,
            "wait_for_node": True,
        }
        # A durable one may be submitted again, and has to be the same work, byte for byte.
        work: Any = WORK if each.durable else self._worker
        future = client.submit(work, order, **options)
        self._futures[each.name] = (each, future)
        name = each.name
        future.add_done_callback(lambda _: self._ended.put(name))
        if future.accepted is not None:
            future.accepted.add_done_callback(lambda one: self._on_accepted(one, name))
        if each.cancel_ms and not again:
            self._cancels.append((time.monotonic() + each.cancel_ms / 1000, each.name))

    def _look_twice(self) -> bool:
        """Before the end, ask once more for outcomes that were told: they must be the same."""
        if self._looked or not self._done:
            return False
        self._looked = True
        for each in self._done:
            self._submit(each, again=True)
        return True

    def _on_accepted(self, accepted: Future[None], name: str) -> None:
        if accepted.exception() is None:
            self._took.put(name)

    def _repeat(self, now_s: float) -> None:
        due = [each for at_s, each in self._again if now_s >= at_s]
        self._again = [one for one in self._again if now_s < one[0]]
        for each in due:
            self._submit(each, again=True)
        for at_s, name in self._cancels:
            if now_s >= at_s and name in self._futures:
                self._futures[name][1].cancel()
        self._cancels = [one for one in self._cancels if now_s < one[0]]

    # --- hearing ----------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Write down what was accepted, then what has ended."""
        ended = [self._ended.get() for _ in range(self._ended.qsize())]
        for _ in range(self._took.qsize()):
            name = self._took.get()
            if name not in self._accepted:
                self._accepted.add(name)
                self._tell("accepted", self._futures_plan(name))
        for name in ended:
            if name in self._futures:
                each, future = self._futures.pop(name)
                self._end(each, future)

    def _futures_plan(self, name: str) -> Plan:
        return self._plan(int(name.rpartition("-")[2]))

    def _end(self, each: Plan, future: TaskFuture) -> None:
        told = future.ended
        if told is not None:
            end = ENDS[told.end]
            result = result_of(future.result()) if told.end is End.DONE else told.reason
            self._tell("ended", each, end=end, result=result)
            if each.durable and not self._looked:
                self._done.append(each)
            return
        error = future.exception()
        refused = isinstance(error, Unplaceable | UsageError) or str(error).startswith(REFUSED)
        if refused:
            self._tell("rejected", each, why=str(error)[:200])
        elif each.durable:
            # Whatever this session cannot have, the task's owner still knows.
            self._again.append((time.monotonic() + AGAIN_S, each))
        else:
            end = OWNER_LOST if isinstance(error, PASSING) else type(error).__name__
            self._tell("ended", each, end=end, result=str(error)[:200])

    def _tell(self, what: str, each: Plan, **facts: Any) -> None:
        chaos_record.append(self._order.history, what, task=each.name, **facts)


def main() -> None:
    """Do what the command line says.

    Raises  EnvironmentProblem.
    """
    Submitter(Order(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
