"""What an owner still tells of tasks that are over: the last seen ones, and durable outcomes.

Pure.  Bounded in number, in bytes and in time.  This file must not know how a task runs or ends.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from blackroad.bus.messages import Ended, Ref
from blackroad.limits import (
    RECENT_TASKS_MAX,
    RETAINED_TASKS_MAX,
    RETENTION_MS,
    RETENTION_STEP,
    SPARE_BYTES_MAX,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from blackroad.bus.messages import Item
    from blackroad.router.records import Task


_SMALL = 64


class Memory:
    """The owner's memory of what is over (R-submit-8, R-isolate-2).

    `let_go` is called for each task whose work there is no room or reason to keep any more.
    """

    def __init__(self, let_go: Callable[[Task], None]) -> None:
        # Attached tasks whose outcome was seen: `status` and `logs` are still asked for.
        self.recent: OrderedDict[bytes, Task] = OrderedDict()
        self.spare_bytes = 0
        self._let_go = let_go
        self._retained: dict[bytes, int] = {}
        # Tasks whose work is kept as long as there is room, by what it weighs.
        self._spare: dict[Task, int] = {}

    def seen(self, task: Task) -> None:
        """Keep the story of a task, without its result."""
        ended = task.ended
        # One of a few bytes is cheaper kept than copied around.
        large = ended is not None and (isinstance(ended.result, Ref) or len(ended.result) > _SMALL)
        if ended is not None and large:
            task.ended = Ended(
                ended.task, ended.end, ended.reason, b"", ended.facts, ended.node, ended.attempts
            )
        if not task.kept and isinstance(task.work, bytes):
            task.work = b""
        self.recent[task.id] = task
        if len(self.recent) > RECENT_TASKS_MAX:
            _, oldest = self.recent.popitem(last=False)
            if oldest.kept:
                self._let_go(oldest)

    def seen_by(self, session: bytes, items: Iterable[Item]) -> dict[bytes, None]:
        """Which of these are attached tasks of that session whose outcome it has."""
        if self.recent.keys().isdisjoint([item.task for item in items]):
            return {}
        stories = (self.recent.get(item.task) for item in items)
        return {
            story.id: None
            for story in stories
            if story is not None and story.seen and story.session == session
        }

    def spare(self, task: Task) -> None:
        """Keep the work of a task that is over as long as there is room; the oldest goes first."""
        if task in self._spare or not task.kept:
            return
        size = task.work.size if isinstance(task.work, Ref) else len(task.work)
        self._spare[task] = size
        self.spare_bytes += size
        while self.spare_bytes > SPARE_BYTES_MAX:
            self._let_go(next(iter(self._spare)))

    def spent(self, task: Task) -> None:
        """The work of a task was let go."""
        self.spare_bytes -= self._spare.pop(task, 0)

    def retain(self, task: bytes, now_ms: int) -> None:
        """A durable task ended: its outcome can be fetched for a while."""
        self._retained[task] = now_ms

    def due(self, now_ms: int) -> Iterator[bytes]:
        """Durable tasks whose time is over, or whose room is needed; oldest first, some at a time.

        All at once they would be one commit, and whoever waits for a flush would wait for that.
        """
        for _ in range(RETENTION_STEP):
            if not self._retained:
                return
            oldest, ended_ms = next(iter(self._retained.items()))
            if now_ms - ended_ms < RETENTION_MS and len(self._retained) <= RETAINED_TASKS_MAX:
                return
            del self._retained[oldest]
            yield oldest
