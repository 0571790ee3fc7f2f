"""Rows about daemons and machines that die, stop or stand still."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from blackroad.cli.chaos_history import percentile
from tests.chaos.load import history
from tests.chaos.machines import until
from tests.chaos.scene import LEASE_S, Row, Scene
from tests.chaos.wires import Rule
from tests.chaos.work import true_boot_ms

CUT = Rule(cut=True)
TASK_MS = 500
RESTART_S = 2.0  # as in systemd/blackroad-node.service


def worker_killed(scene: Scene) -> None:
    """SIGKILL to a worker's daemon: its supervisor ends the tasks, a manager starts it again."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    leftovers = 0
    for _ in range(scene.n(8, 3)):
        load.submit(16, 3000)
        victim = scene.random.choice(scene.workers)
        until(lambda one=victim: len(scene.running(one.name)) >= 2, f"work on {victim.name}")
        pids = _pids_on(scene, victim.name)
        scene.lab.fault("worker killed", victim)
        victim.kill()
        scene.pause(RESTART_S)
        victim.start()
        until(victim.serves, f"{victim.name} back")
        leftovers += sum(Path(f"/proc/{pid}/exe").exists() for pid in pids)
        scene.lab.heal("worker killed", victim)
        load.wait(60)
    scene.check(f"{leftovers} processes outlived their node's life", leftovers == 0)
    found = scene.recoveries("kill to second start")
    scene.check("no task was hit", bool(found))
    scene.check("the lease was waited for", max(found, default=0) < scene.bound_s * 1000 / 2)


def _pids_on(scene: Scene, node: str) -> set[int]:
    tasks = history(scene.lab).tasks
    return {tasks[name].attempts[-1].pid for name in scene.running(node)}


def machine_gone(scene: Scene) -> None:
    """A worker's cable is pulled for good."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    # Longer than the lease: else they end over there, where nobody can hear of it.
    load.submit(12, int(scene.lease_s * 1200))
    victim = scene["w1"]
    until(lambda: len(scene.running("w1")) >= 2, "work on w1")
    scene.lab.fault("machine gone", victim)
    scene.lab.wire.around(victim.number, CUT)
    load.wait(scene.bound_s + 120)
    found = scene.recoveries("cut to second start")
    limit_s = scene.bound_s + 4
    scene.figure(f"bound L(1+rho)+K+M = {scene.bound_s:g} s")
    scene.check("no task was hit", bool(found))
    scene.check(f"more than {limit_s:g} s", max(found, default=0) <= limit_s * 1000)


def daemon_stopped(scene: Scene) -> None:
    """SIGSTOP to a worker's daemon alone, for longer than the lease."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    stopped_s = scene.s(60, 15)
    load.submit(10, int(stopped_s * 800))
    victim = scene["w1"]
    until(lambda: len(scene.running("w1")) >= 2, "work on w1")
    hit = scene.running("w1")
    at_ms = scene.lab.fault("daemon stopped", victim)
    victim.stop()
    scene.pause(stopped_s)
    scene.lab.heal("daemon stopped", victim)
    victim.go_on()
    load.wait(stopped_s + scene.bound_s + 60)
    _figure_last_signs(scene, hit, at_ms, "tasks killed by their supervisor")
    scene.recoveries("stop to second start")


def _figure_last_signs(scene: Scene, names: list[str], from_ms: int, what: str) -> None:
    tasks = history(scene.lab).tasks
    last = [tasks[name].attempts[0].signs_ms[-1] - from_ms for name in names]
    cut = [ms for name, ms in zip(names, last, strict=True) if len(tasks[name].attempts) > 1]
    scene.check("no task was cut off", bool(cut))
    scene.figure(f"{what}: {len(cut)}, the last {max(cut, default=0) / 1000:.2f} s after the fault")
    limit_s = scene.lease_s + 1
    scene.check(f"one lived longer than {limit_s} s", max(cut, default=0) <= limit_s * 1000)


def machine_frozen(scene: Scene) -> None:
    """A whole worker stands still for longer than the lease, and goes on."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    frozen_s = scene.bound_s + 5
    load.submit(10, int(frozen_s * 800))
    victim = scene["w1"]
    until(lambda: len(scene.running("w1")) >= 2, "work on w1")
    hit = scene.running("w1")
    scene.lab.fault("machine frozen", victim, frozen=True)
    victim.freeze()
    scene.pause(frozen_s)
    thaw_ms = scene.lab.heal("machine frozen", victim, frozen=True)
    victim.thaw()
    load.wait(frozen_s + 60)
    tasks = history(scene.lab).tasks
    late = [tasks[name].attempts[0].signs_ms[-1] - thaw_ms for name in hit]
    scene.check("no task was cut off", any(len(tasks[name].attempts) > 1 for name in hit))
    discard_ms = max(0, *late)
    scene.figure(f"thaw to discarded, longest of {len(hit)}: {discard_ms} ms")
    scene.check("discarded later than K = 1 s", discard_ms <= 1000)


def owner_killed(scene: Scene) -> None:
    """The owner is killed under accepted and running work, and is back within the lease."""
    running, accepted = scene.n(50, 16), scene.n(1000, 150)
    # The restart has to fit into the lease, also into that of a short run.
    scene.mesh(workers=2, slots=running // 2, lease=f"{LEASE_S}s")
    load = scene.load()
    scene.warm(load)
    names = load.submit(accepted, 3000, beat_ms=200)
    load.wait_accepted(names)
    until(lambda: len(scene.running()) >= running * 9 // 10, f"{running} running tasks")
    running_now = len(scene.running())
    scene.lab.fault("owner killed", scene["home"])
    scene["home"].kill()
    scene.pause(RESTART_S)
    scene["home"].start()
    until(scene["home"].serves, "home back")
    scene.lab.heal("owner killed", scene["home"])
    load.wait(accepted / running * 3 * 2 + 90)
    _figure_reruns(scene, f"{len(names)} accepted, {running_now} running")


def _figure_reruns(scene: Scene, what: str) -> None:
    tasks = history(scene.lab).tasks.values()
    again = [task for task in tasks if len(task.attempts) > 1]
    scene.figure(f"{what}: run again {len(again)} of {len(tasks)}")
    scene.check(f"{len(again)} tasks ran again needlessly", not again)


def owner_away(scene: Scene) -> None:
    """The owner stays away for three leases; what ended meanwhile waits for it."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    names = load.submit(12, int(scene.lease_s * 400))
    load.wait_accepted(names)
    until(lambda: len(scene.running()) == 12, "12 running tasks")
    left_ms = scene.lab.fault("owner away", scene["home"])
    scene["home"].kill()
    scene.pause(scene.lease_s * 3)
    scene["home"].start()
    back_ms = scene.lab.heal("owner away", scene["home"])
    load.wait(60)
    tasks = history(scene.lab).tasks
    spooled = [
        name
        for name in names
        if len(tasks[name].attempts) == 1
        and left_ms < (tasks[name].attempts[0].stop_ms or 0) < back_ms
    ]
    scene.figure(f"away {scene.lease_s * 3} s: {len(spooled)} of 12 results came from the spool")
    scene.check("not all results came from the spool", len(spooled) == 12)


def coordinator_killed(scene: Scene) -> None:
    """The coordinator is killed under a stream of short tasks, again and again."""
    two_hubs(scene, workers=3, slots=4)
    load = scene.load()
    scene.warm(load)
    rate = scene.n(100, 50)
    gaps: list[int] = []
    for _ in range(scene.n(10, 3)):
        load.stream(2, rate, 20, beat_ms=1000)
        name = until(scene.coordinator, "a coordinator")
        victim = scene[name]
        at_ms = scene.lab.fault("coordinator killed", victim)
        victim.kill()
        load.stream(scene.s(5, 4), rate, 20, beat_ms=1000)
        load.wait(60)
        gaps.append(_longest_gap_ms(scene.starts_ms(), at_ms - 100, true_boot_ms()))
        victim.start()
        until(victim.serves, f"{name} back")
        scene.lab.heal("coordinator killed", victim)
        scene.lab.settled()
    p50, p99 = percentile(gaps, 50) or 0, percentile(gaps, 99) or 0
    scene.figure(
        f"{rate} tasks/s, {len(gaps)} kills: longest gap between starts p50 {p50} ms, p99 {p99} ms"
    )
    scene.check("the queue stood still for more than 5 s", p99 <= 5000)


def _longest_gap_ms(starts: list[int], from_ms: int, until_ms: int) -> int:
    inside = [ms for ms in starts if from_ms <= ms <= until_ms]
    return max((b - a for a, b in pairwise(inside)), default=0)


def two_hubs(scene: Scene, workers: int, slots: int) -> None:
    """A mesh in which only two nodes without slots may coordinate."""
    lease = f"{scene.lease_s}s"
    for name in ("hub", "hub2"):
        scene.lab.add(name, slots="0", priority="10", lease=lease)
    scene.lab.add("home", slots="0", coordinate="false", lease=lease)
    for number in range(1, workers + 1):
        scene.lab.add(f"w{number}", slots=str(slots), coordinate="false", lease=lease)
    scene.lab.start()


def coordinator_stopped(scene: Scene) -> None:
    """The coordinator stands still for 30 s, another one takes over, and the first one wakes."""
    scene.mesh()
    load = scene.load()
    scene.warm(load)
    hub = scene["hub"]
    before = scene.reigns()
    at_ms = scene.lab.fault("coordinator stopped", hub)
    hub.stop()
    until(lambda: scene.coordinator() not in ("", "hub"), "another coordinator")
    takeover_ms = true_boot_ms() - at_ms
    load.stream(scene.s(30, 8), 8, 1000)
    hub.go_on()
    woke_ms = scene.lab.heal("coordinator stopped", hub)
    until(lambda: scene.coordinator("hub") not in ("", "hub"), "the zombie stepping down")
    down_ms = true_boot_ms() - woke_ms
    scene.lab.settled()
    load.stream(2, 8, 200)
    load.wait(60)
    scene.figure(
        f"takeover {takeover_ms} ms; steps down {down_ms} ms after it wakes; "
        f"reigns {scene.reigns() - before}"
    )
    again = [task for task in history(scene.lab).tasks.values() if len(task.attempts) > 1]
    scene.check(f"{len(again)} tasks were granted twice", not again)
    scene.check("it stepped down late", down_ms <= 3000)


def coordinator_flaps(scene: Scene) -> None:
    """The coordinator is killed every 3 s for 5 minutes."""
    two_hubs(scene, workers=3, slots=4)
    load = scene.load()
    scene.warm(load)
    calm_s, flap_s = scene.s(60, 10), scene.s(300, 24)
    calm = _throughput(scene, calm_s)
    before, kills = scene.reigns(), 0
    with _queue_filled(scene, flap_s):
        began_ms = true_boot_ms()
        while true_boot_ms() - began_ms < flap_s * 1000:
            name = scene.coordinator()
            if name:
                victim = scene[name]
                scene.lab.fault("coordinator flaps", victim)
                victim.kill()
                victim.start()
                kills += 1
            scene.pause(3)
        stopped_ms = true_boot_ms()
    rate = stops(scene, began_ms, stopped_ms) / ((stopped_ms - began_ms) / 1000)
    scene.lab.settled()
    for one in scene.loads:
        one.wait(120)
    scene.figure(
        f"calm {calm:.1f}, flapping {rate:.1f} tasks/s ({100 * rate / calm:.0f} %); "
        f"{kills} kills, {scene.reigns() - before} reigns"
    )
    scene.check("less than half of the calm throughput", rate >= calm / 2)


def _throughput(scene: Scene, seconds: float) -> float:
    with _queue_filled(scene, seconds):
        began_ms = true_boot_ms()
        scene.pause(seconds)
        stopped_ms = true_boot_ms()
    for one in scene.loads:
        one.wait(120)
    return stops(scene, began_ms, stopped_ms) / ((stopped_ms - began_ms) / 1000)


@contextlib.contextmanager
def _queue_filled(scene: Scene, seconds: float) -> Iterator[None]:
    """Enough tasks that the queue is never empty meanwhile."""
    slots = sum(int(one.environ["BLACKROAD_SLOTS"]) for one in scene.workers)
    load = scene.load(name=f"q{len(scene.loads)}-")
    count = int(slots * seconds * 1000 / TASK_MS * 1.05) + slots
    load.submit(count, TASK_MS, beat_ms=250)
    until(lambda: len(scene.running()) >= slots // 2, "a busy mesh")
    yield


def stops(scene: Scene, from_ms: int, until_ms: int) -> int:
    """How many attempts came to their end in that time."""
    return sum(
        from_ms <= (one.stop_ms or 0) < until_ms
        for task in history(scene.lab).tasks.values()
        for one in task.attempts
    )


ROWS = (
    Row("1", "worker daemon killed mid-task", "leftovers dead first; no wait for the lease",
        worker_killed),
    Row("2", "worker machine gone", "issued again after the bound", machine_gone),
    Row("3", "worker daemon stopped, then goes on", "supervisor kills at the deadline",
        daemon_stopped),
    Row("4", "whole worker frozen past the lease", "deadlines first on thaw", machine_frozen),
    Row("5", "owner killed, back within the lease", "running tasks go on, none again",
        owner_killed),
    Row("6", "owner away for three leases", "results wait in the spool", owner_away),
    Row("9", "coordinator killed under load", "rebuilt from the owners", coordinator_killed),
    Row("10", "coordinator stopped, then goes on", "steps down at once", coordinator_stopped),
    Row("11", "coordinator flaps every 3 s", "at least half of the calm throughput",
        coordinator_flaps),
)  # fmt: skip
