"""Large values between a program and its daemon: parcels on one machine, else chunks out and in.

Source  docs/protocol.md, "Objects" (R-object-5 to R-object-8).  This file must not know sockets or
tasks.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

from blackroad.bus import messages as m
from blackroad.bus.parcels import Parcels, is_name, read_guide
from blackroad.bus.payload import Segment, digest_of, total_bytes
from blackroad.bus.puller import Puller
from blackroad.errors import Busy, DamagedObject
from blackroad.limits import CHUNK_BYTES


class Outgoing:
    """Objects this program holds because the daemon may ask for them."""

    def __init__(self, endpoint: str = "") -> None:
        """Speak for a program whose daemon is at `endpoint`."""
        scheme, _, path = endpoint.partition("://")
        self._directory = os.path.dirname(path) if scheme == "ipc" else ""
        self._parcels = Parcels(())
        self._held: dict[bytes, tuple[int, list[memoryview], int]] = {}
        self._lock = threading.Lock()
        self._requests: deque[tuple[m.Ref, Future[memoryview]]] = deque()

    def close(self) -> None:
        """Leave nothing behind that nobody will ask for."""
        self._parcels.close()

    def parcels(self) -> Parcels:
        """Where this machine's processes hand values to each other; empty where they do not."""
        if self._directory and not self._parcels:
            # The daemon may have begun to take them a moment ago.
            self._parcels = Parcels(read_guide(self._directory))
        return self._parcels

    def pack(self, segments: list[Segment], *, lasting: bool = False) -> m.Ref:
        """Lay a large value ready for the daemon; it needs one `release`.

        A value that the daemon must be able to keep is `lasting`, and named by its content.

        Cost    one copy into shared memory; where there is none, the segments are kept.
        """
        parcels, size = self.parcels(), total_bytes(segments)
        digest = digest_of(segments) if lasting or not parcels else parcels.new_name()
        if parcels and parcels.write(digest, segments, lasting=lasting):
            ref = m.Ref(digest, size)
            segments = []
        else:
            ref = m.Ref(digest_of(segments) if is_name(digest) else digest, size)
        self.hold(ref, segments)
        return ref

    def opened(self, ref: m.Ref) -> memoryview | None:
        """Return a value that the daemon keeps as a parcel, None where it does not."""
        return self.parcels().open(ref.digest, ref.size) if is_name(ref.digest) else None

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
                return
            del self._held[digest]
        if not views:
            self._parcels.take_back(digest)

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
            data: bytes | None
            if views:
                data = _slice(views, offset, CHUNK_BYTES)
            else:
                # It was laid ready, and this daemon does not see the place.
                data = self._parcels.handed(want.digest, offset, CHUNK_BYTES)
            if not data:
                yield m.Gone(want.digest)
                return
            yield m.Chunk(want.digest, offset, data)

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
    """One object on its way here, kept in memory, checked before use.

    Raises  Busy where this program has no memory for it.
    """

    def __init__(self, ref: m.Ref) -> None:
        self.ref = ref
        self.waiting: list[m.Ended] = []
        self.futures: list[Future[memoryview]] = []
        try:
            self._puller = Puller(ref.digest, ref.size)
            self._buffer = bytearray(ref.size)
        except (MemoryError, OverflowError):
            raise Busy(
                f"an object of {ref.size} bytes does not fit into the memory of this program",
                hint="fetch it on a machine with more, or let the task write a file",
            ) from None

    def wants(self, now_ms: int) -> list[m.Want]:
        """What to ask for now."""
        digest = self.ref.digest
        return [m.Want(digest, *each) for each in self._puller.wants(now_ms)]

    def on_chunk(self, chunk: m.Chunk, now_ms: int) -> bool:
        """Place one chunk; return whether the object is complete.

        Raises  RemoteProtocolError for a chunk that the object does not have; DamagedObject where
                the whole is not what its digest says, twice.
        """
        complete = self._puller.on_chunk(chunk.offset, chunk.data, now_ms)
        if complete is None:
            return False
        self._buffer[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
        if not complete:
            return False
        if is_name(self.ref.digest) or digest_of(memoryview(self._buffer)) == self.ref.digest:
            return True
        if not self._puller.start_over(now_ms):
            raise DamagedObject(
                f"object {self.ref.digest.hex()[:12]} arrived damaged twice: its digest differs",
                hint="the daemon's node has a bad disk or bad memory",
            )
        return False

    def resume(self, now_ms: int) -> None:
        """The connection is back: ask again for what is missing, with the whole patience."""
        self._puller.resume(now_ms)

    def gave_up(self, now_ms: int) -> bool:
        """Whether nothing came for so long that waiting on makes no sense."""
        return self._puller.gave_up(now_ms)

    def data(self) -> memoryview:
        """The whole object."""
        return memoryview(self._buffer)
