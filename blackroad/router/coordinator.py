"""The coordinator: a matchmaker that knows no task, only classes of demand and supplies.

Source  docs/protocol.md, "Demand and allocation", "Gangs".  Pure.  Whatever it says, nothing can
break: workers refuse what does not fit, owners check what they are told.  It forgets everything
when it steps down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blackroad.bus.messages import Allocation, ClassDemand, Demand, Row
from blackroad.errors import RemoteProtocolError
from blackroad.limits import (
    ALLOCATION_GAP_MS,
    ALLOCATION_RESTATE_BEATS,
    ALLOCATION_ROWS_MAX,
    EARLY_GAP_MS,
    EARLY_PAIRS_PER_MS,
    FOREVER_MS,
    LISTEN_BEATS,
)
from blackroad.requirements import from_wire
from blackroad.router.placement import Fit, Node, Want, allocate
from blackroad.router.reservations import Reservations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blackroad.bus.messages import Supply
    from blackroad.capabilities import Capabilities
    from blackroad.ids import Epoch
    from blackroad.router.effects import Outbox


class _OwnerDemand:
    """The last Demand of one owner, what it was last told, and whether that answers it."""

    __slots__ = ("answered", "demand", "rows", "told_ms", "wants")

    def __init__(self, demand: Demand, wants: list[Want]) -> None:
        self.demand = demand
        self.wants = wants
        self.rows: tuple[Row, ...] | None = None
        self.told_ms = -FOREVER_MS
        self.answered = False


class Coordinator:
    """State of one reign."""

    def __init__(self, me: bytes, out: Outbox) -> None:
        self.me = me
        self.epoch: Epoch | None = None
        self.interval_ms = 250
        self.nodes: dict[bytes, Node] = {}
        self.owners: dict[bytes, _OwnerDemand] = {}
        self.tables = 0
        self._out = out
        self.fit = Fit()
        self.reservations = Reservations(self.nodes, self.fit)
        self._matching_ms = FOREVER_MS
        # While it listens: whose Demand, and whose Supply, has not come yet.
        self._no_demand: set[bytes] = set()
        self._no_supply: set[bytes] = set()
        # No later than the first time that any owner was last told its rows.
        self._told_ms = FOREVER_MS
        self._seq = 0
        self._changed = False
        self._urgent = False
        self._table_ms = -FOREVER_MS

    # --- reign ------------------------------------------------------------------------------------

    def begin(self, epoch: Epoch, now_ms: int, others: Iterable[bytes] = ()) -> None:
        """Listen first: every owner is to be heard before the first table.

        `others` are the nodes that live; once they and this one have spoken there is nobody
        left to listen for.
        """
        self.stop()
        self.epoch = epoch
        self._matching_ms = now_ms + LISTEN_BEATS * self.interval_ms
        self._no_supply = set(others)
        self._no_demand = {self.me, *self._no_supply}
        self._changed = True

    def stop(self) -> None:
        """Forget the reign."""
        self.epoch = None
        self.nodes.clear()
        self.owners.clear()
        self.reservations.clear()
        self._matching_ms = FOREVER_MS
        self._urgent = False
        self._seq = 0

    # --- what it hears ----------------------------------------------------------------------------

    def on_demand(self, owner: bytes, demand: Demand, now_ms: int) -> None:
        """Take an owner's whole state; the newer (inc, seq) replaces the older."""
        if self.epoch is None:
            return
        known = self.owners.get(owner)
        if known is not None:
            old = known.demand
            if (demand.inc >> 32, demand.seq) <= (old.inc >> 32, old.seq):
                return
        avoid = frozenset(demand.avoid)
        wants = []
        for one in demand.classes:
            want = _want(owner, one, avoid)
            if want is not None:
                wants.append(want)
        before = {want.cls for want in known.wants if want.queued} if known is not None else set()
        fresh = _OwnerDemand(demand, wants)
        if known is not None:
            fresh.told_ms = known.told_ms
            if known.demand.inc == demand.inc:
                fresh.rows = known.rows
        self.owners[owner] = fresh
        self._no_demand.discard(owner)
        self._told_ms = min(self._told_ms, fresh.told_ms)
        self._changed = True
        if known is None or any(want.queued and want.cls not in before for want in wants):
            self._urgent = True

    def on_supply(self, node: bytes, text: str, caps: Capabilities | None, supply: Supply) -> None:
        """A node that follows me tells what it gives."""
        if self.epoch is None:
            return
        self._no_supply.discard(node)
        if caps is None or supply.draining:
            self.forget_node(node)
            return
        known = self.nodes.get(node)
        if (
            known is not None
            and known.caps is caps
            and known.cpu_units == supply.cpu_units
            and known.memory_bytes == supply.memory_bytes
            and known.gpu_bytes == supply.gpu_bytes
        ):
            known.speed = supply.speed_permille / 1000
            return
        self.nodes[node] = Node(
            node,
            text,
            caps,
            supply.cpu_units,
            supply.memory_bytes,
            supply.gpu_bytes,
            supply.speed_permille / 1000,
        )
        self._changed = True

    def forget_node(self, node: bytes) -> None:
        """A node is silent, draining, gone, or follows somebody else."""
        if self.nodes.pop(node, None) is not None:
            self._changed = True
            self.reservations.forget_node(node)

    def forget_owner(self, owner: bytes) -> None:
        """An owner is gone: nobody wants what it wanted."""
        if self.owners.pop(owner, None) is not None:
            self._changed = True
            self.reservations.forget_owner(owner)

    def forget(self, node: bytes) -> None:
        """A node is dead or gone, with the owner on it: nothing more is heard from it."""
        self._no_demand.discard(node)
        self._no_supply.discard(node)
        self.forget_node(node)
        self.forget_owner(node)

    def rows_of(self, owner: bytes, cls: int) -> dict[bytes, int]:
        """What a class was dealt, by the last table that its owner was told."""
        known = self.owners.get(owner)
        rows = known.rows if known is not None else None
        return {row.node: row.slots for row in rows or () if row.cls == cls}

    # --- tables -----------------------------------------------------------------------------------

    def settle(self, now_ms: int) -> None:
        """Compute and tell the table where that is due."""
        if self.epoch is None:
            return
        if now_ms < self._matching_ms:
            if self._no_demand or self._no_supply:
                return
            self._matching_ms = now_ms
        due = self._changed or self._turn_ms() <= now_ms
        if due and now_ms - self._table_ms >= self._gap_ms():
            self._compute(now_ms)
        self._restate(now_ms)

    def next_deadline_ms(self) -> int:
        """When `settle` next has something to do."""
        if self.epoch is None:
            return FOREVER_MS
        due = self._matching_ms
        if self._changed:
            return max(due, self._table_ms + self._gap_ms())
        restate_ms = self._told_ms + ALLOCATION_RESTATE_BEATS * self.interval_ms
        turn_ms = max(self._turn_ms(), self._table_ms + ALLOCATION_GAP_MS)
        return max(due, min(restate_ms, turn_ms))

    def _gap_ms(self) -> int:
        """How soon after a table the next one may be made: the larger it is, the later."""
        if not self._urgent:
            return ALLOCATION_GAP_MS
        wants = sum([len(owner.wants) for owner in self.owners.values()])
        cost_ms = len(self.nodes) * wants // EARLY_PAIRS_PER_MS
        return min(ALLOCATION_GAP_MS, EARLY_GAP_MS + cost_ms)

    def _turn_ms(self) -> int:
        """When time alone changes the table."""
        return self.reservations.next_ms(self._table_ms)

    def _compute(self, now_ms: int) -> None:
        self._changed = self._urgent = False
        self._table_ms = now_ms
        self.tables += 1
        wants = [want for owner in self.owners.values() for want in owner.wants]
        whole = self.reservations.offers(wants, now_ms)
        reserved = self.reservations.reserved()
        nodes = sorted(self.nodes.values(), key=lambda node: node.id)
        table = allocate(nodes, wants, reserved, self.fit)
        for key, chosen in whole.items():
            table[key] = dict.fromkeys(chosen, 1)
        for id_, owner in sorted(self.owners.items()):
            rows = tuple(
                Row(want.cls, node, slots)
                for want in sorted(owner.wants, key=lambda want: (-want.priority, want.cls))
                for node, slots in sorted(table.get(want.key, {}).items())
            )[:ALLOCATION_ROWS_MAX]
            if not owner.answered or rows != owner.rows:
                self._tell(id_, owner, rows, now_ms)

    def _restate(self, now_ms: int) -> None:
        every_ms = ALLOCATION_RESTATE_BEATS * self.interval_ms
        if now_ms - self._told_ms < every_ms:
            return
        for id_, owner in sorted(self.owners.items()):
            if owner.answered and owner.rows is not None and now_ms - owner.told_ms >= every_ms:
                self._tell(id_, owner, owner.rows, now_ms)
        self._told_ms = min((owner.told_ms for owner in self.owners.values()), default=FOREVER_MS)

    def _tell(self, id_: bytes, owner: _OwnerDemand, rows: tuple[Row, ...], now_ms: int) -> None:
        if self.epoch is None:
            return
        owner.rows = rows
        owner.told_ms = now_ms
        owner.answered = True
        self._seq += 1
        demand = owner.demand
        self._out.send(id_, Allocation(self.epoch, self._seq, demand.inc, demand.seq, rows))


def _want(owner: bytes, one: ClassDemand, avoid: frozenset[bytes]) -> Want | None:
    try:
        requirement = from_wire(one.needs)
    except RemoteProtocolError:
        return None
    return Want(
        owner,
        one.cls,
        one.needs,
        requirement,
        priority=one.priority,
        user=one.user,
        queued=one.queued,
        oldest_wait_ms=one.oldest_wait_ms,
        mean_ms=one.mean_ms,
        in_use={entry.node: entry.slots for entry in one.in_use},
        avoid=avoid,
        gang=one.gang,
        exclusive=one.exclusive,
    )
