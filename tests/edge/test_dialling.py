"""Races over real sockets: who wins, who is left, and when another address is tried again."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from blackroad.bus import dialling
from blackroad.bus import messages as m
from blackroad.bus.dialling import MDNS
from blackroad.limits import FOREVER_MS, HINTS_MAX, PEERS_MAX
from tests.edge.transports import Net, Speaker

pytestmark = pytest.mark.edge

NOBODY = "tcp://127.0.0.1:1"


@pytest.fixture
def net() -> Iterator[Net]:
    one = Net()
    yield one
    one.close()


@pytest.fixture
def silent() -> Iterator[list[str]]:
    """Addresses where a connection is taken and nothing is ever said."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    yield [f"tcp://127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()


def at(one: Speaker, other: Speaker) -> str:
    return one.transport.connected(other.node)


def also(one: Speaker, *hosts: str) -> list[str]:
    """The speaker's inbox, reached by other addresses of this machine."""
    return [f"tcp://{host}:{one.transport.port}" for host in hosts]


def test_all_addresses_are_greeted_at_once_and_the_losers_are_closed(
    net: Net, silent: list[str]
) -> None:
    one, two = net.speaker(1), net.speaker(2)
    for endpoint in (NOBODY, *silent, two.endpoint):
        one.transport.hint(endpoint, net.now_ms(), node=two.node)
    began_ms = net.now_ms()
    net.until(lambda: one.knows(two) and two.knows(one))
    assert net.now_ms() - began_ms < 30_000
    assert at(one, two) == two.endpoint
    net.until(lambda: not one.transport.dialler.attempts())
    one.transport.send(two.node, m.Goodbye(1))
    net.until(lambda: two.heard)


def test_the_answer_goes_back_over_any_address_that_leads_there(
    net: Net, silent: list[str]
) -> None:
    """The one that is greeted knows only what the Hello says; most of that is wrong."""
    one, two = net.speaker(1), net.speaker(2)
    right = two.endpoint
    two.transport.endpoints = (NOBODY, *silent, right)
    two.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: one.knows(two) and two.knows(one))
    assert at(one, two) == right


def test_an_address_of_ones_own_is_never_dialled_for_a_peer(net: Net) -> None:
    """As with docker0: all nodes announce the same address, and on each it is its own."""
    one, two = net.speaker(1), net.speaker(2)
    shared = "tcp://172.17.0.1:7701"
    for each in (one, two):
        each.transport.endpoints = (each.endpoint, shared)
    one.transport.hint(shared, net.now_ms(), node=two.node)
    one.transport.hint(two.endpoint, net.now_ms(), node=two.node)
    net.until(lambda: one.knows(two) and two.knows(one))
    told = one.transport.dialler.addresses(two.node) + two.transport.dialler.addresses(one.node)
    assert shared not in told


def test_somebody_else_at_an_address_is_met_as_who_he_is(net: Net) -> None:
    one, two, three = (net.speaker(number) for number in (1, 2, 3))
    one.transport.hint(three.endpoint, net.now_ms(), node=two.node)
    net.until(lambda: one.knows(three))
    assert two.node not in one.transport.links
    one.transport.hint(two.endpoint, net.now_ms(), node=two.node)
    net.until(lambda: one.knows(two))
    assert at(one, two) == two.endpoint


def test_a_lost_peer_is_sought_at_all_its_addresses(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    ports = two.ports
    other = also(two, "127.0.0.2")[0]
    net.end(two)
    one.transport.hint(other, net.now_ms(), node=two.node)
    one.transport.reset(two.node, net.now_ms())
    anew = net.speaker(2, counter=2, ports=ports)
    net.until(lambda: at(one, anew) == anew.endpoint)
    net.until(lambda: one.knows(anew) and one.transport.links[anew.node].inc == anew.inc)


def test_a_better_address_is_tried_now_and_then_and_taken_when_it_answers(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {"localhost": 2}
    monkeypatch.setattr(
        "blackroad.bus.addresses.rank_of",
        lambda endpoint: ranks.get(endpoint.split("/")[2].split(":")[0], 0),
    )
    one, two = net.speaker(1), net.speaker(2)
    worse = also(two, "localhost")[0]
    two.transport.endpoints = (worse,)
    one.transport.hint(worse, net.now_ms(), node=two.node)
    net.until(lambda: one.knows(two) and two.knows(one))
    assert at(one, two) == worse
    two.transport.endpoints = (two.transport.endpoints[0], f"tcp://127.0.0.1:{two.transport.port}")
    two.transport.announce(two.transport.endpoints, net.now_ms())
    net.until(lambda: at(one, two) != worse, skip_ms=50)
    assert at(one, two) == two.transport.endpoints[1]
    assert one.knows(two), "the session goes on"
    one.transport.send(two.node, m.Goodbye(4))
    net.until(lambda: two.heard)
    assert two.heard == [(one.node, m.Goodbye(4))]


def test_the_address_that_is_named_first_is_taken_in_the_end(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    # Names count as ordinary addresses; both of these are the same place.
    first, second = also(two, "localhost", "127.1")
    two.transport.endpoints = (first, second)
    one.transport.hint(second, net.now_ms(), node=two.node)
    net.until(lambda: one.knows(two) and two.knows(one))
    net.until(lambda: at(one, two) == first, skip_ms=50)
    settled_ms = net.now_ms()
    net.until(lambda: net.now_ms() > settled_ms + 3 * dialling.PROBE_MS, skip_ms=1_000)
    assert at(one, two) == first, "it does not go back and forth"
    assert counted_moves(one) <= 3


def counted_moves(one: Speaker) -> int:
    """How many addresses of the peer were ever taken: each leaves the telemetry it had."""
    return len(one.transport.telemetry._former) + 1


def test_a_flood_of_inventions_is_bounded_and_a_late_truth_gets_its_chance(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    dialler = one.transport.dialler
    for number in range(10, 10 + 2 * PEERS_MAX):
        node = number.to_bytes(16, "big")
        place = f"tcp://127.1.{number >> 8}.{number & 255}:9"
        one.transport.hint(place, net.now_ms(), FOREVER_MS, node, MDNS)
    assert len(dialler.attempts()) <= HINTS_MAX
    assert len(dialler._places) <= PEERS_MAX + HINTS_MAX
    net.skip(dialling.CHANCE_MS)
    one.transport.hint(two.endpoint, net.now_ms(), FOREVER_MS, two.node, MDNS)
    net.until(lambda: one.knows(two) and two.knows(one))
    assert len(dialler.attempts()) <= HINTS_MAX


def test_what_was_tried_is_told(net: Net, silent: list[str]) -> None:
    one = net.speaker(1)
    other = net.speaker(2, cluster="attic")
    one.transport.hint(other.endpoint, net.now_ms())
    one.transport.hint(silent[0], net.now_ms(), source="remembered")
    attempts = one.transport.dialler.attempts
    net.until(
        lambda: (
            {row.endpoint: row.result for row in attempts()}.get(other.endpoint) != "waits"
            and {row.endpoint: row.result for row in attempts()}[other.endpoint] == "cluster"
        )
    )
    found = {row.endpoint: (row.source, row.result) for row in attempts()}
    assert found == {other.endpoint: ("static", "cluster"), silent[0]: ("remembered", "waits")}


def test_more_addresses_than_are_greeted_at_once_take_turns(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    for at_ in range(dialling.RACE_MAX + 2):
        one.transport.hint(f"tcp://127.0.0.1:{at_ + 1}", net.now_ms(), node=two.node)
    one.transport.hint(two.endpoint, net.now_ms(), node=two.node)
    assert len(one.transport.dialler.attempts()) == dialling.RACE_MAX
    net.until(lambda: one.knows(two), skip_ms=20)
    assert at(one, two) == two.endpoint
