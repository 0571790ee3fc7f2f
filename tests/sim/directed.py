"""Directed histories: short ones that show what a random search would meet once in a million.

Each takes no argument, builds a cluster, and either comes to its end, where the healthy protocol
keeps every promise, or raises Broken.  Those that measure return what it took: starts, or
milliseconds.  This file must not know which mutant a history is for.
"""

from __future__ import annotations

from msgspec.structs import replace

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.limits import LEASE_MS
from tests.sim import liveness
from tests.sim.cluster import Broken
from tests.sim.network import DIRECT
from tests.sim.processes import Plan
from tests.sim.scene import Scene, least, story

# --- leases -------------------------------------------------------------------------------------


@story
def second_grant() -> int:
    """The first Grant is lost, the next is not; its worker's clock is slow, and it is cut off."""
    scene = Scene(1, 1, 1, rates=(1045, 955, 1000))
    scene.world.kill_ms_max = 950
    scene.only(1)
    scene.lose("Grant", 0, 1)
    scene.submit("t", 0, 60_000, lease_ms=LEASE_MS)
    attempts = scene.owner(0).owner.attempts
    scene.until(lambda: any(one.members[0].resends for one in attempts.values()))
    scene.free()
    scene.lose("Renew", 1, 0)
    scene.until(lambda: scene.runs("t"), 4_000)
    scene.everybody()
    scene.cut(0, 1)
    scene.cut(1, 0)
    scene.until(lambda: scene.starts("t") == 2, 60_000, step=20)
    scene.run(3_000)
    return 0


@story
def grant_on_its_way() -> int:
    """The network keeps a Grant for almost the whole lease."""
    scene = Scene(1, 1, 1)
    scene.only(1)
    scene.hold("Grant", 0, 1)
    scene.lose("Recall", 0, 1)
    scene.submit("t", 0, 60_000, lease_ms=LEASE_MS)
    scene.until(lambda: bool(scene.held))
    first = scene.world.now
    scene.run(18_500)
    scene.cut(0, 1)
    scene.cut(1, 0)
    scene.everybody()
    target, event = scene.held[0]
    target.feed(event)
    scene.world.run(first + 40_000)
    return scene.starts("t")


@story
def cut_off() -> int:
    """A worker loses its owner in the middle of a task."""
    scene = Scene(1, 1, 1)
    scene.only(1)
    scene.submit("t", 0, 60_000, lease_ms=5_000)
    scene.until(lambda: scene.runs("t"))
    scene.everybody()
    scene.cut(0, 1)
    scene.cut(1, 0)
    scene.run(20_000)
    return scene.starts("t")


@story
def daemon_stands_still() -> int:
    """A daemon stops beside its running task, as under a debugger."""
    scene = Scene(1, 1, 1)
    scene.only(1)
    scene.submit("t", 0, 60_000, lease_ms=5_000)
    scene.until(lambda: scene.runs("t"))
    scene.everybody()
    scene.machines[1].pause()
    scene.run(20_000)
    return scene.starts("t")


@story
def renewed_of_another_boot() -> int:
    """Renews are lost; a Renewed of an earlier boot, of equal stamp by chance, arrives."""
    scene = Scene(1, 1, 1)
    scene.only(1)
    scene.submit("t", 0, 60_000, lease_ms=5_000)
    scene.until(lambda: scene.runs("t"))
    scene.lose("Renew", 1, 0)
    scene.cut(0, 1, DIRECT)
    scene.everybody()
    worker, owner = scene.owner(1), scene.owner(0)
    past = worker.inc - (1 << 32)
    for _ in range(100):
        scene.run(200)
        peer = worker.worker.renewing.owners.get(owner.me)
        if peer is not None and peer.lists:
            renewed = m.Renewed(past, peer.lists[-1][0], ())
            scene.machines[1].feed(n.FromPeer(owner.me, (renewed,), owner.inc))
    return 0


@story
def smaller_stamps() -> int:
    """A worker that ran for long loses power; the stamps of its next boot are small."""
    scene = Scene(1, 1, 1)
    machine = scene.machines[1]
    scene.run(40_000)
    scene.crash(1, power=True)
    machine.set_clock(1000, 0)
    scene.until(lambda: machine.up)
    scene.run(3_000)
    scene.only(1)
    scene.lose("Renew", 1, 0)
    scene.submit("t", 0, 60_000, lease_ms=5_000)
    scene.until(lambda: scene.runs("t"))
    scene.cut(0, 1, DIRECT)
    scene.everybody()
    scene.run(20_000)
    return 0


@story
def dead_tokens() -> int:
    """An owner restarts and knows nothing of an attached task, which goes on for long."""
    scene = Scene(1, 1)
    scene.submit("t", 0, 400_000, on=1, durable=False, lease_ms=5_000)
    scene.until(lambda: scene.runs("t"))
    scene.crash(0)
    scene.run(60_000)
    return 0


# --- tokens -------------------------------------------------------------------------------------


@story
def refused_twice() -> int:
    """A Grant is refused while its worker drains; its twin comes when it drains no more."""
    scene = Scene(1, 1, 1)
    scene.only(1)
    scene.hold("Grant", 0, 1)
    scene.submit("t", 0, 6_000, lease_ms=20_000)
    scene.until(lambda: bool(scene.held))
    target, twin = scene.held[0]
    target.feed(n.Drain(True))
    scene.release()
    scene.run(100)
    scene.everybody(but=1)
    scene.until(lambda: scene.runs("t"), 15_000)
    scene.everybody()
    scene.run(500)
    target.feed(twin)
    scene.run(2_000)
    return 0


@story
def late_on_the_same_node() -> int:
    """An attempt's Outcome is late; the next one runs on the same node when it arrives."""
    scene = Scene(1, 1)
    scene.hold("Outcome", 1, 0)
    scene.submit("t", 0, 2_000, on=1, lease_ms=5_000)
    scene.until(lambda: bool(scene.held), 10_000)
    scene.free()
    scene.lose("Outcome", 1, 0)
    # The bound passes; then it is granted there again.
    scene.until(lambda: scene.starts("t") == 2, 60_000, step=20)
    scene.run(100)
    scene.release()
    scene.run(200)
    scene.end()
    return 0


@story
def same_serial_next_life() -> int:
    """An owner's next life gives the same serial to the same task; an old Outcome comes late."""
    scene = Scene(1, 1)
    scene.hold("Outcome", 1, 0)
    scene.submit("t", 0, 2_000, on=1, lease_ms=5_000)
    scene.until(lambda: scene.runs("t"))
    scene.crash(0, off_ms=200)
    scene.until(lambda: bool(scene.held), 20_000)
    scene.free()
    scene.lose("Outcome", 1, 0)
    scene.until(lambda: scene.starts("t") == 2, 60_000, step=20)
    scene.run(100)
    scene.release()
    scene.run(200)
    scene.end()
    return 0


@story
def same_serials_of_two_owners() -> int:
    """Two owners of the same age use the same serials on one worker, without any fault."""
    scene = Scene(1, 1, 4)
    for index in (0, 1):
        scene.submit(f"a{index}.", index, 300, on=2, count=8)
    scene.until(lambda: all(map(scene.ended, scene.tasks)), step=20)
    late = scene.owner(2).worker.counters.get(m.Reason.LATE.name, 0)
    if late:
        raise Broken("L3", f"{late} Grants were refused as late, and none was")
    return 0


# --- election -----------------------------------------------------------------------------------


def _lead(scene: Scene) -> int:
    """Who coordinates."""
    return next(
        machine.index
        for machine in scene.machines
        if machine.node is not None and machine.node.election.claim is not None
    )


@story
def who_cannot_hear() -> int:
    """The coordinator goes deaf for good: everybody else finds another one."""
    scene = Scene(1, 1, 1, 1)
    lead = _lead(scene)
    core = [one for one in scene.machines if one.index != lead]
    for machine in core:
        scene.cut(machine.index, lead)
    scene.run(liveness.settle_ms(core, scene.machines) + 12_000)
    liveness.steady(scene.world, core, [scene.machines[lead]])
    return 0


@story
def deaf_with_an_old_table() -> int:
    """A coordinator goes deaf on the direct path and restates an old table to a restarted owner."""
    scene = Scene(1, 1, 1, 1)
    lead = _lead(scene)
    core = [one for one in scene.machines if one.index != lead]
    owner = core[0].index
    scene.submit("t", owner, 60_000, on=core[1].index)
    scene.until(lambda: scene.runs("t"))
    for machine in core:
        scene.cut(machine.index, lead, DIRECT)
    scene.run(liveness.settle_ms(core, scene.machines) + 2_000)
    liveness.steady(scene.world, core, [scene.machines[lead]])
    return 0


# --- grants -------------------------------------------------------------------------------------


@story
def heard_but_deaf() -> int:
    """A worker is heard, follows, and cannot hear its owner: the task must run elsewhere."""
    scene = Scene(1, 1, 1, 1)
    lead = _lead(scene)
    owner, deaf, other = (one for one in range(4) if one != lead)
    scene.cut(owner, deaf, DIRECT)
    for index in (owner, lead, other):
        scene.submit(f"busy{index}", index, 30_000, on=index)
    scene.run(1_000)
    scene.submit("t", owner, 1_000)
    scene.until(lambda: scene.ended("t"), 60_000, step=50)
    return 0


@story
def second_user() -> int:
    """One user's short tasks wait in a worker; another user comes and gets a share of it."""
    scene = Scene(1, 2)
    for part in range(3):
        scene.submit(f"ann{part}.", 0, 100, on=1, count=100, user="ann")
    scene.run(1_500)
    scene.submit("bob", 1, 100, on=1, count=20, user="bob")
    took = least(scene, [name for name in scene.tasks if name.startswith("bob")])
    # One of two slots for 20 tasks of 100 ms, and what it takes to be let in.
    if took > 5_000:
        raise Broken("L4", f"the second user took {took} ms for 2000 ms of work")
    return took


@story
def late_recall() -> int:
    """A Recall of what only waited comes when it runs."""
    scene = Scene(1, 1, 1)
    scene.only(1)
    scene.submit("warm", 0, 60, count=6)
    scene.until(lambda: all(map(scene.ended, scene.tasks)), step=20)
    scene.hold("Recall", 0, 1)
    scene.submit("t", 0, 60, count=12)
    scene.until(lambda: scene.ended("t.1"))
    for machine in (scene.machines[0], scene.machines[2]):
        machine.feed(n.Drain(False))
    scene.until(lambda: bool(scene.held), 5_000)
    recalled = {event.messages[0].token for _, event in scene.held}  # type: ignore[union-attr]
    worker = scene.owner(1).worker
    scene.until(
        lambda: any(work.begun and key[1] in recalled for key, work in worker.works.items()),
        5_000,
    )
    scene.release()
    scene.end()
    most = max(scene.starts(name) for name in scene.tasks)
    if most > 1:
        raise Broken("L3", f"a task started {most} times without a fault")
    return most


@story
def client_gone() -> int:
    """A client dies; its attached task would go on for minutes."""
    scene = Scene(1, 1)
    scene.submit("t", 0, 400_000, on=1, durable=False, lease_ms=5_000)
    scene.until(lambda: scene.runs("t"))
    scene.client(0).die()
    scene.run(90_000)
    return 0


# --- submits, outcomes, objects -----------------------------------------------------------------


def _repeat(scene: Scene, name: str, *, twice: bool = False) -> None:
    """The client asks for a task once more."""
    client = scene.client(0)
    submit = client.tasks[scene.tasks[name]].submit
    if twice:
        submit = replace(submit, tasks=submit.tasks * 2)
    scene.machines[0].feed(n.FromClient(client.handle, (submit,)))


@story
def named_twice() -> int:
    """A Submit names its one task twice."""
    scene = Scene(2)
    client = scene.client(0)
    say = client.say
    client.say = lambda message: say(  # type: ignore[method-assign]
        replace(message, tasks=message.tasks * 2) if isinstance(message, m.Submit) else message
    )
    scene.submit("t", 0, 500)
    scene.until(lambda: scene.ended("t"), 10_000)
    scene.run(2_000)
    return scene.starts("t")


@story
def asked_again() -> int:
    """A client repeats a Submit whose task has ended."""
    scene = Scene(1, 1)
    scene.submit("t", 0, 200)
    scene.until(lambda: scene.ended("t"), 10_000)
    _repeat(scene, "t")
    scene.run(2_000)
    return scene.starts("t")


@story
def kept_for_its_time() -> int:
    """Nobody asks for an outcome for five minutes, and then its owner restarts."""
    scene = Scene(1)
    scene.client(0).says_seen = False
    scene.submit("t", 0, 200)
    scene.until(lambda: scene.ended("t"), 10_000)
    scene.run(300_000)
    scene.crash(0)
    scene.run(5_000)
    return 0


@story
def no_room() -> int:
    """A disk is full, and a client submits durable work."""
    scene = Scene(1, 1)
    scene.client(0)
    scene.machines[0].fill_disk(True)
    scene.run(1_000)
    scene.submit("t", 0, 200)
    scene.run(3_000)
    return 0


def _large(scene: Scene, name: str, on: int) -> None:
    """A task with a large result, run on one node."""
    scene.submit(name, 0, 300, on=on)
    scene.world.plans[scene.tasks[name]] = Plan(300, large=True)


@story
def result_on_its_way() -> int:
    """A large result takes a while to come to its owner."""
    scene = Scene(1, 1)
    _large(scene, "t", 1)
    scene.until(lambda: scene.ended("t"), 60_000)
    return 0


@story
def evicted_result() -> int:
    """A worker is short of room for objects while an owner is away, to which it owes a result."""
    scene = Scene(1, 1)
    _large(scene, "t", 1)
    scene.until(lambda: scene.runs("t"))
    scene.machines[0].crash(power=False, keep=10)
    scene.run(2_000)
    scene.machines[1].evict()
    scene.machines[0].start()
    scene.until(lambda: scene.ended("t"), 60_000, step=20)
    if scene.starts("t") > 1:
        raise Broken("L3", "a result that was owed got lost, and the task ran again")
    return scene.starts("t")


@story
def flipped_bits() -> int:
    """Every third chunk on the network is damaged."""
    scene = Scene(1, 1)
    scene.world.flip_permille = 300
    for number in range(4):
        _large(scene, f"t{number}", 1)
    scene.until(lambda: all(map(scene.ended, scene.tasks)), 300_000, step=50)
    return 0


# --- lives --------------------------------------------------------------------------------------


@story
def forgotten_lives() -> int:
    """A disk goes back to what it was many lives ago; its node must find into the cluster again."""
    scene = Scene(1, 1, 1, greets=True)
    machine = scene.machines[1]
    machine.take_image()
    for _ in range(3):
        scene.crash(1)
        scene.run(4_000)
    machine.roll_back()
    scene.run(1_000)
    machine.start()
    scene.run(12_000)
    liveness.leader(scene.world, scene.machines, [])
    return machine.disk.counter


@story
def two_of_one() -> int:
    """A second machine comes up with a copy of the disk, and both go on."""
    scene = Scene(1, 1, 1, greets=True)
    clone = scene.world.add_clone(scene.machines[1])
    scene.world.observer.cloned(scene.machines[1])
    clone.start()
    scene.run(30_000)
    if not scene.world.shuns:
        raise Broken("life-3", "two machines used one identity for 30 s and nobody noticed")
    return scene.world.shuns


# --- gangs and isolation ------------------------------------------------------------------------


@story
def held_over_a_restart() -> int:
    """An owner restarts between *hold* and *go* of a gang."""
    scene = Scene(1, 1, 1)
    scene.hold("Renew", 2, 0)
    scene.submit("g", 0, 1_000, gang=2, lease_ms=5_000)
    held = scene.world.observer.held
    scene.until(lambda: bool(held), 20_000)
    scene.crash(0, off_ms=200)
    scene.free()
    scene.held.clear()
    scene.until(lambda: scene.ended("g"), 120_000, step=50)
    return scene.starts("g")


@story
def poison() -> int:
    """A task takes down every node it runs on."""
    scene = Scene(1, 1, 1)
    scene.submit("p", 0, 200, fate="poison", lease_ms=5_000)
    scene.until(lambda: scene.ended("p"), 300_000, step=50)
    return scene.starts("p")


@story
def poison_at_home() -> int:
    """A task takes its own owner down, again and again."""
    scene = Scene(1)
    scene.submit("p", 0, 200, fate="poison", lease_ms=5_000)
    scene.until(lambda: scene.ended("p"), 300_000, step=50)
    return scene.starts("p")


@story
def innocents() -> int:
    """A task waits to run alone, and before it is let go its node goes down once more."""
    scene = Scene(1, 2, 1)
    observer = scene.world.observer
    scene.submit("i", 0, 12_000, on=1, lease_ms=5_000)
    for kills in (1, 2):
        scene.until(lambda: scene.runs("i"), 60_000)
        scene.submit(f"p{kills}", 1, 200, on=1, fate="poison", tries=1)
        scene.until(lambda kills=kills: observer.kills == kills, 60_000)
    # Two nodes went down under it: its next Grant holds a node for it alone.
    scene.hold("Grant", 0, 1)
    scene.until(lambda: bool(scene.held), 60_000)
    scene.crash(1, power=True)
    scene.run(6_000)
    scene.free()
    scene.end()
    return scene.starts("i")


# --- costs --------------------------------------------------------------------------------------


@story
def half_deaf_worker() -> int:
    """A worker takes Grants and its owner hears no answer: how long do twenty tasks take?"""
    scene = Scene(1, 4, 1, 1)
    lead = _lead(scene)
    owner = 2 if lead != 2 else 3
    scene.cut(1, owner, DIRECT)
    scene.submit("t", owner, 500, count=20, lease_ms=5_000)
    return least(scene, list(scene.tasks))


@story
def unused_reservation() -> int:
    """A gang holds nodes of which it cannot reach one: how long do others wait for them?"""
    scene = Scene(1, 1, 1, 1)
    lead = _lead(scene)
    owner, deaf, other = (one for one in range(4) if one != lead)
    scene.cut(owner, deaf, DIRECT)
    scene.submit("g", owner, 1_000, gang=4, lease_ms=5_000)
    scene.run(60_000)
    scene.submit("t", other, 300, count=100)
    return least(scene, [name for name in scene.tasks if name.startswith("t")])
