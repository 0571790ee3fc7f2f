"""Whole nodes kept for gangs, exclusive and isolated classes, until those nodes have run empty.

Source  docs/protocol.md, R-alloc-5, R-gang-2.  Pure.  This file must not know epochs, messages or
how the rest of the table is dealt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.limits import FOREVER_MS, GANG_ASIDE_MS, GANG_ASIDE_MS_MAX, RESERVATION_MS
from blackroad.router.fairness import effective_priority

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from blackroad.router.placement import Fit, Node, Want

Key = tuple[bytes, int]


class Reservation:
    """Nodes for one task of a whole-node class, which waits for them to run empty."""

    __slots__ = ("key", "nodes", "offered", "offered_ms")

    def __init__(self, key: Key, nodes: tuple[bytes, ...]) -> None:
        self.key = key
        self.nodes = nodes
        self.offered = False
        self.offered_ms = 0

    def offer(self, now_ms: int) -> None:
        """The nodes are empty: they may be used from now on."""
        self.offered, self.offered_ms = True, now_ms

    def used_by(self, want: Want | None) -> bool:
        """Does its class run on any of them?"""
        return want is not None and any(want.in_use.get(node) for node in self.nodes)


class Reservations:
    """All of one reign.  A class has one at a time, and more only where nobody else loses by it."""

    def __init__(self, nodes: Mapping[bytes, Node], fit: Fit) -> None:
        self._nodes = nodes
        self._fit = fit
        self._kept: list[Reservation] = []
        # Of a class whose offer nobody used: until when it is put aside, and for how long.
        self._aside: dict[Key, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Reservation]:
        return iter(self._kept)

    def clear(self) -> None:
        """The reign is over."""
        self._kept.clear()
        self._aside.clear()

    def forget_node(self, node: bytes) -> None:
        """What is not in the pool cannot be kept."""
        self._kept = [one for one in self._kept if node not in one.nodes]

    def forget_owner(self, owner: bytes) -> None:
        """Nobody wants what it wanted."""
        self._kept = [one for one in self._kept if one.key[0] != owner]

    def reserved(self) -> dict[bytes, Key]:
        """For whom each reserved node is kept."""
        return {node: one.key for one in self._kept for node in one.nodes}

    def next_ms(self, after_ms: int) -> int:
        """When time alone changes something: an offer lapses, or a class need wait no longer."""
        if not self._kept and not self._aside:
            return FOREVER_MS
        offers = [one.offered_ms + RESERVATION_MS for one in self._kept if one.offered]
        asides = [until for until, _ in self._aside.values() if until > after_ms]
        return min([*offers, *asides], default=FOREVER_MS)

    def offers(self, wants: Sequence[Want], now_ms: int) -> dict[Key, tuple[bytes, ...]]:
        """Bring the reservations up to date; return the nodes that their classes may use now."""
        waiting = {want.key: want for want in wants if want.whole_nodes()}
        in_line = sorted(waiting.values(), key=self._place_in_line)
        contenders = [want for want in wants if want.queued and not want.whole_nodes()]
        self._drop_spent(waiting, contenders, now_ms)
        self._inherit(waiting, now_ms)
        use = _use(wants)
        for want in in_line:
            if not self._held_by(want.key) and self._may_ask(want, now_ms):
                self._keep(want, self._choose(want, use))
        contenders += [want for want in in_line if want.queued and not self._held_by(want.key)]
        for want in in_line:
            if want.gang == 1 and self._may_ask(want, now_ms):
                self._add_idle(want, contenders, use)
        offered: dict[Key, tuple[bytes, ...]] = {}
        for one in self._kept:
            own = waiting[one.key].in_use if one.key in waiting else {}
            if all(use.get(node, 0) <= own.get(node, 0) for node in one.nodes):
                if not one.offered:
                    one.offer(now_ms)
                offered[one.key] = (*offered.get(one.key, ()), *one.nodes)
        return offered

    def _place_in_line(self, want: Want) -> tuple[object, ...]:
        level = effective_priority(want.priority, want.oldest_wait_ms)
        aside = self._aside.get(want.key, (0, 0))
        return (-level, aside, -want.oldest_wait_ms, want.key)

    def _held_by(self, key: Key) -> list[Reservation]:
        return [one for one in self._kept if one.key == key]

    def _may_ask(self, want: Want, now_ms: int) -> bool:
        aside = self._aside.get(want.key)
        return bool(want.queued) and not (aside and now_ms < aside[0])

    def _keep(self, want: Want, nodes: tuple[bytes, ...]) -> None:
        if nodes:
            self._kept.append(Reservation(want.key, nodes))

    # --- what is over -----------------------------------------------------------------------------

    def _drop_spent(
        self, waiting: Mapping[Key, Want], contenders: Sequence[Want], now_ms: int
    ) -> None:
        left = {key: want.queued for key, want in waiting.items()}
        seen: set[Key] = set()
        kept = []
        # Used ones first: of a class that needs fewer, the idle ones go.
        for one in sorted(self._kept, key=lambda one: not one.used_by(waiting.get(one.key))):
            want = waiting.get(one.key)
            further = one.key in seen
            seen.add(one.key)
            if want is not None and one.used_by(want):
                one.offer(now_ms)
                self._aside.pop(one.key, None)
                kept.append(one)
                continue
            if want is None or left[one.key] <= 0 or want.gang != len(one.nodes):
                if not further:
                    self._aside.pop(one.key, None)
                continue
            if one.offered and now_ms - one.offered_ms >= RESERVATION_MS:
                self._put_aside(one.key, now_ms)
                continue
            if further and self._contended(want, one.nodes[0], contenders):
                continue
            left[one.key] -= 1
            kept.append(one)
        self._kept = kept
        for key in [key for key in self._aside if key not in waiting]:
            del self._aside[key]

    def _put_aside(self, key: Key, now_ms: int) -> None:
        _, last_ms = self._aside.get(key, (0, 0))
        aside_ms = min(GANG_ASIDE_MS_MAX, 2 * last_ms or GANG_ASIDE_MS)
        self._aside[key] = (now_ms + aside_ms, aside_ms)

    def _inherit(self, waiting: Mapping[Key, Want], now_ms: int) -> None:
        """Keep what whole-node classes already use: an earlier coordinator reserved that."""
        taken = set(self.reserved())
        for key, want in sorted(waiting.items()):
            nodes = tuple(n for n in sorted(want.in_use) if n in self._nodes and n not in taken)
            if not nodes or (want.gang > 1 and self._held_by(key)):
                continue
            taken.update(nodes)
            for part in (nodes,) if want.gang > 1 else tuple((node,) for node in nodes):
                self._kept.append(Reservation(key, part))
                self._kept[-1].offer(now_ms)

    # --- what is new ------------------------------------------------------------------------------

    def _able(self, want: Want) -> list[Node]:
        """Nodes that fit and are nobody's yet."""
        taken = self.reserved()
        return [
            node
            for node in self._nodes.values()
            if node.id not in taken
            and node.id not in want.avoid
            and self._fit.ask(want, node) is not None
        ]

    def _choose(self, want: Want, use: Mapping[bytes, int]) -> tuple[bytes, ...]:
        """The emptiest, then fastest of them, as many as one task needs."""
        able = self._able(want)
        if len(able) < want.gang:
            return ()
        able.sort(
            key=lambda node: (
                use.get(node.id, 0) - want.in_use.get(node.id, 0),
                -node.speed,
                node.id,
            )
        )
        return tuple(node.id for node in able[: want.gang])

    def _add_idle(self, want: Want, contenders: Sequence[Want], use: Mapping[bytes, int]) -> None:
        """Further tasks of the class may have nodes that run nothing and that nobody waits for."""
        unused = sum(1 for one in self._held_by(want.key) if not one.used_by(want))
        idle = [node for node in self._able(want) if not use.get(node.id)]
        idle.sort(key=lambda node: (-node.speed, node.id))
        for node in idle:
            if unused >= want.queued:
                return
            if not self._contended(want, node.id, contenders):
                self._keep(want, (node.id,))
                unused += 1

    def _contended(self, want: Want, node: bytes, contenders: Sequence[Want]) -> bool:
        """Does somebody who comes no later wait for that node?"""
        level = effective_priority(want.priority, want.oldest_wait_ms)
        place = self._nodes[node]
        return any(
            other.key != want.key
            and node not in other.avoid
            and effective_priority(other.priority, other.oldest_wait_ms) >= level
            and self._fit.ask(other, place) is not None
            for other in contenders
        )


def _use(wants: Sequence[Want]) -> dict[bytes, int]:
    """How many slots of each node are in use, whoever uses them."""
    use: dict[bytes, int] = {}
    for want in wants:
        for node, slots in want.in_use.items():
            use[node] = use.get(node, 0) + slots
    return use
