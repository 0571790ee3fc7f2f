"""Edge: the pool's side of a bundle: who may begin what, and what is done already.

A bundle's tasks run one after the other in one process.  Before each but the first it takes a
claim from a counter in the kernel; the pool may take all that are left at any time, and from then
on nothing else of the bundle begins.  What is done stands in memory that both have mapped, and
counts for the pool as soon as the next task was claimed: so nothing is lost with the process.
This file must not know tasks.  The other side is `tray.py`.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

import msgspec

from blackroad.bus.messages import Early
from blackroad.limits import INLINE_BYTES_MAX
from blackroad.runtime.tray import MAILBOX_BYTES, TABLE_BYTES

_decode = msgspec.msgpack.Decoder(tuple[Early, ...]).decode


class Mailbox:
    """The pool's side, for one task process."""

    __slots__ = ("_map", "_table", "claims_fd", "memory_fd", "tasks", "whole")

    def __init__(self) -> None:
        """Raises  OSError where there are no descriptors or no memory left."""
        # How many tasks of the present bundle have begun, or may.
        self.tasks = 1
        # May others than those that have begun?
        self.whole = False
        self.claims_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        try:
            self.memory_fd = os.memfd_create("bundle", os.MFD_CLOEXEC)
        except OSError:
            os.close(self.claims_fd)
            raise
        os.truncate(self.memory_fd, MAILBOX_BYTES)
        self._map = mmap.mmap(self.memory_fd, MAILBOX_BYTES)
        self._table = memoryview(self._map)[:TABLE_BYTES].cast("I")

    def begin(self, tasks: int) -> None:
        """A bundle of so many tasks starts; a single task is one, too."""
        self.take_back()
        self.tasks = tasks
        self.whole = tasks > 1
        if self.whole:
            os.eventfd_write(self.claims_fd, tasks - 1)

    def take_back(self) -> None:
        """Nothing further of it begins; `tasks` is then how many have begun."""
        if not self.whole:
            return
        self.whole = False
        with suppress(BlockingIOError):
            while True:
                os.eventfd_read(self.claims_fd)
                self.tasks -= 1

    def done(self, count: int) -> tuple[Early, ...]:
        """What the first `count` tasks came to.

        Raises  msgspec.DecodeError where the process wrote something else.
        """
        if not count:
            return ()
        end = self._table[count - 1]
        head = b"\xdc" + count.to_bytes(2, "big")
        found = _decode(head + self._map[TABLE_BYTES : TABLE_BYTES + end])
        if sum([len(one.result) for one in found]) > INLINE_BYTES_MAX:
            raise msgspec.ValidationError("the results of a bundle are too long")
        return found

    def close(self) -> None:
        """Give everything back."""
        self._table.release()
        self._map.close()
        os.close(self.memory_fd)
        os.close(self.claims_fd)
