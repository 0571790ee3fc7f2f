"""Links over real sockets: meeting, batches, restarts, refusals, bounds."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import psutil
import pytest
import zmq

from blackroad.bus import codec, sockets
from blackroad.bus import messages as m
from blackroad.bus.asides import WAITING_MAX
from blackroad.bus.link import GREET_MS_MAX
from blackroad.bus.sockets import Bus
from blackroad.errors import EnvironmentProblem, PortInUse
from blackroad.ids import incarnation
from blackroad.limits import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    BULK_FRAME_BYTES_MAX,
    CHUNK_BYTES,
    DOOR_FRAME_BYTES_MAX,
    FRAME_BYTES_MAX,
    INLINE_BYTES_MAX,
    MIB,
)
from tests.edge.transports import Net, Raw, Speaker, hello, replies

pytestmark = pytest.mark.edge

STRANGER = b"s" * 16
NOBODY = "tcp://127.0.0.1:1"
KEY = b"k" * 32


@pytest.fixture
def net() -> Iterator[Net]:
    one = Net()
    yield one
    one.close()


def from_node(one: Speaker, other: Speaker) -> list[m.Message]:
    """What one heard of another."""
    return [message for node, message in one.heard if node == other.node]


def counted(one: Speaker, name: str) -> int:
    return one.transport.counters.get(name, 0)


# --- meeting ------------------------------------------------------------------------------------


def test_one_hint_is_enough_for_both_directions(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    two.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: one.knows(two) and two.knows(one))
    one.transport.send(two.node, m.Goodbye(1))
    two.transport.send(one.node, m.Goodbye(2))
    net.until(lambda: one.heard and two.heard)
    assert one.heard == [(two.node, m.Goodbye(2))]
    assert two.heard == [(one.node, m.Goodbye(1))]


def test_one_seed_leads_to_everybody(net: Net) -> None:
    seed, two, three = (net.speaker(number) for number in (1, 2, 3))
    for one in (two, three):
        one.transport.hint(seed.endpoint, net.now_ms())
    net.until(lambda: two.knows(three) and three.knows(two))


def test_telemetry_is_heard_without_asking(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    beat = m.Heartbeat(one.node, one.inc, 5, 1, None, b"", False, (), m.Supply(), 0, 0, b"")

    def heard() -> bool:
        one.transport.publish(beat)
        return bool(two.beats)

    net.until(heard)
    assert two.beats[0] == beat


def test_a_hint_of_ones_own_address_is_no_peer(net: Net) -> None:
    one = net.speaker(1)
    # Under a name that cannot be told from somebody else's before it answers.
    one.transport.hint(one.endpoint.replace("127.0.0.1", "localhost"), net.now_ms())
    net.until(lambda: counted(one, "hello.self"))
    assert one.transport.links == {}
    assert one.transport.next_deadline_ms() > net.now_ms() + 60_000, "it goes on dialling"


def test_a_hint_that_is_no_address_is_counted(net: Net) -> None:
    one = net.speaker(1)
    for text in ("tcp://", "nonsense", "http://x:1", "tcp://x"):
        one.transport.hint(text, net.now_ms())
    assert counted(one, "hint.bad") == 4


def test_nobody_at_an_address_costs_few_tries(net: Net) -> None:
    one = net.speaker(1)
    one.transport.hint(NOBODY, net.now_ms())
    tries = 0
    now_ms = until_ms = net.now_ms()
    until_ms += 60_000
    while now_ms < until_ms:
        now_ms = max(one.transport.next_deadline_ms(), now_ms + 1)
        one.transport.tick(now_ms)
        tries += 1
    assert tries <= 300, "a daemon would wake up for nothing all the time"


def test_a_dead_peer_costs_few_tries(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    net.end(two)
    one.transport.reset(two.node, net.now_ms())
    tries = 0
    now_ms = until_ms = net.now_ms()
    until_ms += 60_000
    while now_ms < until_ms:
        now_ms = max(one.transport.next_deadline_ms(), now_ms + 1)
        one.transport.tick(now_ms)
        tries += 1
    assert tries <= 300, "a daemon would wake up for nothing all the time"


def test_an_address_that_does_not_answer_is_passed_over(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    two.transport.endpoints = (NOBODY, two.endpoint)
    two.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: one.knows(two) and two.knows(one), skip_ms=20)
    one.transport.send(two.node, m.Goodbye(1))
    net.until(lambda: two.heard)


# --- batches ------------------------------------------------------------------------------------


def test_many_small_messages_arrive_once_and_in_order(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    count = 20 * BATCH_MESSAGES_MAX + 1
    sent = replies(count)
    for message in sent:
        one.transport.send(two.node, message)
    net.until(lambda: len(two.heard) >= count)
    assert from_node(two, one) == sent
    link = two.transport.links[one.node]
    assert link.gaps == 0
    assert link.in_sequence == 21, "a batch holds as many as it may, and no more"


def test_many_large_messages_arrive_once_and_in_order(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    sent = replies(40, INLINE_BYTES_MAX)
    assert sum(len(codec.encode(message)) for message in sent) > 9 * BATCH_BYTES_MAX
    for message in sent:
        one.transport.send(two.node, message)
    net.until(lambda: len(two.heard) >= len(sent))
    assert from_node(two, one) == sent
    assert two.transport.links[one.node].gaps == 0
    assert counted(two, "breach") == 0


def test_three_talk_at_once(net: Net) -> None:
    speakers = [net.speaker(number) for number in (1, 2, 3)]
    net.meet(*speakers)
    sent = replies(300, 900)
    for one in speakers:
        for other in speakers:
            if other is not one:
                for message in sent:
                    one.transport.send(other.node, message)
    net.until(lambda: all(len(one.heard) >= 2 * len(sent) for one in speakers))
    for one in speakers:
        for other in speakers:
            if other is not one:
                assert from_node(one, other) == sent


def test_an_unknown_peer_is_counted(net: Net) -> None:
    one = net.speaker(1)
    one.transport.send(STRANGER, m.Goodbye(1))
    one.turn()
    assert counted(one, "send.unknown") == 1


# --- lives --------------------------------------------------------------------------------------


def test_a_peer_that_restarts_at_its_address_is_met_again(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    ports = two.ports
    net.end(two)
    one.transport.send(two.node, m.Goodbye(1))
    anew = net.speaker(2, counter=2, ports=ports)
    anew.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: one.knows(anew) and anew.knows(one))
    one.transport.send(anew.node, m.Goodbye(2))
    anew.transport.send(one.node, m.Goodbye(3))
    net.until(lambda: one.heard and anew.heard)
    # What was meant for the earlier life never reaches the new one.
    assert anew.heard == [(one.node, m.Goodbye(2))]
    assert one.heard == [(two.node, m.Goodbye(3))]
    assert one.transport.links[two.node].inc == anew.inc


def test_a_peer_that_restarts_at_another_address_is_met_again(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    net.end(two)
    anew = net.speaker(2, counter=2)
    assert anew.endpoint != two.endpoint
    anew.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: one.knows(anew) and anew.knows(one))
    one.transport.send(anew.node, m.Goodbye(2))
    net.until(lambda: anew.heard)


def test_many_lives_of_a_peer_leave_nothing_behind(net: Net) -> None:
    one = net.speaker(1)
    two = net.speaker(2)
    net.meet(one, two)
    for counter in range(2, 6):
        net.end(two)
        # A Heartbeat may tell of a new life before its Hello does.
        one.transport.meet(two.node, incarnation(counter, 0x5EED))
        two = net.speaker(2, counter=counter)
        two.transport.hint(one.endpoint, net.now_ms())
        net.until(lambda: one.knows(two) and two.knows(one))  # noqa: B023
    assert len(one.transport._sessions) == 1
    assert len(one.transport._sockets) == 1


def test_an_older_life_is_not_listened_to(net: Net) -> None:
    one = net.speaker(1)
    two = net.speaker(2, counter=9)
    net.meet(one, two)
    endpoint = one.transport.links[two.node].endpoint()
    raw = net.raw(one)
    raw.say(hello(two.node, incarnation(8, 1), NOBODY))
    raw.say(hello(STRANGER, 1, NOBODY))
    net.until(lambda: STRANGER in one.transport.links)
    assert one.transport.links[two.node].inc == two.inc
    assert one.transport.links[two.node].endpoint() == endpoint


def test_a_reset_link_carries_nothing_old_and_opens_again(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    one.transport.send(two.node, m.Goodbye(1))
    one.transport.reset(two.node, net.now_ms())
    assert not one.knows(two)
    net.until(lambda: one.knows(two))
    one.transport.send(two.node, m.Goodbye(2))
    net.until(lambda: two.heard)
    assert two.heard == [(one.node, m.Goodbye(2))]


def test_a_peer_that_left_is_not_greeted_until_it_greets(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    one.transport.forget(two.node)
    assert one.transport.links == {}
    assert one.transport.next_deadline_ms() > net.now_ms() + 60_000
    one.transport.forget(STRANGER)
    one.transport.reset(STRANGER, 0)
    two.transport.reset(one.node, net.now_ms())
    net.until(lambda: one.knows(two) and two.knows(one))


# --- refusals -----------------------------------------------------------------------------------


def test_another_mesh_is_refused_and_left_alone(net: Net) -> None:
    one = net.speaker(1)
    other = net.speaker(2, cluster="attic")
    other.transport.hint(one.endpoint, net.now_ms())
    net.until(lambda: counted(other, "rejected"))
    assert counted(one, "reject.cluster") == 1
    assert one.transport.links == {}
    assert other.transport.links == {}
    assert other.transport.next_deadline_ms() > net.now_ms() + GREET_MS_MAX // 2


def test_no_common_version_is_refused_with_a_reason(net: Net) -> None:
    one = net.speaker(1)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox = context.socket(zmq.ROUTER)
    inbox.set(zmq.LINGER, 0)
    inbox.bind(f"tcp://127.0.0.1:{port}")
    try:
        raw = net.raw(one)
        raw.say(
            hello(STRANGER, 1, f"tcp://127.0.0.1:{port}", version_min=7, version_max=9),
        )
        net.until(lambda: inbox.poll(0))
        found, _ = codec.PEER.decode(inbox.recv_multipart()[2])
    finally:
        inbox.close()
        context.term()
    assert isinstance(found[0], m.Reject)
    assert found[0].reason == "version"
    assert "yours 7 to 9" in found[0].text
    assert one.transport.links == {}


def test_a_peer_that_moved_to_another_mesh_is_asked_ever_more_rarely(net: Net) -> None:
    one, two = net.speaker(1), net.speaker(2)
    net.meet(one, two)
    ports = two.ports
    net.end(two)
    elsewhere = net.speaker(2, counter=2, cluster="attic", ports=ports)
    one.transport.reset(two.node, net.now_ms())
    net.until(lambda: counted(elsewhere, "reject.cluster") >= 2, skip_ms=50)
    link = one.transport.links[two.node]
    net.until(lambda: link.greet_due_ms > net.now_ms() + 2_000, skip_ms=50)
    assert not link.open


def test_refusals_are_bounded(net: Net) -> None:
    one = net.speaker(1)
    raw = net.raw(one)
    count = 3 * WAITING_MAX
    for number in range(1_000, 1_000 + count):
        node = number.to_bytes(16, "big")
        raw.say(hello(node, 1, NOBODY, cluster=b"c" * 16))
    net.until(lambda: counted(one, "reject.cluster") == count)
    assert 0 < len(one.transport._asides) <= WAITING_MAX
    net.until(lambda: not one.transport._asides, skip_ms=100)
    assert len(one.bus._sockets) == 4


# --- sessions -----------------------------------------------------------------------------------


class Half:
    """A peer made by hand: it can greet, hear the answer, and then say anything."""

    def __init__(self, net: Net, there: Speaker, node: bytes = STRANGER) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.inbox = self._context.socket(zmq.ROUTER)
        self.inbox.set(zmq.LINGER, 0)
        port = self.inbox.bind_to_random_port("tcp://127.0.0.1", 30_000, 60_000)
        self.raw: Raw = net.raw(there)
        self._net = net
        self._endpoint = f"tcp://127.0.0.1:{port}"
        self._node = node
        self.session = 0

    def greet(self, inc: int = 1 << 32) -> m.Welcome:
        self.raw.say(hello(self._node, inc, self._endpoint))
        welcome = self.told(m.Welcome)
        assert isinstance(welcome, m.Welcome)
        self.session = welcome.session
        return welcome

    def told(self, kind: type[m.Message]) -> m.Message:
        """Wait for a message of that kind."""
        found: list[m.Message] = []

        def here() -> bool:
            while self.inbox.poll(0):
                for frame in self.inbox.recv_multipart()[2:]:
                    found.extend(codec.PEER.decode(frame)[0])
            return any(isinstance(one, kind) for one in found)

        self._net.until(here)
        return next(one for one in found if isinstance(one, kind))

    def silent(self) -> bool:
        return not self.inbox.poll(100)

    def close(self) -> None:
        self.inbox.close()
        self._context.term()


@pytest.fixture
def half(net: Net) -> Iterator[Half]:
    one = Half(net, net.speaker(1))
    yield one
    one.close()


def test_a_session_lets_messages_in(net: Net, half: Half) -> None:
    half.greet()
    half.raw.say(m.Goodbye(1), session=half.session, sequence=1)
    one = net.speakers[0]
    net.until(lambda: one.heard)
    assert one.heard == [(STRANGER, m.Goodbye(1))]


def test_repetitions_of_the_network_are_dropped(net: Net, half: Half) -> None:
    half.greet()
    for sequence in (1, 1, 3, 2, 4):
        half.raw.say(m.Goodbye(sequence), session=half.session, sequence=sequence)
    one = net.speakers[0]
    net.until(lambda: len(one.heard) == 3)
    assert [message for _, message in one.heard] == [m.Goodbye(n) for n in (1, 3, 4)]
    assert counted(one, "sequence.old") == 2
    assert one.transport.links[STRANGER].gaps == 1


def test_an_unknown_session_is_answered_and_not_too_often(net: Net, half: Half) -> None:
    half.greet()
    for sequence in range(1, 20):
        half.raw.say(m.Goodbye(1), session=half.session + 1, sequence=sequence)
    told = half.told(m.Reject)
    assert isinstance(told, m.Reject)
    assert told.reason == "session"
    one = net.speakers[0]
    net.until(lambda: counted(one, "session.unknown") == 19)
    more = 0
    while not half.silent():
        half.told(m.Reject)
        more += 1
    assert more < 18, "the answer is given once a second at most, and these took less than 18"
    assert one.heard == []


def test_an_unknown_session_of_an_unknown_peer_is_only_counted(net: Net) -> None:
    one = net.speaker(1)
    net.raw(one).say(m.Goodbye(1), session=77, sequence=1)
    net.until(lambda: counted(one, "session.unknown"))
    assert one.heard == []


def test_a_breach_costs_the_session_and_a_greeting_opens_another(net: Net, half: Half) -> None:
    before = half.greet()
    one = net.speakers[0]
    half.raw.send(codec.encode_header(half.session, 1), b"\xc1 no array")
    net.until(lambda: counted(one, "breach"))
    half.raw.say(m.Goodbye(1), session=half.session, sequence=2)
    assert isinstance(half.told(m.Reject), m.Reject)
    assert one.heard == []
    after = half.greet()
    assert after.session != before.session
    half.raw.say(m.Goodbye(2), session=after.session, sequence=1)
    net.until(lambda: one.heard)
    assert one.heard == [(STRANGER, m.Goodbye(2))]
    assert one.transport.links[STRANGER].breaches == 1


def test_a_multipart_beyond_its_bounds_is_a_breach(net: Net, half: Half) -> None:
    one = net.speakers[0]
    small = codec.frame_of([codec.encode(m.Goodbye(1))])
    many = [small] * (BATCH_MESSAGES_MAX + 1)
    large = [codec.frame_of([codec.encode(replies(1, INLINE_BYTES_MAX)[0])])] * 5
    assert sum(map(len, large)) > BATCH_BYTES_MAX
    for breaches, frames in enumerate((many, large), start=1):
        half.greet()
        half.raw.send(codec.encode_header(half.session, 1), *frames)
        net.until(lambda: counted(one, "breach") == breaches)  # noqa: B023
    # What stood before the breach was sound, and counts.
    assert 0 < len(one.heard) <= BATCH_MESSAGES_MAX + 3


def test_a_greeting_inside_a_session_changes_no_link(net: Net, half: Half) -> None:
    half.greet()
    one = net.speakers[0]
    half.raw.say(hello(b"x" * 16, 1, NOBODY), session=half.session, sequence=1)
    half.raw.say(m.Goodbye(1), session=half.session, sequence=2)
    net.until(lambda: (STRANGER, m.Goodbye(1)) in one.heard)
    assert list(one.transport.links) == [STRANGER]


# --- clients ------------------------------------------------------------------------------------


def test_a_client_over_tcp_is_heard_and_answered(net: Net) -> None:
    one = net.speaker(1)
    raw = net.raw(one)
    raw.say(m.Alive(b"a" * 16), sequence=1)
    net.until(lambda: one.clients)
    client, message = one.clients[0]
    assert message == m.Alive(b"a" * 16)
    one.transport.tell(client, m.Accepted((b"t" * 16,)))
    one.turn()
    assert raw.heard() == [[0x34, [b"t" * 16]]]


def test_a_client_that_is_gone_is_told_to_the_daemon(net: Net) -> None:
    one = net.speaker(1)
    lost: list[bytes] = []
    one.transport.clients.on_lost = lost.append
    raw = Raw(one.endpoint)
    raw.say(m.Alive(b"a" * 16), sequence=1)
    net.until(lambda: one.clients)
    raw.close()
    client, _ = one.clients[0]

    def told() -> bool:
        one.transport.tell(client, m.Accepted(()))
        return bool(lost)

    net.until(told)
    assert lost[0] == client
    one.transport.tell(b"nobody", m.Accepted(()))


def test_a_client_that_stops_reading_does_not_cost_memory_without_bound(net: Net) -> None:
    one = net.speaker(1)
    raw = Raw(one.endpoint, RCVHWM=1, RCVBUF=65_536)
    raw.say(m.Alive(b"a" * 16), sequence=1)
    net.until(lambda: one.clients)
    client, _ = one.clients[0]
    chunk = m.Chunk(b"d" * 32, 0, bytes(CHUNK_BYTES))
    before_bytes = psutil.Process().memory_info().rss
    for _ in range(500):
        for _ in range(8):
            one.transport.tell(client, chunk)
        one.turn()
    grown_bytes = psutil.Process().memory_info().rss - before_bytes
    raw.close()
    assert grown_bytes < 256 * MIB, "a gigabyte was offered"
    assert counted(one, "client.lost") > 0


def test_what_one_turn_puts_in_line_for_a_client_is_bounded(net: Net) -> None:
    one = net.speaker(1)
    chunk = m.Chunk(b"d" * 32, 0, bytes(CHUNK_BYTES))
    for _ in range(300):
        one.transport.tell(b"tnobody", chunk)
    assert counted(one, "client.full") > 0


# --- sockets ------------------------------------------------------------------------------------

LIMITS = {
    "inbox": BULK_FRAME_BYTES_MAX,
    "door": DOOR_FRAME_BYTES_MAX,
    "newcomer": DOOR_FRAME_BYTES_MAX,
    "judge": FRAME_BYTES_MAX,
    "peer": FRAME_BYTES_MAX,
    "bulk_server": BULK_FRAME_BYTES_MAX,
    "bulk_client": BULK_FRAME_BYTES_MAX,
    "publisher": FRAME_BYTES_MAX,
    "subscriber": FRAME_BYTES_MAX,
    "client": BULK_FRAME_BYTES_MAX,
}


@pytest.fixture
def bus() -> Iterator[Bus]:
    one = Bus()
    yield one
    one.close()


def test_every_kind_of_socket_is_in_the_list() -> None:
    makers = {
        name
        for name, made in vars(Bus).items()
        if getattr(made, "__annotations__", {}).get("return") == "Socket"
        and not name.startswith("_")
    }
    assert makers - {"monitor", "watch_handshakes"} == set(LIMITS)


@pytest.mark.parametrize("kind", LIMITS)
def test_every_socket_has_every_limit(bus: Bus, kind: str) -> None:
    made = getattr(bus, kind)(*(KEY for _ in range(kind in ("door", "newcomer"))))
    assert made.get(zmq.LINGER) == sockets.LINGER_MS
    assert made.get(zmq.MAXMSGSIZE) == LIMITS[kind]
    assert made.get(zmq.HANDSHAKE_IVL) == sockets.HANDSHAKE_MS
    assert made.get(zmq.HEARTBEAT_IVL) == sockets.PING_MS
    assert made.get(zmq.HEARTBEAT_TIMEOUT) == sockets.PING_TIMEOUT_MS
    assert made.get(zmq.HEARTBEAT_TTL) == sockets.PING_TIMEOUT_MS
    assert made.get(zmq.RECONNECT_IVL) == sockets.RECONNECT_MS
    assert made.get(zmq.RECONNECT_IVL_MAX) == sockets.RECONNECT_MS_MAX
    assert made.get(zmq.BACKLOG) == sockets.BACKLOG
    for high_water in (zmq.SNDHWM, zmq.RCVHWM):
        assert 0 < made.get(high_water) <= sockets.CLIENT_HIGH_WATER
    assert made.get(zmq.ROUTING_ID) == b"", "equal ids would hijack one another"
    if kind == "peer":
        assert made.get(zmq.IMMEDIATE) == 1


def test_a_router_says_when_nobody_is_there(bus: Bus) -> None:
    for made in (bus.inbox(), bus.bulk_server()):
        assert not sockets.send(made, (b"nobody", b"", b""))


def test_a_dealer_queues_nothing_for_an_absent_peer(bus: Bus) -> None:
    made = bus.peer()
    assert sockets.connect(made, NOBODY)
    assert not sockets.send(made, (b"stale", b"later"))


def test_a_port_in_use_says_which_key_to_change(bus: Bus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            sockets.bind(bus.inbox(), "127.0.0.1", port, "telemetry_port")
    assert str(port) in caught.value.message
    assert "`telemetry_port`" in caught.value.hint


def test_an_address_of_another_machine_cannot_be_bound(bus: Bus) -> None:
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(EnvironmentProblem) as caught:
            sockets.bind(bus.inbox(), host, 0, "port")
        assert "`listen`" in caught.value.hint


def test_a_closed_bus_gives_its_sockets_back() -> None:
    one = Bus()
    made = [one.peer() for _ in range(5)]
    one.drop(made[0])
    one.finish(made[1])
    one.close()
    assert all(each.closed for each in made)
