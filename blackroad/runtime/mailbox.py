"""Edge: the pool's side of a bundle: who may begin what, and what is done already.

A bundle's tasks run one after the other in one process.  Before each but the first it takes a
claim from a counter in the kernel; what was handed ahead needs one for its first task, too.  The
pool may take all that are left at any time, and from then on nothing else of the bundle begins.
What is done stands in memory that both have mapped, and counts for the pool as soon as the next
task was claimed: so nothing is lost with the process.  This file must not know tasks.  The other
side is `tray.py`.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

import msgspec

from blackroad.bus.messages import Early
from blackroad.limits import INLINE_BYTES_MAX
from blackroad.runtime.tray import MAILBOX_BYTES, MAILBOX_STEP, TABLE_BYTES, TRAYS

_decode = msgspec.msgpack.Decoder(tuple[Early, ...]).decode


def mailboxes() -> tuple[list[Mailbox], int]:
    """Make those of one task process, and the descriptor of their memory.

    Raises  OSError where there are no descriptors or no memory left.
    """
    memory_fd = os.memfd_create("bundle", os.MFD_CLOEXEC)
    made: list[Mailbox] = []
    try:
        os.truncate(memory_fd, TRAYS * MAILBOX_STEP)
        for place in range(TRAYS):
            made.append(Mailbox(memory_fd, place))
    except OSError:
        for one in made:
            one.close()
        os.close(memory_fd)
        raise
    return made, memory_fd


class Mailbox:
    """The pool's side of one place of a task process."""

    __slots__ = ("_map", "_table", "claims_fd", "tasks", "whole")

    def __init__(self, memory_fd: int, place: int) -> None:
        """Raises  OSError where there are no descriptors or no memory left."""
        # How many tasks of the present bundle have begun, or may.
        self.tasks = 1
        # May others than those that have begun?
        self.whole = False
        self._map = mmap.mmap(memory_fd, MAILBOX_BYTES, offset=place * MAILBOX_STEP)
        try:
            self.claims_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        except OSError:
            self._map.close()
            raise
        self._table = memoryview(self._map)[:TABLE_BYTES].cast("I")

    def begin(self, tasks: int, *, ahead: bool = False) -> None:
        """A bundle of so many tasks starts; a single task is one, too.

        What is handed `ahead` may start: its first task, too, has to be claimed.
        """
        self.take_back()
        self.tasks = tasks
        claims = tasks if ahead else tasks - 1
        self.whole = claims > 0
        if claims:
            os.eventfd_write(self.claims_fd, claims)

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
        os.close(self.claims_fd)
