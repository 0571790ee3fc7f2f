"""What a node does about lives: its own forgotten ones, and clones of itself and of peers."""

from __future__ import annotations

import pytest

from blackroad.bus import messages as m
from blackroad.ids import HEARD_BYTES, Epoch, incarnation
from blackroad.limits import CLONE_SIGNS, DOUBT_MS_MIN
from blackroad.node import Drain, FromPeer, Heard, Met, Node, Tick
from blackroad.requirements import Needs
from blackroad.router.effects import Effect, KeepDrain, NewLife, Note, Publish, Shun
from tests.unit.builders import (
    INC,
    ME,
    OTHER,
    PEER,
    SESSION,
    beat,
    caps,
    client,
    grant,
    make_node,
    of_kind,
    spec,
    submit,
)

TWIN = incarnation(7, 0x9999)
OLDER, NEWER = incarnation(6, 1), incarnation(9, 1)
CLONED_MS = 2_500


def notes(effects: list[Effect]) -> list[str]:
    return [one.name for one in of_kind(effects, Note)]


def facts(effects: list[Effect], name: str) -> dict[str, object]:
    [note] = [one for one in of_kind(effects, Note) if one.name == name]
    return note.facts


def heard(node: Node, now_ms: int, of: bytes = PEER, inc: int = INC, **changes: object) -> list:
    return node.handle(Heard(beat(of, now_ms, inc, **changes)), now_ms)


def until_clones(node: Node, **changes: object) -> list[Effect]:
    """PEER and a twin of it are heard side by side."""
    effects: list[Effect] = []
    for now_ms in range(1_000, 1_000 + CLONED_MS + 500, 250):
        effects += heard(node, now_ms, **changes)
        effects += heard(node, now_ms + 1, inc=TWIN, **changes)
    return effects


def doubting() -> Node:
    node = make_node()
    effects = node.handle(Met(PEER, INC, NEWER), 1_000)
    assert notes(effects) == ["node.doubt"]
    return node


# --- amnesia ------------------------------------------------------------------------------------


def test_what_peers_know_of_the_present_life_and_older_ones_is_no_news() -> None:
    node = make_node()
    for known in (0, INC, OLDER):
        assert node.handle(Met(PEER, INC, known), 1_000) == []
    assert not node.worker.draining


@pytest.mark.parametrize("known", [TWIN, NEWER])
def test_a_life_that_peers_know_better_ends_this_one(known: int) -> None:
    """R-life-2: it takes nothing new, and ends when the other life gave no sign."""
    node = make_node()
    effects = node.handle(Met(PEER, INC, known), 1_000)
    assert notes(effects) == ["node.doubt"]
    assert node.worker.draining
    assert not of_kind(effects, NewLife)
    assert node.next_deadline_ms() <= 1_000 + DOUBT_MS_MIN
    assert not of_kind(node.handle(Tick(), 1_000 + DOUBT_MS_MIN - 1), NewLife)
    effects = node.handle(Tick(), 1_000 + DOUBT_MS_MIN)
    assert of_kind(effects, NewLife) == [NewLife(known >> 32)]
    assert facts(effects, "node.amnesia")["other_counter"] == known >> 32
    assert not of_kind(node.handle(Tick(), 60_000), NewLife), "said once"


def test_amnesia_tells_how_far_the_journal_lies_behind() -> None:
    node = Node(ME, INC, caps(), 2, 0, journal_base=40)
    node.handle(Met(PEER, INC, NEWER, 55), 1_000)
    effects = node.handle(Tick(), 1_000 + DOUBT_MS_MIN)
    assert facts(effects, "node.amnesia")["behind"] == 15


def test_who_doubts_refuses_grants() -> None:
    node = doubting()
    heard(node, 1_010)
    effects = node.handle(FromPeer(PEER, (grant(1),)), 1_020)
    [refused] = of_kind(effects, m.Refused)
    assert refused.reason is m.Reason.DRAINING


def test_nobody_can_order_a_doubting_node_to_resume() -> None:
    node = doubting()
    node.handle(Drain(False), 1_100)
    assert node.worker.draining
    effects = node.handle(client(m.Query(1, b"", "resume", b"")), 1_200)
    assert node.worker.draining
    assert of_kind(effects, KeepDrain) == [KeepDrain(False)], "but the next life will serve"


# --- a clone of mine ----------------------------------------------------------------------------


def test_a_refusal_of_this_life_makes_it_one_of_two() -> None:
    """R-life-3: no new work, no reign, a loud event, and never a higher counter."""
    node = make_node()
    node.handle(Met(PEER, INC, TWIN), 1_000)
    effects = node.handle(FromPeer(PEER, (m.Reject("clone", inc=INC),)), 1_500)
    assert facts(effects, "node.clone")["mine"] is True
    assert node.worker.draining
    for now_ms in range(2_000, 20_000, 250):
        effects = node.handle(Tick(), now_ms)
        assert not of_kind(effects, NewLife)
        assert all(one.beat.claim is None for one in of_kind(effects, Publish))


def test_a_refusal_of_an_earlier_life_is_old_news() -> None:
    node = make_node()
    assert node.handle(FromPeer(PEER, (m.Reject("clone", inc=OLDER),)), 1_500) == []
    assert not node.worker.draining


def test_a_coordinator_that_is_a_clone_resigns() -> None:
    node = make_node()
    for now_ms in range(0, 3_000, 50):
        node.handle(Tick(), now_ms)
    assert node.election.claim is not None
    node.handle(FromPeer(PEER, (m.Reject("clone", inc=INC),)), 3_000)
    node.handle(Tick(), 3_010)
    assert node.election.claim is None
    assert node.coordinator.epoch is None


def test_heartbeats_of_my_own_id_are_never_a_peer() -> None:
    node = make_node()
    effects: list[Effect] = []
    for now_ms in range(1_000, 5_000, 250):
        effects += heard(node, now_ms, ME, TWIN)
    assert notes(effects) == ["node.clone"]
    assert node.membership.peers == {}
    assert node.worker.draining


# --- a clone of a peer --------------------------------------------------------------------------


def test_clones_of_a_peer_are_shunned_and_get_nothing() -> None:
    node = make_node()
    effects = until_clones(node)
    assert of_kind(effects, Shun) == [Shun(PEER, "clone")]
    assert facts(effects, "node.clone")["mine"] is False
    assert node.owner.view.get(PEER).draining
    heard(node, 4_100)
    assert node.owner.view.get(PEER).draining, "whatever it says of itself"
    assert not node.worker.draining


def test_one_heartbeat_of_a_twin_proves_nothing() -> None:
    node = make_node()
    heard(node, 1_000)
    for now_ms in range(1_250, 9_000, 250):
        effects = heard(node, now_ms)
        if now_ms < 1_250 + 250 * (CLONE_SIGNS + 2):
            effects += heard(node, now_ms + 1, inc=TWIN)
        assert not of_kind(effects, Shun)
    assert not node.owner.view.get(PEER).draining
    assert node.membership.peers[PEER].inc == INC


@pytest.mark.parametrize("cloned", [False, True])
def test_clones_are_not_given_tasks(cloned: bool) -> None:
    """OTHER's table says that PEER is to run it: it is granted there, unless PEER is two."""
    node = make_node()
    node.handle(client(m.Open(SESSION, 600_000)), 500)
    claim = {"claim": Epoch(5, OTHER), "follows": OTHER, "heard": (ME[:HEARD_BYTES],)}
    if cloned:
        until_clones(node)
    heard(node, 4_000)
    heard(node, 4_000, OTHER, **claim)
    node.owner.view.on_capabilities(PEER, "peer", caps())
    node.handle(client(submit(1, spec=spec(Needs(node="attic").to_wire()))), 4_020)
    [cls] = node.owner.by_id
    rows = (m.Row(cls, PEER, 1),)
    table = m.Allocation(Epoch(5, OTHER), 1, INC, node.owner.granting.demand_seq, rows)
    effects = node.handle(FromPeer(OTHER, (table,), INC), 4_030)
    assert len(of_kind(effects, m.Grant)) == (0 if cloned else 1)


def test_what_clones_say_does_not_count() -> None:
    node = make_node()
    until_clones(node)
    assert node.handle(FromPeer(PEER, (grant(1),)), 4_000) == []
    assert node.handle(FromPeer(OTHER, (grant(2),)), 4_000) != []


def test_clones_are_not_followed() -> None:
    claim = {"claim": Epoch(5, PEER), "follows": PEER, "heard": (ME[:HEARD_BYTES],)}
    node = make_node()
    heard(node, 1_000, **claim)
    assert node.election.follows == PEER
    until_clones(node, **claim)
    assert node.election.follows != PEER


def test_a_newer_life_of_a_clone_is_a_peer_again() -> None:
    node = make_node()
    until_clones(node)
    heard(node, 5_000, inc=NEWER)
    assert not node.owner.view.get(PEER).draining
    assert node.handle(FromPeer(PEER, (m.AskCapabilities(b"x" * 16),)), 5_010) != []


# --- the journal's mark -------------------------------------------------------------------------


def test_heartbeats_tell_what_is_on_disk_over_all_lives() -> None:
    node = Node(ME, INC, caps(), 2, 0, journal_base=40)
    assert node.beat(0).journal_mark == 40
    node.out.on_flushed(3, 10)
    assert node.beat(10).journal_mark == 43
