"""Unix sockets between a daemon and the programs of its machine.

Edge.  Each packet is one frame of messages, in order, or nothing arrives at all; who may connect
is a question of the directory's mode.  There is no thread of its own in between, so a small task
takes two wake-ups less than over a network.  This file must not know what messages mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from blackroad.errors import EnvironmentProblem
from blackroad.limits import BULK_FRAME_BYTES_MAX, KIB, MIB

if TYPE_CHECKING:
    from blackroad.bus.sources import Sources

PACKETS_A_TURN: Final = 64  # of one program, before the others have their turn
BYTES_A_TURN: Final = 32 * KIB  # the same; a thousand small tasks, which the task processes outlast
BUFFER_BYTES: Final = 1 * MIB  # asked for; the kernel gives what it allows
PENDING_BYTES_MAX: Final = 64 * MIB  # what waits for a program that does not read
SEND_WAIT_S: Final = 5.0  # how long a program waits for a daemon that does not read
BACKLOG: Final = 128
_MODE: Final = 0o177

Frame = bytes | memoryview


class _Line:
    """One program that is connected."""

    __slots__ = ("bytes", "handle", "socket", "waiting")

    def __init__(self, connection: socket.socket, handle: bytes) -> None:
        self.socket = connection
        self.handle = handle
        self.waiting: deque[Frame] = deque()
        self.bytes = 0


class LocalServer:
    """The daemon's end: all programs that are connected, each known by a handle."""

    def __init__(
        self,
        path: str,
        sources: Sources,
        hear: Callable[[bytes, Iterator[bytes]], None],
        lost: Callable[[bytes], None],
    ) -> None:
        """Listen at `path`; `hear` is given what a program says, `lost` that it is gone.

        Raises  EnvironmentProblem where the path cannot be used.
        """
        self._path = path
        self._sources = sources
        self._hear, self._lost = hear, lost
        self._lines: dict[bytes, _Line] = {}
        self._number = 0
        self._buffer = bytearray(BULK_FRAME_BYTES_MAX)
        self._view = memoryview(self._buffer)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        before = os.umask(_MODE)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._listener.bind(path)
            self._listener.listen(BACKLOG)
        except OSError as error:
            self._listener.close()
            raise EnvironmentProblem(
                f"cannot listen at {path}: {error.strerror}",
                hint="is the directory there, and writable? `runtime_dir` names another one",
            ) from None
        finally:
            os.umask(before)
        sources.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # Nobody is left, or there are no descriptors: who waits is taken later.
                return
            connection.setblocking(False)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                connection.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            self._number += 1
            line = _Line(connection, self._number.to_bytes(8, "big"))
            self._lines[line.handle] = line
            self._sources.watch(connection.fileno(), partial(self._read, line))

    def _read(self, line: _Line) -> None:
        self._hear(line.handle, self._packets(line))

    def _packets(self, line: _Line) -> Iterator[bytes]:
        receive, buffer, view = line.socket.recv_into, self._buffer, self._view
        heard = 0
        for _ in range(PACKETS_A_TURN):
            if heard > BYTES_A_TURN:
                return
            try:
                size = receive(buffer)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._close(line)
                return
            heard += size
            yield bytes(view[:size])

    def send(self, handle: bytes, frames: Sequence[Frame]) -> bool:
        """Send frames to a program, at once or when it reads again; False where it is gone."""
        line = self._lines.get(handle)
        if line is None:
            return False
        if line.waiting:
            return self._line_up(line, frames)
        send = line.socket.send
        for at, frame in enumerate(frames):
            try:
                send(frame)
            except BlockingIOError:
                return self._line_up(line, frames[at:])
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return self._line_up(line, frames[at:])
                self._close(line)
                return False
        return True

    def _line_up(self, line: _Line, frames: Sequence[Frame]) -> bool:
        if not line.waiting:
            self._sources.watch_room(line.socket.fileno(), lambda: self._go_on(line))
        line.waiting.extend(frames)
        line.bytes += sum(map(len, frames))
        if line.bytes > PENDING_BYTES_MAX:
            self._close(line)
            return False
        return True

    def _go_on(self, line: _Line) -> None:
        """There is room again."""
        waiting = line.waiting
        while waiting:
            try:
                line.socket.send(waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self._close(line)
                return
            line.bytes -= len(waiting.popleft())
        self._sources.watch_room(line.socket.fileno(), None)

    def _close(self, line: _Line) -> None:
        if self._lines.pop(line.handle, None) is None:
            return
        fd = line.socket.fileno()
        if line.waiting:
            self._sources.watch_room(fd, None)
        self._sources.unwatch(fd)
        line.socket.close()
        self._lost(line.handle)

    def close(self) -> None:
        """Let go of everybody, and of the path; what was sent can still be read."""
        self._lost = lambda _handle: None
        for line in list(self._lines.values()):
            self._close(line)
        self._sources.unwatch(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class LocalLink:
    """A program's end; after a loss it connects again by `reconnect`.

    `fd` is one descriptor for its whole life, whichever socket is in use.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._epoll = select.epoll()
        self._socket: socket.socket | None = None
        self._buffer = bytearray(BULK_FRAME_BYTES_MAX)
        self._view = memoryview(self._buffer)

    @property
    def fd(self) -> int:
        """What becomes readable when something has come, or the daemon is gone."""
        return self._epoll.fileno()

    @property
    def connected(self) -> bool:
        """Is there anybody to speak with?"""
        return self._socket is not None

    def connect(self) -> bool:
        """Connect, or connect again; return whether somebody listens there."""
        self._drop()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                made.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            made.connect(self._path)
        except (OSError, ValueError):
            made.close()
            return False
        self._socket = made
        self._epoll.register(made.fileno(), select.EPOLLIN)
        return True

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send frames, in order; wait a while where the daemon is behind.  False: they are lost."""
        there = self._socket
        return there is not None and all(self._send(there, frame) for frame in frames)

    def _send(self, there: socket.socket, frame: Frame) -> bool:
        while True:
            try:
                there.send(frame)
                return True
            except BlockingIOError:
                waiter = select.poll()
                waiter.register(there.fileno(), select.POLLOUT)
                if not waiter.poll(SEND_WAIT_S * 1000):
                    return False
            except OSError:
                # The loss shows where it reads: what came before it is still to be had.
                return False

    def receive(self) -> Iterator[bytes]:
        """Yield what has come until it would wait; the end of the connection ends it, too."""
        while self._socket is not None:
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._drop()
                return
            yield bytes(self._view[:size])

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Let go of it; what was sent is still read by the daemon."""
        self._drop()
        self._epoll.close()
