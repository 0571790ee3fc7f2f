"""What the daemon records: its events, samples of the nodes it knows, tasks that ended.

Edge, in the daemon's loop: it adds to lists and counters, and writes once a second into the spool.
All that a database does happens in the child process.  This file must not know any table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from blackroad import __version__, glance
from blackroad.config_keys import KEYS
from blackroad.history.child import Child
from blackroad.history.records import (
    Counted,
    Finished,
    Gpu,
    Happened,
    Known,
    Linked,
    Sampled,
    Setting,
    Tried,
)
from blackroad.history.spool import SEGMENT_BYTES, Spool
from blackroad.history.storage import Choice, choose, spool_of
from blackroad.ids import short, text32
from blackroad.units import CPU_UNITS_PER_CORE

if TYPE_CHECKING:
    from blackroad.bus.messages import End
    from blackroad.events import Event
    from blackroad.node import Node
    from blackroad.router.records import Attempt, ClassState, Task
    from blackroad.watching import Watching

SAMPLE_MS: Final = 30_000
COUNT_MS: Final = 10_000
MINUTE_MS: Final = 60_000
# Tasks of one second that get a row of their own; all are counted.
TASKS_PER_S: Final = 1_000
# Those that did not end well get one beyond that.
FAILURES_PER_S: Final = 200
# Names of tasks in one round of counting; further ones are counted under one name.
KEYS_MAX: Final = 256
# So many classes are kept apart in memory until then.
CLASSES_MAX: Final = 4_096
OTHERS: Final = "(others)"
# A worker may tell any number: more than 35 years are none, and sums have to fit their columns.
RUN_US_MAX: Final = 2**50
COUNT_US_MAX: Final = 2**60
# A node that was not told to keep a history lives on without the process for so long.
LATE_MS: Final = 20_000
# That records are lost is told so often at most: the event itself may be one of them.
TELL_MS: Final = 600_000
LINKS_EVERY: Final = 10
DONE: Final = 0


def part(watching: Watching) -> History | None:
    """The history of this daemon, None where it keeps none.

    Raises  MissingPackage where one is asked for that needs a package which is not installed.
    """
    choice = choose(watching.config, watching.paths.state)
    if not choice.url:
        watching.log.debug("history.off", why=choice.why)
        return None
    return History(watching, choice)


class History:
    """Records what happens, and looks after the process that stores it."""

    name = "history"

    def __init__(self, watching: Watching, choice: Choice) -> None:
        assert watching.node is not None
        self._watching = watching
        self._node: Node = watching.node
        self._me = short(self._node.me)
        directory = spool_of(watching.paths.state)
        self.spool = Spool(directory, text32(self._node.me), watching.me.counter)
        self.child = Child(choice.url, directory, watching.config.history_keep_days)
        self._shared = choice.url.startswith("postgres")
        self._room = TASKS_PER_S
        self._failures = FAILURES_PER_S
        self._counts: dict[tuple[bytes, ClassState, End], list[int]] = {}
        self._sample = 0
        self._count_due_ms = 0
        self._late_ms = 0 if choice.asked else LATE_MS
        self._started_ms = 0
        self._links: dict[bytes, str] = {}
        self._rounds = 0
        # What the process said of the database, and what was told of both.
        self._said = ""
        self._problem = ""
        self._told_lost = 0
        self._tell_due_ms = 0
        self.counted_only = 0
        self._node.owner.runs.on_lost = self.lost
        self._settings()

    # --- what happens -----------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Something happened."""
        if event.severity == "debug":
            return
        self.spool.add(
            Happened(
                event.id,
                event.at_ms,
                event.node,
                event.host,
                event.name,
                event.severity,
                event.cause,
                event.facts,
            )
        )

    def ended(self, tasks: Sequence[Task]) -> None:
        """These tasks have their outcomes.

        Cost  0.2 us each to count, 1.5 us more for those that get a row.
        """
        counts, room, owed = self._counts, self._room, 0
        for task in tasks:
            ended = task.ended
            if ended is None:
                continue
            key = (ended.node, task.cls, ended.end)
            count = counts.get(key)
            if count is None:
                if len(counts) >= CLASSES_MAX:
                    self._count(_wall_ms())
                    counts = self._counts
                count = counts[key] = [0, 0]
            count[0] += 1
            count[1] += min(ended.facts.run_us, RUN_US_MAX)
            if room > 0:
                room -= 1
                self.spool.add(self._finished(task))
            elif ended.end != DONE and self._failures > 0:
                self._failures -= 1
                self.spool.add(self._finished(task))
            else:
                owed += 1
        self._room = room
        self.counted_only += owed

    def _finished(self, task: Task) -> Finished:
        ended, cls = task.ended, task.cls
        assert ended is not None
        spec, ask = cls.spec, cls.requirement.alternatives[0]
        wall = _wall_ms()
        return Finished(
            self._node.me,
            task.id,
            ended.end.name.lower(),
            ended.facts.type_name or ended.reason,
            spec.name,
            spec.user,
            spec.priority,
            task.durable,
            spec.gang,
            ask.cpu_units,
            ask.memory_bytes,
            ask.gpu,
            wall - max(0, _boot_ms() - task.queued_ms),
            wall,
            ended.facts.run_us,
            ended.node,
            ended.attempts,
            ended.facts.backend,
        )

    def lost(self, task: Task, attempt: Attempt, now_ms: int) -> None:
        """An attempt ran and came to nothing."""
        if self._failures <= 0:
            return
        self._failures -= 1
        verdict = attempt.verdict
        first = attempt.members[0]
        wall = _wall_ms()
        outcome = verdict.outcome if verdict is not None else None
        self.spool.add(
            Tried(
                self._node.me,
                task.id,
                max(1, task.tries - len(task.attempts)),
                verdict.node if verdict is not None else first.node,
                wall - max(0, now_ms - first.first_ms),
                wall,
                outcome.facts.run_us if outcome is not None else 0,
                verdict.why if verdict is not None else "",
            )
        )

    # --- by the clock -----------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Once a second: write down what came together, and see to the process."""
        self._room, self._failures = TASKS_PER_S, FAILURES_PER_S
        self._started_ms = self._started_ms or now_ms
        wall = _wall_ms()
        if now_ms >= self._count_due_ms:
            self._count_due_ms = now_ms + COUNT_MS
            self._count(wall)
        if wall // SAMPLE_MS != self._sample:
            self._sample = wall // SAMPLE_MS
            self._look(now_ms, wall)
        written = self.spool.flush()
        self._see_to_child(now_ms, written)
        if self.spool.lost != self._told_lost and now_ms >= self._tell_due_ms:
            self._tell_due_ms = now_ms + TELL_MS
            self._tell_lost()

    def _count(self, wall: int) -> None:
        """Write down how many tasks ended since the last time."""
        counts, self._counts = self._counts, {}
        minute = wall - wall % MINUTE_MS
        names = {cls.spec.name for _, cls, _ in islice(counts, KEYS_MAX)}
        sums: dict[tuple[bytes, str, str, str], list[int]] = {}
        for (node, cls, end), (tasks, run_us) in counts.items():
            spec = cls.spec
            name = spec.name if spec.name in names else OTHERS
            total = sums.setdefault((node, name, spec.user, end.name.lower()), [0, 0, 0])
            total[0] += tasks
            total[1] += run_us
            cores = cls.requirement.alternatives[0].cpu_units
            total[2] += min(run_us * cores // CPU_UNITS_PER_CORE, COUNT_US_MAX)
        me = self._node.me
        for (node, name, user, state), (tasks, run_us, core_us) in sums.items():
            run_us, core_us = min(run_us, COUNT_US_MAX), min(core_us, COUNT_US_MAX)
            self.spool.add(Counted(me, minute, node, name, user, state, tasks, run_us, core_us))

    def _look(self, now_ms: int, wall: int) -> None:
        """Sample the nodes: all that are known, or of a shared database this one's part.

        Cost  about 50 us a node, each half minute.
        """
        node = self._node
        at_ms = self._sample * SAMPLE_MS
        everybody = not self._shared or node.election.follows == node.me
        states = self._presence()
        for beat in glance.mesh(node, now_ms, states).nodes:
            if not everybody and beat.node != node.me:
                continue
            self._know(beat, wall - beat.silent_ms)
            if beat.state in ("alive", "draining"):
                self._sampled(beat, at_ms)
        self._connect(states, now_ms, wall)

    def _presence(self) -> dict[bytes, str]:
        node = self._node
        states = {node.me: "draining" if node.worker.draining else "alive"}
        for peer in node.membership.peers.values():
            state = peer.state.name.lower()
            states[peer.node] = (
                "draining" if state == "alive" and peer.beat.supply.draining else state
            )
        return states

    def _sampled(self, beat: glance.Beat, at_ms: int) -> None:
        self.spool.add(
            Sampled(
                short(beat.node),
                at_ms,
                beat.slots,
                beat.running,
                beat.waiting,
                beat.owned,
                beat.done,
                beat.load_percent,
                beat.memory_bytes,
                beat.free_memory_bytes,
                beat.temperature_c,
                beat.throttled,
                beat.receiving_kib_s,
                beat.sending_kib_s,
                beat.cpu_percent,
                beat.memory_percent,
            )
        )

    def _know(self, beat: glance.Beat, heard_ms: int) -> None:
        caps = self._node.capabilities.get(beat.node)
        if caps is None:
            return
        gpus = [one for one in caps.devices if one.kind == "gpu" and not one.software]
        mine = beat.node == self._node.me
        self.spool.add(
            Known(
                short(beat.node),
                beat.name,
                beat.state,
                beat.incarnation,
                heard_ms,
                caps.arch,
                caps.cores,
                beat.slots,
                caps.memory_bytes,
                caps.python_full,
                caps.os,
                caps.model,
                __version__ if mine else caps.packages.get("blackroad", ""),
                self._address(beat.node),
                tuple(
                    Gpu(at, one.name, one.memory_bytes, one.driver, one.problem)
                    for at, one in enumerate(gpus)
                ),
                dict(caps.labels),
            )
        )

    def _address(self, node: bytes) -> str:
        transport = self._watching.transport
        if transport is None:
            return ""
        if node == self._node.me:
            return transport.endpoints[0] if transport.endpoints else ""
        link = transport.links.get(node)
        return link.endpoints[0] if link is not None and link.endpoints else ""

    def _connect(self, states: dict[bytes, str], now_ms: int, wall: int) -> None:
        """Write down how this node hears the others: what changed, and all of it now and then."""
        self._rounds += 1
        everything = self._rounds % LINKS_EVERY == 1
        for peer in self._node.membership.peers.values():
            state = states[peer.node]
            if everything or self._links.get(peer.node) != state:
                self._links[peer.node] = state
                self.spool.add(
                    Linked(
                        self._me,
                        short(peer.node),
                        wall,
                        state,
                        max(0, now_ms - peer.heard_ms),
                        peer.beat.receiving_kib_s,
                        peer.beat.sending_kib_s,
                    )
                )

    def _settings(self) -> None:
        wall = _wall_ms()
        for key in KEYS.values():
            value = getattr(self._watching.config, key.attribute)
            if not key.secret:
                kind = type(value).__name__
                # The name of a directory need not be text.
                text = str(value).encode("utf-8", "replace").decode("utf-8")
                self.spool.add(Setting(self._me, key.attribute, text[:256], kind, wall))

    # --- the process ------------------------------------------------------------------------------

    def _see_to_child(self, now_ms: int, written: bool) -> None:
        if now_ms - self._started_ms < self._late_ms and self.spool.written < SEGMENT_BYTES:
            return
        for told in self.child.tick(now_ms):
            self._said = "" if "ready" in told else str(told.get("problem", self._said))
        if written:
            self.child.wake()
        problem = self.child.gone_wrong or self._said
        if problem == self._problem:
            return
        self._problem = problem
        if problem:
            self._watching.tell("history.behind", reason=problem, spool_bytes=self.spool.bytes())
        else:
            self._watching.tell("history.again")

    def _tell_lost(self) -> None:
        records = self.spool.lost - self._told_lost
        self._told_lost = self.spool.lost
        self._watching.tell("history.lost", records=records, reason=self.spool.why_lost)

    def status(self) -> dict[str, Any]:
        """How it is, for those who look."""
        return {
            "spool_bytes": self.spool.bytes(),
            "lost": self.spool.lost,
            "problem": self._problem,
            "pid": self.child.pid,
            "counted_only": self.counted_only,
        }

    def close(self) -> None:
        """Write what is left, and end the process."""
        self._count(_wall_ms())
        self.spool.close()
        self.child.wake()
        self.child.close()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
