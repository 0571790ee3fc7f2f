"""Connections that say nothing: as many as asked for, made again whenever they are cut."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time


class Silent:
    """Keeps so many silent connections standing, in a thread of its own."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._count = port, count
        self._stop = threading.Event()
        self.standing = 0
        self.most = 0
        self.made = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Silent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def wait(self, share: float, limit_s: float) -> bool:
        """Wait until that share of them stands at once; return whether it came to that."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self.most >= share * self._count:
                return True
            self._stop.wait(0.05)
        return False

    def _run(self) -> None:
        epoll = select.epoll()
        held: dict[int, socket.socket] = {}
        number = 0
        while not self._stop.is_set():
            for _ in range(500):
                if len(held) >= self._count:
                    break
                # Many source addresses: one has fewer free ports than that.
                number += 1
                one = socket.socket()
                one.setblocking(False)
                with contextlib.suppress(OSError):
                    one.bind((f"127.0.1.{1 + number % 200}", 0))
                code = one.connect_ex(("127.0.0.1", self._port))
                if code not in (0, errno.EINPROGRESS):
                    one.close()
                    break
                held[one.fileno()] = one
                epoll.register(one.fileno(), select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
                self.made += 1
            for fd, _ in epoll.poll(0.02, 1_000):
                epoll.unregister(fd)
                held.pop(fd).close()
            self.standing = len(held)
            self.most = max(self.most, self.standing)
        for one in held.values():
            one.close()
        epoll.close()
