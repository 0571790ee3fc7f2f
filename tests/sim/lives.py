"""Greetings between the lives of made-up machines, without sessions: what each hears of the others.

Stands in for the daemon's transport where a history does without real links.
Source  docs/protocol.md, "Opening a link", R-life-2 and R-life-3.  This file must not know what a
node concludes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad import node as n
from blackroad.bus import messages as m
from blackroad.ids import inc_counter
from tests.sim.network import DIRECT

if TYPE_CHECKING:
    from tests.sim.machine import Machine

GREET_MS = 1_000
GREET_MS_MAX = 30_000
# T_dead: so long a starting daemon waits for its peers.
ASKING_MS = 1_250


class Lives:
    """What one machine's present life knows of the lives of the others."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._world = machine.world
        # Which machine stands behind a node's id: matters only where two claim the same.
        self.routes: dict[bytes, Machine] = {}
        # Of each peer that is not to be spoken to: the lives that are refused.
        self.shunned: dict[bytes, frozenset[int]] = {}
        self._known: dict[bytes, int] = {}
        self._answered: set[int] = set()

    def begin(self) -> None:
        """A life begins: greet everybody."""
        self.routes.clear()
        self.shunned.clear()
        self._known.clear()
        self._answered.clear()
        if self._world.greets:
            for other in self._world.machines:
                if other is not self._machine:
                    self.greet(other)

    def greet(self, other: Machine) -> None:
        """Say Hello to a peer, again and again until it answers."""
        self._answered.discard(other.index)
        if self._world.greets:
            self._greet(other, self._machine.life, GREET_MS)

    def _greet(self, other: Machine, life: int, wait_ms: int) -> None:
        machine, world = self._machine, self._world
        node = machine.node
        if node is None or life != machine.life or other.index in self._answered:
            return
        if not machine.paused:
            world.greet(machine, other, other.lives.on_hello, node.inc, self.newest(other.id))
        if wait_ms <= GREET_MS_MAX:
            world.at(world.now + wait_ms, self._greet, other, life, 2 * wait_ms)

    def newest(self, node: bytes) -> int:
        """The newest life of a peer that this machine heard of, 0 if none."""
        known = self._known.get(node, 0)
        me = self._machine.node
        peer = me.membership.peers.get(node) if me is not None else None
        if peer is not None and inc_counter(peer.inc) > inc_counter(known):
            return peer.inc
        return known

    def _meets(self, source: Machine, inc: int, your_inc: int) -> bool:
        """Tell the node of a greeting; return whether that life may be spoken to."""
        machine = self._machine
        life = machine.life
        shunned = self.shunned.get(source.id)
        if shunned is not None and inc_counter(inc) > max(map(inc_counter, shunned)):
            # A newer life is judged anew.
            del self.shunned[source.id]
        machine.feed(n.Met(source.id, inc, your_inc))
        if machine.life != life or source.id == machine.id or self.refuses(source.id, inc):
            return False
        if self.is_over(source.id, inc):
            return True
        self._known[source.id] = inc
        self.routes[source.id] = source
        return True

    def refuses(self, node: bytes, inc: int) -> bool:
        """Is that one of two lives that are refused?  One that is new here learns its age."""
        return inc in self.shunned.get(node, ())

    def is_over(self, node: bytes, inc: int) -> bool:
        """Is that a life which does not count: older, or one of two with the same counter?"""
        known = self.newest(node)
        return bool(known) and inc != known and inc_counter(inc) <= inc_counter(known)

    def on_hello(self, source: Machine, inc: int, your_inc: int) -> None:
        """A peer greets."""
        machine, world = self._machine, self._world
        node = machine.node
        if node is None:
            return
        if self._meets(source, inc, your_inc):
            newest = self.newest(source.id)
            world.greet(machine, source, source.lives.on_welcome, node.inc, newest)
        elif self.refuses(source.id, inc):
            world.greet(machine, source, source.lives.on_reject, inc)

    def on_welcome(self, source: Machine, inc: int, your_inc: int) -> None:
        """A peer answers a greeting."""
        self._answered.add(source.index)
        self._meets(source, inc, your_inc)

    def on_reject(self, source: Machine, inc: int) -> None:
        """A peer will not have this life."""
        machine = self._machine
        reject = m.Reject("clone", "", "", inc)
        machine.feed(n.FromPeer(source.id, (reject,), self.newest(source.id)))

    def shun(self, node: bytes, reason: str) -> None:
        """The node will not have that peer any more."""
        lives = (one.node.inc for one in self._world.machines if one.id == node and one.node)
        self.shunned[node] = frozenset((self.newest(node), *lives))
        self._world.shuns += 1
        self._world.told(f"{self._machine.name} shuns {self._world.names.node(node)}: {reason}")

    def died(self, other: Machine) -> None:
        """A peer is taken for dead: without links there is nothing to close."""

    # --- before a life begins ---------------------------------------------------------------------

    def _reachable(self) -> list[Machine]:
        me = self._machine.index
        connected = self._world.network.connected
        return [
            one
            for one in self._world.machines
            if one.id != self._machine.id
            and one.up
            and not one.paused
            and connected(me, one.index, DIRECT)
            and connected(one.index, me, DIRECT)
        ]

    def asking_ms(self) -> int:
        """How long a starting daemon waits for the answers of its peers."""
        others = sum(1 for one in self._world.machines if one.id != self._machine.id)
        if len(self._reachable()) < others:
            return ASKING_MS
        return min(ASKING_MS, 2 * self._world.network.weather.delay_ms + 1)

    def known_to_others(self) -> int:
        """The highest counter of this node's lives that a reachable peer heard of."""
        mine = self._machine.id
        return max((inc_counter(one.lives.newest(mine)) for one in self._reachable()), default=0)
