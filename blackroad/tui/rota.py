"""Whom to ask for tasks in this round, so that a large mesh is seen for a small price.

Pure.  This file must not know how a node is asked, nor what it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from blackroad.glance import Beat
from blackroad.tui.model import HERE

BUSY_MAX: Final = 8
IDLE_MAX: Final = 2
IDLE_MS: Final = 30_000
REST_MS: Final = 10_000
ROWS: Final = 120
ROWS_MIN: Final = 12


class Turn(NamedTuple):
    """The owners of one round, and how many rows each may tell."""

    owners: tuple[bytes, ...]
    rows: int


class Rota:
    """Asks owners with tasks in turn, and now and then the others."""

    def __init__(self) -> None:
        self._asked_ms: dict[bytes, int] = {}
        self._rests_until_ms: dict[bytes, int] = {}

    def turn(self, beats: Sequence[Beat], own: bytes, now_ms: int, everyone: bool = False) -> Turn:
        """Choose some owners that have tasks and a few others, or everyone.

        The daemon that is asked for everything counts as one with tasks: what it owned and what
        has ended there is shown at once.
        """
        able = [
            beat
            for beat in beats
            if beat.state in HERE and self._rests_until_ms.get(beat.node, 0) <= now_ms
        ]
        there = {beat.node for beat in beats}
        for book in (self._asked_ms, self._rests_until_ms):
            for node in [node for node in book if node not in there]:
                del book[node]

        def longest_ago(beat: Beat) -> tuple[int, int]:
            return (self._asked_ms.get(beat.node, -1), -beat.owned)

        busy = sorted((b for b in able if b.owned or b.node == own), key=longest_ago)
        idle = sorted((b for b in able if not b.owned and b.node != own), key=longest_ago)
        stale = [b for b in idle if now_ms - self._asked_ms.get(b.node, -IDLE_MS) >= IDLE_MS]
        chosen = able if everyone else [*busy[:BUSY_MAX], *stale[:IDLE_MAX]]
        for beat in chosen:
            self._asked_ms[beat.node] = now_ms
        # All that is shown at once comes from all owners with tasks, not only from this round's.
        share = ROWS // max(1, len(busy))
        return Turn(tuple(beat.node for beat in chosen), max(ROWS_MIN, share))

    def silent(self, owner: bytes, now_ms: int) -> None:
        """That owner did not answer: others shall not wait for it again so soon."""
        self._rests_until_ms[owner] = now_ms + REST_MS
