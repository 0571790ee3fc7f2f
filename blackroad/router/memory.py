"""What an owner still tells of tasks that are over: the last seen ones, and durable outcomes.

Pure.  Bounded in number and in time.  This file must not know how a task runs or ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.messages import Ended
from blackroad.limits import RECENT_TASKS_MAX, RETAINED_TASKS_MAX, RETENTION_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blackroad.router.records import Task


class Memory:
    """The owner's memory of what is over (R-submit-8)."""

    def __init__(self) -> None:
        # Attached tasks whose outcome was seen: `status` and `logs` are still asked for.
        self.recent: dict[bytes, Task] = {}
        self._retained: dict[bytes, int] = {}

    def seen(self, task: Task) -> None:
        """Keep the story of a task, without its work and its result."""
        ended = task.ended
        if ended is not None:
            task.ended = Ended(
                ended.task, ended.end, ended.reason, b"", ended.facts, ended.node, ended.attempts
            )
        task.work = b""
        self.recent[task.id] = task
        if len(self.recent) > RECENT_TASKS_MAX:
            del self.recent[next(iter(self.recent))]

    def retain(self, task: bytes, now_ms: int) -> None:
        """A durable task ended: its outcome can be fetched for a while."""
        self._retained[task] = now_ms

    def due(self, now_ms: int) -> Iterator[bytes]:
        """Durable tasks whose time is over, or whose room is needed; oldest first."""
        while self._retained:
            oldest, ended_ms = next(iter(self._retained.items()))
            if now_ms - ended_ms < RETENTION_MS and len(self._retained) <= RETAINED_TASKS_MAX:
                return
            del self._retained[oldest]
            yield oldest
