"""Made-up processes of a machine: they run, end as planned, and are killed by a supervisor.

The supervisor looks at the clock by itself; it needs no daemon.  This file must not know what is
promised, nor how a daemon starts or dies.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from msgspec.structs import replace

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.limits import CHUNK_BYTES
from blackroad.router import effects as e

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.disk import Disk
    from tests.sim.machine import Machine

POISON_START_MS = 3_000
CHUNKS = (1, 1, 1, 1, 2, 2, 3, 5, 12)


def object_bytes(digest: bytes) -> int:
    """How large a made-up object is: one to twelve chunks, most of them small."""
    return CHUNKS[digest[0] % len(CHUNKS)] * CHUNK_BYTES - 160_000 + digest[1]


class Plan:
    """What a task does when it runs: how long, how it ends, and what it leaves."""

    __slots__ = ("bad_tries", "fate", "large", "run_ms")

    def __init__(
        self, run_ms: int, fate: str = "done", bad_tries: int = 10**9, large: bool = False
    ) -> None:
        self.run_ms = run_ms
        self.fate = fate
        # So many attempts end like `fate`; later ones are done.
        self.bad_tries = bad_tries
        self.large = large

    def fate_of(self, attempt: int) -> str:
        """How the attempt of this ordinal ends."""
        return self.fate if attempt <= self.bad_tries else "done"


class Process:
    """A running attempt; of a bundle, the task that runs now, and what was done before it."""

    __slots__ = (
        "ahead",
        "before",
        "deadline_ms",
        "dying",
        "ends",
        "fate",
        "inc",
        "key",
        "left",
        "machine",
        "more",
        "plan",
        "start",
    )

    def __init__(self, machine: Machine, start: e.Start, inc: int, plan: Plan, ends: int) -> None:
        self.machine = machine
        self.key = start.key
        self.start = start
        self.inc = inc
        self.plan = plan
        self.fate = plan.fate_of(start.attempt)
        self.ends = ends
        self.left = 0
        self.deadline_ms = start.deadline_ms
        self.dying = False
        self.more = list(start.more)
        self.before: tuple[m.Early, ...] = ()
        # What was handed ahead to it, and begins once this one ended by itself.
        self.ahead: e.Start | None = None


class Processes:
    """The part of a machine that runs tasks."""

    world: Cluster
    name: str
    speed: float
    node: n.Node | None
    disk: Disk
    frozen: bool
    life: int
    _true0: int

    def __init__(self) -> None:
        self.processes: dict[e.Key, Process] = {}
        # What was handed ahead and has begun, and was not started by its daemon yet: what is to
        # be told of it then.
        self.untold: dict[e.Key, list[n.AnyEvent]] = {}

    def clock(self) -> int:
        """This machine's boot-time clock now."""
        raise NotImplementedError

    def true(self, local_ms: int) -> int:
        """First true time at which the boot-time clock shows `local_ms`."""
        raise NotImplementedError

    def feed(self, event: n.AnyEvent, life: int = -1) -> None:
        """Something happened that the daemon notices."""
        raise NotImplementedError

    def crash(self, *, power: bool, keep: int = 0) -> None:
        """The daemon dies."""
        raise NotImplementedError

    def start(self) -> None:
        """Start a daemon."""
        raise NotImplementedError

    # --- start and deadline -----------------------------------------------------------------------

    def _start_process(self, start: e.Start) -> None:
        world = self.world
        node = self.node
        if node is None:
            return
        if start.key in self.untold:
            self._started_late(start)
            return
        if self.clock() >= start.deadline_ms:
            # A task process looks at the clock before it runs anything (R-lease-15).
            lapsed = n.Finished(start.key, m.Status.LAPSED, b"", m.Facts())
            world.at(world.now, self.feed, lapsed, self.life)
            return
        self._runs(start, node.inc)

    def _runs(self, start: e.Start, inc: int) -> None:
        world = self.world
        plan = world.plan(start.task)
        for part in (start.code, start.work):
            if isinstance(part, m.Ref) and part.digest not in self.disk.objects:
                world.broken("objects", f"{self.name} starts a task without its input")
        run_ms = int(max(plan.run_ms, 0) / self.speed)
        process = Process(self, start, inc, plan, world.now + run_ms)  # type: ignore[arg-type]
        world.observer.starts(self, process)  # type: ignore[arg-type]
        self.processes[start.key] = process
        if world.listens:
            world.told(f"{self.name} runs {world.names.task(start.task)}")
        world.at(process.ends, self._exits, process)
        self._watch(process)

    def _extend(self, extend: e.Extend) -> None:
        process = self.processes.get(extend.key)
        if process is not None:
            process.deadline_ms = max(process.deadline_ms, extend.deadline_ms)
            ahead = process.ahead
            if ahead is not None and ahead.deadline_ms < process.deadline_ms:
                process.ahead = None
        for other in self.processes.values():
            if other.ahead is not None and other.ahead.key == extend.key:
                other.ahead = replace(other.ahead, deadline_ms=extend.deadline_ms)

    # --- handed ahead -----------------------------------------------------------------------------

    def _hand_ahead(self, hand: e.HandAhead) -> None:
        """Let it lie with the process of another one; now and then a pool cannot do that."""
        process = self.processes.get(hand.after)
        if process is None or process.dying or process.ahead is not None:
            return
        refuses = hand.start.key[1].serial % 7 == 0
        if not refuses and process.deadline_ms <= hand.start.deadline_ms:
            process.ahead = hand.start

    def _take_back(self, key: e.Key) -> None:
        """What has not begun is returned; of what has nothing is said."""
        if key in self.processes or key in self.untold:
            return
        for process in self.processes.values():
            if process.ahead is not None and process.ahead.key == key:
                process.ahead = None
        self.world.at(self.world.now, self.feed, n.Returned(key), self.life)

    def _begins_ahead(self, process: Process) -> None:
        """A process whose task ended goes on by itself, under the deadline that is watched."""
        start = process.ahead
        if start is None or process.fate not in ("done", "fail"):
            return
        if self.clock() >= start.deadline_ms:
            lapsed = n.Finished(start.key, m.Status.LAPSED, b"", m.Facts())
            self.untold[start.key] = [lapsed]
            return
        self.untold[start.key] = []
        self._runs(replace(start, deadline_ms=process.deadline_ms), process.inc)

    def _started_late(self, start: e.Start) -> None:
        """Its daemon starts what has begun already."""
        process = self.processes.get(start.key)
        if process is not None:
            process.deadline_ms = max(process.deadline_ms, start.deadline_ms)
        for event in self.untold.pop(start.key):
            self.world.at(self.world.now, self.feed, event, self.life)

    def _ends_with(self, event: n.Finished | n.Killed) -> None:
        """The end of an attempt; of one that was not started yet it is told when it is."""
        untold = self.untold.get(event.key)
        if untold is None:
            self.feed(event)
        else:
            untold.append(event)

    def _divide(self, process: Process | None) -> None:
        """Take back what of a bundle has not begun."""
        if process is not None and not process.dying:
            process.more.clear()
            self.world.at(
                self.world.now, self.feed, n.Split(process.key, process.before), self.life
            )

    def _next(self, process: Process, result: m.Payload, facts: m.Facts) -> bool:
        """Go on with the next task of a bundle, where this one ended as it should."""
        if process.fate != "done" or not process.more or not isinstance(result, bytes):
            return False
        world = self.world
        world.observer.finished(self, process, m.Status.DONE, result)  # type: ignore[arg-type]
        process.before = (*process.before, m.Early(result, facts.run_us))
        item = process.more.pop(0)
        process.start = replace(process.start, task=item.task, work=item.work)
        process.plan = world.plan(item.task)
        process.fate = process.plan.fate_of(process.start.attempt)
        process.ends = world.now + int(max(process.plan.run_ms, 0) / self.speed)
        world.observer.starts(self, process)  # type: ignore[arg-type]
        if world.listens:
            world.told(f"{self.name} runs {world.names.task(item.task)}, in company")
        world.at(process.ends, self._exits, process)
        return True

    def _watch(self, process: Process) -> None:
        at = max(self.true(process.deadline_ms), self.world.now)
        self.world.at(at, self._supervise, process, self._true0)

    def _supervise(self, process: Process, boot: int) -> None:
        """The supervisor's own look at the deadline; it needs no daemon."""
        gone = self.processes.get(process.key) is not process or boot != self._true0
        if gone or self.frozen:
            return
        if self.clock() >= process.deadline_ms:
            self._kill(process, "lapsed")
        else:
            self._watch(process)

    # --- kills ------------------------------------------------------------------------------------

    def _kill(self, process: Process | None, why: str) -> None:
        if process is None or process.dying:
            return
        process.dying = True
        delay_ms = self.world.kill_ms()
        self.world.at(self.world.now + delay_ms, self._dies, process, why)

    def _dies(self, process: Process, why: str) -> None:
        if self.frozen:
            return
        if self.processes.get(process.key) is process:
            self._gone(process, why)

    def _gone(self, process: Process, why: str) -> None:
        """A process tree is proven gone without an exit of its own."""
        del self.processes[process.key]
        world = self.world
        world.observer.gone(self, process)  # type: ignore[arg-type]
        node = self.node
        if node is None or node.inc != process.inc or why in ("power", "leftover"):
            return
        if why == "killed":
            self._ends_with(n.Killed(process.key, process.before))
        else:
            lapsed = m.Status.LAPSED
            self._ends_with(n.Finished(process.key, lapsed, b"", m.Facts(), process.before))

    # --- freeze and thaw --------------------------------------------------------------------------

    def _stand_still(self) -> None:
        for process in self.processes.values():
            process.left = process.ends - self.world.now

    def _go_on(self) -> None:
        """The supervisor looks at the clock before anything else."""
        now_ms = self.clock()
        for process in list(self.processes.values()):
            process.ends = self.world.now + max(process.left, 0)
            if process.dying:
                self._gone(process, "killed")
            elif now_ms >= process.deadline_ms:
                self._gone(process, "lapsed")
            else:
                self.world.at(process.ends, self._exits, process)
                self._watch(process)

    # --- exits ------------------------------------------------------------------------------------

    def _exits(self, process: Process) -> None:
        if self.frozen or self.processes.get(process.key) is not process:
            return
        world = self.world
        if process.ends > world.now:
            return
        fate = process.fate
        task = process.start.task
        if fate == "poison":
            world.told(f"{world.names.task(task)} takes {self.name} down")
            world.observer.poisoned(task)
            self.crash(power=True, keep=len(self.disk.pending))
            world.at(world.now + POISON_START_MS, self.start)
            return
        if fate == "hang":
            return
        status, result, facts = self._left_by(process)
        if self._next(process, result, facts):
            return
        del self.processes[process.key]
        if world.listens:
            world.told(f"{world.names.task(task)} ends on {self.name}: {fate}")
        world.observer.finished(self, process, status, result)  # type: ignore[arg-type]
        node = self.node
        if node is not None and node.inc == process.inc:
            self._begins_ahead(process)
            self._ends_with(n.Finished(process.key, status, result, facts, process.before))

    def _left_by(self, process: Process) -> tuple[m.Status, m.Payload, m.Facts]:
        status = STATUS[process.fate]
        facts = m.Facts(int(process.plan.run_ms * 1000 / self.speed))
        if status is not m.Status.DONE:
            return status, b"", facts
        text = f"{process.start.task.hex()}:{process.key[1]}:{self.name}".encode()
        if not process.plan.large:
            return status, text, facts
        if self.disk.full:
            return m.Status.NO_INPUT, b"", m.Facts(text="no room for its result")
        digest = hashlib.blake2b(text, digest_size=32).digest()
        result = m.Ref(digest, object_bytes(digest))
        self.disk.objects[digest] = result.size
        return status, result, facts


STATUS = {
    "done": m.Status.DONE,
    "fail": m.Status.FAILED,
    "crash": m.Status.CRASHED,
    "oom": m.Status.OUT_OF_MEMORY,
}
