"""Who is there: every peer's newest life, and whether it is alive, suspect or dead.

Source  docs/protocol.md, "Life of a node".  Pure: time is an argument, Heartbeats are events.
This file must not know who coordinates, nor what any node is good for.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from blackroad.ids import inc_counter
from blackroad.limits import (
    FOREVER_MS,
    LOCAL_HEALTH_MAX,
    PEERS_MAX,
    T_DEAD_BEATS,
    T_SUSPECT_BEATS,
    heartbeat_ms,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blackroad.bus.messages import Heartbeat


class PeerState(IntEnum):
    """How this node thinks of a peer."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Change(IntEnum):
    """What a Heartbeat, a Goodbye or the passing of time told."""

    JOINED = 0
    REINCARNATED = 1
    RECOVERED = 2
    SUSPECTED = 3
    DIED = 4
    LEFT = 5


class PeerRecord:
    """The newest that is known of one peer."""

    __slots__ = (
        "beat",
        "heard_ms",
        "inc",
        "node",
        "stamp_ms",
        "state",
    )

    def __init__(self, beat: Heartbeat, now_ms: int) -> None:
        self.node = beat.node
        self.inc = beat.inc
        self.stamp_ms = beat.stamp_ms
        self.beat = beat
        self.heard_ms = now_ms
        self.state = PeerState.ALIVE


class Membership:
    """The table of peers; this node itself is not in it."""

    def __init__(self, me: bytes, fixed_heartbeat_ms: int = 0) -> None:
        self.me = me
        self.peers: dict[bytes, PeerRecord] = {}
        self.health = 1
        self.ignored = 0
        self._fixed_heartbeat_ms = fixed_heartbeat_ms
        self._judge_after_ms = 0
        # No later than the first judgement due: a Heartbeat only moves that away, so it need not
        # be worked out again until it comes.
        self._soonest_ms = FOREVER_MS
        self.interval_ms = fixed_heartbeat_ms or heartbeat_ms(1)

    # --- events -----------------------------------------------------------------------------------

    def on_heartbeat(self, beat: Heartbeat, now_ms: int) -> list[tuple[Change, PeerRecord]]:
        """Take one Heartbeat; the newest (incarnation counter, stamp) wins."""
        if beat.node == self.me:
            return []
        peer = self.peers.get(beat.node)
        if peer is None:
            if len(self.peers) >= PEERS_MAX and not self._forget_one():
                self.ignored += 1
                return []
            peer = self.peers[beat.node] = PeerRecord(beat, now_ms)
            self._adapt_interval()
            return [(Change.JOINED, peer)]
        if beat.inc != peer.inc:
            # An older life, or one of the same age: what that means is told by `lives.py`.
            newer = inc_counter(beat.inc) > inc_counter(peer.inc)
            return self._reborn(peer, beat, now_ms) if newer else []
        if beat.stamp_ms <= peer.stamp_ms or peer.state is PeerState.LEFT:
            return []
        before, shorter = peer.state, beat.interval_ms < peer.beat.interval_ms
        peer.beat, peer.stamp_ms, peer.heard_ms = beat, beat.stamp_ms, now_ms
        peer.state = PeerState.ALIVE
        if before is PeerState.ALIVE:
            if shorter:
                self._look_ahead()
            return []
        self._adapt_interval()
        return [(Change.RECOVERED if before is PeerState.SUSPECT else Change.JOINED, peer)]

    def _reborn(
        self, peer: PeerRecord, beat: Heartbeat, now_ms: int
    ) -> list[tuple[Change, PeerRecord]]:
        absent = peer.state in (PeerState.DEAD, PeerState.LEFT)
        peer.inc, peer.stamp_ms, peer.beat = beat.inc, beat.stamp_ms, beat
        peer.heard_ms, peer.state = now_ms, PeerState.ALIVE
        changes = [(Change.REINCARNATED, peer)]
        if absent:
            changes.append((Change.JOINED, peer))
        self._adapt_interval()
        return changes

    def on_goodbye(self, node: bytes, inc: int) -> list[tuple[Change, PeerRecord]]:
        """A peer leaves in order; only the life that it names has left."""
        peer = self.peers.get(node)
        if peer is None or peer.inc != inc or peer.state is PeerState.LEFT:
            return []
        peer.state = PeerState.LEFT
        self._adapt_interval()
        return [(Change.LEFT, peer)]

    def on_overslept(self, gap_ms: int, now_ms: int) -> None:
        """The loop stood still for `gap_ms`: nobody is blamed for what this node did not hear."""
        for peer in self.peers.values():
            peer.heard_ms = min(now_ms, peer.heard_ms + gap_ms)
        self._judge_after_ms = now_ms + self.interval_ms
        self._look_ahead()

    def on_lag(self, lag_ms: int) -> None:
        """Own loop lag: a slow node lengthens its own patience before it accuses others."""
        if lag_ms > self.interval_ms // 2:
            self.health = min(LOCAL_HEALTH_MAX, self.health + 1)
        elif self.health > 1:
            self.health -= 1
            self._look_ahead()

    def tick(self, now_ms: int) -> list[tuple[Change, PeerRecord]]:
        """Judge the silent ones."""
        changes: list[tuple[Change, PeerRecord]] = []
        if now_ms < self._judge_after_ms or now_ms < self._soonest_ms:
            return changes
        for peer in self.peers.values():
            if peer.state is PeerState.DEAD or peer.state is PeerState.LEFT:
                continue
            silent_ms = now_ms - peer.heard_ms
            if silent_ms >= self.dead_ms(peer):
                peer.state = PeerState.DEAD
                changes.append((Change.DIED, peer))
            elif silent_ms >= self.suspect_ms(peer) and peer.state is PeerState.ALIVE:
                peer.state = PeerState.SUSPECT
                changes.append((Change.SUSPECTED, peer))
        if changes:
            self._adapt_interval()
        self._look_ahead()
        return changes

    # --- questions --------------------------------------------------------------------------------

    def suspect_ms(self, peer: PeerRecord | None = None) -> int:
        """T_suspect for one peer: by the slower of both heartbeats, times own health."""
        interval = max(self.interval_ms, peer.beat.interval_ms if peer else 0)
        return T_SUSPECT_BEATS * interval * self.health

    def dead_ms(self, peer: PeerRecord | None = None) -> int:
        """T_dead, likewise."""
        interval = max(self.interval_ms, peer.beat.interval_ms if peer else 0)
        return T_DEAD_BEATS * interval * self.health

    def present(self) -> Iterator[PeerRecord]:
        """Peers that are alive or suspect."""
        for peer in self.peers.values():
            if peer.state is PeerState.ALIVE or peer.state is PeerState.SUSPECT:
                yield peer

    def hears(self, node: bytes, inc: int) -> bool:
        """Is that peer alive or suspect here, and not older than that life of it?"""
        peer = self.peers.get(node)
        present = peer is not None and peer.state in (PeerState.ALIVE, PeerState.SUSPECT)
        return present and peer is not None and inc_counter(inc) >= inc_counter(peer.inc)

    def next_deadline_ms(self) -> int:
        """When `tick` may next have something to say."""
        return max(self._soonest_ms, self._judge_after_ms)

    # --- inside -----------------------------------------------------------------------------------

    def _look_ahead(self) -> None:
        """Work out when `tick` next has somebody to judge."""
        self._soonest_ms = min(map(self._judged_ms, self.present()), default=FOREVER_MS)

    def _judged_ms(self, peer: PeerRecord) -> int:
        """When the silence of a present peer changes what is thought of it."""
        alive = peer.state is PeerState.ALIVE
        return peer.heard_ms + (self.suspect_ms(peer) if alive else self.dead_ms(peer))

    def _adapt_interval(self) -> None:
        """Follow the member count, at most one step of the ladder at a time."""
        self._look_ahead()
        if self._fixed_heartbeat_ms:
            return
        members = 1 + sum(1 for _ in self.present())
        wanted = heartbeat_ms(members)
        if wanted > self.interval_ms:
            self.interval_ms = min(wanted, self.interval_ms * 4)
        elif wanted < self.interval_ms:
            self.interval_ms = max(wanted, self.interval_ms // 4)
            self._look_ahead()

    def _forget_one(self) -> bool:
        """Make room: the peer that has been dead or gone for longest."""
        gone = [p for p in self.peers.values() if p.state in (PeerState.DEAD, PeerState.LEFT)]
        if not gone:
            return False
        oldest = min(gone, key=lambda peer: (peer.heard_ms, peer.node))
        del self.peers[oldest.node]
        return True
