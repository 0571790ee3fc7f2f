"""One made-up machine: its clocks, disk, processes and objects, around a real Node.

Executes the effects of the node in order.  Power cuts, crashes, pauses and thaws happen here; this
file must not know what is promised (that is `checkers.py`), nor why a fault comes when it does.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.capabilities import Capabilities
from blackroad.errors import BlackroadError
from blackroad.ids import incarnation, short
from blackroad.router import effects as e
from blackroad.store.rows import objects_of
from tests.sim.disk import Disk
from tests.sim.links import Links
from tests.sim.lives import Lives
from tests.sim.network import DIRECT, TELEMETRY
from tests.sim.objects import Objects
from tests.sim.processes import Plan, Process, Processes

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

OVERSLEPT_MS = 750
NEVER_MS = 2**62
BOOTS_MS = (0, 500, 20_000, 200_000)
SPINS_MAX = 60
STOP_MS = 3_000


class Machine(Processes):
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
        speed: float = 1.0,
        version: int = 1,
    ) -> None:
        super().__init__()
        self.world = world
        self.index = index
        self.name = name
        self.id = node_id
        self.slots = slots
        self.priority = priority
        self.speed = speed
        # What it speaks: one that is newer says more than the others understand.
        self.version = version
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
            speeds={"python": 10.0 * speed},
        )
        self.disk = Disk()
        self.image: Disk | None = None
        self.node: n.Node | None = None
        self.life = 0
        self._asking_until = 0
        self.bulk = Objects(self)
        self.lives: Lives = Links(self) if world.links else Lives(self)
        self.rate_permille = 1000
        # How far its wall clock is off.
        self.wall_ms = 0
        self._true0 = 0
        self._local0 = 1_000
        self.paused = False
        self.frozen = False
        self._paused_at = 0
        self.inbox: list[n.AnyEvent] = []
        self._delayed: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.pins: dict[bytes, int] = {}
        self.stopping = False
        self.off_for_good = False
        self.crash_after: int | None = None
        # The daemon stops after so many effects of its next turn, for so long.
        self.stall_after: int | None = None
        self.stall_ms = 0
        self._undone: list[e.Effect] = []
        # What happens to the order of events when a paused daemon goes on.
        self.wakes: Callable[[list[n.AnyEvent]], None] | None = None
        self._knows_full = False
        # Did the node know of a full disk before the event that it handles?
        self.was_full = False
        self._tick_at = NEVER_MS
        self._spins = 0

    # --- clocks -----------------------------------------------------------------------------------

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

    def wall(self) -> int:
        """This machine's wall clock now; it may be wrong by years."""
        return max(0, 1_700_000_000_000 + self.world.now + self.wall_ms)

    # --- life -------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Does a daemon run here?"""
        return self.node is not None

    def start(self) -> None:
        """Start a daemon: leftovers are killed, peers are asked, a new incarnation serves."""
        world = self.world
        if self.up or self.frozen or self.off_for_good or world.now < self._asking_until:
            return
        if self.processes and self.world.kill_leftovers:
            for process in list(self.processes.values()):
                self._gone(process, "leftover")
        if world.greets_first and len(world.machines) > 1:
            self._asking_until = world.now + self.lives.asking_ms()
            world.at(self._asking_until, self._asked)
        else:
            self._serve()

    def _asked(self) -> None:
        """Peers that could be reached have told what they know of this node (R-life-2)."""
        if not (self.up or self.frozen or self.off_for_good):
            self.disk.counter = max(self.disk.counter, self.lives.known_to_others())
            self._serve()

    def _serve(self) -> None:
        now_ms = self.clock()
        disk = self.disk
        disk.counter += 1
        inc = incarnation(disk.counter, self.world.rng.getrandbits(32))
        self.life += 1
        self.inbox.clear()
        self._delayed.clear()
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
        if self.world.bundle_us >= 0:
            node.owner.granting.bundle_us = self.world.bundle_us
        self.node = node
        self.stopping = self.paused = self._knows_full = False
        self.world.told(f"{self.name} starts life {disk.counter}")
        self.world.observer.started(self)
        tasks, attempts = disk.accepted(self.wall()), tuple(disk.attempts.values())
        ends, spool = tuple(disk.ends.values()), tuple(disk.spool.values())
        # Only what the journal needs outlives a restart.
        kept = objects_of((*tasks, *ends, *spool))
        disk.objects = {one: size for one, size in disk.objects.items() if one in kept}
        node.owner.restore(tasks, attempts, ends, now_ms)
        node.worker.restore(spool, now_ms)
        life = self.life
        if disk.drains:
            self._run(n.Drain(True))
        if disk.full and self.life == life:
            self.notice_space()
        if self.life == life:
            self._run(n.Tick())
        if self.life == life:
            self.lives.begin()

    def crash(self, *, power: bool, keep: int = 0) -> None:
        """The daemon dies; with `power` the machine too.  `keep` unflushed groups survive."""
        if not self.up and not (power and self.processes):
            return
        how = "loses power" if power else "daemon dies"
        self.world.told(f"{self.name} {how}")
        self.disk.lose_pending(keep)
        self.world.observer.crashed(self)
        self.node = None
        self.life += 1
        self.bulk.pulls.clear()
        self.untold.clear()
        self._tick_at = NEVER_MS
        self.paused = False
        self.crash_after = self.stall_after = None
        self._undone = []
        if power:
            self.frozen = False
            for process in list(self.processes.values()):
                self._gone(process, "power")
            self.set_clock(self.rate_permille, self.world.rng.choice(BOOTS_MS))

    def new_life(self, above: int) -> None:
        """The node itself wants another life: it was told that it forgot some."""
        self.world.told(f"{self.name} forgot its lives up to {above}")
        self.disk.counter = max(self.disk.counter, above)
        self.crash(power=False, keep=len(self.disk.pending))
        self.start()

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
        gap_ms = self.local(self.world.now) - self.local(self._paused_at)
        inbox, self.inbox = self.inbox, []
        delayed, self._delayed = self._delayed, []
        if self.wakes is not None:
            inbox = _mixed(inbox, self.wakes)
        life = self.life
        # First the rest of the turn in which it was stopped, decided before the pause.
        undone, self._undone = self._undone, []
        self.was_full = False
        self._perform(undone)
        if gap_ms > OVERSLEPT_MS and self._goes_on(life):
            self._run(n.Overslept(gap_ms))
        if len(inbox) > 1 and self.world.batches and self._goes_on(life):
            self._run_all(inbox)
            inbox = []
        while inbox and self._goes_on(life):
            self._run(inbox.pop(0))
        while delayed and self._goes_on(life):
            call, args = delayed.pop(0)
            call(*args)
        if self._goes_on(life):
            self._run(n.Tick(gap_ms))
        elif self.life == life:
            # Stopped again, in the middle of all this: the rest waits for the next time.
            self.inbox[:0] = inbox
            self._delayed[:0] = delayed

    def _goes_on(self, life: int) -> bool:
        return self.life == life and not self.paused

    def freeze(self) -> None:
        """The whole machine stands still, supervisor and tasks as well; clocks go on."""
        if self.frozen:
            return
        self.pause()
        self.frozen = True
        self._stand_still()
        self.world.told(f"{self.name} freezes")

    def thaw(self) -> None:
        """The machine goes on; the supervisor looks at the clock before anything else."""
        if not self.frozen or self.off_for_good:
            return
        self.world.told(f"{self.name} thaws")
        self.frozen = False
        self._go_on()
        self.resume()

    def leave(self) -> None:
        """Stop in order: end what runs, report it, say Goodbye."""
        if not self.up or self.stopping or self.paused:
            return
        self.world.told(f"{self.name} leaves")
        self.stopping = True
        life = self.life
        self._run(n.Leave())
        self._leaving(life, self.world.now + STOP_MS)

    def _leaving(self, life: int, until_ms: int) -> None:
        """Wait until everything has ended and is flushed, but not for ever."""
        node = self.node
        if self.life != life or node is None:
            return
        idle = not self.processes and not node.worker.running
        if idle and node.out.flushed >= node.out.mark and not self.paused:
            self._say_goodbye()
        elif self.world.now >= until_ms:
            self.crash(power=False, keep=len(self.disk.pending))
        else:
            self.world.at(self.world.now + 20, self._leaving, life, until_ms)

    def retire(self, life: int = -1) -> None:
        """Drain, and leave when nothing runs any more."""
        if not self.up or self.paused or (life >= 0 and life != self.life):
            return
        if life < 0:
            self.world.told(f"{self.name} retires")
            life = self.life
            self._run(n.Drain(True))
        if self.life != life or self.node is None or not self.node.worker.draining:
            return
        if self.node.worker.works or self.processes:
            self.world.at(self.world.now + 100, self.retire, life)
        else:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self.node is None:
            return
        inc = self.node.inc
        for peer in self.world.machines:
            if peer.id != self.id:
                self.world.send(self, peer.id, m.Goodbye(inc))
        self.crash(power=False, keep=len(self.disk.pending))

    # --- the disk ---------------------------------------------------------------------------------

    def fill_disk(self, full: bool) -> None:
        """The disk has no room left, or has room again; the daemon notices a little later."""
        self.world.told(f"{self.name} disk {'full' if full else 'free'}")
        self.disk.full = full
        self.world.at(self.world.now + self.world.rng.randrange(300), self.notice_space)

    def notice_space(self) -> None:
        """The daemon looks at the room on its disk."""
        if self.node is not None and self._knows_full != self.disk.full:
            self._knows_full = self.disk.full
            self.feed(n.Space(self.disk.full))

    def fail_flush(self, after: int) -> None:
        """So many flushes later one fails; what it held may or may not be on the disk."""
        self.disk.flushes_left = after

    def take_image(self) -> None:
        """Remember the disk as it is now."""
        self.image = self.disk.image()

    def roll_back(self) -> None:
        """The power fails, and what comes back is the disk of an earlier moment."""
        image = self.image
        if image is None or not self.up:
            return
        self.image = None
        self.crash(power=True)
        changed = self.disk.changed_since(image)
        self.world.told(f"{self.name} disk is rolled back to life {image.counter}")
        self.disk = image
        self.world.observer.rolled_back(self, changed)

    def damage(self, rng: Random) -> None:
        """The power fails, and some rows of the journal are not what was written."""
        if not self.up:
            return
        self.crash(power=True)
        told, gone = self.disk.damage(rng)
        self.world.told(f"{self.name} has damaged rows")
        self.world.damaged |= told | gone
        self.world.observer.rolled_back(self, told)

    def evict(self) -> None:
        """Throw away every object that nothing pins."""
        if not self.up:
            return
        for digest in [one for one in self.disk.objects if one not in self.pins]:
            del self.disk.objects[digest]
            self.feed(n.Evicted(digest))

    # --- events -----------------------------------------------------------------------------------

    def feed(self, event: n.AnyEvent, life: int = -1) -> None:
        """Something happened; a daemon that is down or another life of it does not notice."""
        if self.node is None or (life >= 0 and life != self.life):
            return
        if self.paused:
            self.inbox.append(event)
        else:
            self._run(event)

    def from_peer(self, event: n.FromPeer) -> None:
        """Messages of a peer came; those of one that is shunned count for nothing.

        Nor do those of a life that is over, where sessions are taken seriously (R-link-6).
        """
        if event.node in self.lives.shunned:
            return
        if self.world.strict and self.lives.is_over(event.node, event.inc):
            return
        self.feed(event)

    def driver(self, call: Callable[..., None], *args: Any) -> None:
        """Something for the daemon outside its node; while it stands still, it waits."""
        if self.node is None:
            return
        if self.paused:
            self._delayed.append((call, args))
        else:
            call(*args)

    def _run(self, event: n.AnyEvent) -> None:
        node = self.node
        if node is None:
            return
        now_ms = self.clock()
        self.world.remember(self, event, now_ms)
        self.was_full = node.owner.full
        try:
            effects = node.handle(event, now_ms)
        except BlackroadError as error:
            self._fails(error)
            return
        if self._perform(effects):
            self.world.observer.after(self, event)
            self._arm(type(event) is n.Tick)

    def _run_all(self, events: list[n.AnyEvent]) -> None:
        """What one turn of the daemon's loop brought, settled once."""
        node = self.node
        if node is None:
            return
        now_ms = self.clock()
        for event in events:
            self.world.remember(self, event, now_ms)
        self.was_full = False
        try:
            effects = list(node.handle_all(events, now_ms))
        except BlackroadError as error:
            self._fails(error)
            return
        if self._perform(effects):
            self.world.observer.after(self, events[-1])
            self._arm(False)

    def _fails(self, error: BlackroadError) -> None:
        self.world.broken("core", f"{self.name}: {type(error).__name__}: {error}")

    def _perform(self, effects: list[e.Effect]) -> bool:
        """Carry out effects in order; return whether the turn came to its end in this life."""
        life = self.life
        crash, stall = self.crash_after, self.stall_after
        together: dict[bytes, list[m.Message]] | None = {} if self.world.batches else None
        for count, effect in enumerate(effects):
            if crash is not None and count >= crash:
                self.crash(power=False)
                self.world.at(self.world.now + 500, self.start)
                return False
            if stall is not None and count >= stall:
                self._stall(together, effects[count:])
                return False
            if together is not None and type(effect) is e.Send:
                self.world.observer.sent(self, effect)
                together.setdefault(effect.to, []).append(effect.message)
                continue
            self._execute(effect)
            if self.life != life:
                return False
        self._leave_together(together)
        return self.life == life

    def _stall(self, together: dict[bytes, list[m.Message]] | None, rest: list[e.Effect]) -> None:
        """The daemon is stopped in the middle of a turn: what it decided happens much later."""
        sends = [e.Send(to, one) for to, messages in (together or {}).items() for one in messages]
        self.stall_after = None
        self._undone = [*sends, *rest]
        self.pause()
        self.world.at(self.world.now + self.stall_ms, self.resume)

    def _leave_together(self, together: dict[bytes, list[m.Message]] | None) -> None:
        """What one turn produced for one peer leaves in one piece (R-path-5)."""
        for to, messages in (together or {}).items():
            self.world.send_all(self, to, messages)

    def _arm(self, ticked: bool) -> None:
        """Order the next Tick; a node that asks for one at once, again and again, spins."""
        node = self.node
        if node is None:
            return
        now = self.world.now
        due = max(self.true(node.next_deadline_ms()), now + 1)
        if ticked:
            self._spins = self._spins + 1 if due <= now + 2 else 0
            if self._spins > SPINS_MAX:
                self.world.broken("spins", f"{self.name} wants to be woken without end")
        if due < self._tick_at or self._tick_at <= now:
            self._tick_at = due
            self.world.at(due, self._tick, self.life, due)

    def _tick(self, life: int, due: int) -> None:
        if life != self.life or due != self._tick_at or self.node is None:
            return
        self._tick_at = NEVER_MS
        if self.paused:
            return
        if self.node.next_deadline_ms() > self.clock():
            self._arm(False)
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
                self._extend(effect)
            case e.HandAhead():
                self._hand_ahead(effect)
            case e.TakeBack():
                self._take_back(effect.key)
            case e.Divide():
                self._divide(self.processes.get(effect.key))
            case e.Kill():
                self._kill(self.processes.get(effect.key), "killed")
            case e.Persist():
                self._persist(effect)
            case e.Fetch():
                self.bulk.fetch(effect)
            case e.Pin():
                self.pins[effect.digest] = self.pins.get(effect.digest, 0) + 1
            case e.Unpin():
                self._unpin(effect.digest)
            case e.Note():
                self._noted(effect)
            case e.KeepDrain():
                self.disk.drains = effect.on
            case e.NewLife():
                self.new_life(effect.above)
            case e.Shun():
                self.lives.shun(effect.node, effect.reason)
            case e.Lookup():
                pass
            case _:
                world.broken("effect", f"unknown effect {effect!r}")

    def _persist(self, persist: e.Persist) -> None:
        world = self.world
        self.disk.write(persist.mark, persist.rows, self.wall())
        world.observer.persisted(self, persist)
        world.at(world.now + world.flush_ms(), self._flush, self.life, persist.mark)

    def _flush(self, life: int, mark: int) -> None:
        if life != self.life:
            return
        if self.disk.sync(mark):
            self.feed(n.Flushed(mark), life)
            return
        self.world.told(f"{self.name} cannot flush")
        rng = self.world.rng
        self.crash(power=False, keep=rng.randrange(1 + len(self.disk.pending)))
        self.world.at(self.world.now + rng.choice((200, 3_000)), self.start)

    def _unpin(self, digest: bytes) -> None:
        left = self.pins.get(digest, 0) - 1
        if left < 0:
            self.world.broken("pins", f"{self.name} unpins what it did not pin")
        if left > 0:
            self.pins[digest] = left
        else:
            self.pins.pop(digest, None)

    def _noted(self, note: e.Note) -> None:
        self.world.noted(self, note)
        if note.name.startswith("node."):
            peer = note.facts.get("node")
            if note.name in ("node.died", "node.left"):
                for other in self.world.machines:
                    if short(other.id) == peer:
                        self.bulk.holder_gone(other.id)
                        self.lives.died(other)
            elif note.name in ("node.joined", "node.reincarnated"):
                for other in self.world.machines:
                    if other is not self and short(other.id) == peer:
                        self.lives.greet(other)

    # --- peers ------------------------------------------------------------------------------------

    def routed(self, node: bytes) -> Machine | None:
        """The machine that this one believes to be that node."""
        return self.lives.routes.get(node) or self.world.by_id.get(node)


def _mixed(
    inbox: list[n.AnyEvent], shuffle: Callable[[list[n.AnyEvent]], None]
) -> list[n.AnyEvent]:
    """Sockets are read in any order; a client's one connection and the driver keep their own."""
    outside = [one for one in inbox if isinstance(one, n.Heard | n.FromPeer | n.FromClient)]
    said: dict[bytes, list[n.AnyEvent]] = {}
    for one in reversed(outside):
        if isinstance(one, n.FromClient):
            said.setdefault(one.client, []).append(one)
    shuffle(outside)
    mixed = iter(
        [said[one.client].pop() if isinstance(one, n.FromClient) else one for one in outside]
    )
    return [
        next(mixed) if isinstance(one, n.Heard | n.FromPeer | n.FromClient) else one
        for one in inbox
    ]


__all__ = ["DIRECT", "TELEMETRY", "Machine", "Plan", "Process"]
