"""Where an owner's next tasks go: table, prefetch, order of nodes, back-off, and the Demand.

Source  docs/protocol.md, "Demand and allocation".  Pure.  This file decides *where*; what a grant
is and what becomes of it is the owner's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from blackroad.bus.messages import Allocation, ClassDemand, Demand, InUse, Reason, Recall
from blackroad.ids import U16_MAX
from blackroad.limits import (
    BACK_OFF_FACTOR,
    BACK_OFF_MS,
    BACK_OFF_MS_MAX,
    BACK_OFF_NEEDS_BEATS,
    BUNDLE_WORK_US,
    BUNDLES_AHEAD_MAX,
    DEMAND_BYTES_MAX,
    DEMAND_CLASSES_MAX,
    DEMAND_GAP_MS,
    DEMAND_RESTATE_BEATS,
    DEMAND_UNANSWERED_BEATS,
    EARLY_GAP_MS,
    FOREVER_MS,
    IN_USE_NODES_MAX,
    LEASE_MS,
    OWN_WORKER_MS,
    PREFETCH_MEAN_MS_MAX,
    PREFETCH_PER_SLOT_MAX,
    PREFETCH_WORK_MS,
    SURPLUS_MS,
    WARM_CLASS_MS,
)
from blackroad.router import bundles
from blackroad.router.records import MemberState

if TYPE_CHECKING:
    from blackroad.bus.messages import ClassSpec
    from blackroad.ids import Epoch
    from blackroad.requirements import Ask
    from blackroad.router.effects import Outbox
    from blackroad.router.nodes_view import NodesView
    from blackroad.router.records import ClassState, Task, Use

_CLASS_BYTES = 64
_IN_USE_BYTES = 24

Grant = Callable[["Task", "Sequence[tuple[Use, bool]]", int, int, "tuple[Task, ...]"], None]


class Granting:
    """The owner's side of matchmaking."""

    def __init__(
        self,
        me: bytes,
        inc: int,
        view: NodesView,
        out: Outbox,
        room_here: Callable[[Ask], int],
        grant: Grant,
    ) -> None:
        self.me = me
        self.inc = inc
        self.view = view
        self.coordinator = b""
        self.coordinator_inc = 0
        self.interval_ms = 250
        # The owner's default L, for classes that state none (R-lease-16).
        self.lease_ms = LEASE_MS
        # How long the tasks of a bundle may run together; 0 makes none.
        self.bundle_us = BUNDLE_WORK_US
        self.tables = 0
        self.table: dict[int, dict[bytes, int]] = {}
        self.epoch: Epoch | None = None
        self.table_seq = 0
        self.demand_seq = 0
        self.answered_seq = 0
        self._out = out
        self._room_here = room_here
        self._grant = grant
        self._dirty: dict[ClassState, None] = {}
        self._first_seq: dict[int, int] = {}
        self._asked_ms: dict[int, int] = {}
        self._follow_seq = 0
        self._changed = True
        self._urgent = False
        self._sent_ms = -FOREVER_MS
        self._signature: object = None
        # Classes that had something left to ask for when the Demand was last stated.
        self._wanting: set[int] = set()
        self._review_ms = 0
        # Something waits for what time alone brings: a back-off, somebody's surplus.
        self._later = False

    # --- what others tell -------------------------------------------------------------------------

    def dirty(self, cls: ClassState) -> None:
        """Something about this class changed: look at it before the turn ends."""
        self._dirty[cls] = None
        self._changed = True

    def demand_changed(self, *, urgent: bool = False) -> None:
        """The Demand that was sent last is no longer true."""
        self._changed = True
        self._urgent = self._urgent or urgent

    def on_follow(
        self, coordinator: bytes, classes: Mapping[ClassSpec, ClassState], inc: int = 0
    ) -> None:
        """Another coordinator: ask it at once; its first table is always newer than none."""
        self.coordinator = coordinator
        self.coordinator_inc = inc
        self.epoch = None
        self._follow_seq = self.demand_seq + 1
        self._first_seq.clear()
        self._asked_ms.clear()
        self._signature = None
        self._changed = self._urgent = True
        for cls in classes.values():
            self._dirty[cls] = None

    def on_allocation(
        self,
        node: bytes,
        allocation: Allocation,
        by_id: Mapping[int, ClassState],
        inc: int = 0,
    ) -> bool:
        """Take a table from the coordinator I follow, if it is newer than the last one.

        `inc` is the life that the link belongs to, 0 where that is not known.  Return whether
        the table answers a Demand sent since I follow it.
        """
        if node != self.coordinator or allocation.inc != self.inc:
            return False
        if inc and self.coordinator_inc and inc != self.coordinator_inc:
            return False
        stamp = (allocation.epoch, allocation.seq)
        if self.epoch is not None and stamp <= (self.epoch, self.table_seq):
            return False
        self.epoch, self.table_seq = stamp
        # A coordinator that has gone deaf restates its last table for ever: that answers nothing.
        last = allocation.demand_seq == self.demand_seq
        answers = last or allocation.demand_seq > self.answered_seq
        self.answered_seq = max(self.answered_seq, allocation.demand_seq)
        table: dict[int, dict[bytes, int]] = {}
        for row in allocation.rows:
            table.setdefault(row.cls, {})[row.node] = row.slots
        self.table = table
        self.tables += 1
        for cls in by_id.values():
            self._dirty[cls] = None
        return answers and self._follow_seq <= allocation.demand_seq <= self.demand_seq

    def back_off(self, use: Use, reason: Reason, now_ms: int) -> None:
        """That worker would not take this class: leave the pair alone for a while."""
        if reason is Reason.NEEDS:
            use.backoff_until_ms = now_ms + BACK_OFF_NEEDS_BEATS * self.interval_ms
            return
        use.backoff_ms = min(BACK_OFF_MS_MAX, use.backoff_ms * BACK_OFF_FACTOR or BACK_OFF_MS)
        use.backoff_until_ms = now_ms + use.backoff_ms

    # --- the end of a turn ------------------------------------------------------------------------

    def settle(
        self,
        now_ms: int,
        classes: dict[ClassSpec, ClassState],
        by_id: dict[int, ClassState],
    ) -> None:
        """Grant what fits now, then state the Demand where it is due."""
        if self._dirty:
            dirty = [*self._dirty]
            self._dirty.clear()
            if len(dirty) > 1:
                dirty.sort(key=_by_priority)
            for cls in dirty:
                if cls.queued:
                    self._grant_class(cls, now_ms)
                    # More than was asked for: the table was made for less.
                    if cls.queued and cls.id not in self._wanting:
                        self.demand_changed(urgent=True)
        if self._changed and self.coordinator and now_ms >= self._next_demand_ms():
            self._state_demand(now_ms, classes, by_id)

    def tick(self, now_ms: int) -> None:
        """Restate the Demand where it is due, and look again at what time alone changes."""
        beats = DEMAND_RESTATE_BEATS
        if self.demand_seq > self.answered_seq:
            beats = DEMAND_UNANSWERED_BEATS
        if now_ms - self._sent_ms >= beats * self.interval_ms:
            self._signature = None
            self._changed = True

    def review(self, now_ms: int, classes: Mapping[ClassSpec, ClassState]) -> None:
        """Look at classes that wait for a back-off or for somebody's surplus to end."""
        if now_ms < self._review_ms:
            return
        self._review_ms = now_ms + DEMAND_GAP_MS
        self._later = False
        for cls in classes.values():
            if self.tables:
                self._recall_shrunk(cls)
            if cls.queued:
                self._dirty[cls] = None
                self._later = True
            elif any(use.ahead for use in cls.uses.values()):
                self._later = True
                self._recall_surplus(cls, now_ms)

    def next_deadline_ms(self) -> int:
        """When `tick` or `settle` next has something to say."""
        later_ms = self._review_ms if self._later else FOREVER_MS
        if not self.coordinator:
            return later_ms
        if self._changed:
            return min(later_ms, self._next_demand_ms())
        beats = DEMAND_RESTATE_BEATS
        if self.demand_seq > self.answered_seq:
            beats = DEMAND_UNANSWERED_BEATS
        return min(later_ms, self._sent_ms + beats * self.interval_ms)

    def _next_demand_ms(self) -> int:
        return self._sent_ms + (EARLY_GAP_MS if self._urgent else DEMAND_GAP_MS)

    # --- granting ---------------------------------------------------------------------------------

    def _grant_class(self, cls: ClassState, now_ms: int) -> None:
        rows = self.rows(cls, now_ms)
        usable = [(use, slots) for use, slots in rows if self.usable(cls, use, now_ms)]
        if not usable:
            return
        if cls.aside_until_ms > now_ms:
            return
        if cls.spec.gang > 1:
            self._grant_gang(cls, usable, now_ms)
            return
        rate = 0.0
        best_us = 0
        all_slots = sum([slots for _, slots in usable])
        for use, slots in usable:
            size = 0
            while cls.queued and use.live - use.ahead < slots:
                if rate and use.mean_us and not self._worth_it(cls, use, rate, best_us):
                    break
                size = size or bundles.size_of(cls, use, all_slots, self.bundle_us)
                if not self._next(cls, use, slots, False, now_ms, size):
                    return
            if use.mean_us:
                rate += slots / use.mean_us
                best_us = best_us or use.mean_us
        if not cls.queued or cls.spec.exclusive:
            return
        for use, slots in usable:
            size = bundles.size_of(cls, use, all_slots, self.bundle_us)
            room = self.prefetch(use, slots, size) - use.ahead
            while room > 0 and cls.queued:
                room -= 1
                if not self._next(cls, use, slots, True, now_ms, size):
                    return

    def _next(
        self, cls: ClassState, use: Use, slots: int, ahead: bool, now_ms: int, size: int
    ) -> bool:
        task = cls.oldest()
        if task is None:
            return False
        cls.queue.popleft()
        cls.queued -= 1
        more = bundles.gather(cls, task, size - 1) if size > 1 else ()
        self._grant(task, ((use, ahead),), now_ms, min(slots, U16_MAX), more)
        return True

    def _grant_gang(self, cls: ClassState, usable: Sequence[tuple[Use, int]], now_ms: int) -> None:
        """All members at once, on as many nodes as the gang has members."""
        while True:
            free = [use for use, slots in usable if use.live < slots]
            task = cls.oldest()
            if task is None or len(free) < cls.spec.gang:
                return
            cls.queue.popleft()
            cls.queued -= 1
            self._grant(task, [(use, False) for use in free[: cls.spec.gang]], now_ms, 0, ())

    @staticmethod
    def _worth_it(cls: ClassState, use: Use, rate: float, best_us: int) -> bool:
        """Tail rule: would faster nodes drain the class before this one ends one task?"""
        return use.mean_us <= cls.queued / rate + 1.5 * best_us

    @staticmethod
    def prefetch(use: Use, slots: int, size: int = 1) -> int:
        """How many attempts of `size` tasks may wait in that worker beyond the slots."""
        mean_us = size * use.mean_us
        if not mean_us or mean_us >= PREFETCH_MEAN_MS_MAX * 1000 or not slots:
            return 0
        most = PREFETCH_PER_SLOT_MAX if size == 1 else BUNDLES_AHEAD_MAX
        return min(most * slots, -(-slots * PREFETCH_WORK_MS * 1000 // mean_us))

    def rows(self, cls: ClassState, now_ms: int) -> list[tuple[Use, int]]:
        """Nodes and slots this class may use: first wishes first, then the fastest measured."""
        table = self.table.get(cls.id)
        rows = [(cls.use(node), slots) for node, slots in table.items()] if table else []
        if len(rows) > 1:
            needs, rank = cls.spec.needs, self.view.rank
            # An unmeasured node goes first: its first task is the measurement.
            rows.sort(key=lambda row: (rank(row[0].node, needs), row[0].mean_us, row[0].node))
        if self._may_use_own(cls, now_ms):
            own = cls.use(self.me)
            ask = cls.requirement.alternatives[self.view.rank(self.me, cls.spec.needs)]
            slots = self._room_here(ask) + own.in_use()
            rows = [(use, n) for use, n in rows if use is not own]
            rows.insert(0, (own, slots))
        return rows

    def _may_use_own(self, cls: ClassState, now_ms: int) -> bool:
        """Without a coordinator, or one that does not answer, an owner uses its own worker."""
        if not self.view.fits(self.me, cls.spec.needs) or cls.spec.gang > 1:
            return False
        if not self.coordinator:
            return True
        if self.answers(cls):
            return False
        asked_ms = self._asked_ms.setdefault(cls.id, now_ms)
        return now_ms - asked_ms >= OWN_WORKER_MS

    def usable(self, cls: ClassState, use: Use, now_ms: int) -> bool:
        """May anything of this class go to that node now?"""
        if use.backoff_until_ms > now_ms:
            return False
        view = self.view.nodes.get(use.node)
        if view is None or view.draining or view.avoid_until_ms > now_ms:
            return False
        lease_ms = cls.spec.lease_ms or self.lease_ms
        return use.node == self.me or self.view.fresh(use.node, lease_ms, now_ms)

    def answers(self, cls: ClassState) -> bool:
        """Has the coordinator heard of this class, and answered?"""
        first = self._first_seq.get(cls.id)
        return first is not None and first <= self.answered_seq

    def _recall_surplus(self, cls: ClassState, now_ms: int) -> None:
        """The queue is empty: attempts that wait behind others could start on an idle node."""
        rows = [(use, slots) for use, slots in self.rows(cls, now_ms)]
        idle = sum(
            slots - use.in_use()
            for use, slots in rows
            if use.in_use() < slots and self.usable(cls, use, now_ms)
        )
        if idle <= 0:
            return
        slots_of = {use.node: slots for use, slots in rows}
        for use in sorted(cls.uses.values(), key=lambda one: -one.ahead * one.mean_us):
            slots = slots_of.get(use.node, 0)
            wait_us = use.ahead * use.mean_us // max(slots, 1)
            if use.ahead <= 0 or idle <= 0:
                continue
            # What runs there may take longer than any before it.
            late = use.waits_since_ms(now_ms) + PREFETCH_WORK_MS < now_ms
            if slots and wait_us < SURPLUS_MS * 1000 and not late:
                continue
            idle -= self._recall(use, idle)

    def _recall_shrunk(self, cls: ClassState) -> None:
        """The table has no row any more for a node where some still wait: they could wait long."""
        row = self.table.get(cls.id, {})
        for use in cls.uses.values():
            if use.ahead and use.node != self.me and not row.get(use.node):
                self._recall(use, use.ahead)

    def _recall(self, use: Use, count: int) -> int:
        """Ask for so many waiting attempts, the youngest first, once under each table."""
        asked = 0
        for member in reversed(use.waiting):
            if asked >= count:
                break
            if not member.ahead or member.stopping or member.state is MemberState.WRITING:
                continue
            # Who was asked already will take an idle slot as well.
            asked += 1
            if member.recalled != self.tables:
                member.recalled = self.tables
                self._out.send(member.node, Recall(member.attempt.token, False))
        return asked

    # --- demand -----------------------------------------------------------------------------------

    def _state_demand(
        self, now_ms: int, classes: dict[ClassSpec, ClassState], by_id: dict[int, ClassState]
    ) -> None:
        stated = []
        for cls in list(classes.values()):
            warm = cls.tasks or now_ms - cls.active_ms < WARM_CLASS_MS
            if warm or any(use.live for use in cls.uses.values()):
                stated.append(cls)
            else:
                del classes[cls.spec], by_id[cls.id]
                self._first_seq.pop(cls.id, None)
                self._asked_ms.pop(cls.id, None)
        self._wanting = {cls.id for cls in stated if _asks(cls)}
        demands = self._bounded([self._class_demand(cls, now_ms) for cls in stated])
        signature = [(one.cls, one.queued, one.in_use) for one in demands]
        self._changed = self._urgent = False
        if signature == self._signature:
            return
        self._signature = signature
        self.demand_seq += 1
        for one in demands:
            self._first_seq.setdefault(one.cls, self.demand_seq)
        self._sent_ms = now_ms
        avoid = self.view.avoided(now_ms)
        self._out.send(self.coordinator, Demand(self.inc, self.demand_seq, tuple(demands), avoid))

    @staticmethod
    def _class_demand(cls: ClassState, now_ms: int) -> ClassDemand:
        head = cls.oldest()
        in_use = [InUse(use.node, use.in_use()) for use in cls.uses.values() if use.in_use() > 0]
        spec = cls.spec
        queued = _asks(cls)
        if spec.isolated:
            # What took nodes down asks for one at a time, or it could take all of them.
            queued = 0 if in_use else min(queued, 1)
        return ClassDemand(
            cls.id,
            spec.needs,
            spec.priority,
            spec.user,
            spec.gang,
            spec.exclusive or spec.isolated,
            queued,
            max(0, now_ms - head.queued_ms) if head is not None else 0,
            cls.mean_us // 1000,
            tuple(in_use[:IN_USE_NODES_MAX]),
        )

    def _bounded(self, demands: list[ClassDemand]) -> list[ClassDemand]:
        """Keep what fits one message; what no node here can run is left out first of all."""
        hopeless = set()
        if len(demands) > DEMAND_CLASSES_MAX:
            # They never get a slot, so they never leave: they would keep their places for ever.
            nodes = [view.node for view in self.view.present()]
            fits = {one.needs: any(self.view.fits(n, one.needs) for n in nodes) for one in demands}
            hopeless = {one.cls for one in demands if not one.in_use and not fits[one.needs]}
        demands.sort(
            key=lambda one: (
                one.cls in hopeless,
                -one.priority,
                not one.queued,
                -one.oldest_wait_ms,
                one.cls,
            )
        )
        kept: list[ClassDemand] = []
        size = 0
        for one in demands[:DEMAND_CLASSES_MAX]:
            size += _CLASS_BYTES + len(one.needs) + len(one.user) * 4
            size += _IN_USE_BYTES * len(one.in_use)
            if size > DEMAND_BYTES_MAX:
                break
            kept.append(one)
        return kept


def _asks(cls: ClassState) -> int:
    """How many tasks want a slot; those that wait in a worker do: a free one beside it."""
    return cls.queued + sum([use.ahead for use in cls.uses.values()])


def _by_priority(cls: ClassState) -> tuple[int, int]:
    return (-cls.spec.priority, cls.id)
