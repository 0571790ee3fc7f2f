"""What the tests of task processes share: a bare poll loop around a pool, and a stubborn task."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest

from blackroad.bus import payload, work
from blackroad.runtime import processes
from blackroad.runtime.events import Crashed, Finished, Gone, Output, PoolEvent, Run
from blackroad.runtime.objects import ObjectStore
from blackroad.runtime.pool import Pool, base_environment

PATIENCE_S = 60.0


class Bench:
    """A bare poll loop around one pool."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.store = ObjectStore(directory, 1 << 30)
        environment = base_environment()
        # It would take the buffer from C's stdout too, and hide a flush that is missing.
        environment.pop("PYTHONUNBUFFERED", None)
        self.pool = Pool(objects_dir=str(directory), environment=environment, **options)
        self.events: list[PoolEvent] = []
        self.pool.start()

    def turn(self, timeout_ms: int = 500) -> None:
        poller = select.poll()
        for fd in self.pool.fds():
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(timeout_ms):
            self.events += self.pool.read(fd)

    def until(self, found: Callable[[], Any]) -> Any:
        limit = time.monotonic() + PATIENCE_S
        while not (answer := found()):
            if time.monotonic() > limit:
                pytest.fail(f"waited too long; {self.events[-5:]}")
            self.turn()
        return answer

    def ended(self, key: Hashable) -> list[PoolEvent]:
        return [
            event
            for event in self.events
            if isinstance(event, Finished | Crashed | Gone) and event.key == key
        ]

    def end(self, key: Hashable) -> Any:
        return self.until(lambda: self.ended(key))[0]

    def launch(self, key: Hashable, todo: Run) -> Any:
        self.pool.launch(key, todo)
        return self.end(key)

    def value(self, function: Callable[..., Any], *args: Any) -> Any:
        key = object()
        end = self.launch(key, call(function, *args))
        assert isinstance(end, Finished), end
        assert end.status == "done", work.decode_failure(end.result)
        return payload.decode(end.result)

    def failure(self, todo: Run) -> work.Failure:
        key = object()
        end = self.launch(key, todo)
        assert isinstance(end, Finished), end
        assert end.status == "failed"
        return work.decode_failure(end.result)

    def printed(self, key: Hashable) -> bytes:
        return b"".join(e.data for e in self.events if isinstance(e, Output) and e.key == key)

    def pid(self, key: Hashable) -> int:
        return int(self.until(lambda: [p for p, k in self.pool.pids.items() if k == key])[0])


def run_of(todo: work.Work, **fields: Any) -> Run:
    return Run(work=payload.join(work.encode_work(todo)), node="attic", **fields)


def call(function: Callable[..., Any], *args: Any, **fields: Any) -> Run:
    digest, blob, name = payload.encode_function(function)
    todo = work.Call(name, payload.encode((args, {})))
    return run_of(todo, code_digest=digest, code=blob, **fields)


def alive(pid: int) -> bool:
    entry = processes.entry(pid)
    return entry is not None and entry.alive


def wait_gone(pids: list[int]) -> list[int]:
    """Look at /proc until the processes are gone or patience is; return what is left."""
    limit = time.monotonic() + PATIENCE_S
    while left := [pid for pid in pids if alive(pid)]:
        if time.monotonic() > limit:
            break
        select.select([], [], [], 0.01)
    return left


def wait_file(path: Path, lines: int) -> list[int]:
    limit = time.monotonic() + PATIENCE_S
    while not path.exists() or len(path.read_text().split()) < lines:
        if time.monotonic() > limit:
            pytest.fail(f"{path} never had {lines} lines")
        select.select([], [], [], 0.01)
    return [int(word) for word in path.read_text().split()]


STUBBORN = """
import os, select, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()} ")
if os.fork() == 0:
    if os.fork() == 0:
        if sys.argv[2] == "new":
            os.setsid()
        with open(sys.argv[1], "a") as file:
            file.write(f"{os.getpid()} ")
        select.select([], [], [])
    os._exit(0)
select.select([], [], [])
"""


def stubborn(path: str, script: str) -> None:
    """Ignore SIGTERM, start children, and orphans within and beyond our session."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(path, "a") as file:
        file.write(f"{os.getpid()} ")
    for session in ("same", "new"):
        subprocess.Popen([sys.executable, "-c", script, path, session])
    select.select([], [], [])
