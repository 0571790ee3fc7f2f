"""A stretch of the main thread that no signal handler of the program may cut in two.

Python runs signal handlers between any two steps of the main thread, and KeyboardInterrupt leaves
from there.  Books that are half written would stay so.  Edge.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any

# The functions below the public ones, which make enums: a tenth of the time.
_signals: Any = importlib.import_module("_signal")
_handler_of: Callable[[int], Any] = _signals.getsignal
_handle: Callable[[int, Any], Any] = _signals.signal
_NUMBERS = tuple(
    sorted(
        int(number)
        for number in signal.valid_signals()
        if number < signal.SIGRTMIN and number not in (signal.SIGKILL, signal.SIGSTOP)
    )
)


class Shield:
    """Lets handlers that are due wait until the block is over; elsewhere than in main it is free.

    What a handler raises is raised where the block ends.
    """

    __slots__ = ("_due", "_found", "_guarded", "_handlers")

    def __init__(self) -> None:
        # What was found the last time, and what of it runs Python code: it seldom changes.
        self._found: list[Any] = []
        self._guarded: tuple[tuple[int, Any], ...] = ()
        self._handlers: list[tuple[int, Any]] = []
        self._due: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        if get_ident() != threading.main_thread().ident:
            return
        try:
            found = list(map(_handler_of, _NUMBERS))
            if found != self._found:
                # Numbers stand for the system's own ways, which no Python code runs for.
                pairs = zip(_NUMBERS, found, strict=True)
                self._guarded = tuple(pair for pair in pairs if callable(pair[1]))
                self._found = found
            for pair in self._guarded:
                self._handlers.append(pair)
                _handle(pair[0], self._later)
        except BaseException:
            self._restore()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if get_ident() != threading.main_thread().ident or not self._handlers:
            return
        handlers = self._guarded
        raised = self._restore()
        if self._due:
            due, self._due = self._due, []
            for number, frame in due:
                try:
                    dict(handlers)[number](number, frame)
                except BaseException as one:
                    raised = raised or one
        if raised is not None:
            raise raised

    def _later(self, number: int, frame: FrameType | None) -> None:
        self._due.append((number, frame))

    def _restore(self) -> BaseException | None:
        """Give all handlers back; return what one of them raised meanwhile."""
        raised: BaseException | None = None
        while self._handlers:
            # Each that is back may raise at any step, so all steps are within the try.
            try:
                while self._handlers:
                    number, handler = self._handlers[-1]
                    _handle(number, handler)
                    self._handlers.pop()
            except BaseException as one:
                raised = raised or one
        return raised
