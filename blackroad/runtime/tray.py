"""Edge: the task process's side of a bundle: claim the next task, leave what the last one came to.

The other side is `mailbox.py`, which says why.  This file imports little, since it is loaded in
every task process.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from blackroad.limits import BUNDLE_TASKS_MAX, INLINE_BYTES_MAX

_HIGH_FD: Final = 700
TRAYS: Final = 2  # of one process: for what runs, and for what was handed ahead
TABLE_BYTES: Final = 4 * BUNDLE_TASKS_MAX  # where each entry ends, counted from the first one
_ENTRY_BYTES: Final = 16  # of an entry beside its result: array, length, time
MAILBOX_BYTES: Final = TABLE_BYTES + INLINE_BYTES_MAX + _ENTRY_BYTES * BUNDLE_TASKS_MAX
MAILBOX_STEP: Final = -(-MAILBOX_BYTES // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def _out_of_the_way(fd: int) -> int:
    """Give a descriptor a high number.

    A task that closes all it finds and opens files gets the low ones: none of them must be taken
    for the counter.
    """
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError:
        return fd
    os.close(fd)
    return high


class Tray:
    """One place that a task process shares with its pool; `memory_fd` stays the caller's."""

    __slots__ = ("_at", "_claims_fd", "_map", "_table")

    def __init__(self, claims_fd: int, memory_fd: int, place: int) -> None:
        self._claims_fd = _out_of_the_way(claims_fd)
        self._map = mmap.mmap(memory_fd, MAILBOX_BYTES, offset=place * MAILBOX_STEP)
        self._table = memoryview(self._map)[:TABLE_BYTES].cast("I")
        self._at = 0

    def begin(self) -> None:
        """A bundle starts."""
        self._at = 0

    @property
    def room(self) -> int:
        """How many bytes a result may have to go along with those before it."""
        return INLINE_BYTES_MAX - self._at

    def put(self, index: int, entry: bytes) -> None:
        """Leave the entry of the task at that place of the bundle."""
        end = self._at + len(entry)
        self._map[TABLE_BYTES + self._at : TABLE_BYTES + end] = entry
        self._table[index] = end
        self._at = end

    def claim(self) -> bool:
        """May the next task begin?  All that was put in before counts from here on."""
        try:
            os.eventfd_read(self._claims_fd)
        except BlockingIOError:
            return False
        return True
