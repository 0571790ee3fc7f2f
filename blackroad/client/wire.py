"""What carries messages between a program's session and its daemon.

Edge.  This file must not know what the messages mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Protocol

from blackroad.bus import codec
from blackroad.bus.sockets import (
    DRAIN_MAX,
    Bus,
    connect,
    connected,
    descriptor,
    drain,
    send,
)
from blackroad.errors import RemoteProtocolError
from blackroad.limits import FOREVER_MS

if TYPE_CHECKING:
    from blackroad.bus.messages import Message
    from blackroad.bus.sockets import CurveKeys


class Wire(Protocol):
    """One way to a daemon; used by one thread at a time, whichever it is.

    A descriptor of `fds` is readable when something may have come since `receive` returned
    nothing; any other call may use that sign up, so `receive` is the last call of each turn.
    """

    fds: tuple[int, ...]

    def start(self) -> bool:
        """Begin to connect; return False where there is nothing to connect to."""
        ...

    def send(self, messages: list[Message]) -> None:
        """Hand over messages, in order; what cannot be taken is lost, and said again later."""
        ...

    def receive(self) -> Iterable[Message]:
        """Return what has come; never waits."""
        ...

    def news(self, ready: Collection[int]) -> Iterable[bool]:
        """Return what became of the connection: True for a new one, False for a lost one."""
        ...

    def due_ms(self) -> int:
        """When `receive` has to be called even if nothing comes."""
        ...

    def close(self) -> None:
        """Let go of it, after what was sent had a moment to leave."""
        ...


class SocketWire:
    """A ZeroMQ socket that is connected to a daemon."""

    def __init__(
        self, endpoint: str, keys: CurveKeys | None = None, daemon_key: bytes = b""
    ) -> None:
        """Over TCP as the owner of `keys` with the daemon of `daemon_key`."""
        self._endpoint = endpoint
        self._bus = Bus(keys)
        self._socket = self._bus.client(daemon_key)
        self._monitor = self._bus.monitor(self._socket)
        self._monitor_fd = descriptor(self._monitor)
        self._sequence = 0
        self.fds: tuple[int, ...] = (descriptor(self._socket), self._monitor_fd)

    def start(self) -> bool:
        """Begin to connect; return False where the address makes no sense."""
        return connect(self._socket, self._endpoint)

    def send(self, messages: list[Message]) -> None:
        """Put messages on the wire, in batches."""
        for frames, _ in codec.batches([codec.encode(message) for message in messages]):
            self._sequence += 1
            send(self._socket, [codec.encode_header(0, self._sequence), *frames])

    def receive(self) -> Iterable[Message]:
        """Read what has come; what cannot be read is left out."""
        count = DRAIN_MAX
        while count == DRAIN_MAX:
            count = 0
            for frames in drain(self._socket):
                count += 1
                for frame in frames[1:]:
                    try:
                        found, _ = codec.OWNER.decode(frame)
                    except RemoteProtocolError:
                        continue
                    yield from found

    def news(self, ready: Collection[int]) -> Iterable[bool]:
        """Read what became of the connection, where something did."""
        return connected(self._monitor) if self._monitor_fd in ready else ()

    def due_ms(self) -> int:
        """The socket's own thread does what is due."""
        return FOREVER_MS

    def close(self) -> None:
        """Close the socket."""
        self._bus.close()
