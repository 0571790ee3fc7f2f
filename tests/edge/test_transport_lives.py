"""Greetings between lives: who is reminded, who is refused, and what is told about it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blackroad.bus import messages as m
from blackroad.bus.telemetry import FORMER_MS
from tests.edge.transports import Net, Speaker

pytestmark = pytest.mark.edge


@pytest.fixture
def net() -> Iterator[Net]:
    one = Net()
    yield one
    one.close()


def beat(one: Speaker, net: Net, mark: int = 0) -> None:
    """Publish a Heartbeat of this life."""
    told = m.Heartbeat(
        one.node, one.inc, net.now_ms(), 1, None, b"", False, (), m.Supply(), 0, mark, b""
    )
    one.transport.publish(told)


def hears(net: Net, listener: Speaker, speaker: Speaker, mark: int = 0) -> None:
    """Let the listener hear a Heartbeat of the speaker, and take it in as a daemon does."""

    def heard() -> bool:
        beat(speaker, net, mark)
        for one in listener.beats:
            listener.transport.meet(one.node, one.inc, one.journal_mark)
        return any(one.inc == speaker.inc for one in listener.beats)

    listener.beats.clear()
    net.until(heard)


def test_each_greeting_tells_of_both_lives(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2, counter=4)
    net.meet(one, two)
    assert {met[:2] for met in one.met} == {(two.node, two.inc)}
    assert {met[2] for met in one.met} <= {0, one.inc}
    assert (one.node, one.inc, two.inc, 0) in two.met, "the Welcome knows who is welcome"


def test_an_older_life_is_reminded_of_the_newest_and_gets_no_link(net: Net) -> None:
    """R-life-2: even after the link is forgotten; with the mark of its journal."""
    one, two = net.speaker(1), net.speaker(2, counter=7)
    net.meet(one, two)
    hears(net, one, two, mark=99)
    net.end(two)
    one.transport.forget(two.node)
    back = net.speaker(2, counter=6)
    back.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: back.met)
    assert back.met[0] == (one.node, one.inc, two.inc, 99)
    assert (two.node, back.inc, 0, 0) in one.met
    net.until(lambda: len(back.met) >= 3, skip_ms=100)
    assert not back.knows(one)
    assert not one.knows(back)
    back.transport.begin_again(two.inc + (1 << 32))
    back.inc = back.transport.me.inc
    net.until(lambda: back.knows(one) and one.knows(back), skip_ms=50)


def test_of_equal_lives_the_first_one_counts(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2, counter=7)
    net.meet(one, two)
    twin = net.speaker(2, counter=7, low=0xABC)
    twin.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: twin.met)
    assert twin.met[0][:3] == (one.node, one.inc, two.inc)
    assert one.knows(two)
    assert one.transport.links[two.node].inc == two.inc


def test_twins_that_know_each_others_address_greet_on(net: Net) -> None:
    """R-life-3: both notice, and see how long the other one lives."""
    old, new = net.speaker(2, counter=7), net.speaker(2, counter=8)
    new.transport.hint(old.endpoint, net.now_ms())
    net.until(lambda: len(old.met) >= 4 and len(new.met) >= 4, skip_ms=100)
    assert {met[:2] for met in old.met} == {(old.node, new.inc)}
    assert {met[:3] for met in new.met} == {(new.node, old.inc, new.inc)}
    assert not old.transport.links
    assert not new.transport.links


def test_ones_own_address_is_no_twin(net: Net) -> None:
    one = net.speaker(1)
    one.transport.endpoints = ("tcp://127.0.0.1:1",)
    one.transport.hint(f"tcp://127.0.0.1:{one.transport.port}", net.now_ms())
    net.until(lambda: one.transport.counters.get("hello.self"))
    assert one.met == []


def test_a_remembered_address_is_not_sought_for_ever(net: Net) -> None:
    one = net.speaker(1)
    one.transport.hint("tcp://127.0.0.1:1", net.now_ms(), net.now_ms() + 5_000)
    one.transport.hint("tcp://127.0.0.1:2", net.now_ms())
    net.skip(5_000)
    one.transport.tick(net.now_ms())
    assert list(one.transport.unanswered()) == ["tcp://127.0.0.1:2"]


def test_the_telemetry_of_the_life_before_is_heard_on_for_a_while(net: Net) -> None:
    """Otherwise nobody would notice that it goes on."""
    one, old = net.speaker(1), net.speaker(2, counter=7)
    net.meet(one, old)
    new = net.speaker(2, counter=8)
    new.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: one.knows(new) and one.transport.links[new.node].inc == new.inc)
    hears(net, one, new)
    hears(net, one, old)
    assert one.transport.links[new.node].inc == new.inc, "what is old resets nothing"
    net.skip(FORMER_MS)
    one.transport.tick(net.now_ms())
    assert one.transport.telemetry._former == {}


def test_an_address_that_changed_hands_is_heard_on_when_its_former_owner_is_given_up(
    net: Net,
) -> None:
    """Without keys all are heard on one socket, and each address there is connected once."""
    one, gone, new = net.speaker(1), net.speaker(2), net.speaker(3)
    ears, now_ms = one.transport.telemetry, net.now_ms()
    there = f"tcp://127.0.0.1:{new.transport.telemetry_port}"
    elsewhere = f"tcp://127.0.0.1:{gone.transport.telemetry_port}"
    for speaker, endpoint in ((gone, there), (new, there), (gone, elsewhere)):
        ears.hear(speaker.node, b"", endpoint, now_ms)
    hears(net, one, new)
    ears.tick(now_ms + FORMER_MS)
    ears.deafen(gone.node)
    hears(net, one, new)


@pytest.fixture
def twins(net: Net) -> tuple[Speaker, Speaker, Speaker]:
    """One that has heard two lives of another, and shuns both."""
    one, old = net.speaker(1), net.speaker(2, counter=7)
    net.meet(one, old)
    new = net.speaker(2, counter=8)
    new.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: one.knows(new) and new.knows(one))
    one.transport.shun(new.node, net.now_ms())
    return one, old, new


def test_both_lives_are_told_at_once_that_they_are_shunned(
    net: Net, twins: tuple[Speaker, Speaker, Speaker]
) -> None:
    one, old, new = twins
    net.until(lambda: old.refused and new.refused)
    for twin in (old, new):
        assert {(told.reason, told.inc) for told in twin.refused} == {("clone", twin.inc)}
        assert "identity.json" in twin.refused[0].text
    assert new.node not in one.transport.links


def test_the_greetings_of_shunned_lives_are_refused_but_told_of(
    net: Net, twins: tuple[Speaker, Speaker, Speaker]
) -> None:
    """R-link-3: clone, the last check."""
    one, _, new = twins
    net.until(lambda: new.refused)
    one.met.clear()
    new.refused.clear()
    new.transport.reset(one.node, net.now_ms())
    net.until(lambda: new.refused and one.met)
    assert one.met[0][:2] == (new.node, new.inc)
    assert one.transport.counters["reject.clone"]
    assert not new.knows(one)


def test_what_shunned_lives_send_is_dropped(
    net: Net, twins: tuple[Speaker, Speaker, Speaker]
) -> None:
    one, old, new = twins
    for twin in (old, new):
        twin.transport.send(one.node, m.Goodbye(twin.inc))
    net.until(lambda: old.refused and new.refused, skip_ms=50)
    assert one.heard == []


def test_a_newer_life_of_a_shunned_node_is_a_peer_again(
    net: Net, twins: tuple[Speaker, Speaker, Speaker]
) -> None:
    one, old, new = twins
    net.end(old)
    net.end(new)
    after = net.speaker(2, counter=9)
    net.meet(one, after)
    assert one.transport.links[after.node].inc == after.inc


def test_the_one_that_stays_learns_how_old_the_other_was(
    net: Net, twins: tuple[Speaker, Speaker, Speaker]
) -> None:
    """Its next counter is the one that the other had: it must not be refused, but rise."""
    one, old, new = twins
    net.end(old)
    net.end(new)
    after = net.speaker(2, counter=8, low=0xABC)
    after.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: after.met)
    assert after.met[0][:3] == (one.node, one.inc, new.inc)
    assert not [told for told in after.refused if told.inc == after.inc]
