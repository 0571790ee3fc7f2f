"""Rows about clocks: wall clocks that jump, machines that sleep, crystals that run wrong."""

from __future__ import annotations

from blackroad.limits import CLOCK_RATE_PERCENT
from blackroad.requirements import Needs
from tests.chaos.load import history
from tests.chaos.machines import Machine, until
from tests.chaos.scene import Row, Scene, Skipped
from tests.chaos.shim import Shim, compiler
from tests.chaos.wires import Rule

DAY_NS = 86_400 * 10**9
CUT = Rule(cut=True)


def shimmed(scene: Scene, *names: str, power: bool = False) -> list[Shim]:
    """Preload the shim into these machines, which have not been started yet."""
    if not compiler():
        raise Skipped("it needs a C compiler (package gcc) for tests/chaos/shim.c")
    return [Shim(scene.lab, scene[name], power) for name in names]


def build(scene: Scene, workers: int = 3, slots: int = 4, coordinate: str = "true") -> None:
    """The usual mesh, not started yet."""
    lease = f"{scene.lease_s}s"
    scene.lab.add("hub", slots="0", priority="10", lease=lease)
    scene.lab.add("home", slots="0", coordinate="false", lease=lease)
    for number in range(1, workers + 1):
        scene.lab.add(f"w{number}", slots=str(slots), coordinate=coordinate, lease=lease)


def wall_clock(scene: Scene) -> None:
    """The wall clock of the owner, then of a worker, jumps by a day and by a second."""
    build(scene)
    shims = shimmed(scene, "home", "w1")
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    jumps = {"+1 day": DAY_NS, "-1 day": -DAY_NS, "leap second": 10**9}
    for shim, name in zip(shims, ("home", "w1"), strict=True):
        for fault, jump_ns in jumps.items():
            load.submit(12, 1500)
            until(lambda: len(scene.running("w1")) >= 2, "work on w1")
            scene.lab.fault(fault, scene[name])
            shim.set(real_ns=jump_ns)
            load.wait(60)
            scene.pause(scene.s(5, 1))
            shim.set(real_ns=0)
            scene.lab.heal(fault, scene[name])
    again = [task for task in history(scene.lab).tasks.values() if len(task.attempts) > 1]
    scene.figure(f"{2 * len(jumps)} jumps: started again {len(again)}")
    scene.check(f"{len(again)} tasks started again", not again)


def suspended(scene: Scene) -> None:
    """A worker sleeps past the lease: its monotonic clock stands still, the boot clock runs."""
    build(scene)
    (shim,) = shimmed(scene, "w1")
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    asleep_s = scene.bound_s + 5
    load.submit(10, int(asleep_s * 800))
    victim = scene["w1"]
    until(lambda: len(scene.running("w1")) >= 2, "work on w1")
    hit = scene.running("w1")
    slept_ms = scene.lab.fault("suspend", victim, frozen=True)
    victim.freeze()
    scene.pause(asleep_s)
    woke_ms = scene.lab.heal("suspend", victim, frozen=True)
    shim.set(mono_ns=-(woke_ms - slept_ms) * 1_000_000)
    victim.thaw()
    load.wait(asleep_s + 60)
    tasks = history(scene.lab).tasks
    scene.check("no task was cut off", any(len(tasks[name].attempts) > 1 for name in hit))
    discard_ms = max(0, *(tasks[name].attempts[0].signs_ms[-1] - woke_ms for name in hit))
    scene.figure(
        f"asleep {asleep_s:g} s; woken to discarded, longest of {len(hit)}: {discard_ms} ms"
    )
    scene.check("discarded later than K = 1 s", discard_ms <= 1000)
    scene.lab.settled()


def wrong_rate(scene: Scene) -> None:
    """A worker's clocks run too slowly while nobody can tell it that its lease is over."""
    # Nobody whom home cannot hear may coordinate: home would follow nobody then.
    build(scene, workers=4, slots=2, coordinate="false")
    scene.lab.add("w5", slots="8", coordinate="false", lease=f"{scene.lease_s}s")
    rates = {"w1": -9_000, "w2": -30_000, "w3": -90_000, "w4": 30_000}
    shims = shimmed(scene, *rates)
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    for shim, (name, ppm) in zip(shims, rates.items(), strict=True):
        scene.lab.fault(f"rate {ppm / 10_000:+g} %", scene[name])
        shim.rate(ppm)
    scene.pause(scene.s(20, 3))
    # w5 is kept busy until the others are full, and has room for all when they are lost.
    load.submit(8, 3000, needs=Needs(node="w5"))
    until(lambda: len(scene.running("w5")) == 8, "8 tasks on w5")
    load.submit(8, int(scene.bound_s * 1200))
    until(lambda: len(scene.running()) == 16, "16 running tasks")
    hit = {name: scene.running(name) for name in rates}
    for name in rates:
        scene.lab.fault("cut off", scene[name])
        _cut_from(scene, scene[name])
    load.wait(scene.bound_s * 4 + 120)
    scene.lab.wire.clear()
    scene.lab.settled()
    tasks = history(scene.lab).tasks
    for name, ppm in rates.items():
        spare = [
            tasks[one].attempts[1].start_ms - tasks[one].attempts[0].signs_ms[-1]
            for one in hit[name]
            if len(tasks[one].attempts) > 1
        ]
        scene.check(f"no task of {name} was cut off", bool(spare))
        scene.figure(f"{ppm / 10_000:+g} %: {min(spare, default=0)} ms between the attempts")
    scene.figure(f"assumed: less than {CLOCK_RATE_PERCENT} %")


def _cut_from(scene: Scene, victim: Machine) -> None:
    home = scene["home"].number
    scene.lab.wire.set([(home, victim.number), (victim.number, home)], CUT)


ROWS = (
    Row("19", "wall clock +1 day, -1 day, leap second", "no lease effect", wall_clock),
    Row("20", "suspend and resume past the lease", "as row 4", suspended),
    Row("21", "clock rate off by 0.9, 3 and 9 %", "no overlap below the assumed bound",
        wrong_rate),
)  # fmt: skip
