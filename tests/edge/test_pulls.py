"""Large values on their way, at both ends: silence, damage, and whoever stops sending them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from blackroad import Client
from blackroad.bus import codec, payload, puller
from blackroad.bus import messages as m
from blackroad.client.client import ObjectRef
from blackroad.client.objects import Incoming
from blackroad.errors import Busy, DamagedObject, RemoteProtocolError, Unreachable
from blackroad.limits import CHUNK_BYTES
from blackroad.runtime.exchange import Exchange
from blackroad.runtime.objects import ObjectStore

pytestmark = pytest.mark.edge

WAIT_S = 30.0
NODE = b"n" * 16
VALUE = payload.join(payload.encode(b"v" * (2 * CHUNK_BYTES)))
REF = m.Ref(payload.digest_of(VALUE), len(VALUE))
WRONG = bytes(len(VALUE))


def chunks_of(data: bytes, want: m.Want) -> list[m.Message]:
    ends = min(len(data), want.offset + want.chunks * CHUNK_BYTES)
    return [
        m.Chunk(want.digest, at, data[at : min(ends, at + CHUNK_BYTES)])
        for at in range(want.offset, ends, CHUNK_BYTES)
    ]


# --- the client's side, with a daemon that does as it is told -----------------------------------


class FakeDaemon:
    """Takes every task, says at once that it is done, and answers Wants by `deliver`."""

    def __init__(self, deliver: Callable[[m.Want], list[m.Message]]) -> None:
        self.endpoint = ""
        self.wants: list[m.Want] = []
        self._deliver = deliver
        self._context = zmq.Context()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._context.term()

    def _serve(self) -> None:
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 0
        self.endpoint = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._ready.set()
        while not self._ending.is_set():
            if not socket.poll(20):
                continue
            route, _, *frames = socket.recv_multipart()
            for one in [one for frame in frames for one in codec.CLIENT.decode(frame)[0]]:
                for answer in self._answers(one):
                    body = codec.frame_of([codec.encode(answer)])
                    socket.send_multipart([route, codec.encode_header(0, 1), body])
        socket.close()

    def _answers(self, message: m.Message) -> list[m.Message]:
        match message:
            case m.Open():
                return [m.Opened(message.session, NODE, 1 << 32, 100, "fake")]
            case m.Submit():
                tasks = tuple(item.task for item in message.tasks)
                ends = [m.Ended(task, m.End.DONE, "", REF, m.Facts(), NODE, 1) for task in tasks]
                return [m.Accepted(tasks), *ends]
            case m.Want():
                self.wants.append(message)
                return self._deliver(message)
            case m.Query():
                return [m.Reply(message.query, NODE, 0, True, b"\x80", "")]
        return []


@pytest.fixture
def fake() -> Iterator[Callable[[Callable[[m.Want], list[m.Message]]], FakeDaemon]]:
    made: list[FakeDaemon] = []

    def make(deliver: Callable[[m.Want], list[m.Message]]) -> FakeDaemon:
        made.append(FakeDaemon(deliver))
        return made[-1]

    yield make
    for one in made:
        one.close()


Fake = Callable[[Callable[[m.Want], list[m.Message]]], FakeDaemon]


@pytest.mark.parametrize("durable", [False, True])
def test_a_result_arrives(fake: Fake, durable: bool) -> None:
    daemon = fake(lambda want: chunks_of(VALUE, want))
    with Client(daemon.endpoint) as client:
        future = client.submit(len, "x", durable=durable)
        assert future.result(WAIT_S) == b"v" * (2 * CHUNK_BYTES)
        assert client.get(ObjectRef(REF.digest, REF.size, NODE)) == future.result()


def test_a_daemon_that_sends_nothing_is_not_waited_for(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puller, "GIVE_UP_MS", 200)
    daemon = fake(lambda _: [])
    with Client(daemon.endpoint) as client:
        future = client.submit(len, "x", durable=True)
        with pytest.raises(Unreachable, match="does not arrive") as caught:
            future.result(WAIT_S)
        assert "blackroad result" in caught.value.hint
        assert future.accepted is not None
        assert future.accepted.result(WAIT_S) is None, "it was accepted, whatever came of it"
        with pytest.raises(Unreachable):
            client.get(ObjectRef(REF.digest, REF.size, NODE))
    assert daemon.wants


def test_bytes_that_are_wrong_once_are_fetched_again(fake: Fake) -> None:
    sent: list[m.Want] = []

    def deliver(want: m.Want) -> list[m.Message]:
        sent.append(want)
        return chunks_of(WRONG if len(sent) == 1 else VALUE, want)

    with Client(fake(deliver).endpoint) as client:
        assert client.submit(len, "x").result(WAIT_S) == b"v" * (2 * CHUNK_BYTES)
    assert len(sent) == 2


def test_bytes_that_stay_wrong_are_an_error(fake: Fake) -> None:
    daemon = fake(lambda want: chunks_of(WRONG, want))
    with Client(daemon.endpoint) as client, pytest.raises(DamagedObject, match="twice"):
        client.submit(len, "x").result(WAIT_S)
    assert len(daemon.wants) == puller.TRIES


def test_pieces_that_do_not_fit_are_dropped(fake: Fake) -> None:
    def deliver(want: m.Want) -> list[m.Message]:
        return [m.Chunk(want.digest, 7, b"no"), *chunks_of(VALUE, want)]

    with Client(fake(deliver).endpoint) as client:
        assert client.submit(len, "x").result(WAIT_S) == b"v" * (2 * CHUNK_BYTES)


def test_closing_ends_whoever_waits_for_a_value(fake: Fake) -> None:
    daemon = fake(lambda _: [])
    client = Client(daemon.endpoint)
    waiting = client._connection.fetch(REF)
    client.close()
    assert waiting.exception(WAIT_S) is not None


def test_an_object_larger_than_memory_is_refused() -> None:
    with pytest.raises(Busy, match="does not fit"):
        Incoming(m.Ref(bytes(32), 2**60))


def test_a_piece_of_another_size_is_no_piece() -> None:
    incoming = Incoming(REF)
    with pytest.raises(RemoteProtocolError):
        incoming.on_chunk(m.Chunk(REF.digest, 0, b"short"), 0)


# --- the daemon's side --------------------------------------------------------------------------


class Side:
    """An exchange that pulls from clients, so that it needs no socket."""

    def __init__(self, base: Path) -> None:
        self.store = ObjectStore(base, 2**30)
        self.told: list[m.Message] = []
        self.arrived: list[bytes] = []
        self.failed: list[tuple[str, bool]] = []
        self.exchange = Exchange(
            self.store,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            lambda _: "",
            lambda _, message: self.told.append(message),
            self.arrived.append,
            lambda _, text, gone, _here: self.failed.append((text, gone)),
        )

    def answer(self, data: bytes, now_ms: int) -> None:
        told, self.told = self.told, []
        for want in told:
            assert isinstance(want, m.Want)
            for chunk in chunks_of(data, want):
                assert isinstance(chunk, m.Chunk)
                self.exchange.on_chunk(chunk, now_ms)


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path / "objects")


def test_a_daemon_fetches_wrong_bytes_once_more(side: Side) -> None:
    side.exchange.fetch(REF, NODE, b"client", 0)
    side.answer(WRONG, 1)
    assert not side.arrived
    side.answer(VALUE, 2)
    assert side.arrived == [REF.digest]
    assert side.store.read(REF.digest, 0, REF.size) == VALUE
    assert side.exchange.counters == {"object.again": 1}


def test_a_daemon_counts_who_sends_wrong_bytes_twice(side: Side) -> None:
    side.exchange.fetch(REF, NODE, b"client", 0)
    side.answer(WRONG, 1)
    side.answer(WRONG, 2)
    assert side.told == []
    assert [gone for _, gone in side.failed] == [True]
    assert side.exchange.counters == {"object.again": 1, "object.damaged.client": 1}
    assert not side.store.has(REF.digest)


def test_a_daemon_gives_up_after_a_standstill(side: Side) -> None:
    side.exchange.fetch(REF, NODE, b"client", 0)
    for now_ms in range(250, puller.GIVE_UP_MS, 250):
        side.exchange.tick(now_ms)
    assert side.failed == []
    side.exchange.tick(puller.GIVE_UP_MS)
    assert side.failed == [("the object did not arrive in time", False)]
