"""Whatever bytes arrive, on whichever socket: they are counted, and everybody else goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.payload import digest_of
from blackroad.bus.sockets import Poller
from blackroad.bus.transport import cluster_digest
from blackroad.limits import BATCH_MESSAGES_MAX, BULK_FRAME_BYTES_MAX, CHUNK_BYTES, FRAME_BYTES_MAX
from blackroad.runtime.exchange import Exchange
from blackroad.runtime.objects import ObjectStore
from tests.edge.transports import Net, Raw, Speaker, hello, replies

pytestmark = pytest.mark.edge

FUZZ = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
STRANGER = b"s" * 16
NOBODY = "tcp://127.0.0.1:1"
HEADER = codec.encode_header(0, 1)


def frame(*messages: m.Message) -> bytes:
    return codec.frame_of([codec.encode(message) for message in messages])


VALID: tuple[tuple[bytes, ...], ...] = (
    (HEADER, frame(hello(STRANGER, 1 << 32, NOBODY))),
    (HEADER, frame(m.Welcome(1, 5, 1, 1, STRANGER, 1 << 32))),
    (HEADER, frame(m.Reject("session", "who are you", NOBODY))),
    (HEADER, frame(m.Open(b"o" * 16, 30_000), m.Alive(b"o" * 16))),
    (HEADER, frame(m.Query(1, b"", "nodes", b"\x80")), frame(m.Seen((b"t" * 16,)))),
    (HEADER, frame(m.Want(b"d" * 32, 0, 8))),
    (HEADER, frame(m.Chunk(b"d" * 32, 0, bytes(100)))),
    (codec.encode_header(99, 1), frame(*replies(3))),
)
BOMBS: tuple[tuple[bytes, ...], ...] = (
    (),
    (b"",),
    (HEADER,),
    (HEADER, b""),
    (HEADER, b"\xdd\xff\xff\xff\xff"),
    (HEADER, b"\xdc\xff\xff" + b"\x90" * 65_535),
    (HEADER, b"\xdd\x00\x01\x00\x00" + b"\x91\x01" * 60_000),
    (HEADER, b"\x91" * 100_000),
    (HEADER, b"\x91\x81" * 50_000),
    (HEADER, b"\x91\xdf\xff\xff\xff\xff"),
    (HEADER, b"\x91\x92\x01\xdb\xff\xff\xff\xff"),
    (HEADER, b"\x91\x92\x01\xc6\xff\xff\xff\xff"),
    (HEADER, b"\x91\x92\x30\xc9\xff\xff\xff\xff\x01"),
    (HEADER, b"\x91\x92\xcf" + b"\xff" * 8),
    (HEADER, frame(m.Alive(b"a" * 16)).replace(b"a" * 16, b"\xff" * 16)),
    (HEADER, *(b"\x90" for _ in range(500))),
    (b"\xdd\xff\xff\xff\xff", frame(m.Alive(b"a" * 16))),
    (b"\x91" * 50_000, b""),
    (b"\x93\x01\xcf" + b"\xff" * 8 + b"\x01", b"\x90"),
    (b"\x93\x01\x00\x00", b"\x9f" + b"\x92\x32\xc4\x10" + b"a" * 16),
    (msgspec.msgpack.encode([1, 0, 1, "more"]), frame(m.Alive(b"a" * 16))),
    (msgspec.msgpack.encode(["1", 0, 1]), frame(m.Alive(b"a" * 16))),
    (msgspec.msgpack.encode([1, -1, 1]), frame(m.Alive(b"a" * 16))),
    (msgspec.msgpack.encode([1, 0]), frame(m.Alive(b"a" * 16))),
    (HEADER, msgspec.msgpack.encode([[0x01, "é" * 3, b"\xff"]])),
    (HEADER, b"\x91\x92\x03\xa2\xff\xfe"),
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """A valid multipart with some bytes changed, cut, doubled, or frames out of place."""
    frames = list(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frames) - 1))
        one = bytearray(frames[at])
        where = draw(st.integers(0, max(0, len(one) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "double", "swap"])):
            case "flip" if one:
                one[where] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del one[where:]
            case "insert":
                one[where:where] = draw(st.binary(min_size=1, max_size=9))
            case "double":
                frames.append(bytes(one))
            case _:
                frames.reverse()
        frames[at] = bytes(one)
    return frames


shaped = st.tuples(
    st.just(HEADER) | plain.map(msgspec.msgpack.encode),
    st.lists(st.lists(st.integers(0, 0x60) | plain, max_size=9), max_size=4).map(
        msgspec.msgpack.encode
    ),
).map(list)
anything = st.lists(st.binary(max_size=120), max_size=5) | mutated() | shaped


def bombs(test: Any) -> Any:
    """Add every bomb to a test of one argument `frames`."""
    for one in BOMBS:
        test = example(frames=list(one))(test)
    return test


class Table:
    """A speaker with an honest peer, and somebody who is not."""

    def __init__(self) -> None:
        self.net = Net()
        self.one: Speaker = self.net.speaker(1)
        self.peer: Speaker = self.net.speaker(2)
        self.net.meet(self.one, self.peer)
        self.raw: Raw = self.net.raw(self.one)
        self._numbers = itertools.count(1)

    def goes_on(self) -> None:
        """Everything the stranger said is read, and the honest peer is still heard."""
        number = next(self._numbers)
        self.raw.say(m.Alive(number.to_bytes(16, "big")))
        self.peer.transport.send(self.one.node, m.Goodbye(number))
        mark = m.Alive(number.to_bytes(16, "big"))
        self.net.until(
            lambda: (
                (self.peer.node, m.Goodbye(number)) in self.one.heard
                and any(message == mark for _, message in self.one.clients)
            )
        )
        self.one.heard.clear()
        self.one.clients.clear()


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    made = Table()
    yield made
    made.net.close()


@bombs
@FUZZ
@given(frames=anything)
def test_the_inbox_takes_anything(table: Table, frames: list[bytes]) -> None:
    if frames:
        table.raw.send(*frames)
    table.goes_on()
    assert len(table.one.transport.links) <= 1 + 256
    assert table.one.transport.links[table.peer.node].breaches == 0


def test_what_cannot_be_read_is_counted(table: Table) -> None:
    before = table.one.transport.counters.get("breach", 0)
    for one in BOMBS[4:14]:
        table.raw.send(*one)
    table.goes_on()
    assert table.one.transport.counters["breach"] == before + 10


def test_a_kind_from_the_future_is_skipped_and_the_rest_is_used(table: Table) -> None:
    known = msgspec.msgpack.decode(codec.encode(m.Alive(b"n" * 16)))
    table.raw.send(HEADER, msgspec.msgpack.encode([[0x7F, 1, "new"], [*known, "appended"]]))
    one = table.one
    before = one.transport.counters.get("kinds.unknown", 0)
    table.net.until(lambda: any(said == m.Alive(b"n" * 16) for _, said in one.clients))
    assert one.transport.counters["kinds.unknown"] == before + 1


@pytest.mark.parametrize("size", [BULK_FRAME_BYTES_MAX + 1, 4 * 1024 * 1024])
def test_a_frame_beyond_the_limit_cuts_its_sender_only(size: int) -> None:
    table = Table()
    monitor = table.raw.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    monitor.set(zmq.LINGER, 0)
    table.raw.say(m.Alive(b"b" * 16))
    table.net.until(lambda: table.one.clients)
    table.raw.send(HEADER, bytes(size))
    table.net.until(lambda: monitor.poll(0))
    table.raw.socket.disable_monitor()
    monitor.close()
    assert table.one.knows(table.peer)
    table.goes_on()
    assert "breach" not in table.one.transport.counters, "ZeroMQ itself lets no such frame in"
    table.net.close()


def test_a_frame_between_the_limits_of_links_and_clients_is_a_breach(table: Table) -> None:
    before = table.one.transport.counters.get("session.unknown", 0)
    table.raw.send(codec.encode_header(4321, 1), bytes(FRAME_BYTES_MAX + 1))
    table.goes_on()
    assert table.one.transport.counters["session.unknown"] == before + 1


# --- a session that its holder abuses -----------------------------------------------------------


@bombs
@FUZZ
@given(frames=anything)
def test_a_peer_with_a_session_may_say_anything(table: Table, frames: list[bytes]) -> None:
    node = table.peer.node
    link = table.one.transport.links[node]
    table.raw.send(codec.encode_header(link.in_session, link.in_sequence + 1), *frames[1:], b"\xc1")
    table.raw.say(m.Alive(b"e" * 16))
    one = table.one
    table.net.until(lambda: any(said == m.Alive(b"e" * 16) for _, said in one.clients))
    table.one.heard.clear()
    table.one.clients.clear()
    # The honest peer's session was abused: it may lose it, and has it again at once.
    table.net.until(lambda: _speaks(table), skip_ms=20)


def _speaks(table: Table) -> bool:
    table.peer.transport.send(table.one.node, m.Goodbye(7))
    return (table.peer.node, m.Goodbye(7)) in table.one.heard


# --- clients ------------------------------------------------------------------------------------


@bombs
@FUZZ
@given(frames=anything)
def test_the_client_socket_takes_anything(table: Table, frames: list[bytes]) -> None:
    lines = table.one.transport.clients
    sound = codec.frame_of([codec.encode(m.Alive(b"c" * 16))])
    told: list[bytes] = []
    lines.senders[b"z"] = lambda route, _number, _frames: not told.append(route)
    heard = [one for found in lines.read(b"z1", [*frames, sound]) for one in found]
    assert heard[-1] == m.Alive(b"c" * 16)
    lines.flush()
    assert set(told) <= {b"1"}


# --- telemetry ----------------------------------------------------------------------------------


@bombs
@FUZZ
@given(frames=anything)
def test_telemetry_takes_anything(airwaves: Airwaves, frames: list[bytes]) -> None:
    if frames:
        # What does not begin like this is not even subscribed to.
        airwaves.publisher.send_multipart([b"\x50" + frames[0], *frames[1:]])
    airwaves.goes_on()


class Airwaves:
    """A speaker that listens to a publisher which says anything."""

    def __init__(self) -> None:
        self.net = Net()
        self.one = self.net.speaker(1)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.publisher = self._context.socket(zmq.PUB)
        self.publisher.set(zmq.LINGER, 0)
        port = self.publisher.bind_to_random_port("tcp://127.0.0.1", 30_000, 60_000)
        there = f"tcp://127.0.0.1:{port}"
        self.one.transport.telemetry.hear(STRANGER, b"", there, self.net.now_ms())
        self._numbers = itertools.count(1)

    def goes_on(self) -> None:
        """A Heartbeat that is sound is heard among whatever else there is."""
        beat = m.Heartbeat(
            STRANGER, 1, next(self._numbers), 1, None, b"", False, (), m.Supply(), 0, 0, b""
        )

        def heard() -> bool:
            self.publisher.send_multipart((b"\x50", HEADER, frame(beat)))
            return beat in self.one.beats

        self.net.until(heard)
        self.one.beats.clear()

    def close(self) -> None:
        self.publisher.close()
        self._context.term()
        self.net.close()


@pytest.fixture(scope="module")
def airwaves() -> Iterator[Airwaves]:
    made = Airwaves()
    yield made
    made.close()


# --- bulk ---------------------------------------------------------------------------------------


class Depot:
    """An exchange with one object that serves, and pulls what it is told to."""

    def __init__(self, directory: Path) -> None:
        self.net = Net()
        self.one = self.net.speaker(1)
        self.store = ObjectStore(directory, 1 << 30)
        self.data = bytes(range(256)) * 2_000
        self.digest, _ = self.store.put(self.data)
        self.arrived: list[bytes] = []
        self.failed: list[tuple[bytes, str]] = []
        self.holder: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self.holder.set(zmq.LINGER, 0)
        port = self.holder.bind_to_random_port("tcp://127.0.0.1", 30_000, 60_000)
        self.poller = Poller()
        self.exchange = Exchange(
            self.store,
            self.one.bus,
            self.poller,
            self.one.transport.bulk,
            lambda _node: f"tcp://127.0.0.1:{port}",
            self.one.transport.tell,
            self.arrived.append,
            self._on_failed,
        )
        self.raw = self.net.raw(self.one, port=self.one.transport.bulk_port)

    def _on_failed(self, digest: bytes, text: str, *_more: object) -> None:
        self.failed.append((digest, text))

    def turn(self) -> None:
        """Serve, and read what the holder sent."""
        self.exchange.on_server_readable()
        for what, _ in self.poller.wait(5):
            self.exchange.on_readable(what, self.net.now_ms())
        self.exchange.tick(self.net.now_ms())

    def wanted(self) -> tuple[bytes, m.Want]:
        """Wait for a Want at the holder; return its route too."""
        for _ in range(2_000):
            self.turn()
            if self.holder.poll(5):
                route, _, body = self.holder.recv_multipart()
                return route, codec.BULK.decode(body)[0][0]
        raise AssertionError("nothing was asked for")

    def close(self) -> None:
        self.holder.close()
        self.net.close()
        self.store.close()


@pytest.fixture(scope="module")
def depot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Depot]:
    made = Depot(tmp_path_factory.mktemp("depot"))
    yield made
    made.close()


@bombs
@FUZZ
@given(frames=anything)
def test_the_bulk_socket_takes_anything(depot: Depot, frames: list[bytes]) -> None:
    while depot.raw.socket.poll(0):
        depot.raw.socket.recv_multipart()
    if frames:
        depot.raw.send(*frames)
    depot.raw.say(m.Want(depot.digest, 0, 2))
    sizes: list[int] = []
    for _ in range(2_000):
        depot.turn()
        while depot.raw.socket.poll(0):
            body = depot.raw.socket.recv_multipart()[1]
            for message in codec.BULK.decode(body)[0]:
                if isinstance(message, m.Chunk) and message.digest == depot.digest:
                    sizes.append(len(message.data))
        if len(sizes) >= 2:
            break
    assert sizes[-2:] == [CHUNK_BYTES, len(depot.data) - CHUNK_BYTES]


@bombs
@settings(FUZZ, max_examples=40)
@given(frames=anything)
def test_a_holder_may_answer_anything(depot: Depot, frames: list[bytes]) -> None:
    data = bytes(reversed(depot.data)) + len(depot.arrived).to_bytes(4, "big")
    ref = m.Ref(digest_of(data), len(data))
    if depot.store.has(ref.digest):
        return
    depot.exchange.fetch(ref, STRANGER, b"", depot.net.now_ms())
    route, want = depot.wanted()
    assert (want.digest, want.offset) == (ref.digest, 0)
    depot.holder.send_multipart([route, *frames])
    depot.holder.send_multipart([route, HEADER, frame(m.Chunk(ref.digest, 1, b"odd"))])
    depot.holder.send_multipart([route, HEADER, frame(m.Chunk(b"x" * 32, 0, b"unasked"))])
    for offset in range(0, len(data), CHUNK_BYTES):
        chunk = m.Chunk(ref.digest, offset, data[offset : offset + CHUNK_BYTES])
        depot.holder.send_multipart([route, HEADER, frame(chunk)])
    for _ in range(2_000):
        depot.turn()
        if depot.store.has(ref.digest):
            break
    assert depot.arrived[-1] == ref.digest
    assert depot.failed == []


def test_bytes_that_are_not_the_object_fail_the_pull(depot: Depot) -> None:
    ref = m.Ref(b"\x01" * 32, 10)
    depot.exchange.fetch(ref, STRANGER, b"", depot.net.now_ms())
    failed = len(depot.failed)
    # The protocol lets a holder try again once.
    while len(depot.failed) == failed:
        route, _ = depot.wanted()
        depot.holder.send_multipart([route, HEADER, frame(m.Chunk(ref.digest, 0, bytes(10)))])
        for _ in range(50):
            depot.turn()
    assert depot.failed[-1][0] == ref.digest
    assert "digest" in depot.failed[-1][1]
    assert not depot.store.has(ref.digest)
    depot.failed.clear()


def test_an_empty_object_needs_no_bytes(depot: Depot) -> None:
    ref = m.Ref(digest_of(b""), 0)
    depot.exchange.fetch(ref, STRANGER, b"", depot.net.now_ms())
    assert depot.arrived[-1] == ref.digest
    assert depot.store.has(ref.digest)
    assert depot.exchange.next_deadline_ms(0) > depot.net.now_ms() + 60_000


def test_the_fuzzer_says_sound_things_too() -> None:
    """A mutation would prove little if what it starts from were refused."""
    for frames in VALID[:5]:
        for body in frames[1:]:
            found, unknown = codec.INBOX.decode(body)
            assert found
            assert not unknown
    assert cluster_digest("shelf") == hello(STRANGER, 1, NOBODY).cluster
    assert len(BOMBS) < BATCH_MESSAGES_MAX
