"""What an owner knows of the nodes it may use: stamps, capabilities, avoidance.

Pure.  This file must not know classes, tasks or who coordinates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.limits import (
    AVOID_FACTOR,
    AVOID_MS,
    AVOID_MS_MAX,
    AVOID_NODES_MAX,
    HEARTBEAT_SMALL_MS,
    T_SUSPECT_BEATS,
)
from blackroad.requirements import fits, from_wire

if TYPE_CHECKING:
    from blackroad.capabilities import Capabilities


RANKS_MAX = 100_000


class NodeView:
    """One node as an owner sees it; (inc, stamp_ms) is the newest pair heard by any path."""

    __slots__ = (
        "avoid_episode_ms",
        "avoid_ms",
        "avoid_until_ms",
        "capabilities",
        "draining",
        "fresh_ms",
        "heard_ms",
        "inc",
        "node",
        "present",
        "stamp_ms",
        "suspect",
        "text",
    )

    def __init__(self, node: bytes, text: str) -> None:
        self.node = node
        self.text = text
        self.inc = 0
        self.stamp_ms = 0
        self.heard_ms = -(2**62)
        # How long a stamp of that node may be used: its T_suspect.
        self.fresh_ms = T_SUSPECT_BEATS * HEARTBEAT_SMALL_MS
        self.present = False
        self.suspect = False
        self.draining = False
        self.capabilities: Capabilities | None = None
        self.avoid_ms = 0
        self.avoid_until_ms = 0
        self.avoid_episode_ms = 0


class NodesView:
    """All nodes an owner has heard of, itself included."""

    def __init__(self, me: bytes) -> None:
        self.me = me
        self.nodes: dict[bytes, NodeView] = {}
        self._ranks: dict[tuple[bytes, bytes], int] = {}

    def get(self, node: bytes, text: str = "") -> NodeView:
        """The view of one node, made when first heard of."""
        view = self.nodes.get(node)
        if view is None:
            view = self.nodes[node] = NodeView(node, text)
        return view

    def on_stamp(self, node: bytes, inc: int, stamp_ms: int, now_ms: int) -> bool:
        """Take a stamp from a Heartbeat or a Renew; older lives and older stamps are ignored.

        Return whether a newer life of that node was heard for the first time.
        """
        view = self.get(node)
        counter, known = inc >> 32, view.inc >> 32
        if counter < known or (counter == known and inc != view.inc and view.inc):
            return False
        newer = inc != view.inc
        if newer or stamp_ms > view.stamp_ms:
            view.inc, view.stamp_ms, view.heard_ms = inc, stamp_ms, now_ms
        return newer

    def fresh(self, node: bytes, lease_ms: int, now_ms: int) -> bool:
        """Is that node here, with a stamp not older than its T_suspect, nor than half a lease?"""
        view = self.nodes.get(node)
        if view is None or not view.present or not view.inc:
            return False
        age_ms = now_ms - view.heard_ms
        return age_ms <= lease_ms // 2 and (not view.suspect or age_ms < view.fresh_ms)

    def on_capabilities(self, node: bytes, text: str, capabilities: Capabilities) -> None:
        """Learn what a node has."""
        view = self.get(node, text)
        view.text = text
        view.capabilities = capabilities
        self._ranks = {key: rank for key, rank in self._ranks.items() if key[0] != node}

    def fits(self, node: bytes, needs: bytes) -> bool:
        """Could that node, if idle, run this?"""
        return self.rank(node, needs) >= 0

    def rank(self, node: bytes, needs: bytes) -> int:
        """Which alternative of the needs that node would meet, the first wish being 0; -1: none."""
        key = (node, needs)
        known = self._ranks.get(key)
        if known is None:
            view = self.nodes.get(node)
            if view is None or view.capabilities is None:
                return -1
            known = fits(from_wire(needs), view.capabilities, view.text)
            if len(self._ranks) > RANKS_MAX:
                self._ranks.clear()
            self._ranks[key] = known
        return known

    def avoid(self, node: bytes, now_ms: int, episode_ms: int) -> None:
        """A bound passed there: leave it out for a while; many at once are one episode."""
        view = self.get(node)
        if node == self.me or now_ms < view.avoid_episode_ms:
            return
        view.avoid_ms = min(AVOID_MS_MAX, view.avoid_ms * AVOID_FACTOR or AVOID_MS)
        view.avoid_until_ms = now_ms + view.avoid_ms
        view.avoid_episode_ms = now_ms + episode_ms

    def forgive(self, node: bytes) -> None:
        """A done outcome came from there."""
        view = self.nodes.get(node)
        if view is not None and view.avoid_ms:
            view.avoid_ms = view.avoid_until_ms = 0

    def avoided(self, now_ms: int) -> tuple[bytes, ...]:
        """Nodes left out now, for Demand."""
        return tuple(
            sorted(node for node, view in self.nodes.items() if view.avoid_until_ms > now_ms)
        )[:AVOID_NODES_MAX]

    def present(self) -> list[NodeView]:
        """Nodes in the membership, this one included."""
        return [view for view in self.nodes.values() if view.present]
