"""A million tasks through one owner: does its memory stay where it is?"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from typing import Any

import psutil

from bench.mesh import mesh

ROUNDS = 10
OUTSTANDING = 50_000
TASKS = 1_000_000
MIB = 1 << 20


def number(value: int) -> int:
    """The least that a task can do with what it was given."""
    return value


def stream(tasks: int = TASKS) -> dict[str, Any]:
    """Stream tasks with a bounded number outstanding; weigh daemon and client after each round."""
    each = tasks // ROUNDS
    with (
        mesh(1, BLACKROAD_SLOTS="2", BLACKROAD_OPENCL="off") as daemons,
        daemons[0].client() as br,
    ):
        process = daemons[0].process
        assert process is not None
        daemon, me = psutil.Process(process.pid), psutil.Process(os.getpid())
        daemon_mib, client_mib = [], []
        peak_mib = 0.0
        began = time.perf_counter()
        for turn in range(ROUNDS):
            waiting: deque[Any] = deque()
            for value in range(turn * each, (turn + 1) * each):
                waiting.append((value, br.submit(number, value)))
                if len(waiting) >= OUTSTANDING:
                    peak_mib = max(peak_mib, _take(waiting, daemon))
            while waiting:
                peak_mib = max(peak_mib, _take(waiting, daemon))
            daemon_mib.append(daemon.memory_info().rss / MIB)
            client_mib.append(me.memory_info().rss / MIB)
        seconds = time.perf_counter() - began
    return {
        "tasks": each * ROUNDS,
        "outstanding": OUTSTANDING,
        "tasks_per_s": round(each * ROUNDS / seconds),
        "daemon_rss_peak_mib": round(peak_mib, 1),
        "daemon_rss_mib": [round(one, 1) for one in daemon_mib],
        "daemon_slope_mib_per_round": round(_slope(daemon_mib[1:]), 3),
        "client_rss_mib": [round(one, 1) for one in client_mib],
        "client_slope_mib_per_round": round(_slope(client_mib[1:]), 3),
    }


def _take(waiting: deque[Any], daemon: psutil.Process) -> float:
    """Check a fifth of what waits; return what the daemon weighs then, in MiB."""
    for _ in range(max(1, min(len(waiting), OUTSTANDING // 5))):
        value, future = waiting.popleft()
        if future.result(120) != value:
            raise AssertionError(f"task {value} came back as {future.result()!r}")
    return float(daemon.memory_info().rss / MIB)


def _slope(values: list[float]) -> float:
    """MiB that a round adds, by least squares."""
    return statistics.linear_regression(range(len(values)), values).slope
