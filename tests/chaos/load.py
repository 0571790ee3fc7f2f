"""The submitter: durable tasks into one machine, and what it was told about each of them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from blackroad.cli.chaos_history import History, Verdict, judge, parse
from blackroad.client.futures import TaskFuture
from blackroad.errors import BlackroadError
from blackroad.requirements import Needs
from tests.chaos.machines import Lab, Machine, NotInTime
from tests.chaos.work import append, true_boot_ms

BEAT_MS = 50
HOUR_S = 3600


class Load:
    """Tasks of one submitter at one owner."""

    def __init__(self, lab: Lab, owner: Machine, name: str = "t", user: str = "chaos") -> None:
        self.lab = lab
        self.owner = owner
        self.name = name
        self.client = lab.client(owner, user)
        self.futures: dict[str, TaskFuture] = {}
        self.ended: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.accepted: set[str] = set()
        self._history = f"{lab.place}/history"
        self._lock = threading.Lock()

    def submit(
        self,
        count: int,
        ms: int,
        *,
        beat_ms: int = BEAT_MS,
        needs: Needs | None = None,
        result_bytes: int = 0,
        lease: str | None = None,
    ) -> list[str]:
        """Submit so many tasks that sleep for `ms`; return their names."""
        return [self._one(ms, beat_ms, needs, result_bytes, lease) for _ in range(count)]

    def stream(self, seconds: float, rate: float, ms: int, **options: Any) -> list[str]:
        """Submit `rate` tasks a second for so long."""
        names: list[str] = []
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            names += self.submit(int(now * rate) + 1 - len(names), ms, **options)
            time.sleep(min(0.05, 1 / rate))
        return names

    def wait_accepted(self, names: list[str], limit_s: float = 60.0) -> None:
        """Wait until each of them is accepted or refused.

        Raises  NotInTime.
        """
        self._wait(lambda: [n for n in names if not self._decided(n)], "answered", limit_s)

    def wait(self, limit_s: float, names: list[str] | None = None) -> None:
        """Wait until each accepted task has ended, and write down what the submitter was told.

        Raises  NotInTime.
        """
        wanted = list(self.futures) if names is None else names
        self._wait(lambda: [n for n in wanted if not self._over(n)], "ended", limit_s)

    def _wait(self, left: Any, what: str, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while missing := left():
            if time.monotonic() > deadline:
                told = self._told(missing[0])
                raise NotInTime(
                    f"{len(missing)} of {len(self.futures)} tasks not {what} within {limit_s:g} s, "
                    f"as {missing[0]}: {told}"
                )
            time.sleep(0.02)

    def _told(self, name: str) -> str:
        try:
            why = self.client.why(self.futures[name].task_id)
            return str(why.get("text") or why)[:400]
        except (BlackroadError, OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"[:300]

    def _decided(self, name: str) -> bool:
        return name in self.accepted or name in self.refused

    def _over(self, name: str) -> bool:
        return name in self.ended or name in self.refused

    def _one(
        self, ms: int, beat_ms: int, needs: Needs | None, result_bytes: int, lease: str | None
    ) -> str:
        name = f"{self.name}{len(self.futures):06d}"
        append(self._history, {"what": "submitted", "task": name, "boot_ms": true_boot_ms()})
        future = self.client.submit(
            "tests.chaos.work:sleeper",
            name,
            self.lab.place,
            ms,
            beat_ms,
            result_bytes,
            durable=True,
            needs=needs,
            lease=lease,
            # Tasks of one length are a class of their own: a node that has only run short ones
            # would seem fast, and the others would leave it the tail of the queue.
            timeout=HOUR_S + ms / 1000,
        )
        self.futures[name] = future
        assert future.accepted is not None
        future.accepted.add_done_callback(lambda told: self._on_accepted(name, told))
        future.add_done_callback(lambda told: self._on_ended(name, told))
        return name

    def _on_accepted(self, name: str, told: Future[Any]) -> None:
        if told.cancelled() or told.exception() is not None:
            return
        with self._lock:
            self.accepted.add(name)
        event = {"what": "accepted", "task": name, "boot_ms": true_boot_ms()}
        append(self._history, event)

    def _on_ended(self, name: str, told: Future[Any]) -> None:
        future = self.futures.get(name)
        error: BaseException | None
        try:
            error = told.exception(timeout=0)
        except CancelledError as cancelled:
            error = cancelled
        ended = getattr(told, "ended", None)
        if ended is None:
            # No word of the owner: it refused the task, or the client gave up.
            with self._lock:
                self.refused[name] = f"{type(error).__name__}: {error}"
            return
        event: dict[str, Any] = {"what": "ended", "task": name, "boot_ms": true_boot_ms()}
        event["end"] = ended.end.name.lower()
        if error is None and future is not None:
            event["result"] = str(told.result())[:80]
        append(self._history, event)
        with self._lock:
            self.ended[name] = int(event["boot_ms"])


def history(lab: Lab) -> History:
    """All that was written in this lab so far."""
    path = Path(lab.place) / "history"
    return parse(path.read_bytes() if path.exists() else b"")


def verdict(lab: Lab) -> Verdict:
    """What the lab's history proves."""
    return judge(history(lab))
