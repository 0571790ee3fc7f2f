"""Who serves a connection: its own thread, or a program's thread that waits for a result anyway.

Edge.  One turn sends what is in line and takes what has come.  A thread that waits for a result
takes the turns itself, which saves waking two threads for it; the connection's own thread then
only looks after the time.  This file must not know what a turn does.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Collection
from threading import get_ident
from typing import Protocol

from blackroad.bus.patience import Patience
from blackroad.client.shield import Shield
from blackroad.errors import NoDaemon

WAIT_MS_MAX = 1_000
CLAIM_MS = 100
LEAVE_MS = 5_000
# A round trip of a small task, and as much again for a slow board.
LOOK_US = 1_000
NOTHING: frozenset[int] = frozenset()


class Served(Protocol):
    """What has turns."""

    def turn(self, ready: Collection[int]) -> None:
        """Send what is in line, take what has come; `ready` are descriptors that can be read."""
        ...

    def deliver(self) -> bool:
        """Do what a turn left to do that may run code of the program; False if there was none."""
        ...

    def waiting(self) -> bool:
        """Is anything in line for a turn?"""
        ...

    def due_ms(self) -> int:
        """When a turn has to be taken at the latest."""
        ...

    def few(self) -> bool:
        """Is so little under way that a processor is free for looking?"""
        ...


class Turns:
    """Takes the turns of one connection, one at a time, in whichever thread."""

    def __init__(self, served: Served, fds: Collection[int]) -> None:
        self._served = served
        self._fds = tuple(fds)
        self._lock = threading.Lock()
        # A signal handler may cut in here, and wait for a result itself.
        self._choosing = threading.RLock()
        self._leader = 0
        self._patience = Patience(LOOK_US)
        self._shield = Shield()
        self._ident = -1
        self._until_ms = 0
        self._sleeping = False
        self._watched = True
        # The connection's own thread wants to lead.
        self._claimed = False
        self._stopping = False
        # This is a copy of the process that made it: the thread and the peer are elsewhere.
        self._copied = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._leader_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._poll = select.poll()
        self._poll.register(self._leader_fd, select.POLLIN)
        for fd in self._fds:
            self._epoll.register(fd, select.EPOLLIN)
            self._poll.register(fd, select.POLLIN)
        _all.add(self)

    # --- called by any thread ---------------------------------------------------------------------

    def check(self) -> None:
        """Raise NoDaemon in a copy of the process (a fork), where nobody would ever answer."""
        if self._copied:
            raise NoDaemon(
                "this client belongs to the process that this one was forked from",
                hint="make a Client() of its own in each process",
            )

    def stopped(self) -> bool:
        """Is no further turn taken?"""
        return self._stopping

    def disown(self) -> None:
        """This is a fork of the process that they belong to."""
        self._copied = self._stopping = True

    def wake(self) -> None:
        """Have the thread take a turn, if it does not anyway."""
        if self._sleeping:
            # Cleared here: until the thread runs again, nobody else need wake it.
            self._sleeping = False
            self._signal(self._wake_fd)
        elif self._leader:
            # The thread may be busy with what a callback does; who leads is never for long.
            self._signal(self._leader_fd)

    def nudge(self) -> None:
        """What the leading thread waits for may be there, by the hands of another one."""
        if self._leader not in (0, get_ident()):
            self._signal(self._leader_fd)

    def now(self) -> None:
        """Take a turn in the calling thread, or have the thread do it where one is under way."""
        if self._lock.locked() or self._leader or self.stopped():
            self.wake()
        else:
            self._take(NOTHING)

    def lead(self, over: Callable[[], bool], timeout_s: float | None) -> float | None:
        """Take the turns until `over`, or nothing if another thread does; return the time left."""
        if self.stopped():
            self.check()
            return timeout_s
        me = get_ident()
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        mine = False
        if self._leader == me and me == self._ident:
            # A callback waits within the wait of another one, between two turns.
            self._lead(over, until_s)
            return _left_s(until_s)
        if self._leader == me:
            # A signal handler waits within a wait: our own thread serves both meanwhile.
            self._watch(True)
            return timeout_s
        try:
            if me == self._ident and self._leader and not over():
                # A callback waits: nobody would be left to serve when the leader leaves.
                self._await_leave(WAIT_MS_MAX)
            with self._choosing:
                claimed = self._claimed
                if me == self._ident:
                    claimed = self._claimed = False
                if self._leader or claimed:
                    return timeout_s
                self._leader = me
                mine = True
            self._watch(False)
            self._lead(over, until_s)
        finally:
            raised: BaseException | None = None
            while mine and self._leader == me:
                # A handler of the program may cut in even here, and nobody else would do it.
                try:
                    self._leave()
                except BaseException as error:
                    raised = error
            if raised is not None:
                raise raised
        return _left_s(until_s)

    def _leave(self) -> None:
        self._watch(True)
        self._follow_up()
        self._leader = 0
        if self._claimed:
            self._signal(self._wake_fd)

    def _await_leave(self, limit_ms: int) -> None:
        """Have whoever leads leave, and nobody follow; for the connection's own thread."""
        until_ms = now_ms() + limit_ms
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        self._claimed = True
        while self._leader and now_ms() < until_ms:
            self.nudge()
            poll.poll(CLAIM_MS)
            self._read(self._wake_fd)

    def _lead(self, over: Callable[[], bool], until_s: float | None) -> None:
        served = self._served
        if served.waiting():
            self._take(NOTHING)
        while not (over() or self._claimed or self.stopped()):
            wait_ms: float = min(WAIT_MS_MAX, max(0, served.due_ms() - now_ms()))
            if until_s is not None:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return
                wait_ms = min(wait_ms, left_s * 1000)
            look = wait_ms >= 1 and served.few()
            fds = {fd for fd, _ in self._patience.wait(self._poll.poll, wait_ms, look=look)}
            if self.stopped():
                # By a signal handler, it may be: then the descriptors are no longer ours.
                return
            if self._leader_fd in fds:
                self._read(self._leader_fd)
            self._take(fds)

    def _watch(self, on: bool) -> None:
        """Let the connection's thread wake up for what comes, or leave that to the leader."""
        self._watched = on
        events = select.EPOLLIN if on else 0
        with contextlib.suppress(OSError, ValueError):
            for fd in self._fds:
                self._epoll.modify(fd, events)

    def _take(self, ready: Collection[int]) -> None:
        """One turn in a thread of the program; what it leaves to do is done in ours, as always."""
        # The handlers that waited run when the lock is free: they may use this very client.
        with self._shield, self._lock:
            if not self.stopped():
                self._served.turn(ready)
        # The sign that it waits for may be used up.
        self.nudge()
        if get_ident() == self._ident:
            self._served.deliver()
        elif not self._leader:
            self._follow_up()
        elif self._served.waiting():
            self.wake()

    def _follow_up(self) -> None:
        """Leave the connection to its own thread, which may have to get up earlier now."""
        if self._served.waiting() or self._served.due_ms() < self._until_ms:
            self.wake()

    @staticmethod
    def _signal(fd: int) -> None:
        # -1, where all is closed already, is a ValueError.
        with contextlib.suppress(OSError, ValueError):
            os.eventfd_write(fd, 1)

    @staticmethod
    def _read(fd: int) -> None:
        with contextlib.suppress(BlockingIOError, ValueError):
            os.eventfd_read(fd)

    # --- the connection's thread ------------------------------------------------------------------

    def run(self) -> None:
        """Take turns until `stop`."""
        served = self._served
        self._ident = get_ident()
        while not self.stopped():
            self._sleeping = True
            began_ms = now_ms()
            self._until_ms = min(served.due_ms(), began_ms + WAIT_MS_MAX)
            wait_ms = 0 if served.waiting() else max(0, self._until_ms - began_ms)
            fds = {fd for fd, _ in self._epoll.poll(wait_ms / 1000)}
            self._sleeping = False
            if self._wake_fd in fds:
                self._read(self._wake_fd)
            with self._lock:
                if self.stopped():
                    break
                served.turn(fds)
            served.deliver()
            if self._leader:
                self._signal(self._leader_fd)
            elif not self._watched:
                # The leader was interrupted while it left.
                self._watch(True)

    def stop(self) -> None:
        """Let `run` and whoever leads come back; no further turn is taken."""
        with self._shield, self._lock:
            self._stopping = True
            if self._leader == get_ident():
                # In a signal handler of its own: it cannot leave before that is over.
                self._leader = 0
        self._signal(self._wake_fd)
        self._signal(self._leader_fd)

    def close(self) -> None:
        """Free what was used; nobody takes turns any more."""
        # It was told to stop, so it is on its way out.
        self._await_leave(LEAVE_MS)
        self._epoll.close()
        fds, self._wake_fd, self._leader_fd = (self._wake_fd, self._leader_fd), -1, -1
        for fd in fds:
            os.close(fd)


def _left_s(until_s: float | None) -> float | None:
    return None if until_s is None else max(0.0, until_s - time.monotonic())


def now_ms() -> int:
    """The clock of a session: milliseconds."""
    return time.monotonic_ns() // 1_000_000


_all: weakref.WeakSet[Turns] = weakref.WeakSet()


def _in_copy() -> None:
    for turns in list(_all):
        turns.disown()


os.register_at_fork(after_in_child=_in_copy)
