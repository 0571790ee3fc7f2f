"""Hints: what strangers and configurations suggest, checked before anything is dialled."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackroad.discovery.hints import (
    Announcement,
    Door,
    Hint,
    HintTable,
    door_from_txt,
    from_registry,
    from_static,
    from_txt,
    registry_entry,
    usable_addresses,
)
from blackroad.errors import ConfigError
from blackroad.limits import HINTS_MAX

OWN = Announcement("a" * 26, (7701, 7702, 7703), (1, 2), "aarch64", "d" * 26, "c" * 26)
PEER = Announcement("b" * 26, (7711, 7712, 7713), (1, 1), "x86_64", "e" * 26, "c" * 26)
ADDRESSES = ["192.168.1.5", "fd00::5", "172.17.0.1"]


def hint_of(txt: dict[str, str], addresses: list[str] | None = None) -> Hint | None:
    return from_txt(txt, addresses or [], own=OWN)


def test_an_announcement_becomes_a_hint() -> None:
    assert hint_of(PEER.txt(ADDRESSES), ["192.168.1.5", "10.0.0.5"]) == Hint(
        node="b" * 26,
        endpoints=(
            "tcp://192.168.1.5:7711",
            "tcp://[fd00::5]:7711",
            "tcp://10.0.0.5:7711",
            "tcp://172.17.0.1:7711",
        ),
        source="mdns",
        ports=(7711, 7712, 7713),
        versions=(1, 1),
        arch="x86_64",
        caps_digest="e" * 26,
    )


def test_a_txt_record_stays_below_400_bytes() -> None:
    longest = Announcement("b" * 26, (65535,) * 3, (65535, 65535), "m" * 32, "d" * 52, "c" * 52)
    txt = longest.txt([f"fd00:1111:2222:3333:4444:5555:6666:{n:04x}" for n in range(40)])
    # One length byte before each pair.
    assert sum(len(key) + len(value) + 2 for key, value in txt.items()) < 400
    assert max(len(key) + len(value) + 1 for key, value in txt.items()) < 256
    assert txt["a"].count(",") == 3


def test_foreign_clusters_and_our_own_voice_are_passed_over() -> None:
    assert hint_of(OWN.txt(ADDRESSES)) is None
    assert hint_of(PEER.txt(ADDRESSES) | {"c": "f" * 26}) is None
    without = PEER.txt(ADDRESSES)
    del without["c"]
    assert hint_of(without) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("id", ""), ("id", "b" * 25), ("id", "B" * 26), ("id", "../../etc/passwd0123456789"),
     ("p", ""), ("p", "7701"), ("p", "7701,7702"), ("p", "0,1,2"), ("p", "7701,7702,65536"),
     ("p", "7701,7702,-1"), ("p", "\u0667\u0667,1,2"), ("p", "7701,7702,7703,7704"),
     ("a", ""), ("a", "attic.local"), ("a", "127.0.0.1,::1"), ("a", "224.0.0.251,0.0.0.0,::"),
     ("a", "255.255.255.255"), ("a", "fe80::1"), ("a", "fd00::1%eth0;rm"),
     ("a", "::ffff:127.0.0.1"), ("a", "1.2.3")],
)  # fmt: skip
def test_malformed_advertisements_are_refused(key: str, value: str) -> None:
    assert hint_of(PEER.txt(["192.168.1.5"])) is not None
    assert hint_of(PEER.txt(["192.168.1.5"]) | {key: value}) is None


def test_odd_details_are_left_out_but_the_hint_stays() -> None:
    txt = PEER.txt(["10.0.0.1"]) | {"v": "1-x", "m": "\x1b[2J", "d": "DIGEST"}
    found = hint_of(txt)
    assert found is not None
    assert (found.versions, found.arch, found.caps_digest) == ((0, 0), "", "")


def test_addresses_that_rarely_lead_anywhere_come_last() -> None:
    given_order = ["169.254.1.1", "172.17.0.1", "100.64.0.9", "10.0.0.1", "203.0.113.7"]
    assert usable_addresses(given_order) == [
        "10.0.0.1", "203.0.113.7", "100.64.0.9", "172.17.0.1", "169.254.1.1",
    ]  # fmt: skip
    assert usable_addresses(["127.0.0.1", "10.0.0.1"], loopback=True) == ["10.0.0.1", "127.0.0.1"]
    assert len(usable_addresses([f"10.0.0.{n}" for n in range(99)])) == 16


@given(st.dictionaries(st.sampled_from(["id", "v", "p", "m", "d", "c", "a"]), st.text(max_size=60)),
       st.lists(st.text(max_size=40), max_size=4))  # fmt: skip
def test_any_advertisement_is_a_hint_or_nothing(txt: dict[str, str], more: list[str]) -> None:
    found = hint_of(PEER.txt(["10.0.0.1"]) | txt, more)
    if found is not None:
        assert all(place.isascii() and place.isprintable() for place in found.endpoints)
        assert found.node != OWN.node


@pytest.mark.parametrize(
    ("peer", "place"),
    [("attic", "tcp://attic:7701"), ("Attic.Local", "tcp://attic.local:7701"),
     ("192.168.1.5", "tcp://192.168.1.5:7701"), ("192.168.1.5:7", "tcp://192.168.1.5:7"),
     ("tcp://attic:8000", "tcp://attic:8000"), ("fd00::2", "tcp://[fd00::2]:7701"),
     ("[fd00::2]:7", "tcp://[fd00::2]:7"), (" 127.0.0.1 ", "tcp://127.0.0.1:7701")],
)  # fmt: skip
def test_static_peers(peer: str, place: str) -> None:
    assert from_static([peer, peer]) == [Hint("", (place,), "static")]


@pytest.mark.parametrize(
    "peer",
    ["", "attic:0", "attic:65536", "attic:x", "a b", "http://attic", "attic/", "-attic",
     "192.168.1.500", "224.0.0.1", "0.0.0.0", "[attic]:7701", "[fd00::2", "x" * 254, "a" * 2000,
     "attic:7701:7702", "at\ntic"],
)  # fmt: skip
def test_static_peers_that_cannot_be(peer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_static([peer])
    assert caught.value.message.startswith("peers: ")


def test_too_many_static_peers() -> None:
    with pytest.raises(ConfigError, match="257 entries"):
        from_static([f"node{number}" for number in range(257)])


def mdns(node: str, place: str = "tcp://10.0.0.1:7701") -> Hint:
    return Hint(node, (place,), "mdns")


def test_only_news_are_news() -> None:
    table = HintTable()
    assert table.learn(mdns("n1"))
    assert not table.learn(mdns("n1"))
    assert table.learn(mdns("n1", "tcp://10.0.0.2:7701"))
    [static] = from_static(["attic"])
    assert table.learn(static)
    assert not table.learn(static)
    assert table.all() == [mdns("n1", "tcp://10.0.0.2:7701"), static]
    table.forget("n1")
    table.forget("n1")
    assert table.all() == [static]


def test_a_configured_place_that_a_node_claims_is_listed_once() -> None:
    table = HintTable()
    table.learn(from_static(["10.0.0.1"])[0])
    table.learn(mdns("n1"))
    assert table.all() == [mdns("n1")]
    assert len(table) == 2
    table.forget("n1")
    assert [hint.source for hint in table.all()] == ["static"]


def test_a_flood_pushes_out_the_oldest_but_nothing_configured() -> None:
    table = HintTable()
    for hint in from_static(["attic", "shed"]):
        table.learn(hint)
    for number in range(HINTS_MAX + 10):
        table.learn(mdns(f"n{number}", f"tcp://10.0.0.1:{number + 1}"))
    assert len(table) == HINTS_MAX + 2
    assert table.evicted == 10
    nodes = {hint.node for hint in table.all()}
    assert "n9" not in nodes
    assert {"n10", f"n{HINTS_MAX + 9}", ""} <= nodes


# --- doors and registries -------------------------------------------------------------------------

DOOR_KEY = bytes(range(32))


def test_a_door_is_announced_and_found_by_whoever_is_in_no_cluster() -> None:
    with_door = msgspec.structs.replace(OWN, join_port=7700, door_key=DOOR_KEY)
    txt = with_door.txt(["10.0.0.5", "fd00::5"])
    assert sum(len(key) + len(value) + 2 for key, value in txt.items()) < 400
    assert door_from_txt(txt, []) == Door(
        "c" * 26, "a" * 26, ("tcp://10.0.0.5:7700", "tcp://[fd00::5]:7700"), DOOR_KEY
    )
    assert door_from_txt(OWN.txt(["10.0.0.5"]), []) is None
    closed = msgspec.structs.replace(with_door, door_key=b"")
    assert not {"j", "k"} & set(closed.txt(["10.0.0.5"]))


@pytest.mark.parametrize(
    "change",
    [
        {"j": "0"}, {"j": "70000"}, {"j": "x"}, {"j": ""}, {"k": "a" * 51}, {"k": "A" * 52},
        {"k": ""}, {"id": "x"}, {"c": ""}, {"a": "127.0.0.1"}, {"a": "224.0.0.1"},
    ],
)  # fmt: skip
def test_a_door_that_makes_no_sense_is_none(change: dict[str, str]) -> None:
    with_door = msgspec.structs.replace(OWN, join_port=7700, door_key=DOOR_KEY)
    assert door_from_txt({**with_door.txt(["10.0.0.5"]), **change}, []) is None


def test_an_entry_of_a_registry_comes_back_as_a_hint() -> None:
    other = msgspec.structs.replace(OWN, node="b" * 26)
    entry = registry_entry(other, ["tcp://10.0.0.5:7701", "tcp://[fd00::5]:7701"])
    hint = from_registry(entry, own=OWN)
    assert hint is not None
    assert (hint.node, hint.source, hint.ports) == ("b" * 26, "redis", (7701, 7702, 7703))
    assert hint.endpoints == ("tcp://10.0.0.5:7701", "tcp://[fd00::5]:7701")
    assert from_registry(entry, own=other) is None, "it is one's own"


@given(st.binary(max_size=200))
def test_any_entry_of_a_registry_is_read_or_left(entry: bytes) -> None:
    hint = from_registry(entry, own=OWN)
    assert hint is None or hint.source == "redis"
