"""A program whose signal handler raises, at a moment of the test's choice."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest


class Alarm(KeyboardInterrupt):
    """A signal handler of the program raised this."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Have a handler raise Alarm in the main thread, once, so many seconds from now; 0: never."""

    armed: list[bool] = []

    def rings(number: int, frame: object) -> None:
        # The signal may reach another thread, and so be a little late.
        if armed:
            armed.clear()
            raise Alarm

    def arm(seconds: float) -> None:
        armed[:] = [True] if seconds else []
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, rings)
    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
