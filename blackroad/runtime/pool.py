"""Edge: the daemon's side of its task processes.

No thread and no clock of its own: the daemon polls `fds()`, calls `read` for what is readable and
`tick` now and then.  This file must not know tasks beyond the key the caller gave, and never
opens what the work or the result holds.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from blackroad.errors import (
    Busy,
    DiskProblem,
    EnvironmentProblem,
    LocalProtocolError,
    invariant,
)
from blackroad.limits import EXIT_FACTS_BYTES_MAX, KIB, MIB
from blackroad.runtime import wire
from blackroad.runtime.child import Ahead, Child, channels, ending, packet_of
from blackroad.runtime.events import (
    Apart,
    Clean,
    Crashed,
    Finished,
    Gone,
    Output,
    PoolEvent,
    Problem,
    Returned,
    Run,
)
from blackroad.runtime.serving import Reader, Serving

__all__ = [
    "Apart",
    "Clean",
    "Crashed",
    "Finished",
    "Gone",
    "Output",
    "Pool",
    "PoolEvent",
    "Problem",
    "Returned",
    "Run",
    "base_environment",
]

PRELOAD: Final = ("numpy.random", "msgpack", "cloudpickle", "blackroad.kernels.registry")
OUTPUT_READ_BYTES: Final = 64 * 1024  # what one read takes out of a pipe
OUTPUT_DRAIN_BYTES: Final = 1 * MIB  # and what the end of a task may add
# What belongs to the daemon alone: its settings, and what systemd told it.
_PRIVATE: Final = ("BLACKROAD_", "LISTEN_", "WATCHDOG_", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY")


_FACTS_FEW: Final = 4  # each is bounded where it is made, so few of them need no measuring
_HEAD_BYTES: Final = 8 * KIB  # names, ids and paths beside the work


def base_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the caller's environment without what only the daemon should know."""
    source = os.environ if environ is None else environ
    return {name: value for name, value in source.items() if not name.startswith(_PRIVATE)}


class Pool:
    """Runs tasks in processes that are reused, watched, and verified to be gone.

    Each `launch` is answered by exactly one of Finished, Crashed and Gone.  A task that was done
    before a kill reached it is Finished.
    """

    def __init__(
        self,
        *,
        objects_dir: str,
        environment: Mapping[str, str],
        preload: Sequence[str] = PRELOAD,
        idle_ms: int = 60_000,
        keep: int = 1,
        cwd: str | None = None,
        cgroup: Path | None = None,
    ) -> None:
        """`environment` is all that tasks get (see `base_environment`); `keep` idle ones stay.

        `cgroup` is a control group below which this pool may make its own (`cgroups.delegated`).
        """
        self.version = 0
        self._objects_dir = Path(objects_dir).resolve()
        self._incoming = self._objects_dir / "incoming"
        self._idle_ms = idle_ms
        self._keep = keep
        # May a process that has ended its task look for the next one, and not sleep at once?
        self.looks: Callable[[], bool] = lambda: False
        self._closed = False
        self._readers: dict[int, Reader] = {}
        self._processes: dict[int, Child] = {}
        self._running: dict[Hashable, Child] = {}
        # What was handed ahead and has not become what its process runs, as far as is known here.
        self._ahead: dict[Hashable, Child] = {}
        # What was, has become that, and was not launched yet: with what is to be told of it then.
        self._untold: dict[Hashable, list[PoolEvent]] = {}
        self._idle: dict[tuple[tuple[str, str], ...], list[Child]] = {}
        self._lost: list[Child] = []
        self._number = 0
        self._slots = list(range(wire.PROCESSES_MAX - 1, -1, -1))
        self._now_ms = 0
        self._events: list[PoolEvent] = []
        self._buffer = bytearray(wire.PACKET_BYTES_MAX)
        self._view = memoryview(self._buffer)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._readers[self._wake] = self._read_wake
        self._table_fd = os.memfd_create("deadlines")
        os.truncate(self._table_fd, 8 * wire.PROCESSES_MAX)
        self._table = mmap.mmap(self._table_fd, 8 * wire.PROCESSES_MAX)
        self._deadlines = memoryview(self._table).cast("Q")
        group = str(cgroup) if cgroup is not None else ""
        self._serving = serving = Serving(
            self._objects_dir, dict(environment), preload, self._table_fd, cwd, group
        )
        serving.watch, serving.forget, serving.later = self._watch, self._forget, self._later
        serving.reported, serving.lost = self._reported, self._server_lost

    # --- for the daemon -------------------------------------------------------------------------

    def start(self) -> None:
        """Launch the fork server and return at once; tasks may be launched right after.

        Raises  EnvironmentProblem where it cannot be started, DiskProblem without a directory.
        """
        try:
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise DiskProblem(
                f"cannot make `{self._incoming}`: {error.strerror}",
                hint="free some space, or change `state_dir`",
            ) from None
        self._serving.start()

    def prefork(self, count: int) -> None:
        """Have that many processes before there are tasks, so that the first ones wait for none."""
        while len(self._processes) < count and self._slots:
            process = self._fork(())
            process.idle_since_ms = self._now_ms
            self._idle.setdefault((), []).append(process)

    def fds(self) -> Collection[int]:
        """All descriptors to poll for reading; `version` grows when they have changed."""
        return self._readers.keys()

    def launch(self, key: Hashable, run: Run) -> list[PoolEvent]:
        """Run a task in an idle task process, or in a new one; return what is known of it already.

        What was handed ahead goes on where it lies, and may have ended.

        Raises  LocalProtocolError where the inline parts are too large, Busy where no further
                process can be made.
        """
        untold = self._untold.pop(key, None)
        if untold is not None:
            process = self._running.get(key)
            if process is not None and not process.doomed:
                self._deadlines[process.slot] = run.deadline_ms
            return untold
        invariant(key is not None and key not in self._running, "a key runs twice", key)
        invariant(not self._closed, "launch on a closed pool")
        ahead = self._ahead.get(key)
        # Where it lies nothing came free: so it begins elsewhere.
        invariant(ahead is None or self._take_back(ahead), "launched where it does not run", key)
        if run.inline_bytes > wire.PACKET_BYTES_MAX - _HEAD_BYTES:
            raise LocalProtocolError("too much inline work or code: give it as a file")
        environment = run.kind
        while stack := self._idle.get(environment):
            process = stack.pop()
            if self._send(process, key, run):
                return []
            self._doom(process)
        process = self._fork(environment)
        if not self._send(process, key, run):
            self._doom(process)
            raise EnvironmentProblem("a new task process closed its channel at once")
        return []

    def hand_ahead(self, key: Hashable, run: Run, after: Hashable) -> None:
        """Give a task to the process of a running one, which begins it as soon as that has ended.

        `launch` has to follow once that one's end was told, or `withdraw`.  What cannot be handed
        ahead is not, and then `launch` starts it as any other.
        """
        process = self._running.get(after)
        if process is None or process.doomed or process.finished is not None or process.stale:
            return
        lasts = 0 < self._deadlines[process.slot] <= run.deadline_ms
        taken = process.ahead is not None or after in self._untold
        if taken or not lasts or process.environment != run.kind:
            return
        if run.code_digest and run.code_digest not in process.known:
            return
        if run.inline_bytes <= wire.PACKET_BYTES_MAX - _HEAD_BYTES:
            self._send_ahead(process, key, run)

    def withdraw(self, key: Hashable) -> list[PoolEvent]:
        """Have what was handed ahead not begin; the answer is Returned, unless it has begun."""
        process = self._ahead.get(key)
        if process is not None:
            return [Returned(key)] if self._take_back(process) else []
        process = self._running.get(key)
        if process is None:
            return [] if key in self._untold else [Returned(key)]
        if key not in self._untold or process.doomed or not process.draw_back():
            return []
        del self._untold[key]
        self._vacate(process)
        return [Returned(key)]

    def read(self, fd: int) -> list[PoolEvent]:
        """Take in what one readable descriptor holds; never waits."""
        reader = self._readers.get(fd)
        events = reader() if reader is not None else []
        return self._told(events) if self._untold else events

    def _told(self, events: list[PoolEvent]) -> list[PoolEvent]:
        """Keep what is of tasks that were not launched yet until they are."""
        kept: list[PoolEvent] = []
        for event in events:
            key = None if isinstance(event, Clean | Problem) else event.key
            (kept if key is None else self._untold.get(key, kept)).append(event)
        return kept

    def kill(self, key: Hashable, why: str) -> None:
        """Kill a task with everything it started; unknown keys have ended already."""
        process = self._running.get(key)
        if process is None or process.why is not None:
            return
        if not self._take_back(process):
            # It has ended, and its process is with the next one.
            for event in self._read_channel(process):
                self._later(event)
            if process.key != key:
                return
        process.why = why
        self._doom(process)

    def extend(self, key: Hashable, deadline_ms: int) -> None:
        """Move the deadline of a running task, on the boot-time clock; 0 for none."""
        process = self._ahead.get(key)
        if process is not None and process.ahead is not None:
            process.ahead.deadline_ms = deadline_ms
            return
        process = self._running.get(key)
        if process is None or process.doomed:
            return
        ahead = process.ahead
        # What follows must not run beyond its own deadline under that of the one before it.
        if ahead is None or deadline_ms <= ahead.deadline_ms or self._take_back(process):
            self._deadlines[process.slot] = deadline_ms

    def divide(self, key: Hashable) -> list[PoolEvent]:
        """Let nothing further of a running bundle begin; the answer is Apart, where it runs."""
        process = self._running.get(key)
        if process is None or process.doomed or process.run is None or not process.run.more:
            return []
        return self._divided(process)

    def tick(self, now_ms: int) -> None:
        """End processes that idle too long, and try again what had to wait."""
        self._now_ms = now_ms
        if self._closed:
            return
        self._serving.tick(now_ms)
        spare = sum(map(len, self._idle.values())) - self._keep
        for environment, stack in list(self._idle.items()):
            while spare > 0 and stack and now_ms - stack[0].idle_since_ms >= self._idle_ms:
                self._doom(stack.pop(0))
                spare -= 1
            if not stack:
                del self._idle[environment]

    def close(self) -> None:
        """Kill everything and free everything; no event follows.

        Cost  waits for the fork server, usually some milliseconds, at most 5 s.
        """
        if self._closed:
            return
        self._closed = True
        self._serving.close()
        for process in [*self._processes.values(), *self._lost]:
            self._close_process(process)
            self._remove_incoming(process)
        self._deadlines.release()
        self._table.close()
        os.close(self._table_fd)
        os.close(self._wake)
        self._readers.clear()
        for books in (self._processes, self._running, self._ahead, self._untold):
            books.clear()
        self.version += 1

    @property
    def busy(self) -> int:
        """How many launched tasks have not ended."""
        return len(self._running)

    @property
    def pids(self) -> dict[int, Hashable]:
        """Task processes that were forked, with the key each of them runs, or None."""
        return {item.pid: item.key for item in self._processes.values() if item.pid}

    @property
    def server_pid(self) -> int:
        """The fork server's process id, 0 while there is none."""
        return self._serving.pid

    # --- task processes -------------------------------------------------------------------------

    def _fork(self, environment: tuple[tuple[str, str], ...]) -> Child:
        if not self._slots:
            raise Busy(
                f"{wire.PROCESSES_MAX} task processes are alive",
                hint="some of them are still ending; try again",
            )
        process = Child(self._number + 1, self._slots[-1], environment)
        channels(process)
        self._number += 1
        self._slots.pop()
        self._deadlines[process.slot] = 0
        self._processes[process.number] = process
        self._watch(process.socket.fileno(), lambda: self._read_channel(process))
        self._watch(process.pipes[1], lambda: self._read_output(process, 1))
        self._watch(process.pipes[2], lambda: self._read_output(process, 2))
        spawn = wire.Spawn(process.number, process.slot, dict(environment))
        self._serving.request(spawn, process)
        return process

    def _send(self, process: Child, key: Hashable, run: Run, *, again: bool = False) -> bool:
        """Start a task in a process that has none; False if that process is not to be had."""
        code, code_path = run.code, run.code_path
        known = process.known
        if run.code_digest and not again and run.code_digest in known:
            code, code_path = b"", ""
        process.serial += 1
        process.mailbox.begin(1 + len(run.more))
        deadline_ms = self._deadlines[process.slot] if again else run.deadline_ms
        packet = packet_of(
            run, process.serial, process.tray, code, code_path, deadline_ms, look=self.looks()
        )
        # First the deadline, then the task: whatever stops this daemon in between, nothing runs
        # that the fork server does not watch.
        self._deadlines[process.slot] = deadline_ms
        try:
            process.socket.send(packet)
        except OSError:
            return False
        if run.code_digest:
            known[run.code_digest] = None
            known.move_to_end(run.code_digest)
            if len(known) > wire.FUNCTIONS_KEPT:
                known.popitem(last=False)
        process.key = key
        process.run = run
        process.current = process.serial
        self._running[key] = process
        return True

    def _send_ahead(self, process: Child, key: Hashable, run: Run) -> None:
        process.serial += 1
        place = int(not process.tray)
        process.mailboxes[place].begin(1 + len(run.more), ahead=True)
        process.ahead = Ahead(key, run, process.serial)
        self._ahead[key] = process
        packet = packet_of(run, process.serial, place, b"", "", run.deadline_ms, ahead=True)
        try:
            process.socket.send(packet)
        except OSError:
            # Full, or dead: the claims go back, and it is as if nothing had been tried.
            self._take_back(process)

    def _take_back(self, process: Child) -> bool:
        """Have what was handed ahead to a process not begin; False if it has."""
        ahead = process.ahead
        if ahead is None:
            return True
        if not process.take_back():
            return False
        del self._ahead[ahead.key]
        return True

    def _advance(self, process: Child, ahead: Ahead) -> None:
        """A process goes on by itself with what it was handed ahead."""
        del self._ahead[ahead.key]
        process.advance(ahead)
        self._running[ahead.key] = process
        self._untold[ahead.key] = []
        self._deadlines[process.slot] = ahead.deadline_ms

    def _read_channel(self, process: Child) -> list[PoolEvent]:
        try:
            size = process.socket.recv_into(self._buffer)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            # It died with our message unread; what it had said before is still to be had.
            return self._read_channel(process)
        except OSError:
            size = 0
        if not size:
            self._forget(process.socket.fileno())
            return []
        try:
            done = wire.decode_done(self._view[:size])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._misbehaved(process)
        if done.serial != process.current or process.run is None or process.finished is not None:
            return self._misbehaved(process)
        return self._done(process, process.run, done)

    def _done(self, process: Child, run: Run, done: wire.Done) -> list[PoolEvent]:
        flags = done.flags
        if done.serial > process.stale:
            process.stale = 0
        if flags & ~wire.ORDINARY and not self._take_back(process):
            return self._misbehaved(process)
        if flags & wire.CODE_MISSING:
            if process.doomed:
                return []
            if done.before or not (run.code or run.code_path):
                return self._misbehaved(process, "the function of this task was not sent along")
            if not self._send(process, process.key, run, again=True):
                self._doom(process)
            return []
        if flags & wire.LAPSED:
            return [] if process.doomed else [self._freed(process, Gone(process.key, "deadline"))]
        if process.mailbox.tasks > 1:
            process.mailbox.take_back()
            if done.before >= process.mailbox.tasks:
                return self._misbehaved(process)
            process.mailbox.tasks = 1 + done.before
        before = process.before()
        if len(before) != done.before:
            return self._misbehaved(process)
        path = self._incoming_path(process) if flags & wire.IN_FILE else ""
        facts = done.facts
        if len(facts) > _FACTS_FEW and len(wire.encode(facts)) > EXIT_FACTS_BYTES_MAX:
            facts = {}
        finished = Finished(
            process.key, done.status, done.result, path, done.digest, done.size, facts, before
        )
        if process.doomed or flags & wire.LEFT_BEHIND:
            # Told only when nothing of the task can run any more.
            process.finished = finished
            self._doom(process)
            return []
        events: list[PoolEvent] = self._drain(process) if flags & wire.OUTPUT_WAITS else []
        events.append(self._freed(process, finished))
        if flags & wire.RETIRE:
            self._doom(process)
        return events

    def _freed(self, process: Child, end: PoolEvent) -> PoolEvent:
        """The task ended by itself: its process is there for the next one."""
        if process.ahead is not None:
            del self._running[process.key]
            self._advance(process, process.ahead)
        else:
            self._vacate(process)
        return end

    def _vacate(self, process: Child) -> None:
        """It runs nothing, and is there for the next one."""
        del self._running[process.key]
        self._deadlines[process.slot] = 0
        process.key = process.run = None
        process.idle_since_ms = self._now_ms
        self._idle.setdefault(process.environment, []).append(process)

    def _misbehaved(
        self, process: Child, fault: str = "the task wrote to a descriptor that is not its own"
    ) -> list[PoolEvent]:
        """What was said cannot be relied on, so the process can only be ended."""
        process.fault = process.fault or fault
        self._doom(process)
        return []

    def _doom(self, process: Child) -> None:
        """Have the fork server kill a process with all it started; Ended will follow."""
        if process.doomed:
            return
        process.doomed = True
        stack = self._idle.get(process.environment)
        if stack is not None and process in stack:
            stack.remove(process)
        if process.unsent:
            # Never reached the fork server, so there is nothing to kill.
            process.run = None
            self._serving.withdraw(process)
            for event in self._ended(process, wire.Ended(process.number, 0)):
                self._later(event)
        elif process.number in self._processes:
            self._serving.request(wire.End(process.number))

    def _ended(self, process: Child, ended: wire.Ended) -> list[PoolEvent]:
        """A process is gone for certain: say how its task ended, if it had one."""
        process.doomed = True
        self._processes.pop(process.number, None)
        stack = self._idle.get(process.environment)
        if stack is not None and process in stack:
            stack.remove(process)
        events: list[PoolEvent] = []
        if process.key in self._untold and process.draw_back():
            # It was about to begin, and will elsewhere.
            del self._untold[process.key], self._running[process.key]
            process.key = None
        while process.key is not None:
            if process.run is not None and process.finished is None:
                self._read_channel(process)
            if self._take_back(process):
                events += self._drain(process)
            events.append(ending(process, ended, self._deadlines[process.slot]))
            del self._running[process.key]
            if not (isinstance(events[-1], Finished) and events[-1].path):
                self._remove_incoming(process)
            if process.ahead is None:
                break
            # It had gone on by itself with what it was handed ahead.
            self._advance(process, process.ahead)
        self._close_process(process)
        self._slots.append(process.slot)
        return events

    def _divided(self, process: Child) -> list[PoolEvent]:
        """Let nothing further of a bundle begin, and say what is done of it."""
        mailbox, key, run = process.mailbox, process.key, process.run
        mailbox.take_back()
        if key is None or run is None or process.doomed:
            return []
        if not mailbox.tasks:
            # Handed ahead, and not quite begun: its first task does now.
            process.draw_back()
            if not self._send(process, key, replace(run, more=()), again=True):
                self._doom(process)
            return [Apart(key, ())] if run.more else []
        before = process.before()
        if len(before) != mailbox.tasks - 1:
            return []
        return [Apart(key, before)] if run.more else []

    def _drain(self, process: Child) -> list[PoolEvent]:
        """Read what the task printed before it ended."""
        events: list[PoolEvent] = []
        for stream in tuple(process.pipes):
            for _ in range(OUTPUT_DRAIN_BYTES // OUTPUT_READ_BYTES):
                more = self._read_output(process, stream)
                if not more:
                    break
                events += more
        return events

    def _read_output(self, process: Child, stream: int) -> list[PoolEvent]:
        fd = process.pipes.get(stream)
        if fd is None:
            return []
        # A task that prints is the last one of its bundle, so it is known which one it was.  It
        # goes on once the pipe is empty, so nothing may be taken out before the claims are.
        # What it was handed ahead begins only when the pipe is empty, so that if it has, this is
        # its own.
        events = [] if self._take_back(process) else self._read_channel(process)
        if process.mailbox.whole:
            events += self._divided(process)
        try:
            data = os.read(fd, OUTPUT_READ_BYTES)
        except BlockingIOError:
            return events
        if not data:
            del process.pipes[stream]
            self._forget(fd)
            os.close(fd)
            return events
        if process.key is None:
            # What a library prints between tasks belongs to nobody.
            return events
        events.append(Output(process.key, stream, data, process.mailbox.tasks - 1))
        return events

    def _close_process(self, process: Child) -> None:
        fileno = process.socket.fileno()
        if fileno >= 0:
            self._forget(fileno)
            process.socket.close()
        for fd in process.pipes.values():
            self._forget(fd)
            os.close(fd)
        process.pipes.clear()
        process.close_mailboxes()
        process.close_unsent()

    def _watch(self, fd: int, reader: Reader) -> None:
        self._readers[fd] = reader
        self.version += 1

    def _forget(self, fd: int) -> None:
        if self._readers.pop(fd, None) is not None:
            self.version += 1

    def _incoming_path(self, process: Child) -> str:
        name = wire.incoming_name(process.generation, process.number, process.current)
        return str(self._incoming / name)

    def _remove_incoming(self, process: Child) -> None:
        with suppress(OSError):
            os.unlink(self._incoming_path(process))

    # --- the fork server ------------------------------------------------------------------------

    def _reported(self, report: wire.Report) -> list[PoolEvent]:
        match report:
            case wire.Born(number, pid):
                if number in self._processes:
                    self._processes[number].pid = pid
            case wire.Ended():
                process = self._processes.get(report.process)
                if process is not None:
                    return self._ended(process, report)
            case wire.Swept(killed):
                return [*self._settle_lost(), Clean(killed)]
            case wire.Ready():
                pass
        return []

    def _server_lost(self) -> None:
        """The fork server died, and with it every task process; what they started is swept."""
        self._lost += [item for item in self._processes.values() if not item.unsent]
        for process in self._lost:
            process.doomed = True
        self._processes = {item.number: item for item in self._processes.values() if item.unsent}
        self._idle = {
            environment: waiting
            for environment, stack in self._idle.items()
            if (waiting := [item for item in stack if item.unsent])
        }

    def _settle_lost(self) -> list[PoolEvent]:
        events: list[PoolEvent] = []
        lost, self._lost = self._lost, []
        for process in lost:
            text = "the fork server died, and the task process with it"
            events += self._ended(process, wire.Ended(process.number, wire.UNKNOWN, text=text))
        return events

    # --- events that no descriptor announces ------------------------------------------------------

    def _later(self, event: PoolEvent) -> None:
        self._events.append(event)
        os.eventfd_write(self._wake, 1)

    def _read_wake(self) -> list[PoolEvent]:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        events, self._events = self._events, []
        return events
