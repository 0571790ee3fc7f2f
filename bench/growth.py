"""Cost for one unit against the number of units: `python -m bench --growth`, some minutes.

Costs are processor time wherever that says it, since that counts the same on a busy machine.
What would take hours with real daemons is made up: see `lonely.py` and `tests/sim/scale.py`.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import jobs, lonely, proc
from bench.mesh import Daemon, mesh, until
from bench.runner import machine

RESULTS = Path(__file__).absolute().parent / "results" / "growth.json"
MIB = 1 << 20
CREDIT = 200_000
CLIENT_TASKS = 50_000
WARM_TASKS = 5_000
ROUND_TASKS = 50_000
_CLIENT = "import bench.growth, sys; bench.growth.client(sys.argv[1], int(sys.argv[2]))"
Row = dict[str, float]


class Sizes(NamedTuple):
    """How far each thing grows."""

    real_tasks: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 100_000, 200_000)
    made_up_tasks: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    nodes: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    payloads: tuple[int, ...] = tuple(1024 * 4**n for n in range(11))
    clients: tuple[int, ...] = (1, 2, 5, 10, 20, 50)


FEW = Sizes((1_000, 5_000), (1_000, 10_000), (1, 10), (1024, MIB, 16 * MIB), (1, 5))


class Meter:
    """Processor time of a daemon, its children and this process since it was set."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self._daemon = daemon.process.pid
        self.reset()

    def reset(self) -> None:
        """Count from now on."""
        self._began_s = time.perf_counter()
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        daemon_s = proc.cpu_s([self._daemon])
        # A child that has ended counts on with whoever reaped it.
        family_s = proc.cpu_s([self._daemon, *proc.below(self._daemon)], ended=True)
        return time.process_time(), daemon_s, family_s - daemon_s

    def costs(self, units: int) -> Row:
        """Microseconds of each for one unit, and units a second."""
        mine, daemon, children = (
            1e6 * (now - before) / units
            for now, before in zip(self._now(), self._before, strict=True)
        )
        return {
            "program us": round(mine, 2),
            "daemon us": round(daemon, 2),
            "task processes us": round(children, 2),
            "all us": round(mine + daemon + children, 2),
            "a second": round(units / (time.perf_counter() - self._began_s), 1),
        }


@contextlib.contextmanager
def _one_node() -> Iterator[tuple[Daemon, Any]]:
    settings = {"BLACKROAD_SLOTS": "2", "BLACKROAD_OPENCL": "off"}
    with mesh(1, **settings) as [daemon], daemon.client() as client:
        until(lambda: client.nodes()["coordinator"])
        for future in [client.submit(jobs.noop, number) for number in range(WARM_TASKS)]:
            future.result(60)
        yield daemon, client


def real_tasks(sizes: Sizes) -> list[Row]:
    """No-op tasks that are all submitted before the first result is asked for."""
    rows: list[Row] = []
    with _one_node() as (daemon, client):
        for count in sizes.real_tasks:
            if count > CREDIT:
                raise ValueError(f"one program's credit ends before {count} tasks")
            meter = Meter(daemon)
            # The kernel counts in hundredths of a second.
            rounds = max(1, ROUND_TASKS // count)
            for _ in range(rounds):
                futures = [client.submit(jobs.noop, number) for number in range(count)]
                values = [future.result(600) for future in futures]
                if values != list(range(count)):
                    raise AssertionError("results came, and they are not the right ones")
                del futures, values
            rows.append({"tasks": count, **meter.costs(rounds * count)})
            _say(rows[-1])
    return rows


def made_up_tasks(sizes: Sizes) -> list[Row]:
    """The same with a node that is alone with made-up processes."""
    rows: list[Row] = []
    for count in sizes.made_up_tasks:
        cost = lonely.cost(count)
        row: Row = {"tasks": count, "us": round(cost.us, 2), "bytes queued": round(cost.bytes)}
        row["calls"] = round(cost.calls, 1)
        rows.append(row)
        _say(rows[-1])
    return rows


def nodes(sizes: Sizes) -> list[Row]:
    """A coordinator's work for one node of its cluster, ten users at most, a million queued."""
    from tests.sim.scale import measure

    rows: list[Row] = []
    for count in sizes.nodes:
        cost = measure(count, min(10, count), 1_000_000)
        rows.append(
            {
                "nodes": count,
                "table us / node": round(1e3 * cost.table_ms / count, 1),
                "Demand us": round(1e3 * cost.demand_ms, 1),
                "Heartbeat us": round(1e3 * cost.heartbeat_ms, 1),
                "KiB / node": round(cost.memory_kib / count, 1),
            }
        )
        _say(rows[-1])
    return rows


def payloads(sizes: Sizes) -> list[Row]:
    """Echo of one array, the median of several."""
    import numpy as np

    rows: list[Row] = []
    with _one_node() as (daemon, client):
        for size in sizes.payloads:
            times = 50 if size < MIB else 7 if size < 256 * MIB else 3
            took_s = []
            # Pages that nobody wrote to would cost nothing.
            array = np.arange(size // 8, dtype=np.int64)
            client.submit(jobs.echo, array).result(300)
            meter = Meter(daemon)
            for turn in range(times):
                array[0] = array[-1] = turn
                began = time.perf_counter()
                back = client.submit(jobs.echo, array).result(300)
                took_s.append(time.perf_counter() - began)
                if back.nbytes != size or not (back[0] == back[-1] == turn):
                    raise AssertionError(f"an array of {size} bytes came back changed")
                del back
            middle_s = statistics.median(took_s)
            costs = meter.costs(times * size // 1024)
            rows.append(
                {
                    "KiB": size // 1024,
                    "ms": round(1e3 * middle_s, 2),
                    "MB/s both ways": round(2 * size / middle_s / 1e6, 1),
                    "processor us / KiB": costs["all us"],
                }
            )
            _say(rows[-1])
    return rows


def clients(sizes: Sizes) -> list[Row]:
    """So many programs share the same number of tasks."""
    rows: list[Row] = []
    with _one_node() as (daemon, _):
        for count in sizes.clients:
            each = CLIENT_TASKS // count
            with contextlib.ExitStack() as ends:
                programs = [ends.enter_context(_program(daemon, each)) for _ in range(count)]
                for one in programs:
                    one.stdout.readline()
                meter = Meter(daemon)
                for one in programs:
                    one.stdin.write("go\n")
                    one.stdin.flush()
                spent = [json.loads(one.stdout.readline()) for one in programs]
                costs = meter.costs(each * count)
            costs["program us"] = round(1e6 * sum(spent) / (each * count), 2)
            whole = costs["program us"] + costs["daemon us"] + costs["task processes us"]
            rows.append({"programs": count, **costs, "all us": round(whole, 2)})
            _say(rows[-1])
    return rows


@contextlib.contextmanager
def _program(daemon: Daemon, tasks: int) -> Iterator[Any]:
    words = [sys.executable, "-c", _CLIENT, f"ipc://{daemon.runtime / 'client.sock'}", str(tasks)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()  # type: ignore[union-attr]


def client(endpoint: str, tasks: int) -> None:
    """One program of many: say that it is ready, wait, submit all and take all."""
    from blackroad.client import Client

    with Client(endpoint, connect_timeout=30) as one:
        one.submit(jobs.noop, 0).result(60)
        print("ready", flush=True)
        sys.stdin.readline()
        before_s = time.process_time()
        futures = [one.submit(jobs.noop, number) for number in range(tasks)]
        for future in futures:
            future.result(600)
        print(json.dumps(time.process_time() - before_s), flush=True)
        sys.stdin.readline()


def _say(row: Row) -> None:
    print("  ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr, flush=True)


PARTS = {
    "Tasks, one daemon": (
        real_tasks,
        "All are submitted before the first result is asked for; processor time of the program, "
        "the daemon and the task processes for one no-op.",
    ),
    "Tasks, one node's state machines": (
        made_up_tasks,
        "Owner, coordinator and worker together, without sockets and processes: processor time "
        "and function calls for one task, and what a queued one holds beside its work.",
    ),
    "Nodes": (
        nodes,
        "One coordinator, a million tasks queued by up to ten users, simulated: a whole table, one "
        "changed Demand, one Heartbeat.",
    ),
    "Payload": (
        payloads,
        "Echo of one array on one machine. Up to some MiB the round trip itself is most of it.",
    ),
    "Programs": (
        clients,
        f"{CLIENT_TASKS:,} no-op tasks shared by so many programs of one daemon.",
    ),
}


def main(*, quick: bool) -> int:
    """Measure all parts, keep them, and draw them where that is possible."""
    report: dict[str, Any] = {"machine": machine(), "parts": {}}
    for title, (work, text) in PARTS.items():
        print(f"--- {title}", file=sys.stderr)
        others = proc.Others()
        rows = work(FEW if quick else Sizes())
        report["parts"][title] = {
            "text": text,
            "rows": rows,
            "others_percent": round(others.percent(), 1),
        }
    if quick:
        print(json.dumps(report["parts"], indent=1))
        return 0
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    from bench import docs, plot

    return plot.main() or docs.write_growth()
