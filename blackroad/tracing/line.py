"""What waits to be sent to a collector, and in which company.

A collector says no more than that it did not take a batch: because it is away, or because of
something in there that it will never take.  So a batch that fails again and again is halved until
one story is alone.  That one steps aside for the next; where that is taken, the collector is
there, and who fails alone once more is dropped.  This file sees no clock and no socket.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blackroad.tracing.story import Story

QUEUE_MAX: Final = 10_000
BATCH_MAX: Final = 256
# A collector that is started anew fails some times, and nothing is wrong with the batch.
FAILURES_MIN: Final = 3
# So many that fail one after the other show that nobody is there.
ASIDE_MAX: Final = 8


class Line:
    """Stories in their order, the oldest first."""

    def __init__(self) -> None:
        self.sent = 0
        self.dropped = 0
        self._waiting: deque[Story] = deque()
        self._limit = BATCH_MAX
        self._failures = 0
        self._aside: list[Story] = []
        # Those that have failed alone, by identity: they are in the line as long as they are here.
        self._suspects: set[int] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._aside)

    def add(self, stories: Iterable[Story]) -> None:
        """Take more; the oldest go where there are too many."""
        self._waiting.extend(stories)
        while len(self._waiting) > QUEUE_MAX:
            self._drop(self._waiting.popleft())

    def next(self) -> list[Story]:
        """Take out what is to be sent together, [] where nothing waits."""
        if not self._waiting:
            # Nobody else is there who could show that the collector is.
            self._return()
        batch: list[Story] = []
        while self._waiting and len(batch) < self._limit:
            alone = id(self._waiting[0]) in self._suspects
            if alone and batch:
                break
            batch.append(self._waiting.popleft())
            if alone:
                break
        return batch

    def took(self, batch: list[Story]) -> None:
        """The collector has these, so it is there: what stepped aside is tried once more."""
        self.sent += len(batch)
        self._suspects.difference_update(map(id, batch))
        self._failures = 0
        self._limit = min(2 * self._limit, BATCH_MAX)
        self._suspects.update(map(id, self._aside))
        self._return()

    def refused(self, batch: list[Story]) -> None:
        """It did not take these, whyever."""
        self._failures += 1
        if len(batch) > 1:
            self._waiting.extendleft(reversed(batch))
            if self._failures >= FAILURES_MIN:
                self._limit = max(1, len(batch) // 2)
            return
        [story] = batch
        if id(story) in self._suspects:
            self._drop(story)
        elif self._failures < FAILURES_MIN or len(self._aside) >= ASIDE_MAX:
            self._waiting.appendleft(story)
            self._return()
        else:
            self._aside.append(story)

    def _return(self) -> None:
        self._waiting.extendleft(reversed(self._aside))
        self._aside.clear()

    def _drop(self, story: Story) -> None:
        self.dropped += 1
        self._suspects.discard(id(story))
