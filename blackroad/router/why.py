"""Why a task is not running: node by node and need by need, as its owner and the pool know it.

Source  docs/why.md.  Pure; it changes nothing.  The owner knows its own rules, the coordinator who
uses what and who comes first: each tells its part, and `together` makes one answer of both.  This
file must not know who asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from blackroad.ids import short
from blackroad.requirements import Shortfall, from_wire, shortfall
from blackroad.router import bundles
from blackroad.router.fairness import effective_priority
from blackroad.router.placement import closed_nodes, free_now
from blackroad.router.records import TaskState, state_text
from blackroad.units import format_bytes, format_cpu_units

if TYPE_CHECKING:
    from blackroad.asks import Ask
    from blackroad.ledger import Ledger
    from blackroad.router.coordinator import Coordinator
    from blackroad.router.nodes_view import NodeView
    from blackroad.router.owner import Owner
    from blackroad.router.placement import Node, Want
    from blackroad.router.records import ClassState, Task, Use

# Rules of an owner about one node; "" where the node may be used.
UNKNOWN, LACKS, SILENT = "unknown", "lacks", "silent"
DRAINING, AVOIDED, BACK_OFF = "draining", "avoided", "back-off"
NO_SLOTS, BUSY, TOO_SLOW = "no slots", "busy", "too slow"
# Rules of the pool about one node.
RESERVED, FULL, FIRST, ELSEWHERE = "reserved", "full", "others first", "not in the pool"
# Only these rest on the coordinator's table, so only these can it explain.
_OF_TABLE: Final = frozenset({NO_SLOTS, BUSY})
USERS_MAX: Final = 8

TEXTS: Final = {
    UNKNOWN: "what it has is not known yet",
    LACKS: "it lacks what is asked for, even idle",
    SILENT: "it has not been heard of just now",
    DRAINING: "it takes nothing new",
    AVOIDED: "a lease ended there without a word, so it is left out for a while",
    BACK_OFF: "it refused this kind just now",
    NO_SLOTS: "the coordinator gives this kind no slot there",
    BUSY: "all slots that this kind has there are in use",
    TOO_SLOW: "faster nodes end this kind sooner",
    RESERVED: "it is kept for others until they run there",
    FULL: "what is asked for is in use by others",
    FIRST: "its room is kept for tasks that come first",
    ELSEWHERE: "it gives the coordinator nothing",
}


class Place(Struct, frozen=True):
    """One node, as an owner sees it for one task; the task may go there where `rule` is empty.

    `slots` is what its kind may use there now, `used` and `waiting` are attempts of its kind.
    """

    node: bytes
    name: str
    text: str
    rule: str
    lacks: tuple[Shortfall, ...] = ()
    slots: int = 0
    used: int = 0
    waiting: int = 0
    for_ms: int = 0


class Why(Struct, frozen=True):
    """Everything that keeps one task from being granted; nothing does where `holds` is empty.

    `holds` are (rule, sentence), the first the one to tell; `ahead` counts those of its kind that
    come first.
    """

    holds: tuple[tuple[str, str], ...]
    places: tuple[Place, ...]
    ahead: int = 0


def explain(owner: Owner, task: Task, now_ms: int) -> Why:
    """Say what holds a queued task back, as far as its owner knows.

    Cost  a look at each node, and at each task of its kind that comes first.
    """
    cls = task.cls
    places = tuple(_places(owner, cls, now_ms))
    if task.state is not TaskState.QUEUED:
        return Why(_handed_over(task, places), places)
    ahead = _ahead(cls, task)
    room = _room(owner, cls, places)
    holds = list(_holds(owner, cls, places, now_ms))
    if not holds and room <= ahead:
        one = "1 task of its kind comes" if ahead == 1 else f"{ahead} tasks of its kind come"
        holds.append(("turn", f"{one} first"))
    return Why(tuple(holds), places, ahead)


def _handed_over(task: Task, places: tuple[Place, ...]) -> tuple[tuple[str, str], ...]:
    """What keeps a task from running that has its node already."""
    if state_text(task) != "waiting":
        return ()
    nodes = {one.node for attempt in task.attempts for one in attempt.members}
    names = ", ".join(one.name for one in places if one.node in nodes) or "its node"
    return (("handed over", f"it was handed to {names}, and waits there for the next free slot"),)


def _ahead(cls: ClassState, task: Task) -> int:
    ahead = 0
    for other in cls.queue:
        if other is task:
            break
        ahead += other.state is TaskState.QUEUED
    return ahead


# --- node by node -------------------------------------------------------------------------------


def _places(owner: Owner, cls: ClassState, now_ms: int) -> list[Place]:
    rows = owner.granting.rows(cls, now_ms)
    slots = {use.node: count for use, count in rows}
    usable = [row for row in rows if owner.granting.usable(cls, row[0], now_ms)]
    slow = _too_slow(cls, usable)
    return [
        _place(owner, cls, view, slots.get(view.node, 0), view.node in slow, now_ms)
        for view in owner.view.present()
    ]


def _place(
    owner: Owner, cls: ClassState, view: NodeView, slots: int, slow: bool, now_ms: int
) -> Place:
    caps = view.capabilities
    use = cls.uses.get(view.node)
    lacks = shortfall(from_wire(cls.spec.needs), caps, view.text) if caps is not None else []
    rule, for_ms = _rule_of(owner, cls, view, slots, now_ms)
    if not rule:
        rule = _rule_of_table(owner, cls, use, slots, slow)
    return Place(
        view.node,
        caps.name if caps is not None else view.text,
        view.text,
        rule,
        tuple(lacks),
        slots,
        use.in_use() if use is not None else 0,
        use.ahead if use is not None else 0,
        for_ms,
    )


def _rule_of(
    owner: Owner, cls: ClassState, view: NodeView, slots: int, now_ms: int
) -> tuple[str, int]:
    """The owner's own rule that keeps this kind from a node, and for how long it surely does."""
    use = cls.uses.get(view.node)
    lease_ms = cls.spec.lease_ms or owner.granting.lease_ms
    # Where the coordinator gives slots it knows better what is there.
    if view.capabilities is None and not slots:
        return UNKNOWN, 0
    if not slots and not owner.view.fits(view.node, cls.spec.needs):
        return LACKS, 0
    if view.draining:
        return DRAINING, 0
    if view.node != owner.me and not owner.view.fresh(view.node, lease_ms, now_ms):
        return SILENT, 0
    if view.avoid_until_ms > now_ms:
        return AVOIDED, view.avoid_until_ms - now_ms
    if use is not None and use.backoff_until_ms > now_ms:
        return BACK_OFF, use.backoff_until_ms - now_ms
    return "", 0


def _rule_of_table(owner: Owner, cls: ClassState, use: Use | None, slots: int, slow: bool) -> str:
    if not slots:
        return NO_SLOTS
    if use is None:
        return ""
    if cls.spec.gang > 1:
        return BUSY if use.live >= slots else ""
    if use.in_use() < slots and not slow:
        return ""
    if _prefetched(owner, cls, use, slots) > 0:
        return ""
    return TOO_SLOW if use.in_use() < slots else BUSY


def _prefetched(owner: Owner, cls: ClassState, use: Use, slots: int) -> int:
    """How many more attempts may wait there behind those that run."""
    if cls.spec.exclusive or cls.spec.gang > 1:
        return 0
    size = bundles.size_of(cls, use, slots, owner.granting.bundle_us)
    return owner.granting.prefetch(use, slots, size) - use.ahead


def _too_slow(cls: ClassState, usable: list[tuple[Use, int]]) -> set[bytes]:
    """Nodes that the tail rule leaves out now."""
    rate, best_us = 0.0, 0
    slow: set[bytes] = set()
    for use, slots in usable:
        if rate and use.mean_us and use.mean_us > cls.queued / rate + 1.5 * best_us:
            slow.add(use.node)
        if use.mean_us:
            rate += slots / use.mean_us
            best_us = best_us or use.mean_us
    return slow


# --- all together -------------------------------------------------------------------------------


def _room(owner: Owner, cls: ClassState, places: tuple[Place, ...]) -> int:
    """How many tasks of this kind could be granted at once."""
    if cls.spec.gang > 1:
        spare = [one.slots - cls.use(one.node).live for one in places if not one.rule]
        # A node takes one member of each gang at most.
        return _gangs(sorted(spare, reverse=True), cls.spec.gang)
    room = 0
    for one in places:
        if one.rule:
            continue
        use = cls.use(one.node)
        free = max(0, one.slots - one.used) + max(0, _prefetched(owner, cls, use, one.slots))
        room += free * bundles.size_of(cls, use, one.slots, owner.granting.bundle_us)
    return room


def _gangs(spare: list[int], size: int) -> int:
    made = 0
    while len(spare) >= size and spare[size - 1] > 0:
        made += 1
        spare = sorted([*(one - 1 for one in spare[:size]), *spare[size:]], reverse=True)
    return made


def _holds(
    owner: Owner, cls: ClassState, places: tuple[Place, ...], now_ms: int
) -> list[tuple[str, str]]:
    """What keeps the first task of this kind back."""
    granting = owner.granting
    gang = cls.spec.gang
    able = [one for one in places if one.rule not in (UNKNOWN, LACKS)]
    open_ = [one for one in places if not one.rule]
    if len(able) < gang:
        return [("nowhere", _nowhere(places, able, gang))]
    if cls.aside_until_ms > now_ms and len(open_) >= gang:
        return [("aside", "its members could not start together, so it is put off for a moment")]
    if len(open_) >= gang:
        return []
    rules = {one.rule for one in able}
    if rules & _OF_TABLE:
        if not granting.coordinator:
            return [("nobody", "no coordinator is elected yet, and this node cannot run it now")]
        if not granting.answers(cls):
            return [("asked", "the coordinator has not answered for this kind yet")]
        if cls.spec.isolated:
            return [("alone", "it took nodes down and waits for a node of its own")]
    if gang > 1 and open_:
        return [("gang", f"it needs {gang} nodes at once, and {len(open_)} may be used now")]
    return [(_least(rules), _summary(rules))]


def _nowhere(places: tuple[Place, ...], able: list[Place], gang: int) -> str:
    if able:
        return f"it needs {gang} nodes at once, and {len(able)} could run it"
    if any(one.rule == UNKNOWN for one in places):
        return "no node that is known well enough can run it"
    return "no present node can run it"


# Said for all: the rule that is nearest to letting it run.
_ORDER: Final = (BUSY, NO_SLOTS, TOO_SLOW, BACK_OFF, AVOIDED, SILENT, DRAINING)


def _least(rules: set[str]) -> str:
    return next((one for one in _ORDER if one in rules), LACKS)


def _summary(rules: set[str]) -> str:
    if BUSY in rules:
        return "all slots that this kind may use are in use"
    if NO_SLOTS in rules:
        return "all fitting slots are used by tasks that come first"
    if TOO_SLOW in rules:
        return "the nodes that are free are so slow that it ends sooner by waiting"
    words = {
        BACK_OFF: "refused it just now",
        AVOIDED: "are left out for a while",
        SILENT: "are silent",
        DRAINING: "are draining",
    }
    said = [words[one] for one in _ORDER if one in rules and one in words]
    return f"the nodes that could run it {' or '.join(said)}"


def main_reason(why: Why) -> str:
    """The one sentence to tell first; empty where nothing holds the task back."""
    return why.holds[0][1] if why.holds else ""


# --- the pool's part ----------------------------------------------------------------------------


class PoolRow(Struct, frozen=True):
    """One node, as the coordinator sees it for one class."""

    free: tuple[int, int, tuple[int, ...]]
    lacking: tuple[tuple[str, str, str], ...]
    users: tuple[tuple[str, int, str, int], ...]
    reserved_for: tuple[str, int, str, int, int] | None
    mine: int
    slots: int
    closed: bool
    avoided: bool


class Pool(Struct, frozen=True):
    """What the coordinator knows of one class."""

    coordinates: bool
    known: bool
    epoch: int = 0
    queued: int = 0
    classes_first: int = 0
    tasks_first: int = 0
    nodes: dict[str, PoolRow] = {}


def read_pool(body: bytes) -> dict[str, Any] | None:
    """Read what another node answered; None where that makes no sense."""
    try:
        found: dict[str, Any] = msgspec.to_builtins(msgspec.msgpack.decode(body, type=Pool))
    except (msgspec.MsgspecError, RecursionError):
        return None
    return found


def pool(coordinator: Coordinator, owner: bytes, cls: int, now_ms: int) -> dict[str, Any]:
    """Say what the coordinator knows about one class: who comes first, and of each node what.

    Cost  as much as one table; it is for people, and for a watchdog that has a suspicion.
    """
    epoch = coordinator.epoch
    if epoch is None:
        return {"coordinates": False, "known": False}
    told: dict[str, Any] = {"coordinates": True, "epoch": epoch.counter, "known": False}
    wants = [want for one in coordinator.owners.values() for want in one.wants]
    mine = next((one for one in wants if one.key == (owner, cls)), None)
    if mine is None:
        return told
    reserved = coordinator.reservations.reserved()
    by_key = {one.key: one for one in wants}
    nodes = sorted(coordinator.nodes.values(), key=lambda node: node.id)
    fit = coordinator.fit
    ledgers = free_now({node.id: node for node in nodes}, wants, fit)
    closed = closed_nodes(nodes, wants, reserved, fit)
    rows = coordinator.rows_of(owner, cls)
    first = [one for one in wants if one.queued and one is not mine and _before(one, mine)]
    told |= {
        "known": True,
        "queued": mine.queued,
        "classes_first": len(first),
        "tasks_first": sum(one.queued for one in first),
        "nodes": {
            short(node.id): _in_pool(
                node, mine, ledgers[node.id], fit.ask(mine, node), wants, reserved, by_key
            )
            | {
                "mine": mine.in_use.get(node.id, 0),
                "slots": rows.get(node.id, 0),
                "closed": closed.get(node.id, mine.priority - 1) >= mine.priority,
                "avoided": node.id in mine.avoid,
            }
            for node in nodes
        },
    }
    return told


def _before(one: Want, other: Want) -> bool:
    """Does the oldest task of that class come before the other's?"""

    def place(want: Want) -> tuple[int, int]:
        return effective_priority(want.priority, want.oldest_wait_ms), want.oldest_wait_ms

    return place(one) > place(other)


def _in_pool(
    node: Node,
    mine: Want,
    free: Ledger,
    ask: Ask | None,
    wants: list[Want],
    reserved: dict[bytes, tuple[bytes, int]],
    by_key: dict[tuple[bytes, int], Want],
) -> dict[str, Any]:
    left = free.free()
    lacking = _lacking(ask, free, node) if ask is not None else []
    if mine.whole_nodes() and not lacking and free.leases():
        lacking = [["node", "all of it", f"{free.leases()} slots in use"]]
    holder = reserved.get(node.id)
    users: list[list[Any]] = [
        [short(want.owner), want.cls, want.user, want.in_use[node.id]]
        for want in wants
        if want.in_use.get(node.id)
    ]
    users.sort(key=lambda one: (-one[3], one[0], one[1]))
    kept = by_key.get(holder) if holder is not None and holder != mine.key else None
    return {
        "free": [left.cpu_units, left.memory_bytes, list(left.gpus)],
        "lacking": lacking,
        "users": users[:USERS_MAX],
        "reserved_for": _reserved(holder, kept) if holder not in (None, mine.key) else None,
    }


def _reserved(holder: tuple[bytes, int] | None, want: Want | None) -> list[Any]:
    owner, cls = holder if holder is not None else (b"", 0)
    if want is None:
        return [short(owner), cls, "", 0, 1]
    return [short(owner), cls, want.user, want.queued, want.gang]


def _lacking(ask: Ask, free: Ledger, node: Node) -> list[list[str]]:
    """What is asked for and not free at this moment: item, asked, there."""
    if free.room_for(ask):
        return []
    left = free.free()
    rows = []
    if ask.cpu_units > left.cpu_units:
        rows.append(["cpu", format_cpu_units(ask.cpu_units), format_cpu_units(left.cpu_units)])
    if ask.memory_bytes > left.memory_bytes:
        there = format_bytes(max(0, left.memory_bytes))
        rows.append(["memory", format_bytes(ask.memory_bytes), there])
    if not rows:
        rows.append(["gpu", str(ask.gpu), "in use"])
    return rows


# --- both parts together ------------------------------------------------------------------------


def pool_rule(place: dict[str, Any], pool: dict[str, Any]) -> str | None:
    """The pool's rule about a node that an owner's table gives no room on; None: it knows none.

    `place` is a row of the owner's answer.
    """
    row = pool["nodes"].get(place["id"])
    if row is None:
        return ELSEWHERE
    if row["reserved_for"] is not None:
        return RESERVED
    if row["lacking"]:
        return FULL
    if row["closed"]:
        return FIRST
    return AVOIDED if row["avoided"] else None


def together(told: dict[str, Any], pool: dict[str, Any] | None) -> dict[str, Any]:
    """One answer of the owner's and the pool's: where the pool has a better reason it is given.

    Where neither has a reason, `holds` is empty and `reason` as well: the task is to be placed.
    """
    if pool is None or not pool.get("known") or told["state"] != "queued":
        return told | {"pool": pool}
    rows = []
    open_ = 0
    for place in told["nodes"]:
        rule = place["rule"]
        if rule in _OF_TABLE:
            row = pool["nodes"].get(place["id"])
            # The owner has granted there since it last stated its Demand.
            newer = row is not None and place["in_use"] > row["mine"]
            rule = pool_rule(place, pool) or (rule if newer else "")
        rows.append(place | {"rule": rule, "text": TEXTS.get(rule, ""), "pool": _row(place, pool)})
        open_ += not rule
    holds = told["holds"]
    first = holds[0][0] if holds else ""
    if first in (*_OF_TABLE, "alone", "gang") and open_ >= told["gang"]:
        holds = []
    elif first in _OF_TABLE:
        holds = [list(_of_pool(rows, pool)), *holds[1:]]
    reason = holds[0][1] if holds else ""
    return told | {"nodes": rows, "holds": holds, "reason": reason, "pool": pool}


def _row(place: dict[str, Any], pool: dict[str, Any]) -> dict[str, Any] | None:
    found: dict[str, Any] | None = pool["nodes"].get(place["id"])
    return found


def _of_pool(rows: list[dict[str, Any]], pool: dict[str, Any]) -> tuple[str, str]:
    rules = {row["rule"] for row in rows}
    if FULL in rules:
        tasks = pool["tasks_first"]
        more = f"; {tasks} tasks of other kinds come first" if tasks else ""
        more = "; 1 task of another kind comes first" if tasks == 1 else more
        return FULL, f"everything that fits it is in use{more}"
    if FIRST in rules:
        return FIRST, "the room that is left is kept for tasks that come first"
    if RESERVED in rules:
        return RESERVED, "the nodes that fit are kept for tasks that need whole nodes"
    return _least(rules), _summary(rules)
