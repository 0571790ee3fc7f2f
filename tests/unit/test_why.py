"""Why a task waits: the owner's rules, the pool's, and both put together for people."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from blackroad import queries
from blackroad.bus import messages as m
from blackroad.cli import why as command
from blackroad.ids import Epoch, short
from blackroad.requirements import Needs
from blackroad.router import why
from blackroad.router.coordinator import Coordinator
from blackroad.router.effects import Outbox
from blackroad.router.records import MemberState
from tests.unit.builders import (
    FOURTH,
    INC,
    ME,
    NEEDS,
    OTHER,
    PEER,
    OwnerBench,
    caps,
    spec,
    supply,
    task_id,
)
from tests.unit.test_granting import asking, learn, table

A, B = b"a" * 16, b"b" * 16


def told(bench: OwnerBench, number: int = 1, now_ms: int = 10) -> dict[str, Any]:
    """The owner's part."""
    task = bench.owner.tasks[task_id(number)]
    return queries.why(SimpleNamespace(me=ME, owner=bench.owner), task, now_ms)


def row_of(answer: dict[str, Any], node: bytes) -> dict[str, Any]:
    """The row of a node; short ids of invented nodes are all alike, so by their order."""
    return answer["nodes"][(ME, PEER, FOURTH).index(node)]


def rule_of(answer: dict[str, Any], node: bytes) -> str:
    return row_of(answer, node)["rule"]


def answered(bench: OwnerBench, *rows: tuple[int, bytes, int], now_ms: int = 1_000) -> None:
    """The Demand names the class, and a table answers it."""
    bench.turn(now_ms, demands=True)
    granting = bench.owner.granting
    table(bench, *rows, seq=granting.table_seq + 1, demand=granting.demand_seq)


def demand(queued: int = 3, **changes: Any) -> m.ClassDemand:
    fields: dict[str, Any] = {
        "cls": 1,
        "needs": NEEDS,
        "priority": 0,
        "user": "ann",
        "gang": 1,
        "exclusive": False,
        "queued": queued,
        "oldest_wait_ms": 0,
        "mean_ms": 0,
        "in_use": (),
    }
    return m.ClassDemand(**{**fields, **changes})


class Reign:
    """A coordinator that has heard what a test lets it hear."""

    def __init__(self, *nodes: bytes, cores: int = 2) -> None:
        self.out = Outbox(OTHER)
        self.it = Coordinator(OTHER, self.out)
        self.it.begin(Epoch(5, OTHER), 0)
        for node in nodes:
            self.it.on_supply(node, short(node), caps(cores=cores), supply(cores))

    def hear(self, owner: bytes, *classes: m.ClassDemand, now_ms: int = 1_000) -> None:
        self.it.on_demand(owner, m.Demand(INC, 1, classes, ()), now_ms)

    def pool(self, owner: bytes = ME, cls: int = 1, now_ms: int = 2_000) -> dict[str, Any]:
        self.it.settle(now_ms)
        return why.pool(self.it, owner, cls, now_ms)


# --- the owner's part -----------------------------------------------------------------------------


def test_nothing_holds_back_what_has_a_slot() -> None:
    bench = asking(1)
    table(bench, (1, PEER, 1))
    answer = told(bench)
    assert (answer["holds"], answer["reason"]) == ([], "")
    assert rule_of(answer, PEER) == ""


def test_what_runs_waits_for_nothing() -> None:
    bench = asking(1)
    table(bench, (1, PEER, 1))
    bench.turn(10)
    bench.owner.tasks[task_id(1)].attempts[0].members[0].state = MemberState.RUNNING
    answer = told(bench, now_ms=20)
    assert (answer["state"], answer["holds"]) == ("running", [])


def test_what_was_handed_over_waits_at_its_node() -> None:
    """A task beyond the slots of a node was sent there already."""
    bench = asking(1)
    table(bench, (1, PEER, 1))
    bench.turn(10)
    bench.owner.tasks[task_id(1)].attempts[0].members[0].state = MemberState.WAITING
    answer = told(bench, now_ms=20)
    assert answer["state"] == "waiting"
    assert answer["holds"][0][0] == "handed over"
    assert PEER.hex()[:8] in answer["reason"]


def test_no_node_can_run_it() -> None:
    """Per node and per need: asked, there, verdict."""
    needs = Needs(cpu=64, memory="16GiB", arch="x86_64")
    bench = asking(1, spec=spec(needs.to_wire()), wait_for_node=True)
    answer = told(bench)
    assert answer["reason"] == "no present node can run it"
    row = row_of(answer, PEER)
    assert row["rule"] == why.LACKS
    assert row["missing"] == [
        ["cpu", "64", "4", "too little"],
        ["memory", "16 GiB", "8 GiB", "too little"],
        ["arch", "x86_64", "aarch64", "different"],
    ]


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        (why.DRAINING, {"draining": True}),
        (why.SILENT, {"present": True, "heard_ms": -(10**9)}),
        (why.AVOIDED, {"avoid_until_ms": 5_000}),
    ],
)
def test_each_rule_of_the_owner_is_named(rule: str, change: dict[str, Any]) -> None:
    bench = asking(1, nodes=(PEER,))
    bench.owner.view.get(ME).draining = True
    table(bench, (1, PEER, 1))
    for name, value in change.items():
        setattr(bench.owner.view.get(PEER), name, value)
    answer = told(bench)
    assert rule_of(answer, PEER) == rule
    assert answer["holds"]
    assert row_of(answer, PEER)["backing_off_ms"] == (4_990 if rule == why.AVOIDED else 0)


def test_a_back_off_says_for_how_long() -> None:
    bench = asking(1, nodes=(PEER,))
    bench.owner.view.get(ME).draining = True
    bench.owner.by_id[1].use(PEER).backoff_until_ms = 510
    answer = told(bench, now_ms=10)
    row = row_of(answer, PEER)
    assert (row["rule"], row["backing_off_ms"]) == (why.BACK_OFF, 500)
    assert "refused it just now" in answer["reason"]


def test_without_a_coordinator_it_says_so() -> None:
    bench = OwnerBench(nodes=(PEER,))
    bench.owner.granting.coordinator = b""
    bench.owner.view.get(ME).draining = True
    bench.submit(1)
    assert told(bench)["holds"][0][0] == "nobody"


def test_a_coordinator_that_has_not_answered_is_named() -> None:
    assert told(asking(1))["holds"][0][0] == "asked"


def test_a_slow_node_is_left_out_by_the_tail_rule() -> None:
    """One task is left, and faster nodes end it sooner: it waits for one of them."""
    bench = asking(2)
    learn(bench, PEER, 10_000_000)
    learn(bench, FOURTH, 900_000_000)
    table(bench, (1, PEER, 1), (1, FOURTH, 1))
    bench.turn(10)
    answer = told(bench, 2, now_ms=20)
    assert rule_of(answer, PEER) == why.BUSY
    assert rule_of(answer, FOURTH) == why.TOO_SLOW


def test_the_place_in_the_queue_is_told() -> None:
    """The first has the one slot; the others wait for those before them."""
    bench = asking(4)
    table(bench, (1, PEER, 1))
    answers = [told(bench, number) for number in (1, 2, 4)]
    assert [one["ahead"] for one in answers] == [0, 1, 3]
    assert [one["holds"] for one in answers] == [
        [],
        [["turn", "1 task of its kind comes first"]],
        [["turn", "3 tasks of its kind come first"]],
    ]


def test_a_gang_says_how_many_nodes_it_has() -> None:
    bench = asking(1, spec=spec(gang=2))
    answered(bench, (1, PEER, 1))
    answer = told(bench, now_ms=1_000)
    assert answer["holds"][0] == ["gang", "it needs 2 nodes at once, and 1 may be used now"]
    answered(bench, (1, PEER, 1), (1, FOURTH, 1), now_ms=2_000)
    assert told(bench, now_ms=2_000)["holds"] == []


def test_a_gang_that_nodes_are_too_few_for() -> None:
    bench = asking(1, spec=spec(gang=4), wait_for_node=True)
    assert told(bench)["reason"] == "it needs 4 nodes at once, and 3 could run it"


def test_asking_changes_nothing() -> None:
    """A query must not grant, nor state a Demand."""
    bench = asking(3)
    table(bench, (1, PEER, 1))
    for _ in range(3):
        told(bench, 2)
    assert [one.to for one in bench.turn(10) if hasattr(one, "to")] == [PEER]


# --- the pool's part ------------------------------------------------------------------------------


def test_a_full_node_says_what_is_asked_and_who_uses_it() -> None:
    reign = Reign(A)
    reign.hear(ME, demand())
    reign.hear(FOURTH, demand(0, cls=7, user="bob", in_use=(m.InUse(A, 2),)))
    pool = reign.pool()
    row = pool["nodes"][short(A)]
    assert row["lacking"] == [["cpu", "1", "0"]]
    assert row["users"] == [[short(FOURTH), 7, "bob", 2]]
    assert why.pool_rule({"id": short(A)}, pool) == why.FULL


def test_who_comes_first_is_counted() -> None:
    """Higher priority, or older at the same."""
    reign = Reign(A)
    reign.hear(ME, demand(oldest_wait_ms=500), demand(4, cls=2, oldest_wait_ms=900))
    reign.hear(FOURTH, demand(5, priority=3), demand(9, cls=2, priority=-1))
    pool = reign.pool()
    assert (pool["classes_first"], pool["tasks_first"]) == (2, 9)


def test_a_reserved_node_says_for_whom() -> None:
    """Two nodes are kept for a gang until both run empty."""
    reign = Reign(A, B)
    reign.hear(FOURTH, demand(1, gang=2, user="gil", oldest_wait_ms=9))
    reign.hear(PEER, demand(0, cls=3, in_use=(m.InUse(A, 1),)))
    reign.hear(ME, demand())
    pool = reign.pool()
    assert pool["nodes"][short(B)]["reserved_for"] == [short(FOURTH), 1, "gil", 1, 2]
    assert why.pool_rule({"id": short(B)}, pool) == why.RESERVED


def test_room_that_is_kept_for_a_larger_task_is_named() -> None:
    """A task of two cores waits for the second one: small ones do not take the first."""
    reign = Reign(A)
    reign.hear(FOURTH, demand(1, needs=Needs(cpu=2).to_wire(), priority=1))
    reign.hear(PEER, demand(0, cls=3, in_use=(m.InUse(A, 1),)))
    reign.hear(ME, demand())
    pool = reign.pool()
    assert pool["nodes"][short(A)]["closed"]
    assert why.pool_rule({"id": short(A)}, pool) == why.FIRST


def test_a_node_that_follows_somebody_else_is_not_in_the_pool() -> None:
    reign = Reign(A)
    reign.hear(ME, demand())
    assert why.pool_rule({"id": short(B)}, reign.pool()) == why.ELSEWHERE


def test_a_pool_with_room_has_no_reason() -> None:
    reign = Reign(A)
    reign.hear(ME, demand())
    assert why.pool_rule({"id": short(A)}, reign.pool()) is None


def test_who_does_not_coordinate_says_so() -> None:
    idle = Coordinator(ME, Outbox(ME))
    assert why.pool(idle, ME, 1, 0) == {"coordinates": False, "known": False}
    assert why.pool(Reign(A).it, ME, 99, 0)["known"] is False


def test_the_pool_travels() -> None:
    """What is told is what a watchdog on another node reads, and nothing else is believed."""
    reign = Reign(A, B)
    reign.hear(ME, demand(in_use=(m.InUse(A, 1),)))
    reign.hear(FOURTH, demand(1, gang=2, oldest_wait_ms=9))
    pool = reign.pool()
    read = why.read_pool(msgspec.msgpack.encode(pool))
    assert read is not None
    assert msgspec.json.encode(read) == msgspec.json.encode(
        msgspec.convert(msgspec.to_builtins(pool), why.Pool)
    )
    for nonsense in (b"", b"\xc1", msgspec.msgpack.encode({"known": True, "nodes": [1]})):
        assert why.read_pool(nonsense) is None


def test_the_owner_knows_its_own_grants_first() -> None:
    """The coordinator has not heard of a grant yet: that is no room."""
    place = {"id": short(A), "rule": why.BUSY, "in_use": 2, "name": "a"}
    asked = {"state": "queued", "holds": [["busy", "x"]], "reason": "x", "nodes": [place]}
    row = {"reserved_for": None, "lacking": [], "closed": False, "avoided": False}
    for mine, holds in ((1, 1), (2, 0)):
        pool = {"known": True, "tasks_first": 0, "nodes": {short(A): {**row, "mine": mine}}}
        found = why.together({**asked, "gang": 1}, pool)
        assert len(found["holds"]) == holds


# --- for people -----------------------------------------------------------------------------------


def test_a_kept_node_and_its_users_on_one_line() -> None:
    pool = {
        "reserved_for": ["k3f7x2ab", 1, "gil", 1, 3],
        "users": [["k3f7x2ab", 2, "bob", 1], ["zxy2zxy2", 1, "", 2], ["zxy2zxy2", 4, "bob", 1]],
    }
    node = {
        "id": "k3f7x2ab",
        "name": "attic",
        "rule": why.RESERVED,
        "missing": [],
        "slots_here": 0,
        "in_use": 0,
        "pool": pool,
    }
    made = command.grid({"nodes": [node]})
    assert [cell.text for cell in made.rows[0]] == [
        "attic",
        "kept for a gang of 3 of gil on attic",
        "none",
        "bob 2, zxy2zxy2 2",
    ]


def test_each_need_that_is_not_met_has_a_line() -> None:
    lacks = [["cpu", "8", "4", "too little"], ["gpu", "1", "none", "missing"]]
    node = {"id": "x", "name": "attic", "rule": why.LACKS, "missing": lacks}
    made = command.grid({"nodes": [node]})
    assert [[cell.text for cell in row] for row in made.rows] == [
        ["attic", "lacks", "cpu", "8", "4", "none"],
        ["", "", "gpu", "1", "none", ""],
    ]
