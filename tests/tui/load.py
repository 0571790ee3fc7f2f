"""What the live view costs with many nodes: `python -m tests.tui.load [NODES]`, in a terminal.

It shows a mesh on paper in which all changes each second, and prints what it took at the end.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import psutil
from textual.drivers.linux_driver import LinuxDriver

from blackroad.glance import MeshView, WorkView
from blackroad.tui.app import Top
from blackroad.tui.feed import Feed
from blackroad.tui.model import Model
from tests.tui.fakes import GIB, FakeMesh, beat, task_id, task_row, work

WARM_S: Final = 4.0
MEASURED_S: Final = 20.0
TASKS_PER_S: Final = 10_000
OWNERS: Final = 20


class Busy(FakeMesh):
    """Every node ends tasks, and every number is another one each time."""

    def __init__(self, nodes: int) -> None:
        super().__init__(*(beat(at, owned=1_000 if at < OWNERS else 0) for at in range(nodes)))
        self.bytes = 0
        self._start = time.monotonic()
        self._chance = random.Random(1)

    def _done(self) -> int:
        return int((time.monotonic() - self._start) * TASKS_PER_S)

    def mesh(self) -> MeshView:
        chance, each = self._chance, self._done() // len(self.beats)
        self.beats = [
            msgspec.structs.replace(
                one,
                done=each,
                running=chance.randint(0, 4),
                waiting=chance.randint(0, 20),
                cpu_percent=chance.randint(1, 100),
                memory_percent=chance.randint(10, 90),
                load_percent=chance.randint(1, 100),
                free_memory_bytes=chance.randint(1, 8) * GIB,
                temperature_c=chance.randint(40, 75),
                receiving_kib_s=chance.randint(0, 9_000),
                owned=one.owned and chance.randint(1, 100_000),
            )
            for one in self.beats
        ]
        return self._sent(super().mesh(), MeshView)

    def work(self, owner: bytes, tasks: int) -> WorkView:
        first, chance = self._done(), self._chance
        states = ("running", "queued", "done")
        rows = [
            task_row(0, chance.choice(states), task=task_id(first + at), run_us=500 + at)
            for at in range(tasks)
        ]
        counts = {"running": 40, "queued": chance.randint(0, 10**6)}
        return self._sent(work(0, *rows, node=owner, open=counts, ended={"done": first}), WorkView)

    def events(self, closed: threading.Event) -> Iterable[dict[str, Any]]:
        number = 0
        while not closed.wait(0.5):
            number += 1
            at_ms = time.time_ns() // 1_000_000
            facts = {"task": f"t{number}"}
            told = {"id": f"e{number}", "at_ms": at_ms, "host": "attic", "facts": facts}
            yield {**told, "name": "task.failed", "severity": "warning", "cause": ""}

    def _sent(self, told: Any, kind: Any) -> Any:
        data = msgspec.msgpack.encode(told)
        self.bytes += len(data)
        return msgspec.msgpack.decode(data, type=kind)


class Counted(LinuxDriver):
    """Counts what goes to the terminal."""

    written = 0

    def write(self, data: str) -> None:
        Counted.written += len(data.encode())
        super().write(data)


def main() -> None:
    """Show it for a while, then print what it took."""
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    mesh, model = Busy(nodes), Model()
    feed = Feed(mesh, 1.0)
    feed.first()
    feed.drain(model)
    app = Top(feed, model, lambda told: [str(told)])
    app.driver_class = Counted
    found: dict[str, float] = {}

    def measure() -> None:
        threading.Event().wait(WARM_S)
        start, cpu = time.monotonic(), time.process_time()
        sent, written = mesh.bytes, Counted.written
        threading.Event().wait(MEASURED_S)
        past = time.monotonic() - start
        found["nodes"] = nodes
        found["cpu_percent"] = round(100 * (time.process_time() - cpu) / past, 2)
        found["daemon_kb_s"] = round((mesh.bytes - sent) / past / 1000, 1)
        found["terminal_kb_s"] = round((Counted.written - written) / past / 1000, 1)
        found["memory_mib"] = psutil.Process().memory_info().rss >> 20
        app.call_from_thread(app.exit)

    threading.Thread(target=measure, daemon=True).start()
    app.run()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
