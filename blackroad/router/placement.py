"""The coordinator's table as a pure function: demands x supplies -> slots per class and node.

Source  docs/protocol.md, "Demand and allocation".  Nobody is pre-empted: a class grows on a node
only into what others do not use.  This file must not know epochs, messages or time beyond ages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.requirements import Ledger, fits
from blackroad.router.fairness import Turns, effective_priority

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from blackroad.capabilities import Capabilities
    from blackroad.requirements import Ask, Requirement

SLOTS_MAX = 65_535
FITS_MAX = 200_000


class Node:
    """One node's supply, as its Heartbeat and Capabilities tell it."""

    __slots__ = ("caps", "cpu_units", "gpu_bytes", "id", "memory_bytes", "speed", "text")

    def __init__(
        self,
        id_: bytes,
        text: str,
        caps: Capabilities,
        cpu_units: int,
        memory_bytes: int,
        gpu_bytes: Sequence[int],
        speed: float = 1.0,
    ) -> None:
        self.id = id_
        self.text = text
        self.caps = caps
        self.cpu_units = cpu_units
        self.memory_bytes = memory_bytes
        self.gpu_bytes = tuple(gpu_bytes)
        self.speed = speed

    def ledger(self) -> Ledger:
        """A fresh book of everything the node has."""
        return Ledger(self.cpu_units, self.memory_bytes, self.gpu_bytes)


class Want:
    """One class of one owner, as its Demand tells it."""

    __slots__ = (
        "avoid",
        "cls",
        "exclusive",
        "gang",
        "in_use",
        "mean_ms",
        "needs",
        "oldest_wait_ms",
        "owner",
        "priority",
        "queued",
        "requirement",
        "user",
    )

    def __init__(
        self,
        owner: bytes,
        cls: int,
        needs: bytes,
        requirement: Requirement,
        *,
        priority: int = 0,
        user: str = "",
        queued: int = 0,
        oldest_wait_ms: int = 0,
        mean_ms: int = 0,
        in_use: Mapping[bytes, int] | None = None,
        avoid: frozenset[bytes] = frozenset(),
        gang: int = 1,
        exclusive: bool = False,
    ) -> None:
        self.owner = owner
        self.cls = cls
        self.needs = needs
        self.requirement = requirement
        self.priority = priority
        self.user = user
        self.queued = queued
        self.oldest_wait_ms = oldest_wait_ms
        self.mean_ms = mean_ms
        self.in_use = dict(in_use or {})
        self.avoid = avoid
        self.gang = gang
        self.exclusive = exclusive

    @property
    def key(self) -> tuple[bytes, int]:
        """Owner and class: unique in the cluster."""
        return (self.owner, self.cls)

    def whole_nodes(self) -> bool:
        """Does one task of this class take whole nodes, through a reservation?"""
        return self.gang > 1 or self.exclusive


Table = dict[tuple[bytes, int], dict[bytes, int]]


class Fit:
    """Remembers which alternative of which needs fits which node; capabilities seldom change."""

    def __init__(self) -> None:
        self._known: dict[bytes, dict[bytes, tuple[Capabilities, Ask | None]]] = {}
        self._count = 0

    def ask(self, want: Want, node: Node) -> Ask | None:
        """The first alternative of the class's needs that the node could meet when idle."""
        by_node = self._known.get(want.needs)
        known = by_node.get(node.id) if by_node is not None else None
        if known is None or known[0] is not node.caps:
            index = fits(want.requirement, node.caps, node.text)
            ask = want.requirement.alternatives[index] if index >= 0 else None
            if self._count >= FITS_MAX:
                self._known.clear()
                self._count = 0
            self._count += 1
            known = self._known.setdefault(want.needs, {})[node.id] = (node.caps, ask)
        return known[1]


def allocate(
    nodes: Sequence[Node],
    wants: Sequence[Want],
    reserved: Mapping[bytes, tuple[bytes, int]],
    fit: Fit,
    weights: Mapping[str, float] | None = None,
) -> Table:
    """Compute the whole table.

    `reserved` names for some nodes the one whole-node class (owner, cls) that they are kept for;
    the caller adds that class's own rows.
    Cost  about 5 us per slot dealt, on top of one pass over wants x nodes.
    """
    singles = [want for want in wants if not want.whole_nodes()]
    open_nodes = {node.id: node for node in nodes if node.id not in reserved}
    ideal = _ideal(open_nodes, singles, fit, weights or {})
    free = free_now(open_nodes, wants, fit)
    growth = _Growth(open_nodes, singles, fit, free, weights or {})
    growth.fill(ideal)
    _back_fill(nodes, singles, reserved, fit, wants, growth.table)
    growth.leftovers()
    return growth.table


class _Growth:
    """Fills the table from what is free at this moment; nobody loses what it uses.

    A node on which a class still waits for others to make room for its share is closed to
    whoever has no share there, unless of a higher level: else small tasks would for ever take
    the place of a large one.
    """

    def __init__(
        self,
        nodes: Mapping[bytes, Node],
        wants: Sequence[Want],
        fit: Fit,
        free: Mapping[bytes, Ledger],
        weights: Mapping[str, float],
    ) -> None:
        self.table: Table = {}
        self._nodes = nodes
        self._order = sorted(nodes.values(), key=lambda node: (-node.speed, node.id))
        self._wants = wants
        self._fit = fit
        self._free = free
        self._weights = weights
        self._left = {want.key: want.queued for want in wants}
        self.closed: dict[bytes, int] = {}
        self._shares: dict[str, float] = {}
        for want in wants:
            for node_id in nodes.keys() & want.in_use.keys():
                self._count(want, node_id, want.in_use[node_id])

    def fill(self, ideal: Table) -> None:
        """Level by level, and in each first the one slot of whoever waited long enough for it."""
        in_order = _in_order(self._wants)
        levels: dict[int, list[Want]] = {}
        waited: dict[int, list[tuple[Want, bytes]]] = {}
        for want in in_order:
            levels.setdefault(want.priority, []).append(want)
            share = ideal.get(want.key)
            if share and _raised(want) > want.priority and not want.in_use:
                waited.setdefault(_raised(want), []).append((want, next(iter(share))))
        for level in sorted({*levels, *waited}, reverse=True):
            for want, node in waited.get(level, ()):
                self._towards(want, {node: 1}, level)
            here = levels.get(level, [])
            for want in here:
                self._towards(want, ideal.get(want.key, {}), level)
            self._beyond([want for want in here if self._left[want.key]])

    def _towards(self, want: Want, share: Mapping[bytes, int], level: int) -> None:
        """Grow into the ideal share, as far as others leave room and tasks are queued."""
        rows = self.table.setdefault(want.key, {})
        missing = []
        left = self._left[want.key]
        for node_id, slots in share.items():
            have = max(rows.get(node_id, 0), want.in_use.get(node_id, 0))
            kept = granted = min(slots, have)
            ask = self._fit.ask(want, self._nodes[node_id])
            ledger = self._free[node_id]
            while granted < slots and left and ask is not None and ledger.spend(ask):
                granted += 1
                left -= 1
            if granted < slots:
                missing.append(node_id)
            if granted:
                rows[node_id] = min(granted, SLOTS_MAX)
                self._count(want, node_id, granted - kept)
        for node_id in missing if left else ():
            self.closed[node_id] = max(level, self.closed.get(node_id, level))
        self._left[want.key] = left

    def _beyond(self, wants: Sequence[Want]) -> None:
        """Deal what is free and in nobody's way to those who still have tasks queued."""
        turns = Turns(wants, self._shares, self._weights)
        while (want := turns.next()) is not None:
            node = self._take(want) if self._left[want.key] else None
            if node is None:
                turns.satisfied(want)
                continue
            self._left[want.key] -= 1
            turns.dealt(want, node.speed)

    def _count(self, want: Want, node_id: bytes, slots: int) -> None:
        weighted = slots * self._nodes[node_id].speed / self._weights.get(want.user, 1.0)
        self._shares[want.user] = self._shares.get(want.user, 0.0) + weighted

    def _take(self, want: Want) -> Node | None:
        """Take one more slot on the fastest node that has one."""
        level = want.priority
        for node in self._order:
            if self.closed.get(node.id, level - 1) >= level:
                continue
            ask = self._fit.ask(want, node)
            if ask is None or node.id in want.avoid or not self._free[node.id].spend(ask):
                continue
            self._add(want, node.id)
            return node
        return None

    def leftovers(self) -> None:
        """Deal what nobody wants, in turn: a warm class's next task then starts unasked."""
        in_order = _in_order(self._wants)
        for node_id in sorted(self._nodes.keys() - self.closed.keys()):
            node = self._nodes[node_id]
            ledger = self._free[node_id]
            takers = []
            for want in in_order:
                ask = self._fit.ask(want, node)
                if ask is not None and node_id not in want.avoid and ledger.room_for(ask):
                    takers.append((want, ask))
            while takers:
                takers = [
                    (want, ask)
                    for want, ask in takers
                    if ledger.spend(ask) and self._add(want, node_id)
                ]

    def _add(self, want: Want, node_id: bytes) -> bool:
        rows = self.table[want.key]
        slots = max(rows.get(node_id, 0), want.in_use.get(node_id, 0)) + 1
        rows[node_id] = min(slots, SLOTS_MAX)
        return slots < SLOTS_MAX


def _raised(want: Want) -> int:
    """Priority of one slot of the class: the one that its oldest task waits for."""
    return effective_priority(want.priority, want.oldest_wait_ms if want.queued else 0)


def _in_order(wants: Iterable[Want]) -> list[Want]:
    """Highest priority first; then those that wait, then the oldest."""
    return sorted(
        wants,
        key=lambda want: (
            -want.priority,
            not want.queued,
            -want.oldest_wait_ms,
            want.owner,
            want.cls,
        ),
    )


def _ideal(
    nodes: Mapping[bytes, Node],
    wants: Sequence[Want],
    fit: Fit,
    weights: Mapping[str, float],
) -> Table:
    """What each class would have if everything could be dealt anew this instant.

    Waiting raises one slot of a class, not the class: else whoever queued most, first, would keep
    everything from users who come later.
    """
    ledgers = {id_: node.ledger() for id_, node in nodes.items()}
    order = sorted(nodes.values(), key=lambda node: (-node.speed, node.id))
    levels: dict[int, list[Want]] = {}
    for want in wants:
        if want.queued or want.in_use:
            levels.setdefault(want.priority, []).append(want)
            if _raised(want) > want.priority:
                levels.setdefault(_raised(want), []).append(want)
    shares: dict[str, float] = {}
    table: Table = {}
    cursors: dict[tuple[bytes, int], _Cursor] = {}
    for level in sorted(levels, reverse=True):
        turns = Turns(levels[level], shares, weights)
        while (turn := turns.next()) is not None:
            want = turn
            cursor = cursors.get(want.key)
            if cursor is None:
                cursor = cursors[want.key] = _Cursor(want, order, fit)
            node = cursor.take(ledgers)
            if node is None:
                turns.satisfied(want)
                continue
            rows = table.setdefault(want.key, {})
            rows[node.id] = rows.get(node.id, 0) + 1
            turns.dealt(want, node.speed)
            if level > want.priority:
                turns.satisfied(want)
    return table


class _Cursor:
    """Walks the nodes for one class: where it already is, then by its wishes, then by speed."""

    def __init__(self, want: Want, order: Sequence[Node], fit: Fit) -> None:
        self._left = want.queued + sum(want.in_use.values())
        here = [node for node in order if want.in_use.get(node.id)]
        rest = [
            node for node in order if not want.in_use.get(node.id) and node.id not in want.avoid
        ]
        self._stops: list[tuple[Node, Ask, int]] = []
        for node in here:
            ask = fit.ask(want, node)
            if ask is not None:
                self._stops.append((node, ask, want.in_use[node.id]))
        wishes = want.requirement.alternatives
        growth = [
            (node, ask, SLOTS_MAX)
            for node in [*here, *rest]
            if (ask := fit.ask(want, node)) is not None and node.id not in want.avoid
        ]
        if len(wishes) > 1:
            growth.sort(key=lambda stop: wishes.index(stop[1]))
        self._stops += growth
        self._at = 0
        self._taken_here = 0

    def take(self, ledgers: Mapping[bytes, Ledger]) -> Node | None:
        """Take one more slot; None when nothing is wanted or nothing fits any more."""
        if self._left <= 0:
            return None
        while self._at < len(self._stops):
            node, ask, limit = self._stops[self._at]
            if self._taken_here < limit and ledgers[node.id].spend(ask):
                self._taken_here += 1
                self._left -= 1
                return node
            self._at += 1
            self._taken_here = 0
        return None


def closed_nodes(
    nodes: Sequence[Node],
    wants: Sequence[Want],
    reserved: Mapping[bytes, tuple[bytes, int]],
    fit: Fit,
) -> dict[bytes, int]:
    """Nodes with room that is kept for somebody, and the level that is kept off: for `why`."""
    singles = [want for want in wants if not want.whole_nodes()]
    open_nodes = {node.id: node for node in nodes if node.id not in reserved}
    free = free_now(open_nodes, wants, fit)
    growth = _Growth(open_nodes, singles, fit, free, {})
    growth.fill(_ideal(open_nodes, singles, fit, {}))
    return growth.closed


def free_now(nodes: Mapping[bytes, Node], wants: Sequence[Want], fit: Fit) -> dict[bytes, Ledger]:
    """What nobody uses at this moment, by the owners' own word."""
    ledgers = {id_: node.ledger() for id_, node in nodes.items()}
    for want in wants:
        for node_id, used in want.in_use.items():
            node = nodes.get(node_id)
            if node is None:
                continue
            ask = fit.ask(want, node)
            ledger = ledgers[node_id]
            for _ in range(used):
                if ask is None or not ledger.spend(ask):
                    break
    return ledgers


def _back_fill(
    nodes: Sequence[Node],
    wants: Sequence[Want],
    reserved: Mapping[bytes, tuple[bytes, int]],
    fit: Fit,
    everybody: Sequence[Want],
    table: Table,
) -> None:
    """On a reserved node only short tasks may start while longer ones there still run."""
    for node in nodes:
        holder = reserved.get(node.id)
        if holder is None:
            continue
        longest_ms = max(
            (w.mean_ms for w in everybody if w.in_use.get(node.id) and w.key != holder), default=0
        )
        if not longest_ms:
            continue
        ledger = free_now({node.id: node}, everybody, fit)[node.id]
        for want in _in_order(wants):
            ask = fit.ask(want, node)
            short = want.mean_ms and 4 * want.mean_ms <= longest_ms
            if ask is None or not short or not want.queued or node.id in want.avoid:
                continue
            rows = table.setdefault(want.key, {})
            slots = want.in_use.get(node.id, 0)
            while slots < want.queued + want.in_use.get(node.id, 0) and ledger.spend(ask):
                slots += 1
            if slots:
                rows[node.id] = min(slots, SLOTS_MAX)
