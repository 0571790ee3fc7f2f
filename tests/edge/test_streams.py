"""Lines between two machines, on loopback: who gets one, what comes over it, and how it ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blackroad.bus import messages as m
from blackroad.bus import payload
from blackroad.bus.parcels import Parcels, read_guide
from blackroad.bus.sealed import Cipher
from blackroad.bus.sockets import Bus, Poller, bind
from blackroad.limits import CHUNK_BYTES, MIB
from blackroad.runtime import exchange as exchanges
from blackroad.runtime import streams as lines
from blackroad.runtime.exchange import Exchange
from blackroad.runtime.objects import ObjectStore
from blackroad.runtime.shed import Shed
from blackroad.runtime.streams import SLICE_BYTES, STRANGERS_MAX, Job, Streams

pytestmark = pytest.mark.edge

WAIT_S = 30.0
HOLDER, PULLER = b"h" * 16, b"p" * 16
HERE = "127.0.0.1"


def until(ask: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not ask():
        assert time.monotonic() < deadline, f"no {what} in time"
        select.select([], [], [], 0.005)


# --- two ends of a line ---------------------------------------------------------------------------


class Ends:
    """A holder with files, and a puller."""

    def __init__(self, base: Path, closed: bool) -> None:
        self.base = base
        self.objects: dict[bytes, tuple[str, int]] = {}
        self.holder = Streams(self.objects.get, HERE, 0, closed)
        self.puller = Streams(lambda _: None, HERE, 0, closed)
        self.over: list[Job | None] = []

    def object(self, data: bytes) -> m.Ref:
        digest = payload.digest_of(data)
        path = self.base / digest.hex()
        path.write_bytes(data)
        self.objects[digest] = (str(path), len(data))
        return m.Ref(digest, len(data))

    def connect(self) -> m.Line:
        line = self.holder.offer(PULLER, self.puller.dial())
        self.puller.connect(HOLDER, HERE, line)
        return line

    def job(self, ref: m.Ref, start: int = 0) -> Job:
        path = self.base / f"in-{ref.digest.hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        return Job(ref, fd, start, hashlib.blake2b(digest_size=32))

    def pull(self, ref: m.Ref, start: int = 0) -> Job:
        job = self.job(ref, start)
        self.puller.pull(HOLDER, job)
        return job

    def came(self, ref: m.Ref) -> bytes:
        return (self.base / f"in-{ref.digest.hex()}").read_bytes()

    def wait(self, *jobs: Job | None) -> None:
        def told() -> bool:
            self.over += [job for _, job in self.puller.ended()]
            return all(job in self.over for job in jobs)

        until(told, "end of the jobs")

    def close(self) -> None:
        self.puller.close()
        self.holder.close()


@pytest.fixture(params=[True, False], ids=["closed", "open"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def closed_ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path, True)
    yield made
    made.close()


@pytest.mark.parametrize("size", [1, MIB, 3 * SLICE_BYTES + 12345])
def test_an_object_comes_over_a_line(ends: Ends, size: int) -> None:
    data = os.urandom(size)
    ref = ends.object(data)
    ends.connect()
    job = ends.pull(ref)
    ends.wait(job)
    assert job.complete
    assert ends.came(ref) == data
    assert job.state.digest() == ref.digest
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(job.fd)


def test_an_object_that_is_half_here_goes_on_there(ends: Ends) -> None:
    data = os.urandom(5 * MIB)
    ref = ends.object(data)
    ends.connect()
    job = ends.pull(ref, start=2 * MIB)
    ends.wait(job)
    assert job.complete
    assert ends.came(ref)[2 * MIB :] == data[2 * MIB :]
    assert ends.came(ref)[: 2 * MIB] == bytes(2 * MIB)


def test_what_is_not_there_is_gone_and_the_line_goes_on(ends: Ends) -> None:
    ends.connect()
    missing = ends.pull(m.Ref(bytes(32), 5 * MIB))
    ref = ends.object(b"there" * 1000)
    there = ends.pull(ref)
    ends.wait(missing, there)
    assert missing.gone
    assert not missing.complete
    assert there.complete


def test_a_holder_whose_file_is_shorter_than_said_does_not_have_it(ends: Ends) -> None:
    ref = ends.object(bytes(2 * MIB))
    ends.connect()
    job = ends.pull(m.Ref(ref.digest, 3 * MIB))
    ends.wait(job)
    assert job.gone


def test_a_small_object_does_not_wait_for_a_large_one(ends: Ends) -> None:
    large, small = ends.object(bytes(12 * SLICE_BYTES)), ends.object(b"s" * MIB)
    order: list[bytes] = []
    first, second = ends.job(large), ends.job(small)
    line = ends.holder.offer(PULLER, ends.puller.dial())
    ends.puller.connect(HOLDER, HERE, line)
    for job in (first, second):
        ends.puller.pull(HOLDER, job)

    def told() -> bool:
        order.extend(job.digest for _, job in ends.puller.ended() if job is not None)
        return len(order) == 2

    until(told, "end of both")
    assert order == [small.digest, large.digest]


def test_a_disk_that_is_full_ends_one_pull_and_not_the_line(closed_ends: Ends) -> None:
    ends = closed_ends
    ref, other = ends.object(os.urandom(4 * MIB)), ends.object(b"x" * 1000)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    try:
        ends.connect()
        full, fine = ends.pull(ref), ends.pull(other)
        ends.wait(full, fine)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert full.text
    assert fine.complete


def test_a_pull_that_is_given_up_is_over(ends: Ends) -> None:
    ends.connect()
    ref = ends.object(bytes(20 * SLICE_BYTES))
    job = ends.job(ref)
    job.cancelled = True
    ends.puller.pull(HOLDER, job)
    ends.wait(job)
    assert job.received == 0


# --- who gets a line ------------------------------------------------------------------------------


def answers(port: int, said: bytes) -> bytes:
    """What a stranger hears after he said that, until he is hung up on."""
    with socket.create_connection((HERE, port), WAIT_S) as link:
        link.sendall(said)
        heard = b""
        # Hung up on with words unread, he is told so less politely.
        with contextlib.suppress(ConnectionResetError):
            while piece := link.recv(1000):
                heard += piece
        return heard


def test_a_stranger_hears_nothing(closed_ends: Ends) -> None:
    assert answers(closed_ends.holder.port, bytes(16) + bytes(64)) == b""
    until(lambda: closed_ends.holder.counters.get("stream.stranger"), "count of strangers")


def test_a_token_is_good_once(closed_ends: Ends) -> None:
    line = closed_ends.connect()
    ref = closed_ends.object(b"x" * 1000)
    closed_ends.wait(closed_ends.pull(ref))
    assert answers(closed_ends.holder.port, line.token + bytes(64)) == b""


def test_a_token_is_good_for_a_while(closed_ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "TOKEN_S", -1.0)
    line = closed_ends.holder.offer(PULLER, closed_ends.puller.dial())
    assert answers(closed_ends.holder.port, line.token + bytes(64)) == b""


def test_a_token_without_the_keys_opens_nothing(closed_ends: Ends) -> None:
    """Who reads the token on its way has still to be one of the two."""
    line = closed_ends.holder.offer(PULLER, closed_ends.puller.dial())
    assert line.cipher != Cipher.NONE
    assert len(line.keys) == 64
    assert answers(closed_ends.holder.port, line.token + bytes(48 + 16)) == b""
    until(lambda: closed_ends.holder.counters.get("breach.stream"), "count of breaches")


def test_a_holder_with_other_keys_ends_the_pull(closed_ends: Ends) -> None:
    ref = closed_ends.object(bytes(MIB))
    line = closed_ends.holder.offer(PULLER, closed_ends.puller.dial())
    other = m.Line(line.port, line.token, line.cipher, line.keys[:32] + bytes(32))
    closed_ends.puller.connect(HOLDER, HERE, other)
    job = closed_ends.pull(ref)
    closed_ends.wait(job, None)
    assert job.received == 0
    assert closed_ends.puller.counters == {"breach.stream": 1}
    assert not closed_ends.puller.connected(HOLDER)


def test_silent_strangers_do_not_take_all_places(
    closed_ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "HELLO_S", 0.3)
    silent = [
        socket.create_connection((HERE, closed_ends.holder.port), WAIT_S)
        for _ in range(STRANGERS_MAX + 10)
    ]
    until(lambda: closed_ends.holder.counters.get("stream.full"), "count of those turned away")
    for one in silent:
        assert one.recv(1) == b"", "hung up on"
        one.close()
    ref = closed_ends.object(b"x" * 1000)
    closed_ends.connect()
    job = closed_ends.pull(ref)
    closed_ends.wait(job)
    assert job.complete


def test_a_node_that_is_cut_gets_nothing_more(closed_ends: Ends) -> None:
    closed_ends.connect()
    ref = closed_ends.object(b"x" * 1000)
    closed_ends.wait(closed_ends.pull(ref))
    offered = closed_ends.holder.offer(PULLER, closed_ends.puller.dial())
    closed_ends.holder.cut(PULLER)
    late = closed_ends.pull(closed_ends.object(bytes(MIB)))
    closed_ends.wait(late, None)
    assert late.received == 0
    assert not closed_ends.puller.connected(HOLDER)
    assert answers(closed_ends.holder.port, offered.token) == b""


def test_nobody_at_the_other_end(ends: Ends) -> None:
    line = ends.holder.offer(PULLER, ends.puller.dial())
    ends.holder.close()
    ends.puller.connect(HOLDER, HERE, line)
    job = ends.pull(m.Ref(bytes(32), MIB))
    ends.wait(job, None)
    assert job.over
    assert job.received == 0


def test_a_port_that_is_taken_is_not_needed() -> None:
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
        streams = Streams(lambda _: None, HERE, port, False)
        assert streams.port not in (0, port)
        streams.close()


# --- two exchanges --------------------------------------------------------------------------------


class Node:
    """An exchange with real sockets on loopback, in an open mesh."""

    def __init__(self, base: Path, name: bytes, streams: bool = True) -> None:
        self.name = name
        for part in ("objects", "run"):
            (base / part).mkdir(mode=0o700, parents=True)
        self.store = ObjectStore(
            base / "objects", 2**30, shed=Shed.made(base / "objects", base / "run", 2**30)
        )
        self.parcels = Parcels(read_guide(base / "run"))
        self.bus = Bus()
        self.poller = Poller()
        self.server = self.bus.bulk_server()
        self.port = bind(self.server, HERE, 0, "bulk_port")
        self.poller.watch(self.server)
        self.others: dict[bytes, Node] = {}
        self.arrived: list[bytes] = []
        self.failed: list[tuple[bytes, str]] = []
        self.streams = Streams(self.store.peek, HERE, 0, False) if streams else None
        self.exchange = Exchange(
            self.store,
            self.bus,
            self.poller,
            self.server,
            lambda node: f"tcp://{HERE}:{self.others[node].port}",
            lambda _node, _message: None,
            self.arrived.append,
            lambda digest, text, _gone, _here: self.failed.append((digest, text)),
            streams=self.streams,
        )

    def turn(self, now_ms: int) -> None:
        for what, _ in self.poller.wait(5):
            if what is self.server:
                self.exchange.on_server_readable()
            else:
                assert self.exchange.on_readable(what, now_ms)
        self.exchange.tick(now_ms)

    def close(self) -> None:
        self.store.close()
        self.bus.close()


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[[bool], tuple[Node, Node]]]:
    made: list[Node] = []

    def make(streams: bool) -> tuple[Node, Node]:
        holder = Node(tmp_path / "holder", HOLDER, streams)
        puller = Node(tmp_path / "puller", PULLER)
        puller.others[HOLDER] = holder
        made.extend((holder, puller))
        return holder, puller

    yield make
    for one in made:
        one.close()


Pair = Callable[[bool], tuple[Node, Node]]


def run(*nodes: Node, until_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not until_true():
        assert time.monotonic() < deadline, "nothing came of it in time"
        for one in nodes:
            one.turn(now_ms())


def named(node: Node, data: bytes) -> m.Ref:
    name = node.parcels.new_name()
    assert node.parcels.write(name, [data])
    assert node.store.claim(name, len(data))
    node.store.pin(name)
    return m.Ref(name, len(data))


def test_large_objects_take_the_line(pair: Pair) -> None:
    holder, puller = pair(True)
    first, second = os.urandom(20 * MIB), os.urandom(3 * MIB)
    digest, size = holder.store.put(first)
    ref = named(holder, second)
    for one in (m.Ref(digest, size), ref):
        puller.exchange.fetch(one, HOLDER, b"", now_ms())
    run(holder, puller, until_true=lambda: len(puller.arrived) == 2)
    assert puller.store.read(digest, 0, size) == first
    assert puller.store.read(ref.digest, 0, ref.size) == second
    assert puller.exchange.counters == {}
    path = puller.store.path(ref.digest)
    assert path is not None
    assert Path(path).parent != puller.store._directory, "as a parcel"


def test_small_objects_do_not(pair: Pair) -> None:
    holder, puller = pair(True)
    ref = named(holder, os.urandom(CHUNK_BYTES + 7))
    puller.exchange.fetch(ref, HOLDER, b"", now_ms())
    run(holder, puller, until_true=lambda: puller.arrived)
    assert puller.streams is not None
    assert not puller.streams.connected(HOLDER)


def test_a_holder_without_lines_sends_chunks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "DIAL_MS", 50)
    holder, puller = pair(False)
    data = os.urandom(3 * MIB)
    ref = named(holder, data)
    puller.exchange.fetch(ref, HOLDER, b"", now_ms())
    run(holder, puller, until_true=lambda: puller.arrived)
    assert puller.store.read(ref.digest, 0, ref.size) == data
    assert puller.exchange.counters == {"stream.none": 1}


def test_a_line_that_breaks_is_made_anew_and_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, puller = pair(True)
    data = os.urandom(40 * MIB)
    digest, size = holder.store.put(data)
    starts: list[int] = []
    genuine = Streams.pull

    def pull(self: Streams, node: bytes, job: Job) -> None:
        starts.append(job.received)
        genuine(self, node, job)

    monkeypatch.setattr(Streams, "pull", pull)
    puller.exchange.fetch(m.Ref(digest, size), HOLDER, b"", now_ms())

    def moving() -> bool:
        jobs = [one.job for one in puller.exchange._pulls.values()]
        return bool(jobs and jobs[0] is not None and jobs[0].received >= MIB)

    run(holder, puller, until_true=moving)
    assert holder.streams is not None
    with holder.streams._lock:
        connections = list(holder.streams._serving)
    for one in connections:
        lines._shut(one)
    run(holder, puller, until_true=lambda: puller.arrived)
    assert puller.store.read(digest, 0, size) == data
    assert len(starts) <= 2
    assert starts[0] == 0
    assert all(start >= MIB for start in starts[1:])


def test_wrong_bytes_are_fetched_once_more_and_then_blamed_on_the_holder(pair: Pair) -> None:
    holder, puller = pair(True)
    digest, size = holder.store.put(os.urandom(3 * MIB))
    path = holder.store.path(digest)
    assert path is not None
    Path(path).write_bytes(bytes(size))
    puller.exchange.fetch(m.Ref(digest, size), HOLDER, b"", now_ms())
    run(holder, puller, until_true=lambda: puller.failed)
    assert "damaged" in puller.failed[0][1]
    assert puller.exchange.counters["object.again"] == 1
    assert not puller.store.has(digest)


def test_a_holder_that_is_forgotten_ends_its_pulls(pair: Pair) -> None:
    holder, puller = pair(True)
    ref = named(holder, bytes(30 * MIB))
    puller.exchange.fetch(ref, HOLDER, b"", now_ms())
    assert puller.streams is not None
    run(holder, puller, until_true=lambda: puller.streams and puller.streams.connected(HOLDER))
    puller.exchange.forget_holder(HOLDER)
    assert puller.failed == [(ref.digest, "its holder is gone")] or puller.arrived
    assert not puller.streams.connected(HOLDER)
    until(lambda: not puller.store._reserved_bytes, "room given back")


def test_many_pulls_at_once_all_arrive(pair: Pair) -> None:
    before = set(threading.enumerate())  # what earlier tests left is not this one's
    holder, puller = pair(True)
    values = [os.urandom(MIB + number) for number in range(20)]
    refs = [named(holder, data) for data in values]
    for ref in refs:
        puller.exchange.fetch(ref, HOLDER, b"", now_ms())
    run(holder, puller, until_true=lambda: len(puller.arrived) == 20)
    for ref, data in zip(refs, values, strict=True):
        assert puller.store.read(ref.digest, 0, ref.size) == data
    assert len(set(threading.enumerate()) - before) < 20
