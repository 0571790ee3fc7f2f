"""Placement against a slow twin, and what must be true of every table."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import NamedTuple

from hypothesis import event, given, settings
from hypothesis import strategies as st

from blackroad.limits import AGEING_MS
from blackroad.requirements import Ledger, Needs, fits
from blackroad.router.placement import Fit, Node, Table, Want, allocate
from tests.unit.builders import GIB, caps, node_id

ARCHES = ("aarch64", "x86_64")
CHECK = settings(max_examples=100, deadline=None)


class Cluster(NamedTuple):
    """A made-up cluster: nodes, classes, and what is reserved for whom."""

    nodes: list[Node]
    wants: list[Want]
    reserved: dict[bytes, tuple[bytes, int]]

    def table(self) -> Table:
        return allocate(self.nodes, self.wants, self.reserved, Fit())


@st.composite
def some_nodes(draw: st.DrawFn, *, alike: bool = False) -> list[Node]:
    nodes = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        cores = 4 if alike else draw(st.integers(1, 6))
        memory = 8 * GIB if alike else draw(st.sampled_from((2, 4, 8))) * GIB
        machine = caps(
            f"n{number}",
            arch=ARCHES[0] if alike else draw(st.sampled_from(ARCHES)),
            cores=cores,
            memory_bytes=memory,
        )
        speed = 1.0 if alike else draw(st.sampled_from((0.5, 1.0, 2.0)))
        nodes.append(
            Node(node_id(number), f"n{number}", machine, cores * 10_000, memory, (), speed)
        )
    return nodes


@st.composite
def clusters(
    draw: st.DrawFn, *, unit: bool = False, busy: bool = True, reserve: bool = False
) -> Cluster:
    """Nodes and classes; what is in use fits, or it would not be in use."""
    nodes = draw(some_nodes())
    ledgers = {node.id: Ledger(node.cpu_units, node.memory_bytes) for node in nodes}
    wants = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        needs = Needs(
            cpu=1 if unit else draw(st.sampled_from((0.5, 1, 2, 4))),
            memory=0 if unit else draw(st.sampled_from((0, GIB, 3 * GIB))),
            arch=draw(st.sampled_from((None, *ARCHES))),
        )
        in_use: Counter[bytes] = Counter()
        for node in draw(st.lists(st.sampled_from(nodes), max_size=4)) if busy else ():
            asks = needs.requirement.alternatives
            if fits(needs.requirement, node.caps, node.text) >= 0 and ledgers[node.id].take(
                asks[0]
            ):
                in_use[node.id] += 1
        wants.append(
            Want(
                node_id(draw(st.integers(1, 3))),
                number,
                needs.to_wire(),
                needs.requirement,
                priority=draw(st.integers(-1, 1)),
                user=draw(st.sampled_from(("ada", "bob", ""))),
                queued=draw(st.sampled_from((0, 1, 3, 40))),
                oldest_wait_ms=draw(st.sampled_from((0, 5_000, AGEING_MS, 2 * AGEING_MS))),
                mean_ms=draw(st.sampled_from((0, 10, 100, 1000, 60_000))),
                in_use=in_use,
                avoid=frozenset(draw(st.lists(st.sampled_from(nodes), max_size=1).map(_ids))),
            )
        )
    kept = draw(st.lists(st.sampled_from(nodes), max_size=2).map(_ids)) if reserve else []
    return Cluster(nodes, wants, dict.fromkeys(kept, (node_id(9), 99)))


def _ids(nodes: list[Node]) -> list[bytes]:
    return [node.id for node in nodes]


def occupied(want: Want, table: Table, node: Node) -> int:
    """Slots that a class may come to use on a node: nobody is stopped, the table is filled."""
    return max(want.in_use.get(node.id, 0), table.get(want.key, {}).get(node.id, 0))


def grown(want: Want, table: Table) -> int:
    """Slots beyond what the class uses now."""
    rows = table.get(want.key, {})
    return sum(max(0, slots - want.in_use.get(node, 0)) for node, slots in rows.items())


def books(cluster: Cluster, table: Table) -> dict[bytes, Ledger]:
    """Ledgers after everything in the table is taken; fails where it does not fit."""
    ledgers = {node.id: Ledger(node.cpu_units, node.memory_bytes) for node in cluster.nodes}
    for node in cluster.nodes:
        for want in cluster.wants:
            for _ in range(occupied(want, table, node)):
                ask = want.requirement.alternatives[0]
                assert ledgers[node.id].take(ask), "given out twice"
    return ledgers


def able(want: Want, node: Node) -> bool:
    """May the class grow on that node at all?"""
    there = fits(want.requirement, node.caps, node.text) >= 0
    return there and node.id not in want.avoid


# --- what must be true of every table -------------------------------------------------------------


@CHECK
@given(clusters(reserve=True))
def test_no_ledger_is_given_out_twice(cluster: Cluster) -> None:
    """R-alloc-4: nobody is pre-empted, so what is used and what is granted fit together."""
    books(cluster, cluster.table())


@CHECK
@given(clusters(reserve=True))
def test_nothing_is_granted_where_it_does_not_fit(cluster: Cluster) -> None:
    """R-alloc-1: only nodes that can run it, and none that its owner avoids."""
    table = cluster.table()
    for want in cluster.wants:
        for node in cluster.nodes:
            if table[want.key].get(node.id, 0) > want.in_use.get(node.id, 0):
                assert able(want, node)


@CHECK
@given(clusters(reserve=True))
def test_reserved_nodes_are_back_filled_only(cluster: Cluster) -> None:
    """R-alloc-5: to nobody else but classes whose mean is a quarter of the longest there."""
    table = cluster.table()
    for node_id_ in cluster.reserved:
        users = [want for want in cluster.wants if want.in_use.get(node_id_)]
        longest_ms = max((want.mean_ms for want in users), default=0)
        for want in cluster.wants:
            if table[want.key].get(node_id_):
                event("back-filled")
                assert 0 < 4 * want.mean_ms <= longest_ms
                assert want.queued


@CHECK
@given(clusters(unit=True))
def test_no_slot_idles_while_somebody_waits_for_it(cluster: Cluster) -> None:
    """Section 9: a free slot goes to whoever can use it."""
    table = cluster.table()
    left = books(cluster, table)
    for want in cluster.wants:
        waiting = want.queued - grown(want, table)
        free = [
            node
            for node in cluster.nodes
            if able(want, node) and left[node.id].room_for(want.requirement.alternatives[0])
        ]
        assert waiting <= 0 or not free


@CHECK
@given(clusters(unit=True))
def test_nobody_grows_before_a_higher_priority(cluster: Cluster) -> None:
    """R-alloc-2: first priority; of a class that has nothing, waiting raises one slot."""
    table = cluster.table()
    for high in cluster.wants:
        if high.queued <= grown(high, table):
            continue
        for low in cluster.wants:
            if low.priority >= high.priority:
                continue
            took = sum(
                max(0, table[low.key].get(node.id, 0) - low.in_use.get(node.id, 0))
                for node in cluster.nodes
                if able(high, node)
            )
            # What it has where the higher one cannot run anyway is nobody's business.
            allowed = not low.in_use and raised(low) >= high.priority
            assert took <= allowed, "a lower priority took the slot"


def raised(want: Want) -> int:
    """Priority of the slot that the oldest task waits for: one step per 30 s."""
    return want.priority + (want.oldest_wait_ms // AGEING_MS if want.queued else 0)


@CHECK
@given(
    some_nodes(alike=True),
    st.lists(st.sampled_from(("ada", "bob", "eve")), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_equal_users_get_equal_shares(nodes: list[Node], users: list[str], wait: int) -> None:
    """R-alloc-2: users by share, however many classes and owners each of them has."""
    needs = Needs()
    wants = [
        Want(
            node_id(number),
            1,
            needs.to_wire(),
            needs.requirement,
            user=user,
            queued=100,
            oldest_wait_ms=wait * number,
        )
        for number, user in enumerate(users)
    ]
    table = allocate(nodes, wants, {}, Fit())
    shares = Counter(dict.fromkeys(users, 0))
    for want in wants:
        shares[want.user] += sum(table[want.key].values())
    assert sum(shares.values()) == 4 * len(nodes)
    assert max(shares.values()) - min(shares.values()) <= 1


@CHECK
@given(clusters(reserve=True), st.randoms(use_true_random=False))
def test_a_table_is_a_function_of_its_inputs(cluster: Cluster, random: Random) -> None:
    """R-alloc-2: a pure function: the order in which they were heard says nothing."""
    first = cluster.table()
    nodes, wants = list(cluster.nodes), list(cluster.wants)
    random.shuffle(nodes)
    random.shuffle(wants)
    assert allocate(nodes, wants, cluster.reserved, Fit()) == first


@CHECK
@given(clusters(unit=True, busy=False))
def test_a_table_that_is_followed_stays(cluster: Cluster) -> None:
    """R-alloc-2: a class is put where it already is: who has its share keeps it."""
    for want in cluster.wants:
        want.queued, want.avoid = 40, frozenset()
    first = cluster.table()
    for want in cluster.wants:
        want.in_use = dict(first[want.key])
    assert cluster.table() == first


# --- the twin -------------------------------------------------------------------------------------


def twin(cluster: Cluster) -> Table:
    """Deal an idle cluster slot by slot, looking at everything again for each slot."""
    free = {node.id: [node.cpu_units, node.memory_bytes] for node in cluster.nodes}
    table: Table = {want.key: {} for want in cluster.wants}
    share = Counter({want.user: 0.0 for want in cluster.wants})
    left = {want.key: want.queued for want in cluster.wants}

    def fits_now(want: Want, node: Node) -> bool:
        ask = want.requirement.alternatives[0]
        room = free[node.id]
        return able(want, node) and ask.cpu_units <= room[0] and ask.memory_bytes <= room[1]

    def take(want: Want, node: Node) -> None:
        ask = want.requirement.alternatives[0]
        free[node.id][0] -= ask.cpu_units
        free[node.id][1] -= ask.memory_bytes
        table[want.key][node.id] = table[want.key].get(node.id, 0) + 1

    while True:
        candidates = [
            want
            for want in cluster.wants
            if left[want.key] and any(fits_now(want, node) for node in cluster.nodes)
        ]
        if not candidates:
            break
        want = min(
            candidates,
            key=lambda one: (
                -(one.priority if table[one.key] else raised(one)),
                share[one.user],
                one.user,
                -one.oldest_wait_ms,
                one.owner,
                one.cls,
            ),
        )
        node = min(
            (one for one in cluster.nodes if fits_now(want, one)),
            key=lambda one: (-one.speed, one.id),
        )
        take(want, node)
        left[want.key] -= 1
        share[want.user] += node.speed
    order = sorted(
        cluster.wants,
        key=lambda one: (-one.priority, not one.queued, -one.oldest_wait_ms, one.owner, one.cls),
    )
    for node in sorted(cluster.nodes, key=lambda one: one.id):
        while any(fits_now(want, node) for want in order):
            for want in order:
                if fits_now(want, node):
                    take(want, node)
    return table


@CHECK
@given(clusters(busy=False))
def test_an_idle_cluster_is_dealt_as_the_twin_deals_it(cluster: Cluster) -> None:
    """R-alloc-2: priority, users by share times speed, oldest wait, faster nodes, leftovers."""
    assert cluster.table() == twin(cluster)
