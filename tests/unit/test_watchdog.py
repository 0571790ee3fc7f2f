"""The watchdog: a task that can run, that there is room for, and that nobody places."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from blackroad.alarm import ANSWER_BYTES_MAX, PAGE_BYTES, Alarm
from blackroad.bus import messages as m
from blackroad.ids import short
from blackroad.limits import QUERY_MS
from blackroad.node import Heard, Node
from blackroad.requirements import Needs
from blackroad.router.records import TaskState
from blackroad.router.watchdog import AGAIN_MS, CLASSES_MAX, STUCK_MS, Watchdog, verdict
from tests.unit.builders import (
    FOURTH,
    GIB,
    ME,
    OTHER,
    PEER,
    SESSION,
    OwnerBench,
    beat,
    client,
    gpu,
    make_node,
    spec,
    submit,
    supply,
    task_id,
)
from tests.unit.test_granting import asking, table

IDLE = supply()
BUSY = msgspec.structs.replace(IDLE, free_cpu_units=0, running=4)


def waiting(**changes: Any) -> OwnerBench:
    """One task is queued at 0; the table gives it nothing; nodes are heard all the time."""
    bench = asking(1, nodes=(PEER,), **changes)
    bench.owner.view.get(ME).draining = True
    return bench


def look(dog: Watchdog, bench: OwnerBench, now_ms: int, **said: m.Supply) -> list[Any]:
    """What the dog suspects once PEER has said that it has this room."""
    bench.beat(PEER, now_ms)
    return dog.look(bench.owner, {PEER: said.get("peer", IDLE)}, now_ms)


def told_at(dog: Watchdog, bench: OwnerBench, until_ms: int, **said: m.Supply) -> list[int]:
    """When it suspects something, looking once a second."""
    return [now for now in range(0, until_ms + 1, 1_000) if look(dog, bench, now, **said)]


# --- what is suspicious ---------------------------------------------------------------------------


def test_room_for_five_seconds_and_no_grant_is_suspicious() -> None:
    """From when the task had waited for 5 s there was room for 5 s more; then once a minute."""
    assert told_at(Watchdog(), waiting(), 140_000) == [
        2 * STUCK_MS,
        2 * STUCK_MS + AGAIN_MS,
        2 * STUCK_MS + 2 * AGAIN_MS,
    ]


@pytest.mark.parametrize(
    "said",
    [
        BUSY,
        msgspec.structs.replace(IDLE, draining=True),
        msgspec.structs.replace(IDLE, waiting=1),
        msgspec.structs.replace(IDLE, free_memory_bytes=GIB),
    ],
)
def test_without_room_it_is_not(said: m.Supply) -> None:
    needs = Needs(cpu=1, memory="2GiB").to_wire()
    assert told_at(Watchdog(), waiting(spec=spec(needs)), 60_000, peer=said) == []


def test_a_moment_without_room_begins_the_count_anew() -> None:
    dog, bench = Watchdog(), waiting()
    for now_ms in range(0, 9_001, 1_000):
        assert look(dog, bench, now_ms) == []
    assert look(dog, bench, 9_500, peer=BUSY) == []
    assert told_at_from(dog, bench, 10_000, 20_000) == [15_000]


def told_at_from(dog: Watchdog, bench: OwnerBench, from_ms: int, until_ms: int) -> list[int]:
    return [now for now in range(from_ms, until_ms + 1, 1_000) if look(dog, bench, now)]


def test_another_first_task_begins_the_count_anew() -> None:
    """A queue that moves is not stuck, however long its tasks waited."""
    dog, bench = Watchdog(), asking(30, nodes=(PEER,))
    bench.owner.view.get(ME).draining = True
    for now_ms in range(0, 25_000, 1_000):
        assert look(dog, bench, now_ms) == []
        bench.owner.stop(bench.owner.by_id[1].oldest(), m.End.CANCELLED, "x", now_ms)


@pytest.mark.parametrize("rule", ["draining", "avoided", "backing off", "lacks"])
def test_what_a_rule_of_the_owner_explains_is_not_suspicious(rule: str) -> None:
    needs = Needs(cpu=64 if rule == "lacks" else 1).to_wire()
    bench = waiting(spec=spec(needs), wait_for_node=True)
    view = bench.owner.view.get(PEER)
    view.draining = rule == "draining"
    view.avoid_until_ms = 10**9 if rule == "avoided" else 0
    bench.owner.by_id[1].use(PEER).backoff_until_ms = 10**9 if rule == "backing off" else 0
    assert told_at(Watchdog(), bench, 60_000, peer=supply(64)) == []


def test_a_gang_needs_room_on_all_its_nodes() -> None:
    bench = asking(1, spec=spec(gang=2))
    bench.owner.view.get(ME).draining = True
    dog = Watchdog()
    found = []
    for now_ms in range(0, 25_000, 1_000):
        bench.beat(PEER, now_ms)
        bench.beat(FOURTH, now_ms)
        fourth = BUSY if now_ms < 10_000 else IDLE
        if dog.look(bench.owner, {PEER: IDLE, FOURTH: fourth}, now_ms):
            found.append(now_ms)
    assert found == [15_000]


def test_gpus_count_as_free_on_idle_nodes_only() -> None:
    """A Heartbeat does not tell which GPUs are in use."""
    bench = waiting(spec=spec(Needs(gpu=1).to_wire()), wait_for_node=True)
    caps = msgspec.structs.replace(bench.owner.view.get(PEER).capabilities, devices=(gpu(),))
    bench.owner.view.on_capabilities(PEER, "peer", caps)
    some = msgspec.structs.replace(IDLE, running=1)
    assert told_at(Watchdog(), bench, 30_000, peer=some) == []
    assert told_at_from(Watchdog(), bench, 31_000, 40_000) == [36_000]


# --- what is told ---------------------------------------------------------------------------------


def suspicion(bench: OwnerBench) -> Any:
    dog = Watchdog()
    found: list[Any] = []
    for now_ms in range(0, 11_000, 1_000):
        found += look(dog, bench, now_ms)
    [one] = found
    return one


def pool(**changes: Any) -> dict[str, Any]:
    row = {
        "free": [0, 0, []],
        "lacking": [],
        "users": [],
        "reserved_for": None,
        "mine": 0,
        "slots": 0,
        "closed": False,
        "avoided": False,
        **changes,
    }
    return {"coordinates": True, "known": True, "tasks_first": 0, "nodes": {short(PEER): row}}


def test_a_coordinator_without_a_reason_makes_it_stuck() -> None:
    """The dump: what the owner counts, what it asked, what the pool says."""
    bench = waiting()
    facts = verdict(bench.owner, suspicion(bench), pool(), 10_000)
    assert facts is not None
    assert facts["task"] == task_id(1)
    assert (facts["waiting_ms"], facts["stuck_ms"], facts["queued"]) == (10_000, 5_000, 1)
    assert facts["room_on"] == PEER.hex()[:8]
    assert "used by nobody" in facts["pool"]
    assert all(len(str(value)) <= 512 for value in facts.values())


@pytest.mark.parametrize(
    "changes",
    [{"reserved_for": ["x", 1, "", 1, 2]}, {"closed": True}, {"avoided": True}],
)
def test_a_reason_of_the_pool_is_one(changes: dict[str, Any]) -> None:
    bench = waiting()
    assert verdict(bench.owner, suspicion(bench), pool(**changes), 10_000) is None


def test_that_others_use_an_idle_node_is_no_reason() -> None:
    """The node says that it is free: somebody counts what does not run any more."""
    bench = waiting()
    used = pool(lacking=[["cpu", "1", "0"]], users=[["zxy2zxy2", 3, "bob", 4]])
    facts = verdict(bench.owner, suspicion(bench), used, 10_000)
    assert facts is not None
    assert "zxy2zxy2/3=4" in facts["pool"]


def test_a_silent_coordinator_is_no_reason() -> None:
    bench = waiting()
    facts = verdict(bench.owner, suspicion(bench), None, 10_000)
    assert facts is not None
    assert facts["pool"] == "the coordinator says nothing"


def test_what_was_granted_meanwhile_is_not_stuck() -> None:
    bench = waiting()
    one = suspicion(bench)
    table(bench, (1, PEER, 1))
    bench.turn(10_000)
    assert bench.owner.tasks[task_id(1)].state is TaskState.GRANTED
    assert verdict(bench.owner, one, None, 10_000) is None


# --- asking the coordinator -----------------------------------------------------------------------


class House:
    """A node whose coordinator is PEER, with one task that nobody places; and its alarm."""

    def __init__(self) -> None:
        self.node: Node = make_node()
        self.sent: list[tuple[bytes, m.Message]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.alarm = Alarm(
            self.node,
            lambda to, message: self.sent.append((to, message)),
            lambda name, **facts: self.told.append((name, facts)),
        )
        self.node.handle(client(m.Open(SESSION, 600_000)), 0)
        self.node.worker.drain(True, 0)
        self.node.owner.view.get(self.node.me).draining = True
        self.hear(0)
        self.node.owner.granting.coordinator = PEER
        self.node.handle(client(submit(1, wait_for_node=True)), 0)

    def hear(self, now_ms: int) -> None:
        self.node.handle(Heard(beat(PEER, now_ms + 500)), now_ms)

    def run(self, from_ms: int, until_ms: int) -> None:
        for now_ms in range(from_ms, until_ms + 1, 1_000):
            self.hear(now_ms)
            self.node.owner.granting.coordinator = PEER
            self.alarm.tick(now_ms)


@pytest.fixture
def house() -> House:
    made = House()
    task = made.node.owner.tasks[task_id(1)]
    view = made.node.owner.view
    view.on_capabilities(PEER, short(PEER), view.get(made.node.me).capabilities)
    assert task.state is TaskState.QUEUED
    return made


def answer(query: m.Query, body: object, error: str = "") -> m.Reply:
    return m.Reply(query.query, PEER, 0, True, msgspec.msgpack.encode(body), error)


def test_the_coordinator_is_asked_before_anybody_is_told(house: House) -> None:
    house.run(0, 10_000)
    [(to, query)] = house.sent
    assert to == PEER
    assert isinstance(query, m.Query)
    assert (query.name, query.target) == ("pool", PEER)
    assert msgspec.msgpack.decode(query.args) == {"owner": house.node.me, "cls": 1}
    assert house.told == []
    other = m.Reply(7, PEER, 0, True, b"")
    assert house.alarm.take(PEER, [other, answer(query, pool())], 10_100) == [other]
    [(name, facts)] = house.told
    assert (name, facts["task"]) == ("task.stuck", task_id(1))


def test_an_answer_with_a_reason_ends_it(house: House) -> None:
    """And the count begins anew: the reason may go away."""
    house.run(0, 10_000)
    [(_, query)] = house.sent
    assert house.alarm.take(PEER, [answer(query, pool(closed=True))], 10_100) == []
    assert house.told == []
    house.run(11_000, 16_000)
    assert len(house.sent) == 2


def test_no_answer_is_told(house: House) -> None:
    house.run(0, 10_000 + QUERY_MS)
    [(name, facts)] = house.told
    assert (name, facts["pool"]) == ("task.stuck", "the coordinator says nothing")


@pytest.mark.parametrize("body", [None, 7, {"known": True, "nodes": {"x": 1}}])
def test_nonsense_counts_as_no_answer(house: House, body: object) -> None:
    """A peer can cost an answer, never the process."""
    house.run(0, 10_000)
    [(_, query)] = house.sent
    house.alarm.take(PEER, [answer(query, body)], 10_100)
    [(_, facts)] = house.told
    assert facts["pool"] == "the coordinator says nothing"


def test_nobody_else_can_answer(house: House) -> None:
    house.run(0, 10_000)
    [(_, query)] = house.sent
    reply = answer(query, pool())
    assert house.alarm.take(OTHER, [reply], 10_100) == [reply]
    assert house.told == []


def test_a_node_that_coordinates_asks_itself(house: House) -> None:
    """No message; a coordinator that does not know the class gives no reason."""
    for now_ms in range(0, 10_001, 1_000):
        house.hear(now_ms)
        house.node.owner.granting.coordinator = house.node.me
        house.node.coordinator.stop()
        house.alarm.tick(now_ms)
    assert house.sent == []
    assert [name for name, _ in house.told] == ["task.stuck"]


def test_where_nothing_waits_nothing_is_looked_at(house: House) -> None:
    house.node.owner.stop(house.node.owner.tasks[task_id(1)], m.End.CANCELLED, "x", 0)
    house.run(0, 30_000)
    assert (house.sent, house.told) == ([], [])


def test_of_very_many_classes_some_are_looked_at_in_turn() -> None:
    """Each of them is found all the same, and no look takes longer for there being more."""
    bench = OwnerBench(nodes=(PEER,))
    bench.owner.view.get(ME).draining = True
    count = 3 * CLASSES_MAX
    for number in range(1, count + 1):
        bench.submit(number, spec=spec(name=f"class {number}"))
    dog = Watchdog()
    found: list[bytes] = []
    for now_ms in range(5_000, 25_000, 1_000):
        suspicions = look(dog, bench, now_ms)
        assert len(suspicions) <= CLASSES_MAX
        found += [one.task.id for one in suspicions]
    assert sorted(found) == [task_id(number) for number in range(1, count + 1)]


def test_empty_pages_without_end_are_given_up(house: House) -> None:
    house.run(0, 10_000)
    [(_, query)] = house.sent
    assert isinstance(query, m.Query)
    page = m.Reply(query.query, PEER, 0, False, b"")
    count = ANSWER_BYTES_MAX // PAGE_BYTES
    assert house.alarm.take(PEER, [page] * count, 10_100) == []
    assert house.told == []
    assert house.alarm.take(PEER, [page, page], 10_100) == [page]
    [(_, facts)] = house.told
    assert facts["pool"] == "the coordinator says nothing"
