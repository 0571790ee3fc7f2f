"""Futures of tasks: real `concurrent.futures.Future`s that know their task.

A value is decoded in the thread that asks for it, once, never in the thread that receives.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from blackroad.bus import payload
from blackroad.bus.messages import End, Ended
from blackroad.bus.work import decode_failure
from blackroad.errors import (
    OutOfMemory,
    Quarantined,
    RemoteProtocolError,
    ResultNotPicklable,
    TaskError,
    TaskFailed,
    TaskTimeout,
    TaskUnknown,
    WorkerCrashed,
)
from blackroad.ids import task_text

if TYPE_CHECKING:
    from blackroad.client.client import Client

_UNDECODED = object()


class Raw:
    """A result as it came, not yet decoded."""

    __slots__ = ("buffer", "value")

    def __init__(self, buffer: bytes | memoryview) -> None:
        self.buffer: bytes | memoryview | None = buffer
        self.value: Any = _UNDECODED

    def get(self) -> Any:
        """Decode once."""
        if self.value is _UNDECODED:
            buffer = self.buffer
            self.value = payload.decode(buffer) if buffer else None
            self.buffer = None
        return self.value


_making = threading.Lock()
_PENDING, _FINISHED = "PENDING", "FINISHED"


class TaskFuture(Future[Any]):
    """The outcome of one task, now or later.

    Cost  a lock and a condition are made only for those that somebody waits for; with a hundred
          thousand futures under way that halves their time and memory.
    """

    def __init__(self, client: Client, task: bytes, name: str) -> None:
        # What Future.__init__ sets, but for the condition; a test compares the two.
        self._state = _PENDING
        self._result = None
        self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._made: threading.Condition | None = None
        self._client = client
        self._task = task
        self._name = name
        self.wanted_gone = False
        self.ended: Ended | None = None
        self.accepted: Future[None] | None = None

    @property
    def task_id(self) -> str:
        """The id as `blackroad status` takes it."""
        return task_text(self._client.node_id, self._task)

    @property
    def task(self) -> bytes:
        """The id as it travels."""
        return self._task

    @property
    def name(self) -> str:
        """The function, kernel or program that runs."""
        return self._name

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made
        if made is None:
            with _making:
                made = self._made = self._made or threading.Condition()
        return made

    def done(self) -> bool:
        """Has the task ended?"""
        return self._state not in (_PENDING, "RUNNING")

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the outcome and return its value.

        Raises  what the task raised (TaskFailed), or why it ended without a result; TimeoutError
                after `timeout` seconds; CancelledError.
        """
        if self._state == _FINISHED and self._exception is None:
            value = self._result
        else:
            value = super().result(timeout)
        return value.get() if isinstance(value, Raw) else value

    def cancel(self) -> bool:
        """Ask for the end of the task; return False where it has ended already.

        The future is cancelled once every process of the task is proven gone, not before.
        """
        if self.done():
            return False
        self.wanted_gone = True
        self._client.cancel_task(self._task)
        return True

    def why(self) -> dict[str, Any]:
        """Why the task is not running: one reason, and a table of nodes."""
        return self._client.why(self.task_id)

    # --- called by the connection's thread --------------------------------------------------------

    def settle(self, ended: Ended, result: bytes | memoryview) -> None:
        """Take the outcome."""
        self.ended = ended
        if ended.end is End.DONE:
            self._succeed(Raw(result))
            return
        self.fail(error_of(ended, result, self.task_id, self._name))

    def _succeed(self, raw: Raw) -> None:
        with _making:
            if self._made is None:
                # Nobody waits and nobody is to be called: whoever comes later makes the
                # condition under the same lock, and finds the result.
                self._result, self._state = raw, _FINISHED
                return
        if not self.done():
            self.set_running_or_notify_cancel()
            self.set_result(raw)

    def fail(self, error: BaseException) -> None:
        """End without a result."""
        if self.done():
            return
        if isinstance(error, CancelledError):
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        self.set_running_or_notify_cancel()
        self.set_exception(error)


class GatheredFuture(Future[Any]):
    """A result that is put together from the results of several tasks."""

    def __init__(
        self, parts: Sequence[TaskFuture], combine: Callable[[list[Any]], Any], name: str
    ) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.name = name
        self._combine = combine
        self._left = len(self.parts)
        self.set_running_or_notify_cancel()
        for part in self.parts:
            part.add_done_callback(self._part_done)

    def _part_done(self, part: Future[Any]) -> None:
        if self.done():
            return
        error = CancelledError() if part.cancelled() else part.exception()
        if error is not None:
            self._end(error)
            for other in self.parts:
                if other is not part:
                    other.cancel()
            return
        with self._condition:
            self._left -= 1
            left = self._left
        if left == 0:
            try:
                value = self._combine([one.result() for one in self.parts])
            except BaseException as wrong:
                self._end(wrong)
                return
            self.set_result(value)

    def _end(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)

    def cancel(self) -> bool:
        """Ask for the end of all parts."""
        if self.done():
            return False
        for part in self.parts:
            part.cancel()
        return True

    def progress(self) -> tuple[int, int]:
        """How many parts are done, of how many."""
        return len(self.parts) - self._left, len(self.parts)


def error_of(ended: Ended, result: bytes | memoryview, task_id: str, name: str) -> BaseException:
    """What a task that ended without a result raises at its caller."""
    what = f"`{name}`" if name else "the task"
    facts = ended.facts
    if ended.end is End.CANCELLED:
        return CancelledError()
    if ended.end is End.EXPIRED:
        return TaskTimeout(f"{what} passed its deadline", task_id=task_id)
    if ended.end is End.QUARANTINED:
        return Quarantined(
            f"{what} took its node down {ended.attempts} times and is set aside",
            task_id=task_id,
            hint=f"`blackroad logs {task_id}` shows what it printed last, and "
            f"`blackroad retry {task_id}` lets it try again",
        )
    if ended.end is End.UNKNOWN:
        return TaskUnknown(
            f"{what} was lost with its node; whether it ran to its end cannot be known",
            task_id=task_id,
            hint="it was submitted with once=True, so it is not run again",
        )
    match ended.reason:
        case "WorkerCrashed":
            how = facts.text or "its process died"
            return WorkerCrashed(
                f"{what} crashed each of the {ended.attempts} times it was started: {how}",
                task_id=task_id,
                hint=f"`blackroad logs {task_id}` shows what it printed last",
            )
        case "TaskTimeout":
            return TaskTimeout(
                f"{what} ran longer than its timeout",
                task_id=task_id,
                hint="raise `timeout`, or split the work",
            )
        case "OutOfMemory":
            return OutOfMemory(
                f"{what} used more memory than it asked for: {facts.text}", task_id=task_id
            )
        case "TaskFailed":
            return _task_failed(result, task_id, what)
    return TaskError(
        f"{what} could not be run: {facts.text or ended.reason}",
        task_id=task_id,
        hint=f"`blackroad status {task_id}` tells its story",
    )


def _task_failed(result: bytes | memoryview, task_id: str, what: str) -> TaskFailed:
    """Rebuild what can safely be rebuilt of a remote exception: its text and built-in type."""
    try:
        failure = decode_failure(result)
    except RemoteProtocolError as error:
        return TaskFailed(f"{what} failed, and its error cannot be read: {error}", task_id=task_id)
    kind: type[TaskFailed] = TaskFailed
    if failure.type_name == "ResultNotPicklable":
        kind = ResultNotPicklable
    else:
        kind = _class_like(failure.type_name)
    text = failure.text or failure.type_name
    return kind(
        f"{failure.type_name}: {failure.text}" if failure.text else text,
        task_id=task_id,
        type_name=failure.type_name,
        text=failure.text,
        traceback_text=failure.traceback_text,
        exit_status=failure.exit_status,
    )


_classes: dict[str, type[TaskFailed]] = {}


def _class_like(type_name: str) -> type[TaskFailed]:
    """TaskFailed that is also the built-in exception of that name, where that can be."""
    known = _classes.get(type_name)
    if known is not None:
        return known
    found = getattr(builtins, type_name, None)
    kind = TaskFailed
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            space = {"__module__": "blackroad.errors"}
            made: type[TaskFailed] = type("TaskFailed", (TaskFailed, found), space)
            made("probe")
            kind = made
        except TypeError:
            # A built-in with a layout or constructor of its own: the plain class must do.
            kind = TaskFailed
        _classes[type_name] = kind
    return kind
