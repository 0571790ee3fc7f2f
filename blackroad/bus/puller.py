"""Pure: brings one object here from one holder, chunk by chunk, over a path that loses things.

Daemons and clients drive it alike.  Requests are stateless and may be repeated; chunks are placed
by offset, so late and doubled ones are harmless.  This file must not know files, sockets or
clocks, and does not see the digest of what came: whoever keeps the chunks checks it.

Source  docs/protocol.md, "Objects" and messages Want, Chunk, Gone.
"""

from __future__ import annotations

from typing import Final

from blackroad.errors import RemoteProtocolError
from blackroad.limits import CHUNK_BYTES, WINDOW_CHUNKS

RETRY_MS: Final = 2_000  # a chunk that did not come in this time is asked for again
RETRY_MS_MAX: Final = 8_000  # the wait doubles up to here while nothing comes
GIVE_UP_MS: Final = 24_000  # no new chunk for so long: the holder cannot deliver
TRIES: Final = 2  # from the beginning, where the bytes are not what the digest says


class Puller:
    """Decides what to ask for; at most eight chunks are under way at any time.

    Drive it: send `wants`, feed `on_chunk`, look at `next_deadline_ms`, stop on `gave_up` or
    `complete`.  After `on_gone` or a lost holder, `resume` goes on elsewhere with what is here;
    where the whole has another digest, `start_over` says whether to try it once more.
    """

    def __init__(self, digest: bytes, size: int) -> None:
        self.digest = digest
        self.size = size
        self.complete = size == 0
        self._chunks = -(-size // CHUNK_BYTES)
        self._missing = self._chunks
        self._here = bytearray(self._chunks)  # one flag a chunk: 16 KiB for an object of 4 GiB
        self._next = 0
        self._under_way: dict[int, int] = {}  # chunk -> when it is overdue
        self._retry_ms = RETRY_MS
        self._progress_ms: int | None = None
        self._gone = False
        self._tries = 1

    @property
    def received_bytes(self) -> int:
        """How much of the object is here."""
        last = self._chunks - 1
        full = (self._chunks - self._missing) * CHUNK_BYTES
        if self._chunks and self._here[last]:
            full -= self._chunks * CHUNK_BYTES - self.size
        return full

    def wants(self, now_ms: int) -> list[tuple[int, int]]:
        """Return the requests to send now, as (offset, number of chunks)."""
        if self._progress_ms is None:
            self._progress_ms = now_ms
        if self.complete or self._gone or self.gave_up(now_ms):
            return []
        overdue = sorted(chunk for chunk, due in self._under_way.items() if due <= now_ms)
        if overdue and len(overdue) == len(self._under_way):
            # Nothing at all came: the path or the holder is slow, so ask less often.
            self._retry_ms = min(2 * self._retry_ms, RETRY_MS_MAX)
        wanted = overdue + self._fresh()
        for chunk in wanted:
            self._under_way[chunk] = now_ms + self._retry_ms
        return _runs(wanted)

    def _fresh(self) -> list[int]:
        """Take new chunks when half of the window is free: fewer, larger requests."""
        room = WINDOW_CHUNKS - len(self._under_way)
        if room < WINDOW_CHUNKS // 2:
            return []
        fresh: list[int] = []
        while len(fresh) < room and self._next < self._chunks:
            if not self._here[self._next] and self._next not in self._under_way:
                fresh.append(self._next)
            self._next += 1
        return fresh

    def on_chunk(self, offset: int, data: bytes | memoryview, now_ms: int) -> bool | None:
        """Take note of a chunk: None if it is here already, else whether the object is complete.

        Write the chunk unless None came back.
        Raises  RemoteProtocolError for a chunk that this object does not have.
        """
        chunk, apart = divmod(offset, CHUNK_BYTES)
        if apart or not 0 <= chunk < self._chunks:
            raise RemoteProtocolError(f"a chunk at {offset} of an object of {self.size} bytes")
        if len(data) != min(CHUNK_BYTES, self.size - offset):
            raise RemoteProtocolError(f"a chunk of {len(data)} bytes at {offset} of {self.size}")
        self._under_way.pop(chunk, None)
        if self._here[chunk]:
            return None
        self._here[chunk] = 1
        self._missing -= 1
        self._retry_ms = RETRY_MS
        self._progress_ms = now_ms
        self.complete = self._missing == 0
        return self.complete

    def have(self, end: int, now_ms: int) -> None:
        """All before that byte came another way; a piece of a chunk does not count."""
        chunks = self._chunks if end >= self.size else end // CHUNK_BYTES
        fresh = chunks - sum(self._here[:chunks])
        if fresh > 0:
            self._here[:chunks] = b"\1" * chunks
            self._missing -= fresh
            self._progress_ms = now_ms
            self.complete = self._missing == 0

    def waits(self, now_ms: int, moved: bool) -> None:
        """It comes another way: count its standstill from the last time that anything `moved`."""
        if moved or self._progress_ms is None:
            self._progress_ms = now_ms

    def on_gone(self) -> None:
        """The holder does not have the object: ask nothing more until `resume`."""
        self._gone = True
        self._under_way.clear()

    def resume(self, now_ms: int) -> None:
        """Go on with another holder; what is here stays here."""
        self._gone = False
        self._under_way.clear()
        self._next = 0
        self._retry_ms = RETRY_MS
        self._progress_ms = now_ms

    def start_over(self, now_ms: int) -> bool:
        """The whole is not what its digest says: forget all of it; False if that was the last try.

        Source  R-object-1 and the table of pulls: once, because a bit may turn on the way, and not
                for ever, because the holder's disk may be the cause.
        """
        if self._tries >= TRIES:
            return False
        self._tries += 1
        self._here = bytearray(self._chunks)
        self._missing = self._chunks
        self.complete = self.size == 0
        self.resume(now_ms)
        return True

    def gave_up(self, now_ms: int) -> bool:
        """Whether nothing new came for so long that waiting on makes no sense."""
        if self.complete or self._progress_ms is None:
            return False
        return now_ms - self._progress_ms >= GIVE_UP_MS

    def next_deadline_ms(self) -> int | None:
        """When `wants` or `gave_up` next has something to say; None if never by time alone."""
        if self.complete or self._gone or self._progress_ms is None:
            return None
        give_up_ms = self._progress_ms + GIVE_UP_MS
        return min(min(self._under_way.values(), default=give_up_ms), give_up_ms)


def _runs(chunks: list[int]) -> list[tuple[int, int]]:
    """Join neighbours: [1, 2, 3, 7] becomes chunk 1 for three and chunk 7 for one."""
    runs: list[tuple[int, int]] = []
    start = count = 0
    for chunk in sorted(chunks):
        if count and chunk == start + count:
            count += 1
            continue
        if count:
            runs.append((start * CHUNK_BYTES, count))
        start, count = chunk, 1
    if count:
        runs.append((start * CHUNK_BYTES, count))
    return runs
