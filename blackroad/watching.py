"""What a daemon does for those who look on: its log, its events, and the parts that record them.

Edge.  Whatever a daemon says goes through here: a line in the log, an event in the ring, a value
on a topic, and a call to each part.  This file must not know what a part does with it; a part
must not keep the loop waiting: what is slow belongs into a process or thread of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

import msgspec

from blackroad import events
from blackroad.alarm import Alarm
from blackroad.bus.messages import End
from blackroad.config import Config
from blackroad.errors import BlackroadError
from blackroad.events import VOCABULARY, Chronicle, Event
from blackroad.ids import U63, short, task_text, text32
from blackroad.router.records import Cause, Task
from blackroad.starting import ADVICE, boot_ms, wall_ms

if TYPE_CHECKING:
    from blackroad.bus.messages import Ended, Message
    from blackroad.bus.sources import Sources
    from blackroad.bus.topics import Topics
    from blackroad.bus.transport import Transport
    from blackroad.directories import Paths
    from blackroad.node import Node
    from blackroad.router.records import Attempt

# Events in a second, those of tasks and all others; the rest is counted.
TASK_EVENTS_PER_S: Final = 200
OTHER_EVENTS_PER_S: Final = 500
# A follower asks again within this time.
FOLLOW_MS: Final = 30_000
SLOW_FLUSH_MS: Final = 500
STEADY_MS: Final = 60_000
# How an attempt comes to nothing by no fault of the program's.
_LOSSES: Final = (Cause.CRASH, Cause.LOSS, Cause.KILLER)
# Where a function `part(watching) -> Part | None` is, and when it is worth importing.
PARTS: Final[tuple[tuple[str, Callable[[Config], object]], ...]] = (
    ("blackroad.history.part", lambda config: config.history_url != "off"),
    ("blackroad.metrics.part", lambda config: config.metrics_port is not None),
    ("blackroad.tracing.part", lambda config: config.otel_url),
    ("blackroad.mirror", lambda config: config.redis_mirror and config.redis_url),
)


class Myself(NamedTuple):
    """Who tells: the node's short id, the counter of its life, its label."""

    node: str
    counter: int
    host: str


class EventsArgs(msgspec.Struct, frozen=True):
    """Arguments of the query `events`: which ones, how many of the newest, and what is to come."""

    name: str = ""
    severity: str = ""
    node: str = ""
    cause: str = ""
    since_ms: int = 0
    limit: U63 = 1_000
    follow: bool = False


class Part(Protocol):
    """Something that records or shows what happens.  All of it is called by the daemon's loop."""

    def tick(self, now_ms: int) -> None:
        """Once a second."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def ended(self, tasks: Sequence[Task]) -> None:
        """These tasks of this node have their outcomes: read them now, and keep none of them."""

    def close(self) -> None:
        """The daemon stops."""


@runtime_checkable
class Speaking(Protocol):
    """A part that can say how it is."""

    name: str

    def status(self) -> dict[str, Any]:
        """Its state and its counters, as plain data."""


class Voice:
    """A logger whose lines are events as well, where the vocabulary knows them."""

    def __init__(
        self, log: Any, record: Callable[[str, dict[str, Any]], dict[str, Any] | None]
    ) -> None:
        self._log = log
        self._record = record

    def _say(self, write: Callable[..., object], name: str, facts: dict[str, Any]) -> None:
        said = self._record(name, facts)
        if said is not None:
            write(name, **said)

    def debug(self, name: str, **facts: Any) -> None:
        """Say something for those who look for a fault."""
        self._say(self._log.debug, name, facts)

    def info(self, name: str, **facts: Any) -> None:
        """Say what happened."""
        self._say(self._log.info, name, facts)

    def warning(self, name: str, **facts: Any) -> None:
        """Say what somebody should look at."""
        self._say(self._log.warning, name, facts)

    def error(self, name: str, **facts: Any) -> None:
        """Say what somebody has to do something about."""
        self._say(self._log.error, name, facts)


class Watching:
    """All that a daemon tells, and whom it tells.

    A part finds here: `config`, `paths`, `me`, `tell`, `log`, `chronicle`, `node`, `transport`,
    `figures`, and `sources`, which watches its descriptors in the daemon's loop.
    """

    def __init__(
        self, config: Config, paths: Paths, me: Myself, log: Any, chronicle: Chronicle
    ) -> None:
        self.config = config
        self.paths = paths
        self.me = me
        self.chronicle = chronicle
        self.sinks: list[Callable[[Event], None]] = []
        self.parts: list[Part] = []
        self.log = Voice(log, self._record)
        self.node: Node | None = None
        self.transport: Transport | None = None
        self.sources: Sources | None = None
        # What the driver knows: queues, journal, objects, descriptors.
        self.figures: Callable[[], dict[str, Any]] = dict
        # Where figures are served, as "address:port", if they are.
        self.serves = ""
        self._topics: Topics | None = None
        self._alarm: Alarm | None = None
        self._number = 0
        self._followed_until_ms = 0
        # How many may still be told in this second.
        self._left = {True: TASK_EVENTS_PER_S, False: OTHER_EVENTS_PER_S}
        self._skipped = 0
        self._throttled = False
        self._slow_until_ms = 0

    # --- life -------------------------------------------------------------------------------------

    def start(
        self,
        node: Node,
        transport: Transport,
        sources: Sources,
        topics: Topics,
        figures: Callable[[], dict[str, Any]],
    ) -> None:
        """The node is there: tell others from now on, and make the parts that are switched on.

        Raises  BlackroadError where a part cannot be as it is configured.
        """
        self.node, self.transport, self.sources = node, transport, sources
        self._topics = topics
        self.figures = figures
        for module, wanted in PARTS:
            if wanted(self.config):
                part = import_module(module).part(self)
                if part is not None:
                    self.parts.append(part)
        node.owner.on_ended = self.ended
        node.owner.runs.on_lost = partial(self._lost, node.owner.runs.on_lost)
        self._alarm = Alarm(node, transport.send, self.tell)

    def told(self) -> dict[str, Any]:
        """What parts say of themselves, by their names, for the query `driver`."""
        speaking = [part for part in self.parts if isinstance(part, Speaking)]
        return {part.name: part.status() for part in speaking}

    def lives_anew(self, counter: int) -> None:
        """A life begins in which nothing was told yet."""
        self.me = self.me._replace(counter=counter)
        self._number = 0

    def tick(self, now_ms: int) -> None:
        """Once a second: what is noticed by looking, and what each part does by the clock."""
        self._left = {True: TASK_EVENTS_PER_S, False: OTHER_EVENTS_PER_S}
        if self._skipped:
            skipped, self._skipped = self._skipped, 0
            self.tell("events.skipped", count=skipped)
        if self._alarm is not None:
            self._alarm.tick(now_ms)
        for part in self.parts:
            part.tick(now_ms)

    def take(self, node: bytes, found: list[Message]) -> list[Message]:
        """Take the answers of peers to what was asked here; return the rest."""
        return found if self._alarm is None else self._alarm.take(node, found, boot_ms())

    def ended(self, tasks: Sequence[Task]) -> None:
        """These tasks have their outcomes.

        Cost  a look at each; nothing more for those that are done unless somebody follows.
        """
        for part in self.parts:
            part.ended(tasks)
        followed = self._followed_until_ms > 0 and boot_ms() < self._followed_until_ms
        for task in tasks:
            ended = task.ended
            if ended is not None and (followed or ended.end is not End.DONE):
                self._tell_end(task, ended)

    def close(self) -> None:
        """Stop all parts, the last first."""
        while self.parts:
            with contextlib.suppress(OSError, BlackroadError):
                self.parts.pop().close()

    def asked(self, args: bytes) -> dict[str, Any]:
        """Answer what happened on this node.

        Raises  UsageError, ValueError where the question makes no sense.
        """
        asked = msgspec.msgpack.decode(args or b"\x80", type=EventsArgs)
        if asked.follow:
            # For a while somebody wants to see tasks that are done as well.
            self._followed_until_ms = boot_ms() + FOLLOW_MS
        choice = events.wanted(asked.name, asked.severity, asked.node, asked.cause)
        limit = min(asked.limit, events.RING_EVENTS)
        found = self.chronicle.newest(choice, asked.since_ms, limit) if limit else []
        return {"node": self.me.node, "now_ms": wall_ms(), "events": found}

    def noticed(self, throttled: bool, temperature_c: int, flush_ms: int) -> None:
        """What was sensed of this machine: tell of changes only."""
        if throttled is not self._throttled:
            self._throttled = throttled
            name = "machine.throttled" if throttled else "machine.cooled"
            self.tell(name, temperature_c=temperature_c)
        now_ms = boot_ms()
        if flush_ms >= SLOW_FLUSH_MS:
            if not self._slow_until_ms:
                self.tell("journal.slow", flush_ms=flush_ms)
            self._slow_until_ms = now_ms + STEADY_MS
        elif self._slow_until_ms and now_ms >= self._slow_until_ms:
            self._slow_until_ms = 0
            self.tell("journal.steady", flush_ms=flush_ms)

    def _lost(
        self,
        part: Callable[[Task, Attempt, int], None] | None,
        task: Task,
        attempt: Attempt,
        now_ms: int,
    ) -> None:
        """An attempt of a task ran and came to nothing."""
        if part is not None:
            part(task, attempt, now_ms)
        verdict = attempt.verdict
        if verdict is not None and verdict.cause in _LOSSES:
            on = short(verdict.node) if verdict.node else ""
            self.tell("attempt.lost", task=task.id, on=on, why=verdict.why, attempt=task.tries)

    def _tell_end(self, task: Task, ended: Ended) -> None:
        if not self._left[True]:
            self._skipped += 1
            return
        facts: dict[str, Any] = {"task": task.id, "attempts": ended.attempts}
        spec = task.cls.spec
        if spec.name:
            facts["called"] = spec.name
        if spec.user:
            facts["user"] = spec.user
        if ended.node:
            facts["on"] = short(ended.node)
        if ended.facts.run_us:
            facts["run_us"] = ended.facts.run_us
        if ended.reason:
            facts["reason"] = ended.reason
        if ended.facts.type_name:
            facts["error"] = ended.facts.type_name
        self.tell(f"task.{ended.end.name.lower()}", **facts)

    # --- telling ----------------------------------------------------------------------------------

    def tell(self, name: str, cause: str = "", **facts: Any) -> None:
        """Say that something happened: in the log, and to whoever looks on.

        `cause` is found in the facts where it is not given: `events.cause_of`.
        """
        plain = {key: _plain(value) for key, value in facts.items()}
        task = facts.get("task")
        if isinstance(task, bytes) and self.node is not None:
            plain["task"] = task_text(self.node.me, task)
        severity = events.severity_of(name)
        if name in ADVICE:
            plain |= {"state_dir": str(self.paths.state), "hint": ADVICE[name]}
        getattr(self.log, severity)(name, **plain, **({"cause": cause} if cause else {}))

    def _record(self, name: str, facts: dict[str, Any]) -> dict[str, Any] | None:
        """Make an event of a line of the log; return what the line says, None for nothing."""
        if name not in VOCABULARY:
            return facts
        of_tasks = events.is_of_tasks(name)
        if not self._left[of_tasks]:
            self._skipped += 1
            return None
        self._left[of_tasks] -= 1
        said = {key: _plain(value) for key, value in facts.items()}
        cause = str(said.pop("cause", "") or events.cause_of(name, said))
        self._number += 1
        me = self.me
        event = Event(
            events.event_id(me.node, me.counter, self._number),
            wall_ms(),
            me.node,
            me.host,
            name,
            events.severity_of(name),
            cause,
            events.plain_facts(said),
        )
        # What is told while somebody follows is not kept: it would push out all else.
        kept = event.severity != "debug"
        data = self.chronicle.add(event) if kept else events.encode(event)
        if self._topics is not None:
            self._topics.announce(events.topic_of(name), data, event.at_ms)
        for sink in self.sinks:
            sink(event)
        for part in self.parts:
            part.event(event)
        return {**said, "cause": cause} if cause else said


def _plain(value: object) -> object:
    return text32(value) if isinstance(value, bytes) else value
