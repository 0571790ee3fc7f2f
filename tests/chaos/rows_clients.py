"""Rows about clients: killed, flooding, deaf, with a name that is taken."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time

from tests.chaos.load import history
from tests.chaos.machines import REPOSITORY, Machine
from tests.chaos.places import NETNS
from tests.chaos.scene import Row, Scene

Process = subprocess.Popen[str]
FLOOD_RSS_BYTES = 1 << 30


def _submitter(scene: Scene, *words: object) -> Process:
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.submitter", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=REPOSITORY,
    )


def _socket(machine: Machine) -> str:
    return f"ipc://{machine.runtime / 'client.sock'}"


def _line(process: Process, word: str) -> str:
    """Its next line, which begins with that word."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith(word):
        raise AssertionError(f"the submitter said {line!r} instead of {word!r}")
    return line.removeprefix(word).strip()


def killed_submitting(scene: Scene) -> None:
    """A client is killed somewhere in its submits; the same ids are submitted once more."""
    scene.mesh(workers=2)
    load = scene.load()
    scene.warm(load)
    total, batch, kills, first = scene.n(10_000, 800), 200, 0, 0
    while first < total:
        prefix = secrets.token_hex(10)
        words = ("submit", _socket(scene["home"]), scene.lab.place, "k", prefix, first, batch, 0)
        for _ in range(2):
            process = _submitter(scene, *words)
            _line(process, "ready")
            scene.pause(scene.random.uniform(0, 0.15))
            process.kill()
            process.wait()
            kills += 1
        process = _submitter(scene, *words)
        _line(process, "ready")
        _line(process, "accepted")
        _line(process, "ended")
        process.wait(timeout=60)
        first += batch
    tasks = [t for t in history(scene.lab).tasks.values() if t.name.startswith("k")]
    doubled = sum(len(task.attempts) != 1 for task in tasks)
    scene.figure(
        f"{kills} clients killed; {len(tasks)} ids submitted three times: "
        f"{doubled} not run exactly once"
    )
    scene.check(f"{doubled} tasks did not run exactly once", doubled == 0)
    scene.check("tasks are missing", len(tasks) == total)
    scene.steady.clear()


def killed_before_result(scene: Scene) -> None:
    """A client is killed before it fetches; others fetch by id, and all get the same bytes."""
    scene.mesh(workers=2)
    load = scene.load()
    scene.warm(load)
    found: dict[str, set[str]] = {}
    for number, size in enumerate((0, 100, 100_000, 3_000_000)):
        prefix = secrets.token_hex(10)
        place = scene.lab.place
        process = _submitter(
            scene, "submit", _socket(scene["home"]), place, f"f{number}-", prefix, 0, 8, size
        )
        _line(process, "ready")
        ids = json.loads(_line(process, "accepted"))
        process.kill()
        process.wait()
        for machine in ("home", "w1", "home"):
            with scene[machine].client() as client:
                for id_ in ids:
                    value = client.outcome(id_, 60)
                    digest = hashlib.sha256(value.encode()).hexdigest()
                    found.setdefault(id_, set()).add(digest)
                    scene.check(f"{id_}: {len(value)} bytes", len(value) >= size)
    differing = sum(len(digests) != 1 for digests in found.values())
    _write_ends(scene)
    scene.figure(
        f"{len(found)} results of 0 to 3 MB fetched 3 times from 2 nodes: {differing} differ"
    )
    scene.check("results differ", differing == 0)
    scene.steady.clear()


def _write_ends(scene: Scene) -> None:
    """What the killed client would have written: these ends were fetched by id."""
    from tests.chaos.work import append, true_boot_ms

    for task in history(scene.lab).tasks.values():
        if not task.ended and task.attempts and task.attempts[-1].result:
            event = {
                "what": "ended",
                "task": task.name,
                "end": "done",
                "result": task.attempts[-1].result,
                "boot_ms": true_boot_ms(),
            }
            append(f"{scene.lab.place}/history", event)


def same_routing_id(scene: Scene) -> None:
    """A second client comes with a routing id that is taken, and again when it is free."""
    scene.mesh(workers=2)
    load = scene.load()
    scene.warm(load)
    home = scene["home"]
    told = json.loads((home.runtime / "daemon.json").read_text())
    words = ["nsenter", f"--net={NETNS / home.name}", sys.executable, "-m", "tests.chaos.twins"]
    done = subprocess.run(
        [*words, told["endpoints"][0]],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        timeout=120,
        check=False,
    )
    scene.check(done.stderr.strip()[-500:] or "it ended early", done.returncode == 0)
    scene.figure(
        f"the second is {done.stdout.strip()}; the first has its 200 results, and so has one with "
        "the same id when the first has left"
    )


def flood(scene: Scene) -> None:
    """50 clients of two owners submit 100,000 tasks as fast as they can."""
    lease = f"{scene.lease_s}s"
    scene.lab.add("hub", slots="0", priority="10", lease=lease)
    for name in ("home", "home2"):
        scene.lab.add(name, slots="0", coordinate="false", lease=lease)
    for number in (1, 2):
        scene.lab.add(f"w{number}", slots="4", lease=lease)
    scene.lab.start()
    load = scene.load()
    scene.warm(load)
    each = scene.n(2000, 200)
    owners = ("home", "home2")
    processes = {
        name: _submitter(scene, "flood", _socket(scene[name]), name, 25, each) for name in owners
    }
    peak = dict.fromkeys(owners, 0)
    slow: list[float] = []
    with scene["hub"].client() as watcher:
        while any(process.poll() is None for process in processes.values()):
            for name in owners:
                peak[name] = max(peak[name], scene[name].rss_bytes())
            began = time.perf_counter()
            watcher.nodes()
            slow.append(1000 * (time.perf_counter() - began))
            scene.pause(0.1)
    told = {name: json.loads(_all(process)) for name, process in processes.items()}
    rows = [row for name in owners for row in told[name]]
    done, wrong = sum(row["done"] for row in rows), sum(row["wrong"] for row in rows)
    busy, p99 = sum(row["busy"] for row in rows), max(row["p99_ms"] for row in rows)
    last = {name: max(row["done_s"] for row in told[name]) for name in owners}
    first_s = min(row["submitted_s"] for row in rows)
    spans = sorted(at - first_s for at in last.values())
    scene.figure(
        f"{done} of {50 * each} done, {wrong} wrong, {busy} times Busy; submit p99 "
        f"{p99:.1f} ms; owners' RSS at most {max(peak.values()) >> 20} MiB; owners ended "
        f"{spans[0]:.1f} and {spans[1]:.1f} s after the first client had submitted"
    )
    scene.check("results are missing or wrong", done == 50 * each and wrong == 0)
    scene.check("an owner's memory is not bounded", max(peak.values()) < FLOOD_RSS_BYTES)
    scene.check("one owner got more than its share", spans[1] <= 2 * spans[0] + 5)
    scene.steady.clear()


def _all(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.read()


def deaf_client(scene: Scene) -> None:
    """A client submits, and never reads its results."""
    scene.mesh(workers=2)
    load = scene.load()
    scene.warm(load)
    count, size = scene.n(5000, 600), 20_000
    home = scene["home"]
    process = _submitter(scene, "deaf", _socket(home), count, size)
    _line(process, "accepted")
    process.send_signal(signal.SIGSTOP)
    before = home.rss_bytes()
    peak = before
    waits = []
    until_s = time.monotonic() + scene.s(40, 10)
    while time.monotonic() < until_s:
        began = time.perf_counter()
        names = load.submit(4, 50)
        load.wait(60, names)
        waits.append(1000 * (time.perf_counter() - began))
        peak = max(peak, home.rss_bytes())
    process.send_signal(signal.SIGCONT)
    _line(process, "ended")
    process.wait(timeout=60)
    waits.sort()
    scene.figure(
        f"{count} results of {size} bytes unread: RSS {before >> 20} to {peak >> 20} MiB; "
        f"others' 4 tasks of 50 ms p50 {waits[len(waits) // 2]:.0f}, "
        f"p99 {waits[len(waits) * 99 // 100]:.0f} ms; then all were read"
    )
    # What is unread is the owner's to keep, with as much again on its way to the socket.
    room = 3 * count * size + (64 << 20)
    scene.check("memory is not bounded", peak - before < room)
    scene.check("others waited for more than 2 s", waits[len(waits) // 2] < 2000)
    scene.steady.clear()


ROWS = (
    Row("7", "client killed between submit and answer", "one task for each id",
        killed_submitting),
    Row("8", "client killed before it fetches", "the same bytes for all", killed_before_result),
    Row("18", "two sockets with one routing id", "no message is lost in silence",
        same_routing_id),
    Row("33", "submit flood of 50 clients", "bounded, fair between owners", flood),
    Row("34", "client that never reads results", "bounded, others unaffected", deaf_client),
)  # fmt: skip
