"""Row 53 of the fault table with figures: `python -m tests.mirror` hurts a server under load.

A daemon runs tasks at a steady pace all the time.  For each fault: how long the slowest task took
meanwhile, how long the mirror took to be whole again after the repair, and what was lost.
"""

from __future__ import annotations

import json
import select
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from blackroad.client import Client
from tests.edge.meshes import mesh_of, until
from tests.mirror.servers import Server, server_in

FAULT_S = 10.0
PER_S = 100


class Figures(NamedTuple):
    """One line of the table."""

    fault: str
    tasks: int
    failed: int
    slowest_ms: int
    recovery_s: float
    missing: int
    wrong: int


class Load(threading.Thread):
    """Submits tasks at a steady pace and checks every result."""

    def __init__(self, client: Client) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._end = threading.Event()
        self.values: dict[str, int] = {}
        self.failed = 0
        self.slowest_s = 0.0

    def run(self) -> None:
        number = 0
        while not self._end.wait(1 / PER_S):
            number += 1
            began = time.monotonic()
            future = self._client.submit(plus_one, number)
            try:
                self.failed += future.result(60) != number + 1
            except Exception:
                self.failed += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.values[future.task_id] = number + 1

    def finish(self) -> None:
        self._end.set()
        self.join()


def plus_one(number: int) -> int:
    return number + 1


def pause(seconds: float) -> None:
    select.select([], [], [], seconds)


def mirrored(redis: Any) -> dict[str, Any]:
    """All outcomes in the mirror by their ids."""
    keys = list(redis.scan_iter("*:mirror:result:*", count=1_000))
    texts = redis.mget(keys) if keys else []
    rows = [json.loads(text) for text in texts if text]
    return {row["id"]: row.get("value") for row in rows}


def measured(
    fault: str, client: Client, redis: Callable[[], Any], hurt: Callable[[], object],
    heal: Callable[[], object],
) -> Figures:  # fmt: skip
    """One fault from its beginning until the mirror is whole."""
    load = Load(client)
    load.start()
    pause(2)
    hurt()
    pause(FAULT_S)
    known = dict(load.values)
    heal()
    healed = time.monotonic()
    until(lambda: known.keys() <= mirrored(redis()).keys(), f"a whole mirror after {fault}", 90)
    recovery_s = time.monotonic() - healed
    load.finish()
    until(lambda: load.values.keys() <= mirrored(redis()).keys(), "the last outcomes")
    there = mirrored(redis())
    wrong = sum(there[id_] != value for id_, value in load.values.items())
    missing = len(load.values.keys() - there.keys())
    slowest_ms = round(load.slowest_s * 1000)
    count = len(load.values)
    return Figures(fault, count, load.failed, slowest_ms, round(recovery_s, 1), missing, wrong)


def all_faults(server: Server, client: Client) -> list[Figures]:
    def redis() -> Any:
        return server.client(password="right-one")

    def restart() -> None:
        server.start("--requirepass", "right-one")

    def password(word: str) -> Callable[[], object]:
        def change() -> None:
            old = "right-one" if word != "right-one" else "other"
            one = server.client(password=old)
            one.config_set("requirepass", word)
            # Who is connected stays so; the mirror has to log in again.
            one.client_kill_filter(_type="normal", skipme=True)

        return change

    nothing = lambda: None  # noqa: E731
    return [
        measured("none", client, redis, nothing, nothing),
        measured("down", client, redis, server.stop, restart),
        measured("slow (no answer)", client, redis, server.pause, server.go_on),
        measured("wiped", client, redis, lambda: redis().flushall(), nothing),
        measured(
            "read-only", client, redis,
            lambda: redis().replicaof("127.0.0.1", "1"), lambda: redis().replicaof("NO", "ONE"),
        ),
        measured("wrong password", client, redis, password("other"), password("right-one")),
    ]  # fmt: skip


def main() -> int:
    with tempfile.TemporaryDirectory() as directory, server_in(Path(directory)) as server:
        server.start("--requirepass", "right-one")
        settings = {
            "BLACKROAD_REDIS_URL": server.url("right-one"),
            "BLACKROAD_REDIS_MIRROR": "true",
        }
        with mesh_of("one", **settings) as mesh, mesh.daemons[0].client() as client:
            rows = all_faults(server, client)
            told = client._ask("driver", {})["mirror"]
    for row in [Figures._fields, *rows]:
        print("  ".join(str(cell).ljust(16) for cell in row))
    print({key: told[key] for key in ("written", "again", "dropped", "skipped", "restarts")})
    return int(any(row.failed or row.missing or row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
