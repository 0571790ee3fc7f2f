"""Addresses of one node: which come first, which are kept, what is worth a move."""

from __future__ import annotations

import pytest

from blackroad.bus.addresses import (
    ADDRESSES_MAX,
    CONTAINER,
    LOCAL,
    ORDINARY,
    OVERLAY,
    Addresses,
    host_of,
    is_quicker,
    rank_of,
)

LAN, WIFI, DOCKER, VPN = (
    f"tcp://{host}:7701" for host in ("192.168.1.5", "192.168.2.5", "172.17.0.1", "100.64.0.9")
)


def named(*endpoints: str) -> Addresses:
    known = Addresses()
    known.learn(endpoints, told=True)
    return known


def order(known: Addresses) -> list[str]:
    return [one.endpoint for one in known.ordered()]


@pytest.mark.parametrize(
    ("endpoint", "host", "rank"),
    [
        (LAN, "192.168.1.5", ORDINARY),
        ("tcp://attic.local:7701", "attic.local", ORDINARY),
        ("tcp://[fd00::2]:7701", "fd00::2", ORDINARY),
        ("tcp://[fe80::2%eth0]:7701", "fe80::2%eth0", LOCAL),
        (VPN, "100.64.0.9", OVERLAY),
        (DOCKER, "172.17.0.1", CONTAINER),
        ("tcp://127.0.0.1:1", "127.0.0.1", LOCAL),
        ("", "", ORDINARY),
    ],
)
def test_hosts_and_ranks(endpoint: str, host: str, rank: int) -> None:
    assert host_of(endpoint) == host
    assert rank_of(endpoint) == rank


def test_ordinary_addresses_come_first_and_then_those_that_once_answered() -> None:
    known = named(DOCKER, VPN, LAN, WIFI)
    assert order(known) == [LAN, WIFI, VPN, DOCKER]
    known.answered(WIFI, 5, 1)
    known.answered(DOCKER, 6, 1)
    assert order(known) == [WIFI, LAN, VPN, DOCKER]


def test_what_a_node_names_no_longer_is_a_hint_and_news_when_it_is_named_again() -> None:
    known = named(LAN, WIFI)
    assert not known.learn((LAN, WIFI), told=True)
    assert not known.learn((LAN,), told=True)
    assert known.told() == [LAN]
    assert WIFI in known
    assert known.learn((LAN, WIFI), told=True)
    assert not known.learn((DOCKER, LAN), told=False) or DOCKER in known


def test_inventions_never_displace_what_is_told() -> None:
    told = [f"tcp://10.0.0.{at}:1" for at in range(1, 5)]
    known = named(*told)
    for at in range(100):
        known.learn((f"tcp://10.1.0.{at}:1",), told=False)
    assert len(known) == ADDRESSES_MAX
    assert known.told() == told
    assert "tcp://10.1.0.99:1" in known, "the newest invention has its chance"
    many = [f"tcp://10.2.0.{at}:1" for at in range(ADDRESSES_MAX)]
    known.learn(many, told=True)
    assert known.told() == many, "the node itself is believed before all others"


def test_an_address_that_answered_is_kept() -> None:
    known = named()
    known.answered(LAN, 5, 1)
    for at in range(100):
        known.learn((f"tcp://10.1.0.{at}:1",), told=True)
    assert LAN in known


def test_rivals_are_of_the_same_kind_or_better() -> None:
    known = named(LAN, WIFI, DOCKER)
    assert known.rivals(LAN) == [WIFI]
    assert known.rivals(DOCKER) == [LAN, WIFI]
    assert known.is_better(LAN, DOCKER)
    assert not known.is_better(WIFI, LAN)


@pytest.mark.parametrize(
    ("there", "there_ms", "here", "here_ms", "moves"),
    [
        (LAN, 1, WIFI, 1, True),
        (WIFI, 1, LAN, 1, False),
        (WIFI, 1, LAN, 100, True),
        (LAN, 100, WIFI, 1, False),
        (LAN, 60, WIFI, 50, True),
        # Both answers come back over the slow way, and still the quick one can be told.
        (WIFI, 41, LAN, 80, True),
    ],
)
def test_the_first_named_is_taken_unless_it_is_much_slower(
    there: str, there_ms: int, here: str, here_ms: int, moves: bool
) -> None:
    assert named(LAN, WIFI).is_worth_it(there, there_ms, here, here_ms) is moves


def test_no_two_answers_call_for_moves_both_ways() -> None:
    known = named(LAN, WIFI)
    for lan_ms in range(0, 200, 7):
        for wifi_ms in range(0, 200, 7):
            to_lan = known.is_worth_it(LAN, lan_ms, WIFI, wifi_ms)
            to_wifi = known.is_worth_it(WIFI, wifi_ms, LAN, lan_ms)
            assert not (to_lan and to_wifi)
            assert not (is_quicker(lan_ms, wifi_ms) and is_quicker(wifi_ms, lan_ms))
