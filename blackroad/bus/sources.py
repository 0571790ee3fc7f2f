"""What an event loop waits for, and what is to be done when it comes.

Edge.  This file must not know what any of it means.
"""

from __future__ import annotations

from collections.abc import Callable

from blackroad.bus.sockets import Poller, Socket


class Sources:
    """Sockets and descriptors, each with its handler."""

    def __init__(self) -> None:
        self.poller = Poller()
        self._handlers: dict[Socket | int, Callable[[], None]] = {}
        self._with_room: dict[int, Callable[[], None]] = {}

    def watch(self, what: Socket | int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever there is something to read."""
        self._handlers[what] = handler
        self.poller.watch(what)

    def unwatch(self, what: Socket | int) -> None:
        """No longer."""
        self._handlers.pop(what, None)
        self.poller.forget(what)

    def watch_room(self, fd: int, handler: Callable[[], None] | None) -> None:
        """Call `handler` whenever there is room to write to a watched descriptor; None ends it."""
        self.poller.watch_room(fd, handler is not None)
        if handler is None:
            self._with_room.pop(fd, None)
        else:
            self._with_room[fd] = handler

    def handle(self, what: Socket | int, room: bool) -> bool:
        """Do what is to be done; return whether anybody here knows what that is."""
        if room and isinstance(what, int):
            handler = self._with_room.get(what)
        else:
            handler = self._handlers.get(what)
        if handler is not None:
            handler()
        return handler is not None or room
