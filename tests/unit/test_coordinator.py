"""The coordinator: Demands and supplies in, Allocations out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Epoch, incarnation
from blackroad.router.coordinator import Coordinator
from blackroad.router.effects import Outbox, Send
from tests.unit.builders import FOURTH, INC, ME, NEEDS, OTHER, PEER, caps, supply

EPOCH = Epoch(5, ME)
CAPS = caps()
NEWER = incarnation(8, 1)


class Bench:
    """A coordinator that began its reign at 0 and is matching since 500."""

    def __init__(self, *nodes: bytes, listen: bool = False) -> None:
        self.out = Outbox(FOURTH)
        self.it = Coordinator(FOURTH, self.out)
        self.it.begin(EPOCH, 0)
        for node in nodes or (PEER,):
            self.it.on_supply(node, "x", CAPS, supply())
        if not listen:
            assert self.settle(500) == []

    def settle(self, now_ms: int) -> list[m.Allocation]:
        """End the turn; return who was told what."""
        self.it.settle(now_ms)
        effects = self.out.take()
        assert all(isinstance(one, Send) for one in effects)
        return [(one.to, one.message) for one in effects]

    def demand(self, now_ms: int, *classes: m.ClassDemand, **changes: Any) -> list:
        owner = changes.pop("owner", ME)
        fields = {"inc": INC, "seq": 1, "classes": classes, "avoid": (), **changes}
        self.it.on_demand(owner, m.Demand(**fields), now_ms)
        return self.settle(now_ms)


def one(cls: int = 1, queued: int = 9, **changes: Any) -> m.ClassDemand:
    fields: dict[str, Any] = {
        "cls": cls,
        "needs": NEEDS,
        "priority": 0,
        "user": "",
        "gang": 1,
        "exclusive": False,
        "queued": queued,
        "oldest_wait_ms": 0,
        "mean_ms": 0,
        "in_use": (),
    }
    return m.ClassDemand(**{**fields, **changes})


def used(node: bytes, slots: int = 1) -> tuple[m.InUse, ...]:
    return (m.InUse(node, slots),)


def table(seq: int, *rows: tuple[int, bytes, int], demand: int = 1, inc: int = INC) -> m.Allocation:
    return m.Allocation(EPOCH, seq, inc, demand, tuple(m.Row(*row) for row in rows))


# --- reign ----------------------------------------------------------------------------------------


def test_nobody_is_left_to_listen_for() -> None:
    """R-alloc-6: the first table leaves once all have spoken, and no earlier."""
    bench = Bench(listen=True)
    bench.it.begin(EPOCH, 0, (ME, PEER))
    for node in (FOURTH, ME):
        bench.it.on_supply(node, "x", CAPS, supply())
    assert bench.demand(10, owner=FOURTH) == []
    assert bench.demand(20, one()) == []
    # One that still follows somebody else is waited for, and so is its supply.
    bench.it.forget_node(PEER)
    bench.it.forget_owner(PEER)
    assert bench.demand(30, owner=PEER) == []
    bench.it.on_supply(PEER, "x", CAPS, supply())
    assert [to for to, _ in bench.settle(40)] == [ME, PEER]


def test_the_dead_are_not_listened_for() -> None:
    bench = Bench(listen=True)
    bench.it.begin(EPOCH, 0, (ME, PEER))
    bench.it.on_supply(ME, "x", CAPS, supply())
    assert bench.demand(10, owner=FOURTH) == bench.demand(20, one()) == []
    bench.it.forget(PEER)
    assert bench.settle(30) != []


def test_it_listens_before_its_first_table() -> None:
    """R-alloc-6: a new coordinator listens for 2 H before its first."""
    bench = Bench(listen=True)
    assert bench.demand(10, one()) == []
    assert bench.it.next_deadline_ms() == 500
    assert bench.settle(499) == []
    assert bench.settle(500) == [(ME, table(1, (1, PEER, 4)))]


def test_nobody_is_told_anything_without_a_reign() -> None:
    """R-alloc-1: stepping down, it forgets all three."""
    bench = Bench()
    bench.demand(600, one())
    bench.it.stop()
    assert (bench.it.nodes, bench.it.owners, len(bench.it.reservations)) == ({}, {}, 0)
    assert bench.demand(900, one(), seq=2) == []
    assert bench.it.next_deadline_ms() == 2**62


def test_a_new_reign_counts_from_one_and_knows_nobody() -> None:
    """R-alloc-3: (incarnation, epoch, seq) orders tables; the epoch is newer."""
    bench = Bench()
    bench.demand(600, one())
    bench.it.begin(Epoch(6, FOURTH), 1000)
    assert bench.settle(1500) == []
    told = bench.demand(1600, one(), seq=2)
    assert told == [(ME, m.Allocation(Epoch(6, FOURTH), 1, INC, 2, ()))]


# --- Demand ---------------------------------------------------------------------------------------


def test_a_new_class_is_answered_early() -> None:
    """R-alloc-6: a class that was not there before may be answered after 10 ms."""
    bench = Bench()
    assert bench.demand(510, one()) == [(ME, table(1, (1, PEER, 4)))]
    assert bench.demand(515, one(), one(2), seq=2) == []
    assert bench.it.next_deadline_ms() == 520
    told = bench.settle(520)
    assert [(to, got.seq, got.demand_seq) for to, got in told] == [(ME, 2, 2)]


def test_a_class_that_begins_to_want_is_answered_early() -> None:
    """R-alloc-6: what wants nothing and then something was not waited for before."""
    bench = Bench()
    assert bench.demand(510, one(queued=0)) != []
    assert bench.demand(515, one(queued=1), seq=2) == []
    assert bench.it.next_deadline_ms() == 520
    assert [got.demand_seq for _, got in bench.settle(520)] == [2]
    assert bench.demand(525, one(queued=9), seq=3) == []
    assert bench.it.next_deadline_ms() == 620


def test_early_tables_of_a_large_mesh_are_further_apart() -> None:
    """R-alloc-6: a table costs by nodes and classes, and shall not take all of a processor."""
    bench = Bench(*[bytes([number]) * 16 for number in range(1, 101)])
    classes = [one(number) for number in range(1, 41)]
    # The last table was of 500 ms.
    assert bench.demand(510, *classes) == []
    assert bench.it.next_deadline_ms() == 500 + 10 + 40
    assert bench.settle(550) != []
    more = [one(number) for number in range(1, 200)]
    assert bench.demand(551, *more, seq=2) == []
    assert bench.it.next_deadline_ms() == 550 + 100


def test_tables_leave_100_ms_apart() -> None:
    """R-alloc-6: what is not new waits."""
    bench = Bench()
    bench.demand(510, one())
    assert bench.demand(520, one(queued=8, in_use=used(PEER, 4)), seq=2) == []
    assert bench.it.next_deadline_ms() == 610
    assert bench.settle(609) == []
    assert bench.settle(610) == [(ME, table(2, (1, PEER, 4), demand=2))]


def test_every_owner_whose_rows_change_is_told_in_the_same_turn() -> None:
    """R-alloc-6: and whose rows stay is not."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, one(queued=4, in_use=used(PEER, 4)))
    told = bench.demand(600, one(queued=0, in_use=used(OTHER, 3)), owner=PEER)
    assert [to for to, _ in told] == [ME, PEER]
    assert told[0][1].demand_seq == 1
    assert bench.demand(700, one(queued=0, in_use=used(OTHER, 3)), owner=PEER, seq=2) == [
        (PEER, m.Allocation(EPOCH, 4, INC, 2, told[1][1].rows))
    ]


def test_tables_are_restated() -> None:
    """R-alloc-6: every 4 H."""
    bench = Bench()
    bench.demand(510, one())
    assert bench.it.next_deadline_ms() == 1510
    assert bench.settle(1509) == []
    assert bench.settle(1510) == [(ME, table(2, (1, PEER, 4)))]


@pytest.mark.parametrize(
    ("inc", "seq", "taken"), [(INC, 2, False), (INC, 1, False), (INC, 3, True), (NEWER, 1, True)]
)
def test_a_newer_demand_replaces_the_older(inc: int, seq: int, taken: bool) -> None:
    """R-alloc-1, Demand: a newer (inc, seq) replaces the older."""
    bench = Bench()
    bench.demand(510, one(), seq=2)
    told = bench.demand(700, one(queued=1), one(2, queued=1), inc=inc, seq=seq)
    assert [(got.inc, got.demand_seq) for _, got in told] == ([(inc, seq)] if taken else [])


def test_an_empty_demand_is_answered() -> None:
    """R-demand-7: every follower sends one, even an empty one, and waits for the answer."""
    bench = Bench()
    assert bench.demand(510) == [(ME, table(1))]


def test_a_class_that_cannot_be_read_gets_nothing() -> None:
    """R-frame-3: needs from a later version are not guessed at."""
    bench = Bench()
    assert bench.demand(510, one(needs=b"\xff"), one(2)) == [(ME, table(1, (2, PEER, 4)))]


def test_high_priorities_come_first_in_the_rows() -> None:
    """Limits: an Allocation has 2800 rows; the least important are left out."""
    bench = Bench()
    [(_, got)] = bench.demand(510, one(1, 2), one(2, 2, priority=7))
    assert [row.cls for row in got.rows] == [2, 1]


# --- supplies -------------------------------------------------------------------------------------


def test_only_nodes_that_follow_and_do_not_drain_are_given_out() -> None:
    """R-alloc-1: unknown, draining or gone nodes are in nobody's table."""
    bench = Bench(PEER, OTHER)
    bench.it.on_supply(FOURTH, "y", None, supply())
    bench.demand(510, one())
    bench.it.on_supply(PEER, "x", CAPS, supply(draining=True))
    assert bench.settle(610) == [(ME, table(2, (1, OTHER, 4)))]
    bench.it.forget_node(OTHER)
    assert bench.settle(710) == [(ME, table(3))]


def test_a_larger_supply_is_seen() -> None:
    """R-alloc-1: the last Heartbeat of each node."""
    bench = Bench()
    bench.demand(510, one())
    bench.it.on_supply(PEER, "x", CAPS, supply())
    assert bench.settle(610) == []
    bench.it.on_supply(PEER, "x", CAPS, supply(8))
    assert bench.settle(620) == [(ME, table(2, (1, PEER, 8)))]


def test_an_owner_that_is_gone_wants_nothing() -> None:
    """R-alloc-1: its slots go to others."""
    bench = Bench()
    bench.demand(510, one(in_use=used(PEER, 4)))
    bench.demand(620, one(), owner=OTHER)
    bench.it.forget_owner(ME)
    assert bench.settle(720) == [(OTHER, table(3, (1, PEER, 4)))]


# --- reservations ---------------------------------------------------------------------------------


def gang(**changes: Any) -> m.ClassDemand:
    return one(7, 1, gang=2, **changes)


def test_a_gangs_rows_appear_together() -> None:
    """R-alloc-5: one slot on each reserved node, when the others' in_use is 0 on all."""
    bench = Bench(PEER, OTHER)
    assert bench.demand(510, gang()) == [(ME, table(1, (7, PEER, 1), (7, OTHER, 1)))]


def test_a_gang_waits_until_its_nodes_are_empty() -> None:
    """R-alloc-5: a reserved node goes to nobody else, and is offered when it is empty."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, one(in_use=used(PEER)), owner=OTHER)
    told = dict(bench.demand(620, gang()))
    assert told[ME].rows == ()
    assert told[OTHER].rows == ()
    told = dict(bench.demand(730, one(), owner=OTHER, seq=2))
    assert told[ME].rows == (m.Row(7, PEER, 1), m.Row(7, OTHER, 1))
    assert told[OTHER].rows == ()


def test_too_few_nodes_reserve_none() -> None:
    """R-alloc-5: what cannot be gathered keeps nobody waiting."""
    bench = Bench(PEER)
    assert bench.demand(510, gang(), one()) == [(ME, table(1, (1, PEER, 4)))]


def test_the_emptiest_nodes_are_reserved() -> None:
    """R-alloc-5: an exclusive class gets the node that is soonest its own."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, one(in_use=used(PEER)), owner=OTHER)
    told = dict(bench.demand(620, one(7, 1, exclusive=True)))
    assert told[ME].rows == (m.Row(7, OTHER, 1),)
    assert told[OTHER].rows == (m.Row(1, PEER, 4),)


def test_an_unused_offer_is_put_aside() -> None:
    """R-alloc-5: unused for 10 s: put aside for 5 s, doubled up to 120 s."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, gang())
    rows_at: list[tuple[int, bool]] = [(510, True)]
    for now_ms in range(600, 60_000, 100):
        for _, got in bench.settle(now_ms):
            if bool(got.rows) != rows_at[-1][1]:
                rows_at.append((now_ms, bool(got.rows)))
    spans = [later[0] - now[0] for now, later in itertools.pairwise(rows_at)]
    assert spans[:5] == pytest.approx([10_000, 5_000, 10_000, 10_000, 10_000], abs=200)


def test_a_used_offer_stays() -> None:
    """R-alloc-5: the reservation lasts while the class uses it, and goes with it."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, gang())
    using = (m.InUse(PEER, 1), m.InUse(OTHER, 1))
    for seq, now_ms in enumerate(range(5_000, 40_000, 5_000), 2):
        bench.demand(now_ms, one(7, 0, gang=2, in_use=using), seq=seq)
        assert len(bench.it.reservations) == 1
    bench.demand(40_000, one(7, 0, gang=2), seq=99)
    assert not bench.it.reservations


def test_a_lost_node_frees_the_reservation() -> None:
    """R-alloc-1: what is not in the pool cannot be kept."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, gang(), one())
    bench.it.forget_node(OTHER)
    [(_, got)] = bench.settle(620)
    assert got.rows == (m.Row(1, PEER, 4),)


def test_a_new_coordinator_keeps_what_a_gang_already_uses() -> None:
    """R-alloc-5: a reserved node goes to nobody else; in_use tells what was reserved."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, one(7, 0, exclusive=True, in_use=used(PEER)))
    told = dict(bench.demand(620, one(), owner=OTHER))
    assert told[OTHER].rows == (m.Row(1, OTHER, 4),)


def exclusive(queued: int, **changes: Any) -> m.ClassDemand:
    return one(7, queued, exclusive=True, **changes)


def test_an_exclusive_class_gets_every_node_that_nobody_else_wants() -> None:
    """R-alloc-5: one reservation per node, as many as there are tasks."""
    bench = Bench(PEER, OTHER, FOURTH)
    assert bench.demand(510, exclusive(2)) == [(ME, table(1, (7, PEER, 1), (7, OTHER, 1)))]
    in_use = (m.InUse(PEER, 1), m.InUse(OTHER, 1))
    [(_, got)] = bench.demand(620, exclusive(5, in_use=in_use), seq=2)
    assert got.rows == (m.Row(7, PEER, 1), m.Row(7, OTHER, 1), m.Row(7, FOURTH, 1))
    bench.demand(730, exclusive(0, in_use=used(OTHER, 1)), seq=3)
    assert [kept.nodes for kept in bench.it.reservations] == [(OTHER,)]


def test_an_exclusive_class_leaves_to_others_what_they_wait_for() -> None:
    """R-alloc-5: beyond its one reservation it takes only idle nodes, and gives them back."""
    bench = Bench(PEER, OTHER, FOURTH)
    bench.demand(510, exclusive(9))
    in_use = tuple(m.InUse(node, 1) for node in (PEER, OTHER, FOURTH))
    bench.demand(620, exclusive(6, in_use=in_use), seq=2)
    bench.demand(730, one(), owner=OTHER)
    told = dict(bench.demand(840, exclusive(6, in_use=in_use[2:]), seq=3))
    assert told[ME].rows == (m.Row(7, FOURTH, 1),)
    assert {row.node for row in told[OTHER].rows} == {PEER, OTHER}


def test_an_exclusive_class_that_comes_first_does_not_wait_for_the_last() -> None:
    """R-alloc-2: those of lower priority contend for nothing."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, one(queued=9), owner=OTHER)
    told = dict(bench.demand(620, exclusive(2, priority=5)))
    assert told[ME].rows == (m.Row(7, PEER, 1), m.Row(7, OTHER, 1))
    assert told[OTHER].rows == ()


def test_idle_nodes_are_left_to_a_gang_that_gathers_them() -> None:
    """R-alloc-5: an exclusive class must not eat a gang's nodes one by one."""
    bench = Bench(PEER, OTHER)
    bench.demand(510, one(8, 1, exclusive=True, oldest_wait_ms=900), owner=OTHER)
    told = dict(bench.demand(620, gang()))
    assert told[ME].rows == ()
    bench.demand(730, one(8, 5, exclusive=True, in_use=used(PEER, 1)), owner=OTHER, seq=2)
    assert [kept.nodes for kept in bench.it.reservations] == [(PEER,)]


def test_who_was_put_aside_comes_last() -> None:
    """R-alloc-5: at the end of the line."""
    bench = Bench(PEER)
    bench.demand(510, one(7, 1, exclusive=True, oldest_wait_ms=900))
    bench.settle(10_600)
    told = dict(bench.demand(16_000, one(8, 1, exclusive=True), owner=OTHER))
    assert told[OTHER].rows == (m.Row(8, PEER, 1),)
