"""The wire between a program and the daemon of its own machine: a unix socket.

Edge.  This file must not know what the messages mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from blackroad.bus import codec
from blackroad.bus.local import LocalLink
from blackroad.client.turns import now_ms
from blackroad.errors import RemoteProtocolError
from blackroad.limits import FOREVER_MS, MIB

if TYPE_CHECKING:
    from blackroad.bus.messages import Message

RETRY_MS = 50
RETRY_MS_MAX = 1_000
KEPT_BYTES_MAX = 4 * MIB


class LocalWire:
    """A `Wire` over a unix socket; it comes back by itself when the daemon does."""

    def __init__(self, path: str) -> None:
        self._link = LocalLink(path)
        self._news: list[bool] = []
        self._was_connected = False
        self._retry_due_ms = FOREVER_MS
        self._retry_ms = RETRY_MS
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self.fds: tuple[int, ...] = (self._link.fd,)

    def start(self) -> bool:
        """Connect; where no daemon listens yet, go on trying."""
        self._try()
        if not self._was_connected:
            # Then the first one that connects is news, and the session is opened by that.
            self._news.append(False)
        return True

    def _try(self) -> None:
        if self._link.connect():
            self._news.append(True)
            self._was_connected = True
            self._retry_due_ms, self._retry_ms = FOREVER_MS, RETRY_MS
        else:
            self._retry_due_ms = now_ms() + self._retry_ms
            self._retry_ms = min(RETRY_MS_MAX, 2 * self._retry_ms)

    def send(self, messages: list[Message]) -> None:
        """Put messages on the wire, in as few packets as their bounds allow."""
        frames = [
            frame
            for part, _ in codec.batches([codec.encode(message) for message in messages])
            for frame in part
        ]
        if not self._link.connected:
            self._keep(frames)
            return
        # Whoever is connected again says first who it is, and then what was said meanwhile.
        self._link.send([*frames, *self._kept])
        self._kept.clear()
        self._kept_bytes = 0

    def _keep(self, frames: list[bytes]) -> None:
        """Nobody is there: what was said last is said when somebody is."""
        self._kept += frames
        self._kept_bytes += sum(map(len, frames))
        while self._kept_bytes > KEPT_BYTES_MAX:
            self._kept_bytes -= len(self._kept.popleft())

    def receive(self) -> Iterable[Message]:
        """Read what has come; what cannot be read is left out."""
        for packet in self._link.receive():
            try:
                found, _ = codec.OWNER.decode(packet)
            except RemoteProtocolError:
                continue
            yield from found
        if self._was_connected and not self._link.connected:
            self._was_connected = False
            self._news.append(False)
            self._retry_due_ms = now_ms() + RETRY_MS

    def news(self, ready: Collection[int]) -> Iterable[bool]:
        """What became of the connection since the last time."""
        if not self._link.connected and now_ms() >= self._retry_due_ms:
            self._try()
        news, self._news = self._news, []
        return news

    def due_ms(self) -> int:
        """When to try again, where nobody listened."""
        return self._retry_due_ms

    def close(self) -> None:
        """Let go of it."""
        self._link.close()
