"""Rows about disks: full, refusing to flush, cut off from power."""

from __future__ import annotations

import subprocess
import time

from tests.chaos.load import Load, history
from tests.chaos.machines import Machine, until
from tests.chaos.rows_clocks import build, shimmed
from tests.chaos.scene import Row, Scene

DISK_MIB = 64


def _small_disk(machine: Machine) -> None:
    """Give a machine a state directory of 64 MiB; it goes with the suite's mount namespace."""
    machine.state.mkdir(mode=0o700)
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "chaos"]
    subprocess.run([*words, str(machine.state)], check=True)


def _fill(machine: Machine) -> int:
    """Take all the room there is; return how many bytes it was."""
    taken = 0
    with (machine.state / "filling").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    taken += file.write(bytes(size))
                except OSError:
                    break
    return taken


def _keep_full(scene: Scene, machine: Machine, seconds: float) -> None:
    """Whatever the daemon gives up is taken, too, as a log that grows would."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        with (machine.state / "filling").open("ab", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(1 << 12))
                except OSError:
                    break
        scene.pause(0.2)


def full_at_owner(scene: Scene) -> None:
    """The owner's disk fills up under load, and has room again later."""
    build(scene)
    home = scene["home"]
    _small_disk(home)
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    names = load.submit(24, 4000)
    load.wait_accepted(names)
    until(lambda: len(scene.running()) >= 8, "8 running tasks")
    scene.lab.fault("disk full", home)
    _fill(home)
    late: list[str] = []
    deadline = time.monotonic() + 30
    while not load.refused and time.monotonic() < deadline:
        late += load.submit(20, 100)
        scene.pause(0.2)
    scene.check("nothing was refused on a full disk", bool(load.refused))
    reasons = sorted(set(load.refused.values()))
    scene.check(f"not a clear error: {reasons[:2]}", all("disk" in one for one in reasons))
    load.wait(90, names)
    finished = sum(name in load.ended for name in names)
    refused = len(load.refused)
    (home.state / "filling").unlink()
    scene.lab.heal("disk full", home)
    began = time.monotonic()
    _accepts_again(load)
    again_s = time.monotonic() - began
    load.wait(90)
    scene.figure(
        f"refused {refused} ({reasons[0][:70] if reasons else ''}); {finished} of "
        f"{len(names)} accepted ones finished on the full disk; accepts again "
        f"{again_s:.1f} s after there was room"
    )
    scene.check("running work did not finish", finished == len(names))
    scene.check("home had to be started again", home.lives_on() and home.lives == 1)


def _accepts_again(load: Load) -> None:
    def taken() -> bool:
        names = load.submit(1, 100)
        load.wait_accepted(names)
        return names[0] in load.accepted

    until(taken, "a submit accepted", 60)


def full_at_worker(scene: Scene) -> None:
    """A worker's disk is full when its tasks have results too large to send at once."""
    build(scene)
    victim = scene["w1"]
    _small_disk(victim)
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    load.submit(12, 2000, result_bytes=2_000_000)
    until(lambda: len(scene.running("w1")) >= 1, "work on w1")
    hit = scene.running("w1")
    scene.lab.fault("disk full", victim)
    _fill(victim)
    _keep_full(scene, victim, 4)
    load.submit(24, 500, result_bytes=200_000)
    load.wait(scene.bound_s * 3 + 120)
    tasks = history(scene.lab).tasks
    moved = sum(len(tasks[name].attempts) > 1 for name in hit)
    scene.check("an end that is not done", not load.refused and _all_done(scene))
    (victim.state / "filling").unlink()
    scene.lab.heal("disk full", victim)
    scene.figure(
        f"{len(hit)} results of 2 MB did not fit: {moved} tasks were run elsewhere, "
        f"all {len(load.futures)} are done"
    )
    again = load.submit(24, 300)
    load.wait(60, again)
    scene.steady.clear()


def _all_done(scene: Scene) -> bool:
    ends = [end for task in history(scene.lab).tasks.values() for _, end, _ in task.ended]
    return all(end == "done" for end in ends)


def flush_fails(scene: Scene) -> None:
    """The owner's disk answers a flush with an error, again and again."""
    build(scene)
    (shim,) = shimmed(scene, "home")
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    home = scene["home"]
    codes = []
    for _ in range(scene.n(5, 2)):
        load.submit(12, 1500)
        until(lambda: len(scene.running()) >= 4, "4 running tasks")
        scene.lab.fault("flush error", home)
        before = set(load.accepted)
        shim.set(flush_fails=1)
        fresh = load.submit(20, 100)
        process = home.process
        assert process is not None
        codes.append(process.wait(timeout=30))
        acked = len((set(load.accepted) - before) & set(fresh))
        scene.check(f"{acked} tasks were accepted after the error", acked == 0)
        shim.set(flush_fails=0)
        scene.pause(2)
        home.start()
        until(home.serves, "home back")
        scene.lab.heal("flush error", home)
        load.wait(scene.bound_s + 90)
    scene.figure(
        f"{len(codes)} errors: exit codes {sorted(set(codes))}, accepted after it 0, "
        f"flushes refused {shim.get('flushes_failed')}"
    )
    scene.check("it ended as if all were well", 0 not in codes)


def power_cut(scene: Scene) -> None:
    """The owner loses power while it accepts; what it had not flushed is gone."""
    build(scene, workers=2)
    (shim,) = shimmed(scene, "home", power=True)
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    home, wanted, cuts, missing, accepted = scene["home"], scene.n(10_000, 1500), 0, 0, 0
    under_way = 0
    while accepted < wanted:
        load = scene.load(name=f"p{cuts}-")
        until_s = time.monotonic() + scene.random.uniform(0.2, 1.5)
        while time.monotonic() < until_s:
            load.submit(10, 0, beat_ms=1000)
            scene.pause(0.005)
        scene.lab.fault("power cut", home)
        shim.power_cut()
        told = sorted(load.accepted)
        under_way += len(load.futures) - len(told)
        accepted += len(told)
        cuts += 1
        home.start()
        until(home.serves, "home back")
        scene.lab.heal("power cut", home)
        missing += _missing(scene, load, told)
        load.wait(scene.bound_s + 120)
        load.client.close()
    scene.figure(
        f"{cuts} power cuts, {accepted} accepted before them, {under_way} on their way: "
        f"missing afterwards {missing}"
    )
    scene.check(f"{missing} accepted tasks are not known any more", missing == 0)
    scene.steady.clear()


def _missing(scene: Scene, load: Load, names: list[str]) -> int:
    """How many of these the owner does not know, asked from outside."""
    count = 0
    with scene["home"].client() as client:
        for name in names:
            try:
                client.status(load.futures[name].task_id)
            except Exception as error:
                count += 1
                scene.check(f"{name}: {error}", count > 3)
    return count


ROWS = (
    Row("22", "disk full on the owner", "refused clearly; running work finishes; recovers",
        full_at_owner),
    Row("23", "disk full on a worker", "another node takes it", full_at_worker),
    Row("24", "flush error on the owner", "ends, restarts, nothing accepted after it",
        flush_fails),
    Row("25", "power cut, unflushed writes gone", "every accepted task present", power_cut),
)  # fmt: skip
