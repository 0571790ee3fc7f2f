"""Links of a closed mesh: who may speak for whom, what a role may say, and what revoking ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.keys import NodeKeys
from blackroad.bus.members import Role
from blackroad.bus.telemetry import FORMER_MS
from blackroad.bus.transport import closed_cluster_digest
from blackroad.ids import incarnation
from tests.edge.closed_nets import ClosedNet, ClosedSpeaker, Stranger
from tests.edge.transports import hello, replies

pytestmark = pytest.mark.edge

BEAT = (5, 1, None, b"", False, (), m.Supply(), 0, 0, b"")
INC = incarnation(1, 0x5EED)


@pytest.fixture
def net() -> Iterator[ClosedNet]:
    one = ClosedNet()
    yield one
    one.close()


def inside(net: ClosedNet, one: ClosedSpeaker, own: NodeKeys) -> Stranger:
    """A member that is connected to the inbox and bound by no rule."""
    keys = own.curve_secret, own.curve_public
    stranger = net.stranger(one.transport.port, one.own.curve_public, keys)
    net.until(lambda: stranger.inside)
    return stranger


def greeting(net: ClosedNet, node: bytes, endpoint: str = "tcp://127.0.0.1:1") -> m.Hello:
    cluster = closed_cluster_digest(net.shelf.cluster_id)
    return hello(node, INC, endpoint, cluster=cluster)


def counted(one: ClosedSpeaker, name: str) -> int:
    return one.transport.counters.get(name, 0)


def beat_of(one: ClosedSpeaker, stamp_ms: int = 5) -> m.Heartbeat:
    return m.Heartbeat(one.node, one.inc, stamp_ms, *BEAT[1:])


# --- meeting ------------------------------------------------------------------------------------


def test_members_meet_and_hear_each_other(net: ClosedNet) -> None:
    one, two, three = (net.node() for _ in range(3))
    net.meet(one, two, three)
    one.transport.send(two.node, m.Goodbye(1))

    def heard() -> bool:
        one.transport.publish(beat_of(one))
        return bool(two.heard and two.beats and three.beats)

    net.until(heard)
    assert two.heard == [(one.node, m.Goodbye(1))]
    assert {beat.node for beat in three.beats} == {one.node}


def test_who_takes_over_the_former_address_of_another_is_heard(net: ClosedNet) -> None:
    """A machine with a new key where a copy of another one was: the ear there had that key."""
    one, two, three = (net.node() for _ in range(3))
    ears, now_ms = one.transport.telemetry, net.now_ms()
    there = f"tcp://127.0.0.1:{three.transport.telemetry_port}"
    elsewhere = f"tcp://127.0.0.1:{two.transport.telemetry_port}"
    ears.hear(two.node, two.own.curve_public, there, now_ms)
    ears.hear(two.node, two.own.curve_public, elsewhere, now_ms)
    ears.hear(three.node, three.own.curve_public, there, now_ms)

    def heard() -> bool:
        for speaker in (two, three):
            speaker.transport.publish(beat_of(speaker))
        return {beat.node for beat in one.beats} == {two.node, three.node}

    net.until(heard)
    sockets = len(ears.sockets())
    ears.tick(now_ms + FORMER_MS)
    assert len(ears.sockets()) == sockets - 1, "the former ear is given up, and nothing else"


def test_whose_address_it_is_is_found_among_many_members(net: ClosedNet) -> None:
    for _ in range(12):
        net.shelf.admit(Role.NODE)
    one, two = net.node(), net.node()
    two.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: one.knows(two) and two.knows(one))


def test_an_address_whose_owner_is_known_needs_no_search(net: ClosedNet) -> None:
    for _ in range(12):
        net.shelf.admit(Role.NODE)
    one, two = net.node(), net.node()
    two.transport.hint(one.endpoint, net.now_ms(), node=one.node)
    net.until(lambda: one.knows(two) and two.knows(one))
    assert one.refusals == {}, "only the right key was expected"


def test_two_clusters_on_one_network_do_not_meet(net: ClosedNet) -> None:
    other = ClosedNet()
    try:
        one, two = net.node(), other.node()
        one.transport.hint(two.endpoint, net.now_ms())
        two.transport.hint(one.endpoint, net.now_ms())

        def both_turned_away() -> bool:
            other.turn()
            return bool(one.refusals.get("server_key") and two.refusals.get("server_key"))

        net.until(both_turned_away)
        assert one.transport.links == two.transport.links == {}
    finally:
        other.close()


# --- speaking for others ------------------------------------------------------------------------


def test_a_member_cannot_greet_as_another_node(net: ClosedNet) -> None:
    one, thief = net.node(), net.shelf.admit(Role.NODE)
    victim = net.shelf.admit(Role.NODE)
    liar = inside(net, one, thief)
    liar.say(greeting(net, victim.node))
    net.until(lambda: counted(one, "refused.foreign"))
    assert one.transport.links == {}
    assert one.refusals["foreign"] == 1


def test_a_member_cannot_use_the_session_of_another(net: ClosedNet) -> None:
    one, two = net.node(), net.node()
    net.meet(one, two)
    session = one.transport.links[two.node].in_session
    liar = inside(net, one, net.shelf.admit(Role.ADMIN))
    liar.say(m.Goodbye(7), session=session, sequence=1_000)
    net.until(lambda: counted(one, "refused.foreign"))
    two.transport.send(one.node, m.Goodbye(8))
    net.until(lambda: one.heard)
    assert one.heard == [(two.node, m.Goodbye(8))], "and the session goes on"


def test_a_member_cannot_be_heard_as_another_node(net: ClosedNet) -> None:
    one, two = net.node(), net.node()
    net.meet(one, two)

    def published() -> int:
        two.transport.publish(m.Heartbeat(one.node, one.inc, *BEAT))
        two.transport.publish(m.Heartbeat(b"v" * 16, INC, *BEAT))
        return counted(one, "telemetry.foreign")

    net.until(lambda: published() >= 2)
    assert one.beats == []


@pytest.mark.parametrize("role", [Role.VIEW, Role.SUBMIT])
def test_a_program_is_no_node(net: ClosedNet, role: Role) -> None:
    one, guest = net.node(), net.shelf.admit(role)
    liar = inside(net, one, guest)
    liar.say(greeting(net, guest.node), m.Reject("clone", "", one.endpoint))
    net.until(lambda: counted(one, "refused.foreign") == 2)
    assert (one.transport.links, one.refused) == ({}, [])


# --- roles --------------------------------------------------------------------------------------


SUBMIT = m.Submit(
    b"s" * 16,
    m.ClassSpec(b""),
    None,
    False,
    False,
    (m.Item(b"t" * 16, b"work"),),
)
SESSION = m.Open(b"s" * 16, 30_000, "zoe")
# What is said, and the least role that may.
SAID = [
    (SESSION, Role.VIEW),
    (m.Alive(b"s" * 16), Role.VIEW),
    (m.Query(1, b"", "nodes"), Role.VIEW),
    (m.Query(1, b"", "tasks"), Role.VIEW),
    (m.Query(1, b"", "cluster.members"), Role.VIEW),
    (SUBMIT, Role.SUBMIT),
    (m.Cancel((b"t" * 16,)), Role.SUBMIT),
    (m.Seen((b"t" * 16,)), Role.SUBMIT),
    (m.Want(b"d" * 32, 0, 1), Role.SUBMIT),
    (m.Query(1, b"", "cancel"), Role.SUBMIT),
    (m.Query(1, b"", "retry"), Role.SUBMIT),
    (m.Query(1, b"", "put"), Role.SUBMIT),
    (m.Query(1, b"", "get"), Role.SUBMIT),
    (m.Query(1, b"", "something new"), Role.SUBMIT),
    (m.Query(1, b"", "drain"), Role.ADMIN),
    (m.Query(1, b"", "resume"), Role.ADMIN),
]


@pytest.mark.parametrize("role", list(Role))
def test_a_role_may_say_this_much(net: ClosedNet, role: Role) -> None:
    one = net.node()
    guest = inside(net, one, net.shelf.admit(role))
    for sequence, (message, _) in enumerate(SAID):
        guest.say(message, sequence=sequence + 1)
    allowed = [message for message, least in SAID if role >= least]
    net.until(lambda: len(one.clients) + one.transport.visitors.refused == len(SAID))
    assert [message for _, message in one.clients] == allowed


def test_whoever_may_not_is_told_why(net: ClosedNet) -> None:
    one = net.node()
    guest = inside(net, one, net.shelf.admit(Role.VIEW))
    guest.say(SUBMIT, m.Query(5, b"", "drain"), m.Cancel((b"t" * 16,)))
    answers: list[list[object]] = []

    def answered() -> bool:
        if guest.socket.poll(0):
            answers.extend(guest.heard())
        return len(answers) >= 3

    net.until(answered)
    kinds = [m.Rejected, m.Reply, m.Reject]
    assert [answer[0] for answer in answers] == [one.__struct_config__.tag for one in kinds]
    assert answers[0][1:3] == [[b"t" * 16], "role"]
    assert "takes `submit`" in str(answers[0][3])
    assert "takes `admin`" in str(answers[1][-1])


# --- revocation ---------------------------------------------------------------------------------


def test_a_revoked_member_is_cut_off_from_its_living_session(net: ClosedNet) -> None:
    one, two = net.node(), net.node()
    net.meet(one, two)

    def heard() -> bool:
        one.transport.publish(beat_of(one))
        return bool(two.beats)

    net.until(heard)
    net.shelf.lists.remove(two.list)
    net.shelf.revoke(two.own)
    assert one.transport.cut(net.now_ms(), {}) == [two.node]
    one.transport.telemetry.rebind()
    assert two.node not in one.transport.links
    # It goes on believing in its link, and its connection still stands.
    assert two.knows(one)
    before = counted(one, "refused.key")
    two.transport.send(one.node, m.Goodbye(1))
    net.until(lambda: counted(one, "refused.key") > before)
    third = net.node()
    third.transport.hint(one.endpoint, net.now_ms(), node=one.node)

    def told_on() -> bool:
        one.transport.publish(beat_of(one, stamp_ms=6))
        return bool(third.beats)

    net.until(told_on)
    assert one.heard == []
    assert {beat.stamp_ms for beat in two.beats} == {5}, "it heard what came after"


def test_telemetry_is_heard_again_by_those_who_stay(net: ClosedNet) -> None:
    one, two = net.node(), net.node()
    net.meet(one, two)
    one.transport.telemetry.rebind()

    def heard() -> bool:
        one.transport.publish(beat_of(one))
        return bool(two.beats)

    net.until(heard)


def test_a_revoked_program_is_told_nothing_more(net: ClosedNet) -> None:
    one, own = net.node(), net.shelf.admit(Role.SUBMIT)
    guest = inside(net, one, own)
    guest.say(SESSION)
    net.until(lambda: one.clients)
    client = one.clients[0][0]
    one.transport.tell(client, m.Opened(b"s" * 16, one.node, one.inc, 1))
    net.until(lambda: guest.socket.poll(0))
    guest.heard()
    net.shelf.revoke(own, Role.SUBMIT)
    one.transport.cut(net.now_ms(), {})
    for _ in range(3):
        one.transport.tell(client, replies(1)[0])
        one.transport.flush(net.now_ms())
    assert counted(one, "tell.cut") == 3
    guest.say(m.Alive(b"s" * 16), sequence=2)
    net.until(lambda: counted(one, "refused.key"))
    assert not guest.socket.poll(0), "nothing came"
    assert len(one.clients) == 1


def test_a_revoked_node_is_not_dialled(net: ClosedNet) -> None:
    one, two = net.node(), net.node()
    net.shelf.revoke(two.own)
    assert one.guard.keys_for(two.node) == []
    assert two.own.curve_public not in one.guard.keys_for(b"")
    two.transport.hint(one.endpoint, net.now_ms(), node=one.node)
    net.until(lambda: one.refusals.get("key"))
    assert one.transport.links == {}


def test_frames_of_a_member_are_read_like_anybodys(net: ClosedNet) -> None:
    one = net.node()
    guest = inside(net, one, net.shelf.admit(Role.NODE))
    guest.send(b"only one frame")
    guest.send(codec.encode_header(0, 1), b"\xc1 not msgpack")
    net.until(lambda: counted(one, "breach") >= 2)
    assert not one.clients


def test_what_a_member_sends_too_long_costs_its_connection(net: ClosedNet) -> None:
    one, own = net.node(), net.shelf.admit(Role.NODE)
    guest = inside(net, one, own)
    guest.send(codec.encode_header(0, 1), bytes(700 * 1024))
    net.until(lambda: int(zmq.EVENT_DISCONNECTED) in guest.look())
    # And not for ever: it comes back by itself.
    guest.events.clear()
    net.until(lambda: guest.inside)
