"""Figures that have no peer: daemons that find each other, a lost coordinator, a million tasks."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import wait
from typing import Any

from bench.mesh import cpu_seconds, mesh, pss_mib, tree_of, until
from bench.stream import stream

NOOPS = 20_000
ROUND_TRIPS = 1_000
IDLE_S = 10.0


def nothing() -> None:
    """The task that does nothing."""


def presence(repeat: int) -> dict[str, Any]:
    """How soon three daemons see each other, and how soon a cold mesh gives its first result."""
    runs = [_one_start() for _ in range(repeat)]
    return {
        "first_result_s": round(max(run[0] for run in runs), 2),
        "see_each_other_s": round(max(run[1] for run in runs), 2),
        "coordinator_s": round(max(run[2] for run in runs), 2),
        "of_runs": repeat,
    }


def _one_start() -> tuple[float, float, float]:
    with mesh(3, BLACKROAD_SLOTS="1", BLACKROAD_OPENCL="off") as daemons:
        started = daemons[-1].started
        with daemons[0].client() as br:
            br.submit(nothing).result(30)
            first_s = time.perf_counter() - daemons[0].started
            until(lambda: _alive(br) == 3)
            seen_s = time.perf_counter() - started
            until(lambda: br.nodes()["coordinator"])
            return first_s, seen_s, time.perf_counter() - started


def _alive(br: Any) -> int:
    return sum(row["state"] == "alive" for row in br.nodes()["nodes"])


def failover(repeat: int) -> dict[str, Any]:
    """How long the mesh is without a coordinator after its coordinator was killed."""
    runs = [_one_failover() for _ in range(repeat)]
    return {
        "new_coordinator_s": round(max(run[0] for run in runs), 2),
        "tasks_done_meanwhile": min(run[1] for run in runs),
        "of_runs": repeat,
    }


def _one_failover() -> tuple[float, int]:
    """Kill the coordinator under load; return seconds to the next one, and tasks done till then."""
    with mesh(3, BLACKROAD_SLOTS="1", BLACKROAD_OPENCL="off") as daemons:
        clients = [daemon.client() for daemon in daemons]
        until(lambda: all(_alive(br) == 3 for br in clients) and _agreed(clients))
        name = _agreed(clients)
        at = next(n for n, daemon in enumerate(daemons) if daemon.name == name)
        rest = [br for n, br in enumerate(clients) if n != at]
        futures = [rest[0].submit(time.sleep, 0.02, pure=True) for _ in range(100)]
        daemons[at].kill()
        killed = time.perf_counter()
        until(lambda: all(_leader(br) not in ("", name) for br in rest))
        took_s = time.perf_counter() - killed
        done = sum(future.done() for future in futures)
        for future in futures:
            future.result(60)
        for br in clients:
            br.close()
        return took_s, done


def _agreed(clients: list[Any]) -> str:
    """The coordinator that all follow, or nothing."""
    names = {_leader(br) for br in clients}
    return names.pop() if len(names) == 1 else ""


def _leader(br: Any) -> str:
    return next((row["name"] for row in br.nodes()["nodes"] if row["coordinator"]), "")


def throughput(repeat: int) -> dict[str, Any]:
    """No-op tasks, each its own submit and future, to one node with two worker processes."""
    rates, p50, p99 = [], [], []
    with (
        mesh(1, BLACKROAD_SLOTS="2", BLACKROAD_OPENCL="off") as daemons,
        daemons[0].client() as br,
    ):
        until(lambda: _leader(br))
        wait([br.submit(nothing) for _ in range(2_000)])
        for _ in range(repeat):
            begin = time.perf_counter()
            futures = [br.submit(nothing) for _ in range(NOOPS)]
            for future in futures:
                future.result(60)
            rates.append(NOOPS / (time.perf_counter() - begin))
            trips = sorted(_round_trip(br) for _ in range(ROUND_TRIPS))
            p50.append(trips[ROUND_TRIPS // 2])
            p99.append(trips[ROUND_TRIPS * 99 // 100])
    return {
        "noop_per_s": round(statistics.median(rates)),
        "round_trip_p50_us": round(statistics.median(p50) * 1e6),
        "round_trip_p99_us": round(statistics.median(p99) * 1e6),
        "of_runs": repeat,
    }


def _round_trip(br: Any) -> float:
    begin = time.perf_counter()
    br.submit(nothing).result(10)
    return time.perf_counter() - begin


def idle(seconds: float) -> dict[str, Any]:
    """What a node costs that has nothing to do."""
    with mesh(1) as daemons, daemons[0].client() as br:
        until(lambda: _leader(br))
        until(lambda: br.nodes()["nodes"][0]["devices"] is not None)
        br.submit(nothing).result(30)
        process = daemons[0].process
        assert process is not None
        time.sleep(2)
        family = tree_of(process.pid)
        before = cpu_seconds(family)
        alone_before = cpu_seconds([process.pid])
        time.sleep(seconds)
        family = tree_of(process.pid)
        return {
            "daemon_pss_mib": round(pss_mib([process.pid]), 1),
            "family_pss_mib": round(pss_mib(family), 1),
            "processes": len(family),
            "daemon_cpu_percent": round(
                100 * (cpu_seconds([process.pid]) - alone_before) / seconds, 2
            ),
            "family_cpu_percent": round(100 * (cpu_seconds(family) - before) / seconds, 2),
            "over_s": seconds,
        }


PARTS = {
    "presence": lambda repeat: presence(repeat),
    "failover": lambda repeat: failover(repeat),
    "throughput": lambda repeat: throughput(repeat),
    "idle": lambda _repeat: idle(IDLE_S),
}
# Minutes each: only when asked for by name.
LONG_PARTS = {
    "stream": lambda _repeat: stream(),
}
