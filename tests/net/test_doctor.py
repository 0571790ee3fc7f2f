"""`blackroad doctor net` in closed clusters: what it finds, and what it says is to be done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos.shim import Shim, compiler
from tests.net import ways
from tests.net.closed import Box, Lab, closed, join_all, lab, missing, started, token_of, until

LACKS = missing()
pytestmark = [
    pytest.mark.edge,
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKS), reason=LACKS or "all is there"),
]
needs_nft = pytest.mark.skipif(not ways.has_nft(), reason="it needs `nft` (package nftables)")
BLOCKED = "n1 -> n2: port 7703 (objects) is blocked (no answer at 10.79.0.2)"
MINUTE_NS = 60 * 10**9


@pytest.fixture
def room() -> Iterator[Lab]:
    with lab() as made:
        yield made


def of(told: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The findings of one kind."""
    return [one for one in told["findings"] if one["kind"] == kind]


def settled(boxes: list[Box]) -> None:
    until(lambda: ways.all_see_all(boxes), "mesh")


def test_a_healthy_cluster_has_nothing_to_tell(room: Lab) -> None:
    boxes = closed(room, 3)
    settled(boxes)
    for box in boxes:
        # Everybody has heard everybody over multicast within seconds.
        until(lambda box=box: ways.doctor(box)[1]["findings"] == [], f"peace on {box.name}")
        said = box.run("doctor", "net")
        assert said.code == 0
        assert said.out == "no problem found: 3 nodes asked, all ports open in both directions\n"


def test_a_blocked_port_is_named_with_its_direction_and_the_rule(room: Lab) -> None:
    boxes = closed(room, 3)
    settled(boxes)
    ways.guard(boxes[1])
    ways.block(boxes[1], boxes[0].address, 7703)
    for box in boxes:
        code, told = ways.doctor(box)
        [found] = of(told, "port")
        assert (code, found["text"]) == (1, BLOCKED), box.name
        [rule] = found["do"]
        assert rule.startswith("on n2: ")
        assert {"10.79.0.1", "7703", "accept"} <= {word.lower() for word in rule.split()}


@needs_nft
def test_the_rule_that_it_names_lets_through_what_was_dropped(room: Lab) -> None:
    boxes = closed(room, 2)
    settled(boxes)
    ways.firewall(boxes[1], "ip saddr 10.79.0.1 tcp dport 7703 drop")
    code, told = ways.doctor(boxes[0])
    assert (code, [one["text"] for one in of(told, "port")]) == (1, [BLOCKED])
    boxes[1].shell(of(told, "port")[0]["do"][0].removeprefix("on n2: "))
    assert ways.doctor(boxes[0])[0] == 0


# --- a copied machine -----------------------------------------------------------------------------


def copied(room: Lab) -> tuple[list[Box], Box]:
    """A cluster of three, and a machine with a copy of the second one's disk; both run."""
    boxes = closed(room, 3)
    settled(boxes)
    [copy] = room.add()
    boxes[1].stop()
    shutil.copytree(boxes[1].home / "state", copy.home / "state", dirs_exist_ok=True)
    started([boxes[1], copy])
    return boxes, copy


def clones(box: Box) -> list[dict[str, Any]]:
    return of(ways.doctor(box)[1], "clone")


def test_a_copied_machine_is_named_by_both_and_by_third_ones(room: Lab) -> None:
    boxes, copy = copied(room)
    for third in (boxes[0], boxes[2]):
        until(lambda third=third: clones(third), f"finding on {third.name}")
        code, told = ways.doctor(third)
        assert code == 1
        [found] = told["findings"]
        assert found["text"].startswith("two machines use the identity of n")
        assert all(f"{one.address}:7701" in found["text"] for one in (boxes[1], copy))
    for twin in (boxes[1], copy):
        until(lambda twin=twin: clones(twin), f"finding on {twin.name}")
        [found] = ways.doctor(twin)[1]["findings"]
        assert found["text"].startswith(f"two machines use the identity of {twin.name} (")


def test_its_advice_about_a_copied_machine_helps(room: Lab) -> None:
    boxes, copy = copied(room)
    until(lambda: clones(boxes[0]), "finding")
    on_copy, on_other = clones(boxes[0])[0]["do"]
    copy.stop()
    state = copy.home / "state"
    for name in ("identity.json", "journal.sqlite", "cluster/"):
        assert name in on_copy
        there = state / name
        shutil.rmtree(there) if there.is_dir() else there.unlink()
    started([copy])
    assert "blackroad join" in on_copy
    said = copy.run("join", token_of(boxes[0]))
    assert said.code == 0, said.err
    assert "restart the daemon on the other one" in on_other
    boxes[1].stop()
    started([boxes[1]])
    settled([*boxes, copy])
    for box in (boxes[0], boxes[1], copy):
        until(lambda box=box: ways.doctor(box)[0] == 0, f"peace on {box.name}")


# --- clocks and multicast -------------------------------------------------------------------------


@pytest.mark.skipif(not compiler(), reason="it needs a C compiler for tests/chaos/shim.c")
def test_a_clock_that_is_off_by_a_minute_is_named(room: Lab) -> None:
    boxes = room.add(3)
    shim = Shim(room, boxes[1])
    join_all(boxes)
    settled(boxes)
    shim.set(real_ns=-MINUTE_NS)
    for box in boxes:
        code, told = ways.doctor(box)
        [found] = of(told, "clock")
        assert (code, found["text"]) == (1, "the clock of n2 is 1 min behind those of n1 and n3")
        assert found["do"][0] == "on n2: timedatectl set-ntp true"
    shim.set(real_ns=0)
    assert ways.doctor(boxes[0])[0] == 0


def with_peers(room: Lab) -> list[Box]:
    """Three machines that find each other without multicast."""
    first = room.add()[0]
    return [first, *room.add(2, BLACKROAD_PEERS=first.address)]


def test_multicast_that_a_switch_drops_is_told_though_all_works(room: Lab) -> None:
    boxes = with_peers(room)
    ways.no_multicast(room)
    join_all(boxes)
    settled(boxes)
    code, told = ways.doctor(boxes[2])
    assert code == 0, "it works, so that is no problem"
    texts = [one["text"] for one in of(told, "multicast")]
    assert len(texts) == len(told["findings"]) == 3
    assert any("multicast does not pass between n3 and n1" in text for text in texts)


@needs_nft
def test_a_firewall_that_drops_multicast_is_named_with_the_rule(room: Lab) -> None:
    boxes = with_peers(room)
    for box in boxes:
        ways.firewall(box, "ip daddr 224.0.0.251 udp dport 5353 drop")
    join_all(boxes)
    settled(boxes)
    until(lambda: len(ways.doctor(boxes[2])[1]["findings"]) == 3, "finding about each machine")
    code, told = ways.doctor(boxes[2])
    assert code == 1
    for box in boxes:
        [found] = [one for one in told["findings"] if one["text"].startswith(f"{box.name}: ")]
        assert "224.0.0.251 port 5353" in found["text"]
        [rule] = found["do"]
        box.shell(rule.removeprefix(f"on {box.name}: "))
    until(lambda: ways.doctor(boxes[2])[1]["findings"] == [], "peace")
