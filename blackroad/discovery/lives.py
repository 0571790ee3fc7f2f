"""Lives of nodes: a forgotten one of mine (amnesia), and two at once of one identity (clones).

Source  docs/protocol.md, "Life of a node" (R-life-2, R-life-3).  Pure: time is an argument,
greetings and Heartbeats are events.  This file must not know what a node does with a finding,
nor who is alive (that is `membership.py`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from blackroad.ids import inc_counter
from blackroad.limits import (
    CLONE_DEADS,
    CLONE_GREETINGS_MS,
    CLONE_SIGNS,
    DOUBT_DEADS,
    DOUBT_MS_MIN,
    FOREVER_MS,
    INC_JUMP_MAX,
    PEERS_MAX,
    T_DEAD_BEATS,
)

TRACKS_MAX = 8


class Finding(IntEnum):
    """What signs of life and tales about lives amount to."""

    DOUBT = 0
    AMNESIA = 1
    CLONE = 2


class Found(NamedTuple):
    """One finding: about whom, the life that counts there, and the other one."""

    what: Finding
    node: bytes
    inc: int
    other: int


class State(IntEnum):
    """How this life stands to others of its own node."""

    ALONE = 0
    TOLD = 1
    CLONE = 2
    OVER = 3


class _Track:
    """Signs of one life that is not the one that counts."""

    __slots__ = ("first_stamp_ms", "signs", "since_ms", "stamp_ms")

    def __init__(self, stamp_ms: int, now_ms: int) -> None:
        self.since_ms = now_ms
        self.first_stamp_ms = stamp_ms
        self.stamp_ms = stamp_ms
        self.signs = 1


class _Known:
    """The life of one node that counts, and signs of others beside it."""

    __slots__ = ("clone", "heard_ms", "inc", "since_ms", "tracks")

    def __init__(self, inc: int, now_ms: int) -> None:
        self.inc = inc
        self.since_ms = now_ms
        self.heard_ms = now_ms
        self.clone = False
        # By (incarnation, told by a greeting).
        self.tracks: dict[tuple[int, bool], _Track] = {}

    def sign(self, inc: int, stamp_ms: int | None, now_ms: int, long_ms: int) -> bool:
        """Take a sign of another life; return whether it has gone on for too long by now.

        One late message proves nothing, nor does a burst of them after a pause, nor a few that
        were held on their way for half a minute: signs have to go on coming, and stamps to grow,
        for `long_ms`, and Heartbeats at half the pace of a living node at least.
        """
        key = (inc, stamp_ms is None)
        track = self.tracks.get(key)
        if track is None:
            if len(self.tracks) >= TRACKS_MAX:
                del self.tracks[next(iter(self.tracks))]
            self.tracks[key] = _Track(stamp_ms or 0, now_ms)
            return False
        if stamp_ms is not None:
            if stamp_ms <= track.stamp_ms:
                return False
            track.stamp_ms = stamp_ms
        track.signs += 1
        lasted_ms = now_ms - track.since_ms
        if stamp_ms is not None:
            beat_ms = long_ms // (CLONE_DEADS * T_DEAD_BEATS)
            if stamp_ms - track.first_stamp_ms < long_ms or 2 * track.signs * beat_ms < lasted_ms:
                return False
        return track.signs >= CLONE_SIGNS and lasted_ms >= long_ms

    def overslept(self, gap_ms: int, now_ms: int) -> None:
        """What was read in one go after a pause did not go on for as long as the pause."""
        for track in self.tracks.values():
            track.since_ms = min(now_ms, track.since_ms + gap_ms)


class Lives:
    """What this node knows of the lives of others, and what it is told of its own."""

    def __init__(self, me: bytes, inc: int) -> None:
        self.me = me
        self.inc = inc
        self.state = State.ALONE
        # Counters that nobody can have come by in an honest life.
        self.absurd = 0
        self._above = 0
        self._told_ms = 0
        self._mine = _Known(inc, 0)
        self._peers: dict[bytes, _Known] = {}
        self._shunned: set[bytes] = set()
        self._due_ms = FOREVER_MS

    # --- questions --------------------------------------------------------------------------------

    @property
    def serves(self) -> bool:
        """May this node take new work, as far as its identity goes?"""
        return self.state is State.ALONE

    def is_clone(self, node: bytes) -> bool:
        """Do two machines use the identity of that node, or of this one, as far as I know?"""
        return node in self._shunned or (node == self.me and self.state is State.CLONE)

    def next_deadline_ms(self) -> int:
        """When `tick` next has something to say."""
        return self._due_ms

    # --- events -----------------------------------------------------------------------------------

    def on_met(
        self, node: bytes, inc: int, your_inc: int, now_ms: int, dead_ms: int
    ) -> list[Found]:
        """A greeting: a sign of that life, and what its sender knows of mine."""
        found = self.on_sign(node, inc, None, now_ms, dead_ms)
        if node == self.me:
            found += self._on_told(inc, now_ms, dead_ms)
        return found + self._on_told(your_inc, now_ms, dead_ms)

    def on_sign(
        self, node: bytes, inc: int, stamp_ms: int | None, now_ms: int, dead_ms: int
    ) -> list[Found]:
        """A life of some node spoke just now: by a Heartbeat with a stamp, or by a greeting."""
        if node == self.me:
            return self._on_own_sign(inc, stamp_ms, now_ms, dead_ms)
        known = self._peers.get(node)
        if known is None:
            if len(self._peers) >= PEERS_MAX and not self._forget_one():
                return []
            known = self._peers[node] = _Known(inc, now_ms)
        if inc == known.inc:
            known.heard_ms = now_ms
            return []
        age = inc_counter(inc) - inc_counter(known.inc)
        if age > 0:
            # Newer than both of a pair of clones: it is judged anew.
            self._peers[node] = _Known(inc, now_ms)
            self._shunned.discard(node)
            return []
        long_ms = CLONE_DEADS * dead_ms
        if stamp_ms is None:
            # Who was restarted may have greeted often before, and all of that may be late.
            long_ms = max(long_ms, CLONE_GREETINGS_MS)
        long = known.sign(inc, stamp_ms, now_ms, long_ms)
        if known.clone or not long:
            return []
        if now_ms - known.heard_ms >= dead_ms:
            # The life that counts is silent: one machine that forgot its age, and not two.
            return []
        known.clone = True
        self._shunned.add(node)
        return [Found(Finding.CLONE, node, known.inc, inc)]

    def on_refused(self, inc: int) -> list[Found]:
        """A peer refuses that life of mine, since it hears another one beside it."""
        return self._clone(0) if inc == self.inc else []

    def on_overslept(self, gap_ms: int, now_ms: int) -> None:
        """The loop stood still for `gap_ms`: whatever came meanwhile is no proof of duration."""
        self._mine.overslept(gap_ms, now_ms)
        for known in self._peers.values():
            known.overslept(gap_ms, now_ms)
        if self.state is State.TOLD:
            self._due_ms += gap_ms

    def tick(self, now_ms: int) -> list[Found]:
        """Time passed: the other life of mine that somebody knew has given no sign."""
        if self.state is not State.TOLD or now_ms < self._due_ms:
            return []
        self.state = State.OVER
        self._due_ms = FOREVER_MS
        return [Found(Finding.AMNESIA, self.me, self.inc, self._above)]

    # --- my own lives -----------------------------------------------------------------------------

    def _on_own_sign(
        self, inc: int, stamp_ms: int | None, now_ms: int, dead_ms: int
    ) -> list[Found]:
        if inc == self.inc:
            return []
        if not self._mine.sign(inc, stamp_ms, now_ms, CLONE_DEADS * dead_ms):
            return []
        return self._clone(inc)

    def _on_told(self, inc: int, now_ms: int, dead_ms: int) -> list[Found]:
        """Somebody knows that life of mine."""
        if self.state not in (State.ALONE, State.TOLD) or not is_news(self.inc, inc):
            self.absurd += is_absurd(self.inc, inc)
            return []
        if inc_counter(inc) >= inc_counter(self._above):
            self._above = inc
        if self.state is State.TOLD:
            return []
        self.state = State.TOLD
        self._due_ms = now_ms + max(DOUBT_MS_MIN, DOUBT_DEADS * dead_ms)
        return [Found(Finding.DOUBT, self.me, self.inc, inc)]

    def _clone(self, other: int) -> list[Found]:
        if self.state in (State.CLONE, State.OVER):
            return []
        self.state = State.CLONE
        self._due_ms = FOREVER_MS
        return [Found(Finding.CLONE, self.me, self.inc, other)]

    # --- inside -----------------------------------------------------------------------------------

    def _forget_one(self) -> bool:
        """Make room: the peer that has been silent for longest and is no clone."""
        calm = [node for node, known in self._peers.items() if not known.clone]
        if not calm:
            return False
        del self._peers[min(calm, key=lambda node: (self._peers[node].heard_ms, node))]
        return True


def is_news(mine: int, told: int) -> bool:
    """Is that a life of mine which, for all I know, I have not lived (R-life-2)?"""
    ahead = inc_counter(told) - inc_counter(mine)
    return told != mine and 0 <= ahead <= INC_JUMP_MAX


def is_absurd(mine: int, told: int) -> bool:
    """Is that counter so far ahead that a liar would use mine up by it?"""
    return inc_counter(told) - inc_counter(mine) > INC_JUMP_MAX
