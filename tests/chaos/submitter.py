"""A client in a process of its own, so that it can be killed or stopped at any moment.

python -m tests.chaos.submitter submit SOCKET PLACE NAME PREFIX FIRST COUNT BYTES
python -m tests.chaos.submitter flood SOCKET USER CLIENTS COUNT
python -m tests.chaos.submitter deaf SOCKET COUNT BYTES
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from typing import Any

from blackroad.client import Client
from blackroad.client.futures import TaskFuture
from blackroad.errors import Busy
from tests.chaos.work import append, true_boot_ms


def submit(socket: str, place: str, name: str, prefix: str, *numbers: str) -> None:
    """Submit tasks with ids made from `prefix`: once more is the same again.

    It says `ready` when it begins and `ended` when it knows all ends; in between it may be killed.
    """
    first, count, result_bytes = map(int, numbers)
    client = _same_ids(socket, prefix, first)
    history = f"{place}/history"
    print("ready", flush=True)
    futures: list[tuple[str, TaskFuture]] = []
    for number in range(first, first + count):
        task = f"{name}{number:06d}"
        append(history, {"what": "submitted", "task": task, "boot_ms": true_boot_ms()})
        words = (task, place, 0, 1000, result_bytes)
        future = client.submit("tests.chaos.work:sleeper", *words, durable=True)
        assert future.accepted is not None
        future.accepted.add_done_callback(lambda told, task=task: _accepted(history, task, told))
        futures.append((task, future))
    for _, future in futures:
        assert future.accepted is not None
        future.accepted.result(120)
    print("accepted", json.dumps([future.task_id for _, future in futures]), flush=True)
    for task, future in futures:
        result = str(future.result(300))[:80]
        event = {"what": "ended", "task": task, "end": "done", "result": result}
        append(history, {**event, "boot_ms": true_boot_ms()})
    print("ended", flush=True)
    client.close()


def _same_ids(socket: str, prefix: str, first: int) -> Client:
    """A client whose tasks have ids that are known beforehand, as after a retry."""
    client = Client(socket, user="chaos", connect_timeout=30)
    client._task_prefix = bytes.fromhex(prefix)
    client._task_numbers = itertools.count(first)
    return client


def _accepted(history: str, task: str, told: Any) -> None:
    if told.exception() is None:
        append(history, {"what": "accepted", "task": task, "boot_ms": true_boot_ms()})


def flood(socket: str, user: str, clients: str, count: str) -> None:
    """Submit as fast as it goes, with so many clients at once; tell how long each submit took."""
    told: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=_flood_one, args=(socket, user, number, int(count), told))
        for number in range(int(clients))
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    print(json.dumps(told), flush=True)


def _flood_one(socket: str, user: str, number: int, count: int, told: list[dict[str, Any]]) -> None:
    mine: dict[str, Any] = {"client": number, "wrong": 0, "busy": 0, "done": 0}
    with Client(socket, user=user, connect_timeout=60, submit_timeout=600) as client:
        waits: list[float] = []
        futures = []
        for item in range(count):
            began = time.perf_counter()
            try:
                futures.append((item, client.submit("operator:neg", item)))
            except Busy:
                mine["busy"] += 1
            waits.append(time.perf_counter() - began)
        mine["submitted_s"] = time.time()
        for item, future in futures:
            mine["wrong"] += future.result(900) != -item
            mine["done"] += 1
        mine["done_s"] = time.time()
        waits.sort()
        mine["p99_ms"] = 1000 * waits[len(waits) * 99 // 100]
    told.append(mine)


def deaf(socket: str, count: str, result_bytes: str) -> None:
    """Submit tasks with results, say so, and wait to be stopped before any is read."""
    client = Client(socket, user="deaf", connect_timeout=30)
    futures = [
        client.submit("builtins:bytes", int(result_bytes), durable=True) for _ in range(int(count))
    ]
    for future in futures:
        assert future.accepted is not None
        future.accepted.result(120)
    print("accepted", flush=True)
    for future in futures:
        future.result(600)
    print("ended", flush=True)


if __name__ == "__main__":
    {"submit": submit, "flood": flood, "deaf": deaf}[sys.argv[1]](*sys.argv[2:])
