"""Edge: forks task processes quickly, and makes sure that they end.

Run as `python -m blackroad.runtime.forkserver CONTROL DEADLINES` by the pool.  It has the heavy
modules loaded, so a fork costs milliseconds, but it never runs user code nor opens a device: both
happen in its children.  It is also the supervisor: it kills a task process whose deadline has
passed even while the daemon is stopped, and everything when the daemon is gone.
"""

from __future__ import annotations

import gc
import importlib
import mmap
import os
import select
import signal
import socket
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from blackroad.runtime import cgroups, processes, task_process, wire
from blackroad.runtime.tray import TRAYS

if TYPE_CHECKING:
    from types import FrameType

DEADLINE_CHECK_MS: Final = 500  # how late a deadline may be noticed that was set while asleep
ENDS: Final = 4 + TRAYS  # descriptors of a task process: channel, two pipes, memory, claims
SETTLE_MS_MIN: Final = 2  # first wait before orphans are looked for again
SETTLE_MS_MAX: Final = 200
SWEEP_MS: Final = 50
SHUTDOWN_MS_MAX: Final = 10_000  # something in an uninterruptible wait may outlive this


class _Child:
    """One task process: forked, then perhaps dying, then dead but not yet settled."""

    __slots__ = ("deadline_ms", "group", "number", "pid", "slot", "status")

    def __init__(self, number: int, slot: int, pid: int, group: Path | None) -> None:
        self.group = group
        self.number = number
        self.slot = slot
        self.pid = pid
        self.status: int | None = None
        self.deadline_ms = 0


class ForkServer:
    """Serves one pool until the pool, or the daemon around it, is gone."""

    def __init__(self, control: socket.socket, deadlines: mmap.mmap) -> None:
        control.setblocking(False)
        self._control = control
        self._deadlines = memoryview(deadlines).cast("Q")
        self._children: dict[int, _Child] = {}  # by pid
        self._by_number: dict[int, _Child] = {}
        self._outbox: list[bytes] = []
        self._settle_ms = 0
        self._sweeping = True
        self._swept = 0
        self._stopping = False
        self._groups: cgroups.Groups | None = None
        self._task_setup: task_process.TaskSetup
        self._setup: wire.Setup

    def run(self) -> None:
        """Prepare, serve, and leave nothing behind."""
        processes.adopt_orphans()
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._read_setup()
        # The pool's end of the control socket may have been inherited by a fork of the daemon;
        # the daemon's own death shows here in any case.
        parent = os.pidfd_open(self._setup.parent)
        if os.getppid() != self._setup.parent:
            return
        self._task_setup = task_process.TaskSetup(
            generation=self._setup.generation,
            incoming=self._setup.incoming,
            server=os.getpid(),
            close=(self._control.fileno(), wake_read, wake_write, parent),
        )
        # The daemon waits for this before it serves, and not for the modules.
        groups = self._make_groups()
        self._sweep()
        self._prepare(groups)
        poller = select.poll()
        for fd in (self._control.fileno(), wake_read, parent):
            poller.register(fd, select.POLLIN)
        while not self._stopping:
            ready = {fd for fd, _ in poller.poll(self._timeout_ms())}
            if wake_read in ready:
                with suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            if parent in ready:
                break
            self._check_deadlines()
            if self._control.fileno() in ready:
                self._serve()
            self._reap()
            self._settle()
            self._sweep()
            self._flush()
        self._shut_down()

    def _read_setup(self) -> None:
        select.select([self._control], [], [])
        message = self._control.recv(wire.PACKET_BYTES_MAX)
        setup = wire.decode_request(message) if message else None
        if not isinstance(setup, wire.Setup):
            sys.exit("the fork server is started by the daemon, not by hand")
        self._setup = setup
        if setup.python_path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = setup.python_path

    def _prepare(self, notes: list[str]) -> None:
        for name in self._setup.preload:
            try:
                importlib.import_module(name)
            except Exception as error:
                notes.append(f"{name}: {type(error).__name__}: {error}"[:500])
        # BLAS keeps threads here; it stops them around a fork by itself.
        warnings.filterwarnings("ignore", ".* is multi-threaded, use of fork", DeprecationWarning)
        # Children share these pages until somebody writes to them; the collector would.
        gc.collect()
        gc.freeze()
        self._send(wire.Ready(notes))

    def _make_groups(self) -> list[str]:
        setup = self._setup
        if not setup.cgroup:
            return []
        try:
            self._groups = cgroups.Groups(Path(setup.cgroup), setup.pool, setup.generation)
        except OSError as error:
            return [f"no control groups below {setup.cgroup}: {error.strerror}"]
        return []

    # --- requests -------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._control, wire.PACKET_BYTES_MAX, ENDS)
            except BlockingIOError:
                return
            except OSError:
                message, fds = b"", []
            if not message:
                self._stopping = True
                return
            match wire.decode_request(message):
                case wire.Spawn() as spawn:
                    self._spawn(spawn, fds)
                case wire.End(number):
                    child = self._by_number.get(number)
                    if child is not None:
                        self._kill(child)
                case wire.Setup():
                    pass

    def _spawn(self, spawn: wire.Spawn, fds: list[int]) -> None:
        group = self._groups.make(spawn.process) if self._groups is not None else None
        try:
            pid = os.fork()
        except OSError as error:
            text = f"cannot fork: {error.strerror}"
            self._send(wire.Ended(spawn.process, wire.NOT_FORKED, text=text))
            pid = -1
        if pid == 0:
            self._become_task_process(spawn, fds, group)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            child = _Child(spawn.process, spawn.slot, pid, group)
            self._children[pid] = self._by_number[spawn.process] = child
            self._send(wire.Born(spawn.process, pid))

    def _become_task_process(
        self, spawn: wire.Spawn, fds: list[int], group: Path | None
    ) -> NoReturn:
        try:
            if group is not None:
                with suppress(OSError):  # the process table keeps it, too
                    cgroups.enter(group)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(spawn.environment)
            channel, output, errors, memory, *claims = fds
            ends = task_process.Ends(channel, output, errors, memory, tuple(claims))
            task_process.main(ends, spawn.process, self._task_setup)
        except BaseException:
            # Goes to the task's own error output, or before that is in place, to the daemon.
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(task_process.EXIT_BROKEN)

    # --- endings --------------------------------------------------------------------------------

    def _check_deadlines(self) -> None:
        now_ms = processes.boot_ms()
        for child in self._by_number.values():
            deadline_ms = self._deadlines[child.slot]
            if 0 < deadline_ms <= now_ms and child.status is None and not child.deadline_ms:
                child.deadline_ms = deadline_ms
                self._kill(child)

    def _kill(self, child: _Child) -> None:
        if child.status is None:
            if child.group is not None:
                cgroups.kill(child.group)
            processes.kill_group(child.pid)  # not there yet if it was forked just now
            os.kill(child.pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                child.status = status

    def _settle(self) -> None:
        """Report the dead once no orphan is left.

        A living task process adopts its own orphans, so an orphan that came up here was started
        by one of the dead.
        """
        dead = [child for child in self._by_number.values() if child.status is not None]
        if not dead:
            self._settle_ms = 0
            return
        lingering = [child for child in dead if not self._empty(child)]
        if self._kill_orphans() or lingering:
            self._settle_ms = min(2 * self._settle_ms or SETTLE_MS_MIN, SETTLE_MS_MAX)
            return
        self._settle_ms = 0
        for child in dead:
            del self._by_number[child.number]
            self._send(wire.Ended(child.number, child.status or 0, child.deadline_ms))

    def _empty(self, child: _Child) -> bool:
        """Is nothing left in the group of a dead task process?"""
        return child.group is None or cgroups.end(child.group)

    def _kill_orphans(self) -> bool:
        """Kill what is below this process and below no task process; False if there is nothing."""
        me = os.getpid()
        entries = processes.table()
        roots = [e for e in entries if e.parent == me and e.pid not in self._children and e.alive]
        orphans = [e for e in processes.below(roots, entries) if e.alive]
        ours = {os.getpgrp(), *self._children}
        for orphan in orphans:
            if orphan.group not in ours:
                processes.kill_group(orphan.group)
            processes.kill_exactly(orphan)
        return bool(orphans)

    def _sweep(self) -> None:
        """Kill what an earlier generation of this pool has left on the machine."""
        if not self._sweeping:
            return
        own = f"{self._setup.pool}/{self._setup.generation}"
        left = [
            item
            for item, mark in processes.marked(wire.POOL_VARIABLE, f"{self._setup.pool}/")
            if mark != own and item.alive
        ]
        for item in left:
            processes.kill_exactly(item)
        self._swept += len(left)
        groups = self._groups.leftovers() if self._groups is not None else []
        lingering = [group for group in groups if not cgroups.end(group)]
        if not left and not lingering:
            self._sweeping = False
            self._send(wire.Swept(self._swept))

    def _shut_down(self) -> None:
        until_ms = processes.boot_ms() + SHUTDOWN_MS_MAX
        for child in self._children.values():
            self._kill(child)
        self._reap()
        while self._children or self._kill_orphans():
            if processes.boot_ms() > until_ms:
                return
            select.select([], [], [], SETTLE_MS_MIN / 1000)
            self._reap()
        if self._groups is not None:
            self._groups.close()

    # --- small things ---------------------------------------------------------------------------

    def _timeout_ms(self) -> int | None:
        waits = []
        if self._sweeping:
            waits.append(SWEEP_MS)
        if self._settle_ms or self._outbox:
            waits.append(max(self._settle_ms, SETTLE_MS_MIN))
        if self._by_number:
            waits.append(DEADLINE_CHECK_MS)
            soonest = min(
                (
                    due
                    for child in self._by_number.values()
                    if not child.deadline_ms and (due := self._deadlines[child.slot])
                ),
                default=0,
            )
            if soonest:
                waits.append(max(soonest - processes.boot_ms(), SETTLE_MS_MIN))
        return min(waits, default=None)

    def _send(self, report: wire.Report) -> None:
        # Never waits: a daemon that is stopped must not keep deadlines from being looked at.
        self._outbox.append(wire.encode(report))
        self._flush()

    def _flush(self) -> None:
        while self._outbox:
            try:
                self._control.send(self._outbox[0])
            except BlockingIOError:
                return
            except OSError:
                self._stopping = True
                return
            del self._outbox[0]

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let the signal interrupt the poll; its number arrives through the wake-up pipe."""


def main() -> None:
    """Entry point of `python -m blackroad.runtime.forkserver`."""
    if len(sys.argv) != 3:
        sys.exit("the fork server is started by the daemon, not by hand")
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    table = int(sys.argv[2])
    deadlines = mmap.mmap(table, 8 * wire.PROCESSES_MAX)
    os.close(table)
    sys.argv = [""]
    ForkServer(control, deadlines).run()
    # Interpreter shutdown has nothing to do here that the kernel does not do faster.
    os._exit(0)


if __name__ == "__main__":
    main()
