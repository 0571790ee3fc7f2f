"""How to wait for what is due any moment: look for a while, and only then sleep.

Edge.  To sleep and be woken costs more than all else of a short round trip: 15 us within a
processor, 40 to 60 where an idle one has to be woken first, more on a virtual one.  So who has
seen that its waits are short looks before it sleeps; who has not, sleeps at once.

Looking uses a processor up.  Where another process wants it, that costs both of them, for then
the scheduler gives turns of milliseconds: who is kept from looking sleeps for a while.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sized
from typing import Final, TypeVar

Found = TypeVar("Found", bound=Sized)

# A wait counts for so many times what it may look at most: one long one ends the looking.
_LONG: Final = 8
# The newest wait is an eighth of the mean.
_SHIFT: Final = 3
# Between two looks somebody else had the processor, and for longer than a small task takes.
_CROWDED_NS: Final = 500_000
# So many waits are slept through then.
_PAUSE: Final = 64


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


class Patience:
    """The waits of one thread, or of threads that take turns.

    It looks for at most `most_us` at a time, and only while the mean of the last waits is below
    that.
    """

    def __init__(self, most_us: int, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._most_ns = most_us * 1_000
        self._mean_ns = _LONG * self._most_ns
        self._clock_ns = clock_ns
        # Waits that are still to be slept through.
        self._paused = 0

    @property
    def looks(self) -> bool:
        """Would the next wait look before it sleeps?"""
        return self._mean_ns < self._most_ns and not self._paused

    def wait(self, poll: Callable[[float], Found], timeout: float, *, look: bool) -> Found:
        """Wait by `poll`, which takes 0 for a look; without `look` it sleeps at once.

        `timeout` is what `poll` takes; it begins when the looking has ended.
        """
        began_ns = self._clock_ns()
        found = self._look(poll, began_ns) if look and self.looks else None
        if not found:
            found = poll(timeout)
        waited_ns = min(self._clock_ns() - began_ns, _LONG * self._most_ns)
        self._mean_ns += (waited_ns - self._mean_ns) >> _SHIFT
        if self._paused:
            self._paused -= 1
        return found

    def _look(self, poll: Callable[[float], Found], began_ns: int) -> Found | None:
        clock_ns = self._clock_ns
        until_ns = began_ns + self._most_ns
        found, now_ns = None, began_ns
        while not found and now_ns < until_ns:
            found = poll(0)
            before_ns, now_ns = now_ns, clock_ns()
            if now_ns - before_ns >= _CROWDED_NS:
                self._paused = _PAUSE
                break
        return found
