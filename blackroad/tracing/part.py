"""What the daemon does for traces: writes ended tasks to a process of its own, and no more.

Edge, in the daemon's loop.  Once a second what has gathered goes into a pipe that never waits; what
does not fit is counted and left out.  This file must not know what a trace is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blackroad import __version__
from blackroad.bus.messages import End
from blackroad.discovery import children
from blackroad.errors import InvariantBroken, MissingPackage
from blackroad.ids import short, task_text
from blackroad.starting import boot_ms, wall_ms
from blackroad.tracing.story import MOMENTS_MAX, TEXT_MAX, Moment, Setup, Story, framed

if TYPE_CHECKING:
    from blackroad.bus.sources import Sources
    from blackroad.events import Event
    from blackroad.router.records import Task
    from blackroad.watching import Watching

# Tasks of one second of which a trace is made; those that did not end well have room beyond.
TASKS_PER_S: Final = 1_000
FAILURES_PER_S: Final = 200
QUEUE_BYTES_MAX: Final = 1024 * 1024
PIPE_BYTES: Final = 1024 * 1024
# Tasks of which something is remembered that happened on their way.
REMEMBERED_MAX: Final = 1_000
AGAIN_MS: Final = 5_000
AGAIN_MS_MAX: Final = 300_000
_F_SETPIPE_SZ: Final = 1031
# The end itself is the story.
_ENDS: Final = frozenset(f"task.{end.name.lower()}" for end in End)


def part(watching: Watching) -> Traces:
    """Make traces of what one daemon's tasks come to.

    Raises  MissingPackage where OpenTelemetry is not installed.
    """
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ImportError:
        found = None
    if found is None:
        raise MissingPackage(
            "otel_url is set, and OpenTelemetry is not installed",
            hint="pip install 'blackroad[otel]', or leave otel_url empty",
        )
    if watching.node is None or watching.sources is None:
        raise InvariantBroken("traces of a node that is not there")
    me = watching.me
    setup = Setup(watching.config.otel_url, me.node, me.host, __version__)
    return Traces(setup, watching.node.me, watching.sources, watching.tell)


class Traces:
    """Ended tasks on their way to the process that sends them."""

    def __init__(self, setup: Setup, me: bytes, sources: Sources, tell: Any) -> None:
        self.skipped = 0
        self._setup = setup
        self._me = me
        self._sources = sources
        self._tell = tell
        self._process: subprocess.Popen[bytes] | None = None
        self._queue: deque[bytes] = deque()
        # Of the frame that is being written.
        self._rest = b""
        self._queued_bytes = 0
        self._done = self._failed = 0
        self._moments: OrderedDict[str, list[Moment]] = OrderedDict()
        self._again_at_ms = 0
        self._again_ms = AGAIN_MS
        self._heard = bytearray()
        self._behind = False

    # --- what comes -------------------------------------------------------------------------------

    def ended(self, tasks: Sequence[Task]) -> None:
        """Take down what these came to.

        Cost  about 9 us for each that is taken, 0.2 us for those beyond the bound.
        """
        now_ms, offset_ms = boot_ms(), 0
        for task in tasks:
            ended = task.ended
            if ended is None:
                continue
            if ended.end is End.DONE:
                if self._done >= TASKS_PER_S:
                    self.skipped += 1
                    continue
                self._done += 1
            else:
                if self._failed >= FAILURES_PER_S:
                    self.skipped += 1
                    continue
                self._failed += 1
            offset_ms = offset_ms or wall_ms() - now_ms
            self._add(framed(self._story(task, now_ms, offset_ms)))

    def _story(self, task: Task, now_ms: int, offset_ms: int) -> Story:
        ended = task.ended
        if ended is None:
            raise InvariantBroken("a story without an end")
        facts, spec = ended.facts, task.spec
        printed = task_text(self._me, task.id)
        return Story(
            task.id,
            printed,
            spec.name,
            spec.user,
            ended.end.name.lower(),
            ended.reason[:TEXT_MAX],
            short(ended.node) if ended.node else "",
            ended.attempts,
            task.queued_ms + offset_ms,
            now_ms + offset_ms,
            facts.run_us,
            facts.exit_status,
            facts.backend,
            facts.type_name,
            facts.text[:TEXT_MAX],
            task.durable,
            tuple(self._moments.pop(printed, ())),
        )

    def event(self, event: Event) -> None:
        """Remember what happened to a task that has not ended."""
        if not event.name.startswith("task.") or not event.cause or event.name in _ENDS:
            return
        moments = self._moments.setdefault(event.cause, [])
        if len(moments) < MOMENTS_MAX:
            moments.append(Moment(event.at_ms, event.name, event.facts))
        if len(self._moments) > REMEMBERED_MAX:
            self._moments.popitem(last=False)

    def _add(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        while self._queued_bytes > QUEUE_BYTES_MAX:
            self._queued_bytes -= len(self._queue.popleft())
            self.skipped += 1

    # --- the process ------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Once a second: pass on what has gathered."""
        self._done = self._failed = 0
        if self._process is not None and self._process.poll() is not None:
            self._lost(now_ms)
        if not self._queue and not self._rest:
            return
        if self._process is None and now_ms >= self._again_at_ms:
            self._begin(now_ms)
        self._write()

    def _begin(self, now_ms: int) -> None:
        """Start the process; it is there when there is something to send for the first time."""
        try:
            process = subprocess.Popen(
                children.command("blackroad.tracing", str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=children.environment({}),
                start_new_session=True,
            )
        except OSError as error:
            if not self._behind:
                self._behind = True
                self._tell("traces.behind", problem=f"no process: {error.strerror}")
            self._again_at_ms = now_ms + self._again_ms
            self._again_ms = min(2 * self._again_ms, AGAIN_MS_MAX)
            return
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._heard.clear()
        for stream in (process.stdin, process.stdout):
            os.set_blocking(stream.fileno(), False)
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.fcntl(process.stdin.fileno(), _F_SETPIPE_SZ, PIPE_BYTES)
        self._sources.watch(process.stdout.fileno(), self._read)
        self._rest = framed(self._setup)

    def _write(self) -> None:
        """Write what the pipe takes; a frame that was cut goes on with its rest."""
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            while self._rest or self._queue:
                if not self._rest:
                    self._rest = self._queue.popleft()
                    self._queued_bytes -= len(self._rest)
                self._rest = self._rest[os.write(process.stdin.fileno(), self._rest) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            # It is noticed at the next look that it has ended.
            return

    def _read(self) -> None:
        """How the process stands, a line for each attempt to send."""
        process = self._process
        if process is None or process.stdout is None:
            return
        try:
            data = os.read(process.stdout.fileno(), 64 * 1024)
        except BlockingIOError:
            return
        if not data:
            self._sources.unwatch(process.stdout.fileno())
            return
        self._heard += data
        *lines, rest = bytes(self._heard).split(b"\n")
        self._heard[:] = rest
        if lines:
            told = msgspec.json.decode(lines[-1])
            self._stands(told["problem"], told["waiting"], told["dropped"])

    def _stands(self, problem: str, waiting: int, dropped: int) -> None:
        if problem and not self._behind:
            self._behind = True
            self._tell("traces.behind", problem=problem, waiting=waiting)
        elif not problem and self._behind:
            self._behind = False
            self._again_ms = AGAIN_MS
            self._tell("traces.again", dropped=dropped)

    def _lost(self, now_ms: int) -> None:
        """The process has ended by itself: another one later, after longer and longer waits."""
        process = self._process
        if process is None:
            return
        self._tell("traces.behind", problem=f"its process ended with {process.returncode}")
        self._behind = True
        self._release(process)
        self._again_at_ms = now_ms + self._again_ms
        self._again_ms = min(2 * self._again_ms, AGAIN_MS_MAX)

    def _release(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        self._rest = b""
        if process.stdout is not None:
            self._sources.unwatch(process.stdout.fileno())
            process.stdout.close()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def close(self) -> None:
        """Give it what there is, and a moment to send it."""
        process = self._process
        if process is None:
            return
        self._write()
        self._release(process)
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            children.end(process)
