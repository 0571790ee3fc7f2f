"""Topics between two daemons: how many values a second, how late, at whose cost.

`python -m bench.topics` prints one line of JSON for each measurement.  The publisher is a process
of its own, so that the subscriber's interpreter measures nothing but itself.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil

from bench.mesh import mesh, until
from blackroad.client import Client

FLOOD = 60_000
SIZES = (8, 1_000, 15_000)
RATES = (100, 1_000, 5_000)
PACED_S = 4
WAIT_S = 30.0
_PUBLISHER = "import bench.topics, sys; bench.topics.publisher(sys.argv[1:])"


def publisher(words: list[str]) -> None:
    """Publish the time, again and again: as fast as it goes, or so many times a second."""
    endpoint, topic = words[:2]
    count, rate, size = map(int, words[2:])
    filler = b"x" * size
    with Client(endpoint) as one:
        began = time.perf_counter()
        for number in range(count):
            if rate:
                ahead_s = number / rate - (time.perf_counter() - began)
                if ahead_s > 0:
                    time.sleep(ahead_s)
            one.publish(topic, [time.time_ns(), filler])
        one.published()


def measure(here: Any, there: Any, count: int, rate: int, size: int) -> dict[str, Any]:
    """Let one daemon's client publish and another's listen; count, and take the time."""
    topic = f"bench/{count}-{rate}-{size}"
    watched = [psutil.Process(one.process.pid) for one in (here, there)]
    with there.client() as ear, ear.subscribe(topic) as found:
        before = [_cpu_s(one) for one in watched]
        endpoint = f"ipc://{here.runtime / 'client.sock'}"
        command = [sys.executable, "-c", _PUBLISHER, endpoint, topic]
        words = [str(number) for number in (count, rate, size)]
        with subprocess.Popen([*command, *words]) as speaker:
            late_ms, missed = [], 0
            first_ns = last_ns = 0
            while len(late_ms) + missed < count:
                update = found.get(WAIT_S)
                last_ns = time.time_ns()
                first_ns = first_ns or last_ns
                late_ms.append((last_ns - update.value[0]) / 1e6)
                missed += update.missed
            speaker.wait(WAIT_S)
        spent_us = [
            1e6 * (_cpu_s(one) - began) / count for one, began in zip(watched, before, strict=True)
        ]
    cuts = statistics.quantiles(late_ms, n=100)
    return {
        "bytes": size,
        "asked_per_s": rate or "all it can",
        "per_s": round(count / ((last_ns - first_ns) / 1e9)),
        "missed": missed,
        "p50_ms": round(cuts[49], 2),
        "p99_ms": round(cuts[98], 2),
        "daemons_us_per_value": [round(one, 1) for one in spent_us],
    }


def _cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def main() -> None:
    """Measure floods of several sizes, then a steady pace."""
    with mesh(2, BLACKROAD_SLOTS="1", BLACKROAD_OPENCL="off") as (here, there):
        with here.client() as one:
            until(lambda: sum(row["state"] == "alive" for row in one.nodes()["nodes"]) == 2)
        for size in SIZES:
            count = FLOOD if size < 10_000 else FLOOD // 10
            print(json.dumps(measure(here, there, count, 0, size)), flush=True)
        for rate in RATES:
            print(json.dumps(measure(here, there, rate * PACED_S, rate, 8)), flush=True)


if __name__ == "__main__":
    main()
