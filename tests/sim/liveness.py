"""What must come true once a core of nodes is healed: L1 (a coordinator) and L3 (no needless work).

Source  docs/protocol.md, "Invariants".  L2 needs to know what a seed submitted and is asked in
`swarm.py`; L4 is measured without faults, in `test_calm.py`.  Nothing here changes a history except
by letting time pass.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from blackroad.limits import (
    CRASH_RETRIES,
    DISTRUST_AFTER_DEADS,
    DISTRUST_DOUBLINGS,
    DISTRUST_FOR_DEADS,
    ELECT_BEATS,
    ELECT_RANK_BEATS,
)
from tests.sim.checkers import KILLS_MAX
from tests.sim.network import DIRECT, TELEMETRY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from blackroad.discovery.election import Election
    from tests.sim.checkers import Truth
    from tests.sim.cluster import Cluster
    from tests.sim.machine import Machine, Plan

NEVER = -128
# Messages on their way, rounding, and the Heartbeats that carry a belief.
SLACK_MS = 1_000
# For so long a settled core is watched, and so many reigns may begin in it meanwhile: one that is
# left over from the faults, and one more because a distrust ended.
STEADY_MS = 60_000
REIGNS_MAX = 3
LOOK_MS = 100
# A daemon asks its peers before it serves, and may have to begin another life.
UP_MS = 12_000
# These faults end no attempt: a task that starts twice under them was started twice for nothing.
GENTLE = frozenset(
    {
        *("slow_disk", "slow_kill", "unseen", "double", "evict", "cancel", "client_death"),
        *("drain", "mad_table", "clocks"),
    }
)
# These take attempts away, but only where they strike; each can cost a task one more start.
STRIKES = frozenset({"daemon_crash", "mid_crash", "power_cut", "pause", "freeze", "leave"})


def settle_ms(core: Sequence[Machine], everybody: Sequence[Machine]) -> int:
    """How long a healed core may take to follow one coordinator."""
    slowest = 0
    for machine in core:
        node = machine.node
        if node is None:
            continue
        beat_ms, dead_ms = node.membership.interval_ms, node.membership.dead_ms()
        rank = len(everybody) - 1
        elect_ms = max(ELECT_BEATS * beat_ms, dead_ms) + rank * ELECT_RANK_BEATS * beat_ms
        until_ms = max(node.election.distrusted.values(), default=0)
        longest_ms = (DISTRUST_FOR_DEADS << DISTRUST_DOUBLINGS) * dead_ms
        distrust_ms = min(max(0, until_ms - machine.clock()), longest_ms)
        if not node.election.served or node.election._unanswered_since_ms >= 0:
            # Its Demand went unanswered while things were broken; the healing may come too late.
            distrust_ms = max(distrust_ms, node.election.distrust_deads() * dead_ms)
        slowest = max(slowest, 2 * dead_ms + elect_ms + 3 * beat_ms + distrust_ms)
    return slowest + SLACK_MS


def follows(core: Sequence[Machine]) -> list[bytes]:
    """Whom each of them follows."""
    return [one.node.election.follows if one.node else b"" for one in core]


def leader(world: Cluster, core: Sequence[Machine], rest: Sequence[Machine]) -> None:
    """L1: the core follows one coordinator soon; half-broken peers outside cannot prevent one."""
    if not rest and all(one.priority == NEVER for one in core):
        return
    done = _one if not rest else partial(_settled, world)
    while True:
        kills, lives = world.observer.kills, _lives(core)
        run_until(world, world.now + UP_MS, lambda: all(one.up for one in core))
        since_ms = world.now
        until_ms = since_ms + settle_ms(core, world.machines)
        if rest:
            # A half-broken claimant has to be found out first.
            until_ms += settle_ms(core, world.machines)
        if run_until(world, until_ms, lambda: done(core)):
            return
        if (world.observer.kills, _lives(core)) == (kills, lives):
            break
    for machine in core:
        if machine.node is None:
            world.broken("L1", f"{machine.name} is down")
    if all(one.priority == NEVER for one in core):
        return
    names = [world.names.node(one) for one in follows(core)]
    world.broken("L1", f"the core follows {names} after {until_ms - since_ms} ms")


def _lives(core: Sequence[Machine]) -> int:
    """Changes whenever one of them stops or starts."""
    return sum(one.life for one in core)


def _one(core: Sequence[Machine]) -> bool:
    """Does everybody in the core follow the same node?"""
    found = follows(core)
    return bool(found[0]) and found.count(found[0]) == len(found)


def _settled(world: Cluster, core: Sequence[Machine]) -> bool:
    """Does each of the core follow somebody, or has it a reason not to?

    It may be lonely, or never claim and need a claimant where all others have one outside.
    """
    alone = [one for one, follow in zip(core, follows(core), strict=True) if not follow]
    if any(one.node is not None and one.node.election.claim is not None for one in core):
        return not alone
    return all(one.priority == NEVER or lonely(world, one) for one in alone)


def lonely(world: Cluster, machine: Machine) -> bool:
    """R-elect-3: does it hear a claimant behind a broken link, served to most others it hears?"""
    heard = _heard(world, machine)
    for claimant, election in heard:
        if election.claim is None or _whole(world, machine, claimant):
            continue
        others = [one for other, one in heard if other is not claimant]
        served = sum(one.served and one.follows == claimant.id for one in others)
        if 2 * served > len(others):
            return True
    return False


def apart(world: Cluster, one: Machine, other: Machine) -> bool:
    """Is there a claimant that one of them hears, and that cannot have both in its pool?"""
    return any(
        election.claim is not None
        and not (_whole(world, one, claimant) and _whole(world, other, claimant))
        for machine in (one, other)
        for claimant, election in _heard(world, machine)
    )


def _heard(world: Cluster, machine: Machine) -> list[tuple[Machine, Election]]:
    """Whose Heartbeats come to it now, and what those nodes believe."""
    return [
        (other, other.node.election)
        for other in world.machines
        if other is not machine
        and other.node is not None
        and not other.paused
        and world.network.connected(other.index, machine.index, TELEMETRY)
    ]


def _whole(world: Cluster, one: Machine, other: Machine) -> bool:
    """Does all that two nodes say to each other get through?"""
    ways = ((one.index, other.index), (other.index, one.index))
    return all(world.network.connected(*way, path) for way in ways for path in (DIRECT, TELEMETRY))


def steady(world: Cluster, core: Sequence[Machine], rest: Sequence[Machine]) -> None:
    """L3: without new faults coordinators do not alternate; L1: who is followed also listens."""
    if not rest or 2 * len(core) <= len(world.machines):
        # Beside a broken majority nobody can tell who is lonely.
        return
    if any(not one.off_for_good and _hears_few(world, one, core) for one in rest):
        return
    kills, lives = world.observer.kills, _lives(core)
    world.run(world.now + settle_ms(core, world.machines) + SLACK_MS)
    reigns = set()
    split = False
    heeded = _Heeded(world)
    until_ms = world.now + STEADY_MS
    while world.now < until_ms:
        world.run(world.now + LOOK_MS)
        if (world.observer.kills, _lives(core)) != (kills, lives):
            return
        split = split or _split(world, core)
        for machine in core:
            node = machine.node
            heeded.look(machine)
            if node is not None and node.election.follows_epoch is not None:
                reigns.add(node.election.follows_epoch)
    if len(reigns) > REIGNS_MAX and not split:
        world.broken("L3", f"the core saw {len(reigns)} reigns in {STEADY_MS // 1000} s")


def _split(world: Cluster, core: Sequence[Machine]) -> bool:
    """Does a claimant outside serve one of the core that cannot serve another?

    Then there are two pools, no claimant is supported, and nothing restrains a third.
    """
    for machine in core:
        election = machine.node.election if machine.node is not None else None
        leading = world.by_id.get(election.follows) if election and election.served else None
        if leading is None or leading in core:
            continue
        if not all(_whole(world, leading, one) for one in core):
            return True
    return False


def _hears_few(world: Cluster, machine: Machine, core: Sequence[Machine]) -> bool:
    """Does it hear no more than half of the core?  To such a node the others look lonely."""
    connected = world.network.connected
    heard = sum(connected(one.index, machine.index, TELEMETRY) for one in core)
    return 2 * heard <= len(core)


class _Heeded:
    """Nobody follows for long a coordinator that does not hear its Demands."""

    def __init__(self, world: Cluster) -> None:
        self._world = world
        # Of each node: the coordinator it follows, a Demand it sent, and when that was first seen.
        self._open: dict[int, tuple[bytes, int, int]] = {}

    def look(self, machine: Machine) -> None:
        """Compare what a node said last with what its coordinator knows."""
        world, node = self._world, machine.node
        if node is None or node.election.follows in (b"", node.me):
            self._open.pop(machine.index, None)
            return
        follows, said = node.election.follows, node.owner.granting.demand_seq
        leading = world.by_id[follows].node
        known = leading.coordinator.owners.get(node.me) if leading is not None else None
        heard = known.demand.seq if known is not None and known.demand.inc == node.inc else -1
        before = self._open.get(machine.index)
        if before is None or before[0] != follows or heard >= before[1]:
            self._open[machine.index] = (follows, said, world.now)
            return
        limit_ms = (DISTRUST_AFTER_DEADS + 1) * node.membership.dead_ms() + SLACK_MS
        if world.now - before[2] > limit_ms:
            name = world.names.node(follows)
            text = f"{machine.name} follows {name}, which does not hear its Demands"
            world.broken("L1", f"{text} for {world.now - before[2]} ms")


def starts(world: Cluster, faults: Collection[str]) -> None:
    """L3: starts per task are at most one, those its own endings ask for, and one per fault."""
    observer = world.observer
    if not set(faults) <= GENTLE | STRIKES:
        return
    struck = observer.kills + len(observer.faults)
    if "leave" in faults:
        # Who leaves ends what it runs, grants it elsewhere, and may then be away for too long.
        struck += len(observer.faults)
    for task, truth in observer.tasks.items():
        most = 1 + _planned(truth, world.plans[task]) + struck
        if truth.spec.pure:
            most += struck
        if len(truth.starts) > most:
            name = world.names.task(task)
            text = f"{name} started {len(truth.starts)} times, for {struck} faults"
            world.broken("L3", text)


def _planned(truth: Truth, plan: Plan) -> int:
    """How often the task itself asks to be started again."""
    if plan.fate == "crash":
        return CRASH_RETRIES
    if plan.fate == "poison":
        return KILLS_MAX
    return truth.spec.retries if plan.fate != "done" or truth.spec.timeout_ms else 0


def run_until(world: Cluster, until_ms: int, stop: Callable[[], bool]) -> bool:
    """Let time pass until `stop` is true; unlike `run` it looks at least every `LOOK_MS`."""
    while not stop():
        if world.now >= until_ms:
            return False
        world.run(min(world.now + LOOK_MS, until_ms))
    return True
