"""Objects that an owner's tasks are made of: which are pinned here, and who waits for which.

Source  docs/protocol.md, "Objects".  Pure.  This file must not know tasks, attempts or clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from blackroad.router.effects import Fetch, Outbox, Pin, Unpin

if TYPE_CHECKING:
    from blackroad.bus.messages import Ref
    from blackroad.router.effects import Handle

Waiter = TypeVar("Waiter")


class Pins:
    """How many reasons there are to keep each object; the world hears of the first and last."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self._counts: dict[bytes, int] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._counts

    def pin(self, digest: bytes, by: int = 1) -> None:
        """So many reasons more."""
        count = self._counts.get(digest, 0)
        self._counts[digest] = count + by
        if not count:
            self._out.add(Pin(digest))

    def unpin(self, digest: bytes, by: int = 1) -> None:
        """So many reasons less."""
        count = self._counts.get(digest, 0) - by
        if count > 0:
            self._counts[digest] = count
        elif self._counts.pop(digest, None) is not None:
            self._out.add(Unpin(digest))


class Pulls(Generic[Waiter]):
    """Objects that are on their way here, each fetched once for all that wait for it."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self._waiting: dict[bytes, list[Waiter]] = {}

    def wait(self, ref: Ref, holder: bytes, client: Handle, waiter: Waiter) -> None:
        """Fetch an object unless that is under way; whoever waits twice is called once."""
        waiting = self._waiting.get(ref.digest)
        if waiting is None:
            self._waiting[ref.digest] = [waiter]
            self._out.add(Fetch(ref, holder, client))
        elif waiter not in waiting:
            waiting.append(waiter)

    def over(self, digest: bytes) -> list[Waiter]:
        """The fetch is over: who waited for it."""
        return self._waiting.pop(digest, [])
