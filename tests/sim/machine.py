"""One made-up machine: its clocks, disk, processes and supervisor, around a real Node.

Executes the effects of the node in order.  Power cuts, crashes, pauses and thaws happen here; this
file must not know what is promised (that is `checkers.py`), nor why a fault comes when it does.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.capabilities import Capabilities
from blackroad.errors import BlackroadError
from blackroad.ids import incarnation
from blackroad.router import effects as e
from tests.sim.network import DIRECT, TELEMETRY

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

SUSPECT_GAP_MS = 750


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
    """A running attempt."""

    __slots__ = (
        "deadline_ms",
        "dying",
        "ends",
        "fate",
        "inc",
        "key",
        "left",
        "machine",
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


class Disk:
    """A journal with rows that are flushed and rows that a power cut may still take."""

    def __init__(self) -> None:
        self.synced: list[e.JournalRow] = []
        self.pending: list[tuple[int, tuple[e.JournalRow, ...]]] = []
        self.counter = 0
        self.tasks: dict[bytes, e.TaskRow] = {}
        self.ends: dict[bytes, e.EndRow] = {}
        self.attempts: dict[bytes, e.AttemptRow] = {}
        self.tokens: set[object] = set()
        self.spool: dict[e.Key, e.SpoolRow] = {}

    def sync(self, upto: int) -> None:
        """Flush every group up to this mark."""
        while self.pending and self.pending[0][0] <= upto:
            for row in self.pending.pop(0)[1]:
                self._apply(row)

    def _apply(self, row: e.JournalRow) -> None:
        match row:
            case e.TaskRow():
                self.tasks[row.task] = row
            case e.AttemptRow():
                self.attempts[row.task] = row
                self.tokens.add(row.token)
            case e.EndRow():
                self.ends[row.task] = row
                self.attempts.pop(row.task, None)
            case e.ForgetRow():
                self.tasks.pop(row.task, None)
                self.ends.pop(row.task, None)
                self.attempts.pop(row.task, None)
            case e.SpoolRow():
                self.spool[(row.owner, row.outcome.token)] = row
            case e.UnspoolRow():
                self.spool.pop((row.owner, row.token), None)


class Machine:
    """One node of the cluster with all that surrounds it."""

    def __init__(
        self,
        world: Cluster,
        index: int,
        name: str,
        node_id: bytes,
        slots: int,
        *,
        labels: dict[str, str] | None = None,
        priority: int = 0,
    ) -> None:
        self.world = world
        self.index = index
        self.name = name
        self.id = node_id
        self.slots = slots
        self.priority = priority
        self.caps = Capabilities(
            name=name,
            arch="x86_64",
            page_bytes=4096,
            cores=slots,
            memory_bytes=2**33,
            python="3.11",
            python_full="3.11.2",
            implementation="cpython",
            os="linux",
            libc="glibc",
            model="made up",
            labels=labels or {},
            speeds={"python": 10.0},
        )
        self.disk = Disk()
        self.node: n.Node | None = None
        self.life = 0
        self.rate_permille = 1000
        self._true0 = 0
        self._local0 = 1_000
        self.paused = False
        self.frozen = False
        self._paused_at = 0
        self._frozen_at = 0
        self.inbox: list[n.AnyEvent] = []
        self.processes: dict[e.Key, Process] = {}
        self.objects: dict[bytes, int] = {}
        self.pins: dict[bytes, int] = {}
        self.stopping = False
        self.off_for_good = False
        self.crash_after: int | None = None
        self._tick_at = 2**62
        self._spins = 0
        self._last_ms = 0

    # --- clock ------------------------------------------------------------------------------------

    def clock(self) -> int:
        """This machine's boot-time clock now."""
        return self.local(self.world.now)

    def local(self, true_ms: int) -> int:
        """Boot-time clock at a true time."""
        return self._local0 + (true_ms - self._true0) * self.rate_permille // 1000

    def true(self, local_ms: int) -> int:
        """First true time at which the boot-time clock shows `local_ms`."""
        ahead = -(-(local_ms - self._local0) * 1000 // self.rate_permille)
        return self._true0 + ahead

    def set_clock(self, rate_permille: int, local0: int) -> None:
        """Begin a boot: another rate, and a first stamp."""
        self._true0, self._local0, self.rate_permille = self.world.now, local0, rate_permille

    # --- life -------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Does a daemon run here?"""
        return self.node is not None

    def start(self) -> None:
        """Start a daemon: leftovers are killed, then a new incarnation serves."""
        if self.up or self.frozen or self.off_for_good:
            return
        if self.processes and self.world.kill_leftovers:
            for process in list(self.processes.values()):
                self._gone(process, "leftover")
        now_ms = self.clock()
        self.disk.counter += 1
        low = self.world.rng.getrandbits(32)
        inc = incarnation(self.disk.counter, low)
        self.life += 1
        self.inbox.clear()
        self.pins.clear()
        node = n.Node(
            self.id,
            inc,
            self.caps,
            self.slots,
            now_ms,
            election_priority=self.priority,
            heartbeat_ms=self.world.heartbeat_ms,
        )
        self.node = node
        self.stopping = False
        self.paused = False
        node.out.mark = 0
        self.world.told(f"{self.name} starts life {self.disk.counter}")
        self.world.observer.started(self)
        disk = self.disk
        node.owner.restore(
            tuple(disk.tasks.values()),
            tuple(disk.attempts.values()),
            tuple(disk.ends.values()),
            now_ms,
        )
        node.worker.restore(tuple(disk.spool.values()), now_ms)
        self._run(n.Tick())

    def crash(self, *, power: bool, keep: int = 0) -> None:
        """The daemon dies; with `power` the machine too.  `keep` unflushed groups survive."""
        if not self.up and not (power and self.processes):
            return
        how = "loses power" if power else "daemon dies"
        self.world.told(f"{self.name} {how}")
        disk = self.disk
        disk.sync(disk.pending[keep - 1][0] if 0 < keep <= len(disk.pending) else -1)
        disk.pending.clear()
        self.world.observer.crashed(self)
        self.node = None
        self.life += 1
        self._tick_at = 2**62
        self.paused = False
        self.crash_after = None
        if power:
            self.frozen = False
            for process in list(self.processes.values()):
                self._gone(process, "power")
            local0 = self.world.rng.choice((0, 500, 20_000, 200_000))
            self.set_clock(self.rate_permille, local0)

    def pause(self) -> None:
        """The daemon stands still; its supervisor does not."""
        if self.up and not self.paused:
            self.world.told(f"{self.name} pauses")
            self.paused = True
            self._paused_at = self.world.now

    def resume(self) -> None:
        """The daemon goes on, with everything that queued up meanwhile."""
        if not self.up or not self.paused or self.frozen:
            return
        self.world.told(f"{self.name} resumes")
        self.paused = False
        gap_ms = self.world.now - self._paused_at
        inbox, self.inbox = self.inbox, []
        life = self.life
        if gap_ms > SUSPECT_GAP_MS:
            self._run(n.Overslept(gap_ms))
        for event in inbox:
            if self.life == life:
                self._run(event)
        if self.life == life:
            self._run(n.Tick(gap_ms))

    def freeze(self) -> None:
        """The whole machine stands still, supervisor and tasks as well; clocks go on."""
        if self.frozen:
            return
        self.pause()
        self.frozen = True
        self._frozen_at = self.world.now
        for process in self.processes.values():
            process.left = process.ends - self.world.now
        self.world.told(f"{self.name} freezes")

    def thaw(self) -> None:
        """The machine goes on; the supervisor looks at the clock before anything else."""
        if not self.frozen or self.off_for_good:
            return
        self.world.told(f"{self.name} thaws")
        self.frozen = False
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
        self.resume()

    def leave(self) -> None:
        """Stop in order: end what runs, report it, say Goodbye."""
        if not self.up or self.stopping or self.paused:
            return
        self.world.told(f"{self.name} leaves")
        self.stopping = True
        life = self.life
        self._run(n.Drain(True))
        for process in list(self.processes.values()):
            if self.life == life:
                self._gone(process, "ordered")
        if self.life == life and self.node is not None:
            inc = self.node.inc
            for peer in self.world.machines:
                if peer is not self:
                    self.world.send(self, peer.id, m.Goodbye(inc))
            self.disk.sync(2**62)
            self.crash(power=False)

    # --- events -----------------------------------------------------------------------------------

    def feed(self, event: n.AnyEvent, life: int = -1) -> None:
        """Something happened; a daemon that is down or another life of it does not notice."""
        if self.node is None or (life >= 0 and life != self.life):
            return
        if self.paused:
            self.inbox.append(event)
        else:
            self._run(event)

    def _run(self, event: n.AnyEvent) -> None:
        node = self.node
        if node is None:
            return
        world = self.world
        now_ms = max(self.clock(), self._last_ms if self._true0 == 0 else 0)
        world.remember(self, event, now_ms)
        try:
            effects = node.handle(event, now_ms)
        except BlackroadError as error:
            world.broken("core", f"{self.name}: {type(error).__name__}: {error}")
            raise
        life = self.life
        limit = self.crash_after
        for count, effect in enumerate(effects):
            if limit is not None and count >= limit:
                self.crash(power=False)
                world.at(world.now + 500, self.start)
                return
            self._execute(effect)
            if self.life != life:
                return
        world.observer.after(self, event)
        self._arm(event)

    def _arm(self, event: n.AnyEvent) -> None:
        """Order the next Tick; a node that asks for one at once, again and again, spins."""
        node = self.node
        if node is None:
            return
        due = max(self.true(node.next_deadline_ms()), self.world.now + 1)
        if isinstance(event, n.Tick):
            self._spins = self._spins + 1 if due <= self.world.now + 2 else 0
            if self._spins > 60:
                self.world.broken("spins", f"{self.name} wants to be woken without end")
        if due < self._tick_at or self._tick_at <= self.world.now:
            self._tick_at = due
            self.world.at(due, self._tick, self.life, due)

    def _tick(self, life: int, due: int) -> None:
        if life != self.life or due != self._tick_at or self.node is None:
            return
        self._tick_at = 2**62
        if self.paused:
            return
        node = self.node
        if node.next_deadline_ms() > self.clock():
            self._arm(n.Drain(False))
            return
        self._run(n.Tick())

    # --- effects ----------------------------------------------------------------------------------

    def _execute(self, effect: e.Effect) -> None:
        world = self.world
        match effect:
            case e.Send():
                world.observer.sent(self, effect)
                world.send(self, effect.to, effect.message)
            case e.Tell():
                world.observer.told(self, effect)
                world.tell(self, effect.client, effect.message)
            case e.Publish():
                world.publish(self, effect.beat)
            case e.Start():
                self._start_process(effect)
            case e.Extend():
                process = self.processes.get(effect.key)
                if process is not None:
                    process.deadline_ms = max(process.deadline_ms, effect.deadline_ms)
            case e.Kill():
                process = self.processes.get(effect.key)
                if process is not None:
                    self._kill(process, "killed")
            case e.Persist():
                self.disk.pending.append((effect.mark, effect.rows))
                world.observer.persisted(self, effect)
                world.at(world.now + world.flush_ms(), self._flush, self.life, effect.mark)
            case e.Fetch():
                self._fetch(effect)
            case e.Pin():
                self.pins[effect.digest] = self.pins.get(effect.digest, 0) + 1
            case e.Unpin():
                self._unpin(effect.digest)
            case e.Note():
                world.noted(self, effect)
            case e.Lookup():
                pass
            case _:
                world.broken("effect", f"unknown effect {effect!r}")

    def _flush(self, life: int, mark: int) -> None:
        if life != self.life:
            return
        self.disk.sync(mark)
        self.feed(n.Flushed(mark), life)

    def _unpin(self, digest: bytes) -> None:
        left = self.pins.get(digest, 0) - 1
        if left < 0:
            self.world.broken("pins", f"{self.name} unpins what it did not pin")
        if left > 0:
            self.pins[digest] = left
        else:
            self.pins.pop(digest, None)

    def evict(self) -> None:
        """Throw away every object that nothing pins."""
        if not self.up:
            return
        for digest in [one for one in self.objects if one not in self.pins]:
            del self.objects[digest]
            self.feed(n.Evicted(digest))

    # --- objects ----------------------------------------------------------------------------------

    def _fetch(self, fetch: e.Fetch) -> None:
        delay_ms = self.world.rng.randrange(1, 60)
        self.world.at(self.world.now + delay_ms, self._pull, fetch, self.life, 0)

    def _pull(self, fetch: e.Fetch, life: int, tries: int) -> None:
        if life != self.life or self.node is None:
            return
        world = self.world
        digest = fetch.ref.digest
        found = digest in self.objects
        gone = False
        if not found and fetch.client:
            found = world.client_has(fetch.client, digest)
            gone = not found
        elif not found:
            holder = world.by_id.get(fetch.holder)
            link = holder is not None and all(
                world.network.connected(a, b, DIRECT)
                for a, b in ((self.index, holder.index), (holder.index, self.index))
            )
            if holder is not None and link and holder.up and not holder.paused:
                found = digest in holder.objects
                gone = not found
        if found and not world.fetch_fails():
            self.objects[digest] = fetch.ref.size
            self.feed(n.Fetched(digest), life)
        elif gone or tries >= 24:
            self.feed(n.FetchFailed(digest, "no holder has it", gone), life)
        else:
            world.at(world.now + 1000, self._pull, fetch, life, tries + 1)

    # --- processes --------------------------------------------------------------------------------

    def _start_process(self, start: e.Start) -> None:
        world = self.world
        node = self.node
        if node is None:
            return
        plan = world.plan(start.task)
        for part in (start.code, start.work):
            if isinstance(part, m.Ref) and part.digest not in self.objects:
                world.broken("objects", f"{self.name} starts a task without its input")
        run_ms = max(plan.run_ms, 0)
        process = Process(self, start, node.inc, plan, world.now + run_ms)
        world.observer.starts(self, process)
        self.processes[start.key] = process
        world.told(f"{self.name} runs {world.names.task(start.task)}")
        world.at(process.ends, self._exits, process)
        self._watch(process)

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

    def _kill(self, process: Process, why: str) -> None:
        if process.dying:
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
        world.observer.gone(self, process)
        node = self.node
        if node is None or node.inc != process.inc or why in ("power", "leftover"):
            return
        if why == "killed":
            self.feed(n.Killed(process.key))
        elif why == "ordered":
            self.feed(n.Finished(process.key, m.Status.STOPPED, b"", m.Facts()))
        else:
            self.feed(n.Finished(process.key, m.Status.LAPSED, b"", m.Facts()))

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
            world.at(world.now + 3000, self.start)
            return
        if fate == "hang":
            return
        del self.processes[process.key]
        run_us = process.plan.run_ms * 1000
        node = self.node
        result: m.Payload = b""
        status = STATUS[fate]
        facts = m.Facts(run_us)
        if status is m.Status.DONE:
            text = f"{task.hex()}:{process.key[1]}:{self.name}"
            result = text.encode()
            if process.plan.large:
                digest = hashlib.blake2b(result, digest_size=32).digest()
                self.objects[digest] = 100_000
                result = m.Ref(digest, 100_000)
        world.told(f"{world.names.task(task)} ends on {self.name}: {fate}")
        world.observer.finished(self, process, status, result)
        if node is not None and node.inc == process.inc:
            self.feed(n.Finished(process.key, status, result, facts))


STATUS = {
    "done": m.Status.DONE,
    "fail": m.Status.FAILED,
    "crash": m.Status.CRASHED,
    "oom": m.Status.OUT_OF_MEMORY,
}

__all__ = ["DIRECT", "TELEMETRY", "Machine", "Plan", "Process"]
