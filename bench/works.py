"""The workloads.  Each takes a started system, and tells figures as it gets them.

    noop     tasks that do nothing, each with its own submit and future; and `map` over as many
    latency  one task after the other
    payload  echo of arrays
    scale    64 tasks of Monte Carlo against a plain loop
    start    from the start of the program to the first result; every other workload tells it too
    idle     memory and processor time of a system that has nothing to do
    kill     SIGKILL for the worker that has just begun one of 200 tasks
    pair     tasks that do nothing, on another node
    bulk     echo of 64 MiB on another node

Units  a rate counts tasks/s; an echo counts its bytes both ways, in 10^6 bytes/s.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import jobs, proc
from bench.systems import System, processes_of

MIB = 1 << 20
TRIPS = 1_000
WARM_TRIPS = 100
ECHOES = ((1024, 200), (MIB, 30), (64 * MIB, 4))
SCALE_TASKS = 64
KILL_TASKS = 200
KILL_AFTER = 20
SETTLE_S, IDLE_S = 3.0, 10.0
Tell = Callable[[str, Any, str], None]


class Effort(NamedTuple):
    """How much is done: numbers of tasks, seconds one figure may take, workers."""

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    cap_s: float = 60.0
    patience_s: float = 30.0
    workers: int = 2


def noop(system: System, tell: Tell, effort: Effort) -> None:
    """Separate tasks, then `map`; larger numbers only while they fit into the time."""
    _separate(system, tell, effort)
    rate = float("inf")
    for size in effort.sizes if system.chunks else ():
        if len(system.chunks) * size / rate > effort.cap_s:
            tell(f"map {size}", f"left out: about {size / rate:.0f} s", "")
            return
        rate = max(_map_rate(system, size, chunk) for chunk in system.chunks)
        tell(f"map {size}", rate, "tasks/s")


def _map_rate(system: System, size: int, chunk: int) -> float:
    began = time.perf_counter()
    values = list(system.map(jobs.noop, range(size), chunk))
    took_s = time.perf_counter() - began
    _same(values, list(range(size)))
    return size / took_s


def _separate(system: System, tell: Tell, effort: Effort) -> None:
    rate = float("inf")
    for size in effort.sizes:
        if size / rate > effort.cap_s:
            tell(f"one {size}", f"left out: about {size / rate:.0f} s", "")
            return
        family = [os.getpid(), *processes_of(system)]
        spent_s, began = proc.cpu_s(family), time.perf_counter()
        values = system.values([system.submit(jobs.noop, number) for number in range(size)])
        rate = size / (time.perf_counter() - began)
        _same(values, list(range(size)))
        tell(f"one {size}", rate, "tasks/s")
        tell(f"core {size}", 1e6 * (proc.cpu_s(family) - spent_s) / size, "us/task")


def _same(values: list[Any], expected: list[Any]) -> None:
    if list(values) != expected:
        raise AssertionError(f"{len(values)} results came, and they are not the right ones")


def latency(system: System, tell: Tell, effort: Effort) -> None:
    """Submit one, wait for it, submit the next."""
    trips_us = []
    for number in range(WARM_TRIPS + TRIPS):
        began = time.perf_counter_ns()
        system.value(system.submit(jobs.noop, number))
        trips_us.append((time.perf_counter_ns() - began) / 1000)
        if sum(trips_us) > effort.cap_s * 1e6:
            break
    measured = sorted(trips_us[WARM_TRIPS:] or trips_us)
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        tell(name, measured[int(len(measured) * part)], "us")


def payload(system: System, tell: Tell, effort: Effort) -> None:
    """Arrays there and back, the median of several, the first one not counted."""
    for size, times in ECHOES:
        tell(_size(size), _echo(system, size, times, effort.cap_s), "MB/s")


def _size(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // 1024} KiB"


def _echo(system: System, size: int, times: int, cap_s: float) -> float:
    import numpy as np

    took_s: list[float] = []
    for turn in range(times + 1):
        array = np.full(size // 8, turn, dtype=np.int64)
        began = time.perf_counter()
        back = system.value(system.submit(jobs.echo, array), cap_s)
        took_s.append(time.perf_counter() - began)
        if back.nbytes != size or not (back[0] == back[-1] == turn):
            raise AssertionError(f"an array of {size} bytes came back changed")
        del back
        if sum(took_s) > cap_s and turn:
            break
    return 2 * size / statistics.median(took_s[1:]) / 1e6


def scale(system: System, tell: Tell, effort: Effort) -> None:
    """As many workers should be as many times faster than a plain loop in this process."""
    values, before_s = _loop()
    began = time.perf_counter()
    found = system.values([system.submit(jobs.pi, seed) for seed in range(SCALE_TASKS)])
    took_s = time.perf_counter() - began
    _same(found, values)
    loop_s = (before_s + _loop()[1]) / 2
    tell("plain loop", loop_s, "s")
    tell("efficiency", 100 * loop_s / took_s / effort.workers, "%")


def _loop() -> tuple[list[float], float]:
    began = time.perf_counter()
    return [jobs.pi(seed) for seed in range(SCALE_TASKS)], time.perf_counter() - began


def start(system: System, tell: Tell, effort: Effort) -> None:
    """Nothing to do: the figure is there before any workload begins."""


def idle(system: System, tell: Tell, effort: Effort) -> None:
    """Let it settle, then look at it for a while."""
    time.sleep(SETTLE_S)
    family, daemon, me = processes_of(system), system.daemon(), os.getpid()
    groups = {"": family, "client ": [me], "daemon ": [daemon] if daemon else []}
    before = {name: proc.cpu_s(pids) for name, pids in groups.items()}
    time.sleep(IDLE_S)
    tell("processes", len(family), "")
    for name, pids in groups.items():
        if pids or not name:
            tell(f"{name}PSS", proc.pss_mib(pids), "MiB")
            tell(f"{name}CPU", 100 * (proc.cpu_s(pids) - before[name]) / IDLE_S, "%")


def kill(system: System, tell: Tell, effort: Effort) -> None:
    """The same tasks twice: undisturbed, and with a worker killed among them."""
    with tempfile.TemporaryDirectory(prefix="br-") as folder:
        calm = jobs.Diary(Path(folder) / "calm")
        began = time.perf_counter()
        handles = [system.submit(jobs.slow, n, str(calm.path)) for n in range(KILL_TASKS)]
        _same(system.values(handles), list(range(KILL_TASKS)))
        calm_s = time.perf_counter() - began
        tell("undisturbed", calm_s, "s")
        # Stands only if this process is ended as well.
        tell("outcome", "the program itself was ended", "")
        disturbed = jobs.Diary(Path(folder) / "disturbed")
        began = time.perf_counter()
        handles = [system.submit(jobs.slow, n, str(disturbed.path)) for n in range(KILL_TASKS)]
        while len(disturbed.starts()) < KILL_AFTER:
            time.sleep(0.002)
        os.kill(disturbed.starts()[-1][1], signal.SIGKILL)
        _after_kill(system, tell, handles, began, calm_s, effort)
        starts, ends = disturbed.twice()
        tell("started twice", starts, "")
        tell("ended twice", ends, "")


def _after_kill(
    system: System, tell: Tell, handles: list[Any], began: float, calm_s: float, effort: Effort
) -> None:
    delivered, missing, last = 0, 0, began
    raised: collections.Counter[str] = collections.Counter()
    end = time.perf_counter() + calm_s + effort.patience_s
    for number, handle in enumerate(handles):
        try:
            _same([system.value(handle, max(0.05, end - time.perf_counter()))], [number])
            delivered += 1
        except Exception as error:
            name = type(error).__name__
            if "timeout" in name.lower():
                missing += 1
                continue
            raised[name] += 1
        last = time.perf_counter()
    words = [f"{delivered} delivered"] + [f"{n} raised {name}" for name, n in raised.items()]
    words += [f"{missing} never came"] if missing else []
    tell("outcome", "all delivered" if delivered == len(handles) else "; ".join(words), "")
    tell("delivered", delivered, "")
    tell("raised", sum(raised.values()), "")
    tell("never came", missing, "")
    if not missing and not raised:
        tell("last result", (last - began) / calm_s, "x undisturbed")
    usable = "no"
    with contextlib.suppress(Exception):
        usable = "yes" if system.value(system.submit(jobs.noop, 7), 10) == 7 else "no"
    tell("usable afterwards", usable, "")


def pair(system: System, tell: Tell, effort: Effort) -> None:
    """Tasks that do nothing, and have to go over the wire."""
    _separate(system, tell, effort)


def bulk(system: System, tell: Tell, effort: Effort) -> None:
    """The largest echo alone."""
    size, times = ECHOES[-1]
    tell(_size(size), _echo(system, size, times, effort.cap_s), "MB/s")


WORKS: dict[str, Callable[[System, Tell, Effort], None]] = {
    one.__name__: one for one in (noop, latency, payload, scale, start, idle, kill, pair, bulk)
}
