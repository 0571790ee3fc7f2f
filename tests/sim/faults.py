"""What breaks in one history: every single fault is drawn beforehand, and carried out here.

A fault has its own generator, so that leaving one out changes nothing about the others.
This file must not know what must hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from blackroad import node as n
from blackroad.bus import messages as m
from tests.sim.network import BULK, PATHS, TELEMETRY, Link

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.machine import Machine

LASTS_MS = (50, 800, 2_000, 6_000, 15_000, 40_000)
COUNTS = (1, 1, 2, 4, 8)
EARLIEST_MS = 500
# So long after it came, plus so many T_dead, a clone is found where nothing else is wrong.
FOUND_MS = 5_000
FOUND_DEADS = 6


class Deed(NamedTuple):
    """One fault: what, to which machine, when and for how long."""

    name: str
    kind: str
    machine: int
    when_ms: int
    for_ms: int
    seed: int

    def told(self) -> str:
        """One line for people."""
        kind = self.kind.replace("_", " ")
        return f"at {self.when_ms} ms: {kind}, n{self.machine}, for {self.for_ms} ms"


class Faults:
    """The hand that carries them out."""

    def __init__(self, world: Cluster) -> None:
        self.world = world
        self.clones: list[tuple[Machine, Machine]] = []
        # Is the clone all that is wrong?  Then it must be found.
        self.only_clones = False
        self._cloned_ms = 0
        # Nothing more breaks: the cluster is to heal.
        self.over = False

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Kinds of faults that happen at a moment, in the order in which they were invented."""
        return tuple(name[3:] for name in vars(cls) if name.startswith("do_"))

    def carry_out(self, deed: Deed) -> None:
        """Do it now."""
        machine = self.world.machines[deed.machine]
        getattr(self, "do_" + deed.kind)(machine, deed.for_ms, Random(deed.seed))

    def _later(self, after_ms: int, call: Any, *args: Any) -> None:
        self.world.at(self.world.now + after_ms, call, *args)

    # --- links ------------------------------------------------------------------------------------

    def _others(self, machine: Machine) -> list[int]:
        return [one.index for one in self.world.machines if one is not machine]

    def _cut_links(self, links: Iterable[Link], for_ms: int) -> None:
        if self.over:
            return
        links = tuple(links)
        for link in links:
            self.world.network.cut(*link)
        self._later(for_ms, self._heal_links, links)

    def _heal_links(self, links: tuple[Link, ...]) -> None:
        for link in links:
            self.world.network.heal(*link)
        self.world.pour()

    def do_cut(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """A group of nodes and the rest do not hear each other."""
        others = self._others(machine)
        group = [machine.index, *(i for i in others if rng.random() < 0.3)]
        rest = [i for i in others if i not in group]
        self.world.told(f"cut {group} from {rest} for {for_ms} ms")
        both = ((a, b) for x in group for y in rest for a, b in ((x, y), (y, x)))
        self._cut_links([(a, b, path) for a, b in both for path in PATHS], for_ms)

    def do_one_way(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """One direction between two nodes is gone."""
        others = self._others(machine)
        if others:
            other = rng.choice(others)
            self.world.told(f"cut {machine.index} to {other} for {for_ms} ms")
            self._cut_links([(machine.index, other, path) for path in PATHS], for_ms)

    def do_path_cut(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """One kind of connection of a node is gone, in or out."""
        path = rng.choice(PATHS)
        inward = rng.random() < 0.5
        self.world.told(f"cut path {path} of {machine.name} for {for_ms} ms")
        me = machine.index
        self._cut_links(
            [(o, me, path) if inward else (me, o, path) for o in self._others(machine)], for_ms
        )

    def do_flap(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """A node's cable is loose."""
        me = machine.index
        links = [
            (a, b, p) for o in self._others(machine) for a, b in ((me, o), (o, me)) for p in PATHS
        ]
        step_ms = rng.choice((200, 700, 2_000))
        for begin_ms in range(0, min(for_ms, 8 * step_ms) + 1, 2 * step_ms):
            self._later(begin_ms, self._cut_links, links, step_ms)

    # --- daemons and machines ---------------------------------------------------------------------

    def do_daemon_crash(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The daemon dies, its tasks do not."""
        machine.crash(power=False, keep=rng.randrange(4))
        self._later(for_ms, machine.start)

    def do_mid_crash(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The daemon dies in the middle of a turn."""
        machine.crash_after = rng.randrange(5)
        self._later(1_000, self._unarm, machine)

    @staticmethod
    def _unarm(machine: Machine) -> None:
        machine.crash_after = None

    def do_power_cut(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The machine is off."""
        machine.crash(power=True, keep=rng.randrange(4))
        self._later(for_ms, machine.start)

    def do_pause(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The daemon stands still, and finds its inbox in any order."""
        machine.pause()
        if rng.random() < 0.5:
            machine.wakes = rng.shuffle
        self._later(for_ms, machine.resume)

    def do_stall(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The daemon is stopped in the middle of a turn."""
        machine.stall_after, machine.stall_ms = rng.randrange(4), for_ms
        self._later(1_000, self._unstall, machine)

    @staticmethod
    def _unstall(machine: Machine) -> None:
        machine.stall_after = None

    def do_freeze(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The whole machine stands still."""
        machine.freeze()
        self._later(for_ms, machine.thaw)

    def do_wall_jump(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The wall clock is set, by seconds or by years."""
        jump_ms = rng.choice((-(10**10), -86_400_000, -15_000, 15_000, 86_400_000, 10**10))
        machine.wall_ms += jump_ms
        self.world.told(f"{machine.name} wall clock jumps by {jump_ms} ms")
        self._later(for_ms, self._jump_back, machine, jump_ms)

    @staticmethod
    def _jump_back(machine: Machine, jump_ms: int) -> None:
        machine.wall_ms -= jump_ms

    # --- orders -----------------------------------------------------------------------------------

    def do_drain(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """A node takes nothing new for a while."""
        machine.feed(n.Drain(True))
        self._later(for_ms, machine.feed, n.Drain(False))

    def do_drain_order(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """Somebody orders it, from any node, and takes it back."""
        clients = [one for one in self.world.clients.values() if one.alive]
        if clients:
            client = rng.choice(clients)
            client.order("drain", machine.id)
            self._later(for_ms, client.order, "resume", machine.id)

    def do_retry_order(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """Somebody has ended tasks tried again."""
        for client in self.world.clients.values():
            if client.alive and client.machine is machine:
                for one in list(client.tasks.values())[:4]:
                    if one.ended is not None and one.ended.end is not m.End.DONE:
                        again = rng.randbytes(16)
                        self.world.tried_again(machine, one.task, again)
                        client.retry(one.task, again)

    def do_leave(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """A daemon is stopped in order, with work on it."""
        machine.leave()
        self._later(for_ms, machine.start)

    def do_retire(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """A node drains, leaves when nothing runs, and comes back."""
        machine.retire()
        self._later(for_ms, self._back, machine)

    @staticmethod
    def _back(machine: Machine) -> None:
        if machine.up:
            machine.feed(n.Drain(False))
        else:
            machine.start()

    def do_ask(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """People look: every client asks something about every node."""
        for client in self.world.clients.values():
            client.order(rng.choice(("nodes", "tasks", "node")), machine.id)

    # --- disks ------------------------------------------------------------------------------------

    def do_evict(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """Objects that nothing pins leave."""
        machine.evict()

    def do_rot(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """Objects on a disk go bad."""
        machine.disk.rotten.update(one for one in machine.disk.objects if rng.random() < 0.5)

    def do_full_disk(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """No room, for a while."""
        machine.fill_disk(True)
        self._later(for_ms, machine.fill_disk, False)

    def do_flush_error(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """One of the next flushes fails."""
        machine.fail_flush(rng.randrange(4))

    def do_roll_back(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The disk goes back to what it was, and maybe some lives of the node with it."""
        machine.take_image()
        back_ms = rng.choice((5, 300, 3_000, 8_000))
        for _ in range(rng.choice((0, 1, 1, 2))):
            back_ms += 3_000
            self._later(back_ms - 2_500, self._restart, machine)
        self._later(back_ms, self._roll_back, machine, for_ms)

    @staticmethod
    def _restart(machine: Machine) -> None:
        machine.crash(power=False)
        machine.start()

    def _roll_back(self, machine: Machine, for_ms: int) -> None:
        if not self.over:
            machine.roll_back()
        self._later(for_ms, machine.start)

    def do_damage(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The power fails, and rows of the journal come back damaged."""
        machine.damage(rng)
        self._later(for_ms, machine.start)

    # --- liars ------------------------------------------------------------------------------------

    def do_clone(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """A second machine comes up with a copy of the disk, and is found and taken away."""
        if self.clones or not machine.disk.counter:
            return
        clone = self.world.add_clone(machine)
        self.clones.append((machine, clone))
        self.world.told(f"{clone.name} is a clone of {machine.name}")
        self.world.observer.cloned(machine)
        self._cloned_ms = self.world.now
        clone.start()
        self._later(max(for_ms, 2_000), self.unclone)

    def unclone(self) -> None:
        """Somebody takes the clones away and starts the originals anew."""
        for machine, clone in self.clones:
            if clone.off_for_good:
                continue
            if self.only_clones:
                self._check_found(machine, clone)
            self.world.told(f"{clone.name} is taken away")
            clone.crash(power=True)
            clone.off_for_good = True
            machine.crash(power=False)
            machine.start()
            self.world.observer.uncloned(machine)

    def _check_found(self, machine: Machine, clone: Machine) -> None:
        """R-life-3: soon nobody deals with either of them, and neither takes new work."""
        world = self.world
        others = [one for one in world.machines if one.id != machine.id and one.node is not None]
        if not others or machine.node is None or clone.node is None:
            return
        found_ms = FOUND_MS + FOUND_DEADS * max(
            one.node.membership.dead_ms() for one in others if one.node is not None
        )
        if world.now - self._cloned_ms < found_ms or any(
            _lived_ms(one) < found_ms for one in (machine, clone)
        ):
            return
        if machine.node.lives.serves and clone.node.lives.serves:
            world.broken("R-life-3", f"{machine.name} and its clone both serve")
        for other in others:
            if machine.id not in other.lives.shunned and _lived_ms(other) >= found_ms:
                world.broken("R-life-3", f"{other.name} does not shun {machine.name}")

    def do_mad_table(self, machine: Machine, for_ms: int, rng: Random) -> None:
        """The followed coordinator tells rows that make no sense."""
        node = machine.node
        if node is None or node.election.claim is None:
            return
        for target in self.world.machines:
            if target.node is None or target is machine:
                continue
            rows = tuple(
                m.Row(rng.randrange(1, 4), rng.choice(self.world.machines).id, rng.randrange(9))
                for _ in range(rng.randrange(6))
            )
            seq = next_seq(node.coordinator)
            table = m.Allocation(node.election.claim, seq, target.node.inc, 1, rows)
            self.world.send(machine, target.id, table)


def _lived_ms(machine: Machine) -> int:
    """How long ago its present life began: whoever was restarted listens anew."""
    return machine.clock() - machine.node.started_ms if machine.node is not None else 0


def next_seq(coordinator: Any) -> int:
    """Use up one of the coordinator's sequence numbers."""
    coordinator._seq += 1
    return int(coordinator._seq)


__all__ = ["BULK", "COUNTS", "LASTS_MS", "TELEMETRY", "Deed", "Faults"]
