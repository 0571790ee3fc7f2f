"""Clients of this daemon: what they say, and what waits for them, one bounded line for each.

Edge.  This file must not know what any message means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from blackroad.bus import codec
from blackroad.bus.messages import Reject
from blackroad.errors import RemoteProtocolError

if TYPE_CHECKING:
    from blackroad.bus.messages import Message

CLIENTS_MAX = 4_096
OUTBOX_BYTES_MAX = 64 * 1024 * 1024


class _Line:
    """What waits for one client."""

    __slots__ = ("bytes", "sequence", "waiting")

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.bytes = 0
        self.sequence = 0


class Lines:
    """Everybody's line; a handle is one byte that says by which way, and the route there."""

    def __init__(self, count: Callable[..., None]) -> None:
        # How to send frames, numbered, to a route of that kind.
        self.senders: dict[bytes, Callable[[bytes, int, list[bytes]], bool]] = {}
        # Messages that wait to be flushed.
        self.lined_up = 0
        self.on_lost: Callable[[bytes], None] = lambda _client: None
        self._count = count
        self._lines: dict[bytes, _Line] = {}
        self._ready: dict[bytes, None] = {}
        # For these, there are only messages that nobody waits for.
        self._lazy: dict[bytes, None] = {}

    def __bool__(self) -> bool:
        return bool(self._ready)

    def read(self, client: bytes, packets: Iterable[bytes]) -> Iterator[list[Message]]:
        """Read what a client says, packet by packet; what cannot be read costs it an answer."""
        for packet in packets:
            try:
                found, unknown = codec.CLIENT.decode(packet)
            except RemoteProtocolError as error:
                self._count("breach.client")
                self.tell(client, Reject("protocol", error.message[:256]))
                continue
            if unknown:
                self._count("kinds.unknown", unknown)
            if found:
                yield found

    def tell(self, client: bytes, message: Message, lazy: bool = False) -> None:
        """Put a message in line for a client; a `lazy` one goes with the next that is not."""
        line = self._lines.get(client)
        if line is None:
            if len(self._lines) >= CLIENTS_MAX:
                self._lines.pop(next(iter(self._lines)))
            line = self._lines[client] = _Line()
        encoded = codec.encode(message)
        if line.bytes + len(encoded) > OUTBOX_BYTES_MAX:
            self._count("client.full")
            return
        line.waiting.append(encoded)
        line.bytes += len(encoded)
        if lazy:
            self._lazy[client] = None
        else:
            self.lined_up += 1
            self._ready[client] = None

    def waken(self) -> None:
        """What waited for company has waited long enough."""
        if self._lazy:
            self._ready.update(self._lazy)
            self._lazy.clear()

    def forget(self, client: bytes) -> None:
        """That client is to be told nothing more."""
        self._ready.pop(client, None)
        if self._lines.pop(client, None) is not None:
            self.on_lost(client)

    def flush(self) -> None:
        """Send all that is in line, in batches."""
        ready, self._ready = self._ready, {}
        self.lined_up = 0
        for client in ready:
            line = self._lines.get(client)
            if line is None:
                continue
            send = self.senders[client[:1]]
            waiting, line.waiting = line.waiting, []
            line.bytes = 0
            for frames, _ in codec.batches(waiting):
                line.sequence += 1
                if not send(client[1:], line.sequence, frames):
                    # Gone or not reading: what matters is repeated until it is seen.
                    self._count("client.lost")
                    self._lines.pop(client, None)
                    self.on_lost(client)
                    break
