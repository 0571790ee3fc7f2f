"""The daemon's end of the mirror: gathers outcomes, a few bytes each, and hands them to a child.

Edge.  Under load it does less, not more: so many outcomes a second are mirrored, the others are
counted.  What the child has not written is kept here within bounds, for a child may die.  This file
must not know Redis.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blackroad.bus.messages import Ref
from blackroad.bus.payload import DIGEST_BYTES
from blackroad.capabilities import printable
from blackroad.discovery.redis_server import UP, check_url
from blackroad.ids import text32
from blackroad.mirror import rows
from blackroad.mirror.feed import Feed
from blackroad.starting import boot_ms, wall_ms

if TYPE_CHECKING:
    from blackroad.bus.messages import Ended
    from blackroad.bus.sources import Sources
    from blackroad.events import Event
    from blackroad.node import Node
    from blackroad.router.records import Task
    from blackroad.watching import Watching

MODULE: Final = "blackroad.mirror.child"
# So many outcomes a second are mirrored in the long run, and so many at once.
RATE_PER_S: Final = 2_000
BURST: Final = 5_000
# What is kept here together: gathered, on the way, and not yet written.
QUEUE_BYTES_MAX: Final = 4 * 1024 * 1024
ROW_BYTES: Final = 400
BATCH_ROWS: Final = 500
ROW_MS: Final = 10_000

Say = Callable[..., None]


class Mirror:
    """One part of what watches a daemon; see `watching.Part`."""

    name = "mirror"

    @classmethod
    def of(cls, watching: Watching) -> Mirror:
        """Make the one of a daemon.

        Raises  ConfigError where the server would be open to anybody.
        """
        config = watching.config
        assert watching.node is not None
        assert watching.transport is not None
        assert watching.sources is not None
        cluster = text32(watching.transport.me.cluster)
        node = watching.node
        target = rows.Target(config.redis_url, cluster, text32(node.me), config.redis_keep_ms)
        # Arrays are opened there, and nothing is computed.
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return cls(target, node, watching.sources, watching.tell, env=env)

    def __init__(
        self,
        target: rows.Target,
        node: Node,
        sources: Sources,
        tell: Say,
        arguments: Sequence[str] = (),
        clock: Callable[[], int] = boot_ms,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Raises ConfigError where the server would be open to anybody."""
        check_url(target.url)
        self._target = target
        self._node = node
        self._tell = tell
        self._clock = clock
        self._encoder = msgspec.msgpack.Encoder()
        self._feed = Feed(MODULE, sources, clock, self._fill, self._heard, arguments, env)
        # Outcomes of this second and of the one before: who has not waited a second might be told
        # before the journal has it.
        self._fresh: list[rows.Outcome] = []
        self._ripe: list[rows.Outcome] = []
        self._gathered_bytes = 0
        # Batches that the child has not written: serial, how many, and the frame.
        self._owed: deque[tuple[int, int, bytes]] = deque()
        self._owed_bytes = 0
        self._serial = 0
        self._budget = float(BURST)
        self._budget_ms = clock()
        self._row_due_ms = 0
        self.state = ""
        self.problem = ""
        self.counters = dict.fromkeys(
            ("ended", "written", "again", "skipped", "dropped", "left_out"), 0
        )

    # --- what the daemon calls --------------------------------------------------------------------

    def ended(self, tasks: Sequence[Task]) -> None:
        """Take down these outcomes.

        Cost  under a microsecond each; beyond the rate nothing but a count.
        """
        counters = self.counters
        count = len(tasks)
        counters["ended"] += count
        allowed = int(self._budget)
        if allowed < count:
            counters["skipped"] += count - max(0, allowed)
            tasks = tasks[: max(0, allowed)]
        self._budget -= len(tasks)
        now_ms = wall_ms()
        fresh = self._fresh
        for task in tasks:
            ended = task.ended
            if ended is None:
                continue
            size = _size(ended)
            if self._gathered_bytes + self._owed_bytes + size > QUEUE_BYTES_MAX:
                # Older ones first: those that the child has are in its memory as well.
                if not self._owed:
                    counters["dropped"] += 1
                    continue
                self._forget_oldest()
            self._gathered_bytes += size
            if size == ROW_BYTES:
                ended = self._without_large(ended)
            fresh.append(rows.Outcome(now_ms, ended))

    def event(self, event: Event) -> None:
        """Events are not mirrored."""

    def tick(self, now_ms: int) -> None:
        """Once a second: hand over what was gathered, and say how this node is."""
        earned = (now_ms - self._budget_ms) * RATE_PER_S / 1000
        self._budget, self._budget_ms = min(float(BURST), self._budget + earned), now_ms
        self._feed.tick()
        self._hand_over()
        if now_ms >= self._row_due_ms and self._feed.pid:
            self._row_due_ms = now_ms + ROW_MS
            self._say_row(now_ms)
        if self._feed.given_up and self.state != "off":
            self._set("off", self._feed.given_up)

    def close(self) -> None:
        """Hand over the rest, take this node out of the list, and end the child."""
        self._hand_over()
        self._hand_over()
        self._feed.close()

    def status(self) -> dict[str, Any]:
        """What is to be known of it, for the query `driver`."""
        return {
            "state": self.state,
            "problem": self.problem,
            **self.counters,
            "waiting": sum(count for _, count, _ in self._owed),
            "waiting_bytes": self._owed_bytes + self._gathered_bytes,
            "restarts": self._feed.restarts,
            "pid": self._feed.pid,
        }

    # --- the child --------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        ripe, self._ripe, self._fresh = self._ripe, self._fresh, []
        self._gathered_bytes = sum(_size(one.ended) for one in self._ripe)
        if self._feed.given_up:
            return
        for at in range(0, len(ripe), BATCH_ROWS):
            part = ripe[at : at + BATCH_ROWS]
            self._serial += 1
            frame = self._encoder.encode(rows.Batch(self._serial, part))
            self._owed.append((self._serial, len(part), frame))
            self._owed_bytes += len(frame)
            while self._owed_bytes > QUEUE_BYTES_MAX and len(self._owed) > 1:
                self._forget_oldest()
            self._feed.send(frame)

    def _without_large(self, ended: Ended) -> Ended:
        """The outcome; a result that does not come along only with its size."""
        result = ended.result
        if isinstance(result, bytes):
            if len(result) <= rows.RESULT_BYTES_MAX:
                return ended
            ended = msgspec.structs.replace(ended, result=Ref(bytes(DIGEST_BYTES), len(result)))
        self.counters["left_out"] += 1
        return ended

    def _forget_oldest(self) -> None:
        """No room: should the child die now, these are not mirrored."""
        _, _, frame = self._owed.popleft()
        self._owed_bytes -= len(frame)

    def _say_row(self, now_ms: int) -> None:
        self._feed.send(self._encoder.encode(rows.Row(rows.node_row(self._node, now_ms))))

    def _fill(self) -> None:
        """A new child: it gets all that an earlier one had not written."""
        self._feed.send(self._encoder.encode(self._target))
        self._say_row(self._clock())
        for _, _, frame in self._owed:
            self._feed.send(frame)

    def _heard(self, line: bytes) -> None:
        try:
            report = msgspec.json.decode(line, type=rows.Report)
        except (msgspec.MsgspecError, ValueError):
            return
        counters = self.counters
        counters["written"] += report.written
        counters["again"] += report.again
        counters["dropped"] += report.dropped
        while self._owed and self._owed[0][0] <= report.done:
            self._forget_oldest()
        if report.final:
            self._feed.give_up(printable(report.problem, 400))
            self._owed.clear()
            self._owed_bytes = 0
        if report.state:
            self._set(printable(report.state, 32), printable(report.problem, 400))

    def _set(self, state: str, problem: str) -> None:
        if state == self.state:
            return
        self.state, self.problem = state, problem
        if state == UP:
            self._tell("mirror.up", waiting=len(self._owed))
        else:
            self._tell("mirror.down", state=state, problem=problem)


def _size(ended: Ended) -> int:
    """What an outcome counts for while it is kept here, in bytes."""
    result = ended.result
    if isinstance(result, bytes) and len(result) <= rows.RESULT_BYTES_MAX:
        return ROW_BYTES + len(result)
    return ROW_BYTES
