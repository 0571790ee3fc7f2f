"""What a service manager expects of a daemon: readiness, watchdog, signals.

Edge.  Speaks sd_notify by itself: a few lines, where the packages for it want a compiler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable


def notify(text: str) -> bool:
    """Tell the service manager something; return False where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        sender.sendall(text.encode())
        return True
    return False


def watchdog_ms() -> int:
    """How often the service manager wants a sign of life, 0 where it does not."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return 0
    return int(usec) // 2000


class Signals:
    """SIGTERM and SIGINT as a readable descriptor, for a poll loop."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[int, object] = {}

    def install(self) -> None:
        """Take over both signals; call from the main thread."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, lambda _number, _frame: self._stop())

    def read(self) -> None:
        """Take what woke the loop."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 64)

    def close(self) -> None:
        """Give the signals back."""
        if self._before:
            signal.set_wakeup_fd(-1)
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            self._before.clear()
        os.close(self.fd)
        os.close(self._write)
