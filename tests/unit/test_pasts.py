"""What is remembered of peers' lives beyond the links to them."""

from __future__ import annotations

from blackroad.bus.pasts import Past, Pasts
from blackroad.ids import incarnation
from blackroad.limits import PEERS_MAX
from tests.unit.builders import PEER, node_id

OLDER, NEWEST, TWIN, NEWER = (incarnation(*one) for one in ((2, 9), (3, 5), (3, 7), (4, 1)))
HERE, THERE = "tcp://10.0.0.2:1", "tcp://10.0.0.3:1"


def pasts() -> Pasts:
    one = Pasts()
    one.remember(PEER, NEWEST, 40, ())
    return one


def test_the_newest_life_and_the_furthest_mark_stay() -> None:
    """Of two with equal counters the first."""
    one = pasts()
    for inc, mark, expected in (
        (OLDER, 10, Past(NEWEST, 40)),
        (TWIN, 39, Past(NEWEST, 40)),
        (OLDER, 41, Past(NEWEST, 41)),
        (NEWER, 3, Past(NEWER, 41)),
    ):
        one.remember(PEER, inc, mark, ())
        assert one.of(PEER) == expected
    assert one.of(node_id(9)) == Past()


def test_who_is_linked_is_never_forgotten() -> None:
    one = pasts()
    for number in range(100, 100 + 2 * PEERS_MAX):
        one.remember(node_id(number), NEWEST, 0, {PEER})
    assert one.of(PEER) == Past(NEWEST, 40)
    assert len(one._newest) == PEERS_MAX
    one.remember(node_id(9), NEWEST, 0, {*one._newest})
    assert one.of(node_id(9)) == Past()


def test_both_lives_are_refused_and_told_where_they_listen() -> None:
    one = pasts()
    one.elsewhere(PEER, THERE, TWIN)
    assert one.where(PEER) == []
    one.shun(PEER, HERE, NEWEST)
    assert one.is_shunned(PEER, NEWEST)
    assert one.is_shunned(PEER, TWIN)
    assert one.where(PEER) == [(THERE, TWIN), (HERE, NEWEST)]
    assert one.shunned() == {PEER: [THERE, HERE]}
    assert not one.is_shunned(node_id(9), NEWEST)


def test_a_life_that_nobody_met_here_is_not_refused_but_older() -> None:
    """The one that stays, started again: its counter may have to rise above the other's."""
    one = pasts()
    one.elsewhere(PEER, THERE, OLDER)
    one.shun(PEER, HERE, NEWEST)
    assert not one.is_shunned(PEER, TWIN)
    assert one.is_shunned(PEER, OLDER), "and the refusal stands"


def test_a_newer_life_ends_the_refusal() -> None:
    one = pasts()
    one.shun(PEER, "", 0)
    assert one.is_shunned(PEER, NEWEST)
    assert not one.is_shunned(PEER, NEWER)
    assert not one.is_shunned(PEER, NEWEST)
    assert one.where(PEER) == []
