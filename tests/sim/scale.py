"""A coordinator of many nodes and an owner of many tasks: what one event costs, and what memory.

`python -m tests.sim.scale` prints it.  The other nodes are made-up Heartbeats and Demands; the one
that is measured is a real Node.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.capabilities import Capabilities
from blackroad.ids import Epoch, incarnation
from blackroad.requirements import Needs
from blackroad.units import CPU_UNITS_PER_CORE

SLOTS = 4
NEEDS = Needs().to_wire()


class Cost(NamedTuple):
    """Milliseconds of one event, and KiB that the whole state takes."""

    table_ms: float
    demand_ms: float
    heartbeat_ms: float
    memory_kib: float
    rows: int


def capabilities(name: str, speed: float) -> Capabilities:
    """A small machine."""
    return Capabilities(
        name=name,
        arch="aarch64",
        page_bytes=4096,
        cores=SLOTS,
        memory_bytes=2**33,
        python="3.11",
        python_full="3.11.2",
        implementation="cpython",
        os="linux",
        libc="glibc",
        model="made up",
        labels={},
        speeds={"python": 10.0 * speed},
    )


class Mesh:
    """One real node that coordinates `nodes` made-up ones; `owners` of them want something."""

    def __init__(self, nodes: int, owners: int, queued: int, classes: int = 1) -> None:
        self.now_ms = 10_000
        self.ids = [number.to_bytes(16, "big") for number in range(1, nodes + 1)]
        self.owners = self.ids[:owners]
        self.queued = queued
        self.classes = classes
        self.node = n.Node(
            b"\0" * 16, incarnation(1, 7), capabilities("boss", 1.0), SLOTS, self.now_ms
        )
        self._seq = 0
        self._reign()
        for number, id_ in enumerate(self.ids):
            self.beat(number)
            body = n.encode(capabilities(f"node{number}", 1 + number % 16))
            caps = m.Capabilities(id_, self._inc(), b"d" * 16, body)
            self.node.handle(n.FromPeer(id_, (caps,), self._inc()), self.now_ms)
        for owner in self.owners:
            self.demand(owner)
        while not self.node.coordinator.tables:
            self.turn(self.node.membership.interval_ms)

    def _inc(self) -> int:
        return incarnation(3, 9)

    def _reign(self) -> None:
        """Alone at first, it claims the role."""
        while self.node.election.claim is None:
            self.turn(250)

    def turn(self, ms: int) -> None:
        """Let time pass; everybody who is there is heard meanwhile."""
        self.now_ms += ms
        for number in range(len(self.node.membership.peers)):
            self.beat(number)
        self.node.handle(n.Tick(), self.now_ms)

    def beat(self, number: int) -> None:
        """One Heartbeat of that node, which follows this one."""
        claim = self.node.election.claim
        assert isinstance(claim, Epoch)
        supply = m.Supply(
            SLOTS * CPU_UNITS_PER_CORE,
            2**33,
            (),
            SLOTS * CPU_UNITS_PER_CORE,
            2**33,
            0,
            0,
            False,
            10_000 * (1 + number % 16),
            0,
            False,
            0,
            0,
        )
        beat = m.Heartbeat(
            self.ids[number],
            self._inc(),
            self.now_ms,
            1,
            None,
            self.node.me,
            True,
            (),
            supply,
            0,
            0,
            b"d" * 16,
            0,
            self.node.membership.interval_ms,
        )
        self.node.handle(n.Heard(beat), self.now_ms)

    def demand(self, owner: bytes, extra: int = 0) -> None:
        """One owner states what it wants; every owner has a user of its own."""
        self._seq += 1
        user = f"user{self.owners.index(owner)}"
        classes = tuple(
            m.ClassDemand(
                number + 1,
                NEEDS,
                0,
                user,
                1,
                False,
                self.queued // (len(self.owners) * self.classes) + extra,
                1_000 * number,
                100,
                (),
            )
            for number in range(self.classes)
        )
        demand = m.Demand(self._inc(), self._seq, classes, ())
        self.node.handle(n.FromPeer(owner, (demand,), self._inc()), self.now_ms)


def _best(times: int, work: Callable[[int], object]) -> float:
    """The shortest of several, in milliseconds: what the work costs when nobody disturbs it."""
    best = float("inf")
    for turn in range(times):
        began = time.perf_counter()
        work(turn)
        best = min(best, time.perf_counter() - began)
    return 1000 * best


def measure(nodes: int, owners: int, queued: int, classes: int = 1) -> Cost:
    """What the coordinator's events cost at that size."""
    gc.collect()
    tracemalloc.start()
    mesh = Mesh(nodes, owners, queued, classes)
    gc.collect()
    memory_kib = tracemalloc.get_traced_memory()[0] / 1024
    tracemalloc.stop()
    node = mesh.node

    def table(turn: int) -> None:
        # Everything anew: an owner's Demand changed, and time is up for a table.
        mesh.demand(mesh.owners[0], extra=turn + 1)
        node.coordinator._changed = True
        node.coordinator._compute(mesh.now_ms)

    def demand(turn: int) -> None:
        mesh.demand(mesh.owners[turn % owners], extra=100 + turn)

    def heartbeat(turn: int) -> None:
        mesh.now_ms += 1
        mesh.beat(turn % nodes)

    demand_ms = _best(20, demand)
    table_ms = _best(5, table)
    heartbeat_ms = _best(200, heartbeat)
    rows = sum(len(owner.rows or ()) for owner in node.coordinator.owners.values())
    return Cost(table_ms, demand_ms, heartbeat_ms, memory_kib, rows)


def main() -> int:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.scale", description=__doc__)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for nodes, owners, queued, classes in (
        (10, 10, 1_000, 1),
        (100, 10, 1_000_000, 1),
        (1_000, 10, 1_000, 1),
        (1_000, 10, 1_000_000, 1),
        (1_000, 10, 1_000_000, 10),
    ):
        cost = measure(nodes, owners, queued, classes)
        if args.json:
            size = {"nodes": nodes, "owners": owners, "queued": queued, "classes": classes}
            print(json.dumps(size | cost._asdict()))
        else:
            print(
                f"{nodes:>5} nodes, {owners} owners x {classes} classes, {queued:>9,} queued: "
                f"table {cost.table_ms:8.2f} ms, Demand {cost.demand_ms:6.3f} ms, "
                f"Heartbeat {cost.heartbeat_ms:6.3f} ms, {cost.memory_kib / 1024:6.1f} MiB, "
                f"{cost.rows} rows"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
