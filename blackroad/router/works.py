"""What a worker keeps of each attempt, token and owner; `worker.py` has the rules.

Pure records: this file must not know messages beyond the Grant, nor the ledger's arithmetic.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING

from blackroad.limits import FOREVER_MS, RENEW_LISTS_KEPT

if TYPE_CHECKING:
    from blackroad.bus.messages import Grant, Reason
    from blackroad.ids import Token
    from blackroad.requirements import Ask, Lease
    from blackroad.router.effects import Key


class State(IntEnum):
    """An attempt's state on its worker."""

    WAITING = 0
    HELD = 1
    RUNNING = 2
    ENDING = 3


class Work:
    """One attempt that this worker has accepted and that has not ended."""

    __slots__ = (
        "after",
        "ask",
        "asked_back",
        "begun",
        "bytes",
        "crowd",
        "deadline_ms",
        "follower",
        "grant",
        "handed_ms",
        "key",
        "lease",
        "missing",
        "reason",
        "started_ms",
        "state",
        "stop",
        "whole",
        "why",
    )

    def __init__(self, key: Key, grant: Grant, ask: Ask, deadline_ms: int, crowd: Crowd) -> None:
        self.key = key
        self.crowd = crowd
        self.grant = grant
        self.ask = ask
        self.deadline_ms = deadline_ms
        self.state = State.WAITING
        self.lease: Lease | None = None
        self.bytes = len(grant.work) if isinstance(grant.work, bytes) else 0
        # A bundle that was not divided yet.
        self.whole = bool(grant.more)
        if grant.more:
            self.bytes += sum([len(item.work) for item in grant.more])
        self.missing: set[bytes] = set()
        # A running attempt begins when its last input is here: from then on there is a process.
        self.begun = False
        self.started_ms = 0
        self.why = ""
        # Handed ahead to the process of a running one, which it follows: only that process knows
        # whether it has begun.  `reason` is why it shall be dropped, `stop` why ended if it has.
        self.after: Work | None = None
        self.follower: Work | None = None
        self.handed_ms = 0
        self.asked_back = False
        self.reason: Reason | None = None
        self.stop = ""

    def task_at(self, position: int) -> bytes:
        """The task at that place of the bundle."""
        grant = self.grant
        return grant.task if not position else grant.more[position - 1].task


class Crowd:
    """One owner's class here: how many of it run, and how many may.

    Without this, an attempt that was sent ahead to take the place of one that ends would take the
    first place that is free, which may be another owner's.
    """

    __slots__ = ("live", "may_follow", "open", "quick", "running", "share")

    def __init__(self, may_follow: bool = False) -> None:
        self.live = 0
        self.running = 0
        self.share = 0
        # May one of it be handed ahead?  And did the last one take so little that it pays?
        self.may_follow = may_follow
        self.quick = False
        # Those that run and have nobody to follow them, the one that began first in front.
        self.open: dict[Key, Work] = {}

    def full(self) -> bool:
        """May no further one start now?"""
        return 0 < self.share <= self.running

    def over(self) -> bool:
        """Do more run than may, so that nothing takes the place of one that ends?"""
        return 0 < self.share < self.running


class Tombstone:
    """A token that must never start here (again), and what to say when it is asked for."""

    __slots__ = ("reason", "touched_ms")

    def __init__(self, reason: Reason, touched_ms: int) -> None:
        self.reason = reason
        self.touched_ms = touched_ms


class Correspondent:
    """What the worker keeps for one owner: its live attempts, and the last Renew lists."""

    __slots__ = ("due_ms", "lists", "live", "rest")

    def __init__(self) -> None:
        self.live: dict[Key, Work] = {}
        self.due_ms = FOREVER_MS
        # What did not fit the last Renew, for the next one.
        self.rest: list[Key] = []
        self.lists: deque[tuple[int, frozenset[Token]]] = deque(maxlen=RENEW_LISTS_KEPT)
