"""Notices tasks that could run, that there is room for, and that nobody gives any.

Source  docs/why.md.  Pure; it changes nothing.  Room is what workers say of themselves in their
Heartbeats, not what owners count: so what an owner counts wrongly shows.  This file must not know
who is told, nor how the coordinator is asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.ids import short
from blackroad.router import why as explaining
from blackroad.router.records import TaskState

if TYPE_CHECKING:
    from blackroad.asks import Ask
    from blackroad.bus.messages import Supply
    from blackroad.router.owner import Owner
    from blackroad.router.records import ClassState, Task
    from blackroad.router.why import Place

STUCK_MS: Final = 5_000
AGAIN_MS: Final = 60_000
CLASSES_MAX: Final = 32
NODES_TOLD_MAX: Final = 8
# With these an owner has no reason of its own against a node.
_OPEN: Final = frozenset({"", explaining.NO_SLOTS, explaining.BUSY})
# These explain that a task waits although there is room.
_RULED: Final = frozenset({"aside", "turn", "nowhere"})


class Suspicion(NamedTuple):
    """A task that waits, and the nodes that say they have room for it."""

    task: Task
    places: tuple[Place, ...]
    since_ms: int


class Watchdog:
    """Remembers since when the first task of each class could run and does not."""

    def __init__(self) -> None:
        # By class: its first task, and since when there was room for it all the time.
        self._since: dict[int, tuple[bytes, int]] = {}
        self._told_ms: dict[int, int] = {}
        # Of many classes some are looked at each time, in turn: from here on.
        self._next = 0

    def look(self, owner: Owner, supplies: Mapping[bytes, Supply], now_ms: int) -> list[Suspicion]:
        """Look at what waits; call it about once a second.

        Cost  a look at each node; where one has room, at so many classes at most on each node.
        """
        roomy = {
            node: supply
            for node, supply in supplies.items()
            if supply.free_cpu_units > 0 and not supply.draining and not supply.waiting
        }
        if not roomy:
            self._since.clear()
            return []
        self._told_ms = {cls: at for cls, at in self._told_ms.items() if cls in owner.by_id}
        waiting = {cls.id: cls for cls in owner.by_id.values() if cls.queued}
        self._since = {cls: since for cls, since in self._since.items() if cls in waiting}
        found: list[Suspicion] = []
        for id_ in self._turn(sorted(waiting)):
            places = self._look_at(owner, waiting[id_], roomy, now_ms)
            head = waiting[id_].oldest()
            if not places or head is None:
                self._since.pop(id_, None)
                continue
            task, since_ms = self._since.get(id_, (head.id, now_ms))
            if task != head.id:
                since_ms = now_ms
            self._since[id_] = (head.id, since_ms)
            if now_ms - since_ms >= STUCK_MS and self._due(id_, now_ms):
                found.append(Suspicion(head, places, since_ms))
        return found

    def _turn(self, ids: list[int]) -> list[int]:
        """Whose turn it is."""
        if len(ids) <= CLASSES_MAX:
            return ids
        at = bisect_left(ids, self._next)
        chosen = [*ids[at:], *ids[:at]][:CLASSES_MAX]
        self._next = chosen[-1] + 1
        return chosen

    @staticmethod
    def _look_at(
        owner: Owner, cls: ClassState, roomy: Mapping[bytes, Supply], now_ms: int
    ) -> tuple[Place, ...]:
        head = cls.oldest()
        if head is None or now_ms - head.queued_ms < STUCK_MS:
            return ()
        places = _with_room(owner, cls, head, roomy, now_ms)
        return places if len(places) >= cls.spec.gang else ()

    def _due(self, cls: int, now_ms: int) -> bool:
        told_ms = self._told_ms.get(cls)
        if told_ms is not None and now_ms - told_ms < AGAIN_MS:
            return False
        self._told_ms[cls] = now_ms
        return True

    def settled(self, suspicion: Suspicion) -> None:
        """The coordinator had a reason: look again as soon as there may be none."""
        self._told_ms.pop(suspicion.task.cls.id, None)
        self._since.pop(suspicion.task.cls.id, None)


def _with_room(
    owner: Owner, cls: ClassState, head: Task, roomy: Mapping[bytes, Supply], now_ms: int
) -> tuple[Place, ...]:
    """Nodes that have room by their own word, and that no rule of this owner leaves out."""
    alone = cls.spec.exclusive or cls.spec.isolated or cls.spec.gang > 1
    able = set()
    for node, supply in roomy.items():
        rank = owner.view.rank(node, cls.spec.needs)
        if rank >= 0 and _has_room(supply, cls.requirement.alternatives[rank], alone=alone):
            able.add(node)
    if not able:
        return ()
    why = explaining.explain(owner, head, now_ms)
    if why.holds and why.holds[0][0] in _RULED:
        return ()
    return tuple(one for one in why.places if one.node in able and one.rule in _OPEN)


def _has_room(supply: Supply, ask: Ask, *, alone: bool) -> bool:
    if (alone or ask.gpu) and supply.running:
        # What is left of GPUs a Heartbeat does not tell.
        return False
    return supply.free_cpu_units >= ask.cpu_units and supply.free_memory_bytes >= ask.memory_bytes


def verdict(
    owner: Owner, suspicion: Suspicion, pool: dict[str, Any] | None, now_ms: int
) -> dict[str, Any] | None:
    """What to tell of a task that is stuck; None where it is not, or somebody has a reason.

    `pool` is what the coordinator says of its class; None where it says nothing.
    """
    task = suspicion.task
    cls = task.cls
    if task.state is not TaskState.QUEUED:
        return None
    known = pool if pool is not None and pool.get("known") else None
    places = suspicion.places
    if known is not None:
        places = tuple(one for one in places if not _explained(one, known))
        if len(places) < cls.spec.gang:
            return None
    why = explaining.explain(owner, task, now_ms)
    granting = owner.granting
    return {
        "task": task.id,
        "waiting_ms": now_ms - task.queued_ms,
        "stuck_ms": now_ms - suspicion.since_ms,
        "because": explaining.main_reason(why) or "nothing holds it back",
        "room_on": _listed([one.name for one in places]),
        "queued": cls.queued,
        "class": cls.id,
        "slots": _listed([f"{one.name}={one.used}/{one.slots}" for one in why.places]),
        "rules": _listed([f"{one.name}={one.rule or 'open'}" for one in why.places]),
        "attempts": _listed(_attempts(cls)),
        "coordinator": short(granting.coordinator) if granting.coordinator else "none",
        "demand_seq": granting.demand_seq,
        "answered_seq": granting.answered_seq,
        "table_seq": granting.table_seq,
        "pool": _pool_text(known, places, pool),
    }


def _explained(place: Place, pool: dict[str, Any]) -> bool:
    """Has the coordinator a reason?  That others use it is none: the node says it is free."""
    rule = explaining.pool_rule({"id": short(place.node)}, pool)
    return rule is not None and rule != explaining.FULL


def _attempts(cls: ClassState) -> list[str]:
    return [f"{short(use.node)}={use.live}" for use in cls.uses.values() if use.live]


def _pool_text(known: dict[str, Any] | None, places: tuple[Place, ...], pool: object) -> str:
    if known is None:
        return "the coordinator does not know its kind" if pool else "the coordinator says nothing"
    rows = []
    for place in places:
        row = known["nodes"].get(short(place.node), {})
        users = " ".join(f"{owner}/{cls}={used}" for owner, cls, _, used in row.get("users", ()))
        rows.append(f"{place.name}: {row.get('slots', 0)} slots dealt, used by {users or 'nobody'}")
    return _listed(rows)


def _listed(texts: list[str]) -> str:
    more = f", and {len(texts) - NODES_TOLD_MAX} more" if len(texts) > NODES_TOLD_MAX else ""
    return ", ".join(texts[:NODES_TOLD_MAX]) + more
