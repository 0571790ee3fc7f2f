"""A child process that is fed frames without end, and says what became of them.

Edge.  Starts the child again when it ends, however often, ever more slowly; never waits; a child
that does not listen is replaced.  This file must not know what is in the frames.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from blackroad.discovery.children import command, end, environment

if TYPE_CHECKING:
    from blackroad.bus.sources import Sources

BACK_OFF_MS: Final = (1_000, 5_000, 25_000, 60_000)
STEADY_MS: Final = 600_000
GOODBYE_S: Final = 1.0
READ_BYTES_MAX: Final = 64 * 1024
LINE_BYTES_MAX: Final = 16 * 1024
SOCKET_BYTES: Final = 1024 * 1024
HEAD_BYTES: Final = 4
# Whoever lets more than that lie unread hangs.
UNREAD_BYTES_MAX: Final = 16 * 1024 * 1024


def framed(body: bytes) -> bytes:
    """One frame: its length, and what is in it."""
    return len(body).to_bytes(HEAD_BYTES, "big") + body


class Feed:
    """The parent's end.  `on_start` fills a new child; `on_line` gets each line that it writes."""

    def __init__(
        self,
        module: str,
        sources: Sources,
        clock: Callable[[], int],
        on_start: Callable[[], None],
        on_line: Callable[[bytes], None],
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = (module, "--parent", str(os.getpid()), *arguments)
        self._env = environment({}, env)
        self._sources = sources
        self._clock = clock
        self._on_start, self._on_line = on_start, on_line
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._out = bytearray()
        self._in = bytearray()
        self._wants_room = False
        self._starts_at_ms = 0
        self._started_ms = 0
        self._failures = 0
        self._closed = False
        # Why it is not started any more, "" while it is.
        self.given_up = ""
        self.restarts = 0

    @property
    def pid(self) -> int:
        """The child's process id, or 0 while none runs."""
        return self._process.pid if self._process is not None else 0

    @property
    def waiting_bytes(self) -> int:
        """What was sent and the child has not taken."""
        return len(self._out)

    def tick(self) -> None:
        """About once a second: start it where it is time to."""
        if self._closed or self.given_up:
            return
        if self._process is None and self._clock() >= self._starts_at_ms:
            self._spawn()

    def send(self, body: bytes) -> None:
        """Have the child read that; nothing happens where none runs."""
        if self._process is None:
            return
        self._out += framed(body)
        if not self._wants_room:
            self._flush()
        if len(self._out) > UNREAD_BYTES_MAX:
            self._ended()

    def give_up(self, why: str) -> None:
        """The child itself says that there is no point in starting it again."""
        self.given_up = self.given_up or why

    def close(self) -> None:
        """Let the child finish, for at most a second, and end it."""
        if self._closed:
            return
        process, one = self._process, self._socket
        if process is not None and one is not None:
            with contextlib.suppress(OSError):
                one.settimeout(GOODBYE_S)
                one.sendall(self._out)
                one.shutdown(socket.SHUT_WR)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GOODBYE_S)
        self._closed = True
        self._drop()

    def _spawn(self) -> None:
        module, *arguments = self._command
        self._started_ms = self._clock()
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            # No descriptors are left.
            self._ended()
            return
        try:
            self._process = subprocess.Popen(
                command(module, *arguments),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=self._env,
                start_new_session=True,
            )
        except (OSError, ValueError):
            ours.close()
            self._ended()
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._socket = ours
        self._sources.watch(ours.fileno(), self._read)
        self._on_start()

    def _flush(self) -> None:
        """Write what fits, and go on when there is room."""
        one = self._socket
        if one is None:
            return
        try:
            while self._out:
                del self._out[: one.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._ended()
            return
        if bool(self._out) is not self._wants_room:
            self._wants_room = bool(self._out)
            self._sources.watch_room(one.fileno(), self._flush if self._wants_room else None)

    def _read(self) -> None:
        one = self._socket
        if one is None:
            return
        try:
            data = one.recv(READ_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._in += data
        *lines, rest = bytes(self._in).split(b"\n")
        self._in = bytearray(rest)
        for line in lines:
            self._on_line(line)
        if not data or len(self._in) > LINE_BYTES_MAX:
            self._ended()

    def _ended(self) -> None:
        """It is gone, or to be: another one follows, the later the more often that happened."""
        self._drop()
        now_ms = self._clock()
        if now_ms - self._started_ms > STEADY_MS:
            self._failures = 0
        self._starts_at_ms = now_ms + BACK_OFF_MS[min(self._failures, len(BACK_OFF_MS) - 1)]
        self._failures += 1
        self.restarts += 1

    def _drop(self) -> None:
        process, self._process = self._process, None
        one, self._socket = self._socket, None
        self._out.clear()
        self._in.clear()
        if one is not None:
            if self._wants_room:
                self._sources.watch_room(one.fileno(), None)
            self._wants_room = False
            self._sources.unwatch(one.fileno())
            one.close()
        if process is not None:
            end(process)
