"""Rows beside the fault table: what losing the coordinator, or the owner, must not cost."""

from __future__ import annotations

from collections.abc import Iterable

from blackroad.cli.chaos_history import Task, percentile
from blackroad.limits import bound_ms
from tests.chaos.load import history
from tests.chaos.machines import Machine, until
from tests.chaos.rows_nodes import RESTART_S, stops, two_hubs
from tests.chaos.scene import LEASE_S, Row, Scene
from tests.chaos.work import true_boot_ms

# A restart has to fit into the lease, so these rows never use the short one.
BOUND_S = bound_ms(LEASE_S * 1000) / 1000


def failover_idle(scene: Scene) -> None:
    """The coordinator of an idle mesh is killed; how long until somebody else is followed."""
    two_hubs(scene, workers=3, slots=4)
    load = scene.load()
    scene.warm(load)
    times = [_failover(scene) for _ in range(scene.n(20, 5))]
    _figure_failover(scene, times)
    scene.check("p95 above 3 s", (percentile(times, 95) or 0) <= 3000)


def _failover(scene: Scene) -> int:
    """Kill who coordinates; return when home followed somebody else; start it again."""
    name = until(scene.coordinator, "a coordinator")
    victim = scene[name]
    at_ms = scene.lab.fault("coordinator killed", victim)
    victim.kill()
    until(lambda: scene.coordinator() not in ("", name), "another coordinator")
    took_ms = true_boot_ms() - at_ms
    _back(scene, victim)
    scene.lab.settled()
    return took_ms


def _back(scene: Scene, victim: Machine) -> None:
    victim.start()
    until(victim.serves, f"{victim.name} back")
    scene.lab.heal("coordinator killed", victim)


def _figure_failover(scene: Scene, times: list[int]) -> None:
    scene.figure(
        f"{len(times)} kills; kill to followed claim p50 {percentile(times, 50)} ms, "
        f"p95 {percentile(times, 95)} ms, max {max(times, default=0)} ms"
    )


def coordinator_under_load(scene: Scene) -> None:
    """A coordinator without slots is killed every 20 s under 10,000 queued, 200 running tasks."""
    slots, queued = scene.n(40, 6), scene.n(10_000, 500)
    task_ms, every_s = scene.n(5000, 2000), scene.n(20, 6)
    calm_s, kills = scene.n(60, 10), scene.n(7, 2)
    two_hubs(scene, workers=5, slots=slots)
    load = scene.load()
    scene.warm(load)
    names = load.submit(queued, task_ms, beat_ms=1000)
    load.wait_accepted(names, 180)
    until(lambda: len(scene.running()) >= slots * 5 * 19 // 20, f"{slots * 5} running tasks", 90)
    scene.pause(task_ms / 1000)
    began_ms = true_boot_ms()
    scene.pause(calm_s)
    turn_ms = true_boot_ms()
    times = []
    for _ in range(kills):
        next_ms = true_boot_ms() + every_s * 1000
        times.append(_failover(scene))
        scene.pause(max(0.0, (next_ms - true_boot_ms()) / 1000))
    end_ms = true_boot_ms()
    left = len(names) - len(load.ended)
    scene.check("the queue ran dry while it was measured", left > slots * 5)
    calm = stops(scene, began_ms, turn_ms) / (turn_ms - began_ms) * 1000
    shaken = stops(scene, turn_ms, end_ms) / (end_ms - turn_ms) * 1000
    load.wait(queued * task_ms / 1000 / (slots * 5) * 2 + 120)
    again = _again(history(scene.lab).tasks.values())
    scene.figure(
        f"{queued} queued, {slots * 5} running; calm {calm:.1f}, with kills {shaken:.1f} "
        f"tasks/s ({100 * shaken / calm:.0f} %); started again {len(again)}"
    )
    _figure_failover(scene, times)
    scene.check(f"{len(again)} tasks were started again", not again)
    scene.check("throughput below 80 %", shaken > 0.8 * calm)
    scene.steady.clear()


def _again(tasks: Iterable[Task]) -> list[Task]:
    return [task for task in tasks if len(task.attempts) > 1]


def coordinator_with_slots(scene: Scene) -> None:
    """A coordinator that runs tasks is killed: only its own tasks may start again."""
    lease = f"{LEASE_S}s"
    scene.lab.add("home", slots="0", coordinate="false", lease=lease)
    for number in range(1, 5):
        scene.lab.add(f"w{number}", slots="4", lease=lease)
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    for _ in range(scene.n(6, 2)):
        load.submit(16, 4000)
        until(lambda: len(scene.running()) >= 14, "14 running tasks")
        name = until(scene.coordinator, "a coordinator")
        victim = scene[name]
        scene.lab.fault("coordinator killed", victim)
        victim.kill()
        scene.pause(RESTART_S)
        _back(scene, victim)
        load.wait(BOUND_S + 60)
        scene.lab.settled()
    _check_elsewhere(scene, "coordinator killed")


def _check_elsewhere(scene: Scene, fault: str) -> None:
    """Whatever was started again had run on the machine that was killed."""
    found = history(scene.lab)
    hit = {(one.node, one.boot_ms) for one in found.faults if one.name == fault}
    again = _again(found.tasks.values())
    elsewhere = [
        task.name
        for task in again
        if not any(
            task.attempts[0].node == node
            and task.attempts[0].start_ms <= at_ms <= task.attempts[1].start_ms
            for node, at_ms in hit
        )
    ]
    scene.figure(
        f"{len(hit)} kills: started again {len(again)} that ran there, "
        f"{len(elsewhere)} of other nodes"
    )
    scene.check(f"{len(elsewhere)} tasks of other nodes were started again", not elsewhere)
    scene.check("no task was hit", bool(again))


def owner_restarted(scene: Scene) -> None:
    """An owner that runs tasks, too, is killed and starts again: those on others go on."""
    lease = f"{LEASE_S}s"
    for number in range(1, 5):
        scene.lab.add(f"w{number}", slots="4", lease=lease)
    scene.lab.start()
    load = scene.load("w1")
    scene.warm(load)
    owner = scene["w1"]
    for _ in range(scene.n(6, 2)):
        names = load.submit(16, 4000)
        load.wait_accepted(names)
        until(lambda: len(scene.running()) >= 14, "14 running tasks")
        scene.lab.fault("owner killed", owner)
        owner.kill()
        scene.pause(RESTART_S)
        owner.start()
        until(owner.serves, "the owner back")
        scene.lab.heal("owner killed", owner)
        load.wait(BOUND_S + 60)
        scene.lab.settled()
    _check_elsewhere(scene, "owner killed")


ROWS = (
    Row("C1", "idle mesh: coordinator killed", "claim followed within 3 s (p95)", failover_idle),
    Row("C2", "coordinator without slots killed every 20 s under load",
        "none started again; over 80 % of calm", coordinator_under_load),
    Row("C3", "coordinator with slots killed", "nothing elsewhere started again",
        coordinator_with_slots),
    Row("C4", "owner with slots killed and restarted", "its tasks elsewhere go on",
        owner_restarted),
)  # fmt: skip
