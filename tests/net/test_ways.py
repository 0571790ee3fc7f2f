"""Open meshes in networks as they are found: no multicast, two networks, docker0, firewalls."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.net import ways
from tests.net.closed import Lab, lab, missing, until

LACKS = missing()
pytestmark = [
    pytest.mark.edge,
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKS), reason=LACKS or "all is there"),
]


@pytest.fixture
def room() -> Iterator[Lab]:
    with lab() as made:
        yield made


def test_without_multicast_one_named_peer_is_enough_and_the_doctor_says_so(room: Lab) -> None:
    boxes = ways.opened(room, 3)
    ways.no_multicast(room)
    ways.start(boxes[:1])
    ways.start(boxes[1:], BLACKROAD_PEERS=boxes[0].address)
    until(lambda: ways.all_see_all(boxes), "mesh")
    code, told = ways.doctor(boxes[2])
    texts = [one["text"] for one in told["findings"] if one["kind"] == "multicast"]
    assert any("n3 and n1" in text for text in texts)
    assert code == 0, "it works, so that is no problem"


def test_two_networks_are_joined_by_whoever_is_in_both(room: Lab) -> None:
    """The first address that n1 announces is out of reach for n2, the second is not."""
    boxes = ways.opened(room, 2)
    ways.link(room, boxes, "eth1", "10.80.0")
    ways.ip(boxes[1].space, "link set eth0 down")
    ways.start(boxes)
    until(lambda: ways.all_see_all(boxes), "mesh")
    assert ways.addresses(boxes[1]) == {"n1": "tcp://10.80.0.1:7701"}


def test_an_interface_that_comes_later_is_noticed(room: Lab) -> None:
    boxes = ways.opened(room, 2)
    ways.ip(boxes[1].space, "link set eth0 down")
    ways.start(boxes)
    assert ways.seen(boxes[1]) == {"n2": "alive"}
    ways.ip(boxes[1].space, "link set eth0 up")
    until(lambda: ways.all_see_all(boxes), "mesh")


def test_the_same_docker0_everywhere_misleads_nobody(room: Lab) -> None:
    boxes = ways.opened(room, 3)
    for box in boxes:
        ways.docker0(box)
    ways.start(boxes)
    until(lambda: ways.all_see_all(boxes), "mesh")
    for box in boxes:
        others = {other.name: other.address for other in boxes if other is not box}
        assert ways.addresses(box) == {
            name: f"tcp://{address}:7701" for name, address in others.items()
        }
        code, told = ways.doctor(box)
        assert (code, told["findings"]) == (0, [])


def test_the_quick_link_is_used_again_when_it_is_back(room: Lab) -> None:
    # Both look alike to the kernel, so what comes first is the first by name.
    boxes = ways.opened(room, 2)
    ways.link(room, boxes, "a1", "10.80.0")
    for box in boxes:
        ways.slow(box, "eth0")
    ways.start(boxes)
    until(lambda: ways.all_see_all(boxes), "mesh")
    quick, slow = {"n1": "tcp://10.80.0.1:7701"}, {"n1": "tcp://10.79.0.1:7701"}
    until(lambda: ways.addresses(boxes[1]) == quick, "use of the quick link")
    ways.ip(boxes[1].space, "link set a1 down")
    until(lambda: ways.addresses(boxes[1]) == slow, "use of the slow link")
    until(lambda: ways.all_see_all(boxes), "mesh over the slow link")
    ways.ip(boxes[1].space, "link set a1 up")
    until(lambda: ways.addresses(boxes[1]) == quick, "return to the quick link")


# --- one-way firewalls ----------------------------------------------------------------------------


def blocked(told: dict[str, object]) -> list[str]:
    """What the doctor says of ports."""
    findings = told["findings"]
    assert isinstance(findings, list)
    return sorted(one["text"] for one in findings if one["kind"] == "port")


def test_one_blocked_port_is_named_with_its_direction(room: Lab) -> None:
    boxes = ways.opened(room, 3)
    ways.guard(boxes[1])
    ways.start(boxes)
    until(lambda: ways.all_see_all(boxes), "mesh")
    ways.block(boxes[1], boxes[0].address, 7703)
    expected = ["n1 -> n2: port 7703 (objects) is blocked (no answer at 10.79.0.2)"]
    for box in boxes:
        code, told = ways.doctor(box)
        assert (code, blocked(told)) == (1, expected), box.name
    [finding] = [one for one in told["findings"] if one["kind"] == "port"]
    assert finding["do"][0].startswith("on n2: ")
    assert "10.79.0.1" in finding["do"][0]
    assert "7703" in finding["do"][0]


def test_telemetry_alone_blocked_is_named_by_the_deaf_and_by_third_nodes(room: Lab) -> None:
    """n1 takes n2 for dead, for it does not hear it; n3 hears both."""
    boxes = ways.opened(room, 3)
    ways.guard(boxes[1])
    ways.block(boxes[1], boxes[0].address, 7702)
    ways.start(boxes)
    until(lambda: ways.seen(boxes[2]) == dict.fromkeys(("n1", "n2", "n3"), "alive"), "n3's view")
    expected = ["n1 -> n2: port 7702 (telemetry) is blocked (no answer at 10.79.0.2)"]
    for box in (boxes[0], boxes[2]):
        until(lambda box=box: blocked(ways.doctor(box)[1]) == expected, f"finding on {box.name}")


def test_a_wall_in_one_direction_is_named_from_both_sides(room: Lab) -> None:
    """Nothing that n1 sends gets into n2; what n2 sends gets out."""
    boxes = ways.opened(room, 2)
    ways.guard(boxes[1])
    ways.block(boxes[1], boxes[0].address)
    ways.start(boxes)
    ports = "ports 7701 (messages) and 7702 (telemetry) and 7703 (objects) are blocked"
    expected = f"n1 -> n2: {ports} (no answer at 10.79.0.2)"
    until(lambda: expected in blocked(ways.doctor(boxes[0])[1]), "finding on n1")
    says = "10.79.0.1:7701 -> n2: port 7701 (messages) seems blocked"
    until(
        lambda: any(text.startswith(says) for text in blocked(ways.doctor(boxes[1])[1])),
        "finding on n2",
    )


def test_who_hears_nobody_says_so_and_lists_what_it_tried(room: Lab) -> None:
    [box] = ways.opened(room, 1, BLACKROAD_PEERS="10.79.0.77,10.79.0.1:7999")
    ways.start([box])
    alone = until(lambda: [line for line in box.log() if line["event"] == "net.alone"], "that line")
    tried = "\n".join(alone[0]["tried"])
    assert "mDNS: nobody heard on 10.79.0.1" in tried
    assert "static tcp://10.79.0.1:7999: refused" in tried
    nowhere = r"10\.79\.0\.77:7701: (no answer|no machine there)"
    assert re.search(f"static tcp://{nowhere}", tried)
    said = box.run("nodes")
    assert "this node hears no other one" in said.out
    assert re.search(nowhere, said.out)
    code, told = ways.doctor(box)
    assert code == 1
    assert [one["kind"] for one in told["findings"]] == ["alone", "peer", "peer"]
