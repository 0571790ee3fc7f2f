"""Edge: the process in which tasks run, one after another.

It is forked by the fork server, leads its own session, adopts whatever its tasks start, and is
the only place besides a client where pickles are opened.  This file must not know the daemon:
it has one channel, on which it is told what to run and says how it ended.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import gc
import importlib
import itertools
import mmap
import os
import pickle
import resource
import select
import signal
import socket
import sys
import termios
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, Final, NamedTuple, NoReturn

from blackroad.bus import parcels, payload
from blackroad.bus.patience import Patience
from blackroad.bus.work import (
    Command,
    Failure,
    KernelRun,
    MapCall,
    Module,
    Work,
    decode_work,
    encode_failure,
    shortened,
)
from blackroad.digest import blake2b
from blackroad.errors import NotPicklable, RemoteProtocolError
from blackroad.runtime import command, context, processes, wire
from blackroad.runtime.objects import write_new
from blackroad.runtime.tray import Tray

LOOK_US: Final = 500  # for a next task, where the last ones came as soon as that
LONG_TASK_US: Final = 20_000  # from here on memory is looked at, which costs microseconds
RETIRE_ABOVE_BYTES: Final = 512 * 1024 * 1024  # resident memory kept after a task
EXIT_BROKEN: Final = 70  # of a task process that failed outside of any task
OOM_SCORE: Final = 500  # the kernel ends a task rather than the daemon
WATCHED_SIGNALS: Final = tuple(
    int(number)
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGPIPE,
        signal.SIGALRM,
        signal.SIGTERM,
        signal.SIGCHLD,
    )
)

# The function below the public one, which makes two enums a call: 0.1 us instead of 0.7.
_handler_of: Callable[[int], Any] = importlib.import_module("_signal").getsignal

_waitpid: Any = ctypes.CDLL(None).waitpid
_waitpid.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)

Facts = dict[str, int | str]


class TaskSetup(NamedTuple):
    """What every task process of one fork server has in common."""

    generation: str
    incoming: str
    server: int
    close: tuple[int, ...]


class _Failed(Exception):
    """The task failed in a way that has no traceback of the user's."""

    def __init__(self, type_name: str, text: str, exit_status: int | None = None) -> None:
        super().__init__(text)
        self.failure = Failure(type_name, text, "", exit_status)


class _CodeMissing(Exception):
    """The function has to be sent along."""


class Ends(NamedTuple):
    """The descriptors that a task process is given."""

    channel: int
    output: int
    errors: int
    memory: int
    claims: tuple[int, ...]


def main(ends: Ends, number: int, setup: TaskSetup) -> NoReturn:
    """Turn a fresh fork into a task process and serve until the channel closes."""
    os.setsid()
    processes.die_with_parent(setup.server)
    processes.adopt_orphans()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(ends.output, 1)
    os.dup2(ends.errors, 2)
    for fd in (null, ends.output, ends.errors, *setup.close):
        os.close(fd)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(OOM_SCORE))
    # All task processes come from one parent, so NumPy's global generator would give each of them
    # the same numbers.  The standard library's one looks after itself.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    faulthandler.enable(file=2)
    gc.enable()
    channel = socket.socket(fileno=ends.channel)
    channel.setblocking(True)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.PACKET_BYTES_MAX)
    trays = [Tray(fd, ends.memory, place) for place, fd in enumerate(ends.claims)]
    os.close(ends.memory)
    _TaskProcess(channel, trays, number, setup).serve()
    os._exit(0)


class _TaskProcess:
    """Runs one task at a time and leaves nothing of it for the next one."""

    def __init__(
        self, channel: socket.socket, trays: list[Tray], number: int, setup: TaskSetup
    ) -> None:
        self._channel = channel
        self._trays = trays
        self._tray = trays[0]
        self._number = number
        self._pid = os.getpid()
        self._setup = setup
        self._functions: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()
        self._surroundings = _Surroundings()
        self._parcels = parcels.Parcels(())

    def serve(self) -> None:
        buffer = bytearray(wire.PACKET_BYTES_MAX)
        view = memoryview(buffer).toreadonly()
        receive, send = self._channel.recv_into, self._channel.send
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        patience = Patience(LOOK_US)
        clean = True
        while size := receive(buffer):
            start = wire.decode_start(view[:size])
            self._tray = tray = self._trays[start.tray]
            if start.ahead and not (clean and tray.claim()):
                continue
            # A daemon that stood still in between may send what was decided long ago.
            if 0 < start.deadline_ms <= processes.boot_ms():
                done = wire.Done(start.serial, wire.FAILED, wire.LAPSED, b"")
            else:
                done = self._run(start)
            clean = not done.flags & ~wire.ORDINARY
            send(wire.encode(done))
            if start.look:
                patience.wait(poller.poll, -1, look=True)

    def _run(self, start: wire.Start) -> wire.Done:
        """Run a task, or a bundle as far as its tasks end as they should."""
        tray, more = self._tray, start.more
        tray.begin()
        task, work, index = start.task, start.work, 0
        while True:
            facts: Facts = {}
            segments, flags = self._one(start, task, work, facts)
            size = payload.total_bytes(segments)
            if flags or index == len(more) or size > tray.room:
                return self._done(start.serial, flags, segments, size, facts, index)
            tray.put(index, wire.encode((payload.join(segments), facts["elapsed_us"])))
            if not tray.claim():
                return self._done(start.serial, flags, segments, size, facts, index)
            task, work = more[index]
            index += 1

    def _one(
        self, start: wire.Start, task: bytes, work: memoryview, facts: Facts
    ) -> tuple[list[payload.Segment], int]:
        """Run one task; return what is left of it, and flags where that is out of the ordinary."""
        flags = 0
        began_ns = time.monotonic_ns()
        try:
            segments = self._result(start, task, work, facts)
        except _CodeMissing:
            context.enter(None)
            return [], wire.CODE_MISSING | wire.FAILURE
        except BaseException as error:
            # SystemExit and KeyboardInterrupt too: they end the task, not the process.
            failure = _failure(error)
            segments = [encode_failure(failure)]
            flags = wire.FAILURE
            facts["type_name"] = shortened(failure.type_name, 128)
        if os.getpid() != self._pid:
            _end_copy(flags)
        context.enter(None)
        elapsed_us = (time.monotonic_ns() - began_ns) // 1000
        facts["elapsed_us"] = elapsed_us
        flags |= self._surroundings.restore(facts)
        if elapsed_us > LONG_TASK_US:
            flags |= _memory(facts)
        return segments, flags

    def _done(
        self,
        serial: int,
        flags: int,
        segments: list[payload.Segment],
        size: int,
        facts: Facts,
        before: int,
    ) -> wire.Done:
        status: wire.Status = wire.FAILED if flags & wire.FAILURE else wire.DONE
        flags &= ~wire.FAILURE
        if size <= (self._tray.room if before else wire.RESULT_INLINE_MAX):
            whole = payload.join(segments)
            return wire.Done(serial, status, flags, whole, b"", size, facts, before)
        if not self._parcels:
            # Not before: this process may be older than what its daemon has written there.
            guide = parcels.read_guide(os.path.dirname(self._setup.incoming))
            self._parcels = parcels.Parcels(guide)
        parcel = self._parcels.new_name()
        if self._parcels.write(parcel, segments):
            flags |= wire.IN_FILE
            return wire.Done(serial, status, flags, b"", parcel, size, facts, before)
        name = wire.incoming_name(self._setup.generation, self._number, serial)
        try:
            digest = write_new(os.path.join(self._setup.incoming, name), segments)
        except OSError as error:
            text = f"the result of {size} bytes cannot be written: {error.strerror}"
            failed = encode_failure(Failure("DiskProblem", text))
            facts["disk_problem"] = error.strerror or "unknown"
            return wire.Done(serial, wire.FAILED, flags, failed, b"", len(failed), facts, before)
        return wire.Done(serial, status, flags | wire.IN_FILE, b"", digest, size, facts, before)

    # --- the work -------------------------------------------------------------------------------

    def _result(
        self, start: wire.Start, task: bytes, todo: memoryview, facts: Facts
    ) -> list[payload.Segment]:
        """Do the work and return the payload of its result."""
        attempt = context.TaskContext(task, start.token, start.attempt, start.node)
        if start.work_path:
            todo = memoryview(parcels.mapped(start.work_path))
        work = decode_work(todo)
        context.enter(attempt)
        if isinstance(work, Command):
            value: object = self._command(work, attempt, facts)
        elif isinstance(work, KernelRun):
            value = _kernel(work, attempt, facts)
        else:
            function = self._function(work, start, attempt)
            if isinstance(work, MapCall):
                value = _each(function, work, attempt, facts)
            else:
                args, kwargs = _opened(work.args, attempt)
                value = function(*args, **kwargs)
        try:
            return payload.encode(value, label="result")
        except NotPicklable as error:
            raise _Failed("ResultNotPicklable", f"{error.message}; {error.hint}") from None

    def _function(
        self, work: Work, start: wire.Start, attempt: context.TaskContext
    ) -> Callable[..., Any]:
        if isinstance(work, Module):
            return _imported(work.target, attempt)
        known = self._functions.get(start.code_digest)
        if known is not None:
            self._functions.move_to_end(start.code_digest)
            return known
        if start.code_path:
            code: bytes | bytearray | memoryview | mmap.mmap = parcels.mapped(start.code_path)
        elif len(start.code):
            code = start.code
        else:
            raise _CodeMissing
        if blake2b(code, digest_size=payload.DIGEST_BYTES).digest() != start.code_digest:
            raise RemoteProtocolError("the function arrived damaged: its digest differs")
        try:
            function: Callable[..., Any] = pickle.loads(code)
        except ImportError as error:
            raise _missing(error, attempt) from error
        if not callable(function):
            raise RemoteProtocolError("what arrived as a function cannot be called")
        self._functions[start.code_digest] = function
        if len(self._functions) > wire.FUNCTIONS_KEPT:
            self._functions.popitem(last=False)
        return function

    def _command(self, work: Command, attempt: context.TaskContext, facts: Facts) -> int:
        stdin = _opened(work.stdin, attempt) if len(work.stdin) else b""
        status, type_name, text = command.run(
            work.argv, {**attempt.environment(), **work.env}, work.cwd, stdin, attempt.node
        )
        if status is not None:
            facts["exit_status"] = status
        if text:
            raise _Failed(type_name, text, status)
        return 0


def _end_copy(flags: int) -> NoReturn:
    """End a fork that the task made and let return into our code: only the original answers."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(1 if flags & wire.FAILURE else 0)


def _each(
    function: Callable[..., Any], work: MapCall, attempt: context.TaskContext, facts: Facts
) -> list[Any]:
    items = _opened(work.items, attempt)
    results: list[Any] = []
    try:
        if work.star:
            results.extend(itertools.starmap(function, items))
        else:
            results.extend(map(function, items))
    except BaseException as error:
        # list.extend keeps what it got before the exception, so its length is the index.
        facts["index"] = len(results)
        error.add_note(f"while computing item {len(results)} of {len(items)} (counted from 0)")
        raise
    return results


def _kernel(work: KernelRun, attempt: context.TaskContext, facts: Facts) -> object:
    from blackroad.kernels import registry

    params = _opened(work.params, attempt)
    try:
        return registry.run(work.name, params, backend="auto")
    finally:
        used = registry.last_backend()
        if used:
            facts["backend"] = str(used)[:60]


def _imported(target: str, attempt: context.TaskContext) -> Callable[..., Any]:
    module_name, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise _missing(error, attempt) from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise _Failed(
                "AttributeError", f"module `{module_name}` on node {attempt.node} has no `{path}`"
            ) from None
    if not callable(found):
        raise _Failed("TypeError", f"`{target}` is not callable")
    function: Callable[..., Any] = found
    return function


def _opened(data: memoryview, attempt: context.TaskContext) -> Any:
    """Open the arguments; an array in a mapped file may then be used in place."""
    try:
        return payload.decode(data)
    except ImportError as error:
        raise _missing(error, attempt) from error


def _missing(error: ImportError, attempt: context.TaskContext) -> _Failed:
    node = f" on node {attempt.node}" if attempt.node else " there"
    return _Failed(type(error).__name__, f"{error}; install it{node}, or run the task elsewhere")


def _memory(facts: Facts) -> int:
    """Note the most memory ever used; ask for a fresh process where much of it stayed."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    facts["peak_bytes"] = 1024 * max(own, children)
    with open("/proc/self/statm", "rb") as file:
        resident = int(file.read().split()[1]) * mmap.PAGESIZE
    return wire.RETIRE if resident > RETIRE_ABOVE_BYTES else 0


# --- failures -----------------------------------------------------------------------------------


def _failure(error: BaseException) -> Failure:
    if isinstance(error, _Failed):
        return error.failure
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    try:
        text = str(error)
    except BaseException as second:
        text = f"(its text cannot be made: {type(second).__name__})"
    try:
        trace = _trace(error)
    except BaseException as second:
        trace = f"(the traceback cannot be made: {type(second).__name__})"
    status = error.code if isinstance(error, SystemExit) and type(error.code) is int else None
    return Failure(name, text, trace, status)


def _trace(error: BaseException) -> str:
    """Format a traceback that begins where the user's code does."""
    own = (os.path.dirname(__file__), os.path.dirname(payload.__file__))
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(own):
        frames = frames.tb_next
    return "".join(traceback.TracebackException(type(error), error, frames, compact=True).format())


# --- between tasks ------------------------------------------------------------------------------


class _Surroundings:
    """What the next task must find as the first one did."""

    def __init__(self) -> None:
        # The fork server's own streams remember that they were files; these are pipes.
        sys.stdout = sys.__stdout__ = _stream(1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _stream(2)  # type: ignore[misc]
        self._streams: tuple[TextIOWrapper, TextIOWrapper] = (sys.stdout, sys.stderr)
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._environment = os.environ
        self._environ: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
        self._saved = dict(self._environ)
        self._handlers = list(map(_handler_of, WATCHED_SIGNALS))
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._c_flush = ctypes.CDLL(None).fflush
        self._unread = bytearray(4)

    def restore(self, facts: Facts) -> int:
        """Put everything back; return the flags of what could not be."""
        flags = self._output()
        os.fchdir(self._home)
        os.umask(self._umask)
        os.environ = self._environment  # noqa: B003 - a task may have put another mapping there
        if self._environ != self._saved:
            self._restore_environment()
        if list(map(_handler_of, WATCHED_SIGNALS)) != self._handlers:
            for number, handler in zip(WATCHED_SIGNALS, self._handlers, strict=True):
                signal.signal(number, handler)
        # Ends an interval timer as well: both are one.
        signal.alarm(0)
        if threading.active_count() != 1 and _threads_left():
            facts["left_behind"] = "threads"
            flags |= wire.LEFT_BEHIND
        if _children_left():
            facts["left_behind"] = "processes"
            flags |= wire.LEFT_BEHIND
        return flags

    def _output(self) -> int:
        """Push out everything printed, by Python or by C, and tell whether it was read yet."""
        if (sys.stdout, sys.stderr) != self._streams:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            sys.stdout, sys.stderr = self._streams
        for stream in self._streams:
            try:
                stream.flush()
            except ValueError:
                # Closed for good: nobody could print here any more.
                return wire.OUTPUT_WAITS | wire.LEFT_BEHIND
            except OSError:
                pass
        self._c_flush(None)
        try:
            for fd in (1, 2):
                fcntl.ioctl(fd, termios.FIONREAD, self._unread)
                if self._unread != b"\0\0\0\0":
                    return wire.OUTPUT_WAITS
        except OSError:
            # The task closed or replaced the descriptor; the next one shall not print there.
            return wire.OUTPUT_WAITS | wire.LEFT_BEHIND
        return 0

    def _restore_environment(self) -> None:
        for name in self._environ.keys() - self._saved.keys():
            del os.environ[os.fsdecode(name)]
        for name, value in self._saved.items():
            os.environ[os.fsdecode(name)] = os.fsdecode(value)


def _stream(fd: int) -> TextIOWrapper:
    """Text goes out line by line, so that a follower sees it, and never fails for its letters."""
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _threads_left() -> bool:
    # Threads made by C libraries leave a record when they touch Python, and it never goes away.
    return any(
        not isinstance(thread, threading._DummyThread)
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
    )


def _children_left() -> bool:
    """Collect what has ended (orphans come up here too); True if something still runs."""
    # The C function says that there are none without an exception, at a third of the price.
    while (pid := _waitpid(-1, None, os.WNOHANG)) > 0:
        pass
    return bool(pid == 0)
