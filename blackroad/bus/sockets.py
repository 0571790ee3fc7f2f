"""The only place where ZeroMQ sockets are made, with every limit and every key set on every one.

Source  docs/protocol.md, "Framing on the wire" (R-frame-8).  Edge: this is the one `import zmq`.
One thread owns all sockets that one `Bus` makes.  With keys every TCP socket speaks CURVE; who may
speak at all is `guard.py`'s to say, on the socket that `Bus.judge` makes.
"""

from __future__ import annotations

import contextlib
import select
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import zmq
import zmq.utils.z85

from blackroad.bus.patience import Patience
from blackroad.errors import EnvironmentProblem, LocalProtocolError, PortInUse
from blackroad.limits import BULK_FRAME_BYTES_MAX, DOOR_FRAME_BYTES_MAX, FRAME_BYTES_MAX

LIBZMQ_MIN: Final = (4, 3, 5)
LINGER_MS: Final = 200
# A client that was refused tries again when this has passed, and so gets in once it is admitted.
HANDSHAKE_MS: Final = 2_000
PING_MS: Final = 2_000
PING_TIMEOUT_MS: Final = 8_000
RECONNECT_MS: Final = 200
RECONNECT_MS_MAX: Final = 10_000
BACKLOG: Final = 512
REBIND_TRIES: Final = 100
REBIND_S: Final = 0.01
HIGH_WATER: Final = 1_000
CLIENT_HIGH_WATER: Final = 20_000
# Each may be a Chunk: what one client may leave unread is this many times 256 KiB.
ANSWER_HIGH_WATER: Final = 400
# What Heartbeats begin with: topics, which may be many, are heard on other sockets.
HEARTBEATS: Final = b"\x50"
TELEMETRY_HIGH_WATER: Final = 2_000
SOCKETS_MAX: Final = 8_192
DRAIN_MAX: Final = 256
# What a small task or a program takes that sends one after the other.
LOOK_US: Final = 500
DOOR_HIGH_WATER: Final = 64
JUDGE_ADDRESS: Final = "inproc://zeromq.zap.01"
JUDGE_HIGH_WATER: Final = 10_000
MESH_DOMAIN: Final = b"mesh"
DOOR_DOMAIN: Final = b"door"

Socket = zmq.Socket[bytes]
KEY_BYTES: Final = 32
_FAILED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
POLLIN: Final = zmq.POLLIN
POLLOUT: Final = zmq.POLLOUT


class CurveKeys(Protocol):
    """What a socket needs of a node's keys, 32 bytes each."""

    @property
    def curve_secret(self) -> bytes: ...

    @property
    def curve_public(self) -> bytes: ...


class Keyed(NamedTuple):
    """One multipart from a connection that proved its key."""

    key: bytes
    frames: list[bytes]
    address: str = ""


class Bus:
    """One ZeroMQ context and the sockets made from it.

    With `keys` every socket but the `local_` ones is closed: servers ask the judge about each
    newcomer, clients speak only with the owner of the key that they expect.
    """

    def __init__(self, keys: CurveKeys | None = None) -> None:
        if zmq.zmq_version_info() < LIBZMQ_MIN:
            raise EnvironmentProblem(
                f"libzmq {zmq.zmq_version()} is too old: known holes were closed in 4.3.5",
                hint="pip install --upgrade pyzmq",
            )
        self._context: zmq.Context[Any] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self._sockets: list[Socket] = []
        self._keys = keys
        self._monitors = 0
        # Monitors of listening sockets, and what they watch.
        self._watched: dict[Socket, Socket] = {}

    @property
    def closed(self) -> bool:
        """Do only the owners of known keys get in?"""
        return self._keys is not None

    # --- kinds of sockets -------------------------------------------------------------------------

    def inbox(self) -> Socket:
        """ROUTER on which peers, and clients over TCP, are heard."""
        socket = self._make(zmq.ROUTER, BULK_FRAME_BYTES_MAX, CLIENT_HIGH_WATER)
        socket.set(zmq.SNDHWM, ANSWER_HIGH_WATER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        return self._serving(socket)

    def peer(self, server_key: bytes = b"") -> Socket:
        """DEALER on which one peer is spoken to; nothing is queued for one who is not there."""
        socket = self._make(zmq.DEALER, FRAME_BYTES_MAX, HIGH_WATER)
        socket.set(zmq.IMMEDIATE, 1)
        return self._expecting(socket, server_key)

    def bulk_server(self) -> Socket:
        """ROUTER that answers Want."""
        socket = self._make(zmq.ROUTER, BULK_FRAME_BYTES_MAX, HIGH_WATER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        return self._serving(socket)

    def bulk_client(self, server_key: bytes = b"") -> Socket:
        """DEALER that asks one holder for chunks.

        It may queue while it connects: a Want is stateless, and a late one costs a few chunks.
        """
        return self._expecting(self._make(zmq.DEALER, BULK_FRAME_BYTES_MAX, HIGH_WATER), server_key)

    def publisher(self) -> Socket:
        """PUB for Heartbeats and events: what does not fit is dropped, and counted by readers."""
        return self._serving(self._make(zmq.PUB, FRAME_BYTES_MAX, TELEMETRY_HIGH_WATER))

    def subscriber(self, server_key: bytes = b"", prefix: bytes | None = HEARTBEATS) -> Socket:
        """SUB for the telemetry of peers: of all of them, in a closed mesh of one."""
        socket = self._make(zmq.SUB, FRAME_BYTES_MAX, TELEMETRY_HIGH_WATER)
        if prefix is not None:
            socket.set(zmq.SUBSCRIBE, prefix)
        return self._expecting(socket, server_key)

    def client(self, server_key: bytes = b"") -> Socket:
        """DEALER of a program that uses the mesh; without a key for a socket of this machine."""
        socket = self._make(zmq.DEALER, BULK_FRAME_BYTES_MAX, CLIENT_HIGH_WATER)
        return self._expecting(socket, server_key) if server_key else socket

    def door(self, door_secret: bytes) -> Socket:
        """ROUTER on which newcomers are heard: any key may connect, nothing large may come."""
        socket = self._make(zmq.ROUTER, DOOR_FRAME_BYTES_MAX, DOOR_HIGH_WATER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        return _curve_server(socket, door_secret, DOOR_DOMAIN)

    def newcomer(self, door_key: bytes) -> Socket:
        """DEALER of somebody who stands at the door that this key opens."""
        socket = self._make(zmq.DEALER, DOOR_FRAME_BYTES_MAX, DOOR_HIGH_WATER)
        # Of several addresses only the first one that proves the door's key is told the secret.
        socket.set(zmq.IMMEDIATE, 1)
        return self._expecting(socket, door_key)

    def judge(self) -> Socket:
        """ROUTER on which ZeroMQ asks who may connect; bound before anything that listens."""
        socket = self._make(zmq.ROUTER, FRAME_BYTES_MAX, JUDGE_HIGH_WATER)
        socket.bind(JUDGE_ADDRESS)
        return socket

    def stranger(self, server_key: bytes, *, listens: bool) -> tuple[Socket, bytes]:
        """DEALER, or SUB that listens, with a key that nobody knows; return it and the key."""
        socket = self._make(zmq.SUB if listens else zmq.DEALER, FRAME_BYTES_MAX, HIGH_WATER)
        secret, public = key_pair()
        return _curve_client(socket, secret, public, server_key), public

    def _serving(self, socket: Socket) -> Socket:
        if self._keys is None:
            return socket
        return _curve_server(socket, self._keys.curve_secret, MESH_DOMAIN)

    def _expecting(self, socket: Socket, server_key: bytes) -> Socket:
        if self._keys is None:
            return socket
        if len(server_key) != KEY_BYTES:
            # Never without: a socket without keys would speak to anybody.
            self.drop(socket)
            raise LocalProtocolError("a closed mesh: the peer's key has to be known")
        keys = self._keys
        return _curve_client(socket, keys.curve_secret, keys.curve_public, server_key)

    def _make(self, kind: int, frame_bytes_max: int, high_water: int) -> Socket:
        try:
            socket: Socket = self._context.socket(kind)
        except zmq.ZMQError as error:
            raise EnvironmentProblem(
                f"no more sockets: {error}", hint="raise the limit of open files (LimitNOFILE)"
            ) from None
        for option, value in (
            (zmq.LINGER, LINGER_MS),
            (zmq.SNDHWM, high_water),
            (zmq.RCVHWM, high_water),
            (zmq.MAXMSGSIZE, frame_bytes_max),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.HEARTBEAT_IVL, PING_MS),
            (zmq.HEARTBEAT_TIMEOUT, PING_TIMEOUT_MS),
            (zmq.HEARTBEAT_TTL, PING_TIMEOUT_MS),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX),
            (zmq.BACKLOG, BACKLOG),
            (zmq.IPV6, 1),
        ):
            socket.set(option, value)
        self._sockets.append(socket)
        return socket

    def monitor(self, socket: Socket) -> Socket:
        """PAIR on which ZeroMQ tells that `socket` was connected or lost its peer."""
        watched = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
        monitor: Socket = socket.get_monitor_socket(watched)
        monitor.set(zmq.LINGER, 0)
        self._sockets.append(monitor)
        return monitor

    def watch_handshakes(self, socket: Socket) -> Socket:
        """PAIR on which ZeroMQ tells of connections to a listening `socket` that came to nothing.

        Its line is long: while it is full, nothing at all would be received.
        """
        self._monitors += 1
        address = f"inproc://handshakes-{self._monitors}"
        socket.monitor(address, _FAILED | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        monitor: Socket = self._context.socket(zmq.PAIR)
        monitor.set(zmq.LINGER, 0)
        monitor.set(zmq.RCVHWM, JUDGE_HIGH_WATER)
        monitor.connect(address)
        self._sockets.append(monitor)
        self._watched[monitor] = socket
        return monitor

    def _unwatch(self, monitor: Socket) -> None:
        """Have ZeroMQ stop telling before nobody reads it: else its own thread waits for ever."""
        watched = self._watched.pop(monitor, None)
        if watched is not None and not watched.closed:
            watched.disable_monitor()

    # --- ends -------------------------------------------------------------------------------------

    def drop(self, socket: Socket) -> None:
        """Close one socket at once; what was not sent is not sent."""
        self._unwatch(socket)
        with contextlib.suppress(ValueError):
            self._sockets.remove(socket)
        socket.close(linger=0)

    def finish(self, socket: Socket) -> None:
        """Close one socket, letting what was sent leave within LINGER_MS."""
        with contextlib.suppress(ValueError):
            self._sockets.remove(socket)
        socket.close()

    def close(self) -> None:
        """Close everything, waiting at most LINGER_MS for what is on its way."""
        for monitor in list(self._watched):
            self._unwatch(monitor)
        for socket in self._sockets:
            socket.close()
        self._sockets.clear()
        self._context.term()


def bind(socket: Socket, host: str, port: int, what: str) -> int:
    """Bind to a port of this machine, 0 for any free one; return the port.

    Raises  PortInUse naming the key to change; EnvironmentProblem on any other refusal.
    """
    address = f"[{host}]" if ":" in host else host
    try:
        if port:
            socket.bind(f"tcp://{address}:{port}")
            return port
        return socket.bind_to_random_port(f"tcp://{address}", 20_000, 60_999, 500)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use by another program",
                hint=f"is a daemon running already (`blackroad nodes`)? else set `{what}` to "
                "another number, or to 0 for any free one",
            ) from None
        raise EnvironmentProblem(
            f"cannot listen on {host} port {port}: {error}",
            hint="check `listen` and `port` in the configuration",
        ) from None


def bind_again(socket: Socket, host: str, port: int, what: str) -> int:
    """Bind where a socket of this program was a moment ago: ZeroMQ lets go in its own thread.

    Raises  PortInUse where another program was faster; EnvironmentProblem.
    """
    for _ in range(REBIND_TRIES):
        with contextlib.suppress(PortInUse):
            return bind(socket, host, port, what)
        time.sleep(REBIND_S)
    return bind(socket, host, port, what)


def connect(socket: Socket, endpoint: str) -> bool:
    """Start connecting; return False where the address makes no sense."""
    _touch(socket)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError:
        return False
    return True


def subscribe(socket: Socket, prefix: bytes) -> None:
    """Let a SUB hear what begins like this, too."""
    socket.set(zmq.SUBSCRIBE, prefix)


def unsubscribe(socket: Socket, prefix: bytes) -> None:
    """Let a SUB hear no longer what begins like this."""
    socket.set(zmq.UNSUBSCRIBE, prefix)


def disconnect(socket: Socket, endpoint: str) -> None:
    """Stop talking to that address, if it was connected."""
    _touch(socket)
    with contextlib.suppress(zmq.ZMQError):
        socket.disconnect(endpoint)


def send(socket: Socket, frames: Sequence[bytes | memoryview]) -> bool:
    """Send one multipart without waiting; return False where it was not taken."""
    _touch(socket)
    try:
        socket.send_multipart(frames, zmq.NOBLOCK, copy=True)
    except zmq.ZMQError:
        # EAGAIN: full or nobody there; EHOSTUNREACH: that peer is gone.  The protocol repeats
        # what matters, so all of these mean "not now".
        return False
    return True


def drain(socket: Socket, limit: int = DRAIN_MAX) -> Iterator[list[bytes]]:
    """Receive until it would block, at most `limit` multiparts."""
    receive = socket.recv_multipart
    _touch(socket)
    for _ in range(limit):
        try:
            yield receive(zmq.NOBLOCK)
        except zmq.Again:
            _touched.discard(socket)
            return


def drain_keyed(socket: Socket, limit: int = DRAIN_MAX) -> Iterator[Keyed]:
    """Receive from a closed ROUTER until it would block; the key is b"" where there is none.

    Cost  about 2 us per multipart more than `drain`.
    """
    receive, rest = socket.recv, socket.recv_multipart
    _touch(socket)
    for _ in range(limit):
        try:
            route = receive(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            _touched.discard(socket)
            return
        key = _proven_key(route)
        frames = [route.bytes]
        if route.more:
            frames += rest(zmq.NOBLOCK)
        yield Keyed(key, frames)


def drain_door(socket: Socket, limit: int = DRAIN_MAX) -> Iterator[Keyed]:
    """Receive like `drain_keyed`, and tell the address as well."""
    _touch(socket)
    for _ in range(limit):
        try:
            route = socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            _touched.discard(socket)
            return
        frames = [route.bytes]
        if route.more:
            frames += socket.recv_multipart(zmq.NOBLOCK)
        yield Keyed(_proven_key(route), frames, plain_address(str(route.get("Peer-Address"))))


def _proven_key(frame: zmq.Frame) -> bytes:
    try:
        # What the judge answered about this connection.
        return bytes.fromhex(frame.get("User-Id"))  # type: ignore[arg-type]
    except (zmq.ZMQError, ValueError):
        return b""


def plain_address(address: str) -> str:
    """Write an IPv4 address that came over an IPv6 socket as what it is."""
    return address.removeprefix("::ffff:")


def readable(socket: Socket) -> bool:
    """Is something to be read now?"""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


def descriptor(socket: Socket) -> int:
    """What becomes readable when a socket may have something, until the socket is looked at.

    Any call that touches the socket may use that sign up: read until it would block afterwards.
    """
    return int(socket.get(zmq.FD))


# What a monitor says: an event and its number, as zmq_socket_monitor(3) lays them out.  The reader
# in `zmq.utils.monitor` would bring asyncio along, which takes as long to load as ZeroMQ itself.
_MONITORED: Final = struct.Struct("=HI")


def connected(monitor: Socket) -> Iterator[bool]:
    """Read a monitor until it would block: True for a new connection, False for a lost one."""
    for frames in drain(monitor):
        event, _ = _MONITORED.unpack(frames[0])
        yield event == zmq.EVENT_HANDSHAKE_SUCCEEDED


def failed_handshakes(monitor: Socket) -> Iterator[tuple[str, int]]:
    """Read the monitor of a listening socket; yield ("accepted" | "failed" | "ended", number).

    The number is the connection's descriptor; for "failed" it is ZeroMQ's reason, and the
    "ended" of the same connection follows.
    """
    for frames in drain(monitor, DRAIN_MAX * 16):
        event, value = _MONITORED.unpack(frames[0])
        if event == zmq.EVENT_ACCEPTED:
            yield "accepted", value
        elif event == zmq.EVENT_DISCONNECTED:
            yield "ended", value
        else:
            yield "failed", value


# --- CURVE ----------------------------------------------------------------------------------------


def _curve_server(socket: Socket, secret: bytes, domain: bytes) -> Socket:
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, secret)
    # Without a domain the judge would not be asked, and without this option nobody would mind.
    socket.set(zmq.ZAP_DOMAIN, domain)
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return socket


def _curve_client(socket: Socket, secret: bytes, public: bytes, server_key: bytes) -> Socket:
    socket.set(zmq.CURVE_SECRETKEY, secret)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SERVERKEY, server_key)
    return socket


class Poller:
    """Waits for sockets and file descriptors, each of them once in the kernel.

    A ZeroMQ socket shows by a descriptor that something may have come, but any call on the socket
    may use that sign up.  So whatever was touched since the last look is asked itself first.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._patience = Patience(LOOK_US)
        self._sockets: dict[int, Socket] = {}
        self._fds: dict[Socket, int] = {}

    def watch(self, what: Socket | int) -> None:
        """Wait for something to read on it."""
        if isinstance(what, int):
            self._register(what, select.EPOLLIN)
            return
        fd = descriptor(what)
        if what not in self._fds:
            _watched[what] = _watched.get(what, 0) + 1
        self._fds[what] = fd
        _touched.add(what)
        self._register(fd, select.EPOLLIN)
        self._sockets[fd] = what

    def watch_room(self, fd: int, on: bool) -> None:
        """Wait also (or no longer) until something can be written to a descriptor."""
        with contextlib.suppress(OSError):
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if on else 0))

    def _register(self, fd: int, events: int) -> None:
        # A socket that was closed without a word may have left its number behind.
        self._sockets.pop(fd, None)
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)

    def forget(self, what: Socket | int) -> None:
        """No longer wait for it."""
        fd = what if isinstance(what, int) else self._fds.pop(what, -1)
        if self._sockets.pop(fd, None) is not None and not isinstance(what, int):
            _watched[what] -= 1
            if not _watched[what]:
                del _watched[what]
                _touched.discard(what)
        # A descriptor that was closed has left the kernel's list by itself.
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(fd)

    def wait(self, timeout_ms: int, *, look: bool = False) -> list[tuple[Any, bool]]:
        """Return what is ready, at the latest after `timeout_ms`.

        Each with whether there is room to write; else there is something to read.  With `look`,
        it looks for a while before it sleeps where the waits of late were short.
        """
        ready: list[tuple[Any, bool]] = []
        if _touched:
            ready = [(one, False) for one in self._fds if one in _touched and _readable(one)]
            _touched.difference_update(self._fds)
        try:
            if ready or not timeout_ms:
                found = self._epoll.poll(0)
            else:
                found = self._patience.wait(self._epoll.poll, timeout_ms / 1000, look=look)
        except InterruptedError:
            return ready
        sockets = self._sockets
        for fd, events in found:
            socket = sockets.get(fd)
            if socket is None:
                if events & select.EPOLLOUT:
                    ready.append((fd, True))
                if events & ~select.EPOLLOUT:
                    ready.append((fd, False))
            elif _readable(socket) and (socket, False) not in ready:
                ready.append((socket, False))
        if not found and not ready and timeout_ms:
            # Nothing was to be expected here; a look costs little and forgives a lost sign.
            ready = [(one, False) for one in self._fds if _readable(one)]
        return ready

    def close(self) -> None:
        """Let go of it."""
        for socket in list(self._fds):
            self.forget(socket)
        self._epoll.close()


# Sockets that pollers watch, and those of them that were called since one last asked them.
_watched: dict[Socket, int] = {}
_touched: set[Socket] = set()


def _touch(socket: Socket) -> None:
    if socket in _watched:
        _touched.add(socket)


def _readable(socket: Socket) -> bool:
    try:
        return readable(socket)
    except zmq.ZMQError:
        return False


def key_pair() -> tuple[bytes, bytes]:
    """Make an X25519 key pair, as CURVE uses it; return (secret, public), 32 bytes each."""
    public, secret = zmq.curve_keypair()
    return zmq.utils.z85.decode(secret), zmq.utils.z85.decode(public)
