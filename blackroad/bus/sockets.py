"""The only place where ZeroMQ sockets are made, with every limit set on every one.

Source  docs/protocol.md, "Framing on the wire" (R-frame-8).  Edge: this is the one `import zmq`.
One thread owns all sockets that one `Bus` makes.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import zmq
import zmq.utils.monitor
import zmq.utils.z85

from blackroad.errors import EnvironmentProblem, PortInUse
from blackroad.limits import BULK_FRAME_BYTES_MAX, FRAME_BYTES_MAX

LIBZMQ_MIN: Final = (4, 3, 5)
LINGER_MS: Final = 200
HANDSHAKE_MS: Final = 3_000
PING_MS: Final = 2_000
PING_TIMEOUT_MS: Final = 8_000
RECONNECT_MS: Final = 200
RECONNECT_MS_MAX: Final = 10_000
BACKLOG: Final = 512
HIGH_WATER: Final = 1_000
CLIENT_HIGH_WATER: Final = 20_000
# Each may be a Chunk: what one client may leave unread is this many times 256 KiB.
ANSWER_HIGH_WATER: Final = 400
TELEMETRY_HIGH_WATER: Final = 2_000
SOCKETS_MAX: Final = 4_096
DRAIN_MAX: Final = 256

Socket = zmq.Socket[bytes]
POLLIN: Final = zmq.POLLIN
POLLOUT: Final = zmq.POLLOUT


class Bus:
    """One ZeroMQ context and the sockets made from it."""

    def __init__(self) -> None:
        if zmq.zmq_version_info() < LIBZMQ_MIN:
            raise EnvironmentProblem(
                f"libzmq {zmq.zmq_version()} is too old: known holes were closed in 4.3.5",
                hint="pip install --upgrade pyzmq",
            )
        self._context: zmq.Context[Any] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self._sockets: list[Socket] = []

    # --- kinds of sockets -------------------------------------------------------------------------

    def inbox(self) -> Socket:
        """ROUTER on which peers, and clients over TCP, are heard."""
        socket = self._make(zmq.ROUTER, BULK_FRAME_BYTES_MAX, CLIENT_HIGH_WATER)
        socket.set(zmq.SNDHWM, ANSWER_HIGH_WATER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        return socket

    def peer(self) -> Socket:
        """DEALER on which one peer is spoken to; nothing is queued for one who is not there."""
        socket = self._make(zmq.DEALER, FRAME_BYTES_MAX, HIGH_WATER)
        socket.set(zmq.IMMEDIATE, 1)
        return socket

    def bulk_server(self) -> Socket:
        """ROUTER that answers Want."""
        socket = self._make(zmq.ROUTER, BULK_FRAME_BYTES_MAX, HIGH_WATER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        return socket

    def bulk_client(self) -> Socket:
        """DEALER that asks one holder for chunks.

        It may queue while it connects: a Want is stateless, and a late one costs a few chunks.
        """
        return self._make(zmq.DEALER, BULK_FRAME_BYTES_MAX, HIGH_WATER)

    def publisher(self) -> Socket:
        """PUB for Heartbeats and events: what does not fit is dropped, and counted by readers."""
        return self._make(zmq.PUB, FRAME_BYTES_MAX, TELEMETRY_HIGH_WATER)

    def subscriber(self, prefix: bytes = b"") -> Socket:
        """SUB for the telemetry of peers."""
        socket = self._make(zmq.SUB, FRAME_BYTES_MAX, TELEMETRY_HIGH_WATER)
        socket.set(zmq.SUBSCRIBE, prefix)
        return socket

    def client(self) -> Socket:
        """DEALER of a program that uses the mesh."""
        return self._make(zmq.DEALER, BULK_FRAME_BYTES_MAX, CLIENT_HIGH_WATER)

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

    # --- ends -------------------------------------------------------------------------------------

    def drop(self, socket: Socket) -> None:
        """Close one socket at once; what was not sent is not sent."""
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


def bind_ipc(socket: Socket, path: str) -> None:
    """Bind to a unix socket that only this user can reach.

    Raises  EnvironmentProblem.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    try:
        socket.bind(f"ipc://{path}")
        os.chmod(path, 0o600)
    except (zmq.ZMQError, OSError) as error:
        raise EnvironmentProblem(
            f"cannot make the client socket {path}: {error}",
            hint="check `runtime_dir`: it must belong to this user",
        ) from None


def connect(socket: Socket, endpoint: str) -> bool:
    """Start connecting; return False where the address makes no sense."""
    try:
        socket.connect(endpoint)
    except zmq.ZMQError:
        return False
    return True


def disconnect(socket: Socket, endpoint: str) -> None:
    """Stop talking to that address, if it was connected."""
    with contextlib.suppress(zmq.ZMQError):
        socket.disconnect(endpoint)


def send(socket: Socket, frames: Sequence[bytes | memoryview]) -> bool:
    """Send one multipart without waiting; return False where it was not taken."""
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
    for _ in range(limit):
        try:
            yield receive(zmq.NOBLOCK)
        except zmq.Again:
            return


def readable(socket: Socket) -> bool:
    """Is something to be read now?"""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


def connected(monitor: Socket) -> Iterator[bool]:
    """Read a monitor until it would block: True for a new connection, False for a lost one."""
    for frames in drain(monitor):
        event = zmq.utils.monitor.parse_monitor_message(frames)["event"]
        yield event == zmq.EVENT_HANDSHAKE_SUCCEEDED


class Poller:
    """Waits for sockets and file descriptors."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def watch(self, what: Socket | int) -> None:
        """Wait for something to read on it."""
        self._poller.register(what, zmq.POLLIN)

    def forget(self, what: Socket | int) -> None:
        """No longer wait for it."""
        with contextlib.suppress(KeyError):
            self._poller.unregister(what)

    def wait(self, timeout_ms: int) -> list[tuple[Any, int]]:
        """Return what is ready, at the latest after `timeout_ms`."""
        try:
            return self._poller.poll(timeout_ms)
        except zmq.ZMQError as error:
            if error.errno == errno.EINTR:
                return []
            raise


def key_pair() -> tuple[bytes, bytes]:
    """Make an X25519 key pair, as CURVE uses it; return (secret, public), 32 bytes each."""
    public, secret = zmq.curve_keypair()
    return zmq.utils.z85.decode(secret), zmq.utils.z85.decode(public)
