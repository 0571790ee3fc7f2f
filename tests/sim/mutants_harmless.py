"""Mutants that no invariant may notice: they show where safety does not rest.

The costly ones break nothing either, and are measured: a directed history takes so much longer, or
starts so many more attempts, than with the rule.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from blackroad.bus import messages as m
from blackroad.discovery.membership import Membership
from blackroad.router import reservations
from blackroad.router.attempts import Attempts
from blackroad.router.granting import Granting
from blackroad.router.nodes_view import NodesView
from tests.sim.mutants import COSTLY, HARMLESS, Patch, mutant


@mutant(HARMLESS, "outcome-3", focus=("daemon_crash", "power_cut"))
def spool_and_ack_before_flush() -> list[Patch]:
    """Outcomes and their acknowledgements leave before they are flushed."""
    from tests.sim.mutants_safety import early

    return early("_report", "_owe_ack")


@mutant(HARMLESS, "demand-2")
def surplus_not_recalled() -> list[Patch]:
    """Attempts that wait behind others are left where they are."""

    def keep(*_: Any) -> None:
        return None

    return [(Granting, "_recall_surplus", keep), (Granting, "_recall_shrunk", keep)]


@mutant(HARMLESS, "alloc-3", focus=("double", "jitter"))
def old_tables_accepted() -> list[Patch]:
    """A table counts, however old it is."""
    original = Granting.on_allocation

    def on_allocation(self: Granting, node: bytes, allocation: Any, *rest: Any) -> bool:
        self.epoch = None
        return original(self, node, allocation, *rest)

    return [(Granting, "on_allocation", on_allocation)]


@mutant(HARMLESS, "alloc-3", focus=("double", "jitter"))
def old_heartbeats_accepted() -> list[Patch]:
    """A Heartbeat counts as a sign of life, however old its stamp is."""
    original = Membership.on_heartbeat

    def on_heartbeat(self: Membership, beat: m.Heartbeat, now_ms: int) -> Any:
        peer = self.peers.get(beat.node)
        if peer is not None and beat.inc == peer.inc and beat.stamp_ms <= peer.stamp_ms:
            beat = replace(beat, stamp_ms=peer.stamp_ms + 1)
        return original(self, beat, now_ms)

    return [(Membership, "on_heartbeat", on_heartbeat)]


@mutant(HARMLESS, "demand-1", focus=("mad_table",))
def allocation_ignored() -> list[Patch]:
    """An owner takes two slots of whatever node could run a class, and asks nobody."""
    original = Granting.rows

    def rows(self: Granting, cls: Any, now_ms: int) -> Any:
        found = [
            (cls.use(view.node), 2)
            for view in self.view.present()
            if self.view.fits(view.node, cls.spec.needs)
        ]
        return found or original(self, cls, now_ms)

    return [(Granting, "rows", rows)]


@mutant(HARMLESS, "lease-6", focus=("cancel",))
def stopped_still_confirmed() -> list[Patch]:
    """Renewed confirms attempts that are being stopped."""
    original = Attempts.on_renew

    def on_renew(self: Attempts, node: bytes, renew: m.Renew, now_ms: int) -> None:
        stopping = [one for one in self.on_node.get(node, {}).values() if one.stopping]
        for member in stopping:
            member.stopping = False
        original(self, node, renew, now_ms)
        for member in stopping:
            member.stopping = True

    return [(Attempts, "on_renew", on_renew)]


# --- costly -------------------------------------------------------------------------------------


@mutant(COSTLY, "demand-3", story="half_deaf_worker")
def node_not_avoided() -> list[Patch]:
    """A node where a bound passed gets the next attempt at once."""
    return [(NodesView, "avoid", lambda *_: None)]


@mutant(COSTLY, "alloc-5", story="unused_reservation")
def reservation_without_end() -> list[Patch]:
    """A reservation that nobody uses is kept for ever."""
    return [(reservations, "RESERVATION_MS", 2**61)]
