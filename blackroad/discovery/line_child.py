"""The parent's end of a child that parses what strangers send, and reports it in lines of JSON.

Edge.  Starts the child again a few times when it ends, reads within bounds and never waits.  This
file must not know what the lines mean.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Final

from blackroad.discovery.children import command, end, environment

RESTARTS_MAX: Final = 3
BACK_OFF_S: Final = (1.0, 5.0, 25.0)
STEADY_S: Final = 600.0
GOODBYE_S: Final = 1.0
READ_BYTES_MAX: Final = 64 * 1024
LINE_BYTES_MAX: Final = 16 * 1024


class LineChild:
    """A child process that is told one line and writes many, for a poll loop.

    Wait until `fileno()` is readable, then call `lines()`; call it about once a second as well,
    so that a child which ended is started again.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = (module, "--parent", str(os.getpid()), *arguments)
        self._env = environment({}, env)
        # Stays the same descriptor while children come and go.
        self._epoll = select.epoll()
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = bytearray()
        self._wish = b""
        self._restarts = 0
        self._started = 0.0
        self._start_at: float | None = None
        self._closed = False
        # Why it is given up, "" while it is not.
        self.given_up = ""
        self.restarts = 0

    def fileno(self) -> int:
        """Return the descriptor to wait for; the same one until `close`."""
        return self._epoll.fileno()

    @property
    def pid(self) -> int:
        """The child's process id, or 0 while none runs."""
        return self._process.pid if self._process else 0

    def tell(self, wish: bytes) -> None:
        """Have the child act on that line, now and whenever it is started again."""
        self._wish = wish + b"\n"
        if self._process is None and self._start_at is None and not self.given_up:
            self._spawn()
        elif self._process is not None:
            self._write()

    def lines(self) -> list[bytes]:
        """Return what the child has written since the last call; never waits.

        Cost  at most 64 KiB a call, so that a flood cannot hold the loop.
        """
        if self._closed:
            return []
        if self._process is None:
            if self._start_at is not None and time.monotonic() >= self._start_at:
                self._spawn()
            return []
        assert self._process.stdout is not None
        try:
            data = os.read(self._process.stdout.fileno(), READ_BYTES_MAX)
        except BlockingIOError:
            return []
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        if not data:
            self._ended("ended")
        elif len(self._buffer) > LINE_BYTES_MAX:
            self._ended("wrote a line without end")
        return lines

    def give_up(self, why: str) -> None:
        """The child itself says that there is no point in starting it again."""
        self.given_up = self.given_up or why
        self._start_at = None

    def close(self) -> None:
        """Let the child say goodbye, for at most a second, and end it."""
        if self._closed:
            return
        self._closed = True
        process = self._process
        if process is not None:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GOODBYE_S)
        self._drop()
        self._epoll.close()

    def _spawn(self) -> None:
        self._start_at = None
        self._buffer.clear()
        self._started = time.monotonic()
        module, *arguments = self._command
        try:
            self._process = subprocess.Popen(
                command(module, *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._env,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._again(f"could not be started ({error})")
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self._process.stdout.fileno(), False)
        self._epoll.register(self._process.stdout.fileno(), select.EPOLLIN)
        self._write()

    def _write(self) -> None:
        """Write the whole wish; the child acts on the newest."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            whole = os.write(self._process.stdin.fileno(), self._wish) == len(self._wish)
        except OSError:
            whole = False
        if not whole:
            self._ended("does not listen")

    def _ended(self, how: str) -> None:
        self._drop()
        if time.monotonic() - self._started > STEADY_S and not self.given_up:
            self._restarts = 0
        self._again(how)

    def _again(self, how: str) -> None:
        """Plan the next start, or give up and say so."""
        if self.given_up:
            return
        if self._restarts < RESTARTS_MAX:
            self._start_at = time.monotonic() + BACK_OFF_S[self._restarts]
            self._restarts += 1
            self.restarts += 1
        else:
            self.given_up = f"its process {how}, {RESTARTS_MAX + 1} times in a row"

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdout is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(process.stdout.fileno())
        end(process)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
