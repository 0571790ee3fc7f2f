"""A small HTTP server inside the daemon's loop: bounded, and rid of whoever is slow.

Edge.  It waits with an epoll of its own, which is one descriptor for the daemon to watch; each turn
does a bounded piece of work.  Who connects costs a few hundred bytes until his request is whole,
and has a deadline for everything.  What is answered is decided in `rules.py`.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import select
import socket
from collections.abc import Callable
from typing import Final

from blackroad.errors import ConfigError, PortInUse
from blackroad.metrics.rules import HEAD_BYTES_MAX, TEXT, Answer, Routes, head_of

CONNECTIONS_MAX: Final = 64
BACKLOG: Final = 128
REQUEST_MS: Final = 5_000
ANSWER_MS: Final = 10_000
LINGER_MS: Final = 1_000
LINGER_BYTES_MAX: Final = 256 * 1024
# Work of one turn, and of one second: a flood of connections gets a small share of the loop.
TURN_MAX: Final = 16
ACCEPTS_MAX: Final = 500
ACCEPTS_MS: Final = 1_000
_READ_BYTES: Final = 4 * 1024


class _Connection:
    """One program that asks: what it sent so far, or what is left to send to it."""

    __slots__ = ("head", "left", "lingered", "socket", "until_ms")

    def __init__(self, sock: socket.socket, until_ms: int) -> None:
        self.socket = sock
        self.until_ms = until_ms
        self.head = b""
        # None while the request is not whole; empty when all was sent.
        self.left: list[memoryview] | None = None
        self.lingered = 0


def bind(host: str, port: int) -> socket.socket:
    """Listen on one address of this machine.

    Raises  PortInUse where another program has the port; ConfigError where the address is not
            one of this machine.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where = f"metrics_port = {port} on {host}: {error.strerror}"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise PortInUse(
                where,
                hint=f"`ss -ltnp 'sport = :{port}'` shows who has it; choose another metrics_port",
            ) from error
        raise ConfigError(
            where, hint="metrics_listen is an address of this machine; `ip address` lists them"
        ) from error
    return listener


class Server:
    """All connections to one listening socket."""

    def __init__(self, listener: socket.socket, routes: Routes, clock: Callable[[], int]) -> None:
        self.codes: dict[int, int] = {}
        self.dropped = {"slow": 0, "crowded": 0, "broken": 0}
        self.host, self.port = listener.getsockname()[:2]
        self._listener = listener
        self._routes = routes
        self._clock = clock
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        # The one that came first stands first.
        self._connections: dict[int, _Connection] = {}
        self._accepts = 0
        self._accepts_since_ms = 0
        self._paused = False

    def fileno(self) -> int:
        """What is readable whenever there is something to do."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        """Drop everybody."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()
        self._listener.close()

    # --- a turn -----------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do what is ready, a bounded piece of it."""
        now_ms = self._clock()
        for fd, events in self._epoll.poll(0, TURN_MAX):
            if fd == self._listener.fileno():
                self._accept(now_ms)
                continue
            connection = self._connections.get(fd)
            if connection is None:
                continue
            try:
                self._serve(connection, events, now_ms)
            except OSError:
                self.dropped["broken"] += 1
                self._drop(connection)

    def tick(self, now_ms: int) -> None:
        """Drop those whose time is over; let the next ones in.  Wanted about once a second."""
        for connection in list(self._connections.values()):
            if connection.until_ms > now_ms:
                continue
            if connection.left != []:
                self.dropped["slow"] += 1
            self._drop(connection)
        if self._paused and now_ms - self._accepts_since_ms >= ACCEPTS_MS:
            self._paused = False
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)

    # --- connections ------------------------------------------------------------------------------

    def _accept(self, now_ms: int) -> None:
        if now_ms - self._accepts_since_ms >= ACCEPTS_MS:
            self._accepts_since_ms, self._accepts = now_ms, 0
        for _ in range(TURN_MAX):
            if self._accepts >= ACCEPTS_MAX:
                self._paused = True
                self._epoll.modify(self._listener.fileno(), 0)
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # No descriptor is left, or the other side is gone: look again later.
                self._accepts = ACCEPTS_MAX
                continue
            self._accepts += 1
            sock.setblocking(False)
            if len(self._connections) >= CONNECTIONS_MAX:
                self._make_room()
            connection = _Connection(sock, now_ms + REQUEST_MS)
            self._connections[sock.fileno()] = connection
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _make_room(self) -> None:
        """The one that waits longest goes, before all those that have not asked for anything."""
        idle = (one for one in self._connections.values() if one.left is None)
        oldest = next(idle, None) or next(iter(self._connections.values()))
        self.dropped["crowded"] += 1
        self._drop(oldest)

    def _drop(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        del self._connections[fd]
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        connection.socket.close()

    def _serve(self, connection: _Connection, events: int, now_ms: int) -> None:
        if connection.left is None:
            self._read(connection, now_ms)
        elif connection.left:
            self._send(connection, now_ms)
        else:
            self._linger(connection)
        if events & select.EPOLLHUP and connection.socket.fileno() in self._connections:
            self._drop(connection)

    def _read(self, connection: _Connection, now_ms: int) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._drop(connection)
            return
        connection.head += data
        head, end, _ = connection.head.partition(b"\r\n\r\n")
        if end and len(head) <= HEAD_BYTES_MAX:
            answer, bare = self._routes.answer(head)
            self._answer(connection, answer, bare, now_ms)
        elif len(connection.head) > HEAD_BYTES_MAX:
            text = f"the head of a request has at most {HEAD_BYTES_MAX} bytes\n"
            self._answer(connection, Answer(431, text.encode(), TEXT), False, now_ms)

    def _answer(self, connection: _Connection, answer: Answer, bare: bool, now_ms: int) -> None:
        self.codes[answer.code] = self.codes.get(answer.code, 0) + 1
        connection.head = b""
        # The body is not copied: a hundred slow readers of one page hold one page.
        connection.left = [memoryview(head_of(answer))]
        if answer.body and not bare:
            connection.left.append(memoryview(answer.body))
        connection.until_ms = now_ms + ANSWER_MS
        self._epoll.modify(connection.socket.fileno(), select.EPOLLOUT)
        self._send(connection, now_ms)

    def _send(self, connection: _Connection, now_ms: int) -> None:
        left = connection.left or []
        while left:
            try:
                sent = connection.socket.sendmsg(left)
            except BlockingIOError:
                return
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]
        # What still comes is read for a moment: closing at once would take the answer with it.
        connection.until_ms = now_ms + LINGER_MS
        connection.socket.shutdown(socket.SHUT_WR)
        self._epoll.modify(connection.socket.fileno(), select.EPOLLIN)

    def _linger(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(16 * _READ_BYTES)
        except BlockingIOError:
            return
        connection.lingered += len(data)
        if not data or connection.lingered > LINGER_BYTES_MAX:
            self._drop(connection)
