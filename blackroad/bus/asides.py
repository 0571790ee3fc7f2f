"""Answers to somebody there is no link with: each on a connection made for that alone.

Edge.  This file must not know what is said, nor to whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus import codec
from blackroad.bus.sockets import connect, send

if TYPE_CHECKING:
    from blackroad.bus.messages import Message
    from blackroad.bus.sockets import Bus, Socket

WAITING_MAX = 64
TRY_MS = 2_000


def send_alone(socket: Socket, message: Message) -> bool:
    """Send one message outside of any session; return False where nobody takes it now."""
    frames = (codec.encode_header(0, 0), codec.frame_of((codec.encode(message),)))
    return send(socket, frames)


class Asides:
    """Messages that wait for their connection; who does not listen soon misses them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: list[tuple[Socket, Message, int]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def say(self, endpoint: str, key: bytes, message: Message, now_ms: int) -> bool:
        """Send that message there, to the owner of that key; False where it cannot be tried."""
        if len(self._waiting) >= WAITING_MAX:
            return False
        socket = self._bus.peer(key)
        if not connect(socket, endpoint):
            self._bus.drop(socket)
            return False
        self._waiting.append((socket, message, now_ms + TRY_MS))
        return True

    def tick(self, now_ms: int) -> None:
        """Send what can be sent; a socket that has done its work is closed."""
        waiting, self._waiting = self._waiting, []
        for socket, message, until_ms in waiting:
            if send_alone(socket, message):
                self._bus.finish(socket)
            elif now_ms >= until_ms:
                self._bus.drop(socket)
            else:
                self._waiting.append((socket, message, until_ms))
