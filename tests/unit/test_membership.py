"""Membership: one Heartbeat, Goodbye or silence in, what changed out."""

from __future__ import annotations

import pytest

from blackroad.discovery.membership import Change, Membership, PeerState
from blackroad.ids import incarnation
from blackroad.limits import PEERS_MAX
from tests.unit.builders import INC, ME, OTHER, PEER, beat, node_id

OLDER, NEWER = incarnation(6, 1), incarnation(8, 1)
TWIN = incarnation(7, 0x9999)


def heard(table: Membership, now_ms: int, node: bytes = PEER, **changes: object) -> list[Change]:
    changes.setdefault("stamp_ms", now_ms)
    return [change for change, _ in table.on_heartbeat(beat(node, **changes), now_ms)]


def changes(told: list) -> list[Change]:
    return [change for change, _ in told]


def table_with(*nodes: bytes, now_ms: int = 1000) -> Membership:
    table = Membership(ME)
    for node in nodes or (PEER,):
        assert heard(table, now_ms, node) == [Change.JOINED]
    return table


def state(table: Membership, node: bytes = PEER) -> PeerState:
    return table.peers[node].state


def test_own_heartbeats_are_not_a_peer() -> None:
    """Section 13: this node itself is not in the table."""
    table = Membership(ME)
    assert heard(table, 1000, ME) == []
    assert not table.peers


def test_silence_makes_suspect_then_dead() -> None:
    """R-life-6: T_suspect is 3 H and T_dead 5 H."""
    table = table_with()
    assert table.next_deadline_ms() == 1750
    assert changes(table.tick(1749)) == []
    assert changes(table.tick(1750)) == [Change.SUSPECTED]
    assert table.next_deadline_ms() == 2250
    assert changes(table.tick(2249)) == []
    assert changes(table.tick(2250)) == [Change.DIED]
    assert table.next_deadline_ms() == 2**62
    assert changes(table.tick(9999)) == []


def test_the_slower_of_both_heartbeats_counts() -> None:
    """R-life-6: H is the slower of my interval and the one the peer announced."""
    table = Membership(ME)
    heard(table, 1000, interval_ms=1000)
    assert changes(table.tick(3999)) == []
    assert changes(table.tick(4000)) == [Change.SUSPECTED]


@pytest.mark.parametrize(
    ("silent_ms", "expected"), [(750, Change.RECOVERED), (1250, Change.JOINED)]
)
def test_a_heartbeat_revives(silent_ms: int, expected: Change) -> None:
    """Section 13: suspect or dead, Heartbeat of its newest incarnation: alive."""
    table = table_with()
    table.tick(1000 + silent_ms)
    assert heard(table, 1000 + silent_ms) == [expected]
    assert state(table) is PeerState.ALIVE


@pytest.mark.parametrize("stamp_ms", [999, 1000])
def test_the_newest_stamp_wins(stamp_ms: int) -> None:
    """Section 13: a Heartbeat that is not newer, a repeated one too, proves no life."""
    table = table_with()
    table.tick(1750)
    assert heard(table, 1800, stamp_ms=stamp_ms) == []
    assert state(table) is PeerState.SUSPECT


def test_a_newer_incarnation_is_told() -> None:
    """R-life-1: a new incarnation says that nothing older runs there."""
    table = table_with()
    assert heard(table, 1200, inc=NEWER, stamp_ms=3) == [Change.REINCARNATED]
    assert table.peers[PEER].inc == NEWER
    assert heard(table, 1300, inc=INC, stamp_ms=1300) == []
    assert table.peers[PEER].inc == NEWER


def test_a_dead_peer_that_restarted_joins_again() -> None:
    """Section 13: dead, Heartbeat of a newer incarnation: both things are told."""
    table = table_with()
    table.tick(5000)
    assert heard(table, 5100, inc=NEWER) == [Change.REINCARNATED, Change.JOINED]


def test_goodbye_is_of_one_life() -> None:
    """Section 13: Goodbye of its newest incarnation: left; only a newer life returns."""
    table = table_with()
    assert changes(table.on_goodbye(PEER, OLDER)) == []
    assert changes(table.on_goodbye(OTHER, INC)) == []
    assert changes(table.on_goodbye(PEER, INC)) == [Change.LEFT]
    assert changes(table.on_goodbye(PEER, INC)) == []
    assert heard(table, 1300) == []
    assert changes(table.tick(9000)) == []
    assert heard(table, 9100, inc=NEWER) == [Change.REINCARNATED, Change.JOINED]


@pytest.mark.parametrize("other", [TWIN, OLDER])
def test_another_life_than_the_newest_changes_nothing(other: int) -> None:
    """R-life-3: what it means is judged elsewhere; the newest life counts, of equals the first."""
    table = table_with()
    assert heard(table, 1100, inc=other, stamp_ms=9_999) == []
    assert table.peers[PEER].inc == INC
    assert changes(table.tick(1750)) == [Change.SUSPECTED], "nor does it prove life"


def test_a_sleeper_accuses_nobody() -> None:
    """R-elect-4: after a gap above T_suspect the inbox is read before anybody is judged."""
    table = table_with()
    table.on_overslept(60_000, 61_500)
    assert changes(table.tick(61_500)) == []
    assert table.next_deadline_ms() >= 61_750
    assert changes(table.tick(61_749)) == []
    assert heard(table, 61_749, stamp_ms=61_700) == []
    assert changes(table.tick(61_751)) == []
    assert changes(table.tick(62_499)) == [Change.SUSPECTED]


def test_own_lag_makes_patient() -> None:
    """R-life-6: own health 1..8 multiplies both, raised while my loop lags."""
    table = table_with()
    for _ in range(20):
        table.on_lag(200)
    assert table.health == 8
    assert (table.suspect_ms(), table.dead_ms()) == (8 * 750, 8 * 1250)
    assert changes(table.tick(6999)) == []
    assert changes(table.tick(7000)) == [Change.SUSPECTED]
    for _ in range(20):
        table.on_lag(0)
    assert table.health == 1


def test_the_interval_follows_the_members() -> None:
    """R-life-6: H by the number of members, by a factor of 4 at most a change."""
    table = table_with(*(node_id(n) for n in range(2, 21)))
    assert table.interval_ms == 250
    heard(table, 1000, node_id(21))
    assert table.interval_ms == 1000
    for number in range(22, 130):
        heard(table, 1000, node_id(number))
    assert table.interval_ms == 1290
    table.tick(100_000)
    assert table.interval_ms == 322


def test_a_fixed_interval_stays() -> None:
    """The `heartbeat` key fixes H."""
    table = Membership(ME, 500)
    for number in range(2, 40):
        heard(table, 1000, node_id(number))
    assert table.interval_ms == 500


def test_the_table_is_bounded() -> None:
    """R-link-8: at most 1024 members are known; who is gone makes room."""
    table = Membership(ME)
    for number in range(2, PEERS_MAX + 2):
        heard(table, 1000 + number, node_id(number), interval_ms=60_000)
    assert heard(table, 5000, node_id(9999)) == []
    assert (len(table.peers), table.ignored) == (PEERS_MAX, 1)
    table.on_goodbye(node_id(77), INC)
    assert heard(table, 5001, node_id(9999)) == [Change.JOINED]
    assert node_id(77) not in table.peers
    assert len(table.peers) == PEERS_MAX


def test_present_are_the_alive_and_the_suspect() -> None:
    """Vocabulary: a peer is heard while it is alive or suspect."""
    table = table_with(PEER, OTHER, node_id(4), node_id(5))
    table.on_goodbye(OTHER, INC)
    table.tick(1750)
    heard(table, 1760, node_id(4))
    assert [peer.node for peer in table.present()] == [PEER, node_id(4), node_id(5)]
    table.tick(2250)
    assert [peer.node for peer in table.present()] == [node_id(4)]
