"""Heartbeats between nodes: one PUB to be heard, and ears for everybody else's.

Source  docs/protocol.md, "Telemetry".  Edge.  In a closed mesh there is one SUB for each peer,
since a socket expects one key; what is heard on it is believed only of that peer.  This file must
not know links or lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.sockets import (
    HEARTBEATS,
    Bus,
    Socket,
    bind,
    bind_again,
    connect,
    disconnect,
    drain,
    send,
)
from blackroad.errors import RemoteProtocolError
from blackroad.limits import FOREVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable

# The telemetry of a life that was followed by another is heard for so long: is it over?
FORMER_MS = 120_000


class _Ear:
    """One peer's telemetry, at one address."""

    __slots__ = ("endpoint", "node", "socket")

    def __init__(self, node: bytes, endpoint: str, socket: Socket) -> None:
        self.node = node
        self.endpoint = endpoint
        self.socket = socket


class Telemetry:
    """All PUB and SUB sockets of one daemon."""

    def __init__(
        self, bus: Bus, inc: Callable[[], int], host: str, port: int, count: Callable[..., None]
    ) -> None:
        self._bus = bus
        self._inc = inc
        self._host = host
        self._count = count
        self.publisher = bus.publisher()
        self.port = bind(self.publisher, host, port, "telemetry_port")
        # Without keys one SUB hears everybody.
        self.subscriber: Socket | None = None if bus.closed else bus.subscriber()
        # For whoever waits on sockets: each that comes, and each that goes.
        self.watch: Callable[[Socket], None] = lambda _socket: None
        self.unwatch: Callable[[Socket], None] = lambda _socket: None
        self._ears: dict[bytes, _Ear] = {}
        self._former: dict[tuple[bytes, str], tuple[int, _Ear]] = {}
        self._published = 0

    # --- speaking ---------------------------------------------------------------------------------

    def publish(self, messages: Iterable[m.Message], key: bytes = HEARTBEATS) -> bool:
        """Send to whoever listens; return False where ZeroMQ would not have it."""
        self._published += 1
        header = codec.encode_header(self._inc(), self._published)
        frame = codec.frame_of([codec.encode(one) for one in messages])
        return send(self.publisher, (key, header, frame))

    def rebind(self) -> None:
        """Hang up on all listeners, of whom a PUB cannot drop one; members come back by themselves.

        Cost  listeners miss what is told within half a second; the next Heartbeat says it all.

        Raises  PortInUse where another program took the port in between.
        """
        self._bus.drop(self.publisher)
        self.publisher = self._bus.publisher()
        bind_again(self.publisher, self._host, self.port, "telemetry_port")

    # --- listening --------------------------------------------------------------------------------

    def hear(self, node: bytes, key: bytes, endpoint: str, now_ms: int) -> None:
        """Hear that peer there; where it was heard before is not given up at once."""
        ear = self._ears.get(node)
        if ear is not None and ear.endpoint == endpoint:
            return
        if ear is not None:
            # If that life goes on beside this one, they are clones.
            self._former[node, ear.endpoint] = (now_ms + FORMER_MS, ear)
        # Whose it was matters: an ear for another peer there expects that one's key.
        known = self._former.pop((node, endpoint), None)
        if known is not None:
            self._ears[node] = known[1]
            return
        shared = self.subscriber
        socket = shared if shared is not None else self._bus.subscriber(key)
        if not connect(socket, endpoint):
            self._ears.pop(node, None)
            if shared is None:
                self._bus.drop(socket)
            return
        self._ears[node] = _Ear(node, endpoint, socket)
        if shared is None:
            self.watch(socket)

    def deafen(self, node: bytes) -> None:
        """Hear that peer no longer."""
        ear = self._ears.pop(node, None)
        if ear is not None:
            self._close(ear)
        for place, (_, former) in list(self._former.items()):
            if former.node == node:
                del self._former[place]
                self._close(former)

    def sockets(self) -> list[Socket]:
        """All on which something may be heard."""
        if self.subscriber is not None:
            return [self.subscriber]
        return [ear.socket for ear in self._all()]

    def _all(self) -> list[_Ear]:
        """Those for where peers are, then those for where they were."""
        return [*self._ears.values(), *(ear for _, ear in self._former.values())]

    def nodes(self) -> list[bytes]:
        """Whose telemetry is heard."""
        return list(self._ears)

    def tick(self, now_ms: int) -> None:
        """Give up former addresses: whoever is heard there is known as a clone by now."""
        for place, (until_ms, ear) in list(self._former.items()):
            if now_ms >= until_ms:
                del self._former[place]
                self._close(ear)

    def next_deadline_ms(self) -> int:
        """When `tick` next has something to do."""
        return min((until_ms for until_ms, _ in self._former.values()), default=FOREVER_MS)

    def _close(self, ear: _Ear) -> None:
        if ear.socket is self.subscriber:
            # Another peer may be there by now, and both have one connection.
            if all(one.endpoint != ear.endpoint for one in self._all()):
                disconnect(ear.socket, ear.endpoint)
        else:
            self.unwatch(ear.socket)
            self._bus.drop(ear.socket)

    # --- what was heard ---------------------------------------------------------------------------

    def read(self, socket: Socket | None = None) -> Iterator[m.Message]:
        """Read one socket, or all of them, until it would block; only what its peer may say."""
        if self.subscriber is not None:
            yield from self._read(self.subscriber, b"")
            return
        for ear in self._all():
            if socket is None or ear.socket is socket:
                yield from self._read(ear.socket, ear.node)

    def _read(self, socket: Socket, node: bytes) -> Iterator[m.Message]:
        for frames in drain(socket):
            try:
                if len(frames) != 3:
                    raise RemoteProtocolError("telemetry: three frames are due")
                found, unknown = codec.TELEMETRY.decode(frames[2])
            except RemoteProtocolError:
                self._count("breach.telemetry")
                continue
            if unknown:
                self._count("kinds.unknown", unknown)
            for message in found:
                if node and isinstance(message, m.Heartbeat) and message.node != node:
                    # A member speaks for another one.
                    self._count("telemetry.foreign")
                else:
                    yield message
