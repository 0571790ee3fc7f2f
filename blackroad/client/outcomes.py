"""Waiting for a task by its printed id, from a program that did not submit it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from blackroad.bus import messages as m
from blackroad.bus import payload
from blackroad.client.futures import error_of

if TYPE_CHECKING:
    from blackroad.client.client import Client

ASK_MS = 1_000


def wait_for_outcome(client: Client, task_id: str, timeout: float | None) -> Any:
    """Ask the owner until the task has ended; return its value or raise what it raised.

    Raises  TimeoutError after `timeout` seconds; what `error_of` makes of other ends.
    """
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        left_ms = ASK_MS
        if until is not None:
            left_ms = max(0, min(ASK_MS, int((until - time.monotonic()) * 1000)))
        told = client._about("result", task_id, wait_ms=left_ms)
        if told["ended"] is not None:
            return _value(client, told)
        if until is not None and time.monotonic() >= until:
            raise TimeoutError(f"{task_id} is {told['state']}")


def _value(client: Client, told: dict[str, Any]) -> Any:
    ended = told["ended"]
    result: bytes | memoryview = told["inline"]
    if told["digest"]:
        owner, _ = client._owner_of(told["id"])
        if owner != client.node_id:
            args = {"digest": told["digest"], "size": told["size"], "node": owner}
            client._ask("get", args, timeout_s=60)
        ref = m.Ref(told["digest"], told["size"])
        result = client._connection.fetch(ref).result()
    if ended["end"] == "done":
        return payload.decode(result) if len(result) else None
    facts = m.Facts(
        ended["run_us"], ended["exit_status"], ended["backend"], ended["text"], ended["type"]
    )
    outcome = m.Ended(
        told["task"],
        m.End[ended["end"].upper()],
        ended["reason"],
        b"",
        facts,
        told["node"],
        ended["attempts"],
    )
    status = client.status(told["id"])
    raise error_of(outcome, result, told["id"], status["name"])
