"""Waiting for tasks from a terminal: outlives a daemon's restart, but not its absence.

This file must not know what is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final

from blackroad.errors import (
    BlackroadError,
    NoDaemon,
    OwnerLost,
    StillRunning,
    TaskError,
    Unreachable,
)
from blackroad.units import format_ms

if TYPE_CHECKING:
    from blackroad.client.client import Client
    from blackroad.client.futures import TaskFuture

ENDED: Final = ("done", "failed", "cancelled", "expired", "quarantined", "unknown")
STEP_S: Final = 1.0
ASK_S: Final = 5.0
PATIENCE_S: Final = 30.0
FOLLOW_S: Final = 0.3
AWAY: Final = (Unreachable, NoDaemon, OwnerLost)


class Patience:
    """How long an owner that was heard once may be silent before waiting for it ends."""

    def __init__(self, heard: bool) -> None:
        self._until = time.monotonic() + PATIENCE_S if heard else 0.0

    def heard(self) -> None:
        """The owner answered."""
        self._until = time.monotonic() + PATIENCE_S

    def bear(self, error: BlackroadError) -> None:
        """The owner did not answer: raise `error` when that has lasted too long."""
        if time.monotonic() >= self._until:
            raise error


def outcome(
    client: Client, task: str, timeout_ms: int | None = None, *, heard: bool = False
) -> Any:
    """Wait for a task by its id and return its value.

    `heard` says that its owner has been reached before, so that its absence may be short.

    Raises  what the task raised; StillRunning after `timeout_ms`; Unreachable, UnknownTask.
    """
    until = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
    patience = Patience(heard)
    while True:
        step_s = STEP_S if until is None else min(STEP_S, max(0.0, until - time.monotonic()))
        try:
            return client.outcome(task, step_s)
        except AWAY as error:
            patience.bear(error)
            time.sleep(STEP_S / 4)
        except CancelledError:
            raise cancelled(task) from None
        except TimeoutError as error:
            if isinstance(error, BlackroadError):
                raise
            patience.heard()
        if until is not None and time.monotonic() >= until:
            raise StillRunning(
                f"{task} has not ended within {format_ms(timeout_ms or 0)}",
                task_id=task,
                hint=f"`blackroad status {task}` tells how far it is; it goes on all the same",
            )


def cancelled(task: str) -> TaskError:
    """What a cancelled task is told as."""
    return TaskError(
        f"{task} was cancelled", task_id=task, hint="submit it again if it is still wanted"
    )


def settled(
    client: Client, future: TaskFuture, each_turn: Callable[[], None], turn_s: float = STEP_S
) -> Any:
    """Wait for a durable task that this session submitted; call `each_turn` now and then.

    Raises  as `outcome`.
    """
    from concurrent.futures import wait

    patience = Patience(True)
    ask_at = time.monotonic() + ASK_S
    while not wait([future], turn_s).done:
        each_turn()
        if time.monotonic() >= ask_at:
            try:
                client.status(future.task_id)
                patience.heard()
            except AWAY as error:
                patience.bear(error)
            ask_at = time.monotonic() + ASK_S
    try:
        return future.result()
    except OwnerLost:
        # The daemon has begun a new life, and the task with it: its journal had it.
        return outcome(client, future.task_id, heard=True)
    except CancelledError:
        raise cancelled(future.task_id) from None


class LogReader:
    """Reads on in what a task prints, across its attempts."""

    def __init__(self, client: Client, task: str, put: Callable[[dict[str, Any]], None]) -> None:
        self._client = client
        self._task = task
        self._put = put
        self._offset = 0
        self._node = ""
        self.printed = False
        self.state = ""

    def read(self) -> bool:
        """Pass on what is new; return whether the task has ended.

        Raises  Unreachable, UnknownTask.
        """
        told = self._client.logs(self._task, self._offset)
        other = bool(told["node"]) and told["node"] != self._node
        if self._offset and (other or told["end"] < self._offset):
            # Another attempt, which began to print anew.
            self._offset = 0
            told = self._client.logs(self._task, 0)
        self._node = told["node"] or self._node
        if told["text"]:
            self.printed = True
            self._put(told)
        self._offset = told["end"]
        self.state = told["state"]
        return self.state in ENDED

    def follow(self) -> None:
        """Pass on what comes, until the task has ended.

        Raises  Unreachable where its node stays silent; UnknownTask.
        """
        patience = Patience(False)
        while True:
            try:
                if self.read():
                    return
                patience.heard()
            except AWAY as error:
                patience.bear(error)
            time.sleep(FOLLOW_S)
