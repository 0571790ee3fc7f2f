"""Futures of tasks: real `concurrent.futures.Future`s that know their task.

A value is decoded in the thread that asks for it, once, never in the thread that receives.
"""

from __future__ import annotations

import builtins
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Protocol

from blackroad.bus import payload
from blackroad.bus.messages import End, Ended, Facts
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
    from blackroad.bus.messages import ClassSpec, Payload, Ref, Result

_PENDING, _FINISHED = "PENDING", "FINISHED"
# A signal handler may cut in where it is held, and use a future itself.
_making = threading.RLock()


def _in_copy() -> None:
    # Another thread may have held it when this process was forked.
    global _making
    _making = threading.RLock()


os.register_at_fork(after_in_child=_in_copy)


class Template:
    """What tasks of one function and one set of options have in common."""

    __slots__ = ("code", "durable", "name", "spec", "wait")

    def __init__(
        self, spec: ClassSpec, code: Ref | None, durable: bool, wait: bool, name: str
    ) -> None:
        self.spec = spec
        self.code = code
        self.durable = durable
        self.wait = wait
        self.name = name

    def alike(self, other: Template) -> bool:
        """May tasks of both travel in one message?"""
        return (
            self.spec is other.spec
            and self.code is other.code
            and self.durable is other.durable
            and self.wait is other.wait
        )


class Home(Protocol):
    """What a future needs of the client that it came from."""

    @property
    def node_id(self) -> bytes: ...

    def cancel_task(self, task: bytes) -> None: ...

    def why(self, task_id: str) -> dict[str, Any]: ...

    def lead(self, over: Callable[[], bool], timeout_s: float | None) -> float | None: ...

    def nudge(self) -> None: ...


class TaskFuture(Future[Any]):
    """The outcome of one task, now or later.

    Cost  a lock and a condition are made only for those that somebody waits for, and the fields of
          `Future` only for those that need them: with a hundred thousand futures under way that
          takes a third of the time and memory.
    """

    # What Future.__init__ sets, as long as it is nothing else; a test compares the two.
    _state = _PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _waiters: Any = ()
    _done_callbacks: Any = ()
    _made: threading.Condition | None = None

    accepted: Future[None] | None = None
    wanted_gone = False
    # The connection's: when it was said, whether the owner has it, whether it waits to be said.
    sent_ms = 0
    taken = False
    in_line = True

    _raw: bytes | memoryview | None = None
    _ended: Ended | None = None
    _node = b""
    _run_us = 0

    def __init__(self, client: Home, task: bytes, template: Template, work: Payload = b"") -> None:
        self._client = client
        self.task = task
        self.template = template
        self.work: Payload | None = work

    @property
    def task_id(self) -> str:
        """The id as `blackroad status` takes it."""
        return task_text(self._client.node_id, self.task)

    @property
    def name(self) -> str:
        """The function, kernel or program that runs."""
        return self.template.name

    @property
    def ended(self) -> Ended | None:
        """How it ended, without its result; None while it has not."""
        if self._ended is None and self._state == _FINISHED and self._exception is None:
            facts = Facts(self._run_us)
            self._ended = Ended(self.task, End.DONE, "", b"", facts, self._node, 1)
        return self._ended

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        made = self._made
        if made is None:
            with _making:
                made = self._made
                if made is None:
                    self._waiters, self._done_callbacks = [], []
                    made = self._made = threading.Condition()
        return made

    def done(self) -> bool:
        """Has the task ended?"""
        return self._state not in (_PENDING, "RUNNING")

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the outcome and return its value.

        Raises  what the task raised (TaskFailed), or why it ended without a result; TimeoutError
                after `timeout` seconds; CancelledError.
        """
        if self._state != _FINISHED or self._exception is not None:
            super().result(self._await(timeout))
        return self._result if self._raw is None else self._open()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome and return what the task raised, or why it has no result.

        Raises  TimeoutError after `timeout` seconds; CancelledError.
        """
        return super().exception(self._await(timeout))

    def _await(self, timeout: float | None) -> float | None:
        """Have this thread serve the connection while it waits; return what is left of its time."""
        if self.done():
            return timeout
        return self._client.lead(self.done, timeout)

    def _open(self) -> Any:
        """Decode the result, once."""
        raw = self._raw
        if raw is None:
            return self._result
        value = payload.decode(raw) if len(raw) else None
        with _making:
            if self._raw is not None:
                self._result, self._raw = value, None
        return self._result

    def cancel(self) -> bool:
        """Ask for the end of the task; return False where it has ended already.

        The future is cancelled once every process of the task is proven gone, not before.
        """
        if self.done():
            return False
        self.wanted_gone = True
        self._client.cancel_task(self.task)
        return True

    def why(self) -> dict[str, Any]:
        """Why the task is not running: one reason, and a table of nodes."""
        return self._client.why(self.task_id)

    # --- called by the connection -----------------------------------------------------------------

    def settle(self, ended: Ended, result: bytes | memoryview) -> None:
        """Take the outcome, whatever it is; callbacks run here."""
        if self.done():
            return
        self._ended = ended
        if ended.end is not End.DONE:
            self.fail(error_of(ended, result, self.task_id, self.template.name))
            return
        with self._condition:
            self._raw = result
        self.set_running_or_notify_cancel()
        self.set_result(None)

    def done_with(
        self, result: bytes | memoryview, node: bytes, run_us: int, ended: Ended | None = None
    ) -> bool:
        """Take the result of a task that is done; False where callbacks have to run for that."""
        told = (result, node, run_us, ended)
        if self._made is None:
            with _making:
                if self._made is None:
                    if self._state == _PENDING:
                        self._raw, self._node, self._run_us, self._ended = told
                        self._state = _FINISHED
                    return True
        with self._condition:
            if self._done_callbacks:
                return False
            if self._state == _PENDING:
                self._raw, self._node, self._run_us, self._ended = told
                self._state = _FINISHED
                for waiter in self._waiters:
                    waiter.add_result(self)
                self._condition.notify_all()
        return True

    def _invoke_callbacks(self) -> None:
        # Whoever waits for the result need not wait for what the callbacks do.
        self._client.nudge()
        super()._invoke_callbacks()  # type: ignore[misc]

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


def settle_all(
    found: Sequence[tuple[TaskFuture, Result]], node: bytes
) -> list[tuple[TaskFuture, Result]]:
    """Give results to the futures of tasks that are done; return those that have callbacks.

    Cost  one lock for all of them: who comes later makes a condition under the same lock, and
          finds the result.
    """
    watched: list[tuple[TaskFuture, Result]] = []
    with _making:
        for pair in found:
            future, told = pair
            if future._made is not None:
                watched.append(pair)
            elif future._state == _PENDING:
                future._raw = told.result  # type: ignore[assignment]
                future._run_us = told.run_us
                future._node = node
                future._state = _FINISHED
    return [
        (future, told)
        for future, told in watched
        if not future.done_with(told.result, node, told.run_us)  # type: ignore[arg-type]
    ]


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
