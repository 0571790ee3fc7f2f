"""Who coordinates: a matchmaker is chosen by what each node hears, without quorum or disk.

Source  docs/protocol.md, "Election".  Two coordinators at once waste effort and break nothing,
so every rule here is about settling soon and staying settled.
This file must not know what a coordinator does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.ids import HEARD_BYTES, Epoch
from blackroad.limits import (
    DISTRUST_AFTER_DEADS,
    DISTRUST_DOUBLINGS,
    DISTRUST_FOR_DEADS,
    ELECT_BEATS,
    ELECT_RANK_BEATS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blackroad.bus.messages import Heartbeat

NEVER = -128


class Election:
    """This node's belief about who coordinates, and its own claim."""

    def __init__(self, me: bytes, inc: int, priority: int, started_ms: int) -> None:
        self.me = me
        self.inc = inc
        self.priority = priority
        self.claim: Epoch | None = None
        self.claimed_ms = 0
        self.follows: bytes = b""
        self.follows_inc = 0
        self.follows_epoch: Epoch | None = None
        self.followed_since_ms = started_ms
        self.served = False
        self.highest = 0
        self.distrusted: dict[tuple[bytes, int], int] = {}
        # How often in a row each of these lives left my Demand unanswered, serving few others.
        self._failed: dict[tuple[bytes, int], int] = {}
        self._started_ms = started_ms
        self._leaderless_since_ms = started_ms
        self._unanswered_since_ms = -1

    # --- what the owner tells ---------------------------------------------------------------------

    def on_demand_sent(self, now_ms: int) -> None:
        """A Demand left for the coordinator; its silence is measured from the first one."""
        if self._unanswered_since_ms < 0:
            self._unanswered_since_ms = now_ms

    def on_answered(self) -> None:
        """An Allocation came that answers a Demand of this incarnation."""
        self.served = True
        self._unanswered_since_ms = -1
        self._failed.pop((self.follows, self.follows_inc), None)

    def on_overslept(self, gap_ms: int, now_ms: int) -> None:
        """The loop stood still for `gap_ms`: nobody was silent for longer than I listened."""
        self._leaderless_since_ms = min(now_ms, self._leaderless_since_ms + gap_ms)
        if self._unanswered_since_ms >= 0:
            self._unanswered_since_ms = min(now_ms, self._unanswered_since_ms + gap_ms)

    # --- the step ---------------------------------------------------------------------------------

    def step(self, now_ms: int, interval_ms: int, dead_ms: int, beats: Sequence[Heartbeat]) -> bool:
        """Look at everybody's last Heartbeat; return whether claim or belief changed.

        `beats` are those of peers that are alive or suspect, this node's own not among them.
        """
        before = (self.claim, self.follows, self.follows_inc)
        for beat in beats:
            if beat.claim is not None and beat.claim.counter > self.highest:
                self.highest = beat.claim.counter
        self._update_distrust(now_ms, dead_ms, beats)
        best = self._best_acceptable(beats)
        if self.priority == NEVER:
            self.claim = None
        if self.claim is not None:
            if best is not None and best.claim is not None and best.claim > self.claim:
                self.claim = None
                self._follow(best, now_ms)
            else:
                self._follow_self(now_ms)
        elif best is not None:
            self._follow(best, now_ms)
        else:
            self._without_coordinator(now_ms, interval_ms, dead_ms, beats)
        return before != (self.claim, self.follows, self.follows_inc)

    def _without_coordinator(
        self, now_ms: int, interval_ms: int, dead_ms: int, beats: Sequence[Heartbeat]
    ) -> None:
        if self.follows:
            self._unfollow(now_ms)
        if self.priority == NEVER:
            return
        waited_ms = now_ms - self._leaderless_since_ms
        if waited_ms < self._elect_ms(now_ms, interval_ms, dead_ms, beats):
            return
        if any(self._supported(beat, beats) for beat in beats if beat.claim is not None):
            return
        self.highest += 1
        self.claim = Epoch(self.highest, self.me)
        self.claimed_ms = now_ms
        self._follow_self(now_ms)

    def _elect_ms(
        self, now_ms: int, interval_ms: int, dead_ms: int, beats: Sequence[Heartbeat]
    ) -> int:
        """How long this node waits before it claims: better candidates go first."""
        mine = (-self.priority, self.me)
        rank = sum(
            1 for beat in beats if beat.priority != NEVER and (-beat.priority, beat.node) < mine
        )
        young = now_ms - self._started_ms < 2 * dead_ms
        base_ms = dead_ms if young else ELECT_BEATS * interval_ms
        return base_ms + rank * ELECT_RANK_BEATS * interval_ms

    # --- acceptance, support, distrust ------------------------------------------------------------

    def _best_acceptable(self, beats: Sequence[Heartbeat]) -> Heartbeat | None:
        """The acceptable claimant with the highest epoch."""
        me = self.me[:HEARD_BYTES]
        best: Heartbeat | None = None
        best_claim: Epoch | None = None
        for beat in beats:
            if beat.claim is None or beat.claim.node != beat.node or me not in beat.heard:
                continue
            if (beat.node, beat.inc) in self.distrusted:
                continue
            if best_claim is None or beat.claim > best_claim:
                best, best_claim = beat, beat.claim
        return best

    def _supported(self, claimant: Heartbeat, beats: Sequence[Heartbeat]) -> bool:
        """Do more than half of the others that I hear follow it and get answers from it?

        At half, two nodes that it does not hear would wait for ever for the third, which it does.
        """
        others = [beat for beat in beats if beat.node != claimant.node]
        served = sum(1 for beat in others if beat.follows == claimant.node and beat.served)
        return 2 * served > len(others)

    def _update_distrust(self, now_ms: int, dead_ms: int, beats: Sequence[Heartbeat]) -> None:
        if (
            self.follows
            and self.follows != self.me
            and self._unanswered_since_ms >= 0
            and now_ms - self._unanswered_since_ms >= DISTRUST_AFTER_DEADS * dead_ms
        ):
            self._distrust(now_ms, dead_ms, beats)
        if self.distrusted:
            lives = {beat.node: beat.inc for beat in beats}
            self.distrusted = {
                (node, inc): until_ms
                for (node, inc), until_ms in self.distrusted.items()
                if now_ms < until_ms and lives.get(node, inc) == inc
            }
            self._failed = {
                (node, inc): times
                for (node, inc), times in self._failed.items()
                if lives.get(node, inc) == inc
            }

    def _distrust(self, now_ms: int, dead_ms: int, beats: Sequence[Heartbeat]) -> None:
        """The followed claimant does not answer me.

        If it serves most of the others, the fault is between us.  Else it is the claimant's, and
        several such claimants must not take turns for ever before anybody else has one.
        """
        life = (self.follows, self.follows_inc)
        claimant = next((beat for beat in beats if beat.node == self.follows), None)
        if claimant is not None and self._supported(claimant, beats):
            self._failed.pop(life, None)
        self.distrusted[life] = now_ms + self.distrust_deads() * dead_ms
        self._failed[life] = self._failed.get(life, 0) + 1
        self._unanswered_since_ms = -1

    def distrust_deads(self) -> int:
        """For how many T_dead the followed claimant is distrusted if it does not answer."""
        times = self._failed.get((self.follows, self.follows_inc), 0)
        return DISTRUST_FOR_DEADS << min(times, DISTRUST_DOUBLINGS)

    # --- belief -----------------------------------------------------------------------------------

    def _follow(self, beat: Heartbeat, now_ms: int) -> None:
        if (beat.node, beat.inc) != (self.follows, self.follows_inc):
            self._set(beat.node, beat.inc, now_ms)
        self.follows_epoch = beat.claim

    def _follow_self(self, now_ms: int) -> None:
        if self.follows != self.me:
            self._set(self.me, self.inc, now_ms)
        self.follows_epoch = self.claim

    def _unfollow(self, now_ms: int) -> None:
        self._set(b"", 0, now_ms)
        self.follows_epoch = None
        self._leaderless_since_ms = now_ms

    def _set(self, node: bytes, inc: int, now_ms: int) -> None:
        self.follows, self.follows_inc = node, inc
        self.followed_since_ms = now_ms
        self.served = False
        self._unanswered_since_ms = -1
