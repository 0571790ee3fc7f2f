"""A node's figures: what it did is on the page, alone and among 64 others."""

from __future__ import annotations

from typing import Any

from blackroad.bus import messages as m
from blackroad.capabilities import encode
from blackroad.ids import short, text32
from blackroad.metrics import names
from blackroad.metrics.gather import gather, resident_bytes
from blackroad.metrics.page import Page
from blackroad.metrics.tally import Tally
from blackroad.node import Drain, FromPeer, Heard, Node, Sensed, Tick
from tests.metrics.reading import Series, read, value, values
from tests.unit.builders import (
    INC,
    ME,
    PEER,
    SESSION,
    beat,
    caps,
    client,
    gpu,
    node_id,
    spec,
    submit,
    supply,
)

EDGES: dict[str, Any] = {
    "transport": {"breach": 2, "hello.past": 1},
    "objects": {"object.damaged.k3f7x2ab": 1, "object.damaged.m5c7q2ab": 1},
    "stored_bytes": 4096,
    "journal": {"commits": 3, "rows": 30, "checkpoints": 1, "damaged": 0, "full": False},
    "topics": {"subscriptions": 2, "kept_own": 1, "kept_bytes": 77, "published": 5, "evicted": 0},
    "gate": {"closed": True, "members": 3, "refused": {"total": 4, "kinds": {"key": 4}}},
    "descriptors": {"used": 40, "limit": 1024},
}


def page_of(node: Node, now_ms: int, edges: dict[str, Any] | None = None) -> Series:
    page = Page()
    gather(page, node, edges if edges is not None else EDGES, Tally(), now_ms)
    series = read(page.body())
    assert len(series) == page.series
    return series


def opened(slots: int = 2, **changes: Any) -> Node:
    node = Node(ME, INC, caps(**changes), slots, 0)
    node.handle(client(m.Open(SESSION, 600_000)), 0)
    return node


def test_an_idle_node_shows_every_figure_that_has_no_labels() -> None:
    series = page_of(opened(), 5_000)
    plain = {
        metric.name
        for metric in names.METRICS.values()
        if not metric.labels and metric.kind != names.HISTOGRAM and metric not in names.SERVER
    }
    assert plain <= {name for name, _ in series}
    assert value(series, "blackroad_uptime_seconds") == 5
    assert value(series, "blackroad_incarnation") == 7
    assert value(series, "blackroad_coordinator_known") == 0
    [(what, one)] = values(series, "blackroad_node_info").items()
    assert (what[0], what[1], what[3], what[4], one) == (short(ME), "attic", "aarch64", "3.11.2", 1)


def test_a_node_that_knows_nothing_of_its_edges_has_a_page_as_well() -> None:
    series = page_of(opened(), 0, {})
    assert value(series, "blackroad_members") == 0
    assert not values(series, "blackroad_bus_total")
    assert values(series, "blackroad_objects_total") == {("object.damaged",): 0}


def test_edges_are_told() -> None:
    series = page_of(opened(), 0)
    assert values(series, "blackroad_bus_total") == {("breach",): 2, ("hello.past",): 1}
    assert values(series, "blackroad_objects_total") == {("object.damaged",): 2}
    assert values(series, "blackroad_connections_refused_total") == {("key",): 4}
    assert values(series, "blackroad_topics_total") == {("evicted",): 0, ("published",): 5}
    assert value(series, "blackroad_topics_kept_bytes") == 77
    assert value(series, "blackroad_journal_rows_total") == 30
    assert value(series, "blackroad_members") == 3
    assert value(series, "blackroad_process_descriptors_max") == 1024
    assert EDGES["topics"]["subscriptions"] == 2, "what was given is only read"


def test_tasks_are_told_by_state_user_and_end() -> None:
    node = opened(slots=1)
    for number in range(1, 4):
        node.handle(client(submit(number, spec=spec(user="anna"))), 1_000)
    series = page_of(node, 4_000)
    assert (
        values(series, "blackroad_tasks")["queued",] + values(series, "blackroad_tasks")["granted",]
        == 3
    )
    assert (
        sum(values(series, "blackroad_tasks_queued").values())
        == values(series, "blackroad_tasks")["queued",]
    )
    assert set(values(series, "blackroad_tasks_ended_total")) == {(end,) for end in names.ENDS}
    assert value(series, "blackroad_tasks_running") == 1
    assert value(series, "blackroad_slots_free") == 0
    node.handle(client(m.Cancel(tuple(node.owner.tasks))), 4_000)
    series = page_of(node, 5_000)
    ended = values(series, "blackroad_tasks_ended_total")
    assert ended["cancelled",] >= 2
    alias = values(series, "cluster_jobs_total")
    assert alias == ended


def test_the_oldest_task_tells_how_long_the_queue_is() -> None:
    node = opened(slots=0)
    node.handle(client(submit(1, wait_for_node=True)), 2_000)
    node.handle(client(submit(2, wait_for_node=True)), 9_000)
    series = page_of(node, 12_000)
    assert value(series, "blackroad_queue_oldest_seconds") == 10
    assert values(series, "blackroad_tasks_queued") == {("",): 2}
    assert value(page_of(opened(), 12_000), "blackroad_queue_oldest_seconds") == 0


def test_the_machine_is_told() -> None:
    node = opened(devices=(gpu(),))
    node.handle(Sensed(71, True, 150), 10)
    node.handle(Drain(True), 20)
    series = page_of(node, 30)
    assert value(series, "blackroad_temperature_celsius") == 71
    assert value(series, "blackroad_throttled") == 1
    assert value(series, "blackroad_load_ratio") == 1.5
    assert value(series, "blackroad_draining") == 1
    assert values(series, "blackroad_device_memory_bytes") == {("0", "gpu", "card"): 4 * 2**30}


def test_peers_are_told_by_state() -> None:
    node = opened()
    node.handle(Heard(beat(PEER, supply=supply(8, running=3, done=50))), 1_000)
    body = encode(caps("shed"))
    node.handle(FromPeer(PEER, (m.Capabilities(PEER, 1, b"d" * 16, body),)), 1_000)
    series = page_of(node, 1_500)
    name = short(PEER)
    assert values(series, "blackroad_peer_up") == {(name, "shed"): 1}
    assert values(series, "blackroad_peer_slots") == {(name,): 8}
    assert values(series, "blackroad_peer_tasks_running") == {(name,): 3}
    assert values(series, "blackroad_peer_attempts_done_total") == {(name,): 50}
    assert values(series, "blackroad_peer_silent_seconds") == {(name,): 0.5}
    for now_ms in range(2_000, 60_000, 500):
        node.handle(Tick(), now_ms)
    series = page_of(node, 60_000)
    assert values(series, "blackroad_peer_up") == {(name, "shed"): 0}
    states = values(series, "blackroad_nodes")
    assert states["alive",] == 1
    assert states.get(("dead",), 0) + states.get(("suspect",), 0) == 1


def test_a_node_that_said_goodbye_is_counted_and_no_longer_missed() -> None:
    node = opened()
    heard = beat(PEER)
    node.handle(Heard(heard), 1_000)
    assert len(values(page_of(node, 1_500), "blackroad_peer_up")) == 1
    node.handle(FromPeer(PEER, (m.Goodbye(heard.inc),)), 2_000)
    series = page_of(node, 2_500)
    assert values(series, "blackroad_nodes")["left",] == 1
    assert values(series, "blackroad_peer_up") == {}, "an alert asks for each one that is 0"


def test_nodes_whose_ids_begin_alike_are_told_apart() -> None:
    node = opened()
    alike = [b"\0" * 15 + bytes([at]) for at in range(1, 4)]
    for one in alike:
        node.handle(Heard(beat(one)), 1_000)
    up = values(page_of(node, 1_000), "blackroad_peer_up")
    assert sorted(key[0] for key in up) == sorted(
        [text32(one) for one in alike[1:]] + [short(alike[0])]
    )


def test_beyond_128_peers_they_are_only_counted() -> None:
    node = opened()
    for number in range(2, 202):
        node.handle(Heard(beat(node_id(number))), 1_000)
    series = page_of(node, 1_000)
    assert len(values(series, "blackroad_peer_up")) == names.PEERS_MAX
    assert values(series, "blackroad_nodes") == {("alive",): 201}
    assert len(series) <= names.SERIES_MAX


def test_reading_changes_nothing() -> None:
    node = opened()
    node.handle(Heard(beat(PEER)), 1_000)
    before = (node.next_deadline_ms(), dict(node.owner.counters), len(node.membership.peers))
    page_of(node, 1_100)
    assert (
        node.next_deadline_ms(),
        dict(node.owner.counters),
        len(node.membership.peers),
    ) == before


def test_the_daemons_memory_is_its_own() -> None:
    assert 4 * 2**20 < resident_bytes() < 2**34
