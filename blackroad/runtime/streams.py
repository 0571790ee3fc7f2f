"""Large objects between two machines: streams beside the sockets of ZeroMQ, in threads.

A holder listens; a puller asks over its bulk socket, which proves who both are, for a line: a
port, a token and keys that only these two know.  Over the line it asks for slices of objects, in
turn of all that it needs there.  This file must not know why an object is wanted, and tells the
daemon's loop nothing but how far each pull is.

Edge.  Source  docs/protocol.md, "Objects" (R-object-9).
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from blackroad import chance
from blackroad.bus import messages as m
from blackroad.bus.parcels import shared
from blackroad.bus.sealed import KEY_BYTES, RECORD_BYTES_MAX, Cipher, Seal, chosen, overhead, speed
from blackroad.errors import BlackroadError
from blackroad.limits import KIB, MIB

SLICE_BYTES: Final = 8 * MIB  # asked for at a time; then the next object has its turn
SLICES_AHEAD: Final = 2
TOKEN_BYTES: Final = 16
TOKEN_S: Final = 5.0  # a line that is not taken up in this time is withdrawn
HELLO_S: Final = 3.0  # a stranger may be silent for so long,
STRANGERS_MAX: Final = 32  # so many of them at once
LINES_MAX: Final = 64  # served at once
LINES_OF_NODE_MAX: Final = 2
SILENT_S: Final = 20.0  # nothing came for so long: the line is dead
IDLE_S: Final = 60.0
SOURCES_MAX: Final = 4  # files mapped for one line
_PORT_MAX: Final = 65_535
_REQUEST = struct.Struct("<32sQQ")
_HERE, _GONE = b"\1", b"\0"

Peek = Callable[[bytes], tuple[str, int] | None]


class Listening(Protocol):
    """Where a daemon listens: what this file needs of its configuration."""

    @property
    def listen(self) -> str | None: ...

    @property
    def bulk_port(self) -> int: ...


class Job:
    """One object on its way over a line; the thread of the line writes, the loop looks.

    `fd` is the thread's own; it is closed when the job is over.
    """

    def __init__(self, ref: m.Ref, fd: int, start: int, state: Any) -> None:
        self.digest = ref.digest
        self.size = ref.size
        self.fd = fd
        self.asked = start
        self.received = start  # all bytes before this one are in the file, and in `state`
        self.state = state
        self.over = False
        self.gone = False
        self.cancelled = False
        self.text = ""  # what went wrong here, on this machine

    @property
    def complete(self) -> bool:
        """Whether all of it is here."""
        return self.received == self.size

    def place(self, data: memoryview) -> None:
        """Write the next bytes; an error ends the job, not the line."""
        if self.text or self.cancelled:
            return
        rest, at = data, self.received
        try:
            while rest:
                count = os.pwrite(self.fd, rest, at)
                rest, at = rest[count:], at + count
        except OSError as error:
            self.text = error.strerror or str(error)
            return
        if self.state is not None:
            self.state.update(data)
        self.received = at

    def end(self) -> None:
        """No thread writes any more."""
        if not self.over:
            os.close(self.fd)
            self.over = True


class _Offer:
    """A line that a puller was offered and has not taken up."""

    def __init__(self, node: bytes, cipher: Cipher, keys: tuple[bytes, bytes]) -> None:
        self.node = node
        self.cipher = cipher
        self.keys = keys
        self.until_s = time.monotonic() + TOKEN_S


class Streams:
    """All lines of one daemon, those that it serves and those that it pulls over."""

    def __init__(self, peek: Peek, host: str, port: int, closed: bool) -> None:
        """Serve what `peek(digest)` finds: a path and a size.  Port 0 is any free one.

        Where `port` is taken by somebody else, any free one does as well.
        """
        self._peek = peek
        self._closed = closed
        self._lock = threading.Lock()
        self._offers: OrderedDict[bytes, _Offer] = OrderedDict()
        self._serving: dict[socket.socket, bytes] = {}
        self._strangers = 0
        self._pulling: dict[bytes, _Puller] = {}
        self._ended: deque[tuple[bytes, _Puller | None, Job | None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._speeds: tuple[int, int] | None = None
        self._ending = threading.Event()
        self.counters: dict[str, int] = {}
        self._listener = _listening(host, port)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="streams", daemon=True).start()

    @classmethod
    def beside(cls, config: Listening, peek: Peek, closed: bool) -> Streams:
        """Serve at the port after that of `bulk_port`, where the daemon listens."""
        port = config.bulk_port
        beside = port + 1 if 0 < port < _PORT_MAX else 0
        return cls(peek, config.listen or "127.0.0.1", beside, closed)

    def fileno(self) -> int:
        """Readable when `ended` has something to tell."""
        return self._wake

    def close(self) -> None:
        """End all lines."""
        self._ending.set()
        _shut(self._listener)
        self._listener.close()
        with self._lock:
            serving = list(self._serving)
        for one in serving:
            _shut(one)
        for holder in list(self._pulling):
            self.hang_up(holder)

    def count(self, name: str) -> None:
        """Note that something happened, for `blackroad status`."""
        with self._lock:
            self.counters[name] = self.counters.get(name, 0) + 1

    def told(self) -> dict[str, int]:
        """What was counted so far."""
        with self._lock:
            return dict(self.counters)

    # --- the holder's side ------------------------------------------------------------------------

    def speeds(self) -> tuple[int, int]:
        """How many MB/s this machine seals with AES and with ChaCha20; measured once, in 2 ms."""
        if self._speeds is None:
            self._speeds = (speed(Cipher.AES), speed(Cipher.CHACHA)) if self._closed else (0, 0)
        return self._speeds

    def dial(self) -> m.Dial:
        """What a puller asks a holder."""
        return m.Dial(*self.speeds())

    def offer(self, node: bytes, dial: m.Dial) -> m.Line:
        """Answer a puller that has proved to be `node`."""
        aes, chacha = self.speeds()
        cipher = chosen(self._closed, (aes, dial.aes), (chacha, dial.chacha))
        token = chance.token_bytes(TOKEN_BYTES)
        size = KEY_BYTES if cipher else 0
        keys = (chance.token_bytes(size), chance.token_bytes(size))
        with self._lock:
            now_s = time.monotonic()
            while self._offers and next(iter(self._offers.values())).until_s <= now_s:
                self._offers.popitem(last=False)
            if len(self._offers) >= LINES_MAX:
                self._offers.popitem(last=False)
            self._offers[token] = _Offer(node, cipher, keys)
        return m.Line(self.port, token, int(cipher), keys[0] + keys[1])

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._ending.is_set():
                    return
                # Out of descriptors, most likely: others have to end first.
                time.sleep(0.1)
                continue
            with self._lock:
                full = self._strangers >= STRANGERS_MAX or len(self._serving) >= LINES_MAX
                if not full:
                    self._strangers += 1
            if full:
                connection.close()
                self.count("stream.full")
                continue
            name = "stream-out"
            threading.Thread(target=self._meet, args=(connection,), name=name, daemon=True).start()

    def _meet(self, connection: socket.socket) -> None:
        """Serve who knows a token, until it hangs up."""
        offer: _Offer | None = None
        try:
            try:
                _tuned(connection, HELLO_S)
                token = bytearray(TOKEN_BYTES)
                _receive(connection, memoryview(token), until_s=time.monotonic() + HELLO_S)
                with self._lock:
                    offer = self._offers.pop(bytes(token), None)
            finally:
                with self._lock:
                    self._strangers -= 1
            if offer is None or offer.until_s <= time.monotonic():
                self.count("stream.stranger")
                return
            with self._lock:
                of_node = sum(1 for node in self._serving.values() if node == offer.node)
                if offer.node and of_node >= LINES_OF_NODE_MAX:
                    return
                self._serving[connection] = offer.node
            self._serve(connection, offer)
        except (OSError, EOFError):
            pass
        except BlackroadError:
            self.count("breach.stream")
        finally:
            with self._lock:
                self._serving.pop(connection, None)
            connection.close()

    def _serve(self, connection: socket.socket, offer: _Offer) -> None:
        asking, telling = Seal(offer.cipher, offer.keys[0]), Seal(offer.cipher, offer.keys[1])
        connection.settimeout(2 * IDLE_S)
        request = bytearray(_REQUEST.size)
        sealed = bytearray(_REQUEST.size + asking.overhead)
        out = bytearray(RECORD_BYTES_MAX + telling.overhead)
        sources: OrderedDict[bytes, memoryview] = OrderedDict()
        while True:
            _receive(connection, memoryview(sealed))
            asking.open(memoryview(sealed), memoryview(request))
            digest, offset, length = _REQUEST.unpack(request)
            source = self._source(digest, sources)
            if source is None or offset + length > len(source) or length > SLICE_BYTES:
                _send(connection, telling.close(_GONE, out))
                continue
            _send(connection, telling.close(_HERE, out))
            for start in range(offset, offset + length, RECORD_BYTES_MAX):
                end = min(start + RECORD_BYTES_MAX, offset + length)
                _send(connection, telling.close(source[start:end], out))

    def _source(self, digest: bytes, sources: OrderedDict[bytes, memoryview]) -> memoryview | None:
        known = sources.get(digest)
        found = self._peek(digest)
        if found is None:
            sources.pop(digest, None)
            return None
        if known is not None:
            sources.move_to_end(digest)
            return known
        try:
            source = sources[digest] = memoryview(shared(found[0]))
        except (OSError, ValueError):
            return None
        if len(sources) > SOURCES_MAX:
            sources.popitem(last=False)
        return source

    # --- the puller's side ------------------------------------------------------------------------

    def connected(self, holder: bytes) -> bool:
        """Whether there is a line to that holder, or one is being made."""
        return holder in self._pulling

    def connect(self, holder: bytes, host: str, line: m.Line) -> None:
        """Take up a line."""
        if holder in self._pulling:
            return
        puller = self._pulling[holder] = _Puller(self, holder, host, line)
        threading.Thread(target=puller.run, name="stream-in", daemon=True).start()

    def pull(self, holder: bytes, job: Job) -> None:
        """Bring an object over the line to that holder."""
        self._pulling[holder].jobs.put(job)

    def hang_up(self, holder: bytes) -> None:
        """End the line to a holder; what was under way is over."""
        puller = self._pulling.pop(holder, None)
        if puller is not None:
            puller.end()
            puller.drop_waiting()

    def cut(self, node: bytes) -> None:
        """That node is gone or no member any more: nothing goes to it or comes from it."""
        self.hang_up(node)
        with self._lock:
            for token in [one for one, offer in self._offers.items() if offer.node == node]:
                del self._offers[token]
            connections = [one for one, served in self._serving.items() if served == node]
        for one in connections:
            _shut(one)

    def over(self, holder: bytes, puller: _Puller, job: Job | None) -> None:
        """A thread says that a job is over, or (None) its line."""
        self._ended.append((holder, puller, job))
        with suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def ended(self) -> list[tuple[bytes, Job | None]]:
        """What is over since the last call: jobs, or (None) the line to a holder."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        told: list[tuple[bytes, Job | None]] = []
        over: list[bytes] = []
        while self._ended:
            holder, puller, job = self._ended.popleft()
            if job is None:
                if puller is None or self._pulling.get(holder) is not puller:
                    continue
                del self._pulling[holder]
                # What was put there after the thread had looked for the last time.
                puller.drop_waiting()
                over.append(holder)
            else:
                told.append((holder, job))
        return [*told, *((holder, None) for holder in over)]


class _Puller:
    """The thread of one line to one holder."""

    def __init__(self, streams: Streams, holder: bytes, host: str, line: m.Line) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._streams = streams
        self._holder = holder
        self._host = host
        self._line = line
        self._turns: deque[Job] = deque()
        self._asked: deque[tuple[Job, int]] = deque()
        self._socket: socket.socket | None = None
        self._ended = False

    def end(self) -> None:
        """Called by the loop: no more."""
        self._ended = True
        self.jobs.put(None)
        if self._socket is not None:
            _shut(self._socket)

    def run(self) -> None:
        """Pull until the line is over."""
        try:
            self._run()
        except (OSError, EOFError, queue.Empty):
            pass
        except BlackroadError:
            self._streams.count("breach.stream")
        finally:
            if self._socket is not None:
                self._socket.close()
            self._give_up()
            self._streams.over(self._holder, self, None)

    def _give_up(self) -> None:
        for job in (*self._turns, *(job for job, _ in self._asked)):
            self._finish(job)
        self.drop_waiting()

    def drop_waiting(self) -> None:
        """The line is over: so are the jobs that it has not begun."""
        with suppress(queue.Empty):
            while True:
                job = self.jobs.get_nowait()
                if job is not None:
                    self._finish(job)

    def _finish(self, job: Job) -> None:
        if not job.over:
            job.end()
            self._streams.over(self._holder, self, job)

    def _run(self) -> None:
        line = self._line
        cipher = Cipher(line.cipher)
        self._socket = link = socket.create_connection((self._host, line.port), HELLO_S)
        if self._ended:
            return
        _tuned(link, SILENT_S)
        link.sendall(line.token)
        asking = Seal(cipher, line.keys[:KEY_BYTES])
        telling = Seal(cipher, line.keys[KEY_BYTES:])
        size = overhead(cipher)
        small = bytearray(_REQUEST.size + size)
        sealed = memoryview(bytearray(RECORD_BYTES_MAX + size))
        plain = memoryview(bytearray(RECORD_BYTES_MAX))
        while True:
            if not self._asked and not self._turns:
                self._take(self.jobs.get(timeout=IDLE_S))
            with suppress(queue.Empty):
                while True:
                    self._take(self.jobs.get_nowait())
            while self._turns and len(self._asked) < SLICES_AHEAD:
                self._ask(link, asking, small)
            if self._asked:
                self._read(link, telling, sealed, plain)

    def _take(self, job: Job | None) -> None:
        if job is None:
            raise EOFError
        self._turns.append(job)

    def _ask(self, link: socket.socket, asking: Seal, small: bytearray) -> None:
        """Ask for the next slice of the object whose turn it is."""
        job = self._turns.popleft()
        if job.cancelled or job.text or job.gone:
            if all(one is not job for one, _ in self._asked):
                self._finish(job)
            return
        length = min(SLICE_BYTES, job.size - job.asked)
        request = _REQUEST.pack(job.digest, job.asked, length)
        _send(link, asking.close(request, small))
        job.asked += length
        self._asked.append((job, length))
        if job.asked < job.size:
            self._turns.append(job)

    def _read(
        self, link: socket.socket, telling: Seal, sealed: memoryview, plain: memoryview
    ) -> None:
        """Take in the slice that was asked for first."""
        job, length = self._asked[0]
        extra = telling.overhead
        _receive(link, sealed[: 1 + extra])
        telling.open(sealed[: 1 + extra], plain[:1])
        if plain[:1] == _GONE:
            job.gone = True
            length = 0
        while length:
            count = min(RECORD_BYTES_MAX, length)
            _receive(link, sealed[: count + extra])
            telling.open(sealed[: count + extra], plain[:count])
            if not job.gone:
                job.place(plain[:count])
            length -= count
        self._asked.popleft()
        under_way = any(one is job for one, _ in self._asked) or job in self._turns
        if job.complete or not under_way:
            self._finish(job)


# --- sockets --------------------------------------------------------------------------------------


def _listening(host: str, port: int) -> socket.socket:
    everywhere = host in ("*", "0.0.0.0", "::", "")
    wide = everywhere and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if wide or ":" in host else socket.AF_INET
    address = "" if everywhere else host
    for one in (port, 0):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if wide:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            # Before it listens: what a connection may be offered is settled when it is made.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
            listener.bind((address, one))
            listener.listen(64)
        except OSError:
            listener.close()
            if not one:
                raise
            continue
        return listener
    raise AssertionError("a free port is always to be had, or an error")


def _tuned(link: socket.socket, timeout_s: float) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.settimeout(timeout_s)


def _send(link: socket.socket, pieces: list[bytes | memoryview]) -> None:
    for piece in pieces:
        link.sendall(piece)


def _receive(link: socket.socket, into: memoryview, until_s: float = 0.0) -> None:
    """Fill a buffer.

    Raises  EOFError where the other end hung up; TimeoutError.
    """
    while into:
        if until_s and time.monotonic() >= until_s:
            raise TimeoutError
        count = link.recv_into(into)
        if not count:
            raise EOFError
        into = into[count:]


def _shut(link: socket.socket) -> None:
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
