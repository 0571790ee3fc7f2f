"""Edge: the daemon's hold on one fork server: its process, its control socket, its last words.

This file must not know tasks or task processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blackroad.errors import EnvironmentProblem
from blackroad.runtime import wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TEXT_BYTES: Final = 4096
_READ_BYTES: Final = 64 * 1024
_CLOSE_SECONDS: Final = 5.0


class ServerLink:
    """One life of the fork server.

    Raises  EnvironmentProblem where it cannot be started.
    """

    def __init__(self, environment: Mapping[str, str], table_fd: int, cwd: str | None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Our own source may stand where only we look; tasks get their PYTHONPATH back unchanged.
        source = str(Path(__file__).resolve().parents[2])
        old = environment.get("PYTHONPATH")
        path = source if not old else f"{source}{os.pathsep}{old}"
        numbers = (str(theirs.fileno()), str(table_fd))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "blackroad.runtime.forkserver", *numbers],
                pass_fds=(theirs.fileno(), table_fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env={**environment, "PYTHONPATH": path},
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise EnvironmentProblem(
                f"cannot start the fork server: {error}",
                hint="see that the Python it runs on and its directory still exist",
            ) from None
        finally:
            theirs.close()
        ours.setblocking(False)
        self._control = ours
        self._text = b""
        self._errors = self._process.stderr
        self.pid = self._process.pid
        self.control_fd = ours.fileno()
        self.text_fd = -1
        if self._errors is not None:
            self.text_fd = self._errors.fileno()
            os.set_blocking(self.text_fd, False)

    def send(self, message: bytes, fds: Sequence[int]) -> bool:
        """Send one message; False where there is no room, or nobody any more."""
        try:
            if fds:
                socket.send_fds(self._control, [message], fds)
            else:
                self._control.send(message)
        except OSError:
            return False
        return True

    def receive(self) -> bytes | None:
        """Take one message; None where none waits, empty where the fork server is gone."""
        try:
            return self._control.recv(wire.PACKET_BYTES_MAX)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def read_text(self) -> bool:
        """Keep the end of what it said, for it speaks only when it breaks; False at the end."""
        while True:
            try:
                data = os.read(self.text_fd, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._text = (self._text + data)[-_TEXT_BYTES:]

    def last_line(self) -> str:
        """Return the last line it said, or nothing."""
        lines = self._text.decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def close(self) -> None:
        """Let it kill everything and end; kill it where that takes too long."""
        # A fork of this process may have a copy of the socket, which alone would keep it open.
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._errors is not None:
            self._errors.close()

    def bury(self) -> None:
        """Clean up after one that broke the connection."""
        self._process.kill()
        self.close()
