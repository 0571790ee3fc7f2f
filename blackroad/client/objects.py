"""Large values between a program and its daemon: chunks out, chunks in.

Source  docs/protocol.md, "Objects" (R-object-5).  This file must not know sockets or tasks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

from blackroad.bus import messages as m
from blackroad.bus.payload import Segment, digest_of
from blackroad.errors import RemoteProtocolError
from blackroad.limits import CHUNK_BYTES, WINDOW_CHUNKS

WANT_AGAIN_MS = 1_000


class Outgoing:
    """Objects this program holds because the daemon may ask for them."""

    def __init__(self) -> None:
        self._held: dict[bytes, tuple[int, list[memoryview], int]] = {}
        self._lock = threading.Lock()
        self._requests: deque[tuple[m.Ref, Future[memoryview]]] = deque()

    def hold(self, ref: m.Ref, segments: list[Segment]) -> None:
        """Keep an object; each call needs one `release`."""
        with self._lock:
            size, views, count = self._held.get(ref.digest, (ref.size, [], 0))
            if not views:
                views = [memoryview(one).cast("B") for one in segments]
            self._held[ref.digest] = (size, views, count + 1)

    def release(self, digest: bytes) -> None:
        """One reason less to keep an object."""
        with self._lock:
            held = self._held.get(digest)
            if held is None:
                return
            size, views, count = held
            if count > 1:
                self._held[digest] = (size, views, count - 1)
            else:
                del self._held[digest]

    def chunks(self, want: m.Want) -> Iterator[m.Message]:
        """Answer one Want."""
        with self._lock:
            held = self._held.get(want.digest)
        if held is None:
            yield m.Gone(want.digest)
            return
        size, views, _ = held
        for number in range(want.chunks):
            offset = want.offset + number * CHUNK_BYTES
            if offset >= size:
                return
            yield m.Chunk(want.digest, offset, _slice(views, offset, CHUNK_BYTES))

    def request(self, ref: m.Ref, future: Future[memoryview]) -> None:
        """Another thread wants an object pulled."""
        self._requests.append((ref, future))

    def take_requests(self) -> Iterator[tuple[m.Ref, Future[memoryview]]]:
        """What other threads asked for since the last call."""
        while self._requests:
            yield self._requests.popleft()


def _slice(views: list[memoryview], offset: int, count: int) -> bytes:
    """Bytes of several pieces as if they were one."""
    parts = []
    for view in views:
        if offset >= view.nbytes:
            offset -= view.nbytes
            continue
        part = view[offset : offset + count]
        parts.append(part)
        count -= part.nbytes
        offset = 0
        if not count:
            break
    return b"".join(parts)


class Incoming:
    """One object on its way here, kept in memory, checked before use."""

    def __init__(self, ref: m.Ref) -> None:
        self.ref = ref
        self.waiting: list[m.Ended] = []
        self.futures: list[Future[memoryview]] = []
        self._buffer = bytearray(ref.size)
        self._have: set[int] = set()
        self._asked_upto = 0
        self._heard_ms = 0

    def wants(self, now_ms: int) -> Iterator[m.Want]:
        """What to ask for now: the next window, or the first gap again after silence."""
        total = -(-self.ref.size // CHUNK_BYTES)
        if self._asked_upto and now_ms - self._heard_ms >= WANT_AGAIN_MS:
            self._asked_upto = next((n for n in range(total) if n not in self._have), total)
        outstanding = self._asked_upto - len(self._have)
        if self._asked_upto < total and outstanding <= WINDOW_CHUNKS // 2:
            count = min(WINDOW_CHUNKS, total - self._asked_upto)
            yield m.Want(self.ref.digest, self._asked_upto * CHUNK_BYTES, count)
            self._asked_upto += count
            self._heard_ms = now_ms

    def on_chunk(self, chunk: m.Chunk, now_ms: int) -> bool:
        """Place one chunk; return whether the object is complete.

        Raises  RemoteProtocolError where bytes do not fit the object, or the whole is not what
                its digest says.
        """
        end = chunk.offset + len(chunk.data)
        if chunk.offset % CHUNK_BYTES or end > self.ref.size:
            raise RemoteProtocolError("a chunk does not fit its object")
        number = chunk.offset // CHUNK_BYTES
        if end < min(self.ref.size, chunk.offset + CHUNK_BYTES):
            raise RemoteProtocolError("a chunk is too short")
        self._buffer[chunk.offset : end] = chunk.data
        self._have.add(number)
        self._heard_ms = now_ms
        if len(self._have) * CHUNK_BYTES < self.ref.size:
            return False
        if digest_of(memoryview(self._buffer)) != self.ref.digest:
            raise RemoteProtocolError("the bytes of an object are not what its digest says")
        return True

    def data(self) -> memoryview:
        """The whole object."""
        return memoryview(self._buffer)
