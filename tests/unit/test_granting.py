"""Where an owner's tasks go: table, prefetch, order of nodes, back-off; and its Demand."""

from __future__ import annotations

from typing import Any

import pytest

from blackroad.bus import messages as m
from blackroad.ids import Epoch
from blackroad.requirements import Needs
from blackroad.router.effects import Effect
from tests.unit.builders import (
    CLIENT,
    FOURTH,
    INC,
    ME,
    NEEDS,
    OTHER,
    PEER,
    OwnerBench,
    of_kind,
    outcome,
    renew,
    spec,
    submit,
    task_id,
)

EPOCH = Epoch(5, OTHER)


def table(
    bench: OwnerBench,
    *rows: tuple[int, bytes, int],
    seq: int = 1,
    epoch: Epoch = EPOCH,
    demand: int = 1,
    node: bytes = OTHER,
    inc: int = INC,
) -> bool:
    told = m.Allocation(epoch, seq, inc, demand, tuple(m.Row(*row) for row in rows))
    return bench.owner.on_allocation(node, told, 0)


def grants(effects: list[Effect]) -> list[bytes]:
    """Where Grants went, in order."""
    return [one.to for one in effects if of_kind([one], m.Grant)]


def demands(bench: OwnerBench, now_ms: int) -> list[m.Demand]:
    bench.owner.tick(now_ms)
    return of_kind(bench.turn(now_ms, demands=True), m.Demand)


def learn(bench: OwnerBench, node: bytes, mean_us: int) -> None:
    """The class's mean on that node is known."""
    cls = bench.owner.by_id[1]
    cls.use(node).mean_us = mean_us
    cls.mean_us = cls.mean_us or mean_us


def asking(count: int = 1, nodes: tuple[bytes, ...] = (PEER, FOURTH), **changes: Any) -> OwnerBench:
    """An owner with that many tasks queued and no table."""
    bench = OwnerBench(nodes=nodes)
    bench.submit(*range(1, count + 1), **changes)
    return bench


# --- the table ------------------------------------------------------------------------------------


def test_a_class_keeps_to_its_rows() -> None:
    """R-demand-1: per class and node at most allocation + prefetch; no prefetch unmeasured."""
    bench = asking(5)
    table(bench, (1, PEER, 2), (1, FOURTH, 1))
    assert grants(bench.turn(10)) == [PEER, PEER, FOURTH]


def test_rows_of_unknown_classes_and_nodes_are_harmless() -> None:
    """Mutant "mad coordinator": owners check what they are told."""
    bench = asking(2)
    table(bench, (99, PEER, 5), (1, b"x" * 16, 5), (1, FOURTH, 1))
    assert grants(bench.turn(10)) == [FOURTH]


def test_a_table_replaces_what_was_there() -> None:
    """Allocation: the whole table."""
    bench = asking(1)
    table(bench, (1, PEER, 1))
    table(bench, seq=2)
    assert grants(bench.turn(10)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"node": FOURTH},
        {"inc": INC - 1},
        {"seq": 1},
        {"epoch": Epoch(4, OTHER), "seq": 9},
    ],
)
def test_only_a_newer_table_of_the_followed_counts(changes: dict[str, Any]) -> None:
    """R-alloc-3: from the coordinator it follows, for this life of mine, newer than the last."""
    bench = asking(1)
    table(bench)
    assert table(bench, (1, PEER, 1), **{"seq": 2, **changes}) is False
    assert grants(bench.turn(10)) == []


def test_a_table_of_another_life_of_the_coordinator_is_dropped() -> None:
    """R-alloc-3: the incarnation is the one that the link belongs to."""
    bench = asking(1)
    bench.owner.granting.on_follow(OTHER, bench.owner.classes, INC)
    rows = (m.Row(1, PEER, 1),)
    older = m.Allocation(EPOCH, 9, INC, 1, rows)
    assert bench.owner.on_allocation(OTHER, older, INC - (1 << 32)) is False
    assert grants(bench.turn(10)) == []
    bench.owner.on_allocation(OTHER, m.Allocation(EPOCH, 1, INC, 1, rows), INC)
    assert grants(bench.turn(20)) == [PEER]


def test_a_higher_epoch_is_newer() -> None:
    """R-alloc-3: (epoch, seq)."""
    bench = asking(1)
    table(bench, seq=9)
    table(bench, (1, PEER, 1), epoch=Epoch(6, OTHER))
    assert grants(bench.turn(10)) == [PEER]


def test_only_an_answer_to_a_demand_since_i_follow_counts_as_an_answer() -> None:
    """R-elect-1: any table is used, but not every table is an answer."""
    bench = asking(1)
    sent = bench.owner.granting.demand_seq
    assert table(bench, demand=sent) is True
    bench.owner.granting.on_follow(FOURTH, bench.owner.classes)
    assert table(bench, (1, PEER, 1), node=FOURTH, demand=sent) is False
    assert grants(bench.turn(10)) == [PEER]
    assert table(bench, node=FOURTH, seq=2, demand=sent + 1) is True


@pytest.mark.parametrize("why", ["suspect", "absent", "draining", "avoided"])
def test_nothing_goes_to_a_node_that_cannot_take_it(why: str) -> None:
    """R-lease-4, R-demand-3, R-life-8: no new work for the silent, draining or avoided."""
    bench = asking(1)
    view = bench.owner.view.get(PEER)
    match why:
        case "suspect":
            bench.owner.on_suspect(PEER, 5000)
        case "absent":
            view.present = False
        case "draining":
            view.draining = True
        case _:
            view.avoid_until_ms = 10_000
    table(bench, (1, PEER, 1))
    assert grants(bench.turn(5000)) == []


# --- own worker -----------------------------------------------------------------------------------


def own(bench: OwnerBench, room: int) -> OwnerBench:
    """Let the owner's own worker have room."""
    bench.owner.granting._room_here = lambda _ask: room
    return bench


def test_without_a_coordinator_an_owner_uses_its_own_worker() -> None:
    """R-demand-5: it uses its own worker without a table only if it follows nobody."""
    bench = own(OwnerBench(), 1)
    bench.owner.granting.coordinator = b""
    assert grants(bench.submit(1, 2)) == [ME]


def test_it_waits_for_an_answer_first() -> None:
    """R-demand-5: or if a Demand naming the class stays unanswered for 500 ms."""
    bench = own(OwnerBench(), 1)
    assert grants(bench.submit(1)) == []
    assert grants(bench.tick(499)) == []
    assert grants(bench.tick(600)) == [ME]


def test_an_answer_without_rows_keeps_it_waiting() -> None:
    """R-demand-5: a table that answers is an answer, whatever it says."""
    bench = own(asking(1), 1)
    bench.turn(100)
    table(bench, demand=bench.owner.granting.demand_seq)
    assert grants(bench.tick(2000)) == []


def test_a_gang_does_not_run_alone() -> None:
    """R-gang-1: rows on all its nodes, or nothing."""
    bench = own(OwnerBench(nodes=(PEER, FOURTH)), 4)
    bench.owner.granting.coordinator = b""
    assert grants(bench.submit(1, spec=spec(gang=2))) == []


# --- order and prefetch ---------------------------------------------------------------------------


def test_nodes_are_filled_fastest_first() -> None:
    """R-demand-2: as measured for the class; an unmeasured one measures first."""
    bench = asking(3)
    learn(bench, PEER, 9_000_000)
    learn(bench, FOURTH, 5_000_000)
    table(bench, (1, PEER, 1), (1, FOURTH, 1))
    assert grants(bench.turn(10)) == [FOURTH, PEER]


def test_a_slow_node_does_not_start_the_last_task() -> None:
    """R-demand-2, tail rule: not where the faster would drain the class meanwhile."""
    bench = asking(2)
    learn(bench, PEER, 1_000_000)
    learn(bench, FOURTH, 10_000_000)
    table(bench, (1, PEER, 1), (1, FOURTH, 1))
    assert grants(bench.turn(10)) == [PEER]


def test_a_slow_node_helps_with_many() -> None:
    """R-demand-2: its mean is below what the faster ones need, plus 1.5 of their best."""
    bench = asking(10)
    learn(bench, PEER, 1_000_000)
    learn(bench, FOURTH, 10_000_000)
    table(bench, (1, PEER, 1), (1, FOURTH, 1))
    assert grants(bench.turn(10)) == [PEER, FOURTH]


@pytest.mark.parametrize(
    ("mean_us", "slots", "ahead"),
    [
        (0, 4, 0),
        (1_000_000, 4, 0),
        (999_999, 1, 1),
        (50_000, 1, 2),
        (50_000, 4, 8),
        (30_000, 1, 4),
        (1, 1, 16),
        (1, 4, 64),
        (10_000, 0, 0),
    ],
)
def test_prefetch(mean_us: int, slots: int, ahead: int) -> None:
    """R-demand-1: min(16*a, ceil(a * 100 ms / mean)); 0 for unknown means or 1 s and more."""
    bench = asking(1)
    use = bench.owner.by_id[1].use(PEER)
    use.mean_us = mean_us
    assert bench.owner.granting.prefetch(use, slots) == ahead


def test_prefetched_tasks_follow_the_slots() -> None:
    """R-demand-1: slots first, then what waits in the worker."""
    bench = asking(9)
    learn(bench, PEER, 50_000)
    table(bench, (1, PEER, 2))
    assert len(grants(bench.turn(10))) == 2 + 4
    use = bench.owner.by_id[1].use(PEER)
    assert (use.live, use.ahead, use.in_use()) == (6, 4, 2)


@pytest.mark.parametrize("changes", [{"exclusive": True}, {"gang": 2}])
def test_whole_nodes_are_not_prefetched(changes: dict[str, Any]) -> None:
    """R-demand-1: 0 for gangs and exclusive tasks."""
    bench = asking(9, spec=spec(**changes))
    learn(bench, PEER, 50_000)
    learn(bench, FOURTH, 50_000)
    table(bench, (1, PEER, 1), (1, FOURTH, 1))
    assert len(grants(bench.turn(10))) == 2


def test_waiting_tasks_are_recalled_when_a_node_idles() -> None:
    """R-demand-2: queue empty and an allocated node idle: surplus is recalled, once."""
    bench = asking(3)
    learn(bench, PEER, 90_000)
    table(bench, (1, PEER, 1))
    assert len(grants(bench.turn(10))) == 3
    tokens = sorted(bench.owner.attempts)
    listed = [(token, m.AttemptState.WAITING) for token in tokens[1:]]
    first = (tokens[0], m.AttemptState.RUNNING)
    bench.owner.on_renew(PEER, renew(900, first, *listed), 100)
    table(bench, (1, PEER, 1), (1, FOURTH, 1), seq=2)
    recalls = [one for at in range(200, 2000, 100) for one in of_kind(bench.tick(at), m.Recall)]
    assert recalls == [m.Recall(tokens[-1], False)]


def test_what_waits_behind_a_long_one_wants_the_slot_beside_it() -> None:
    """R-demand-2, R-demand-6: the mean says 3 ms, and the one before it runs and runs."""
    bench = asking(2, nodes=(PEER,))
    learn(bench, PEER, 3_000)
    table(bench, (1, PEER, 1))
    assert len(grants(bench.turn(10))) == 2
    [first, second] = sorted(bench.owner.attempts)
    states = ((first, m.AttemptState.RUNNING), (second, m.AttemptState.WAITING))
    bench.owner.on_renew(PEER, renew(100, *states), 100)
    stated = [one for at in range(100, 1000, 100) for one in demands(bench, at)][-1].classes[0]
    assert (stated.queued, [one.slots for one in stated.in_use]) == (1, [1])
    table(bench, (1, PEER, 2), seq=2)
    recalls = [one for at in range(1000, 2000, 100) for one in of_kind(bench.tick(at), m.Recall)]
    assert recalls == [m.Recall(second, False)]


# --- back-off and avoidance -----------------------------------------------------------------------


def refuse(bench: OwnerBench, reason: m.Reason, now_ms: int) -> None:
    [token] = bench.owner.attempts
    bench.owner.on_refused(PEER, m.Refused(token, INC, 1, reason), now_ms)
    bench.turn(now_ms)


def backs_off(reason: m.Reason, times: int) -> list[int]:
    """After how many ms, in steps of 100, a Grant goes to the refusing node again."""
    bench = asking(1, nodes=(PEER,))
    table(bench, (1, PEER, 1))
    bench.turn(0)
    waits, now_ms = [], 0
    for _ in range(times):
        refuse(bench, reason, now_ms)
        asked_ms = now_ms
        while not bench.owner.attempts:
            now_ms += 100
            assert now_ms < 60_000
            bench.beat(PEER, now_ms)
            bench.tick(now_ms)
        waits.append(now_ms - asked_ms)
    return waits


@pytest.mark.parametrize(
    "reason", [m.Reason.FULL, m.Reason.LATE, m.Reason.DRAINING, m.Reason.NO_SPACE]
)
def test_a_class_leaves_a_full_node_alone(reason: m.Reason) -> None:
    """R-demand-8: 0.5 s, doubled up to 8 s."""
    assert backs_off(reason, 6) == [500, 1000, 2000, 4000, 8000, 8000]


def test_no_grant_with_a_stamp_older_than_half_the_lease() -> None:
    """R-lease-4: at the worker it would arrive late, were T_suspect ever so long."""
    bench = asking(1, nodes=(PEER,))
    bench.owner.granting.lease_ms = 5_000
    view = bench.owner.view.nodes[PEER]
    view.suspect, view.fresh_ms = True, 6_000
    table(bench, (1, PEER, 1))
    assert not grants(bench.turn(2_501))
    bench.beat(PEER, 2_600)
    bench.tick(2_600)
    assert bench.owner.attempts or grants(bench.tick(2_700))


def test_needs_are_asked_again_after_thirty_beats() -> None:
    """R-demand-8: after *needs* for 30 H, by when new Capabilities have come."""
    assert backs_off(m.Reason.NEEDS, 2) == [7500, 7500]


def test_a_node_where_a_bound_passed_is_left_out() -> None:
    """R-demand-3: 10 s, four times longer each time, up to 160 s; a *done* forgives."""
    view = OwnerBench().owner.view
    waits, now_ms = [], 0
    for _ in range(4):
        view.avoid(PEER, now_ms, 20_000)
        view.avoid(PEER, now_ms + 19_999, 20_000)
        waits.append(view.get(PEER).avoid_until_ms - now_ms)
        now_ms += 200_000
    assert waits == [10_000, 40_000, 160_000, 160_000]
    view.forgive(PEER)
    view.avoid(PEER, now_ms, 20_000)
    assert view.get(PEER).avoid_until_ms == now_ms + 10_000


def test_nobody_avoids_its_own_node() -> None:
    """R-demand-3."""
    view = OwnerBench().owner.view
    view.avoid(ME, 0, 20_000)
    assert view.avoided(1) == ()


# --- Demand ---------------------------------------------------------------------------------------


def stated(**changes: Any) -> m.ClassDemand:
    fields: dict[str, Any] = {
        "cls": 1,
        "needs": NEEDS,
        "priority": 0,
        "user": "",
        "gang": 1,
        "exclusive": False,
        "queued": 1,
        "oldest_wait_ms": 0,
        "mean_ms": 0,
        "in_use": (),
    }
    return m.ClassDemand(**{**fields, **changes})


def test_an_empty_demand_is_sent_by_every_follower() -> None:
    """R-demand-7: every follower sends one, even an empty one."""
    bench = OwnerBench()
    bench.owner.granting.on_follow(OTHER, bench.owner.classes)
    [told] = demands(bench, 1000)
    assert (told.inc, told.classes, told.avoid) == (INC, (), ())


def test_a_demand_says_everything() -> None:
    """Section 9: the owner's whole state."""
    bench = asking(2, spec=spec(priority=3, user="ada"))
    bench.owner.view.avoid(FOURTH, 0, 1)
    table(bench, (1, PEER, 1))
    bench.turn(0)
    [told] = demands(bench, 3000)[-1:]
    in_use = (m.InUse(PEER, 1),)
    expected = stated(priority=3, user="ada", queued=1, oldest_wait_ms=3000, in_use=in_use)
    assert (told.classes, told.avoid) == ((expected,), (FOURTH,))


def test_prefetch_is_no_occupation() -> None:
    """R-demand-6: `in_use` counts slots, not waiting attempts."""
    bench = asking(9)
    learn(bench, PEER, 50_000)
    table(bench, (1, PEER, 2))
    bench.turn(10)
    [told] = demands(bench, 2000)[-1:]
    assert told.classes[0].in_use == (m.InUse(PEER, 2),)


def test_isolated_classes_count_as_exclusive() -> None:
    """Demand: `exclusive` is set for isolated classes too."""
    bench = asking(1, spec=spec(isolated=True))
    [told] = demands(bench, 2000)[-1:]
    assert told.classes[0].exclusive is True


def asked_at(bench: OwnerBench, *times_ms: int) -> list[tuple[int, int]]:
    """When a Demand left, and how much of the first class it asks for."""
    told = [(at, one) for at in times_ms for one in demands(bench, at)]
    return [(at, one.classes[0].queued) for at, one in told]


def test_a_class_that_begins_to_want_asks_after_10_ms() -> None:
    """R-demand-7: the table was made for one, and more came before the next Demand is due."""
    bench = asking(1)
    table(bench, (1, PEER, 1), demand=9)
    # All of it is granted, so nothing is left to ask for.
    assert asked_at(bench, 1000, 1100) == [(1000, 0)]
    bench.owner.on_submit(CLIENT, submit(2), 1105)
    assert asked_at(bench, *range(1105, 1300)) == [(1105, 1)]
    # From now on it is known to want; more of the same waits.
    bench.owner.on_submit(CLIENT, submit(3), 1110)
    assert asked_at(bench, *range(1110, 1300)) == [(1205, 2)]


@pytest.mark.parametrize(("slots", "asked"), [(1, (1010, 1)), (3, (1100, 0))])
def test_only_who_begins_to_want_asks_early_and_not_at_once(
    slots: int, asked: tuple[int, int]
) -> None:
    """R-demand-7: 10 ms, and a task that found a place is no reason to hurry."""
    bench = asking(1)
    table(bench, (1, PEER, slots), demand=9)
    assert asked_at(bench, 1000) == [(1000, 0)]
    bench.owner.on_submit(CLIENT, submit(2), 1001)
    assert asked_at(bench, *range(1001, 1200)) == [asked]


def test_an_unanswered_demand_is_restated_sooner() -> None:
    """R-demand-7: restated every 5 H, and every 2 H while unanswered."""
    bench = asking(1)
    first = demands(bench, 1000)
    assert first
    assert demands(bench, 1499) == []
    assert len(demands(bench, 1500)) == 1
    table(bench, demand=bench.owner.granting.demand_seq)
    bench.turn(1600, demands=True)
    assert demands(bench, 2600) == []
    assert len(demands(bench, 2900)) == 1


def test_a_class_stays_warm_and_is_forgotten() -> None:
    """Section 9: queue empty, nothing in use: stays in Demand for 10 s, then forgotten."""
    bench = asking(1)
    table(bench, (1, PEER, 1))
    bench.turn(0)
    [token] = bench.owner.attempts
    bench.owner.on_outcome(PEER, outcome(token), 1000)
    bench.turn(1000)
    assert demands(bench, 10_900)[-1].classes[0].queued == 0
    assert demands(bench, 13_000)[-1].classes == ()
    assert bench.owner.by_id == {}


def test_class_numbers_are_never_used_twice() -> None:
    """R-submit-10: within an incarnation."""
    bench = asking(1)
    bench.owner.on_cancel(b"", m.Cancel((task_id(1),)), 0)
    demands(bench, 20_000)
    assert bench.owner.by_id == {}
    bench.submit(2, now_ms=20_100)
    assert list(bench.owner.by_id) == [2]


def test_a_demand_is_bounded_and_leaves_out_the_least_important() -> None:
    """R-demand-7: beyond 256 classes the lowest priorities are left out first."""
    bench = OwnerBench()
    for number in range(300):
        changed = spec(priority=number % 100 - 50, name=str(number))
        bench.submit(number, spec=changed)
    [told] = demands(bench, 5000)[-1:]
    assert len(told.classes) == 256
    left_out = sorted(number % 100 - 50 for number in range(300))[:44]
    assert min(one.priority for one in told.classes) >= max(left_out)


def test_what_no_node_can_run_does_not_keep_places_in_a_full_demand() -> None:
    """R-demand-7: it is left out first, however important and however long it waits."""
    bench = OwnerBench()
    impossible = Needs(cpu=64).to_wire()
    for number in range(300):
        changed = spec(impossible, priority=9, name=str(number))
        bench.submit(number, spec=changed, wait_for_node=True)
    bench.submit(300, spec=spec(name="possible"))
    [told] = demands(bench, 5000)[-1:]
    assert len(told.classes) == 256
    assert NEEDS in {one.needs for one in told.classes}
