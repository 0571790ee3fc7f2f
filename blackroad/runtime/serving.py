"""Edge: the pool's fork server: its start, what it is asked, its death and its next life.

This file must not know tasks, nor what a report means; `link.py` has the sockets.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from blackroad import chance
from blackroad.digest import blake2b
from blackroad.errors import EnvironmentProblem
from blackroad.runtime import wire
from blackroad.runtime.child import Child
from blackroad.runtime.events import PoolEvent, Problem
from blackroad.runtime.link import ServerLink

RESTARTS_FREE: Final = 3  # within RESTART_WINDOW_MS; after that the pool complains and slows down
RESTART_WINDOW_MS: Final = 60_000
RESTART_PAUSE_MS: Final = 5_000

Reader = Callable[[], list[PoolEvent]]


class Serving:
    """One fork server at a time, and the requests that it has not been sent yet."""

    def __init__(
        self,
        objects_dir: Path,
        environment: Mapping[str, str],
        preload: Sequence[str],
        table_fd: int,
        cwd: str | None,
        cgroup: str,
    ) -> None:
        self.generation = ""
        # What the pool has to say to this: set before `start`.
        self.watch: Callable[[int, Reader], None]
        self.forget: Callable[[int], None]
        self.reported: Callable[[wire.Report], list[PoolEvent]]
        self.lost: Callable[[], None]
        self.later: Callable[[PoolEvent], None]
        self.now_ms = 0
        self._name = blake2b(os.fsencode(objects_dir), digest_size=8).hexdigest()
        self._incoming = objects_dir / "incoming"
        self._environment = environment
        self._preload = list(preload)
        self._table_fd = table_fd
        self._cwd = cwd
        self._cgroup = cgroup
        self._server: ServerLink | None = None
        self._requests: deque[tuple[bytes, Child | None]] = deque()
        self._restarts_ms: list[int] = []
        self._restart_due_ms: int | None = None

    @property
    def pid(self) -> int:
        """The fork server's process id, 0 while there is none."""
        return self._server.pid if self._server is not None else 0

    def start(self) -> None:
        """Launch one; Raises  EnvironmentProblem."""
        self.generation = chance.token_hex(4)
        mark = f"{self._name}/{self.generation}"
        environment = {**self._environment, wire.POOL_VARIABLE: mark}
        self._server = server = ServerLink(environment, self._table_fd, self._cwd)
        self.watch(server.control_fd, self._read_control)
        self.watch(server.text_fd, self._read_text)
        setup = wire.Setup(
            self._name,
            self.generation,
            os.getpid(),
            self._preload,
            str(self._incoming),
            self._environment.get("PYTHONPATH"),
            self._cgroup,
        )
        self._requests.appendleft((wire.encode(setup), None))
        self.flush()

    def request(self, request: wire.Request, process: Child | None = None) -> None:
        """Ask for something; with a new process its ends travel along."""
        self._requests.append((wire.encode(request), process))
        self.flush()

    def withdraw(self, process: Child) -> None:
        """Do not ask for that process after all."""
        self._requests = deque(item for item in self._requests if item[1] is not process)

    def flush(self) -> None:
        """Send what the fork server has room for; the rest waits for the next call."""
        while self._requests and self._server is not None:
            message, process = self._requests[0]
            if not self._server.send(message, process.ends() if process is not None else ()):
                return
            self._requests.popleft()
            if process is not None:
                process.generation = self.generation
                process.close_unsent()

    def tick(self, now_ms: int) -> None:
        """Try again what had to wait."""
        self.now_ms = now_ms
        if self._restart_due_ms is not None and now_ms >= self._restart_due_ms:
            self._restart_due_ms = None
            try:
                self.start()
            except EnvironmentProblem as error:
                self.later(Problem(error))
                self._restart_due_ms = now_ms + RESTART_PAUSE_MS
        self.flush()

    def close(self) -> None:
        """End it, and wait until it is gone."""
        if self._server is not None:
            self._server.close()

    def _read_control(self) -> list[PoolEvent]:
        events: list[PoolEvent] = []
        while self._server is not None:
            message = self._server.receive()
            if message is None:
                break
            if not message:
                self._died(self._server)
                break
            events += self.reported(wire.decode_report(message))
        self.flush()
        return events

    def _read_text(self) -> list[PoolEvent]:
        if self._server is not None and not self._server.read_text():
            self.forget(self._server.text_fd)
        return []

    def _died(self, server: ServerLink) -> None:
        """It is dead, and with it every task process; what they started is swept."""
        self._read_text()
        self.forget(server.control_fd)
        self.forget(server.text_fd)
        server.bury()
        self._server = None
        self.lost()
        self._requests = deque(item for item in self._requests if item[1] is not None)
        self._plan_restart(server.last_line())

    def _plan_restart(self, last_line: str) -> None:
        recent = [at for at in self._restarts_ms if self.now_ms - at < RESTART_WINDOW_MS]
        self._restarts_ms = [*recent, self.now_ms]
        if len(recent) < RESTARTS_FREE:
            try:
                self.start()
                return
            except EnvironmentProblem as error:
                self.later(Problem(error))
        else:
            last = f": {last_line}" if last_line else ""
            problem = EnvironmentProblem(
                f"the fork server ended {len(self._restarts_ms)} times within a minute{last}",
                hint="a task may kill its parents, or memory may be short; see the daemon's log",
            )
            self.later(Problem(problem))
        self._restart_due_ms = self.now_ms + RESTART_PAUSE_MS
