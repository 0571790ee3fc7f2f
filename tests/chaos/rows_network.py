"""Rows about cables: cut, one-way, lossy, slow, narrow."""

from __future__ import annotations

from blackroad.cli.chaos_history import percentile
from tests.chaos.machines import until
from tests.chaos.scene import Row, Scene
from tests.chaos.wires import CLEAR, Rule
from tests.chaos.work import true_boot_ms

CUT = Rule(cut=True)
POOR = Rule(loss=0.2, delay_ms=300, jitter_ms=200, overtake=0.25)
NARROW = Rule(rate_bit_s=1_000_000)


def partition(scene: Scene) -> None:
    """Two and three machines cannot hear each other; both sides have an owner."""
    lease = f"{scene.lease_s}s"
    for number in range(1, 6):
        scene.lab.add(f"m{number}", slots="2", lease=lease)
    scene.lab.start()
    few, many = scene.load("m1", "few"), scene.load("m5", "many")
    scene.warm(few)
    cut_s = scene.s(60, 12)
    few.submit(4, 3000)
    many.submit(4, 3000)
    until(lambda: len(scene.running()) == 8, "8 running tasks")
    scene.lab.fault("partition")
    scene.lab.wire.between((0, 1), (2, 3, 4), CUT)
    began_ms = true_boot_ms()
    while true_boot_ms() - began_ms < cut_s * 1000:
        few.submit(2, 500)
        many.submit(3, 500)
        scene.pause(1)
    healed_ms = scene.lab.heal("partition")
    scene.lab.wire.clear()
    done = {
        load.name: sum(began_ms + 3000 < at < healed_ms for at in load.ended.values())
        for load in (few, many)
    }
    scene.lab.settled()
    heal_s = (true_boot_ms() - healed_ms) / 1000
    few.wait(scene.bound_s + 60)
    many.wait(60)
    scene.figure(
        f"cut {cut_s:g} s: {done['few']} tasks done by two, {done['many']} by three; "
        f"one mesh {heal_s:.1f} s after the heal"
    )
    scene.recoveries("cut to second start")
    scene.check("the two did nothing", done["few"] > 0)
    scene.check("the three did nothing", done["many"] > 0)


def one_way(scene: Scene) -> None:
    """Worker to owner is dead, then owner to worker."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    home, first, second = scene["home"], scene["w1"], scene["w2"]
    # Not the same worker twice: after a bound has passed there, it is avoided for a while.
    cuts = (
        ("worker to owner", first, (first.number, home.number)),
        ("owner to worker", second, (home.number, second.number)),
    )
    for name, victim, pair in cuts:
        names = load.submit(12, 4000)
        until(lambda one=victim: len(scene.running(one.name)) >= 2, f"work on {victim.name}")
        at_ms = scene.lab.fault(name, victim)
        scene.lab.wire.set([pair], CUT)
        load.wait(scene.bound_s * 2 + 60)
        took_s = (max(load.ended[one] for one in names) - at_ms) / 1000
        scene.figure(f"{name} cut: all done after {took_s:.1f} s")
        scene.check(f"{name}: longer than two bounds", took_s <= 2 * scene.bound_s + 10)
        scene.lab.heal(name, victim)
        scene.lab.wire.clear()
        scene.lab.settled()


def deaf(scene: Scene) -> None:
    """A node can send and not hear."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    before = scene.view()["epoch"][0]
    victim = scene["w1"]
    load.submit(12, 3000)
    until(lambda: len(scene.running("w1")) >= 2, "work on w1")
    scene.lab.fault("deaf", victim)
    scene.lab.wire.to(victim.number, CUT)
    followed = set()
    began_ms = true_boot_ms()
    while true_boot_ms() - began_ms < scene.s(30, 10) * 1000:
        load.submit(2, 500)
        followed.add(scene.coordinator())
        followed.add(scene.coordinator("w2"))
        scene.pause(1)
    scene.lab.heal("deaf", victim)
    scene.lab.wire.clear()
    scene.lab.settled()
    load.wait(scene.bound_s + 60)
    grown = scene.view()["epoch"][0] - before
    scene.figure(
        f"the others followed {', '.join(sorted(followed))}; epoch grew by {grown}; "
        f"after the heal all follow {scene.coordinator()}"
    )
    scene.check("it won the election", "w1" not in followed)
    scene.check("the epoch grew by more than one", grown <= 1)


def poor(scene: Scene) -> None:
    """One worker's cable loses, delays and turns round."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    calm_s = _batch(scene, scene.n(120, 36))
    victim = scene["w1"]
    scene.lab.fault("poor link", victim)
    scene.lab.wire.around(victim.number, POOR)
    before = _deaths(scene)
    poor_s = _batch(scene, scene.n(120, 36))
    scene.pause(scene.s(20, 5))
    deaths = _deaths(scene) - before
    scene.lab.heal("poor link", victim)
    scene.lab.wire.clear()
    scene.lab.settled()
    scene.figure(
        f"slow-down {poor_s / calm_s:.1f} x; false deaths {deaths} "
        f"in {poor_s + scene.s(20, 5):.0f} s"
    )


def _batch(scene: Scene, count: int) -> float:
    load = scene.load(name=f"b{len(scene.loads)}-")
    began_ms = true_boot_ms()
    load.submit(count, 500)
    load.wait(scene.bound_s * 3 + 90)
    return (true_boot_ms() - began_ms) / 1000


def _deaths(scene: Scene) -> int:
    return sum(len(one.events("node.died")) for one in scene.lab.machines)


def narrow(scene: Scene) -> None:
    """A large result leaves a worker behind a line of 1 Mbit/s."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    victim = scene["w1"]
    scene.lab.wire.around(victim.number, NARROW)
    before = _deaths(scene)
    size = scene.n(500, 40) * 1_000_000
    from blackroad.requirements import Needs

    load.submit(1, 500, needs=Needs(node="w1"), result_bytes=size)
    until(lambda: not scene.running("w1") and scene.starts_ms(), "the large result made")
    passed = scene.lab.wire.seen()["bytes"]
    silent: list[int] = []
    began_ms = true_boot_ms()
    client = scene.lab.client(scene["home"])
    while true_boot_ms() - began_ms < scene.s(60, 15) * 1000:
        row = next(r for r in client.nodes()["nodes"] if r["name"] == "w1")
        silent.append(int(row["silent_ms"]))
        scene.pause(0.05)
    moved = scene.lab.wire.seen()["bytes"] - passed
    deaths = _deaths(scene) - before
    scene.lab.wire.around(victim.number, CLEAR)
    load.wait(scene.n(240, 90))
    scene.figure(
        f"{size // 1_000_000} MB: {moved / 1e6:.1f} MB moved while narrow, silence of "
        f"heartbeats p99 {percentile(silent, 99)} ms, false deaths {deaths}"
    )
    scene.check("a false death", deaths == 0)
    # The one large value would count as growth of whoever keeps it.
    scene.steady.clear()


def half_open(scene: Scene) -> None:
    """A machine dies behind a cut cable: nobody closes its connections."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    victim = scene["w1"]
    load.submit(12, 3000)
    until(lambda: len(scene.running("w1")) >= 2, "work on w1")
    at_ms = scene.lab.fault("half open", victim)
    scene.lab.wire.around(victim.number, CUT)
    victim.power_off()
    until(lambda: scene.state("w1") == "dead", "w1 missed")
    missed_ms = true_boot_ms() - at_ms
    scene.lab.wire.clear()
    victim.start()
    scene.lab.settled()
    back_ms = true_boot_ms() - at_ms
    scene.lab.heal("half open", victim)
    load.submit(12, 300)
    load.wait(scene.bound_s + 60)
    scene.figure(f"missed after {missed_ms} ms; one mesh again after {back_ms / 1000:.1f} s")
    scene.check("missed late", missed_ms <= 5000)
    scene.recoveries()


ROWS = (
    Row("12", "partition 2/3 for 60 s", "both sides serve their owners", partition),
    Row("13", "one-way partition, either way", "finishes elsewhere, no overlap", one_way),
    Row("14", "node that sends but cannot hear", "not elected; epoch grows by 1 at most", deaf),
    Row("15", "20 % loss, 300 ms ± 200, 25 % reordered", "completes", poor),
    Row("16", "1 Mbit/s and a 500 MB result", "no false death", narrow),
    Row("17", "half-open TCP", "found by heartbeat", half_open),
)  # fmt: skip
