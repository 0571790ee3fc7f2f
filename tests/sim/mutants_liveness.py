"""Mutants that break progress or justice: a healed core must notice, or who is blamed for nothing.

Some of them (a recall that becomes a stop, in_use with prefetch) break no promise, and are seen in
starts or in time that a history without faults does not need.
"""

from __future__ import annotations

from typing import Any

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.discovery.election import Election
from blackroad.discovery.membership import Membership
from blackroad.router import attempts
from blackroad.router.attempts import Attempts
from blackroad.router.granting import Granting
from blackroad.router.owner import Owner
from blackroad.router.records import MemberState, Use
from blackroad.router.worker import Worker
from tests.sim.machine import Machine
from tests.sim.mutants import LIVENESS, Patch, mutant

# --- election -----------------------------------------------------------------------------------


@mutant(LIVENESS, "elect-1", focus=("broken_rest",), story="who_cannot_hear")
def one_way_claimants_accepted() -> list[Patch]:
    """A claimant that does not hear me is acceptable, and is never distrusted."""

    def best(self: Election, beats: Any) -> Any:
        found = [one for one in beats if one.claim is not None and one.claim.node == one.node]
        return max(found, key=lambda one: one.claim, default=None)

    return [(Election, "_best_acceptable", best), (Election, "_update_distrust", lambda *_: None)]


@mutant(LIVENESS, "elect-2", focus=("pause", "cut"))
def belief_outlives_the_claim() -> list[Patch]:
    """Who was followed once is followed as long as it is there, claiming or not."""
    original = Election._without_coordinator

    def without(self: Election, now_ms: int, interval_ms: int, dead_ms: int, beats: Any) -> None:
        if self.follows and any(beat.node == self.follows for beat in beats):
            return
        original(self, now_ms, interval_ms, dead_ms, beats)

    return [(Election, "_without_coordinator", without)]


@mutant(LIVENESS, "elect-1", focus=("broken_rest",), story="deaf_with_an_old_table")
def no_distrust() -> list[Patch]:
    """A coordinator that never answers is followed for ever."""
    return [(Election, "_update_distrust", lambda *_: None)]


@mutant(LIVENESS, "elect-1", focus=("broken_rest",), story="deaf_with_an_old_table")
def any_table_answers() -> list[Patch]:
    """Any Allocation of the followed coordinator counts as an answer."""
    original = Granting.on_allocation

    def on_allocation(self: Granting, node: bytes, allocation: Any, *rest: Any) -> bool:
        original(self, node, allocation, *rest)
        return bool(node == self.coordinator)

    return [(Granting, "on_allocation", on_allocation)]


@mutant(LIVENESS, "elect-3", focus=("broken_rest",))
def supported_challenged() -> list[Patch]:
    """A lonely node claims, whoever follows the coordinator that it cannot accept."""
    return [(Election, "_supported", lambda *_: False)]


@mutant(LIVENESS, "elect-4", focus=("pause", "freeze"))
def sleeper_judges_first() -> list[Patch]:
    """A node that overslept judges its peers before it reads its inbox."""
    resume = Machine.resume

    def resumed(self: Machine) -> None:
        if self.up and self.paused and not self.frozen and self.world.now > self._paused_at:
            self._run(n.Tick(self.world.now - self._paused_at))
        resume(self)

    return [
        (Machine, "resume", resumed),
        (Membership, "on_overslept", lambda *_: None),
        (Election, "on_overslept", lambda *_: None),
    ]


# --- grants -------------------------------------------------------------------------------------


@mutant(LIVENESS, "lease-7", story="same_serials_of_two_owners")
def token_without_owner() -> list[Patch]:
    """A worker tells tokens apart by counter and serial, whoever their owner is."""
    original = Worker.on_grant

    def on_grant(self: Worker, owner: bytes, grant: m.Grant, now_ms: int) -> None:
        mine = (grant.token.inc >> 32, grant.token.serial)
        for other, token in (*self.works, *self.tombstones):
            if other != owner and (token.inc >> 32, token.serial) == mine:
                self._bury((owner, grant.token), m.Reason.LATE, now_ms)
                self._refuse((owner, grant.token), m.Reason.LATE, now_ms)
                return
        original(self, owner, grant, now_ms)

    return [(Worker, "on_grant", on_grant)]


@mutant(LIVENESS, "lease-5", focus=("broken_rest",), story="heard_but_deaf")
def grant_repeated_for_ever() -> list[Patch]:
    """A Grant that nobody lists is repeated, and its bound moved, without end."""

    def unlisted(self: Attempts, member: Any, now_ms: int) -> None:
        if self._view.fresh(member.node, member.attempt.lease_ms, now_ms) and (
            self._view.nodes[member.node].inc == member.inc
        ):
            self._send_grant(member, now_ms)

    return [(Attempts, "_unlisted", unlisted)]


@mutant(LIVENESS, "cancel-2", story="late_recall")
def recall_becomes_stop() -> list[Patch]:
    """A Recall of what should only wait stops what has started meanwhile."""
    original = Worker.on_recall

    def on_recall(self: Worker, owner: bytes, recall: m.Recall, now_ms: int) -> None:
        original(self, owner, m.Recall(recall.token, True), now_ms)

    return [(Worker, "on_recall", on_recall)]


@mutant(LIVENESS, "demand-6", story="second_user")
def in_use_with_prefetch() -> list[Patch]:
    """Attempts that only wait count as slots in use."""
    return [(Use, "in_use", lambda self: self.live)]


@mutant(LIVENESS, "submit-2", focus=("client_death",), story="client_gone")
def sessions_ignored() -> list[Patch]:
    """Attached tasks go on when their session is over."""
    return [(Owner, "end_session", lambda *_: None)]


@mutant(LIVENESS, "lease-6", focus=("daemon_crash", "client_death"), story="dead_tokens")
def dead_tokens_confirmed() -> list[Patch]:
    """Renewed confirms attempts that the owner does not know."""
    original = Attempts.on_renew

    def on_renew(self: Attempts, node: bytes, renew: m.Renew, now_ms: int) -> None:
        here = self.on_node.get(node, {})
        known = tuple(one for one in renew.attempts if one.token in here)
        original(self, node, m.Renew(renew.inc, renew.stamp_ms, known), now_ms)

    return [(Attempts, "on_renew", on_renew)]


# --- gangs and isolation ------------------------------------------------------------------------


@mutant(LIVENESS, "gang-1")
def no_hold() -> list[Patch]:
    """Members of a gang start as they are granted."""
    original = Attempts.grant

    def grant(self: Attempts, *rest: Any) -> None:
        with_hold = attempts._HOLD
        attempts._HOLD = 0
        try:
            original(self, *rest)
        finally:
            attempts._HOLD = with_hold

    written = Attempts._written

    def unheld(self: Attempts, attempt: Any, now_ms: int) -> None:
        with_hold = attempts._HOLD
        attempts._HOLD = 0
        try:
            written(self, attempt, now_ms)
        finally:
            attempts._HOLD = with_hold

    return [(Attempts, "grant", grant), (Attempts, "_written", unheld)]


@mutant(LIVENESS, "lease-12", focus=("daemon_crash",), story="held_over_a_restart")
def held_for_ever() -> list[Patch]:
    """What a worker lists as held after its owner's restart stays held."""
    listed, settle, abort = Attempts._listed, Attempts.settle_adopted, Attempts._abort

    def patient(self: Attempts, attempt: Any, now_ms: int) -> None:
        if not attempt.adopted or attempt.going:
            abort(self, attempt, now_ms)

    def not_stopped(self: Attempts, member: Any, state: MemberState, now_ms: int) -> None:
        if member.attempt.adopted and state is MemberState.HELD:
            member.state = state
            return
        listed(self, member, state, now_ms)

    def settled(self: Attempts, attempt: Any, now_ms: int) -> None:
        stop = Attempts.stop
        Attempts.stop = lambda *_: None  # type: ignore[method-assign]
        try:
            settle(self, attempt, now_ms)
        finally:
            Attempts.stop = stop  # type: ignore[method-assign]

    return [
        (Attempts, "_listed", not_stopped),
        (Attempts, "settle_adopted", settled),
        (Attempts, "_abort", patient),
    ]


@mutant(LIVENESS, "isolate-1", story="poison")
def no_isolation() -> list[Patch]:
    """A task that takes nodes down is tried again like any other."""
    return [(Owner, "isolate", lambda *_: None)]


@mutant(LIVENESS, "isolate-1", story="poison_at_home")
def go_not_journaled() -> list[Patch]:
    """*go* of an isolated attempt leaves without a word in the journal."""
    return [(Attempts, "_go", _unwritten_go)]


def _unwritten_go(self: Attempts, attempt: Any, now_ms: int) -> None:
    attempt.going = True
    attempt.task.cls.aside_ms = 0
    self._gone_ahead(attempt, now_ms)


@mutant(LIVENESS, "isolate-1", story="innocents")
def isolated_in_one_step() -> list[Patch]:
    """An isolated attempt is granted without *hold*."""
    original = Attempts.grant

    def grant(self: Attempts, task: Any, placed: Any, *rest: Any) -> None:
        before = attempts.Attempt

        class Straight(before):  # type: ignore[misc, valid-type]
            __slots__ = ()

            def __init__(self, *made: Any) -> None:
                super().__init__(*made)
                self.hold = len(placed) > 1

        attempts.Attempt = Straight  # type: ignore[misc]
        try:
            original(self, task, placed, *rest)
        finally:
            attempts.Attempt = before  # type: ignore[misc]

    return [(Attempts, "grant", grant)]


@mutant(LIVENESS, "isolate-2", story="innocents")
def crash_before_go_blamed() -> list[Patch]:
    """A node that goes down under a held attempt is that attempt's doing."""
    return [(Attempts, "_might_run", staticmethod(lambda member: True))]
