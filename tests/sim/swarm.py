"""From one seed to one history: which faults are on, how many nodes, what work, what breaks when.

First faults are on and every invariant must hold; then a core of nodes heals, the rest may stay
broken for ever, and everything accepted that the core can run must end.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from blackroad.bus import messages as m
from blackroad.requirements import Needs
from tests.sim.cluster import Broken, Cluster
from tests.sim.machine import Machine, Plan
from tests.sim.network import DIRECT, PATHS, TELEMETRY, Weather

FAULTS = (
    "loss",
    "double",
    "jitter",
    "hold",
    "cut",
    "one_way",
    "path_cut",
    "daemon_crash",
    "mid_crash",
    "power_cut",
    "pause",
    "freeze",
    "drain",
    "leave",
    "clocks",
    "client_death",
    "cancel",
    "fetch",
    "evict",
    "mad_table",
    "slow_disk",
    "slow_kill",
    "unseen",
    "broken_rest",
)
LEASES_MS = (0, 5_000, 5_000, 8_000)
SETTLE_MS = 30_000
PATIENCE_MS = 1_500_000
# All runs of all tasks together, one after the other: patience must be enough for one slot.
WORK_MS = 500_000
NEEDS = Needs().to_wire()


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


class Swarm:
    """One seed's choices, and the hand that carries them out."""

    def __init__(self, seed: int, force: tuple[str, ...] = (), **world: Any) -> None:
        self.rng = rng = Random(seed * 7919 + 17)
        self.faults = frozenset(name for name in FAULTS if rng.random() < 0.25)
        if rng.random() < 0.06:
            self.faults = frozenset()
        self.faults |= frozenset(force)
        on = self.faults.__contains__
        weather = Weather(
            delay_ms=rng.choice((0, 1, 2, 20)),
            jitter_ms=rng.choice((50, 500, 3_000)) if on("jitter") else rng.choice((0, 1, 3)),
            loss_permille=rng.choice((10, 100, 300)) if on("loss") else 0,
            double_permille=rng.choice((20, 200)) if on("double") else 0,
            hold_permille=rng.choice((5, 50)) if on("hold") else 0,
            hold_ms=rng.choice((3_000, 30_000)) if on("hold") else 100,
        )
        self.weather = weather
        self.world = Cluster(rng.getrandbits(60), weather=weather, wire=rng.random() < 0.2, **world)
        self.world.flush_ms_max = 400 if on("slow_disk") else 8
        self.world.kill_ms_max = 950 if on("slow_kill") else 50
        self.world.fetch_failure_permille = 200 if on("fetch") else 0
        self.world.unseen_permille = 300 if on("unseen") else 0
        self.fault_ms = rng.choice((5_000, 20_000, 45_000))
        self._tasks = 0
        self._left_ms = WORK_MS
        self._make_machines()
        self._make_clients()
        self._make_faults()

    # --- the cluster ------------------------------------------------------------------------------

    def _make_machines(self) -> None:
        rng, world = self.rng, self.world
        for index in range(rng.choice((1, 2, 2, 3, 3, 3, 4, 5, 6))):
            labels = {"disk": "ssd"} if rng.random() < 0.4 else None
            machine = world.add_machine(
                f"n{index}",
                rng.choice((1, 1, 2, 2, 4)),
                labels=labels,
                priority=rng.choice((0, 0, 0, 1, -128)) if index else 0,
            )
            if "clocks" in self.faults:
                rate = rng.choice((990, 1000, 1010, 955, 1045))
                machine.set_clock(rate, rng.choice((0, 1_000, 500_000, 10**9)))
            world.at(rng.choice((0, rng.randrange(3_000))), machine.start)

    def _make_clients(self) -> None:
        rng, world = self.rng, self.world
        for _ in range(rng.choice((1, 1, 2, 3))):
            client = world.add_client(rng.choice(world.machines))
            world.at(rng.randrange(3_200), client.open)
            mixes = [self._mix() for _ in range(rng.choice((1, 1, 2, 3)))]
            for _ in range(rng.choice((1, 2, 4, 8))):
                spec, durable, plans = rng.choice(mixes)
                when = rng.randrange(3_200, 3_200 + self.fault_ms)
                world.at(when, self._submit, client, spec, durable, plans)
            if "client_death" in self.faults and rng.random() < 0.5:
                world.at(rng.randrange(3_200, 3_200 + self.fault_ms), client.die)

    def _mix(self) -> tuple[m.ClassSpec, bool, tuple[Plan, ...]]:
        """One kind of task."""
        rng = self.rng
        run_ms = rng.choice((1, 1, 20, 200, 2_000, 9_000, 60_000))
        fate = rng.choice(("done",) * 8 + ("fail", "crash", "oom", "poison", "hang"))
        needs = Needs(labels={"disk": "ssd"}).to_wire() if rng.random() < 0.15 else NEEDS
        lease_ms = rng.choice(LEASES_MS)
        nodes = len(self.world.machines)
        gang = 2 if nodes > 1 and rng.random() < 0.12 else 1
        timeout_ms = run_ms // 2 + 2_000 if fate == "hang" or rng.random() < 0.1 else 0
        spec = m.ClassSpec(
            needs,
            priority=rng.choice((0, 0, 0, 5, -3)),
            user=rng.choice(("", "ann", "bob")),
            gang=gang,
            exclusive=gang == 1 and rng.random() < 0.08,
            pure=gang == 1 and rng.random() < 0.25,
            once=rng.random() < 0.08,
            retries=rng.choice((0, 0, 2)),
            timeout_ms=timeout_ms,
            lease_ms=lease_ms,
            name=rng.choice(("pi", "fib", "wave")),
        )
        bad = rng.choice((1, 2, 3, 10**9))
        large = rng.random() < 0.2
        plans = tuple(
            Plan(max(1, int(run_ms * rng.choice((0.5, 1, 1, 2)))), fate, bad, large)
            for _ in range(3)
        )
        return spec, rng.random() < 0.5, plans

    def _submit(
        self, client: Any, spec: m.ClassSpec, durable: bool, plans: tuple[Plan, ...]
    ) -> None:
        rng, world = self.rng, self.world
        items = []
        code = None
        if rng.random() < 0.2:
            code = m.Ref(rng.randbytes(32), 5_000)
            client.objects[code.digest] = code.size
        count = rng.choice((1, 1, 2, 5, 12))
        if plans[0].run_ms > 4_000 or spec.gang > 1 or spec.exclusive:
            count = min(count, 2)
        for _ in range(count):
            task = rng.randbytes(16)
            self._tasks += 1
            world.names.tasks[task] = f"t{self._tasks}"
            world.plans[task] = self._afford(rng.choice(plans))
            work: m.Payload = rng.randbytes(4)
            if rng.random() < 0.1:
                work = m.Ref(rng.randbytes(32), 80_000)
                client.objects[work.digest] = work.size
            items.append(m.Item(task, work))
        deadline_ms = rng.choice((1_000, 20_000)) if rng.random() < 0.08 else 0
        submit = m.Submit(
            client.session, spec, code, durable, rng.random() < 0.5, tuple(items), deadline_ms
        )
        world.observer.submitted(client.machine.index, client.session, submit)
        client.submit(submit)
        if "cancel" in self.faults and rng.random() < 0.5:
            ids = tuple(item.task for item in items if rng.random() < 0.7)
            if ids:
                world.at(world.now + rng.choice((0, 5, 300, 5_000)), client.cancel, ids)

    def _afford(self, plan: Plan) -> Plan:
        """Make long tasks short once there are enough of them."""
        worst_ms = 3 * plan.run_ms
        if worst_ms > self._left_ms:
            return Plan(min(plan.run_ms, 200), plan.fate, plan.bad_tries, plan.large)
        self._left_ms -= worst_ms
        return plan

    # --- faults -----------------------------------------------------------------------------------

    def _make_faults(self) -> None:
        rng, world = self.rng, self.world
        kinds = {
            "cut": self._cut,
            "one_way": self._one_way,
            "path_cut": self._path_cut,
            "daemon_crash": self._daemon_crash,
            "mid_crash": self._mid_crash,
            "power_cut": self._power_cut,
            "pause": self._pause,
            "freeze": self._freeze,
            "drain": self._drain,
            "leave": self._leave,
            "evict": self._evict,
            "mad_table": self._mad_table,
        }
        for name, fault in kinds.items():
            if name not in self.faults:
                continue
            for _ in range(rng.choice((1, 2, 4, 8))):
                when = rng.randrange(500, 3_000 + self.fault_ms)
                world.at(when, fault, rng.choice(world.machines))

    def _for(self) -> int:
        """How long the next fault lasts."""
        return self.rng.choice((50, 800, 2_000, 6_000, 15_000, 40_000))

    def _cut_links(self, links: list[tuple[int, int, int]], for_ms: int) -> None:
        world = self.world
        for link in links:
            world.network.cut(*link)
            world.at(world.now + for_ms, world.network.heal, *link)

    def _cut(self, machine: Machine) -> None:
        others = [one.index for one in self.world.machines if one is not machine]
        group = [machine.index, *(i for i in others if self.rng.random() < 0.3)]
        rest = [i for i in others if i not in group]
        for_ms = self._for()
        self.world.told(f"cut {group} from {rest} for {for_ms} ms")
        self._cut_links(
            [(a, b, p) for x in group for y in rest for a, b in ((x, y), (y, x)) for p in PATHS],
            for_ms,
        )

    def _one_way(self, machine: Machine) -> None:
        others = [one.index for one in self.world.machines if one is not machine]
        if others:
            other = self.rng.choice(others)
            for_ms = self._for()
            self.world.told(f"cut {machine.index} to {other} for {for_ms} ms")
            self._cut_links([(machine.index, other, path) for path in PATHS], for_ms)

    def _path_cut(self, machine: Machine) -> None:
        path = self.rng.choice(PATHS)
        inward = self.rng.random() < 0.5
        for_ms = self._for()
        self.world.told(f"cut path {path} of {machine.name} for {for_ms} ms")
        me = machine.index
        others = [one.index for one in self.world.machines if one is not machine]
        self._cut_links([(o, me, path) if inward else (me, o, path) for o in others], for_ms)

    def _again(self, machine: Machine, start_ms: int = 0) -> None:
        self.world.at(self.world.now + (start_ms or self._for()), machine.start)

    def _daemon_crash(self, machine: Machine) -> None:
        machine.crash(power=False, keep=self.rng.randrange(4))
        self._again(machine)

    def _mid_crash(self, machine: Machine) -> None:
        machine.crash_after = self.rng.randrange(5)
        self.world.at(self.world.now + 1_000, self._unarm, machine)

    def _unarm(self, machine: Machine) -> None:
        machine.crash_after = None

    def _power_cut(self, machine: Machine) -> None:
        machine.crash(power=True, keep=self.rng.randrange(4))
        self._again(machine)

    def _pause(self, machine: Machine) -> None:
        machine.pause()
        self.world.at(self.world.now + self._for(), machine.resume)

    def _freeze(self, machine: Machine) -> None:
        machine.freeze()
        self.world.at(self.world.now + self._for(), machine.thaw)

    def _drain(self, machine: Machine) -> None:
        from blackroad import node as n

        machine.feed(n.Drain(True))
        self.world.at(self.world.now + self._for(), machine.feed, n.Drain(False))

    def _leave(self, machine: Machine) -> None:
        machine.leave()
        self._again(machine)

    def _evict(self, machine: Machine) -> None:
        machine.evict()

    def _mad_table(self, machine: Machine) -> None:
        """The followed coordinator tells rows that make no sense."""
        node = machine.node
        if node is None or node.election.claim is None:
            return
        rng = self.rng
        for target in self.world.machines:
            if target.node is None or target is machine:
                continue
            rows = tuple(
                m.Row(rng.randrange(1, 4), rng.choice(self.world.machines).id, rng.randrange(9))
                for _ in range(rng.randrange(6))
            )
            seq = _next_seq(node.coordinator)
            table = m.Allocation(node.election.claim, seq, target.node.inc, 1, rows)
            self.world.send(machine, target.id, table)

    # --- two phases -------------------------------------------------------------------------------

    def play(self) -> None:
        """Faults, then healing, then everything must come true."""
        world = self.world
        world.run(3_200 + self.fault_ms)
        core = self._heal()
        self._check_leader(core)
        world.run(world.now + PATIENCE_MS, lambda: not self._unfinished(core))
        left = self._unfinished(core)
        if left:
            names = ", ".join(world.names.task(task) for task in left[:5])
            raise Broken("L2", f"{names} did not end in {PATIENCE_MS // 1000} s")
        self._check_leader(core)
        self._check_starts()

    def _heal(self) -> list[Machine]:
        """Choose the core and repair it; what is outside may stay as bad as it likes."""
        rng, world = self.rng, self.world
        core = list(world.machines)
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
        )
        world.fetch_failure_permille = 0
        world.unseen_permille = 0
        world.network.cuts.clear()
        world.network.heal_is_final()
        for machine in core:
            machine.crash_after = None
            machine.thaw()
            machine.resume()
            machine.start()
            from blackroad import node as n

            machine.feed(n.Drain(False))
        for machine in rest:
            self._stay_broken(machine)
        self.rest = rest
        return core

    def _stay_broken(self, machine: Machine) -> None:
        how = self.rng.choice(("off", "off", "deaf", "dumb", "half", "frozen"))
        self.world.told(f"{machine.name} stays broken: {how}")
        cut = self.world.network.cut
        me = machine.index
        for other in self.world.machines:
            if other is machine:
                continue
            if how == "deaf":
                cut(other.index, me, DIRECT)
                cut(other.index, me, TELEMETRY)
            elif how == "dumb":
                cut(me, other.index, DIRECT)
            elif how == "half" and self.rng.random() < 0.5:
                cut(other.index, me, self.rng.choice(PATHS))
        if how == "off":
            machine.crash(power=True)
            machine.off_for_good = True
        elif how == "frozen":
            machine.freeze()
            machine.off_for_good = True

    def _check_leader(self, core: list[Machine]) -> None:
        """L1: everybody in the core follows one coordinator (someone, where others meddle)."""
        world = self.world
        while True:
            since_ms = max(world.now, world.observer.poisoned_ms)
            led = world.run(since_ms + SETTLE_MS, lambda: self._led(core))
            if led or world.observer.poisoned_ms <= since_ms:
                break
        follows = []
        for machine in core:
            node = machine.node
            if node is None:
                raise Broken("L1", f"{machine.name} is down")
            follows.append(node.election.follows)
        eligible = any(one.priority != -128 for one in core)
        if not eligible and not self.rest:
            return
        if not self.rest and (b"" in follows or len(set(follows)) > 1):
            names = [self.world.names.node(one) for one in follows]
            raise Broken("L1", f"the core follows {names}")

    def _led(self, core: list[Machine]) -> bool:
        """Does everybody in the core follow the same living node?"""
        follows = [one.node.election.follows if one.node else b"" for one in core]
        return bool(follows[0]) and follows.count(follows[0]) == len(follows)

    def _unfinished(self, core: list[Machine]) -> list[bytes]:
        """Accepted tasks of living owners and sessions that the core could run."""
        world = self.world
        left = []
        inside = {machine.index for machine in core}
        for task, truth in world.observer.tasks.items():
            if truth.ended is not None or truth.owner not in inside:
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

    def _check_starts(self) -> None:
        """L3: without faults nothing starts twice, but for planned retries."""
        if self.faults - {"slow_disk", "slow_kill"} or self.world.observer.poisoned_ms > 0:
            return
        for task, truth in self.world.observer.tasks.items():
            plan = self.world.plans[task]
            if plan.fate != "done" or truth.spec.timeout_ms or truth.spec.pure:
                continue
            if len(truth.starts) > 1:
                name = self.world.names.task(task)
                raise Broken("L3", f"{name} started {len(truth.starts)} times without a fault")


def _next_seq(coordinator: Any) -> int:
    """Use up one of the coordinator's sequence numbers."""
    coordinator._seq += 1
    return int(coordinator._seq)


def run_seed(seed: int, force: tuple[str, ...] = (), **world: Any) -> Result:
    """Play one seed, with these faults on in any case; a broken promise is in the result."""
    swarm = Swarm(seed, force, **world)
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
