"""What every part of the demo works with: one client, its futures, a report and a time limit.

This file must not know which jobs there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.errors import BlackroadError
from blackroad.ids import text32

if TYPE_CHECKING:
    from pathlib import Path

    from blackroad.cli.demo_mesh import Deadline, Mesh
    from blackroad.cli.demo_report import Report
    from blackroad.client.client import Client
    from blackroad.client.futures import TaskFuture

LOOK_S: Final = 0.1
RESULT_S: Final = 30.0


class Scale(NamedTuple):
    """How much the demo does.

    Units  `failover_s` is how long the job with the kill would take undisturbed, `source_bytes`
           bounds how much source text is read, `limit_s` the whole demo.
    """

    numbers: int = 20_000_000
    failover_s: float = 10.0
    source_bytes: int = 16_000_000
    limit_s: float = 110.0


class Finishes:
    """When each of some futures ended, and how often it said so."""

    def __init__(self, futures: Iterable[Future[Any]]) -> None:
        self.started_s = time.monotonic()
        self.times_s: list[float] = []
        self._lock = threading.Lock()
        for future in futures:
            future.add_done_callback(self._ended)

    def _ended(self, _future: Future[Any]) -> None:
        with self._lock:
            self.times_s.append(time.monotonic())

    @property
    def wall_s(self) -> float:
        """From the submission to the last end."""
        return max(self.times_s, default=self.started_s) - self.started_s

    def longest_pause_s(self) -> float:
        """The longest time in which nothing ended."""
        times = [self.started_s, *sorted(self.times_s)]
        return max((after - before for before, after in pairwise(times)), default=0.0)


class Stage:
    """The scene of all parts."""

    def __init__(
        self,
        mesh: Mesh,
        client: Client,
        report: Report,
        deadline: Deadline,
        scale: Scale,
        out: Path,
    ) -> None:
        self.mesh = mesh
        self.client = client
        self.report = report
        self.deadline = deadline
        self.scale = scale
        self.out = out
        self.futures: list[TaskFuture] = []
        self.names: dict[str, str] = {}
        self.files: list[str] = []

    def rows(self) -> list[dict[str, Any]]:
        """The nodes as the client's daemon sees them now, sorted by name."""
        found: list[dict[str, Any]] = self.client.nodes()["nodes"]
        self.names.update({row["node"]: row["name"] for row in found})
        return sorted(found, key=lambda row: str(row["name"]))

    def where(self, future: TaskFuture) -> str:
        """The name of the node at which a task ended."""
        if future.ended is None or not future.ended.node:
            return "?"
        return self.names.get(text32(future.ended.node), "?")

    def shares(self, futures: Sequence[TaskFuture]) -> dict[str, int]:
        """How many of these tasks ended at each node."""
        found = dict.fromkeys(sorted(self.names.values()), 0)
        for future in futures:
            name = self.where(future)
            found[name] = found.get(name, 0) + 1
        return found

    def backends(self, futures: Sequence[TaskFuture]) -> dict[str, str]:
        """With what each node computed."""
        return {
            self.where(future): future.ended.facts.backend
            for future in futures
            if future.ended is not None
        }

    def finish(self, title: str, futures: Sequence[TaskFuture], limit_s: float = RESULT_S) -> None:
        """Wait until all have ended, showing how far they are.

        Raises  BlackroadError when they have not within the limit.
        """
        self.futures += futures
        left: set[Future[Any]] = set(futures)
        allowed_s = min(limit_s, self.deadline.left_s())
        until = time.monotonic() + allowed_s
        with self.report.bar(title, len(futures)) as bar:
            while left:
                left = wait(left, timeout=LOOK_S, return_when=FIRST_COMPLETED).not_done
                bar.move(len(futures) - len(left))
                if left and time.monotonic() >= until:
                    raise BlackroadError(
                        f"{title}: {len(left)} of {len(futures)} tasks not within "
                        f"{allowed_s:.0f} s",
                        because=self._reasons(left),
                    )

    def _reasons(self, left: Iterable[Future[Any]]) -> list[str]:
        """Ask why the first of them does not run."""
        for future in left:
            try:
                told = future.why()  # type: ignore[attr-defined]
            except BlackroadError as error:
                return [error.message]
            return [f"{told['id']} is {told['state']}: {told['reason']}"]
        return []


def shared(parts: dict[str, int]) -> str:
    """Spell how many came from where."""
    return ", ".join(f"{name} {count}" for name, count in parts.items())
