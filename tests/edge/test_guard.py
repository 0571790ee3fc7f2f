"""Who gets in at the sockets of a closed mesh: the matrix, counting, the attack on oneself."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import psutil
import pytest
import zmq

from blackroad.bus import guard as guarding
from blackroad.bus import sockets
from blackroad.bus.guard import ADDRESSES_MAX, DOOR_PER_ADDRESS, OTHERS, Guard, Refusals
from blackroad.bus.members import Role
from blackroad.bus.sockets import Bus, key_pair
from blackroad.errors import EnvironmentProblem, LocalProtocolError
from blackroad.limits import MIB
from tests.edge.closed_nets import ClosedNet, ClosedSpeaker, Shelf, Stranger, new_keys

pytestmark = pytest.mark.edge

PORTS = ("inbox", "telemetry", "bulk")


@pytest.fixture
def net() -> Iterator[ClosedNet]:
    one = ClosedNet()
    yield one
    one.close()


def port_of(one: ClosedSpeaker, which: str) -> int:
    ports = dict(zip(PORTS, one.ports, strict=True))
    return ports[which]


def knock(
    net: ClosedNet, one: ClosedSpeaker, which: str, keys: tuple[bytes, bytes] | None
) -> Stranger:
    """Somebody with these keys at one of its ports, with the socket that belongs there."""
    kind = zmq.SUB if which == "telemetry" else zmq.DEALER
    return net.stranger(port_of(one, which), one.own.curve_public, keys, kind)


def pair(own: object) -> tuple[bytes, bytes]:
    """What a ZeroMQ socket takes of a node's keys."""
    return own.curve_secret, own.curve_public  # type: ignore[attr-defined]


def unsecured(one: ClosedSpeaker) -> int:
    """How often somebody came without keys; either side may be the first to hang up then."""
    return one.refusals.get("mechanism", 0) + one.refusals.get("handshake", 0)


# --- the matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize("which", PORTS)
def test_an_unknown_key_stays_outside_and_is_counted(net: ClosedNet, which: str) -> None:
    one = net.node()
    stranger = knock(net, one, which, key_pair())
    net.until(lambda: one.refusals.get("key") and stranger.turned_away)
    assert one.guard.refusals.by_address["127.0.0.1"] >= 1


@pytest.mark.parametrize("which", PORTS)
def test_without_a_key_nobody_gets_in(net: ClosedNet, which: str) -> None:
    one = net.node()
    stranger = knock(net, one, which, None)
    net.until(lambda: unsecured(one) and stranger.turned_away)


@pytest.mark.parametrize("which", PORTS)
def test_a_member_that_expects_another_node_stays_outside(net: ClosedNet, which: str) -> None:
    one = net.node()
    member = net.shelf.admit(Role.NODE)
    kind = zmq.SUB if which == "telemetry" else zmq.DEALER
    stranger = net.stranger(port_of(one, which), new_keys().curve_public, pair(member), kind)
    net.until(lambda: one.refusals.get("server_key") and stranger.turned_away)


@pytest.mark.parametrize("which", PORTS)
def test_a_member_of_another_cluster_stays_outside(net: ClosedNet, which: str) -> None:
    one = net.node()
    stranger = knock(net, one, which, pair(Shelf().admit(Role.ADMIN)))
    net.until(lambda: one.refusals.get("key") and stranger.turned_away)


@pytest.mark.parametrize("which", PORTS)
def test_a_member_gets_in(net: ClosedNet, which: str) -> None:
    one = net.node()
    member = knock(net, one, which, pair(net.shelf.admit(Role.NODE)))
    net.until(lambda: member.inside)
    assert one.refusals == {}


@pytest.mark.parametrize("which", PORTS)
def test_whoever_is_admitted_later_gets_in_by_itself(net: ClosedNet, which: str) -> None:
    one = net.node()
    late = new_keys()
    stranger = knock(net, one, which, pair(late))
    net.until(lambda: stranger.turned_away)
    net.shelf.admit(Role.NODE, late)
    net.until(lambda: stranger.inside)


@pytest.mark.parametrize("which", PORTS)
def test_nobody_gets_in_while_the_loop_is_stuck(net: ClosedNet, which: str) -> None:
    one = net.node()
    one.serves = False
    member = knock(net, one, which, pair(net.shelf.admit(Role.NODE)))
    net.until(lambda: member.turned_away)
    one.serves = True
    net.until(lambda: member.inside)


def test_silence_is_counted_and_cut(net: ClosedNet) -> None:
    one = net.node()
    with socket.create_connection(("127.0.0.1", one.transport.port)) as silent:
        net.until(lambda: one.refusals.get("silence"))
        silent.settimeout(5)
        while silent.recv(64):
            continue


def test_a_frame_before_the_handshake_is_cut(net: ClosedNet) -> None:
    one = net.node()
    net.until(lambda: True)
    here = psutil.Process()
    before_bytes = here.memory_info().rss
    part = bytes(MIB)
    sent_bytes = 0
    with socket.create_connection(("127.0.0.1", one.transport.port)) as raw:
        raw.settimeout(5)
        raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(52, b"\0"))
        while len(raw.recv(64, socket.MSG_PEEK)) < 64:
            continue
        raw.recv(64)
        # A command of 300 MiB, and then its bytes.
        head = b"\x06" + (300 * MIB).to_bytes(8, "big")
        raw.sendall(head)
        with contextlib.suppress(OSError):
            while sent_bytes < 300 * MIB:
                raw.sendall(part)
                sent_bytes += len(part)
    assert sent_bytes < 32 * MIB, "it was read on and on"
    assert here.memory_info().rss - before_bytes < 16 * MIB


# --- the judge ----------------------------------------------------------------------------------


def test_a_closed_bus_speaks_with_nobody_whose_key_is_not_known() -> None:
    bus = Bus(new_keys())
    try:
        for maker in (bus.peer, bus.bulk_client, bus.subscriber):
            with pytest.raises(LocalProtocolError, match="key"):
                maker()
    finally:
        bus.close()


def test_the_judge_answers_so_that_one_may_come_back(net: ClosedNet) -> None:
    # After a 400, ZeroMQ never tries again, though the key may be admitted a moment later.
    assert guarding._NOT_NOW == b"300"
    one = net.node()
    stranger = knock(net, one, "inbox", key_pair())
    net.until(lambda: one.refusals.get("key", 0) >= 2)
    assert not stranger.inside


def test_addresses_are_counted_up_to_a_bound() -> None:
    refusals = Refusals()
    for number in range(ADDRESSES_MAX + 50):
        refusals.count("key", f"10.0.{number // 256}.{number % 256}")
    assert refusals.total == ADDRESSES_MAX + 50
    assert len(refusals.by_address) == ADDRESSES_MAX + 1
    assert refusals.by_address[OTHERS] == 50


def test_an_expired_member_is_none(net: ClosedNet) -> None:
    own = new_keys()
    now_ms = time.time_ns() // 1_000_000
    net.shelf.sign(own, Role.NODE, expires_ms=now_ms + 3_600_000)
    one = net.node()
    assert one.guard.node_with(own.curve_public) == own.node
    one.guard._wall = lambda: now_ms + 3_700_000
    one.guard.tick()
    assert one.guard.member(own.curve_public) is None
    assert one.guard.key_of(own.node) == b""


def test_only_nodes_are_spoken_to(net: ClosedNet) -> None:
    one = net.node()
    guest = net.shelf.admit(Role.SUBMIT)
    assert one.guard.member(guest.curve_public) is not None
    assert one.guard.node_with(guest.curve_public) == b""
    assert one.guard.keys_for(guest.node) == []


# --- the door -----------------------------------------------------------------------------------


@pytest.fixture
def door(net: ClosedNet) -> tuple[ClosedSpeaker, sockets.Socket, int, bytes]:
    one = net.node()
    secret, public = key_pair()
    made = one.bus.door(secret)
    port = sockets.bind(made, "127.0.0.1", 0, "join_port")
    one.guard.watch("the door", made, "127.0.0.1", port, door=True)
    return one, made, port, public


Door = tuple[ClosedSpeaker, sockets.Socket, int, bytes]


def test_at_the_door_any_key_is_heard(net: ClosedNet, door: Door) -> None:
    _, made, port, public = door
    newcomer = key_pair()
    knocking = net.stranger(port, public, newcomer)
    net.until(lambda: knocking.inside)
    knocking.send(b"", b"let me in")
    heard: list[sockets.Keyed] = []

    def came() -> bool:
        heard.extend(sockets.drain_door(made))
        return bool(heard)

    net.until(came)
    assert (heard[0].key, heard[0].address) == (newcomer[1], "127.0.0.1")
    assert heard[0].frames[1:] == [b"", b"let me in"]


@pytest.mark.parametrize("expected", ["no key", "another key"])
def test_the_door_opens_to_its_own_key_only(net: ClosedNet, door: Door, expected: str) -> None:
    one, _, port, _ = door
    own = None if expected == "no key" else key_pair()
    knocking = net.stranger(port, one.own.curve_public, own)
    counted = unsecured if own is None else lambda there: there.refusals.get("server_key", 0)
    net.until(lambda: counted(one) and knocking.turned_away)


def test_whoever_knocks_too_often_is_not_heard(door: Door) -> None:
    guard = door[0].guard
    answers = [guard._admits(sockets.DOOR_DOMAIN, b"k" * 32, "10.0.0.1") for _ in range(60)]
    assert answers.count(True) == DOOR_PER_ADDRESS
    assert guard._admits(sockets.DOOR_DOMAIN, b"k" * 32, "10.0.0.2"), "others are still heard"
    assert guard.refusals.by_kind["door"] == 60 - DOOR_PER_ADDRESS


def test_what_is_too_long_for_the_door_is_cut(net: ClosedNet, door: Door) -> None:
    _, made, port, public = door
    knocking = net.stranger(port, public, key_pair())
    net.until(lambda: knocking.inside)
    knocking.send(b"", bytes(8 * 1024))
    net.until(lambda: int(zmq.EVENT_DISCONNECTED) in knocking.look())
    assert list(sockets.drain_door(made)) == []


# --- the attack on oneself ----------------------------------------------------------------------


def test_what_is_as_it_should_be_withstands_the_attack(net: ClosedNet) -> None:
    one = net.node()
    one.guard.attack()
    assert one.refusals == {}, "its own attack is nobody's"


@pytest.mark.parametrize("which", PORTS)
def test_an_open_socket_is_found(net: ClosedNet, which: str) -> None:
    one = net.node()
    one.bus._keys = None
    made = one.bus.publisher() if which == "telemetry" else one.bus.inbox()
    port = sockets.bind(made, "127.0.0.1", 0, "port")
    one.guard.watch("it", made, "127.0.0.1", port, listens=which == "telemetry")
    with pytest.raises(EnvironmentProblem, match="without a key got into it"):
        one.guard.attack()


def test_a_socket_that_asks_nobody_is_found(net: ClosedNet) -> None:
    one = net.node()
    made = one.bus._make(zmq.ROUTER, sockets.FRAME_BYTES_MAX, 1_000)
    # Without a domain, ZeroMQ enforces what it never asks about.
    made.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
    made.set(zmq.CURVE_SERVER, 1)
    made.set(zmq.CURVE_SECRETKEY, one.own.curve_secret)
    port = sockets.bind(made, "127.0.0.1", 0, "port")
    one.guard.watch("it", made, "127.0.0.1", port)
    with pytest.raises(EnvironmentProblem, match="a key that nobody knows got into it"):
        one.guard.attack()


def test_a_judge_that_admits_everybody_is_found(
    net: ClosedNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = net.node()
    monkeypatch.setattr(Guard, "_admits", lambda *_asked: True)
    with pytest.raises(EnvironmentProblem, match="got into"):
        one.guard.attack()


def test_a_judge_that_is_not_asked_is_found(
    net: ClosedNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = net.node()
    monkeypatch.setattr(guarding, "ATTACK_MS", 300)
    monkeypatch.setattr(Guard, "serve", lambda _self: None)
    with pytest.raises(EnvironmentProblem, match="nobody judges"):
        one.guard.attack()
