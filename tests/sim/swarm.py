"""From one seed to one history: which faults are on, how many nodes, what work, what breaks when.

Everything is drawn at the start, whether it is used or not, so that single faults, clients, submits
and tasks can be left out and the rest stays what it was.  First faults are on and every invariant
must hold; then a core of nodes heals, the rest may stay broken for ever, and everything accepted
that the core can run must end.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random
from typing import Any, NamedTuple

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.discovery.lives import State
from blackroad.limits import DOUBT_DEADS, DOUBT_MS_MIN
from tests.sim import liveness, tiny
from tests.sim.clients import Client
from tests.sim.cluster import Broken, Cluster
from tests.sim.faults import COUNTS, EARLIEST_MS, LASTS_MS, Deed, Faults
from tests.sim.lives import ASKING_MS
from tests.sim.machine import Machine
from tests.sim.mixes import FIRST_MS, NEEDS, Member, Submission, Work
from tests.sim.network import DIRECT, PATHS, TELEMETRY, Weather

# Kinds that are on or off for the whole history; those that happen at a moment are in `faults.py`.
CONDITIONS = (
    *("loss", "double", "jitter", "hold", "slow_links", "stale_bursts"),
    *("clocks", "slow_disk", "slow_kill", "fetch", "flips"),
    *("unseen", "client_death", "client_retry", "slow_reader", "cancel"),
    *(
        "real_links",
        "versions",
        "tiny_limits",
        "many_users",
        "many_nodes",
        "heavy_work",
        "broken_rest",
    ),
)
FAULTS = (*CONDITIONS, *Faults.kinds())
# After these nobody knows what was promised to whom: with much else on they only hide it.
LIARS = frozenset({"clone", "roll_back"})
LIARS_KINDS_MAX = 8
# Under these links and daemons work as if nothing happened.
HARMLESS_KINDS = frozenset(
    {
        *("clone", "clocks", "slow_disk", "slow_kill", "unseen", "client_death", "client_retry"),
        *("slow_reader", "cancel", "many_users", "heavy_work", "evict", "ask", "wall_jump"),
    }
)
HEARTBEATS_MS = (0, 0, 0, 500, 1_000)
NODES = (1, 2, 2, 3, 3, 3, 4, 5)
INSIST_MS = 15_000
# How long a bundle may run, and how many histories are about them, whatever else they are.
BUNDLES_US = (*(9 * (0,)), 3_000, 100_000, 100_000_000)
COMPANY = 0.15
MANY_NODES = (6, 7, 8, 9)
FAULT_MS = (3_000, 6_000, 12_000, 30_000)
PATIENCE_MS = 1_500_000
# A healed cluster that is watched for long costs as much as the faults before it.
STEADY_EVERY = 3
# Somebody looks so often after nodes that were told they are clones.
RESTARTS_MAX = 4
# A life is noticed that was forgotten: doubt, and the life after it.
FORGOTTEN_MS = 40_000
CLONE_LOOK_MS = 7_000
# What was said before the healing may be so late.
LATE_ORDERS_MS = 70_000
BROKEN = ("off", "off", "deaf", "dumb", "half", "frozen")


class Result(NamedTuple):
    """What became of one seed."""

    seed: int
    rule: str
    text: str
    digest: int
    events: int
    true_ms: int
    tasks: int
    starts: int


class Box(NamedTuple):
    """One machine as it is drawn."""

    slots: int
    ssd: bool
    priority: int
    rate_permille: int
    boot_ms: int
    wall_ms: int
    version: int
    start_ms: int


class Swarm:
    """One seed's choices, and the hand that carries them out."""

    def __init__(
        self,
        seed: int,
        force: Collection[str] = (),
        drop: Collection[str] = (),
        salt: int = 0,
        **world: Any,
    ) -> None:
        self.seed = seed
        self.drop = frozenset(drop)
        rng = self._rng("shape")
        # Many small tasks are no fault, but may be asked for in the same way.
        drawn = _kinds(rng) | frozenset(force) - {"company"}
        self.faults = drawn - self.drop
        self.fault_ms = rng.choice(FAULT_MS)
        self.boxes = self._boxes(drawn)
        self.weather = self._weather()
        wire = rng.random() < 0.15
        self.world = Cluster(
            self._rng(f"world {salt}").getrandbits(60),
            weather=self.weather,
            wire=wire or "versions" in self.faults,
            heartbeat_ms=rng.choice(HEARTBEATS_MS),
            batches=rng.random() < 0.6,
            greets=rng.random() < 0.8 or bool(self.faults & LIARS),
            links=rng.random() < 0.15 or "real_links" in self.faults,
            **world,
        )
        # These numbers leave the histories of all seeds that are written down as they were.
        self.world.bundle_us = self._rng("bundles 42730").choice(BUNDLES_US)
        self.world.greets_first = self.world.greets and rng.random() < 0.5
        self.world.strict = self.world.greets and rng.random() < 0.5
        self._set_chances(rng)
        self.small = tiny.drawn(self._rng("tiny")) if "tiny_limits" in self.faults else {}
        bundles = {"bundles"} if self.world.bundle_us > 0 else set()
        self.work = Work(self._rng("work"), drawn | bundles, len(self.boxes), self.fault_ms)
        small = "company" in force or self._rng("company 7772").random() < COMPANY
        if small and "company" not in self.drop:
            if not self.world.bundle_us:
                self.world.bundle_us = 100_000
            self.work.company(self._rng("small tasks"))
        self.deeds = self._deeds(drawn)
        self.hand = Faults(self.world)
        self.hand.only_clones = self.faults <= HARMLESS_KINDS
        self.rest: list[Machine] = []
        self.clients: dict[str, Client] = {}
        self.items: dict[str, str] = {}
        self._make_machines()
        self._make_work()
        self._make_faults()

    def _rng(self, part: str) -> Random:
        """Each part of a history has its own generator: parts can be left out."""
        return Random(f"{self.seed} {part}")

    def options(self) -> list[str]:
        """The whole history in readable lines."""
        boxes = ", ".join(f"n{i}: {box.slots} slots" for i, box in enumerate(self.boxes))
        lines = [
            f"seed {self.seed}: {boxes}",
            f"weather: {self.weather}",
            f"faults for {self.fault_ms} ms: {', '.join(sorted(self.faults)) or 'none'}",
            f"heartbeat {self.world.heartbeat_ms}, batches {self.world.batches}, greets "
            f"{self.world.greets} (first {self.world.greets_first}), links {self.world.links}, "
            f"bundles {self.world.bundle_us}",
        ]
        if self.small:
            lines.append(f"limits: {self.small}")
        lines.extend(f"{name}: {text}" for name, text in self.items.items())
        return lines

    # --- drawing ----------------------------------------------------------------------------------

    def _weather(self) -> Weather:
        rng, on = self._rng("weather"), self.faults.__contains__
        jitter_ms, loss = rng.choice((50, 500, 3_000)), rng.choice((10, 100, 300))
        calm_ms = rng.choice((0, 1, 3))
        double, hold = rng.choice((20, 200)), rng.choice((5, 50))
        hold_ms, rate = rng.choice((3_000, 30_000)), rng.choice((30, 300, 3_000))
        line, kept = rng.choice((0, 20_000, 600_000)), rng.choice((3, 1_000))
        return Weather(
            delay_ms=rng.choice((0, 1, 2, 20)),
            jitter_ms=jitter_ms if on("jitter") else calm_ms,
            loss_permille=loss if on("loss") else 0,
            double_permille=double if on("double") else 0,
            hold_permille=hold if on("hold") else 0,
            hold_ms=hold_ms if on("hold") else 100,
            bytes_per_ms=rate if on("slow_links") else 0,
            line_bytes=line if on("slow_links") else 0,
            kept_max=kept if on("stale_bursts") else 0,
        )

    def _boxes(self, drawn: Collection[str]) -> list[Box]:
        rng, on = self._rng("boxes"), self.faults.__contains__
        boxes = []
        for index in range(rng.choice(MANY_NODES if "many_nodes" in drawn else NODES)):
            slots, ssd = rng.choice((1, 1, 2, 2, 4)), rng.random() < 0.4
            priority = rng.choice((0, 0, 0, 1, -128)) if index else 0
            rate, boot_ms = rng.choice((990, 1000, 1010, 955, 1045)), rng.choice(BOOTS_MS)
            wall_ms, newer = rng.choice(WALLS_MS), rng.random() < 0.5
            start_ms = rng.choice((0, rng.randrange(3_000)))
            boxes.append(
                Box(
                    slots,
                    ssd,
                    priority,
                    rate if on("clocks") else 1000,
                    boot_ms if on("clocks") else 1_000,
                    wall_ms if on("wall_jump") else 0,
                    2 if newer and on("versions") else 1,
                    start_ms,
                )
            )
        return boxes

    def _deeds(self, drawn: Collection[str]) -> list[Deed]:
        deeds = []
        for kind in Faults.kinds():
            if kind not in drawn:
                continue
            rng = self._rng(kind)
            for number in range(rng.choice(COUNTS)):
                deeds.append(
                    Deed(
                        f"{kind}#{number}",
                        kind,
                        rng.randrange(len(self.boxes)),
                        rng.randrange(EARLIEST_MS, 3_000 + self.fault_ms),
                        rng.choice(LASTS_MS),
                        rng.getrandbits(40),
                    )
                )
        return deeds

    def _set_chances(self, rng: Random) -> None:
        world, on = self.world, self.faults.__contains__
        lost, flipped, unseen = rng.choice((50, 300)), rng.choice((5, 300)), 300
        world.flush_ms_max = 400 if on("slow_disk") else 8
        world.kill_ms_max = 950 if on("slow_kill") else 50
        world.bulk_loss_permille = lost if on("fetch") else 0
        world.flip_permille = flipped if on("flips") else 0
        world.unseen_permille = unseen if on("unseen") else 0

    # --- the cluster ------------------------------------------------------------------------------

    def _make_machines(self) -> None:
        world = self.world
        for index, box in enumerate(self.boxes):
            machine = world.add_machine(
                f"n{index}",
                box.slots,
                labels={"disk": "ssd"} if box.ssd else None,
                priority=box.priority,
                version=box.version,
            )
            machine.set_clock(box.rate_permille, box.boot_ms)
            machine.wall_ms = box.wall_ms
            world.at(box.start_ms, machine.start)

    def _make_work(self) -> None:
        world = self.world
        for member in self.work.members:
            self.items[member.name] = member.told()
            if member.name in self.drop:
                continue
            client = world.add_client(world.machines[member.machine], member.session)
            client.slow_ms, client.says_seen = member.slow_ms, member.says_seen
            self.clients[member.name] = client
            world.at(member.opens_ms, client.open)
            if member.dies_ms >= 0:
                world.at(member.dies_ms, self._dies, client, member)
        for one in self.work.submissions:
            self.items[one.name] = one.told()
            for piece in one.pieces:
                self.items[piece.name] = f"a task of {one.name}"
            if one.name not in self.drop and one.client in self.clients:
                world.at(one.when_ms, self._submit, one)

    def _dies(self, client: Client, member: Member) -> None:
        client.die()
        if member.heir_ms >= 0:
            self.world.at(self.world.now + member.heir_ms, self._inherit, client, member.name)

    def _inherit(self, client: Client, name: str) -> None:
        """The same program again: another session, and the durable work that it meant."""
        heir = self.world.add_client(client.machine)
        self.clients[name] = heir
        heir.open()
        heir.take_over(client)

    def _submit(self, one: Submission) -> None:
        world = self.world
        client = self.clients[one.client]
        pieces = [piece for piece in one.pieces if piece.name not in self.drop]
        if not pieces or not client.alive:
            return
        if one.code is not None:
            client.objects[one.code.digest] = one.code.size
        items = []
        for piece in pieces:
            world.names.tasks[piece.task] = piece.name
            world.plans[piece.task] = piece.plan
            if isinstance(piece.work, m.Ref):
                client.objects[piece.work.digest] = piece.work.size
            items.append(m.Item(piece.task, piece.work))
        submit = m.Submit(
            client.session,
            one.spec,
            one.code,
            one.durable,
            one.wait_for_node,
            tuple(items),
            one.deadline_ms,
        )
        world.observer.submitted(client.machine.index, client.session, submit)
        client.submit(submit)
        ids = tuple(piece.task for piece in pieces if piece.cancelled)
        if one.cancel_ms >= 0 and ids:
            world.at(world.now + one.cancel_ms, client.cancel, ids)
            if not one.spec.timeout_ms and any(piece.plan.fate == "hang" for piece in pieces):
                # Nothing but its wish ever ends such a task.
                world.at(world.now + INSIST_MS, self._insist, client, ids)

    def _insist(self, client: Client, ids: tuple[bytes, ...]) -> None:
        """Say a wish again until it has come true, as a client does."""
        known = [client.tasks[one] for one in ids if one in client.tasks]
        # What it takes for lost may have been accepted all the same.
        left = tuple(one.task for one in known if one.ended is None)
        if client.alive and (left or len(known) < len(ids)):
            client.cancel(left)
            self.world.at(self.world.now + INSIST_MS, self._insist, client, ids)

    def _make_faults(self) -> None:
        for deed in self.deeds:
            self.items[deed.name] = deed.told()
            if deed.kind in self.faults and deed.name not in self.drop:
                self.world.at(deed.when_ms, self.hand.carry_out, deed)

    # --- two phases -------------------------------------------------------------------------------

    def play(self) -> None:
        """Faults, then healing, then everything must come true."""
        with tiny.limited(self.small):
            self._play()

    def _play(self) -> None:
        world = self.world
        world.run(FIRST_MS + self.fault_ms)
        core = self._heal()
        if world.greets_first:
            # Who starts asks its peers first.
            world.run(world.now + ASKING_MS + 50)
        if self.hand.clones or "roll_back" in self.faults:
            # A life that was rolled back may be taken for a clone where messages are seconds late.
            self._restart_clones(core)
        liveness.leader(world, core, self.rest)
        world.run(world.now + PATIENCE_MS, lambda: not self._unfinished(core))
        left = [task for task in self._unfinished(core) if not self._kept_away(task, core)]
        if left:
            names = ", ".join(world.names.task(task) for task in left[:5])
            raise Broken("L2", f"{names} did not end in {PATIENCE_MS // 1000} s")
        liveness.leader(world, core, self.rest)
        self._check_lives(core)
        liveness.starts(world, self.faults)
        if self.seed % STEADY_EVERY == 0:
            liveness.steady(world, core, self.rest)
        world.observer.last_look()

    def _check_lives(self, core: list[Machine]) -> None:
        """R-life-2: where the core meets, everybody lives the newest life that anybody knows."""
        world = self.world
        if not self.faults & LIARS:
            return
        world.run(world.now + FORGOTTEN_MS, lambda: not self._forgotten(core), every=16)
        forgotten = self._forgotten(core)
        if forgotten:
            raise Broken("R-life-2", f"{forgotten} (at {world.now} ms)")

    @staticmethod
    def _forgotten(core: list[Machine]) -> str:
        for machine in core:
            for other in core:
                known = other.lives.newest(machine.id)
                here = machine.node is not None and machine.node.inc
                if other is not machine and known and known != here:
                    return f"{other.name} knows a life of {machine.name} that it does not live"
        return ""

    def _restart_clones(self, core: list[Machine]) -> None:
        """Somebody restarts what still takes itself for a clone; soon nothing does."""
        world = self.world
        for restarts in range(1 + RESTARTS_MAX):
            world.run(world.now + CLONE_LOOK_MS)
            # Who is only in doubt begins another life by itself, as soon as that is over.
            world.run(world.now + _doubt_ms(core), lambda: not self._in_state(core, State.TOLD))
            twins = self._in_state(core, State.CLONE)
            idle = twins or self._in_state(core, State.TOLD)
            if not idle:
                return
            if restarts == RESTARTS_MAX:
                world.broken("clone", f"{idle[0].name} does not serve, and its clone is gone")
            for machine in twins:
                machine.crash(power=False)
                machine.start()

    @staticmethod
    def _in_state(core: list[Machine], state: State) -> list[Machine]:
        """Machines whose present life stands like this to others of the same node."""
        return [one for one in core if one.node is not None and one.node.lives.state is state]

    def _heal(self) -> list[Machine]:
        """Choose the core and repair it; what is outside may stay as bad as it likes."""
        world, rng = self.world, self._rng("heal")
        self.hand.over = True
        self.hand.unclone()
        core = list(world.machines[: len(self.boxes)])
        rest: list[Machine] = []
        if "broken_rest" in self.faults and len(core) > 1:
            rng.shuffle(core)
            keep = rng.randrange(1, len(core))
            core, rest = sorted(core[:keep], key=lambda one: one.index), core[keep:]
        world.told(f"healed core: {[one.name for one in core]}")
        world.network.weather = self.weather._replace(
            jitter_ms=min(self.weather.jitter_ms, 50),
            loss_permille=0,
            double_permille=0,
            hold_permille=0,
            bytes_per_ms=0,
        )
        world.bulk_loss_permille = world.flip_permille = world.unseen_permille = 0
        world.network.cuts.clear()
        world.network.heal_is_final()
        world.pour()
        for machine in core:
            machine.crash_after = machine.stall_after = None
            machine.disk.flushes_left = -1
            machine.disk.rotten.clear()
            machine.image = None
            machine.thaw()
            machine.resume()
            if machine.stopping:
                # It was about to leave: it has left.
                machine.crash(power=False, keep=len(machine.disk.pending))
            if machine.disk.full:
                machine.fill_disk(False)
            machine.disk.drains = False
            machine.start()
            machine.feed(n.Drain(False))
        if "drain_order" in self.faults:
            self._resume(core, world.now + LATE_ORDERS_MS)
        for client in world.clients.values():
            client.says_seen, client.slow_ms = True, 0
        for machine in rest:
            self._stay_broken(machine, rng)
        self.rest = rest
        return core

    def _resume(self, core: list[Machine], until_ms: int) -> None:
        """Orders to drain that were late on their way still come: somebody takes them back."""
        for machine in core:
            if machine.disk.drains:
                machine.disk.drains = False
                machine.feed(n.Drain(False))
        if self.world.now < until_ms:
            self.world.at(self.world.now + 1_000, self._resume, core, until_ms)

    def _stay_broken(self, machine: Machine, rng: Random) -> None:
        how = rng.choice(BROKEN)
        self.world.told(f"{machine.name} stays broken: {how}")
        cut = self.world.network.cut
        me = machine.index
        for other in self.world.machines:
            if other is machine:
                continue
            if how == "deaf":
                for path in PATHS:
                    cut(other.index, me, path)
            elif how == "dumb":
                cut(me, other.index, DIRECT)
            elif how == "half" and rng.random() < 0.5:
                cut(other.index, me, rng.choice((DIRECT, TELEMETRY)))
        if how == "off":
            machine.crash(power=True)
            machine.off_for_good = True
        elif how == "frozen":
            machine.freeze()
            machine.off_for_good = True

    def _unfinished(self, core: list[Machine]) -> list[bytes]:
        """Accepted tasks of living owners and sessions that the core could run."""
        world = self.world
        left = []
        inside = {machine.index for machine in core}
        for task, truth in world.observer.tasks.items():
            if truth.ended is not None or truth.owner not in inside or truth.excused:
                continue
            owner = world.machines[truth.owner]
            node = owner.node
            if node is None:
                continue
            record = node.owner.tasks.get(task)
            if record is None or record.ended is not None:
                continue
            gone = truth.session not in node.owner.sessions.sessions
            if not truth.durable and gone:
                continue
            spec = truth.spec
            able = sum(1 for one in core if spec.needs == NEEDS or one.caps.labels)
            eligible = any(one.priority != -128 for one in core)
            home = node.owner.view.fits(owner.id, spec.needs) and spec.gang == 1
            if spec.gang > 1 and self.rest:
                # Two half-connected pools may each keep one of its nodes (Known weaknesses).
                continue
            if able >= spec.gang and (eligible or (home and not spec.exclusive)):
                left.append(task)
        return left

    def _kept_away(self, task: bytes, core: list[Machine]) -> bool:
        """Does a claimant outside keep its owner's pool apart from all that could run it?"""
        owner = self.world.machines[self.world.observer.tasks[task].owner]
        record = owner.node.owner.tasks.get(task) if owner.node is not None else None
        if record is None or not self.rest:
            return False
        spec = record.cls.spec
        able = [one for one in core if spec.needs == NEEDS or one.caps.labels]
        if owner in able and not spec.exclusive:
            return False
        return all(liveness.apart(self.world, owner, one) for one in able)


def _doubt_ms(core: list[Machine]) -> int:
    """How long one of them may go on doubting its own life (R-life-2)."""
    dead_ms = (one.node.membership.dead_ms() for one in core if one.node is not None)
    return max(DOUBT_MS_MIN, DOUBT_DEADS * max(dead_ms, default=0)) * 11 // 10


BOOTS_MS = (0, 1_000, 500_000, 10**9)
WALLS_MS = (0, 0, -(10**12), 10**12, 3_600_000)


def _kinds(rng: Random) -> frozenset[str]:
    """Which kinds of faults are on: none, a few, or many."""
    how = rng.random()
    few, chance = rng.choice((1, 1, 2, 3)), 0.08 if how < 0.8 else 0.2
    chosen = rng.sample(FAULTS, few)
    many = [name for name in FAULTS if rng.random() < chance]
    if how < 0.06:
        return frozenset()
    found = frozenset(chosen if how < 0.4 else many)
    return found - LIARS if len(found) > LIARS_KINDS_MAX else found


def run_seed(
    seed: int,
    force: Collection[str] = (),
    drop: Collection[str] = (),
    salt: int = 0,
    **world: Any,
) -> Result:
    """Play one seed, with these faults on in any case; a broken promise is in the result.

    What is named in `drop` is left out, and nothing else changes but for what follows from it;
    another `salt` is another network and disk under the same choices.
    """
    swarm = Swarm(seed, force, drop, salt, **world)
    rule = text = ""
    try:
        swarm.play()
    except Broken as broken:
        rule, text = broken.rule, broken.text
    except Exception as error:  # a bug of any kind in the core is a finding
        rule, text = "crash", f"{type(error).__name__}: {error}"
    cluster = swarm.world
    starts = sum(len(truth.starts) for truth in cluster.observer.tasks.values())
    return Result(
        seed,
        rule,
        text,
        cluster.digest,
        cluster.events,
        cluster.now,
        len(cluster.observer.tasks),
        starts,
    )
