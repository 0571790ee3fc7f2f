"""Who comes next: effective priority, then users by weighted share, then age.

Pure arithmetic on what Demands say.  This file must not know nodes beyond their speed.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from blackroad.limits import AGEING_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from blackroad.router.placement import Want


def effective_priority(priority: int, oldest_wait_ms: int) -> int:
    """Priority after ageing: one step for every 30 s that the oldest task has waited."""
    return priority + oldest_wait_ms // AGEING_MS


class Turns:
    """Deals turns at one priority level: the user with the least share first, then the oldest.

    A user's share is the sum of slots x node speed that was dealt, over the user's weight.
    """

    def __init__(
        self,
        wants: Iterable[Want],
        shares: dict[str, float],
        weights: Mapping[str, float],
    ) -> None:
        self._shares = shares
        self._weights = weights
        self._queues: dict[str, list[Want]] = {}
        for want in wants:
            self._queues.setdefault(want.user, []).append(want)
        for queue in self._queues.values():
            queue.sort(key=lambda want: (-want.oldest_wait_ms, want.owner, want.cls), reverse=True)
        self._heap = [(shares.get(user, 0.0), user) for user in sorted(self._queues)]
        heapq.heapify(self._heap)

    def next(self) -> Want | None:
        """The class whose turn it is, or None when all have had theirs."""
        while self._heap:
            share, user = self._heap[0]
            current = self._shares.get(user, 0.0)
            if share != current:
                heapq.heapreplace(self._heap, (current, user))
                continue
            return self._queues[user][-1]
        return None

    def dealt(self, want: Want, slots_times_speed: float) -> None:
        """That class took something: its user's share grows."""
        weight = self._weights.get(want.user, 1.0)
        self._shares[want.user] = self._shares.get(want.user, 0.0) + slots_times_speed / weight

    def satisfied(self, want: Want) -> None:
        """That class wants nothing more, or nothing is left for it."""
        queue = self._queues[want.user]
        queue.remove(want)
        if not queue:
            self._heap = [entry for entry in self._heap if entry[1] != want.user]
            heapq.heapify(self._heap)
